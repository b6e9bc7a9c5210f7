"""The pieces of training: optimisers, learning rate, loop, interruption, records."""

import json
import math
import signal
import threading
import time

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch.testing import assert_close

from models import AUTHORS_CASES, authors_name, authors_value, load_authors_case
from transformer_xl import TransfoXLConfig, TransfoXLLMHeadModel
from transformer_xl.data.streams import OrderedStream, Segment
from transformer_xl.training.averaging import WeightAverage
from transformer_xl.training.interrupt import stop_on_interrupt
from transformer_xl.training.loop import ACCELERATE_PRECISION, PartMemory, Training
from transformer_xl.training.metrics import MetricsLog
from transformer_xl.training.optimisation import (
    LearningRate,
    Muon,
    clip_gradients,
    make_optimizers,
    orthogonalised,
    set_lr,
)
from transformer_xl.training.recipe import (
    AveragingTable,
    OptimizerTable,
    RegularisationTable,
    ScheduleTable,
    make_recipe,
)
from transformer_xl.training.regularisation import LockedDropout, PenaltyMeter, regularise


def tiny_model(**changes):
    torch.manual_seed(0)
    sizes = {"d_model": 8, "d_embed": 8, "n_head": 2, "d_head": 4, "d_inner": 12, "n_layer": 2, "mem_len": 6}
    settings = {"vocab_size": 5, "cutoffs": [], "div_val": 1, "dropout": 0.0, "eos_token_id": None, **sizes, **changes}
    return TransfoXLLMHeadModel(TransfoXLConfig(**settings))


def recipe(**tables):
    given = {
        "title": "a test",
        "data": {"path": "nowhere"},
        "model": {},
        "train": {"batch_size": 2, "max_steps": 60},
        "optimizer": {"lr": 0.02, "clip_norm": 1.0},
        "schedule": {"warmup_steps": 5},
    }
    return make_recipe({**given, **{name: {**given.get(name, {}), **values} for name, values in tables.items()}})


def training(model, tokens, wanted, **stream):
    stream = {"batch_size": wanted.train.batch_size, "segment_len": 6, **stream}
    return Training(wanted, model, OrderedStream(tokens, **stream), Accelerator(cpu=True))


def random_text(length=50):
    return torch.randint(5, (length,), generator=torch.Generator().manual_seed(0))


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


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd", "adagrad", "muon"])
@pytest.mark.parametrize("changes", [{"vocab_size": 20, "cutoffs": [5], "div_val": 2}, {"sample_softmax": 2}])
def test_every_parameter_has_exactly_one_optimizer(name, changes):
    model = tiny_model(**changes)
    optimizers = make_optimizers(model, OptimizerTable(name=name))
    held = [p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]
    assert sorted(map(id, held)) == sorted(id(parameter) for parameter in model.parameters())


def test_muon_takes_the_matrices_of_the_layers():
    model = tiny_model()
    names = {id(p): name for name, p in model.named_parameters()}
    muon = make_optimizers(model, OptimizerTable(name="muon"))[0]
    assert {names[id(p)].split(".", 3)[3] for p in muon.param_groups[0]["params"]} == {
        "dec_attn.qkv_net.weight", "dec_attn.r_net.weight", "dec_attn.o_net.weight",
        "pos_ff.CoreNet.0.weight", "pos_ff.CoreNet.3.weight",
    }  # fmt: skip


def test_embeddings_have_their_own_share_of_the_learning_rate():
    model = tiny_model()
    (adam,) = make_optimizers(model, OptimizerTable(name="adam", embedding_lr_factor=2.0))
    set_lr([adam], 0.1)
    embedding = model.transformer.word_emb.emb_layers[0].weight
    rates = {id(p): group["lr"] for group in adam.param_groups for p in group["params"]}
    assert rates.pop(id(embedding)) == 0.2
    assert set(rates.values()) == {0.1}


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd", "adagrad", "muon"])
def test_a_sampled_softmax_changes_only_the_rows_that_were_drawn(name):
    model = tiny_model(vocab_size=2000, sample_softmax=4)
    before = model.transformer.word_emb.emb_layers[0].weight.detach().clone()
    running = training(model, random_text(), recipe(optimizer={"name": name, "lr": 0.1}))
    running.step()
    changed = (model.transformer.word_emb.emb_layers[0].weight != before).any(1)
    assert 1 <= changed.sum() <= 5 + 2 * 4


