"""`transformer-xl evaluate`: how well a model predicts a text, with every setting that the number depends on."""

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
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
    from transformer_xl.data.streams import Places, TokenIds
    from transformer_xl.evaluation import Evaluation

TITLES = {
    "loss_nats": ("loss", "{:.5f} nats per token"),
    "perplexity": ("perplexity", "{:.4f}"),
    "bits_per_token": ("bits per token", "{:.5f}"),
    "bits_per_character": ("bits per character", "{:.5f}"),
    "bits_per_byte": ("bits per byte", "{:.5f}"),
    "tokens": ("tokens predicted", "{:,}"),
    "unknown_tokens": ("of these unknown", "{:,}"),
    "characters": ("characters predicted", "{:,}"),
    "bytes": ("bytes predicted", "{:,}"),
    "seconds": ("seconds", "{:.1f}"),
    "tokens_per_s": ("tokens per second", "{:,.0f}"),
}


@dataclass(frozen=True)
class _Text:
    """What is to be predicted.

    Attributes:
        ids: `[T]`; all but the first are predicted.
        source: where they come from, by the names of the options.
        n_unknown: how many of the predicted ones are the unknown token; None if that is not known.
        n_characters, n_bytes: how much text the predicted ones stand for; None if that is not known.
        line_mark: the token at the end of a line; None if there is none.
        sentences: where unrelated sentences begin and end, `[N + 1]`; None for a running text.
    """

    ids: "TokenIds"
    source: dict[str, Any]
    n_unknown: int | None
    n_characters: int | None
    n_bytes: int | None
    line_mark: str | None
    sentences: "Places | None" = None


def evaluate(
    model: Annotated[
        str, typer.Argument(help="Model folder, run (its best checkpoint), or name on the Hub.", show_default=False)
    ],
    text: Annotated[
        Path | None, typer.Option(help="Text to predict, - for standard input.", show_default=False)
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Or a prepared corpus, or a raw one.", show_default=False)] = None,
    split: Annotated[str, typer.Option(help="The part of --data.")] = "test",
    limit: Annotated[
        int | None, typer.Option(min=1, help="Predict the first so many tokens only.", show_default="all")
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Parts read at once, each of which starts without memory; windows, which do not, with "
            "--sliding-window.",
            show_default="1, windows 32",
        ),
    ] = None,
    temperature: Temperature = 1.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,
    tgt_len: TgtLen = None,
    mem_len: MemLen = None,
    ext_len: ExtLen = None,
    clamp_len: ClampLen = None,
    same_length: SameLength = None,
    sliding_window: SlidingWindow = False,
    start_with_eos: StartWithEos = False,
    no_eos: NoEos = False,
    across_sentences: Annotated[
        bool,
        typer.Option(
            "--across-sentences",
            help="Keep memory across unrelated sentences (One Billion Word), as the paper did.",
        ),
    ] = False,
    device: Device = None,
    dtype: ComputeDType = None,
) -> None:
    """Predict each token of a text once and print how well: loss, perplexity, bits per token, character and byte.

    The number depends on what the model sees, so all of that is printed with it; docs/evaluation.md says how.
    """
    if (text is None) == (data is None):
        raise UserError("--text or --data must be given, and only one of them: --text FILE, or --data FOLDER.")
    if across_sentences and data is None:
        raise UserError("--across-sentences must go with --data, where sentences are marked: leave it out.")
    if data is not None and no_eos:
        raise UserError("--no-eos must not go with --data, whose tokens are fixed: leave it out, or give --text.")

    from transformer_xl import evaluation

    from .loading import load_model, load_tokenizer, model_folder

    # What is quick to find wrong is found before the weights are loaded.
    if text is not None:
        read = _read_text(text, load_tokenizer(model), limit, start_with_eos, no_eos)
    else:
        assert data is not None
        read = _read_data(data, split, model, limit, start_with_eos, across_sentences)
    language_model = load_model(model, device=device, dtype=dtype)
    context = changed_context(language_model, mem_len=mem_len, clamp_len=clamp_len, same_length=same_length)
    with context as settings, _progress(len(read.ids) - 1) as on_progress:
        settings["ext_len"] = 0 if sliding_window else evaluation.extension_len(language_model, ext_len)
        result = evaluation.evaluate(
            language_model,
            read.ids,
            batch_size=batch_size,
            tgt_len=tgt_len,
            ext_len=ext_len,
            temperature=temperature,
            sliding_window=sliding_window,
            sentences=read.sentences,
            on_progress=on_progress,
        )
    if not math.isfinite(result.loss_nats):
        raise UserError(
            f"The loss of {model} is {result.loss_nats}: its weights are damaged, or --dtype is too narrow."
        )
    settings |= {
        "tgt_len": language_model.config.tgt_len if tgt_len is None else tgt_len,
        "sentences_apart": read.sentences is not None,
        "sliding_window": sliding_window,
        "batch_size": batch_size or (evaluation.WINDOWS_AT_ONCE if sliding_window else 1),
        "cold_starts": result.n_cold_starts,
        "start_with_eos": start_with_eos,
        "line_end": read.line_mark,
        "limit": limit,
        "temperature": temperature,
    }
    report = {
        "model": model_folder(model),
        **read.source,
        **_numbers(result, read),
        "settings": settings,
        "versions": _versions(),
    }
    if as_json:
        typer.echo(json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False))
    else:
        _print_table(report)


