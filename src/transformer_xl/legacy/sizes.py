"""What the shapes of the weights say about a model; names are those of this package."""

import re
from collections.abc import Mapping
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

MAX_WIDTH = 1 << 20  # of any matrix that tells a size
MAX_COUNT = 256  # layers or clusters; making a layer takes memory and time even if it has no weights
EMBEDDING = "transformer.word_emb.emb_layers"
EMBEDDING_PROJECTION = "transformer.word_emb.emb_projs"
OUTPUT = "crit.out_layers"
OUTPUT_PROJECTION = "crit.out_projs"
ATTENTION = "transformer.layers.{}.dec_attn"
FEED_FORWARD = "transformer.layers.{}.pos_ff"


def sizes_of(tensors: Mapping[str, Tensor], path: Path) -> dict[str, Any]:
    """Gives the config fields that the weights fix.

    `n_head` and `d_head` are missing for `attn_type=2`, `cutoffs` for clusters of equal width (`div_val=1`),
    `tie_projs` and `tie_word_embeddings` where the file holds only one side of a tie.

    Raises:
        ValueError: a weight that every Transformer-XL has is missing or has another number of axes.
    """
    n_layer = count(tensors, r"transformer\.layers\.(\d+)\.", path)
    output = _matrix(tensors, f"{ATTENTION.format(0)}.o_net.weight", path)
    inner = _matrix(tensors, f"{FEED_FORWARD.format(0)}.CoreNet.0.weight", path)
    sizes: dict[str, Any] = {
        "n_layer": n_layer,
        "d_model": output[0],
        "d_inner": inner[0],
        **_attention_sizes(tensors, output[1]),
        **_embedding_sizes(tensors, path, d_model=output[0]),
    }
    n_clusters = len(sizes["cutoffs"]) + 1 if "cutoffs" in sizes else count_clusters(tensors, path)
    return sizes | _ties(tensors, n_clusters)


def position_rows(tensors: Mapping[str, Tensor]) -> int | None:
    """Rows of the learned position table `[n_layer, rows, N, H]`, if there is one."""
    table = tensors.get("transformer.r_emb")
    return table.shape[1] if table is not None and table.dim() == 4 else None


def count(tensors: Mapping[str, Tensor], pattern: str, path: Path) -> int:
    """The number n of indices in the names that start with `pattern`; they must be 0 to n-1."""
    matches = (re.match(pattern, name) for name in tensors)
    indices = {int(match[1]) for match in matches if match and len(match[1]) < 9}
    what = pattern.replace("\\", "").replace("(d+)", "N")
    if not indices or max(indices) + 1 != len(indices):
        raise ValueError(
            f"{path}: the weights {what}... are missing or incomplete; the file is damaged or no Transformer-XL."
        )
    if len(indices) > MAX_COUNT:
        raise ValueError(
            f"{path}: N in the weights {what}... has {len(indices)} values, more than {MAX_COUNT}; refused."
        )
    return len(indices)


def count_clusters(tensors: Mapping[str, Tensor], path: Path) -> int:
    """The number of clusters, of which the softmax has a bias for each but the first."""
    bias = tensors.get("crit.cluster_bias")
    if bias is None:
        return 1
    if bias.dim() != 1 or len(bias) >= MAX_COUNT:
        raise ValueError(
            f"{path}: the weight crit.cluster_bias has shape {list(bias.shape)}, but it must be a row of less than "
            f"{MAX_COUNT} numbers; the file is damaged."
        )
    return len(bias) + 1


def _matrix(tensors: Mapping[str, Tensor], name: str, path: Path) -> tuple[int, int]:
    if name not in tensors:
        raise ValueError(f"{path}: the weight {name} is missing; the file is damaged or no Transformer-XL.")
    shape = tuple(tensors[name].shape)
    if len(shape) != 2 or 0 in shape or shape[1] > MAX_WIDTH:
        raise ValueError(
            f"{path}: the weight {name} has shape {list(shape)}, but it must be a matrix; the file is damaged."
        )
    return shape


