"""The command line as a whole: the list of commands, and the way out of each: result, error, or interruption."""

import sys
from typing import Annotated

import typer

from .convert import convert
from .env import env
from .errors import (
    EXIT_INTERRUPTED,
    EXIT_USER_ERROR,
    print_error,
    user_message,
    wants_traceback,
)
from .evaluate import evaluate
from .generate import generate
from .prepare import prepare
from .quickstart import quickstart
from .score import score
from .train import train

app = typer.Typer(
    name="transformer-xl",
    help="Transformer-XL: train it, write with it, and bring old checkpoints along.",
    epilog="A first run: transformer-xl quickstart",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "default_map": {"help": False}},
    # With completion, with rich's panels, or with a help option that has no default, `--help` would take twice as long
    # (docs/cli-startup.md).
    add_completion=False,
    rich_markup_mode=None,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"transformer-xl {version('transformer-xl')}")
        raise typer.Exit


@app.callback()
def _all_commands(
    _version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Take the options that stand before the command."""


app.command()(quickstart)
app.command()(prepare)
app.command()(train)
app.command()(evaluate)
app.command()(score)
app.command()(generate)
app.command()(convert)
app.command()(env)


def main(arguments: list[str] | None = None) -> None:
    """Run one command and exit: 0 done, 2 a user's mistake (one line on standard error), 130 interrupted.

    Args:
        arguments: the words after the program's name; those of this process by default.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        status = app(arguments or ["--help"], prog_name="transformer-xl", standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(EXIT_INTERRUPTED)
    except Exception as error:
        message = user_message(error)
        if message is None or wants_traceback():
            raise
        print_error(message)
        sys.exit(EXIT_USER_ERROR)
    sys.exit(status if isinstance(status, int) else 0)


__all__ = ["app", "main"]
