"""One token through all layers, as generation needs it: the numbers of the layers in as few calls as torch allows.

A step of a small model costs its calls, not its arithmetic: a call of a module costs as much as a product with a small
matrix. So the layers are taken apart once for each cache, and a step goes through their weights directly. Where
somebody changed a layer (a hook, another class), there is no such step, and the layers are called as ever; where
somebody changed only a linear map (an adapter, a quantised weight), the step calls what is there.

Shapes: B batch, N heads, H head size, D model size.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules import module as torch_module

from .blocked_attention import attend_one
from .dropout import Dropout
from .layers import Attention, FeedForward, Shared, TransfoXLLayer, is_exactly
from .linear_maps import PackingMap, can_choose_form, can_pack, linear, linear_of_rows, must_convert
from .memory import MemoryLayer

Map = Callable[[Tensor], Tensor]


class _Layer(NamedTuple):
    """What a layer computes with."""

    attention: Attention
    query_key_value: Map
    output: Map
    attention_norm: Map
    inner: Map
    outer: Map
    norm: Map


class TokenStep:
    """A step for one token a row, in evaluation and without gradients; made for a cache and kept by it.

    Args:
        layers: the model's; `can_take` must hold.
        pre_lnorm: whether blocks normalise their input instead of their output.
    """

    def __init__(self, layers: nn.ModuleList, *, pre_lnorm: bool) -> None:
        self.layers = layers
        self._pre_lnorm = pre_lnorm
        self._parts = [_taken_apart(cast(TransfoXLLayer, layer)) for layer in layers]
        modules = list(layers.modules())
        self._hooks = [hooks for module in modules for hooks in (module._forward_hooks, module._forward_pre_hooks)]
        self._hooks += [torch_module._global_forward_hooks, torch_module._global_forward_pre_hooks]
        self._dropouts = [module for module in modules if isinstance(module, Dropout)]

    @staticmethod
    def can_take(layers: Iterable[nn.Module]) -> bool:
        """Whether the layers are what this package makes, but for their linear maps."""
        return all(_is_plain(layer) for layer in layers)

    @property
    def is_right(self) -> bool:
        """Whether no module would do more than compute, now: nobody looks at it by a hook, none drops anything."""
        return not any(self._hooks) and not any(module.training for module in self._dropouts)

    def __reduce__(self) -> tuple[Any, tuple[()]]:
        """Copied or stored it is None: a copy of a cache must not copy the model, nor know it."""
        return type(None), ()

    def __call__(
        self,
        hidden: Tensor,
        memory: Sequence[MemoryLayer],
        *,
        shared: Callable[[int], Shared],
    ) -> Tensor:
        """The layers' output `[B, 1, D]` for `hidden [B, 1, D]`; changes `memory`.

        Args:
            memory: keys and values of each layer.
            shared: what the model owns of the attention of the layer with that number.
        """
        n_batch = hidden.shape[0]
        x = hidden[:, 0]
        for i, (layer, past) in enumerate(zip(self._parts, memory, strict=True)):
            attention, of_model = layer.attention, shared(i)
            projected = layer.query_key_value(layer.attention_norm(x) if self._pre_lnorm else x)
            q, key, value = projected.view(n_batch, 3, attention.n_head, attention.d_head).unbind(1)  # [B, N, H]
            keys, values, oldest = past.append(key, value)
            distance = past.distance if of_model.table is None else of_model.table
            content_bias = attention.r_w_bias if attention.has_own_biases else of_model.content_bias
            assert distance is not None
            assert content_bias is not None
            attended = attend_one(q, keys, values, oldest=oldest, content_bias=content_bias, distance=distance)
            x = layer.output(attended.view(n_batch, -1)) + x
            if self._pre_lnorm:
                x = layer.outer(layer.inner(layer.norm(x)).relu_()) + x
            else:
                x = layer.attention_norm(x)
                x = layer.norm(layer.outer(layer.inner(x).relu_()) + x)
        return x[:, None]


def _is_plain(layer: nn.Module) -> bool:
    if type(layer) is not TransfoXLLayer:
        return False
    attention, feed_forward = layer.dec_attn, layer.pos_ff
    parts = feed_forward.CoreNet
    expected: dict[type[nn.Module], list[nn.Module]] = {
        TransfoXLLayer: [layer], Attention: [attention], FeedForward: [feed_forward], nn.Sequential: [parts],
        nn.LayerNorm: [attention.layer_norm, feed_forward.layer_norm], nn.ReLU: [parts[1]],
        Dropout: [attention.drop, attention.dropatt, parts[2], parts[4]], nn.Identity: [attention.projection_drop],
    }  # fmt: skip
    return len(parts) == 5 and all(is_exactly(part, cls) for cls, found in expected.items() for part in found)


def _taken_apart(layer: TransfoXLLayer) -> _Layer:
    attention, feed_forward = layer.dec_attn, layer.pos_ff
    return _Layer(
        attention,
        _map_of(attention.qkv_net),
        _map_of(attention.o_net),
        _norm_of(attention.layer_norm),
        _map_of(feed_forward.CoreNet[0]),
        _map_of(feed_forward.CoreNet[3]),
        _norm_of(feed_forward.layer_norm),
    )


def _map_of(module: nn.Module) -> Map:
    """The linear map of a module; another class than torch's is called as it is."""
    if not (isinstance(module, nn.Linear) and is_exactly(module, nn.Linear)):
        return module
    weight, bias = module.weight, module.bias
    if can_choose_form(weight):
        return lambda states: linear_of_rows(states, weight, bias)
    if can_pack(weight, bias):
        return PackingMap(weight, bias)
    if must_convert(weight):
        return lambda states: linear(states, weight, bias)
    return lambda states: F.linear(states, weight, bias)  # by position: quantised weights look for them there


def _norm_of(norm: nn.LayerNorm) -> Map:
    shape, weight, bias, eps = norm.normalized_shape, norm.weight, norm.bias, norm.eps

    def normalise(states: Tensor) -> Tensor:
        return torch.layer_norm(states, shape, weight, bias, eps)

    return normalise


__all__ = ["TokenStep"]
