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
from .storage import room_for, zeros_like


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
        return _Weights(queries, self.k, dropout, seed)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, visible: VisibleKeys, dropout: float, *tensors: Tensor | None) -> Tensor:
        inputs = _Inputs(*tensors)  # type: ignore[arg-type]  # autograd hands them over one by one
        q, k, v = (states.contiguous() for states in inputs[:3])  # not parts of a wider tensor, which would live on
        inputs = inputs._replace(q=q, k=k, v=v)
        weights = inputs.weights(dropout, seed=new_seed() if dropout else 0)
        n_batch, n_heads, q_len, size = q.shape
        output = room_for((n_batch, q_len, n_heads, size), q.dtype)  # as the next product reads it
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
        gradients = _Gradients(inputs.weights(ctx.dropout, ctx.seed), inputs)
        by_head = output.transpose(1, 2)
        for number, block in enumerate(blocks(ctx.visible, *grad.shape[:2])):
            gradients.add(number, block, grad[block.of_queries].flatten(0, 1), by_head[block.of_queries].flatten(0, 1))
        return (None, None, *gradients.of_inputs())


class _Weights(NamedTuple):
    """Attention weights of one call, block by block, the same whenever they are asked for.

    Attributes:
        queries: the call's. k: its keys, `[B, N, K, H]`.
        dropout: probability of zeroing a weight. seed: of the masks.
    """

    queries: BlockQueries
    k: Tensor
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
        weights: those of the call. inputs: its tensors.
    """

    def __init__(self, weights: _Weights, inputs: _Inputs) -> None:
        self.weights, self.queries, self.inputs = weights, weights.queries, inputs
        self.of_q = room_for(inputs.q.shape, inputs.q.dtype)
        self.of_k, self.of_v = (zeros_like(t) for t in (inputs.k, inputs.v))
        of_rest = (None if tensor is None else zeros_like(tensor) for tensor in inputs[3:])
        self.of_content_bias, self.of_distance_keys, self.of_query_bias, self.of_score_bias = of_rest

    def add(self, number: int, block: Block, grad: Tensor, output: Tensor) -> None:
        """Take in a block's gradient of the output, `[b*n, q, H]`, which comes after it."""
        weights, sums, kept = self.weights.of_block(number, block)
        # The mean of a query's gradients of weights, under the weights, is that of its output by the output.
        mean = (grad * output).sum(-1, keepdim=True).div_(sums)
        grad = grad / sums
        k, v, of_k, of_v = (  # views, as two of them are added to
            states[block.of_keys].view(-1, weights.shape[2], states.shape[3])
            for states in (self.inputs.k, self.inputs.v, self.of_k, self.of_v)
        )
        room = self.queries.room
        dropped = weights if kept is None else torch.mul(weights, kept, out=room("dropped", *weights.shape))
        of_v.baddbmm_(dropped.mT, grad)
        of_scores = torch.bmm(grad, v.mT, out=room("of scores", *weights.shape))
        if kept is not None:
            of_scores.mul_(kept)
        of_scores.sub_(mean).mul_(weights)
        content = self.queries.content(block)
        of_k.baddbmm_(of_scores.mT, content.flatten(0, 1), alpha=self.queries.scale)
        of_content = torch.bmm(of_scores, k).mul_(self.queries.scale).view_as(content)
        if self.of_content_bias is not None:
            self.of_content_bias[block.heads] += of_content.sum((0, 2))
        if self.queries.distance is not None:
            of_content += self._add_by_distance(block, of_scores.unflatten(0, content.shape[:2]), self.queries.distance)
        self.of_q[block.of_queries] = of_content

    def _add_by_distance(self, block: Block, of_scores: Tensor, distance: DistanceTerms) -> Tensor:
        """Take in the share of the distances, from gradients of scores `[b, n, q, k]`; gives that of the queries."""
        n_batch, n_heads, q_len, k_len = of_scores.shape
        by_distance = self.queries.room("distances", n_heads, n_batch, q_len, k_len + 1)
        by_distance.flatten(2)[..., :q_len] = 0  # what the shift leaves out
        relative_shift(by_distance).copy_(of_scores.transpose(0, 1))
        near = distance.of_heads(block.heads).last(k_len + 1)
        n_near, scale = near.keys.shape[1], self.queries.scale
        n_farther = k_len + 1 - n_near
        if n_farther:
            by_distance[..., n_farther] += by_distance[..., :n_farther].sum(-1)
        of_near = by_distance[..., n_farther:].flatten(1, 2)  # [n, b*q, R]
        queries = self.queries.by_distance(block).transpose(0, 1)
        assert self.of_distance_keys is not None
        self.of_distance_keys[block.heads, -n_near:].baddbmm_(of_near.mT, queries.flatten(1, 2), alpha=scale)
        if self.of_score_bias is not None:
            self.of_score_bias[block.heads, -n_near:] += of_near.sum(1) * scale
        of_queries = torch.bmm(of_near, near.keys).mul_(scale).view(queries.shape).transpose(0, 1)
        if self.of_query_bias is not None:
            self.of_query_bias[block.heads] += of_queries.sum((0, 2))
        return of_queries

    def of_inputs(self) -> tuple[Tensor | None, ...]:
        """Gradients of `_Inputs`, in its order."""
        of_distance = (self.of_distance_keys, self.of_query_bias, self.of_score_bias)
        return (self.of_q, self.of_k, self.of_v, self.of_content_bias, *of_distance)


__all__ = ["attention_with_gradients"]
