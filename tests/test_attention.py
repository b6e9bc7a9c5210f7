"""The attention formula: written as loops, equal to both implementations, gradients included."""

import math
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from models import assert_equal
from transformer_xl import blocked_attention, trained_attention
from transformer_xl.attention import (
    DistanceTerms,
    Segments,
    VisibleKeys,
    eager_attention,
    key_distances,
    n_distances,
    relative_shift,
    sdpa_attention,
    sinusoid,
)
from transformer_xl.blocked_attention import blocked_attention as attend_in_blocks
from transformer_xl.implementations import fused_attention

CPU = torch.device("cpu")


KINDS = ["Transformer-XL", "one distance more", "clamped", "Shaw", "absolute"]
LENGTHS = [(3, 0, None), (1, 5, None), (4, 3, 3), (3, 7, 8), (5, 2, 1), (1, 6, 3), (7, 1, 9), (6, 6, 4)]


def random_case(q_len: int, memory_len: int, *, kind: str, seed: int = 0):
    """Inputs of an attention function in float64, each a leaf that takes gradients."""
    generator = torch.Generator().manual_seed(seed)

    def leaf(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()

    n_batch, n_heads, size, k_len = 2, 3, 4, memory_len + q_len
    q, k, v = leaf(n_batch, n_heads, q_len, size), *(leaf(n_batch, n_heads, k_len, size) for _ in range(2))
    content_bias = leaf(n_heads, size) if kind != "absolute" else None
    distance = {
        "Transformer-XL": lambda: DistanceTerms(leaf(n_heads, k_len, size), leaf(n_heads, size)),
        "one distance more": lambda: DistanceTerms(leaf(n_heads, k_len + 1, size), leaf(n_heads, size)),
        "clamped": lambda: DistanceTerms(leaf(n_heads, min(k_len, 3), size), leaf(n_heads, size)),
        "Shaw": lambda: DistanceTerms(leaf(n_heads, min(k_len, 4), size), None, leaf(n_heads, min(k_len, 4))),
        "absolute": lambda: None,
    }[kind]()
    return q, k, v, content_bias, distance


def attention_by_loops(q, k, v, content_bias, distance, mask):
    """One query, head and key at a time; the distance is subtracted and looked up."""
    n_batch, n_heads, q_len, size = q.shape
    k_len = k.shape[2]
    rows = []
    for b in range(n_batch):
        for n in range(n_heads):
            for i in range(q_len):
                scores = []
                seen = [j for j in range(k_len) if mask.expand(n_batch, 1, q_len, k_len)[b, 0, i, j]]
                for j in seen:
                    query = q[b, n, i]
                    score = (query if content_bias is None else query + content_bias[n]) @ k[b, n, j]
                    if distance is not None:
                        d = (k_len - q_len + i) - j
                        with_bias = query if distance.query_bias is None else query + distance.query_bias[n]
                        row = max(distance.keys.shape[1] - 1 - d, 0)
                        score = score + with_bias @ distance.keys[n, row]
                        if distance.score_bias is not None:
                            score = score + distance.score_bias[n, row]
                    scores.append(score / math.sqrt(size))
                rows.append(torch.stack(scores).softmax(0) @ v[b, n, seen])
    return torch.stack(rows).view(n_batch, n_heads, q_len, size)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("q_len", "memory_len", "span"), LENGTHS)
@pytest.mark.parametrize(
    ("attend", "size"),
    [(eager_attention, None), (sdpa_attention, None), (fused_attention, (1, 2, 2)), (fused_attention, (2, 3, 4))],
)
@pytest.mark.parametrize("has_hidden", [True, False])
def test_attention_and_its_gradients_equal_the_formula_written_as_loops(
    kind, q_len, memory_len, span, attend, has_hidden, size, monkeypatch
):
    monkeypatch.setattr(blocked_attention, "block_size", lambda *_: size)
    inputs = random_case(q_len, memory_len, kind=kind)
    n_hidden = torch.tensor([0, min(2, memory_len)]) if has_hidden else None
    visible = VisibleKeys(q_len, memory_len, span=span, n_hidden=n_hidden, device=CPU)
    q, k, v, content_bias, distance = inputs
    leaves = [x for x in (q, k, v, content_bias, *(distance or ())) if x is not None]

    expected = attention_by_loops(*inputs, visible.mask)
    actual, _ = attend(q, k, v, content_bias=content_bias, distance=distance, visible=visible)

    assert_equal(actual, expected)
    weight = torch.linspace(-1, 1, expected.numel(), dtype=torch.float64).view_as(expected)
    expected_gradients = torch.autograd.grad((expected * weight).sum(), leaves)
    assert_equal(torch.autograd.grad((actual * weight).sum(), leaves), expected_gradients)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("q_len", "memory_len", "span"), LENGTHS)
