"""Text to arrays: the right ids, whatever the files, pieces and processes; and nothing half-written, ever."""

import errno
import gzip
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from transformer_xl import TransfoXLTokenizer
from transformer_xl.data import arrays, counting, encoding, preparation, sources
from transformer_xl.data.counting import most_frequent
from transformer_xl.data.opening import CorpusOptions, assign, assign_splits
from transformer_xl.data.preparation import prepare
from transformer_xl.data.prepared import PreparedCorpus
from transformer_xl.data.sources import TextError

WORDS = ["the", "cat", "<unk>", "sat", "on", "mat", ",", "Über", "x<unk>y", "日本", "a", "b", "c"]


def some_text(n_lines, seed=0, words=WORDS):
    """Lines of words, some empty."""
    random = np.random.default_rng(seed)
    lines = [" ".join(random.choice(words, size=random.integers(0, 9))) for _ in range(n_lines)]
    return "".join(f" {line} \n" for line in lines)


@pytest.fixture
def small_pieces(monkeypatch):
    """Many shards and blocks for little text."""
    monkeypatch.setattr(encoding, "SHARD_BYTES", 300)
    monkeypatch.setattr(preparation, "SHARD_BYTES", 300)
    monkeypatch.setattr(sources, "BLOCK_BYTES", 64)


def written(folder, files):
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data.encode() if isinstance(data, str) else data)
    return folder


def of_folder(folder, **options):
    return assign([folder], CorpusOptions(**options))


def decoded(corpus, split):
    return corpus.tokenizer.convert_ids_to_tokens(corpus.tokens(split).tolist())


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# The right ids.


def expected_words(text):
    """What the authors' code makes of a text that is already tokenised, a line at a time."""
    tokenizer = TransfoXLTokenizer(mode="whitespace", special=["<eos>"], additional_special_tokens=[])
    return [token for line in text.splitlines() for token in [*tokenizer.tokenize(line), "<eos>"]]


def test_a_corpus_of_words_has_the_authors_ids(tmp_path, small_pieces):
    texts = {split: some_text(60, seed) for seed, split in enumerate(("train", "valid", "test"))}
    raw = written(tmp_path / "raw", {f"wiki.{split}.tokens": text for split, text in texts.items()} | {"README": "x"})
    corpus = prepare(of_folder(raw), tmp_path / "out")
    assert (corpus.name, corpus.unit, corpus.splits) == ("wikitext-2", "word", ("train", "valid", "test"))
    expected = {split: expected_words(text) for split, text in texts.items()}
    counts = Counter(token for tokens in expected.values() for token in tokens)
    by_frequency = [word for word, _ in counts.most_common() if word != "<eos>"]
    assert corpus.tokenizer.idx2sym == ["<eos>", *by_frequency]
    for split, tokens in expected.items():
        assert decoded(corpus, split) == tokens
        facts = corpus.meta["splits"][split]
        assert facts["tokens"] == len(tokens)
        assert facts["unknown"] == tokens.count("<unk>")
        assert facts["lines"] == 60
        assert facts["characters"] == len(texts[split])
        assert facts["bytes"] == len(texts[split].encode())
    assert corpus.counts().tolist() == [counts[word] for word in corpus.tokenizer.idx2sym]


def test_penn_treebank_is_lower_cased(tmp_path):
    raw = written(tmp_path / "raw", {f"ptb.{split}.txt": " The cat \n" for split in ("train", "valid", "test")})
    corpus = prepare(of_folder(raw), tmp_path / "out")
    assert corpus.name == "ptb"
    assert decoded(corpus, "test") == ["the", "cat", "<eos>"]


@pytest.mark.parametrize("line_end", ["eos", "none"])
@pytest.mark.parametrize("mode", ["words", "moses"])
@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
def test_ids_are_those_of_the_saved_tokenizer(tmp_path, small_pieces, mode, line_end, ending):
    text = some_text(40, words=[*WORDS, "isn't", "5,000", "end.", '"quoted"', "<eos>"]).replace("\n", ending)
    if ending == "\r":
        text += "the end"  # a line without an end is one, too
    raw = written(tmp_path / "raw", {"train.txt": text, "valid.txt": "new words ,\n"})
    corpus = prepare(of_folder(raw, mode=mode, line_end=line_end), tmp_path / "out")
    tokenizer = corpus.tokenizer
    expected = [token for line in text.splitlines() for token in tokenizer.tokenize(line, add_eos=line_end == "eos")]
    assert decoded(corpus, "train") == expected
    assert decoded(corpus, "valid")[:2] == ["<unk>", "<unk>"]
    assert corpus.meta["splits"]["valid"]["unknown"] == 2


