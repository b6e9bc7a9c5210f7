"""Finds out what an old checkpoint is, by its content, and reads it."""

from pathlib import Path
from typing import Any

from transformer_xl.pickle_reader import PickledName, PickledObject, read_torch_file

from . import hugging_face, nvidia, original, tensorflow
from .checkpoint import LegacyCheckpoint

_KNOWN = (
    "a folder of transformers (config.json and weights), the authors' model.pt, a TensorFlow prefix such as "
    "model.ckpt-0, or NVIDIA's checkpoint_best.pt"
)
_MODEL_FILES = ("model.pt", "checkpoint_best.pt", "checkpoint_last.pt")  # what training writes into its folder
_SAFETENSORS_START = b"{"  # after eight bytes that tell the length of the header
_MAX_NAME_FILE = 1 << 20  # characters of the file `checkpoint`
_TORCH_STARTS = (b"PK\x03\x04", b"\x80")


def read_source(source: Path) -> LegacyCheckpoint:
    """Gives the checkpoint in a file, a folder, or at a TensorFlow prefix.

    Raises:
        ValueError: the format is unknown, or the content is damaged or refused.
        OSError: a file cannot be read.
    """
    prefix = tensorflow_prefix(source)
    if prefix is not None:
        return tensorflow.read_prefix(prefix)
    if source.is_dir():
        return _read_folder(source)
    if not source.exists():
        raise ValueError(f"{source} does not exist, and neither does {source.name}.index beside it: give {_KNOWN}.")
    if not source.is_file():
        raise ValueError(f"{source} is no regular file: give {_KNOWN}.")
    with source.open("rb") as file:
        start = file.read(9)
    if start.startswith(_TORCH_STARTS):
        return _read_object(read_torch_file(source), source)
    if start[8:9] == _SAFETENSORS_START:
        return hugging_face.read_state_dict(dict(hugging_face.read_safetensors(source)), source)
    raise ValueError(f"{source} is in no known format: give {_KNOWN}.")


def tensorflow_prefix(source: Path) -> Path | None:
    """The prefix that `source` stands for: itself, one of its files, or the folder whose `checkpoint` file names it."""
    if source.with_name(f"{source.name}.index").is_file():
        return source
    if source.name.endswith(".index") and source.is_file():
        return source.with_name(source.name.removesuffix(".index"))
    if ".data-" in source.name and source.is_file():
        return source.with_name(source.name[: source.name.rindex(".data-")])
    return _named_prefix(source) if source.is_dir() and (source / "checkpoint").is_file() else None


def _named_prefix(folder: Path) -> Path:
    """What `model_checkpoint_path` in the file `checkpoint` says; only its last part counts: it lies in the folder."""
    with (folder / "checkpoint").open(encoding="utf-8", errors="replace") as file:
        text = file.read(_MAX_NAME_FILE)
    for line in text.splitlines():
        key, _, value = line.partition(":")
        name = value.strip().strip('"').replace("\\", "/").rsplit("/", 1)[-1]
        if key.strip() == "model_checkpoint_path" and name not in ("", ".", ".."):
            return folder / name
    raise ValueError(
        f"{folder / 'checkpoint'} names no model_checkpoint_path: give the prefix itself, such as model.ckpt-0."
    )


def _read_folder(folder: Path) -> LegacyCheckpoint:
    if (folder / "config.json").is_file():
        return hugging_face.read_folder(folder)
    found = [name for name in _MODEL_FILES if (folder / name).is_file()]
    if found:
        return read_source(folder / found[0])
    prefixes = sorted(path.name.removesuffix(".index") for path in folder.glob("*.index"))
    if len(prefixes) == 1:
        return tensorflow.read_prefix(folder / prefixes[0])
    if prefixes:
        raise ValueError(f"{folder} holds several TensorFlow checkpoints: name one, such as {folder / prefixes[-1]}.")
    raise ValueError(
        f"{folder} holds no checkpoint that is known by its name (config.json, checkpoint, {', '.join(_MODEL_FILES)}): "
        "name the file."
    )


def _read_object(value: Any, path: Path) -> LegacyCheckpoint:
    """Reads what a torch file held."""
    if original.is_module(value):
        return original.read_module(value, path)
    if nvidia.is_checkpoint(value):
        return nvidia.read_checkpoint(value, path)
    if hugging_face.is_state_dict(value):
        return hugging_face.read_state_dict(value, path)
    if isinstance(value, dict) and any(str(name).removeprefix("module.").startswith("word_emb.") for name in value):
        if any("crit." in str(name) for name in value):
            return original.read_state_dict(value, path)
        return hugging_face.read_state_dict(value, path)
    raise ValueError(f"{path} holds {_described(value)}, not a Transformer-XL: give {_KNOWN}.")


def _described(value: Any) -> str:
    if isinstance(value, PickledObject | PickledName):
        return f"{value.class_name!r} (byte {value.offset} of its pickle; it was not imported or called)"
    if isinstance(value, dict):
        names = ", ".join(repr(name)[:40] for name in list(value)[:3] if isinstance(name, str | int))
        return f"a dictionary of {len(value)} entries ({names}{', ...' if len(value) > 3 else ''})"
    return f"a {type(value).__name__}"


__all__ = ["read_source", "tensorflow_prefix"]
