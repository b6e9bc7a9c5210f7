"""How each corpus is read: the paper's by the names of their raw files, and anyone's own.

What the paper's authors did is in their `data_utils.py` (https://github.com/kimiyoung/transformer-xl): which words come
first in the vocabulary, which splits it is counted from, and what stands at the end of a line. With the same rules, ids
are those of their checkpoints. `docs/data.md` says where we differ.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from .corpus import TRAIN_VALID_TEST
from .sources import Boundary, Source

Mode = Literal["words", "characters", "moses", "bytes"]
LineEnd = Literal["eos", "sentence", "none"]
Unit = Literal["word", "character", "byte"]

MODES: tuple[Mode, ...] = ("words", "characters", "moses", "bytes")
LINE_ENDS: tuple[LineEnd, ...] = ("eos", "sentence", "none")
SPLITS = ("train", "valid", "test")
EOS, UNK, SENTENCE_BOUNDARY = "<eos>", "<unk>", "<S>"
LARGE_WIKITEXT = 100_000_000  # bytes; WikiText-2's training file has 10.8 million, WikiText-103's 540 million
_SPLIT_NAMES = {"train": "train", "training": "train", "test": "test", "testing": "test"} | dict.fromkeys(
    ("valid", "validation", "val", "dev"), "valid"
)


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """The rules for reading a corpus.

    Attributes:
        name: what it is called.
        mode: what a token is. "words" are what stands between white space; "moses" splits raw text by the Moses rules.
        line_end: what stands for the end of a line. "eos": the token `<eos>`. "sentence": `<S>`, and lines are
            unrelated sentences, which may be shuffled. "none": nothing, as line ends are characters and bytes, too.
        special: the first words of the vocabulary.
        unk_token: stands for words outside the vocabulary; None if there are none.
        lower_case: whether text is lower-cased.
        counted: the splits that the vocabulary is counted from; those that are not there are left out.
        min_freq: occurrences below which a word is left out of the vocabulary.
        max_size: most words of the vocabulary.
        vocabulary_file: name of a word list among the raw files that is the vocabulary.
        patterns: for each split, what the names of its files look like.
        fractions: shares of the splits where the files do not tell them.
    """

    name: str
    mode: Mode
    line_end: LineEnd = "none"
    special: tuple[str, ...] = ()
    unk_token: str | None = None
    lower_case: bool = False
    counted: tuple[str, ...] = SPLITS
    min_freq: int = 0
    max_size: int | None = None
    vocabulary_file: str | None = None
    patterns: Mapping[str, str] = field(default_factory=dict)
    fractions: Mapping[str, float] = field(default_factory=lambda: dict(TRAIN_VALID_TEST))

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"mode={self.mode!r} is unknown: give one of {', '.join(MODES)}.")
        if self.line_end not in LINE_ENDS:
            raise ValueError(f"line_end={self.line_end!r} is unknown: give one of {', '.join(LINE_ENDS)}.")
        if self.line_end != "none" and not self.has_words:
            raise ValueError(
                f"line_end={self.line_end!r} needs words, but mode={self.mode!r} has line ends as tokens of their own: "
                "give line_end='none'."
            )
        if self.lower_case and self.mode == "bytes":
            raise ValueError("lower_case=True needs letters, but mode='bytes' has none: give mode='characters'.")
        if self.min_freq < 0:
            raise ValueError(f"min_freq={self.min_freq} must not be negative: 0 keeps every word.")
        if self.max_size is not None and self.max_size <= len(self.special):
            raise ValueError(
                f"max_size={self.max_size} must be more than the {len(self.special)} special tokens: raise it."
            )
        if (
            not all(0 <= share <= 1 for share in self.fractions.values())
            or abs(sum(self.fractions.values()) - 1) > 1e-9
        ):
            raise ValueError(f"fractions={dict(self.fractions)} must lie between 0 and 1 and add up to 1.")

    @property
    def has_words(self) -> bool:
        """Whether text is split into words."""
        return self.mode in {"words", "moses"}

    @property
    def unit(self) -> Unit:
        """What a loss is divided by to be comparable: bits per byte, bits per character, perplexity of a word."""
        return "byte" if self.mode == "bytes" else "character" if self.mode == "characters" else "word"

    @property
    def line_token(self) -> str | None:
        """The token at the end of a line."""
        return {"eos": EOS, "sentence": SENTENCE_BOUNDARY, "none": None}[self.line_end]

    @property
    def boundary(self) -> Boundary:
        """Where the text may be cut into pieces that are read one by one."""
        return "byte" if self.mode == "bytes" else "character" if self.mode == "characters" else "line"


def own_text(
    mode: Mode = "words",
    *,
    line_end: LineEnd | None = None,
    lower_case: bool = False,
    min_freq: int = 0,
    max_size: int | None = None,
    fractions: Mapping[str, float] | None = None,
) -> Corpus:
    """The rules for a text of one's own.

    Words are counted in the training split, so that the others are new to the model; characters in all splits, so that
    each has an id. `<unk>` is in the vocabulary of words, and in that of characters if rare ones are left out.
    """
    has_words = mode in {"words", "moses"}
    line_end = line_end if line_end is not None else "eos" if has_words else "none"
    leaves_out = min_freq > 1 or max_size is not None
    unk_token = UNK if has_words or leaves_out else None
    line_token = {"eos": EOS, "sentence": SENTENCE_BOUNDARY}.get(line_end)
    return Corpus(
        name="text",
        mode=mode,
        line_end=line_end,
        special=tuple(token for token in (line_token, unk_token) if token is not None),
        unk_token=unk_token,
        lower_case=lower_case,
        counted=("train",) if has_words else SPLITS,
        min_freq=min_freq,
        max_size=max_size,
        fractions=TRAIN_VALID_TEST if fractions is None else fractions,
    )


def _wikitext(name: str, counted: tuple[str, ...]) -> Corpus:
    return Corpus(
        name=name,
        mode="words",
        line_end="eos",
        special=(EOS,),
        unk_token=UNK,
        counted=counted,
        patterns={split: rf"wiki\.{split}\.tokens" for split in SPLITS},
    )


KNOWN: Mapping[str, Corpus] = {
    corpus.name: corpus
    for corpus in (
        Corpus(name="enwik8", mode="bytes", patterns={"": r"enwik8(\..*)?"}),
        Corpus(name="text8", mode="characters", patterns={"": r"text8(\..*)?"}),
        _wikitext("wikitext-103", counted=("train",)),
        _wikitext("wikitext-2", counted=SPLITS),
        Corpus(
            name="ptb",
            mode="words",
            line_end="eos",
            special=(EOS,),
            unk_token=UNK,
            lower_case=True,
            patterns={split: rf"ptb\.{split}\.txt" for split in SPLITS},
        ),
        Corpus(
            name="lm1b",
            mode="words",
            line_end="sentence",
            special=(SENTENCE_BOUNDARY, "<UNK>"),
            unk_token="<UNK>",  # noqa: S106 - a word, no password
            counted=("train",),
            min_freq=3,
            vocabulary_file="1b_word_vocab.txt",
            patterns={
                "train": r"news\.en-\d{5}-of-\d{5}",
                "valid": r"news\.en\.heldout-00000-of-00050",  # the authors' validation set is their test set
                "test": r"news\.en\.heldout-00000-of-00050",
            },
        ),
    )
}


@dataclass(frozen=True)
class Assignment:
    """Which sources make up which split.

    Attributes:
        corpus: the rules.
        splits: the sources of each split, in order; one entry with the name "" is to be cut by `corpus.fractions`.
        vocabulary: the word list that came with the corpus, if it did.
    """

    corpus: Corpus
    splits: Mapping[str, Sequence[Source]]
    vocabulary: Source | None = None


def recognise(sources: Sequence[Source], corpus: Corpus | None = None) -> Assignment | None:
    """The paper's corpus whose raw files are among the sources, other files left aside; None if there is none.

    Args:
        sources: what was found. Of several files that hold a text of the same name, an uncompressed one is taken.
        corpus: the only one to look for.

    Raises:
        ValueError: there are several texts where one is expected.
    """
    by_name = {source.text_name: source for source in sorted(sources, key=lambda source: source.is_plain)}
    unique = [source for source in sources if by_name[source.text_name] is source]
    for known in KNOWN.values() if corpus is None else (corpus,):
        splits = {split: _matching(unique, pattern) for split, pattern in known.patterns.items()}
        splits = {split: found for split, found in splits.items() if found}
        if not splits:
            continue
        if len(splits.get("", ())) > 1:
            names = ", ".join(source.name for source in splits[""])
            raise ValueError(f"{known.name} is one text, but there are several ({names}): give one of them.")
        found = _which_wikitext(splits) if corpus is None and known.name.startswith("wikitext") else known
        words = [source for source in unique if source.text_name == found.vocabulary_file]
        return Assignment(found, splits, words[0] if words else None)
    return None


def _matching(sources: Iterable[Source], pattern: str) -> list[Source]:
    return [source for source in sources if re.fullmatch(pattern, source.text_name)]


def _which_wikitext(splits: Mapping[str, Sequence[Source]]) -> Corpus:
    """Both have files of the same names: told apart by the size of the training file, else by the folder's name."""
    if "train" in splits:
        is_large = sum(source.stored_bytes for source in splits["train"]) > LARGE_WIKITEXT
    else:
        is_large = "103" in str(splits[min(splits)][0].path)
    return KNOWN["wikitext-103" if is_large else "wikitext-2"]


