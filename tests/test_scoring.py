"""Surprisal of tokens and words: the sums of `evaluate`, the log-probabilities of `forward`, the words of the text."""

import io
import json
import math
import re
import tracemalloc
from itertools import islice

import pytest
import torch

from models import tiny_model
from transformer_xl import TransfoXLTokenizer, evaluation, reading
from transformer_xl.evaluation import evaluate
from transformer_xl.reading import TextReader
from transformer_xl.scoring import ScoringOptions, bits, token_surprisals, word_surprisals

WORDS = "the cat sat on the mat , and the dog <unk> .\nso it goes\n"
TEXT = "the cat sat\non the  zebra , and\n\nso it goes .\n"
RAW = "He said: “Hello, world”. It costs 1,000.50!\nWell-known.\n"


def words():
    return TransfoXLTokenizer.train(texts=[WORDS], mode="whitespace")


def moses():
    return TransfoXLTokenizer.train(texts=['He said: "Hello, world". It costs 1,000.50 -- well-known.'], mode="moses")


def characters():
    return TransfoXLTokenizer.train(texts=[TEXT], mode="characters", unk_token=None, eos_token=None)


def model_for(tokenizer, **changes):
    settings = {"vocab_size": len(tokenizer), "cutoffs": [], "div_val": 1, "init_std": 0.3, **changes}
    return tiny_model(**settings)


def opened(text):
    return io.BytesIO(text.encode())


def scored(text, tokenizer, model=None, **options):
    model = model_for(tokenizer) if model is None else model
    source = TextReader(tokenizer, source="text.txt")
    return list(token_surprisals(model, source, opened(text), ScoringOptions(**options)))


def scored_words(text, tokenizer, **options):
    return list(word_surprisals(scored(text, tokenizer, **options), TextReader(tokenizer, source="text.txt")))


def total(rows):
    return math.fsum(row.surprisal_nats for row in rows if row.surprisal_nats is not None)


@pytest.mark.parametrize("start_with_eos", [False, True])
@pytest.mark.parametrize(
    "changes", [{}, {"same_length": False}, {"mem_len": 0}, {"mem_len": 0, "ext_len": 3}, {"initial_memory": "empty"}]
)
@pytest.mark.parametrize(("tokenizer", "text"), [(words(), TEXT), (moses(), RAW)], ids=["words", "moses"])
def test_the_sum_is_the_loss_of_evaluate(tokenizer, text, changes, start_with_eos):
    model = model_for(tokenizer, **changes)
    found = TextReader(tokenizer, source="").read_ids(opened(text), start_with_eos=start_with_eos)
    for options in ({"tgt_len": 4}, {"temperature": 1.3}, {"tgt_len": 1000}):
        expected = evaluate(model, found.ids, **options)
        rows = scored(text, tokenizer, model, start_with_eos=start_with_eos, **options)
        assert sum(row.surprisal_nats is not None for row in rows) == expected.n_tokens
        assert total(rows) == pytest.approx(expected.loss_nats * expected.n_tokens, abs=1e-9)
        by_word = list(word_surprisals(rows, TextReader(tokenizer, source="")))
        assert total(by_word) == pytest.approx(total(rows), abs=1e-9)
        assert sum(row.n_tokens for row in by_word) == len(rows)


def test_the_sum_is_the_loss_of_evaluate_for_characters_and_windows():
    tokenizer = characters()
    model = model_for(tokenizer, mem_len=0)
    ids = TextReader(tokenizer, source="").read_ids(opened(TEXT)).ids
    expected = evaluate(model, ids, tgt_len=5, sliding_window=True)
    rows = scored(TEXT, tokenizer, model, tgt_len=5, sliding_window=True)
    assert total(rows) == pytest.approx(expected.loss_nats * (len(TEXT) - 1), abs=1e-9)


def test_several_segments_are_read_at_once(monkeypatch):
    monkeypatch.setattr(evaluation, "TOKENS_AT_ONCE", 9)
    tokenizer, lengths = words(), []
    model = model_for(tokenizer)
    model.register_forward_pre_hook(lambda *call: lengths.append(call[1][0].shape[1]))
    scored(TEXT, tokenizer, model, tgt_len=4)
    assert max(lengths) == 8


def test_a_surprisal_is_the_negative_log_probability_given_all_before():
    tokenizer = words()
    model = model_for(tokenizer, mem_len=50)
    ids = TextReader(tokenizer, source="").read_ids(opened(TEXT)).ids
    scores = model(ids[None]).prediction_scores[0].double()
    expected = [None, *(-scores[place, following].item() for place, following in enumerate(ids[1:].tolist()))]
    rows = scored(TEXT, tokenizer, model, tgt_len=3)
    assert [row.surprisal_nats for row in rows] == [None, *map(pytest.approx, expected[1:])]
    assert bits(rows[1].surprisal_nats) == pytest.approx(expected[1] / math.log(2))
    assert bits(None) is None


def test_rows_of_tokens():
    rows = scored("the cat\r\n zebra\n", words())
    assert [tuple(row)[:6] + tuple(row)[7:] for row in rows] == [
        (1, 1, 1, 0, 3, "the", False, "the"),
        (1, 1, 2, 4, 7, "cat", False, "cat"),
        (1, 1, 0, 7, 9, "<eos>", False, "\r\n"),
        (1, 2, 3, 10, 15, "zebra", True, "zebra"),
        (1, 2, 0, 15, 16, "<eos>", False, "\n"),
    ]


