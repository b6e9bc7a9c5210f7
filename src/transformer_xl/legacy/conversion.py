"""Writes an old checkpoint as a folder that `from_pretrained` loads, and verifies the folder before it appears."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from transformer_xl.configuration import PRESETS, TransfoXLConfig
from transformer_xl.files import written_whole
from transformer_xl.modeling import (
    TransfoXLForSequenceClassification,
    TransfoXLLMHeadModel,
    TransfoXLModel,
    TransfoXLPreTrainedModel,
)
from transformer_xl.tokenization import TransfoXLTokenizer
from transformer_xl.vocabulary import StoredVocabulary, read_vocabulary, write_vocabulary

from .checkpoint import LegacyCheckpoint, settle_config
from .source import read_source

_CLASSES: dict[str, type[TransfoXLPreTrainedModel]] = {
    "TransfoXLLMHeadModel": TransfoXLLMHeadModel,
    "TransfoXLForSequenceClassification": TransfoXLForSequenceClassification,
    "TransfoXLModel": TransfoXLModel,
}
_WEIGHT_TYPES = {torch.float64, torch.float32, torch.float16, torch.bfloat16}
_END_SYMBOLS = ("<eos>", "<S>")  # the second in the authors' One Billion Word vocabulary


@dataclass(slots=True)
class Conversion:
    """What was found, written and verified."""

    format: str
    architecture: str
    config: TransfoXLConfig
    n_parameters: int  # tied ones counted once
    dtype: str
    n_bytes: int  # of the written weights
    n_words: int | None  # None without a vocabulary
    vocabulary: str | None  # where it came from
    tokenizer_mode: str | None
    mean_loss: float | None  # nats, of the check run; None for models without a language-model head
    defaulted: list[str] = field(default_factory=list)
    unused_arguments: list[str] = field(default_factory=list)
    ignored: dict[str, str] = field(default_factory=dict)


def convert(
    source: Path,
    output: Path,
    *,
    arguments: Mapping[str, Any] | None = None,
    preset: str | None = None,
    vocabulary: Path | None = None,
) -> Conversion:
    """Converts a checkpoint; `output` appears when everything in it is written and verified, or not at all.

    Args:
        source: a file, a folder, or a TensorFlow prefix.
        output: a folder that does not exist yet, or is empty.
        arguments: settings by the authors' names or those of `TransfoXLConfig`, for what the file does not hold.
        preset: a name of `configuration.PRESETS`, for what is still open.
        vocabulary: a file that `read_vocabulary` knows; by default the one that belongs to the checkpoint, if any.

    Raises:
        ValueError: the source or an argument cannot be used.
        OSError: a file cannot be read or written.
    """
    _check_output(output)
    if preset is not None and preset not in PRESETS:
        raise ValueError(f"preset={preset!r} must be one of {', '.join(sorted(PRESETS))}.")
    checkpoint = read_source(source)
    settled = settle_config(checkpoint, arguments or {}, PRESETS[preset] if preset else None)
    config = settled.config
    # A transformers folder has settings for its own vocabulary, and tokens that were added later, beside it.
    has_tokenizer = vocabulary is None and checkpoint.path.is_dir()
    vocabulary = vocabulary or checkpoint.vocabulary_path
    stored = read_vocabulary(vocabulary) if vocabulary is not None else None
    tokenizer: TransfoXLTokenizer | None = None
    if stored is not None:
        tokenizer = _saved_tokenizer(checkpoint.path) if has_tokenizer else None
        _check_size(config, len(stored.words) if tokenizer is None else len(tokenizer), vocabulary)
    if checkpoint.is_tokenized_text:  # a transformers config knows its end symbol
        words = stored.words if stored is not None else []
        config.eos_token_id = next((words.index(symbol) for symbol in _END_SYMBOLS if symbol in words), None)
    model = filled_model(checkpoint, config)
    checkpoint.tensors.clear()  # the model has them now
    with _new_folder(output) as folder:
        model.save_pretrained(folder)
        if stored is not None:
            if tokenizer is None:
                tokenizer = _new_tokenizer(checkpoint, stored, folder)
            tokenizer.save_pretrained(folder)
        mean_loss = _verify(model, folder, n_words=None if stored is None else len(stored.words))
        n_bytes = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
        _check_output(output)  # once more, as what has appeared there meanwhile would be lost
    return Conversion(
        format=checkpoint.format,
        architecture=checkpoint.architecture,
        config=config,
        n_parameters=sum(parameter.numel() for parameter in model.parameters()),
        dtype=str(model.dtype).removeprefix("torch."),
        n_bytes=n_bytes,
        n_words=None if stored is None else len(stored.words),
        vocabulary=None if vocabulary is None else str(vocabulary),
        tokenizer_mode=None if tokenizer is None else tokenizer.mode,
        mean_loss=mean_loss,
        defaulted=[f"{name}={getattr(config, name)}" for name in settled.defaulted],
        unused_arguments=settled.unused,
        ignored=checkpoint.ignored,
    )


def _check_output(output: Path) -> None:
    if not output.name or output.name == "..":
        raise ValueError(f"{output} has no name of its own; name a folder that does not exist yet.")
    if output.exists() and not output.is_dir():
        raise ValueError(f"{output} is a file; name a folder that does not exist yet.")
    if output.exists() and any(output.iterdir()):
        raise ValueError(
            f"{output} is a folder with files in it; name one that does not exist yet, nothing is overwritten."
        )


def _check_size(config: TransfoXLConfig, n_words: int, path: Path | None) -> None:
    if n_words != config.vocab_size:
        raise ValueError(
            f"{path} has {n_words} words, but the model has {config.vocab_size}: give the vocabulary that it "
            "was trained with, with --vocab."
        )


@torch.no_grad()
def filled_model(checkpoint: LegacyCheckpoint, config: TransfoXLConfig) -> TransfoXLPreTrainedModel:
    """Gives the model with the weights of the checkpoint; each weight is used, and each parameter set.

    Raises:
        ValueError: a weight is missing, unknown, of the wrong shape or not finite, or two that must be one differ.
    """
    model_class = _CLASSES[checkpoint.architecture]
    with torch.device("meta"):  # so that no memory is taken for shapes that the file only claims
        weights = _assigned_weights(checkpoint, model_class(config))
    dtypes = {weight.dtype for weight in weights.values()}
    model = model_class(config)
    model.to(dtypes.pop() if len(dtypes) == 1 else torch.float32).eval()
    for name, parameter in model.named_parameters():
        parameter.copy_(weights[name])
    return model


def _assigned_weights(checkpoint: LegacyCheckpoint, blueprint: TransfoXLPreTrainedModel) -> dict[str, Tensor]:
    """One weight for each parameter of a model without values, by the name that `named_parameters` gives it."""
    prefix = "transformer." if isinstance(blueprint, TransfoXLModel) else ""
    names_of: dict[int, list[str]] = {}
    for name, parameter in blueprint.named_parameters(remove_duplicate=False):
        names_of.setdefault(id(parameter), []).append(f"{prefix}{name}")
    left = dict(checkpoint.tensors)
    assigned: dict[str, Tensor] = {}
    for name, parameter in blueprint.named_parameters():
        names = names_of[id(parameter)]
        given = {other: left.pop(other) for other in names if other in left}
        if not given:
            raise ValueError(
                f"{checkpoint.path} lacks the weight {names[0]}; the file is damaged or the arguments are wrong."
            )
        _check_weights(checkpoint, parameter, given)
        assigned[name] = next(iter(given.values()))
    if left:
        raise ValueError(
            f"{checkpoint.path} has the weight {next(iter(left))[:80]}, for which the config has no place."
        )
    return assigned


def _check_weights(checkpoint: LegacyCheckpoint, parameter: Tensor, given: dict[str, Tensor]) -> None:
    first_name, first = next(iter(given.items()))
    for name, weight in given.items():
        if weight.shape != parameter.shape:
            raise ValueError(
                f"{checkpoint.path}: the weight {name} has shape {list(weight.shape)}, but by the config it must have "
                f"{list(parameter.shape)}: correct the arguments."
            )
        if weight.dtype not in _WEIGHT_TYPES:
            raise ValueError(
                f"{checkpoint.path}: the weight {name} is of {weight.dtype}; weights are floating-point numbers of "
                "16, 32 or 64 bits."
            )
        if not weight.isfinite().all():
            raise ValueError(f"{checkpoint.path}: the weight {name} holds values that are not finite; refused.")
        if weight.dtype != first.dtype or not torch.equal(weight, first):
            raise ValueError(
                f"{checkpoint.path}: the weights {first_name} and {name} differ, but by the config they are one."
            )


def _saved_tokenizer(folder: Path) -> TransfoXLTokenizer:
    try:
        tokenizer: TransfoXLTokenizer = TransfoXLTokenizer.from_pretrained(str(folder), local_files_only=True)
    except (AttributeError, KeyError, TypeError, ValueError) as error:  # transformers does not check what it reads
        raise ValueError(f"{folder}: the tokenizer in it cannot be used: {error}") from error
    return tokenizer


def _new_tokenizer(checkpoint: LegacyCheckpoint, stored: StoredVocabulary, folder: Path) -> TransfoXLTokenizer:
    """The tokenizer for a list of words; the authors and NVIDIA split text at white space."""
    path = folder / "vocab.json"
    write_vocabulary(path, stored.words)
    tokenizer = TransfoXLTokenizer(pretrained_vocab_file=path, **stored.options)
    if checkpoint.is_tokenized_text and tokenizer.mode == "moses":
        return TransfoXLTokenizer(pretrained_vocab_file=path, **stored.options, mode="whitespace")
    return tokenizer


@contextmanager
def _new_folder(output: Path) -> Iterator[Path]:
    """A folder to fill, which becomes `output` at the end, or disappears with all that was made for it."""
    made_parents = [parent for parent in output.parents if not parent.exists()]  # innermost first
    try:
        with written_whole(output) as folder:
            folder.mkdir(parents=True)
            yield folder
        made_parents = []
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise OSError(f"{output} could not be written: {reason}; nothing was left there.") from None
    finally:
        for parent in made_parents:
            with suppress(OSError):
                parent.rmdir()


@torch.no_grad()
def _verify(model: TransfoXLPreTrainedModel, folder: Path, *, n_words: int | None) -> float | None:
    """Loads the folder, compares every weight, and runs two segments of it; gives the mean loss, if it has one.

    Raises:
        ValueError: what was written is not what was read, or does not run.
    """
    loaded = type(model).from_pretrained(folder, local_files_only=True).eval()
    written = loaded.state_dict()
    for name, weight in model.state_dict().items():
        if not torch.equal(weight, written[name]):
            raise ValueError(
                f"The converted model does not give the weight {name} back; this is a bug, nothing was written."
            )
    if n_words is not None and len(_saved_tokenizer(folder)) < n_words:
        raise ValueError(
            "The converted tokenizer does not give the vocabulary back; this is a bug, nothing was written."
        )
    length = min(8, loaded.config.tgt_len)
    if loaded.config.attn_type == 0:  # a short memory shows as much, and costs nothing whatever the file says
        loaded.reset_memory_length(min(loaded.config.mem_len, 2 * length))
    ids = torch.linspace(0, loaded.config.vocab_size - 1, 2 * length + 1).long()[None]
    if isinstance(loaded, TransfoXLForSequenceClassification):
        outputs = [loaded(ids[:, :length]).logits]
    elif isinstance(loaded, TransfoXLModel):
        outputs = [loaded(ids[:, :length]).last_hidden_state]
    else:
        first = loaded(ids[:, :length], shift_labels=ids[:, 1 : length + 1])
        second = loaded(ids[:, length:-1], mems=first.mems, shift_labels=ids[:, length + 1 :])
        outputs = [first.losses, second.losses]
    if not all(output.isfinite().all() for output in outputs):
        raise ValueError("The converted model gives values that are not finite; nothing was written.")
    return float(torch.cat(outputs).mean()) if isinstance(loaded, TransfoXLLMHeadModel) else None


__all__ = ["Conversion", "convert", "filled_model"]
