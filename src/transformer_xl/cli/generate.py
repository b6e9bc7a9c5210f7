"""`transformer-xl generate`: let a model write."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from .errors import UserError


def generate(
    model: Annotated[str, typer.Argument(help="Model folder, or the name of a model on the Hub.", show_default=False)],
    prompt: Annotated[
        str | None, typer.Argument(help="Text to go on from; without it, standard input.", show_default=False)
    ] = None,
    prompt_file: Annotated[
        Path | None, typer.Option("--prompt-file", "-f", help="Read the prompt from this file.", show_default=False)
    ] = None,
    length: Annotated[int, typer.Option("--length", "-n", min=0, help="Tokens to write; 0: no end.")] = 500,
    temperature: Annotated[float, typer.Option(help="Below 1 safer, above 1 wilder.")] = 0.8,
    top_k: Annotated[int, typer.Option(min=0, help="Choose among the so many most probable tokens; 0: all.")] = 0,
    top_p: Annotated[
        float, typer.Option(help="Choose among the most probable tokens which together have this probability; 1: all.")
    ] = 1.0,
    greedy: Annotated[bool, typer.Option("--greedy", help="Always the most probable token.")] = False,
    seed: Annotated[
        int | None, typer.Option(min=0, help="For the same text each time.", show_default="another text each time")
    ] = None,
    stop: Annotated[
        list[str] | None, typer.Option(help="End before this text; may be given several times.", show_default=False)
    ] = None,
    stop_at_eos: Annotated[
        bool, typer.Option("--stop-at-eos", help="End at the end symbol <eos>, which else is a line break.")
    ] = False,
    only_new: Annotated[bool, typer.Option("--only-new", help="Do not print the prompt.")] = False,
) -> None:
    """Write on from a prompt, as it comes, for as long as you like: memory and time per token stay the same.

    Escape sequences in --stop are not interpreted; in bash write $'\\n' for a line break.
    """
    text = _prompt(prompt, prompt_file)
    if "" in (stop or ()):
        raise UserError("--stop '' must hold at least one character: every text contains the empty one.")

    from transformer_xl.generation import Sampling, stream_text

    from .loading import load_language_model

    sampling = Sampling(greedy=greedy, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
    language_model, tokenizer = load_language_model(model)
    pieces = stream_text(
        language_model,
        tokenizer,
        text,
        sampling=sampling,
        length=length or None,
        stop=stop or (),
        stop_at_eos=stop_at_eos,
    )
    if not only_new:
        sys.stdout.write(text)
    for piece in pieces:
        sys.stdout.write(piece)
        sys.stdout.flush()
    sys.stdout.write("\n")


def _prompt(prompt: str | None, prompt_file: Path | None) -> str:
    """The prompt from the one place where it was given; a single line break at the end of a file is not part of it."""
    if prompt is not None and prompt_file is not None:
        raise UserError("PROMPT and --prompt-file must not both be given: pass one of them.")
    if prompt is not None:
        text, source = prompt, "PROMPT"
    elif prompt_file is not None:
        text, source = _decoded(prompt_file.read_bytes(), str(prompt_file)), f"--prompt-file {prompt_file}"
    elif sys.stdin.isatty():
        raise UserError("PROMPT is missing: give it as an argument, by --prompt-file, or on standard input.")
    else:
        text, source = _decoded(sys.stdin.buffer.read(), "standard input"), "standard input"
    if prompt is None:
        text = text.removesuffix("\n")
    if not text:
        raise UserError(f"{source} is empty but must hold at least one character to go on from.")
    return text


def _decoded(data: bytes, source: str) -> str:
    try:
        return data.decode("utf-8").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{source} is not UTF-8 text (byte {error.start}): convert it, for example with iconv."
        ) from error


__all__ = ["generate"]