@pytest.mark.parametrize("lower_case", [False, True])
def test_characters_are_those_of_the_tokenizer(tmp_path, small_pieces, lower_case):
    text = some_text(40) + "\r\n\tend€ 😀"
    raw = written(tmp_path / "raw", {"book.txt": text})
    options = {"mode": "characters", "lower_case": lower_case, "fractions": {"train": 0.5, "valid": 0.25, "test": 0.25}}
    corpus = prepare(of_folder(raw, **options), tmp_path / "out")
    assert corpus.unit == "character"
    tokens = [token for split in corpus.splits for token in decoded(corpus, split)]
    expected = list(text.lower() if lower_case else text)
    assert tokens == expected
    assert corpus.tokenizer.idx2sym == [symbol for symbol, _ in Counter(expected).most_common()]
    assert corpus.tokens("train").tolist() == corpus.tokenizer.encode("".join(decoded(corpus, "train")))


def test_bytes_are_kept_as_they_are(tmp_path, small_pieces):
    data = bytes(range(256)) * 10
    raw = written(tmp_path / "raw", {"enwik8": data})
    corpus = prepare(of_folder(raw), tmp_path / "out")
    assert (corpus.name, corpus.unit, corpus.vocab_size) == ("enwik8", "byte", 256)
    assert {split: len(corpus.tokens(split)) for split in corpus.splits} == {"train": 2304, "valid": 128, "test": 128}
    assert corpus.tokens("train").dtype == np.uint8
    back = "".join(token for split in corpus.splits for token in decoded(corpus, split)).encode("latin-1")
    assert back == data
    assert corpus.tokenizer.decode(corpus.tokenizer.encode("naïve €")) == "naïve €"


def test_sentences_share_the_boundary_between_them(tmp_path, small_pieces):
    lines = some_text(50).splitlines()
    raw = written(
        tmp_path / "raw",
        {
            "train/news.en-00001-of-00100": "\n".join(lines[:30]) + "\n",
            "train/news.en-00002-of-00100": "\n".join(lines[30:]) + "\n",
            "heldout/news.en.heldout-00000-of-00050": "the mat\nthe\n",
            "heldout/news.en.heldout-00001-of-00050": "not this\n",
        },
    )
    corpus = prepare(of_folder(raw), tmp_path / "out")
    assert (corpus.name, corpus.unit) == ("lm1b", "word")
    tokens, places = decoded(corpus, "train"), corpus.sentences("train")
    assert tokens[0] == "<S>"
    assert len(places) == 51
    words = corpus.tokenizer.get_vocab()
    for i, line in enumerate(lines):
        known = [word if word in words else "<UNK>" for word in line.split()]
        assert tokens[places[i] : places[i + 1] + 1] == ["<S>", *known, "<S>"]
    assert "<UNK>" not in tokens or Counter(" ".join(lines).split())["zzz"] == 0
    assert decoded(corpus, "valid") == decoded(corpus, "test") == ["<S>", "the", "mat", "<S>", "the", "<S>"]
    assert corpus.meta["splits"]["valid"]["sentences"] == 2


def test_the_word_list_of_one_billion_words_is_its_vocabulary(tmp_path):
    raw = written(
        tmp_path / "raw",
        {
            "news.en-00001-of-00100": "b a b\nc\n",
            "news.en.heldout-00000-of-00050": "a\n",
            "1b_word_vocab.txt": "<S> 9\n</S> 8\n<UNK> 7\nthe 6\na 5\nb 4\n",
        },
    )
    corpus = prepare(of_folder(raw), tmp_path / "out")
    assert corpus.tokenizer.idx2sym == ["<S>", "</S>", "<UNK>", "the", "a", "b"]
    assert corpus.tokens("train").tolist() == [0, 5, 4, 5, 0, 2, 0]
    assert [entry["splits"] for entry in corpus.meta["sources"]] == [["train"], ["valid", "test"], []]


