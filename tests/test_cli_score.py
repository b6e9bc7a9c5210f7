"""`transformer-xl score` on tiny models: tables that other programs read, sums, documents, and what is refused."""

import csv
import io
import json
import math
import os
import sys

import pytest
import torch

from models import tiny_model
from transformer_xl import TransfoXLLMHeadModel, TransfoXLTokenizer
from transformer_xl.cli.app import main

TEXT = 'the cat "sat"\n\non the  zebra\nso it goes\n'


def save_model(folder, tokenizer, **changes):
    settings = {"vocab_size": len(tokenizer), "cutoffs": [], "div_val": 1, "init_std": 0.3, **changes}
    tiny_model(dtype=torch.float32, **settings).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    tokenizer = TransfoXLTokenizer.train(texts=['the cat "sat"\non the mat\nso it goes'], mode="whitespace")
    return save_model(tmp_path_factory.mktemp("words"), tokenizer)


@pytest.fixture(scope="module")
def characters(tmp_path_factory):
    tokenizer = TransfoXLTokenizer.train(texts=["ab\\c\t \r\n"], mode="characters", unk_token=None, eos_token=None)
    return save_model(tmp_path_factory.mktemp("characters"), tokenizer, mem_len=0)


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


def run(capsys, *arguments, command="score"):
    """Exit status, standard output and standard error."""
    with pytest.raises(SystemExit) as stop:
        main([command, *map(str, arguments)])
    return stop.value.code, *capsys.readouterr()


def table(capsys, *arguments):
    """The rows of the table, by column; nothing is `""`."""
    status, out, _ = run(capsys, *arguments)
    assert status == 0
    return list(csv.DictReader(io.StringIO(out), delimiter="\t"))


def refusal(capsys, *arguments):
    status, _, err = run(capsys, *arguments)
    assert (status, err.count("\n")) == (2, 1)
    return err.removeprefix("transformer-xl: error: ").removesuffix("\n")


def test_the_table_of_tokens(capsys, words, text):
    rows = table(capsys, words, text)
    assert list(rows[0]) == [
        "document", "line", "word_index", "start", "end", "token", "surprisal_nats", "surprisal_bits", "is_unknown",
    ]  # fmt: skip
    places = [(row["line"], row["word_index"], row["start"], row["end"], row["token"]) for row in rows]
    assert places[:6] == [
        ("1", "1", "0", "3", "the"),
        ("1", "2", "4", "7", "cat"),
        ("1", "3", "8", "13", '"sat"'),
        ("1", "0", "13", "14", "<eos>"),
        ("2", "0", "14", "15", "<eos>"),
        ("3", "4", "15", "17", "on"),
    ]
    assert (rows[0]["surprisal_nats"], rows[0]["surprisal_bits"]) == ("", "")
    for row in rows[1:]:
        assert float(row["surprisal_bits"]) == pytest.approx(float(row["surprisal_nats"]) / math.log(2), abs=2e-6)
    assert [row["token"] for row in rows if row["is_unknown"] == "1"] == ["zebra"]


def test_the_table_of_words(capsys, words, text):
    rows = table(capsys, words, text, "--per", "word")
    assert list(rows[0]) == [
        "document", "line", "word_index", "start", "end", "word", "n_tokens", "n_scored", "surprisal_nats",
        "surprisal_bits", "is_unknown",
    ]  # fmt: skip
    assert [row["word"] for row in rows if row["word_index"] != "0"] == TEXT.split()
    assert all(TEXT[int(row["start"]) : int(row["end"])] == row["word"] for row in rows if row["word_index"] != "0")
    assert (rows[0]["n_tokens"], rows[0]["n_scored"], rows[0]["surprisal_nats"]) == ("1", "0", "")


def test_the_table_is_quoted_as_other_programs_expect(capsys, words, text):
    _, out, _ = run(capsys, words, text)
    assert '\t"""sat"""\t' in out
    assert "\r" not in out


def test_json_lines_say_the_same_as_the_table(capsys, words, text):
    for per in ("token", "word"):
        rows = table(capsys, words, text, "--per", per)
        _, out, _ = run(capsys, words, text, "--per", per, "--format", "jsonl")
        objects = [json.loads(line) for line in out.splitlines()]
        assert [list(found) for found in objects] == [list(row) for row in rows]
        as_table = [
            {k: "" if v is None else str(int(v) if isinstance(v, bool) else v) for k, v in found.items()}
            for found in objects
        ]
        assert as_table == rows


@pytest.mark.parametrize(
    "options", [[], ["--start-with-eos"], ["--mem-len", 3, "--tgt-len", 2], ["--temperature", 1.2], ["--no-eos"]]
)
def test_the_sum_is_the_loss_of_evaluate(capsys, words, text, options):
    status, out, _ = run(capsys, words, "--text", text, "--json", *options, command="evaluate")
    assert status == 0
    expected = json.loads(out)
    for per in ("token", "word"):
        rows = table(capsys, words, text, "--per", per, *options)
        scored = [float(row["surprisal_nats"]) for row in rows if row["surprisal_nats"]]
        assert math.fsum(scored) == pytest.approx(expected["loss_nats"] * expected["tokens"], abs=2e-5)
    status, _, err = run(capsys, words, text, *options)
    assert f"{expected['tokens']} scored, {expected['unknown_tokens']} of these unknown" in err
    assert f"mean {expected['loss_nats']:.5f} nats" in err


