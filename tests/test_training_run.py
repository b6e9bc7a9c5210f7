"""Runs: what they write, that a killed one goes on as if it had not been, and what they say when something is wrong."""

import json
import math
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time

import pytest
import tomlkit
import torch
from rich.console import Console
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from models import FIXTURES, scaled_down
from transformer_xl.cli.app import main
from transformer_xl.cli.train import recipe_folder
from transformer_xl.data.corpora import KNOWN
from transformer_xl.data.corpus import tiny_shakespeare
from transformer_xl.data.opening import CorpusOptions, open_corpus
from transformer_xl.evaluation import evaluate
from transformer_xl.training.checkpoints import best_checkpoint, checkpoints
from transformer_xl.training.loop import Training
from transformer_xl.training.recipe import make_recipe, read_recipe
from transformer_xl.training.run import run_training

MODEL = {
    "n_layer": 2, "d_model": 16, "d_embed": 16, "n_head": 2, "d_head": 8, "d_inner": 24, "cutoffs": [], "div_val": 1,
    "tgt_len": 8, "mem_len": 12, "clamp_len": -1, "same_length": False, "dropout": 0.1, "initial_memory": "empty",
}  # fmt: skip


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "plays.txt"
    path.write_text(tiny_shakespeare()[:6000], encoding="utf-8")
    return path


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("TRANSFORMER_XL_CACHE", str(tmp_path_factory.getbasetemp() / "prepared-texts"))


def recipe(text, **tables):
    given = {
        "title": "a test",
        "data": {"path": str(text), "mode": "characters"},
        "model": MODEL,
        "train": {"batch_size": 4, "max_steps": 12},
        "optimizer": {"lr": 0.01},
        "schedule": {"warmup_steps": 2},
        "evaluation": {"every": 4, "batch_size": 2},
        "checkpoints": {"every": 3, "keep": 2},
        "log": {"every": 2, "tensorboard": False},
    }
    for name, values in tables.items():
        given[name] = {**given.get(name, {}), **values}
    return make_recipe(given)


def train(wanted, folder, *, resume=False):
    return run_training(wanted, folder, resume=resume, console=Console(quiet=True))


def weights(folder):
    return load_file(checkpoints(folder)[-1] / "weights.safetensors")


def records(folder, kind):
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    kept = [record for record in map(json.loads, lines) if record["kind"] == kind]
    return [{k: v for k, v in record.items() if k not in ("seconds", "tokens_per_s")} for record in kept]


