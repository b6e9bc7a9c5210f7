"""The models: golden numbers of old implementations, and equalities between ways to compute the same."""

from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from torch.testing import assert_close

from models import (
    AUTHORS_CASES,
    FIXTURES,
    assert_equal,
    authors_name,
    authors_value,
    load_authors_case,
    random_ids,
    run_segments,
    settings_of_models,
    tiny_config,
    tiny_model,
)
from transformer_xl import (
    TransfoXLForSequenceClassification,
    TransfoXLLMHeadModel,
    TransfoXLModel,
)

HF_CASES = sorted((FIXTURES / "golden/hf-4.35").iterdir())
IMPLEMENTATIONS = ["eager", "sdpa"]

settings.register_profile(
    "models", deadline=None, derandomize=True, max_examples=25, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("models")


def case_id(folder: Path) -> str:
    return folder.name


def gradients_of(model) -> dict[str, torch.Tensor]:
    """Gradients by every name that a parameter goes by."""
    return {name: parameter.grad for name, parameter in model.named_parameters(remove_duplicate=False)}


# --- transformers 4.35.0 -------------------------------------------------------------------------------------------


def load_hf_case(folder: Path, target: Path, implementation: str, cls=TransfoXLLMHeadModel, **changes):
    """A model loaded by `from_pretrained` from a folder as that release wrote it, and the case's numbers."""
    case = load_file(folder / "case.safetensors")
    (target / "config.json").write_text((folder / "config.json").read_text())
    state = {name.removeprefix("state."): value for name, value in case.items() if name.startswith("state.")}
    save_file(state, target / "model.safetensors", metadata={"format": "pt"})
    model, info = cls.from_pretrained(target, attn_implementation=implementation, output_loading_info=True, **changes)
    assert model.config._attn_implementation == implementation
    return model.eval(), case, info


def unnecessary_keys(info) -> list[str]:
    return [*info["missing_keys"], *info["unexpected_keys"], *info["mismatched_keys"]]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("folder", HF_CASES, ids=case_id)
def test_segments_agree_with_transformers_4_35(folder, implementation, tmp_path):
    model, case, info = load_hf_case(folder, tmp_path, implementation)
    assert unnecessary_keys(info) == []
    mems = None
    for s in range(3):
        output = model(case[f"segment{s}.input_ids"], mems=mems, output_hidden_states=True, output_attentions=True)
        mems = output.mems
        assert_equal(output.prediction_scores, case[f"segment{s}.prediction_scores"])
        assert_equal(output.hidden_states[-1], case[f"segment{s}.last_hidden_state"])
        for i, hidden in enumerate(output.hidden_states):
            assert_equal(hidden, case[f"segment{s}.hidden_states.{i}"])
        for i, weights in enumerate(output.attentions):
            assert_equal(weights, case[f"segment{s}.attentions.{i}"])
        assert (mems is None) == (model.config.mem_len == 0)
        for i, mem in enumerate(mems or []):
            assert_equal(mem, case[f"segment{s}.mems.{i}"])


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("folder", HF_CASES, ids=case_id)
def test_losses_and_gradients_agree_with_transformers_4_35(folder, implementation, tmp_path):
    model, case, _ = load_hf_case(folder, tmp_path, implementation)
    mems = model(case["segment0.input_ids"]).mems
    output = model(case["segment1.input_ids"], mems=mems, labels=case["loss.labels"])
    assert_equal(output.losses, case["loss.losses"])
    assert_equal(output.loss, case["loss.mean"])
    output.loss.backward()
    actual = gradients_of(model)
    expected = {name.removeprefix("grad."): value for name, value in case.items() if name.startswith("grad.")}
    assert expected
    for name, gradient in expected.items():
        assert_close(actual[name], gradient, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("folder", [f for f in HF_CASES if f.name != "no-memory"], ids=case_id)
def test_generation_agrees_with_transformers_4_35(folder, implementation, tmp_path):
    model, case, _ = load_hf_case(folder, tmp_path, implementation)
    model.generation_config.eos_token_id = None
    prompt = case["generate.prompt"]
    for name, num_beams in (("generate.greedy", 1), ("generate.beam4", 4)):
        expected = case[name]
        n_new = expected.shape[1] - prompt.shape[1]
        actual = model.generate(prompt, max_new_tokens=n_new, num_beams=num_beams, do_sample=False, pad_token_id=0)
        assert torch.equal(actual, expected), name


@pytest.mark.parametrize("folder", [f for f in HF_CASES if f.name != "adaptive-div1-projected"], ids=case_id)
def test_classification_agrees_with_transformers_4_35(folder, tmp_path):
    model, case, _ = load_hf_case(
        folder, tmp_path, "sdpa", TransfoXLForSequenceClassification, num_labels=4, pad_token_id=0
    )
    model.score.weight.data = case["classify.score.weight"]
    output = model(case["classify.input_ids"], labels=case["classify.labels"])
    assert_equal(output.logits, case["classify.logits"])
    assert_equal(output.loss, case["classify.loss"])


# --- the authors' PyTorch code -------------------------------------------------------------------------------------


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("folder", AUTHORS_CASES, ids=case_id)
def test_segments_and_gradients_agree_with_the_authors_code(folder, implementation, tmp_path):
    model, case, info = load_authors_case(folder, tmp_path, implementation)
    assert unnecessary_keys(info) == []
    mems = None
    for s in range(3):
        output = model(case[f"segment{s}.input_ids"], mems=mems, shift_labels=case[f"segment{s}.targets"])
        mems = output.mems
        assert_equal(output.losses, case[f"segment{s}.losses"])
        for i, mem in enumerate(mems or []):
            assert_equal(mem, case[f"segment{s}.mems.{i}"])
        if s == 1:
            output.loss.backward()
    actual = gradients_of(model)
    expected = {name: value for name, value in case.items() if name.startswith("grad.")}
    assert expected
    for name, gradient in expected.items():
        assert_close(actual[authors_name(name)], authors_value(name, gradient), rtol=1e-4, atol=1e-4)


# --- equalities ----------------------------------------------------------------------------------------------------

LENGTHS = st.lists(st.integers(1, 7), min_size=1, max_size=5)


@given(settings_of_models(same_length=True, tgt_len=9), LENGTHS)
def test_segmenting_does_not_change_results_when_the_span_is_fixed(changes, lengths):
    model = tiny_model(**changes)
    ids = random_ids(2, sum(lengths))
    whole, _ = run_segments(model, ids, [sum(lengths)])
    assert_equal(run_segments(model, ids, lengths)[0], whole)


@given(settings_of_models(), LENGTHS)
def test_cached_equals_uncached_for_the_same_segments(changes, lengths):
    model = tiny_model(**changes)
    ids = random_ids(2, sum(lengths))
    uncached, mems = run_segments(model, ids, lengths)
    with torch.no_grad():
        cached, cache = run_segments(model, ids, lengths, use_cache=True)
    assert_equal(cached, uncached)
    assert cache.get_seq_length() == sum(lengths)
    assert cache.memory_len == mems[0].shape[0]
    # A cache that is primed with memories goes on as they do, with and without gradients.
    more = random_ids(2, 3, seed=9)
    expected = model(more, mems=mems).logits
    assert_equal(model(more, past_key_values=cache).logits, expected)
    assert_equal(model(more, mems=mems, use_cache=True).logits, expected)


@given(settings_of_models(initial_memory="zeros"), st.lists(st.tuples(st.integers(0, 4), st.booleans()), max_size=4))
def test_a_padded_row_gives_what_the_row_alone_gives(changes, rows):
    check_padded_rows(changes, [(0, False), *rows], use_cache=False)


@given(settings_of_models(), st.lists(st.tuples(st.integers(0, 4), st.booleans()), max_size=4))
def test_a_padded_row_gives_what_the_row_alone_gives_with_a_cache(changes, rows):
    check_padded_rows(changes, [(0, False), *rows], use_cache=True)


@given(settings_of_models(initial_memory="empty"), st.lists(st.tuples(st.integers(0, 4), st.booleans()), max_size=4))
def test_a_padded_row_gives_what_the_row_alone_gives_when_the_long_mask_tells_the_past(changes, rows):
    check_padded_rows(changes, [(0, False), *rows], use_cache=False, has_long_mask=True)


@torch.no_grad()
def check_padded_rows(changes, rows, *, use_cache: bool, has_long_mask: bool = False) -> None:
    """Three segments of five slots; each row has its own padding, on its own side, in each of them."""
    model = tiny_model(**changes)
    n_slots, n_segments = 5, 3
    ids, masks = [], []
    for s in range(n_segments):
        ids.append(random_ids(len(rows), n_slots, seed=s))
        mask = torch.ones(len(rows), n_slots, dtype=torch.long)
        for b, (n_padding, is_left) in enumerate(rows):
            n = (n_padding + s * b) % n_slots  # another amount in each segment; at least one token stays
            mask[b, :n] = mask[b, :n] * (not is_left)
            mask[b, n_slots - n :] = mask[b, n_slots - n :] * is_left
        masks.append(mask)

    state, outputs = None, []
    for s in range(n_segments):
        mask = torch.cat(masks[: s + 1], dim=1) if has_long_mask else masks[s]
        kwargs = {"past_key_values": state, "use_cache": True} if use_cache else {"mems": state}
        outputs.append(model(ids[s], attention_mask=mask, **kwargs))
        state = outputs[-1].past_key_values if use_cache else outputs[-1].mems

    for b in range(len(rows)):
        alone, alone_cache = None, None
        for s in range(n_segments):
            real = masks[s][b].bool()
            kwargs = {"past_key_values": alone_cache, "use_cache": True} if use_cache else {"mems": alone}
            expected = model(ids[s][b : b + 1, real], **kwargs)
            alone, alone_cache = expected.mems, expected.past_key_values
            assert_equal(outputs[s].logits[b, real], expected.logits[0])
            if not use_cache:
                for mem, expected_mem in zip(outputs[s].mems, expected.mems, strict=True):
                    assert_equal(mem[-len(expected_mem) :, b], expected_mem[:, 0])


@given(settings_of_models(), st.integers(0, 5), st.booleans())
def test_changing_the_future_changes_nothing(changes, position, has_mems):
    model = tiny_model(**changes)
    ids = random_ids(2, 7)
    mems = model(random_ids(2, 4, seed=5)).mems if has_mems else None
    other = ids.clone()
    other[:, position + 1 :] = (other[:, position + 1 :] + 1) % 40
    expected, actual = model(ids, mems=mems).logits, model(other, mems=mems).logits
    assert torch.equal(actual[:, : position + 1], expected[:, : position + 1])
    assert not torch.equal(actual[:, position + 1 :], expected[:, position + 1 :])


@pytest.mark.parametrize("attn_type", [2, 3])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_absolute_types_see_no_future_and_take_padding(attn_type, implementation):
    model = tiny_model(attn_type=attn_type, mem_len=0, same_length=False, attn_implementation=implementation)
    ids = random_ids(2, 6)
    other = ids.clone()
    other[:, 4:] = (other[:, 4:] + 1) % 40
    assert torch.equal(model(ids).logits[:, :4], model(other).logits[:, :4])
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1]])
    assert_equal(model(ids, attention_mask=mask).logits[1, 2:], model(ids[1:, 2:]).logits[0])
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]])
    assert_equal(model(ids, attention_mask=mask).logits[1, :3], model(ids[1:, :3]).logits[0])


