"""What every reader of an old format gives: weights under this package's names, and what is known of the config.

A config comes from four places. The weights fix the sizes; nothing can contradict them. The file may record options
(memory length, dropout, ...), which arguments given by the user replace. A preset fills in what is still open. The
defaults of `TransfoXLConfig` fill in the rest, except options that change what the model computes: these must be known.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from transformer_xl.configuration import ALIASES, TransfoXLConfig

from .sizes import cluster_widths

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

REQUIRED = ("mem_len", "clamp_len", "same_length")
"""Options that change every output; a default would be a guess."""

READ_FROM_WEIGHTS = {"adaptive", "proj_share_all_but_first", "proj_same_dim", "tie_projs"}
"""Arguments of the authors' code that the weights answer, so that what is given for them plays no part."""

SETTINGS = {
    *(set(TransfoXLConfig.__annotations__) - {"attribute_map", "keys_to_ignore_at_inference"}),
    *("id2label", "label2id", "problem_type"),
}
"""Config fields that a file may set; the others that the base class has are its own business."""

NOT_ARGUMENTS = {"architectures", "dtype", "torch_dtype", "transformers_version", "model_type"}
"""Keys of a `config.json` that are no settings of a model, and need no mention."""


@dataclass(slots=True)
class LegacyCheckpoint:
    """An old checkpoint, read."""

    path: "Path"
    format: str  # in words, for the report
    tensors: "dict[str, Tensor]"  # names of this package; of tied weights one or more
    sizes: dict[str, Any]  # config fields that the weights fix
    options: dict[str, Any] = field(default_factory=dict)  # config fields that the file records
    n_position_rows: int | None = None  # of the learned tables of attn_type 1 and 3
    architecture: str = "TransfoXLLMHeadModel"
    ignored: dict[str, str] = field(default_factory=dict)  # what was left out, and why
    vocabulary_path: "Path | None" = None  # of the vocabulary that belongs to it
    is_tokenized_text: bool = True  # trained on text that is split at white space, not raw text


@dataclass(slots=True)
class SettledConfig:
    """A config, and how it came about."""

    config: TransfoXLConfig
    defaulted: list[str]  # fields that nothing said anything about
    unused: list[str]  # keys of the arguments that are no setting of the model


def settle_config(
    checkpoint: LegacyCheckpoint, arguments: Mapping[str, Any], preset: Mapping[str, Any] | None = None
) -> SettledConfig:
    """Gives the config of a checkpoint.

    Args:
        checkpoint: what was read.
        arguments: the user's, by the authors' names or those of the config; other keys are returned as unused.
        preset: a value of `configuration.PRESETS`.

    Raises:
        ValueError: something contradicts the weights, or an option that changes every output is unknown.
    """
    given, unused = _known_fields(arguments)
    filled, _ = _known_fields(preset or {})
    recorded = {name: value for name, value in checkpoint.options.items() if name not in READ_FROM_WEIGHTS}
    for origin, values in (("The preset", filled), ("The arguments file", given), ("The config in it", recorded)):
        _refuse_contradictions(checkpoint, values, origin)
    values = {**filled, **checkpoint.options, **given}
    values |= {
        name: size for name, size in checkpoint.sizes.items() if not _says_the_same(checkpoint, name, values.get(name))
    }
    missing = [name for name in (*REQUIRED, "cutoffs", "n_head", "d_head") if values.get(name) is None]
    if missing:
        raise ValueError(
            f"{checkpoint.path} does not say {', '.join(missing)}: give {'it' if len(missing) == 1 else 'them'} in a "
            "JSON file with --arguments, or name a --preset."
        )
    _refuse_other_counts(checkpoint, values)
    _refuse_labels_without_numbers(checkpoint, values.get("id2label"))
    _fit_position_rows(checkpoint, values, is_given="tgt_len" in given)
    defaulted = [name for name in ("dropout", "dropatt") if name not in values]
    try:
        config = TransfoXLConfig(
            **{name: value for name, value in values.items() if value is not None or name.endswith("_id")}
        )
    except TypeError as error:  # a number of another kind, such as 2.0, is as much the file's fault as a wrong one
        raise ValueError(f"the settings for {checkpoint.path} cannot be used: {error}") from error
    return SettledConfig(config, defaulted, unused)


