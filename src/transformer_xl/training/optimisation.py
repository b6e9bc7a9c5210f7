"""Optimisers and learning rates."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .recipe import AveragingTable, OptimizerTable, ScheduleTable

MATRICES_IN_A_WEIGHT = {"qkv_net": 3, "kv_net": 2}  # layers whose weight is several matrices, one below the other


class Muon(torch.optim.Optimizer):
    """Momentum whose steps are made orthogonal, for weight matrices (Jordan et al. 2024).

    A step's singular values are all made about 1, so directions that few examples speak for are learned, too. Steps are
    scaled to the size of Adam's (Liu et al. 2025, arXiv 2502.16982, section 2.2), so learning rates are alike.

    `torch.optim.Muon` iterates in bfloat16, which processors without matrix units for it do slowly, and one matrix
    after the other; this one iterates in the dtype of the weights and on all matrices of a shape at once.

    Args:
        weights: pairs of a weight and the number of matrices that lie in it one below the other.
        lr: learning rate.
        momentum: share of the past in the running mean of gradients.
        weight_decay: times `lr`, the share of a weight that is taken away at each step.
    """

    def __init__(
        self,
        weights: Iterable[tuple[Tensor, int]],
        *,
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
    ) -> None:
        weights = list(weights)
        self._n_matrices = dict(weights)
        super().__init__(
            [weight for weight, _ in weights], {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Make one step with the gradients at hand; `closure` is not used."""
        for group in self.param_groups:
            by_shape: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = defaultdict(list)
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                direction = self._direction(weight, group["momentum"])
                for rows, change in zip(*(t.chunk(self._n_matrices[weight]) for t in (weight, direction)), strict=True):
                    by_shape[rows.shape[0], rows.shape[1]].append((rows, change))
            for shape, pairs in by_shape.items():
                steps = orthogonalised(torch.stack([change for _, change in pairs])) * (0.2 * max(shape) ** 0.5)
                for (rows, _), change in zip(pairs, steps, strict=True):
                    rows.mul_(1 - group["lr"] * group["weight_decay"]).sub_(change, alpha=group["lr"])

    def _direction(self, weight: Tensor, momentum: float) -> Tensor:
        """Nesterov's momentum: the mean of past gradients, moved once more towards this one."""
        assert weight.grad is not None
        state = self.state[weight]
        if "mean" not in state:
            state["mean"] = torch.zeros_like(weight)
        state["mean"].lerp_(weight.grad, 1 - momentum)
        return torch.lerp(weight.grad, state["mean"], momentum)


def orthogonalised(matrices: Tensor, *, n_iterations: int = 5) -> Tensor:
    """Matrices with the same singular vectors and singular values moved to about 1, `[..., rows, columns]`.

    Newton-Schulz iteration with the coefficients of Jordan et al. 2024 (https://kellerjordan.github.io/posts/muon/),
    which trade exactness for speed: singular values end between about 0.7 and 1.2.
    """
    is_tall = matrices.shape[-2] > matrices.shape[-1]
    x: Tensor = matrices.mT if is_tall else matrices
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=1e-7)
    for _ in range(n_iterations):
        gram: Tensor = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.mT if is_tall else x


def make_optimizers(model: nn.Module, options: OptimizerTable) -> list[torch.optim.Optimizer]:
    """The optimisers that an optimiser's name stands for; every parameter belongs to one of them.

    Parameters whose gradients are sparse (sampled softmax) get one that touches the rows with a gradient only, without
    weight decay. With adamw and muon, only matrices of the layers decay.

    Each group of parameters has `lr_factor`, its share of the learning rate.
    """
    named = dict(model.named_parameters())  # a tied parameter is there once
    sparse = {name for name in sparse_parameters(model) if name in named}
    embeddings = {name for name in named if ".emb_layers." in f".{name}"}
    matrices = dict(_layer_matrices(model)) if options.name == "muon" else {}

    def groups(names: Iterable[str], **settings: Any) -> list[dict[str, Any]]:
        by_factor: dict[float, list[Tensor]] = defaultdict(list)
        for name in names:
            by_factor[options.embedding_lr_factor if name in embeddings else 1.0].append(named[name])
        return [{"params": params, "lr_factor": factor, **settings} for factor, params in by_factor.items()]

    optimizers: list[torch.optim.Optimizer] = []
    if matrices:
        weights = [(named[name], n_matrices) for name, n_matrices in matrices.items()]
        optimizers.append(Muon(weights, lr=options.lr, weight_decay=options.weight_decay))
    dense = [name for name in named if name not in sparse and name not in matrices]
    common: dict[str, Any] = {"lr": options.lr}
    adam = {**common, "betas": tuple(options.betas), "eps": options.eps}
    if options.name in ("adam", "adamw", "muon"):
        decays = [name for name in dense if named[name].dim() == 2 and ".layers." in f".{name}"]
        rest = [name for name in dense if name not in decays]
        if options.name == "adam":
            optimizers.append(torch.optim.Adam(groups(dense, weight_decay=options.weight_decay), **adam, fused=True))
        else:
            split = [*groups(decays, weight_decay=options.weight_decay), *groups(rest, weight_decay=0.0)]
            optimizers.append(torch.optim.AdamW(split, **adam, fused=True))
        if sparse:
            optimizers.append(torch.optim.SparseAdam(groups(sorted(sparse)), **adam))
    elif options.name == "sgd":
        settings = {"momentum": options.momentum, "weight_decay": options.weight_decay}
        plain = groups(sorted(sparse), momentum=0.0, weight_decay=0.0)
        optimizers.append(torch.optim.SGD([*groups(dense, **settings), *plain], **common))
    else:
        plain = groups(sorted(sparse), weight_decay=0.0)
        optimizers.append(
            torch.optim.Adagrad([*groups(dense, weight_decay=options.weight_decay), *plain], **common, eps=options.eps)
        )
    return optimizers


