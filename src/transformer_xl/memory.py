"""Segment-level recurrence (Dai et al. 2019, section 3.2): what each layer keeps of the past.

Two states, one meaning. Training carries `mems`, the last inputs of each layer, because gradients must reach the key
and value weights through them. Inference carries a `TransfoXLCache`: the keys and values that those inputs would give,
and the projected distance embeddings, so that a new token needs no projection of the past.

Shapes: B batch, Q queries, M memory, K = M + Q keys, N heads, H head size, D model size.
"""

from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from .attention import DistanceTerms
from .configuration import TransfoXLConfig


def empty_mems(config: TransfoXLConfig, batch_size: int, *, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """Memory before the first segment: `n_layer` zero tensors `[M, B, D]`; M is 0 if `initial_memory="empty"`."""
    length = config.mem_len if config.initial_memory == "zeros" else 0
    shape = (length, batch_size, config.d_model)
    return [torch.zeros(shape, dtype=dtype, device=device) for _ in range(config.n_layer)]


def reset_mems(mems: Sequence[Tensor], mask: Tensor) -> list[Tensor]:
    """Forget the rows where `mask [B]` is True: new tensors whose slots of those rows are zero vectors.

    With `initial_memory="empty"` zero vectors are not yet "nothing": there, also pass the model an `attention_mask`
    that is 0 for the forgotten tokens, or use a `TransfoXLCache` and its `reset_rows`.

    Raises:
        ValueError: `mask` is not a bool tensor with one value a row.
    """
    _check_row_mask(mask, mems[0].shape[1])
    return [mem.masked_fill(mask.to(mem.device)[None, :, None], 0) for mem in mems]


def check_mems(mems: Any, config: TransfoXLConfig, *, batch_size: int, dtype: torch.dtype | None) -> None:
    """Refuse memories that do not fit the model and the batch, with a one-line `ValueError` or `TypeError`.

    Args:
        mems: what the caller passed.
        config: the model's.
        batch_size: B of the inputs.
        dtype: dtype the model computes in; None if any floating dtype will do (autocast).
    """
    if not isinstance(mems, list | tuple) or not all(isinstance(mem, Tensor) for mem in mems):
        raise TypeError(
            f"mems is {_describe(mems)} but must be a list of {config.n_layer} tensors: pass `mems` of the last output."
        )
    if len(mems) != config.n_layer:
        raise ValueError(
            f"mems has {len(mems)} tensors but must have n_layer={config.n_layer}: pass `mems` of the last output."
        )
    for i, mem in enumerate(mems):
        expected = f"[M <= {config.mem_len}, batch {batch_size}, d_model {config.d_model}]"
        if mem.dim() != 3 or mem.shape[1:] != (batch_size, config.d_model):
            raise ValueError(
                f"mems[{i}] has shape {list(mem.shape)} but must be {expected}: "
                "memory belongs to the rows it came from; start with mems=None or model.init_mems(batch_size)."
            )
        if mem.shape[0] > config.mem_len:
            raise ValueError(
                f"mems[{i}] has length {mem.shape[0]} but mem_len={config.mem_len} is the longest: "
                "cut it with mem[-mem_len:] or raise mem_len with model.reset_memory_length."
            )
        if mem.shape[0] != mems[0].shape[0]:
            raise ValueError(
                f"mems[{i}] has length {mem.shape[0]} but must have that of mems[0], {mems[0].shape[0]}: "
                "pass `mems` of the last output."
            )
        if not mem.is_floating_point() or (dtype is not None and mem.dtype != dtype):
            raise TypeError(
                f"mems[{i}] is {mem.dtype} but the model computes in {dtype or 'a floating dtype'}: "
                "convert with [mem.to(model.dtype) for mem in mems]."
            )


class MemoryLayer(CacheLayerMixin):
    """Keys and values of the last `mem_len` positions of one layer.

    For single tokens (`append`) they lie in a ring of as many slots as a token sees, where it takes the place of the
    oldest one. Segments want to see them in order: they lie in buffers with some free slots at the end, which short
    segments get when the first of them finds no room. New positions are written there; when they are full, the last
    `mem_len` move to the front. With an eighth of `mem_len` free, a position costs about eight slots moved, whatever
    the memory's length; calls of a known length find room for two of them. Which numbers lie side by side is what the
    products ask for (docs/performance.md): all slots of a feature for keys, and for values in a ring; all features of a
    slot for values that segments read. A ring is in float32 or better, as single tokens read half precision slower.

    Args:
        mem_len: M at most.
        span: number of keys that a query may see at most, itself included, `mem_len` or one more; None for all.
        call_len: the length that most calls will have; 0 if nobody knows.

    Attributes:
        keys: the buffer, `[B, N, slots, H]`.
        values: likewise.
        distance: distance terms of this layer, computed once for the longest call so far; None before.
    """

    is_sliding = True

    def __init__(self, mem_len: int, *, span: int | None = None, call_len: int = 0) -> None:
        super().__init__()
        self.mem_len = mem_len
        self._n_in_ring = mem_len + 1 if span is None else span
        self._n_free = max(mem_len // 8, 16, 2 * call_len)
        self._n_at_start = mem_len + self._n_free if call_len else self._n_in_ring
        self.reset()

    def reset(self) -> None:
        """Forget everything, the batch size included."""
        self.is_initialized = False
        self.distance: DistanceTerms | None = None
        self.keys = self.values = torch.empty(0, 0, 0, 0)
        self._is_ring = False  # then position p is in slot p % slots
        self._start = self._end = 0  # positions that the next call will see

    def start(self, empty_key: Tensor, empty_value: Tensor, *, batch_size: int, length: int) -> None:
        """Begin with `length` slots that hold `empty_key` and `empty_value`, `[N, H]` each."""
        self._empty = (empty_key, empty_value)
        self.keys = empty_key[None, :, :, None].repeat(batch_size, 1, 1, self._n_at_start).mT
        self.values = empty_value[None, :, None].repeat(batch_size, 1, self._n_at_start, 1)
        self._is_ring = False
        self._start, self._end = 0, length
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Begin with no memory, for keys and values of the given sizes."""
        empty_key, empty_value = (
            key_states.new_zeros(key_states.shape[1::2]),
            value_states.new_zeros(value_states.shape[1::2]),
        )
        self.start(empty_key, empty_value, batch_size=key_states.shape[0], length=0)

    @property
    def dtype(self) -> torch.dtype:
        """What keys and values come in."""
        return self._empty[0].dtype

    @property
    def length(self) -> int:
        """M, the slots that the next call will see before its own."""
        return self._end - self._start

    def update(
        self,
        key_states: Tensor,
        value_states: Tensor,
        *args: Any,
        order: Callable[..., Tensor] | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor]:
        """Append the segment and give all keys and values that it may see.

        Args:
            key_states: `[B, N, Q, H]`. value_states: likewise.
            order: rearranges the slots of the result (dim 2) before the last ones are kept; None leaves them.

        Returns:
            Keys and values `[B, N, M + Q, H]`; without gradients and `order`, views that the next call may overwrite.
        """
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        n_new, n_slots = key_states.shape[-2], self.keys.shape[2]
        has_no_room = self._end + n_new > n_slots and n_new <= self._n_free and n_slots < self.mem_len + self._n_free
        if self._is_ring or has_no_room:
            self._lay_out(is_ring=False)
        fits = self.length + n_new <= self.keys.shape[2]
        if torch.is_grad_enabled() or order is not None or not fits:
            # The buffers hold no history: gradients end where memory begins.
            seen = [
                torch.cat([buffer[:, :, self._start : self._end], new], dim=2)
                for buffer, new in ((self.keys, key_states), (self.values, value_states))
            ]
            if order is not None:
                seen = [order(states, dim=2) for states in seen]
            self._keep_last(seen)
            return seen[0], seen[1]
        self._make_room(n_new)
        start, end = self._advance(n_new)
        self.keys[:, :, end - n_new : end] = key_states
        self.values[:, :, end - n_new : end] = value_states
        return self.keys[:, :, start:end], self.values[:, :, start:end]

    def append(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, int]:
        """What `update` does for one token of each row, without gradients and quicker.

        Args:
            key: `[B, N, H]`.
            value: likewise.

        Returns:
            Keys and values that it sees, `[B*N, H, seen]`, views that the next call may overwrite; and which of them is
            the oldest: the ones after it follow in order, then those from the first on.
        """
        if not self._is_ring:
            self._lay_out(is_ring=True)
        slot = self._end % self._n_in_ring
        self._advance(1)
        n_seen = min(self._end, self._n_in_ring)
        seen = []
        for buffer, new in ((self.keys, key), (self.values, value)):
            buffer.select(2, slot).copy_(new)
            seen.append(buffer.mT.flatten(0, 1).narrow(2, 0, n_seen))
        return seen[0], seen[1], (slot + 1) % n_seen

    def _lay_out(self, *, is_ring: bool) -> None:
        """Put the memory into buffers as single tokens (a ring) or segments read it, the oldest position first."""
        length, n_slots = self.length, self._n_in_ring if is_ring else self.mem_len + self._n_free
        dtype = torch.promote_types(self.dtype, torch.float32) if is_ring else self.dtype
        if self._is_ring or self._start or self.keys.shape[2] != n_slots or self.keys.dtype != dtype:
            keys, self.keys = self._in_order(self.keys), _empty_slots(self.keys, n_slots, dtype, by_feature=True)
            self.keys[:, :, :length] = keys
        values, self.values = self._in_order(self.values), _empty_slots(self.values, n_slots, dtype, by_feature=is_ring)
        self.values[:, :, :length] = values
        self.distance = None if self.distance is None else self.distance.to(dtype)
        self._is_ring = is_ring
        self._start, self._end = 0, length

    def _in_order(self, buffer: Tensor) -> Tensor:
        """The slots that the next call will see, `[B, N, M, H]`, the oldest first."""
        n_slots = buffer.shape[2]
        start = self._start % n_slots
        end = start + self.length
        if end <= n_slots:
            return buffer[:, :, start:end]
        return torch.cat([buffer[:, :, start:], buffer[:, :, : end - n_slots]], dim=2)

    def _make_room(self, n_new: int) -> None:
        """Move the memory to the front where `n_new` slots, which must fit, have none after it."""
        if self._end + n_new <= self.keys.shape[2]:
            return
        length, distance = self.length, self._start
        at_once = max(distance, -(-length // 8))
        for buffer in (self.keys, self.values):
            for at in range(0, length, at_once):
                n = min(at_once, length - at)
                moved = buffer.narrow(2, at + distance, n)
                buffer.narrow(2, at, n).copy_(moved if n <= distance else moved.clone())
        self._start, self._end = 0, length

    def _advance(self, n_new: int) -> tuple[int, int]:
        """Count `n_new` positions; those that they see, they included, are between the two that it gives."""
        start, end = self._start, self._end + n_new
        self._start, self._end = max(start, end - self.mem_len), end
        return start, end

    def _keep_last(self, seen: list[Tensor]) -> None:
        kept = min(self.mem_len, seen[0].shape[-2])
        # New buffers: autograd may still need the old ones.
        self.keys, self.values = torch.empty_like(self.keys), torch.empty_like(self.values)
        for buffer, new in zip((self.keys, self.values), seen, strict=True):
            buffer[:, :, :kept] = new[:, :, -kept:].detach()
        self._start, self._end = 0, kept

    def reset_rows(self, mask: Tensor) -> None:
        """Make the slots of the rows where `mask [B]` is True empty."""
        is_forgotten = mask.to(self.keys.device)[:, None, None, None]
        for buffer, empty in zip((self.keys, self.values), self._empty, strict=True):
            buffer.copy_(torch.where(is_forgotten, empty[None, :, None], buffer))

    def map_rows(self, take: Callable[[Tensor], Tensor]) -> None:
        """Replace the buffers by `take` of them, which selects or repeats rows (dim 0)."""
        self.keys = take(self.keys.mT).mT
        self.values = take(self.values.mT).mT if self._is_ring else take(self.values)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> None:
        """Move and convert everything that is held."""
        if self._is_ring:
            self._lay_out(is_ring=False)
        self.keys, self.values = (buffer.to(device=device, dtype=dtype) for buffer in (self.keys, self.values))
        empty_key, empty_value = (empty.to(device=device, dtype=dtype) for empty in self._empty)
        self._empty = (empty_key, empty_value)
        self.distance = None

    def get_seq_length(self) -> int:
        """Slots in use; the tokens seen are the cache's to count."""
        return self.length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Number of keys that a call of `query_length` tokens sees, and the offset of the first, 0."""
        return self.length + query_length, 0

    def get_max_length(self) -> int:
        """Slots at most, `mem_len`."""
        return self.mem_len

    get_max_cache_shape = get_max_length  # its name before transformers 5.17


class TransfoXLCache(Cache):
    """Memory for inference: per layer the projected keys and values of the last `mem_len` positions.

    Made by the model when `use_cache=True`, given back as `past_key_values`, and passed in again for the next segment,
    which changes it in place. Its numbers hold for the weights that made it.

    Args:
        config: the model's.
        segment_len: a call of more tokens gives the numbers of several calls of so many, in one computation: in each
            layer the memory of a segment is what the layer below gave of the segments before, which are there. None for
            calls that are one segment each, however long.
        n_segments: how many of them a call will have; there is room for so many.

    Raises:
        ValueError: `config.mem_len` is 0: there is nothing to keep; `segment_len` or `n_segments` is not positive.
    """

    def __init__(self, config: TransfoXLConfig, *, segment_len: int | None = None, n_segments: int = 1) -> None:
        if config.mem_len == 0:
            raise ValueError(
                "mem_len=0 must be positive for a TransfoXLCache: without memory there is nothing to keep."
            )
        for name, value in (("segment_len", segment_len), ("n_segments", n_segments)):
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} must be at least 1.")
        call_len = 0 if segment_len is None else segment_len * n_segments
        layers = [MemoryLayer(config.mem_len, span=config.span, call_len=call_len) for _ in range(config.n_layer)]
        super().__init__(layers=layers)
        self.mem_len = config.mem_len
        self.span = config.span
        self.segment_len = segment_len
        self.reset()

    def reset(self) -> None:
        """Forget everything; the next call may have another batch size."""
        for layer in self.layers:
            layer.reset()
        self.token_step: Any = None  # what the model computes single tokens with (stepping.py)
        self.row_lengths: Tensor | None = None
        self.has_uneven_rows = False  # whether rows may hold different numbers of real tokens
        self._n_seen = 0

    @property
    def batch_size(self) -> int | None:
        """B, or None before the first call."""
        return None if self.row_lengths is None else self.row_lengths.shape[0]

    @property
    def memory_len(self) -> int:
        """M, the slots that the next call will see before its own."""
        return int(self.layers[0].length)

    def begin(self, row_lengths: Tensor, *, is_uneven: bool) -> None:
        """Start to count real tokens, `[B]` int64 (what each row's memory holds so far)."""
        self.row_lengths = row_lengths
        self.has_uneven_rows = is_uneven

    def advance(self, n_real: Tensor | None, q_len: int) -> None:
        """Count a segment of `q_len` tokens, `n_real [B]` of which are no padding; None for all."""
        assert self.row_lengths is not None  # `begin` comes first
        self.row_lengths = self.row_lengths + (q_len if n_real is None else n_real)
        self.has_uneven_rows |= n_real is not None
        self._n_seen += q_len

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens that have passed through, padding included (not slots: those end at `mem_len`)."""
        return self._n_seen

    def reset_rows(self, mask: Tensor) -> None:
        """Forget the rows where `mask [B]` is True, as if they had just started.

        Raises:
            ValueError: `mask` is not a bool tensor with one value a row.
        """
        if self.row_lengths is None:
            return
        _check_row_mask(mask, self.row_lengths.shape[0])
        self.row_lengths = self.row_lengths.masked_fill(mask.to(self.row_lengths.device), 0)
        self.has_uneven_rows = True
        for layer in self.layers:
            layer.reset_rows(mask)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Row b becomes what row `beam_idx[b]` was."""
        self._map_rows(lambda rows: rows.index_select(0, beam_idx.to(rows.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Each row becomes `repeats` rows."""
        self._map_rows(lambda rows: rows.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the rows `indices` alone."""
        self._map_rows(lambda rows: rows[indices.to(rows.device)])

    def _map_rows(self, take: Callable[[Tensor], Tensor]) -> None:
        if self.row_lengths is None:
            return
        self.row_lengths = take(self.row_lengths)
        for layer in self.layers:
            layer.map_rows(take)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "TransfoXLCache":
        """Move to a device or convert to a dtype, in place; gives itself."""
        if self.row_lengths is not None:
            self.row_lengths = self.row_lengths.to(device=device)
            for layer in self.layers:
                layer.to(device=device, dtype=dtype)
        return self

    def crop(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused: what has left the memory cannot come back."""
        raise ValueError(
            "TransfoXLCache cannot be cropped: tokens that left the memory cannot come back, so this model can take no "
            "part in assisted generation. Copy the cache before the tokens instead."
        )


def _empty_slots(buffer: Tensor, n_slots: int, dtype: torch.dtype, *, by_feature: bool) -> Tensor:
    """Another buffer, `[B, N, n_slots, H]`, with all slots of a feature side by side, or all features of a slot."""
    n_batch, n_head, _, size = buffer.shape
    if by_feature:
        return buffer.new_empty(n_batch, n_head, size, n_slots, dtype=dtype).mT
    return buffer.new_empty(n_batch, n_head, n_slots, size, dtype=dtype)


def _check_row_mask(mask: Tensor, batch_size: int) -> None:
    if mask.dtype != torch.bool or mask.shape != (batch_size,):
        raise ValueError(
            f"mask is {mask.dtype} of shape {list(mask.shape)} but must be torch.bool of shape [{batch_size}]: "
            "True for each row to forget."
        )


def _describe(value: object) -> str:
    if isinstance(value, list | tuple):
        return f"a {type(value).__name__} holding {', '.join(sorted({type(item).__name__ for item in value}))}"
    return f"a {type(value).__name__}"


__all__ = ["MemoryLayer", "TransfoXLCache", "check_mems", "empty_mems", "reset_mems"]