def assign_by_name(corpus: Corpus, sources: Sequence[Source]) -> Assignment:
    """Splits by the files' names (`train.txt`, `news.valid.txt.gz`, `test/0001.txt`), all to be cut if none has one.

    A single file is always to be cut.

    Raises:
        ValueError: only some of the names tell a split.
    """
    if len(sources) == 1:
        return Assignment(corpus, {"": sources})
    by_split: dict[str, list[Source]] = {}
    for source in sources:
        by_split.setdefault(_split_of(source), []).append(source)
    if set(by_split) == {""} or "" not in by_split:
        return Assignment(corpus, {split: by_split[split] for split in ("", *SPLITS) if split in by_split})
    stray, named = by_split.pop("")[0], next(iter(by_split.values()))[0]
    raise ValueError(
        f"{stray.name} belongs to no split, while {named.name} names one: rename it, leave it out, or say which files "
        "are --train, --valid and --test."
    )


def _split_of(source: Source) -> str:
    parts = Path(source.name).parts
    for part in (source.text_name, *reversed(parts[:-1])):
        for word in re.split(r"[._\- ]", part.lower()):
            if word in _SPLIT_NAMES:
                return _SPLIT_NAMES[word]
    return ""


__all__ = [
    "EOS",
    "KNOWN",
    "LINE_ENDS",
    "MODES",
    "SENTENCE_BOUNDARY",
    "SPLITS",
    "UNK",
    "Assignment",
    "Corpus",
    "LineEnd",
    "Mode",
    "Unit",
    "assign_by_name",
    "own_text",
    "recognise",
]
