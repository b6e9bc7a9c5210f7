"""Segments in the order that memory needs: row b of a batch goes on where row b of the batch before ended.

A stream is endless and has a place, a small dictionary for JSON that is the same on every process: who restores it goes
on bit for bit, with as many processes as there are then. Process r of W owns rows `r B / W` to `(r + 1) B / W`.

Shapes: B batch (in all processes together), R = B / W rows of a process, C tokens of context before a segment, Q tokens
of a segment, T tokens of the text, N sentences.
"""

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

IGNORED = -100  # the target that no loss counts
TokenIds: TypeAlias = Tensor | npt.NDArray[np.integer[Any]]  # on any device, or mapped from a disk
Places: TypeAlias = npt.NDArray[np.integer[Any]]

# Varied lengths as for AWD-LSTM (Merity et al. 2018, section 5) and the authors' Penn Treebank run.
SHORT_SHARE = 0.05  # of the segments are about half as long
LENGTH_STD = 5.0  # tokens
SHORTEST = 5  # tokens
LONGEST_EXCESS = 15  # tokens, three standard deviations


class Segment(NamedTuple):
    """What a model reads in one step.

    Attributes:
        inputs: ids, int64, `[R, C + Q]`.
        targets: the tokens after them, `IGNORED` where no loss counts (context, fillers), `[R, C + Q]`.
        context_len: C, tokens that were read before and are read again with gradient; memory must end before them.
        reset: rows whose memory is of another text and must be forgotten first, bool, `[R]`; None if there is none.
    """

    inputs: Tensor
    targets: Tensor
    context_len: int
    reset: Tensor | None


