"""Adaptive input and softmax (Grave et al. 2017; Baevski & Auli 2019), and the sampled softmax.

Token ids ascend with rarity. Ids below the first cutoff form the shortlist, cluster 0; each cutoff starts a tail
cluster. The head of the softmax ranges over the shortlist and one column a tail cluster; a tail word's probability is
that of its cluster times that of the word within it. With `div_val > 1`, cluster i has embeddings of width
`d_embed // div_val**i`, projected to `d_proj`; with `div_val = 1` all clusters share one table and one projection.

Shapes: T positions, E_i embedding width of cluster i, V vocabulary, C clusters.
"""

import math
from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .cluster_losses import WordRange, range_losses
from .implementations import can_train_on_cpu, is_eager_cpu
from .linear_maps import linear


def cluster_bounds(n_token: int, cutoffs: Sequence[int]) -> list[tuple[int, int]]:
    """First id and past-the-last id of each cluster."""
    edges = [0, *cutoffs, n_token]
    return list(pairwise(edges))


class AdaptiveEmbedding(nn.Module):
    """Token embedding whose rare clusters are narrower, scaled by `sqrt(d_proj)`.

    Args:
        n_token: V.
        d_embed: width of the first cluster's embeddings.
        d_proj: width of the output, D.
        cutoffs: first ids of the tail clusters, ascending; `[]` for one cluster.
        div_val: cluster i is `d_embed // div_val**i` wide.
        sample_softmax: give sparse gradients, as training with a sampled softmax wants them.
    """

    def __init__(
        self,
        n_token: int,
        d_embed: int,
        d_proj: int,
        cutoffs: Sequence[int],
        div_val: int = 1,
        sample_softmax: bool = False,
    ) -> None:
        super().__init__()
        self.n_token = n_token
        self.d_embed = d_embed
        self.d_proj = d_proj
        self.div_val = div_val
        self.cutoffs = list(cutoffs)
        self.emb_scale: float = d_proj**0.5
        self.emb_layers = nn.ModuleList()
        self.emb_projs = nn.ParameterList()
        if div_val == 1:
            self.emb_layers.append(nn.Embedding(n_token, d_embed, sparse=sample_softmax))
            if d_proj != d_embed:
                self.emb_projs.append(nn.Parameter(torch.empty(d_proj, d_embed)))
        else:
            for i, (low, high) in enumerate(cluster_bounds(n_token, cutoffs)):
                width = d_embed // div_val**i
                self.emb_layers.append(nn.Embedding(high - low, width, sparse=sample_softmax))
                self.emb_projs.append(nn.Parameter(torch.empty(d_proj, width)))
        self._start_parameters()

    def _start_parameters(self) -> None:
        """Initial projections for use outside a model (inside one, the model initialises all parameters)."""
        for projection in self.emb_projs:
            nn.init.normal_(projection, std=0.01)

    def forward(self, input_ids: Tensor, *, table: Tensor | None = None) -> Tensor:
        """Embeddings of `input_ids [...]`, `[..., d_proj]`.

        With one table, `table` may be given in its place: it then has a sparse gradient (see `shared_by_two`).

        Every table is read for every position, at a clamped id where the position belongs to another cluster: no shape
        depends on the data, so nothing waits for the device, and the narrow tails make the extra work small. A single
        token on a processor reads its own.
        """
        if len(self.emb_layers) == 1:
            return self._embed(input_ids, 0, table) * self.emb_scale
        bounds = cluster_bounds(self.n_token, self.cutoffs)
        if input_ids.numel() == 1 and is_eager_cpu(input_ids) and not torch.is_grad_enabled():
            i = bisect_right(self.cutoffs, int(input_ids))  # here nothing has to be waited for
            return self._embed(input_ids - bounds[i][0], i) * self.emb_scale
        # Ids outside the vocabulary are not clamped: the look-up refuses them.
        embedded = self._embed(input_ids.clamp(max=bounds[0][1] - 1), 0)
        for i, (low, high) in enumerate(bounds[1:], start=1):
            highest = high - low - 1 if i < len(bounds) - 1 else None
            tail = self._embed((input_ids - low).clamp(0, highest), i)
            embedded = torch.where((input_ids >= low)[..., None], tail, embedded)
        return embedded * self.emb_scale

    def _embed(self, local_ids: Tensor, i: int, table: Tensor | None = None) -> Tensor:
        embedded: Tensor = (
            self.emb_layers[i](local_ids) if table is None else F.embedding(local_ids, table, sparse=True)
        )
        return linear(embedded, self.emb_projs[i], None) if len(self.emb_projs) else embedded

    def resize(self, cluster: int, change: int) -> None:
        """Add `change` tokens at the end of `cluster` (or remove, if negative); new rows are the cluster's mean."""
        low, high = cluster_bounds(self.n_token, self.cutoffs)[cluster]
        table = cast(nn.Embedding, self.emb_layers[0 if self.div_val == 1 else cluster])
        start = 0 if self.div_val == 1 else low
        table.weight = resized_rows(table.weight, low - start, high - start, change)
        table.num_embeddings = table.weight.shape[0]
        self.n_token, self.cutoffs = shifted_cutoffs(self.n_token, self.cutoffs, cluster, change)


