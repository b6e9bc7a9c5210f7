"""Dropout that draws its masks quickly on a processor.

torch draws one number at a time there, 20 ns each, so a layer's dropout costs as much as its matrix products. NumPy's
SFC64 is six times as fast; its seed comes from torch's generator, so that `torch.manual_seed` decides as before.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

DRAWN_AT_ONCE = 1 << 17  # numbers: half a MiB, which stays in the cache until it is compared


def new_seed() -> int:
    """A seed for `keep_mask`, drawn from torch's generator."""
    return int(torch.randint(1 << 62, ()))


def keep_mask(shape: torch.Size | tuple[int, ...], rate: float, seed: int) -> Tensor:
    """Bool tensor on the processor, each entry False with probability `rate` (in steps of 2**-32) by itself."""
    threshold = round(rate * 2**32) - 2**31
    if threshold >= 2**31:
        return torch.zeros(shape, dtype=torch.bool)
    kept = torch.empty(torch.Size(shape).numel(), dtype=torch.bool)
    generator = np.random.SFC64(seed)
    for part in kept.split(DRAWN_AT_ONCE):
        bits = generator.random_raw((len(part) + 1) // 2).view(np.int32)
        torch.ge(torch.from_numpy(bits[: len(part)]), threshold, out=part)
    return kept.view(shape)


class Dropout(nn.Dropout):
    """`torch.nn.Dropout`, quicker on a processor."""

    def forward(self, input: Tensor) -> Tensor:
        """Zero each entry with probability `p` and divide the others by `1 - p`; in evaluation, the input itself."""
        if not self.training or self.p == 0:
            return input
        if input.device.type != "cpu" or self.p == 1 or torch.compiler.is_compiling():
            return F.dropout(input, self.p)
        dropped: Tensor = _Dropout.apply(input, self.p)
        return dropped


class _Dropout(torch.autograd.Function):
    """Keeps one byte an entry for the backward pass, where torch keeps a number."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, rate: float) -> Tensor:
        kept = keep_mask(states.shape, rate, new_seed())
        ctx.save_for_backward(kept)
        ctx.scale = 1 / (1 - rate)
        return (states * kept).mul_(ctx.scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (kept,) = ctx.saved_tensors
        return (grad * kept).mul_(ctx.scale), None


def relu_dropout(states: Tensor, rate: float) -> Tensor:
    """Dropout of the positive part of `states`, in their place; on the processor."""
    activated: Tensor = _ReluDropout.apply(states, rate)
    return activated


class _ReluDropout(torch.autograd.Function):
    """What is left, and that is all that the backward pass asks, is what is not 0."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, rate: float) -> Tensor:
        states.relu_().mul_(keep_mask(states.shape, rate, new_seed())).mul_(1 / (1 - rate))
        ctx.mark_dirty(states)
        ctx.save_for_backward(states)
        ctx.scale = 1 / (1 - rate)
        return states

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (states,) = ctx.saved_tensors
        return torch.ops.aten.threshold_backward(grad, states, 0).mul_(ctx.scale), None


__all__ = ["Dropout", "keep_mask", "new_seed", "relu_dropout"]