def test_clipping_shortens_long_gradients_only_and_counts_sparse_rows_once():
    dense, table = torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(4, 1))
    for limit, expected in ((1.0, 1 / 13), (100.0, 1.0)):
        dense.grad = torch.tensor([3.0, 4.0])
        rows = torch.tensor([[1, 1, 2]])
        table.grad = torch.sparse_coo_tensor(rows, torch.tensor([[5.0], [7.0], [0.0]]), (4, 1))
        assert clip_gradients([dense, table], limit).item() == pytest.approx(13)  # of 3, 4 and 5 + 7
        assert_close(dense.grad, torch.tensor([3.0, 4.0]) * expected, rtol=1e-5, atol=0)
        assert_close(table.grad.to_dense()[:, 0], torch.tensor([0.0, 12.0, 0.0, 0.0]) * expected, rtol=1e-5, atol=0)


def rates(steps=101, averaging=None, **schedule):
    rate = LearningRate(ScheduleTable(**schedule), 1.0, averaging or AveragingTable())
    return [rate.at(step, step / (steps - 1)) for step in range(steps)]


def test_the_cosine_rises_then_falls_to_its_end():
    course = rates(warmup_steps=10)
    assert course[0] == pytest.approx(0.1)
    assert course[:10] == sorted(course[:10])
    assert course[9:] == sorted(course[9:], reverse=True)
    assert course[50] == pytest.approx(0.5)
    assert course[100] == pytest.approx(0)
    assert rates(lr_min=0.2)[100] == pytest.approx(0.2)
    assert rates(lr_min=0.2, decay_steps=50)[25] == pytest.approx(0.6)
    assert rates(lr_min=0.2, decay_steps=50)[50:] == [pytest.approx(0.2)] * 51


def test_the_other_courses_are_what_their_names_say():
    assert rates(name="constant", warmup_steps=4) == pytest.approx([0.25, 0.5, 0.75, *[1.0] * 98])
    course = rates(name="inverse_sqrt", warmup_steps=16)
    assert course[15] == pytest.approx(1)
    assert course[64] == pytest.approx(0.5)
    averaging = AveragingTable(name="uniform", start_step=3, lr_factor=0.5)
    assert rates(name="constant", averaging=averaging)[2:4] == [1.0, 0.5]


def test_the_plateau_is_cut_where_the_loss_no_longer_falls():
    rate = LearningRate(ScheduleTable(name="plateau", plateau_factor=0.1, plateau_patience=1, lr_min=0.005), 1.0)
    told = []
    for loss in (5.0, 4.0, 4.5, 4.4, 4.3, 4.2, 3.0, 3.1, 3.2, 3.3, 3.4):
        rate.tell(loss)
        told.append(round(rate.at(10, 0.5), 6))
    assert told == [1, 1, 1, 0.1, 0.1, 0.01, 0.01, 0.01, 0.005, 0.005, 0.005]
    other = LearningRate(ScheduleTable(name="plateau"), 1.0)
    other.restore(rate.state())
    assert other == LearningRate(ScheduleTable(name="plateau"), 1.0, AveragingTable(), rate.plateau, 3.0, rate.n_worse)


def test_the_uniform_average_is_the_mean_of_all_weights_since_its_start():
    model = tiny_model()
    wanted = recipe(averaging={"name": "uniform", "start_step": 2}, train={"max_steps": 6})
    running, seen = training(model, random_text(), wanted), []
    for _ in range(6):
        running.step()
        seen.append(model.crit.out_layers[0].bias.detach().clone())
    last = seen[-1]
    with running.weights_for_use() as averaged:
        assert not averaged.training
        assert_close(averaged.crit.out_layers[0].bias.detach(), torch.stack(seen[2:]).mean(0))
    assert torch.equal(model.crit.out_layers[0].bias, last)
    assert model.training


def test_the_exponential_average_forgets_the_initial_weights():
    weight = torch.nn.Linear(1, 1, bias=False)
    average = WeightAverage(weight, AveragingTable(name="exponential", decay=0.9))
    expected = None
    for step in range(40):
        weight.weight.data.fill_(step)
        average.update()
        expected = step if expected is None else expected + max(0.1, 1 / (step + 1)) * (step - expected)
    assert average.means["weight"].item() == pytest.approx(expected)


