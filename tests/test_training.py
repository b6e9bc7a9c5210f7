"""The pieces of training: optimisers, learning rate, loop, interruption, records."""

import json
import math
import re
import signal
import threading
import time

import pytest
import torch
from torch.testing import assert_close

from transformer_xl import TransfoXLConfig, TransfoXLLMHeadModel
from transformer_xl.data.streams import ring_segment
from transformer_xl.training.interrupt import stop_on_interrupt
from transformer_xl.training.loop import TrainingOptions, training_steps
from transformer_xl.training.metrics import MetricsLog
from transformer_xl.training.optimisation import Muon, cosine_with_warmup, make_optimizers, orthogonalised


def tiny_model(**changes):
    torch.manual_seed(0)
    sizes = {"d_model": 8, "d_embed": 8, "n_head": 2, "d_head": 4, "d_inner": 12, "n_layer": 2, "mem_len": 6}
    settings = {"vocab_size": 5, "cutoffs": [], "div_val": 1, "dropout": 0.0, "eos_token_id": None, **sizes, **changes}
    return TransfoXLLMHeadModel(TransfoXLConfig(**settings))


def options(**changes):
    defaults = {"batch_size": 2, "segment_len": 6, "max_steps": 60, "max_minutes": 5.0, "lr": 0.02, "warmup_steps": 5}
    return TrainingOptions(**{**defaults, **changes})


@pytest.mark.parametrize("shape", [(3, 6, 4), (2, 4, 4), (5, 3, 9)])
def test_orthogonalised_matrices_keep_their_singular_vectors_and_lose_their_sizes(shape):
    generator = torch.Generator().manual_seed(0)
    matrices = torch.randn(shape, generator=generator, dtype=torch.float64)
    result = orthogonalised(matrices, n_iterations=10)
    assert result.shape == matrices.shape
    u, s, vh = torch.linalg.svd(matrices, full_matrices=False)
    changed = u.mT @ result @ vh.mT  # in the old singular vectors: diagonal
    assert_close(changed, torch.diag_embed(changed.diagonal(dim1=-2, dim2=-1)), atol=1e-9, rtol=0)
    assert s.amax() / s.amin() > 3
    assert changed.diagonal(dim1=-2, dim2=-1).min() > 0.6
    assert changed.diagonal(dim1=-2, dim2=-1).max() < 1.3


def test_muon_steps_a_stacked_weight_matrix_by_matrix():
    generator = torch.Generator().manual_seed(0)
    start, gradient = torch.randn(2, 12, 4, generator=generator)
    stacked = torch.nn.Parameter(start.clone())
    parts = [torch.nn.Parameter(part.clone()) for part in start.chunk(3)]
    for weights, grads in (([(stacked, 3)], [gradient]), ([(part, 1) for part in parts], gradient.chunk(3))):
        for (weight, _), grad in zip(weights, grads, strict=True):
            weight.grad = grad.clone()
        optimizer = Muon(weights, lr=0.1, weight_decay=0.5)
        optimizer.step()
        optimizer.step()
    assert_close(stacked.data, torch.cat([part.data for part in parts]))
    assert not torch.equal(stacked.data, start)


def test_muon_steps_are_as_large_as_asked_whatever_the_gradient():
    """Root mean square of a step: lr * 0.2 for singular values of 1 (Liu et al. 2025); decay comes on top."""
    weight = torch.nn.Parameter(torch.zeros(16, 64))
    weight.grad = torch.randn(16, 64, generator=torch.Generator().manual_seed(0)) * 1e-6
    Muon([(weight, 1)], lr=0.1).step()
    assert 0.2 * 0.1 * 0.6 < weight.square().mean().sqrt().item() < 0.2 * 0.1 * 1.3


def test_every_parameter_has_exactly_one_optimizer():
    model = tiny_model(vocab_size=20, cutoffs=[5], div_val=2)
    held = [
        p
        for optimizer in make_optimizers(model, lr=1, weight_decay=0)
        for g in optimizer.param_groups
        for p in g["params"]
    ]
    assert sorted(map(id, held)) == sorted(id(parameter) for parameter in model.parameters())
    muon = make_optimizers(model, lr=1, weight_decay=0)[0]
    names = {id(p): name for name, p in model.named_parameters()}
    assert {names[id(p)].split(".", 3)[3] for p in muon.param_groups[0]["params"]} == {
        "dec_attn.qkv_net.weight", "dec_attn.r_net.weight", "dec_attn.o_net.weight",
        "pos_ff.CoreNet.0.weight", "pos_ff.CoreNet.3.weight",
    }  # fmt: skip