class Stream(Protocol):
    """Segments without end."""

    @property
    def epochs(self) -> float:
        """How often the text was read."""

    def next_segment(self) -> Segment:
        """The next segment; the place moves on."""

    def state(self) -> dict[str, Any]:
        """The place, for JSON; the same on every process."""

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go to a place."""


def ring_segment(tokens: Tensor, *, step: int, batch_size: int, segment_len: int) -> tuple[Tensor, Tensor]:
    """The inputs and targets of one training step, from the text seen as a ring that never ends.

    Row b starts `b / B` of the way round, and each step moves all rows on by Q tokens. So memory always fits the text,
    no token is left out, segments begin elsewhere in each round, and the place in the data is `step` alone.

    Args:
        tokens: `[T]`, T > Q.
        step: steps made before, from 0.
        batch_size: B.
        segment_len: Q.

    Returns:
        Inputs and their next tokens, `[B, Q]` each, new tensors.

    Raises:
        ValueError: the text is not longer than a segment.
    """
    if len(tokens) <= segment_len:
        raise ValueError(f"segment_len={segment_len} must be less than the {len(tokens)} tokens of the text: lower it.")
    starts = torch.arange(batch_size, device=tokens.device) * len(tokens) // batch_size
    offsets = torch.arange(step * segment_len, (step + 1) * segment_len + 1, device=tokens.device)
    segment = tokens[(starts[:, None] + offsets) % len(tokens)]
    return segment[:, :-1].contiguous(), segment[:, 1:].contiguous()


def evaluation_segments(
    tokens: TokenIds, *, batch_size: int, segment_len: int, ext_len: int = 0, rank: int = 0, world_size: int = 1
) -> Iterator[tuple[Tensor, Tensor]]:
    """Inputs and targets of a whole text, each token but the first a target exactly once.

    The text is cut into B parts which overlap by one token, so the number of targets does not depend on B. Where a part
    is a token shorter than another, its last target is `IGNORED`.

    Args:
        tokens: `[T]`, T > B.
        batch_size: B, the number of parts; each part starts without memory.
        segment_len: Q; the last segment may be shorter.
        ext_len: up to so many tokens of the same part precede each segment; they are no targets again.
        rank, world_size: which process asks, of how many; all get the same number of segments.

    Yields:
        Inputs and targets, `[R, C + <= Q]` each.

    Raises:
        ValueError: the text is too short for so many parts, or they cannot be dealt to so many processes.
    """
    n_targets = len(tokens) - 1
    if not 1 <= batch_size <= n_targets:
        raise ValueError(f"batch_size={batch_size} must be from 1 to {n_targets}, the targets of the text: lower it.")
    ends = [n_targets * part // batch_size for part in range(batch_size + 1)]
    longest = max(end - start for start, end in pairwise(ends))
    own = _own_rows(batch_size, rank, world_size)
    starts, stops = np.array(ends[:-1])[own, None], np.array(ends[1:])[own, None]
    for first in range(0, longest, segment_len):
        context_len = min(ext_len, first)
        places = starts + np.arange(first - context_len, min(first + segment_len, longest))
        counts = places < stops
        inputs = _take(tokens, places, where=counts, filler=0)
        counts[:, :context_len] = False
        yield inputs, _take(tokens, places + 1, where=counts, filler=IGNORED)


def evaluation_sentences(
    tokens: TokenIds, sentences: Places, *, batch_size: int, segment_len: int, rank: int = 0, world_size: int = 1
) -> Iterator[Segment]:
    """Segments of unrelated sentences in order, each token but a sentence's first boundary a target exactly once.

    Args:
        tokens: `[T]`.
        sentences: where they begin and end, `[N + 1]`, see `PreparedCorpus.sentences`.
        batch_size: B, how many sentences are read at once.
        segment_len: Q; a longer sentence takes several segments, in which its row is not reset.
        rank, world_size: which process asks, of how many; all get the same number of segments.

    Raises:
        ValueError: the rows cannot be dealt to so many processes.
    """
    stream = SentenceStream(
        tokens,
        sentences,
        batch_size=batch_size,
        segment_len=segment_len,
        shuffle=False,
        rank=rank,
        world_size=world_size,
    )
    while stream.has_more_of_this_round():
        yield stream.next_segment()


class OrderedStream:
    """A running text, each row reading a stretch of it and going on where it ended.

    The text is a ring. Row b starts `b / B` of the way round and never stops, so its memory always fits, and no token
    is left out. Where the ring closes, the first token of the text is no target, and the row is reset at its next
    segment.

    With `roll`, rounds begin at a random place: in each, every row reads `T // B` tokens (less what does not fill a
    segment), then all rows are reset. Contexts are then cut elsewhere in every round.

    Args:
        tokens: `[T]`, T > B and T // B >= the longest segment.
        batch_size: B.
        segment_len: Q, or its usual value if lengths vary.
        roll: whether each round begins at a random place.
        varied: whether lengths vary: 95% are drawn from a normal distribution around `segment_len`, 5% around half of
            it, with standard deviation 5, from 5 to `segment_len + 15` tokens.
        ext_len: up to so many tokens of the same row precede each segment; they are no targets again.
        seed: of the random places and lengths.
        rank, world_size: which process this is, of how many.

    Raises:
        ValueError: the text is too short, or the rows cannot be dealt to so many processes.
    """

    def __init__(
        self,
        tokens: TokenIds,
        *,
        batch_size: int,
        segment_len: int,
        roll: bool = False,
        varied: bool = False,
        ext_len: int = 0,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        longest = segment_len + LONGEST_EXCESS * varied
        self._own = _own_rows(batch_size, rank, world_size)
        self._row_len = len(tokens) // batch_size
        if self._row_len < longest:
            raise ValueError(
                f"batch_size={batch_size} leaves {self._row_len} of {len(tokens)} tokens to a row, but a segment may "
                f"have {longest}: lower batch_size or segment_len."
            )
        self._tokens = tokens
        self._segment_len = segment_len
        self._roll = roll
        self._varied = varied
        self._ext_len = ext_len
        self._seed = seed
        self._identity = {"tokens": len(tokens), "batch_size": batch_size, "seed": seed, "roll": roll}
        rows = np.arange(batch_size)
        self._starts = (rows * self._row_len if roll else rows * len(tokens) // batch_size)[self._own]
        self._step = self._round = self._offset = self._last_len = 0

    def next_segment(self) -> Segment:
        """The next segment; the place moves on."""
        length = self._draw_length()
        if self._roll and self._offset + length > self._row_len:
            self._round += 1
            self._offset = self._last_len = 0
        n_tokens = len(self._tokens)
        context_len = min(self._ext_len, self._offset)
        begins = self._starts + self._shift() + self._offset
        places = (begins[:, None] + np.arange(-context_len, length)) % n_tokens
        following = (places + 1) % n_tokens
        counts = following > 0  # nothing foretells the first token of the text from the last
        counts[:, :context_len] = False
        reset = begins % n_tokens < self._last_len  # the ring closed in the segment before
        if self._roll and self._offset == 0:
            reset[:] = self._round > 0
        inputs = _take(self._tokens, places, where=None, filler=0)
        targets = _take(self._tokens, following, where=counts, filler=IGNORED)
        self._step += 1
        self._offset += length
        self._last_len = length
        return Segment(inputs, targets, context_len, torch.from_numpy(reset) if reset.any() else None)

    @property
    def epochs(self) -> float:
        """How often the text was read."""
        return self._round + self._offset / self._row_len

    def state(self) -> dict[str, Any]:
        """The place, for JSON; the same on every process."""
        place = {"step": self._step, "round": self._round, "offset": self._offset, "last_len": self._last_len}
        return {**self._identity, **place}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go to a place.

        Raises:
            ValueError: the place is one in another stream.
        """
        _check_identity(state, self._identity)
        self._step, self._round = int(state["step"]), int(state["round"])
        self._offset, self._last_len = int(state["offset"]), int(state["last_len"])

    def _shift(self) -> int:
        if not self._roll:
            return 0
        return int(np.random.default_rng((self._seed, 0, self._round)).integers(len(self._tokens)))

    def _draw_length(self) -> int:
        if not self._varied:
            return self._segment_len
        random = np.random.default_rng((self._seed, 1, self._step))
        usual = self._segment_len / 2 if random.random() < SHORT_SHARE else self._segment_len
        return min(self._segment_len + LONGEST_EXCESS, max(SHORTEST, int(random.normal(usual, LENGTH_STD))))


