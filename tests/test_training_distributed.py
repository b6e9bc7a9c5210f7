"""Training by several processes: they are started by torchrun, on the CPU, and speak by gloo.

What they reach is compared with what one process reaches, which other tests look after.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tomlkit
import torch
from rich.console import Console
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from distributed_worker import cut
from transformer_xl.data.corpus import tiny_shakespeare
from transformer_xl.training.checkpoints import checkpoints
from transformer_xl.training.interrupt import stop_on_interrupt
from transformer_xl.training.recipe import make_recipe
from transformer_xl.training.run import run_training

WORKER = Path(__file__).with_name("distributed_worker.py")
MODEL = {
    "n_layer": 2, "d_model": 16, "d_embed": 16, "n_head": 2, "d_head": 8, "d_inner": 24, "cutoffs": [10, 20],
    "div_val": 2, "tgt_len": 8, "mem_len": 12, "clamp_len": -1, "same_length": False, "dropout": 0.0,
    "initial_memory": "empty",
}  # fmt: skip
PLAIN = {
    "title": "a test",
    "data": {"path": "", "mode": "characters"},
    "model": MODEL,
    "train": {"batch_size": 8, "max_steps": 6},
    "optimizer": {"lr": 0.01, "clip_norm": 0.1},  # gradients are about twice as long
    "schedule": {"warmup_steps": 2},
    "evaluation": {"every": 3, "batch_size": 4},
    "checkpoints": {"every": 3, "keep": 9},
    "log": {"every": 1, "tensorboard": False},
}
VARIANTS = {
    "plain": {"averaging": {"name": "exponential", "decay": 0.8}},
    "accumulated": {"train": {"accumulation": 2}, "data": {"roll": True, "varied_lengths": True}},
    # The number of targets of a process changes from step to step; 3 parts cannot be shared out in evaluation.
    "sentences": {"data": {"mode": "words", "line_end": "sentence"}, "evaluation": {"batch_size": 3}},
    "fsdp": {
        "train": {"accumulation": 2, "parallel": "fsdp"},
        "averaging": {"name": "uniform", "start_step": 2, "lr_factor": 0.5},
    },
    "dropped": {"model": {"dropout": 0.2, "dropatt": 0.1}},
}
ROUNDING = 3e-6  # of a loss in nats: records have 6 digits, and float32 sums depend on their order


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A folder with the text; prepared texts are kept in it, too."""
    folder = tmp_path_factory.mktemp("distributed")
    (folder / "plays.txt").write_text(tiny_shakespeare()[:6000], encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRANSFORMER_XL_CACHE", str(folder / "cache"))
        patch.setenv("OMP_NUM_THREADS", "1")
        yield folder


def tables(base, name, **more):
    """The recipe of a variant, with more changes."""
    recipe = json.loads(json.dumps(PLAIN))
    recipe["data"]["path"] = str(base / "plays.txt")
    for changes in (VARIANTS[name], more):
        for table, values in changes.items():
            recipe[table] = {**recipe.get(table, {}), **values}
    return recipe


def torchrun(n_processes, *command, restarts=0):
    """The words that start a command on several processes."""
    options = ["--standalone", "--nproc-per-node", str(n_processes), "--max-restarts", str(restarts)]
    return [sys.executable, "-m", "torch.distributed.run", *options, *map(str, command)]


def launch(folder, n_processes, jobs):
    """Do jobs with several processes; gives what each process reports of each."""
    folder.mkdir()
    listed = [{"resume": False, "folder": str(folder / name), **job} for name, job in jobs.items()]
    (folder / "jobs.json").write_text(json.dumps(listed), encoding="utf-8")
    done = subprocess.run(torchrun(n_processes, WORKER, folder), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    reports = [json.loads((folder / f"process-{rank}.json").read_text()) for rank in range(n_processes)]
    return dict(zip(jobs, zip(*(report["errors"] for report in reports), strict=True), strict=True)), reports


def go_on(recipe, source):
    """A job that takes up a run at its first checkpoint."""
    return {"recipe": recipe, "source": str(source), "resume": True}


@pytest.fixture(scope="module")
def one(base):
    """The folder of the runs of one process."""
    for name in ("plain", "accumulated", "sentences", "fsdp"):
        run_training(make_recipe(tables(base, name)), base / "one" / name, resume=False, console=Console(quiet=True))
    return base / "one"


@pytest.fixture(scope="module")
def two(base, one):
    """The folder of the runs of two processes, their errors, and their reports."""
    jobs = {name: {"recipe": tables(base, name)} for name in VARIANTS}
    for name in ("dropped", "fsdp"):
        jobs[f"{name}-again"] = go_on(tables(base, name), base / "two" / name)
    for name in ("plain", "sentences", "fsdp"):
        jobs[f"{name}-after-one"] = go_on(tables(base, name), one / name)
    jobs["uneven"] = {"recipe": tables(base, "plain", train={"batch_size": 9})}
    jobs["sampled"] = {"recipe": tables(base, "fsdp", model={"sample_softmax": 4, "cutoffs": []})}
    jobs["disagreed"] = {
        "recipe": tables(base, "plain"),
        "others": {"recipe": tables(base, "plain", train={"max_steps": 7})},
    }
    jobs["unseen"] = {**go_on(tables(base, "plain"), one / "plain"), "others": {"folder": str(base / "other-disk")}}
    (base / "blocked").mkdir()
    (base / "blocked" / "checkpoints").touch()
    jobs["blocked"] = {"recipe": tables(base, "plain"), "folder": str(base / "blocked"), "resume": True}
    errors, reports = launch(base / "two", 2, jobs)
    return base / "two", errors, reports


def losses(folder):
    """What was recorded of a run: for each step and kind the loss in nats."""
    records = map(json.loads, (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return {(record["kind"], record["step"]): record["loss_nats"] for record in records}


def tensors(folder, group):
    """A group of tensors of the last checkpoint."""
    return load_file(checkpoints(folder)[-1] / f"{group}.safetensors")


def assert_same_curve(folder, expected):
    """Equal losses to rounding, and weights that are as near as those allow."""
    assert losses(folder) == pytest.approx(losses(expected), abs=ROUNDING)
    assert len(losses(folder)) == 9
    one, two = tensors(folder, "weights"), tensors(expected, "weights")
    assert one.keys() == two.keys()
    assert all(torch.allclose(one[name], two[name], atol=1e-4) for name in one)


def assert_bit_for_bit(folder, expected):
    """Everything equal."""
    assert losses(folder) == losses(expected)
    for path in checkpoints(expected)[-1].glob("*.safetensors"):
        one, two = tensors(folder, path.stem), load_file(path)
        assert one.keys() == two.keys()
        assert all(torch.equal(one[name], two[name]) for name in one), path.stem


@pytest.mark.parametrize("name", ["plain", "accumulated", "sentences", "fsdp"])
def test_two_processes_have_the_losses_of_one(name, one, two):
    """Also clipping, averaging, evaluation, and adaptive softmax whose clusters no process meets in each segment."""
    folder, errors, _ = two
    assert errors[name] == (None, None)
    assert_same_curve(folder / name, one / name)
    assert json.loads((folder / name / "result.json").read_text())["processes"] == 2


def test_clipping_and_the_mean_weights_had_something_to_do(one):
    """Without which the test before would say less."""
    for name in ("plain", "fsdp"):
        lines = (one / name / "metrics.jsonl").read_text().splitlines()
        norms = [record["gradient_norm"] for record in map(json.loads, lines) if record["kind"] == "train"]
        assert min(norms) > PLAIN["optimizer"]["clip_norm"]
        weights, model = tensors(one / name, "weights"), checkpoints(one / name)[-1] / "model" / "model.safetensors"
        assert not torch.equal(load_file(model)["crit.out_layers.0.bias"], weights["crit.out_layers.0.bias"])


@pytest.mark.parametrize("name", ["plain", "fsdp"])
def test_the_checkpoint_of_two_processes_is_a_whole_model_for_one(name, one, two):
    folders = [checkpoints(runs / name)[-1] / "model" for runs in (one, two[0])]
    expected, found = (AutoModelForCausalLM.from_pretrained(folder) for folder in folders)
    assert type(found).__name__ == "TransfoXLLMHeadModel"
    assert len({(folder / "config.json").read_bytes() for folder in folders}) == 1
    for parameter, other in zip(found.parameters(), expected.parameters(), strict=True):
        assert torch.allclose(parameter, other, atol=1e-4)


@pytest.mark.parametrize("name", ["dropped", "fsdp"])
def test_a_resumed_run_of_as_many_processes_is_bit_for_bit_the_same(name, two):
    folder, errors, _ = two
    assert errors[f"{name}-again"] == (None, None)
    assert_bit_for_bit(folder / f"{name}-again", folder / name)


def test_processes_drop_out_different_things(two):
    random = tensors(two[0] / "dropped", "random")["cpu"]
    assert not torch.equal(random[0], random[1])


@pytest.mark.parametrize("name", ["plain", "sentences", "fsdp"])
def test_two_processes_take_up_the_run_of_one(name, one, two):
    folder, errors, _ = two
    assert errors[f"{name}-after-one"] == (None, None)
    assert_same_curve(folder / f"{name}-after-one", one / name)


@pytest.mark.parametrize("name", ["plain", "sentences", "fsdp"])
def test_one_process_takes_up_the_run_of_two(name, base, one, two, tmp_path):
    cut(two[0] / name, tmp_path / "run")
    run_training(make_recipe(tables(base, name)), tmp_path / "run", resume=True, console=Console(quiet=True))
    assert_same_curve(tmp_path / "run", one / name)


@pytest.mark.skipif(sys.platform != "linux", reason="threads are counted in /proc")
def test_no_thread_of_the_last_sums_outlives_its_process_group(two):
    """Else it may meet the end of the interpreter, which aborts the process (pytorch/pytorch#190489)."""
    _, _, reports = two
    assert [report["ended_threads"] for report in reports] == [2, 2]


def test_only_the_first_process_writes(base, two):
    _, _, reports = two
    written = [[path for path in report["changed"] if path.startswith(str(base))] for report in reports]
    assert any(path.endswith("metrics.jsonl") for path in written[0])
    assert written[1] == []


ERRORS = {
    "uneven": "ValueError: train.batch_size=9 must be a multiple of 2, 2 processes times train.accumulation=1.",
    "sampled": "ValueError: model.sample_softmax=4 must be 0 with 2 processes, which cannot add its sparse gradients "
    "up (but on CPUs with tie_word_embeddings=true and train.parallel='ddp'): start one process, or set it to 0.",
    "disagreed": "ValueError: recipe is not the same for process 1 as for process 0: all machines must have the same "
    "recipe and text, and --output-dir must be on a disk that they share.",
    "unseen": "ValueError: checkpoint is not the same for process 1 as for process 0: all machines must have the same "
    "recipe and text, and --output-dir must be on a disk that they share.",
}


@pytest.mark.parametrize("name", ERRORS)
def test_what_cannot_be_done_is_refused_by_all_and_told_by_one(name, two):
    assert two[1][name] == (ERRORS[name], "Elsewhere: ")


def test_an_error_of_one_process_ends_all(base, two):
    first, second = two[1]["blocked"]
    assert first.startswith("NotADirectoryError: ")
    assert str(base / "blocked" / "checkpoints") in first
    assert second == "Elsewhere: "


def test_one_process_may_train_in_one_precision_after_another(base, tmp_path):
    for precision in ("bfloat16", "float32"):
        recipe = make_recipe(tables(base, "plain", train={"precision": precision, "max_steps": 1}))
        run_training(recipe, tmp_path / precision, resume=False, console=Console(quiet=True))
    assert losses(tmp_path / "bfloat16")["train", 1] != losses(tmp_path / "float32")["train", 1]


def test_a_request_to_stop_that_comes_twice_is_one():
    """A scheduler sends it to torchrun and to its processes, to which torchrun passes it on."""
    with stop_on_interrupt() as stop:
        for _ in range(2):
            signal.raise_signal(signal.SIGTERM)
        assert stop.is_set()


@pytest.fixture(scope="module")
def four(base, one, two):
    """The folder of the runs of four processes, and their errors."""
    names = ("plain", "accumulated", "sentences", "fsdp", "dropped")
    jobs = {name: {"recipe": tables(base, name)} for name in names}
    for name in ("dropped", "fsdp"):
        jobs[f"{name}-again"] = go_on(tables(base, name), base / "four" / name)
    for name in ("plain", "sentences", "fsdp"):
        jobs[f"{name}-after-two"] = go_on(tables(base, name), two[0] / name)
    return base / "four", launch(base / "four", 4, jobs)[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["plain", "accumulated", "sentences", "fsdp", "plain-after-two", "sentences-after-two", "fsdp-after-two"]
)
def test_four_processes_have_the_losses_of_one(name, one, four):
    folder, errors = four
    assert errors[name] == (None,) * 4
    assert_same_curve(folder / name, one / name.partition("-")[0])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dropped", "fsdp"])
def test_a_resumed_run_of_four_processes_is_bit_for_bit_the_same(name, four):
    """With more than two, the order in which gradients are added up must be the same again, too."""
    folder, errors = four
    assert errors[f"{name}-again"] == (None,) * 4
    assert_bit_for_bit(folder / f"{name}-again", folder / name)


def write_recipe(base, folder, **more):
    path = folder / "recipe.toml"
    path.write_text(tomlkit.dumps(tables(base, "dropped", **more)), encoding="utf-8")
    return path


def start(n_processes, recipe, folder, *options, restarts=0):
    """The command, on several processes."""
    command = ["-m", "transformer_xl", "train", recipe, "-o", folder, *options]
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(torchrun(n_processes, *command, restarts=restarts), **output)


def wait_for_checkpoint(process, folder):
    """Wait until there is a later checkpoint than now."""
    before = [path.name for path in checkpoints(folder)]
    while process.poll() is None and [path.name for path in checkpoints(folder)] == before:
        time.sleep(0.01)
    assert process.poll() is None, process.communicate()[1]


def workers(process):
    """The ids of torchrun's processes, in the order of their ranks."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return [int(number) for number in children.read_text().split()]


def own_lines(text):
    """What our processes wrote, without torchrun's report."""
    return [line for line in text.splitlines() if line.startswith(("transformer-xl", "Stopped"))]


@pytest.mark.slow
def test_a_job_that_loses_workers_goes_on_and_ends_with_the_same_weights(base, tmp_path):
    recipe = write_recipe(base, tmp_path, train={"max_steps": 80}, checkpoints={"every": 2, "keep": 2})
    undisturbed = start(2, recipe, tmp_path / "whole")
    assert undisturbed.wait() == 0
    folder = tmp_path / "killed"
    process = start(2, recipe, folder, "--resume", restarts=2)
    for rank in (1, 0):
        wait_for_checkpoint(process, folder)
        os.kill(workers(process)[rank], signal.SIGKILL)
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    assert output.count("resumed from step-") == 2
    assert json.loads((folder / "result.json").read_text())["steps"] == 80
    shutil.rmtree(tmp_path / "whole" / "tensorboard", ignore_errors=True)
    assert_bit_for_bit(folder, tmp_path / "whole")


@pytest.mark.slow
def test_a_lost_worker_ends_the_job_with_a_line_and_no_traceback_of_ours(base, tmp_path):
    recipe = write_recipe(base, tmp_path, train={"max_steps": 100_000}, evaluation={"every": 100_000})
    process = start(2, recipe, tmp_path / "run")
    wait_for_checkpoint(process, tmp_path / "run")
    os.kill(workers(process)[1], signal.SIGKILL)
    _, errors = process.communicate()
    assert process.returncode == 1
    (line,) = own_lines(errors)
    assert line.startswith("transformer-xl: error: Another process of this run was lost, says process 0 (connection ")
    assert line.endswith("): start all again with --resume, or let torchrun do it (--max-restarts).")
    assert "transformer_xl/" not in errors


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_all_processes_stop_together_with_a_checkpoint(number, base, tmp_path):
    recipe = write_recipe(base, tmp_path, train={"max_steps": 100_000}, evaluation={"every": 100_000})
    process = start(2, recipe, tmp_path / "run")
    wait_for_checkpoint(process, tmp_path / "run")
    process.send_signal(number)
    output, errors = process.communicate()
    line = f"Stopped with a checkpoint; go on with: transformer-xl train -o {tmp_path / 'run'} --resume"
    assert own_lines(output) == [line]
    assert own_lines(errors) == []
    assert "transformer_xl/" not in errors
    last = json.loads((checkpoints(tmp_path / "run")[-1] / "state.json").read_text())["training"]["step"]
    assert last == max(step for _, step in losses(tmp_path / "run"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--set", "train.batch_size=9"], ERRORS["uneven"].removeprefix("ValueError: ")),
        (["--set", "train.batchsize=8"], "train.batchsize is unknown: did you mean train.batch_size?"),
    ],
)
def test_the_command_tells_an_error_of_all_processes_in_one_line(options, message, base, tmp_path):
    process = start(2, write_recipe(base, tmp_path), tmp_path / "run", *options)
    _, errors = process.communicate()
    assert process.returncode == 1  # torchrun's
    (line,) = own_lines(errors)
    assert line.endswith(message)
    assert "transformer_xl/" not in errors
    assert not (tmp_path / "run").exists()
