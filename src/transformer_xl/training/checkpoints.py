"""Checkpoints of a run: safetensors and JSON, whole or not there, and checked when they are read.

RUN/checkpoints/step-00001000/
    model/                the model and tokenizer, for from_pretrained
    recipe.toml           the recipe with all its values
    GROUP.safetensors     weights, optimizer, memories, random ... as the training gave them
    state.json            everything that is no tensor
    checksums.json        SHA-256 of all the files above, written last
RUN/best.json             the name of the checkpoint with the lowest validation loss

Nothing in them is ever executed: optimisers and random numbers are tensors and numbers, no pickles.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

CHECKPOINTS, BEST, MODEL, STATE, CHECKSUMS = "checkpoints", "best.json", "model", "state.json", "checksums.json"
_NAME = re.compile(r"step-(\d{8,})")


def checkpoint_folder(run: Path, step: int) -> Path:
    """Where the checkpoint of a step is."""
    return run / CHECKPOINTS / f"step-{step:08d}"


def checkpoints(run: Path) -> list[Path]:
    """The folders of all checkpoints of a run, in the order of their steps."""
    folders = [path for path in (run / CHECKPOINTS).glob("step-*") if _NAME.fullmatch(path.name)]
    return sorted(folders, key=lambda path: int(path.name.removeprefix("step-")))


def write_checkpoint(
    folder: Path,
    *,
    tensors: Mapping[str, Mapping[str, Tensor]],
    state: Mapping[str, Any],
    write_model: Callable[[Path], None],
) -> None:
    """Write a checkpoint; it has its name only when all of it is on the disk.

    Args:
        folder: of the checkpoint.
        tensors: by group and name, on the CPU.
        state: for JSON.
        write_model: writes more files into the folder that it is given.

    Raises:
        OSError: it cannot be written; nothing of it is left then.
    """
    partial = folder.with_name(f".{folder.name}.partial-{os.getpid()}")
    try:
        partial.mkdir(parents=True)
        write_model(partial)
        for name, group in tensors.items():
            save_file(dict(group), partial / f"{name}.safetensors")
        (partial / STATE).write_text(json.dumps(state, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        sums = {str(path.relative_to(partial)): _sha256(path) for path in sorted(partial.rglob("*")) if path.is_file()}
        (partial / CHECKSUMS).write_text(json.dumps(sums, indent=2) + "\n", encoding="utf-8")
        for path in (*sorted(partial.rglob("*")), partial):
            _flush(path)
        if folder.is_dir():
            shutil.rmtree(folder)  # an earlier session got here, too
        partial.rename(folder)
        _flush(folder.parent)
    except SafetensorError as error:  # how that library reports a full disk
        raise OSError(None, str(error), str(folder)) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def read_checkpoint(folder: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """The tensors by group and name, and the state, as `write_checkpoint` took them.

    Raises:
        ValueError: a file is missing or changed.
    """
    _verify(folder)
    state: dict[str, Any] = json.loads((folder / STATE).read_text(encoding="utf-8"))
    return {path.stem: load_file(path) for path in sorted(folder.glob("*.safetensors"))}, state


def _verify(folder: Path) -> None:
    """Refuse a checkpoint that is not what was written."""
    earlier = [path.name for path in checkpoints(folder.parents[1]) if path.name < folder.name]
    remedy = f"delete that folder to go on from {earlier[-1]}" if earlier else "it cannot be resumed"
    try:
        sums = dict(json.loads((folder / CHECKSUMS).read_text(encoding="utf-8")))
        wrong = [name for name, digest in sums.items() if _sha256(folder / name) != digest]
    except (FileNotFoundError, ValueError, TypeError) as error:
        name = getattr(error, "filename", None) or folder / CHECKSUMS
        raise ValueError(f"{name} is missing or damaged, so checkpoint {folder} is not whole: {remedy}.") from error
    if wrong:
        raise ValueError(f"{folder / wrong[0]} is damaged (its SHA-256 is not the one that was written): {remedy}.")


def prune(run: Path, *, keep: int) -> None:
    """Delete all checkpoints but the last `keep` and the best, and what is left of checkpoints never finished."""
    best = best_checkpoint(run)
    for folder in checkpoints(run)[:-keep]:
        if best is None or folder.name != best[0].name:
            shutil.rmtree(folder)
    for partial in (run / CHECKPOINTS).glob(".step-*.partial-*"):
        shutil.rmtree(partial)


def best_checkpoint(run: Path) -> tuple[Path, float] | None:
    """The best checkpoint and its validation loss in nats; None if there is none yet."""
    path = run / BEST
    if not path.is_file():
        return None
    best = json.loads(path.read_text(encoding="utf-8"))
    return run / CHECKPOINTS / best["checkpoint"], float(best["valid_loss_nats"])


def write_best(run: Path, folder: Path, valid_loss: float) -> None:
    """Say which checkpoint is the best."""
    partial = run / f".{BEST}.partial-{os.getpid()}"
    content = {"checkpoint": folder.name, "valid_loss_nats": valid_loss}
    partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    _flush(partial)
    partial.replace(run / BEST)
    _flush(run)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


__all__ = [
    "BEST",
    "MODEL",
    "best_checkpoint",
    "checkpoint_folder",
    "checkpoints",
    "prune",
    "read_checkpoint",
    "write_best",
    "write_checkpoint",
]
