"""The attention of attention.py without gradients, as it runs fastest on a processor.

A block of queries at a time: its scores stay in the processor's cache, and keys that no query of it may see are left
out. A block is itself a call of the formula, with a memory of its own. The scores of content are added to those of
distance by the matrix product itself, the shift between them is a view, and only the corners of a block need a mask.

Shapes: B batch, Q queries, M memory, K = M + Q keys, N heads, H head size, R distances that differ.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from .attention import DistanceTerms, VisibleKeys, relative_shift

BLOCK_SCORES = 1 << 21  # scores in a block: 8 MiB in float32, which fits into the last cache of most machines
SHORTEST_BLOCK = 32  # queries: below that, matrix products are no longer products of matrices


class Block(NamedTuple):
    """A block of queries, the keys that they may see, and which of them each one sees."""

    queries: slice
    keys: slice
    visible: VisibleKeys


def blocks(visible: VisibleKeys, length: int) -> Iterator[Block]:
    """The blocks of a call, of `length` queries each."""
    for start in range(0, visible.q_len, length):
        end = min(start + length, visible.q_len)
        keys, seen = visible.of_queries(start, end)
        yield Block(slice(start, end), keys, seen)


def block_length(q: Tensor, k: Tensor) -> int:
    """Queries in a block, so that its scores fit into the cache."""
    n_batch, n_heads, k_len = k.shape[:3]
    return min(max(BLOCK_SCORES // (n_batch * n_heads * k_len), SHORTEST_BLOCK), q.shape[2])


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

    Keys and values may lie in either order, `[K, H]` or `[H, K]`; for a single query the latter reads twice as fast.

    Returns:
        `[B, N, Q, H]`.
    """
    attended = []
    for block in blocks(visible, block_length(q, k)):
        near = None if distance is None else distance.last(block.keys.stop - block.keys.start)
        states = (q[:, :, block.queries], k[:, :, block.keys], v[:, :, block.keys])
        attended.append(_attend_block(*states, content_bias, near, block.visible))
    return attended[0] if len(attended) == 1 else torch.cat(attended, dim=2)


def attend_one(q: Tensor, keys: Tensor, values: Tensor, *, content_bias: Tensor, distance: DistanceTerms) -> Tensor:
    """`eager_attention` for one query a row, which sees all keys, without gradients.

    Args:
        q: `[B, N, H]`.
        keys: `[B*N, H, K]`, one feature of all keys after the other: the order in which one query reads them fastest.
        values: laid out like `keys`.
        content_bias: u, `[N, H]`.
        distance: as for `eager_attention`, for K keys or more.

    Returns:
        `[B, N, H]`.
    """
    n_batch, n_heads, size = q.shape
    scale, k_len = size**-0.5, keys.shape[-1]
    with_bias = q if distance.query_bias is None else q + distance.query_bias
    by_head, terms = with_bias.transpose(0, 1), distance.keys.mT
    n_too_many = terms.shape[-1] - k_len
    if n_too_many >= 0 and distance.score_bias is None:
        by_distance = torch.bmm(by_head, terms.narrow(2, n_too_many, k_len))  # [N, B, K]
    else:
        by_distance = _scores_of_terms(by_head, distance.last(k_len), k_len, n_columns=k_len)
    scores = by_distance.transpose(0, 1).reshape(n_batch * n_heads, 1, k_len)
    content = (q + content_bias).view(n_batch * n_heads, 1, size)
    scores = scores.baddbmm_(content, keys, beta=scale, alpha=scale)
    weights = _softmax(scores, values.dtype)
    if values.dtype in (torch.float32, torch.float64):
        attended = torch.bmm(weights, values.mT)
    else:  # in half precision torch would copy the transposed values
        attended = torch.bmm(values, weights.mT)
    return attended.view(n_batch, n_heads, size)