def sparse_parameters(model: nn.Module) -> set[str]:
    """Names of the parameters whose gradients are sparse: with a sampled softmax, the embeddings of both sides."""
    if not any(isinstance(module, nn.Embedding) and module.sparse for module in model.modules()):
        return set()
    return {
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding) or ".out_layers." in f".{name}"
    }


def _layer_matrices(model: nn.Module) -> Iterator[tuple[str, int]]:
    """Names of the weights of the layers' matrices, and how many matrices lie in each one below the other."""
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear) and ".layers." in f".{name}":
            yield f"{name}.weight", MATRICES_IN_A_WEIGHT.get(name.rpartition(".")[2], 1)


@dataclass
class LearningRate:
    """The learning rate of each step; its courses are those of the authors' `train.py`.

    Attributes:
        schedule: its course.
        peak: what it rises to.
        averaging: what may change it once weights are averaged.
        plateau: share that is left of it where the loss no longer fell.
        best: lowest validation loss so far, in nats.
        n_worse: evaluations since.
    """

    schedule: ScheduleTable
    peak: float
    averaging: AveragingTable = field(default_factory=AveragingTable)
    plateau: float = 1.0
    best: float = math.inf
    n_worse: int = 0

    def at(self, step: int, progress: float) -> float:
        """The learning rate of a step.

        Args:
            step: steps made before it.
            progress: share of the training that they are, 0 to 1.
        """
        schedule = self.schedule
        if step < schedule.warmup_steps:
            return self.peak * (step + 1) / schedule.warmup_steps
        lr = self.peak
        if schedule.name == "cosine":
            share = progress if schedule.decay_steps is None else min(1.0, step / schedule.decay_steps)
            lr = schedule.lr_min + (self.peak - schedule.lr_min) * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))
        elif schedule.name == "inverse_sqrt":
            lr = self.peak * (max(1, schedule.warmup_steps) / max(1, step)) ** 0.5
        elif schedule.name == "plateau":
            lr = self.peak * self.plateau
        lr = max(lr, schedule.lr_min)
        is_averaging = self.averaging.name != "none" and step >= self.averaging.start_step
        return lr * self.averaging.lr_factor if is_averaging else lr

    def tell(self, valid_loss: float) -> None:
        """Take note of an evaluation; `plateau` falls after too many without a better loss."""
        if valid_loss < self.best:
            self.best, self.n_worse = valid_loss, 0
            return
        self.n_worse += 1
        if self.schedule.name == "plateau" and self.n_worse > self.schedule.plateau_patience:
            self.plateau, self.n_worse = self.plateau * self.schedule.plateau_factor, 0

    def state(self) -> dict[str, Any]:
        """What has to be kept, for JSON."""
        best = None if math.isinf(self.best) else self.best
        return {"plateau": self.plateau, "best": best, "n_worse": self.n_worse}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`."""
        self.plateau, self.n_worse = state["plateau"], state["n_worse"]
        self.best = math.inf if state["best"] is None else state["best"]


def set_lr(optimizers: Iterable[torch.optim.Optimizer], lr: float) -> None:
    """Make `lr` the learning rate of all parameters, times the factor of their group."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = lr * group.get("lr_factor", 1.0)


def clip_gradients(parameters: Iterable[Tensor], max_norm: float) -> Tensor:
    """Scale the gradients down so that their norm is at most `max_norm`; gives the norm before, a scalar tensor.

    Takes sparse gradients as well, which `torch.nn.utils.clip_grad_norm_` does not.
    """
    values = []
    for parameter in parameters:
        if parameter.grad is not None and parameter.grad.is_sparse:
            parameter.grad = parameter.grad.coalesce()  # a row that occurs twice counts with its sum
            values.append(parameter.grad.values())
        elif parameter.grad is not None:
            values.append(parameter.grad)
    norm: Tensor = torch.nn.utils.get_total_norm(values)
    torch._foreach_mul_(values, (max_norm / (norm + 1e-6)).clamp(max=1.0))
    return norm


__all__ = [
    "LearningRate",
    "Muon",
    "clip_gradients",
    "make_optimizers",
    "orthogonalised",
    "set_lr",
    "sparse_parameters",
]
