"""Linear maps without gradients, in the form that the processor's library is fastest in.

torch leaves products of float32 to MKL. Its code for AMD's processors reads the weight that meets one row on one core,
and waits for it, but for batches of parts of the weight; products of many rows make two thirds to three quarters of the
operations a second that oneDNN, which torch carries too, makes there. Products of bfloat16 are oneDNN's everywhere. It
rearranges a weight each time that the weight meets some rows; where the processor has instructions for bfloat16 this
takes longer than the product, and `PackingMap` does it once. Where oneDNN has no products of 16 bits, those of many
rows are made in float32, and `PackingMap` arranges a weight for sums of rows, which FBGEMM reads fastest.
`benchmarks/linear_maps.py` times the forms.

Shapes: B rows.
"""

import platform
from collections.abc import Callable
from functools import cache, lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .half_precision import has_products
from .implementations import is_eager_cpu

Form = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""Of states `[B, in]`, weight `[out, in]` and bias `[out]` what `F.linear` makes of them, `[B, out]`."""

FEWEST_WEIGHTS = 2**16  # fewer lie in a cache, where all forms are as fast
WEIGHT_FIRST_ROWS = range(10, 49)  # on Intel's processors
SHORT_ROW = 1024  # numbers; of shorter ones four are fastest with the weight first on AMD's processors, else two
LONG_ROW = 3072  # numbers; for parts that come first and have such rows MKL takes some 200 MiB
PARTS_PER_THREAD = 8  # so that a core which others take time from leaves some of its parts to the next
ROWS_OF_A_PART = 256  # of a weight that few rows meet: with long rows a MiB
FEW_ROWS = 32  # on AMD's processors without AVX-512; more are faster by oneDNN
CONVERTED_ROWS = 8  # fewer are multiplied sooner in 16 bits, number by number, than a weight is converted
CONVERTED_AT_ONCE = 1 << 22  # weights: 16 MiB
PANEL = 64  # columns: what FBGEMM adds up in registers at once
ROWS_IN_BAGS = 8  # more are multiplied sooner with a weight that is converted
# Packing costs what 30 to 40 calls gain by it. Most texts are longer than that; who asks for a few tokens does not pay.
PACK_AFTER = 16


def linear(states: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """What `F.linear` gives for `states [..., in]`, `[..., out]`, in the fastest form where there is a choice."""
    if torch.is_grad_enabled() or not is_eager_cpu(states):
        return F.linear(states, weight, bias)
    if can_choose_form(weight):
        product = linear_of_rows
    elif must_convert(weight) and weight.dtype == states.dtype and _gains_by_float32(states, weight):
        product = by_float32
    else:
        return F.linear(states, weight, bias)
    n_out, n_in = weight.shape
    return product(states.reshape(-1, n_in), weight, bias).view(*states.shape[:-1], n_out)


def linear_of_rows(states: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """What `F.linear` gives for `states [B, in]`, `[B, out]`, in the form that B rows are fastest in.

    For a processor, without gradients, and a weight in float32; with its rows after each other it is the fastest.
    """
    return fastest_form(states.shape[0], *weight.shape)(states, weight, bias)


def can_choose_form(weight: Tensor) -> bool:
    """Whether `linear_of_rows` may multiply with this weight: plain float32 numbers, one row after the other."""
    return _is_plain(weight) and weight.dtype == torch.float32 and weight.is_contiguous()


def must_convert(weight: Tensor) -> bool:
    """Whether many rows by this weight are made in float32: its plain numbers of 16 bits have no products here."""
    return _is_plain(weight) and not has_products(weight.dtype)


def _gains_by_float32(states: Tensor, weight: Tensor) -> bool:
    """Whether there are rows enough; by a transposed weight one is: it takes five times as long in 16 bits."""
    return states.numel() >= CONVERTED_ROWS * weight.shape[1] or weight.stride(1) != 1


def _is_plain(weight: Tensor) -> bool:
    """Whether it lies on a processor as it is; weights of other types, such as quantised ones, bring their product."""
    return type(weight) in (Tensor, nn.Parameter) and weight.device.type == "cpu"


def fastest_form(n_rows: int, n_out: int, n_in: int) -> Form:
    """The form that `n_rows` by a weight `[n_out, n_in]` is fastest in, on this processor."""
    if n_out * n_in < FEWEST_WEIGHTS:
        return F.linear
    if not is_amd():
        return weight_first if n_rows in WEIGHT_FIRST_ROWS else F.linear
    if n_rows == 1 and n_in < (LONG_ROW if has_avx512() else SHORT_ROW):
        return row_last_by_parts
    if 1 < n_rows <= (4 if n_in < SHORT_ROW else 2):
        return weight_first
    if n_rows <= FEW_ROWS and not has_avx512():
        return rows_first_by_parts
    return by_onednn if has_onednn() else F.linear


def weight_first(states: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`F.linear` as `W x`."""
    product = weight @ states.T if bias is None else torch.addmm(bias[:, None], weight, states.T)
    return product.T