def test_words_of_raw_text_hold_their_punctuation():
    text = RAW + "So … it’s «here»\n"
    rows = scored_words(text, moses())
    inner = [row for row in rows if row.word_index]
    assert [row.word for row in inner] == text.split()
    assert [row.word_index for row in inner] == list(range(1, 13))
    assert all(text[row.start : row.end] == row.word for row in inner)
    assert [row.n_tokens for row in inner] == [1, 2, 3, 3, 1, 1, 6, 4, 1, 1, 2, 3]
    assert [(row.word, row.line) for row in rows if not row.word_index] == [("<eos>", 1), ("<eos>", 2), ("<eos>", 3)]


def test_a_word_of_characters_ends_with_the_white_space_after_it():
    text = "  the cat\nsat "
    rows = scored_words(text, characters())
    assert [(row.word_index, row.word, row.start, row.end, row.n_tokens, row.n_scored) for row in rows] == [
        (0, " ", 0, 1, 1, 0),
        (0, " ", 1, 2, 1, 1),
        (1, "the", 2, 5, 4, 4),
        (2, "cat", 6, 9, 4, 4),
        (3, "sat", 10, 13, 4, 4),
    ]
    tokens = scored(text, characters())
    assert rows[2].surprisal_nats == pytest.approx(sum(row.surprisal_nats for row in tokens[2:6]))


def test_words_of_bytes_are_shown_as_text(tmp_path):
    data = "là bas".encode()
    (tmp_path / "vocab.json").write_text(json.dumps(sorted({chr(byte) for byte in data})))
    tokenizer = TransfoXLTokenizer(pretrained_vocab_file=tmp_path / "vocab.json", mode="bytes")
    rows = scored_words(data.decode(), tokenizer)
    assert [(row.word, row.n_tokens) for row in rows] == [("là", 4), ("bas", 3)]


def test_words_between_delimiters():
    tokenizer = TransfoXLTokenizer.train(texts=["a b,c"], mode="whitespace", delimiter=",")
    assert [row.word for row in scored_words("a b,c,a b\n", tokenizer)] == ["a b", "c", "a b", "<eos>"]


def test_an_unknown_token_marks_its_word():
    rows = scored_words("the zebra sat\n", words())
    assert [row.is_unknown for row in rows] == [False, True, False, False]


@pytest.mark.parametrize(
    ("separator", "documents"),
    [
        ("none", ["the cat <eos> <eos> sat <eos> *** <eos> on the <eos> <eos> <eos> mat <eos>"]),
        ("line", ["the cat <eos>", "sat <eos>", "*** <eos>", "on the <eos>", "mat <eos>"]),
        ("blank", ["the cat <eos>", "sat <eos> *** <eos> on the <eos>", "mat <eos>"]),
        ("***", ["the cat <eos> <eos> sat <eos>", "on the <eos> <eos> <eos> mat <eos>"]),
    ],
)
def test_documents_are_scored_as_if_each_stood_alone(separator, documents):
    text = "the cat\n \nsat\n *** \non the\n\n\nmat"
    tokenizer = words()
    rows = scored(text, tokenizer, document_separator=separator)
    found = [[row for row in rows if row.document == number + 1] for number in range(rows[-1].document)]
    assert [" ".join(row.token for row in document) for document in found] == documents
    model = model_for(tokenizer)
    for document in found:
        ids = torch.tensor(tokenizer.convert_tokens_to_ids([row.token for row in document]))
        assert document[0].surprisal_nats is None
        assert total(document) == pytest.approx(evaluate(model, ids).loss_nats * (len(ids) - 1), abs=1e-9)
    assert found[-1][0].word_index == 1


def test_each_document_may_start_with_eos():
    rows = scored("the cat\nsat\n", words(), document_separator="line", start_with_eos=True)
    assert [row.document for row in rows] == [1, 1, 1, 2, 2]
    assert all(row.surprisal_nats is not None for row in rows)


def test_rows_come_while_the_text_is_read():
    class Endless(io.RawIOBase):
        def read(self, size=-1):
            return b"the cat sat on the mat\n" * 10

    source = TextReader(words(), source="endless")
    rows = list(islice(token_surprisals(model_for(words()), source, Endless()), 1000))
    assert len(rows) == 1000
    assert rows[-1].line == 143


def test_memory_does_not_grow_with_the_text(monkeypatch):
    """One line of 6,000 tokens; to hold them all would take more than 1 MB."""
    monkeypatch.setattr(reading, "PIECE_LEN", 200)
    blocks = iter([b"the cat sat " * 20] * 100)

    class Line(io.RawIOBase):
        def read(self, size=-1):
            return next(blocks, b"")

    model, source = model_for(words(), n_layer=1), TextReader(words(), source="")
    next(token_surprisals(model, source, opened(TEXT)))
    tracemalloc.start()
    n_rows = sum(1 for _ in token_surprisals(model, source, Line(), ScoringOptions(tgt_len=64)))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert n_rows == 6_001
    assert peak < 400_000


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("", {}, "text.txt holds no token but must hold at least two: the first is only context for the second."),
        ("\n \n", {"document_separator": "blank"}, "text.txt holds no token but must hold at least two"),
        ("a", {"tgt_len": 0}, "tgt_len=0 must be at least 1."),
        ("a", {"temperature": -1.0}, "temperature=-1.0 must be positive and finite: 1 leaves the model as it is."),
        ("a b", {"sliding_window": True}, "sliding_window=True must not go with mem_len=6"),
    ],
)
def test_impossible_scorings_are_refused(text, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        scored(text, words(), **options)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("the\n", "text.txt holds one token but must hold at least two"),
        ("the\ncat\n", "text.txt holds only documents of one token but must hold at least two"),
    ],
)
def test_a_text_in_which_nothing_can_be_scored_is_refused(text, message):
    source = TextReader(words(), source="text.txt", line_marks=False)
    options = ScoringOptions(document_separator="line")
    with pytest.raises(ValueError, match=re.escape(message)):
        list(token_surprisals(model_for(words()), source, opened(text), options))