@pytest.mark.parametrize("n_words", [255, 256, 257, 65_537])
def test_the_type_is_the_smallest_that_fits(tmp_path, n_words):
    raw = written(tmp_path / "raw", {"train.txt": " ".join(map(str, range(n_words))), "valid.txt": "1"})
    corpus = prepare(of_folder(raw, line_end="none"), tmp_path / "out")
    assert corpus.vocab_size == n_words + 1  # and <unk>
    expected = np.uint8 if n_words < 256 else np.uint16 if n_words < 65_536 else np.uint32
    assert corpus.tokens("train").dtype == expected
    array = np.load(tmp_path / "out" / "train.npy", mmap_mode="r", allow_pickle=False)
    assert array[-1] == n_words


def test_min_freq_and_max_size_bound_the_vocabulary(tmp_path):
    raw = written(tmp_path / "raw", {"train.txt": "a a a b b c c d\n", "valid.txt": "d\n"})
    frequent = prepare(of_folder(raw, min_freq=2), tmp_path / "frequent")
    assert frequent.tokenizer.idx2sym == ["<eos>", "<unk>", "a", "b", "c"]
    small = prepare(of_folder(raw, max_size=4), tmp_path / "small")
    assert small.tokenizer.idx2sym == ["<eos>", "<unk>", "a", "b"]
    characters = prepare(of_folder(raw, mode="characters", max_size=3), tmp_path / "characters")
    assert characters.tokenizer.idx2sym == ["<unk>", " ", "a"]
    assert characters.meta["splits"]["valid"]["unknown"] == 2


def test_a_given_tokenizer_gives_the_ids(tmp_path):
    TransfoXLTokenizer.train(texts=["the cat\n"], mode="whitespace").save_pretrained(tmp_path / "tokenizer")
    raw = written(tmp_path / "raw", {"wiki.valid.tokens": " the dog \n", "wiki.test.tokens": " cat \n"})
    corpus = prepare(of_folder(raw), tmp_path / "out", tokenizer=tmp_path / "tokenizer")
    assert corpus.splits == ("valid", "test")
    assert decoded(corpus, "valid") == ["the", "<unk>", "<eos>"]
    assert corpus.tokenizer.idx2sym == ["<eos>", "<unk>", "the", "cat"]


def test_words_count_in_the_training_split_only(tmp_path):
    raw = written(tmp_path / "raw", {"train.txt": "a b\n", "valid.txt": "c c\n"})
    corpus = prepare(of_folder(raw), tmp_path / "out")
    assert corpus.tokenizer.idx2sym == ["<eos>", "<unk>", "a", "b"]
    assert corpus.meta["vocabulary"]["counted"] == ["train"]
    assert corpus.counts().tolist() == [1, 0, 1, 1]


# Whatever the files, pieces and processes.


@pytest.mark.parametrize("mode", ["words", "characters", "bytes"])
def test_pieces_and_compression_do_not_change_the_result(tmp_path, mode, monkeypatch):
    texts = {"train.txt": some_text(300, 1), "valid.txt": some_text(80, 2), "test.txt": some_text(90, 3)}
    plain = prepare(of_folder(written(tmp_path / "plain", texts), mode=mode), tmp_path / "one")
    monkeypatch.setattr(encoding, "SHARD_BYTES", 500)
    monkeypatch.setattr(sources, "BLOCK_BYTES", 50)
    pieces = prepare(of_folder(tmp_path / "plain", mode=mode), tmp_path / "two")
    packed = written(tmp_path / "packed", {f"{name}.gz": gzip.compress(text.encode()) for name, text in texts.items()})
    compressed = prepare(of_folder(packed, mode=mode), tmp_path / "three")
    for split in plain.splits:
        assert np.array_equal(plain.tokens(split), pieces.tokens(split))
        assert np.array_equal(plain.tokens(split), compressed.tokens(split))
        assert plain.meta["splits"][split] == pieces.meta["splits"][split] == compressed.meta["splits"][split]
    assert plain.meta == pieces.meta
    assert plain.meta["vocabulary"] == compressed.meta["vocabulary"]


