"""The attention of attention.py with gradients, as it runs fastest on a processor.

As in blocked_attention.py, a block of queries is computed at a time. The backward pass computes the scores of a block
again instead of keeping them, so nothing of size `[Q, K]` lives between the passes. Gradients of scores are written
where the shift, a view, finds them by distance.

Inside, heads come before rows (`[N*B, ...]`), so that one product a head serves all rows where these meet the
distances, which they share.

Shapes: B batch, Q queries, M memory, K = M + Q keys, N heads, H head size, R distances that differ; q, k of a block.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .attention import DistanceTerms, VisibleKeys, relative_shift
from .blocked_attention import Block, block_length, blocks, hide, scores_by_distance
from .dropout import keep_mask, new_seed


def attention_with_gradients(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    content_bias: Tensor | None,
    distance: DistanceTerms | None,
    visible: VisibleKeys,
    dropout: float,
) -> Tensor:
    """`eager_attention`, whose arguments these are, without attention weights: `[B, N, Q, H]`."""
    terms = (None, None, None) if distance is None else distance
    attended: Tensor = _Attention.apply(q, k, v, content_bias, *terms, visible, dropout)
    return attended


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        content_bias: Tensor | None,
        distance_keys: Tensor | None,
        query_bias: Tensor | None,
        score_bias: Tensor | None,
        visible: VisibleKeys,
        dropout: float,
    ) -> Tensor:
        n_batch, length = q.shape[0], block_length(q, k)
        q, k, v = (states.transpose(0, 1).flatten(0, 1).contiguous() for states in (q, k, v))
        saved = (q, k, v, content_bias, distance_keys, query_bias, score_bias)
        seed = new_seed() if dropout else 0
        scores = _Scores(*saved, n_batch=n_batch, dropout=dropout, seed=seed)
        rows = (-1, n_batch)
        output = q.new_empty(n_batch, q.shape[1], q.shape[0] // n_batch, q.shape[2])  # as the next product reads it
        by_head = output.permute(2, 0, 1, 3)
        for block in blocks(visible, length):
            weights, kept = scores.weights(block)
            attended = torch.bmm(weights if kept is None else weights * kept, v[:, block.keys])
            by_head[:, :, block.queries] = attended.unflatten(0, rows)
        ctx.save_for_backward(*saved, output)
        ctx.visible, ctx.length, ctx.n_batch, ctx.dropout, ctx.seed = visible, length, n_batch, dropout, seed
        return output.transpose(1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        *saved, output = ctx.saved_tensors
        scores = _Scores(*saved, n_batch=ctx.n_batch, dropout=ctx.dropout, seed=ctx.seed)
        # The mean of a query's gradients of weights, under the weights.
        mean = (grad.transpose(1, 2) * output).sum(-1, keepdim=True).permute(2, 0, 1, 3).flatten(0, 1)
        grad = grad.transpose(0, 1).flatten(0, 1).contiguous()
        for block in blocks(ctx.visible, ctx.length):
            scores.add_gradients(block, grad[:, block.queries], mean[:, block.queries])
        return (*scores.gradients(), None, None)


class _Scores:
    """The scores of one call, block by block, and the gradients of what they are computed from.

    Args:
        q: `[N*B, Q, H]`. k, v: `[N*B, K, H]`. The others as in `eager_attention`, with the terms of a `DistanceTerms`.
    """

    def __init__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        content_bias: Tensor | None,
        distance_keys: Tensor | None,
        query_bias: Tensor | None,
        score_bias: Tensor | None,
        *,
        n_batch: int,
        dropout: float,
        seed: int,
    ) -> None:
        self.rows = (q.shape[0] // n_batch, n_batch)  # N, B
        self.scale = q.shape[-1] ** -0.5
        self.k, self.v = k, v
        self.has_content_bias = content_bias is not None
        self.content = self._with_bias(q, content_bias)
        self.distance = None
        if distance_keys is not None:
            self.distance = DistanceTerms(distance_keys, query_bias, score_bias)
            self.by_distance = self._with_bias(q, query_bias).unflatten(0, self.rows)  # [N, B, Q, H]
        self.dropout, self.seed = dropout, seed
        self.grad_k: Tensor | None = None

    def _with_bias(self, q: Tensor, bias: Tensor | None) -> Tensor:
        return q if bias is None else (q.unflatten(0, self.rows) + bias[:, None, None]).flatten(0, 1)

    def weights(self, block: Block) -> tuple[Tensor, Tensor | None]:
        """Attention weights before dropout, `[N*B, q, k]`, and what dropout multiplies them with, if there is any."""
        content, keys = self.content[:, block.queries], self.k[:, block.keys]
        k_len = keys.shape[1]
        if self.distance is None:
            scores = torch.bmm(content * self.scale, keys.mT)
        else:
            shifted = scores_by_distance(self.by_distance[:, :, block.queries], self.distance.last(k_len), k_len)
            # A new tensor, as a softmax of views would copy them twice.
            scores = torch.baddbmm(shifted.flatten(0, 1), content, keys.mT, beta=self.scale, alpha=self.scale)
        hide(scores.unflatten(0, self.rows).transpose(0, 1), block.visible)
        weights = torch.softmax(scores, -1, out=scores)
        if self.dropout == 0:
            return weights, None
        kept = keep_mask(weights.shape, self.dropout, self.seed + block.queries.start)
        return weights, kept.to(weights.dtype).mul_(1 / (1 - self.dropout)) if self.dropout < 1 else kept

    def add_gradients(self, block: Block, grad: Tensor, mean: Tensor) -> None:
        """Take in a block's gradient of the output, `[N*B, q, H]`, and its scalar product with it, `[N*B, q, 1]`."""
        if self.grad_k is None:
            self._start_gradients()
        assert self.grad_k is not None
        weights, kept = self.weights(block)
        self.grad_v[:, block.keys].baddbmm_((weights if kept is None else weights * kept).mT, grad)
        grad_scores, buffer = self._score_buffer(block)
        torch.bmm(grad, self.v[:, block.keys].mT, out=grad_scores)
        if kept is not None:
            grad_scores.mul_(kept)
        grad_scores.sub_(mean).mul_(weights)
        self.grad_k[:, block.keys].baddbmm_(grad_scores.mT, self.content[:, block.queries], alpha=self.scale)
        self.grad_content[:, block.queries] = torch.bmm(grad_scores, self.k[:, block.keys])
        if self.distance is not None:
            self._add_distance_gradients(block, buffer.unflatten(0, self.rows), self.distance)

    def _start_gradients(self) -> None:
        self.grad_content, self.grad_k, self.grad_v = map(torch.zeros_like, (self.content, self.k, self.v))
        if self.distance is not None:
            self.grad_by_distance = torch.empty_like(self.by_distance)
            self.grad_distance_keys = torch.zeros_like(self.distance.keys, memory_format=torch.contiguous_format)
            if self.distance.score_bias is not None:
                self.grad_score_bias = torch.zeros_like(self.distance.score_bias)

    def _score_buffer(self, block: Block) -> tuple[Tensor, Tensor]:
        """Room for gradients of scores, `[N*B, q, k]`, and the same room by distance, `[N*B, q, k + 1]`."""
        q_len, k_len = block.visible.q_len, block.visible.q_len + block.visible.memory_len
        buffer = self.k.new_empty(self.k.shape[0], q_len, k_len + 1)
        flat = buffer.flatten(1)
        flat[:, : q_len - 1] = 0  # what the shift leaves out
        flat[:, -1] = 0
        return relative_shift(buffer), buffer

    def _add_distance_gradients(self, block: Block, buffer: Tensor, distance: DistanceTerms) -> None:
        k_len = buffer.shape[-1] - 1
        n_near = min(k_len, distance.keys.shape[1])
        n_farther = k_len - n_near
        if n_farther:
            buffer[..., n_farther] += buffer[..., :n_farther].sum(-1)
        near = buffer[..., n_farther:k_len].flatten(1, 2)  # [N, B*q, R]
        queries = self.by_distance[:, :, block.queries].flatten(1, 2)  # [N, B*q, H]
        grad_queries = torch.bmm(near, distance.keys[:, -n_near:])
        self.grad_by_distance[:, :, block.queries] = grad_queries.unflatten(1, (self.rows[1], -1))
        self.grad_distance_keys[:, -n_near:].baddbmm_(near.mT, queries, alpha=self.scale)
        if distance.score_bias is not None:
            self.grad_score_bias[:, -n_near:] += near.sum(1) * self.scale

    def gradients(self) -> tuple[Tensor | None, ...]:
        """Gradients of q, k and v, `[B, N, ...]`, of the content bias, and of the terms of the distance."""
        assert self.grad_k is not None  # there is at least one block
        grad_content = self.grad_content.mul_(self.scale).unflatten(0, self.rows)
        grad_k, grad_v = self.grad_k.unflatten(0, self.rows), self.grad_v.unflatten(0, self.rows)
        content_bias = grad_content.sum((1, 2)) if self.has_content_bias else None
        grad_q = grad_content
        terms: tuple[Tensor | None, ...] = (None, None, None)
        if self.distance is not None:
            grad_by_distance = self.grad_by_distance.mul_(self.scale)
            terms = (
                self.grad_distance_keys,
                None if self.distance.query_bias is None else grad_by_distance.sum((1, 2)),
                None if self.distance.score_bias is None else self.grad_score_bias,
            )
            grad_q = grad_content + grad_by_distance
        states = (states.transpose(0, 1) for states in (grad_q, grad_k, grad_v))
        return (*states, content_bias, *terms)


__all__ = ["attention_with_gradients"]
