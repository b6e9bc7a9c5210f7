"""Vocabulary files of every kind: what is read, what is written, and what is refused with which words."""

import errno
import json
import os
import pickle
import re
import time
from collections import Counter, OrderedDict
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models import FIXTURES
from transformer_xl.vocabulary import (
    MIN_CLUSTER,
    find_vocabulary,
    place_added_tokens,
    propose_cutoffs,
    read_lines,
    read_vocabulary,
    read_word_list,
    write_vocabulary,
)

LEGACY = FIXTURES / "legacy"
DAMAGED_JSON = [
    (b'["a", "b"', "{path} is not valid JSON: line 1, Expecting ',' delimiter; it must be a list of words"),
    (b'{"a": 0}', "{path} holds a dict; it must be a list of words in the order of their ids"),
    (b"[]", "{path} holds no words; a vocabulary needs at least one"),
    (b"", "{path} is not valid JSON: line 1, Expecting value; it must be a list of words"),
    (b'["a", 1]', "{path}: id 1 is 1, a int; each word must be a text"),
    (b'["a", "b", "a"]', "{path}: 'a' has the ids 0 and 2; each word must occur once"),
    (b'["a\xff"]', "{path} is not UTF-8: byte 3 is 0xff; save the file as UTF-8"),
    (b"[" * 100_000, "{path} is nested too deeply; it must be a list of words"),
    (b"[" + b"9" * 5000 + b"]", "{path} holds a number; it must be a list of words"),
]


class Vocab:
    """Stands for the authors' class of this name in pickles."""

    def __init__(self, **state):
        self.__dict__ = state


class Corpus(Vocab):
    """Stands for the authors' class of this name in pickles."""


def old_state(words, **options):
    """The attributes of an old vocabulary object."""
    ids = OrderedDict((word, index) for index, word in enumerate(words))
    return {"counter": Counter(words), "special": ["<eos>"], "idx2sym": list(words), "sym2idx": ids, **options}


@given(words=st.lists(st.text(), min_size=1, unique=True))
def test_any_texts_are_written_and_read_back(tmp_path_factory, words):
    path = tmp_path_factory.getbasetemp() / "any.json"
    write_vocabulary(path, words)
    assert read_vocabulary(path).words == words
    assert path.read_text(encoding="utf-8").count("\n") == len(words) + 2, "one word a line"


def test_lone_surrogates_and_control_characters_are_escaped(tmp_path):
    words = ["\ud800", "a\nb", " ", "", "é", "\u2028", '"', "\\"]
    write_vocabulary(tmp_path / "vocab.json", words)
    assert read_vocabulary(tmp_path / "vocab.json").words == words == json.loads((tmp_path / "vocab.json").read_bytes())
    assert '"é"' in (tmp_path / "vocab.json").read_text(encoding="utf-8")


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "vocab.json"
    write_vocabulary(path, ["a"])

    def write_half(self, text, **_):
        with self.open("w") as file:
            file.write(text[: len(text) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self))

    monkeypatch.setattr(Path, "write_text", write_half)
    with pytest.raises(OSError, match="No space left on device"):
        write_vocabulary(path, ["b", "c"])
    assert read_vocabulary(path).words == ["a"]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("content", "message"), DAMAGED_JSON, ids=range(len(DAMAGED_JSON)))
def test_a_damaged_vocab_json_is_refused_in_one_line(tmp_path, content, message):
    path = tmp_path / "vocab.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"^{re.escape(message.format(path=path))}$"):
        read_vocabulary(path)


def test_files_that_cannot_be_read_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"none\.json does not exist; give a vocabulary file, one of vocab\.json, "):
        read_vocabulary(tmp_path / "none.json")
    with pytest.raises(ValueError, match=r"/dev/zero is no regular file; give a vocabulary file, one of vocab\.json, "):
        read_vocabulary("/dev/zero")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match=r"pipe is no regular file; give a vocabulary file"):
        read_vocabulary(tmp_path / "pipe")
    with pytest.raises(ValueError, match=r" is a directory; give a vocabulary file, one of vocab\.json, "):
        read_vocabulary(tmp_path)
    with pytest.raises(ValueError, match=r"vocab\.json holds no vocabulary|holds no vocabulary; it needs one of vocab"):
        find_vocabulary([None], None, str(tmp_path))


