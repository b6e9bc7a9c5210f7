"""Text to numbers, a bounded piece at a time, in as many processes as wanted.

A piece of text becomes a shard: its tokens as numbers in the order of first occurrence, what they stand for, and how
often each occurs. Shards know nothing of the vocabulary, which is made from their counts; so text is split into tokens
only once, and a shard that was written is never made again.

Shapes: T tokens of a shard, S symbols that occur in it.
"""

import json
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from multiprocessing import get_all_start_methods, get_context, parent_process
from pathlib import Path
from typing import Any, Protocol
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from transformer_xl.files import written_whole

from .corpora import Corpus
from .sources import Block, Boundary, Source, TextError, decode, file_sha256, next_boundary, read_blocks

SHARD_BYTES = 16 << 20  # of text; bounds the memory of a process
FEW_BYTES = 8 << 20  # of text; less is read before another process has started
N_CODE_POINTS = 0x110000
TOKENIZER_MODES = {"words": "whitespace", "characters": "characters", "moses": "moses", "bytes": "bytes"}
_POLL_S = 0.1

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Piece:
    """A stretch of a source for one process.

    Attributes:
        number: its place in the corpus.
        split: the split that it belongs to.
        source: where it is.
        start: where it begins.
        end: where it ends; None is the end of the text.
    """

    number: int
    split: str
    source: Source
    start: int
    end: int | None

    @property
    def stored_bytes(self) -> int:
        """How much of what is stored must be read for it."""
        if self.end is None or not self.source.is_plain:
            return self.source.stored_bytes
        return self.end - self.start


@dataclass(frozen=True)
class ShardFacts:
    """What is known of a shard.

    Attributes:
        start: where its text begins.
        end: where its text ends.
        tokens: how many tokens it has.
        characters: how many characters its text has; bytes where the text is read as such.
        lines: how many line ends its text has.
        is_last: whether the piece ends with it.
    """

    start: int
    end: int
    tokens: int
    characters: int
    lines: int
    is_last: bool


@dataclass(frozen=True)
class Shard:
    """A piece of text in numbers.

    Attributes:
        facts: where it is and how much.
        numbers: `[T]`, unsigned; indices into `symbols`.
        symbols: what the numbers stand for, in the order of first occurrence, `[S]`.
        counts: `[S]`, how often each symbol occurs.
    """

    facts: ShardFacts
    numbers: Array
    symbols: list[str]
    counts: Array


def load_shard(path: Path) -> Shard:
    """A shard that was written."""
    with np.load(path, allow_pickle=False) as stored:
        facts = ShardFacts(**json.loads(stored["facts"].tobytes()))
        return Shard(facts, stored["numbers"], json.loads(stored["symbols"].tobytes()), stored["counts"])


def load_facts(path: Path) -> ShardFacts:
    """What is known of a shard that was written, without its content."""
    with np.load(path, allow_pickle=False) as stored:
        return ShardFacts(**json.loads(stored["facts"].tobytes()))


def occurrences(path: Path, symbol: str) -> int:
    """How often a symbol occurs in a shard that was written."""
    with np.load(path, allow_pickle=False) as stored:
        symbols = json.loads(stored["symbols"].tobytes())
        return int(stored["counts"][symbols.index(symbol)]) if symbol in symbols else 0


def _save_shard(path: Path, facts: ShardFacts, numbers: Array, symbols: list[str]) -> None:
    with written_whole(path) as partial, partial.open("wb") as file:
        np.savez(
            file,
            facts=_as_json(asdict(facts)),
            numbers=numbers.astype(smallest_type(len(symbols))),
            symbols=_as_json(symbols),
            counts=np.bincount(numbers, minlength=len(symbols)),
        )


def _as_json(value: Any) -> Array:
    return np.frombuffer(json.dumps(value).encode(), dtype=np.uint8)


def smallest_type(n_values: int) -> np.dtype[Any]:
    """The smallest unsigned type that holds the numbers from 0 to `n_values - 1`."""
    return np.min_scalar_type(max(0, n_values - 1))


