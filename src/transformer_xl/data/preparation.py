"""Text files to memory-mapped token arrays, restartable, at bounded memory.

    plan        which stretch of which file belongs to which split
    encode      every stretch becomes shards (`encoding.py`), many processes at once; finished ones survive a restart
    vocabulary  counts of all shards are added up on disk, and the words chosen
    write       one array a split

All work happens in a hidden folder beside the output, which gets its name when everything is there.
"""

import errno
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from transformer_xl.files import written_whole

from .arrays import SplitWriter
from .corpora import Assignment, Corpus
from .counting import most_frequent
from .encoding import SHARD_BYTES, Piece, cut_pieces, encode_pieces, finished_shards, load_tokenizer, new_tokenizer
from .prepared import COUNTS, FORMAT, META, TOKENIZER, PreparedCorpus
from .sources import Source, TextError, file_sha256, next_boundary, text_bytes

Span = tuple[str, Source, int, int | None]


@dataclass(frozen=True)
class _Job:
    """What is to be made of what.

    Attributes:
        assignment: rules and files.
        corpus: the rules.
        tokenizer: folder of a tokenizer that exists already; None makes one.
        output: the folder to make.
        work: the folder where it is made.
    """

    assignment: Assignment
    tokenizer: Path | None
    output: Path
    work: Path

    @property
    def corpus(self) -> Corpus:
        return self.assignment.corpus

    @property
    def sources(self) -> list[Source]:
        """All sources, each once, the word list included."""
        found = [source for sources in self.assignment.splits.values() for source in sources]
        vocabulary = self.assignment.vocabulary
        return list(dict.fromkeys(found if vocabulary is None else [*found, vocabulary]))

    def options(self) -> dict[str, Any]:
        """What the result depends on besides the texts, as `meta.json` has it."""
        options = asdict(self.corpus)
        del options["patterns"], options["vocabulary_file"]
        if "" not in self.assignment.splits:
            del options["fractions"]
        options["tokenizer_sha256"] = None if self.tokenizer is None else file_sha256(self.tokenizer / "vocab.json")
        return json.loads(json.dumps(options))  # type: ignore[no-any-return]  # lists for tuples, as it is read back


def prepare(
    assignment: Assignment,
    output: Path,
    *,
    tokenizer: Path | None = None,
    processes: int = 1,
    console: Console | None = None,
) -> PreparedCorpus:
    """Make token arrays of a corpus in `output`, or give what is there if it was made of the same.

    Args:
        assignment: the rules, and the files of each split.
        output: the folder to make; nothing else may be in it.
        tokenizer: folder of a tokenizer whose vocabulary is to be used.
        processes: how many processes read text.
        console: where to show progress; None shows nothing.

    Raises:
        ValueError: the output folder holds something else, or the corpus cannot be prepared by these rules.
        TextError: a text cannot be read.
        OSError: nothing can be written; what is finished is kept for the next try.
    """
    console = Console(quiet=True) if console is None else console
    output = output.absolute()
    assignment = _checked(assignment, tokenizer)
    job = _Job(assignment, tokenizer, output, output.parent / f".{output.name}.preparing")
    if _is_taken(output):
        return _same_as_before(job)
    with _full_disk_explained(job), _alone(job, console):
        if _is_taken(output):  # by then, by another process
            return _same_as_before(job)
        _resume_or_begin(job)
        hashes, shards = _encode(job, processes, console)
        shutil.rmtree(job.work / "result", ignore_errors=True)
        result = job.work / "result"
        result.mkdir()
        tokenizer = _build_tokenizer(job, shards, result / TOKENIZER)
        splits = _write_splits(job, shards, tokenizer, result, console)
        _write_json(result / META, _meta(job, hashes, splits, result, tokenizer))
        _publish(result, output)
    return PreparedCorpus(output)


def _checked(assignment: Assignment, tokenizer: Path | None) -> Assignment:
    """The assignment with the rules of the tokenizer; refuses what cannot end well."""
    splits = {split: sources for split, sources in assignment.splits.items() if sources}
    for sources in splits.values():
        twice = [name for name, n in Counter((str(s.path), s.member) for s in sources).items() if n > 1]
        if twice:
            raise ValueError(f"{twice[0][0]} was given twice: leave one out.")
    corpus = assignment.corpus
    if tokenizer is not None:
        corpus = _rules_of(corpus, tokenizer)
    elif assignment.vocabulary is None and not {"", "train"} & set(splits):
        raise ValueError(
            f"The corpus has no train split to make a vocabulary from (only {', '.join(splits)}): give its files, or a "
            "--tokenizer."
        )
    return replace(assignment, corpus=corpus, splits=splits)


