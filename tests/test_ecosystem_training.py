"""Training inside the ecosystem: transformers' Trainer, gradient checkpointing, several processes."""

import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import distributed, multiprocessing
from torch.nn.parallel import DistributedDataParallel
from torch.testing import assert_close
from transformers import DataCollatorForLanguageModeling, Trainer, TrainingArguments

from models import random_ids, tiny_config, tiny_model
from transformer_xl import TransfoXLForSequenceClassification, TransfoXLLMHeadModel, TransfoXLTokenizer

F32 = torch.float32


def trainer(model, folder: Path, rows: list[dict], **options) -> Trainer:
    """A Trainer of six steps of four rows with a constant learning rate, logging each step and saving every third."""
    settings = {
        "output_dir": str(folder),
        "max_steps": 6,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "save_steps": 3,
        "seed": 5,
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
    compute_metrics = options.pop("compute_metrics", None)
    arguments = TrainingArguments(**{**settings, **options})
    return Trainer(model, arguments, train_dataset=rows, eval_dataset=rows[:6], compute_metrics=compute_metrics)


def language_rows(n_rows: int = 16, length: int = 10) -> list[dict]:
    """Rows whose labels are the ids, which the model shifts."""
    return [{"input_ids": row, "labels": row.clone()} for row in random_ids(n_rows, length)]


def classification_rows(n_rows: int = 16, length: int = 10) -> list[dict]:
    """Rows whose class is that of their last token."""
    return [{"input_ids": row, "labels": row[-1] % 3} for row in random_ids(n_rows, length)]


def losses(run: Trainer) -> list[float]:
    return [entry["loss"] for entry in run.state.log_history if "loss" in entry]


def assert_same_parameters(model, other, **tolerance):
    for (name, parameter), twin in zip(model.named_parameters(), other.parameters(), strict=True):
        assert_close(
            parameter, twin, **(tolerance or {"rtol": 0, "atol": 0}), msg=lambda text, name=name: f"{name}: {text}"
        )


def new_model(kind: str, **changes):
    if kind == "language model":
        return tiny_model(dtype=F32, dropout=0.1, dropatt=0.1, **changes)
    return tiny_model(TransfoXLForSequenceClassification, dtype=F32, dropout=0.1, num_labels=3, **changes)


ROWS = {"language model": language_rows(), "classifier": classification_rows()}


@pytest.mark.parametrize("kind", ROWS)
def test_resumed_trainer_equals_the_uninterrupted_one(kind, tmp_path):
    """With dropout, so the state of the random numbers counts too."""
    whole = trainer(new_model(kind), tmp_path, ROWS[kind])
    whole.train()
    assert len(set(losses(whole))) == 6

    resumed = trainer(new_model(kind, seed=9), tmp_path / "resumed", ROWS[kind])
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert losses(resumed) == losses(whole)  # its history begins with the three steps of the checkpoint
    assert_same_parameters(resumed.model, whole.model)
    for target, source in resumed.model.tied_parameters().items():
        assert resumed.model.get_parameter(target) is resumed.model.get_parameter(source)

    loaded = type(whole.model).from_pretrained(tmp_path / "checkpoint-6")
    assert_same_parameters(loaded, whole.model)


def test_trainer_evaluates_a_language_model(tmp_path):
    run = trainer(new_model("language model"), tmp_path, ROWS["language model"], per_device_eval_batch_size=3)
    ids = torch.stack([row["input_ids"] for row in ROWS["language model"][:6]])
    expected = run.model(ids, labels=ids).loss.item()
    assert run.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-5)
    predicted = run.predict(ROWS["language model"][:6])
    assert predicted.predictions.shape == (6, 10, 40)  # the scores alone: memories are left out
    assert_close(torch.from_numpy(predicted.predictions), run.model(ids).logits)


