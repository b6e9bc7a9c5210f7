"""Text as tokens with their places, against the tokenizer's own encoding of whole files."""

import io
import json
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from transformer_xl import TransfoXLTokenizer, reading
from transformer_xl.reading import TextReader, locate
from transformer_xl.tokenization import EOS_TOKEN, UNK_TOKEN

WORDS = "the cat sat on the mat , and the dog <unk> .\nso it goes\n"
SYMBOLS = "abc .,\n"


def words(**options):
    return TransfoXLTokenizer.train(texts=[WORDS], mode="whitespace", **options)


def characters(text=SYMBOLS, *, unk_token=None, eos_token=None):
    special = [token for token in (eos_token, unk_token) if token is not None]
    return TransfoXLTokenizer.train(
        texts=[text], mode="characters", special=special, unk_token=unk_token, eos_token=eos_token
    )


def moses():
    return TransfoXLTokenizer.train(texts=['He said: "Hello, world". It costs 1,000.50 -- well-known.'], mode="moses")


def one_billion_word():
    """As the authors' vocabulary: `<S>` at both ends of a sentence, no `<eos>`."""
    tokens = {"special": ["<S>", "<UNK>"], "eos_token": None, "unk_token": "<UNK>"}
    return TransfoXLTokenizer.train(texts=["<S> the cat sat <S>"], mode="whitespace", **tokens)


TOKENIZERS = {
    "words": words(),
    "lower": TransfoXLTokenizer.train(texts=[WORDS], mode="whitespace", lower_case=True),
    "moses": moses(),
    "characters": characters(),
    "characters-unk": characters(unk_token=UNK_TOKEN),
    "characters-eos": characters("abc .,", unk_token=UNK_TOKEN, eos_token=EOS_TOKEN),
    "sentences": one_billion_word(),
}


def reader(tokenizer, **options):
    return TextReader(tokenizer, source="text.txt", **options)


def tokens_of(tokenizer, text, **options):
    source = reader(tokenizer, **options)
    return [token for piece in source.pieces(io.BytesIO(text.encode())) for token in source.tokens(piece)]


def ids_of(tokenizer, text, **options):
    return reader(tokenizer).read_ids(io.BytesIO(text.encode()), **options)


# Words, marks, white space of all kinds, in lines of all kinds; `\r` only before `\n`.
PARTS = ["the", "Cat", "zebra", "a", "b.", "“c”", '"', "'", "…", " ", " ", " ", "\t", "\n", "\r\n", "\u00a0", "<unk>"]
TEXTS = st.lists(st.sampled_from(PARTS), max_size=25).map("".join)


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("piece_len", [7, 1 << 16])
def test_the_ids_are_those_of_the_whole_file(name, piece_len, monkeypatch, tmp_path):
    monkeypatch.setattr(reading, "PIECE_LEN", piece_len)
    tokenizer, path = TOKENIZERS[name], tmp_path / "text.txt"
    symbols = " .,\nabc" if name.startswith("characters") else None

    @given(TEXTS)
    @example("the cat sat on the mat\n\nso it goes")
    @example("the cat \r\n\r\n zebra\n")
    def check(text):
        if symbols is not None:
            text = "".join(c for c in text if c in symbols)
        path.write_text(text, encoding="utf-8", newline="")
        double = name == "sentences"
        expected = tokenizer.encode_file(
            path, ordered=True, add_eos=tokenizer.eos_token is not None, add_double_eos=double
        )
        assert [token.id for token in tokens_of(tokenizer, text)] == expected.tolist()

    if name == "moses" and piece_len == 7:  # its rules look beyond a word, so a line cut so short is read otherwise
        return
    check()


@pytest.mark.parametrize("name", TOKENIZERS)
def test_places_are_in_order_and_every_visible_character_is_in_one(name):
    tokenizer = TOKENIZERS[name]

    @given(TEXTS)
    def check(text):
        if name.startswith("characters"):
            text = "".join(c for c in text if c in SYMBOLS)
        end, covered = 0, []
        for token in tokens_of(tokenizer, text):
            assert end <= token.start <= token.end <= len(text)
            assert token.line == text[: token.start].count("\n") + 1
            covered += range(token.start, token.end)
            end = token.end
            if name in ("words", "characters"):
                assert token.is_mark or text[token.start : token.end] == token.text
        assert len(covered) == len(set(covered))
        assert all(c.isspace() for place, c in enumerate(text) if place not in set(covered))

    check()