def test_a_word_list_is_read_as_the_authors_do(tmp_path):
    """The first field of each line; a word that comes again keeps its first id."""
    path = tmp_path / "vocab.txt"
    path.write_bytes("<S> 12\r\nthe\t5 x\n  of 3\nthe 2\nna\u00efve\n\n \n".encode())
    assert read_word_list(path).words == read_vocabulary(path).words == ["<S>", "the", "of", "naïve"]


def test_damaged_word_lists_are_refused(tmp_path):
    path = tmp_path / "words"
    path.write_text("a\n\nb\n", encoding="utf-8")
    with pytest.raises(ValueError, match="words, line 2 is empty; each line starts with a word"):
        read_word_list(path)
    path.write_bytes(b" \n")
    with pytest.raises(ValueError, match="words holds no words; a vocabulary needs at least one"):
        read_word_list(path)
    path.write_bytes(b"a\n\xe9")
    with pytest.raises(ValueError, match="words is not UTF-8: byte 2 is 0xe9; save the file as UTF-8"):
        read_word_list(path)


def test_our_own_format_is_known_by_its_content(tmp_path):
    (tmp_path / "words").write_text('\n["a b", "c"]', encoding="utf-8")
    assert read_vocabulary(tmp_path / "words").words == ["a b", "c"]


def test_a_word_list_by_the_name_of_json_is_our_own_format(tmp_path):
    write_vocabulary(tmp_path / "vocab.json", ["a b", "c"])
    assert read_word_list(tmp_path / "vocab.json").words == ["a b", "c"]


def test_recorded_pickles_of_4_35_and_before_hold_the_same_words():
    pickled, saved = read_vocabulary(LEGACY / "hf-4.35" / "vocab.pkl"), read_vocabulary(LEGACY / "vocab.bin")
    assert pickled.words == saved.words
    assert len(pickled.words) == 784
    assert pickled.words[:4] == ["<eos>", "<unk>", "<formula>", "the"]
    assert pickled.options["special"] == ["<eos>", "<unk>", "<formula>"]
    assert pickled.options["language"] == "en"


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("wrap", ["state", "vocabulary object", "corpus object", "corpus state"])
def test_vocabularies_are_found_in_every_old_wrapping(tmp_path, wrap, zipped):
    state = old_state(["<eos>", "a", "b"], lower_case=True, delimiter=None, min_freq=0, vocab_file=None)
    stored = {
        "state": state,
        "vocabulary object": Vocab(**state),
        "corpus object": Corpus(dataset="ptb", vocab=Vocab(**state), train=torch.arange(5)),
        "corpus state": {"vocab": state, "test": torch.arange(5)},
    }[wrap]
    torch.save(stored, tmp_path / "cache.pt", _use_new_zipfile_serialization=zipped)
    for found in (read_vocabulary(tmp_path / "cache.pt"), find_vocabulary([], None, str(tmp_path))):
        assert found.words == ["<eos>", "a", "b"]
        assert found.options == {"special": ["<eos>"], "lower_case": True, "min_freq": 0}
        assert found.counts == {"<eos>": 1, "a": 1, "b": 1}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_bare_pickles_of_every_protocol_are_read(tmp_path, protocol):
    path = tmp_path / "vocab.pkl"
    path.write_bytes(pickle.dumps(Vocab(**old_state(["a", "b"])), protocol=protocol))
    assert read_vocabulary(path).words == ["a", "b"]


