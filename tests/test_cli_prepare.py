"""`transformer-xl prepare` as a user meets it: what it prints, and what each mistake says."""

import errno
import gzip
import os
import re
import subprocess
import sys

import numpy as np
import pytest

from transformer_xl import TransfoXLTokenizer
from transformer_xl.cli.app import main
from transformer_xl.data import encoding
from transformer_xl.data import prepared as prepared_module


def run(capsys, *arguments):
    """Exit status, standard output and standard error of a command."""
    with pytest.raises(SystemExit) as stop:
        main(["prepare", *map(str, arguments)])
    return stop.value.code, *capsys.readouterr()


@pytest.fixture
def raw(tmp_path):
    folder = tmp_path / "raw"
    folder.mkdir()
    for split, n_lines in (("train", 30), ("valid", 5), ("test", 5)):
        (folder / f"{split}.txt").write_text("the cat sat on the mat .\n" * n_lines)
    return folder


def test_it_says_what_it_made(capsys, tmp_path, raw):
    status, out, err = run(capsys, raw, "-o", tmp_path / "out")
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "corpus      own text, read as words"
    assert re.fullmatch(r"vocabulary  8, sha256 [0-9a-f]{16}", lines[1])
    assert lines[2:5] == [
        "train       240 tokens (uint8)",
        "valid       40 tokens (uint8)",
        "test        40 tokens (uint8)",
    ]
    assert re.fullmatch(rf"written     {tmp_path}/out \([\d.]+ s, [\d,]+ tokens/s\)", lines[5])
    array = np.load(tmp_path / "out" / "train.npy", mmap_mode="r", allow_pickle=False)
    words = TransfoXLTokenizer.from_pretrained(tmp_path / "out" / "tokenizer").convert_ids_to_tokens(array[:8].tolist())
    assert words == ["the", "cat", "sat", "on", "the", "mat", ".", "<eos>"]


def test_again_it_has_nothing_to_do(capsys, tmp_path, raw):
    run(capsys, raw, "-o", tmp_path / "out")
    status, out, _ = run(capsys, raw, "-o", tmp_path / "out")
    assert status == 0
    assert out.endswith("out (already prepared)\n")


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--mode", "characters"], "train       750 tokens (uint8)"),
        (["--mode", "bytes"], "train       750 tokens (uint8)"),
        (["--mode", "moses", "--line-end", "none"], "train       210 tokens (uint8)"),
        (["--line-end", "sentence"], "train       241 tokens (uint8), 30 sentences"),
        (["--max-size", "3"], "train       240 tokens (uint8), 150 unknown"),
        (["--min-freq", "31"], "train       240 tokens (uint8), 150 unknown"),
    ],
)
def test_options_reach_the_result(capsys, tmp_path, raw, options, line):
    status, out, _ = run(capsys, raw, "-o", tmp_path / "out", *options)
    assert status == 0
    assert line in out.splitlines()


def test_splits_by_hand_and_by_shares(capsys, tmp_path, raw):
    by_hand = ["--train", raw / "test.txt", "--train", raw / "valid.txt", "--valid", raw / "train.txt"]
    _, out, _ = run(capsys, *by_hand, "-o", tmp_path / "one")
    assert out.splitlines()[2:4] == ["train       80 tokens (uint8)", "valid       240 tokens (uint8)"]
    _, out, _ = run(capsys, raw / "train.txt", "--fractions", "0.5,0.2,0.3", "-o", tmp_path / "two")
    tokens = [line.split()[1] for line in out.splitlines()[2:5]]
    assert tokens == ["120", "48", "72"]


def test_a_download_is_fetched_into_the_cache_and_prepared(capsys, tmp_path, monkeypatch, raw):
    asked = []

    def fetch(name, folder, _console):
        asked.append((name, folder))
        return [raw]

    monkeypatch.setenv(prepared_module.CACHE, str(tmp_path / "cache"))
    monkeypatch.setattr("transformer_xl.data.download.download_corpus", fetch)
    status, out, _ = run(capsys, "--download", "ptb", "-o", tmp_path / "out")
    assert status == 0
    assert out.startswith("corpus      ptb, read as words\n")
    run(capsys, "--download", "ptb", "--raw-dir", tmp_path / "here", "-o", tmp_path / "out")
    assert asked == [("ptb", tmp_path / "cache" / "raw" / "ptb"), ("ptb", tmp_path / "here")]


