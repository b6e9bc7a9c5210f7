"""What is carried from segment to segment: the cache's buffers, and forgetting, reordering, moving rows."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models import assert_equal, random_ids, run_segments, settings_of_models, tiny_config, tiny_model
from transformer_xl import TransfoXLCache, reset_mems
from transformer_xl.memory import MemoryLayer
from transformer_xl.padding import RowAlignment


@torch.no_grad()
def primed_cache(model, n_rows: int = 3, length: int = 5) -> TransfoXLCache:
    return model(random_ids(n_rows, length), use_cache=True).past_key_values


@torch.no_grad()
def test_segments_of_one_token_move_few_slots_and_allocate_once():
    layer = MemoryLayer(mem_len=160)
    moved, pointers = 0, set()
    key = torch.zeros(1, 1, 1, 2)
    for step in range(1000):
        before = layer._start
        seen, _ = layer.update(key + step, key)
        moved += layer.length * (layer._start < before)
        pointers.add(layer.keys.data_ptr())
        first = max(0, step - 160)
        assert seen[0, 0, :, 0].tolist() == list(range(first, step + 1))
        assert layer.length == min(160, step + 1)
    assert len(pointers) == 2  # free slots are there when they are needed first
    assert moved <= 8 * 1000  # an eighth of mem_len is free: eight slots a token, however long the memory
    assert layer.keys.shape[2] == 180


@pytest.mark.parametrize(
    ("mem_len", "lengths"),
    [(6, (1, 3, 50, 2, 6, 7, 1, 1, 40, 1, 30)), (64, (65, 16, 1, 10, 5)), (64, (70, 11, 16, 16, 1))],
    ids=["long and short", "moved by one slot", "moved by few slots"],
)
@torch.no_grad()
def test_segments_of_any_length_leave_the_last_positions(mem_len, lengths):
    layer = MemoryLayer(mem_len=mem_len)
    numbers = torch.arange(200.0).view(1, 1, -1, 1)
    position = 0
    for length in lengths:
        new = numbers[:, :, position : position + length]
        seen, values = layer.update(new, -new)
        first = max(0, position - mem_len)
        position += length
        assert torch.equal(seen, numbers[:, :, first:position])
        assert torch.equal(values, -seen)
    assert layer.length == mem_len


@pytest.mark.parametrize("span", [None, 6, 7])
@torch.no_grad()
def test_single_tokens_in_a_ring_see_what_they_see_in_order(span):
    layer = MemoryLayer(mem_len=6, span=span)
    position = 0
    for length in [4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3, 0, 2, 0, 0, 0, 0, 0, 30, 0, 0, 7, 0]:  # 0 is a single token
        new = torch.arange(position, position + max(length, 1.0)).view(1, 1, -1, 1).expand(2, 1, -1, 1)
        first = max(0, position - 6)
        position += new.shape[2]
        if length:
            keys, values = layer.update(new, -new)
            assert keys[0, 0, :, 0].tolist() == list(range(first, position))
        else:
            flat, flat_values, oldest = layer.append(new[:, :, 0], -new[:, :, 0])
            assert layer.keys.shape[2] == (7 if span is None else span)
            keys, values = (states.roll(-oldest, -1).mT[:, None] for states in (flat, flat_values))
            n_seen = min(position - first, span or 7)
            assert keys[1, 0, :, 0].tolist() == list(range(position - n_seen, position))
        assert torch.equal(values, -keys)
        assert layer.length == min(position, 6)


@torch.no_grad()
def test_single_tokens_allocate_nothing_and_keys_stay_where_a_prompt_put_them():
    layer = MemoryLayer(mem_len=16)
    token = torch.zeros(1, 1, 2)
    layer.update(torch.zeros(1, 1, 40, 2), torch.zeros(1, 1, 40, 2))
    pointers = {layer.keys.data_ptr()}
    values = set()
    for _ in range(40):
        layer.append(token, token)
        pointers.add(layer.keys.data_ptr())
        values.add(layer.values.data_ptr())
    assert len(pointers) == len(values) == 1


def test_memory_of_a_cache_has_no_history_but_the_present_segment_has():
    layer = MemoryLayer(mem_len=4)
    past = torch.ones(1, 1, 2, 3, requires_grad=True)
    layer.update(past, past)
    now = torch.ones(1, 1, 2, 3, requires_grad=True)
    keys, values = layer.update(now, now)
    (keys.sum() + 2 * values.sum()).backward()
    assert past.grad is None
    assert torch.equal(now.grad, torch.full_like(now, 3))


@pytest.mark.parametrize("start", ["zeros", "empty"])
@pytest.mark.parametrize("pre_lnorm", [False, True])
@pytest.mark.parametrize("same_length", [False, True])
@torch.no_grad()
def test_a_forgotten_row_goes_on_as_if_it_had_just_started(start, pre_lnorm, same_length):
    model = tiny_model(initial_memory=start, pre_lnorm=pre_lnorm, same_length=same_length)
    cache = primed_cache(model)
    cache.reset_rows(torch.tensor([False, True, False]))
    ids = random_ids(3, 9, seed=2)
    lengths = [1, 4, 4]
    actual = torch.cat([model(part, past_key_values=cache).logits for part in ids.split(lengths, 1)], dim=1)
    fresh, _ = run_segments(model, ids[1:2], lengths, use_cache=True)
    assert_equal(actual[1:2], fresh)
    untouched = primed_cache(model)
    expected = torch.cat([model(part, past_key_values=untouched).logits for part in ids.split(lengths, 1)], dim=1)
    assert_equal(actual[[0, 2]], expected[[0, 2]])


def test_reset_mems_forgets_rows_without_touching_the_argument():
    model = tiny_model()
    mems = model(random_ids(3, 8)).mems
    copies = [mem.clone() for mem in mems]
    forgotten = reset_mems(mems, torch.tensor([True, False, True]))
    assert all(torch.equal(mem, saved) for mem, saved in zip(mems, copies, strict=True))
    ids = random_ids(3, 4, seed=2)
    actual = model(ids, mems=forgotten).logits
    assert_equal(actual[[0, 2]], model(ids).logits[[0, 2]])
    assert_equal(actual[1], model(ids, mems=mems).logits[1])


@pytest.mark.parametrize("mask", [torch.tensor([1, 0, 0]), torch.tensor([True, False]), torch.tensor([[True] * 3])])
def test_row_masks_of_another_kind_are_refused(mask):
    model = tiny_model()
    with pytest.raises(ValueError, match=r"mask is torch\.\w+ of shape .* but must be torch.bool of shape \[3\]"):
        reset_mems(model(random_ids(3, 4)).mems, mask)
    with pytest.raises(ValueError, match=r"must be torch.bool of shape \[3\]: True for each row to forget"):
        primed_cache(model).reset_rows(mask)


@torch.no_grad()
def test_rows_are_reordered_repeated_and_selected():
    model = tiny_model(initial_memory="empty")
    ids = random_ids(3, 2, seed=4)
    expected = model(ids, past_key_values=primed_cache(model)).logits

    cache = primed_cache(model)
    cache.reorder_cache(torch.tensor([2, 0, 0]))
    assert_equal(model(ids[[2, 0, 0]], past_key_values=cache).logits, expected[[2, 0, 0]])

    cache = primed_cache(model)
    cache.batch_repeat_interleave(2)
    assert cache.batch_size == 6
    assert_equal(model(ids.repeat_interleave(2, 0), past_key_values=cache).logits, expected.repeat_interleave(2, 0))

    cache = primed_cache(model)
    cache.batch_select_indices(torch.tensor([1]))
    assert_equal(model(ids[1:2], past_key_values=cache).logits, expected[1:2])


@torch.no_grad()
def test_rows_of_a_ring_stay_as_single_tokens_read_them():
    model = tiny_model(initial_memory="empty", attn_implementation="sdpa")
    cache = primed_cache(model)
    ids = random_ids(3, 5, seed=4)
    for i in range(4):
        model(ids[:, i : i + 1], past_key_values=cache)
    expected = model(ids[:, 4:], past_key_values=copy.deepcopy(cache)).logits
    order = torch.tensor([2, 0, 0])
    cache.reorder_cache(order)
    for buffer in (cache.layers[0].keys, cache.layers[0].values):
        assert buffer.mT.is_contiguous()
    assert_equal(model(ids[order, 4:], past_key_values=cache).logits, expected[order])


@torch.no_grad()
def test_reset_starts_anew_with_any_batch_size():
    model = tiny_model()
    cache = primed_cache(model)
    cache.reset()
    assert cache.batch_size is None
    assert cache.get_seq_length() == 0
    ids = random_ids(1, 4)
    assert_equal(model(ids, past_key_values=cache).logits, model(ids).logits)


@torch.no_grad()
def test_cache_moves_between_dtypes_and_can_be_copied():
    model = tiny_model()
    cache = primed_cache(model)
    ids = random_ids(3, 2, seed=4)
    expected = model(ids, past_key_values=copy.deepcopy(cache)).logits
    assert_equal(model(ids, past_key_values=copy.deepcopy(cache)).logits, expected)
    moved = copy.deepcopy(cache).to(dtype=torch.float32)
    assert moved.layers[0].keys.dtype == torch.float32
    half = tiny_model(dtype=torch.float32)
    assert torch.allclose(half(ids, past_key_values=moved).logits.double(), expected, atol=1e-5)
    assert moved.to("cpu") is moved


@torch.no_grad()
def test_distance_embeddings_are_projected_once_for_equal_lengths():
    model = tiny_model(n_layer=1)
    calls = []
    model.transformer.layers[0].dec_attn.r_net.register_forward_hook(lambda *_: calls.append(1))
    _, cache = run_segments(model, random_ids(1, 30), [6] * 5, use_cache=True)
    assert len(calls) == 1
    run = model(random_ids(1, 1), past_key_values=cache)
    assert run.past_key_values is cache
    assert len(calls) == 1


@torch.no_grad()
@pytest.mark.parametrize("length", [1, 9, 16, 17])
def test_distance_embeddings_lie_feature_by_feature_and_end_with_a_cache_line(length):
    """So that the nearest ones of a block whose rows of scores are whole lines begin with one."""
    model = tiny_model(mem_len=20, initial_memory="empty")
    cache = model(random_ids(2, length), use_cache=True).past_key_values
    keys = cache.layers[0].distance.keys
    assert keys.stride(1) == 1
    assert keys.stride(2) % 16 == 0
    assert (keys.storage_offset() + keys.shape[1]) % 16 == 0


@torch.no_grad()
def test_one_long_prompt_does_not_hold_its_distance_embeddings_for_ever():
    model = tiny_model(n_layer=1)
    cache = model(random_ids(1, 100), use_cache=True).past_key_values
    assert cache.layers[0].distance.keys.shape[1] == 107
    model(random_ids(1, 1), past_key_values=cache)
    assert cache.layers[0].distance.keys.shape[1] == 8


@torch.no_grad()
def test_distance_embeddings_of_a_growing_memory_are_not_projected_for_each_token():
    model = tiny_model(n_layer=1, mem_len=64, initial_memory="empty")
    calls = []
    model.transformer.layers[0].dec_attn.r_net.register_forward_hook(lambda *_: calls.append(1))
    cache = None
    for _ in range(70):
        cache = model(random_ids(1, 1), use_cache=True, past_key_values=cache).past_key_values
    assert len(calls) <= 7


@torch.no_grad()
def test_starting_from_zeros_projects_one_slot_not_mem_len():
    model = tiny_model(n_layer=1, mem_len=50)
    rows = []
    model.transformer.layers[0].dec_attn.layer_norm.register_forward_hook(lambda *_: None)
    attention = model.transformer.layers[0].dec_attn
    project = attention.project_memory
    attention.project_memory = lambda hidden: rows.append(hidden.shape[1]) or project(hidden)
    model(random_ids(2, 3), use_cache=True)
    assert rows == [1]


@given(settings=settings_of_models(), data=st.data())
@torch.no_grad()
def test_a_call_of_several_segments_gives_the_numbers_of_a_call_for_each(settings, data):
    """From a cold or warm start, by the literal path and the fast one, with a row that has begun anew."""
    length, n_segments = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 4))
    warm, implementation = data.draw(st.sampled_from([0, 1, length])), data.draw(st.sampled_from(["eager", "sdpa"]))
    forgotten = data.draw(st.sampled_from([None, torch.tensor([False, True]), torch.tensor([True, True])]))
    model = tiny_model(**settings)
    model.set_attn_implementation(implementation)
    ids = random_ids(2, length * n_segments + data.draw(st.integers(0, 2)))
    caches = [TransfoXLCache(model.config), TransfoXLCache(model.config, segment_len=length, n_segments=n_segments)]
    for cache in caches:
        if warm:
            model(random_ids(2, warm, seed=2), past_key_values=cache)
        if forgotten is not None:
            cache.reset_rows(forgotten)
    expected = torch.cat([model(part, past_key_values=caches[0]).logits for part in ids.split(length, 1)], dim=1)
    assert_equal(model(ids, past_key_values=caches[1]).logits, expected)
    following = [model(ids[:, :1], past_key_values=cache).logits for cache in caches]
    assert_equal(following[1], following[0])


@pytest.mark.parametrize("same_length", [False, True])
@torch.no_grad()
def test_calls_of_the_length_that_was_named_move_the_memory_in_place(same_length):
    model = tiny_model(mem_len=6, same_length=same_length)
    cache = TransfoXLCache(model.config, segment_len=10, n_segments=3)
    pointers = set()
    for seed in range(5):
        model(random_ids(2, 30, seed=seed), past_key_values=cache)
        pointers.add(cache.layers[0].keys.data_ptr())
    assert len(pointers) == 1


def test_several_segments_of_a_padded_batch_are_refused():
    model = tiny_model()
    cache = TransfoXLCache(model.config, segment_len=3)
    padded = torch.tensor([[1, 1, 1, 1], [0, 1, 1, 1]])
    with pytest.raises(ValueError, match="has 4 tokens but must have at most segment_len=3 in a padded batch"):
        model(random_ids(2, 4), attention_mask=padded, past_key_values=cache)


@pytest.mark.parametrize("name", ["segment_len", "n_segments"])
def test_segments_of_no_length_are_refused(name):
    with pytest.raises(ValueError, match=f"{name}=0 must be at least 1."):
        TransfoXLCache(tiny_config(), **{name: 0})


def test_a_cache_needs_memory_to_keep():
    with pytest.raises(ValueError, match="mem_len=0 must be positive for a TransfoXLCache"):
        TransfoXLCache(tiny_config(mem_len=0))


def test_a_cache_cannot_be_cropped():
    with pytest.raises(ValueError, match="TransfoXLCache cannot be cropped"):
        primed_cache(tiny_model()).crop(-1)


def test_row_alignment_puts_padding_before_memory_and_finds_the_way_back():
    mask = torch.tensor([[True, True, True], [False, True, True], [True, False, False]])
    alignment = RowAlignment(mask, 2)
    segment = torch.tensor([[10, 11, 12]] * 3)[..., None]
    aligned = alignment.align(segment)
    assert aligned[..., 0].tolist() == [[10, 11, 12], [10, 11, 12], [11, 12, 10]]
    assert alignment.aligned_mask.tolist() == [[True] * 3, [False, True, True], [False, False, True]]
    assert torch.equal(alignment.restore(aligned), segment)
    context = torch.cat([torch.tensor([[1, 2]] * 3)[..., None], aligned], dim=1)
    ordered = alignment.align_context(context, dim=1)[..., 0]
    assert ordered.tolist() == [[1, 2, 10, 11, 12], [10, 1, 2, 11, 12], [11, 12, 1, 2, 10]]
