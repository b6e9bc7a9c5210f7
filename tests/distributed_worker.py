"""Runs on several processes, one after the other, so that many of them cost one start.

torchrun --nproc-per-node N tests/distributed_worker.py FOLDER

FOLDER/jobs.json is a list of jobs: `recipe`, `folder` and `resume` are what `run_training` takes. With `source`, the
folder is first made a copy of that run as it was at its first checkpoint. With `others`, all processes but the first
have these values instead. Process R writes FOLDER/process-R.json: the error of each job, the paths it changed, and how
many threads of gloo ended when it left the others.
"""

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from transformer_xl.training.checkpoints import checkpoints
from transformer_xl.training.processes import Elsewhere, join_processes, leave_processes
from transformer_xl.training.recipe import make_recipe
from transformer_xl.training.run import run_training

CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "shutil.rmtree"}


def watch(changed: list[str]) -> None:
    """Note every path that this process writes, makes, renames or deletes from now on."""

    def note(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if isinstance(path, str) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                changed.append(path)
        elif event in CHANGES:
            changed.append(str(arguments[0]))

    sys.addaudithook(note)


def cut(source: Path, folder: Path) -> None:
    """Copy a run as it was when it wrote its first checkpoint."""
    shutil.copytree(source, folder)
    (folder / "result.json").unlink()
    for later in checkpoints(folder)[1:]:
        shutil.rmtree(later)


def n_gloo_threads() -> int:
    """The threads of this process that do gloo's work; 0 where the system is not Linux."""
    names = [path.read_text(encoding="utf-8") for path in Path("/proc/self/task").glob("*/comm")]
    return sum(name.startswith("pt_gloo_runloop") for name in names)


def error_of(job: dict[str, Any]) -> str | None:
    """Do a job; gives how it failed."""
    try:
        run_training(make_recipe(job["recipe"]), Path(job["folder"]), resume=job["resume"], console=Console(quiet=True))
    except (Elsewhere, OSError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def main() -> None:
    """Do all jobs."""
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    processes = join_processes("no")
    errors: list[str | None] = []
    changed: list[str] = []
    watch(changed)
    for job in json.loads((folder / "jobs.json").read_text()):
        if "source" in job and processes.is_main_process:
            cut(Path(job["source"]), Path(job["folder"]))
        processes.wait_for_everyone()
        errors.append(error_of(job if processes.is_main_process else {**job, **job.get("others", {})}))
    n_threads = n_gloo_threads()
    leave_processes()
    facts = {"errors": errors, "changed": changed, "ended_threads": n_threads - n_gloo_threads()}
    (folder / f"process-{processes.process_index}.json").write_text(json.dumps(facts), encoding="utf-8")


if __name__ == "__main__":
    main()
