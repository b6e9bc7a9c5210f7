"""Reads the files that `torch.save` writes, as data; everything in them but the tensors comes from `pickle_reader.py`.

Such a file is a pickle whose persistent ids stand for storages, and beside it the bytes of each storage: members of a
zip archive since torch 1.6, one stream after the other before that. A tensor is a storage, an offset, a size and a
stride. All four are checked against the bytes that are there, so that a file can make no tensor that it does not hold;
names in an archive never become paths.
"""

import math
import os
import stat
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from .pickle_reader import PickledName, PickleError, PickleMachine, run

MAX_PICKLE_BYTES = 1 << 28  # storages not included
MAX_MEMBERS = 100_000  # of a zip archive
MAX_DIRECTORY_BYTES = 1 << 26
MAX_DIMENSIONS = 16


def read_torch_file(path: str | os.PathLike[str]) -> Any:
    """Gives the object in a file of `torch.save`, in the zip format or the stream format of releases before 1.6.

    Returns:
        As `read_pickle`; tensors and parameters are CPU tensors in new memory, sharing it where they share a storage.

    Raises:
        PickleError: as `read_pickle`, and for storages, sizes and strides that do not fit the file.
        OSError: the file cannot be opened.
    """
    path = Path(path)
    with path.open("rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise PickleError(f"{path}: is not a regular file; only files are read")
        start = file.read(4)
        if start == b"PK\x03\x04":
            return _read_torch_zip(file, status.st_size, str(path))
        return _read_torch_stream(file, status.st_size, str(path))


_DTYPES = {
    "torch.DoubleStorage": "float64",
    "torch.FloatStorage": "float32",
    "torch.HalfStorage": "float16",
    "torch.BFloat16Storage": "bfloat16",
    "torch.LongStorage": "int64",
    "torch.IntStorage": "int32",
    "torch.ShortStorage": "int16",
    "torch.CharStorage": "int8",
    "torch.ByteStorage": "uint8",
    "torch.BoolStorage": "bool",
}
_TENSOR_COST = 1000  # bytes that a tensor needs beside its numbers
_STREAM_MAGIC, _STREAM_VERSION = 0x1950A86A20F9469CFC6C, 1001


@dataclass(frozen=True, slots=True)
class _Storage:
    """The numbers of one storage or of a stretch of one, a tensor of one dimension."""

    values: Tensor


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 63


class _Storages:
    """The storages of one file: made when first mentioned, never more bytes in all than the file has."""

    def __init__(self, machine: PickleMachine, file_size: int) -> None:
        self.machine = machine
        self.bytes_left = file_size
        self.tensor_bytes_left = 8 * file_size + (1 << 24)  # tied weights are mentioned several times, small ones often
        self.by_key: dict[str, Tensor] = {}
        machine.persistent_load = self.load_persistent
        machine.calls = {
            "torch._utils._rebuild_tensor": self.rebuild_tensor,
            "torch._utils._rebuild_tensor_v2": self.rebuild_tensor,
            "torch._utils._rebuild_parameter": self.rebuild_parameter,
            "torch._utils._rebuild_parameter_with_state": self.rebuild_parameter,
            "torch.nn.parameter.Parameter": self.rebuild_parameter,
            "torch.Size": self.rebuild_size,
        }

    def fill(self, key: str, values: Tensor) -> None:
        """Reads the bytes of storage `key` into `values` if they can be had already."""

    def load_persistent(self, identifier: Any) -> Any:
        """Gives the storage, or the module class of the stream format, that a persistent id names."""
        if type(identifier) is not tuple or not 4 <= len(identifier) <= 6 or type(identifier[0]) is not str:
            raise self.machine.refused("a persistent id that is no storage")
        tag, kind, *rest = identifier
        if tag == "module" and type(kind) is PickledName:
            return kind  # beside it stand the module's file and source text, which are not looked at
        if tag != "storage" or len(rest) < 3:
            raise self.machine.refused("a persistent id that is no storage")
        key, _, count, *view = rest
        if type(kind) is not PickledName or kind.class_name not in _DTYPES:
            what = kind.class_name if type(kind) is PickledName else type(kind).__name__
            raise self.machine.error(f"a storage of type {what!r}; known are {', '.join(_DTYPES)}")
        if type(key) is not str or not key.isascii() or not key.isdigit() or len(key) > 40 or not _is_size(count):
            raise self.machine.damaged("a storage whose key is no text of digits, or whose size is no count")
        values = self.storage(key, _DTYPES[kind.class_name], count)
        if view and view[0] is not None:
            values = self.view_of(values, view[0])
        return _Storage(values)

    def storage(self, key: str, dtype_name: str, count: int) -> Tensor:
        dtype = getattr(torch, dtype_name)
        known = self.by_key.get(key)
        if known is not None:
            if known.dtype != dtype or known.numel() != count:
                raise self.machine.damaged(f"storage {key} has two sizes or types")
            return known
        size = count * dtype.itemsize
        if size > self.bytes_left:
            raise self.machine.refused(f"storage {key} claims {size} bytes, more than the file has")
        self.bytes_left -= size
        values = self.by_key[key] = torch.zeros(count, dtype=dtype)
        self.fill(key, values)
        return values

    def view_of(self, values: Tensor, view: Any) -> Tensor:
        is_view = type(view) is tuple and len(view) == 3 and all(map(_is_size, view[1:]))
        if not is_view or sum(view[1:]) > values.numel():
            raise self.machine.refused("a stretch of a storage that does not lie inside it")
        self.machine.spend(_TENSOR_COST)
        return values[view[1] : view[1] + view[2]]

    def rebuild_tensor(self, arguments: tuple[Any, ...]) -> Tensor:
        self.machine.spend(_TENSOR_COST)
        if len(arguments) < 4 or type(arguments[0]) is not _Storage:
            raise self.machine.damaged("a tensor without a storage")
        values, offset, size, stride = arguments[0].values, *arguments[1:4]
        if type(size) is not tuple or type(stride) is not tuple or len(size) != len(stride):
            raise self.machine.damaged("a tensor whose size and stride are not two tuples of equal length")
        if len(size) > MAX_DIMENSIONS:
            raise self.machine.refused(f"a tensor of {len(size)} dimensions, more than {MAX_DIMENSIONS}")
        if not all(map(_is_size, (offset, *size, *stride))):
            raise self.machine.refused("a tensor with an offset, size or stride that is no count")
        count = math.prod(size)
        reach = sum((length - 1) * step for length, step in zip(size, stride, strict=True)) + 1 if count else 0
        is_countable = math.prod(filter(None, size)) < 1 << 63  # torch multiplies sizes even if one of them is 0
        if offset + reach > values.numel() or count > values.numel() or not is_countable:
            raise self.machine.refused(
                f"a tensor of size {list(size)}, stride {list(stride)} and offset {offset} that does not fit "
                f"its storage of {values.numel()} values"
            )
        self.tensor_bytes_left -= count * values.element_size()
        if self.tensor_bytes_left < 0:
            raise self.machine.refused("tensors of many times the size of the file share its storages")
        return values.as_strided(size, stride, values.storage_offset() + offset)  # a stretch starts within its storage

    def rebuild_parameter(self, arguments: tuple[Any, ...]) -> Tensor:
        if not arguments or not isinstance(arguments[0], torch.Tensor):
            raise self.machine.damaged("a parameter without a tensor")
        return arguments[0]

    def rebuild_size(self, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        if len(arguments) != 1 or type(arguments[0]) is not tuple:
            raise self.machine.damaged("a torch.Size that is made of something else than a tuple")
        return arguments[0]


def _raw_bytes(values: Tensor) -> memoryview:
    """The memory of a contiguous tensor, writable."""
    return memoryview(values.view(torch.uint8).numpy())  # type: ignore[arg-type]


class _StreamStorages(_Storages):
    """The stream format keeps the storages behind the pickle, in an order that follows it."""

    def read_all(self, file: BinaryIO, keys: Any) -> None:
        error = self.machine.damaged
        if type(keys) is not list or set(map(type, keys)) - {str} or sorted(keys) != sorted(self.by_key):
            raise error("the list of storages does not name those that the tensors use")
        for key in keys:
            values = self.by_key[key]
            count = int.from_bytes(file.read(8), "little")
            if count != values.numel():
                raise error(
                    f"storage {key} holds {count} values where the tensors use {values.numel()}; the file is damaged"
                )
            raw = _raw_bytes(values)
            if file.readinto(raw) != len(raw):  # type: ignore[attr-defined]
                raise error(f"storage {key} ends too early")


def _read_torch_stream(file: BinaryIO, file_size: int, source: str) -> Any:
    """Reads magic number, version and system information, then the object, the list of storages and the storages."""
    file.seek(0)
    machine = PickleMachine(file.read(min(file_size, MAX_PICKLE_BYTES)), source)
    if machine.data[:1] != b"\x80" or run(machine, 0) != _STREAM_MAGIC:
        raise PickleError(
            f"{source}: is no file of torch.save (neither a zip archive nor the stream format of releases before 1.6)"
        )
    version = run(machine, machine.position)
    if type(version) is not int or version != _STREAM_VERSION:
        raise machine.error(f"an unknown version of the stream format of torch.save; only {_STREAM_VERSION} is known")
    run(machine, machine.position)  # system information: storages are little-endian whatever it says
    storages = _StreamStorages(machine, file_size)
    result = run(machine, machine.position)
    machine.persistent_load, machine.calls = None, {}
    keys = run(machine, machine.position)
    file.seek(machine.position)
    storages.read_all(file, keys)
    if file.read(1):
        raise PickleError(f"{source}: bytes follow the last storage; the file is damaged")
    return result


@dataclass(frozen=True, slots=True)
class _Member:
    """One entry of a zip archive's directory, stored without compression."""

    size: int
    checksum: int
    header_at: int


class _ZipArchive:
    """A zip archive as torch writes it: nothing compressed or encrypted; names are looked up, never used as paths."""

    def __init__(self, file: BinaryIO, file_size: int, source: str) -> None:
        self.file, self.file_size, self.source = file, file_size, source
        start, size, count = self.find_directory()
        if count > MAX_MEMBERS or size > MAX_DIRECTORY_BYTES:
            raise self.error(f"names {count} members in {size} bytes, more than {MAX_MEMBERS} in {MAX_DIRECTORY_BYTES}")
        directory = self.read_at(start, size)
        self.members: dict[str, _Member] = {}
        position = 0
        for _ in range(count):
            position = self.read_entry(directory, position)

    def error(self, text: str) -> PickleError:
        return PickleError(f"{self.source}: the zip archive {text}; refused")

    def read_at(self, start: int, size: int) -> bytes:
        if not 0 <= start <= start + size <= self.file_size:
            raise self.error(f"points to bytes {start} to {start + size} of {self.file_size}")
        self.file.seek(start)
        raw = self.file.read(size)
        if len(raw) != size:
            raise self.error("became shorter while it was read")
        return raw

    def find_directory(self) -> tuple[int, int, int]:
        """Gives start, size in bytes and number of entries of the directory."""
        tail_start = max(0, self.file_size - 65_557)  # the end record and the longest comment
        tail = self.read_at(tail_start, self.file_size - tail_start)
        at = tail.rfind(b"PK\x05\x06")
        if at < 0 or len(tail) - at < 22:
            raise self.error("has no directory at its end (the file is truncated or no zip archive)")
        count, size, start = struct.unpack("<HII", tail[at + 10 : at + 20])
        if count == 0xFFFF or size == 0xFFFFFFFF or start == 0xFFFFFFFF:
            locator = self.read_at(tail_start + at - 20, 20)
            (record_at,) = struct.unpack("<Q", locator[8:16])
            record = self.read_at(record_at, 56)
            if locator[:4] != b"PK\x06\x07" or record[:4] != b"PK\x06\x06":
                raise self.error("has a damaged zip64 end record")
            count, size, start = struct.unpack("<QQQ", record[32:56])
        return start, size, count

    def read_entry(self, directory: bytes, position: int) -> int:
        """Notes one entry and gives the position of the next."""
        if directory[position : position + 4] != b"PK\x01\x02" or position + 46 > len(directory):
            raise self.error("has a damaged directory")
        flags, method = struct.unpack("<HH", directory[position + 8 : position + 12])
        checksum, packed, size, name_size, extra_size, comment_size = struct.unpack(
            "<IIIHHH", directory[position + 16 : position + 34]
        )
        (header_at,) = struct.unpack("<I", directory[position + 42 : position + 46])
        name_end = position + 46 + name_size
        name = directory[position + 46 : name_end].decode("utf-8", "replace")
        extra = directory[name_end : name_end + extra_size]
        size, packed, header_at = self.widen(extra, size, packed, header_at)
        if flags & 1 or method != 0 or size != packed:
            raise self.error(f"has a compressed or encrypted member {name[:80]!r}, which torch.save never writes")
        if name in self.members:
            raise self.error(f"has two members {name[:80]!r}")
        self.members[name] = _Member(size, checksum, header_at)
        return int(name_end + extra_size + comment_size)

    def widen(self, extra: bytes, *fields: int) -> list[int]:
        """Replaces 32-bit fields that are full by their 64-bit values in the extra part."""
        wide = b""
        while len(extra) >= 4:
            tag, length = struct.unpack("<HH", extra[:4])
            wide, extra = (extra[4 : 4 + length] if tag == 1 else wide), extra[4 + length :]
        values = list(fields)
        for i, value in enumerate(fields):
            if value == 0xFFFFFFFF:
                if len(wide) < 8:
                    raise self.error("has a damaged zip64 entry")
                values[i], wide = int.from_bytes(wide[:8], "little"), wide[8:]
        return values

    def open_member(self, name: str) -> _Member:
        """Gives the entry and leaves the file at its first byte."""
        member = self.members.get(name)
        if member is None:
            raise self.error(f"has no member {name[:80]!r}")
        header = self.read_at(member.header_at, 30)
        name_length, extra_length = struct.unpack("<HH", header[26:30])
        start = member.header_at + 30 + name_length + extra_length
        if header[:4] != b"PK\x03\x04" or start + member.size > self.file_size:
            raise self.error(f"has a member {name[:80]!r} that does not lie inside the file")
        self.file.seek(start)
        return member

    def read(self, name: str, limit: int) -> bytes:
        member = self.open_member(name)
        if member.size > limit:
            raise self.error(f"has a member {name[:80]!r} of {member.size} bytes, more than {limit}")
        raw = self.file.read(member.size)
        self.check(name, member, raw)
        return raw

    def check(self, name: str, member: _Member, raw: bytes | memoryview) -> None:
        if len(raw) != member.size or zlib.crc32(raw) != member.checksum:
            raise self.error(f"has a member {name[:80]!r} whose checksum is wrong (the file is damaged)")


class _ZipStorages(_Storages):
    """The zip format keeps each storage in a member of its own."""

    def __init__(self, machine: PickleMachine, archive: _ZipArchive, folder: str) -> None:
        super().__init__(machine, archive.file_size)
        self.archive = archive
        self.folder = folder

    def fill(self, key: str, values: Tensor) -> None:
        name = f"{self.folder}/data/{key}"
        member = self.archive.open_member(name)
        raw = _raw_bytes(values)
        if member.size != len(raw):
            raise self.machine.damaged(f"storage {key} claims {len(raw)} bytes, but {name[:80]!r} has {member.size}")
        self.archive.file.readinto(raw)  # type: ignore[attr-defined]
        self.archive.check(name, member, raw)


def _read_torch_zip(file: BinaryIO, file_size: int, source: str) -> Any:
    archive = _ZipArchive(file, file_size, source)
    folders = [
        name.removesuffix("/data.pkl")
        for name in archive.members
        if name.count("/") == 1 and name.endswith("/data.pkl")
    ]
    if len(folders) != 1:
        raise archive.error(f"has {len(folders)} files data.pkl, so torch.save did not write it")
    folder = folders[0]
    if f"{folder}/constants.pkl" in archive.members:
        raise archive.error("is a TorchScript program, which holds code; only what torch.save writes is read")
    if f"{folder}/byteorder" in archive.members and archive.read(f"{folder}/byteorder", 16) != b"little":
        raise archive.error("holds big-endian numbers; only little-endian ones are read")
    data = archive.read(f"{folder}/data.pkl", MAX_PICKLE_BYTES)
    machine = PickleMachine(data, f"{source}, data.pkl")
    _ZipStorages(machine, archive, folder)
    result = run(machine, 0)
    if machine.position != len(data):
        raise machine.damaged("bytes follow the end of the pickle")
    return result


__all__ = ["read_torch_file"]