def test_locked_dropout_has_one_mask_for_all_positions_and_keeps_the_mean():
    torch.manual_seed(0)
    dropout = LockedDropout(0.25)
    dropped = dropout(torch.ones(50, 7, 40))
    assert (dropped == dropped[:, :1]).all()
    assert {round(value, 4) for value in dropped.unique().tolist()} == {0.0, 1.3333}
    assert dropped.mean().item() == pytest.approx(1, abs=0.05)
    assert not torch.equal(dropped[0], dropped[1])
    assert torch.equal(dropout.eval()(torch.ones(2, 3, 4)), torch.ones(2, 3, 4))


def test_word_dropout_takes_a_word_out_at_all_its_places():
    model = tiny_model(vocab_size=200)
    regularise(model, RegularisationTable(word_dropout=0.3))
    ids = torch.arange(200).repeat(2)[None]
    whole = model.transformer.word_emb.eval()(ids)
    torch.manual_seed(0)
    dropped = model.transformer.word_emb.train()(ids)
    factor = (dropped / whole)[0].mean(-1)
    assert torch.equal(factor[:200], factor[200:])
    assert {round(value, 4) for value in factor.tolist()} == {0.0, 1.4286}
    assert 0.2 < (factor == 0).float().mean() < 0.4


def test_penalties_are_of_the_last_layer_before_its_dropout_on_new_positions_only():
    model = tiny_model(dropout=0.5, mem_len=0).train()
    meter = PenaltyMeter(model, RegularisationTable(activation_penalty=2.0, change_penalty=3.0))
    caught = []
    model.transformer.layers[-1].register_forward_hook(lambda *call: caught.append(call[2][0]))
    model(random_text(12).view(2, 6))
    states = caught[0][:, -4:]
    expected = 2 * states.square().mean() + 3 * (states[:, 1:] - states[:, :-1]).square().mean()
    assert_close(meter.penalty(4), expected)
    assert meter.penalty(4) is None  # one call, one penalty


def test_regularising_leaves_nothing_in_the_files(tmp_path):
    model = tiny_model()
    names = set(model.state_dict())
    options = {"word_dropout": 0.1, "input_dropout": 0.6, "attention_dropout": 0.2, "feed_forward_dropout": 0.2}
    regularise(model, RegularisationTable(**options, output_dropout=0.5))
    assert set(model.state_dict()) == names
    model.train()
    ids = random_text(12).view(2, 6)
    assert not torch.equal(model(ids).logits, model(ids).logits)
    model.eval()
    model.save_pretrained(tmp_path)
    assert_close(TransfoXLLMHeadModel.from_pretrained(tmp_path)(ids).logits, model(ids).logits)


def test_training_learns_what_only_memory_can_tell():
    """A text with period 8 in segments of 1: without memory the four 0s cannot be told apart."""
    text = torch.tensor([0, 0, 0, 0, 1, 2, 3, 4] * 20)
    wanted = recipe(train={"batch_size": 8, "max_steps": 150}, optimizer={"name": "muon", "lr": 0.02})
    running = training(tiny_model(initial_memory="empty"), text, wanted, segment_len=1)
    steps = [running.step() for _ in range(150)]
    assert steps[-1].loss < 0.1
    assert not steps[-1].loss.requires_grad
    assert [step.number for step in steps] == list(range(1, 151))
    assert steps[-1].progress == 1


def literal_training(model, segments, lr):
    """Adam by hand, memories carried by hand; losses of the steps."""
    means = {name: (torch.zeros_like(p), torch.zeros_like(p)) for name, p in model.named_parameters()}
    losses, mems = [], None
    for step, (inputs, targets) in enumerate(segments, start=1):
        model.zero_grad()
        output = model(inputs, mems=mems, shift_labels=targets)
        output.loss.backward()
        mems = output.mems
        losses.append(output.loss.item())
        norm = torch.cat([p.grad.flatten() for p in model.parameters()]).norm()
        for name, parameter in model.named_parameters():
            gradient = parameter.grad * min(1.0, 0.5 / norm)
            first, second = means[name]
            first.mul_(0.9).add_(0.1 * gradient)
            second.mul_(0.99).add_(0.01 * gradient**2)
            change = first / (1 - 0.9**step) / ((second / (1 - 0.99**step)).sqrt() + 1e-8)
            parameter.data -= lr * change
    return losses