def _attention_sizes(tensors: Mapping[str, Tensor], width: int) -> dict[str, Any]:
    layer_biases = tensors.get(f"{ATTENTION.format(0)}.r_w_bias")
    table, shared_biases = tensors.get("transformer.r_emb"), tensors.get("transformer.r_w_bias")
    if f"{ATTENTION.format(0)}.r_net.weight" in tensors:
        biases = layer_biases if layer_biases is not None else shared_biases
        sizes: dict[str, Any] = {"attn_type": 0, "untie_r": layer_biases is not None}
    elif "transformer.r_bias" in tensors:
        biases, sizes = shared_biases, {"attn_type": 1}
    elif table is not None:
        biases, sizes = table, {"attn_type": 3}
    else:
        return {"attn_type": 2}
    if biases is not None and biases.dim() >= 2 and biases.shape[-2] * biases.shape[-1] == width:
        sizes |= {"n_head": biases.shape[-2], "d_head": biases.shape[-1]}
    return sizes


def _embedding_sizes(tensors: Mapping[str, Tensor], path: Path, *, d_model: int) -> dict[str, Any]:
    n_tables = count(tensors, rf"{re.escape(EMBEDDING)}\.(\d+)\.", path)
    tables = [_matrix(tensors, f"{EMBEDDING}.{i}.weight", path) for i in range(n_tables)]
    d_embed = tables[0][1]
    sizes: dict[str, Any] = {"vocab_size": sum(rows for rows, _ in tables), "d_embed": d_embed}
    if n_tables > 1:
        ends = [sum(rows for rows, _ in tables[: i + 1]) for i in range(n_tables)]
        sizes |= {"cutoffs": ends[:-1], "div_val": _divisor([width for _, width in tables], path)}
    elif "crit.cluster_weight" in tensors or not any(name.startswith("crit.") for name in tensors):
        sizes |= {"div_val": 1}
    else:
        has_square_projection = f"{EMBEDDING_PROJECTION}.0" in tensors and d_embed == d_model
        sizes |= {"cutoffs": [], "div_val": 2 if has_square_projection else 1}
    return sizes


def _divisor(widths: list[int], path: Path) -> int:
    """The smallest `div_val` with which cluster i is `widths[0] // div_val**i` wide."""
    first, second = widths[:2]
    for divisor in range(max(2, first // (second + 1) + 1), first // second + 1):  # those that give the second
        if all(width // divisor == narrower for width, narrower in pairwise(widths)):
            return divisor
    raise ValueError(f"{path}: the embeddings have the widths {widths}, which no div_val gives; the file is damaged.")


def cluster_widths(d_embed: int, div_val: int, n_clusters: int) -> list[int]:
    """The width of the embedding of each cluster, `d_embed // div_val**i`."""
    return list(accumulate(range(1, n_clusters), lambda width, _: width // div_val, initial=d_embed))


def _ties(tensors: Mapping[str, Tensor], n_clusters: int) -> dict[str, Any]:
    """Which output weights are the embedding's; left open if one side is not there to be compared."""
    ties: dict[str, Any] = {}
    outputs = [name for name in tensors if re.fullmatch(rf"{re.escape(OUTPUT)}\.\d+\.weight", name)]
    if outputs:
        ties["tie_word_embeddings"] = all(_equal(tensors, name, name.replace(OUTPUT, EMBEDDING)) for name in outputs)
    n_tables = sum(name.startswith(f"{EMBEDDING_PROJECTION}.") for name in tensors)
    names = [f"{OUTPUT_PROJECTION}.{i}" for i in range(n_clusters)]
    if n_tables and all(name in tensors for name in names):
        partners = [f"{EMBEDDING_PROJECTION}.{i if n_tables > 1 else 0}" for i in range(n_clusters)]
        ties["tie_projs"] = [_equal(tensors, name, partner) for name, partner in zip(names, partners, strict=True)]
    return ties


def _equal(tensors: Mapping[str, Tensor], name: str, other: str) -> bool:
    if name not in tensors or other not in tensors:
        return False
    one, two = tensors[name], tensors[other]
    return one.shape == two.shape and one.dtype == two.dtype and torch.equal(one, two)


__all__ = [
    "ATTENTION",
    "EMBEDDING",
    "EMBEDDING_PROJECTION",
    "FEED_FORWARD",
    "MAX_COUNT",
    "OUTPUT",
    "OUTPUT_PROJECTION",
    "cluster_widths",
    "count",
    "count_clusters",
    "position_rows",
    "sizes_of",
]
