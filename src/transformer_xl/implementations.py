"""The table of attention implementations, and the choice among the fast ones."""

from collections.abc import Callable

import torch
from torch import Tensor

from .attention import DistanceTerms, VisibleKeys, eager_attention, sdpa_attention
from .blocked_attention import blocked_attention
from .trained_attention import attention_with_gradients


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
    is_ours = q.device.type == "cpu" and not torch.compiler.is_compiling() and not torch.is_autocast_enabled("cpu")
    if is_ours and not torch.is_grad_enabled() and dropout == 0:
        attended = blocked_attention(q, k, v, content_bias=content_bias, distance=distance, visible=visible)
    elif is_ours and q.dtype in (torch.float32, torch.float64):
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

__all__ = ["ATTENTION_FUNCTIONS", "fused_attention"]
