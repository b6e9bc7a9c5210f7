"""The attention of attention.py without gradients, as it runs fastest on a processor.

Some heads and queries at a time: their scores stay in the processor's cache, and keys that no query of a block may see
are left out. A block is itself a call of the formula, with a memory of its own. The scores of content are added to
those of distance by the matrix product itself, and only the corners of a block need a mask.

Shapes: B batch, Q queries, M memory, K = M + Q keys, N heads, H head size, R distances of a table; b, n, q, k those of
a block.
"""

import math
from collections.abc import Iterator
from functools import lru_cache
from itertools import chain, pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from .attention import DistanceTerms, VisibleKeys
from .half_precision import has_products

BLOCK_SCORES = 1 << 20  # scores in a block: 4 MiB in float32, which with a copy stay near the processor
FEWEST_HEADS = 2  # in a block: torch computes one on each core, so a block has a multiple of them
LOG2_E = math.log2(math.e)  # e**x is 2**(x * LOG2_E), and torch makes powers of two up to four times as fast
SAFE_EXPONENT = 57.0  # 2**57 times any number of keys is finite in float32, and 2**-57 far above what is cut off
LEAST_EXPONENT = {
    torch.float32: -126.0,
    torch.float64: -1022.0,
}  # of normal numbers: products are slow with smaller ones
MOST_QUERIES = 128  # in a block: half of them squared are scores of keys in the future; with fewer, products are slower


class Block(NamedTuple):
    """A block of rows, heads and queries, the keys that they may see, and which of them each one sees."""

    rows: slice
    heads: slice
    queries: slice
    keys: slice
    visible: VisibleKeys

    @property
    def of_queries(self) -> tuple[slice, slice, slice]:
        """Where the block lies in `[B, N, Q, ...]`."""
        return self.rows, self.heads, self.queries

    @property
    def of_keys(self) -> tuple[slice, slice, slice]:
        """Where its keys lie in `[B, N, K, ...]`."""
        return self.rows, self.heads, self.keys


def blocks(visible: VisibleKeys, n_batch: int, n_heads: int) -> Iterator[Block]:
    """The blocks of a call; none has queries of two segments."""
    q_len, k_len = visible.q_len, visible.q_len + visible.memory_len
    if visible.segments is not None:
        q_len, k_len = visible.segments.length, visible.segments.mem_len + visible.segments.length
    if visible.span is not None:
        k_len = min(k_len, visible.span + min(q_len, MOST_QUERIES))
    size = block_size(n_batch, n_heads, q_len, k_len)
    ends = [min(start + q_len, visible.q_len) for start in range(0, visible.q_len, q_len)]
    for queries in chain.from_iterable(equal_parts(start, end, size[2]) for start, end in pairwise([0, *ends])):
        for rows in equal_parts(0, n_batch, size[0]):
            keys, seen = visible.of_block(rows, queries)
            for head in range(0, n_heads, size[1]):
                yield Block(rows, slice(head, min(head + size[1], n_heads)), queries, keys, seen)


