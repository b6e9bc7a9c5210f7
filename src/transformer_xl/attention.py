"""Relative attention of Transformer-XL (Dai et al. 2019, section 3.3), and what the other types share with it.

Every attention type of the package is one formula. For query i and key j at distance d = M + i - j:

    score(i, j) = H**-0.5 * ((q_i + u) . k_j + (q_i + v) . R_d + b_d)

    type 0, Transformer-XL       R_d = W_r sinusoid(d), b = 0
    type 1, Shaw et al. 2018     R and b are learned tables, v = 0
    types 2 and 3                no distance terms and no u: positions are added to the hidden states

`eager_attention` is that formula as it stands: each pair looks its distance up. `sdpa_attention` gives the same numbers
through `torch.nn.functional.scaled_dot_product_attention` and `relative_shift`. What runs on a processor is in
blocked_attention.py.

Shapes: B batch, Q queries, M memory, K = M + Q keys, N heads, H head size, D model size, R distances that differ.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

KEYS_OF_A_LINE = 16  # scores in a cache line in float32: products that write whole lines are up to a fifth faster


class DistanceTerms(NamedTuple):
    """What a layer adds to a score because of the distance between query and key.

    Attributes:
        keys: one vector a distance, `[N, R, H]`, from distance R-1 down to 0; farther keys count as R-1 away. There may
            be more than a call needs.
        query_bias: the paper's v, `[N, H]`, added to a query before it meets `keys`; None for no bias.
        score_bias: b, `[N, R]`, laid out like `keys`; None for no bias.
    """

    keys: Tensor
    query_bias: Tensor | None = None
    score_bias: Tensor | None = None

    def last(self, k_len: int) -> "DistanceTerms":
        """The terms for `k_len` keys: those of the `k_len` smallest distances (views)."""
        if self.keys.shape[1] <= k_len:
            return self
        score_bias = None if self.score_bias is None else self.score_bias[:, -k_len:]
        return DistanceTerms(self.keys[:, -k_len:], self.query_bias, score_bias)

    def to(self, dtype: torch.dtype) -> "DistanceTerms":
        """The terms in that dtype, themselves where they have it."""
        query_bias = None if self.query_bias is None else self.query_bias.to(dtype)
        return DistanceTerms(
            self.keys.to(dtype), query_bias, None if self.score_bias is None else self.score_bias.to(dtype)
        )

    def of_heads(self, heads: slice) -> "DistanceTerms":
        """The terms of some heads (views)."""
        query_bias = None if self.query_bias is None else self.query_bias[heads]
        return DistanceTerms(self.keys[heads], query_bias, None if self.score_bias is None else self.score_bias[heads])

    def scores(self, q: Tensor, k_len: int) -> Tensor:
        """Unscaled scores of every query with every distance, `[B, N, Q, K]`; column c holds distance K-1-c."""
        near = self.last(k_len)
        by_distance = _with_bias(q, near.query_bias) @ near.keys.mT
        if near.score_bias is not None:
            by_distance = by_distance + near.score_bias[:, None]
        n_farther = k_len - near.keys.shape[1]
        if n_farther == 0:
            return by_distance
        return torch.cat([by_distance[..., :1].expand(*by_distance.shape[:-1], n_farther), by_distance], dim=-1)


def key_distances(k_len: int, *, clamp_len: int, device: torch.device) -> Tensor:
    """Distances K-1 down to 0, `[K]` int64, capped at `clamp_len` if that is positive."""
    distances = torch.arange(k_len - 1, -1, -1, device=device)
    return distances.clamp(max=clamp_len) if clamp_len > 0 else distances


def n_distances(k_len: int, *, clamp_len: int) -> int:
    """R, how many different distances `k_len` keys have."""
    return min(k_len, clamp_len + 1) if clamp_len > 0 else k_len


def sinusoid(positions: Tensor, d_model: int, *, dtype: torch.dtype) -> Tensor:
    """Position signal of Vaswani et al. 2017, sines in the first half and cosines in the second, `[len(positions), D]`.

    Angles are computed in float32 or better whatever `dtype` is: bfloat16 cannot tell position 256 from 257.
    """
    precision = torch.promote_types(dtype, torch.float32)
    steps = torch.arange(0, d_model, 2, device=positions.device, dtype=precision)
    angles = positions.to(precision)[:, None] * (1 / 10_000 ** (steps / d_model))
    return torch.cat([angles.sin(), angles.cos()], dim=-1).to(dtype)


class Segments(NamedTuple):
    """How a call that computes several segments at once is cut.

    Attributes:
        length: queries of a segment; the last one may have fewer.
        mem_len: keys before a segment's first query that its queries may see.
    """

    length: int
    mem_len: int


class VisibleKeys:
    """Which keys each query of a call may see; in words, so that not every path has to spell out a mask.

    Attributes:
        q_len: Q. memory_len: M.
        span: number of keys a query sees at most, itself included; None for all up to itself.
        n_hidden: for each row, how many of the first keys hold nothing, `[B]`; None for none.
        segments: how the queries are cut; None for one segment, which sees all of the memory.
    """

    def __init__(
        self,
        q_len: int,
        memory_len: int,
        *,
        span: int | None,
        n_hidden: Tensor | None = None,
        segments: Segments | None = None,
        device: torch.device,
    ) -> None:
        self.q_len = q_len
        self.memory_len = memory_len
        self.span = span
        self.n_hidden = n_hidden
        self.segments = segments
        self._device = device
        self._mask: Tensor | None = None

    @property
    def mask(self) -> Tensor:
        """Bool, `[1, 1, Q, K]` or with `n_hidden` `[B, 1, Q, K]`; True where it may look. Each query sees itself."""
        if self._mask is None:
            self._mask = self._make_mask()
        return self._mask

    def _make_mask(self) -> Tensor:
        queries = torch.arange(self.q_len, device=self._device)
        keys = torch.arange(self.memory_len + self.q_len, device=self._device)
        distance = self.memory_len + queries[:, None] - keys
        visible = distance >= 0
        if self.span is not None:
            visible = visible & (distance < self.span)
        if self.segments is not None:
            first_of_segment = self.memory_len + queries - queries % self.segments.length
            visible = visible & (keys >= (first_of_segment - self.segments.mem_len)[:, None])
        if self.n_hidden is None:
            return visible[None, None]
        holds_something = keys >= self.n_hidden[:, None, None]
        return ((visible & holds_something) | (distance == 0))[:, None]

    def of_block(self, rows: slice, queries: slice) -> tuple[slice, "VisibleKeys"]:
        """The keys that some queries of some rows, all of one segment, may see, and what of them each one sees.

        Where a span cuts keys off, some of those are among the block's, so that these fill whole cache lines.
        """
        start, end = queries.start, queries.stop
        first = 0 if self.span is None else max(0, self.memory_len + start - self.span + 1)
        first -= min(first, -(self.memory_len + end - first) % KEYS_OF_A_LINE)  # the span hides these keys
        if self.segments is not None:
            first_of_segment = self.memory_len + start - start % self.segments.length
            first = max(first, first_of_segment - self.segments.mem_len)
        n_hidden = None if self.n_hidden is None else (self.n_hidden[rows] - first).clamp(min=0)
        visible = VisibleKeys(
            end - start, self.memory_len + start - first, span=self.span, n_hidden=n_hidden, device=self._device
        )
        return slice(first, self.memory_len + end), visible


def relative_shift(by_distance: Tensor) -> Tensor:
    """Turn scores by distance into scores by key (Dai et al. 2019, appendix B), as a view.

    Args:
        by_distance: `[..., Q, K + 1]`, contiguous; column c holds distance K-c.

    Returns:
        `[..., Q, K]`, a view. Entry (i, j) is the score at distance M + i - j; entries of the future hold other numbers
        and must be masked. Key j of query i lies at column Q-i+j, at flat offset Q + i*K + j of the row-major matrix:
        the extra column, which no query asks for, makes the rows of the result contiguous.
    """
    q_len, k_len = by_distance.shape[-2], by_distance.shape[-1] - 1
    flat = by_distance.flatten(-2)
    shifted: Tensor = flat[..., q_len:].unflatten(-1, (q_len, k_len))
    return shifted


def eager_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    content_bias: Tensor | None,
    distance: DistanceTerms | None,
    visible: VisibleKeys,
    dropout: float = 0.0,
) -> tuple[Tensor, Tensor | None]:
    """Attend by content and by distance, literally (Dai et al. 2019, section 3.3, terms a to d).

    Args:
        q: queries, `[B, N, Q, H]`.
        k: keys of memory, then of the segment, `[B, N, K, H]`.
        v: values, laid out like `k`.
        content_bias: the paper's u, `[N, H]`, added to `q` before it meets `k`; None for none.
        distance: the distance terms; None for none.
        visible: which keys each query may see.
        dropout: probability of zeroing an attention weight.

    Returns:
        `[B, N, Q, H]` in the dtype of `q`, and the attention weights after dropout, `[B, N, Q, K]`.
    """
    q_len, k_len = q.shape[-2], k.shape[-2]
    scores = _with_bias(q, content_bias) @ k.mT
    if distance is not None:
        queries = torch.arange(k_len - q_len, k_len, device=q.device)[:, None]
        column = (k_len - 1 - queries + torch.arange(k_len, device=q.device)).clamp(max=k_len - 1)
        scores = scores + distance.scores(q, k_len).gather(-1, column.expand_as(scores))
    # Softmax in float32 or better: half-precision scores would lose the small weights of a long memory.
    scores = (scores * q.shape[-1] ** -0.5).to(torch.promote_types(scores.dtype, torch.float32))
    weights = scores.masked_fill(~visible.mask, float("-inf")).softmax(-1).to(v.dtype)
    weights = F.dropout(weights, dropout, training=dropout > 0)
    return (weights @ v).to(q.dtype), weights


def sdpa_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    content_bias: Tensor | None,
    distance: DistanceTerms | None,
    visible: VisibleKeys,
    dropout: float = 0.0,
) -> tuple[Tensor, Tensor | None]:
    """What `eager_attention` computes, by torch's fused attention; gives no attention weights."""
    scale, k_len = q.shape[-1] ** -0.5, k.shape[-2]
    score_bias = None
    if distance is not None:
        # One query needs no shift.
        shifted = distance.scores(q, k_len) if q.shape[-2] == 1 else relative_shift(distance.scores(q, k_len + 1))
        # torch adds the mask after scaling q @ k, so the distance term is scaled here.
        score_bias = (shifted * scale).masked_fill(~visible.mask, float("-inf")).to(q.dtype)
    attended = F.scaled_dot_product_attention(
        _with_bias(q, content_bias).to(q.dtype),
        k,
        v,
        attn_mask=visible.mask if score_bias is None else score_bias,
        dropout_p=dropout,
        scale=scale,
    )
    return attended, None


def _with_bias(q: Tensor, bias: Tensor | None) -> Tensor:
    return q if bias is None else q + bias[:, None]


__all__ = [
    "DistanceTerms",
    "Segments",
    "VisibleKeys",
    "eager_attention",
    "key_distances",
    "n_distances",
    "relative_shift",
    "sdpa_attention",
    "sinusoid",
]
