"""The training loop as a generator: each item is a step that was made; who reads it decides what to do in between."""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from transformer_xl.data.streams import ring_segment
from transformer_xl.modeling import TransfoXLLMHeadModel

from .optimisation import cosine_with_warmup, make_optimizers, set_lr


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """How to train.

    Attributes:
        batch_size: rows, each with its own stretch of the text and its own memory.
        segment_len: tokens of a row and step.
        max_steps: steps of a complete training.
        max_minutes: training ends here even if steps are left; the learning rate then falls with the time.
        lr: peak learning rate.
        warmup_steps: steps in which the learning rate rises to `lr`.
        weight_decay: of the matrices.
        clip_norm: the gradient's norm is scaled down to this.
    """

    batch_size: int
    segment_len: int
    max_steps: int
    max_minutes: float
    lr: float
    warmup_steps: int
    weight_decay: float = 0.01
    clip_norm: float = 1.0

    def __post_init__(self) -> None:
        for name in ("batch_size", "segment_len", "max_steps", "max_minutes", "lr", "clip_norm"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}={getattr(self, name)} must be positive.")


@dataclass(frozen=True)
class Step:
    """One training step that was made.

    Attributes:
        number: steps made, this one included.
        progress: share of the training that is done, 0 to 1; 1 at the last step.
        loss: mean loss in nats, a scalar tensor without history.
        lr: learning rate of the step.
    """

    number: int
    progress: float
    loss: Tensor
    lr: float


def training_steps(model: TransfoXLLMHeadModel, tokens: Tensor, options: TrainingOptions) -> Iterator[Step]:
    """Train the model in place, a step each time the next item is asked for.

    Args:
        model: the model; put into training mode at every step, so a reader may evaluate in between.
        tokens: the text, `[T]`, on the model's device.
        options: how to train.
    """
    optimizers = make_optimizers(model, lr=options.lr, weight_decay=options.weight_decay)
    started = time.monotonic()
    mems, number, progress = None, 0, 0.0
    while progress < 1:
        lr = options.lr * cosine_with_warmup(progress, step=number, warmup_steps=options.warmup_steps)
        set_lr(optimizers, lr)
        loss, mems = _step(model, optimizers, tokens, mems, number, options)
        number += 1
        minutes = (time.monotonic() - started) / 60
        progress = max(number / options.max_steps, minutes / options.max_minutes)
        yield Step(number, min(1.0, progress), loss, lr)


def _step(
    model: TransfoXLLMHeadModel,
    optimizers: list[torch.optim.Optimizer],
    tokens: Tensor,
    mems: list[Tensor] | None,
    number: int,
    options: TrainingOptions,
) -> tuple[Tensor, list[Tensor] | None]:
    inputs, targets = ring_segment(tokens, step=number, batch_size=options.batch_size, segment_len=options.segment_len)
    model.train()
    output = model(inputs, mems=mems, shift_labels=targets)
    output.loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), options.clip_norm)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()
    return output.loss.detach(), output.mems


__all__ = ["Step", "TrainingOptions", "training_steps"]