@pytest.mark.parametrize("size", [(1, 1, 1), (1, 2, 2), (2, 3, 5), (100, 100, 100)])
@pytest.mark.parametrize("is_transposed", [True, False])
@pytest.mark.parametrize("has_hidden", [True, False])
@torch.no_grad()
def test_blocks_of_any_length_and_layout_equal_the_literal_formula(
    kind, q_len, memory_len, span, size, is_transposed, has_hidden, monkeypatch
):
    monkeypatch.setattr(blocked_attention, "block_size", lambda *_: size)
    q, k, v, content_bias, distance = random_case(q_len, memory_len, kind=kind)
    n_hidden = torch.tensor([0, min(2, memory_len)]) if has_hidden else None
    terms = {"content_bias": content_bias, "distance": distance}
    terms["visible"] = VisibleKeys(q_len, memory_len, span=span, n_hidden=n_hidden, device=CPU)
    expected, _ = eager_attention(q, k, v, **terms)
    if is_transposed:
        k, v = (states.mT.contiguous().mT for states in (k, v))
    assert_equal(attend_in_blocks(q, k, v, **terms), expected)
    assert_close(attend_in_blocks(*in_single((q, k, v)), **in_single(terms)), expected.float())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("q_len", "memory_len", "span"), LENGTHS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("has_products", [True, False])
@torch.no_grad()
def test_blocks_of_16_bits_are_computed_in_them_or_where_they_have_no_product_in_float32(
    kind, q_len, memory_len, span, dtype, has_products, monkeypatch
):
    monkeypatch.setattr(blocked_attention, "block_size", lambda *_: (1, 2, 2))
    monkeypatch.setattr(blocked_attention, "has_products", lambda asked: has_products or asked != dtype)
    products, bmm = set(), torch.bmm
    monkeypatch.setattr(torch, "bmm", lambda *args, **kwargs: products.add(args[0].dtype) or bmm(*args, **kwargs))
    q, k, v, content_bias, distance = as_dtype(random_case(q_len, memory_len, kind=kind), dtype)
    terms = {"content_bias": content_bias, "distance": distance}
    terms["visible"] = VisibleKeys(q_len, memory_len, span=span, device=CPU)
    expected, _ = eager_attention(*as_dtype((q, k, v), torch.float64), **as_dtype(terms, torch.float64))
    actual = attend_in_blocks(q, k, v, **terms)
    assert actual.dtype == dtype
    assert products == {dtype if has_products else torch.float32}
    rounding = torch.finfo(dtype).eps * (8 if has_products else 0.51)
    assert_close(actual.double(), expected, rtol=rounding, atol=rounding if has_products else 1e-6)


SEGMENTED = [
    (7, 6, None, Segments(3, 6)),
    (8, 0, None, Segments(4, 2)),
    (5, 4, 3, Segments(2, 4)),
    (9, 3, None, Segments(2, 5)),
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("q_len", "memory_len", "span", "segments"), SEGMENTED)
@pytest.mark.parametrize("size", [(1, 1, 1), (1, 2, 2), (2, 3, 3)])
@pytest.mark.parametrize("has_hidden", [True, False])
def test_segments_of_one_call_equal_calls_for_each(
    kind, q_len, memory_len, span, segments, size, has_hidden, monkeypatch
):
    """All implementations, with gradients; the calls are the literal formula's."""
    monkeypatch.setattr(blocked_attention, "block_size", lambda *_: size)
    q, k, v, content_bias, distance = random_case(q_len, memory_len, kind=kind)
    leaves = [x for x in (q, k, v, content_bias, *(distance or ())) if x is not None]
    n_hidden = torch.tensor([0, min(2, memory_len)]) if has_hidden else None
    rows = []
    for start in range(0, q_len, segments.length):
        end, first = min(start + segments.length, q_len), max(memory_len + start - segments.mem_len, 0)
        seen, hidden = slice(first, memory_len + end), None if n_hidden is None else (n_hidden - first).clamp(min=0)
        visible = VisibleKeys(end - start, memory_len + start - first, span=span, n_hidden=hidden, device=CPU)
        terms = {"content_bias": content_bias, "distance": distance, "visible": visible}
        rows.append(eager_attention(q[:, :, start:end], k[:, :, seen], v[:, :, seen], **terms)[0])
    expected = torch.cat(rows, dim=2)
    weight = torch.linspace(-1, 1, expected.numel(), dtype=torch.float64).view_as(expected)
    gradients = torch.autograd.grad((expected * weight).sum(), leaves)
    visible = VisibleKeys(q_len, memory_len, span=span, n_hidden=n_hidden, segments=segments, device=CPU)
    terms = {"content_bias": content_bias, "distance": distance, "visible": visible}
    for attend in (eager_attention, sdpa_attention, fused_attention):
        actual, _ = attend(q, k, v, **terms)
        assert_equal(actual, expected)
        assert_equal(torch.autograd.grad((actual * weight).sum(), leaves), gradients)
    with torch.no_grad():
        assert_equal(attend_in_blocks(q, k, v, **terms), expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("q_len", "memory_len", "span"), LENGTHS)
