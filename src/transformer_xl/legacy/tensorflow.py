"""The authors' TensorFlow checkpoints under this package's names.

Every rule was found by comparing with the authors' graph (docs/legacy.md). In short: `kernel`, `proj` and `proj_W` are
transposed, nothing else is; clusters keep their order; a projection that is not there is the identity; memory starts
as zero vectors; with `same_length` a query sees `mem_len + 1` keys; the epsilon of layer norm is 1e-12. Optimizer slots
and counters are left out.

Names of variables: `transformer/layer_I/...`, `transformer/adaptive_embed/...`, `transformer/adaptive_softmax/...`.
"""

import re
from itertools import accumulate
from pathlib import Path

import torch
from torch import Tensor

from .checkpoint import LegacyCheckpoint
from .sizes import (
    ATTENTION,
    EMBEDDING,
    EMBEDDING_PROJECTION,
    FEED_FORWARD,
    MAX_COUNT,
    OUTPUT,
    OUTPUT_PROJECTION,
    sizes_of,
)
from .tensorflow_file import TensorFlowFile

MAX_IDENTITY = 4096  # width of a model whose missing projections are made up
_COUNTERS = {"global_step": "a counter of training", "beta1_power": "state of Adam", "beta2_power": "state of Adam"}
_SLOTS = ("/Adam", "/Adam_1")
_LAYER_NAMES = {
    "rel_attn/qkv/kernel": (ATTENTION, "qkv_net.weight"),
    "rel_attn/r/kernel": (ATTENTION, "r_net.weight"),
    "rel_attn/o/kernel": (ATTENTION, "o_net.weight"),
    "rel_attn/LayerNorm/gamma": (ATTENTION, "layer_norm.weight"),
    "rel_attn/LayerNorm/beta": (ATTENTION, "layer_norm.bias"),
    "ff/layer_1/kernel": (FEED_FORWARD, "CoreNet.0.weight"),
    "ff/layer_1/bias": (FEED_FORWARD, "CoreNet.0.bias"),
    "ff/layer_2/kernel": (FEED_FORWARD, "CoreNet.3.weight"),
    "ff/layer_2/bias": (FEED_FORWARD, "CoreNet.3.bias"),
    "ff/LayerNorm/gamma": (FEED_FORWARD, "layer_norm.weight"),
    "ff/LayerNorm/beta": (FEED_FORWARD, "layer_norm.bias"),
}


def read_prefix(prefix: Path) -> LegacyCheckpoint:
    """Gives the checkpoint whose files start with `prefix`.

    Raises:
        ValueError: a file is missing or damaged, or holds a variable that the authors' graph does not have.
    """
    return read_file(TensorFlowFile(prefix))


def read_file(file: TensorFlowFile) -> LegacyCheckpoint:
    """As `read_prefix`."""
    variables = _Variables(file)
    tensors: dict[str, Tensor] = {}
    tensors |= _layers(variables)
    tie_projs = _embedding_and_softmax(variables, tensors)
    if variables.left:
        raise file.error(f"holds {sorted(variables.left)[0][:80]!r}, which is no variable of a Transformer-XL")
    sizes = sizes_of(tensors, file.index_path)
    if variables.cutoffs is not None:
        sizes["cutoffs"] = variables.cutoffs
    sizes |= {"tie_projs": tie_projs, "pre_lnorm": False}
    return LegacyCheckpoint(
        path=file.prefix,
        format="the authors' TensorFlow checkpoint",
        tensors=tensors,
        sizes=sizes,
        options={"initial_memory": "zeros", "span_counts_self": False, "layer_norm_epsilon": 1e-12},
        ignored=variables.ignored,
    )


class _Variables:
    """The variables that are still to be used; taking one removes it."""

    def __init__(self, file: TensorFlowFile) -> None:
        self.file = file
        self.ignored = {name: why for name in file.variables if (why := _why_ignored(name, file)) is not None}
        self.left = set(file.variables) - set(self.ignored)
        self.cutoffs: list[int] | None = None

    def has(self, name: str) -> bool:
        return f"transformer/{name}" in self.left

    def take(self, name: str) -> Tensor:
        """Gives a variable, transposed if it is a projection: PyTorch lays such matrices out the other way."""
        full_name = f"transformer/{name}"
        if full_name not in self.left:
            raise self.file.error(f"lacks the variable {full_name!r}; the file is damaged or no Transformer-XL")
        self.left.remove(full_name)
        value = self.file.read(full_name)
        is_projection = name.rsplit("/", 1)[-1] in ("kernel", "proj", "proj_W")
        if is_projection and value.dim() != 2:
            raise self.file.error(f"gives {full_name!r} the shape {list(value.shape)}, but it must be a matrix")
        return value.T.contiguous() if is_projection else value


def _why_ignored(name: str, file: TensorFlowFile) -> str | None:
    if name in _COUNTERS:
        return _COUNTERS[name]
    for slot in _SLOTS:
        if name.endswith(slot) and name.removesuffix(slot) in file.variables:
            return "state of Adam"
    return None


