"""Losses of a softmax over ranges of one table of words, with gradients that are written where they belong.

Plain autograd gives each range of a table a gradient of the whole table's size, fills it with zeros, and adds them up:
for 267,735 words in 4 clusters that is most of a training step. Here all ranges write into one gradient, a slice of
words at a time, and of the log-probabilities nothing is copied. Where the table is also that of the embedding, the
embedding's gradient, a few rows, is added to the one that is there (`shared_by_two`).

Shapes: T positions of a range, E width of the table, W words of a range, V rows of the table, C tail clusters.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

SLICE_NUMBERS = 1 << 20  # probabilities in a slice of words: 4 MiB in float32


class WordRange(NamedTuple):
    """What is predicted among the words `low` to `high` of a table.

    Attributes:
        low: first row of the table. high: past the last one.
        targets: the right word of each position, counted from `low`, `[T]`; -100 is ignored. Words from W on are
            those of the extra rows.
    """

    low: int
    high: int
    targets: Tensor


def range_losses(
    table: Tensor,
    bias: Tensor,
    extra_rows: Tensor | None,
    extra_bias: Tensor | None,
    ranges: Sequence[WordRange],
    hidden: Sequence[Tensor],
) -> tuple[Tensor, ...]:
    """Negative log-likelihood of each target in its range, `[T]` for each range, 0 where ignored.

    Args:
        table: output embeddings, `[V, E]`.
        bias: `[V]`.
        extra_rows: rows that the first range has beyond its own, `[C, E]`; None for none.
        extra_bias: `[C]`, or None.
        ranges: ranges that do not overlap.
        hidden: for each range the states that predict, `[T, E]`.
    """
    losses: tuple[Tensor, ...] = _RangeLosses.apply(table, bias, extra_rows, extra_bias, ranges, *hidden)
    return losses


class _RangeLosses(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        table: Tensor,
        bias: Tensor,
        extra_rows: Tensor | None,
        extra_bias: Tensor | None,
        ranges: Sequence[WordRange],
        *hidden: Tensor,
    ) -> tuple[Tensor, ...]:
        log_probs = []
        for i, (part, states) in enumerate(zip(ranges, hidden, strict=True)):
            n_words = part.high - part.low
            n_extra = 0 if extra_rows is None or i else len(extra_rows)
            logits = states.new_empty(len(states), n_words + n_extra)
            torch.addmm(bias[part.low : part.high], states, table[part.low : part.high].T, out=logits[:, :n_words])
            if n_extra:
                assert extra_rows is not None
                assert extra_bias is not None
                torch.addmm(extra_bias, states, extra_rows.T, out=logits[:, n_words:])
            log_probs.append(torch.log_softmax(logits, -1, out=logits))
        targets = [part.targets for part in ranges]
        ctx.save_for_backward(table, extra_rows, *hidden, *log_probs, *targets)
        ctx.bounds = [(part.low, part.high) for part in ranges]
        return tuple(
            -scores.gather(1, target.clamp(min=0)[:, None])[:, 0] * (target != -100)
            for scores, target in zip(log_probs, targets, strict=True)
        )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        table, extra_rows, *states = ctx.saved_tensors
        n_ranges = len(ctx.bounds)
        hidden, log_probs, targets = (states[i * n_ranges : (i + 1) * n_ranges] for i in range(3))
        is_whole = sum(high - low for low, high in ctx.bounds) == len(table)
        grad_table = torch.empty_like(table) if is_whole else torch.zeros_like(table)
        grad_bias = table.new_zeros(len(table))
        grad_extra = None if extra_rows is None else torch.empty_like(extra_rows)
        grad_extra_bias = None if extra_rows is None else extra_rows.new_empty(len(extra_rows))
        grad_hidden = []
        for i, (low, high) in enumerate(ctx.bounds):
            pieces = [(table[low:high], grad_table[low:high], grad_bias[low:high])]
            if extra_rows is not None and i == 0:
                assert grad_extra is not None
                assert grad_extra_bias is not None
                pieces.append((extra_rows, grad_extra, grad_extra_bias))
            grad_hidden.append(_add_gradients(hidden[i], log_probs[i], targets[i], grads[i], pieces))
        return (grad_table, grad_bias, grad_extra, grad_extra_bias, None, *grad_hidden)


def _add_gradients(
    hidden: Tensor, log_probs: Tensor, targets: Tensor, grad: Tensor, pieces: Sequence[tuple[Tensor, Tensor, Tensor]]
) -> Tensor:
    """Gradient of the states of a range, `[T, E]`; fills those of its rows and biases.

    Args:
        grad: of the losses, `[T]`.
        pieces: rows, and room for their gradients and for those of their biases; the words of a range in order.
    """
    grad = (grad * (targets != -100))[:, None]
    grad_hidden = torch.zeros_like(hidden)
    first = 0
    for rows, grad_rows, grad_bias in pieces:
        n_at_once = max(SLICE_NUMBERS // max(len(hidden), 1), 1)
        for start in range(0, len(rows), n_at_once):
            words = slice(start, min(start + n_at_once, len(rows)))
            grad_logits = log_probs[:, first + words.start : first + words.stop].exp().mul_(grad)
            torch.mm(grad_logits.T, hidden, out=grad_rows[words])
            grad_bias[words] = grad_logits.sum(0)
            grad_hidden.addmm_(grad_logits, rows[words])
        # What the right word has beyond its probability.
        is_here = (targets >= first) & (targets < first + len(rows))
        at, word, share = is_here.nonzero()[:, 0], targets[is_here] - first, grad[is_here]
        grad_rows.index_add_(0, word, hidden[at] * share, alpha=-1)
        grad_bias.index_add_(0, word, share[:, 0], alpha=-1)
        grad_hidden.index_add_(0, at, rows[word] * share, alpha=-1)
        first += len(rows)
    return grad_hidden


def shared_by_two(table: Tensor) -> tuple[Tensor, Tensor]:
    """A table for an embedding with sparse gradients, and for a softmax, whose gradient takes in the other's."""
    of_embedding, of_softmax = _SharedTable.apply(table)
    return of_embedding, of_softmax


class _SharedTable(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table: Tensor) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        return table.view_as(table), table.view_as(table)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_embedding: Tensor | None, of_softmax: Tensor | None) -> Tensor | None:
        if of_softmax is None:
            return of_embedding.to_dense() if of_embedding is not None and of_embedding.is_sparse else of_embedding
        return of_softmax if of_embedding is None else of_softmax.add_(of_embedding)


__all__ = ["WordRange", "range_losses", "shared_by_two"]
