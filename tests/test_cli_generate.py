"""`transformer-xl generate` on tiny models."""

import io
import sys

import pytest
import torch

from transformer_xl import TransfoXLConfig, TransfoXLLMHeadModel, TransfoXLTokenizer
from transformer_xl.cli.app import main


def save_model(folder, tokenizer):
    torch.manual_seed(0)
    config = TransfoXLConfig(
        vocab_size=len(tokenizer), cutoffs=[], div_val=1, d_model=8, d_embed=8, n_head=2, d_head=4, d_inner=8,
        n_layer=1, mem_len=6, eos_token_id=tokenizer.eos_token_id, init_std=0.5,
    )  # fmt: skip
    TransfoXLLMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def characters(tmp_path_factory):
    tokenizer = TransfoXLTokenizer.train(texts=["abc \n"], mode="characters", unk_token=None, eos_token=None)
    return save_model(tmp_path_factory.mktemp("characters"), tokenizer)


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    tokenizer = TransfoXLTokenizer.train(texts=["the cat sat\non the mat"], mode="whitespace")
    return save_model(tmp_path_factory.mktemp("words"), tokenizer)


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        main(["generate", *map(str, arguments)])
    return stop.value.code, *capsys.readouterr()


def test_the_prompt_comes_from_an_argument_a_file_or_standard_input(capsys, monkeypatch, tmp_path, characters):
    (tmp_path / "prompt.txt").write_bytes(b"ab\r\nc\n")
    options = ["--length", 20, "--seed", 1]
    by_argument = run(capsys, characters, "ab\nc", *options)
    by_file = run(capsys, characters, "--prompt-file", tmp_path / "prompt.txt", *options)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"ab\nc\n")))
    by_input = run(capsys, characters, *options)
    assert by_argument == by_file == by_input
    assert by_argument[0] == 0
    assert by_argument[1].startswith("ab\nc")
    assert len(by_argument[1]) == 4 + 20 + 1


def test_greedy_needs_no_seed_and_a_seed_repeats_the_text(capsys, characters):
    texts = [run(capsys, characters, "a", "--greedy", "--length", 30)[1] for _ in range(2)]
    assert texts[0] == texts[1]
    drawn = [run(capsys, characters, "a", "--length", 30, "--seed", seed) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_only_new_text_is_printed_if_asked(capsys, characters):
    _, with_prompt, _ = run(capsys, characters, "abc", "--seed", 1, "--length", 20)
    _, new, _ = run(capsys, characters, "abc", "--seed", 1, "--length", 20, "--only-new")
    assert with_prompt == "abc" + new


def test_a_stop_text_ends_it_and_is_not_printed(capsys, characters):
    _, text, _ = run(capsys, characters, "a", "--seed", 1, "--length", 40, "--only-new")
    stop = text[5:7]
    _, stopped, _ = run(
        capsys, characters, "a", "--seed", 1, "--length", 40, "--only-new", "--stop", "zz", "--stop", stop
    )
    assert stopped == text[: text.index(stop)] + "\n"


def test_the_end_symbol_is_a_line_break_and_ends_the_text_only_if_asked(capsys, words):
    options = ["the cat", "--seed", 2, "--length", 60, "--only-new", "--temperature", 2]
    _, text, _ = run(capsys, words, *options)
    assert "<eos>" not in text
    assert text.count("\n") >= 2  # one is the end of the output
    _, first_line, _ = run(capsys, words, *options, "--stop-at-eos")
    assert first_line == text[: text.index("\n") + 1]


def test_without_a_length_it_never_ends(monkeypatch, characters):
    """Someone must stop reading: here the output itself, as `| head` does."""

    class Full(io.StringIO):
        def flush(self):
            if len(self.getvalue()) >= 300:
                raise BrokenPipeError(32, "Broken pipe")

    out = Full()
    monkeypatch.setattr(sys, "stdout", out)
    with pytest.raises(SystemExit) as stop:
        main(["generate", characters, "a", "--length", "0"])
    assert len(out.getvalue()) >= 300
    assert stop.value.code == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["é"], "'é' is not among the 5 symbols of the vocabulary"),
        ([""], "PROMPT is empty but must hold at least one character to go on from.\n"),
        (["a", "--prompt-file", "x"], "PROMPT and --prompt-file must not both be given: pass one of them.\n"),
        (["--prompt-file", "no/file"], "no/file: no such file or directory.\n"),
        (["a", "--stop", ""], "--stop '' must hold at least one character: every text contains the empty one.\n"),
        (["a", "--temperature", "0"], "temperature=0.0 must be positive: for the most probable tokens use greedy.\n"),
        (["a", "--top-p", "0"], "top_p=0.0 must be above 0 and at most 1: 1 keeps all tokens.\n"),
        (["a", "--top-k", "-1"], "Invalid value for '--top-k'"),
        (["a", "--length", "-1"], "Invalid value for '--length'"),
    ],
)
def test_impossible_requests_are_one_line(capsys, characters, arguments, message):
    status, out, err = run(capsys, characters, *arguments)
    assert (status, out) == (2, "")
    assert err.startswith(f"transformer-xl: error: {message}")
    assert err.count("\n") == 1


def test_a_prompt_that_is_no_text_is_refused(capsys, tmp_path, characters):
    path = tmp_path / "prompt"
    path.write_bytes(b"abc\xff")
    message = f"transformer-xl: error: {path} is not UTF-8 text (byte 3): convert it, for example with iconv.\n"
    assert run(capsys, characters, "-f", path) == (2, "", message)


def test_a_missing_prompt_is_not_waited_for_at_a_terminal(capsys, monkeypatch, characters):
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    status, _, err = run(capsys, characters)
    assert status == 2
    assert (
        err
        == "transformer-xl: error: PROMPT is missing: give it as an argument, by --prompt-file, or on standard input.\n"
    )


def test_a_folder_without_a_model_is_refused(capsys, tmp_path):
    message = (
        f"MODEL {tmp_path} has no config.json, and no checkpoint or model in it has one: "
        "give the folder that holds the model, or a run."
    )
    assert run(capsys, tmp_path, "a") == (2, "", f"transformer-xl: error: {message}\n")
    missing = tmp_path / "no" / "model"
    message = f"MODEL {missing} does not exist: give a model folder or the name of a model on the Hub."
    assert run(capsys, missing, "a") == (2, "", f"transformer-xl: error: {message}\n")