@given(settings_of_models(), st.booleans())
def test_log_probabilities_sum_to_one_and_losses_gather_them(changes, is_shifted):
    model = tiny_model(**changes)
    ids, targets = random_ids(2, 6), random_ids(2, 6, seed=2)
    targets[0, 2] = targets[1, 5] = -100
    output = model(ids, **{"shift_labels" if is_shifted else "labels": targets})
    assert_equal(output.logits.exp().sum(-1), torch.ones(2, 6, dtype=torch.float64))
    scores, wanted = (output.logits, targets) if is_shifted else (output.logits[:, :-1], targets[:, 1:])
    is_target = wanted != -100
    expected = -scores.gather(-1, wanted.clamp(min=0)[..., None])[..., 0] * is_target
    assert output.losses.shape == wanted.shape
    assert_equal(output.losses, expected)
    assert_equal(output.loss, expected[is_target].mean())


@given(settings_of_models(), st.booleans())
def test_arguments_are_not_modified(changes, use_cache):
    model = tiny_model(**changes).train()
    ids, labels = random_ids(2, 5), random_ids(2, 5, seed=3)
    labels[0] = -100
    mask = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]])
    mems = model(random_ids(2, 4, seed=5)).mems
    given_arguments = [ids, labels, mask, *mems]
    copies = [tensor.clone() for tensor in given_arguments]
    model(ids, mems=mems, labels=labels, attention_mask=mask, use_cache=use_cache).loss.backward()
    assert all(torch.equal(tensor, copy) for tensor, copy in zip(given_arguments, copies, strict=True))