def test_trainer_evaluates_a_classifier(tmp_path):
    def accuracy(prediction):
        return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}

    rows = ROWS["classifier"]
    model = tiny_model(TransfoXLForSequenceClassification, dtype=F32, init_std=0.2, num_labels=3)
    run = trainer(model, tmp_path, rows, compute_metrics=accuracy, max_steps=40, save_strategy="no")
    ids, labels = torch.stack([row["input_ids"] for row in rows]), torch.stack([row["labels"] for row in rows])
    expected = run.model(ids[:6], labels=labels[:6])
    metrics = run.evaluate()
    assert metrics["eval_loss"] == pytest.approx(expected.loss.item(), rel=1e-5)
    assert metrics["eval_accuracy"] == pytest.approx((expected.logits.argmax(-1) == labels[:6]).float().mean().item())
    run.train()
    assert run.evaluate()["eval_accuracy"] > 0.8


def test_accumulated_gradients_equal_those_of_one_batch(tmp_path):
    """Trainer must divide the loss by the number of accumulated batches; it also reports it."""
    options = {"max_steps": 3, "optim": "sgd", "learning_rate": 0.02, "save_strategy": "no", "max_grad_norm": 0}
    runs = []
    for size, n_accumulated in ((4, 1), (1, 4)):
        sizes = {"per_device_train_batch_size": size, "gradient_accumulation_steps": n_accumulated}
        runs.append(trainer(tiny_model(dtype=F32), tmp_path, ROWS["language model"], **sizes, **options))
        runs[-1].train()
    assert losses(runs[1]) == pytest.approx(losses(runs[0]), rel=1e-4)
    assert_same_parameters(runs[1].model, runs[0].model, rtol=1e-4, atol=1e-5)


def test_label_smoothing_shifts_the_labels(tmp_path):
    """Trainer computes this loss itself, from the scores; it must know that the model is a causal one."""
    options = {"label_smoothing_factor": 0.1, "max_steps": 1, "per_device_train_batch_size": 16, "save_strategy": "no"}
    run = trainer(tiny_model(dtype=F32), tmp_path, ROWS["language model"], **options)
    ids = torch.stack([row["input_ids"] for row in ROWS["language model"]])
    log_probs = run.model(ids).logits[:, :-1]
    expected = -0.9 * log_probs.gather(2, ids[:, 1:, None]).mean() - 0.1 * log_probs.mean()
    run.train()
    assert losses(run) == [pytest.approx(expected.item(), rel=1e-5)]


def test_collated_rows_of_several_lengths_count_each_real_target_once():
    """Without a pad token the collator leaves padding among the labels; the attention mask takes it out."""
    words = [f"w{i}" for i in range(36)]
    tokenizer = TransfoXLTokenizer.train(texts=[" ".join(words)], mode="whitespace")
    model = tiny_model(vocab_size=len(tokenizer))
    rows = [random_ids(length, vocab_size=len(tokenizer), seed=length) for length in (3, 7, 10, 4)]
    batch = DataCollatorForLanguageModeling(tokenizer, mlm=False)([{"input_ids": row.tolist()} for row in rows])
    alone = torch.cat([model(row[None], labels=row[None]).losses[0] for row in rows])
    assert len(alone) == 3 + 7 + 10 + 4 - 4
    assert_close(model(**batch).loss, alone.mean())


@pytest.mark.filterwarnings("ignore:.*checkpointing.* is deprecated:FutureWarning")  # 5.17 knows the old name alone
def test_gradient_checkpointing_through_trainer_changes_nothing(tmp_path):
    runs = []
    for is_on in (False, True):
        options = {"gradient_checkpointing": is_on, "max_steps": 3, "save_strategy": "no"}
        runs.append(trainer(new_model("language model"), tmp_path, ROWS["language model"], **options))
        runs[-1].train()
        assert runs[-1].model.transformer.gradient_checkpointing == is_on
    assert losses(runs[0]) == losses(runs[1])
    assert_same_parameters(runs[1].model, runs[0].model)


