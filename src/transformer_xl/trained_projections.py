"""Linear maps of a layer with gradients, as they need the least memory on a processor.

Queries, keys and values of a segment and its memory come from one function, so that their weight has one gradient,
written where it belongs.

Shapes: B batch, Q queries, M memory, K = M + Q keys, N heads, H head size, D model size, W = N * H, L positions.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .storage import product, room_for, zeros_like


def linear_with_gradients(states: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`F.linear` for states `[..., in]`, `[..., out]`."""
    output: Tensor = _Linear.apply(states, weight, bias)
    return output


def queries_keys_values(
    hidden: Tensor, memory: Tensor | None, weight: Tensor, *, n_heads: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries of a segment, keys and values of its memory and itself.

    Args:
        hidden: the segment, `[B, Q, D]`.
        memory: what lies before it, `[B, M, D]`; None for nothing.
        weight: `[3 * W, D]`, of queries, keys and values in this order.

    Returns:
        `[B, N, Q, H]`, `[B, N, K, H]` and `[B, N, K, H]`.
    """
    projected: tuple[Tensor, Tensor, Tensor] = _Projection.apply(n_heads, hidden, memory, weight)
    return projected


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(states, weight)
        output = product(_rows(states), weight.T)
        if bias is not None:
            output += bias
        return output.view(*states.shape[:-1], len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        states, weight = ctx.saved_tensors
        needs_states, needs_weight, needs_bias = ctx.needs_input_grad
        grad = _rows(grad)
        return (
            product(grad, weight).view(states.shape) if needs_states else None,
            product(grad.T, _rows(states)) if needs_weight else None,
            grad.sum(0) if needs_bias else None,
        )


class _Projection(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, n_heads: int, hidden: Tensor, memory: Tensor | None, weight: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(hidden, memory, weight)
        n_batch, q_len, _ = hidden.shape
        memory_len, width = 0 if memory is None else memory.shape[1], len(weight) // 3
        q, k, v = (
            room_for((n_batch, n_heads, length, width // n_heads), hidden.dtype)
            for length in (q_len, memory_len + q_len, memory_len + q_len)
        )
        _project(hidden, weight, (q, k[:, :, memory_len:], v[:, :, memory_len:]))
        if memory is not None:
            _project(memory, weight[width:], (k[:, :, :memory_len], v[:, :, :memory_len]))
        return q, k, v

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_q: Tensor, of_k: Tensor, of_v: Tensor) -> tuple[Tensor | None, ...]:
        hidden, memory, weight = ctx.saved_tensors
        needed = zip((hidden, memory, weight), ctx.needs_input_grad[1:], strict=True)
        gradients = [zeros_like(tensor) if is_needed else None for tensor, is_needed in needed]
        of_hidden, of_memory, of_weight = gradients
        memory_len, width = of_k.shape[2] - of_q.shape[2], len(weight) // 3
        of_segment = (of_q, of_k[:, :, memory_len:], of_v[:, :, memory_len:])
        _add_gradients(of_segment, hidden, weight, of_hidden, of_weight)
        if memory is not None:
            of_past = (of_k[:, :, :memory_len], of_v[:, :, :memory_len])
            _add_gradients(of_past, memory, weight[width:], of_memory, None if of_weight is None else of_weight[width:])
        return (None, *gradients)


def _rows(states: Tensor) -> Tensor:
    """`[..., D]` as a matrix."""
    return states.reshape(-1, states.shape[-1])


def _project(states: Tensor, weight: Tensor, places: Sequence[Tensor]) -> None:
    """Write what the weight makes of states `[B, L, D]` into places `[B, N, L, H]`, one for each W of its rows."""
    rows = _rows(states)
    for place, part in zip(places, weight.chunk(len(places)), strict=True):
        place.copy_(_by_head(product(rows, part.T), place))


def _add_gradients(
    of_places: Sequence[Tensor], states: Tensor, weight: Tensor, of_states: Tensor | None, of_weight: Tensor | None
) -> None:
    """Add to the gradients of what `_project` takes, those that are asked for; `of_places` is that of its places."""
    rows = _rows(states)
    width = len(weight) // len(of_places)
    of_rows = room_for((len(rows), width), states.dtype)  # [B*L, W]
    for number, of_place in enumerate(of_places):
        part = slice(number * width, (number + 1) * width)
        _by_head(of_rows, of_place).copy_(of_place)
        if of_weight is not None:
            of_weight[part].addmm_(of_rows.T, rows)
        if of_states is not None:
            _rows(of_states).addmm_(of_rows, weight[part])


def _by_head(rows: Tensor, like: Tensor) -> Tensor:
    """A view of `[B*L, W]` as `[B, N, L, H]`, the shape of `like`."""
    n_batch, n_heads, length, size = like.shape
    return rows.view(n_batch, length, n_heads, size).transpose(1, 2)


__all__ = ["linear_with_gradients", "queries_keys_values"]