def test_words_without_their_list_are_ordered_by_id(tmp_path):
    path = tmp_path / "vocab.pkl"
    path.write_bytes(pickle.dumps({"idx2sym": [], "sym2idx": {"b": 1, "a": 0}}))
    assert read_vocabulary(path).words == ["a", "b"]


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (
            {"train": [1]},
            r"holds no vocabulary \(neither idx2sym nor sym2idx\); where it is an old corpus\.bin, take the",
        ),
        ([1, 2], "holds no vocabulary"),
        ({"idx2sym": ["a", "b"], "sym2idx": {"a": 0, "b": 2}}, "idx2sym and sym2idx disagree about 'b'; the file is"),
        ({"idx2sym": ["a"], "sym2idx": {"a": 0, "c": 1}}, "idx2sym and sym2idx disagree about 'c'; the file is"),
        ({"idx2sym": ["a"], "sym2idx": 5}, "sym2idx is a int; it must map each word to its id"),
        ({"idx2sym": ["a", "a"]}, "idx2sym: 'a' has the ids 0 and 1; each word must occur once"),
        ({"idx2sym": ["a", b"\xff"]}, "idx2sym: id 1 is .*, a bytes; each word must be a text"),
        ({"sym2idx": {"a": 5}}, "idx2sym and sym2idx disagree about 'a'"),
        ({"sym2idx": {"a": "x", 3: "y"}}, "sym2idx gives 'a' a str; each word must have an id"),
        ({"sym2idx": {"a": 0, 3: 1}}, "idx2sym: id 1 is 3, a int; each word must be a text"),
        ({"sym2idx": {}}, "must be a list of words|holds no words"),
        ({"idx2sym": ["a"], "sym2idx": {"a": torch.zeros(2)}}, "sym2idx gives 'a' a .*; each word must have an id"),
        ({"idx2sym": torch.zeros(2), "sym2idx": {"a": 0}}, "it must be a list of words"),
    ],
)
def test_old_files_that_contradict_themselves_are_refused(tmp_path, state, message):
    path = tmp_path / "vocab.bin"
    torch.save(state, path)
    with pytest.raises(ValueError, match=message):
        read_vocabulary(path)


def test_a_word_too_many_is_found_in_short_time(tmp_path):
    """Looking it up in a set that is made anew for each word would take an hour."""
    words = [f"word{i}" for i in range(20_000)]
    path = tmp_path / "vocab.pkl"
    path.write_bytes(
        pickle.dumps({"idx2sym": words, "sym2idx": {**dict(zip(words, range(20_000), strict=True)), "more": 20_000}})
    )
    start = time.process_time()
    with pytest.raises(ValueError, match="idx2sym and sym2idx disagree about 'more'; the file is damaged"):
        read_vocabulary(path)
    assert time.process_time() - start < 3


def test_options_of_an_unexpected_kind_are_left_out(tmp_path):
    path = tmp_path / "vocab.pkl"
    state = old_state(["a"], lower_case="yes", max_size=3.5, never_split=["<eos>", 4], delimiter="")
    path.write_bytes(pickle.dumps({**state, "counter": [1]}))
    stored = read_vocabulary(path)
    assert stored.options == {"special": ["<eos>"], "delimiter": ""}
    assert stored.counts == {}
    path.write_bytes(pickle.dumps({**state, "counter": {"a": 2, "b": "many", 3: 1}}))
    assert read_vocabulary(path).counts == {"a": 2}


def test_a_hostile_pickle_is_not_executed(tmp_path):
    class Hostile:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "was-here"),)

    path = tmp_path / "vocab.pkl"
    path.write_bytes(pickle.dumps({"idx2sym": ["a"], "sym2idx": {"a": 0}, "special": Hostile()}))
    assert read_vocabulary(path).words == ["a"]
    path.write_bytes(pickle.dumps(Hostile()))
    with pytest.raises(ValueError, match="holds no vocabulary"):
        read_vocabulary(path)
    assert list(tmp_path.iterdir()) == [path]


