"""Means of the weights over the steps of a training (Polyak and Juditsky 1992), often better than the last weights."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from .recipe import AveragingTable


class WeightAverage:
    """A running mean of a model's parameters.

    Args:
        model: whose parameters; the mean starts with them.
        options: what kind of mean.

    Attributes:
        n_averaged: sets of weights in the mean.
    """

    def __init__(self, model: nn.Module, options: AveragingTable) -> None:
        self.options = options
        self.n_averaged = 0
        self._parameters = dict(model.named_parameters())
        self._means = {name: parameter.detach().clone() for name, parameter in self._parameters.items()}

    @property
    def means(self) -> Mapping[str, Tensor]:
        """The mean of each parameter, by name."""
        return self._means

    @torch.no_grad()
    def update(self) -> None:
        """Take the present weights into the mean."""
        self.n_averaged += 1
        share = 1 / self.n_averaged
        if self.options.name == "exponential":
            share = max(share, 1 - self.options.decay)  # a plain mean at first, so that the start is soon forgotten
        for mean, parameter in zip(self._means.values(), self._parameters.values(), strict=True):
            mean.lerp_(parameter, share)

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """The model has the mean weights within the block, if there are any yet."""
        if self.n_averaged:
            self._swap()
        try:
            yield
        finally:
            if self.n_averaged:
                self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for mean, parameter in zip(self._means.values(), self._parameters.values(), strict=True):
            held = parameter.detach().clone()
            parameter.copy_(mean)
            mean.copy_(held)


__all__ = ["WeightAverage"]
