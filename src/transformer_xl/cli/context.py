"""What `evaluate` and `score` share: the text, how much of the past the model sees, and on what it computes."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import typer


class DType(StrEnum):
    """Floating types to compute in."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"
    float64 = "float64"


TgtLen = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Tokens read at once; of the window, with --sliding-window.",
        show_default="the model's",
    ),
]
MemLen = Annotated[
    int | None,
    typer.Option(
        min=0,
        help="Tokens remembered; 0: each segment stands alone.",
        show_default="the model's",
    ),
]
ExtLen = Annotated[
    int | None,
    typer.Option(
        min=0,
        help="Without memory: tokens before a segment that are read again with it.",
        show_default="the model's",
    ),
]
ClampLen = Annotated[
    int | None,
    typer.Option(help="Distances beyond this count as this; -1: none do.", show_default="the model's"),
]
SameLength = Annotated[
    bool | None,
    typer.Option(
        "--same-length/--no-same-length",
        help="Every token sees the last --mem-len tokens, or all memory and its own past.",
        show_default="the model's",
    ),
]
SlidingWindow = Annotated[
    bool,
    typer.Option(
        "--sliding-window",
        help="Read without memory, for each token anew through a window of --tgt-len; slow.",
    ),
]
StartWithEos = Annotated[
    bool,
    typer.Option(
        "--start-with-eos",
        help="Put <eos> before the text, so that its first token is predicted too.",
    ),
]
NoEos = Annotated[
    bool,
    typer.Option("--no-eos", help="Line breaks are white space instead of <eos>, in models of words."),
]
Temperature = Annotated[float, typer.Option(help="Divides the log-probabilities, which are then normalised again.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 ...", show_default="a GPU if there is one")]
ComputeDType = Annotated[
    DType | None, typer.Option("--dtype", help="What to compute in.", show_default="that of the weights")
]


@contextmanager
def changed_context(
    model: Any, *, mem_len: int | None, clamp_len: int | None, same_length: bool | None
) -> Iterator[dict[str, Any]]:
    """Let the model see more or less within the block; gives all that its numbers depend on."""
    from transformer_xl.evaluation import context_lengths

    with context_lengths(model, mem_len=mem_len, clamp_len=clamp_len, same_length=same_length):
        config = model.config
        yield {
            "attn_type": config.attn_type,
            "mem_len": config.mem_len,
            "clamp_len": config.clamp_len,
            "same_length": config.same_length,
            "span": config.span,
            "initial_memory": config.initial_memory if config.mem_len else None,
            "dtype": str(model.dtype).removeprefix("torch."),
            "device": str(model.device),
            "attn_implementation": config._attn_implementation,
        }


def source_name(path: Path) -> str:
    """How messages call the text that the user gave."""
    return "standard input" if str(path) == "-" else str(path)


@contextmanager
def open_source(path: Path) -> Iterator[BinaryIO]:
    """The text that the user gave."""
    if str(path) == "-":
        yield sys.stdin.buffer
    else:
        with path.open("rb") as file:
            yield file


__all__ = [
    "ClampLen",
    "ComputeDType",
    "DType",
    "Device",
    "ExtLen",
    "MemLen",
    "NoEos",
    "SameLength",
    "SlidingWindow",
    "StartWithEos",
    "Temperature",
    "TgtLen",
    "changed_context",
    "open_source",
    "source_name",
]
