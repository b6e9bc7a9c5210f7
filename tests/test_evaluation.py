"""Evaluation against loops: over tokens, over segments, over windows."""

import json
import math
import re
from itertools import pairwise

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from models import FIXTURES, assert_equal, random_ids, tiny_model
from transformer_xl import TransfoXLLMHeadModel, evaluation
from transformer_xl.evaluation import Evaluation, context_lengths, evaluate, start_reading

TEXT = random_ids(38)
GOLDEN = sorted((FIXTURES / "golden/hf-4.35").iterdir())


@torch.no_grad()
def losses_one_token_at_a_time(model, tokens):
    """Negative log-probabilities read off `prediction_scores`, memories handed on by hand."""
    mems, losses = None, []
    for token, following in pairwise(tokens):
        output = model(token.view(1, 1), mems=mems)
        losses.append(-output.prediction_scores[0, 0, following].item())
        mems = output.mems
    return losses


@pytest.mark.parametrize("initial_memory", ["zeros", "empty"])
@pytest.mark.parametrize("attn_type", [0, 1])
@pytest.mark.parametrize("tgt_len", [1, 3, 37, 64])
def test_the_loss_is_that_of_reading_token_by_token(attn_type, initial_memory, tgt_len):
    model = tiny_model(initial_memory=initial_memory, attn_type=attn_type)
    expected = losses_one_token_at_a_time(model, TEXT)
    result = evaluate(model, TEXT, tgt_len=tgt_len)
    assert (result.n_tokens, result.n_cold_starts) == (37, 1)
    assert result.loss_nats == pytest.approx(sum(expected) / 37, abs=1e-10)
    by_position = [sum(losses) / len(losses) for q in range(min(tgt_len, 37)) if (losses := expected[q::tgt_len])]
    assert list(result.loss_by_position) == pytest.approx(by_position, abs=1e-10)


@pytest.mark.parametrize("folder", GOLDEN, ids=lambda folder: folder.name)
def test_a_golden_model_over_a_long_text_gives_what_a_loop_over_losses_gives(folder, tmp_path):
    """Weights of transformers 4.35; the loop hands hidden-state memories on, `evaluate` uses the cache."""
    case = load_file(folder / "case.safetensors")
    state = {name.removeprefix("state."): value for name, value in case.items() if name.startswith("state.")}
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    model = TransfoXLLMHeadModel.from_pretrained(tmp_path).eval()
    text = random_ids(1, 401, vocab_size=json.loads((folder / "config.json").read_text())["vocab_size"], seed=3)
    mems, losses = None, []
    with torch.no_grad():
        for start in range(0, 400, 16):
            inputs, targets = text[:, start : start + 16], text[:, start + 1 : start + 17]
            output = model(inputs, mems=mems, shift_labels=targets)
            mems = output.mems
            losses.append(output.losses[0])
    result = evaluate(model, text[0], tgt_len=16)
    assert result.n_tokens == 400
    assert result.loss_nats == pytest.approx(torch.cat(losses).double().mean().item(), abs=1e-5)


def test_with_a_fixed_span_the_loss_does_not_depend_on_tgt_len():
    model = tiny_model(same_length=True)
    losses = [evaluate(model, TEXT, tgt_len=tgt_len).loss_nats for tgt_len in (1, 2, 5, 8, 21, 100)]
    assert losses == pytest.approx([losses[0]] * 6, abs=1e-10)


def test_without_a_fixed_span_the_loss_depends_on_tgt_len():
    model = tiny_model(same_length=False)
    assert abs(evaluate(model, TEXT, tgt_len=5).loss_nats - evaluate(model, TEXT, tgt_len=20).loss_nats) > 1e-3


