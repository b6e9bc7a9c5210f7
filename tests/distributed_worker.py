"""Runs on several processes, one after the other, so that many of them cost one start.

torchrun --nproc-per-node N tests/distributed_worker.py FOLDER

FOLDER/jobs.json is a list of jobs with `recipe`, `folder`, `resume` and, to take up a run in the middle, `source`: a
finished run of which the new folder gets a copy as it was at its first checkpoint. FOLDER/written-R.json is what
process R wrote, made, renamed or deleted during the runs.
"""

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from rich.console import Console

from transformer_xl.training.checkpoints import checkpoints
from transformer_xl.training.recipe import make_recipe
from transformer_xl.training.run import run_training

CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "shutil.rmtree"}


def watch(written: list[str]) -> None:
    """Note every file that this process changes from now on."""

    def note(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if isinstance(path, str) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                written.append(path)
        elif event in CHANGES:
            written.append(str(arguments[0]))

    sys.addaudithook(note)


def cut(source: Path, folder: Path) -> None:
    """Copy a run as it was when it wrote its first checkpoint."""
    shutil.copytree(source, folder)
    for later in checkpoints(folder)[1:]:
        shutil.rmtree(later)


def main() -> None:
    """Do all jobs."""
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    written: list[str] = []
    watch(written)
    state = PartialState()
    for job in json.loads((folder / "jobs.json").read_text()):
        if "source" in job and state.is_main_process:
            cut(Path(job["source"]), Path(job["folder"]))
        state.wait_for_everyone()
        run_training(make_recipe(job["recipe"]), Path(job["folder"]), resume=job["resume"], console=Console(quiet=True))
    (folder / f"written-{state.process_index}.json").write_text(json.dumps(written))
    state.destroy_process_group()


if __name__ == "__main__":
    main()
