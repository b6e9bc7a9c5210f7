"""Adaptive embedding and softmax against loops over tokens; the sampled softmax against its definition."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from models import assert_equal
from transformer_xl import AdaptiveEmbedding, linear_maps
from transformer_xl.adaptive import AdaptiveLogSoftmax, log_expected_count, log_uniform_sample

KINDS = [  # n_token, d_embed, d_proj, cutoffs, div_val
    pytest.param(30, 8, 12, [10, 20], 2, id="narrow tails"),
    pytest.param(30, 16, 16, [5, 6], 4, id="narrow tails, same width"),
    pytest.param(30, 8, 12, [10, 20], 1, id="one table, projected"),
    pytest.param(30, 8, 8, [10, 20], 1, id="one table"),
    pytest.param(30, 8, 8, [], 1, id="plain"),
    pytest.param(30, 8, 12, [], 1, id="plain, projected"),
    pytest.param(30, 8, 12, [], 2, id="plain, div_val 2"),
]


def random_parameters(module: nn.Module, seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return module


def embedding_by_loop(module: AdaptiveEmbedding, token: int) -> torch.Tensor:
    edges = [0, *module.cutoffs, module.n_token]
    cluster = max(i for i, edge in enumerate(edges[:-1]) if token >= edge)
    if module.div_val == 1:
        row, projection = module.emb_layers[0].weight[token], next(iter(module.emb_projs), None)
    else:
        row, projection = module.emb_layers[cluster].weight[token - edges[cluster]], module.emb_projs[cluster]
    return (row if projection is None else projection @ row) * math.sqrt(module.d_proj)


def log_probability_by_loop(module: AdaptiveLogSoftmax, hidden: torch.Tensor, token: int) -> torch.Tensor:
    """The definition, one token: head, then the tail of its cluster."""
    edges = [0, *module.cutoffs, module.n_token]

    def logits(cluster: int) -> torch.Tensor:
        low, high = edges[cluster], edges[cluster + 1]
        layer = module.out_layers[0 if module.div_val == 1 else cluster]
        rows = slice(low, high) if module.div_val == 1 else slice(None)
        weight, bias = layer.weight[rows], layer.bias[rows]
        if cluster == 0 and module.cutoffs:
            weight, bias = torch.cat([weight, module.cluster_weight]), torch.cat([bias, module.cluster_bias])
        inner = module.out_projs[cluster].T @ hidden if len(module.out_projs) else hidden
        return weight @ inner + bias

    cluster = max(i for i, edge in enumerate(edges[:-1]) if token >= edge)
    head = logits(0).log_softmax(0)
    if cluster == 0:
        return head[token]
    return head[edges[1] + cluster - 1] + logits(cluster).log_softmax(0)[token - edges[cluster]]


@pytest.mark.parametrize(("n_token", "d_embed", "d_proj", "cutoffs", "div_val"), KINDS)
def test_single_tokens_read_the_table_of_their_cluster_alone(n_token, d_embed, d_proj, cutoffs, div_val):
    module = random_parameters(AdaptiveEmbedding(n_token, d_embed, d_proj, cutoffs, div_val=div_val))
    read = []
    for i, table in enumerate(module.emb_layers):
        table.register_forward_hook(lambda *_args, i=i: read.append(i))
    with torch.no_grad():
        embedded = [module(torch.tensor([[token]])) for token in range(n_token)]
    tables = [sum(token >= cutoff for cutoff in cutoffs) if div_val > 1 else 0 for token in range(n_token)]
    assert read == tables
    assert_equal(torch.cat(embedded, dim=1), module(torch.arange(n_token)[None]))
    for token in (-1, n_token):
        with pytest.raises(IndexError), torch.no_grad():
            module(torch.tensor([[token]]))


@pytest.mark.parametrize(("n_token", "d_embed", "d_proj", "cutoffs", "div_val"), KINDS)
def test_embedding_and_its_gradients_equal_a_loop_over_tokens(n_token, d_embed, d_proj, cutoffs, div_val):
    module = random_parameters(AdaptiveEmbedding(n_token, d_embed, d_proj, cutoffs, div_val=div_val))
    ids = torch.tensor([[0, 4, 5, 9, 10], [19, 20, 29, 6, 0]])
    embedded = module(ids)
    assert embedded.shape == (2, 5, d_proj)
    expected = torch.stack([torch.stack([embedding_by_loop(module, int(token)) for token in row]) for row in ids])
    assert_equal(embedded, expected)
    weight = torch.linspace(-1, 1, expected.numel(), dtype=torch.float64).view_as(expected)
    parameters = list(module.parameters())
    assert_equal(
        torch.autograd.grad((embedded * weight).sum(), parameters),
        torch.autograd.grad((expected * weight).sum(), parameters),
    )


@pytest.mark.parametrize("token", [-1, 30])
@pytest.mark.parametrize("cutoffs", [[], [10, 20]])
def test_embedding_refuses_ids_outside_the_vocabulary(token, cutoffs):
    module = AdaptiveEmbedding(30, 8, 12, cutoffs, div_val=2)
    with pytest.raises(IndexError):
        module(torch.tensor([token]))


@pytest.mark.parametrize(("n_token", "d_embed", "d_proj", "cutoffs", "div_val"), KINDS)
def test_log_probabilities_and_losses_equal_a_loop_over_tokens(n_token, d_embed, d_proj, cutoffs, div_val):
    module = random_parameters(AdaptiveLogSoftmax(n_token, d_embed, d_proj, cutoffs, div_val=div_val))
    hidden = torch.randn(7, d_proj, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    targets = torch.tensor([0, 29, -100, 10, 5, 20, 9])
    expected = torch.stack(
        [torch.stack([log_probability_by_loop(module, row, token) for token in range(n_token)]) for row in hidden]
    )
    assert_equal(module.log_prob(hidden), expected)
    assert_equal(expected.exp().sum(-1), torch.ones(7, dtype=torch.float64))

    losses = module(hidden, targets)
    is_target = targets != -100
    expected_losses = torch.where(is_target, -expected[torch.arange(7), targets.clamp(min=0)], 0)
    assert_equal(losses, expected_losses)
    weight = torch.arange(7, dtype=torch.float64)
    leaves = [hidden, *module.parameters()]
    assert_equal(
        torch.autograd.grad((losses * weight).sum(), leaves),
        torch.autograd.grad((expected_losses * weight).sum(), leaves),
    )


@pytest.mark.parametrize("has_avx512", [False, True])
@pytest.mark.parametrize("n_rows", [1, 2, 5, 20])
@pytest.mark.parametrize(("n_token", "d_embed", "d_proj", "cutoffs", "div_val"), KINDS)
def test_log_probabilities_of_few_rows_are_the_same_in_the_form_that_is_fastest_for_them(
    n_token, d_embed, d_proj, cutoffs, div_val, n_rows, has_avx512, monkeypatch
):
    module = random_parameters(AdaptiveLogSoftmax(n_token, d_embed, d_proj, cutoffs, div_val)).float()
    hidden = torch.randn(n_rows, 1, d_proj, generator=torch.Generator().manual_seed(0))
    expected = module.log_prob(hidden)
    monkeypatch.setattr(linear_maps, "FEWEST_WEIGHTS", 1)
    monkeypatch.setattr(linear_maps, "is_amd", lambda: True)
    monkeypatch.setattr(linear_maps, "has_avx512", lambda: has_avx512)
    taken = []
    form = linear_maps.linear_of_rows
    monkeypatch.setattr(linear_maps, "linear_of_rows", lambda *args: taken.append(1) or form(*args))
    with torch.no_grad():
        actual = module.log_prob(hidden)
    n_vectors = sum(1 in projection.shape for projection in module.out_projs)  # lie in order transposed, too
    assert len(taken) == 1 + len(cutoffs) + n_vectors
    assert actual.is_contiguous()
    assert_equal(actual, expected.detach())


@pytest.mark.parametrize("cluster_bias", [-3.0, 0.0, 3.0])
@pytest.mark.parametrize("n_best", [1, 4, 10, 11, 30])
def test_the_most_probable_tokens_are_exact_and_other_clusters_left_out(n_best, cluster_bias):
    module = random_parameters(AdaptiveLogSoftmax(30, 8, 12, [10, 20], div_val=2))
    module.cluster_bias.data.fill_(cluster_bias)
    hidden = torch.randn(50, 1, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    n_computed, widths = 0, set()
    for states in hidden:
        expected, actual = module.log_prob(states), module.log_prob(states, n_best=n_best)
        assert_equal(actual.topk(n_best).values, expected.topk(n_best).values)
        is_computed = ~actual.isinf()
        assert_equal(actual[is_computed], expected[:, : actual.shape[-1]][is_computed])
        assert is_computed[:, -10:].all()  # what nobody needs at the end is not there
        n_computed += int(is_computed.sum())
        widths.add(actual.shape[-1])
    assert (n_computed < 50 * 30) == (10 in widths) == (n_best <= 10)


def test_a_cluster_is_computed_for_all_positions_if_one_needs_it():
    module = random_parameters(AdaptiveLogSoftmax(30, 8, 12, [10, 20], div_val=2))
    hidden = torch.randn(40, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert_equal(module.log_prob(hidden, n_best=1), module.log_prob(hidden))


def test_no_best_token_is_refused():
    module = random_parameters(AdaptiveLogSoftmax(30, 8, 12, [10, 20], div_val=2))
    with pytest.raises(ValueError, match=r"^n_best=0 must be at least 1: None is for all tokens\.$"):
        module.log_prob(torch.zeros(1, 12, dtype=torch.float64), n_best=0)


def test_every_parameter_gets_a_gradient_when_one_cluster_has_all_targets():
    module = random_parameters(AdaptiveLogSoftmax(30, 8, 12, [10, 20], div_val=2))
    module(torch.randn(4, 12, dtype=torch.float64), torch.tensor([0, 1, 2, 3])).sum().backward()
    assert all(parameter.grad is not None for parameter in module.parameters())


@given(low=st.integers(1, 8), width=st.integers(1, 8), rest=st.integers(1, 8), seed=st.integers(0, 5))
def test_log_probabilities_sum_to_one_for_any_clusters(low, width, rest, seed):
    module = random_parameters(AdaptiveLogSoftmax(low + width + rest, 8, 6, [low, low + width], div_val=2), seed)
    hidden = torch.randn(3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    assert_equal(module.log_prob(hidden).exp().sum(-1), torch.ones(3, dtype=torch.float64))


@pytest.mark.parametrize("cluster", [0, 1, 2])
@pytest.mark.parametrize("div_val", [1, 2])
@pytest.mark.parametrize("change", [3, -2])
def test_resizing_a_cluster_keeps_the_other_tokens_and_starts_new_ones_at_the_mean(cluster, div_val, change):
    embedding = random_parameters(AdaptiveEmbedding(30, 8, 12, [10, 20], div_val=div_val))
    softmax = random_parameters(AdaptiveLogSoftmax(30, 8, 12, [10, 20], div_val=div_val))
    hidden = torch.randn(2, 12, dtype=torch.float64)
    before, embedded = softmax.log_prob(hidden), embedding(torch.arange(30))
    end = [10, 20, 30][cluster]
    kept = [token for token in range(30) if not end + min(change, 0) <= token < end]

    embedding.resize(cluster, change)
    softmax.resize(cluster, change)

    assert embedding.n_token == softmax.n_token == 30 + change
    assert (
        embedding.cutoffs == softmax.cutoffs == [cutoff + change * (i >= cluster) for i, cutoff in enumerate([10, 20])]
    )
    moved = [token if token < end else token + change for token in kept]
    assert_equal(embedding(torch.tensor(moved)), embedded[kept])
    after = softmax.log_prob(hidden)
    assert after.shape == (2, 30 + change)
    assert_equal(after.exp().sum(-1), torch.ones(2, dtype=torch.float64))
    inside = [token for token in kept if [0, 10, 20][cluster] <= token < end]
    differences = (after[:, inside] - before[:, inside]).diff(dim=1)
    assert_equal(differences, torch.zeros_like(differences))  # odds within the cluster are untouched
    if change > 0:
        tokens = torch.arange([0, 10, 20][cluster], end)
        assert_equal(embedding(torch.tensor([end])), embedded[tokens].mean(0, keepdim=True))


def test_samples_follow_the_log_uniform_distribution():
    torch.manual_seed(0)
    ids, is_repeated = log_uniform_sample(50, 200_000, device=torch.device("cpu"))
    counts = torch.bincount(ids, minlength=50).double() / len(ids)
    k = torch.arange(50).double()
    expected = ((k + 2) / (k + 1)).log() / math.log(51)
    assert_equal(expected.sum(), torch.tensor(1.0, dtype=torch.float64))
    assert (counts - expected).abs().max() < 0.003
    assert (~is_repeated).sum() == len(ids.unique())


def test_expected_count_is_the_share_of_draws_that_hold_the_id():
    torch.manual_seed(0)
    device = torch.device("cpu")
    held = torch.stack(
        [torch.bincount(log_uniform_sample(20, 10, device=device)[0], minlength=20) for _ in range(2000)]
    )
    share = (held > 0).double().mean(0)
    assert (log_expected_count(torch.arange(20), 20, 10).exp() - share).abs().max() < 0.03


def plain_softmax(n_token: int = 12) -> AdaptiveLogSoftmax:
    return random_parameters(AdaptiveLogSoftmax(n_token, 6, 6, []))


def test_sampled_softmax_over_the_whole_vocabulary_is_the_full_softmax():
    torch.manual_seed(0)
    module = plain_softmax()
    hidden, targets = torch.randn(5, 6, dtype=torch.float64), torch.tensor([0, 11, -100, 3, 7])
    # So many draws that every token is among them: the corrections vanish.
    assert_equal(module.sampled(hidden, targets, n_samples=20_000).float(), module(hidden, targets).float())


def test_sampled_softmax_equals_its_definition_on_the_same_samples():
    module = plain_softmax()
    hidden, targets = torch.randn(3, 6, dtype=torch.float64), torch.tensor([0, 5, 1])
    torch.manual_seed(3)
    actual = module.sampled(hidden, targets, n_samples=4)
    torch.manual_seed(3)
    samples = sorted(set(log_uniform_sample(12, 8, device=torch.device("cpu"))[0].tolist()))
    weight, bias = module.out_layers[0].weight, module.out_layers[0].bias
    correction = log_expected_count(torch.arange(12), 12, 8)
    for t in range(3):
        target = int(targets[t])
        candidates = [target, *(sample for sample in samples if sample != target)]
        logits = torch.stack([weight[c] @ hidden[t] + bias[c] - correction[c] for c in candidates])
        assert_equal(actual[t], -logits.log_softmax(0)[0])


def test_sampled_softmax_gives_sparse_gradients_to_the_used_rows_alone():
    torch.manual_seed(0)
    module = plain_softmax(100)
    module.sampled(torch.randn(3, 6, dtype=torch.float64), torch.tensor([50, 60, -100]), n_samples=3).sum().backward()
    gradient = module.out_layers[0].weight.grad
    assert gradient.is_sparse
    touched = set(gradient.coalesce().indices()[0].tolist())
    assert {50, 60} <= touched
    assert len(touched) <= 3 + 6  # targets (0 stands for the ignored one) and samples


def test_training_with_sampled_softmax_approaches_the_true_distribution():
    """A model of one distribution over 12 tokens, whatever the hidden state."""
    torch.manual_seed(0)
    probabilities = torch.linspace(2, -2, 12).softmax(0)
    module = AdaptiveLogSoftmax(12, 1, 1, [])
    nn.init.zeros_(module.out_layers[0].weight)
    hidden = torch.ones(512, 1)
    optimizer = torch.optim.SGD(module.parameters(), lr=1.0)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, total_iters=250)
    for _ in range(250):
        targets = torch.multinomial(probabilities, 512, replacement=True)
        optimizer.zero_grad()
        module.sampled(hidden, targets, n_samples=3).mean().backward()
        optimizer.step()
        schedule.step()
    learned = module.log_prob(hidden[:1])[0].exp()
    assert (learned - probabilities).abs().max() < 0.04  # without the correction: 0.2 and more
