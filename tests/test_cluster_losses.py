"""Losses over ranges of one table: values and gradients against plain autograd, and one gradient for a shared table."""

import pytest
import torch
from torch.nn import functional as F

from models import assert_equal, random_ids, tiny_model
from transformer_xl import TransfoXLLMHeadModel, cluster_losses
from transformer_xl.cluster_losses import WordRange, range_losses, shared_by_two

ONE_TABLE = {"div_val": 1, "cutoffs": [10, 20]}


def random_leaf(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).requires_grad_()


@pytest.mark.parametrize("slice_numbers", [1, 7, 1 << 20])
@pytest.mark.parametrize("has_extra", [True, False])
@pytest.mark.parametrize("covers_table", [True, False])
def test_range_losses_and_gradients_equal_cross_entropy(slice_numbers, has_extra, covers_table, monkeypatch):
    monkeypatch.setattr(cluster_losses, "SLICE_NUMBERS", slice_numbers)
    edges = [0, 4, 9, 9 + 6] if covers_table else [1, 4, 9, 12]
    table, bias = random_leaf(15, 5, seed=1), random_leaf(15, seed=2)
    extra = (random_leaf(2, 5, seed=3), random_leaf(2, seed=4)) if has_extra else (None, None)
    hidden = [random_leaf(n, 5, seed=5 + n) for n in (6, 0, 3)]  # one range has no position
    highest = edges[1] - edges[0] + 2 * has_extra
    targets = [
        torch.tensor([0, highest - 1, -100, 1, 2, 0]),
        torch.tensor([], dtype=torch.long),
        torch.tensor([2, 0, -100]),
    ]
    ranges = [WordRange(*bounds, target) for *bounds, target in zip(edges[:-1], edges[1:], targets, strict=True)]

    actual = range_losses(table, bias, *extra, ranges, hidden)
    expected = []
    for i, (part, states) in enumerate(zip(ranges, hidden, strict=True)):
        logits = F.linear(states, table[part.low : part.high], bias[part.low : part.high])
        if has_extra and i == 0:
            logits = torch.cat([logits, F.linear(states, *extra)], dim=-1)
        expected.append(F.cross_entropy(logits, part.targets, reduction="none"))

    for ours, theirs in zip(actual, expected, strict=True):
        assert_equal(ours, theirs)
    leaves = [table, bias, *(tensor for tensor in extra if tensor is not None), *hidden]
    weighted = [sum((x * torch.linspace(-1, 2, len(x))).sum() for x in losses) for losses in (actual, expected)]
    assert_equal(torch.autograd.grad(weighted[0], leaves), torch.autograd.grad(weighted[1], leaves))


@pytest.mark.parametrize(("shape", "at_most"), [((3, 4), 5), ((7, 2), 2), ((30, 1), 1)])
def test_slices_are_all_words_and_bound_results_and_factors(shape, at_most, monkeypatch):
    monkeypatch.setattr(cluster_losses, "SLICE_NUMBERS", 20)
    slices = list(cluster_losses._slices(torch.empty(shape), 11))
    assert [word for words in slices for word in range(11)[words]] == list(range(11))
    assert max(words.stop - words.start for words in slices) == at_most


def test_gradients_can_be_asked_for_twice_though_log_probabilities_are_let_go():
    table, bias, hidden = random_leaf(5, 3, seed=1), random_leaf(5, seed=2), random_leaf(4, 3, seed=3)
    (losses,) = range_losses(table, bias, None, None, [WordRange(0, 5, torch.tensor([0, 1, 2, 4]))], [hidden])
    first = torch.autograd.grad(losses.sum(), [table, bias, hidden], retain_graph=True)
    assert losses.grad_fn.log_probs == [None]
    assert_equal(torch.autograd.grad(losses.sum(), [table, bias, hidden]), first)


@pytest.mark.parametrize("users", ["both", "embedding", "softmax"])
def test_a_shared_table_gets_the_sum_of_both_gradients_and_a_dense_one(users):
    table, ids, states = random_leaf(6, 3, seed=1), torch.tensor([1, 4, 4]), random_leaf(2, 3, seed=2).detach()
    of_embedding, of_softmax = shared_by_two(table)
    embedded, product = F.embedding(ids, of_embedding, sparse=True), states @ of_softmax.T
    expected_embedded, expected_product = F.embedding(ids, table), states @ table.T
    loss = (users != "softmax") * embedded.square().sum() if users != "softmax" else 0
    loss = loss + (product.exp().sum() if users != "embedding" else 0)
    expected = (expected_embedded.square().sum() if users != "softmax" else 0) + (
        expected_product.exp().sum() if users != "embedding" else 0
    )
    (gradient,) = torch.autograd.grad(loss, table)
    assert not gradient.is_sparse
    assert_equal(gradient, torch.autograd.grad(expected, table)[0])


@pytest.mark.parametrize("settings", [ONE_TABLE, {"div_val": 1, "cutoffs": []}, {**ONE_TABLE, "d_embed": 8}])
@pytest.mark.parametrize("name", ["labels", "shift_labels"])
def test_a_tied_model_has_the_gradients_of_plain_autograd(settings, name, monkeypatch):
    model, ids = tiny_model(**settings), random_ids(2, 7)
    parameters = list(model.parameters())
    actual = torch.autograd.grad(model(ids, **{name: ids}).loss, parameters)
    assert all(not gradient.is_sparse for gradient in actual)
    monkeypatch.setattr(TransfoXLLMHeadModel, "_shared_table", lambda _self: (None, None))
    assert_equal(actual, torch.autograd.grad(model(ids, **{name: ids}).loss, parameters))


def test_a_loss_of_hidden_states_alone_leaves_a_dense_gradient_on_the_table():
    model, ids = tiny_model(**ONE_TABLE), random_ids(2, 7)
    output = model(ids, labels=ids, output_hidden_states=True)
    output.hidden_states[-1].square().sum().backward()
    gradient = model.transformer.word_emb.emb_layers[0].weight.grad
    assert gradient.layout == torch.strided
    assert gradient[ids.unique()].abs().sum() > 0


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")  # ids have no gradient
@pytest.mark.parametrize("hook", ["forward_hook", "forward_pre_hook", "full_backward_hook", "full_backward_pre_hook"])
def test_who_looks_at_the_embedding_by_a_hook_sees_it(hook):
    model, ids, seen = tiny_model(**ONE_TABLE), random_ids(2, 7), []
    embedding = model.transformer.word_emb.emb_layers[0]
    getattr(embedding, f"register_{hook}")(lambda *_: seen.append(1))
    model(ids, labels=ids).loss.backward()
    assert seen
