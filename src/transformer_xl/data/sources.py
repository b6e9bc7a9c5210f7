"""Text files as they lie on a disk: plain or compressed, one or thousands, read in blocks of about a MiB.

A place in a text is an offset in bytes of the uncompressed text. Plain files can be entered anywhere, compressed ones
are read up to the place.
"""

import gzip
import hashlib
import lzma
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

Boundary = Literal["line", "character", "byte"]  # where a text may be cut

BLOCK_BYTES = 1 << 20
LONGEST_LINE = 16 << 20  # bytes; a longer one is cut at white space, so that memory stays bounded
COMPRESSED = (".gz", ".xz", ".zst", ".zip")


class TextError(ValueError):
    """A text that cannot be read, with what its owner can do about it."""


@dataclass(frozen=True)
class Source:
    """One text.

    Attributes:
        path: the file.
        member: the text's name inside a zip file, else "".
        name: how messages and `meta.json` call it.
        stored_bytes: its size as it is stored; the uncompressed size where `is_plain`.
    """

    path: Path
    member: str
    name: str
    stored_bytes: int

    @property
    def is_plain(self) -> bool:
        """Whether the file is the text itself."""
        return not self.member and self.path.suffix not in COMPRESSED

    @property
    def text_name(self) -> str:
        """The last part of the name without the ending of a compression: `wiki.train.tokens`."""
        last = Path(self.member or self.path).name
        return last if self.member or self.is_plain else last.removesuffix(self.path.suffix)


class Block(NamedTuple):
    """A stretch of a text.

    Attributes:
        data: its bytes.
        start: where it begins.
        ends_line: whether a line is complete at its end: after a line break, or at the end of the text.
        stored: how much of what is stored was read so far, in bytes.
    """

    data: bytes
    start: int
    ends_line: bool
    stored: int


def find_sources(paths: Iterable[Path]) -> list[Source]:
    """The texts in files and folders; folders are searched all the way down, in the order of names, hidden files not.

    Raises:
        TextError: a path does not exist, a file is empty or damaged, or there is none at all.
    """
    sources: list[Source] = []
    for path in paths:
        if path.is_dir():
            files = [file for file in sorted(path.rglob("*")) if file.is_file() and not _is_hidden(file, path)]
            if not files:
                raise TextError(f"{path} is a folder without files: give text files or a folder that holds some.")
            sources += [source for file in files for source in _in_file(file, str(file.relative_to(path)))]
        elif path.is_file():
            sources += _in_file(path, path.name)
        else:
            raise TextError(f"{path} does not exist: give text files or a folder that holds some.")
    return sources


def _is_hidden(file: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(folder).parts)


def _in_file(path: Path, name: str) -> list[Source]:
    """The file itself, or each member of a zip file."""
    size = path.stat().st_size
    if size == 0:
        raise TextError(f"{path} is empty: leave it out, or give a file that holds text.")
    if path.suffix != ".zip":
        return [Source(path, "", name, size)]
    with _damage_reported(path), zipfile.ZipFile(path) as archive:
        members = [info for info in archive.infolist() if not info.is_dir()]
    if any(info.flag_bits & 1 for info in members):
        raise TextError(f"{path} is encrypted: unpack it, and give the files.")
    return [Source(path, info.filename, f"{name}/{info.filename}", info.file_size) for info in members]


@contextmanager
def open_source(source: Source) -> Iterator[IO[bytes]]:
    """The text of a source, uncompressed.

    Raises:
        TextError: the file is damaged or cut short, or its compression needs a package that is not installed.
    """
    with _opened(source) as (text, _):
        yield text


@contextmanager
def _opened(source: Source) -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    """The uncompressed text, and the file whose position tells how much of what is stored was read."""
    path = source.path
    with _damage_reported(source.name):
        if source.member:
            with zipfile.ZipFile(path) as archive, archive.open(source.member) as member:
                yield member, member
            return
        with path.open("rb") as stored:
            if source.is_plain:
                yield stored, stored
                return
            with _DECOMPRESSORS[path.suffix](stored) as text:
                yield text, stored


@contextmanager
def _damage_reported(name: object) -> Iterator[None]:
    try:
        yield
    except _damages() as error:
        reason = str(error).strip().rstrip(".") or type(error).__name__
        raise TextError(f"{name} is damaged or cut short ({reason}): fetch it again.") from error


def _damages() -> tuple[type[Exception], ...]:
    """The errors that damaged files raise."""
    zstd = _zstd_module()
    known = (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile, zipfile.BadZipFile)
    return known if zstd is None else (*known, zstd.ZstdError)