@pytest.mark.parametrize("is_compressed", [False, True])
def test_fractions_cut_many_files_at_line_ends(tmp_path, small_pieces, is_compressed):
    parts = [some_text(n, n) for n in (10, 1, 30, 25)]
    files = {f"{i:02}.txt{'.gz' * is_compressed}": part.encode() for i, part in enumerate(parts)}
    files = {name: gzip.compress(data) if is_compressed else data for name, data in files.items()}
    raw = written(tmp_path / "raw", files)
    shares = {"train": 0.6, "valid": 0.0, "test": 0.4}
    corpus = prepare(of_folder(raw, fractions=shares), tmp_path / "out")
    assert corpus.splits == ("train", "test")
    text = "".join(parts)
    bytes_of = {split: corpus.meta["splits"][split]["bytes"] for split in corpus.splits}
    assert bytes_of["train"] + bytes_of["test"] == len(text.encode())
    assert 0 <= bytes_of["train"] - 0.6 * len(text.encode()) < 100
    train = text.encode()[: bytes_of["train"]].decode()
    assert train.endswith("\n")
    assert corpus.meta["splits"]["train"]["tokens"] == len(expected_words(train))
    known = set(corpus.tokenizer.idx2sym)
    expected = [word if word in known else "<unk>" for word in expected_words(text[len(train) :])]
    assert decoded(corpus, "test") == expected


def test_two_processes_give_what_one_gives(tmp_path, monkeypatch):
    monkeypatch.setattr(encoding, "FEW_BYTES", 0)
    monkeypatch.setattr(encoding, "SHARD_BYTES", 1000)
    raw = written(tmp_path / "raw", {"train.txt": some_text(300, 1), "valid.txt": some_text(80, 2)})
    one = prepare(of_folder(raw, mode="characters"), tmp_path / "one")
    two = prepare(of_folder(raw, mode="characters"), tmp_path / "two", processes=2)
    assert contents(one.folder) == contents(two.folder)
    written(tmp_path / "bad", {"train.txt": b"ok\n\xff\n", "valid.txt": b"ok\n"})
    with pytest.raises(TextError, match=r"train\.txt, line 2 is not UTF-8: byte 0xff at offset 3"):
        prepare(of_folder(tmp_path / "bad", mode="characters"), tmp_path / "three", processes=2)


def test_counting_is_exact_and_ordered_like_a_counter(tmp_path, small_pieces):
    text = some_text(400, 5, words=[f"w{i}" for i in range(200)])
    raw = written(tmp_path / "raw", {"train.txt": text, "valid.txt": "x\n"})
    corpus = prepare(of_folder(raw), tmp_path / "out")
    counts = Counter(text.split())
    assert corpus.tokenizer.idx2sym[2:] == [word for word, _ in counts.most_common()]
    assert most_frequent([]) == Counter()


def test_a_single_file_of_numbers_needs_no_name(tmp_path):
    raw = written(tmp_path, {"my-test.txt": "a b c d\n" * 100})
    corpus = prepare(assign([raw / "my-test.txt"]), tmp_path / "out")
    assert corpus.splits == ("train", "valid", "test")
    assert corpus.meta["sources"][0]["splits"] == ["by shares"]


# Nothing half-written.


def prepared_in_steps(tmp_path, mode="characters"):
    raw = written(tmp_path / "raw", {"train.txt": some_text(200, 1), "valid.txt": some_text(50, 2)})
    return of_folder(raw, mode=mode)


KILLED = textwrap.dedent(
    """
    import os, signal, sys
    import transformer_xl_command
    from importlib import import_module
    from pathlib import Path
    from transformer_xl.data import encoding, preparation, sources
    encoding.SHARD_BYTES = preparation.SHARD_BYTES = 300
    sources.BLOCK_BYTES = 64
    raw, output, module, name, n_calls = sys.argv[1:]
    module = import_module(f"transformer_xl.data.{module}")
    function, left = getattr(module, name), int(n_calls)
    def killing(*arguments, **options):
        global left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **options)
    setattr(module, name, killing)
    from transformer_xl.data.opening import CorpusOptions, assign
    preparation.prepare(assign([Path(raw)], CorpusOptions(mode="characters")), Path(output))
    """
)


