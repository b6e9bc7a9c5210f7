"""`WordLookup` beside the loop over `text.split()`, alone and inside the tokenizer."""

import copy
import pickle
import sys
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from transformers import AddedToken

from transformer_xl import tokenization, word_lookup
from transformer_xl.tokenization import TransfoXLTokenizer
from transformer_xl.word_lookup import ABSENT, WordLookup

# Few symbols, so that words share beginnings and ends; ends that look like padding; white space of 1, 2 and 3 bytes.
SYMBOLS = [
    "a",
    "b",
    "\x00",
    "é",
    "ÿ",
    "中",
    "\ud800",
    "\U0010ffff",
    " ",
    "\n",
    "\x1c",
    "\x1b",
    "\x85",
    "\u2003",
    "\u3000",
]
LENGTHS = [1, 2, 6, 7, 8, 9, 15, 16, 17, 24, 31, 32, 33, 40]  # on both sides of each number of lanes
WORDS = st.builds(
    lambda head, n, tail: head * n + tail, st.sampled_from("aé"), st.sampled_from(LENGTHS), st.text(SYMBOLS, max_size=2)
)
TEXTS = st.lists(WORDS | st.text(max_size=9) | st.sampled_from(SYMBOLS[8:])).map("".join)
TABLES = st.fixed_dictionaries(
    {"SLOTS_PER_WORD": st.sampled_from([0, 1, 3]), "MAX_PROBES": st.sampled_from([1, 2, 16])}
)


def plain_ids(ids, text):
    return [ids.get(word, ABSENT) for word in text.split()]


@given(vocabulary=st.lists(WORDS, unique=True), pieces=st.lists(WORDS), text=TEXTS, table=TABLES)
@example(["a", "a\x00", "", "a b"], ["a", "a\x00", "a\x00\x00", "", "b"], "", {"SLOTS_PER_WORD": 3})
@example([], ["a"], "", {"SLOTS_PER_WORD": 3})
def test_ids_are_those_of_split_and_a_dictionary(vocabulary, pieces, text, table):
    """Also where words crowd in tables that are too small for them."""
    ids = {word: 7 * index for index, word in enumerate(vocabulary)}
    text = " ".join([*pieces, *reversed(vocabulary), text])
    with patch.multiple(word_lookup, **table):
        found = WordLookup(ids).find(text)
    assert found.dtype == np.int64
    assert found.tolist() == plain_ids(ids, text)


@pytest.mark.parametrize("n_bytes", range(1, 42))
def test_words_that_differ_in_one_byte_are_told_apart(n_bytes):
    word = "".join(chr(ord("a") + index % 26) for index in range(n_bytes))
    others = [word[:place] + "_" + word[place + 1 :] for place in range(n_bytes)]
    lookup = WordLookup({word: 3, word + "a": 5})
    assert lookup.find(" ".join([word, *others, word[:-1], word + "b", word + "a", word])).tolist() == [
        *plain_ids({word: 3}, " ".join([word, *others, word[:-1]])), ABSENT, 5, 3,
    ]  # fmt: skip


def test_words_end_at_the_white_space_of_unicode_and_nowhere_else():
    text = "".join(f" a{chr(code)}b" for code in range(sys.maxunicode + 1))
    ids = {"a": 0, "b": 1}
    assert WordLookup(ids).find(text).tolist() == plain_ids(ids, text)


def test_words_of_one_hash_are_told_apart():
    """All want the first slot; those that find no place are kept elsewhere."""
    ids = {f"{n}{'x' * (n % 40)}": n for n in range(500)}
    with patch.object(word_lookup, "_HASH_FACTOR", np.uint64(0)):
        assert WordLookup(ids).find(" ".join([*ids, "none", "0x"])).tolist() == [*range(500), ABSENT, ABSENT]


# Inside the tokenizer.


def tokenizers():
    texts = ["the cat sat on the mat of transformation internationalisation <unk> [x]\n" + "é" * 40]
    options = {"texts": texts, "mode": "whitespace"}
    plain, lower = TransfoXLTokenizer.train(**options), TransfoXLTokenizer.train(**options, lower_case=True)
    added = TransfoXLTokenizer.train(**options)
    added.add_tokens(["[x]", "[x]y", "zebra"])
    spaced, greedy = TransfoXLTokenizer.train(**options), TransfoXLTokenizer.train(**options)
    spaced.add_tokens(["[x] y"])
    greedy.add_tokens([AddedToken("[x]", lstrip=True)])
    whole = TransfoXLTokenizer.train(**options, split_special_tokens=True)
    return [plain, lower, added, spaced, greedy, whole]


