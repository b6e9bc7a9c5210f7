"""The short way for single tokens: it gives what the layers give, and steps aside for whoever changed a layer."""

import copy

import pytest
import torch
from hypothesis import given, settings
from torch import nn
from torch.testing import assert_close

from models import assert_equal, random_ids, run_segments, settings_of_models, tiny_model
from transformer_xl import linear_maps
from transformer_xl.stepping import TokenStep


@torch.no_grad()
def scores_of_tokens(model, ids: torch.Tensor, first: int = 3) -> torch.Tensor:
    """Log-probabilities from a prompt, then one token at a time."""
    return run_segments(model, ids, [first] + [1] * (ids.shape[1] - first), use_cache=True)[0]


@pytest.fixture
def steps(monkeypatch) -> list[int]:
    """Counts the steps taken."""
    taken: list[int] = []
    call = TokenStep.__call__
    monkeypatch.setattr(TokenStep, "__call__", lambda self, *args, **kw: taken.append(1) or call(self, *args, **kw))
    return taken


@settings(max_examples=40, deadline=None)
@given(changes=settings_of_models(attn_implementation="sdpa"))
def test_single_tokens_get_what_the_layers_give(changes):
    model = tiny_model(**changes)
    ids = random_ids(2, 14)
    actual = scores_of_tokens(model, ids)
    model.set_attn_implementation("eager")
    assert_equal(actual, scores_of_tokens(model, ids))


