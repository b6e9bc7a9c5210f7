"""Models as commands are given them: a folder, or the name of a model on the Hub."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .errors import UserError

BEST, CHECKPOINTS, MODEL = "best.json", "checkpoints", "model"  # in the folder of a run or quickstart


def load_language_model(model: str, *, device: str | None = None, dtype: str | None = None) -> tuple[Any, Any]:
    """The language model and tokenizer of a folder, run or Hub name, in evaluation mode.

    Args:
        model: what the user gave; see `model_folder`.
        device: such as "cpu" or "cuda:1"; None for the best there is.
        dtype: such as "bfloat16"; None for that of the weights.

    Raises:
        UserError: there is no such folder, it holds no model of this kind, or there is no such device.
    """
    tokenizer = load_tokenizer(model)
    return load_model(model, device=device, dtype=dtype), tokenizer


def load_model(model: str, *, device: str | None = None, dtype: str | None = None) -> Any:
    """The language model alone; see `load_language_model`."""
    import torch
    from transformers import AutoModelForCausalLM

    place = _device(device)
    options = {} if dtype is None else {"dtype": getattr(torch, dtype)}
    folder = _checked(model)
    loaded, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, **options)
    if info["missing_keys"]:
        raise UserError(
            f"MODEL {folder} lacks weights of a language model ({min(info['missing_keys'])}): give one that was saved "
            "as TransfoXLLMHeadModel."
        )
    return loaded.to(place).eval()


def load_tokenizer(model: str) -> Any:
    """The tokenizer alone; see `load_language_model`."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(_checked(model))


def _checked(model: str) -> str:
    """The folder or Hub name of what the user gave, if it is a model of this kind."""
    from huggingface_hub.utils import logging as hub_logging
    from transformers import AutoConfig
    from transformers.utils import logging

    from transformer_xl import register_auto_classes

    folder = model_folder(model)
    register_auto_classes()
    logging.disable_progress_bar()
    hub_logging.set_verbosity_error()  # else each failed attempt to reach the Hub is a line of its own
    config = AutoConfig.from_pretrained(folder)  # fails at once where the others would try their files one by one
    if config.model_type != "transfo-xl":
        raise UserError(f"MODEL {folder} is a {config.model_type} model but must be a Transformer-XL (transfo-xl).")
    return folder


def model_folder(model: str) -> str:
    """The folder or Hub name from which transformers loads what the user gave: a run stands for its best checkpoint.

    Raises:
        UserError: there is no such folder, or it holds no model.
    """
    folder = Path(model)
    if folder.is_dir():
        found = next((path for path in _candidates(folder) if (path / "config.json").is_file()), None)
        if found is None:
            raise UserError(
                f"MODEL {model} has no config.json, and no checkpoint or model in it has one: give the folder that "
                "holds the model, or a run."
            )
        return str(found)
    if folder.exists() or model.count("/") > 1 or model.startswith((".", "/", "~")):
        raise UserError(f"MODEL {model} does not exist: give a model folder or the name of a model on the Hub.")
    return model


def _candidates(folder: Path) -> Iterator[Path]:
    """Where the model of a folder may be, the best place first."""
    yield folder
    yield folder / MODEL
    if (folder / BEST).is_file():
        yield folder / CHECKPOINTS / json.loads((folder / BEST).read_text(encoding="utf-8"))["checkpoint"] / MODEL
    for checkpoint in sorted((folder / CHECKPOINTS).glob("step-*"), reverse=True):
        yield checkpoint / MODEL


def _device(name: str | None) -> Any:
    """The device of that name, by default a GPU if there is one."""
    import torch

    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"--device {name} cannot be used ({reason}): see the devices with transformer-xl env."
        ) from error
    return device


__all__ = ["load_language_model", "load_model", "load_tokenizer", "model_folder"]
