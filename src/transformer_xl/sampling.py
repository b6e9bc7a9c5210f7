"""Choosing the next token where only the most probable ones can be chosen.

Shapes: B batch, V vocabulary.
"""

import torch
from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

PART = 64  # scores of a row whose highest is found before the others are looked at
OF_THE_BEST = (TemperatureLogitsWarper, TopPLogitsWarper, MinPLogitsWarper)
"""Changes of log-probabilities which, after the choice of the best, need no more than those of the best."""


def k_highest(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """`scores.topk(k)` of `[B, V]` for small k in a tenth of the time; of equal scores it may take others.

    The k highest are all in the k parts whose highest are the highest: for one that is not, there are k others as high.
    """
    n_parts = scores.shape[-1] // PART
    if n_parts <= 4 * k:
        return scores.topk(k)
    whole = n_parts * PART
    parts = scores[..., :whole].unflatten(-1, (n_parts, PART))
    chosen = parts.amax(-1).topk(k, sorted=False).indices  # [B, k]
    tokens = (chosen[..., None] * PART + torch.arange(PART, device=scores.device)).flatten(-2)
    rest = torch.arange(whole, scores.shape[-1], device=scores.device).expand(len(scores), -1)
    tokens = torch.cat([tokens, rest], dim=-1)
    best, places = scores.gather(-1, tokens).topk(k)
    return best, tokens.gather(-1, places)


class DrawAmongBest(LogitsProcessor):
    """Draws the next token among the most probable ones; as the last change of a search for the best, it samples.

    To sample among V tokens takes V random numbers, nearly all of them for tokens that top-k sampling has ruled out.
    Of tokens as probable as the k-th, as many as make k are kept, where transformers keeps all.

    Args:
        n_best: k.
        processors: the other changes, made to the k log-probabilities.
        generator: of the random numbers; None for torch's own.
    """

    def __init__(self, n_best: int, processors: LogitsProcessorList, generator: torch.Generator | None = None) -> None:
        self.n_best = n_best
        self.processors = processors
        self.generator = generator

    @classmethod
    def in_place_of(
        cls, processors: LogitsProcessorList, generator: torch.Generator | None = None
    ) -> "DrawAmongBest | None":
        """What samples as one does after these changes; None where they do not keep the k most probable tokens."""
        for place, processor in enumerate(processors):
            if type(processor) is TopKLogitsWarper and processor.filter_value == float("-inf"):
                others = LogitsProcessorList([*processors[:place], *processors[place + 1 :]])
                can_follow = all(type(other) in OF_THE_BEST for other in others)
                return cls(int(processor.top_k), others, generator) if can_follow else None
            if type(processor) is not TemperatureLogitsWarper:  # it alone keeps the order and needs no sum over all
                return None
        return None

    def chances(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        """The most probable tokens and their probabilities, each `[B, k]`, from log-probabilities `[B, V]`."""
        best, tokens = k_highest(scores, min(self.n_best, scores.shape[-1]))
        for processor in self.processors:
            best = processor(tokens, best)  # they look at scores alone; the ids that they are handed serve others
        return tokens, best.softmax(-1)

    def draw(self, scores: Tensor) -> Tensor:
        """The next tokens, `[B, 1]`, from log-probabilities `[B, V]`."""
        tokens, chances = self.chances(scores)
        return tokens.gather(-1, torch.multinomial(chances, 1, generator=self.generator))

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """`scores [B, V]`, changed to leave the drawn token alone possible."""
        drawn = self.draw(scores)
        return scores.fill_(float("-inf")).scatter_(-1, drawn, 0.0)


__all__ = ["DrawAmongBest"]
