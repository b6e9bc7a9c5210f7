"""The authors' PyTorch checkpoints: `torch.save(model)`, a pickle of the whole module tree, and state dicts of it.

Their names are those of transformers without the prefix `transformer.`. Three things differ (docs/legacy.md): tail
cluster i reads head column -i, so the rows of the cluster matrices are in reverse order; u and v are shared by all
layers; memory starts empty.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from transformer_xl.configuration import ALIASES
from transformer_xl.pickle_reader import PickledObject

from .checkpoint import LegacyCheckpoint
from .sizes import position_rows, sizes_of

MAX_PARAMETERS = 100_000
_BUFFERS = {"pos_emb.inv_freq": "a table that is computed when needed"}
_CLUSTERS = ("crit.cluster_weight", "crit.cluster_bias")


def is_module(value: Any) -> bool:
    """Whether an object out of a torch file is the authors' model, bare or wrapped for several devices."""
    return isinstance(value, PickledObject) and _unwrapped(value).class_name.endswith(".MemTransformerLM")


def read_module(value: PickledObject, path: Path) -> LegacyCheckpoint:
    """Gives the checkpoint in a pickled model.

    Raises:
        ValueError: the module tree is damaged or holds what this model does not have.
    """
    root = _unwrapped(value)
    state = _module_parameters(root, path)
    tensors, ignored = rename(state, path)
    options = _recorded_options(root)
    sizes = sizes_of(tensors, path)
    if options.pop("sample_softmax", -1) > 0:
        raise ValueError(
            f"{path} was trained with a sampled softmax, whose output layer the authors' code cannot evaluate."
        )
    for name, recorded in _recorded_sizes(root).items():
        if sizes.setdefault(name, recorded) != recorded:
            raise ValueError(
                f"{path} records {name}={recorded}, but its weights have {sizes[name]}; the file is damaged."
            )
    return LegacyCheckpoint(
        path=path,
        format="the authors' PyTorch model (a pickled module)",
        tensors=tensors,
        sizes=sizes,
        options={"initial_memory": "empty"} | options,
        n_position_rows=position_rows(tensors),
        ignored=ignored,
    )


def read_state_dict(state: Mapping[str, Any], path: Path) -> LegacyCheckpoint:
    """Gives the checkpoint in a state dict with the authors' names, which records no options."""
    tensors, ignored = rename(state, path)
    return LegacyCheckpoint(
        path=path,
        format="a state dict of the authors' PyTorch model",
        tensors=tensors,
        sizes=sizes_of(tensors, path),
        options={"initial_memory": "empty"},
        n_position_rows=position_rows(tensors),
        ignored=ignored,
    )


def rename(state: Mapping[str, Any], path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Gives the weights under this package's names and order of clusters, and what was left out.

    Raises:
        ValueError: a name is unknown, or its value is no tensor.
    """
    tensors: dict[str, Tensor] = {}
    ignored: dict[str, str] = {}
    for name, value in state.items():
        name = str(name).removeprefix("module.")  # noqa: PLW2901 - wrappers for several devices put it before every name
        if name in _BUFFERS:
            ignored[name] = _BUFFERS[name]
        elif not isinstance(value, Tensor):
            raise ValueError(
                f"{path}: the weight {name[:80]!r} is a {type(value).__name__}, no tensor; the file is damaged."
            )
        elif name in _CLUSTERS:
            tensors[name] = value.flip(0) if value.dim() else value  # its shape is refused later
        elif name.startswith(("word_emb.", "layers.")) or name in ("r_w_bias", "r_r_bias", "r_emb", "r_bias"):
            tensors[f"transformer.{name}"] = value
        elif name.startswith("crit."):
            tensors[name] = value
        else:
            raise ValueError(f"{path}: the weight {name[:80]!r} is none of a Transformer-XL; nothing was converted.")
    return tensors, ignored


def _unwrapped(value: PickledObject) -> PickledObject:
    """The model inside `DataParallel` and the like."""
    while "DataParallel" in value.class_name and isinstance(inner := _children(value).get("module"), PickledObject):
        value = inner
    return value


def _attributes(module: Any) -> dict[str, Any]:
    state = module.state if isinstance(module, PickledObject) else None
    return state if isinstance(state, dict) else {}


def _children(module: Any) -> dict[str, Any]:
    children = _attributes(module).get("_modules")
    return children if isinstance(children, dict) else {}


def _module_parameters(root: PickledObject, path: Path) -> dict[str, Tensor]:
    """Every parameter and buffer of a module tree under its dotted name; names that hold None are left out."""
    found: dict[str, Tensor] = {}
    open_modules: list[tuple[str, Any]] = [("", root)]
    while open_modules:
        prefix, module = open_modules.pop()
        for group in ("_parameters", "_buffers"):
            named = _attributes(module).get(group)
            for name, value in (named if isinstance(named, dict) else {}).items():
                if isinstance(value, Tensor):
                    found[f"{prefix}{name}"] = value
        open_modules += [(f"{prefix}{name}.", child) for name, child in _children(module).items() if child is not None]
        if len(found) + len(open_modules) > MAX_PARAMETERS:
            raise ValueError(f"{path} has more than {MAX_PARAMETERS} modules and weights; refused.")
    return found


def _at(root: PickledObject, *names: str) -> dict[str, Any]:
    """Attributes of the submodule that `names` lead to; empty if it is not there."""
    module: Any = root
    for name in names:
        module = _children(module).get(name)
    return _attributes(module)


def _recorded_sizes(root: PickledObject) -> dict[str, Any]:
    """Sizes that the module has as attributes, all of them also visible in the weights of most models."""
    attributes, embedding = _at(root), _at(root, "word_emb")
    names = ("n_token", "d_model", "d_embed", "n_head", "d_head", "n_layer", "attn_type")
    sizes = {ALIASES.get(name, name): attributes[name] for name in names if type(attributes.get(name)) is int}
    cutoffs = embedding.get("cutoffs")
    if isinstance(cutoffs, list) and cutoffs and all(type(cutoff) is int for cutoff in cutoffs):
        sizes["cutoffs"] = cutoffs[:-1]  # the authors' list ends with the size of the vocabulary
    return sizes


def _recorded_options(root: PickledObject) -> dict[str, Any]:
    attributes = _at(root)
    attention, feed_forward = _at(root, "layers", "0", "dec_attn"), _at(root, "layers", "0", "pos_ff")
    norm = _at(root, "layers", "0", "dec_attn", "layer_norm")
    found = {
        **{name: attributes.get(name) for name in ("mem_len", "tgt_len", "ext_len", "clamp_len", "sample_softmax")},
        "same_length": attributes.get("same_length"),
        "dropout": _at(root, "drop").get("p"),
        "dropatt": _at(root, "layers", "0", "dec_attn", "dropatt").get("p"),
        "pre_lnorm": attention.get("pre_lnorm", feed_forward.get("pre_lnorm")),
        "layer_norm_epsilon": norm.get("eps"),
    }
    if found["pre_lnorm"] is None:
        found["pre_lnorm"] = False
    return {name: value for name, value in found.items() if type(value) in (int, float, bool)}


__all__ = ["is_module", "read_module", "read_state_dict", "rename"]