@pytest.mark.filterwarnings("ignore:.*checkpointing.* is deprecated:FutureWarning")
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("changes", [{}, {"attn_type": 1}, {"same_length": False, "initial_memory": "empty"}], ids=str)
def test_gradient_checkpointing_with_memories_gives_the_same_gradients(implementation, changes):
    model = tiny_model(dropout=0.2, dropatt=0.2, attn_implementation=implementation, **changes).train()
    saving = copy.deepcopy(model)
    saving.gradient_checkpointing_enable()
    segments = random_ids(2, 15).split(5, dim=1)
    outputs = []
    for twin in (model, saving):
        torch.manual_seed(0)
        mems, total = None, 0.0
        for segment in segments:
            output = twin(segment, labels=segment, mems=mems)
            mems, total = output.mems, total + output.loss
        total.backward()
        outputs.append(output)
    assert torch.equal(outputs[0].losses, outputs[1].losses)
    assert all(torch.equal(mem, other) for mem, other in zip(outputs[0].mems, outputs[1].mems, strict=True))
    for (name, parameter), other in zip(model.named_parameters(), saving.parameters(), strict=True):
        assert_close(other.grad, parameter.grad, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.filterwarnings("ignore:.*checkpointing.* is deprecated:FutureWarning")
def test_gradient_checkpointing_recomputes_the_layers():
    model = tiny_model().train()
    counts = []
    for is_on in (False, True):
        if is_on:
            model.gradient_checkpointing_enable()
        calls = []
        hook = model.transformer.layers[0].dec_attn.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        ids = random_ids(2, 5)
        model(ids, labels=ids).loss.backward()
        hook.remove()
        counts.append(len(calls))
    assert counts == [1, 2]


@pytest.mark.filterwarnings("ignore:.*checkpointing.* is deprecated:FutureWarning")
def test_gradient_checkpointing_leaves_evaluation_alone():
    model = tiny_model()
    expected = model(random_ids(2, 5)).logits
    model.gradient_checkpointing_enable()
    assert torch.equal(model(random_ids(2, 5)).logits, expected)
    assert model.generate(random_ids(1, 3), max_new_tokens=4, do_sample=False).shape == (1, 7)


# Several processes.


def train_two_segments(ids: torch.Tensor, div_val: int, wrap=lambda model: model) -> dict[str, torch.Tensor]:
    """Parameters after a step of SGD for each of two segments of five tokens, with memory."""
    torch.manual_seed(0)
    model = TransfoXLLMHeadModel(tiny_config(div_val=div_val)).train()
    wrapped, optimizer, mems = wrap(model), torch.optim.SGD(model.parameters(), lr=0.02), None
    for segment in ids.split(5, dim=1):
        optimizer.zero_grad()
        output = wrapped(segment, labels=segment, mems=mems)
        mems = output.mems
        output.loss.backward()
        optimizer.step()
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def work(rank: int, folder: str, ids: torch.Tensor) -> None:
    """One of two processes: every second row, for two models; what comes out goes to files."""
    store = distributed.FileStore(f"{folder}/store", 2)
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    for div_val in (1, 2):
        parameters = train_two_segments(ids[rank::2], div_val, DistributedDataParallel)
        save_file(parameters, f"{folder}/div-{div_val}-rank-{rank}.safetensors")
    distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_equal_one_when_a_batch_touches_one_cluster_only(tmp_path):
    """No cluster is skipped when it has no target, or the processes would wait for its gradients."""
    ids = random_ids(4, 10, vocab_size=10)  # the first process: the shortlist alone
    ids[1::2] += 10  # the second: the first tail cluster alone
    multiprocessing.spawn(work, args=(str(tmp_path), ids), nprocs=2)
    for div_val in (1, 2):
        ranks = [load_file(tmp_path / f"div-{div_val}-rank-{rank}.safetensors") for rank in range(2)]
        for name, expected in train_two_segments(ids, div_val).items():
            assert torch.equal(ranks[0][name], ranks[1][name]), name
            assert_close(ranks[0][name], expected, rtol=1e-4, atol=1e-5)