def mistake(capsys, *arguments):
    """The one line of a command that fails."""
    status, out, err = run(capsys, *arguments)
    assert (status, out, err.count("\n")) == (2, "", 1)
    return err.removeprefix("transformer-xl: error: ").rstrip("\n")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["raw"], "--output is missing: name the folder to make."),
        (["-o", "out"], "There is no text: give SOURCES, or --train, --valid and --test, or --download."),
        (
            ["raw", "--train", "raw", "-o", "out"],
            "SOURCES and --train, --valid, --test must not be given together: leave one out.",
        ),
        (["raw", "--download", "ptb", "-o", "out"], "SOURCES and --download must not be given together"),
        (
            ["--corpus", "ptb", "--download", "text8", "-o", "out"],
            "--corpus ptb does not go with --download text8: leave --corpus out.",
        ),
        (["--download", "c4", "-o", "out"], "corpus='c4' is unknown: give one of enwik8, text8,"),
        (["raw", "--corpus", "c4", "-o", "out"], "corpus='c4' is unknown: give one of enwik8, text8,"),
        (["raw", "--mode", "letters", "-o", "out"], "mode='letters' is unknown: give one of words, characters,"),
        (["raw", "--line-end", "dot", "-o", "out"], "line_end='dot' is unknown: give one of eos, sentence, none."),
        (
            ["raw", "--fractions", "0.5,0.5", "-o", "out"],
            "--fractions 0.5,0.5 must be three numbers that add up to 1, such as 0.9,0.05,0.05.",
        ),
        (["raw", "--fractions", "1,1,1", "-o", "out"], "fractions={'train': 1.0, 'valid': 1.0, 'test': 1.0} must"),
        (["raw", "--processes", "0", "-o", "out"], "Invalid value for '--processes'"),
        (["nowhere.txt", "-o", "out"], "nowhere.txt does not exist: give text files or a folder that holds some."),
        (["raw", "--tokenizer", "raw", "-o", "out"], "--tokenizer raw has no vocab.json: give the folder of a"),
    ],
)
def test_a_mistake_is_one_line(capsys, tmp_path, raw, monkeypatch, arguments, line):
    monkeypatch.chdir(tmp_path)
    assert mistake(capsys, *arguments).startswith(line)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["raw"]


def test_texts_that_cannot_be_read_are_one_line(capsys, tmp_path, raw):
    empty, latin, short = tmp_path / "empty.txt", tmp_path / "latin.txt", tmp_path / "short.txt.gz"
    empty.touch()
    latin.write_bytes(b"good\nbad: \xe9\n")
    short.write_bytes(gzip.compress(os.urandom(9999))[:-100])
    output = tmp_path / "out"
    assert "empty.txt is empty: leave it out" in mistake(capsys, empty, "-o", output)
    line = mistake(capsys, "--train", latin, "--valid", raw, "-o", output)
    assert line.startswith("latin.txt, line 2 is not UTF-8: byte 0xe9 at offset 10; convert the file")
    line = mistake(capsys, "--mode", "bytes", "--train", short, "--valid", raw, "-o", output)
    assert line.startswith("short.txt.gz is damaged or cut short (Compressed file ended before the end-of-stream")
    assert not output.exists()


def test_an_output_that_is_taken_is_one_line(capsys, tmp_path, raw):
    line = mistake(capsys, raw / "train.txt", "-o", raw)
    assert line == f"output {raw} holds something else (test.txt): give a new or empty folder."
    assert sorted(path.name for path in raw.iterdir()) == ["test.txt", "train.txt", "valid.txt"]


def test_a_full_disk_is_one_line(capsys, tmp_path, raw, monkeypatch):
    def no_space(*_arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(encoding, "_save_shard", no_space)
    line = mistake(capsys, raw, "-o", tmp_path / "out")
    assert line == (
        f"{tmp_path}/.out.preparing: no space left on the disk; what is finished is kept: free some space, and run the "
        "same command again."
    )


def test_its_help_imports_nothing_heavy():
    program = "import sys; sys.argv[1:] = ['prepare', '--help']; from transformer_xl_command import main; main()"
    run = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", program], capture_output=True, text=True, check=True
    )
    imported = {line.rpartition("|")[2].strip().split(".")[0] for line in run.stderr.splitlines()}
    assert "transformer_xl" in imported
    assert not imported & {"torch", "transformers", "numpy", "pooch", "sqlite3", "multiprocessing"}
