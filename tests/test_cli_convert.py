"""`transformer-xl convert`: what it prints, and that nothing is lost or left behind when it cannot."""

import collections
import errno
import json
import pickle
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import SafetensorError

from models import FIXTURES, tiny_model
from transformer_xl import TransfoXLConfig, TransfoXLTokenizer
from transformer_xl.cli.app import main
from transformer_xl.modeling import TransfoXLLMHeadModel

MODEL = FIXTURES / "legacy" / "original" / "model.pt"
TENSORFLOW = FIXTURES / "golden" / "tf" / "A"


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as caught:
        main(["convert", *map(str, arguments)])
    return int(caught.value.code or 0)


def refusal(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line on standard error of a run that ends with status 2 and prints nothing else."""
    assert run(*arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("transformer-xl: error: ")
    return captured.err


def files_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_the_report_says_what_was_found(tmp_path, capsys):
    output = tmp_path / "new" / "out"
    assert run(MODEL, output) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:7] == [
        f"source      {MODEL}: the authors' PyTorch model (a pickled module)",
        "model       TransfoXLLMHeadModel, 2 layers, width 16, 90 tokens",
        "            mem_len 10, clamp_len 5, same_length True, starting memory empty",
        "weights     5,833 parameters, 0.0 MB, float32",
        "vocabulary  none",
        "left out    pos_emb.inv_freq: a table that is computed when needed",
        "verified    loaded, compared and run (mean loss 5.660 nats on an arbitrary sequence)",
    ]
    assert lines[7:] == [f"written     {output}"]
    assert files_below(tmp_path / "new") == [
        "out", "out/config.json", "out/generation_config.json", "out/model.safetensors",
    ]  # fmt: skip


def test_a_vocabulary_comes_along(tmp_path, capsys):
    words = ["<eos>", "<unk>", *(f"word{i}" for i in range(88))]
    vocabulary = tmp_path / "vocab.txt"
    vocabulary.write_text("\n".join(words) + "\n")
    assert run(MODEL, tmp_path / "out", "--vocab", vocabulary) == 0
    assert f"vocabulary  90 words from {vocabulary} (tokenizer mode whitespace)" in capsys.readouterr().out
    tokenizer = TransfoXLTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer("word5 word6 strange")["input_ids"] == [7, 8, 1]
    assert TransfoXLConfig.from_pretrained(tmp_path / "out").eos_token_id == 0
    assert sorted(path.suffix for path in (tmp_path / "out").iterdir()) == [".json"] * 4 + [".safetensors"]


class Vocab:
    """Pickled as the authors' vocabulary class."""

    def __init__(self, words):
        self.idx2sym = list(words)
        self.sym2idx = collections.OrderedDict((word, i) for i, word in enumerate(words))
        self.counter = collections.Counter(words)
        self.special, self.lower_case, self.delimiter, self.vocab_file = ["<eos>"], True, None, None


class Corpus:
    """Pickled as the authors' corpus class: the vocabulary, and the data as ids."""

    def __init__(self, words, data):
        self.dataset, self.vocab = "wt103", Vocab(words)
        self.train = self.valid = self.test = data


@pytest.mark.parametrize("name", ["cache.pt", "cache.pkl"])
def test_the_authors_corpus_caches_give_their_vocabulary(name, tmp_path, capsys):
    """PyTorch code saves `cache.pt` with tensors, TensorFlow code `cache.pkl` of protocol 2 with NumPy arrays."""
    words = ["<eos>", "<unk>", *(f"word{i}" for i in range(88))]
    if name == "cache.pt":
        torch.save(Corpus(words, torch.arange(90)), tmp_path / name)
    else:
        (tmp_path / name).write_bytes(pickle.dumps(Corpus(words, np.arange(90)), protocol=2))
    assert run(MODEL, tmp_path / "out", "--vocab", tmp_path / name) == 0
    assert f"90 words from {tmp_path / name} (tokenizer mode whitespace)" in capsys.readouterr().out
    tokenizer = TransfoXLTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer("Word5 <eos>")["input_ids"] == [7, 0]


def test_an_old_transformers_folder_keeps_its_tokenizer(tmp_path, capsys):
    assert run(FIXTURES / "legacy" / "hf-4.35", tmp_path / "out") == 0
    printed = capsys.readouterr().out
    assert "784 words from" in printed
    assert "(tokenizer mode moses)" in printed
    assert "vocab.pkl" not in files_below(tmp_path / "out")
    assert TransfoXLTokenizer.from_pretrained(tmp_path / "out").additional_special_tokens == ["<formula>"]


def test_tensorflow_arguments_are_used_and_the_rest_is_named(tmp_path, capsys):
    assert run(TENSORFLOW / "model.ckpt-0", tmp_path / "out", "--arguments", TENSORFLOW / "arguments.json") == 0
    printed = capsys.readouterr().out
    assert "mem_len 24, clamp_len 20, same_length True, starting memory zeros" in printed
    assert "unused      arguments that are no setting of a model: batch_size, checkpoint, is_training" in printed


def test_what_the_file_cannot_hold_is_listed_if_missing(tmp_path, capsys):
    assert refusal(capsys, TENSORFLOW, tmp_path / "out") == (
        f"transformer-xl: error: {TENSORFLOW / 'model.ckpt-0'} does not say mem_len, clamp_len, same_length: "
        "give them in a JSON file with --arguments, or name a --preset.\n"
    )
    assert files_below(tmp_path) == []


def test_defaults_that_were_needed_are_printed(tmp_path, capsys):
    arguments = tmp_path / "arguments.json"
    arguments.write_text('{"mem_len": 24, "clamp_len": 20, "same_length": true}')
    assert run(TENSORFLOW, tmp_path / "out", "--arguments", arguments) == 0
    assert "default     dropout=0.1: the checkpoint does not say it\n" in capsys.readouterr().out


def test_a_preset_must_fit_and_exist(tmp_path, capsys):
    assert "preset='wt103' must be one of enwik8-base, " in refusal(
        capsys, TENSORFLOW, tmp_path / "o", "--preset", "wt103"
    )
    message = refusal(capsys, TENSORFLOW, tmp_path / "o", "--preset", "wt103-large")
    assert "The preset says d_model=1024, but the weights in" in message or "The preset says n_layer=18" in message


def test_conversion_verifies_what_it_wrote(tmp_path, capsys, monkeypatch):
    """A model that loses a weight while it is saved must not appear."""
    save = TransfoXLLMHeadModel.save_pretrained

    def forgetful(self, folder, **options):
        with torch.no_grad():
            self.transformer.layers[1].pos_ff.CoreNet[0].bias += 1
        save(self, folder, **options)
        with torch.no_grad():
            self.transformer.layers[1].pos_ff.CoreNet[0].bias -= 1

    monkeypatch.setattr(TransfoXLLMHeadModel, "save_pretrained", forgetful)
    message = refusal(capsys, MODEL, tmp_path / "out")
    assert "does not give the weight transformer.layers.1.pos_ff.CoreNet.0.bias back" in message
    assert files_below(tmp_path) == []


def test_an_output_with_files_in_it_is_not_touched(tmp_path, capsys):
    output = tmp_path / "out"
    output.mkdir()
    (output / "thesis.txt").write_text("years of work")
    assert "is a folder with files in it; name one that does not exist yet" in refusal(capsys, MODEL, output)
    assert "out/thesis.txt is a file; name a folder" in refusal(capsys, MODEL, output / "thesis.txt")
    assert (output / "thesis.txt").read_text() == "years of work"
    assert files_below(tmp_path) == ["out", "out/thesis.txt"]


def test_an_empty_output_folder_is_filled(tmp_path, capsys):
    (tmp_path / "out").mkdir()
    assert run(MODEL, tmp_path / "out") == 0
    assert len(files_below(tmp_path / "out")) == 3
    assert capsys.readouterr().err == ""


def test_a_full_disk_leaves_nothing_behind(tmp_path, capsys):
    """The system refuses to write more than 4 kB to a file, as it would without space."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        message = refusal(capsys, MODEL, tmp_path / "new" / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert f"{tmp_path / 'new' / 'out'} could not be written: " in message
    assert "nothing was left there" in message
    assert files_below(tmp_path) == []


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "somewhere"), "No space left on device"),
        (PermissionError(errno.EACCES, "Permission denied", "somewhere"), "Permission denied"),
        (SafetensorError("I/O error: no space"), "I/O error: no space"),
    ],
)
def test_errors_while_writing_give_one_line(error, reason, tmp_path, capsys, monkeypatch):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(TransfoXLLMHeadModel, "save_pretrained", fail)
    message = refusal(capsys, MODEL, tmp_path / "out")
    assert (
        message
        == f"transformer-xl: error: {tmp_path / 'out'} could not be written: {reason}; nothing was left there.\n"
    )
    assert files_below(tmp_path) == []


def test_interruption_leaves_nothing_behind(tmp_path, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(TransfoXLLMHeadModel, "save_pretrained", interrupt)
    assert run(MODEL, tmp_path / "new" / "out") == 130
    assert files_below(tmp_path) == []


def test_a_source_without_permission_gives_one_line(tmp_path, capsys, monkeypatch):
    """Root may read everything, so the refusal is made."""
    real_open = Path.open

    def refusing(self, *arguments, **options):
        if self.name == "locked.pt":
            raise PermissionError(errno.EACCES, "Permission denied", str(self))
        return real_open(self, *arguments, **options)

    shutil.copy(MODEL, tmp_path / "locked.pt")
    monkeypatch.setattr(Path, "open", refusing)
    assert refusal(capsys, tmp_path / "locked.pt", tmp_path / "out").endswith("locked.pt: permission denied.\n")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            89,
            "vocab.txt has 89 words, but the model has 90: give the vocabulary that it was trained with, with --vocab.",
        ),
        (91, "vocab.txt has 91 words, but the model has 90"),
    ],
)
def test_a_vocabulary_of_another_size_is_refused(words, message, tmp_path, capsys):
    vocabulary = tmp_path / "vocab.txt"
    vocabulary.write_text("\n".join(f"word{i}" for i in range(words)))
    assert message in refusal(capsys, MODEL, tmp_path / "out", "--vocab", vocabulary)
    assert files_below(tmp_path) == ["vocab.txt"]


def test_hostile_vocabularies_are_refused_and_nothing_runs(tmp_path, capsys):
    class Evil:
        def __reduce__(self):
            return exec, (f"open({str(tmp_path / 'ran')!r}, 'w').write('x')",)

    (tmp_path / "vocab.pkl").write_bytes(pickle.dumps(Evil()))
    assert "holds no vocabulary" in refusal(capsys, MODEL, tmp_path / "out", "--vocab", tmp_path / "vocab.pkl")
    assert files_below(tmp_path) == ["vocab.pkl"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1]", "arguments.json holds a list; it must hold an object"),
        ("{", "arguments.json is not valid JSON"),
        ('{"mem_len": "long"}', "mem_len='long' must be an integer"),
        ('{"mem_len": -1}', "mem_len=-1 must be at least 0"),
        ('{"n_layer": 3}', "The arguments file says n_layer=3, but the weights in"),
    ],
)
def test_arguments_that_cannot_be_used_give_one_line(content, message, tmp_path, capsys):
    (tmp_path / "arguments.json").write_text(content)
    assert message in refusal(capsys, MODEL, tmp_path / "out", "--arguments", tmp_path / "arguments.json")
    assert files_below(tmp_path) == ["arguments.json"]


def test_files_that_are_missing_give_one_line(tmp_path, capsys):
    assert "nowhere does not exist" in refusal(capsys, tmp_path / "nowhere", tmp_path / "out")
    assert "a.json: no such file" in refusal(capsys, MODEL, tmp_path / "out", "--arguments", tmp_path / "a.json")
    assert "vocab.txt does not exist" in refusal(capsys, MODEL, tmp_path / "out", "--vocab", tmp_path / "vocab.txt")


def test_arguments_override_what_the_file_records(tmp_path, capsys):
    """As the authors' evaluation does: longer memory than in training."""
    (tmp_path / "arguments.json").write_text(json.dumps({"mem_len": 33, "clamp_len": 7}))
    assert run(MODEL, tmp_path / "out", "--arguments", tmp_path / "arguments.json") == 0
    assert "mem_len 33, clamp_len 7, same_length True" in capsys.readouterr().out


def test_what_this_package_wrote_converts_to_itself(tmp_path, capsys):
    model = tiny_model(dtype=torch.float32)
    model.save_pretrained(tmp_path / "in")
    assert run(tmp_path / "in", tmp_path / "out") == 0
    assert "a transformers folder (model.safetensors)" in capsys.readouterr().out
    first, second = ((tmp_path / name / "config.json").read_text() for name in ("in", "out"))
    assert json.loads(first) == json.loads(second)


def test_help_does_not_import_torch():
    program = (
        "import sys, transformer_xl_command; from transformer_xl.cli.app import main\n"
        "try:\n    main(['convert', '--help'])\nexcept SystemExit:\n    sys.exit(int('torch' in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, check=False).returncode == 0