@pytest.mark.parametrize("accumulation", [1, 2])
def test_steps_are_those_of_the_literal_loop_also_in_parts(accumulation):
    text = random_text(100)
    reader = OrderedStream(text, batch_size=4, segment_len=6)
    segments = [reader.next_segment()[:2] for _ in range(5)]
    expected_model, model = tiny_model(), tiny_model()
    expected = literal_training(expected_model.train(), segments, lr=0.02)
    wanted = recipe(
        train={"batch_size": 4, "accumulation": accumulation},
        optimizer={"betas": [0.9, 0.99], "clip_norm": 0.5},
        schedule={"name": "constant", "warmup_steps": 0},
    )
    running = training(model, text, wanted)
    losses = [running.step().loss.item() for _ in range(5)]
    assert losses == pytest.approx(expected, rel=1e-5)
    for (name, one), two in zip(model.named_parameters(), expected_model.parameters(), strict=True):
        assert_close(one, two, rtol=1e-4, atol=1e-5, msg=name)


class OneSegment:
    """A stream of one segment."""

    epochs = 0.0

    def __init__(self, inputs, targets):
        self.segment = Segment(inputs, targets, 0, None)

    def next_segment(self):
        return self.segment

    def state(self):
        return {}

    def restore(self, state):
        assert not state


@pytest.mark.parametrize("name", ["sgd", "adam"])
@pytest.mark.parametrize("folder", AUTHORS_CASES, ids=lambda folder: folder.name)
def test_one_step_from_the_authors_weights_is_the_authors_step(folder, name, tmp_path):
    """Their loss and gradients are recorded; the step that follows from them is worked out here."""
    model, case, _ = load_authors_case(folder, tmp_path)
    wanted = recipe(
        train={"batch_size": 3},
        optimizer={"name": name, "lr": 0.1, "eps": 1e-3, "clip_norm": 0.25},
        schedule={"name": "constant", "warmup_steps": 0},
    )
    stream = OneSegment(case["segment1.input_ids"], case["segment1.targets"])
    running = Training(wanted, model, stream, Accelerator(cpu=True))
    if model.config.mem_len:
        mems = [case[f"segment0.mems.{i}"] for i in range(model.config.n_layer)]
        running._parts = [PartMemory(mems)]
    before = {key: parameter.detach().clone() for key, parameter in model.named_parameters()}
    step = running.step()
    assert_close(step.loss, case["segment1.losses"].mean(), rtol=1e-5, atol=1e-5)
    gradients = {authors_name(key): authors_value(key, value) for key, value in case.items() if key.startswith("grad.")}
    norm = torch.cat([gradient.flatten() for gradient in gradients.values()]).norm()
    assert_close(step.gradient_norm, norm, rtol=1e-4, atol=1e-4)
    for key, parameter in model.named_parameters():
        gradient = gradients[key] * min(1.0, 0.25 / norm)
        change = gradient if name == "sgd" else gradient / (gradient.abs() + 1e-3)
        assert_close(parameter.detach(), before[key] - 0.1 * change, rtol=1e-4, atol=1e-4, msg=key)


def test_varied_lengths_scale_the_learning_rate():
    wanted = recipe(data={"varied_lengths": True}, schedule={"name": "constant", "warmup_steps": 0})
    running = training(tiny_model(tgt_len=20), random_text(400), wanted, segment_len=20, varied=True)
    steps = [running.step() for _ in range(6)]
    assert len({step.n_tokens for step in steps}) > 1
    for step in steps:
        assert step.lr == pytest.approx(0.02 * (step.n_tokens / 2) / 20)


@pytest.mark.parametrize("initial_memory", ["zeros", "empty"])
def test_a_row_that_is_reset_is_a_row_that_has_just_started(initial_memory):
    """Two rows with memory, one of which is reset, against each of them alone."""
    model = tiny_model(initial_memory=initial_memory).double().eval()
    ids = torch.randint(5, (2, 18), generator=torch.Generator().manual_seed(1))
    part = PartMemory()
    segments = ids.split(6, dim=1)
    losses = []
    for i, inputs in enumerate(segments):
        part.begin(torch.tensor([False, i == 1]), has_empty_start=initial_memory == "empty")
        output = model(inputs, mems=part.mems, shift_labels=inputs, attention_mask=part.mask(inputs))
        part.end(output.mems, 6)
        losses.append(output.losses)
    fresh_mems, carried_mems = None, None
    for i, inputs in enumerate(segments):
        carried = model(inputs[:1], mems=carried_mems, shift_labels=inputs[:1])
        carried_mems = carried.mems
        fresh_mems = None if i == 1 else fresh_mems
        fresh = model(inputs[1:], mems=fresh_mems, shift_labels=inputs[1:])
        fresh_mems = fresh.mems
        assert_close(losses[i], torch.cat([carried.losses, fresh.losses]))


