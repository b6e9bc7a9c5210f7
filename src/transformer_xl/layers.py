"""One layer of Transformer-XL: attention, then feed-forward, each with residual connection and layer norm.

Parameters keep the names of old checkpoints, which docs/model.md maps to the paper's symbols; `r_w_bias` is u,
`r_r_bias` is v.

Shapes: B batch, Q queries, M memory, K = M + Q keys, N heads, H head size, D model size.
"""

from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from .attention import KEYS_OF_A_LINE, DistanceTerms, VisibleKeys
from .configuration import TransfoXLConfig
from .dropout import Dropout, sum_with_dropout
from .implementations import ATTENTION_FUNCTIONS, can_train_on_cpu
from .linear_maps import linear
from .memory import MemoryLayer
from .padding import RowAlignment
from .trained_feed_forward import feed_forward_with_gradients
from .trained_projections import linear_with_gradients, queries_keys_values

PLAIN_TENSORS = (Tensor, nn.Parameter, type(None))  # weights of other types are quantised, or dealt out to processes


class Surroundings(NamedTuple):
    """What all layers of one call share.

    Attributes:
        visible: which keys each query may see.
        signal: position signal of the distances that differ, `[R, D]`; None where no layer needs it.
        alignment: order of the rows of a padded batch; None without padding.
        implementation: name of the attention function.
    """

    visible: VisibleKeys
    signal: Tensor | None
    alignment: RowAlignment | None
    implementation: str


class Shared(NamedTuple):
    """What the model, not the layer, owns of a layer's attention: u and v when shared, tables of Shaw et al."""

    content_bias: Tensor | None = None
    position_bias: Tensor | None = None
    table: DistanceTerms | None = None


