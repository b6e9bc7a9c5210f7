"""The table of attention implementations, and where this package's own fast paths for a processor apply."""

from collections.abc import Callable

import torch
from torch import Tensor

from .attention import DistanceTerms, VisibleKeys, eager_attention, sdpa_attention
from .blocked_attention import blocked_attention
from .trained_attention import attention_with_gradients


def is_eager_cpu(states: Tensor) -> bool:
    """Whether `states` are computed with on a processor as they are: not compiled, not under autocast."""
    return states.device.type == "cpu" and not torch.compiler.is_compiling() and not torch.is_autocast_enabled("cpu")


def can_train_on_cpu(states: Tensor) -> bool:
    """Whether the paths with a backward pass of their own may compute with `states`: they are for full precision."""
    return is_eager_cpu(states) and states.dtype in (torch.float32, torch.float64)


def fused_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    content_bias: Tensor | None,
    distance: DistanceTerms | None,
    visible: VisibleKeys,
    dropout: float = 0.0,
) -> tuple[Tensor, Tensor | None]:
    """What `eager_attention` computes, by the fastest path for the device and the task; gives no attention weights."""
    if is_eager_cpu(q) and not torch.is_grad_enabled() and dropout == 0:
        attended = blocked_attention(q, k, v, content_bias=content_bias, distance=distance, visible=visible)
    elif can_train_on_cpu(q):
        attended = attention_with_gradients(
            q, k, v, content_bias=content_bias, distance=distance, visible=visible, dropout=dropout
        )
    else:
        attended, _ = sdpa_attention(
            q, k, v, content_bias=content_bias, distance=distance, visible=visible, dropout=dropout
        )
    return attended, None


AttentionFunction = Callable[..., tuple[Tensor, Tensor | None]]
ATTENTION_FUNCTIONS: dict[str, AttentionFunction] = {"eager": eager_attention, "sdpa": fused_attention}
"""Implementations by the name that `attn_implementation` gives them; all have the signature of `eager_attention`."""

__all__ = ["ATTENTION_FUNCTIONS", "can_train_on_cpu", "fused_attention", "is_eager_cpu"]
