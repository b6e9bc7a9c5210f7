"""Dropout with masks from another generator: the same distribution, the same gradients."""

import pytest
import torch
from torch.nn import functional as F

from models import assert_equal, tiny_config
from transformer_xl import dropout, trained_feed_forward
from transformer_xl.dropout import Dropout, drop_, keep_mask
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


def test_dropout_in_place_has_the_same_mask():
    states = torch.rand(50, 40, dtype=torch.float64).add(1)
    dropped = drop_(states.clone(), 0.25, seed=5)
    assert_equal(dropped, states * keep_mask(states.shape, 0.25, seed=5) / 0.75)


@pytest.mark.parametrize("rate", [0.0, 0.25])
def test_a_sum_with_dropout_is_the_literal_one_with_the_mask_of_its_seed(rate, monkeypatch):
    monkeypatch.setattr(dropout, "new_seed", lambda: 5)
    leaves = [torch.randn(50, 40, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    states, branch = leaves
    literal = states + branch * keep_mask(branch.shape, rate, seed=5) / (1 - rate)
    total = dropout.sum_with_dropout(states, branch, rate)
    of_total = torch.randn(50, 40, dtype=torch.float64)
    assert_equal(total, literal)
    assert_equal(torch.autograd.grad(total, leaves, of_total), torch.autograd.grad(literal, leaves, of_total))


def test_dropout_keeps_nothing_for_its_gradient_but_the_seed():
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda saved: kept.append(saved) or saved, lambda saved: saved):
        states = torch.ones(50, 40, requires_grad=True)
        dropout.sum_with_dropout(states, Dropout(0.5)(states), 0.5)
    assert not kept


@pytest.mark.parametrize("frozen", [(), (0, 1), (2, 3)], ids=["all", "without the inner map", "without the outer map"])
@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_feed_forward_trains_alike_whether_somebody_looks_at_it_or_not(rate, frozen):
    block = FeedForward(tiny_config(dropout=rate)).double().train()
    for i, parameter in enumerate(block.CoreNet.parameters()):
        parameter.requires_grad_(i not in frozen)
    hidden = torch.randn(2, 5, 12, dtype=torch.float64, requires_grad=True)
    leaves = [hidden, *(parameter for parameter in block.parameters() if parameter.requires_grad)]
    outcomes = []
    for _ in range(2):
        torch.manual_seed(0)
        output = block(hidden)
        outcomes.append([output, *torch.autograd.grad(output.square().sum(), leaves)])
        block.CoreNet[1].register_forward_hook(lambda *_: None)
    assert_equal(*outcomes)


@pytest.mark.parametrize("hook", ["forward_hook", "forward_pre_hook", "full_backward_hook", "full_backward_pre_hook"])
def test_whoever_looks_at_a_part_of_feed_forward_sees_it(hook):
    block = FeedForward(tiny_config(dropout=0.3)).train()
    for part in (block.CoreNet, *block.CoreNet):
        seen = []
        handle = getattr(part, f"register_{hook}")(lambda *_, seen=seen: seen.append(1))
        block(torch.randn(2, 5, 12, requires_grad=True)).sum().backward()
        handle.remove()
        assert seen == [1]


def test_feed_forward_without_a_bias_trains():
    block = FeedForward(tiny_config(dropout=0.3)).train()
    block.CoreNet[3] = torch.nn.Linear(block.CoreNet[3].in_features, 12, bias=False)
    block(torch.randn(2, 5, 12)).sum().backward()
    assert all(parameter.grad is not None for parameter in block.parameters())


@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_feed_forward_some_positions_at_a_time_is_the_literal_one(rate, monkeypatch):
    monkeypatch.setattr(trained_feed_forward, "INNER_NUMBERS", 60)
    monkeypatch.setattr(trained_feed_forward, "new_seed", lambda: 7)
    generator = torch.Generator().manual_seed(0)
    shapes = [(11, 4), (20, 4), (20,), (4, 20), (4,)]
    tensors = [torch.randn(shape, dtype=torch.float64, generator=generator).requires_grad_() for shape in shapes]
    hidden, inner_weight, inner_bias, outer_weight, outer_bias = tensors
    kept = torch.cat([keep_mask((size, 20), rate, seed=7 + i) for i, size in enumerate([2, 3, 3, 3])])
    literal = F.linear(hidden, inner_weight, inner_bias).relu() * kept / (1 - rate)
    literal = F.linear(literal, outer_weight, outer_bias)
    output = trained_feed_forward.feed_forward_with_gradients(*tensors, dropout=rate)
    of_output = torch.randn(output.shape, dtype=torch.float64, generator=generator)
    assert_equal(output, literal)
    assert_equal(torch.autograd.grad(output, tensors, of_output), torch.autograd.grad(literal, tensors, of_output))


def test_feed_forward_keeps_no_inner_states_for_its_gradients():
    block = FeedForward(tiny_config(dropout=0.3, d_inner=400)).train()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda saved: kept.append(saved) or saved, lambda saved: saved):
        block(torch.randn(2, 5, 12, requires_grad=True))
    assert kept
    assert all(saved.numel() < 10 * 400 or saved.shape in {(400, 12), (12, 400)} for saved in kept)
