"""`transformer-xl train`: an experiment from a recipe."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import sleep
from typing import Annotated, NoReturn

import typer

from .errors import EXIT_INTERRUPTED, EXIT_USER_ERROR, UserError

EXIT_LOST_PROCESS = 1
LAST_WORD_S = 2.0


def train(
    recipe: Annotated[
        str | None,
        typer.Argument(
            help="A recipe file, or the name of one that comes with the package, such as ptb-small; with --resume, the "
            "run's own if it is left out.",
            show_default=False,
        ),
    ] = None,
    output_dir: Annotated[
        Path | None, typer.Option("--output-dir", "-o", help="Folder of the run.", show_default="runs/RECIPE")
    ] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="Change a key of the recipe, as data.path=FOLDER or train.max_steps=30; may be given several times.",
            show_default=False,
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the run's last checkpoint; begin if there is none.")
    ] = False,
    list_recipes: Annotated[bool, typer.Option("--list", help="List the recipes of the package and exit.")] = False,
) -> None:
    """Train a model as a recipe says (docs/recipes.md), with checkpoints from which a killed run goes on.

    On several processes or machines: torchrun --nproc-per-node 4 -m transformer_xl train RECIPE (docs/clusters.md).
    """
    if list_recipes:
        _print_recipes()
        return
    with _told_once():
        if recipe is None and not (resume and output_dir is not None):
            raise UserError(
                "RECIPE is missing: give a file or a name of --list; or resume a run: --output-dir RUN --resume."
            )
        path = output_dir / "recipe.toml" if recipe is None and output_dir is not None else _find(str(recipe))
        _train(path, changes or [], output_dir if output_dir is not None else Path("runs", path.stem), resume)


def _train(path: Path, changes: list[str], folder: Path, resume: bool) -> None:
    from rich.console import Console
    from transformers.utils.logging import disable_progress_bar

    from transformer_xl.training.processes import leave_processes
    from transformer_xl.training.recipe import read_recipe
    from transformer_xl.training.run import Interrupted, run_training

    disable_progress_bar()  # the one of our own says more
    console = Console(highlight=False, soft_wrap=True, quiet=os.environ.get("RANK", "0") != "0")
    try:
        run_training(read_recipe(path, changes), folder, resume=resume, console=console)
    except Interrupted:
        console.print(f"Stopped with a checkpoint; go on with: transformer-xl train -o {folder} --resume", markup=False)
        leave_processes()
        raise typer.Exit(EXIT_INTERRUPTED) from None
    leave_processes()


@contextmanager
def _told_once() -> Iterator[None]:
    """One process tells an error that several have; all end with a status that says so."""
    try:
        yield
    except (OSError, TypeError, ValueError, UserError):
        from torch.distributed import is_initialized

        # From then on, the processes agree on who tells it; before, the first on each machine does.
        if is_initialized() or os.environ.get("LOCAL_RANK", "0") == "0":
            raise
        _end_silently()
    except Exception as error:
        from transformer_xl.training.processes import Elsewhere, loss_of_process

        if isinstance(error, Elsewhere):
            _end_silently()
        loss = loss_of_process(error)
        if loss is None:
            raise
        typer.echo(
            f"transformer-xl: error: Another process of this run was lost, says process {os.environ.get('RANK', '0')} "
            f"({loss}): start all again with --resume, or let torchrun do it (--max-restarts).",
            err=True,
        )
        raise typer.Exit(EXIT_LOST_PROCESS) from None


def _end_silently() -> NoReturn:
    """End after the process that tells what is wrong: torchrun ends all as soon as one has ended."""
    sleep(LAST_WORD_S)
    raise typer.Exit(EXIT_USER_ERROR)


def recipe_folder() -> Path:
    """Where the recipes of the package are: in it, or beside `src` in a checkout."""
    package = Path(__file__).parents[1]
    inside = package / "recipes"
    return inside if inside.is_dir() else package.parents[1] / "recipes"


def _find(recipe: str) -> Path:
    """The file that the user means."""
    path = Path(recipe)
    if path.exists():
        if path.is_dir():
            raise UserError(f"RECIPE {recipe} is a folder but must be a TOML file, or the name of a recipe (--list).")
        return path
    named = recipe_folder() / f"{recipe.removesuffix('.toml')}.toml"
    if path.name == recipe and named.is_file():
        return named
    from difflib import get_close_matches

    near = get_close_matches(path.stem, [found.stem for found in recipe_folder().glob("*.toml")], n=1)
    remedy = f"did you mean {near[0]}?" if near else "see the names with transformer-xl train --list."
    raise UserError(f"RECIPE {recipe} does not exist: {remedy}")


def _print_recipes() -> None:
    import tomllib

    for path in sorted(recipe_folder().glob("*.toml")):
        title = tomllib.loads(path.read_text(encoding="utf-8"))["title"]
        typer.echo(f"{path.stem:<18} {title}")


__all__ = ["train"]