@pytest.mark.parametrize(("is_amd", "has_avx512"), [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize("n_rows", [1, 2, 5, 12, 20])
@pytest.mark.parametrize("changes", [{}, {"pre_lnorm": True}, {"attn_type": 1}, {"untie_r": False, "clamp_len": 3}])
def test_single_tokens_of_many_rows_get_what_the_layers_give(changes, n_rows, is_amd, has_avx512, steps, monkeypatch):
    monkeypatch.setattr(linear_maps, "FEWEST_WEIGHTS", 1)
    monkeypatch.setattr(linear_maps, "is_amd", lambda: is_amd)
    monkeypatch.setattr(linear_maps, "has_avx512", lambda: has_avx512)
    model = tiny_model(**changes).float()
    ids = random_ids(n_rows, 14)
    actual = scores_of_tokens(model, ids)
    assert len(steps) == 11
    model.set_attn_implementation("eager")
    assert_equal(actual, scores_of_tokens(model, ids))


@pytest.mark.parametrize("n_rows", [3, 12])
def test_single_tokens_of_many_rows_in_16_bits_are_multiplied_in_float32_where_they_have_no_product(
    n_rows, steps, monkeypatch
):
    model, ids = tiny_model(attn_implementation="sdpa").bfloat16(), random_ids(n_rows, 14)
    monkeypatch.setattr(linear_maps, "has_products", lambda dtype: True)
    by_16_bits = scores_of_tokens(model, ids)
    steps.clear()
    monkeypatch.setattr(linear_maps, "has_products", lambda dtype: False)
    products, by_float32 = [], linear_maps.by_float32
    monkeypatch.setattr(
        linear_maps, "by_float32", lambda *args: products.append((len(args[0]), id(args[1]))) or by_float32(*args)
    )
    actual = scores_of_tokens(model, ids)
    assert len(steps) == 11
    for layer in model.transformer.layers:
        attention, (inner, _, _, outer, _) = layer.dec_attn, layer.pos_ff.CoreNet
        for linear in (attention.qkv_net, attention.o_net, inner, outer):
            assert products.count((n_rows, id(linear.weight))) == (11 if n_rows == 12 else 0)
    exact = scores_of_tokens(model.float(), ids)
    assert (actual - exact).abs().mean() < 1.1 * (by_16_bits - exact).abs().mean()


@pytest.mark.parametrize("n_rows", [1, 3])
def test_single_tokens_in_bfloat16_get_the_same_from_packed_weights(n_rows, steps, packed_products, monkeypatch):
    model = tiny_model(attn_implementation="sdpa").bfloat16()
    ids = random_ids(n_rows, 20)
    expected = scores_of_tokens(model, ids)
    monkeypatch.setattr(linear_maps, "FEWEST_WEIGHTS", 1)
    monkeypatch.setattr(linear_maps, "PACK_AFTER", 5)
    actual = scores_of_tokens(model, ids)
    assert len(packed_products) == 4 * len(model.transformer.layers) * (len(steps) // 2 - 5)
    assert_close(actual, expected, rtol=0.02, atol=0.1)
    exact = scores_of_tokens(model.float(), ids)
    assert (actual - exact).abs().mean() < 1.1 * (expected - exact).abs().mean()


def test_segments_between_single_tokens_are_remembered(steps):
    model, ids = tiny_model(attn_implementation="sdpa"), random_ids(2, 20)
    lengths = [6, 1, 1, 4, 1, 1, 5, 1]
    with torch.no_grad():
        actual = run_segments(model, ids, lengths, use_cache=True)[0]
        assert len(steps) == 5
        model.set_attn_implementation("eager")
        assert_equal(actual, run_segments(model, ids, lengths, use_cache=True)[0])


@pytest.mark.parametrize("changes", [{}, {"attn_type": 1}, {"initial_memory": "empty"}])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_single_tokens_in_half_precision_are_remembered_in_single_precision(dtype, changes, steps):
    model, ids = tiny_model(dtype=dtype, attn_implementation="sdpa", **changes), random_ids(2, 16)
    lengths = [6, 1, 1, 4, 1, 1, 1, 1]
    cache, dtypes, scores = None, [], []
    for segment in ids.split(lengths, dim=1):
        output = model(segment, past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        scores.append(output.logits)
        held = [cache.layers[0].keys, cache.layers[0].values, getattr(cache.layers[0].distance, "keys", None)]
        assert len({tensor.dtype for tensor in held if tensor is not None}) == 1
        dtypes.append(held[0].dtype)
        assert cache.layers[0].dtype == dtype
    assert dtypes == [torch.float32 if length == 1 else dtype for length in lengths]
    assert len(steps) == 6
    other = torch.float16 if dtype == torch.bfloat16 else torch.bfloat16
    moved = copy.deepcopy(cache).to(dtype=other)
    assert moved.layers[0].keys.dtype == moved.layers[0].values.dtype == moved.layers[0].dtype == other
    moved.to(dtype=dtype)
    for _ in range(2):  # the first one has to project the distances again
        model(ids[:, :1], past_key_values=moved)
    assert moved.layers[0].values.dtype == torch.float32
    model.set_attn_implementation("eager")
    expected = run_segments(model, ids, lengths, use_cache=True)[0]
    torch.testing.assert_close(torch.cat(scores, dim=1).exp(), expected.exp(), rtol=5e-2, atol=5e-2)


def test_the_short_way_is_taken_once_the_distances_are_known(steps):
    scores_of_tokens(tiny_model(), random_ids(2, 9))
    assert len(steps) == 6


def test_forgotten_rows_leave_the_short_way_only_where_slots_are_hidden(steps):
    for start, n_steps in (("zeros", 2), ("empty", 0)):
        model, ids = tiny_model(initial_memory=start), random_ids(2, 12)
        steps.clear()
        with torch.no_grad():
            cache = model(ids[:, :9], use_cache=True).past_key_values
            cache.reset_rows(torch.tensor([True, False]))
            for token in ids[:, 9:11].split(1, dim=1):
                model(token, past_key_values=cache)
        assert len(steps) == n_steps


def test_a_hook_sees_every_token_and_its_change_counts(steps):
    model, ids = tiny_model(), random_ids(1, 8)
    expected, seen = scores_of_tokens(model, ids), []
    steps.clear()
    part = model.transformer.layers[1].pos_ff.CoreNet[1]
    handle = part.register_forward_hook(lambda _module, _inputs, output: seen.append(output.shape[1]))
    assert_equal(scores_of_tokens(model, ids), expected)
    assert seen == [3, 1, 1, 1, 1, 1]
    handle.remove()
    model.transformer.layers[0].dec_attn.o_net.register_forward_hook(lambda _module, _inputs, output: output * 2)
    changed = scores_of_tokens(model, ids)
    assert not torch.allclose(changed, expected)
    assert not steps


def test_dropout_switched_on_in_evaluation_drops_in_single_tokens_too(steps):
    model = tiny_model(dropout=0.5)
    model.transformer.layers[0].dec_attn.drop.train()
    ids = random_ids(1, 8)
    assert not torch.allclose(scores_of_tokens(model, ids), scores_of_tokens(model, ids))
    assert not steps


@pytest.mark.parametrize("change", ["class of a layer", "activation", "forward of an instance", "another norm"])
def test_changed_layers_are_called_as_they_are(change, steps):
    model, ids = tiny_model(), random_ids(1, 8)
    expected = scores_of_tokens(model, ids)
    steps.clear()
    layer = model.transformer.layers[0]
    if change == "class of a layer":
        layer.__class__ = type("Changed", (type(layer),), {"forward": lambda self, hidden, *_: (-hidden, None)})
    elif change == "activation":
        layer.pos_ff.CoreNet[1] = nn.GELU()
    elif change == "forward of an instance":
        layer.pos_ff.forward = lambda hidden: -hidden
    else:
        layer.pos_ff.layer_norm = nn.Identity()
    actual = scores_of_tokens(model, ids)
    assert not torch.allclose(actual, expected)
    assert not steps
    model.set_attn_implementation("eager")
    assert_equal(actual, scores_of_tokens(model, ids))


class Adapted(nn.Module):
    """A linear map with a low-rank addition, as adapters make it."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.down, self.up = (
            nn.Linear(base.in_features, 2, bias=False).double(),
            nn.Linear(2, base.out_features, bias=False).double(),
        )

    @property
    def weight(self) -> torch.Tensor:
        return self.base.weight  # without the addition: who reads it instead of calling is wrong

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return self.base(states) + self.up(self.down(states))


def test_adapters_around_linear_maps_act_on_memory_and_single_tokens(steps):
    """Equal to the model whose weights have the addition in them, with a cache and with memories."""
    model, ids = tiny_model(), random_ids(2, 12)
    merged = copy.deepcopy(model)
    for layer, of_merged in zip(model.transformer.layers, merged.transformer.layers, strict=True):
        for owner, other, name in (
            (layer.dec_attn, of_merged.dec_attn, "qkv_net"),
            (layer.dec_attn, of_merged.dec_attn, "o_net"),
            (layer.pos_ff.CoreNet, of_merged.pos_ff.CoreNet, "0"),
        ):
            adapted = Adapted(owner._modules[name])
            owner._modules[name] = adapted
            other._modules[name].weight.data += adapted.up.weight.data @ adapted.down.weight.data
    expected = scores_of_tokens(merged, ids)
    assert_equal(scores_of_tokens(model, ids), expected)
    assert len(steps) == 18
    with torch.no_grad():
        assert_equal(run_segments(model, ids, [5, 4, 3])[0], expected)


def test_copies_of_a_cache_do_not_carry_the_model():
    model, ids = tiny_model(), random_ids(1, 6)
    with torch.no_grad():
        cache = model(ids[:, :3], use_cache=True).past_key_values
        model(ids[:, 3:4], past_key_values=cache)
        assert cache.token_step is not None
        duplicate = copy.deepcopy(cache)
        assert duplicate.token_step is None
        expected = model(ids[:, 4:5], past_key_values=cache).logits
        assert_equal(model(ids[:, 4:5], past_key_values=duplicate).logits, expected)


def test_a_cache_that_goes_to_another_model_is_read_by_that_model():
    first, second, ids = tiny_model(seed=1), tiny_model(seed=2), random_ids(1, 6)
    with torch.no_grad():
        cache = first(ids[:, :3], use_cache=True).past_key_values
        first(ids[:, 3:4], past_key_values=cache)
        duplicate = copy.deepcopy(cache)
        actual = second(ids[:, 4:5], past_key_values=cache).logits
        assert_equal(actual, second(ids[:, 4:5], past_key_values=duplicate).logits)


class QuantisedWeight(torch.Tensor):
    """Stands for weights of quantisation libraries: a linear map finds them by position."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function is torch.nn.functional.linear:
            states, weight, *bias = args
            return torch.nn.functional.linear(states, weight.as_subclass(torch.Tensor).round(decimals=1), *bias)
        return super().__torch_function__(function, types, args, kwargs or {})


def test_quantised_weights_act_on_memory_and_single_tokens(steps):
    model, reference = tiny_model(), tiny_model()
    for quantised, rounded in zip(
        model.transformer.layers.modules(), reference.transformer.layers.modules(), strict=True
    ):
        if isinstance(quantised, nn.Linear):
            quantised.weight = nn.Parameter(quantised.weight.data.as_subclass(QuantisedWeight))
            rounded.weight.data = rounded.weight.data.round(decimals=1)
    ids = random_ids(2, 14)
    actual = scores_of_tokens(model, ids)
    assert steps
    assert_equal(actual, scores_of_tokens(reference, ids))