def shard_paths(folder: Path, piece: Piece) -> Iterator[Path]:
    """Where the shards of a piece lie or will lie, in order, without end."""
    part = 0
    while True:
        yield folder / f"{piece.number:06d}-{part:05d}.npz"
        part += 1


def finished_shards(folder: Path, piece: Piece) -> list[tuple[Path, ShardFacts]]:
    """The shards of a piece that were written whole, from the first on."""
    found = []
    for path in shard_paths(folder, piece):
        if not path.is_file():
            break
        try:
            facts = load_facts(path)
        except (ValueError, KeyError, EOFError, BadZipFile):
            break  # the machine went down before the disk had it; it is made again
        found.append((path, facts))
        if facts.is_last:
            break
    return found


def cut_pieces(spans: Iterable[tuple[str, Source, int, int | None]], boundary: Boundary) -> list[Piece]:
    """Cut stretches of text into pieces; compressed files, which cannot be entered in the middle, stay whole.

    Args:
        spans: split, source, start and end of each stretch; the end None is the end of the text.
        boundary: where the text may be cut.
    """
    places: list[tuple[str, Source, int, int | None]] = []
    for split, source, first, end in spans:
        if not source.is_plain:
            places.append((split, source, first, end))
            continue
        start, stop = first, source.stored_bytes if end is None else end
        while start < stop:
            following = min(stop, next_boundary(source, min(stop, start + SHARD_BYTES), boundary))
            places.append((split, source, start, following))
            start = following
    return [Piece(number, *place) for number, place in enumerate(places)]


class _Numbering(dict[str, int]):
    """Gives each symbol a number when it is first seen."""

    def __missing__(self, symbol: str) -> int:
        number = self[symbol] = len(self)
        return number


class _Reader(Protocol):
    """Turns blocks into numbers; a new one for each shard."""

    characters: int
    lines: int

    def read(self, block: Block, source: Source) -> Array:
        """The numbers of the tokens of a block, `[tokens]`."""

    def symbols(self) -> list[str]:
        """What the numbers stand for, in order."""


class _WordReader:
    def __init__(self, tokenize: Callable[[str], list[str]], line_token: str | None) -> None:
        self.characters = self.lines = 0
        self._tokenize = tokenize
        self._line_token = [] if line_token is None else [line_token]
        self._numbering = _Numbering()

    def read(self, block: Block, source: Source) -> Array:
        text = decode(block, source)
        self.characters += len(text)
        *lines, rest = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
        if rest and block.ends_line:
            lines.append(rest)
            rest = ""
        self.lines += len(lines)
        tokens: list[str] = []
        for line in lines:
            tokens += self._tokenize(line)
            tokens += self._line_token
        tokens += self._tokenize(rest)
        return np.fromiter(map(self._numbering.__getitem__, tokens), dtype=np.uint32, count=len(tokens))

    def symbols(self) -> list[str]:
        return list(self._numbering)


class _CodeReader:
    """Characters by their code points, or bytes."""

    def __init__(self, *, as_bytes: bool, lower_case: bool) -> None:
        self.characters = self.lines = 0
        self._as_bytes = as_bytes
        self._lower_case = lower_case
        self._number_of = np.full(256 if as_bytes else N_CODE_POINTS, -1, dtype=np.int32)
        self._codes: list[int] = []

    def read(self, block: Block, source: Source) -> Array:
        codes = self._codes_of(block, source)
        self.characters += len(codes)
        self.lines += int(np.count_nonzero(codes == ord("\n")))
        found, first_places = np.unique(codes[self._number_of[codes] < 0], return_index=True)
        for code in found[np.argsort(first_places)].tolist():
            self._number_of[code] = len(self._codes)
            self._codes.append(code)
        return self._number_of[codes].astype(np.uint32)

    def _codes_of(self, block: Block, source: Source) -> Array:
        if self._as_bytes:
            return np.frombuffer(block.data, dtype=np.uint8)
        text = decode(block, source)
        return np.frombuffer((text.lower() if self._lower_case else text).encode("utf-32-le"), dtype="<u4")

    def symbols(self) -> list[str]:
        return [chr(code) for code in self._codes]