class AdaptiveLogSoftmax(nn.Module):
    """Log-probabilities over the vocabulary from hidden states, by clusters.

    Args:
        n_token: V.
        d_embed: width of the first cluster's output embeddings.
        d_proj: width of the hidden states, D.
        cutoffs: first ids of the tail clusters, ascending; `[]` is a plain softmax.
        div_val: cluster i is `d_embed // div_val**i` wide.

    Tail cluster i reads column `cutoffs[0] + i - 1` of the head, as in transformers and the authors' TensorFlow code
    (their PyTorch code counts from the end, see docs/legacy.md).
    """

    def __init__(self, n_token: int, d_embed: int, d_proj: int, cutoffs: Sequence[int], div_val: int = 1) -> None:
        super().__init__()
        self.n_token = n_token
        self.d_embed = d_embed
        self.d_proj = d_proj
        self.div_val = div_val
        self.cutoffs = list(cutoffs)
        if self.cutoffs:
            self.cluster_weight = nn.Parameter(torch.zeros(len(self.cutoffs), d_embed))
            self.cluster_bias = nn.Parameter(torch.zeros(len(self.cutoffs)))
        self.out_layers = nn.ModuleList()
        self.out_projs = nn.ParameterList()
        bounds = cluster_bounds(n_token, cutoffs)
        if div_val == 1:
            self.out_layers.append(nn.Linear(d_embed, n_token))
            if d_proj != d_embed:
                self.out_projs.extend(nn.Parameter(torch.zeros(d_proj, d_embed)) for _ in bounds)
        else:
            for i, (low, high) in enumerate(bounds):
                width = d_embed // div_val**i
                self.out_layers.append(nn.Linear(width, high - low))
                self.out_projs.append(nn.Parameter(torch.zeros(d_proj, width)))

    def forward(self, hidden: Tensor, targets: Tensor, *, table: Tensor | None = None) -> Tensor:
        """Negative log-likelihood of each target, in nats and in order.

        Args:
            hidden: `[T, D]`.
            targets: token ids `[T]`; -100 is ignored.
            table: used instead of the output embeddings of a softmax with one table (see `shared_by_two`).

        Returns:
            `[T]` float32 or better, 0 where ignored.
        """
        bounds = cluster_bounds(self.n_token, self.cutoffs)
        shortlist = bounds[0][1]
        head_targets = targets
        for i, (low, _) in enumerate(bounds[1:]):
            head_targets = torch.where(targets >= low, shortlist + i, head_targets)
        members = [self._members(targets, low, high) for low, high in bounds[1:]]
        ranges = [
            WordRange(0, shortlist, head_targets),
            *(WordRange(low, high, targets[m] - low) for (low, high), m in zip(bounds[1:], members, strict=True)),
        ]
        losses, *of_tails = self._range_losses(ranges, [hidden, *(hidden[m] for m in members)], table)
        for at, tail_losses in zip(members, of_tails, strict=True):
            losses = losses.index_add(0, at, tail_losses)
        return losses

    @staticmethod
    def _members(targets: Tensor, low: int, high: int) -> Tensor:
        """Positions whose target is in a tail cluster; none is skipped, so each parameter is in every rank's graph."""
        return ((targets >= low) & (targets < high)).nonzero().squeeze(1)

    def _range_losses(self, ranges: list[WordRange], hidden: list[Tensor], table: Tensor | None) -> Sequence[Tensor]:
        """Losses of the targets of each cluster, from states before the projection."""
        if not can_train_on_cpu(hidden[0]):
            logits = [self._head_logits(hidden[0]), *(self._tail_logits(h, i) for i, h in enumerate(hidden) if i)]
            return [_cross_entropy(scores, part.targets) for scores, part in zip(logits, ranges, strict=True)]
        hidden = [self._project(states, i) for i, states in enumerate(hidden)]
        rows, row_bias = (self.cluster_weight, self.cluster_bias) if self.cutoffs else (None, None)
        if self.div_val == 1:
            weight, bias = self._layer(0).weight if table is None else table, self._layer(0).bias
            return range_losses(weight, bias, rows, row_bias, ranges, hidden)
        losses: list[Tensor] = []
        for i, (part, states) in enumerate(zip(ranges, hidden, strict=True)):
            layer, own = self._layer(i), WordRange(0, part.high - part.low, part.targets)
            extra = (rows, row_bias) if i == 0 else (None, None)
            losses += range_losses(layer.weight, layer.bias, extra[0], extra[1], [own], [states])
        return losses

    def log_prob(self, hidden: Tensor, *, n_best: int | None = None) -> Tensor:
        """Log-probabilities of all tokens, `[..., D]` to `[..., V]`, float32 or better.

        Args:
            hidden: `[..., D]`.
            n_best: how many tokens of each position matter; None for all. Clusters without any of them may be -inf, and
                the last ones are left out.

        Raises:
            ValueError: `n_best` is below 1.
        """
        head = _log_softmax(self._head_logits(hidden))
        if not self.cutoffs:
            return head
        shortlist = self.cutoffs[0]
        is_needed = self._needed_tails(head, n_best)
        while is_needed and not is_needed[-1]:
            is_needed.pop()
        parts = [head[..., :shortlist]]
        for i, (low, high) in enumerate(cluster_bounds(self.n_token, self.cutoffs)[1 : 1 + len(is_needed)]):
            if is_needed[i]:
                tail = _log_softmax(self._tail_logits(hidden, i + 1)) + head[..., shortlist + i, None]
            else:
                tail = head.new_full((*head.shape[:-1], high - low), float("-inf"))
            parts.append(tail)
        return torch.cat(parts, dim=-1)

    def _needed_tails(self, head: Tensor, n_best: int | None) -> list[bool]:
        """Which tail clusters may hold one of the `n_best` most probable tokens of some position.

        No token is more probable than its cluster, so a cluster less probable than `n_best` tokens of the shortlist
        holds none.
        """
        shortlist = self.cutoffs[0]
        if n_best is not None and n_best < 1:
            raise ValueError(f"n_best={n_best} must be at least 1: None is for all tokens.")
        is_worth_it = head.device.type == "cpu"  # elsewhere everything would wait for the answer
        if n_best is None or n_best > shortlist or not is_worth_it:
            return [True] * len(self.cutoffs)
        last = head[..., :shortlist].topk(n_best, dim=-1).values[..., -1:]
        needed: list[bool] = (head[..., shortlist:] >= last).flatten(0, -2).any(0).tolist()
        return needed

    def sampled(self, hidden: Tensor, targets: Tensor, *, n_samples: int) -> Tensor:
        """Negative log-likelihood under a softmax over the target and sampled tokens (Jean et al. 2015), for training.

        Tokens are drawn log-uniformly, so ids must ascend with rarity. Each logit is corrected by the log of the
        probability that its token is among the samples; a sample that is the target itself is removed.

        Args:
            hidden: `[T, D]`.
            targets: token ids `[T]`; -100 is ignored.
            n_samples: `2 * n_samples` draws are made, shared by all positions; repeated ones count once.

        Returns:
            `[T]` float32 or better, 0 where ignored.
        """
        layer = self._layer(0)
        hidden = self._project(hidden, 0)
        is_target = targets != -100
        known = targets.where(is_target, 0)
        samples, is_repeated = log_uniform_sample(self.n_token, 2 * n_samples, device=hidden.device)
        # Sparse look-ups: only the rows that are used get a gradient.
        target_rows = F.embedding(known, layer.weight, sparse=True)
        sample_rows = F.embedding(samples, layer.weight, sparse=True)
        target_logits = (target_rows * hidden).sum(-1) + layer.bias[known]
        sample_logits = hidden @ sample_rows.mT + layer.bias[samples]
        target_logits = target_logits - log_expected_count(known, self.n_token, 2 * n_samples)
        sample_logits = sample_logits - log_expected_count(samples, self.n_token, 2 * n_samples)
        is_removed = is_repeated | (samples == known[:, None])
        sample_logits = sample_logits.masked_fill(is_removed, float("-inf"))
        logits = torch.cat([target_logits[:, None], sample_logits], dim=-1)
        return -_log_softmax(logits)[:, 0] * is_target

    def resize(self, cluster: int, change: int) -> None:
        """Add `change` tokens at the end of `cluster` (or remove, if negative); new rows are the cluster's mean."""
        low, high = cluster_bounds(self.n_token, self.cutoffs)[cluster]
        layer = self._layer(0 if self.div_val == 1 else cluster)
        start = 0 if self.div_val == 1 else low
        layer.weight = resized_rows(layer.weight, low - start, high - start, change)
        layer.bias = resized_rows(layer.bias, low - start, high - start, change)
        layer.out_features = layer.bias.shape[0]
        self.n_token, self.cutoffs = shifted_cutoffs(self.n_token, self.cutoffs, cluster, change)

    def _project(self, hidden: Tensor, i: int) -> Tensor:
        return linear(hidden, self.out_projs[i].T, None) if len(self.out_projs) else hidden

    def _head_logits(self, hidden: Tensor) -> Tensor:
        projected = self._project(hidden, 0)
        logits = linear(projected, *self._rows(0))
        if not self.cutoffs:
            return logits
        # Joining logits instead of weights: one token must not copy the whole shortlist.
        return torch.cat([logits, F.linear(projected, self.cluster_weight, self.cluster_bias)], dim=-1)

    def _tail_logits(self, hidden: Tensor, i: int) -> Tensor:
        return linear(self._project(hidden, i), *self._rows(i))

    def _rows(self, i: int) -> tuple[Tensor, Tensor]:
        """Output embeddings and biases of cluster i."""
        if self.div_val > 1:
            return self._layer(i).weight, self._layer(i).bias
        low, high = cluster_bounds(self.n_token, self.cutoffs)[i]
        return self._layer(0).weight[low:high], self._layer(0).bias[low:high]

    def _layer(self, i: int) -> nn.Linear:
        return cast(nn.Linear, self.out_layers[i])


