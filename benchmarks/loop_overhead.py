"""What data, logging and progress cost: steps a second of the training loop, and of the bare model step.

python benchmarks/loop_overhead.py RECIPE --data FOLDER

Alternates blocks of steps in one process, on the same model and optimisers: the loop (reading the text, schedule,
records, progress) and a bare step on one batch that was read before (forward with memory, backward, clipping,
optimiser). Prints medians, then one JSON line.
"""

import argparse
import io
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console

from transformer_xl.cli.train import recipe_folder
from transformer_xl.data.opening import open_corpus
from transformer_xl.training.loop import Training
from transformer_xl.training.metrics import MetricsLog, loss_in_unit
from transformer_xl.training.optimisation import clip_gradients
from transformer_xl.training.progress import training_progress
from transformer_xl.training.recipe import read_recipe
from transformer_xl.training.run import make_accelerator, make_training


def bare_block(training: Training, n_steps: int) -> Callable[[], None]:
    """Steps of the model and the optimisers on one batch."""
    segment = training.stream.next_segment()

    def block() -> None:
        mems = None
        training.model.train()
        for _ in range(n_steps):
            output = training.model(segment.inputs, mems=mems, shift_labels=segment.targets, skip_logits=True)
            mems = output.mems
            output.loss.backward()
            clip_gradients(training.model.parameters(), training.recipe.optimizer.clip_norm)
            for optimizer in training.optimizers:
                optimizer.step()
                optimizer.zero_grad()

    return block


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", help="name of a recipe, such as text8-small")
    parser.add_argument("--data", required=True, help="its corpus")
    parser.add_argument("--steps", type=int, default=20, help="of a block (default: 20)")
    parser.add_argument("--blocks", type=int, default=9, help="of each kind (default: 9)")
    arguments = parser.parse_args()
    recipe = read_recipe(recipe_folder() / f"{arguments.recipe}.toml", [f"data.path={arguments.data}"])
    training = make_training(recipe, open_corpus(recipe.data.path), make_accelerator(recipe))
    console = Console(file=io.StringIO(), force_terminal=True)  # draws the bar
    with (
        tempfile.TemporaryDirectory() as folder,
        MetricsLog(Path(folder, "metrics.jsonl")) as log,
        training_progress(console, unit="character") as shown,
    ):

        def loop_block() -> None:
            losses = []
            for _ in range(arguments.steps):
                step = training.step()
                losses.append(step.loss)
                if step.number % recipe.log.every == 0:
                    mean = float(torch.stack(losses).mean())
                    shown.advance(mean, n_tokens=step.n_tokens * len(losses), progress=step.progress)
                    log.write("train", step=step.number, **loss_in_unit(mean, "character"))
                    losses = []

        blocks = {"loop": loop_block, "bare": bare_block(training, arguments.steps)}
        for block in blocks.values():
            block()  # warm up, and fill the memories
        seconds: dict[str, list[float]] = {name: [] for name in blocks}
        for _ in range(arguments.blocks):
            for name, block in blocks.items():
                started = time.perf_counter()
                block()
                seconds[name].append((time.perf_counter() - started) / arguments.steps)
    step_ms = {name: 1000 * statistics.median(times) for name, times in seconds.items()}
    share = step_ms["bare"] / step_ms["loop"]
    print(f"bare step {step_ms['bare']:.2f} ms, loop {step_ms['loop']:.2f} ms: the loop reaches {share:.1%}")
    print(
        json.dumps(
            {
                "benchmark": "loop_overhead",
                "recipe": arguments.recipe,
                "bare_step_ms": round(step_ms["bare"], 3),
                "loop_step_ms": round(step_ms["loop"], 3),
                "share": round(share, 4),
                "threads": torch.get_num_threads(),
                "torch": torch.__version__,
            }
        )
    )


if __name__ == "__main__":
    main()