def _layers(variables: _Variables) -> dict[str, Tensor]:
    pattern = re.compile(r"transformer/layer_(\d{1,6})/")
    indices = {int(match[1]) for name in variables.left if (match := pattern.match(name))}
    if indices != set(range(len(indices))) or not indices:
        raise variables.file.error("lacks layers; the file is damaged or no Transformer-XL")
    tensors: dict[str, Tensor] = {}
    for layer in range(len(indices)):
        for name, (block, parameter) in _LAYER_NAMES.items():
            tensors[f"{block.format(layer)}.{parameter}"] = variables.take(f"layer_{layer}/{name}")
    for bias in ("r_w_bias", "r_r_bias"):
        value = variables.take(bias)
        if value.dim() == 3 and value.shape[0] == len(indices):
            tensors |= {f"{ATTENTION.format(layer)}.{bias}": value[layer].clone() for layer in range(len(indices))}
        elif value.dim() == 2:
            tensors[f"transformer.{bias}"] = value
        else:
            raise variables.file.error(f"gives transformer/{bias} the shape {list(value.shape)}; the file is damaged")
    return tensors


def _embedding_and_softmax(variables: _Variables, tensors: dict[str, Tensor]) -> list[bool]:
    """Adds embedding and softmax to `tensors` and gives `tie_projs`."""
    d_model = tensors[f"{ATTENTION.format(0)}.o_net.weight"].shape[0]
    if variables.has("adaptive_embed/lookup_table"):
        return _one_table(variables, tensors, d_model)
    return _table_per_cluster(variables, tensors, d_model)


def _one_table(variables: _Variables, tensors: dict[str, Tensor], d_model: int) -> list[bool]:
    """`div_val` 1: one table for all clusters, and one projection at most."""
    table = variables.take("adaptive_embed/lookup_table")
    tensors[f"{EMBEDDING}.0.weight"] = tensors[f"{OUTPUT}.0.weight"] = table
    shared = variables.take("adaptive_embed/proj_W") if variables.has("adaptive_embed/proj_W") else None
    if (shared is None) != (table.dim() != 2 or table.shape[1] == d_model):
        raise variables.file.error("has a look-up table whose width does not fit whether there is a proj_W")
    if shared is not None:
        tensors[f"{EMBEDDING_PROJECTION}.0"] = shared
    if variables.has("adaptive_softmax/bias"):
        variables.cutoffs = []
        tensors[f"{OUTPUT}.0.bias"] = variables.take("adaptive_softmax/bias")
        n_clusters = 1
    else:
        _take_cluster_rows(variables, tensors)
        n_clusters = tensors["crit.cluster_weight"].shape[0] + 1
        biases = [variables.take(f"adaptive_softmax/cutoff_{i}/b") for i in range(n_clusters)]
        if any(bias.dim() != 1 for bias in biases):
            raise variables.file.error("has an adaptive_softmax/cutoff_N/b that is no row of numbers")
        tensors[f"{OUTPUT}.0.bias"] = torch.cat(biases)
        variables.cutoffs = list(accumulate(map(len, biases)))[:-1]
    if shared is None:
        return [False] * n_clusters
    return [_take_softmax_projection(variables, tensors, i, shared) for i in range(n_clusters)]


def _table_per_cluster(variables: _Variables, tensors: dict[str, Tensor], d_model: int) -> list[bool]:
    """`div_val` above 1: a table for each cluster, narrower and narrower, each with a projection or none."""
    _take_cluster_rows(variables, tensors)
    ties = []
    for i in range(tensors["crit.cluster_weight"].shape[0] + 1):
        table = variables.take(f"adaptive_embed/cutoff_{i}/lookup_table")
        tensors[f"{EMBEDDING}.{i}.weight"] = tensors[f"{OUTPUT}.{i}.weight"] = table
        tensors[f"{OUTPUT}.{i}.bias"] = variables.take(f"adaptive_softmax/cutoff_{i}/b")
        if variables.has(f"adaptive_embed/cutoff_{i}/proj_W"):
            own = variables.take(f"adaptive_embed/cutoff_{i}/proj_W")
            tensors[f"{EMBEDDING_PROJECTION}.{i}"] = own
            ties.append(_take_softmax_projection(variables, tensors, i, own))
        elif table.dim() == 2 and table.shape[1] == d_model <= MAX_IDENTITY:  # proj_same_dim was off
            identity = torch.eye(d_model, dtype=table.dtype)
            tensors[f"{EMBEDDING_PROJECTION}.{i}"] = tensors[f"{OUTPUT_PROJECTION}.{i}"] = identity
            ties.append(False)
        else:
            raise variables.file.error(
                f"lacks the variable 'transformer/adaptive_embed/cutoff_{i}/proj_W'; the file is damaged"
            )
    return ties


def _take_cluster_rows(variables: _Variables, tensors: dict[str, Tensor]) -> None:
    for ours, theirs in (("crit.cluster_weight", "cluster_W"), ("crit.cluster_bias", "cluster_b")):
        tensors[ours] = variables.take(f"adaptive_softmax/cutoff_0/{theirs}")
    if tensors["crit.cluster_weight"].dim() != 2 or len(tensors["crit.cluster_weight"]) >= MAX_COUNT:
        raise variables.file.error(
            f"has a cluster_W that is no matrix of less than {MAX_COUNT} rows; the file is damaged"
        )


def _take_softmax_projection(variables: _Variables, tensors: dict[str, Tensor], i: int, shared: Tensor) -> bool:
    """Adds the softmax projection of cluster i and tells whether it is the embedding's."""
    is_tied = not variables.has(f"adaptive_softmax/cutoff_{i}/proj")
    own = shared if is_tied else variables.take(f"adaptive_softmax/cutoff_{i}/proj")
    tensors[f"{OUTPUT_PROJECTION}.{i}"] = own
    return is_tied


__all__ = ["read_file", "read_prefix"]