def test_nothing_depends_on_what_fresh_memory_held(kind, q_len, memory_len, span):
    """In torch's deterministic mode that is NaN."""
    q, k, v, content_bias, distance = random_case(q_len, memory_len, kind=kind)
    visible = VisibleKeys(q_len, memory_len, span=span, device=CPU)
    terms = {"content_bias": content_bias, "distance": distance, "visible": visible}
    torch.use_deterministic_algorithms(True)
    try:
        attended, _ = fused_attention(q, k, v, **terms)
        gradients = torch.autograd.grad(attended.square().sum(), [q, k, v])
        with torch.no_grad():
            without_gradients = attend_in_blocks(q, k, v, **terms)
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(states.isfinite().all() for states in (attended, without_gradients, *gradients))


def as_dtype(value, dtype):
    """The same in another dtype."""
    if isinstance(value, dict):
        return {name: as_dtype(item, dtype) for name, item in value.items()}
    if isinstance(value, DistanceTerms):
        return DistanceTerms(*(as_dtype(item, dtype) for item in value))
    if isinstance(value, tuple):
        return tuple(as_dtype(item, dtype) for item in value)
    return value.to(dtype) if isinstance(value, torch.Tensor) else value


def in_single(value):
    """The same in float32."""
    return as_dtype(value, torch.float32)


def test_eager_weights_are_probabilities_over_visible_keys():
    q, k, v, content_bias, distance = random_case(4, 3, kind="Transformer-XL")
    visible = VisibleKeys(4, 3, span=3, device=CPU)
    _, weights = eager_attention(q, k, v, content_bias=content_bias, distance=distance, visible=visible)
    assert weights.shape == (2, 3, 4, 7)
    assert_equal(weights.sum(-1), torch.ones(2, 3, 4, dtype=torch.float64))
    assert not weights[(~visible.mask).expand_as(weights)].any()


@pytest.mark.parametrize("attend", [eager_attention, sdpa_attention, fused_attention])
def test_attention_dropout_keeps_the_mean_and_drops_the_stated_share(attend):
    torch.manual_seed(0)
    size, k_len = 4, 400
    q, k = torch.zeros(1, 1, 1, size), torch.randn(1, 1, k_len, size)
    v = torch.ones(1, 1, k_len, size)
    visible = VisibleKeys(1, k_len - 1, span=None, device=CPU)
    draw = partial(attend, q, k, v, content_bias=None, distance=None, visible=visible, dropout=0.25)
    draws = torch.stack([draw()[0].mean() for _ in range(300)])
    # Equal weights: each draw is binomial(400, 3/4) / 300, so its deviation is sqrt(400 * 3/16) / 300 = 0.0289.
    assert abs(draws.mean() - 1) < 0.01
    assert abs(draws.std() - 0.0289) < 0.006


@given(q_len=st.integers(1, 6), memory_len=st.integers(0, 6))
def test_relative_shift_moves_each_distance_under_its_key(q_len, memory_len):
    k_len = memory_len + q_len
    by_distance = torch.arange(k_len, -1, -1.0).expand(q_len, -1).contiguous()  # each column says its distance
    shifted = relative_shift(by_distance)
    assert shifted.shape == (q_len, k_len)
    assert shifted.untyped_storage().data_ptr() == by_distance.untyped_storage().data_ptr()
    for i in range(q_len):
        for j in range(memory_len + i + 1):
            assert shifted[i, j] == memory_len + i - j


