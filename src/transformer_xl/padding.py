"""Padded batches: each row is computed as if it stood alone.

A row is laid out in one order whichever side its padding was on: empty slots, memory, real tokens, aligned to the end.
So distances are those of the row alone.

Shapes: B batch, Q queries, M memory, K = M + Q keys, N heads, D model size.
"""

import torch
from torch import Tensor


def split_mask(attention_mask: Tensor | None, *, batch_size: int, q_len: int) -> tuple[Tensor | None, Tensor | None]:
    """The bool masks of this segment, `[B, Q]`, and of the past, `[B, P]`; None for all real.

    Raises:
        ValueError: the shape is neither `[B, Q]` nor `[B, P + Q]`.
    """
    if attention_mask is None:
        return None, None
    if attention_mask.dim() != 2 or attention_mask.shape[0] != batch_size or attention_mask.shape[1] < q_len:
        raise ValueError(
            f"attention_mask has shape {list(attention_mask.shape)} but must be [{batch_size}, {q_len}], one value "
            f"a token, or [{batch_size}, past + {q_len}]."
        )
    mask = attention_mask != 0
    past = mask[:, :-q_len]
    return mask[:, -q_len:], past if past.shape[1] else None


class RowAlignment:
    """The order in which a padded batch is computed, and the way back.

    Every row is laid out as: slots that hold nothing, memory, real tokens in order. So the distance between two tokens,
    or a token and memory, is the same as if the row stood alone, whichever side the padding was on.

    Args:
        mask: True for real tokens, `[B, Q]`.
        memory_len: M, slots of memory before the segment.
    """

    def __init__(self, mask: Tensor, memory_len: int) -> None:
        q_len = mask.shape[1]
        self.mask = mask
        self.n_padding = q_len - mask.sum(1)
        self._segment_order = mask.int().argsort(dim=1, stable=True)  # [B, Q], padding first
        self._segment_rank = self._segment_order.argsort(dim=1)
        slots = torch.arange(memory_len + q_len, device=mask.device)
        padding = self.n_padding[:, None]
        after_padding = torch.where(slots < memory_len + padding, slots - padding, slots)
        self._context_order = torch.where(slots < padding, memory_len + slots, after_padding)  # [B, K]
        self._memory_len = memory_len

    @property
    def aligned_mask(self) -> Tensor:
        """True for real tokens in the aligned order, `[B, Q]`."""
        return torch.arange(self.mask.shape[1], device=self.mask.device) >= self.n_padding[:, None]

    def align(self, hidden: Tensor) -> Tensor:
        """Segment `[B, Q, D]` from the caller's order to the aligned one."""
        return _take(hidden, self._segment_order, dim=1)

    def restore(self, hidden: Tensor) -> Tensor:
        """Segment `[B, Q, D]` from the aligned order to the caller's."""
        return _take(hidden, self._segment_rank, dim=1)

    def align_context(self, context: Tensor, *, dim: int) -> Tensor:
        """Memory and aligned segment, K slots along `dim`, with the padding moved in front of the memory."""
        return _take(context, self._context_order, dim=dim)

    def restore_weights(self, weights: Tensor) -> Tensor:
        """Attention weights `[B, N, Q, K]` from the aligned order to the caller's; 0 at padded queries."""
        context_rank = self._context_order.argsort(dim=1)
        segment_rank = context_rank.gather(1, self._memory_len + self._segment_rank)
        key_rank = torch.cat([context_rank[:, : self._memory_len], segment_rank], dim=1)
        weights = _take(_take(weights, self._segment_rank, dim=2), key_rank, dim=3)
        return weights * self.mask[:, None, :, None]


def _take(tensor: Tensor, order: Tensor, *, dim: int) -> Tensor:
    """`tensor` with its entries along `dim` in the order `[B, length]` of each row (dim 0)."""
    shape = [1] * tensor.dim()
    shape[0], shape[dim] = order.shape
    return tensor.take_along_dim(order.view(shape), dim)


__all__ = ["RowAlignment", "split_mask"]