class Encoder:
    """Makes shards by the rules of a corpus.

    Args:
        corpus: the rules.
        folder: where shards go.
        tokenizer: folder of the tokenizer that splits the text; None for a new one by the rules.
    """

    def __init__(self, corpus: Corpus, folder: Path, tokenizer: Path | None) -> None:
        self.corpus = corpus
        self.folder = folder
        self._tokenize = _word_splitter(corpus, tokenizer) if corpus.has_words else None

    def encode(self, piece: Piece, report: Callable[[int], None], stopped: Callable[[], bool]) -> None:
        """Write the shards of a piece that are not there yet.

        Args:
            piece: the stretch of text.
            report: called with the stored bytes that were read since the last call.
            stopped: asked between blocks; after True what is unfinished is dropped.

        Raises:
            TextError: the text cannot be read.
        """
        finished = finished_shards(self.folder, piece)
        if finished and finished[-1][1].is_last:
            report(piece.stored_bytes)
            return
        begun = start = finished[-1][1].end if finished else piece.start
        paths = shard_paths(self.folder, piece)
        for _ in finished:
            next(paths)
        reader, stored = self._reader(), piece.start if piece.source.is_plain else 0
        numbers: list[Array] = []
        for block in read_blocks(piece.source, begun, piece.end, self.corpus.boundary):
            if stopped():
                return
            end = block.start + len(block.data)
            if block.start - start >= SHARD_BYTES:  # only in compressed files, whose pieces are not cut
                self._save(next(paths), reader, numbers, start, block.start, is_last=False)
                reader, numbers, start = self._reader(), [], block.start
            numbers.append(reader.read(block, piece.source))
            report(block.stored - stored)
            stored = block.stored
        if numbers:
            self._save(next(paths), reader, numbers, start, end, is_last=True)

    def _reader(self) -> _Reader:
        if self._tokenize is not None:
            return _WordReader(self._tokenize, self.corpus.line_token)
        return _CodeReader(as_bytes=self.corpus.mode == "bytes", lower_case=self.corpus.lower_case)

    @staticmethod
    def _save(path: Path, reader: _Reader, numbers: list[Array], start: int, end: int, *, is_last: bool) -> None:
        joined = np.concatenate(numbers)
        facts = ShardFacts(start, end, len(joined), reader.characters, reader.lines, is_last)
        _save_shard(path, facts, joined, reader.symbols())


def new_tokenizer(corpus: Corpus, **options: Any) -> Any:
    """A `TransfoXLTokenizer` by the rules of the corpus, without a vocabulary unless `options` bring one."""
    from transformer_xl.tokenization import TransfoXLTokenizer  # noqa: PLC0415 - imports transformers

    return TransfoXLTokenizer(
        special=list(corpus.special),
        unk_token=corpus.unk_token,
        eos_token=corpus.line_token,
        additional_special_tokens=[],
        mode=TOKENIZER_MODES[corpus.mode],
        lower_case=corpus.lower_case,
        **options,
    )


def load_tokenizer(folder: Path) -> Any:
    """The `TransfoXLTokenizer` in a folder."""
    from transformer_xl.tokenization import TransfoXLTokenizer  # noqa: PLC0415 - imports transformers

    return TransfoXLTokenizer.from_pretrained(folder)


def _word_splitter(corpus: Corpus, folder: Path | None) -> Callable[[str], list[str]]:
    """The function that splits a line into words, as the tokenizer does."""
    tokenizer = new_tokenizer(corpus) if folder is None else load_tokenizer(folder)
    tokenize: Callable[[str], list[str]] = tokenizer.tokenize
    if tokenizer.mode != "whitespace" or tokenizer.delimiter is not None or tokenizer.lower_case:
        return tokenize
    named = {*corpus.special, corpus.unk_token, corpus.line_token}
    special = {token for token in (*named, *tokenizer.all_special_tokens, *tokenizer.get_added_vocab()) if token}

    def split(line: str) -> list[str]:
        # White space alone splits most lines; only a special token that touches other text takes the long way.
        words = line.split()
        return words if all(line.count(token) == words.count(token) for token in special) else tokenize(line)

    return split


