"""From files to rules, and from a folder to arrays."""

import json
import os
import re

import numpy as np
import pytest

from transformer_xl.data.corpora import KNOWN, Corpus, own_text
from transformer_xl.data.opening import CorpusOptions, assign, assign_splits, open_corpus
from transformer_xl.data.prepared import PreparedCorpus, cache_folder


def written(folder, *names, text="a b\n"):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def names_of(assignment):
    return {split: [source.name for source in sources] for split, sources in assignment.splits.items()}


# Which corpus.


@pytest.mark.parametrize(
    ("files", "name"),
    [
        (["enwik8"], "enwik8"),
        (["enwik8.first4154064"], "enwik8"),
        (["text8", "text8.zip"], "text8"),
        (["wikitext/wiki.train.tokens", "wikitext/wiki.valid.tokens"], "wikitext-2"),
        (["wikitext-103/wiki.test.tokens"], "wikitext-103"),
        (["data/ptb.train.txt", "data/ptb.valid.txt", "data/ptb.char.train.txt", "README"], "ptb"),
        (["news.en-00001-of-00100", "news.en.heldout-00000-of-00050"], "lm1b"),
        (["train.txt", "valid.txt"], "text"),
    ],
)
def test_the_papers_corpora_are_known_by_their_files(tmp_path, files, name):
    raw = written(tmp_path, *[file for file in files if not file.endswith(".zip")])
    assert assign([raw]).corpus.name == name


def test_the_size_tells_the_two_wikitexts_apart(tmp_path, monkeypatch):
    monkeypatch.setattr("transformer_xl.data.corpora.LARGE_WIKITEXT", 3)
    corpus = assign([written(tmp_path, "wiki.train.tokens")]).corpus
    assert (corpus.name, corpus.counted) == ("wikitext-103", ("train",))


def test_an_uncompressed_text_is_taken_before_a_compressed_one(tmp_path):
    written(tmp_path, "ptb.train.txt", "ptb.train.txt.gz", "ptb.valid.txt.gz")
    assert names_of(assign([tmp_path])) == {"train": ["ptb.train.txt"], "valid": ["ptb.valid.txt.gz"]}


def test_splits_are_told_by_names(tmp_path):
    written(tmp_path, "news.train.txt", "dev/1.txt", "dev/2.txt", "Test-set.txt")
    assert names_of(assign([tmp_path])) == {
        "train": ["news.train.txt"],
        "valid": ["dev/1.txt", "dev/2.txt"],
        "test": ["Test-set.txt"],
    }
    assert names_of(assign([written(tmp_path / "one", "a.txt", "b.txt")])) == {"": ["a.txt", "b.txt"]}


def test_splits_are_as_the_user_says(tmp_path):
    written(tmp_path, "a", "b", "c/d")
    assignment = assign_splits({"train": [tmp_path / "b", tmp_path / "c"], "valid": [tmp_path / "a"], "test": []})
    assert names_of(assignment) == {"train": ["b", "d"], "valid": ["a"]}


# Which rules.


def test_options_change_the_rules_of_a_known_corpus(tmp_path):
    raw = written(tmp_path, "ptb.train.txt", "ptb.valid.txt")
    assert assign([raw]).corpus == KNOWN["ptb"]
    changed = assign([raw], CorpusOptions(min_freq=2, lower_case=False)).corpus
    assert (changed.name, changed.min_freq, changed.lower_case, changed.special) == ("ptb", 2, False, ("<eos>",))
    assert assign([raw], CorpusOptions(mode="characters")).corpus == own_text("characters")
    assert assign([raw], CorpusOptions(corpus="text")).corpus == own_text()


def test_a_corpus_that_was_asked_for_takes_files_of_any_name(tmp_path):
    assignment = assign([written(tmp_path, "train.txt", "valid.txt")], CorpusOptions(corpus="ptb"))
    assert assignment.corpus == KNOWN["ptb"]
    assert list(assignment.splits) == ["train", "valid"]


