"""The attention of attention.py with gradients, as it runs fastest on a processor.

As in blocked_attention.py, a block of heads and queries is computed at a time. The backward pass computes the scores of
a block again instead of keeping them, so nothing of size `[Q, K]` lives between the passes. Gradients of scores are
written where the shift, a view, finds them by distance.

Shapes: B batch, Q queries, M memory, K = M + Q keys, N heads, H head size, R distances of a table; b, n, q, k those of
a block.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .attention import DistanceTerms, VisibleKeys, relative_shift
from .blocked_attention import Block, BlockQueries, blocks, exponentials
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
    attended: Tensor = _Attention.apply(visible, dropout, *_Inputs(q, k, v, content_bias, *terms))
    return attended


class _Inputs(NamedTuple):
    """The tensors of a call, in the order in which autograd is given them: what `attention_with_gradients` takes."""

    q: Tensor
    k: Tensor
    v: Tensor
    content_bias: Tensor | None
    distance_keys: Tensor | None
    query_bias: Tensor | None
    score_bias: Tensor | None

    def weights(self, dropout: float, seed: int) -> "_Weights":
        """The call's attention weights, which depend on all of these but `v`."""
        distance = None
        if self.distance_keys is not None:
            distance = DistanceTerms(self.distance_keys, self.query_bias, self.score_bias)
        queries = BlockQueries(self.q, self.content_bias, distance)
        return _Weights(queries, self.k, self.content_bias is not None, dropout, seed)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, visible: VisibleKeys, dropout: float, *tensors: Tensor | None) -> Tensor:
        inputs = _Inputs(*tensors)  # type: ignore[arg-type]  # autograd hands them over one by one
        q, k, v = (states.contiguous() for states in inputs[:3])  # not parts of a wider tensor, which would live on
        inputs = inputs._replace(q=q, k=k, v=v)
        weights = inputs.weights(dropout, seed=new_seed() if dropout else 0)
        n_batch, n_heads, q_len, size = q.shape
        output = q.new_empty(n_batch, q_len, n_heads, size)  # as the next product reads it
        by_head = output.transpose(1, 2)
        for number, block in enumerate(blocks(visible, n_batch, n_heads)):
            exponents, sums, kept = weights.of_block(number, block)
            if kept is not None:
                exponents.mul_(kept)
            attended = torch.bmm(exponents, v[block.of_keys].flatten(0, 1)).div_(sums)
            place = by_head[block.of_queries]
            place.copy_(attended.view_as(place))
        ctx.save_for_backward(*inputs, output)
        ctx.visible, ctx.dropout, ctx.seed = visible, dropout, weights.seed
        return by_head

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        *tensors, output = ctx.saved_tensors
        inputs = _Inputs(*tensors)
        gradients = _Gradients(inputs.weights(ctx.dropout, ctx.seed), inputs.v)
        # The mean of a query's gradients of weights, under the weights.
        mean = (grad.transpose(1, 2) * output).sum(-1, keepdim=True).transpose(1, 2)
        grad = grad.contiguous()
        for number, block in enumerate(blocks(ctx.visible, *grad.shape[:2])):
            gradients.add(number, block, grad[block.of_queries].flatten(0, 1), mean[block.of_queries].flatten(0, 1))
        return (None, None, *gradients.of_inputs())


class _Weights(NamedTuple):
    """Attention weights of one call, block by block, the same whenever they are asked for.

    Attributes:
        queries: the call's. k: its keys, `[B, N, K, H]`.
        has_content_bias: whether the queries have one.
        dropout: probability of zeroing a weight. seed: of the masks.
    """

    queries: BlockQueries
    k: Tensor
    has_content_bias: bool
    dropout: float
    seed: int

    def of_block(self, number: int, block: Block) -> tuple[Tensor, Tensor, Tensor | None]:
        """Weights before dropout, `[b*n, q, k]`, as exponentials and their sums, and what dropout multiplies them with.

        The latter is None without dropout.
        """
        weights, sums = exponentials(self.queries.scores(block, self.k), block.visible)
        if self.dropout == 0:
            return weights, sums, None
        kept = keep_mask(weights.shape, self.dropout, self.seed + number)
        return weights, sums, kept.to(weights.dtype).mul_(1 / (1 - self.dropout)) if self.dropout < 1 else kept


