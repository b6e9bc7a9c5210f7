"""Room for the large tensors of a training step on a processor, so that its process stays as small as what it holds.

torch asks the C library for blocks that begin at a cache line. glibc cannot give such a block the gap that one of the
same size has left: it looks for one with room for a line's worth more, and what it cuts off on either side keeps the
gap from growing together with its neighbours. A training step asks for the same sizes over and over, and its process
grows by gaps that nothing fits into. NumPy asks without that wish, and fits; the line is found within the block here.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

CACHE_LINE = 64  # bytes
_NUMPY_TYPES: dict[torch.dtype, type[np.floating]] = {torch.float32: np.float32, torch.float64: np.float64}


def room_for(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """A tensor on the processor whose numbers are any."""
    kind = _NUMPY_TYPES.get(dtype)
    if kind is None or torch.are_deterministic_algorithms_enabled():  # where torch fills it with NaN
        return torch.empty(shape, dtype=dtype)
    size, spare = math.prod(shape), CACHE_LINE // dtype.itemsize
    block = np.empty(size + spare, dtype=kind)
    start = -block.__array_interface__["data"][0] % CACHE_LINE // dtype.itemsize
    return torch.from_numpy(block[start : start + size].reshape(shape))


def zeros_like(states: Tensor) -> Tensor:
    """Zeros of the shape of a tensor."""
    return room_for(states.shape, states.dtype).zero_()


def copied(states: Tensor) -> Tensor:
    """A copy of a tensor, contiguous."""
    return room_for(states.shape, states.dtype).copy_(states)


def product(first: Tensor, second: Tensor) -> Tensor:
    """The product of two matrices."""
    return torch.mm(first, second, out=room_for((first.shape[0], second.shape[1]), first.dtype))


__all__ = ["copied", "product", "room_for", "zeros_like"]
