"""Writes files as old programs wrote them: the authors' pickled module, TensorFlow's V2 checkpoints.

Written from the formats' descriptions, independently of the readers in `src`.
"""

import struct
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import google_crc32c
import torch
from torch import Tensor, nn

DATA_TYPES = {torch.float32: 1, torch.float64: 2, torch.int32: 3, torch.int64: 9, torch.bfloat16: 14, torch.float16: 19}


class AuthorsCode:
    """Stands in for the authors' program while a model is pickled: the module that the pickle will name."""

    def __enter__(self) -> "AuthorsCode":
        self.module = ModuleType("mem_transformer")
        for name in ("MemTransformerLM", "Part", "DataParallel"):
            setattr(self.module, name, type(name, (nn.Module,), {"__module__": "mem_transformer"}))
        sys.modules["mem_transformer"] = self.module
        return self

    def __exit__(self, *_: object) -> None:
        del sys.modules["mem_transformer"]


def authors_module(state: Mapping[str, Tensor], arguments: Mapping[str, Any], code: AuthorsCode) -> nn.Module:
    """A module tree with the names, tensors and attributes of the authors' model."""
    root = code.module.MemTransformerLM()
    for name, value in state.items():
        *path, leaf = name.split(".")
        module = root
        for part in path:
            if part not in module._modules:
                module.add_module(part, code.module.Part())
            module = module._modules[part]
        if leaf == "inv_freq":
            module.register_buffer(leaf, value)
        else:
            module.register_parameter(leaf, nn.Parameter(value))
    for name in ("n_token", "d_model", "d_embed", "n_head", "d_head", "n_layer", "tgt_len", "mem_len", "ext_len"):
        setattr(root, name, arguments[name])
    for name in ("attn_type", "same_length", "clamp_len", "sample_softmax"):
        setattr(root, name, arguments[name])
    root.drop = nn.Dropout(arguments["dropout"])
    root.word_emb.cutoffs = [*arguments["cutoffs"], arguments["n_token"]]
    root.word_emb.div_val = arguments["div_val"]
    for layer in root.layers.children():
        layer.dec_attn.dropatt = nn.Dropout(arguments["dropatt"])
        layer.dec_attn.pre_lnorm = layer.pos_ff.pre_lnorm = arguments["pre_lnorm"]
        layer.dec_attn.layer_norm.eps = 1e-5
    return root


def varint(number: int) -> bytes:
    """A protocol buffer's variable-length integer."""
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def masked_checksum(raw: bytes) -> int:
    """CRC-32C in the form that LevelDB stores."""
    checksum = google_crc32c.value(raw)
    return ((checksum >> 15 | checksum << 17) + 0xA282EAD8) & 0xFFFFFFFF


def message(*fields: tuple[int, int | bytes]) -> bytes:
    """A protocol buffer of varints and byte strings; field 6 is the fixed-width checksum of an entry."""
    out = b""
    for number, value in fields:
        if isinstance(value, bytes):
            out += varint(number << 3 | 2) + varint(len(value)) + value
        elif number == 6:
            out += varint(number << 3 | 5) + struct.pack("<I", value)
        else:
            out += varint(number << 3) + varint(value)
    return out


def block(entries: list[tuple[bytes, bytes]], *, restart_every: int = 16, compression: int = 0) -> bytes:
    """A block of LevelDB's tables, with its type and checksum."""
    out, restarts, previous = b"", [], b""
    for i, (key, value) in enumerate(entries):
        n_shared = 0
        if i % restart_every == 0:
            restarts.append(len(out))
        else:
            while n_shared < min(len(key), len(previous)) and key[n_shared] == previous[n_shared]:
                n_shared += 1
        out += varint(n_shared) + varint(len(key) - n_shared) + varint(len(value)) + key[n_shared:] + value
        previous = key
    contents = out + b"".join(struct.pack("<I", at) for at in restarts or [0]) + struct.pack("<I", len(restarts or [0]))
    contents += bytes([compression])
    return contents + struct.pack("<I", masked_checksum(contents))


def table(entries: list[tuple[bytes, bytes]], *, per_block: int = 7, compression: int = 0) -> bytes:
    """A whole table: data blocks, an empty filter index, the index of blocks, the footer."""
    out, handles = b"", []
    for start in range(0, len(entries), per_block):
        part = entries[start : start + per_block]
        written = block(part, compression=compression)
        handles.append((part[-1][0], varint(len(out)) + varint(len(written) - 5)))
        out += written
    places = []
    for written in (block([]), block(handles, restart_every=1)):
        places.append(varint(len(out)) + varint(len(written) - 5))
        out += written
    return out + b"".join(places).ljust(40, b"\0") + struct.pack("<Q", 0xDB4775248B80FB57)


