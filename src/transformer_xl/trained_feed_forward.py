"""The feed-forward map with gradients, as it needs the least memory on a processor.

The inner states are the widest of a layer. Here they are there for some positions at a time only, and are computed
again, dropout included, in the backward pass.

Shapes: T positions, D model size, I inner size.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .blocked_attention import equal_parts
from .dropout import drop_, new_seed
from .storage import room_for, zeros_like

INNER_NUMBERS = 1 << 20  # inner states that are there at a time: 4 MiB in float32


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
    output: Tensor = _FeedForward.apply(dropout, hidden, inner_weight, inner_bias, outer_weight, outer_bias)
    return output


class _Inputs(NamedTuple):
    """The tensors of a call, in the order in which autograd is given them."""

    hidden: Tensor
    inner_weight: Tensor
    inner_bias: Tensor
    outer_weight: Tensor
    outer_bias: Tensor

    def parts(self) -> list[slice]:
        """Positions whose inner states are there at a time."""
        return equal_parts(0, len(self.hidden), max(INNER_NUMBERS // len(self.inner_bias), 1))

    def room(self) -> Tensor:
        """Room for the inner states of any part, `[t, I]`."""
        n_positions = max((part.stop - part.start for part in self.parts()), default=0)
        return room_for((n_positions, len(self.inner_bias)), self.hidden.dtype)

    def inner_states(self, dropout: float, seed: int) -> Iterator[tuple[slice, Tensor]]:
        """Positions and their inner states after dropout `[t, I]`, which the next ones overwrite."""
        room = self.room()
        for number, part in enumerate(self.parts()):
            inner = room[: part.stop - part.start]
            torch.addmm(self.inner_bias, self.hidden[part], self.inner_weight.T, out=inner).relu_()
            yield part, drop_(inner, dropout, seed + number) if dropout else inner


class _FeedForward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, dropout: float, *tensors: Tensor) -> Tensor:
        inputs = _Inputs(*tensors)
        ctx.dropout, ctx.seed = dropout, new_seed() if dropout else 0
        ctx.save_for_backward(*inputs)
        output = room_for(inputs.hidden.shape, inputs.hidden.dtype)
        for part, inner in inputs.inner_states(dropout, ctx.seed):
            torch.addmm(inputs.outer_bias, inner, inputs.outer_weight.T, out=output[part])
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        inputs = _Inputs(*ctx.saved_tensors)
        needed = zip(inputs, ctx.needs_input_grad[1:], strict=True)
        gradients = [zeros_like(tensor) if is_needed else None for tensor, is_needed in needed]
        of_hidden, of_inner_weight, of_inner_bias, of_outer_weight, of_outer_bias = gradients
        room = inputs.room()
        for part, inner in inputs.inner_states(ctx.dropout, ctx.seed):
            if of_outer_weight is not None:
                of_outer_weight.addmm_(grad[part].T, inner)
            of_inner = torch.mm(grad[part], inputs.outer_weight, out=room[: len(inner)])
            # ReLU and dropout let through what is not 0 now.
            torch.ops.aten.threshold_backward.grad_input(of_inner, inner, 0, grad_input=of_inner)
            of_inner.mul_(1 / (1 - ctx.dropout))
            if of_inner_weight is not None:
                of_inner_weight.addmm_(of_inner.T, inputs.hidden[part])
            if of_inner_bias is not None:
                of_inner_bias.add_(of_inner.sum(0))
            if of_hidden is not None:
                torch.mm(of_inner, inputs.inner_weight, out=of_hidden[part])
        if of_outer_bias is not None:
            of_outer_bias.copy_(grad.sum(0))
        return (None, *gradients)


__all__ = ["feed_forward_with_gradients"]