TOKENIZERS = tokenizers()
PARTS = ["the", "cat", "Cat", "<eos>", "<EOS>", "<unk>", "[x]", "[x]y", "zebra", "transformation", "é" * 40]
PARTS += [" ", " ", "\n", "\r\n", "\r", "\u2003", "\x1c", "y", "Σ", "İ", "\x00"]


@given(text=st.lists(st.sampled_from(PARTS)).map("".join), block_len=st.sampled_from([1, 5, 1000]))
@example(text="<EOS> the<eos>", block_len=1000)  # lower-cased, one of the two is a word
@example(text="the [x] y", block_len=1)  # one added token, which no block may part
def test_tokenizers_find_the_ids_that_single_lines_have(text, block_len, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "text"
    path.write_text(text, encoding="utf-8", newline="")
    lines = path.open(encoding="utf-8").readlines()
    with patch.multiple(tokenization, BLOCK_LEN=block_len, LONG_TEXT=0):
        for tokenizer in TOKENIZERS:
            ids = tokenizer.convert_tokens_to_ids(tokenizer.tokenize(text))
            assert tokenizer.encode(text) == tokenizer(text)["input_ids"] == ids
            assert tokenizer([text, "the cat"])["input_ids"] == [ids, tokenizer.encode("the cat")]
            assert tokenizer.encode(text, add_eos=True) == [*ids, tokenizer.eos_token_id]
            for add_eos in (True, False):
                by_line = [tokenizer.tokenize(line, add_eos=add_eos) for line in lines]
                expected = tokenizer.encode_sents(by_line, ordered=True).tolist()
                assert tokenizer.encode_file(path, ordered=True, add_eos=add_eos).tolist() == expected


def test_long_texts_are_looked_up_at_once(tmp_path, monkeypatch):
    """Fails where the base class no longer calls what leads there."""
    tokenizer = TransfoXLTokenizer.train(texts=["the cat"], mode="whitespace")
    text = "the cat and\n" * 10_000
    (tmp_path / "text").write_text(text, encoding="utf-8")
    expected = [tokenizer.get_vocab().get(word, 1) for word in text.split()]
    monkeypatch.setattr(TransfoXLTokenizer, "tokenize", None)
    assert tokenizer.encode(text) == tokenizer(text)["input_ids"] == expected
    assert tokenizer.encode_file(tmp_path / "text", ordered=True, add_eos=False).tolist() == expected


def test_the_lookup_follows_the_vocabulary_and_is_not_saved(monkeypatch):
    monkeypatch.setattr(tokenization, "LONG_TEXT", 0)
    tokenizer = TransfoXLTokenizer.train(texts=["the cat"], mode="whitespace")
    size = len(pickle.dumps(tokenizer))
    assert tokenizer.encode("cat zebra") == [3, 1]
    assert len(pickle.dumps(tokenizer)) <= size + 100
    tokenizer.add_tokens(["zebra"])
    assert tokenizer.encode("cat zebra") == [3, 4]
    assert copy.deepcopy(tokenizer).encode("cat zebra") == [3, 4]
    tokenizer.unk_token = "the"  # noqa: S105 - no password
    assert tokenizer.encode("cat mouse") == [3, 2]
    tokenizer.counter.update(["zebra"] * 3)
    tokenizer.build_vocab()
    assert tokenizer.encode("zebra") == [2]


def test_unknown_words_and_bytes_are_refused_as_in_short_texts(tmp_path, monkeypatch):
    monkeypatch.setattr(tokenization, "LONG_TEXT", 0)
    tokenizer = TransfoXLTokenizer.train(texts=["the cat"], mode="whitespace", unk_token=None)
    path = tmp_path / "text"
    path.write_text("the cat sat on", encoding="utf-8")
    message = "'sat' is not among the 3 symbols of the vocabulary and no unk_token stands for it"
    for encode in (lambda: tokenizer.encode("the cat sat on"), lambda: tokenizer.encode_file(path, ordered=True)):
        with pytest.raises(ValueError, match=message):
            encode()
    path.write_bytes(b"the cat \xff")
    with pytest.raises(ValueError, match=r"text is not UTF-8 \(byte 0xff\); save the file as UTF-8"):
        tokenizer.encode_file(path, ordered=True)
    path.write_bytes(b"")
    assert tokenizer.encode_file(path, ordered=True).tolist() == []
