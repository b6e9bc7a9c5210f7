"""What the models give, with the fields and the order of transformers 4.35; fields that it did not have come last.

Shapes: B batch, Q queries, M memory, K = M + Q keys, N heads, D model size, V vocabulary.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers.utils.generic import ModelOutput

from .memory import TransfoXLCache


@dataclass
class TransfoXLModelOutput(ModelOutput):
    """What `TransfoXLModel` gives.

    Attributes:
        last_hidden_state: `[B, Q, D]`.
        mems: the memory for the next segment, `n_layer` tensors `[M, B, D]`, detached; None with a cache.
        hidden_states: with `output_hidden_states`, the embeddings and each layer's output, `n_layer + 1` `[B, Q, D]`.
        attentions: with `output_attentions`, each layer's attention weights, `[B, N, Q, K]`.
        past_key_values: the cache for the next segment, if one is in use.
    """

    last_hidden_state: Tensor | None = None
    mems: list[Tensor] | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    past_key_values: TransfoXLCache | None = None


@dataclass
class TransfoXLLMHeadModelOutput(ModelOutput):
    """What `TransfoXLLMHeadModel` gives; the fields not listed are those of `TransfoXLModelOutput`.

    Attributes:
        losses: negative log-likelihoods in nats, in token order, 0 where ignored: `[B, Q-1]` for `labels`, `[B, Q]` for
            `shift_labels`.
        prediction_scores: log-probabilities over the vocabulary, `[B, Q, V]`.
        loss: mean of `losses` over the positions that are not ignored.
    """

    losses: Tensor | None = None
    prediction_scores: Tensor | None = None
    mems: list[Tensor] | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    loss: Tensor | None = None
    past_key_values: TransfoXLCache | None = None

    @property
    def logits(self) -> Tensor | None:
        """`prediction_scores`: log-probabilities, which are logits that need no further softmax."""
        return self.prediction_scores

    def __getitem__(self, key: Any) -> Any:
        return super().__getitem__("prediction_scores" if key == "logits" else key)


@dataclass
class TransfoXLSequenceClassifierOutputWithPast(ModelOutput):
    """What `TransfoXLForSequenceClassification` gives; the fields not listed are those of `TransfoXLModelOutput`.

    Attributes:
        loss: classification or regression loss, a scalar.
        logits: scores before the softmax, `[B, num_labels]`.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    mems: list[Tensor] | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    past_key_values: TransfoXLCache | None = None


__all__ = ["TransfoXLLMHeadModelOutput", "TransfoXLModelOutput", "TransfoXLSequenceClassifierOutputWithPast"]
