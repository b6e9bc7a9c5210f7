"""`transformer-xl quickstart`, with a shorter text and fewer steps."""

import json
import math
import os
import signal
import threading
import time
from contextlib import redirect_stdout
from io import StringIO

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from transformer_xl.cli.app import main
from transformer_xl.data.corpus import split_text, tiny_shakespeare
from transformer_xl.evaluation import evaluate
from transformer_xl.training import quickstart

TEXT = tiny_shakespeare()[:24_000]


def run(*arguments):
    """The exit status."""
    with pytest.raises(SystemExit) as stop:
        main(["quickstart", *map(str, arguments)])
    return stop.value.code


@pytest.fixture
def short_text(monkeypatch):
    monkeypatch.setattr(quickstart, "tiny_shakespeare", lambda: TEXT)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a finished quickstart, and what it printed."""
    folder = tmp_path_factory.mktemp("quickstart") / "run"
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(StringIO()) as printed:
        patch.setattr(quickstart, "tiny_shakespeare", lambda: TEXT)
        assert run("-o", folder, "--steps", 12, "--seed", 3, "--prompt", "MENENIUS:", "--length", 40) == 0
    return folder, printed.getvalue()


def test_the_folder_holds_the_model_the_metrics_the_picture_and_the_summary(finished):
    folder, _ = finished
    assert {path.name for path in folder.iterdir()} == {
        "model",
        "metrics.jsonl",
        "learning-curve.png",
        "quickstart.json",
    }
    assert (folder / "learning-curve.png").read_bytes().startswith(b"\x89PNG")


def test_the_auto_classes_load_the_model_and_it_has_the_test_loss_that_was_reported(finished):
    folder, printed = finished
    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    assert model.generation_config.eos_token_id is None
    tokens = torch.tensor(tokenizer.encode(split_text(TEXT)["test"]))
    summary = json.loads((folder / "quickstart.json").read_text())
    for name, label, mem_len in (
        ("test_bits_per_character", "with memory", None),
        ("test_bits_per_character_without_memory", "without memory", 0),
    ):
        again = evaluate(model, tokens, tgt_len=64, mem_len=mem_len)
        assert summary[name] == pytest.approx(again.bits_per_token, abs=0.03)  # other cold starts and cuts
        assert f"test {label:<15} {summary[name]:.3f} bits per character" in printed
    assert summary["test_characters"] == len(tokens) - 1
    assert summary["training"]["step"] == 12


def test_the_metrics_tell_the_story_of_the_training(finished):
    folder, _ = finished
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    training, validation, test = ([r for r in records if r["kind"] == kind] for kind in ("train", "valid", "test"))
    assert [record["step"] for record in training] == list(range(1, 13))
    assert len(validation) == 10
    assert [record["mem_len"] for record in test] == [64, 0]
    for record in records:
        assert record["bits_per_character"] == pytest.approx(record["loss_nats"] / math.log(2), abs=1e-4)
    assert training[0]["bits_per_character"] == pytest.approx(math.log2(len(set(TEXT))), abs=0.3)
    assert validation[-1]["loss_nats"] < training[0]["loss_nats"] - 0.2
    assert training[-1]["tokens"] == 12 * training[0]["tokens"]


def test_the_continuation_is_what_generate_writes_with_the_seed(finished, capsys):
    folder, printed = finished
    with pytest.raises(SystemExit) as stop:
        main(["generate", str(folder / "model"), "MENENIUS:", "--length", "40", "--seed", "3", "--temperature", "0.8"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith("MENENIUS:")
    assert len(text) == len("MENENIUS:") + 40 + 1
    assert text in printed


def test_the_same_seed_gives_the_same_result_and_a_quickstart_may_be_repeated_in_its_folder(finished, short_text):
    folder, _ = finished
    before = json.loads((folder / "quickstart.json").read_text())
    assert run("-o", folder, "--steps", 12, "--seed", 3, "--prompt", "MENENIUS:", "--length", 0) == 0
    after = json.loads((folder / "quickstart.json").read_text())
    assert after["test_bits_per_character"] == before["test_bits_per_character"]


def test_ctrl_c_keeps_and_evaluates_what_was_reached(tmp_path, short_text, capsys):
    metrics = tmp_path / "metrics.jsonl"

    def interrupt_after_the_first_record():
        while not (metrics.is_file() and metrics.read_text()):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    watcher = threading.Thread(target=interrupt_after_the_first_record)
    watcher.start()
    assert run("-o", tmp_path, "--steps", 400, "--length", 5) == 0
    watcher.join()
    out = capsys.readouterr().out
    summary = json.loads((tmp_path / "quickstart.json").read_text())
    assert 1 <= summary["training"]["step"] < 400
    assert f"Stopped after {summary['training']['step']} steps." in out
    assert "test with memory" in out
    AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert (tmp_path / "learning-curve.png").is_file()


def test_without_matplotlib_everything_but_the_picture_is_there(tmp_path, short_text, monkeypatch, capsys):
    monkeypatch.setattr(quickstart, "find_spec", lambda name: None)
    assert run("-o", tmp_path, "--steps", 1, "--length", 1) == 0
    assert (
        "No learning-curve.png: it needs matplotlib (pip install 'transformer-xl[plots]')." in capsys.readouterr().out
    )
    assert not (tmp_path / "learning-curve.png").exists()
    assert (tmp_path / "model").is_dir()


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--prompt", ""], "prompt is empty but must hold at least one character, such as 'ROMEO:'."),
        (["--prompt", "é"], "'é' is not among the"),
        (["--steps", "0"], "Invalid value for '--steps'"),
    ],
)
def test_impossible_options_are_refused_before_anything_is_written(tmp_path, short_text, capsys, arguments, line):
    assert run("-o", tmp_path / "run", *arguments) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"transformer-xl: error: {line}")
    assert err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_folder_with_other_things_is_left_alone(tmp_path, short_text, capsys):
    (tmp_path / "thesis.tex").write_text("years of work")
    assert run("-o", tmp_path) == 2
    message = f"output_dir={str(tmp_path)!r} must be empty or hold an earlier quickstart: pass another.\n"
    assert capsys.readouterr().err == "transformer-xl: error: " + message
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_in_place_of_the_folder_is_refused(tmp_path, short_text, capsys):
    path = tmp_path / "file"
    path.touch()
    assert run("-o", path) == 2
    assert capsys.readouterr().err.endswith(f"output_dir={str(path)!r} is a file but must be a folder: pass another.\n")
