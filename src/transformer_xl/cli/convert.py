"""`transformer-xl convert`: an old checkpoint in, a folder that `from_pretrained` loads out."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from transformer_xl.legacy.conversion import Conversion


def convert(
    source: Annotated[
        Path,
        typer.Argument(
            help="A folder of transformers, the authors' model.pt, a TensorFlow prefix (model.ckpt-0), "
            "or NVIDIA's checkpoint_best.pt."
        ),
    ],
    output: Annotated[Path, typer.Argument(help="The folder to write; it must not exist yet, or be empty.")],
    arguments: Annotated[
        Path | None,
        typer.Option(help="JSON file with settings that the checkpoint does not hold, by the authors' names or ours."),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(help="Settings of one of the paper's experiments (such as wt103-large) for what is still open."),
    ] = None,
    vocab: Annotated[
        Path | None,
        typer.Option(
            help="The vocabulary (vocab.txt, vocab.pkl, vocab.bin, cache.pt, vocab.json), if it lies elsewhere."
        ),
    ] = None,
) -> None:
    """Convert an old checkpoint to safetensors; nothing in it is executed, and the result is verified."""
    from transformers.utils.logging import disable_progress_bar

    from transformer_xl.legacy.conversion import convert as convert_checkpoint
    from transformer_xl.legacy.hugging_face import read_json

    disable_progress_bar()
    settings = read_json(arguments) if arguments is not None else {}
    conversion = convert_checkpoint(source, output, arguments=settings, preset=preset, vocabulary=vocab)
    for line in report(conversion, source, output):
        typer.echo(line)


def report(conversion: "Conversion", source: Path, output: Path) -> list[str]:
    """What the command prints, line by line."""
    config = conversion.config
    size = f"{conversion.n_bytes / 1e6:,.1f} MB, {conversion.dtype}"
    memory = f"mem_len {config.mem_len}, clamp_len {config.clamp_len}, same_length {config.same_length}"
    words = "none" if conversion.n_words is None else f"{conversion.n_words:,} words from {conversion.vocabulary}"
    lines = [
        f"source      {source}: {conversion.format}",
        f"model       {conversion.architecture}, {config.n_layer} layers, width {config.d_model}, "
        f"{config.vocab_size:,} tokens",
        f"            {memory}, starting memory {config.initial_memory}",
        f"weights     {conversion.n_parameters:,} parameters, {size}",
        f"vocabulary  {words}"
        + (f" (tokenizer mode {conversion.tokenizer_mode})" if conversion.tokenizer_mode else ""),
    ]
    lines += [f"default     {text}: the checkpoint does not say it" for text in conversion.defaulted]
    if conversion.unused_arguments:
        lines.append(f"unused      arguments that are no setting of a model: {', '.join(conversion.unused_arguments)}")
    lines += [f"left out    {line}" for line in _grouped(conversion.ignored)]
    verified = "loaded, compared and run"
    if conversion.mean_loss is not None:
        verified += f" (mean loss {conversion.mean_loss:.3f} nats on an arbitrary sequence)"
    return [*lines, f"verified    {verified}", f"written     {output}"]


def _grouped(ignored: dict[str, str]) -> list[str]:
    """What was left out, one line a reason."""
    names_of: dict[str, list[str]] = {}
    for name, reason in sorted(ignored.items()):
        names_of.setdefault(reason, []).append(name)
    lines = []
    for reason, names in names_of.items():
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        lines.append(f"{', '.join(names[:3])}{more}: {reason}")
    return lines


__all__ = ["convert", "report"]
