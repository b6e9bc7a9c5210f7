"""Transformer-XL (Dai et al. 2019) for PyTorch and transformers v5: the `TransfoXL*` classes and what goes with them.

Importing the package registers the classes with transformers' Auto classes, so that `AutoModelForCausalLM` and its kin
find them. The command line skips that until it is needed (docs/cli-startup.md).
"""

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .adaptive import AdaptiveEmbedding
    from .configuration import TransfoXLConfig
    from .memory import TransfoXLCache, reset_mems
    from .modeling import (
        TransfoXLForSequenceClassification,
        TransfoXLLMHeadModel,
        TransfoXLLMHeadModelOutput,
        TransfoXLModel,
        TransfoXLModelOutput,
        TransfoXLPreTrainedModel,
        TransfoXLSequenceClassifierOutputWithPast,
    )
    from .tokenization import TransfoXLTokenizer

_HOMES = {
    "AdaptiveEmbedding": "adaptive",
    "TransfoXLCache": "memory",
    "TransfoXLConfig": "configuration",
    "TransfoXLForSequenceClassification": "modeling",
    "TransfoXLLMHeadModel": "modeling",
    "TransfoXLLMHeadModelOutput": "modeling",
    "TransfoXLModel": "modeling",
    "TransfoXLModelOutput": "modeling",
    "TransfoXLPreTrainedModel": "modeling",
    "TransfoXLSequenceClassifierOutputWithPast": "modeling",
    "TransfoXLTokenizer": "tokenization",
    "reset_mems": "memory",
}


def __getattr__(name: str) -> Any:
    """Import the module of a public name when the name is first used."""
    if name == "__version__":
        from importlib.metadata import version  # noqa: PLC0415 - a fifth of the time that `--help` takes

        return version("transformer-xl")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)


def register_auto_classes() -> None:
    """Make AutoConfig, AutoTokenizer and the AutoModel classes know this model; more than once is as good as once."""
    from transformers import (  # noqa: PLC0415 - takes seconds, and the command line must not wait for it
        AutoConfig,
        AutoModel,
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
        AutoTokenizer,
    )
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES  # noqa: PLC0415 - likewise

    from . import configuration, modeling, tokenization  # noqa: PLC0415 - likewise

    config = configuration.TransfoXLConfig
    AutoConfig.register(config.model_type, config, exist_ok=True)
    AutoTokenizer.register(config, tokenizer_class=tokenization.TransfoXLTokenizer, exist_ok=True)
    AutoModel.register(config, modeling.TransfoXLModel, exist_ok=True)
    AutoModelForCausalLM.register(config, modeling.TransfoXLLMHeadModel, exist_ok=True)
    # Trainer shifts labels for label smoothing if it finds the class in this table; `register` does not write to it.
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[config.model_type] = "TransfoXLLMHeadModel"
    AutoModelForSequenceClassification.register(config, modeling.TransfoXLForSequenceClassification, exist_ok=True)


if "transformer_xl_command" not in sys.modules:
    register_auto_classes()

__all__ = [
    "AdaptiveEmbedding",
    "TransfoXLCache",
    "TransfoXLConfig",
    "TransfoXLForSequenceClassification",
    "TransfoXLLMHeadModel",
    "TransfoXLLMHeadModelOutput",
    "TransfoXLModel",
    "TransfoXLModelOutput",
    "TransfoXLPreTrainedModel",
    "TransfoXLSequenceClassifierOutputWithPast",
    "TransfoXLTokenizer",
    "register_auto_classes",
    "reset_mems",
]