@given(settings_of_models())
def test_eager_equals_sdpa_with_gradients_through_memories(changes):
    results = []
    for implementation in IMPLEMENTATIONS:
        model = tiny_model(**{**changes, "attn_implementation": implementation})
        mems = model(random_ids(2, 4, seed=5)).mems
        output = model(random_ids(2, 5), mems=mems, labels=random_ids(2, 5, seed=3))
        output.loss.backward()
        gradients = {name: grad for name, grad in gradients_of(model).items() if grad is not None}
        results.append((output.loss, output.logits, gradients))
    for eager, sdpa in zip(*results, strict=True):
        assert_close(sdpa, eager, rtol=1e-9, atol=1e-9)


@given(settings_of_models())
def test_no_length_mix_gives_nan(changes):
    model = tiny_model(**changes, dtype=torch.float32)
    for mems in (None, [torch.randn(n, 1, model.config.d_model) for n in [1] * model.config.n_layer]):
        for q_len in (1, model.config.mem_len, model.config.mem_len + 3):
            mask = torch.ones(1, q_len, dtype=torch.long)
            mask[0, : q_len // 2] = 0
            for attention_mask in (None, mask, torch.zeros_like(mask)):
                output = model(random_ids(1, q_len), mems=mems, attention_mask=attention_mask)
                assert output.logits.isfinite().all()


# --- behaviour stated by the contract --------------------------------------------------------------------------------


def test_mem_len_zero_with_same_length_is_causal_attention_within_the_segment():
    model = tiny_model(mem_len=0, same_length=True)
    assert_equal(model(random_ids(2, 6)).logits, tiny_model(mem_len=0, same_length=False)(random_ids(2, 6)).logits)
    assert model(random_ids(2, 6)).mems is None
    assert model.init_mems(2) is None


def test_span_that_does_not_count_self_is_one_longer():
    ids = random_ids(1, 9)
    narrow, wide = (tiny_model(mem_len=4, n_layer=1, span_counts_self=counts) for counts in (True, False))
    attentions = [model(ids, output_attentions=True).attentions[0][0, :, -1] for model in (narrow, wide)]
    assert [int((weights[0] > 0).sum()) for weights in attentions] == [4, 5]


def test_gradients_reach_key_value_weights_through_memories_but_not_their_past():
    model = tiny_model(n_layer=1)
    embedded = torch.randn(1, 3, 12, dtype=torch.float64, requires_grad=True)
    mems = model(inputs_embeds=embedded).mems
    assert not any(mem.requires_grad for mem in mems)
    zeros = [torch.zeros_like(mem) for mem in mems]
    weight = model.transformer.layers[0].dec_attn.qkv_net.weight
    gradients = []
    for memory in (mems, zeros):
        model.zero_grad()
        model(random_ids(1, 2), mems=memory, labels=random_ids(1, 2)).loss.backward()
        gradients.append(weight.grad[12:].clone())  # keys and values
    assert not torch.allclose(*gradients)
    assert embedded.grad is None


def test_memories_that_are_passed_in_get_no_gradient():
    model = tiny_model()
    mems = [torch.randn(4, 1, 12, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    model(random_ids(1, 3), mems=mems, labels=random_ids(1, 3)).loss.backward()
    assert all(mem.grad is None for mem in mems)


@pytest.mark.parametrize("pre_lnorm", [False, True])
def test_padding_that_stays_in_a_partial_memory_is_a_zero_vector(pre_lnorm):
    """Four slots of memory where six fit: after a padded segment, padding fills the rest."""
    model = tiny_model(mem_len=6, initial_memory="zeros", pre_lnorm=pre_lnorm)
    mems = [torch.randn(4, 1, 12, dtype=torch.float64) for _ in range(2)]
    mask = torch.tensor([[0, 0, 1]])
    padded = model(random_ids(1, 3), mems=mems, attention_mask=mask)
    alone = model(random_ids(1, 3)[:, 2:], mems=mems)
    for mem, expected in zip(padded.mems, alone.mems, strict=True):
        assert not mem[0].any()
        assert_equal(mem[1:], expected)
    cache = model(random_ids(1, 3), mems=mems, attention_mask=mask, use_cache=True).past_key_values
    ids = random_ids(1, 4, seed=3)
    assert_equal(model(ids, past_key_values=cache).logits, model(ids, mems=padded.mems).logits)


def test_memory_is_the_last_inputs_of_each_layer():
    model = tiny_model(mem_len=4)
    output = model(random_ids(2, 6), output_hidden_states=True)
    for i, mem in enumerate(output.mems):
        assert_equal(mem, output.hidden_states[i][:, -4:].transpose(0, 1))


@pytest.mark.parametrize(("start", "length"), [("zeros", 6), ("empty", 0)])
def test_init_mems_is_what_the_model_starts_with(start, length):
    model = tiny_model(initial_memory=start)
    mems = model.init_mems(3)
    assert [mem.shape for mem in mems] == [(length, 3, 12)] * 2
    ids = random_ids(3, 4)
    assert torch.equal(model(ids, mems=mems).logits, model(ids).logits)


def test_reset_memory_length_is_a_longer_memory_from_then_on():
    model = tiny_model(mem_len=2, same_length=False)
    model.reset_memory_length(5)
    longer = tiny_model(mem_len=5, same_length=False)
    lengths = [3, 3, 3]
    ids = random_ids(1, 9)
    assert_equal(run_segments(model, ids, lengths)[0], run_segments(longer, ids, lengths)[0])
    with pytest.raises(ValueError, match="mem_len=-1 must be at least 0"):
        model.reset_memory_length(-1)
    assert model.config.mem_len == 5


def test_plain_forward_gives_memories_whatever_the_config_says_of_a_cache():
    model = tiny_model(use_cache=True)
    output = model(random_ids(1, 3))
    assert output.mems is not None
    assert output.past_key_values is None
    output = model(random_ids(1, 3), use_cache=True)
    assert output.mems is None
    assert output.past_key_values is not None


@pytest.mark.parametrize(
    ("labels", "fields"), [(False, ["prediction_scores"]), (True, ["losses", "prediction_scores"])]
)
def test_tuple_has_the_documented_order_without_absent_fields(labels, fields):
    model = tiny_model()
    ids = random_ids(1, 3)
    kwargs = {"labels": ids} if labels else {}
    plain = model(ids, **kwargs)
    assert [name for name, _ in plain.items()] == [*fields, "mems", *(["loss"] if labels else [])]
    full = model(ids, output_hidden_states=True, output_attentions=True, **kwargs)
    expected = [*fields, "mems", "hidden_states", "attentions", *(["loss"] if labels else [])]
    assert [name for name, _ in full.items()] == expected
    as_tuple = model(ids, return_dict=False, **kwargs)
    assert isinstance(as_tuple, tuple)
    assert_equal(as_tuple[0], plain[0])
    assert len(as_tuple) == len(plain)
    model.config.return_dict = False
    assert isinstance(model(ids, **kwargs), tuple)


def test_tuples_of_model_and_classifier_have_the_documented_order():
    ids = random_ids(2, 3)
    base = tiny_model(TransfoXLModel)
    output = base(ids, output_hidden_states=True, output_attentions=True)
    assert list(output) == ["last_hidden_state", "mems", "hidden_states", "attentions"]
    assert len(base(ids, return_dict=False)) == 2
    assert list(base(ids, use_cache=True)) == ["last_hidden_state", "past_key_values"]
    classifier = tiny_model(TransfoXLForSequenceClassification)
    output = classifier(ids, labels=torch.tensor([0, 1]), output_hidden_states=True, output_attentions=True)
    assert list(output) == ["loss", "logits", "mems", "hidden_states", "attentions"]
    assert [tuple(x.shape) for x in classifier(ids, return_dict=False)[:1]] == [(2, 2)]


def test_outputs_can_be_asked_for_in_the_config():
    model = tiny_model(output_hidden_states=True, output_attentions=True)
    output = model(random_ids(1, 3))
    assert len(output.hidden_states) == 3
    assert output.attentions[0].shape == (1, 3, 3, 9)


def test_logits_are_the_prediction_scores_by_attribute_and_by_key():
    output = tiny_model()(random_ids(1, 3))
    assert output.logits is output.prediction_scores
    assert output["logits"] is output["prediction_scores"]


@pytest.mark.parametrize(("training", "skip", "present"), [
    (False, None, True), (True, None, False), (True, False, True), (False, True, False),
])  # fmt: skip
def test_log_probabilities_with_labels(training, skip, present):
    model = tiny_model().train(training)
    output = model(random_ids(1, 3), labels=random_ids(1, 3), skip_logits=skip)
    assert (output.logits is not None) == present
    assert model(random_ids(1, 3)).logits is not None


def test_logits_to_keep_are_the_last_ones_or_those_named():
    model = tiny_model()
    ids = random_ids(2, 5)
    whole = model(ids).logits
    assert_equal(model(ids, logits_to_keep=2).logits, whole[:, -2:])
    assert_equal(model(ids, logits_to_keep=torch.tensor([0, 3])).logits, whole[:, [0, 3]])


def test_loss_without_targets_is_a_differentiable_zero():
    model = tiny_model()
    output = model(random_ids(2, 4), labels=torch.full((2, 4), -100))
    assert output.loss == 0
    assert not output.losses.any()
    output.loss.backward()
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())
    assert model(random_ids(2, 1), labels=random_ids(2, 1)).loss == 0


def test_padded_positions_are_no_targets():
    model = tiny_model()
    ids = random_ids(2, 6)
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1]])
    losses = model(ids, attention_mask=mask, labels=ids).losses
    assert_equal(losses[1, 2:], model(ids[1:, 2:], labels=ids[1:, 2:]).losses[0])
    assert not losses[1, :2].any()
    aligned = model(ids, attention_mask=mask, shift_labels=ids).losses
    assert not aligned[1, :2].any()
    assert aligned[1, 2:].all()