def _rules_of(corpus: Corpus, folder: Path) -> Corpus:
    """The rules with what the tokenizer in a folder decides."""
    if not (folder / "vocab.json").is_file():
        raise ValueError(f"--tokenizer {folder} has no vocab.json: give the folder of a TransfoXLTokenizer.")
    tokenizer = load_tokenizer(folder)
    expected = "whitespace" if corpus.mode == "words" else corpus.mode
    if tokenizer.mode != expected:
        raise ValueError(
            f"--tokenizer {folder} has mode {tokenizer.mode!r}, but the text is to be read as {corpus.mode}: give "
            f"--mode {'words' if tokenizer.mode == 'whitespace' else tokenizer.mode}."
        )
    if corpus.line_token is not None and corpus.line_token not in tokenizer.get_vocab():
        raise ValueError(
            f"--tokenizer {folder} has no {corpus.line_token}, which is to end a line: give --line-end none."
        )
    unk_token = None if tokenizer.unk_token is None else str(tokenizer.unk_token)
    return replace(corpus, special=(), unk_token=unk_token, lower_case=tokenizer.lower_case, min_freq=0, max_size=None)


# The output folder: whole or not there, and nobody else's.


def _is_taken(output: Path) -> bool:
    if output.is_file():
        raise ValueError(f"output {output} is a file but must be a folder: give another.")
    return output.is_dir() and any(output.iterdir())


def _same_as_before(job: _Job) -> PreparedCorpus:
    """What is in the output folder, if it was made of the same texts by the same rules."""
    if not (job.output / META).is_file():
        other = min(path.name for path in job.output.iterdir())
        raise ValueError(f"output {job.output} holds something else ({other}): give a new or empty folder.")
    before = PreparedCorpus(job.output)
    now = job.options()
    for name, value in before.meta["options"].items():
        if now.get(name) != value:
            raise ValueError(
                f"output {job.output} was prepared with {name}={value!r}, now it is {now.get(name)!r}: give another "
                "folder, or remove this one."
            )
    hashes = {str(source.path): file_sha256(source.path) for source in job.sources}
    if before.meta["sources"] != _source_entries(job, hashes):
        raise ValueError(f"output {job.output} was prepared from other texts: give another folder, or remove this one.")
    return before