class _Gradients:
    """Gradients of what one call computed with, added up block by block.

    Args:
        weights: those of the call. v: its values, `[B, N, K, H]`.
    """

    def __init__(self, weights: _Weights, v: Tensor) -> None:
        self.weights, self.queries, self.k, self.v = weights, weights.queries, weights.k, v
        self.content = torch.empty_like(self.queries.content)
        self.of_k, self.of_v = torch.zeros_like(self.k), torch.zeros_like(v)
        self.distance = self.queries.distance
        if self.distance is not None:
            self.by_distance = torch.empty_like(self.content)
            self.of_distance_keys = torch.zeros_like(self.distance.keys, memory_format=torch.contiguous_format)
            if self.distance.score_bias is not None:
                self.of_score_bias = torch.zeros_like(self.distance.score_bias)

    def add(self, number: int, block: Block, grad: Tensor, mean: Tensor) -> None:
        """Take in a block's gradient of the output, `[b*n, q, H]`, and its scalar product with it, `[b*n, q, 1]`."""
        scale = self.queries.scale
        weights, sums, kept = self.weights.of_block(number, block)
        grad, mean = grad / sums, mean / sums
        k, v, of_k, of_v = (  # views, as two of them are added to
            states[block.of_keys].view(-1, weights.shape[2], states.shape[3])
            for states in (self.k, self.v, self.of_k, self.of_v)
        )
        room = self.queries.room
        dropped = weights if kept is None else torch.mul(weights, kept, out=room("dropped", *weights.shape))
        of_v.baddbmm_(dropped.mT, grad)
        of_scores = torch.bmm(grad, v.mT, out=room("of scores", *weights.shape))
        if kept is not None:
            of_scores.mul_(kept)
        of_scores.sub_(mean).mul_(weights)
        of_k.baddbmm_(of_scores.mT, self.queries.content[block.of_queries].flatten(0, 1), alpha=scale)
        place = self.content[block.of_queries]
        place.copy_(torch.bmm(of_scores, k).view_as(place))
        if self.distance is not None:
            self._add_by_distance(block, of_scores.unflatten(0, place.shape[:2]), self.distance)

    def _add_by_distance(self, block: Block, of_scores: Tensor, distance: DistanceTerms) -> None:
        """The share of the distances, from gradients of scores `[b, n, q, k]`."""
        n_batch, n_heads, q_len, k_len = of_scores.shape
        by_distance = self.queries.room("columns", n_heads, n_batch, q_len, k_len + 1)
        by_distance.flatten(2)[..., :q_len] = 0  # what the shift leaves out
        relative_shift(by_distance).copy_(of_scores.transpose(0, 1))
        near = distance.of_heads(block.heads).last(k_len + 1)
        n_farther = k_len + 1 - near.keys.shape[1]
        if n_farther:
            by_distance[..., n_farther] += by_distance[..., :n_farther].sum(-1)
        of_near = by_distance[..., n_farther:].flatten(1, 2)  # [n, b*q, R]
        queries = self.queries.by_distance[block.of_queries].transpose(0, 1)
        of_queries = torch.bmm(of_near, near.keys).view(queries.shape)
        self.by_distance[block.of_queries] = of_queries.transpose(0, 1)
        of_keys = self.of_distance_keys[block.heads, -near.keys.shape[1] :]
        of_keys.baddbmm_(of_near.mT, queries.flatten(1, 2), alpha=self.queries.scale)
        if distance.score_bias is not None:
            self.of_score_bias[block.heads, -near.keys.shape[1] :] += of_near.sum(1) * self.queries.scale

    def of_inputs(self) -> tuple[Tensor | None, ...]:
        """Gradients of `_Inputs`, in its order."""
        of_content = self.content.mul_(self.queries.scale)
        of_content_bias = of_content.sum((0, 2)) if self.weights.has_content_bias else None
        if self.distance is None:
            return of_content, self.of_k, self.of_v, of_content_bias, None, None, None
        of_by_distance = self.by_distance.mul_(self.queries.scale)
        terms = (
            self.of_distance_keys,
            None if self.distance.query_bias is None else of_by_distance.sum((0, 2)),
            None if self.distance.score_bias is None else self.of_score_bias,
        )
        return (of_content.add_(of_by_distance), self.of_k, self.of_v, of_content_bias, *terms)


__all__ = ["attention_with_gradients"]
