"""Dropout with masks from another generator: the same distribution, the same gradients."""

import pytest
import torch

from models import assert_equal, tiny_config
from transformer_xl.dropout import Dropout, keep_mask, relu_dropout
from transformer_xl.layers import FeedForward


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_masks_drop_each_entry_with_the_stated_probability(rate):
    kept = keep_mask((1000, 1001), rate, seed=3)
    assert kept.dtype == torch.bool
    assert kept.shape == (1000, 1001)
    deviation = (rate * (1 - rate) / kept.numel()) ** 0.5
    assert abs(1 - kept.double().mean() - rate) <= 4 * deviation
    for dim in (0, 1):  # no row and no column is dropped more than others
        means = kept.double().mean(dim)
        assert abs(means.std() - (rate * (1 - rate) / 1000) ** 0.5) <= 0.002


def test_neighbouring_entries_are_dropped_independently():
    dropped = (~keep_mask((1_000_000,), 0.3, seed=4)).double()
    for lag in (1, 2, 3, 4):
        both = (dropped[lag:] * dropped[:-lag]).mean()
        assert abs(both - 0.09) < 0.0015  # five standard deviations


def test_dropout_scales_what_it_keeps_and_its_gradient_alike():
    torch.manual_seed(0)
    states = torch.rand(50, 40, dtype=torch.float64).add(1).requires_grad_()
    dropped = Dropout(0.25)(states)
    kept = dropped != 0
    assert 0.15 < 1 - kept.double().mean() < 0.35
    assert_equal(dropped, states * kept / 0.75)
    weight = torch.rand(50, 40, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((dropped * weight).sum(), states)
    assert_equal(gradient, weight * kept / 0.75)


def test_the_seed_of_torch_decides():
    states, drop = torch.ones(9, 9), Dropout(0.5)
    torch.manual_seed(1)
    first, second = drop(states), drop(states)
    torch.manual_seed(1)
    assert torch.equal(drop(states), first)
    assert not torch.equal(first, second)


def test_dropout_does_nothing_in_evaluation_and_everything_at_rate_one():
    states = torch.ones(3, 2)
    assert Dropout(0.5).eval()(states) is states
    assert Dropout(0.0)(states) is states
    assert not Dropout(1.0)(states).any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_dropout_keeps_the_dtype(dtype):
    dropped = Dropout(0.5)(torch.ones(8, 8, dtype=dtype))
    assert dropped.dtype == dtype
    assert set(dropped.flatten().tolist()) == {0.0, 2.0}


def test_dropout_of_the_positive_part_is_relu_then_dropout_in_place():
    torch.manual_seed(0)
    leaf = torch.randn(30, 40, dtype=torch.float64, requires_grad=True)
    states = leaf * 1
    activated = relu_dropout(states, 0.25)
    assert activated.data_ptr() == states.data_ptr()
    kept = activated != 0
    assert 0.3 < kept.double().mean() < 0.45  # 3/8
    assert_equal(activated, leaf.relu() * kept / 0.75)
    weight = torch.rand(30, 40, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((activated * weight).sum(), leaf)
    assert_equal(gradient, weight * kept / 0.75)


def test_feed_forward_trains_alike_whether_somebody_looks_at_it_or_not():
    block = FeedForward(tiny_config(dropout=0.3)).double().train()
    hidden = torch.randn(2, 5, 12, dtype=torch.float64, requires_grad=True)
    outcomes = []
    for _ in range(2):
        torch.manual_seed(0)
        output = block(hidden)
        outcomes.append([output, *torch.autograd.grad(output.square().sum(), [hidden, *block.parameters()])])
        block.CoreNet[1].register_forward_hook(lambda *_: None)
    assert_equal(*outcomes)