def _known_fields(values: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    known, unused = {}, []
    for key, value in values.items():
        name = ALIASES.get(key, key)
        if name in SETTINGS:
            known[name] = value
        elif key not in READ_FROM_WEIGHTS and key not in NOT_ARGUMENTS:
            unused.append(key)
    return {name: value for name, value in known.items() if name not in READ_FROM_WEIGHTS}, unused


def _refuse_contradictions(checkpoint: LegacyCheckpoint, values: Mapping[str, Any], origin: str) -> None:
    for name, size in checkpoint.sizes.items():
        if values.get(name) is not None and not _says_the_same(checkpoint, name, values[name]):
            raise ValueError(
                f"{origin} says {name}={values[name]!r:.80}, but the weights in {checkpoint.path} have "
                f"{name}={size!r}: correct or remove it."
            )


def _refuse_other_counts(checkpoint: LegacyCheckpoint, values: Mapping[str, Any]) -> None:
    """Checks what only the sum or product of settings fixes, so that no setting asks for weights that are not there."""
    output = checkpoint.tensors.get("transformer.layers.0.dec_attn.o_net.weight")
    n_head, d_head, cutoffs = values["n_head"], values["d_head"], values["cutoffs"]
    if output is not None and type(n_head) is type(d_head) is int and n_head * d_head != output.shape[-1]:
        raise ValueError(
            f"n_head * d_head = {n_head} * {d_head} must be {output.shape[-1]} by the weights in {checkpoint.path}: "
            "correct the arguments."
        )
    clusters = checkpoint.tensors.get("crit.cluster_bias")
    n_cutoffs = 0 if clusters is None else clusters.numel()
    has_softmax = checkpoint.architecture == "TransfoXLLMHeadModel" and output is not None
    if has_softmax and isinstance(cutoffs, list) and len(cutoffs) != n_cutoffs:
        raise ValueError(
            f"cutoffs must be {n_cutoffs} numbers by crit.cluster_bias in {checkpoint.path}, but are {len(cutoffs)}: "
            "correct the arguments."
        )


def _refuse_labels_without_numbers(checkpoint: LegacyCheckpoint, labels: Any) -> None:
    if labels is not None and not (isinstance(labels, dict) and all(str(key).isdecimal() for key in labels)):
        raise ValueError(
            f"{checkpoint.path} says id2label={labels!r:.80}, but it must map the numbers of classes to their names: "
            "correct or remove it."
        )


def _says_the_same(checkpoint: LegacyCheckpoint, name: str, value: Any) -> bool:
    """Whether `value` gives the weights' shapes; of several `div_val` that do, the weights show only one."""
    size = checkpoint.sizes[name]
    if name != "div_val" or type(value) is not int or value < 1 or (value == 1) != (size == 1):
        return bool(value == size)
    d_embed = checkpoint.sizes["d_embed"]
    n_clusters = len(checkpoint.sizes.get("cutoffs", ())) + 1
    return cluster_widths(d_embed, value, n_clusters) == cluster_widths(d_embed, size, n_clusters)


def _fit_position_rows(checkpoint: LegacyCheckpoint, values: dict[str, Any], *, is_given: bool) -> None:
    """Makes `tgt_len + ext_len + mem_len` equal the rows of the position table, by `tgt_len` unless that is given."""
    rows = checkpoint.n_position_rows
    if rows is None:
        return
    others = values.get("ext_len", 0) + values["mem_len"]
    if not is_given and rows > others:
        values["tgt_len"] = rows - others
    if values.get("tgt_len", 0) + others != rows:
        raise ValueError(
            f"The position table in {checkpoint.path} has {rows} rows, but tgt_len + ext_len + mem_len = "
            f"{values.get('tgt_len', 0)} + {values.get('ext_len', 0)} + {values['mem_len']}: they must add up to it."
        )


__all__ = ["LegacyCheckpoint", "SettledConfig", "settle_config"]
