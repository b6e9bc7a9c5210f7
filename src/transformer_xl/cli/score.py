"""`transformer-xl score`: the surprisal of each token or word of a text, as a table."""

import csv
import json
import math
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .context import (
    ClampLen,
    ComputeDType,
    Device,
    ExtLen,
    MemLen,
    NoEos,
    SameLength,
    SlidingWindow,
    StartWithEos,
    Temperature,
    TgtLen,
    changed_context,
    open_source,
    source_name,
)
from .errors import UserError

if TYPE_CHECKING:
    from transformer_xl.scoring import TokenSurprisal, WordSurprisal

EXIT_BROKEN_PIPE = 141  # 128 + SIGPIPE, as shells count
TOKEN_COLUMNS = (
    "document", "line", "word_index", "start", "end", "token", "surprisal_nats", "surprisal_bits", "is_unknown",
)  # fmt: skip
WORD_COLUMNS = (
    "document", "line", "word_index", "start", "end", "word", "n_tokens", "n_scored", "surprisal_nats",
    "surprisal_bits", "is_unknown",
)  # fmt: skip
_ESCAPED = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})


class Per(StrEnum):
    """What a row is about."""

    token = "token"  # noqa: S105 - of text
    word = "word"


class Format(StrEnum):
    """How rows are written."""

    tsv = "tsv"
    jsonl = "jsonl"


def score(
    model: Annotated[
        str, typer.Argument(help="Model folder, run (its best checkpoint), or name on the Hub.", show_default=False)
    ],
    file: Annotated[Path, typer.Argument(help="Text to score, - for standard input.", show_default=False)],
    per: Annotated[Per, typer.Option(help="A row for each token, or for each word.")] = Per.token,
    form: Annotated[Format, typer.Option("--format", help="Columns with a head, or a JSON object a row.")] = Format.tsv,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write.", show_default="standard output")
    ] = None,
    document_separator: Annotated[
        str,
        typer.Option(
            help="Forget what came before: at every 'line', at 'blank' lines, at lines that read as given here, or "
            "'none'."
        ),
    ] = "none",
    temperature: Temperature = 1.0,
    tgt_len: TgtLen = None,
    mem_len: MemLen = None,
    ext_len: ExtLen = None,
    clamp_len: ClampLen = None,
    same_length: SameLength = None,
    sliding_window: SlidingWindow = False,
    start_with_eos: StartWithEos = False,
    no_eos: NoEos = False,
    device: Device = None,
    dtype: ComputeDType = None,
) -> None:
    """Print the surprisal of every token or word given all before it, in order, for text of any length.

    The columns are explained in docs/evaluation.md. A summary goes to standard error.
    """
    if not document_separator.strip():
        raise UserError(f"--document-separator {document_separator!r} must not be empty: for blank lines say blank.")
    if output is not None and (output.is_dir() or not output.parent.is_dir()):
        reason = "is a folder" if output.is_dir() else f"cannot be made, as there is no folder {output.parent}"
        raise UserError(f"--output {output} {reason}: give the name of a file in a folder that is there.")

    from transformer_xl.reading import TextReader
    from transformer_xl.scoring import ScoringOptions, token_surprisals, word_surprisals

    from .loading import load_model, load_tokenizer

    reader = TextReader(load_tokenizer(model), source=source_name(file), line_marks=not no_eos)
    options = ScoringOptions(
        document_separator=document_separator,
        start_with_eos=start_with_eos,
        tgt_len=tgt_len,
        ext_len=ext_len,
        temperature=temperature,
        sliding_window=sliding_window,
    )
    summary = _Summary()
    with open_source(file) as text:  # a file that is not there is found before the weights are loaded
        language_model = load_model(model, device=device, dtype=dtype)
        context = changed_context(language_model, mem_len=mem_len, clamp_len=clamp_len, same_length=same_length)
        with context, _written(output) as write:
            tokens = summary.counted(token_surprisals(language_model, reader, text, options))
            _write_rows(word_surprisals(tokens, reader) if per is Per.word else tokens, per, form, write)
    sys.stderr.write(f"{summary}\n")


class _Summary:
    """Adds up what passes through."""

    def __init__(self) -> None:
        self.n_tokens = self.n_scored = self.n_unknown = 0
        self._nats = 0.0

    def counted(self, tokens: "Iterator[TokenSurprisal]") -> "Iterator[TokenSurprisal]":
        for token in tokens:
            self.n_tokens += 1
            if token.surprisal_nats is not None:
                if not math.isfinite(token.surprisal_nats):
                    raise UserError(
                        f"The surprisal of {token.token!r} in line {token.line} is {token.surprisal_nats}: the model's "
                        "weights are damaged, or --dtype is too narrow."
                    )
                self.n_scored += 1
                self.n_unknown += token.is_unknown
                self._nats += token.surprisal_nats
            yield token

    def __str__(self) -> str:
        mean = self._nats / self.n_scored
        return (
            f"{self.n_tokens:,} tokens, {self.n_scored:,} scored, {self.n_unknown:,} of these unknown; "
            f"mean {mean:.5f} nats, {mean / math.log(2):.5f} bits"
        )


@contextmanager
def _written(path: Path | None) -> Iterator[Callable[[str], Any]]:
    """A function that writes to standard output, or to a file that is there when it is whole."""
    from transformer_xl.files import written_whole

    if path is not None:
        with written_whole(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
            yield file.write
        return
    try:
        yield sys.stdout.write
        sys.stdout.flush()
    except BrokenPipeError:
        # Who reads has read enough, as `head` does. Python would complain once more when it closes standard output.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(EXIT_BROKEN_PIPE) from None


def _write_rows(
    rows: "Iterator[TokenSurprisal] | Iterator[WordSurprisal]", per: Per, form: Format, write: Callable[[str], Any]
) -> None:
    columns = WORD_COLUMNS if per is Per.word else TOKEN_COLUMNS
    if form is Format.jsonl:
        for row in rows:
            write(json.dumps(dict(zip(columns, _values(row, columns), strict=True)), ensure_ascii=False) + "\n")
        return
    table = csv.writer(_Lines(write), dialect="excel-tab", lineterminator="\n")
    table.writerow(columns)
    for row in rows:
        table.writerow([_cell(value) for value in _values(row, columns)])


def _values(row: "TokenSurprisal | WordSurprisal", columns: tuple[str, ...]) -> list[Any]:
    from transformer_xl.scoring import bits

    found = {**row._asdict(), "surprisal_bits": bits(row.surprisal_nats)}
    return [round(value, 6) if isinstance(value := found[name], float) else value for name in columns]


def _cell(value: Any) -> Any:
    """A value as it stands in a table: line breaks and tabs escaped, truth as 1 or 0, nothing as an empty cell."""
    if isinstance(value, str):
        return value.translate(_ESCAPED)
    return int(value) if isinstance(value, bool) else value


class _Lines:
    """A file for `csv` that only writes."""

    def __init__(self, write: Callable[[str], Any]) -> None:
        self.write = write


__all__ = ["score"]