def test_a_line_without_end_is_read_piece_by_piece(monkeypatch):
    monkeypatch.setattr(reading, "PIECE_LEN", 50)
    text = "the cat sat " * 500
    longest = 0
    for piece in reader(words()).pieces(io.BytesIO(text.encode())):
        longest = max(longest, len(piece.text))
        assert piece.line == 1
        assert piece.text.endswith(" ") or piece.is_last
    assert longest <= 100
    tokens = tokens_of(words(), text)
    assert [token.text for token in tokens] == [*text.split(), "<eos>"]
    assert all(text[token.start : token.end] == token.text for token in tokens[:-1])


def test_bytes_are_read_as_they_are(tmp_path):
    """0xa0 is white space as a character, but here the second half of `à`; 0xff is no UTF-8 at all."""
    data = "là bas\r\nça".encode() + b"\xff\n"
    (tmp_path / "vocab.json").write_text(json.dumps(sorted({chr(byte) for byte in data})))
    tokenizer = TransfoXLTokenizer(pretrained_vocab_file=tmp_path / "vocab.json", mode="bytes")
    (tmp_path / "text").write_bytes(data)
    source = reader(tokenizer)
    with (tmp_path / "text").open("rb") as file:
        tokens = [token for piece in source.pieces(file) for token in source.tokens(piece)]
    assert [tokenizer.convert_ids_to_tokens(token.id) for token in tokens] == [chr(byte) for byte in data]
    assert [token.after_space for token in tokens].count(True) == 4  # l, b, \n and \u00e7
    with (tmp_path / "text").open("rb") as file:
        found = source.read_ids(file)
    assert (len(found.ids), found.n_bytes, found.n_characters) == (len(data), len(data) - 1, len(data) - 3)


def test_marks_of_line_ends():
    tokens = tokens_of(words(), "the cat\r\n\nsat")
    assert [(t.text, t.line, t.start, t.end, t.is_mark) for t in tokens] == [
        ("the", 1, 0, 3, False),
        ("cat", 1, 4, 7, False),
        ("<eos>", 1, 7, 9, True),
        ("<eos>", 2, 9, 10, True),
        ("sat", 3, 10, 13, False),
        ("<eos>", 3, 13, 13, True),
    ]
    without = tokens_of(words(), "the cat\r\n\nsat", line_marks=False)
    assert [(t.text, t.line) for t in without] == [("the", 1), ("cat", 1), ("sat", 3)]


def test_old_line_breaks_end_lines_of_words_too():
    assert [t.text for t in tokens_of(words(), "the\rcat\r")] == ["the", "<eos>", "cat", "<eos>"]


def test_marks_at_both_ends_of_sentences():
    tokens = tokens_of(one_billion_word(), "the cat\nsat\n")
    assert [t.text for t in tokens] == ["<S>", "the", "cat", "<S>", "<S>", "sat", "<S>"]
    assert [t.is_mark for t in tokens] == [True, False, False, True, True, False, True]


def test_the_line_break_is_a_character_where_it_is_a_symbol_and_else_a_mark():
    assert [(t.text, t.is_mark) for t in tokens_of(characters(), "a\n")] == [("a", False), ("\n", False)]
    with_mark = tokens_of(TOKENIZERS["characters-eos"], "a\nb")
    assert [(t.text, t.is_mark) for t in with_mark] == [("a", False), ("<eos>", True), ("b", False), ("<eos>", True)]


def test_a_model_without_line_breaks_takes_the_one_that_ends_a_file():
    tokenizer = characters("ab ")
    assert [t.text for t in tokens_of(tokenizer, "ab a\n")] == list("ab a")
    with pytest.raises(ValueError, match=re.escape("text.txt, line 1: '\\n' is not among the 3 symbols")):
        tokens_of(tokenizer, "ab\na\n")


def test_places_where_the_moses_rules_write_anew():
    text = 'He  said: “Hello, world”. It\u2019s 1,000.50 \x07well\x07-known\x07 so … "no".'
    found = [(t.text, t.source) for t in tokens_of(moses(), text)][:-1]
    assert found == [
        ("He", "He"), ("said", "said"), (":", ":"), ('"', "“"), ("Hello", "Hello"), (",", ","), ("world", "world"),
        (".", "”."), ('"', ""), ("It", "It"), ("'s", "\u2019s"), ("1", "1"), ("@,@", ","), ("000", "000"),
        ("@.@", "."), ("50", "50"), ("well", "\x07well"), ("@-@", "\x07-"), ("known", "known\x07"), ("so", "so"),
        ("...", "…"), ('"', '"'), ("no", "no"), (".", '".'), ('"', ""),
    ]  # fmt: skip