def test_attentions_of_a_padded_batch_lie_where_the_tokens_lie():
    model = tiny_model(mem_len=3)
    ids = random_ids(1, 5)
    mems = [torch.randn(3, 1, 12, dtype=torch.float64) for _ in range(2)]
    alone = model(ids[:, :3], mems=mems, output_attentions=True).attentions
    right = model(ids, mems=mems, attention_mask=torch.tensor([[1, 1, 1, 0, 0]]), output_attentions=True).attentions
    shuffled = ids[:, [3, 0, 1, 4, 2]]
    mixed = model(
        shuffled, mems=mems, attention_mask=torch.tensor([[0, 1, 1, 0, 1]]), output_attentions=True
    ).attentions
    for expected, padded_right, padded_anywhere in zip(alone, right, mixed, strict=True):
        assert_equal(padded_right[:, :, :3, :6], expected)
        assert not padded_right[:, :, 3:].any()
        assert not padded_right[:, :, :, 6:].any()
        assert_equal(padded_anywhere[:, :, [1, 2, 4]][..., [0, 1, 2, 4, 5, 7]], expected)


def test_dropout_acts_on_the_position_signal_too():
    model = tiny_model(dropout=0.5, n_layer=1).train()
    signals = []
    handle = model.transformer.layers[0].dec_attn.r_net.register_forward_pre_hook(
        lambda _, args: signals.append(args[0])
    )
    model(random_ids(1, 200))
    handle.remove()
    share = (signals[0] == 0).double().mean()
    assert 0.4 < share < 0.6


