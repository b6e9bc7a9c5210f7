"""Words between white space to ids, many at once: the look-ups of a dictionary as operations on arrays.

`str.split` and a look-up for each word take about 350 ns a word, whatever else is done. Here words stay bytes of the
UTF-8 text. A lane is 8 of them read as one integer; in the last lane of a word, those behind its end become 0xFF, which
UTF-8 never holds. So words are equal where their lanes are. Words of as many lanes share a hash table with linear
probing; those of more than `MAX_LANES`, and those that find no place, are left to a dictionary.

Shapes: W words, L lanes of a word, S slots of a hash table (a power of 2), T bytes of the text.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

ABSENT = -1
_UNDECIDED = -2
LANE_BYTES = 8
MAX_LANES = 4
SLOTS_PER_WORD = 3  # at least; most words then lie in their first slot
MAX_PROBES = 16  # slots in a row in which a word may lie
_HASH_FACTOR = np.uint64(0x9E37_79B9_7F4A_7C15)  # 2**64 by the golden ratio; spreads all bits into the upper ones
_EMPTY = np.uint64(0xFFFF_FFFF_FFFF_FFFF)
# What `str.split` splits at beyond ASCII, by the length in UTF-8.
_WIDE_SPACES = {
    2: "\x85\xa0",
    3: "\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000",
}


class WordLookup:
    """The ids of a vocabulary, for all words of a text at once.

    Args:
        ids: from word to id, 0 or more. What `str.split` would not give as one word is left out: no text has it.
    """

    def __init__(self, ids: Mapping[str, int]) -> None:
        words = _Words(" ".join(ids))
        if len(words) < len(ids) or words.n_spaces >= len(ids) > 0:  # some are empty or hold white space
            ids = {word: ids[word] for word in ids if word.split() == [word]}
            words = _Words(" ".join(ids))
        values = np.fromiter(ids.values(), dtype=np.int64, count=len(ids))
        self._tables: list[_HashTable] = []
        self._rest: dict[bytes, int] = {}
        rest = [np.flatnonzero(words.n_lanes > MAX_LANES)]
        for n_lanes in range(1, MAX_LANES + 1):
            chosen = np.flatnonzero(words.n_lanes == n_lanes)
            table = _HashTable(words.lanes(chosen, n_lanes), values[chosen])
            self._tables.append(table)
            rest.append(chosen[table.displaced])
        for place in np.concatenate(rest).tolist():
            self._rest[words[place]] = int(values[place])

    def find(self, text: str) -> Array:
        """The ids of the words of a text, int64 `[W]`; `ABSENT` where the vocabulary lacks the word."""
        words = _Words(text)
        # The first lane of longer words is looked up as well: that costs less than to leave them out.
        ids = self._tables[0].find(words.lanes(slice(None), 1))
        longer = np.flatnonzero(words.n_bytes > LANE_BYTES)
        ids[longer] = _UNDECIDED
        n_lanes = words.n_lanes[longer]
        for n, table in enumerate(self._tables[1:], start=2):
            chosen = longer[n_lanes == n]
            ids[chosen] = table.find(words.lanes(chosen, n))
        for place in np.flatnonzero(ids == _UNDECIDED).tolist():
            ids[place] = self._rest.get(words[place], ABSENT)
        return ids


class _Words:
    """Where the words of a text are.

    Attributes:
        n_bytes: of each word, `[W]`.
        n_lanes: of each word, `[W]`.
        n_spaces: bytes of white space.
    """

    def __init__(self, text: str) -> None:
        self._text = (text + " " * LANE_BYTES).encode("utf-8", "surrogatepass")
        data = np.frombuffer(self._text, dtype=np.uint8)  # [T]
        # A view of the 8 bytes from each byte on, as an integer in the byte order of the machine.
        self._windows = np.ndarray(len(data) - LANE_BYTES + 1, np.uint64, self._text, strides=(1,))
        # Unsigned differences wrap around: \t to \r, then \x1c to the space.
        is_space = (data - np.uint8(9) < 5) | (data - np.uint8(28) < 5)  # [T]
        if not text.isascii():
            self._mark_wide_spaces(data, is_space)
        self.n_spaces = np.count_nonzero(is_space) - LANE_BYTES
        edges = np.flatnonzero(np.diff(is_space, prepend=True))  # a start, an end, a start, ...
        self._starts = edges[::2]
        self.n_bytes = edges[1::2] - self._starts

    def _mark_wide_spaces(self, data: Array, is_space: Array) -> None:
        for n_bytes, characters in _WIDE_SPACES.items():
            lanes = _lanes_of([character.encode() for character in characters])
            is_lead = data == 0xC2 if n_bytes == 2 else data - np.uint8(0xE1) < 3
            places = np.flatnonzero(is_lead)
            places = places[np.isin(self._windows[places] | _AFTER_END[n_bytes], lanes)]
            for k in range(n_bytes):
                is_space[places + k] = True

    @property
    def n_lanes(self) -> Array:
        return (self.n_bytes + (LANE_BYTES - 1)) // LANE_BYTES

    def lanes(self, chosen: Array | slice, n_lanes: int) -> list[Array]:
        """The first `n_lanes` lanes of the chosen words, of which the last ends with the word or before: L of `[W]`."""
        starts = self._starts[chosen]
        lanes = [self._windows[starts + LANE_BYTES * lane if lane else starts] for lane in range(n_lanes)]
        lanes[-1] |= _AFTER_END[np.minimum(self.n_bytes[chosen] - LANE_BYTES * (n_lanes - 1), LANE_BYTES)]
        return lanes

    def __len__(self) -> int:
        return len(self.n_bytes)

    def __getitem__(self, place: int) -> bytes:
        start = self._starts[place]
        return self._text[start : start + self.n_bytes[place]]


class _HashTable:
    """From lanes to an id, for words of as many lanes each.

    Args:
        lanes: L of `[W]`.
        ids: `[W]`. Where two words want the same slot, the first gets it, so the most frequent should come first.

    Attributes:
        displaced: indices of words that found no place.
    """

    def __init__(self, lanes: list[Array], ids: Array) -> None:
        n_slots = 1 << (SLOTS_PER_WORD * len(ids)).bit_length()
        self._mask = n_slots - 1
        self._shift = np.uint64(64 - self._mask.bit_length())
        owner = np.full(n_slots, ABSENT)
        left, slots = np.arange(len(ids)), self._first_slots(lanes)
        for _ in range(MAX_PROBES):
            free = np.flatnonzero(owner[slots] == ABSENT)[::-1]
            owner[slots[free]] = left[free]  # of several words for a slot, NumPy lets the last one stay
            is_left = owner[slots] != left
            left, slots = left[is_left], (slots[is_left] + 1) & self._mask
        self.displaced = left
        is_taken = owner != ABSENT
        self._ids = np.full(n_slots, ABSENT)
        self._ids[is_taken] = ids[owner[is_taken]]
        self._lanes = [np.full(n_slots, _EMPTY) for _ in lanes]
        for stored, lane in zip(self._lanes, lanes, strict=True):
            stored[is_taken] = lane[owner[is_taken]]

    def find(self, lanes: list[Array]) -> Array:
        """The ids of words by their lanes, `[W]`; `ABSENT`, or `_UNDECIDED` if it may have been displaced."""
        slots = self._first_slots(lanes)
        ids = self._ids[slots]
        wrong = self._differing(lanes, slots)
        for _ in range(MAX_PROBES - 1):
            wrong = wrong[ids[wrong] != ABSENT]
            if not len(wrong):
                return ids
            slots[wrong] = next_slots = (slots[wrong] + 1) & self._mask
            ids[wrong] = self._ids[next_slots]
            wrong = wrong[self._differing([lane[wrong] for lane in lanes], next_slots)]
        ids[wrong[ids[wrong] != ABSENT]] = _UNDECIDED
        return ids

    def _first_slots(self, lanes: list[Array]) -> Array:
        hashes = lanes[0] * _HASH_FACTOR
        for lane in lanes[1:]:
            hashes = (hashes ^ (hashes >> np.uint64(32)) ^ lane) * _HASH_FACTOR
        return (hashes >> self._shift).view(np.int64)

    def _differing(self, lanes: list[Array], slots: Array) -> Array:
        """Indices of the words that are not in these slots."""
        differs = self._lanes[0][slots] != lanes[0]
        for stored, lane in zip(self._lanes[1:], lanes[1:], strict=True):
            differs |= stored[slots] != lane
        return np.flatnonzero(differs)


def _lanes_of(words: list[bytes]) -> Array:
    """The lanes of words of up to 8 bytes, `[W]`."""
    return np.frombuffer(b"".join(word.ljust(LANE_BYTES, b"\xff") for word in words), dtype=np.uint64)


_AFTER_END = _lanes_of([b"\x00" * n_bytes for n_bytes in range(LANE_BYTES + 1)])  # what to set behind so many bytes

__all__ = ["ABSENT", "WordLookup"]