def _read_text(path: Path, tokenizer: Any, limit: int | None, start_with_eos: bool, no_eos: bool) -> _Text:
    from transformer_xl.reading import TextReader

    reader = TextReader(tokenizer, source=source_name(path), line_marks=not no_eos)
    with open_source(path) as file:
        found = reader.read_ids(file, start_with_eos=start_with_eos, limit=limit)
    return _Text(
        ids=found.ids,
        source={"text": str(path)},
        n_unknown=found.n_unknown,
        n_characters=found.n_characters,
        n_bytes=found.n_bytes,
        line_mark=reader.line_mark,
    )


def _read_data(
    folder: Path, split: str, model: str, limit: int | None, start_with_eos: bool, across_sentences: bool
) -> _Text:
    import numpy as np
    from rich.console import Console

    from transformer_xl.data.corpora import EOS, SENTENCE_BOUNDARY
    from transformer_xl.data.opening import open_corpus
    from transformer_xl.reading import TextReader

    corpus = open_corpus(folder, console=Console(stderr=True))
    reader = TextReader(corpus.tokenizer, source=f"--data {folder}")
    _check_vocabulary(model, corpus.tokenizer, folder)
    ids, sentences = corpus.tokens(split), None if across_sentences else corpus.sentences(split)
    facts = corpus.meta["splits"][split]
    if sentences is not None and start_with_eos:
        raise UserError(f"--start-with-eos must not go with --data {folder}, where sentences start with <S> already.")
    if sentences is not None and limit is not None:
        sentences = sentences[: max(2, np.searchsorted(sentences, limit, "right"))]
        limit = int(sentences[-1])
    if limit is not None:
        ids = ids[: limit + (not start_with_eos)]
    is_whole = len(ids) == facts["tokens"]
    if start_with_eos:
        ids = np.concatenate([np.array([reader.need_eos()], dtype=ids.dtype), ids])
    n_targets = len(ids) - 1
    n_bytes = facts["bytes"] if is_whole else None
    if n_bytes is not None and corpus.unit == "character" and not start_with_eos:
        n_bytes -= len(corpus.tokenizer.convert_ids_to_tokens(int(ids[0])).encode("utf-8"))
    is_unknown = ids[1:] == (-1 if reader.unknown_id is None else reader.unknown_id)
    return _Text(
        ids=ids,
        source={"data": str(folder), "split": split},
        n_unknown=int(np.count_nonzero(is_unknown)),
        n_characters={"byte": None, "character": n_targets, "word": facts["characters"] if is_whole else None}[
            corpus.unit
        ],
        n_bytes=n_targets if corpus.unit == "byte" else n_bytes,
        line_mark={"eos": EOS, "sentence": SENTENCE_BOUNDARY}.get(corpus.meta["options"]["line_end"]),
        sentences=sentences,
    )


def _check_vocabulary(model: str, tokenizer: Any, data: Path) -> None:
    """Refuse tokens of another vocabulary, if the model says which one is its own."""
    from .loading import load_tokenizer, model_folder

    folder = Path(model_folder(model))
    if not (folder / "vocab.json").is_file():
        return
    if load_tokenizer(model).get_vocab() != tokenizer.get_vocab():
        raise UserError(
            f"--data {data} has another vocabulary than MODEL {folder}: prepare the text with --tokenizer {folder}."
        )


def _numbers(result: "Evaluation", read: _Text) -> dict[str, Any]:
    bits = result.bits_per_token * result.n_tokens
    return {
        "loss_nats": result.loss_nats,
        "perplexity": result.perplexity if math.isfinite(result.perplexity) else None,
        "bits_per_token": result.bits_per_token,
        "bits_per_character": bits / read.n_characters if read.n_characters else None,
        "bits_per_byte": bits / read.n_bytes if read.n_bytes else None,
        "tokens": result.n_tokens,
        "unknown_tokens": read.n_unknown,
        "characters": read.n_characters,
        "bytes": read.n_bytes,
        "seconds": round(result.seconds, 3),
        "tokens_per_s": round(result.tokens_per_s, 1),
    }


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("transformer-xl", "torch", "transformers")}


def _print_table(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    table.add_column()
    table.add_column(overflow="fold")
    for name in ("model", "text", "data", "split"):
        if name in report:
            table.add_row(name, escape(report[name]))
    for name, (title, form) in TITLES.items():
        if report[name] is not None:
            value = form.format(report[name])
            table.add_row(title, f"[bold]{value}[/]" if name == "loss_nats" else value)
    table.add_row()
    for name, value in {**report["settings"], **report["versions"]}.items():
        shown = value if isinstance(value, str) else json.dumps(value)
        table.add_row(f"[dim]{name}[/]", f"[dim]{escape(shown)}[/]")
    Console().print(table)


@contextmanager
def _progress(n_tokens: int) -> Iterator[Callable[[int], None]]:
    """A bar on standard error, if that is a terminal; gives the function that moves it on."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("tokens"), BarColumn(bar_width=24), MofNCompleteColumn(), TimeRemainingColumn(compact=True))
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task("", total=n_tokens)
        yield lambda n_predicted: bar.advance(task, n_predicted)


__all__ = ["evaluate"]