def test_shaw_repeats_the_farthest_kept_row_beyond_the_table_and_beyond_the_clamp():
    model = tiny_model(attn_type=1, tgt_len=2, mem_len=3, clamp_len=-1, n_layer=1)  # five rows
    q, rows = torch.randn(1, 3, 1, 4, dtype=torch.float64), model.transformer.r_emb[0]

    def scores(kept: list[int]) -> torch.Tensor:
        return torch.einsum("bnqh,knh->bnqk", q, rows[kept]) + model.transformer.r_bias[0, kept].T[:, None]

    assert_equal(model.transformer._shared(0, 9).table.scores(q, 9), scores([0, 0, 0, 0, 0, 1, 2, 3, 4]))
    assert_equal(model.transformer._shared(0, 2).table.scores(q, 2), scores([3, 4]))
    model.config.clamp_len = 3
    assert_equal(model.transformer._shared(0, 9).table.scores(q, 9), scores([2, 2, 2, 2, 2, 2, 2, 3, 4]))


def test_al_rfou_positions_end_with_the_segment_and_longer_ones_are_refused():
    model = tiny_model(attn_type=3, mem_len=0, tgt_len=4)
    with pytest.raises(ValueError, match="the segment has 5 tokens but must have at most 4"):
        model(random_ids(1, 5))


