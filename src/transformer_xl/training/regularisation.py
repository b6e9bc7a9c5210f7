"""What the authors' Penn Treebank run adds to dropout, on a model as it is: nothing is left of it in its files.

Locked dropout has one mask for all positions of a row (Gal and Ghahramani 2016); word dropout, and penalties on the
last layer's outputs (AR) and on their change (TAR), are those of AWD-LSTM (Merity et al. 2018, sections 3.2 and 4).
"""

from typing import Any

import torch
from torch import Tensor, nn

from transformer_xl.modeling import TransfoXLLMHeadModel

from .recipe import RegularisationTable


class LockedDropout(nn.Module):
    """Dropout with one mask for all positions: `[..., T, D]` is multiplied by a mask `[..., 1, D]`.

    Args:
        p: probability of zeroing.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, states: Tensor) -> Tensor:
        """`[..., T, D]` to `[..., T, D]`."""
        if not self.training or self.p == 0:
            return states
        mask = torch.empty_like(states[..., :1, :]).bernoulli_(1 - self.p)
        return states * (mask / (1 - self.p))


def regularise(model: TransfoXLLMHeadModel, options: RegularisationTable) -> None:
    """Put locked dropout and word dropout into a model, in place; where an option is unset its own dropout stays."""
    transformer: Any = model.transformer
    if options.input_dropout is not None:
        transformer.drop = LockedDropout(options.input_dropout)
    if options.output_dropout is not None:
        transformer.output_drop = LockedDropout(options.output_dropout)
    for layer in transformer.layers:
        if options.attention_dropout is not None:
            layer.dec_attn.projection_drop = LockedDropout(options.attention_dropout)
            layer.dec_attn.drop = LockedDropout(options.attention_dropout)
        if options.feed_forward_dropout is not None:
            layer.pos_ff.CoreNet[2] = LockedDropout(options.feed_forward_dropout)
            layer.pos_ff.CoreNet[4] = LockedDropout(options.feed_forward_dropout)
    if options.word_dropout:
        transformer.word_emb.register_forward_hook(_WordDropout(options.word_dropout, model.config.vocab_size))


class _WordDropout:
    """A hook of the embedding: each word is there at all its positions, or at none."""

    def __init__(self, p: float, vocab_size: int) -> None:
        self.p = p
        self.vocab_size = vocab_size

    def __call__(self, module: nn.Module, arguments: tuple[Any, ...], embedded: Tensor) -> Tensor:
        if not module.training:
            return embedded
        kept = embedded.new_empty(self.vocab_size).bernoulli_(1 - self.p) / (1 - self.p)
        return embedded * kept[arguments[0]][..., None]


class PenaltyMeter:
    """Adds up AR and TAR of the last layer, before the output dropout.

    Args:
        model: the model that is watched.
        options: the penalties' factors.
    """

    def __init__(self, model: TransfoXLLMHeadModel, options: RegularisationTable) -> None:
        self.options = options
        self._states: Tensor | None = None
        if options.activation_penalty or options.change_penalty:
            model.transformer.layers[-1].register_forward_hook(self._keep)

    def _keep(self, _module: nn.Module, _arguments: tuple[Any, ...], output: tuple[Tensor, Any]) -> None:
        self._states = output[0]

    def penalty(self, n_positions: int) -> Tensor | None:
        """What is added to the mean loss of a token, from the last `n_positions` of the last call; None for nothing."""
        if self._states is None:
            return None
        states, self._states = self._states[:, -n_positions:].float(), None
        penalty = self.options.activation_penalty * states.square().mean()
        if n_positions > 1:
            penalty = penalty + self.options.change_penalty * states.diff(dim=1).square().mean()
        return penalty


__all__ = ["LockedDropout", "PenaltyMeter", "regularise"]
