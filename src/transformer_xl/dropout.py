"""Dropout that draws its masks quickly on a processor.

torch draws one number at a time there, 20 ns each, so a layer's dropout costs as much as its matrix products. NumPy's
SFC64 is six times as fast; its seed comes from torch's generator, so that `torch.manual_seed` decides as before.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from .storage import copied

DRAWN_AT_ONCE = 1 << 17  # numbers: half a MiB, which stays in the cache until it is compared


def new_seed() -> int:
    """A seed for `keep_mask`, drawn from torch's generator."""
    return int(torch.randint(1 << 62, ()))


def keep_mask(shape: torch.Size | tuple[int, ...], rate: float, seed: int) -> Tensor:
    """Bool tensor on the processor, each entry False with probability `rate` (in steps of 2**-32) by itself."""
    mask = torch.empty(torch.Size(shape).numel(), dtype=torch.bool)
    for start, kept in _parts_of_mask(len(mask), rate, seed):
        mask[start : start + len(kept)] = kept
    return mask.view(shape)


def _parts_of_mask(n: int, rate: float, seed: int) -> Iterator[tuple[int, Tensor]]:
    """A mask of n entries from one end to the other: where each part starts, and the part."""
    threshold = round(rate * 2**32) - 2**31
    generator = np.random.SFC64(seed)
    for start in range(0, n, DRAWN_AT_ONCE):
        size = min(DRAWN_AT_ONCE, n - start)
        bits = generator.random_raw((size + 1) // 2).view(np.int32)[:size]
        kept = bits >= threshold if threshold < 2**31 else np.zeros(size, dtype=bool)
        yield start, torch.from_numpy(kept)


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
    """Keeps the seed of its mask for the backward pass, where torch keeps a number an entry."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, rate: float) -> Tensor:
        ctx.rate, ctx.seed = rate, new_seed()
        return _dropped(states, rate, ctx.seed)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _dropped(grad, ctx.rate, ctx.seed), None


def sum_with_dropout(states: Tensor, branch: Tensor, rate: float) -> Tensor:
    """States and what a branch adds to them after dropout, of the same shape and on a processor; `rate` below 1."""
    total: Tensor = _Sum.apply(states, branch, rate)
    return total


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, branch: Tensor, rate: float) -> Tensor:
        ctx.rate, ctx.seed = rate, new_seed() if rate else 0
        return _dropped(branch, rate, ctx.seed).add_(states)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        return grad, _dropped(grad, ctx.rate, ctx.seed) if ctx.rate else grad, None


def _dropped(states: Tensor, rate: float, seed: int) -> Tensor:
    """A copy after dropout."""
    return drop_(copied(states), rate, seed) if rate else copied(states)


def drop_(states: Tensor, rate: float, seed: int) -> Tensor:
    """Dropout of contiguous `states` in their place, by the mask that `keep_mask` gives; `rate` below 1."""
    flat, scale = states.view(-1), 1 / (1 - rate)
    for start, kept in _parts_of_mask(len(flat), rate, seed):
        # As bytes: torch takes four times as long to multiply by bools.
        flat[start : start + len(kept)].mul_(kept.view(torch.uint8)).mul_(scale)
    return states


__all__ = ["Dropout", "drop_", "keep_mask", "new_seed", "sum_with_dropout"]