@pytest.fixture(scope="module")
def finished(text, tmp_path_factory):
    """The folder and the result of a whole run."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRANSFORMER_XL_CACHE", str(tmp_path_factory.getbasetemp() / "prepared-texts"))
        return folder, train(recipe(text, log={"every": 2, "tensorboard": True}), folder)


def test_a_run_leaves_its_recipe_records_picture_result_and_checkpoints(finished):
    folder, result = finished
    assert {path.name for path in folder.iterdir()} == {
        "best.json", "checkpoints", "learning-curve.png", "metrics.jsonl", "recipe.toml", "result.json", "tensorboard",
    }  # fmt: skip
    assert (folder / "learning-curve.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((folder / "result.json").read_text()) == json.loads(json.dumps(result))
    assert [record["step"] for record in records(folder, "train")] == [2, 4, 6, 8, 10, 12]
    assert [record["step"] for record in records(folder, "valid")] == [4, 8, 12]
    assert len(records(folder, "test")) == 1
    assert any((folder / "tensorboard").iterdir())
    kept = [path.name for path in checkpoints(folder)]
    assert kept[-2:] == ["step-00000009", "step-00000012"]
    assert best_checkpoint(folder)[0].name in kept


def test_the_resolved_recipe_makes_the_same_run(finished, tmp_path):
    folder, result = finished
    again = train(read_recipe(folder / "recipe.toml"), tmp_path / "again")
    assert again["test"] == result["test"]
    assert (folder / "recipe.toml").read_text() == (checkpoints(folder)[-1] / "recipe.toml").read_text()


def test_the_best_model_loads_and_has_the_test_loss_that_was_reported(finished, text):
    folder, result = finished
    best = best_checkpoint(folder)[0] / "model"
    model, corpus = AutoModelForCausalLM.from_pretrained(best), open_corpus(text, CorpusOptions(mode="characters"))
    assert AutoTokenizer.from_pretrained(best).get_vocab() == corpus.tokenizer.get_vocab()
    tested = evaluate(model, corpus.tokens("test"), batch_size=2)
    assert tested.loss_nats == pytest.approx(result["test"]["loss_nats"], abs=1e-6)
    assert result["test"]["bits_per_character"] == pytest.approx(tested.bits_per_token, abs=1e-4)
    validated = evaluate(model, corpus.tokens("valid"), batch_size=2)
    assert validated.loss_nats == pytest.approx(result["valid"]["loss_nats"], abs=1e-6)


OPTIONS = {
    "adam": {},
    "muon": {"optimizer": {"name": "muon", "lr": 0.01, "weight_decay": 0.01}},
    "sgd": {"optimizer": {"name": "sgd", "lr": 0.1, "momentum": 0.9}},
    "adagrad": {"optimizer": {"name": "adagrad", "lr": 0.01}},
    "accumulated": {"train": {"accumulation": 2}},
    "averaged": {"averaging": {"name": "uniform", "start_step": 3, "lr_factor": 0.5}},
    "exponential": {"averaging": {"name": "exponential", "decay": 0.8}},
    "rolled": {"data": {"roll": True, "varied_lengths": True}},
    "plateau": {"schedule": {"name": "plateau"}},
    "zeros": {"model": {**MODEL, "initial_memory": "zeros"}},
    "sampled": {"model": {**MODEL, "sample_softmax": 8}},
    "regularised": {
        "model": {**MODEL, "mem_len": 0, "ext_len": 6},
        "regularisation": {
            "word_dropout": 0.1, "input_dropout": 0.2, "attention_dropout": 0.1, "feed_forward_dropout": 0.1,
            "output_dropout": 0.2, "activation_penalty": 0.2, "change_penalty": 0.1,
        },
    },
}  # fmt: skip


@pytest.mark.parametrize("name", OPTIONS)
def test_a_resumed_run_is_bit_for_bit_the_run_that_was_not_interrupted(name, text, tmp_path):
    tables = {"checkpoints": {"every": 2, "keep": 9}, "evaluation": {"every": 3, "batch_size": 2}, **OPTIONS[name]}
    tables["train"] = {"batch_size": 4, "max_steps": 6, **tables.get("train", {})}
    wanted = recipe(text, **tables)
    whole = train(wanted, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    first, *later = checkpoints(tmp_path / "parts")
    assert first.name == "step-00000002"
    for folder in later:
        shutil.rmtree(folder)  # as if it had been killed after the first
    resumed = train(wanted, tmp_path / "parts", resume=True)
    for group in ("weights", "optimizer", "memories", "random"):
        one = load_file(checkpoints(tmp_path / "whole")[-1] / f"{group}.safetensors")
        two = load_file(checkpoints(tmp_path / "parts")[-1] / f"{group}.safetensors")
        assert one.keys() == two.keys()
        assert all(torch.equal(one[key], two[key]) for key in one), group
    assert resumed["test"] == whole["test"]
    for kind in ("train", "valid", "test"):
        assert records(tmp_path / "parts", kind) == records(tmp_path / "whole", kind)


def command(wanted_file, folder, *more):
    return [sys.executable, "-m", "transformer_xl", "train", str(wanted_file), "-o", str(folder), *more]


def write_toml(path, wanted):
    path.write_text(tomlkit.dumps(wanted.model_dump(exclude_none=True)), encoding="utf-8")
    return path


def killed_until_finished(tmp_path, text, n_kills, seed, max_steps=60):
    """Start a run, kill it at random moments, go on; gives the final weights of it and of one that was left alone."""
    wanted = recipe(text, train={"batch_size": 4, "max_steps": max_steps}, checkpoints={"every": 2, "keep": 2})
    file = write_toml(tmp_path / "recipe.toml", wanted)
    train(wanted, tmp_path / "whole")
    chance, folder = random.Random(seed), tmp_path / "killed"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for _ in range(n_kills):
        process = subprocess.Popen(command(file, folder, "--resume"), env=environment, stdout=subprocess.DEVNULL)
        before = [path.name for path in checkpoints(folder)]
        while process.poll() is None and [path.name for path in checkpoints(folder)] == before:
            time.sleep(0.002)  # it has begun once the checkpoints change
        time.sleep(chance.random() * 0.25)
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run(command(file, folder, "--resume"), env=environment, check=True, stdout=subprocess.DEVNULL)
    assert (folder / "result.json").is_file()
    assert not list((folder / "checkpoints").glob(".*"))  # nothing half-written is left
    return weights(folder), weights(tmp_path / "whole")


def assert_same(one, two):
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_run_that_is_killed_ends_with_the_same_weights(text, tmp_path):
    assert_same(*killed_until_finished(tmp_path, text, n_kills=1, seed=0, max_steps=16))


@pytest.mark.slow
def test_a_run_that_is_killed_at_25_random_moments_ends_with_the_same_weights(text, tmp_path):
    assert_same(*killed_until_finished(tmp_path, text, n_kills=25, seed=1))


def test_a_request_to_stop_writes_a_checkpoint_and_says_how_to_go_on(text, tmp_path):
    file = write_toml(tmp_path / "recipe.toml", recipe(text, train={"batch_size": 4, "max_steps": 100_000}))
    folder = tmp_path / "run"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    process = subprocess.Popen(command(file, folder), env=environment, stdout=subprocess.PIPE, text=True)
    while process.poll() is None and not checkpoints(folder):
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate()
    assert process.returncode == 130
    assert f"Stopped with a checkpoint; go on with: transformer-xl train -o {folder} --resume" in output
    last = json.loads((checkpoints(folder)[-1] / "state.json").read_text())["training"]["step"]
    assert last >= records(folder, "train")[-1]["step"]


def test_early_stop_ends_a_run_that_no_longer_gets_better(text, tmp_path):
    wanted = recipe(text, optimizer={"lr": 1e-12}, evaluation={"every": 1, "patience": 2, "batch_size": 2})
    result = train(wanted, tmp_path / "run")
    assert result["steps"] < 12
    losses = [record["loss_nats"] for record in records(tmp_path / "run", "valid")]
    assert len(losses) - 1 - losses.index(min(losses)) >= 2 or len(losses) == 12


def test_the_clock_ends_a_run(text, tmp_path):
    wanted = recipe(text, train={"batch_size": 4, "max_steps": 10**6, "max_minutes": 0.01})
    assert train(wanted, tmp_path / "run")["steps"] < 10**5


def run_command(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        main(["train", *map(str, arguments)])
    return stop.value.code, capsys.readouterr().err


def test_a_loss_that_is_no_number_ends_the_run_with_the_last_good_checkpoint_kept(text, tmp_path):
    wanted = recipe(text, optimizer={"name": "sgd", "lr": 1e30, "clip_norm": 0}, evaluation={"every": 100})
    good = recipe(text, train={"batch_size": 4, "max_steps": 3})
    train(good, tmp_path / "run")
    before = weights(tmp_path / "run")
    with pytest.raises(ValueError, match=r"^The loss is (nan|inf) at step \d+, .* go on from step-00000003 with --res"):
        train(wanted, tmp_path / "run", resume=True)
    assert_same(weights(tmp_path / "run"), before)


def test_weights_that_are_no_numbers_are_not_saved(text, tmp_path, monkeypatch):
    make = Training.step

    def poisoned(self):
        step = make(self)
        if step.number == 3:
            self.model.crit.out_layers[0].bias.data[0] = math.nan
        return step

    monkeypatch.setattr(Training, "step", poisoned)
    message = r"crit.out_layers.0.bias is no number any more after step 3: lower optimizer.lr=0.01"
    with pytest.raises(ValueError, match=message):
        train(recipe(text, checkpoints={"every": 1}), tmp_path / "run")
    assert [path.name for path in checkpoints(tmp_path / "run")] == ["step-00000001", "step-00000002"]


def test_a_damaged_checkpoint_is_refused_with_the_way_to_go_on(text, tmp_path, capsys):
    folder = tmp_path / "run"
    train(recipe(text), folder)
    *_, before, last = checkpoints(folder)
    file = last / "optimizer.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-7])
    capsys.readouterr()
    status, message = run_command(capsys, "-o", folder, "--resume")
    assert status == 2
    assert message == (
        f"transformer-xl: error: {file} is damaged (its SHA-256 is not the one that was written): delete that folder "
        f"to go on from {before.name}.\n"
    )
    assert file.read_bytes() == whole[:-7]  # nothing was changed
    shutil.rmtree(last)
    assert train(recipe(text), folder, resume=True)["steps"] == 12


@pytest.mark.parametrize("name", ["state.json", "checksums.json", "weights.safetensors"])
def test_a_checkpoint_that_lacks_a_file_is_refused(name, text, tmp_path, capsys):
    folder = tmp_path / "run"
    train(recipe(text, train={"batch_size": 4, "max_steps": 2}), folder)
    (checkpoints(folder)[-1] / name).unlink()
    status, message = run_command(capsys, "-o", folder, "--resume")
    assert status == 2
    assert f"{name} is missing or damaged, so checkpoint" in message
    assert message.count("\n") == 1


def test_a_full_disk_ends_the_run_and_leaves_the_checkpoints_before_whole(text, tmp_path):
    """The limit on the size of a file stands for the disk's: writing beyond it fails in the same way."""
    wanted = recipe(text, train={"batch_size": 4, "max_steps": 2})
    train(wanted, tmp_path / "run")
    before = weights(tmp_path / "run")
    file = write_toml(tmp_path / "recipe.toml", recipe(text))

    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, 12_000))

    process = subprocess.run(
        command(file, tmp_path / "run", "--resume"),
        preexec_fn=limit,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 2, process.stderr
    error = [line for line in process.stderr.splitlines() if "error" in line]
    assert len(error) == 1
    assert "File too large" in error[0]
    assert_same(weights(tmp_path / "run"), before)
    assert not list((tmp_path / "run" / "checkpoints").glob(".*"))
    assert train(recipe(text), tmp_path / "run", resume=True)["steps"] == 12


def test_a_folder_that_holds_something_is_refused(text, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"--output-dir .*full is not empty: give another, or delete it\."):
        train(recipe(text), tmp_path / "full")
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["thesis.txt"]
    train(recipe(text, train={"batch_size": 4, "max_steps": 1}), tmp_path / "run")
    with pytest.raises(ValueError, match=r"--output-dir .*run holds a run: go on with --resume, or delete it\."):
        train(recipe(text), tmp_path / "run")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match=r"--output-dir .*file is a file but must be a folder: give another\."):
        train(recipe(text), tmp_path / "file")