def _attend_block(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    content_bias: Tensor | None,
    distance: DistanceTerms | None,
    visible: VisibleKeys,
) -> Tensor:
    n_batch, n_heads, q_len, size = q.shape
    keys, values = _flat_heads(k), _flat_heads(v)  # [B*N, K, H]
    scale = size**-0.5
    content = q if content_bias is None else q + content_bias[:, None]
    content = content.to(q.dtype).reshape(n_batch * n_heads, q_len, size)
    if distance is None:
        scores = torch.bmm(content * scale, keys.mT)
    else:
        with_bias = q if distance.query_bias is None else q + distance.query_bias[:, None]
        shifted = scores_by_distance(with_bias.to(q.dtype).transpose(0, 1), distance, keys.shape[1]).transpose(0, 1)
        # A new tensor, as a softmax of views would copy them twice.
        scores = torch.baddbmm(shifted.reshape(n_batch * n_heads, q_len, -1), content, keys.mT, beta=scale, alpha=scale)
    hide(scores.view(n_batch, n_heads, q_len, -1), visible)
    return torch.bmm(_softmax(scores, v.dtype), values).view(n_batch, n_heads, q_len, size)


def _softmax(scores: Tensor, dtype: torch.dtype) -> Tensor:
    """Weights of `dtype` from scores, which are lost; computed in float32 or better."""
    if scores.dtype in (torch.float32, torch.float64):
        return torch.softmax(scores, -1, out=scores)
    return scores.softmax(-1, dtype=torch.float32).to(dtype)


def scores_by_distance(queries: Tensor, distance: DistanceTerms, k_len: int) -> Tensor:
    """What distances add to unscaled scores, under their keys.

    Args:
        queries: position bias included, heads first, so that one product a head serves all rows: `[N, B, Q, H]`.
        distance: the terms of `k_len` keys.

    Returns:
        `[N, B, Q, K]`, a view; of keys in a query's future anything.
    """
    n_columns = k_len + (queries.shape[2] > 1)  # `relative_shift` asks for one more; one query needs no shift
    by_distance = _scores_of_terms(queries.flatten(1, 2), distance, k_len, n_columns=n_columns)
    by_distance = by_distance.unflatten(1, queries.shape[1:3])
    return by_distance if n_columns == k_len else relative_shift(by_distance)


def _scores_of_terms(queries: Tensor, distance: DistanceTerms, k_len: int, *, n_columns: int) -> Tensor:
    """Scores of queries `[N, T, H]` by distance, `[N, T, n_columns]`; columns beyond K hold anything."""
    if distance.score_bias is None:
        near = torch.bmm(queries, distance.keys.mT)  # not into the columns of a wider one: torch then goes head by head
    else:
        near = torch.baddbmm(distance.score_bias[:, None], queries, distance.keys.mT)
    n_near = near.shape[-1]
    if n_near == n_columns:
        return near
    buffer = queries.new_empty(*queries.shape[:2], n_columns)
    buffer.narrow(2, k_len - n_near, n_near).copy_(near)
    buffer.narrow(2, 0, k_len - n_near).copy_(near.narrow(2, 0, 1))
    return buffer


def hide(scores: Tensor, visible: VisibleKeys) -> None:
    """Put -inf where a query may not look, into scores `[B, N, Q, K]`: into corners, or wherever rows differ."""
    q_len, k_len = scores.shape[2:]
    if visible.n_hidden is not None:
        scores.masked_fill_(~visible.mask, float("-inf"))
        return
    if q_len > 1:
        corner = torch.ones(q_len, q_len, dtype=torch.bool, device=scores.device)
        scores[..., k_len - q_len :].masked_fill_(corner.triu(1), float("-inf"))
    if visible.span is not None and k_len > visible.span:
        n_out = k_len - visible.span  # columns that some query may no longer see
        # Query i may not see key j <= M + i - span.
        corner = torch.ones(q_len, n_out, dtype=torch.bool, device=scores.device)
        scores[..., :n_out].masked_fill_(corner.tril(visible.memory_len - visible.span), float("-inf"))


def _flat_heads(states: Tensor) -> Tensor:
    """`[B, N, K, H]` as `[B*N, K, H]`, without a copy where the layout allows it."""
    n_batch, n_heads, k_len, size = states.shape
    if states.stride(-1) == 1:
        return states.reshape(n_batch * n_heads, k_len, size)
    return states.mT.reshape(n_batch * n_heads, size, k_len).mT


__all__ = ["Block", "attend_one", "block_length", "blocked_attention", "blocks", "hide", "scores_by_distance"]
