"""Token arrays: `.npy` files written from front to back, a shard at a time.

Shapes: T tokens of a split, V vocabulary, N sentences.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from .encoding import Array, Shard, load_facts, load_shard, occurrences, smallest_type
from .prepared import sentences_file, tokens_file
from .sources import TextError, file_sha256


@contextmanager
def array_file(path: Path, dtype: np.dtype[Any], length: int) -> Iterator[IO[bytes]]:
    """A one-dimensional `.npy` file whose `length` elements are to be written in the block.

    Not a memory map: on a full disk a write to one kills the process, where a write to a file raises an error.
    """
    with path.open("wb") as file:
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (length,)}
        np.lib.format.write_array_header_1_0(file, header)
        begin = file.tell()
        yield file
        assert file.tell() - begin == length * dtype.itemsize


@dataclass(frozen=True)
class SplitWriter:
    """Writes the arrays of a split.

    Attributes:
        ids: the id of each word.
        unk_id: stands for other words; None if nothing does.
        boundary: the token between sentences; None if there are no sentences.
        counts: `[V]`, where occurrences are added; None counts nothing.
    """

    ids: Mapping[str, int]
    unk_id: int | None
    boundary: str | None
    counts: Array | None

    def write(
        self, folder: Path, split: str, shards: Sequence[tuple[str, Path]], report: Callable[[int], None]
    ) -> dict[str, Any]:
        """Write the arrays; gives what `meta.json` says of the split.

        With sentences, a boundary stands before the first one and after each, and a second array `[N + 1]` has the
        places of all boundaries.

        Args:
            folder: where to.
            split: its name.
            shards: name of the source, and path, of each shard in order.
            report: called with the size of each shard that was done.

        Raises:
            TextError: there is no text, or a word that the vocabulary does not know and nothing stands for.
        """
        facts = [load_facts(path) for _, path in shards]
        n_boundaries = 0 if self.boundary is None else sum(occurrences(path, self.boundary) for _, path in shards)
        n_tokens = sum(fact.tokens for fact in facts)
        if n_tokens == 0:
            raise TextError(f"The split {split!r} has no text: give files that hold some, or leave it out.")
        n_first = 0 if self.boundary is None else 1
        dtype, path = smallest_type(max(self.ids.values()) + 1), folder / tokens_file(split)
        places_type = smallest_type(n_tokens + n_first)
        n_unknown = written = 0
        places_path = folder / sentences_file(split)
        with (
            array_file(path, dtype, n_tokens + n_first) as file,
            array_file(places_path, places_type, n_boundaries + n_first) as places_file,
        ):
            for tokens in self._parts(shards, dtype, report):
                file.write(tokens.data)
                n_unknown += 0 if self.unk_id is None else int(np.count_nonzero(tokens == self.unk_id))
                if self.counts is not None:
                    self.counts[:] += np.bincount(tokens, minlength=len(self.counts))
                if self.boundary is not None:
                    places = np.flatnonzero(tokens == self.ids[self.boundary]) + written
                    places_file.write(places.astype(places_type).data)
                written += len(tokens)
        if self.boundary is None:
            places_path.unlink()
        return {
            "tokens": written,
            "unknown": n_unknown,
            "sentences": n_boundaries,
            "lines": sum(fact.lines for fact in facts),
            "characters": sum(fact.characters for fact in facts),
            "bytes": sum(fact.end - fact.start for fact in facts),
            "dtype": str(dtype),
            "sha256": file_sha256(path),
        }

    def _parts(
        self, shards: Sequence[tuple[str, Path]], dtype: np.dtype[Any], report: Callable[[int], None]
    ) -> Iterator[Array]:
        """The ids of all tokens in order, `[some]` each."""
        if self.boundary is not None:
            yield np.array([self.ids[self.boundary]], dtype=dtype)
        for source, path in shards:
            shard = load_shard(path)
            yield self._ids_of(shard, source, dtype)[shard.numbers]
            report(path.stat().st_size)

    def _ids_of(self, shard: Shard, source: str, dtype: np.dtype[Any]) -> Array:
        """The id of each symbol of a shard."""
        ids = [self.ids.get(symbol, self.unk_id) for symbol in shard.symbols]
        if None in ids:
            symbol = shard.symbols[ids.index(None)]
            raise TextError(
                f"{source}: {symbol!r} is not in the vocabulary, which has no token for unknown ones: leave it out of "
                "the text, or use a vocabulary that has it or <unk>."
            )
        return np.array(ids, dtype=dtype)


__all__ = ["SplitWriter", "array_file"]