def test_memory_ends_before_the_tokens_that_are_read_again():
    """Segments with context and memory see what one long text sees, whose first layers' inputs they repeat."""
    model = tiny_model(n_layer=1, mem_len=4, ext_len=3, initial_memory="empty", same_length=False).double().eval()
    text = torch.randint(5, (1, 14), generator=torch.Generator().manual_seed(0))
    first = model(text[:, :6], ext_len=3)
    assert len(first.mems[0]) == 3
    embedded = model.transformer.word_emb(text).transpose(0, 1)
    assert_close(first.mems[0], embedded[:3])
    second = model(text[:, 3:12], mems=first.mems, ext_len=3)
    assert_close(second.mems[0], embedded[5:9])


def test_ext_len_reads_context_again_and_loses_on_new_tokens_only():
    model = tiny_model(mem_len=0, ext_len=4, tgt_len=6)
    running = training(model, random_text(), recipe(), ext_len=4)
    seen = []
    model.register_forward_pre_hook(
        lambda _module, arguments, options: seen.append((arguments[0].shape[1], options["shift_labels"])),
        with_kwargs=True,
    )
    for _ in range(3):
        running.step()
    assert [length for length, _ in seen] == [6, 10, 10]
    assert (seen[2][1][:, :4] == -100).all()
    assert (seen[2][1][:, 4:] != -100).all()


def test_the_same_seed_gives_the_same_training():
    losses = []
    for _ in range(2):
        running = training(tiny_model(dropout=0.2), random_text(), recipe())
        losses.append([running.step().loss.item() for _ in range(5)])
    assert losses[0] == losses[1]


def test_training_ends_by_the_clock_with_the_learning_rate_down(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    wanted = recipe(train={"max_steps": 1000, "max_minutes": 1.0}, schedule={"warmup_steps": 0})
    running, steps = training(tiny_model(), random_text(), wanted), []
    while running.progress < 1:
        steps.append(running.step())
        now[0] += 10
    assert [step.lr for step in steps] == pytest.approx(
        [0.02 * 0.5 * (1 + math.cos(math.pi * k / 6)) for k in range(6)]
    )


def test_gradient_checkpointing_and_bfloat16_train():
    for changes in ({"gradient_checkpointing": True}, {"precision": "bfloat16"}):
        model, text = tiny_model(), torch.tensor([0, 0, 1, 2, 3, 4] * 20)
        wanted = recipe(train=changes)
        accelerator = Accelerator(cpu=True, mixed_precision=ACCELERATE_PRECISION[wanted.train.precision])
        running = Training(wanted, model, OrderedStream(text, batch_size=2, segment_len=6), accelerator)
        losses = [running.step().loss.item() for _ in range(60)]
        assert losses[-1] < 0.5 * losses[0]
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
        AcceleratorState._reset_state(reset_partial_state=True)  # the next one has another precision


@pytest.fixture
def interruptible():
    """Ctrl-C interrupts, also where the tests run in the background of a shell, which makes it do nothing."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_the_first_interrupt_is_a_request_and_the_second_an_exception():
    with stop_on_interrupt() as stop:
        assert not stop.is_set()
        signal.raise_signal(signal.SIGINT)
        assert stop.is_set()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_request_of_a_scheduler_counts_like_one_from_the_keyboard():
    before = signal.getsignal(signal.SIGTERM)
    with stop_on_interrupt() as stop:
        signal.raise_signal(signal.SIGTERM)
        assert stop.is_set()
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.usefixtures("interruptible")
def test_outside_the_main_thread_interrupts_stay_as_they_are():
    handlers = []

    def enter():
        with stop_on_interrupt() as stop:
            handlers.append((signal.getsignal(signal.SIGINT), stop.is_set()))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert handlers == [(signal.default_int_handler, False)]


def test_a_log_that_goes_on_keeps_what_was_before_and_drops_what_a_kill_cut_off(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"kind": "train", "step": 1}\n{"kind": "train", "step": 2}\n{"kind": "test", "step": 2}\n{"kin')
    with MetricsLog(path, last_step=2) as log:
        log.write("train", step=3)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3]
    with MetricsLog(path, last_step=1, is_silent=True) as log:
        log.write("train", step=2)
        assert [record["step"] for record in log.records] == [1, 2]
    assert len(path.read_text().splitlines()) == 3


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
