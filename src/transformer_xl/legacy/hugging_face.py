"""Folders that transformers wrote, from pytorch-transformers 1.x to 4.57: `config.json` and one or more weight files.

Weights come from `model.safetensors` or `pytorch_model.bin`, whole or in shards with an index. Names and the order of
clusters are this package's own.
"""

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from transformer_xl.configuration import ALIASES
from transformer_xl.torch_file import read_torch_file

from .checkpoint import SETTINGS, LegacyCheckpoint
from .sizes import position_rows, sizes_of

WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
VOCABULARIES = ("vocab.json", "vocab.pkl", "vocab.bin", "vocab.txt")
ARCHITECTURES = ("TransfoXLLMHeadModel", "TransfoXLForSequenceClassification", "TransfoXLModel")
MAX_JSON_BYTES = 1 << 23  # real ones have some kilobytes


def is_state_dict(value: Any) -> bool:
    """Whether an object out of a torch file maps transformers' names of weights to tensors."""
    return isinstance(value, dict) and any(str(name).startswith("transformer.word_emb.") for name in value)


def read_folder(folder: Path) -> LegacyCheckpoint:
    """Gives the checkpoint in a folder.

    Raises:
        ValueError: a file is missing, damaged or of another model.
    """
    config = read_json(folder / "config.json")
    if config.get("model_type") not in ("transfo-xl", None):
        raise ValueError(
            f"{folder / 'config.json'} says model_type={config['model_type']!r}; only 'transfo-xl' is read."
        )
    names = [name for name in WEIGHT_FILES if (folder / name).is_file()]
    if not names:
        raise ValueError(f"{folder} holds a config.json but none of {', '.join(WEIGHT_FILES)}; add the weights.")
    state = _read_weights(folder / names[0])
    checkpoint = _checkpoint(state, config, folder, f"a transformers folder ({names[0]})")
    vocabularies = [folder / name for name in VOCABULARIES if (folder / name).is_file()]
    checkpoint.vocabulary_path = vocabularies[0] if vocabularies else None
    return checkpoint


def read_state_dict(state: dict[str, Any], path: Path) -> LegacyCheckpoint:
    """Gives the checkpoint in a lone `pytorch_model.bin`; a `config.json` beside it belongs to it."""
    config_path = path.parent / "config.json"
    config = read_json(config_path) if config_path.is_file() else {}
    return _checkpoint(state, config, path, "a transformers state dict")


def read_json(path: Path) -> dict[str, Any]:
    """Gives the object in a small JSON file.

    Raises:
        ValueError: it is no JSON object.
    """
    if path.stat().st_size > MAX_JSON_BYTES:
        raise ValueError(f"{path} has {path.stat().st_size} bytes, too many for a JSON file of settings.")
    try:
        content = json.loads(path.read_bytes().decode("utf-8-sig"))  # not bytes: json would look for a codec by them
    except (ValueError, RecursionError) as error:  # text that is no JSON, or an integer of thousands of digits
        raise ValueError(
            f"{path} is not valid JSON ({type(error).__name__}); it must hold an object {{...}}."
        ) from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}; it must hold an object {{...}}.")
    return content


def _read_weights(path: Path) -> dict[str, Any]:
    if path.name.endswith(".index.json"):
        files = read_json(path).get("weight_map")
        if not isinstance(files, dict) or not all(isinstance(name, str) for name in files.values()):
            raise ValueError(f"{path} has no weight_map from names to files; the file is damaged.")
        state: dict[str, Any] = {}
        for name in sorted(set(files.values())):
            if Path(name).name != name or name in ("", ".", ".."):
                raise ValueError(f"{path} names the file {name[:80]!r}, which is not in its folder; refused.")
            state |= _read_weights(path.parent / name)
        return state
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    state = read_torch_file(path)
    if not isinstance(state, dict):
        raise ValueError(f"{path} holds no dictionary of weights.")
    return state


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Gives the tensors of a safetensors file.

    Raises:
        ValueError: its header lies or is damaged.
    """
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is no valid safetensors file: {error}") from None


def _checkpoint(state: dict[str, Any], config: dict[str, Any], path: Path, kind: str) -> LegacyCheckpoint:
    state = {str(name): weight for name, weight in state.items()}
    if not any(name.startswith("transformer.") for name in state):
        state = {f"transformer.{name}": weight for name, weight in state.items()}  # saved from the model without a head
    tensors: dict[str, Tensor] = {}
    ignored: dict[str, str] = {}
    for name, weight in state.items():
        if not isinstance(weight, Tensor):
            raise ValueError(
                f"{path}: the weight {name[:80]!r} is a {type(weight).__name__}, no tensor; the file is damaged."
            )
        if name.endswith("pos_emb.inv_freq"):
            ignored[name] = "a table that is computed when needed"
        elif _repeats_shared_bias(name, weight, state):
            ignored[name] = "repeats the bias that all layers share"
        else:
            tensors[name] = weight
    return LegacyCheckpoint(
        path=path,
        format=kind,
        tensors=tensors,
        sizes=sizes_of(tensors, path),
        options=_known_settings(config),
        n_position_rows=position_rows(tensors),
        architecture=_architecture(tensors),
        ignored=ignored,
        is_tokenized_text=False,
    )


def _repeats_shared_bias(name: str, weight: Tensor, state: dict[str, Any]) -> bool:
    match = re.fullmatch(r"transformer\.layers\.\d+\.dec_attn\.(r_[rw]_bias)", name)
    shared = state.get(f"transformer.{match[1]}") if match else None
    return isinstance(shared, Tensor) and shared.shape == weight.shape and torch.equal(shared, weight)


def _known_settings(config: dict[str, Any]) -> dict[str, Any]:
    named = {ALIASES.get(name, name): value for name, value in config.items()}
    known = {name: value for name, value in named.items() if name in SETTINGS}
    if known.pop("adaptive", True) is False:
        known["cutoffs"] = None  # old releases made clusters all the same; the weights tell
    return known


def _architecture(tensors: dict[str, Tensor]) -> str:
    """The class that has these weights."""
    if any(name.startswith("crit.") for name in tensors):
        return "TransfoXLLMHeadModel"
    return "TransfoXLForSequenceClassification" if "score.weight" in tensors else "TransfoXLModel"


__all__ = ["WEIGHT_FILES", "is_state_dict", "read_folder", "read_json", "read_safetensors", "read_state_dict"]