def test_locate_finds_tokens_of_lowered_text():
    assert locate(["i\u0307stanbul", "is"], "\u0130stanbul IS", lower_case=True) == [(0, 8), (9, 11)]
    assert locate(["the", "cat"], "THE cat", lower_case=True) == [(0, 3), (4, 7)]


def test_locate_gives_every_token_a_place_even_if_nothing_fits():
    assert locate(["x", "y"], "abc") == [(0, 3), (3, 3)]
    assert locate(["x", "y"], "") == [(0, 0), (0, 0)]
    assert locate([], "abc") == []


@given(st.lists(st.text(min_size=1, max_size=3), max_size=8), st.text(max_size=30))
def test_locate_never_fails_and_never_overlaps(tokens, text):
    places = locate(tokens, text)
    assert len(places) == len(tokens)
    ends = [0, *(end for _, end in places)]
    assert all(before <= start <= end <= len(text) for before, (start, end) in zip(ends, places, strict=False))


def test_what_the_predicted_tokens_stand_for():
    """`é` has two bytes; the white space before a token counts with it."""
    text = "né the  cat\nzebra \n"
    whole = ids_of(words(), text)
    assert len(whole.ids) == 6
    assert (whole.n_characters, whole.n_bytes, whole.n_unknown) == (len(text) - 2, len(text) - 2, 1)
    with_first = ids_of(words(), text, start_with_eos=True)
    assert with_first.ids.tolist() == [words().convert_tokens_to_ids("<eos>"), *whole.ids.tolist()]
    assert (with_first.n_characters, with_first.n_bytes, with_first.n_unknown) == (len(text), len(text) + 1, 2)


@pytest.mark.parametrize(("limit", "n_characters"), [(1, 4), (2, 9), (3, 10), (4, 15), (5, 17), (6, 17)])
def test_a_limit_cuts_after_so_many_predicted_tokens(limit, n_characters):
    text = "né the  cat\nzebra \n"
    found = ids_of(words(), text, limit=limit)
    assert found.ids.tolist() == ids_of(words(), text).ids.tolist()[: limit + 1]
    assert found.n_characters == n_characters
    assert len(ids_of(words(), text, limit=limit, start_with_eos=True).ids) == limit + 1


def test_characters_count_themselves():
    found = ids_of(characters("é \n"), "éé é\n")
    assert (len(found.ids), found.n_characters, found.n_bytes) == (5, 4, 6)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "text.txt holds no token but must hold at least two: the first is only context for the second."),
        ("  \t", "text.txt holds one token but must hold at least two: the first is only context for the second."),
    ],
)
def test_a_text_of_no_or_one_token_is_refused(text, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        ids_of(words(), text)


def test_unknown_characters_are_refused_with_their_line():
    message = "text.txt, line 2: '€' is not among the 7 symbols of the vocabulary and no unk_token stands for it"
    with pytest.raises(ValueError, match=re.escape(message)):
        ids_of(characters(), "abc\nab€\n")


def test_starting_with_eos_needs_one():
    message = "start_with_eos=True needs an eos_token, and the tokenizer has none: leave it out."
    with pytest.raises(ValueError, match=re.escape(message)):
        ids_of(characters(), "abc", start_with_eos=True)


def test_another_kind_of_tokenizer_is_refused():
    with pytest.raises(TypeError, match="tokenizer is a dict but must be a TransfoXLTokenizer: for tokens of another"):
        TextReader({}, source="text.txt")


@pytest.mark.parametrize("piece_len", [1, 5, 1 << 16])
@pytest.mark.parametrize(("data", "line", "byte"), [(b"the cat\nsat \xe9t\xe9\n", 2, "e9"), (b"the\n\n\xc3", 3, "c3")])
def test_a_file_that_is_no_utf_8_is_refused_with_the_line(monkeypatch, data, line, byte, piece_len):
    monkeypatch.setattr(reading, "PIECE_LEN", piece_len)
    message = f"text.txt, line {line} is not UTF-8 (byte 0x{byte}): convert the file, for example with iconv -t UTF-8."
    with pytest.raises(ValueError, match=re.escape(message)):
        reader(words()).read_ids(io.BytesIO(data))


def test_a_byte_order_mark_is_no_part_of_the_text():
    found = reader(words()).read_ids(io.BytesIO(b"\xef\xbb\xbfthe cat\r\n"))
    assert (found.ids.tolist(), found.n_characters) == (ids_of(words(), "the cat\n").ids.tolist(), 6)