def test_line_breaks_and_tabs_are_escaped(capsys, tmp_path, characters):
    path = tmp_path / "text.txt"
    path.write_bytes(b"a\\\tb\r\nc ")
    rows = table(capsys, characters, path)
    assert [row["token"] for row in rows] == ["a", "\\\\", "\\t", "b", "\\r", "\\n", "c", " "]
    rows = table(capsys, characters, path, "--per", "word")
    assert [(row["word"], row["n_tokens"]) for row in rows] == [("a\\\\", "3"), ("b", "3"), ("c", "2")]


def test_sliding_windows_and_extensions(capsys, tmp_path, characters):
    path = tmp_path / "text.txt"
    path.write_bytes(b"ab ca bc")
    sums = []
    for options in ([], ["--sliding-window", "--tgt-len", 3], ["--ext-len", 2, "--tgt-len", 3]):
        rows = table(capsys, characters, path, *options)
        sums.append(math.fsum(float(row["surprisal_nats"]) for row in rows[1:]))
        _, out, _ = run(capsys, characters, "--text", path, "--json", *options, command="evaluate")
        assert sums[-1] == pytest.approx(json.loads(out)["loss_nats"] * 7, abs=1e-5)
    assert len(set(sums)) == 3


def test_documents(capsys, words, text):
    rows = table(capsys, words, text, "--document-separator", "blank", "--per", "word", "--start-with-eos")
    assert [row["document"] for row in rows] == ["1"] * 4 + ["2"] * 8
    assert all(row["surprisal_nats"] for row in rows)
    alone = table(capsys, words, text, "--document-separator", "on the  zebra", "--per", "word")
    assert [row["word"] for row in alone if row["document"] == "2"] == ["so", "it", "goes", "<eos>"]


def test_standard_input(capsys, monkeypatch, words, text):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(TEXT.encode())))
    assert table(capsys, words, "-") == table(capsys, words, text)


def test_a_file_is_written_whole_or_not_at_all(capsys, tmp_path, words, text):
    _, out, _ = run(capsys, words, text)
    status, nothing, err = run(capsys, words, text, "--output", tmp_path / "scores.tsv")
    assert (status, nothing) == (0, "")
    assert (tmp_path / "scores.tsv").read_text() == out
    assert "13 tokens, 12 scored, 1 of these unknown" in err
    (tmp_path / "bad.txt").write_bytes(TEXT.encode() * 50 + b"\xff")
    refusal(capsys, words, tmp_path / "bad.txt", "--output", tmp_path / "scores.tsv")
    refusal(capsys, words, tmp_path / "bad.txt", "--output", tmp_path / "others.tsv")
    assert (tmp_path / "scores.tsv").read_text() == out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.txt", "scores.tsv", "text.txt"]


def test_who_reads_may_stop_reading(capsys, monkeypatch, tmp_path, words):
    """As `head` does: no traceback, no error, and the text is not read to its end."""
    path = tmp_path / "long.txt"
    path.write_bytes(TEXT.encode() * 3000 + b"\xff")  # to reach its end would be an error
    reading_end, writing_end = os.pipe()
    os.close(reading_end)
    with os.fdopen(writing_end, "w") as closed:
        monkeypatch.setattr(sys, "stdout", closed)
        with pytest.raises(SystemExit) as stop:
            main(["score", str(words), str(path)])
    assert stop.value.code == 141
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{model}", "no/such.txt"], "no/such.txt: no such file or directory."),
        (["no/such/model", "{text}"], "MODEL no/such/model does not exist: give a model folder or the name"),
        (["{model}", "{text}", "--document-separator", " "], "--document-separator ' ' must not be empty: for blank"),
        (["{model}", "{text}", "--per", "line"], "Invalid value for '--per'"),
        (["{model}", "{text}", "--sliding-window"], "sliding_window=True must not go with mem_len=6"),
        (["{model}", "{text}", "--output", "{folder}"], "--output {folder} is a folder: give the name of a file in a"),
        (["{model}", "{text}", "-o", "no/such.tsv"], "--output no/such.tsv cannot be made, as there is no folder no:"),
        (["{model}"], "Missing argument 'file'."),
    ],
)
def test_impossible_options_are_one_line(capsys, words, text, arguments, message):
    known = {"model": words, "text": text, "folder": text.parent}
    line = refusal(capsys, *(argument.format(**known) for argument in arguments))
    assert line.startswith(message.format(**known))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "{path} holds no token but must hold at least two: the first is only context for the second."),
        (b"a", "{path} holds one token but must hold at least two: the first is only context for the second."),
        (b"ab\nax", "{path}, line 2: 'x' is not among the 8 symbols of the vocabulary"),
        (b"ab \xff", "{path}, line 1 is not UTF-8 (byte 0xff): convert the file, for example with iconv -t UTF-8."),
    ],
)
def test_impossible_texts_are_one_line(capsys, tmp_path, characters, content, message):
    path = tmp_path / "text.txt"
    path.write_bytes(content)
    assert refusal(capsys, characters, path).startswith(message.format(path=path))


def test_starting_with_eos_needs_a_tokenizer_that_has_it(capsys, characters, text):
    message = "start_with_eos=True needs an eos_token, and the tokenizer has none: leave it out."
    assert refusal(capsys, characters, text, "--start-with-eos") == message


def test_a_model_whose_losses_are_no_numbers_is_refused(capsys, tmp_path, words, text):
    model = TransfoXLLMHeadModel.from_pretrained(words)
    with torch.no_grad():
        model.transformer.layers[0].dec_attn.o_net.weight[0, 0] = math.nan
    model.save_pretrained(tmp_path / "model")
    TransfoXLTokenizer.from_pretrained(words).save_pretrained(tmp_path / "model")
    message = "The surprisal of 'cat' in line 1 is nan: the model's weights are damaged, or --dtype is too narrow."
    assert refusal(capsys, tmp_path / "model", text) == message