def test_a_folder_that_cannot_be_written_is_one_line(text, tmp_path, capsys, monkeypatch):
    file = write_toml(tmp_path / "recipe.toml", recipe(text))
    open_corpus(text, CorpusOptions(mode="characters"))  # prepared while folders can be made
    monkeypatch.setattr("pathlib.Path.mkdir", refuse)
    status, message = run_command(capsys, file, "-o", tmp_path / "locked" / "run")
    assert status == 2
    assert message == f"transformer-xl: error: {tmp_path / 'locked' / 'run'}: permission denied.\n"


def refuse(self, *_arguments, **_options):
    raise PermissionError(13, "Permission denied", str(self))


def test_another_model_than_the_checkpoints_is_refused(text, tmp_path):
    train(recipe(text, train={"batch_size": 4, "max_steps": 2}), tmp_path / "run")
    with pytest.raises(ValueError, match=r"model.n_layer=1 must be 2 as in .*step-00000002: resume with the recipe"):
        train(recipe(text, model={**MODEL, "n_layer": 1}), tmp_path / "run", resume=True)


def test_another_text_than_the_checkpoints_is_refused(text, tmp_path):
    train(recipe(text, train={"batch_size": 4, "max_steps": 2}), tmp_path / "run")
    other = tmp_path / "other.txt"
    other.write_text(tiny_shakespeare()[:6001], encoding="utf-8")
    if len(set(tiny_shakespeare()[:6001])) == len(set(tiny_shakespeare()[:6000])):
        with pytest.raises(ValueError, match=r"The saved place is in a stream with tokens=\d+, this one has \d+"):
            train(recipe(other), tmp_path / "run", resume=True)


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        (
            {"train": {"batch_size": 3, "accumulation": 2, "max_steps": 2}},
            "train.batch_size=3 must be a multiple of tr",
        ),
        ({"train": {"batch_size": 4, "max_steps": 2, "precision": "float16"}}, "train.precision='float16' must have a"),
        ({"model": {**MODEL, "vocab_size": 3}}, "model.vocab_size=3 must be at least"),
        ({"model": {**MODEL, "attn_type": 2}}, "model.mem_len=12 must be 0 for attn_type=2"),
        ({"data": {"packed": True}}, "data.packed=True must go with unrelated sentences, but text is a running text"),
        ({"train": {"batch_size": 2000, "max_steps": 2}}, "batch_size=2000 leaves 2 of 5400 tokens to a row"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(tables, message, text, tmp_path):
    with pytest.raises(ValueError, match=message):
        train(recipe(text, **tables), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_recipes_are_found_by_name_and_misspelt_ones_are_not(capsys):
    assert run_command(capsys, "ptb-smal") == (
        2, "transformer-xl: error: RECIPE ptb-smal does not exist: did you mean ptb-small?\n",
    )  # fmt: skip
    assert run_command(capsys, FIXTURES) == (
        2,
        f"transformer-xl: error: RECIPE {FIXTURES} is a folder but must be a TOML file, or the name of a recipe "
        "(--list).\n",
    )
    assert run_command(capsys)[1].startswith(
        "transformer-xl: error: RECIPE is missing: give a file or a name of --list"
    )
    with pytest.raises(SystemExit) as stop:
        main(["train", "--list"])
    listed = capsys.readouterr().out
    assert stop.value.code == 0
    assert "ptb-small" in listed
    assert "enwik8-base" in listed


def test_changes_on_the_command_line_reach_the_run(text, tmp_path, capsys):
    file = write_toml(tmp_path / "recipe.toml", recipe(text))
    status, _ = run_command(capsys, file, "-o", tmp_path / "run", "--set", "train.max_steps=2", "--set", "title=mine")
    assert status == 0
    assert json.loads((tmp_path / "run" / "result.json").read_text())["title"] == "mine"
    assert read_recipe(tmp_path / "run" / "recipe.toml").train.max_steps == 2


def test_evaluate_takes_a_run_for_its_best_checkpoint(finished, text, capsys):
    folder, result = finished
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", str(folder), "--data", str(text.parent), "--batch-size", "2", "--json"])
    assert stop.value.code == 2  # the raw text is taken for words here
    capsys.readouterr()
    prepared = open_corpus(text, CorpusOptions(mode="characters")).folder
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", str(folder), "--data", str(prepared), "--batch-size", "2", "--json"])
    assert stop.value.code == 0
    report = json.loads(capsys.readouterr().out)
    assert report["loss_nats"] == pytest.approx(result["test"]["loss_nats"], abs=1e-6)


@pytest.mark.parametrize("path", sorted(recipe_folder().glob("*.toml")), ids=lambda path: path.stem)
def test_every_recipe_runs_two_steps_scaled_down(path, tmp_path):
    wanted = scaled_down(read_recipe(path))
    rule = {"byte": "bytes", "character": "characters"}.get(KNOWN[wanted.data.corpus].unit, "words")
    lines = tiny_shakespeare()[:12_000].lower()
    (tmp_path / "text.txt").write_text(lines, encoding="utf-8")
    mode = {"mode": rule, "line_end": "sentence" if wanted.data.corpus == "lm1b" else None, "corpus": "text"}
    data = wanted.data.model_copy(update={"path": str(tmp_path / "text.txt"), **mode})
    model = {key: value for key, value in wanted.model.items() if key != "vocab_size"}
    result = train(wanted.model_copy(update={"data": data, "model": model}), tmp_path / "run")
    assert result["steps"] == 2
    assert math.isfinite(result["test"]["loss_nats"])
    assert math.isfinite(result["valid"]["loss_nats"])