def tensorflow_entry(value: Tensor, *, offset: int, shard: int = 0, checksum: int | None = None) -> bytes:
    """What the index says about one variable."""
    raw = value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if value.numel() else b""
    shape = b"".join(message((2, message((1, length)))) for length in value.shape)
    fields: list[tuple[int, int | bytes]] = [(1, DATA_TYPES[value.dtype]), (2, shape)]
    fields += [(3, shard)] if shard else []
    fields += [(4, offset)] if offset else []
    return message(*fields, (5, len(raw)), (6, masked_checksum(raw) if checksum is None else checksum))


def write_tensorflow(prefix: Path, variables: Mapping[str, Tensor], *, n_shards: int = 1) -> Path:
    """A checkpoint of TensorFlow's V2 format; variables go to the data files in turn."""
    entries = [(b"", message((1, n_shards), (3, message((1, 1)))))]
    data = [b""] * n_shards
    for i, (name, value) in enumerate(sorted(variables.items())):
        shard = i % n_shards
        entries.append((name.encode(), tensorflow_entry(value, offset=len(data[shard]), shard=shard)))
        data[shard] += value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    prefix.with_name(f"{prefix.name}.index").write_bytes(table(entries))
    for shard, content in enumerate(data):
        prefix.with_name(f"{prefix.name}.data-{shard:05d}-of-{n_shards:05d}").write_bytes(content)
    return prefix


def tensorflow_variables(
    weights: Mapping[str, Tensor], cutoffs: list[int], *, left_out: tuple[str, ...] = ()
) -> dict[str, Tensor]:
    """Weights by this package's names as the variables of the authors' graph; `left_out` names projections it lacks.

    Softmax projections that are the embedding's, and output matrices, which always are, do not appear.
    """
    variables: dict[str, Tensor] = {}
    layers = sorted({int(name.split(".")[2]) for name in weights if name.startswith("transformer.layers.")})
    in_layer = {
        "dec_attn.qkv_net.weight": "rel_attn/qkv/kernel", "dec_attn.r_net.weight": "rel_attn/r/kernel",
        "dec_attn.o_net.weight": "rel_attn/o/kernel", "dec_attn.layer_norm.weight": "rel_attn/LayerNorm/gamma",
        "dec_attn.layer_norm.bias": "rel_attn/LayerNorm/beta", "pos_ff.CoreNet.0.weight": "ff/layer_1/kernel",
        "pos_ff.CoreNet.0.bias": "ff/layer_1/bias", "pos_ff.CoreNet.3.weight": "ff/layer_2/kernel",
        "pos_ff.CoreNet.3.bias": "ff/layer_2/bias", "pos_ff.layer_norm.weight": "ff/LayerNorm/gamma",
        "pos_ff.layer_norm.bias": "ff/LayerNorm/beta",
    }  # fmt: skip
    for layer in layers:
        for ours, theirs in in_layer.items():
            value = weights[f"transformer.layers.{layer}.{ours}"]
            variables[f"layer_{layer}/{theirs}"] = value.T if theirs.endswith("kernel") else value
    for bias in ("r_w_bias", "r_r_bias"):
        shared = weights.get(f"transformer.{bias}")
        each = [weights.get(f"transformer.layers.{layer}.dec_attn.{bias}") for layer in layers]
        variables[bias] = shared if shared is not None else torch.stack([value for value in each if value is not None])
    variables |= _embedding_variables(weights) | _softmax_variables(weights, cutoffs)
    return {f"transformer/{name}": value for name, value in variables.items() if name not in left_out}


def _embedding_variables(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    tables = [name for name in weights if name.startswith("transformer.word_emb.emb_layers.")]
    found: dict[str, Tensor] = {}
    for i in range(len(tables)):
        folder = f"adaptive_embed/cutoff_{i}" if len(tables) > 1 else "adaptive_embed"
        found[f"{folder}/lookup_table"] = weights[f"transformer.word_emb.emb_layers.{i}.weight"]
        projection = weights.get(f"transformer.word_emb.emb_projs.{i}")
        if projection is not None:
            found[f"{folder}/proj_W"] = projection.T
    return found


def _softmax_variables(weights: Mapping[str, Tensor], cutoffs: list[int]) -> dict[str, Tensor]:
    if "crit.cluster_weight" not in weights:
        return {"adaptive_softmax/bias": weights["crit.out_layers.0.bias"]}
    found = {
        "adaptive_softmax/cutoff_0/cluster_W": weights["crit.cluster_weight"],
        "adaptive_softmax/cutoff_0/cluster_b": weights["crit.cluster_bias"],
    }
    n_tables = sum(name.startswith("transformer.word_emb.emb_layers.") for name in weights)
    bias = torch.cat([weights[f"crit.out_layers.{i}.bias"] for i in range(n_tables)])
    for i, part in enumerate(bias.tensor_split(cutoffs)):
        found[f"adaptive_softmax/cutoff_{i}/b"] = part
        own = weights.get(f"crit.out_projs.{i}")
        shared = weights.get(f"transformer.word_emb.emb_projs.{i if n_tables > 1 else 0}")
        if own is not None and not (shared is not None and torch.equal(own, shared)):
            found[f"adaptive_softmax/cutoff_{i}/proj"] = own.T
    return found
