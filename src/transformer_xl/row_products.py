"""Products of a few rows with a weight, as generating needs them, in the form that reads the weight fastest.

One row by a matrix is bound by reading the matrix. torch leaves it to MKL, whose code for AMD's processors reads it on
one core and waits for it. Products of other shapes do not: so there the same product is asked for as one of those, as a
batch of two halves or with the weight as first factor. `benchmarks/row_products.py` times the forms.

Shapes: B rows.
"""

import platform
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Form = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""Of states `[B, in]`, weight `[out, in]` and bias `[out]` what `F.linear` makes of them, `[B, out]`."""

FEWEST_WEIGHTS = 2**16  # fewer lie in a cache, where all forms are as fast
WEIGHT_FIRST_ROWS = range(10, 49)  # on Intel's processors
WEIGHT_FIRST_ROWS_ON_AMD = (2, 3, *range(16, 65))
ROWS_FIRST_BY_PARTS_ON_AMD = range(4, 16)
LONG_ROW = 3072  # numbers, from where one row on AMD's processors is faster as first factor


def linear_of_rows(states: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """What `F.linear` gives for `states [B, in]`, `[B, out]`, in the form that B rows are fastest in.

    For a processor, without gradients, and a weight for which `can_choose_form` holds.
    """
    return fastest_form(states.shape[0], *weight.shape)(states, weight, bias)


def can_choose_form(weight: Tensor) -> bool:
    """Whether `linear_of_rows` may multiply with this weight: plain float32 numbers, one row after the other."""
    is_plain = type(weight) in (Tensor, nn.Parameter)  # others, such as quantised ones, bring their own product
    return is_plain and weight.dtype == torch.float32 and weight.device.type == "cpu" and weight.is_contiguous()


def fastest_form(n_rows: int, n_out: int, n_in: int) -> Form:
    """The form that `n_rows` by a weight `[n_out, n_in]` is fastest in, on this processor."""
    if n_out * n_in < FEWEST_WEIGHTS:
        return F.linear
    if not is_amd():
        return weight_first if n_rows in WEIGHT_FIRST_ROWS else F.linear
    if n_rows == 1 and n_in < LONG_ROW:
        return row_last_by_parts
    if n_rows == 1 or n_rows in ROWS_FIRST_BY_PARTS_ON_AMD:
        return rows_first_by_parts
    return weight_first if n_rows in WEIGHT_FIRST_ROWS_ON_AMD else F.linear


def weight_first(states: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`F.linear` as `W x`."""
    product = weight @ states.T if bias is None else torch.addmm(bias[:, None], weight, states.T)
    return product.T


def row_last_by_parts(states: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`F.linear` of one row as a batch of `W_i x`, where the `W_i` are equal parts of W's rows."""

    def product(parts: Tensor, biases: Tensor | None) -> Tensor:
        columns = states[0].expand(len(parts), 1, -1).mT  # with strides of columns, or MKL takes four times as long
        if biases is None:
            return torch.bmm(parts, columns).view(1, -1)
        return torch.baddbmm(biases[:, :, None], parts, columns).view(1, -1)

    return _by_parts(product, states, weight, bias)


def rows_first_by_parts(states: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`F.linear` as a batch of `x W_i`, where the `W_i` are equal parts of W's rows."""

    def product(parts: Tensor, biases: Tensor | None) -> Tensor:
        rows = states.expand(len(parts), -1, -1)
        made = torch.bmm(rows, parts.mT) if biases is None else torch.baddbmm(biases[:, None], rows, parts.mT)
        return made.transpose(0, 1).flatten(1)

    return _by_parts(product, states, weight, bias)


def _by_parts(
    product: Callable[[Tensor, Tensor | None], Tensor], states: Tensor, weight: Tensor, bias: Tensor | None
) -> Tensor:
    """The product with parts of the weight, `[parts, rows, in]`, and of the bias; rows that are left over come last."""
    n_parts = min(max(2, torch.get_num_threads()), len(weight))  # one core takes two, too, for the shape's sake
    whole = len(weight) - len(weight) % n_parts
    biases = None if bias is None else bias[:whole].view(n_parts, -1)
    made = product(weight[:whole].unflatten(0, (n_parts, -1)), biases)
    if whole == len(weight):
        return made
    return torch.cat([made, F.linear(states, weight[whole:], None if bias is None else bias[whole:])], dim=1)


@cache
def is_amd() -> bool:
    """Whether AMD made the processor, which MKL goes by."""
    try:
        description = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:  # not Linux
        description = platform.processor()
    return "AuthenticAMD" in description


__all__ = [
    "Form",
    "can_choose_form",
    "fastest_form",
    "is_amd",
    "linear_of_rows",
    "row_last_by_parts",
    "rows_first_by_parts",
    "weight_first",
]