def test_the_learning_rate_rises_then_falls_to_nothing():
    rates = [cosine_with_warmup(step / 100, step=step, warmup_steps=10) for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[:10] == sorted(rates[:10])
    assert rates[9:] == sorted(rates[9:], reverse=True)
    assert max(rates) > 0.95
    assert rates[50] == pytest.approx(0.5)
    assert rates[100] == pytest.approx(0)


def test_training_learns_what_only_memory_can_tell():
    """A text with period 8 in segments of 1: without memory the four 0s cannot be told apart."""
    text = torch.tensor([0, 0, 0, 0, 1, 2, 3, 4] * 20)
    last = None
    model = tiny_model()
    for step in training_steps(model, text, options(segment_len=1, batch_size=8, max_steps=150)):
        last = step
    assert last.loss < 0.1
    assert not last.loss.requires_grad


def test_each_step_takes_the_next_segment_and_the_memory_of_the_last(monkeypatch):
    model = tiny_model()
    text = torch.randint(5, (50,), generator=torch.Generator().manual_seed(0))
    calls, outputs = [], []
    forward = model.forward

    def recorded(*args, **kwargs):
        output = forward(*args, **kwargs)
        calls.append((args[0], kwargs["mems"], kwargs["shift_labels"]))
        outputs.append(output)
        return output

    monkeypatch.setattr(model, "forward", recorded)
    for _ in training_steps(model, text, options(max_steps=3)):
        pass
    for number, (inputs, mems, targets) in enumerate(calls):
        expected = ring_segment(text, step=number, batch_size=2, segment_len=6)
        assert torch.equal(inputs, expected[0])
        assert torch.equal(targets, expected[1])
        assert mems is (outputs[number - 1].mems if number else None)


def test_the_same_seed_gives_the_same_training():
    text = torch.randint(5, (50,), generator=torch.Generator().manual_seed(0))
    runs = [[step.loss.item() for step in training_steps(tiny_model(), text, options(max_steps=5))] for _ in range(2)]
    assert runs[0] == runs[1]
    assert len(runs[0]) == 5


def test_training_ends_by_the_clock_with_the_learning_rate_down(monkeypatch):
    clock = iter(range(0, 1000, 10))
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    text = torch.randint(5, (50,))
    steps = list(training_steps(tiny_model(), text, options(max_steps=1000, max_minutes=1.0, warmup_steps=1)))
    assert [step.number for step in steps] == [1, 2, 3, 4, 5, 6]
    assert [step.progress for step in steps] == pytest.approx([1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 1])
    assert [step.lr for step in steps] == pytest.approx(
        [0.02 * 0.5 * (1 + math.cos(math.pi * k / 6)) for k in range(6)]
    )


@pytest.mark.parametrize("name", ["batch_size", "segment_len", "max_steps", "max_minutes", "lr", "clip_norm"])
def test_impossible_options_are_refused(name):
    with pytest.raises(ValueError, match=re.escape(f"{name}=0 must be positive.")):
        options(**{name: 0})


def test_the_first_interrupt_is_a_request_and_the_second_an_exception():
    with stop_on_interrupt() as stop:
        assert not stop.is_set()
        signal.raise_signal(signal.SIGINT)
        assert stop.is_set()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_outside_the_main_thread_interrupts_stay_as_they_are():
    handlers = []

    def enter():
        with stop_on_interrupt() as stop:
            handlers.append((signal.getsignal(signal.SIGINT), stop.is_set()))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert handlers == [(signal.default_int_handler, False)]


def test_metrics_are_in_the_file_as_soon_as_they_are_written(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("an older run\n")
    with MetricsLog(path) as log:
        log.write("train", step=1, loss_nats=2.5)
        log.write("valid", step=1, loss_nats=2.6)
        assert [json.loads(line) for line in path.read_text().splitlines()] == [
            {"kind": "train", "step": 1, "loss_nats": 2.5},
            {"kind": "valid", "step": 1, "loss_nats": 2.6},
        ]
        assert log.of("valid") == [{"kind": "valid", "step": 1, "loss_nats": 2.6}]
