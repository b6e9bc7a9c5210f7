"""Optimisers and learning rates."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

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


def make_optimizers(model: nn.Module, *, lr: float, weight_decay: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, AdamW (Loshchilov and Hutter 2019) for all else.

    Only matrices decay, not biases, normalisation weights and embeddings.
    """
    matrices = [
        (layer.weight, MATRICES_IN_A_WEIGHT.get(name.rpartition(".")[2], 1))
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear) and ".layers." in f".{name}"
    ]
    own = {id(weight) for weight, _ in matrices}
    rest = [parameter for parameter in model.parameters() if id(parameter) not in own]
    return [
        Muon(matrices, lr=lr, weight_decay=weight_decay),
        torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.98), weight_decay=0.0, fused=True),
    ]


def cosine_with_warmup(progress: float, *, step: int, warmup_steps: int) -> float:
    """The learning rate as a share of its peak: a linear rise, then half a cosine down to 0.

    Args:
        progress: share of the training that is done, 0 to 1.
        step: steps made.
        warmup_steps: steps of the rise.
    """
    rise = min(1.0, (step + 1) / max(1, warmup_steps))
    return rise * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def set_lr(optimizers: Iterable[torch.optim.Optimizer], lr: float) -> None:
    """Make `lr` the learning rate of all parameters."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = lr


__all__ = ["Muon", "cosine_with_warmup", "make_optimizers", "orthogonalised", "set_lr"]
