"""What the command line says when something goes wrong: a line for what the user can mend, a traceback for our bugs."""

import dis
import os
import sys
from collections.abc import Iterator
from types import TracebackType

import typer

PACKAGE = "transformer_xl"
SHOW_TRACEBACK = "TRANSFORMER_XL_TRACEBACK"  # environment variable: any text but "" and "0" shows every traceback
EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells count

# typer carries its own copy of click or uses the installed one, depending on its version; both put this class here.
UsageProblem: type[Exception] = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")


class UserError(Exception):
    """A mistake that the user can mend; its text is the one line that the command prints."""


def user_message(error: BaseException) -> str | None:
    """The one line that explains `error` to a user, or None if the error is a bug of ours.

    A user's mistake is: a `UserError`; a usage problem that typer found; an error of the operating system about a file;
    and a `ValueError` or `TypeError` which a `raise` statement of this package raised, because such an error is the
    outcome of a check. The same types coming out of a library that we called, or out of an operation that went wrong in
    our own code (`int("x")`), mean that a check is missing: these keep their traceback. An error of a library that was
    caused by one of our checks (a configuration validator, say) speaks with the words of the check.
    """
    for link in _chain(error):
        if isinstance(link, UserError):
            return _one_line(str(link))
        if isinstance(link, UsageProblem):
            return _usage_message(link)
        if isinstance(link, OSError):
            return _file_message(link)
        if isinstance(link, ValueError | TypeError) and _is_our_check(link.__traceback__):
            return _one_line(str(link))
    return None


def wants_traceback() -> bool:
    """Whether the user asked to see tracebacks even of explained errors."""
    return os.environ.get(SHOW_TRACEBACK, "0") not in {"", "0"}


def print_error(message: str) -> None:
    """Write one line to standard error, as every command does for a user's mistake."""
    sys.stderr.write(f"transformer-xl: error: {message}\n")


def _chain(error: BaseException) -> Iterator[BaseException]:
    """`error` and what it was explicitly raised from."""
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__


def _is_our_check(traceback: TracebackType | None) -> bool:
    """Whether the innermost frame lies in this package and stopped at a `raise` statement."""
    if traceback is None:
        return False
    while traceback.tb_next is not None:
        traceback = traceback.tb_next
    module = str(traceback.tb_frame.f_globals.get("__name__", ""))
    instruction = traceback.tb_frame.f_code.co_code[traceback.tb_lasti]
    return module.partition(".")[0] == PACKAGE and dis.opname[instruction] == "RAISE_VARARGS"


def _usage_message(error: Exception) -> str:
    context = getattr(error, "ctx", None)
    command = "transformer-xl" if context is None else context.command_path
    text = error.format_message() if hasattr(error, "format_message") else str(error)
    return f"{_one_line(text).rstrip('.')}. See '{command} --help'."


def _file_message(error: OSError) -> str:
    if error.filename is None or error.strerror is None:
        return _one_line(str(error))
    return f"{error.filename}: {error.strerror[0].lower()}{error.strerror[1:]}."


def _one_line(text: str) -> str:
    return " ".join(text.split())


__all__ = ["EXIT_INTERRUPTED", "EXIT_USER_ERROR", "UserError", "print_error", "user_message", "wants_traceback"]