def test_lines_keep_their_ends_if_wanted(tmp_path):
    path = tmp_path / "text"
    path.write_bytes(b"a\r\nb\n\nc")
    assert list(read_lines(path, keep_line_ends=True)) == ["a\r\n", "b\n", "\n", "c"]
    assert list(read_lines(path, keep_line_ends=False)) == ["a\n", "b\n", "\n", "c"]
    assert list(read_lines(path, keep_line_ends=True, longest=2)) == ["a\r", "\n", "b\n", "\n", "c"]


def test_texts_that_cannot_be_read_are_named(tmp_path):
    (tmp_path / "latin").write_bytes(b"caf\xe9")
    with pytest.raises(ValueError, match=r"latin is not UTF-8 \(byte 0xe9\); save the file as UTF-8"):
        list(read_lines(tmp_path / "latin", keep_line_ends=False))
    with pytest.raises(ValueError, match="cannot be read: Is a directory; give the path of a text file"):
        list(read_lines(tmp_path, keep_line_ends=False))
    with pytest.raises(
        ValueError, match="none cannot be read: No such file or directory; give the path of a text file"
    ):
        list(read_lines(tmp_path / "none", keep_line_ends=False))


def cost(counts, cutoffs):
    """Multiplications a token, per unit of model width, written as the sum that the proposal minimises."""
    tails = pairwise([*cutoffs, len(counts)])
    return cutoffs[0] + sum(1 + sum(counts[low:high]) / sum(counts) * (high - low) for low, high in tails)


def test_proposed_cutoffs_cost_least():
    counts = [1_000_000 // (rank + 3) for rank in range(30_000)]
    proposed = propose_cutoffs(counts, 2)
    for first in (1000, 2000, 3000, 4000, 5000, 8000, 10_000):
        for second in (8000, 10_000, 15_000, 20_000, 25_000):
            if second - first >= MIN_CLUSTER:
                assert cost(counts, proposed) <= cost(counts, [first, second]) + 1e-6
    assert cost(counts, proposed) < cost(counts, propose_cutoffs(counts, 1)) < len(counts)
    assert cost(counts, propose_cutoffs(counts, 3)) < cost(counts, proposed)


@pytest.mark.parametrize("n_cutoffs", [1, 2, 3, 5])
@pytest.mark.parametrize(
    "counts",
    [
        [10**12 // (rank + 1) ** 2 for rank in range(25_000)],
        [7_000_000] * 1000 + [6_000_000] * 500 + [1] * 20_000,  # 1000 and 1500 would be cheapest
        [1] * 20_000 + [1_000_000] * 500,  # 20,000 would be cheapest
    ],
    ids=["steep", "two steps", "heavy end"],
)
def test_no_cluster_is_tiny(counts, n_cutoffs):
    bounds = [0, *propose_cutoffs(counts, n_cutoffs), len(counts)]
    assert len(bounds) > 2
    assert min(high - low for low, high in pairwise(bounds)) >= MIN_CLUSTER


def test_added_tokens_never_get_the_id_of_a_word():
    word_ids = {"the": 0, "of": 1, "<eos>": 2}
    assert place_added_tokens([], word_ids) == []
    assert place_added_tokens([(1, "<formula>"), (0, "<eos>"), (7, "new")], word_ids) == [8, 2, 7]
    assert place_added_tokens([(0, "a"), (2, "b"), (5, "of")], word_ids) == [3, 4, 1]
    assert place_added_tokens([(0, "a")], {}) == [0]


def test_small_vocabularies_get_no_cutoffs():
    assert propose_cutoffs([1] * 19_999) == []
    assert propose_cutoffs([1] * 20_000, 1) != []


def test_cutoffs_need_counts_and_a_number():
    with pytest.raises(
        ValueError, match="there are no counts to propose cutoffs from; they come from train or count_file"
    ):
        propose_cutoffs([0, 0])
    with pytest.raises(ValueError, match=r"n_cutoffs=0 must be at least 1; for a plain softmax pass cutoffs=\[\]"):
        propose_cutoffs([1, 2], 0)
