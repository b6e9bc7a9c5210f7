"""A prepared corpus: token arrays on the disk, their tokenizer, and what is known of them.

meta.json            counts, options, hashes
tokenizer/           a `TransfoXLTokenizer`
train.npy ...        the token ids of each split, `[T]`, the smallest unsigned type that holds the vocabulary
train.sentences.npy  where sentences begin and end, `[N + 1]`, if the corpus has any
counts.npy           how often each id occurs where the vocabulary was counted, `[V]`, int64
"""

import hashlib
import json
import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .corpora import Unit

if TYPE_CHECKING:
    from transformer_xl.tokenization import TransfoXLTokenizer

META, TOKENIZER, COUNTS = "meta.json", "tokenizer", "counts.npy"
FORMAT = 1  # of the folder; a reader of another format refuses it
CACHE = "TRANSFORMER_XL_CACHE"  # environment variable: the folder for what is downloaded and prepared on first use


def tokens_file(split: str) -> str:
    """The name of the array of a split."""
    return f"{split}.npy"


def sentences_file(split: str) -> str:
    """The name of the array of the places where sentences begin and end."""
    return f"{split}.sentences.npy"


class PreparedCorpus:
    """The arrays of a corpus that `transformer-xl prepare` made; they are mapped into memory, not loaded.

    Args:
        folder: the folder.

    Attributes:
        folder: the folder.
        meta: what `meta.json` says.

    Raises:
        ValueError: the folder is no prepared corpus, or is damaged.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self.meta = _read_meta(self.folder)
        self._arrays = {split: self._map(split) for split in self.splits}

    @property
    def name(self) -> str:
        """Which corpus it is: one of the paper's, or "text"."""
        return str(self.meta["corpus"])

    @property
    def unit(self) -> Unit:
        """What a token is: "word", "character" or "byte"."""
        unit: Unit = self.meta["unit"]
        return unit

    @property
    def splits(self) -> tuple[str, ...]:
        """The names of the splits, such as "train"."""
        return tuple(self.meta["splits"])

    @property
    def vocab_size(self) -> int:
        """How many ids there are."""
        return int(self.meta["vocabulary"]["size"])

    def tokens(self, split: str) -> npt.NDArray[Any]:
        """The token ids of a split, `[T]`, unsigned, read only.

        Raises:
            ValueError: there is no such split.
        """
        self._check(split)
        return self._arrays[split]

    def sentences(self, split: str) -> npt.NDArray[Any] | None:
        """Where sentences begin and end, `[N + 1]`: sentence i is `tokens[places[i] : places[i + 1] + 1]`.

        It includes the boundary token at both ends. None where the lines of the corpus belong together.

        Raises:
            ValueError: there is no such split.
        """
        self._check(split)
        if not self.meta["sentences"]:
            return None
        places: npt.NDArray[Any] = np.load(self.folder / sentences_file(split), mmap_mode="r", allow_pickle=False)
        return places

    def counts(self) -> npt.NDArray[np.int64]:
        """How often each id occurs in the splits that the vocabulary was counted from, `[V]`."""
        counts: npt.NDArray[np.int64] = np.load(self.folder / COUNTS, allow_pickle=False)
        return counts

    @cached_property
    def tokenizer(self) -> "TransfoXLTokenizer":
        """The tokenizer, loaded when it is first asked for."""
        from .encoding import load_tokenizer  # noqa: PLC0415 - imports transformers

        tokenizer: TransfoXLTokenizer = load_tokenizer(self.folder / TOKENIZER)
        return tokenizer

    def _check(self, split: str) -> None:
        if split not in self._arrays:
            raise ValueError(f"split={split!r} is not in {self.folder}: give one of {', '.join(self._arrays)}.")

    def _map(self, split: str) -> npt.NDArray[Any]:
        path, facts = self.folder / tokens_file(split), self.meta["splits"][split]
        try:
            tokens: npt.NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
        except FileNotFoundError:
            raise ValueError(f"{path} is missing: prepare the corpus again.") from None
        except ValueError as error:
            raise ValueError(f"{path} is damaged ({error}): prepare the corpus again.") from error
        if tokens.shape != (facts["tokens"],) or str(tokens.dtype) != facts["dtype"]:
            raise ValueError(
                f"{path} holds {tokens.shape} {tokens.dtype}, but {META} says {facts['tokens']} {facts['dtype']}: "
                "prepare the corpus again."
            )
        return tokens


def is_prepared(folder: Path) -> bool:
    """Whether a folder is a prepared corpus."""
    return (folder / META).is_file() and (folder / TOKENIZER).is_dir()


def _read_meta(folder: Path) -> dict[str, Any]:
    path = folder / META
    if not path.is_file():
        raise ValueError(f"{folder} is no prepared corpus, it has no {META}: make one with transformer-xl prepare.")
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
        found = meta["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}): prepare the corpus again.") from error
    if found != FORMAT:
        raise ValueError(f"{path} has format {found}, this release reads {FORMAT}: prepare the corpus again.")
    result: dict[str, Any] = meta
    return result


def cache_folder() -> Path:
    """The folder for what is downloaded and prepared on first use: `TRANSFORMER_XL_CACHE`, or in the home folder."""
    named = os.environ.get(CACHE)
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "transformer-xl"


def cached_name(name: str, facts: Sequence[object]) -> str:
    """A folder's name that tells texts and rules apart."""
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()
    return f"{name}-{digest[:16]}"


__all__ = [
    "COUNTS",
    "FORMAT",
    "META",
    "TOKENIZER",
    "PreparedCorpus",
    "cache_folder",
    "cached_name",
    "is_prepared",
    "sentences_file",
    "tokens_file",
]