@contextmanager
def _alone(job: _Job, console: Console) -> Iterator[None]:
    """Keep other processes from preparing the same folder; they wait, and find it done."""
    job.work.mkdir(parents=True, exist_ok=True)
    lock = FileLock(job.work / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        console.print(f"Another process is preparing {job.output}: waiting for it.")
        lock.acquire()
    try:
        yield
        shutil.rmtree(job.work)  # with the lock: who waits for it, or comes later, finds the work done
    finally:
        lock.release()


@contextmanager
def _full_disk_explained(job: _Job) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
            raise
        raise OSError(
            error.errno,
            "no space left on the disk; what is finished is kept: free some space, and run the same command again",
            str(job.work),
        ) from error


def _resume_or_begin(job: _Job) -> None:
    """Keep the shards of an earlier try if it was for the same, else remove them."""
    plan = {
        "format": FORMAT,
        "shard_bytes": SHARD_BYTES,
        "options": job.options(),
        "splits": {
            split: [[str(source.path), source.member, *_identity(source.path)] for source in sources]
            for split, sources in job.assignment.splits.items()
        },
    }
    path = job.work / "plan.json"
    if path.is_file() and json.loads(path.read_text(encoding="utf-8")) == plan:
        return
    path.unlink(missing_ok=True)
    shutil.rmtree(job.work / "shards", ignore_errors=True)
    (job.work / "shards").mkdir()
    _write_json(path, plan)


def _identity(path: Path) -> tuple[int, int]:
    """What changes when a file does."""
    facts = path.stat()
    return facts.st_size, facts.st_mtime_ns


def _publish(result: Path, output: Path) -> None:
    for path in sorted(result.rglob("*")):
        if path.is_file():
            _to_disk(path)
    if output.is_dir():
        output.rmdir()  # it is empty
    result.rename(output)


def _to_disk(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _write_json(path: Path, value: Any) -> None:
    with written_whole(path) as partial:
        partial.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


# Encode.


def _encode(job: _Job, processes: int, console: Console) -> tuple[dict[str, str], list[tuple[Piece, list[Path]]]]:
    """The hashes of the files, and the shards of each piece."""
    with _progress(console) as bar:
        pieces = cut_pieces(_spans(job, bar), job.corpus.boundary)
        task = bar.add_task("reading", total=sum(piece.stored_bytes for piece in pieces))
        hashes = encode_pieces(
            pieces,
            job.sources,
            corpus=job.corpus,
            folder=job.work / "shards",
            tokenizer=job.tokenizer,
            processes=processes,
            report=lambda n_bytes: bar.advance(task, n_bytes),
        )
    folder = job.work / "shards"
    return hashes, [(piece, [path for path, _ in finished_shards(folder, piece)]) for piece in pieces]


def _progress(console: Console) -> Progress:
    columns = (
        TextColumn("{task.description:<10}"),
        BarColumn(bar_width=24),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(compact=True),
    )
    return Progress(*columns, console=console, disable=not console.is_terminal)


def _spans(job: _Job, bar: Progress) -> list[Span]:
    """Which stretch of which source belongs to which split."""
    splits = dict(job.assignment.splits)
    uncut = splits.pop("", ())
    spans: list[Span] = [(split, source, 0, None) for split, sources in splits.items() for source in sources]
    if uncut:
        task = bar.add_task("measuring", total=sum(source.stored_bytes for source in uncut))
        sizes = []
        for source in uncut:
            sizes.append(text_bytes(source))
            bar.advance(task, source.stored_bytes)
        spans += _cut_by_shares(uncut, sizes, job.corpus)
    return spans


def _cut_by_shares(sources: Sequence[Source], sizes: Sequence[int], corpus: Corpus) -> list[Span]:
    """Cut the texts, one after the other, by the shares of the splits, each cut at the next boundary."""
    begins = list(accumulate(sizes, initial=0))
    total = begins[-1]
    ends = [0]
    for share in accumulate(corpus.fractions.values()):
        place = min(round(share * total), total)
        at = max(index for index, begin in enumerate(begins[:-1]) if begin <= place)
        ends.append(max(ends[-1], begins[at] + next_boundary(sources[at], place - begins[at], corpus.boundary)))
    spans: list[Span] = []
    for (split, share), (first, last) in zip(corpus.fractions.items(), pairwise(ends), strict=True):
        if share > 0 and first == last:
            raise ValueError(
                f"fractions leave nothing for {split!r} of {total} bytes: give more text, or other shares."
            )
        for source, (begin, end) in zip(sources, pairwise(begins), strict=True):
            start, stop = max(first, begin), min(last, end)
            if start < stop:
                spans.append((split, source, start - begin, None if stop == end else stop - begin))
    return spans


# Vocabulary and arrays.


def _build_tokenizer(job: _Job, shards: Sequence[tuple[Piece, list[Path]]], folder: Path) -> Any:
    """The tokenizer of the corpus, saved in `folder`."""
    corpus, vocabulary = job.corpus, job.assignment.vocabulary
    if job.tokenizer is not None:
        tokenizer = load_tokenizer(job.tokenizer)
    elif vocabulary is not None:
        tokenizer = new_tokenizer(corpus, vocab_file=vocabulary.path)
    else:
        tokenizer = new_tokenizer(corpus, min_freq=corpus.min_freq, max_size=corpus.max_size)
        counted = [path for piece, paths in shards if piece.split in corpus.counted for path in paths]
        tokenizer.counter = most_frequent(counted, min_freq=corpus.min_freq, max_size=corpus.max_size)
        if not tokenizer.counter:
            raise TextError(f"{job.sources[0].name} has no {corpus.unit} for a vocabulary: give files that hold text.")
        tokenizer.build_vocab()
    if corpus.line_token is not None and corpus.line_token not in tokenizer.get_vocab():
        raise ValueError(f"The vocabulary has no {corpus.line_token}, which ends a line: add it, or give another.")
    tokenizer.save_pretrained(folder)
    return tokenizer


def _write_splits(
    job: _Job, shards: Sequence[tuple[Piece, list[Path]]], tokenizer: Any, result: Path, console: Console
) -> dict[str, dict[str, Any]]:
    """Write the arrays; gives what `meta.json` says of each split."""
    ids: dict[str, int] = tokenizer.get_vocab()
    unk_id = None if tokenizer.unk_token is None else ids[str(tokenizer.unk_token)]
    boundary = job.corpus.line_token if job.corpus.line_end == "sentence" else None
    names = list(dict.fromkeys(piece.split for piece, _ in shards))
    counted = set(job.corpus.counted) & set(names) or set(names)
    counts = np.zeros(max(ids.values()) + 1, dtype=np.int64)
    facts = {}
    with _progress(console) as bar:
        task = bar.add_task("writing", total=sum(path.stat().st_size for _, paths in shards for path in paths))
        for split in names:
            paths = [(piece.source.name, path) for piece, paths in shards if piece.split == split for path in paths]
            writer = SplitWriter(ids, unk_id=unk_id, boundary=boundary, counts=counts if split in counted else None)
            facts[split] = writer.write(result, split, paths, lambda n_bytes: bar.advance(task, n_bytes))
    np.save(result / COUNTS, counts, allow_pickle=False)
    return facts


def _meta(
    job: _Job, hashes: Mapping[str, str], splits: Mapping[str, Any], result: Path, tokenizer: Any
) -> dict[str, Any]:
    corpus = job.corpus
    return {
        "format": FORMAT,
        "corpus": corpus.name,
        "unit": corpus.unit,
        "sentences": corpus.line_end == "sentence",
        "splits": splits,
        "vocabulary": {
            "size": len(tokenizer),
            "sha256": file_sha256(result / TOKENIZER / "vocab.json"),
            "counted": [split for split in splits if split in corpus.counted],
        },
        "options": job.options(),
        "sources": _source_entries(job, hashes),
        "versions": {name: version(name) for name in ("transformer-xl", "numpy")},
    }


def _source_entries(job: _Job, hashes: Mapping[str, str]) -> list[dict[str, Any]]:
    """What `meta.json` says of the texts: no paths and dates, so that it is the same on every machine."""
    splits = job.assignment.splits
    return [
        {
            "name": source.name,
            "splits": [split or "by shares" for split, sources in splits.items() if source in sources],
            "bytes": source.stored_bytes,
            "sha256": hashes[str(source.path)],
        }
        for source in job.sources
    ]


__all__ = ["prepare"]
