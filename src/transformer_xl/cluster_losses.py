"""Losses of a softmax over ranges of one table of words, with gradients that are written where they belong.

Plain autograd gives each range of a table a gradient of the whole table's size, fills it with zeros, and adds them up:
for 267,735 words in 4 clusters that is most of a training step. Here all ranges write into one gradient, a slice of
words at a time; of the log-probabilities nothing is copied, and those of a range are let go before the next range's
gradients need room. Where the table is also that of the embedding, the embedding's gradient, a few rows, is added to
the one that is there (`shared_by_two`).

Shapes: T positions of a range, E width of the table, W words of a range, V rows of the table, C tail clusters.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .blocked_attention import LOG2_E
from .storage import room_for, zeros_like

SLICE_NUMBERS = 1 << 18  # probabilities in a slice of words: 1 MiB in float32


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


class _Rows(NamedTuple):
    """Output embeddings and biases, or their gradients: what `range_losses` takes first."""

    table: Tensor
    bias: Tensor
    extra_rows: Tensor | None
    extra_bias: Tensor | None

    def of_range(self, ranges: Sequence[WordRange], i: int) -> list[tuple[Tensor, Tensor]]:
        """Rows and biases of the words of range i, in order: views of the table, then for the first the extra ones."""
        words = slice(ranges[i].low, ranges[i].high)
        pieces = [(self.table[words], self.bias[words])]
        if i == 0 and self.extra_rows is not None:
            assert self.extra_bias is not None
            pieces.append((self.extra_rows, self.extra_bias))
        return pieces


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
        rows = _Rows(table, bias, extra_rows, extra_bias)
        ctx.log_probs = [_log_probs(rows.of_range(ranges, i), states) for i, states in enumerate(hidden)]
        ctx.ranges = ranges
        ctx.save_for_backward(*rows, *hidden)
        return tuple(
            -scores.gather(1, part.targets.clamp(min=0)[:, None])[:, 0] * (part.targets != -100)
            for scores, part in zip(ctx.log_probs, ranges, strict=True)
        )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        rows, hidden = _Rows(*ctx.saved_tensors[:4]), ctx.saved_tensors[4:]
        is_whole = sum(part.high - part.low for part in ctx.ranges) == len(rows.table)
        of_rows = _Rows(
            room_for(rows.table.shape, rows.table.dtype) if is_whole else torch.zeros_like(rows.table),
            torch.zeros_like(rows.bias),
            None if rows.extra_rows is None else torch.empty_like(rows.extra_rows),
            None if rows.extra_bias is None else torch.empty_like(rows.extra_bias),
        )
        of_hidden = []
        for i, (part, states) in enumerate(zip(ctx.ranges, hidden, strict=True)):
            pieces = rows.of_range(ctx.ranges, i)
            log_probs, ctx.log_probs[i] = ctx.log_probs[i], None
            if log_probs is None:  # gradients are asked for again
                log_probs = _log_probs(pieces, states)
            of_pieces = of_rows.of_range(ctx.ranges, i)
            of_hidden.append(_add_gradients(states, log_probs, part.targets, grads[i], pieces, of_pieces))
            del log_probs  # before the next range's gradients need room
        return (*of_rows, None, *of_hidden)


def _log_probs(pieces: Sequence[tuple[Tensor, Tensor]], hidden: Tensor) -> Tensor:
    """Log-probabilities of the words of a range, `[T, W]` (and C extra), whose rows and biases are given in order."""
    logits = room_for((len(hidden), sum(len(rows) for rows, _ in pieces)), hidden.dtype)
    first = 0
    for rows, bias in pieces:
        for words in _slices(hidden, len(rows)):
            place = logits[:, first + words.start : first + words.stop]
            torch.addmm(bias[words], hidden, rows[words].T, out=place)
        first += len(rows)
    return torch.log_softmax(logits, -1, out=logits)


def _slices(hidden: Tensor, n_words: int) -> Iterator[slice]:
    """Slices of words for products with states `[T, E]`; neither their results nor their factors are large.

    The libraries that compute products keep room for a rearranged copy of a factor.
    """
    n_at_once = max(SLICE_NUMBERS // max(*hidden.shape, 1), 1)
    for start in range(0, n_words, n_at_once):
        yield slice(start, min(start + n_at_once, n_words))


def _add_gradients(
    hidden: Tensor,
    log_probs: Tensor,
    targets: Tensor,
    grad: Tensor,
    pieces: Sequence[tuple[Tensor, Tensor]],
    of_pieces: Sequence[tuple[Tensor, Tensor]],
) -> Tensor:
    """Gradient of the states of a range, `[T, E]`; fills those of its rows and biases.

    Args:
        grad: of the losses, `[T]`.
        pieces: rows and biases of the words of a range, in order.
        of_pieces: room for their gradients.
    """
    grad = (grad * (targets != -100))[:, None]
    grad_hidden = zeros_like(hidden)
    room = room_for((max(SLICE_NUMBERS, log_probs.shape[0]),), hidden.dtype)
    first = 0
    for (rows, _), (grad_rows, grad_bias) in zip(pieces, of_pieces, strict=True):
        for words in _slices(hidden, len(rows)):
            places = log_probs[:, first + words.start : first + words.stop]
            grad_logits = torch.mul(places, LOG2_E, out=room[: places.numel()].view_as(places)).exp2_().mul_(grad)
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
