"""`transformer-xl prepare`: text files in, memory-mapped token arrays out."""

import os
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .errors import UserError

if TYPE_CHECKING:
    from transformer_xl.data.corpora import Assignment
    from transformer_xl.data.opening import CorpusOptions
    from transformer_xl.data.prepared import PreparedCorpus

SPLITS = ("train", "valid", "test")


def prepare(
    sources: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Text files, plain or .gz, .xz, .zst, .zip, and folders of them. The paper's corpora are known by "
            "their files' names.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The folder to make; nothing else may be in it.", show_default=False)
    ] = Path(),
    corpus: Annotated[
        str | None,
        typer.Option(
            help="Read the text as this corpus: enwik8, text8, wikitext-103, wikitext-2, ptb, lm1b, or text for "
            "one of your own.",
            show_default="by the files' names",
        ),
    ] = None,
    download: Annotated[
        str | None,
        typer.Option(help="Fetch this corpus of the paper from its public home.", show_default=False),
    ] = None,
    raw_dir: Annotated[
        Path | None, typer.Option(help="Where --download puts the files.", show_default="the user's cache")
    ] = None,
    train: Annotated[
        list[Path] | None,
        typer.Option(help="Text of this split; may be given several times.", show_default=False),
    ] = None,
    valid: Annotated[list[Path] | None, typer.Option(help="Likewise.", show_default=False)] = None,
    test: Annotated[list[Path] | None, typer.Option(help="Likewise.", show_default=False)] = None,
    fractions: Annotated[
        str | None,
        typer.Option(
            help="Shares of train, valid and test where the files' names tell none.",
            show_default="0.9,0.05,0.05",
        ),
    ] = None,
    mode: Annotated[
        str | None,
        typer.Option(
            help="What a token is: words (between white space), characters, moses (words of raw text), bytes.",
            show_default="words",
        ),
    ] = None,
    line_end: Annotated[
        str | None,
        typer.Option(
            help="What ends a line of words: eos (<eos>), sentence (<S>; lines are unrelated, to be shuffled), none.",
            show_default="eos",
        ),
    ] = None,
    lower_case: Annotated[
        bool | None, typer.Option("--lower-case/--keep-case", help="Lower-case the text.", show_default="keep")
    ] = None,
    min_freq: Annotated[
        int | None, typer.Option(min=0, help="Leave rarer words out of the vocabulary.", show_default="0")
    ] = None,
    max_size: Annotated[
        int | None, typer.Option(min=1, help="Most words of the vocabulary.", show_default="no limit")
    ] = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option(help="Use the vocabulary of this tokenizer folder instead of a new one.", show_default=False),
    ] = None,
    processes: Annotated[
        int | None, typer.Option(min=1, help="Processes that read text.", show_default="one a core")
    ] = None,
) -> None:
    """Turn text into memory-mapped token arrays, which training and evaluation read.

    Memory stays bounded however large the text. Stopped or killed, the same command goes on where it was.
    """
    if output == Path():
        raise UserError("--output is missing: name the folder to make.")
    named = {"train": train or [], "valid": valid or [], "test": test or []}
    _check_one_source(sources, named, download)
    if download is not None and corpus not in (None, download):
        raise UserError(f"--corpus {corpus} does not go with --download {download}: leave --corpus out.")

    from rich.console import Console

    from transformer_xl.data.opening import CorpusOptions
    from transformer_xl.data.preparation import prepare as prepare_corpus

    options = CorpusOptions(
        corpus=corpus if download is None else download,
        mode=mode,  # type: ignore[arg-type]  # checked there
        line_end=line_end,  # type: ignore[arg-type]  # likewise
        lower_case=lower_case,
        min_freq=min_freq,
        max_size=max_size,
        fractions=_shares(fractions),
    )
    started = monotonic()
    progress = Console(stderr=True, highlight=False)
    was_there = (output / "meta.json").is_file()
    assignment = _assignment(sources, named, options, download, raw_dir, progress)
    prepared = prepare_corpus(
        assignment, output, tokenizer=tokenizer, processes=processes or _cores(), console=progress
    )
    for line in report(prepared, None if was_there else monotonic() - started):
        typer.echo(line)


def report(prepared: "PreparedCorpus", seconds: float | None) -> list[str]:
    """What the command prints, line by line; `seconds` is None where nothing had to be done."""
    splits = prepared.meta["splits"]
    vocabulary = prepared.meta["vocabulary"]
    what = prepared.name if prepared.name != "text" else "own text"
    lines = [
        f"corpus      {what}, read as {prepared.meta['options']['mode']}",
        f"vocabulary  {vocabulary['size']:,}, sha256 {vocabulary['sha256'][:16]}",
    ]
    for name, facts in splits.items():
        sentences = f", {facts['sentences']:,} sentences" if prepared.meta["sentences"] else ""
        unknown = f", {facts['unknown']:,} unknown" if facts["unknown"] else ""
        lines.append(f"{name:<11} {facts['tokens']:,} tokens ({facts['dtype']}){sentences}{unknown}")
    n_tokens = sum(facts["tokens"] for facts in splits.values())
    done = "already prepared" if seconds is None else f"{seconds:.1f} s, {n_tokens / seconds:,.0f} tokens/s"
    return [*lines, f"written     {prepared.folder} ({done})"]


def _check_one_source(sources: list[Path] | None, named: dict[str, list[Path]], download: str | None) -> None:
    given = [
        name
        for name, is_given in (
            ("SOURCES", sources),
            ("--train, --valid, --test", any(named.values())),
            ("--download", download is not None),
        )
        if is_given
    ]
    if not given:
        raise UserError("There is no text: give SOURCES, or --train, --valid and --test, or --download.")
    if len(given) > 1:
        raise UserError(f"{' and '.join(given)} must not be given together: leave one out.")


def _shares(text: str | None) -> dict[str, float] | None:
    if text is None:
        return None
    try:
        shares = [float(part) for part in text.split(",")]
        return dict(zip(SPLITS, shares, strict=True))
    except ValueError:
        raise UserError(f"--fractions {text} must be three numbers that add up to 1, such as 0.9,0.05,0.05.") from None


def _assignment(
    sources: list[Path] | None,
    named: dict[str, list[Path]],
    options: "CorpusOptions",
    download: str | None,
    raw_dir: Path | None,
    console: Any,
) -> "Assignment":
    """The files of each split and the rules, downloaded first if that is asked for."""
    from transformer_xl.data.opening import assign, assign_splits
    from transformer_xl.data.prepared import cache_folder

    if download is not None:
        from transformer_xl.data.download import download_corpus

        folder = raw_dir if raw_dir is not None else cache_folder() / "raw" / download
        return assign(download_corpus(download, folder, console), options)
    return assign(sources, options) if sources else assign_splits(named, options)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


__all__ = ["prepare", "report"]