def test_sampled_softmax_trains_and_evaluates_with_the_full_one():
    model = tiny_model(sample_softmax=8, cutoffs=[], div_val=1)
    ids = random_ids(2, 6)
    full = model(ids, labels=ids).loss
    torch.manual_seed(0)
    model.train()
    sampled = model(ids, labels=ids).loss
    assert not torch.allclose(full, sampled)
    sampled.backward()
    weight = model.transformer.word_emb.emb_layers[0].weight
    assert weight is model.crit.out_layers[0].weight
    assert weight.grad.is_sparse


@pytest.mark.parametrize("layer", [0, 1, 2])
@pytest.mark.parametrize("div_val", [1, 2])
@pytest.mark.parametrize("new_size", [45, 37])
def test_resized_vocabulary_works_saves_and_loads(layer, div_val, new_size, tmp_path):
    model = tiny_model(div_val=div_val, dtype=torch.float32)
    ids = random_ids(2, 5, vocab_size=5)
    before = model(ids).logits
    embedding = model.resize_token_embeddings(new_size, layer=layer)
    change = new_size - 40
    assert embedding is model.get_input_embeddings()
    assert model.config.vocab_size == new_size
    assert model.config.cutoffs == [cutoff + change * (i >= layer) for i, cutoff in enumerate([10, 20])]
    after = model(ids).logits
    assert after.shape == (2, 5, new_size)
    odds = after[..., :5] - before[..., :5]
    assert_equal(odds, odds[..., :1].expand_as(odds))  # the first tokens keep their odds
    output_layer = model.crit.out_layers[0 if div_val == 1 else layer]
    assert output_layer.weight is model.get_input_embeddings().emb_layers[0 if div_val == 1 else layer].weight
    model.save_pretrained(tmp_path)
    again, info = TransfoXLLMHeadModel.from_pretrained(tmp_path, output_loading_info=True)
    assert unnecessary_keys(info) == []
    assert_equal(again.eval()(ids).logits, after)


