"""Linear maps of a layer in training against the literal ones, gradients included."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from models import assert_equal, tiny_config
from transformer_xl import TransfoXLLMHeadModel
from transformer_xl.trained_projections import linear_with_gradients, queries_keys_values


def random_tensor(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def random_leaves(shapes: dict[str, tuple[int, ...]], wanted: str) -> list[Tensor]:
    """A tensor for each shape; those that are named in `wanted` want gradients."""
    return [
        random_tensor(*shape, seed=i).requires_grad_(name in wanted.split())
        for i, (name, shape) in enumerate(shapes.items())
    ]


def literal_queries_keys_values(hidden, memory, weight, *, n_heads: int) -> list[Tensor]:
    projected = F.linear(torch.cat([memory, hidden], 1), weight).unflatten(-1, (3, n_heads, -1))
    q, k, v = projected.permute(2, 0, 3, 1, 4)
    return [q[:, :, memory.shape[1] :], k, v]


def assert_same_gradients(actual, expected, leaves: list[Tensor]) -> None:
    """Of outputs and of their gradients by those leaves that want some, for random gradients of the outputs."""
    assert_equal(actual, expected)
    of_outputs = [random_tensor(*output.shape, seed=9 + i) for i, output in enumerate(expected)]
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    assert_equal(*(torch.autograd.grad(outputs, wanted, of_outputs) for outputs in (actual, expected)))


@pytest.mark.parametrize("wanted", ["states weight bias", "states", "weight", "bias"])
@pytest.mark.parametrize("shape", [(5,), (2, 3, 5), (2, 0, 5)])
def test_a_linear_map_is_the_literal_one(shape, wanted):
    shapes = {"states": shape, "weight": (7, 5), "bias": (7,)}
    tensors = random_leaves(shapes, wanted)
    assert_same_gradients([linear_with_gradients(*tensors)], [F.linear(*tensors)], tensors)


def test_a_linear_map_without_bias_is_the_literal_one():
    tensors = random_leaves({"states": (2, 3, 5), "weight": (7, 5)}, "states weight")
    assert_same_gradients([linear_with_gradients(*tensors, None)], [F.linear(*tensors)], tensors)


def test_states_and_gradients_may_lie_anyhow():
    states = random_tensor(4, 3, 5, seed=0).transpose(0, 1).requires_grad_()
    weight = random_tensor(5, 7, seed=1).T.requires_grad_()
    outcomes = []
    for function in (linear_with_gradients, F.linear):
        total = function(states, weight, None).sum()  # its gradient is one number, repeated
        outcomes.append([total, *torch.autograd.grad(total, [states, weight])])
    assert_equal(*outcomes)


@pytest.mark.parametrize("wanted", ["hidden memory weight", "hidden", "memory", "weight"])
@pytest.mark.parametrize("memory_len", [0, 1, 6])
def test_queries_keys_and_values_are_the_literal_ones(memory_len, wanted):
    tensors = random_leaves({"hidden": (2, 4, 7), "memory": (2, memory_len, 7), "weight": (45, 7)}, wanted)
    actual = queries_keys_values(*tensors, n_heads=3)
    assert all(states.is_contiguous() for states in actual)
    assert_same_gradients(actual, literal_queries_keys_values(*tensors, n_heads=3), tensors)


@pytest.mark.parametrize("wanted", ["hidden weight", "hidden", "weight"])
def test_queries_keys_and_values_without_memory_are_the_literal_ones(wanted):
    hidden, weight = tensors = random_leaves({"hidden": (2, 4, 7), "weight": (45, 7)}, wanted)
    literal = literal_queries_keys_values(hidden, hidden[:, :0], weight, n_heads=3)
    assert_same_gradients(queries_keys_values(hidden, None, weight, n_heads=3), literal, tensors)


@pytest.mark.parametrize("changes", [{}, {"pre_lnorm": True}, {"attn_type": 2, "mem_len": 0}], ids=str)
def test_attention_trains_alike_whether_somebody_looks_at_a_part_of_it_or_not(changes):
    model = TransfoXLLMHeadModel(tiny_config(dropout=0.0, dropatt=0.0, **changes)).double().train()
    ids = torch.arange(12).view(2, 6)
    mems, attention = model(ids).mems, model.transformer.layers[0].dec_attn

    def outcome() -> list[Tensor]:
        model.zero_grad()
        loss = model(ids + 12, labels=ids + 12, mems=mems).loss
        loss.backward()
        return [loss, *(parameter.grad for parameter in model.parameters() if parameter.grad is not None)]

    expected, seen = outcome(), []
    for part in (attention.o_net, attention.drop, attention.layer_norm, getattr(attention, "qkv_net", attention.o_net)):
        handle = part.register_forward_hook(lambda *_: seen.append(1))
        assert_equal(outcome(), expected)
        handle.remove()
    assert len(seen) >= 4
