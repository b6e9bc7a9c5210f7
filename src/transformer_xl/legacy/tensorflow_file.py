"""Reads TensorFlow's V2 checkpoint files (`.index` and `.data-I-of-N`) without TensorFlow.

The index is a table in LevelDB's format: blocks of sorted entries whose keys share prefixes, a block that lists the
blocks, and a footer that finds it. The entry with the empty key tells the number of data files; every other one gives
type, shape, place and checksum of a variable as a protocol buffer. Data files are the numbers themselves, row by row,
little-endian. All checksums (masked CRC-32C, of every block and every variable) are verified. Sources:
https://github.com/google/leveldb/blob/main/doc/table_format.md and the messages `BundleHeaderProto` and
`BundleEntryProto` in https://github.com/tensorflow/tensorflow/blob/master/tensorflow/core/protobuf/tensor_bundle.proto
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

FOOTER_BYTES = 48
MAGIC = 0xDB4775248B80FB57
MAX_INDEX_BYTES = 1 << 28
MAX_ENTRIES = 1 << 14  # with the next: what the names need, as entries share the beginnings of theirs
MAX_KEY_BYTES = 1024
MAX_DIMENSIONS = 16
_DTYPES = {1: torch.float32, 2: torch.float64, 3: torch.int32, 9: torch.int64, 14: torch.bfloat16, 19: torch.float16}


@dataclass(frozen=True, slots=True)
class Variable:
    """What the index says about one variable."""

    dtype: int  # TensorFlow's number of the type
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int  # bytes
    checksum: int
    is_sliced: bool


class TensorFlowFile:
    """The variables of a checkpoint, found through its index and read one by one.

    Raises:
        ValueError: a file is missing, damaged, or uses what this format allows but these checkpoints never do.
    """

    def __init__(self, prefix: Path) -> None:
        self.prefix = prefix
        self.index_path = prefix.with_name(f"{prefix.name}.index")
        self._crc32c = _checksum_function(self.index_path)
        size = self.index_path.stat().st_size
        if not FOOTER_BYTES <= size <= MAX_INDEX_BYTES:
            raise self.error(f"has {size} bytes; an index has {FOOTER_BYTES} to {MAX_INDEX_BYTES}")
        self._index = self.index_path.read_bytes()
        header, self.variables = self._read_entries()
        self.n_shards = _single(header, 1, default=1)
        if _single(header, 2, default=0) != 0:
            raise self.error("says that its numbers are big-endian; only little-endian ones are read")
        self._bytes_left = [self._shard_path(i).stat().st_size for i in range(self._checked_shards())]

    def error(self, text: str) -> ValueError:
        return ValueError(f"{self.index_path} {text}.")

    def read(self, name: str) -> Tensor:
        """Gives one variable, new memory, after verifying its checksum."""
        variable = self.variables[name]
        dtype = _DTYPES.get(variable.dtype)
        if dtype is None:
            raise self.error(f"gives {name!r} the data type {variable.dtype}; known are {', '.join(map(str, _DTYPES))}")
        if variable.is_sliced:
            raise self.error(f"holds {name!r} in slices (a partitioned variable), which are not read")
        if variable.size != math.prod(variable.shape) * dtype.itemsize:
            raise self.error(
                f"gives {name!r} {variable.size} bytes, which does not fit its shape {list(variable.shape)}"
            )
        if not 0 <= variable.shard < self.n_shards:
            raise self.error(f"puts {name!r} into data file {variable.shard} of {self.n_shards}")
        path = self._shard_path(variable.shard)
        self._bytes_left[variable.shard] -= variable.size
        if variable.offset + variable.size > path.stat().st_size or self._bytes_left[variable.shard] < 0:
            raise self.error(f"puts {name!r} at bytes that {path.name} does not have, or not for itself alone")
        with path.open("rb") as file:
            file.seek(variable.offset)
            raw = bytearray(file.read(variable.size))
        if len(raw) != variable.size or _masked(self._crc32c(bytes(raw))) != variable.checksum:
            raise ValueError(f"{path}: the checksum of {name!r} is wrong; the file is damaged.")
        return (
            torch.frombuffer(raw, dtype=dtype).reshape(variable.shape)
            if raw
            else torch.empty(variable.shape, dtype=dtype)
        )

    def _checked_shards(self) -> int:
        if not isinstance(self.n_shards, int) or not 1 <= self.n_shards <= 99_999:
            raise self.error("tells no possible number of data files")
        for i in range(self.n_shards):
            if not self._shard_path(i).is_file():
                raise ValueError(f"{self._shard_path(i)} is missing; {self.index_path.name} needs it.")
        return self.n_shards

    def _shard_path(self, shard: int) -> Path:
        return self.prefix.with_name(f"{self.prefix.name}.data-{shard:05d}-of-{self.n_shards:05d}")

    def _read_entries(self) -> tuple[dict[int, list[Any]], dict[str, Variable]]:
        footer = self._index[-FOOTER_BYTES:]
        if int.from_bytes(footer[-8:], "little") != MAGIC:
            raise self.error("does not end like an index of TensorFlow's V2 checkpoints")
        filters, position = self._handle(footer, 0)
        blocks, _ = self._handle(footer, position)
        for _ in self._entries(*filters):
            raise self.error("has filters, which TensorFlow never writes")
        header: dict[int, list[Any]] = {}
        variables: dict[str, Variable] = {}
        end = 0
        for _, handle in self._entries(*blocks):
            (start, size), _ = self._handle(handle, 0)
            if start < end:
                raise self.error(f"names a block at byte {start} again or out of order; the file is damaged")
            end = start + size + 5
            for key, value in self._entries(start, size):
                if len(variables) >= MAX_ENTRIES:
                    raise self.error(f"names more than {MAX_ENTRIES} variables")
                message = self._message(value)
                if key == b"":
                    header = message
                else:
                    variables[key.decode("utf-8", "replace")] = self._variable(message)
        if not header:
            raise self.error("has no header entry")
        return header, variables

    def _handle(self, data: bytes, position: int) -> tuple[tuple[int, int], int]:
        """Gives start and size of a block, and the position after them."""
        start, position = self._varint(data, position)
        size, position = self._varint(data, position)
        return (start, size), position

    def _entries(self, start: int, size: int) -> Iterator[tuple[bytes, bytes]]:
        """Gives keys and values of one block, in ascending order of keys."""
        block = self._index[start : start + size + 5]
        if len(block) != size + 5 or size < 4:
            raise self.error(f"names a block at byte {start} that does not lie inside it")
        if block[size] != 0:
            kind = {1: "Snappy"}.get(block[size], f"method {block[size]}")
            raise self.error(
                f"has a block compressed with {kind}; TensorFlow writes them uncompressed, so it is not read"
            )
        if _masked(self._crc32c(block[: size + 1])) != int.from_bytes(block[size + 1 :], "little"):
            raise self.error(f"has a wrong checksum in the block at byte {start}; the file is damaged")
        n_restarts = int.from_bytes(block[size - 4 : size], "little")
        end = size - 4 - 4 * n_restarts
        position, key, is_first = 0, b"", True
        while position < end:
            n_shared, position = self._varint(block, position)
            n_own, position = self._varint(block, position)
            n_value, position = self._varint(block, position)
            if n_shared > len(key) or n_shared + n_own > MAX_KEY_BYTES or position + n_own + n_value > end:
                raise self.error(f"has a damaged entry in the block at byte {start}")
            following = key[:n_shared] + block[position : position + n_own]
            if following <= key and not is_first:
                raise self.error(f"has entries out of order in the block at byte {start}")
            key, is_first = following, False
            value_start = position + n_own
            position = value_start + n_value
            yield key, block[value_start:position]

    def _varint(self, data: bytes, position: int) -> tuple[int, int]:
        value = 0
        for shift in range(0, 64, 7):
            if position >= len(data):
                break
            byte = data[position]
            position += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value, position
        raise self.error("has a number without end; the file is damaged")

    def _message(self, data: bytes) -> dict[int, list[Any]]:
        """Gives the fields of a protocol buffer by their numbers: integers, or bytes that may be messages."""
        fields: dict[int, list[Any]] = {}
        position = 0
        while position < len(data):
            tag, position = self._varint(data, position)
            kind = tag & 7
            value: int | bytes
            if kind == 0:
                value, position = self._varint(data, position)
            else:
                length, position = self._varint(data, position) if kind == 2 else ({1: 8, 5: 4}.get(kind, -1), position)
                if length < 0 or position + length > len(data):
                    raise self.error("has a damaged entry")
                raw = data[position : position + length]
                value = raw if kind == 2 else int.from_bytes(raw, "little")
                position += length
            fields.setdefault(tag >> 3, []).append(value)
        return fields

    def _variable(self, message: Mapping[int, list[Any]]) -> Variable:
        shape_message = _single(message, 2, default=b"")
        if not isinstance(shape_message, bytes):
            raise self.error("has a damaged entry")
        dimensions = self._message(shape_message).get(2, [])
        if len(dimensions) > MAX_DIMENSIONS or not all(isinstance(dimension, bytes) for dimension in dimensions):
            raise self.error("has a variable with a damaged shape")
        shape = tuple(_single(self._message(dimension), 1, default=0) for dimension in dimensions)
        numbers = [_single(message, number, default=0) for number in (1, 3, 4, 5, 6)]
        if not all(isinstance(number, int) and number < 1 << 48 for number in (*numbers, *shape)):
            raise self.error("has a damaged entry")
        dtype, shard, offset, size, checksum = numbers
        return Variable(dtype, shape, shard, offset, size, checksum, is_sliced=7 in message)


def _single(message: Mapping[int, list[Any]], number: int, *, default: Any) -> Any:
    """The last value of a field, as protocol buffers have it, or its default."""
    return message[number][-1] if number in message else default


def _masked(checksum: int) -> int:
    """A checksum in the form in which LevelDB stores it, which does not disturb checksums of checksums."""
    return ((checksum >> 15 | checksum << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _checksum_function(index_path: Path) -> Any:
    try:
        import google_crc32c  # noqa: PLC0415 - only TensorFlow checkpoints need it
    except ImportError:
        raise ValueError(
            f"{index_path} is a TensorFlow checkpoint, whose checksums need the package google-crc32c: "
            'install it with pip install "transformer-xl[tensorflow-checkpoints]".'
        ) from None
    return google_crc32c.value


__all__ = ["TensorFlowFile", "Variable"]