@pytest.mark.parametrize(
    ("module", "name", "n_calls"),
    [
        ("encoding", "_save_shard", 0),
        ("encoding", "_save_shard", 7),
        ("counting", "_add_up", 0),
        ("arrays", "file_sha256", 1),
        ("preparation", "_publish", 0),
    ],
)
def test_after_a_kill_nothing_is_half_written_and_finished_shards_are_kept(
    tmp_path, small_pieces, monkeypatch, module, name, n_calls
):
    assignment = prepared_in_steps(tmp_path)
    whole = contents(prepare(assignment, tmp_path / "whole").folder)
    output = tmp_path / "out"
    run = subprocess.run(
        [sys.executable, "-c", KILLED, tmp_path / "raw", output, module, name, str(n_calls)], check=False
    )
    assert run.returncode == -signal.SIGKILL
    assert not output.exists()
    kept = sorted((tmp_path / ".out.preparing" / "shards").glob("0*.npz"))
    assert len(kept) == (n_calls if module == "encoding" else len(kept))
    before = {path.name: path.stat().st_mtime_ns for path in kept}
    made = []
    save = encoding._save_shard
    monkeypatch.setattr(encoding, "_save_shard", lambda path, *more: (made.append(path.name), save(path, *more)))
    assert contents(prepare(assignment, output).folder) == whole
    assert not before.keys() & set(made)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_compressed_file_is_many_shards_and_goes_on_after_the_last(tmp_path, small_pieces, monkeypatch):
    texts = {"train.txt.gz": gzip.compress(some_text(200, 1).encode()), "valid.txt.gz": gzip.compress(b"a b\n")}
    assignment = of_folder(written(tmp_path / "raw", texts))
    whole = contents(prepare(assignment, tmp_path / "whole").folder)
    save, made = encoding._save_shard, []

    def save_few(path, *more):
        if len(made) == 5:
            raise KeyboardInterrupt
        made.append(path.name)
        save(path, *more)

    monkeypatch.setattr(encoding, "_save_shard", save_few)
    with pytest.raises(KeyboardInterrupt):
        prepare(assignment, tmp_path / "out")
    monkeypatch.setattr(encoding, "_save_shard", lambda path, *more: (made.append(path.name), save(path, *more)))
    assert contents(prepare(assignment, tmp_path / "out").folder) == whole
    assert len(made) == len(set(made)) > 10  # none twice


def test_other_options_or_texts_begin_anew(tmp_path, small_pieces, monkeypatch):
    assignment = prepared_in_steps(tmp_path)
    monkeypatch.setattr(preparation, "_publish", interrupt)
    with pytest.raises(KeyboardInterrupt):
        prepare(assignment, tmp_path / "out")
    monkeypatch.undo()
    (tmp_path / "raw" / "valid.txt").write_text("entirely new\n")
    corpus = prepare(of_folder(tmp_path / "raw", mode="characters"), tmp_path / "out")
    assert "".join(decoded(corpus, "valid")) == "entirely new\n"


def interrupt(*_arguments, **_options):
    raise KeyboardInterrupt


def test_a_shard_that_the_disk_lost_is_made_again(tmp_path, small_pieces, monkeypatch):
    assignment = prepared_in_steps(tmp_path)
    whole = contents(prepare(assignment, tmp_path / "whole").folder)
    with monkeypatch.context() as context:
        context.setattr(preparation, "_publish", interrupt)
        with pytest.raises(KeyboardInterrupt):
            prepare(assignment, tmp_path / "out")
    lost = sorted((tmp_path / ".out.preparing" / "shards").glob("0*.npz"))
    lost[1].write_bytes(b"")
    lost[2].write_bytes(lost[2].read_bytes()[:-30])
    assert contents(prepare(assignment, tmp_path / "out").folder) == whole


def no_space(*_arguments, **_options):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    ("module", "name"), [(encoding, "_save_shard"), (counting, "_add_up"), (arrays, "array_file"), (np, "save")]
)
def test_a_full_disk_is_one_line_and_the_next_try_goes_on(tmp_path, small_pieces, monkeypatch, module, name):
    assignment = prepared_in_steps(tmp_path)
    whole = contents(prepare(assignment, tmp_path / "whole").folder)
    with monkeypatch.context() as context:
        context.setattr(module, name, no_space)
        with pytest.raises(OSError, match="no space left on the disk; what is finished is kept: free some") as caught:
            prepare(assignment, tmp_path / "out")
    assert caught.value.filename == str(tmp_path / ".out.preparing")
    assert not (tmp_path / "out").exists()
    assert contents(prepare(assignment, tmp_path / "out").folder) == whole


def test_the_same_again_is_recognised_and_nothing_is_done(tmp_path, monkeypatch):
    assignment = prepared_in_steps(tmp_path)
    first = contents(prepare(assignment, tmp_path / "out").folder)
    monkeypatch.setattr(preparation, "encode_pieces", interrupt)
    assert contents(prepare(assignment, tmp_path / "out").folder) == first