def _zstd_module() -> Any:
    """The module that reads zstd, in the standard library since Python 3.14; None if there is none."""
    for name in ("compression.zstd", "backports.zstd"):
        try:
            return import_module(name)
        except ImportError:
            continue
    return None


def _open_zstd(stored: IO[bytes]) -> Any:
    zstd = _zstd_module()
    if zstd is None:
        raise TextError(f"{stored.name} needs a package that reads zstd: pip install 'transformer-xl[zstd]'.")
    return zstd.ZstdFile(stored)


_DECOMPRESSORS: dict[str, Callable[[IO[bytes]], Any]] = {
    ".gz": lambda stored: gzip.GzipFile(fileobj=stored),
    ".xz": lzma.open,
    ".zst": _open_zstd,
}


def text_bytes(source: Source) -> int:
    """The size of the uncompressed text; compressed files are read once through, the sizes that they state may lie."""
    if source.is_plain:
        return source.stored_bytes
    with open_source(source) as file:
        return sum(len(block) for block in iter(lambda: file.read(BLOCK_BYTES), b""))


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file as it is stored, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def next_boundary(source: Source, offset: int, boundary: Boundary) -> int:
    """The first place from `offset` on where the text may be cut; the end of the text if there is none before."""
    if offset == 0 or boundary == "byte":
        return offset
    with open_source(source) as file:
        file.seek(offset - 1)
        if boundary == "line":
            for piece in iter(lambda: file.readline(BLOCK_BYTES), b""):
                offset += len(piece)
                if piece.endswith(b"\n"):
                    break
            return offset - 1
        file.seek(offset)
        following = file.read(3)
        return offset + next((n for n, byte in enumerate(following) if byte & 0xC0 != 0x80), len(following))


def read_blocks(source: Source, start: int, end: int | None, boundary: Boundary) -> Iterator[Block]:
    """The text from `start` to `end` in blocks that end at a boundary.

    Args:
        source: the text.
        start: a boundary.
        end: a boundary, or None for the end of the text.
        boundary: "line" cuts lines only where they are longer than `LONGEST_LINE`, and there at white space.

    Raises:
        TextError: the file is damaged, or a line is too long and has no white space.
    """
    with _opened(source) as (file, stored):
        file.seek(start)
        kept = b""
        while True:
            wanted = BLOCK_BYTES if end is None else min(BLOCK_BYTES, end - start - len(kept))
            read = file.read(wanted) if wanted else b""
            data = kept + read
            if not read:
                if data:
                    yield Block(data, start, ends_line=True, stored=stored.tell())
                return
            cut = _cut(data, boundary, source, start)
            if cut:
                yield Block(data[:cut], start, ends_line=data[cut - 1] == ord("\n"), stored=stored.tell())
            kept, start = data[cut:], start + cut


def _cut(data: bytes, boundary: Boundary, source: Source, start: int) -> int:
    """Where the first part of `data` may end; 0 if more must be read first."""
    if boundary == "byte":
        return len(data)
    if boundary == "character":
        lead = len(data) - 1
        while lead > max(0, len(data) - 4) and data[lead] & 0xC0 == 0x80:
            lead -= 1
        return lead  # the last character may be incomplete; the next block begins with it
    cut = data.rfind(b"\n") + 1
    if cut == 0 and len(data) > LONGEST_LINE:
        cut = max(data.rfind(b" "), data.rfind(b"\t")) + 1
        if cut == 0:
            raise TextError(
                f"{source.name} has {LONGEST_LINE:,} bytes without white space (from byte {start}), which are no words:"
                " use --mode characters."
            )
    return cut


def decode(block: Block, source: Source) -> str:
    """The block as text; a byte order mark at the start of a file is not part of it.

    Raises:
        TextError: the block is not UTF-8; the message has the line and the offset.
    """
    try:
        text = block.data.decode("utf-8")
    except UnicodeDecodeError as error:
        offset = block.start + error.start
        raise TextError(
            f"{source.name}, line {_line_of(source, offset)} is not UTF-8: byte 0x{block.data[error.start]:02x} at "
            f"offset {offset}; convert the file (iconv -t UTF-8), or use --mode bytes."
        ) from None
    return text.removeprefix("\ufeff") if block.start == 0 else text


def _line_of(source: Source, offset: int) -> int:
    """The number of the line, from 1, that holds the byte at `offset`."""
    return 1 + sum(block.data.count(b"\n") for block in read_blocks(source, 0, offset, "byte"))


__all__ = [
    "BLOCK_BYTES",
    "Block",
    "Boundary",
    "Source",
    "TextError",
    "decode",
    "file_sha256",
    "find_sources",
    "next_boundary",
    "open_source",
    "read_blocks",
    "text_bytes",
]