@pytest.mark.parametrize("batch_size", [2, 5, 36, 37])
def test_a_batch_differs_from_one_row_by_its_cold_starts_alone(batch_size):
    """Each part is a text of its own; parts overlap by the token that is context for one and target for the other."""
    model = tiny_model()
    ends = [37 * part // batch_size for part in range(batch_size + 1)]
    parts = [TEXT[start : end + 1] for start, end in pairwise(ends)]
    alone = [evaluate(model, part, tgt_len=4) for part in parts]
    result = evaluate(model, TEXT, batch_size=batch_size, tgt_len=4)
    assert result.n_tokens == sum(part.n_tokens for part in alone) == 37
    assert result.n_cold_starts == batch_size
    expected = sum(part.loss_nats * part.n_tokens for part in alone) / 37
    assert result.loss_nats == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("attn_type", [0, 1, 2, 3])
def test_without_memory_every_segment_stands_alone(attn_type):
    model = tiny_model(mem_len=0, attn_type=attn_type)
    segments = [TEXT[start : start + 7] for start in range(0, 37, 6)]
    losses = [evaluate(model, segment, tgt_len=6).loss_nats * (len(segment) - 1) for segment in segments]
    result = evaluate(model, TEXT, tgt_len=6)
    assert result.loss_nats == pytest.approx(sum(losses) / 37, abs=1e-10)
    assert result.n_cold_starts == 7
    assert evaluate(model, TEXT, batch_size=4, tgt_len=4).n_cold_starts == 12  # parts of 9, 9, 9 and 10 targets


@pytest.mark.parametrize("attn_type", [0, 2, 3])
@pytest.mark.parametrize("ext_len", [1, 4, 11])
def test_an_extension_is_read_again_before_each_segment(ext_len, attn_type):
    """The authors' Penn Treebank evaluation: only the last `tgt_len` positions count."""
    model = tiny_model(mem_len=0, attn_type=attn_type, tgt_len=5, ext_len=ext_len)
    losses = []
    with torch.no_grad():
        for start in range(0, 37, 5):
            first, end = max(0, start - ext_len), min(start + 5, 37)
            found = model(TEXT[None, first:end], shift_labels=TEXT[None, first + 1 : end + 1]).losses[0]
            losses.append(found[start - first :])
    result = evaluate(model, TEXT)
    assert result.loss_nats == pytest.approx(torch.cat(losses).mean().item(), abs=1e-10)
    assert (result.n_tokens, result.n_cold_starts) == (37, 1)
    assert evaluate(model, TEXT, ext_len=ext_len).loss_nats == result.loss_nats
    assert evaluate(model, TEXT, ext_len=0).n_cold_starts == 8
    assert evaluate(model, TEXT, batch_size=3).n_cold_starts == 3


@pytest.mark.parametrize("mem_len", [0, 6])
@pytest.mark.parametrize("initial_memory", ["zeros", "empty"])
@pytest.mark.parametrize(("batch_size", "tgt_len"), [(1, 4), (3, 2), (3, 50), (9, 5)])
def test_unrelated_sentences_are_read_as_if_each_stood_alone(batch_size, tgt_len, initial_memory, mem_len):
    model = tiny_model(mem_len=mem_len, initial_memory=initial_memory)
    places = np.array([0, 4, 5, 17, 20, 29, 37])
    alone = [evaluate(model, TEXT[start : end + 1], tgt_len=tgt_len) for start, end in pairwise(places)]
    result = evaluate(model, TEXT, sentences=places, batch_size=batch_size, tgt_len=tgt_len)
    assert result.n_tokens == 37
    assert result.n_cold_starts == sum(sentence.n_cold_starts for sentence in alone)
    expected = sum(sentence.loss_nats * sentence.n_tokens for sentence in alone) / 37
    assert result.loss_nats == pytest.approx(expected, abs=1e-10)


def test_memory_can_be_left_out_for_once():
    model = tiny_model()
    without = tiny_model(mem_len=0)
    assert evaluate(model, TEXT, mem_len=0).loss_nats == evaluate(without, TEXT).loss_nats
    assert abs(evaluate(model, TEXT).loss_nats - evaluate(without, TEXT).loss_nats) > 1e-3


@pytest.mark.parametrize(
    "changes", [{"mem_len": 3}, {"mem_len": 11}, {"clamp_len": 2}, {"same_length": False}, {"mem_len": 0}]
)
def test_other_lengths_are_those_of_a_model_that_has_them(changes):
    model = tiny_model()
    result = evaluate(model, TEXT, **changes)
    assert result.loss_nats == evaluate(tiny_model(**changes), TEXT).loss_nats
    assert (model.config.mem_len, model.config.clamp_len, model.config.same_length) == (6, -1, True)


def test_shaws_table_is_read_from_its_end_whatever_the_memory():
    """A longer memory repeats the farthest row, a shorter one leaves rows unused."""
    model = tiny_model(attn_type=1, mem_len=6)  # 14 rows
    for mem_len in (3, 12):
        other = tiny_model(attn_type=1, mem_len=mem_len)
        weights, n_rows = model.state_dict(), other.config.n_position_rows
        for name in ("transformer.r_emb", "transformer.r_bias"):
            table = weights[name]
            farthest = table[:, :1].expand(-1, 20, *table.shape[2:])
            weights[name] = torch.cat([farthest, table], dim=1)[:, -n_rows:]
        other.load_state_dict(weights)
        expected = evaluate(other, TEXT, tgt_len=8).loss_nats
        assert evaluate(model, TEXT, tgt_len=8, mem_len=mem_len).loss_nats == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("error", [{"mem_len": -1}, {"clamp_len": 2.5}, {"tgt_len": 0}, {"batch_size": 38}])
def test_the_configuration_is_put_back_after_an_error(error):
    model = tiny_model().train()
    before = model.config.to_dict()
    with pytest.raises((TypeError, ValueError)):
        evaluate(model, TEXT, **{"mem_len": 4, **error})
    assert model.config.to_dict() == before
    assert model.training


@pytest.mark.parametrize("cutoffs", [[], [10, 20]])
def test_temperature_divides_the_log_probabilities(cutoffs):
    model = tiny_model(cutoffs=cutoffs, div_val=1)
    scores = model(TEXT[None, :-1]).prediction_scores[0] / 1.7
    with torch.no_grad():
        expected = -scores.log_softmax(-1).gather(1, TEXT[1:, None]).mean().item()
    assert evaluate(model, TEXT, tgt_len=64, temperature=1.7).loss_nats == pytest.approx(expected, abs=1e-10)
    assert evaluate(model, TEXT, batch_size=5, temperature=1.7).n_tokens == 37


@pytest.mark.parametrize("attn_type", [0, 1, 2, 3])
@pytest.mark.parametrize(("window_len", "batch_size"), [(1, 4), (5, 1), (5, 3), (5, 50), (8, 32)])
def test_a_sliding_window_predicts_one_token_from_the_window_before_it(attn_type, window_len, batch_size):
    """Al-Rfou et al. 2019: each window computed alone, its last position alone counts."""
    model = tiny_model(attn_type=attn_type, mem_len=0)
    losses = []
    with torch.no_grad():
        for place in range(1, 38):
            window = TEXT[max(0, place - window_len) : place]
            losses.append(-model(window[None]).logits[0, -1, TEXT[place]].item())
    result = evaluate(model, TEXT, tgt_len=window_len, sliding_window=True, batch_size=batch_size)
    assert result.loss_nats == pytest.approx(sum(losses) / 37, abs=1e-10)
    assert (result.n_tokens, result.n_cold_starts, result.loss_by_position) == (37, 1, ())


def test_a_window_longer_than_the_text_sees_all_of_it():
    model = tiny_model(mem_len=0)
    whole = evaluate(model, TEXT, tgt_len=37).loss_nats
    assert evaluate(model, TEXT, tgt_len=1000, sliding_window=True).loss_nats == pytest.approx(whole, abs=1e-10)


def test_a_sliding_window_takes_temperature():
    model = tiny_model(mem_len=0)
    whole = evaluate(model, TEXT, tgt_len=37, temperature=0.6).loss_nats
    result = evaluate(model, TEXT, tgt_len=37, temperature=0.6, sliding_window=True)
    assert result.loss_nats == pytest.approx(whole, abs=1e-10)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32"])
def test_a_memory_mapped_array_is_as_good_as_a_tensor(tmp_path, dtype):
    np.save(tmp_path / "test.npy", TEXT.numpy().astype(dtype))
    tokens = np.load(tmp_path / "test.npy", mmap_mode="r")
    model = tiny_model()
    assert evaluate(model, tokens, batch_size=3).loss_nats == evaluate(model, TEXT, batch_size=3).loss_nats


def test_the_model_keeps_its_mode_and_gets_no_gradients():
    model = tiny_model(dropout=0.5).train()
    first, second = (evaluate(model, TEXT, batch_size=2, tgt_len=5).loss_nats for _ in range(2))
    assert first == second  # no dropout
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("changes", [{"same_length": False}, {"same_length": True}, {"attn_type": 1}, {"mem_len": 0}])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_segments_that_are_read_at_once_count_as_if_read_one_by_one(changes, batch_size, monkeypatch):
    model, lengths = tiny_model(**changes), []
    model.register_forward_pre_hook(lambda *call: lengths.append(call[1][0].shape[1]))
    results = {}
    for at_once in (1, 30):
        monkeypatch.setattr(evaluation, "TOKENS_AT_ONCE", at_once)
        results[at_once] = evaluate(model, TEXT, tgt_len=4, batch_size=batch_size)
    one_by_one, several = results.values()
    assert several.loss_nats == pytest.approx(one_by_one.loss_nats, abs=1e-10)
    assert several.loss_by_position == pytest.approx(one_by_one.loss_by_position, abs=1e-10)
    assert (several.n_tokens, several.n_cold_starts) == (one_by_one.n_tokens, one_by_one.n_cold_starts)
    assert max(lengths) == (4 if changes == {"mem_len": 0} else 28 if batch_size == 1 else 8)


def test_progress_counts_every_token(monkeypatch):
    monkeypatch.setattr(evaluation, "TOKENS_AT_ONCE", 12)
    counts = []
    evaluate(tiny_model(), TEXT, batch_size=3, tgt_len=4, on_progress=counts.append)
    assert sum(counts) == 37
    assert len(counts) == 4


def test_bfloat16_gives_nearly_the_same():
    expected = evaluate(tiny_model(dtype=torch.float32, init_std=0.1), TEXT).loss_nats
    result = evaluate(tiny_model(dtype=torch.bfloat16, init_std=0.1), TEXT)
    assert result.loss_nats == pytest.approx(expected, abs=0.05)


def test_reading_gives_each_loss_in_its_place():
    model = tiny_model()
    expected = torch.tensor(losses_one_token_at_a_time(model, TEXT), dtype=torch.float64)
    read = start_reading(model)
    with torch.no_grad():
        losses = [
            read(TEXT[None, place : place + 5], TEXT[None, place + 1 : place + 6], None) for place in range(0, 35, 5)
        ]
    assert_equal(torch.cat(losses, dim=1)[0], expected[:35])


@pytest.mark.parametrize(
    ("tokens", "options", "message"),
    [
        (TEXT[:0], {}, "tokens holds 0 but must hold at least 2: the first is only context for the second."),
        (TEXT[:1], {}, "tokens holds 1 but must hold at least 2: the first is only context for the second."),
        (TEXT, {"batch_size": 38}, "batch_size=38 must be from 1 to 37, the targets of the text: lower it."),
        (TEXT, {"tgt_len": 0}, "tgt_len=0 must be at least 1."),
        (TEXT, {"temperature": 0.0}, "temperature=0.0 must be positive and finite: 1 leaves the model as it is."),
        (TEXT, {"temperature": math.nan}, "temperature=nan must be positive and finite: 1 leaves the model as it is."),
        (TEXT, {"mem_len": -1}, "mem_len=-1 must be at least 0."),
        (
            TEXT,
            {"sliding_window": True},
            "sliding_window=True must not go with mem_len=6, as a window sees its own tokens only: pass 0 for it, or "
            "leave sliding_window out.",
        ),
        (
            TEXT,
            {"sliding_window": True, "mem_len": 0, "ext_len": 3},
            "sliding_window=True must not go with ext_len=3, as a window sees its own tokens only: pass 0 for it",
        ),
        (TEXT, {"ext_len": 3}, "ext_len=3 must be 0 with memory (mem_len=6): pass mem_len=0."),
        (TEXT, {"ext_len": -1}, "ext_len=-1 must be at least 0."),
        (
            TEXT,
            {"sentences": [0, 9], "mem_len": 0, "sliding_window": True},
            "sliding_window=True must not go with sentences, whose ends it passes over: leave one out.",
        ),
        (
            TEXT,
            {"sentences": [0, 9], "mem_len": 0, "ext_len": 2},
            "ext_len=2 must not go with sentences, whose ends it passes over: leave one out.",
        ),
        (
            torch.tensor([1, 40]),
            {},
            "tokens holds 40 but must lie in 0 to 39 (vocab_size=40), or be -100 to be ignored",
        ),
        (torch.tensor([40, 1]), {}, "tokens holds 40 but must lie in 0 to 39 (vocab_size=40): use the model's own"),
        (
            torch.tensor([1, 40]),
            {"sliding_window": True, "mem_len": 0},
            "tokens holds 40 but must lie in 0 to 39 (vocab_size=40)",
        ),
    ],
)
def test_impossible_evaluations_are_refused(tokens, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        evaluate(tiny_model(), tokens, **options)


@pytest.mark.parametrize("attn_type", [2, 3])
def test_absolute_positions_take_no_memory(attn_type):
    message = f"mem_len=4 must be 0 for attn_type={attn_type}"
    with pytest.raises(ValueError, match=message):
        evaluate(tiny_model(attn_type=attn_type, mem_len=0), TEXT, mem_len=4)


def test_learned_positions_take_no_longer_segments():
    message = "the segment has 9 tokens but must have at most 8, the learned positions of attn_type=3"
    for sliding_window in (False, True):
        with pytest.raises(ValueError, match=re.escape(message)):
            evaluate(tiny_model(attn_type=3, mem_len=0), TEXT, tgt_len=9, sliding_window=sliding_window)


def test_lengths_hold_within_the_block():
    model = tiny_model()
    with context_lengths(model, mem_len=9, same_length=False):
        assert (model.config.mem_len, model.config.clamp_len, model.config.same_length) == (9, -1, False)
    assert (model.config.mem_len, model.config.same_length) == (6, True)


def test_units():
    result = Evaluation(loss_nats=math.log(8), n_tokens=10, n_cold_starts=1, seconds=0.5)
    assert result.bits_per_token == pytest.approx(3)
    assert result.perplexity == pytest.approx(8)
    assert result.tokens_per_s == 20
    assert Evaluation(loss_nats=1000.0, n_tokens=1, n_cold_starts=1, seconds=1.0).perplexity == math.inf
