"""Keep the results of runs in docs/results, and write its table.

python scripts/keep_results.py RUN --commit HASH --options "--set train.max_steps=300"
python scripts/keep_results.py   # only writes docs/results/README.md from what is kept

Copies a run's result, metrics, recipe and picture, and notes of which commit it was and with which options.
"""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results"
KEPT = ("metrics.jsonl", "recipe.toml", "learning-curve.png")
INTRO = """# Results

Runs that were made here. Written by `python scripts/keep_results.py`; each folder has the recipe with all its values,
every record, and the result as the run wrote it. The corpora were at the recipes' `data.path`, one thread of two shared
cores; text8 and enwik8 are prefixes of the corpora, split 90/5/5, so their numbers cannot be compared
with the paper's.
"""


def keep(run: Path, *, commit: str, options: str) -> None:
    """Copy what is worth keeping of a run."""
    folder = RESULTS / run.name
    folder.mkdir(parents=True, exist_ok=True)
    for name in KEPT:
        shutil.copyfile(run / name, folder / name)
    result = json.loads((run / "result.json").read_text(encoding="utf-8"))
    result["commit"] = commit
    result["command"] = f"transformer-xl train {run.name} {options}".rstrip()
    (folder / "result.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def row(folder: Path) -> str:
    """The line of a run in the table."""
    result: dict[str, Any] = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    unit = next(name for name in result["test"] if name != "loss_nats")
    test, valid = result["test"][unit], result["valid"][unit]
    machine = f"{result['cores']} cores, {result['threads']} threads, torch {result['versions']['torch']}"
    return (
        f"| [{result['command']}]({folder.name}/recipe.toml) | {result['parameters']:,} | {result['steps']:,} | "
        f"{unit.replace('_', ' ')} {test:.4g} ({valid:.4g}) | {result['tokens_per_s']:,.0f} | "
        f"{result['peak_memory_mib']:,.0f} MiB | {machine} | {result['commit']} |"
    )


def main() -> None:
    """Keep the runs that are named, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="?", help="folder of a run")
    parser.add_argument("--commit", help="of the code that made it")
    parser.add_argument("--options", default="", help="what stood behind the recipe's name")
    arguments = parser.parse_args()
    if arguments.run is not None:
        if arguments.commit is None:
            parser.error("--commit must be given with a run: the hash of the code that made it")
        keep(arguments.run, commit=arguments.commit, options=arguments.options)
    folders = sorted(path.parent for path in RESULTS.glob("*/result.json"))
    lines = [
        INTRO,
        "| run | parameters | steps | test (validation) | tokens/s | peak memory | machine | commit |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        *(row(folder) for folder in folders),
        "",
        *(f"![{folder.name}]({folder.name}/learning-curve.png)\n" for folder in folders),
    ]
    (RESULTS / "README.md").write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
