"""`transformer-xl quickstart`: train, evaluate and try a small model on the text inside the package."""

from pathlib import Path
from typing import Annotated

import typer


def quickstart(
    output_dir: Annotated[
        Path, typer.Option("--output-dir", "-o", help="Folder for the model, the metrics and the picture.")
    ] = Path("runs/quickstart"),
    steps: Annotated[int, typer.Option(min=1, help="Training steps; the result of a seed depends on them.")] = 2500,
    minutes: Annotated[
        float, typer.Option(min=0.01, help="The training ends after this time even if steps are left.")
    ] = 5.0,
    seed: Annotated[int, typer.Option(min=0, help="Of the initial weights and of the written text.")] = 1,
    prompt: Annotated[str, typer.Option(help="What the written text goes on from.")] = "ROMEO:",
    length: Annotated[int, typer.Option(min=0, help="Characters to write at the end.")] = 500,
) -> None:
    """Train a small character model on Shakespeare, test it with and without memory, draw its curve, let it write.

    Takes a few minutes on two cores. Ctrl-C ends the training early and keeps what was reached.
    """
    from rich.console import Console
    from transformers.utils.logging import disable_progress_bar

    from transformer_xl.training.quickstart import QuickstartOptions, run_quickstart

    options = QuickstartOptions(
        output_dir=output_dir, max_steps=steps, max_minutes=minutes, seed=seed, prompt=prompt, length=length
    )
    disable_progress_bar()  # the one of our own says more
    run_quickstart(options, Console(highlight=False, soft_wrap=True))


__all__ = ["quickstart"]