def log_uniform_sample(n_token: int, n_draws: int, *, device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids drawn with P(k) = log((k+2) / (k+1)) / log(n_token + 1), and which of them repeat an earlier one.

    Returns:
        ids `[n_draws]` in ascending order, and bool `[n_draws]`. Repeats are marked, not removed: their number depends
        on the draw, and a shape that depends on data makes the device wait.
    """
    uniform = torch.rand(n_draws, device=device, dtype=torch.float64)
    ids = (uniform * math.log(n_token + 1)).exp().long() - 1
    ids = ids.clamp(0, n_token - 1).sort().values
    is_repeated = F.pad(ids[1:] == ids[:-1], (1, 0))
    return ids, is_repeated


def log_expected_count(ids: Tensor, n_token: int, n_draws: int) -> Tensor:
    """Log of the probability that an id is among `n_draws` log-uniform draws, float32 in the shape of `ids`."""
    k = ids.double()
    probability = ((k + 2) / (k + 1)).log() / math.log(n_token + 1)
    return (-(n_draws * (-probability).log1p()).expm1()).log().float()


def resized_rows(rows: Tensor, low: int, high: int, change: int) -> nn.Parameter:
    """`rows` with `change` more (or fewer) at `high`, the new ones being the mean of rows `low` to `high`."""
    with torch.no_grad():
        kept = rows[: high + min(change, 0)]
        new = rows[low:high].mean(0, keepdim=True).expand(max(change, 0), *rows.shape[1:])
        resized = torch.cat([kept, new, rows[high:]])
    return nn.Parameter(resized, requires_grad=rows.requires_grad)


def shifted_cutoffs(n_token: int, cutoffs: Sequence[int], cluster: int, change: int) -> tuple[int, list[int]]:
    """Vocabulary size and cutoffs after `cluster` has grown by `change`."""
    return n_token + change, [cutoff + change * (i >= cluster) for i, cutoff in enumerate(cutoffs)]


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    precision = torch.promote_types(logits.dtype, torch.float32)
    return F.cross_entropy(logits.to(precision), targets, reduction="none", ignore_index=-100)


def _log_softmax(logits: Tensor) -> Tensor:
    return F.log_softmax(logits, dim=-1, dtype=torch.promote_types(logits.dtype, torch.float32))


__all__ = ["AdaptiveEmbedding", "AdaptiveLogSoftmax", "cluster_bounds"]