class SentenceStream:
    """Unrelated sentences in a random order, another one in each round.

    A row reads one sentence after the other. A sentence begins at the start of a segment, with a reset; what it leaves
    of its last segment is filled up and no target. So nothing is foretold from another sentence.

    With `packed`, sentences follow each other without gaps or resets, as in the authors' code: every place is a target,
    and memory holds sentences that have nothing to do with the next.

    Args:
        tokens: `[T]`.
        sentences: where they begin and end, `[N + 1]`, see `PreparedCorpus.sentences`.
        batch_size: B.
        segment_len: Q.
        packed: whether segments are filled with several sentences.
        shuffle: whether the order is random.
        seed: of the order.
        rank, world_size: which process this is, of how many.

    Raises:
        ValueError: there is no sentence, or the rows cannot be dealt to so many processes.
    """

    def __init__(
        self,
        tokens: TokenIds,
        sentences: Places,
        *,
        batch_size: int,
        segment_len: int,
        packed: bool = False,
        shuffle: bool = True,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if len(sentences) < 2:
            raise ValueError("sentences must mark at least one sentence: prepare the text with --line-end sentence.")
        self._own = _own_rows(batch_size, rank, world_size)
        self._tokens = tokens
        self._sentences = sentences
        self._n_sentences = len(sentences) - 1
        self._segment_len = segment_len
        self._packed = packed
        self._shuffle = shuffle
        self._seed = seed
        self._identity = {
            "tokens": len(tokens),
            "sentences": self._n_sentences,
            "batch_size": batch_size,
            "seed": seed,
            "packed": packed,
        }
        self._n_taken = 0  # sentences, by all rows
        self._places = np.zeros(batch_size, dtype=np.int64)  # of each row's next token
        self._ends = np.zeros(batch_size, dtype=np.int64)  # of each row's sentence

    def next_segment(self) -> Segment:
        """The next segment; the place moves on."""
        batch_size = len(self._places)
        places = np.zeros((batch_size, self._segment_len), dtype=np.int64)
        filled = np.zeros(batch_size, dtype=np.int64)
        reset = np.zeros(batch_size, dtype=bool)
        columns = np.arange(self._segment_len)
        while True:
            begins = (self._places == self._ends) & (filled < self._segment_len)
            taken = self._take_sentences(np.flatnonzero(begins))
            lengths = np.minimum(self._segment_len - filled, self._ends - self._places)
            new = (columns >= filled[:, None]) & (columns < (filled + lengths)[:, None])
            places = np.where(new, self._places[:, None] + columns - filled[:, None], places)
            self._places += lengths
            filled += lengths
            if not self._packed:
                reset[taken] = True
                break
            if (filled == self._segment_len).all():
                break
        counts = (columns < filled[:, None])[self._own]
        inputs = _take(self._tokens, places[self._own], where=counts, filler=0)
        targets = _take(self._tokens, places[self._own] + 1, where=counts, filler=IGNORED)
        reset = reset[self._own]
        return Segment(inputs, targets, 0, torch.from_numpy(reset) if reset.any() else None)

    @property
    def epochs(self) -> float:
        """How often the text was read, counting sentences that were begun."""
        return self._n_taken / self._n_sentences

    def has_more_of_this_round(self) -> bool:
        """Whether a sentence of the first round, which without shuffling is the only one, is not read to its end."""
        return self._n_taken < self._n_sentences or bool((self._places < self._ends).any())

    def state(self) -> dict[str, Any]:
        """The place, for JSON; the same on every process."""
        return {
            **self._identity,
            "taken": self._n_taken,
            "places": self._places.tolist(),
            "ends": self._ends.tolist(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go to a place.

        Raises:
            ValueError: the place is one in another stream.
        """
        _check_identity(state, self._identity)
        self._n_taken = int(state["taken"])
        self._places = np.array(state["places"], dtype=np.int64)
        self._ends = np.array(state["ends"], dtype=np.int64)

    def _take_sentences(self, rows: Places) -> Places:
        """Deal the next sentences to the rows in order, and give the rows that got one: without shuffling they end."""
        if not self._shuffle:
            rows = rows[: self._n_sentences - self._n_taken]
        numbers = np.arange(self._n_taken, self._n_taken + len(rows))
        self._n_taken += len(numbers)
        chosen = numbers % self._n_sentences
        if self._shuffle:
            rounds = numbers // self._n_sentences
            for number in np.unique(rounds):
                in_round = rounds == number
                chosen[in_round] = shuffled(chosen[in_round], self._n_sentences, (self._seed, int(number)))
        self._places[rows] = self._sentences[chosen]
        self._ends[rows] = self._sentences[chosen + 1]
        return rows


def shuffled(indices: npt.NDArray[np.int64], n: int, seed: tuple[int, ...]) -> npt.NDArray[np.int64]:
    """Where a random order of `n` things puts each of the indices, without making the order of all.

    A Feistel network is a bijection of the numbers with an even number of bits; what falls outside of `n` goes through
    it again until it falls inside (Black and Rogaway 2002, "Ciphers with arbitrary finite domains").

    Args:
        indices: from 0 to `n - 1`.
        n: how many things there are.
        seed: other seeds give other orders.
    """
    half = np.uint64(max(1, ((n - 1).bit_length() + 1) // 2))
    mask = (np.uint64(1) << half) - np.uint64(1)
    keys = np.random.SeedSequence(seed).generate_state(8, np.uint64)
    result = indices.astype(np.uint64)
    outside = np.ones(len(result), dtype=bool)
    while outside.any():
        left, right = result[outside] >> half, result[outside] & mask
        for key in keys:
            left, right = right, left ^ (_mixed(right ^ key) & mask)
        result[outside] = left << half | right
        outside = result >= n
    return result.astype(np.int64)


def _mixed(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Every bit of the result depends on every bit of `x` (the finaliser of SplitMix64, Steele et al. 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _own_rows(batch_size: int, rank: int, world_size: int) -> slice:
    """The rows of a process."""
    if batch_size < 1 or batch_size % world_size:
        raise ValueError(
            f"batch_size={batch_size} must be a multiple of {world_size}, the number of processes: change one of them."
        )
    n_rows = batch_size // world_size
    return slice(rank * n_rows, (rank + 1) * n_rows)


def _check_identity(state: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
    for name, value in identity.items():
        if state.get(name) != value:
            raise ValueError(
                f"The saved place is in a stream with {name}={state.get(name)!r}, this one has {value!r}: resume with "
                "the same data and options."
            )


def _take(tokens: TokenIds, places: Places, *, where: npt.NDArray[np.bool_] | None, filler: int) -> Tensor:
    """The tokens at some places, `filler` elsewhere, int64; on the device of `tokens`."""
    if where is not None:
        places = np.where(where, places, 0)
    if isinstance(tokens, Tensor):
        taken = tokens[torch.from_numpy(places).to(tokens.device)].long()
    else:
        taken = torch.from_numpy(tokens[places].astype(np.int64))
    return taken if where is None else taken.masked_fill(torch.from_numpy(~where).to(taken.device), filler)


__all__ = [
    "IGNORED",
    "OrderedStream",
    "Segment",
    "SentenceStream",
    "Stream",
    "TokenIds",
    "evaluation_segments",
    "evaluation_sentences",
    "ring_segment",
    "shuffled",
]