# Many processes. A worker ends when the process that started it is gone, however that ended.

_worker: "_Worker"


@dataclass
class _Worker:
    encoder: Encoder
    progress: Any  # multiprocessing.Value, stored bytes read by all
    stop: Any  # multiprocessing.Event


def _start_worker(corpus: Corpus, folder: Path, tokenizer: Path | None, progress: Any, stop: Any) -> None:
    global _worker  # noqa: PLW0603 - how a process pool hands its workers what all their tasks need
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started this one
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _worker = _Worker(Encoder(corpus, folder, tokenizer), progress, stop)


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _encode_in_worker(piece: Piece) -> None:
    def report(n_bytes: int) -> None:
        with _worker.progress.get_lock():
            _worker.progress.value += n_bytes

    _worker.encoder.encode(piece, report, _worker.stop.is_set)


def encode_pieces(
    pieces: list[Piece],
    sources: list[Source],
    *,
    corpus: Corpus,
    folder: Path,
    tokenizer: Path | None,
    processes: int,
    report: Callable[[int], None],
) -> dict[str, str]:
    """Write all shards that are not there yet.

    Args:
        pieces: all pieces of the corpus.
        sources: the sources, to be hashed on the way.
        corpus: the rules.
        folder: where shards go.
        tokenizer: folder of the tokenizer; None for a new one by the rules.
        processes: how many processes work; with 1, or for little text, it is this one.
        report: called with stored bytes that were read.

    Returns:
        The SHA-256 of each file, by path.

    Raises:
        TextError: a text cannot be read.
        ChildProcessError: a process ended unexpectedly.
    """
    files = list(dict.fromkeys(source.path for source in sources))
    if processes == 1 or sum(source.stored_bytes for source in sources) < FEW_BYTES:
        encoder = Encoder(corpus, folder, tokenizer)
        for piece in pieces:
            encoder.encode(piece, report, stopped=lambda: False)
        return {str(path): file_sha256(path) for path in files}
    context = _process_context(corpus)
    progress, stop = context.Value("q", 0), context.Event()
    arguments = (corpus, folder, tokenizer, progress, stop)
    with ProcessPoolExecutor(processes, context, _start_worker, arguments) as pool:
        try:
            encoded = [pool.submit(_encode_in_worker, piece) for piece in pieces]
            hashed = {str(path): pool.submit(file_sha256, path) for path in files}
            _await([*encoded, *hashed.values()], progress, report)
            return {path: future.result() for path, future in hashed.items()}
        except TextError as error:
            raise TextError(*error.args) from error  # the command line looks at where an error was raised
        except BrokenProcessPool as error:
            raise ChildProcessError(
                "A process that prepares text ended unexpectedly, perhaps for lack of memory. What is finished is kept:"
                " run the same command again, with fewer --processes."
            ) from error
        finally:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)


def _process_context(corpus: Corpus) -> Any:
    """How processes are started: never as a fork of this one, whose threads would be copied in whatever state.

    Where the system can, they are forks of a server that has imported what they need, and nothing else.
    """
    if "forkserver" not in get_all_start_methods():
        return get_context("spawn")
    context = get_context("forkserver")
    needed = ["transformer_xl_command", __name__]  # the former keeps the package from importing the models
    context.set_forkserver_preload([*needed, "transformer_xl.tokenization"] if corpus.has_words else needed)
    return context


def _await(futures: list[Future[Any]], progress: Any, report: Callable[[int], None]) -> None:
    """Wait until all are done or one has failed, and raise its error."""
    pending, reported = set(futures), 0
    while pending:
        done, pending = wait(pending, _POLL_S, FIRST_EXCEPTION)
        for future in done:
            future.result()
        now = progress.value
        report(now - reported)
        reported = now


__all__ = [
    "Encoder",
    "Piece",
    "Shard",
    "ShardFacts",
    "cut_pieces",
    "encode_pieces",
    "finished_shards",
    "load_facts",
    "load_shard",
    "load_tokenizer",
    "new_tokenizer",
    "occurrences",
    "smallest_type",
]