@given(
    q_len=st.integers(1, 6), memory_len=st.integers(0, 6), span=st.none() | st.integers(1, 9), hidden=st.integers(0, 12)
)
def test_visible_keys_are_those_within_the_span_that_hold_something(q_len, memory_len, span, hidden):
    n_hidden = torch.tensor([0, min(hidden, memory_len + q_len)])
    visible = VisibleKeys(q_len, memory_len, span=span, n_hidden=n_hidden, device=CPU).mask
    for b in range(2):
        for i in range(q_len):
            for j in range(memory_len + q_len):
                distance = memory_len + i - j
                is_seen = distance >= 0 and (span is None or distance < span) and j >= n_hidden[b]
                assert visible[b, 0, i, j] == (is_seen or distance == 0)


def test_distances_count_down_and_are_capped():
    assert key_distances(5, clamp_len=-1, device=CPU).tolist() == [4, 3, 2, 1, 0]
    assert key_distances(5, clamp_len=0, device=CPU).tolist() == [4, 3, 2, 1, 0]
    assert key_distances(5, clamp_len=2, device=CPU).tolist() == [2, 2, 2, 1, 0]
    assert [n_distances(5, clamp_len=clamp_len) for clamp_len in (-1, 0, 2, 4, 9)] == [5, 5, 3, 5, 5]


def test_sinusoid_is_sines_then_cosines():
    signal = sinusoid(torch.tensor([0, 3]), 6, dtype=torch.float64)
    for i in range(3):
        angle = 3 / 10_000 ** (2 * i / 6)
        assert signal[0, i] == 0
        assert signal[0, 3 + i] == 1
        assert math.isclose(signal[1, i], math.sin(angle))
        assert math.isclose(signal[1, 3 + i], math.cos(angle))


def test_sinusoid_tells_far_positions_apart_in_bfloat16():
    signal = sinusoid(torch.tensor([256, 257]), 8, dtype=torch.bfloat16)
    assert signal.dtype == torch.bfloat16
    assert not torch.equal(signal[0], signal[1])


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_with_dropout_equal_those_of_the_formula_with_the_same_mask(kind, monkeypatch):
    """Blocks of one row, two heads and two queries: the backward pass must find the mask of each block again."""
    q_len, memory_len, rate = 5, 3, 0.25
    by_query = torch.rand(2, 3, q_len, 8, generator=torch.Generator().manual_seed(1)) > rate  # [B, N, Q, K]
    visible = VisibleKeys(q_len, memory_len, span=None, device=CPU)
    monkeypatch.setattr(blocked_attention, "block_size", lambda *_: (1, 2, 2))
    masks = [by_query[b.of_queries][..., b.keys].flatten(0, 1) for b in blocked_attention.blocks(visible, 2, 3)]
    assert len(masks) == 2 * 2 * 3

    monkeypatch.setattr(trained_attention, "keep_mask", lambda shape, _, seed: masks[seed - 7].view(shape))
    monkeypatch.setattr(trained_attention, "new_seed", lambda: 7)
    q, k, v, content_bias, distance = random_case(q_len, memory_len, kind=kind)
    terms = {"content_bias": content_bias, "distance": distance, "visible": visible}
    leaves = [x for x in (q, k, v, content_bias, *(distance or ())) if x is not None]

    actual, _ = fused_attention(q, k, v, **terms, dropout=rate)
    _, weights = eager_attention(q, k, v, **terms)
    expected = (weights * by_query / (1 - rate)) @ v

    assert_equal(actual, expected)
    weight = torch.linspace(-1, 1, expected.numel(), dtype=torch.float64).view_as(expected)
    expected_gradients = torch.autograd.grad((expected * weight).sum(), leaves)
    assert_equal(torch.autograd.grad((actual * weight).sum(), leaves), expected_gradients)


