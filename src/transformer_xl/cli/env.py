"""`transformer-xl env`: what this installation consists of, for bug reports."""

import json
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated

import typer

PACKAGES = (
    "transformer-xl",
    "torch",
    "transformers",
    "tokenizers",
    "huggingface_hub",
    "accelerate",
    "safetensors",
    "numpy",
    "sacremoses",
    "typer",
    "rich",
    "matplotlib",
    "tensorboard",
    "google-crc32c",
)


def env(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,
) -> None:
    """Print versions, devices and threads, to paste into a bug report."""
    facts = environment()
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
        return
    width = max(len(name) for name in facts)
    for name, value in facts.items():
        typer.echo(f"{name:<{width}}  {'not installed' if value is None else value}")


def environment() -> dict[str, str | int | None]:
    """Versions of Python, this package and its dependencies (None: not installed), devices, and threads."""
    import torch

    facts: dict[str, str | int | None] = {"python": sys.version.split()[0], "platform": platform.platform()}
    facts |= {name: _version_of(name) for name in PACKAGES}
    facts["threads"] = torch.get_num_threads()
    facts["cuda"] = torch.version.cuda
    facts["devices"] = ", ".join(_devices())
    return facts


def _version_of(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _devices() -> list[str]:
    import torch

    devices = ["cpu"]
    devices += [f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        devices.append("mps")
    return devices


__all__ = ["env", "environment"]