class Attention(nn.Module):
    """Multi-head attention block with residual connection and layer norm, for all four attention types."""

    def __init__(self, config: TransfoXLConfig) -> None:
        super().__init__()
        self.attn_type = config.attn_type
        self.n_head = config.n_head
        self.d_head = config.d_head
        self.pre_lnorm = config.pre_lnorm
        self.has_own_biases = config.attn_type == 0 and config.untie_r
        width = config.n_head * config.d_head
        if config.attn_type in (0, 1):
            self.qkv_net = nn.Linear(config.d_model, 3 * width, bias=False)
        else:
            self.q_net = nn.Linear(config.d_model, width, bias=False)
            self.kv_net = nn.Linear(config.d_model, 2 * width, bias=False)
        if config.attn_type == 0:
            self.r_net = nn.Linear(config.d_model, width, bias=False)
            if self.has_own_biases:
                self.r_r_bias = nn.Parameter(torch.zeros(config.n_head, config.d_head))
                self.r_w_bias = nn.Parameter(torch.zeros(config.n_head, config.d_head))
        self.o_net = nn.Linear(width, config.d_model, bias=False)
        self.projection_drop: nn.Module = nn.Identity()  # of queries, keys and values; training may put one here
        self.drop: nn.Module = Dropout(config.dropout)
        self.dropatt = Dropout(config.dropatt)
        self.layer_norm = nn.LayerNorm(config.d_model, eps=config.layer_norm_epsilon)

    def forward(
        self, hidden: Tensor, memory: Tensor | MemoryLayer | None, around: Surroundings, shared: Shared
    ) -> tuple[Tensor, Tensor | None]:
        """Let the segment attend to memory and itself.

        Args:
            hidden: the segment, `[B, Q, D]`.
            memory: the past: inputs of this layer `[B, M, D]`, or their keys and values, changed in place; None if
                there is none.

        Returns:
            `[B, Q, D]`, and the attention weights `[B, N, Q, K]` if the implementation gives any.
        """
        order = None if around.alignment is None else around.alignment.align_context
        if isinstance(memory, Tensor):
            q, k, v = self._project(hidden, memory)
            k, v = (states if order is None else order(states, dim=2) for states in (k, v))
        else:
            q, k, v = self._project(hidden, None)
        q, k, v = (self.projection_drop(states) for states in (q, k, v))
        held = memory if isinstance(memory, MemoryLayer) else None
        if held is not None:
            k, v = held.update(k, v, order=order)
        attended, weights = ATTENTION_FUNCTIONS[around.implementation](
            q,
            k,
            v,
            content_bias=self.r_w_bias if self.has_own_biases else shared.content_bias,
            distance=self._distance_terms(around, shared, held, k.shape[-2]),
            visible=around.visible,
            dropout=self.dropatt.p if self.training else 0.0,
        )
        output = apply_linear(self.o_net, attended.transpose(1, 2).flatten(2))
        output = add_branch(hidden, output, self.drop)
        return (output if self.pre_lnorm else self.layer_norm(output)), weights

    def project_memory(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of past inputs `[B, M, D]`, each `[B, N, M, H]`."""
        hidden = self.layer_norm(hidden) if self.pre_lnorm else hidden
        if self.attn_type in (2, 3):
            keys_values = apply_linear(self.kv_net, hidden)
        elif type(self.qkv_net) is nn.Linear:
            keys_values = linear(hidden, self.qkv_net.weight[self.n_head * self.d_head :], None)
        else:  # another module in its place, such as a LoRA adapter, has its own way to project
            keys_values = self.qkv_net(hidden)[..., self.n_head * self.d_head :]
        k, v = keys_values.chunk(2, dim=-1)
        return self._split_heads(k), self._split_heads(v)

    def _project(self, hidden: Tensor, memory: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries of the segment, `[B, N, Q, H]`, keys and values of memory and segment, each `[B, N, K, H]`."""
        if self.attn_type in (2, 3):
            # The authors' code normalises what keys and values read, but not what queries read.
            return (self._split_heads(apply_linear(self.q_net, hidden)), *self.project_memory(hidden))
        hidden = self.layer_norm(hidden) if self.pre_lnorm else hidden
        if trains_on_cpu(self.qkv_net, hidden):
            memory = self.layer_norm(memory) if self.pre_lnorm and memory is not None else memory
            return queries_keys_values(hidden, memory, self.qkv_net.weight, n_heads=self.n_head)
        q, k, v = (self._split_heads(states) for states in apply_linear(self.qkv_net, hidden).chunk(3, dim=-1))
        if memory is None:
            return q, k, v
        past = self.project_memory(memory)
        k, v = (torch.cat(states, dim=2) for states in zip(past, (k, v), strict=True))
        return q, k, v

    def _split_heads(self, projected: Tensor) -> Tensor:
        heads: Tensor = projected.unflatten(-1, (self.n_head, self.d_head))
        return heads.transpose(1, 2)

    def _distance_terms(
        self, around: Surroundings, shared: Shared, memory: MemoryLayer | None, k_len: int
    ) -> DistanceTerms | None:
        if self.attn_type != 0:
            return shared.table
        if around.signal is None:
            assert memory is not None  # or the model would have made a signal
            assert memory.distance is not None
            return memory.distance.last(k_len)
        keys = self.r_net(around.signal) if torch.is_grad_enabled() else apply_linear(self.r_net, around.signal)
        keys = keys.unflatten(-1, (self.n_head, self.d_head)).transpose(0, 1)
        position_bias = self.r_r_bias if self.has_own_biases else shared.position_bias
        if memory is None or torch.is_grad_enabled():
            return DistanceTerms(keys, position_bias)
        memory.distance = DistanceTerms(_in_lines(keys), position_bias)
        return memory.distance


def _in_lines(keys: Tensor) -> Tensor:
    """Keys `[N, R, H]` laid out as memory is, a feature of all distances after the other, each to a line's end."""
    n_heads, n_keys, size = keys.shape
    lines = keys.new_empty(n_heads, size, -(-n_keys // KEYS_OF_A_LINE) * KEYS_OF_A_LINE)
    return lines[..., -n_keys:].mT.copy_(keys)


def is_exactly(module: nn.Module, cls: type[nn.Module]) -> bool:
    """Whether a call of the module does what its class does, hooks aside."""
    return type(module) is cls and "forward" not in module.__dict__  # some libraries put their own into an instance


def has_hooks(module: nn.Module) -> bool:
    """Whether somebody looks at what goes through the module."""
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


def apply_linear(module: nn.Module, states: Tensor) -> Tensor:
    """What the module gives for `states [..., in]`, in the fastest form if it is torch's and nobody looks."""
    if trains_on_cpu(module, states):
        return linear_with_gradients(states, cast(Tensor, module.weight), cast(Tensor | None, module.bias))
    if torch.is_grad_enabled() or not is_exactly(module, nn.Linear) or has_hooks(module):
        return cast(Tensor, module(states))
    return linear(states, cast(Tensor, module.weight), cast(Tensor | None, module.bias))


def trains_on_cpu(module: nn.Module, states: Tensor) -> bool:
    """Whether a function of this package may be the module's product with `states`, with gradients."""
    return (
        torch.is_grad_enabled()
        and can_train_on_cpu(states)
        and is_exactly(module, nn.Linear)
        and not has_hooks(module)
        and all(type(weight) in PLAIN_TENSORS for weight in (module.weight, module.bias))
    )


def add_branch(states: Tensor, branch: Tensor, drop: nn.Module) -> Tensor:
    """States plus what `drop` makes of a branch, by less memory where nobody looks at it."""
    rate = drop.p if isinstance(drop, Dropout) and drop.training else 0.0
    can_train = torch.is_grad_enabled() and can_train_on_cpu(branch) and states.dtype == branch.dtype
    if can_train and rate < 1 and is_exactly(drop, Dropout) and not has_hooks(drop):
        return sum_with_dropout(states, branch, rate)
    return states + cast(Tensor, drop(branch))


class FeedForward(nn.Module):
    """Position-wise feed-forward block with residual connection and layer norm."""

    def __init__(self, config: TransfoXLConfig) -> None:
        super().__init__()
        self.pre_lnorm = config.pre_lnorm
        self.CoreNet = nn.Sequential(
            nn.Linear(config.d_model, config.d_inner),
            nn.ReLU(),
            Dropout(config.dropout),
            nn.Linear(config.d_inner, config.d_model),
            Dropout(config.dropout),
        )
        self.layer_norm = nn.LayerNorm(config.d_model, eps=config.layer_norm_epsilon)

    def forward(self, hidden: Tensor) -> Tensor:
        """`[B, Q, D]` to `[B, Q, D]`."""
        output = self._add_core(hidden, self.layer_norm(hidden) if self.pre_lnorm else hidden)
        return output if self.pre_lnorm else self.layer_norm(output)

    def _add_core(self, states: Tensor, hidden: Tensor) -> Tensor:
        """States plus what `CoreNet` makes of `hidden`, by less memory where nobody looks at its parts."""
        inner, activation, drop, outer, last = self.CoreNet
        kinds = ((inner, nn.Linear), (activation, nn.ReLU), (drop, Dropout), (outer, nn.Linear))
        is_plain = all(is_exactly(module, kind) for module, kind in kinds)
        watched = (self.CoreNet, *(module for module, _ in kinds))
        if not is_plain or any(has_hooks(module) for module in watched):
            return states + cast(Tensor, self.CoreNet(hidden))
        if not torch.is_grad_enabled():
            return states + cast(Tensor, last(apply_linear(outer, drop(apply_linear(inner, hidden).relu_()))))
        rate = cast(Dropout, drop).p if drop.training else 0.0
        weights = [cast(Tensor, tensor) for linear in (inner, outer) for tensor in (linear.weight, linear.bias)]
        can_train = all(trains_on_cpu(linear, hidden) and linear.bias is not None for linear in (inner, outer))
        if not can_train or rate == 1:
            return states + cast(Tensor, self.CoreNet(hidden))
        rows = feed_forward_with_gradients(hidden.flatten(0, -2), *weights, dropout=rate)
        return add_branch(states, rows.view_as(hidden), last)


class TransfoXLLayer(nn.Module):
    """One layer: attention, then feed-forward."""

    def __init__(self, config: TransfoXLConfig) -> None:
        super().__init__()
        self.dec_attn = Attention(config)
        self.pos_ff = FeedForward(config)

    def forward(
        self, hidden: Tensor, memory: Tensor | MemoryLayer | None, around: Surroundings, shared: Shared
    ) -> tuple[Tensor, Tensor | None]:
        """See `Attention.forward`."""
        hidden, weights = self.dec_attn(hidden, memory, around, shared)
        return self.pos_ff(hidden), weights


__all__ = ["Attention", "FeedForward", "Shared", "Surroundings", "TransfoXLLayer", "has_hooks", "is_exactly"]