@pytest.mark.parametrize("shift", [0.0, 50.0, -50.0, 85.0, -85.0, 88.0, -300.0, 1e4])
@pytest.mark.parametrize("spread", [1.0, 40.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_exponentials_are_a_softmax_wherever_the_scores_lie(shift, spread, dtype):
    scores = torch.randn(1, 2, 3, 2000, generator=torch.Generator().manual_seed(0)).mul(spread).add(shift).to(dtype)
    visible = VisibleKeys(3, 1997, span=1998, device=CPU)
    precision = torch.promote_types(dtype, torch.float32)
    hidden = scores.double().masked_fill(~visible.mask, float("-inf"))
    expected = (hidden * math.log(2)).softmax(-1).flatten(0, 1)  # to the base 2
    weights, sums = blocked_attention.exponentials(scores.clone(), visible)
    is_visible = visible.mask.expand_as(scores).flatten(0, 1)
    assert not weights[~is_visible].any()
    assert weights[is_visible].min() >= torch.finfo(precision).tiny  # the library is slow with smaller ones
    assert weights.dtype == sums.dtype == precision
    tolerance = 1e-14 if dtype == torch.float64 else 1e-5
    assert_close((weights.double() / sums), expected, rtol=tolerance, atol=1e-12)
    assert weights.isfinite().all()
    assert dtype.itemsize > 2 or weights.max() <= 1


def test_a_future_score_that_overflows_half_precision_is_not_seen():
    scores = torch.randn(1, 2, 3, 100, generator=torch.Generator().manual_seed(0)).half()
    visible = VisibleKeys(3, 97, span=None, device=CPU)
    expected, _ = blocked_attention.exponentials(scores.clone(), visible)
    scores[0, 0, 1, 99] = float("inf")
    assert torch.equal(blocked_attention.exponentials(scores, visible)[0], expected)


@pytest.mark.parametrize("place", [(0, 1, 1, 50), (0, 0, 1, 99)])
@pytest.mark.parametrize("other", [56.0, 80.0, -80.0, 1e4, -1e4])
def test_exponentials_of_a_row_do_not_depend_on_other_rows_or_on_the_future(place, other):
    scores = torch.randn(1, 2, 3, 100, generator=torch.Generator().manual_seed(0))
    visible = VisibleKeys(3, 97, span=None, device=CPU)
    expected, sums = blocked_attention.exponentials(scores.clone(), visible)
    scores[place] = other
    actual, actual_sums = blocked_attention.exponentials(scores, visible)
    changed = torch.zeros(2, 3, dtype=torch.bool)
    changed[place[1:3]] = bool(visible.mask[0, 0, place[2], place[3]])
    assert torch.equal(actual[~changed], expected[~changed])
    assert torch.equal(actual_sums[~changed], sums[~changed])


@pytest.mark.parametrize("n_near", [1, 3, 7, 8])
@pytest.mark.parametrize("oldest", range(8))
def test_scores_by_distance_in_a_ring_are_those_in_order_turned_round(n_near, oldest):
    near = torch.randn(3, 2, n_near, generator=torch.Generator().manual_seed(0))
    in_order = blocked_attention.with_farther(near, 8)
    scores = torch.ones(3, 2, 8)
    blocked_attention.add_in_ring(scores, near, oldest=oldest, scale=0.5)
    assert torch.equal(scores, 1 + 0.5 * in_order.roll(oldest, -1))


@given(
    q_len=st.integers(1, 300), memory_len=st.integers(0, 400), span=st.integers(1, 400), rows=st.sampled_from([None, 5])
)
def test_keys_of_a_block_fill_cache_lines_where_a_span_leaves_some_out(q_len, memory_len, span, rows):
    n_hidden = None if rows is None else torch.arange(rows) * memory_len // rows
    visible = VisibleKeys(q_len, memory_len, span=span, n_hidden=n_hidden, device=CPU)
    for block in blocked_attention.blocks(visible, rows or 1, 2):
        needed = min(span - 1, memory_len + block.queries.start) + block.visible.q_len
        n_keys = block.keys.stop - block.keys.start
        assert block.keys.stop == memory_len + block.queries.stop
        assert needed <= n_keys < needed + 16
        assert n_keys % 16 == 0 or block.keys.start == 0
        mask = visible.mask[block.rows if rows else slice(None), :, block.queries]
        assert torch.equal(block.visible.mask, mask[..., block.keys])
        assert mask.sum() == block.visible.mask.sum()


@given(
    n_batch=st.integers(1, 70), n_heads=st.integers(1, 20), q_len=st.integers(1, 3000), memory_len=st.integers(0, 20000)
)
def test_blocks_are_all_of_a_call_and_stay_small(n_batch, n_heads, q_len, memory_len):
    visible = VisibleKeys(q_len, memory_len, span=None, device=CPU)
    n_queries = 0
    for rows, heads, queries, keys, seen in blocked_attention.blocks(visible, n_batch, n_heads):
        n_matrices = (rows.stop - rows.start) * (heads.stop - heads.start)
        assert rows.stop - rows.start == 1 or heads == slice(0, n_heads)
        assert (heads.stop - heads.start) % 2 == 0 or heads.stop == n_heads
        assert seen.q_len == queries.stop - queries.start
        at_most = max(blocked_attention.BLOCK_SCORES * 4 // 3, 2 * min(128, q_len) * (q_len + memory_len))
        assert n_matrices * seen.q_len * keys.stop <= at_most
        assert seen.q_len > 64 or q_len <= 128  # all but equal parts of the segment, the longest that are at most 128
        n_queries += n_matrices * seen.q_len
    assert n_queries == n_batch * n_heads * q_len
