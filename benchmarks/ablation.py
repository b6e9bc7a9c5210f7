"""Does memory help, and do relative positions? Three models at equal compute, as in table 6 of Dai et al. 2019.

python benchmarks/ablation.py --data FOLDER --output docs/results/ablation-text8.json

Trains the recipe `text8-small`, made smaller, three times with each of three seeds: with memory and relative positions
(attention type 0), without memory, and without memory and with absolute positions (type 2). All variants read segments
of the same length. One without memory does less work in a step, so it gets more steps: as many as make the
floating-point operations of all trainings equal. Prints a table, and writes JSON.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console

from transformer_xl import TransfoXLConfig
from transformer_xl.files import written_whole
from transformer_xl.training.recipe import read_recipe
from transformer_xl.training.run import run_training

RECIPE = Path(__file__).parents[1] / "recipes" / "text8-small.toml"
SMALLER = {"n_layer": 3, "d_model": 128, "d_embed": 128, "n_head": 2, "d_head": 64, "d_inner": 512, "tgt_len": 64}
VARIANTS: dict[str, dict[str, Any]] = {
    "memory, relative (type 0)": {"attn_type": 0, "mem_len": 64},
    "no memory, relative (type 0)": {"attn_type": 0, "mem_len": 0},
    "no memory, absolute (type 2)": {"attn_type": 2, "mem_len": 0},
}


def operations_per_token(config: TransfoXLConfig, batch_size: int) -> float:
    """Multiplications of a forward pass, for each token of a segment; three times as many with the backward pass."""
    width, q_len, k_len = config.n_head * config.d_head, config.tgt_len, config.mem_len + config.tgt_len
    projections = 2 * config.d_model * width + 2 * config.d_model * width * k_len / q_len  # q and output; k and v
    feed_forward = 2 * config.d_model * config.d_inner
    pairs = k_len * width * (3 if config.attn_type == 0 else 2)  # content, values, distances
    distances = k_len * config.d_model * width / (q_len * batch_size) if config.attn_type == 0 else 0
    layers = config.n_layer * (projections + feed_forward + pairs + distances)
    return layers + config.d_model * config.vocab_size


def main() -> None:
    """Train them all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder of text8, prepared or raw")
    parser.add_argument("--output", type=Path, required=True, help="JSON file")
    parser.add_argument("--steps", type=int, default=500, help="of the model with memory (default: 500)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="default: 1 2 3")
    arguments = parser.parse_args()

    base = read_recipe(RECIPE)
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in VARIANTS}
    work = {}
    for name, changes in VARIANTS.items():
        config = TransfoXLConfig(**{**base.model, **SMALLER, **changes, "vocab_size": 27})
        work[name] = operations_per_token(config, base.train.batch_size)
    steps = {name: round(arguments.steps * max(work.values()) / operations) for name, operations in work.items()}
    with tempfile.TemporaryDirectory() as folder:
        for seed in arguments.seeds:
            for name, changes in VARIANTS.items():
                n = steps[name]
                tables = {
                    "data": base.data.model_copy(update={"path": arguments.data}),
                    "model": {**base.model, **SMALLER, **changes},
                    "train": base.train.model_copy(update={"max_steps": n, "seed": seed}),
                    "evaluation": base.evaluation.model_copy(update={"every": n, "mem_len": None}),
                    "test": base.test.model_copy(update={"mem_len": None}),
                    "checkpoints": base.checkpoints.model_copy(update={"every": n}),
                    "log": base.log.model_copy(update={"tensorboard": False}),
                }
                run = Path(folder, f"{len(results[name])}-{seed}-{list(VARIANTS).index(name)}")
                result = run_training(base.model_copy(update=tables), run, resume=False, console=Console(quiet=True))
                results[name].append({"seed": seed, "steps": n, **result["test"]})
                print(f"seed {seed}  {name:<30} {n:>5} steps  {result['test']['bits_per_character']:.4f}", flush=True)
    summary = {
        name: {
            "test_bits_per_character_mean": statistics.mean(run["bits_per_character"] for run in runs),
            "test_bits_per_character_stdev": statistics.stdev(run["bits_per_character"] for run in runs),
            "million_multiplications_per_token_forward": work[name] / 1e6,
            "runs": runs,
        }
        for name, runs in results.items()
    }
    print("\n| model | steps | test bits per character, mean of seeds | standard deviation |\n|---|---|---|---|")
    for name, row in summary.items():
        mean, deviation = row["test_bits_per_character_mean"], row["test_bits_per_character_stdev"]
        print(f"| {name} | {steps[name]} | {mean:.4f} | {deviation:.4f} |")
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    report = {
        "benchmark": "ablation",
        "model": SMALLER,
        "variants": summary,
        "device": {"platform": platform.platform(), "cores": os.cpu_count()},
        "versions": {name: version(name) for name in ("transformer-xl", "torch", "transformers")},
    }
    with written_whole(arguments.output) as partial:
        partial.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
