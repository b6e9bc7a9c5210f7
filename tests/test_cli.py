"""The command line as a whole: what a mistake looks like, and what a bug looks like."""

import json
import os
import subprocess
import sys

import pytest
import typer

from transformer_xl.cli import app as application
from transformer_xl.cli.app import main
from transformer_xl.cli.errors import UserError, user_message
from transformer_xl.data.corpus import split_text


def run(capsys, *arguments):
    """Exit status, standard output and standard error of a command."""
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    return stop.value.code, *capsys.readouterr()


def failing_with(monkeypatch, function):
    """Make `transformer-xl env` call `function`."""
    command = typer.Typer()
    command.command("fail")(function)
    command.command("other")(lambda: None)
    monkeypatch.setattr(application, "app", command)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["nothing"], "No such command 'nothing'. See 'transformer-xl --help'."),
        (["env", "--nothing"], "No such option: --nothing. See 'transformer-xl env --help'."),
        (["quickstart", "--steps", "x"], "Invalid value for '--steps'"),
        (["generate"], "Missing argument 'model'. See 'transformer-xl generate --help'."),
    ],
)
def test_a_usage_error_is_one_line(capsys, arguments, line):
    status, out, err = run(capsys, *arguments)
    assert (status, out) == (2, "")
    assert err.startswith(f"transformer-xl: error: {line}")
    assert err.count("\n") == 1


def user_error():
    raise UserError("--stop '' must hold\n  something: leave it out.")


def refused_by_the_library():
    split_text("ab", {"a": 0.9, "b": 0.1})


def refused_below_a_library():
    try:
        split_text("ab", {"a": 0.9, "b": 0.1})
    except ValueError as error:
        raise RuntimeError("validation failed") from error


def missing_file():
    open("no/such/file").close()  # noqa: PTH123 - raises


@pytest.mark.parametrize(
    ("function", "line"),
    [
        (user_error, "--stop '' must hold something: leave it out."),
        (refused_by_the_library, "text has 2 characters, which leaves none for 'b': pass a longer text."),
        (refused_below_a_library, "text has 2 characters, which leaves none for 'b': pass a longer text."),
        (missing_file, "no/such/file: no such file or directory."),
    ],
)
def test_what_the_user_can_mend_is_one_line_and_status_2(capsys, monkeypatch, function, line):
    failing_with(monkeypatch, function)
    assert run(capsys, "fail") == (2, "", f"transformer-xl: error: {line}\n")


def test_tracebacks_can_be_asked_for(monkeypatch):
    failing_with(monkeypatch, refused_by_the_library)
    monkeypatch.setenv("TRANSFORMER_XL_TRACEBACK", "1")
    with pytest.raises(ValueError, match="text has 2 characters"):
        main(["fail"])


def bug_in_a_library():
    json.loads("no json")


def bug_of_ours():
    split_text(5)  # a TypeError, but by an operation and not by a check


def wrong_key():
    return {}["key"]


@pytest.mark.parametrize(
    ("function", "error"), [(bug_in_a_library, ValueError), (bug_of_ours, TypeError), (wrong_key, KeyError)]
)
def test_a_bug_keeps_its_traceback(monkeypatch, function, error):
    failing_with(monkeypatch, function)
    with pytest.raises(error):
        main(["fail"])


def test_an_error_that_was_never_raised_is_no_check_of_ours():
    assert user_message(ValueError("made, not raised")) is None


def interrupted():
    raise KeyboardInterrupt


def test_an_interrupt_is_quiet(capsys, monkeypatch):
    failing_with(monkeypatch, interrupted)
    assert run(capsys, "fail") == (130, "", "")


def test_without_arguments_the_help_is_printed(capsys):
    status, out, _ = run(capsys)
    assert status == 0
    assert "quickstart" in out


def test_env_says_what_a_bug_report_needs(capsys):
    status, out, _ = run(capsys, "env", "--json")
    facts = json.loads(out)
    assert status == 0
    assert facts["python"] == sys.version.split()[0]
    assert facts["transformer-xl"] == "0.1.0"
    assert {"torch", "transformers", "threads", "devices", "cuda", "platform"} <= facts.keys()
    _, table, _ = run(capsys, "env")
    assert f"torch            {facts['torch']}\n" in table


def test_the_module_is_the_command():
    finished = subprocess.run(
        [sys.executable, "-m", "transformer_xl", "env", "--nothing"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert finished.returncode == 2
    assert finished.stderr == "transformer-xl: error: No such option: --nothing. See 'transformer-xl env --help'.\n"


def test_a_reader_that_leaves_ends_the_command_without_a_word():
    program = "from transformer_xl_command import main; main()"
    command = subprocess.Popen(
        [sys.executable, "-c", program, "env"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    command.stdout.close()
    assert command.stderr.read() == ""
    assert command.wait() == 1
