"""The feed-forward map with gradients, as it needs the least memory on a processor.

The inner states are the widest of a layer. They are computed again in the backward pass, where their gradient then
takes their place; what lives between the passes is one byte an entry, which says what ReLU and dropout left.

Shapes: T positions, D model size, I inner size.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .dropout import keep_mask, new_seed


def feed_forward_with_gradients(
    hidden: Tensor,
    inner_weight: Tensor,
    inner_bias: Tensor,
    outer_weight: Tensor,
    outer_bias: Tensor,
    *,
    dropout: float,
) -> Tensor:
    """Linear map, ReLU, dropout, linear map.

    Args:
        hidden: `[T, D]`.
        inner_weight: `[I, D]`. inner_bias: `[I]`.
        outer_weight: `[D, I]`. outer_bias: `[D]`.
        dropout: probability of zeroing an inner entry, below 1.

    Returns:
        `[T, D]`.
    """
    output: Tensor = _FeedForward.apply(hidden, inner_weight, inner_bias, outer_weight, outer_bias, dropout)
    return output


class _FeedForward(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        inner_weight: Tensor,
        inner_bias: Tensor,
        outer_weight: Tensor,
        outer_bias: Tensor,
        dropout: float,
    ) -> Tensor:
        inner = torch.addmm(inner_bias, hidden, inner_weight.T)
        is_left = inner > 0
        if dropout:
            is_left &= keep_mask(inner.shape, dropout, new_seed())
        ctx.scale = 1 / (1 - dropout)
        inner.mul_(is_left).mul_(ctx.scale)
        ctx.save_for_backward(hidden, is_left, inner_weight, inner_bias, outer_weight)
        return torch.addmm(outer_bias, inner, outer_weight.T)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden, is_left, inner_weight, inner_bias, outer_weight = ctx.saved_tensors
        of_hidden, of_inner_weight, of_inner_bias, of_outer_weight, of_outer_bias, _ = ctx.needs_input_grad
        inner = torch.addmm(inner_bias, hidden, inner_weight.T).mul_(is_left).mul_(ctx.scale)
        grad_outer_weight = grad.T @ inner if of_outer_weight else None
        grad_inner = torch.mm(grad, outer_weight, out=inner).mul_(is_left).mul_(ctx.scale)
        return (
            grad_inner @ inner_weight if of_hidden else None,
            grad_inner.T @ hidden if of_inner_weight else None,
            grad_inner.sum(0) if of_inner_bias else None,
            grad_outer_weight,
            grad.sum(0) if of_outer_bias else None,
            None,
        )


__all__ = ["feed_forward_with_gradients"]