def test_resizing_refuses_what_leaves_a_cluster_empty():
    model = tiny_model()
    with pytest.raises(ValueError, match="new_num_tokens=20 must be at least 21: cluster 2 keeps one token"):
        model.resize_token_embeddings(20)
    with pytest.raises(ValueError, match="layer=3 must be a cluster"):
        model.resize_token_embeddings(50, layer=3)
    assert model.resize_token_embeddings(41, pad_to_multiple_of=8).n_token == 48


def test_resizing_starts_rows_as_initialisation_does_on_request():
    torch.manual_seed(0)
    model = tiny_model(TransfoXLLMHeadModel, init_std=0.5)
    model.resize_token_embeddings(4040, mean_resizing=False)
    rows = model.crit.out_layers[2].weight[20:]
    assert 0.45 < rows.std() < 0.55
    assert not model.crit.out_layers[2].bias[20:].any()


@pytest.mark.parametrize("init", ["normal", "uniform"])
@pytest.mark.parametrize("attn_type", [0, 1, 2, 3])
def test_initialisation_is_as_documented(init, attn_type):
    """Every parameter of every kind, through the library's own construction."""
    torch.manual_seed(0)
    size = {
        "d_model": 96,
        "d_embed": 96,
        "n_head": 6,
        "d_head": 16,
        "d_inner": 128,
        "vocab_size": 400,
        "cutoffs": [100, 200],
    }
    stds = {"init_std": 0.03, "proj_init_std": 0.2, "init_range": 0.4}
    mem_len = 0 if attn_type in (2, 3) else 30
    config = tiny_config(
        **size, **stds, init=init, attn_type=attn_type, mem_len=mem_len, tgt_len=40, untie_r=attn_type == 0
    )
    model = TransfoXLLMHeadModel(config)
    for name, parameter in model.named_parameters():
        values = parameter.detach()
        if "layer_norm.weight" in name:
            expected_mean, expected_std = 1.0, 0.03
        elif "emb_projs" in name or "out_projs" in name:
            expected_mean, expected_std = 0.0, 0.2
        elif name.endswith("bias") and "r_r_bias" not in name and "r_w_bias" not in name:
            assert not values.any(), name
            continue
        else:
            expected_mean, expected_std = 0.0, 0.03 if init == "normal" else 0.8 / 12**0.5
        error = 5 * expected_std / values.numel() ** 0.5
        assert abs(values.mean() - expected_mean) < error, name
        assert abs(values.std() - expected_std) < error, name
        if init == "uniform" and expected_std > 0.2:
            assert values.abs().max() <= 0.4, name


