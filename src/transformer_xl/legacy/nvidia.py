"""NVIDIA DeepLearningExamples checkpoints (`checkpoint_best.pt`): a dict of `model_config`, `model_state`, `vocab`, ...

Facts from the public source, PyTorch/LanguageModeling/Transformer-XL. Two generations exist. The first (2019) has the
authors' names. The second (2020) holds output matrices only where they are not the embedding's
(`crit.out_layers_weights.I`), biases as `crit.out_layers_biases.I`, projections as `crit.out_projs.I` where untied, and
the embedding's once more as `crit.shared_out_projs.I`; with `same_length` a query sees `mem_len + 1` keys.
The order of the clusters and the empty start of memory are the authors' in both.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from transformer_xl.configuration import ALIASES
from transformer_xl.pickle_reader import PickledObject

from .checkpoint import LegacyCheckpoint
from .original import rename
from .sizes import (
    EMBEDDING,
    EMBEDDING_PROJECTION,
    OUTPUT,
    OUTPUT_PROJECTION,
    count_clusters,
    position_rows,
    sizes_of,
)

_OPTIONS = {
    "mem_len", "tgt_len", "ext_len", "clamp_len", "same_length", "dropout", "dropatt", "pre_lnorm", "cutoffs", "n_head",
    "d_head", "div_val",
}  # fmt: skip
_TRAINING_STATE = {
    "args": "training arguments; what the model needs stands in model_config",
    "optimizer_state": "state of training",
    "scheduler_state": "state of training",
    "amp_state": "state of training",
    "epoch": "state of training",
    "batch": "state of training",
    "last_iter": "state of training",
    "train_step": "state of training",
    "best_val_loss": "state of training",
}


def is_checkpoint(value: Any) -> bool:
    """Whether an object out of a torch file is one of these checkpoints."""
    return isinstance(value, dict) and isinstance(value.get("model_state"), dict)


def read_checkpoint(value: Mapping[str, Any], path: Path) -> LegacyCheckpoint:
    """Gives the checkpoint in the dict.

    Raises:
        ValueError: it holds something that cannot be established to mean what a Transformer-XL computes.
    """
    state = {str(name).removeprefix("module."): weight for name, weight in value["model_state"].items()}
    is_second = any(
        re.match(r"crit\.(out_layers_biases|out_layers_weights|shared_out_projs)\.", name) for name in state
    )
    recorded = _recorded_config(value)
    n_samples = recorded.get("sample_softmax", -1)
    if type(n_samples) is not int or n_samples > 0:
        raise ValueError(f"{path} was trained with a sampled softmax (sample_softmax > 0), which is not read.")
    tensors, ignored = rename(_first_generation_names(state, path) if is_second else state, path)
    _unfold_position_table(tensors, recorded)
    if is_second:
        _complete_projections(tensors, path)
    sizes = sizes_of(tensors, path)
    options = {name: recorded[name] for name in _OPTIONS - sizes.keys() if recorded.get(name) is not None}
    for name in set(value) - {"model_state", "model_config", "vocab"}:
        ignored[str(name)[:80]] = _TRAINING_STATE.get(name, "not known")
    return LegacyCheckpoint(
        path=path,
        format=f"an NVIDIA DeepLearningExamples checkpoint (names of {'2020' if is_second else '2019'})",
        tensors=tensors,
        sizes=sizes,
        options={"initial_memory": "empty", "span_counts_self": not is_second} | options,
        n_position_rows=position_rows(tensors),
        ignored=ignored,
        vocabulary_path=path if _has_word_list(value.get("vocab"), ignored) else None,
    )


def _recorded_config(value: Mapping[str, Any]) -> dict[str, Any]:
    """`model_config`, or `args` where that is missing, by the names of this package's config."""
    recorded = value.get("model_config")
    if not isinstance(recorded, dict):
        arguments = value.get("args")
        recorded = arguments.state if isinstance(arguments, PickledObject) else arguments
    if not isinstance(recorded, dict):
        return {}
    plain = (int, float, bool, list)
    return {ALIASES.get(str(name), str(name)): found for name, found in recorded.items() if type(found) in plain}


def _first_generation_names(state: Mapping[str, Any], path: Path) -> dict[str, Any]:
    renamed: dict[str, Any] = {}
    for name, weight in state.items():
        if match := re.fullmatch(r"crit\.out_layers_(biases|weights)\.(\d+)", name):
            renamed[f"{OUTPUT}.{match[2]}.{'bias' if match[1] == 'biases' else 'weight'}"] = weight
        elif match := re.fullmatch(r"crit\.shared_out_projs\.(\d+)", name):
            partner = state.get(f"word_emb.emb_projs.{match[1]}")
            if not isinstance(weight, Tensor) or not isinstance(partner, Tensor) or not weight.equal(partner):
                raise ValueError(
                    f"{path}: the weight {name} differs from word_emb.emb_projs.{match[1]}; the file is damaged."
                )
        else:
            renamed[name] = weight
    for name, table in state.items():
        if match := re.fullmatch(r"word_emb\.emb_layers\.(\d+)\.weight", name):
            renamed.setdefault(f"{OUTPUT}.{match[1]}.weight", table)  # tied output matrices are not stored at all
    return renamed


def _complete_projections(tensors: dict[str, Tensor], path: Path) -> None:
    """Adds the softmax projections that are the embedding's, which the second generation does not store."""
    n_clusters = count_clusters(tensors, path)
    n_tables = sum(name.startswith(f"{EMBEDDING}.") for name in tensors)
    for i in range(n_clusters):
        shared = tensors.get(f"{EMBEDDING_PROJECTION}.{i if n_tables > 1 else 0}")
        if shared is not None:
            tensors.setdefault(f"{OUTPUT_PROJECTION}.{i}", shared)


def _unfold_position_table(tensors: dict[str, Tensor], recorded: Mapping[str, Any]) -> None:
    """`attn_type` 3 keeps its table as `[n_layer, rows, D]` here; heads are a part of D."""
    table, n_head = tensors.get("transformer.r_emb"), recorded.get("n_head")
    if table is not None and table.dim() == 3 and type(n_head) is int and n_head > 0 and table.shape[2] % n_head == 0:
        tensors["transformer.r_emb"] = table.unflatten(2, (n_head, -1))


def _has_word_list(vocabulary: Any, ignored: dict[str, str]) -> bool:
    if vocabulary is None:
        return False
    state = vocabulary.state if isinstance(vocabulary, PickledObject) else vocabulary
    if isinstance(state, dict) and "idx2sym" in state:
        return True
    kind = vocabulary.class_name if isinstance(vocabulary, PickledObject) else type(vocabulary).__name__
    ignored["vocab"] = f"a {kind[:80]}, which holds no list of words"
    return False


__all__ = ["is_checkpoint", "read_checkpoint"]
