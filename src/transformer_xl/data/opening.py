"""From what a user names to arrays: a prepared folder, or raw text that is prepared on first use."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from .corpora import KNOWN, Assignment, Corpus, LineEnd, Mode, assign_by_name, own_text, recognise
from .preparation import prepare
from .prepared import PreparedCorpus, cache_folder, cached_name, is_prepared
from .sources import Source, find_sources


@dataclass(frozen=True, kw_only=True)
class CorpusOptions:
    """What a user wants of a corpus; None leaves it to the corpus.

    Attributes:
        corpus: one of the paper's corpora, or "text" for a text of one's own; None goes by the files' names.
        mode: see `Corpus`; with a mode and without `corpus`, a text is one's own.
        line_end, lower_case, min_freq, max_size, fractions: see `Corpus`; they change the rules of a known corpus, too.

    Raises:
        ValueError: the corpus is unknown, or has another mode.
    """

    corpus: str | None = None
    mode: Mode | None = None
    line_end: LineEnd | None = None
    lower_case: bool | None = None
    min_freq: int | None = None
    max_size: int | None = None
    fractions: Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        if self.corpus not in (None, "text", *KNOWN):
            raise ValueError(f"corpus={self.corpus!r} is unknown: give one of {', '.join([*KNOWN, 'text'])}.")
        known = self.known
        if known is not None and self.mode not in (None, known.mode):
            raise ValueError(
                f"mode={self.mode!r} does not go with corpus={known.name!r}, which has {known.mode!r}: leave one out."
            )

    @property
    def known(self) -> Corpus | None:
        """The paper's corpus that was asked for."""
        return KNOWN.get(self.corpus or "")

    @property
    def is_own_text(self) -> bool:
        """Whether no corpus of the paper is meant, whatever the files are called."""
        return self.corpus == "text" or (self.corpus is None and self.mode is not None)

    def rules(self, known: Corpus | None) -> Corpus:
        """The rules of a known corpus, or for a text of one's own, with what the user wants instead."""
        names = ("line_end", "lower_case", "min_freq", "max_size", "fractions")
        wanted: dict[str, Any] = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        return own_text(self.mode or "words", **wanted) if known is None else replace(known, **wanted)


AS_IT_IS = CorpusOptions()


def assign(paths: Sequence[Path], options: CorpusOptions = AS_IT_IS) -> Assignment:
    """The files of each split, found by their names, and the rules.

    Args:
        paths: files and folders.
        options: what the user wants.

    Raises:
        TextError: a file is missing, empty or damaged.
        ValueError: only some files tell which split they belong to.
    """
    sources = find_sources(paths)
    found = None if options.is_own_text else recognise(sources, options.known)
    if found is not None:
        return replace(found, corpus=options.rules(found.corpus))
    return assign_by_name(options.rules(options.known), sources)


def assign_splits(splits: Mapping[str, Sequence[Path]], options: CorpusOptions = AS_IT_IS) -> Assignment:
    """The files of each split as the user names them, and the rules.

    Raises:
        TextError: a file is missing, empty or damaged.
    """
    by_split: dict[str, list[Source]] = {split: find_sources(paths) for split, paths in splits.items() if paths}
    return Assignment(options.rules(options.known), by_split)


def open_corpus(
    path: str | os.PathLike[str],
    options: CorpusOptions = AS_IT_IS,
    *,
    cache: Path | None = None,
    processes: int = 1,
    console: Console | None = None,
) -> PreparedCorpus:
    """The arrays of a corpus: of a folder that was prepared, or of raw text, which is prepared on first use.

    Raw text is prepared in a cache folder, never where it lies. The same files by the same rules are found there again;
    a file counts as the same while its size and date are.

    Args:
        path: a prepared folder, a raw corpus folder, or a text file.
        options: what is wanted of raw text.
        cache: where raw text is prepared; None is `TRANSFORMER_XL_CACHE`, or a folder in the user's cache.
        processes: how many processes read raw text. More than 1 only from a program whose main module may be imported
            again (`if __name__ == "__main__":`).
        console: where to show progress; None shows nothing.

    Raises:
        ValueError: the folder or text cannot be used.
        OSError: nothing can be written to the cache.
    """
    path = Path(path)
    if is_prepared(path):
        return PreparedCorpus(path)
    if not path.exists():
        raise ValueError(
            f"{path} does not exist: give a prepared folder, or text; the paper's corpora are fetched by "
            "transformer-xl prepare --download."
        )
    assignment = assign([path], options)
    files = sorted({source.path.absolute() for sources in assignment.splits.values() for source in sources})
    facts = [[str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in files]
    name = cached_name(assignment.corpus.name, [asdict(assignment.corpus), facts])
    folder = (cache if cache is not None else cache_folder()) / "prepared" / name
    if is_prepared(folder):
        return PreparedCorpus(folder)
    return prepare(assignment, folder, processes=processes, console=console)


__all__ = ["CorpusOptions", "assign", "assign_splits", "open_corpus"]