def row_last_by_parts(states: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`F.linear` of one row as a batch of `W_i x`, where the `W_i` are equal parts of W's rows."""

    def product(weight: Tensor, bias: Tensor | None, n_parts: int) -> Tensor:
        parts = weight.view(n_parts, -1, weight.shape[1])
        columns = states[0].expand(n_parts, 1, -1).mT  # with strides of columns, or MKL takes four times as long
        if bias is None:
            return torch.bmm(parts, columns).view(1, -1)
        return torch.baddbmm(bias.view(n_parts, -1, 1), parts, columns).view(1, -1)

    return _with_rest(product, states, weight, bias, PARTS_PER_THREAD * torch.get_num_threads())


def rows_first_by_parts(states: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`F.linear` as a batch of `x W_i^T`, where the `W_i` are equal parts of W's rows."""

    def product(weight: Tensor, bias: Tensor | None, n_parts: int) -> Tensor:
        parts = weight.view(n_parts, -1, weight.shape[1]).mT
        rows = states.expand(n_parts, -1, -1)
        made = torch.bmm(rows, parts) if bias is None else torch.baddbmm(bias.view(n_parts, 1, -1), rows, parts)
        return made.transpose(0, 1).reshape(len(states), len(weight))

    return _with_rest(product, states, weight, bias, max(len(weight) // ROWS_OF_A_PART, torch.get_num_threads()))


def _with_rest(
    product: Callable[[Tensor, Tensor | None, int], Tensor],
    states: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    n_parts: int,
) -> Tensor:
    """`product` with so many equal parts of a weight, beside `F.linear` with the rows that are left."""
    n_parts = min(n_parts, len(weight))
    n_left = len(weight) % n_parts
    if n_left == 0:
        return product(weight, bias, n_parts)
    whole = len(weight) - n_left
    made = product(weight[:whole], None if bias is None else bias[:whole], n_parts)
    left = F.linear(states, weight[whole:], None if bias is None else bias[whole:])
    return torch.cat([made, left], dim=1)


def by_onednn(states: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`F.linear` by the operation that `torch.compile` puts in its place."""
    made: Tensor = torch.ops.mkldnn._linear_pointwise(states, weight, bias, "none", [], "")
    return made


def by_float32(states: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`F.linear` of rows and a weight in 16 bits, of which some rows at a time are there in float32."""
    made = states.new_empty(len(states), len(weight))
    rows, at_once = states.float(), max(CONVERTED_AT_ONCE // weight.shape[1], 1)
    for start in range(0, len(weight), at_once):
        part = slice(start, start + at_once)
        single = weight[part].float()  # transposed it stays so, which costs less than its order
        made[:, part] = linear_of_rows(rows, single, None if bias is None else bias[part].float())
    return made


def by_bags(states: Tensor, panels: Tensor, n_out: int) -> Tensor:
    """`F.linear` of states `[B, in]` and a weight `[out, in]` that lies `in_panels`: `[B, out]`.

    `x W^T` is a sum of the rows of `W^T` in proportions x, as those of words in a bag; B rows after each other meet a
    panel, which they find in a cache.
    """
    n_panels, n_terms, _ = panels.shape
    factors = states if n_terms == states.shape[1] else F.pad(states, (0, n_terms - states.shape[1]), value=1)
    terms, starts = _bags(n_panels, len(states), n_terms)
    factors = factors.expand(n_panels, -1, -1).reshape(-1)
    sums = torch.embedding_bag(panels.view(-1, PANEL), terms, starts, False, 0, False, factors)[0]
    return sums.view(n_panels, len(states), PANEL).transpose(0, 1).reshape(len(states), -1)[:, :n_out]


def in_panels(weight: Tensor, bias: Tensor | None) -> Tensor:
    """A weight `[out, in]` for `by_bags`: `[panels, in, PANEL]`, and the bias after it, a term that all rows have."""
    rows = weight if bias is None else torch.cat([weight, bias[:, None]], dim=1)
    rows = F.pad(rows, (0, 0, 0, -len(rows) % PANEL))
    return rows.view(-1, PANEL, rows.shape[1]).mT.contiguous()


@lru_cache(maxsize=16)
def _bags(n_panels: int, n_rows: int, n_terms: int) -> tuple[Tensor, Tensor]:
    """The terms of all sums, those of a panel for each row of states, and where each sum starts."""
    terms = torch.arange(n_panels * n_terms, dtype=torch.int32, device="cpu").view(n_panels, 1, n_terms)
    starts = torch.arange(0, n_panels * n_rows * n_terms, n_terms, dtype=torch.int32, device="cpu")
    return terms.expand(-1, n_rows, -1).reshape(-1), starts


class PackingMap:
    """`F.linear` for a weight in bfloat16 that few rows at a time meet again and again.

    After `PACK_AFTER` calls there is a packed copy of the weight, as large as it is. It lives as long as this map, and
    a weight or bias that was changed in place since is packed anew after as many calls.

    Args:
        weight: `[out, in]`.
        bias: `[out]`, or None; `can_pack` must hold for both.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._weight, self._bias = weight, bias
        self._in_bags = not has_products(weight.dtype)
        self._version, self._n_calls = self._version_now(), 0
        self._packed: Tensor | None = None

    def __call__(self, states: Tensor) -> Tensor:
        """`[B, out]` for states `[B, in]`, without gradients."""
        if self._in_bags and len(states) > ROWS_IN_BAGS:
            return linear(states, self._weight, self._bias)
        if (version := self._version_now()) != self._version:
            self._version, self._n_calls, self._packed = version, 0, None
        if self._packed is None:
            self._n_calls += 1
            if self._n_calls == PACK_AFTER:
                self._packed = self._pack(len(states))
            return linear(states, self._weight, self._bias)
        if self._in_bags:
            return by_bags(states, self._packed, len(self._weight))
        return by_onednn(states, self._packed, self._bias)

    def _version_now(self) -> tuple[int, int]:
        return self._weight._version, 0 if self._bias is None else self._bias._version

    def _pack(self, n_rows: int) -> Tensor:
        weight = self._weight.detach()
        if self._in_bags:
            return in_panels(weight, self._bias)
        packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, n_rows)
        return packed


def can_pack(weight: Tensor, bias: Tensor | None) -> bool:
    """Whether `PackingMap` can take this weight and bias, and gains by it."""
    return (
        type(weight) in (Tensor, nn.Parameter)
        and weight.dtype == torch.bfloat16
        and weight.device.type == "cpu"
        and weight.numel() >= FEWEST_WEIGHTS
        and not weight.is_inference()  # or nobody could tell that it was changed
        and (bias is None or not bias.is_inference())
        and (has_bfloat16_instructions() and has_onednn() if has_products(weight.dtype) else has_fbgemm())
    )


@cache
def has_bfloat16_instructions() -> bool:
    """Whether the processor multiplies numbers in bfloat16."""
    return "avx512_bf16" in _processor() or "amx_bf16" in _processor()


@cache
def has_avx512() -> bool:
    """Whether the processor computes with 16 numbers in float32 at once, which makes other products its fastest."""
    return "avx512f" in _processor()


@cache
def is_amd() -> bool:
    """Whether AMD made the processor, which MKL goes by."""
    return "AuthenticAMD" in _processor()


def _processor() -> str:
    """What the system says about the processor."""
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:  # not Linux
        return platform.processor()


@cache
def has_fbgemm() -> bool:
    """Whether torch was built with FBGEMM, and that can compute on this processor."""
    return "fbgemm" in torch.backends.quantized.supported_engines


@cache
def has_onednn() -> bool:
    """Whether torch was built with oneDNN, and still has the operations; their names are not a promise."""
    names = ("_linear_pointwise", "_reorder_linear_weight")
    return torch.backends.mkldnn.is_available() and all(hasattr(torch.ops.mkldnn, name) for name in names)


__all__ = [
    "Form",
    "PackingMap",
    "by_bags",
    "by_float32",
    "by_onednn",
    "can_choose_form",
    "can_pack",
    "fastest_form",
    "has_avx512",
    "has_bfloat16_instructions",
    "has_fbgemm",
    "has_onednn",
    "in_panels",
    "is_amd",
    "linear",
    "linear_of_rows",
    "must_convert",
    "row_last_by_parts",
    "rows_first_by_parts",
    "weight_first",
]
