"""The attention of attention.py as it runs fastest on a processor, and the table of implementations.

A block of queries at a time: its scores stay in the processor's cache, and keys that no query of it may see are left
out. A block is itself a call of the formula, with a memory of its own. Scores of content are added by the matrix product
itself to those of distance, which lie in a buffer whose shift is a view; only the corners of a block need a mask.

Shapes: B batch, Q queries, M memory, K = M + Q keys, N heads, H head size, R distances that differ.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from .attention import DistanceTerms, VisibleKeys, eager_attention, relative_shift, sdpa_attention

BLOCK_SCORES = 1 << 21  # scores in a block: 8 MiB in float32, which fits into the last cache of most machines
SHORTEST_BLOCK = 32  # queries: below that, matrix products are no longer products of matrices


def fused_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    content_bias: Tensor | None,
    distance: DistanceTerms | None,
    visible: VisibleKeys,
    dropout: float = 0.0,
) -> tuple[Tensor, Tensor | None]:
    """What `eager_attention` computes, by the fastest path for the device and the task; gives no attention weights."""
    terms = {"content_bias": content_bias, "distance": distance, "visible": visible}
    if q.device.type != "cpu" or torch.compiler.is_compiling() or torch.is_grad_enabled() or dropout > 0:
        return sdpa_attention(q, k, v, **terms, dropout=dropout)
    return blocked_attention(q, k, v, **terms), None


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
    q_len = q.shape[2]
    length = block_length(q, k)
    if length >= q_len:
        return _attend_block(q, k, v, content_bias, distance, visible)
    blocks = []
    for start in range(0, q_len, length):
        end = min(start + length, q_len)
        keys, seen = visible.of_queries(start, end)
        near = None if distance is None else distance.last(keys.stop - keys.start)
        block = _attend_block(q[:, :, start:end], k[:, :, keys], v[:, :, keys], content_bias, near, seen)
        blocks.append(block)
    return torch.cat(blocks, dim=2)


def block_length(q: Tensor, k: Tensor) -> int:
    """Queries in a block, so that its scores fit into the cache."""
    n_batch, n_heads, k_len = k.shape[:3]
    return max(BLOCK_SCORES // (n_batch * n_heads * k_len), SHORTEST_BLOCK)


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
    content = (content * scale).to(q.dtype).reshape(n_batch * n_heads, q_len, size)
    if distance is None:
        scores = torch.bmm(content, keys.mT)
    else:
        scores = _distance_scores(q, distance, keys.shape[1], scale)
        scores.baddbmm_(content, keys.mT)
    _hide(scores, visible, n_batch)
    if scores.dtype in (torch.float32, torch.float64):
        weights = torch.softmax(scores, dim=-1, out=scores)
    else:
        weights = scores.softmax(-1, dtype=torch.float32).to(v.dtype)
    return torch.bmm(weights, values).view(n_batch, n_heads, q_len, size)


def _distance_scores(q: Tensor, distance: DistanceTerms, k_len: int, scale: float) -> Tensor:
    """Scaled scores by distance, under their keys, `[B*N, Q, K]`; of the future anything."""
    n_batch, n_heads, q_len, size = q.shape
    with_bias = q if distance.query_bias is None else q + distance.query_bias[:, None]
    # Heads first: then one product a head serves all rows of the batch.
    queries = (with_bias * scale).to(q.dtype).transpose(0, 1).reshape(n_heads, n_batch * q_len, size)
    n_columns = k_len + (q_len > 1)  # `relative_shift` asks for one more; one query needs no shift
    buffer = q.new_empty(n_heads, n_batch * q_len, n_columns)
    n_farther = k_len - distance.keys.shape[1]
    near = buffer[..., n_farther:k_len]
    if distance.score_bias is None:
        torch.bmm(queries, distance.keys.mT, out=near)
    else:
        torch.baddbmm((distance.score_bias * scale)[:, None], queries, distance.keys.mT, out=near)
    buffer[..., :n_farther] = buffer[..., n_farther : n_farther + 1]
    by_distance = buffer.view(n_heads, n_batch, q_len, n_columns)
    by_key = by_distance if q_len == 1 else relative_shift(by_distance)
    return by_key.transpose(0, 1).reshape(n_batch * n_heads, q_len, k_len)


def _hide(scores: Tensor, visible: VisibleKeys, n_batch: int) -> None:
    """Put -inf where a query may not look, in place: into the corners `[Q, Q]`, or wherever rows differ."""
    q_len, k_len = scores.shape[1:]
    if visible.n_hidden is not None:
        rows = scores.view(n_batch, -1, q_len, k_len)
        rows.masked_fill_(~visible.mask, float("-inf"))
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


AttentionFunction = Callable[..., tuple[Tensor, Tensor | None]]
ATTENTION_FUNCTIONS: dict[str, AttentionFunction] = {"eager": eager_attention, "sdpa": fused_attention}
"""Implementations by the name that `attn_implementation` gives them; all have the signature of `eager_attention`."""

__all__ = ["ATTENTION_FUNCTIONS", "block_length", "blocked_attention", "fused_attention"]