def test_an_empty_folder_may_be_the_output(tmp_path):
    (tmp_path / "out").mkdir()
    assert prepare(prepared_in_steps(tmp_path), tmp_path / "out").splits == ("train", "valid")


def test_an_output_that_holds_something_else_is_left_alone(tmp_path):
    assignment = prepared_in_steps(tmp_path)
    taken = written(tmp_path / "taken", {"thesis.tex": "x"})
    with pytest.raises(ValueError, match=r"taken holds something else \(thesis\.tex\): give a new or empty folder\."):
        prepare(assignment, taken)
    with pytest.raises(ValueError, match=r"thesis\.tex is a file but must be a folder: give another\."):
        prepare(assignment, taken / "thesis.tex")
    prepare(assignment, tmp_path / "out")
    before = contents(tmp_path / "out")
    with pytest.raises(ValueError, match="out was prepared with mode='characters', now it is 'words': give another"):
        prepare(of_folder(tmp_path / "raw"), tmp_path / "out")
    (tmp_path / "raw" / "valid.txt").write_text("new\n")
    with pytest.raises(ValueError, match="out was prepared from other texts: give another folder, or remove this one"):
        prepare(of_folder(tmp_path / "raw", mode="characters"), tmp_path / "out")
    assert contents(tmp_path / "out") == before
    assert contents(taken) == {"thesis.tex": b"x"}


# What cannot be prepared.


@pytest.mark.parametrize(
    ("files", "options", "message"),
    [
        ({"wiki.test.tokens": "a\n"}, {}, "The corpus has no train split to make a vocabulary from (only"),
        (
            {"train.txt": "a\n", "notes.md": "b\n"},
            {},
            "notes.md belongs to no split, while train.txt names one: rename",
        ),
        ({"valid.txt": "a\n", "test.txt": "b\n"}, {}, "The corpus has no train split to make a vocabulary from (only"),
        (
            {"a.txt": "one line\n"},
            {},
            "fractions leave nothing for 'valid' of 9 bytes: give more text, or other shares.",
        ),
        ({"train.txt": "\ufeff", "valid.txt": "a"}, {}, "has no word for a vocabulary: give files that hold text."),
        ({"train.txt": b"a\xff", "valid.txt": "a"}, {}, "train.txt, line 1 is not UTF-8: byte 0xff at offset 1"),
        (
            {"train.txt": "a", "valid.txt.gz": gzip.compress(b"")},
            {"line_end": "none"},
            "The split 'valid' has no text: give files that hold some, or leave it out.",
        ),
        ({"enwik8": "a", "enwik8.part": "b"}, {}, "enwik8 is one text, but there are several (enwik8, enwik8.part)"),
    ],
)
def test_impossible_corpora_are_refused(tmp_path, files, options, message):
    raw = written(tmp_path / "raw", files)
    with pytest.raises(ValueError, match=re.escape(message)):
        prepare(of_folder(raw, **options), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_symbol_that_nothing_stands_for_is_refused(tmp_path):
    TransfoXLTokenizer.train(texts=["ab"], mode="characters", unk_token=None).save_pretrained(tmp_path / "tokenizer")
    raw = written(tmp_path / "raw", {"train.txt": "abß", "valid.txt": "a"})
    message = "train.txt: 'ß' is not in the vocabulary, which has no token for unknown ones: leave it out of the text"
    with pytest.raises(TextError, match=re.escape(message)):
        prepare(of_folder(raw, mode="characters"), tmp_path / "out", tokenizer=tmp_path / "tokenizer")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "has mode 'characters', but the text is to be read as words: give --mode characters."),
        ({"mode": "moses"}, "has mode 'characters', but the text is to be read as moses: give --mode characters."),
    ],
)
def test_a_tokenizer_of_another_mode_is_refused(tmp_path, options, message):
    TransfoXLTokenizer.train(texts=["ab"], mode="characters").save_pretrained(tmp_path / "tokenizer")
    raw = written(tmp_path / "raw", {"train.txt": "ab", "valid.txt": "a"})
    with pytest.raises(ValueError, match=re.escape(message)):
        prepare(of_folder(raw, **options), tmp_path / "out", tokenizer=tmp_path / "tokenizer")
    with pytest.raises(ValueError, match=r"raw has no vocab\.json: give the folder of a TransfoXLTokenizer\."):
        prepare(of_folder(raw, **options), tmp_path / "out", tokenizer=tmp_path / "raw")