def block_size(n_batch: int, n_heads: int, q_len: int, k_len: int) -> tuple[int, int, int]:
    """Rows, heads and queries in a block, at most: several rows only with all heads of each.

    A block has about `BLOCK_SCORES` scores, and more where the queries of the fewest heads have more.
    """
    fewest_heads = min(FEWEST_HEADS, n_heads)
    n_queries = min(MOST_QUERIES, q_len)
    n_matrices = -(-max(BLOCK_SCORES // (n_queries * k_len), 1) // fewest_heads) * fewest_heads
    return min(max(n_matrices // n_heads, 1), n_batch), min(n_matrices, n_heads), n_queries


def equal_parts(start: int, end: int, at_most: int) -> list[slice]:
    """The places from `start` to `end` in as few parts of nearly equal size as will do."""
    n_parts = -(-(end - start) // at_most)
    edges = [start + (end - start) * i // n_parts for i in range(n_parts + 1)]
    return [slice(start, end) for start, end in pairwise(edges)]


def blocked_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    content_bias: Tensor | None,
    distance: DistanceTerms | None,
    visible: VisibleKeys,
) -> Tensor:
    """`eager_attention` block by block, without gradients; the arguments are its own.

    Keys and values may lie in either order, `[K, H]` or `[H, K]`. Products of blocks are fastest with keys in the
    latter and values in the former, those of a single query with both in the latter.

    Returns:
        `[B, N, Q, H]`.
    """
    attended = torch.empty_like(q, memory_format=torch.contiguous_format)
    if not has_products(q.dtype):
        q, content_bias = q.float(), None if content_bias is None else content_bias.float()
        distance = None if distance is None else distance.to(q.dtype)
    queries = BlockQueries(q, content_bias, distance)
    for block in blocks(visible, *q.shape[:2]):
        values = v[block.of_keys].flatten(0, 1).to(q.dtype)
        weights, sums = exponentials(queries.scores(block, k), block.visible)
        place = attended[block.of_queries]
        place.copy_((torch.bmm(weights.to(values.dtype), values) / sums).view_as(place))
    return attended


class BlockQueries:
    """The queries of a call with what meets keys and distances, to give the scores of a block.

    Args:
        q: `[B, N, Q, H]`.
        content_bias, distance: as for `eager_attention`.
    """

    def __init__(self, q: Tensor, content_bias: Tensor | None, distance: DistanceTerms | None) -> None:
        self.scale = q.shape[-1] ** -0.5
        self.distance = distance
        self._q, self._content_bias = q, content_bias
        self._rooms: dict[str, Tensor] = {}

    def content(self, block: Block) -> Tensor:
        """What meets the keys, `[b, n, q, H]`."""
        return _with_bias(self._q[block.of_queries], self._content_bias, block.heads)

    def by_distance(self, block: Block) -> Tensor:
        """What meets the distances, `[b, n, q, H]`."""
        assert self.distance is not None
        return _with_bias(self._q[block.of_queries], self.distance.query_bias, block.heads)

    def scores(self, block: Block, k: Tensor) -> Tensor:
        """Scaled scores times `LOG2_E`, `[b, n, q, k]`, of keys in the future any; `k` are all keys, `[B, N, K, H]`."""
        content = self.content(block)
        keys = k[block.of_keys].flatten(0, 1).to(content.dtype)  # [b*n, k, H]
        scores = self.room("scores", *content.shape[:3], keys.shape[1])
        flat, scale = scores.flatten(0, 1), self.scale * LOG2_E
        if self.distance is None:
            torch.bmm(content.flatten(0, 1) * scale, keys.mT, out=flat)
        else:
            # A copy: products and softmax go matrix by matrix, or copy, where a batch has gaps.
            self._put_scores_by_distance(block, scores)
            flat.baddbmm_(content.flatten(0, 1), keys.mT, beta=scale, alpha=scale)
        return scores

    def _put_scores_by_distance(self, block: Block, scores: Tensor) -> None:
        """Write what distances add to unscaled scores into `scores [b, n, q, k]`; what lies in the future is lost."""
        assert self.distance is not None
        queries = self.by_distance(block).transpose(0, 1)  # [n, b, q, H]: one product a head serves all rows
        q_len, k_len = scores.shape[2:]
        near = self.distance.of_heads(block.heads).last(k_len)
        n_near = near.keys.shape[1]
        flat = queries.flatten(1, 2)
        by_distance = scores_of_terms(flat, near, out=self.room("distances", *flat.shape[:2], n_near))
        if n_near <= k_len - q_len + 1 < k_len:  # all queries have keys that are farther than the table
            by_distance = by_distance.unflatten(1, queries.shape[1:3]).transpose(0, 1)  # [b, n, q, R]
            scores[..., k_len - q_len + 1 :] = 0  # in the future, where nothing else may be written
            scores[..., : k_len - n_near] = by_distance[..., :1]
            _diagonals(scores, n_near).copy_(by_distance)
            return
        if n_near < k_len:
            by_distance = with_farther(by_distance, k_len, out=self.room("columns", *flat.shape[:2], k_len))
        scores.copy_(_by_key(by_distance.unflatten(1, queries.shape[1:3])).transpose(0, 1))

    def room(self, name: str, *shape: int) -> Tensor:
        """An empty tensor where the last of that name was: fresh memory costs more than what is done in it."""
        size = math.prod(shape)
        held = self._rooms.get(name)
        if held is None or len(held) < size:
            held = self._rooms[name] = self._q.new_empty(size)
        return held[:size].view(shape)


def attend_one(
    q: Tensor, keys: Tensor, values: Tensor, *, oldest: int, content_bias: Tensor, distance: DistanceTerms
) -> Tensor:
    """`eager_attention` for one query a row, which sees all keys, without gradients.

    Args:
        q: `[B, N, H]`.
        keys: `[B*N, H, K]` in float32 or better, one feature of all keys after the other: the order in which one query
            reads them fastest.
        values: laid out like `keys`.
        oldest: which key is farthest away; those after it are nearer and nearer, then those from the first on.
        content_bias: u, `[N, H]`.
        distance: as for `eager_attention`.

    Returns:
        `[B, N, H]`.
    """
    n_batch, n_heads, size = q.shape
    scale, k_len = size**-0.5, keys.shape[-1]
    query, distance = q.to(keys.dtype), distance.last(k_len).to(keys.dtype)
    with_bias = query if distance.query_bias is None else query + distance.query_bias
    near = scores_of_terms(with_bias.transpose(0, 1), distance).transpose(0, 1)  # [B, N, R]
    content = (query + content_bias).reshape(n_batch * n_heads, 1, size)
    scores = keys.new_empty(n_batch * n_heads, 1, k_len).baddbmm_(content, keys, beta=0, alpha=scale)
    add_in_ring(scores.view(n_batch, n_heads, k_len), near, oldest=oldest, scale=scale)
    return torch.bmm(scores.softmax(-1), values.mT).view(n_batch, n_heads, size).to(q.dtype)


def scores_of_terms(queries: Tensor, near: DistanceTerms, *, out: Tensor | None = None) -> Tensor:
    """Scores of queries `[n, T, H]` with each term, `[n, T, R]`."""
    if near.score_bias is None:
        return torch.bmm(queries, near.keys.mT, out=out)  # not into some columns of `out`: torch would go head by head
    return torch.baddbmm(near.score_bias[:, None], queries, near.keys.mT, out=out)


def _by_key(by_distance: Tensor) -> Tensor:
    """Scores by distance `[..., Q, K]`, without gaps, as `relative_shift` turns them, a view to be read only.

    Without the column that makes rows contiguous there, the last score of a row is the first of the next one. It is
    left out since rows of whole cache lines, which K columns may be, are written faster.
    """
    q_len, k_len = by_distance.shape[-2:]
    strides = (*by_distance.stride()[:-2], k_len - 1, 1)
    return by_distance.as_strided(by_distance.shape, strides, by_distance.storage_offset() + q_len - 1)


def _diagonals(scores: Tensor, n_near: int) -> Tensor:
    """Where in `[b, n, q, k]`, without gaps, each query has its `n_near` nearest keys, `[b, n, q, n_near]`, a view."""
    q_len, k_len = scores.shape[2:]
    first = k_len - q_len - n_near + 1  # of the first query; that of the next is one further
    shape, strides = (*scores.shape[:3], n_near), (*scores.stride()[:2], k_len + 1, 1)
    return scores.as_strided(shape, strides, scores.storage_offset() + first)


def with_farther(by_distance: Tensor, n_columns: int, *, out: Tensor | None = None) -> Tensor:
    """`[n, T, R]` as `[n, T, n_columns]`: the first column, which stands for all farther keys, for each of them."""
    n_farther = n_columns - by_distance.shape[-1]
    if n_farther == 0:
        return by_distance
    return torch.cat([by_distance[..., :1].expand(-1, -1, n_farther), by_distance], dim=-1, out=out)


def add_in_ring(scores: Tensor, near: Tensor, *, oldest: int, scale: float) -> None:
    """Add `scale` times what distances give to the scores of keys, of which number `oldest` is the farthest.

    Args:
        scores: `[B, N, K]`, of the keys in a ring: the first one follows on the last.
        near: `[B, N, R]`, for the R nearest keys, the farthest of them first; it counts for all that are farther.
    """
    k_len, n_near = scores.shape[-1], near.shape[-1]
    nearest_first = (oldest + k_len - n_near) % k_len  # where the R nearest ones begin
    for first, n_keys, added in ((oldest, k_len - n_near, near[..., :1]), (nearest_first, n_near, near)):
        n_before = min(n_keys, k_len - first)  # keys from there to the end of the ring; the others follow at its start
        is_one = added.shape[-1] == 1
        for start, n_there, begin in ((first, n_before, 0), (0, n_keys - n_before, n_before)):
            if n_there:
                part = added if is_one else added[..., begin : begin + n_there]
                scores[..., start : start + n_there].add_(part, alpha=scale)


def exponentials(scores: Tensor, visible: VisibleKeys) -> tuple[Tensor, Tensor]:
    """Softmax to the base 2 of scores `[b, n, q, k]`, which are lost: weights `[b*n, q, k]`, their sums `[b*n, q, 1]`.

    Both are in float32 or better. Dividing what the weights are multiplied with spares a pass over them, and so does
    subtracting the highest score of a row only where an exponential could overflow or vanish without it. Weights that
    are to be rounded to half precision are at most 1. A weight that is no normal number beside the greatest one is cut
    off there: it is lost in their sum either way.

    Args:
        scores: any numbers where a query may not look.
        visible: says where that is.
    """
    weights = scores
    if not is_single(scores) or not _are_moderate(scores):
        _hide(scores, visible)
        weights = scores if is_single(scores) else scores.float()
        highest = weights.amax(-1, keepdim=True)
        if is_single(scores):  # row by row: the future of a text must not decide how its past is rounded
            highest.masked_fill_(highest.abs() < SAFE_EXPONENT, 0)
        weights.sub_(highest).clamp_(min=LEAST_EXPONENT[weights.dtype])
    weights.exp2_()
    _erase(weights, visible)
    return weights.flatten(0, 1), weights.sum(-1, keepdim=True).flatten(0, 1)


def _are_moderate(scores: Tensor) -> bool:
    """Whether all exponentials are far from the ends of the numbers, those of hidden scores too."""
    lowest, highest = torch.aminmax(scores)
    return bool((lowest > -SAFE_EXPONENT) & (highest < SAFE_EXPONENT))


def _hide(scores: Tensor, visible: VisibleKeys) -> None:
    """Put -inf where a query may not look, into scores `[b, n, q, k]`."""
    if visible.n_hidden is not None or not is_single(scores):  # half precision overflows, and inf - inf is no number
        scores.masked_fill_(~visible.mask, float("-inf"))
        return
    for corner, keys in _corners(visible):
        scores[..., keys].add_(hidden_corner(*corner, dtype=scores.dtype)[0])


def _erase(weights: Tensor, visible: VisibleKeys) -> None:
    """Put 0 where a query may not look, into weights `[b, n, q, k]`."""
    if visible.n_hidden is not None:
        weights.masked_fill_(~visible.mask, 0)
        return
    for corner, keys in _corners(visible):
        weights[..., keys].mul_(hidden_corner(*corner, dtype=weights.dtype)[1])


def _corners(visible: VisibleKeys) -> Iterator[tuple[tuple[int, int, int | None], slice]]:
    """The corners of a block that hold keys which some query may not see, as `hidden_corner` takes them, and where."""
    q_len, k_len = visible.q_len, visible.q_len + visible.memory_len
    if q_len > 1:
        yield (q_len, q_len, None), slice(k_len - q_len, k_len)
    if visible.span is not None and k_len > visible.span:
        n_out = k_len - visible.span  # columns that some query may no longer see
        # Query i may not see key j <= M + i - span.
        yield (q_len, n_out, visible.memory_len - visible.span), slice(n_out)


@lru_cache(maxsize=16)
def hidden_corner(q_len: int, n_keys: int, past: int | None, *, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """What is added to scores of a corner of a block, 0 or -inf, and what weights are multiplied with, 1 or 0.

    Such sums and products take a quarter of the time of filling in by a mask.

    Args:
        q_len: queries. n_keys: keys.
        past: query i may not see key j <= i + past; None where it may not see key j > i.
        dtype: of the two, `[q_len, n_keys]`.
    """
    added = torch.full((q_len, n_keys), float("-inf"), dtype=dtype)
    added = added.triu_(1) if past is None else added.tril_(past)
    return added, added.exp()


def is_single(states: Tensor) -> bool:
    """Whether they have single precision or better."""
    return states.dtype in (torch.float32, torch.float64)


def _with_bias(q: Tensor, bias: Tensor | None, heads: slice) -> Tensor:
    return q if bias is None else (q + bias[heads, None]).to(q.dtype)


__all__ = [
    "Block",
    "BlockQueries",
    "attend_one",
    "block_size",
    "blocked_attention",
    "blocks",
    "equal_parts",
    "exponentials",
]
