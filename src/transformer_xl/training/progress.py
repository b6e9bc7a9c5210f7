"""The progress bar of a training: loss, perplexity or bits, tokens a second, time left."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import monotonic

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from transformer_xl.data.corpora import Unit

from .metrics import loss_in_unit, unit_title


@dataclass
class TrainingProgress:
    """Smoothed numbers of a training, shown by a bar where the output is a terminal.

    Attributes:
        loss: running mean of the losses that were told, in nats; about the last ten count.
        tokens_per_s: of the whole training so far.
    """

    bar: Progress
    task: TaskID
    unit: Unit
    loss: float = math.nan
    tokens_per_s: float = 0.0
    _n_tokens: int = 0
    _started: float = field(default_factory=monotonic)

    def advance(self, loss: float, *, n_tokens: int, progress: float) -> None:
        """Count steps of `n_tokens` together, with mean loss `loss`, after which `progress` (0 to 1) is done."""
        self.loss = loss if math.isnan(self.loss) else 0.9 * self.loss + 0.1 * loss
        self._n_tokens += n_tokens
        self.tokens_per_s = self._n_tokens / (monotonic() - self._started)
        self.bar.update(self.task, completed=progress, numbers=self._numbers())

    def _numbers(self) -> str:
        title = unit_title(self.unit)
        value = loss_in_unit(self.loss, self.unit)[title.replace(" ", "_")]
        return f"loss {self.loss:.3f} · {title} {value:.4g} · {self.tokens_per_s:,.0f} tokens/s"


@contextmanager
def training_progress(console: Console, *, unit: Unit) -> Iterator[TrainingProgress]:
    """Show a training's progress on `console` within the block.

    Args:
        console: where to; a console that is no terminal shows nothing.
        unit: what a token is.
    """
    columns = (
        TextColumn("training"),
        BarColumn(bar_width=24),
        TextColumn("{task.percentage:>3.0f}%"),
        TextColumn("{task.fields[numbers]}"),
        TimeRemainingColumn(compact=True),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        yield TrainingProgress(bar, bar.add_task("", total=1.0, numbers=""), unit)


__all__ = ["TrainingProgress", "training_progress"]