def test_a_tokenizer_without_the_line_token_is_refused(tmp_path):
    tokenizer = TransfoXLTokenizer.train(texts=["a b"], mode="whitespace", eos_token=None)
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    raw = written(tmp_path / "raw", {"train.txt": "a b\n", "valid.txt": "a\n"})
    with pytest.raises(ValueError, match="tokenizer has no <eos>, which is to end a line: give --line-end none"):
        prepare(of_folder(raw), tmp_path / "out", tokenizer=tmp_path / "tokenizer")
    corpus = prepare(of_folder(raw, line_end="none"), tmp_path / "out", tokenizer=tmp_path / "tokenizer")
    assert decoded(corpus, "train") == ["a", "b"]


def test_a_file_given_twice_is_refused(tmp_path):
    path = written(tmp_path, {"a.txt": "a\n"}) / "a.txt"
    with pytest.raises(ValueError, match=r"a\.txt was given twice: leave one out\."):
        prepare(assign_splits({"train": [path, path]}), tmp_path / "out")


# At any size.


@pytest.mark.slow
def test_memory_does_not_grow_with_the_text(tmp_path):
    """Ten times the text, and ten times the different words, within 20% of the memory."""
    program = textwrap.dedent(
        """
        import resource, sys
        import transformer_xl_command
        from pathlib import Path
        from transformer_xl.data import encoding
        encoding.SHARD_BYTES = 1 << 20
        from transformer_xl.data.opening import CorpusOptions, assign
        from transformer_xl.data.preparation import prepare
        prepare(assign([Path(sys.argv[1])], CorpusOptions(max_size=1000)), Path(sys.argv[2]))
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
        """
    )
    peaks = []
    for n_lines in (100_000, 1_000_000):
        raw = tmp_path / str(n_lines)
        raw.mkdir()
        with (raw / "train.txt").open("w") as file:
            file.writelines(f"the {n} word{n * 7919 % n_lines} of {n_lines} and more text\n" for n in range(n_lines))
        (raw / "valid.txt").write_text("x\n")
        arguments = [sys.executable, "-c", program, raw, tmp_path / f"out{n_lines}"]
        peaks.append(int(subprocess.run(arguments, check=True, capture_output=True, text=True).stdout))
    assert peaks[1] < 1.2 * peaks[0]


@pytest.mark.slow
def test_killed_with_its_workers_it_goes_on(tmp_path):
    psutil = pytest.importorskip("psutil")
    raw = written(tmp_path / "raw", {"train.txt": some_text(20_000, 1) * 50, "valid.txt": some_text(50, 2)})
    whole = contents(prepare(of_folder(raw), tmp_path / "whole").folder)
    command = [sys.executable, "-m", "transformer_xl", "prepare", raw, "-o", tmp_path / "out", "--processes", "2"]
    process = subprocess.Popen(command)
    shards = tmp_path / ".out.preparing" / "shards"
    while process.poll() is None and not list(shards.glob("0*.npz")):
        time.sleep(0.01)
    workers = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(workers, timeout=20)
    assert not alive
    assert not (tmp_path / "out").exists()
    assert list(shards.glob("0*.npz"))
    subprocess.run(command, check=True)
    assert contents(tmp_path / "out") == whole


def test_meta_says_what_the_result_depends_on(tmp_path):
    raw = written(tmp_path / "raw", {"train.txt": "a b\n", "valid.txt": "b\n"})
    folder = prepare(of_folder(raw), tmp_path / "out").folder
    meta = json.loads((folder / "meta.json").read_text())
    assert meta["vocabulary"]["sha256"] == sources.file_sha256(folder / "tokenizer" / "vocab.json")
    assert meta["splits"]["train"]["sha256"] == sources.file_sha256(folder / "train.npy")
    assert meta["sources"] == [
        {"name": "train.txt", "splits": ["train"], "bytes": 4, "sha256": sources.file_sha256(raw / "train.txt")},
        {"name": "valid.txt", "splits": ["valid"], "bytes": 2, "sha256": sources.file_sha256(raw / "valid.txt")},
    ]
    assert meta["options"]["mode"] == "words"
    assert str(tmp_path) not in (folder / "meta.json").read_text()
    assert isinstance(PreparedCorpus(folder), PreparedCorpus)
    assert Path(folder).name == "out"