@pytest.mark.parametrize(("num_labels", "labels", "problem_type"), [
    (1, torch.tensor([0.5, -1.0]), None),
    (3, torch.tensor([2, 0]), None),
    (3, torch.tensor([[0.0, 1.0, 1.0], [1.0, 0.0, 0.0]]), None),
    (2, torch.tensor([[0.1, 1.5], [2.0, 0.0]]), "regression"),
])  # fmt: skip
def test_classifier_losses_follow_the_problem_type_without_writing_it(num_labels, labels, problem_type):
    model = tiny_model(TransfoXLForSequenceClassification, num_labels=num_labels, problem_type=problem_type, d_embed=8)
    output = model(random_ids(2, 4), labels=labels)
    assert output.logits.shape == (2, num_labels)
    if problem_type == "regression" or num_labels == 1:
        expected = F.mse_loss(output.logits, labels.view(2, num_labels).double())
    elif labels.dim() == 1:
        expected = F.cross_entropy(output.logits, labels)
    else:
        expected = F.binary_cross_entropy_with_logits(output.logits, labels.double())
    assert_equal(output.loss, expected)
    assert model.config.problem_type == problem_type


def test_classifier_reads_the_last_real_token():
    model = tiny_model(TransfoXLForSequenceClassification, num_labels=3)
    ids = random_ids(3, 6) % 39 + 1  # 0 is free
    alone = [model(ids[:1]).logits, model(ids[1:2, :4]).logits, model(ids[2:, 2:]).logits]
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0], [0, 0, 1, 1, 1, 1]])
    assert_equal(model(ids, attention_mask=mask).logits, torch.cat(alone))
    scores = model.score(model.transformer(ids).last_hidden_state)
    assert_equal(model(ids).logits, scores[:, -1])
    model.config.pad_token_id = 0
    padded = torch.where(mask == 1, ids, 0)
    scores = model.score(model.transformer(padded).last_hidden_state)
    assert_equal(model(padded).logits, scores[torch.arange(3), [5, 3, 5]])
    embedded = model.transformer.word_emb(ids)
    assert_equal(model(inputs_embeds=embedded).logits, model.score(model.transformer(ids).last_hidden_state)[:, -1])