def test_own_text_has_the_special_tokens_that_it_needs():
    assert own_text("words").special == ("<eos>", "<unk>")
    assert own_text("moses", line_end="none").special == ("<unk>",)
    assert own_text("words", line_end="sentence").special == ("<S>", "<unk>")
    assert own_text("characters").special == ()
    assert own_text("characters", max_size=50).special == ("<unk>",)
    assert own_text("characters").counted == ("train", "valid", "test")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CorpusOptions(corpus="c4"), "corpus='c4' is unknown: give one of enwik8, text8, wikitext-103"),
        (
            lambda: CorpusOptions(corpus="text8", mode="words"),
            "mode='words' does not go with corpus='text8', which has 'characters': leave one out.",
        ),
        (lambda: own_text("letters"), "mode='letters' is unknown: give one of words, characters, moses, bytes."),
        (lambda: own_text(line_end="dot"), "line_end='dot' is unknown: give one of eos, sentence, none."),
        (lambda: own_text("bytes", line_end="eos"), "line_end='eos' needs words, but mode='bytes' has line ends"),
        (lambda: own_text("bytes", lower_case=True), "lower_case=True needs letters, but mode='bytes' has none"),
        (lambda: own_text(min_freq=-1), "min_freq=-1 must not be negative: 0 keeps every word."),
        (lambda: own_text(max_size=2), "max_size=2 must be more than the 2 special tokens: raise it."),
        (
            lambda: own_text(fractions={"train": 0.9, "valid": 0.2, "test": -0.1}),
            "fractions={'train': 0.9, 'valid': 0.2, 'test': -0.1} must lie between 0 and 1 and add up to 1.",
        ),
    ],
)
def test_impossible_rules_are_refused(make, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make()


def test_a_known_corpus_says_its_unit():
    assert {name: corpus.unit for name, corpus in KNOWN.items()} == {
        "enwik8": "byte",
        "text8": "character",
        "wikitext-103": "word",
        "wikitext-2": "word",
        "ptb": "word",
        "lm1b": "word",
    }
    assert Corpus(name="x", mode="moses").unit == "word"


# From a folder to arrays.


@pytest.fixture
def raw(tmp_path):
    folder = written(tmp_path / "raw", "train.txt", text="a b c\nb\n")
    return written(folder, "valid.txt", "test.txt")


def test_raw_text_is_prepared_outside_of_it_on_first_use(tmp_path, raw, monkeypatch):
    before = sorted(raw.iterdir())
    corpus = open_corpus(raw, cache=tmp_path / "cache")
    assert sorted(raw.iterdir()) == before
    assert corpus.folder.is_relative_to(tmp_path / "cache")
    assert (corpus.unit, corpus.splits, corpus.vocab_size) == ("word", ("train", "valid", "test"), 5)
    monkeypatch.setattr("transformer_xl.data.opening.prepare", None)  # is not called again
    assert open_corpus(raw, cache=tmp_path / "cache").folder == corpus.folder
    assert open_corpus(corpus.folder).meta == corpus.meta


def test_other_files_or_options_are_another_corpus(tmp_path, raw):
    first = open_corpus(raw, cache=tmp_path / "cache")
    characters = open_corpus(raw, CorpusOptions(mode="characters"), cache=tmp_path / "cache")
    assert (characters.unit, characters.folder != first.folder) == ("character", True)
    (raw / "train.txt").write_text("a b d\nb\n")  # of the same size
    os.utime(raw / "train.txt", (1, 1))
    assert "d" in open_corpus(raw, cache=tmp_path / "cache").tokenizer.get_vocab()


def test_arrays_are_mapped_and_cannot_be_changed(tmp_path, raw):
    corpus = open_corpus(raw, cache=tmp_path / "cache")
    tokens = corpus.tokens("train")
    assert isinstance(tokens, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        tokens[0] = 1
    assert corpus.sentences("train") is None
    with pytest.raises(ValueError, match=r"split='dev' is not in .*: give one of train, valid, test\."):
        corpus.tokens("dev")


def test_the_cache_is_where_the_environment_says(tmp_path, monkeypatch):
    monkeypatch.setenv("TRANSFORMER_XL_CACHE", str(tmp_path / "named"))
    assert cache_folder() == tmp_path / "named"
    monkeypatch.delenv("TRANSFORMER_XL_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "transformer-xl"


def test_what_does_not_exist_is_refused(tmp_path):
    with pytest.raises(ValueError, match="nowhere does not exist: give a prepared folder, or text; the paper's"):
        open_corpus(tmp_path / "nowhere")


def damage_meta(folder):
    (folder / "meta.json").write_text("{")


def damage_format(folder):
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps({**meta, "format": 99}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "meta.json").unlink(), "is no prepared corpus, it has no meta.json: make one with"),
        (damage_meta, "meta.json is damaged ("),
        (damage_format, "meta.json has format 99, this release reads 1: prepare the corpus again."),
        (lambda folder: (folder / "valid.npy").unlink(), "valid.npy is missing: prepare the corpus again."),
        (lambda folder: (folder / "valid.npy").write_bytes(b"\x93NUMPY"), "valid.npy is damaged ("),
        (
            lambda folder: np.save(folder / "valid.npy", np.zeros(2, dtype=np.uint8)),
            "valid.npy holds (2,) uint8, but meta.json says 3 uint8: prepare the corpus again.",
        ),
        (
            lambda folder: np.save(folder / "valid.npy", np.array([{}], dtype=object)),
            "valid.npy is damaged (",
        ),
    ],
)
def test_a_damaged_folder_is_refused(tmp_path, raw, damage, message):
    folder = open_corpus(raw, cache=tmp_path / "cache").folder
    damage(folder)
    with pytest.raises(ValueError, match=re.escape(message)):
        PreparedCorpus(folder)
