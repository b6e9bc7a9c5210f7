"""Check that the documentation tells the truth where a program can tell: links, commands, and what it is written from.

python scripts/check_docs.py           # check; prints what is wrong and exits with 1
python scripts/check_docs.py --write   # write docs/cli.md from the help texts, docs/recipes.md from the recipes' schema
"""

import os
import re
import shlex
import sys
import tomllib
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

ROOT = Path(__file__).parents[1]
HELP_WIDTH = "100"
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
WRITTEN = "Written by `python scripts/check_docs.py --write` from {source}; do not edit."

RECIPES_INTRODUCTION = """\
A recipe is a TOML file that says everything about an experiment: the text, the model, the training, and how the result
is measured. `recipes/` holds one for each experiment of the paper that its authors published the settings of, and small
ones that run in minutes on two CPU cores; they come with the package and are found by their names, too. What was
reached with them: [reproducing.md](reproducing.md).

```bash
transformer-xl train ptb-small --output-dir runs/ptb-small
transformer-xl train --output-dir runs/ptb-small --resume
transformer-xl train recipes/wt103-base.toml --set data.path=/data/wikitext-103 --set train.precision=bfloat16
transformer-xl train text8-small --set model.mem_len=0 --set train.max_steps=300
```

- `--set TABLE.KEY=VALUE` changes a value. VALUE is TOML (`5e-4`, `true`, `[4000, 12000]`); what is no TOML is text.
- `data.path` is a folder that `transformer-xl prepare` made, or one with the raw files of a corpus, which is prepared
  on first use in the user's cache; nothing is written where the text lies ([data.md](data.md)). The recipes here name
  `data/CORPUS`, relative to where the command runs.
- Unknown keys and impossible values are refused before anything else happens.
- The same recipe runs on several GPUs and machines, with another command before it: [clusters.md](clusters.md).
- Beside every checkpoint lies `recipe.toml`: the recipe with the changes, all defaults and all sizes of the model. It
  is a recipe itself, so it repeats the run.
- A recipe of your own needs a `title`, `data.path`, `train.batch_size` and `train.max_steps`; all else has a default,
  which for `[model]` is that of the released WikiText-103 model."""

MODEL_INTRODUCTION = """\
The fields of [`TransfoXLConfig`](../src/transformer_xl/configuration.py); [model.md](model.md) says what they do.
A recipe's model must fit its text: where a `vocab_size` is given, it must be at least that of the corpus."""

OF_THE_CORPUS = dict.fromkeys(["vocab_size", "eos_token_id"], "of the corpus")


def documents() -> list[Path]:
    """Every Markdown file that a reader of the repository meets."""
    return sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "benchmarks").rglob("*.md")])


def anchors(text: str) -> set[str]:
    """The anchors that GitHub makes of the headings."""
    headings = HEADING.findall(FENCE.sub("", text))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(document: Path) -> Iterator[str]:
    """Relative links to files or headings that do not exist."""
    for target in LINK.findall(FENCE.sub("", document.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        linked = (document.parent / name).resolve() if name else document
        if not linked.exists():
            yield f"{document.relative_to(ROOT)}: {target} does not exist"
        elif anchor and linked.suffix == ".md" and anchor not in anchors(linked.read_text(encoding="utf-8")):
            yield f"{document.relative_to(ROOT)}: {target} has no such heading"


def shell_lines(document: Path) -> Iterator[list[str]]:
    """The commands of the document's shell blocks as words: continued lines joined, pipes and chains cut apart."""
    for language, block in FENCE.findall(document.read_text(encoding="utf-8")):
        if language not in {"bash", "sh", "console", "shell"}:
            continue
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.shlex(line.removeprefix("$ "), posix=True, punctuation_chars=True)
            words.whitespace_split = True
            for is_separator, command in groupby(words, key=lambda word: word in {"|", "&&", ";", ">", "<"}):
                if not is_separator:
                    yield list(command)


def unknown_commands(document: Path) -> Iterator[str]:
    """Commands, options and make targets in the document that do not exist."""
    import typer

    from transformer_xl.cli.app import app

    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for words in shell_lines(document):
        line = " ".join(words)
        if words[:1] == ["make"]:
            yield from (
                f"{document.name}: no such target: {line}" for w in words[1:] if "=" not in w and w not in targets
            )
        if words[:1] != ["transformer-xl"] or words[1:2] in (["--help"], ["--version"]):
            continue
        if words[1] not in commands:
            yield f"{document.name}: no such command: {line}"
            continue
        known = {
            option for parameter in commands[words[1]].params for option in parameter.opts + parameter.secondary_opts
        }
        for word in words[2:]:
            if word.startswith("--") and word.partition("=")[0] not in known | {"--help"}:
                yield f"{document.name}: no such option {word}: {line}"


def cli_reference() -> str:
    """`docs/cli.md` as the help texts have it now."""
    os.environ |= {"COLUMNS": HELP_WIDTH, "TERMINAL_WIDTH": HELP_WIDTH, "TERM": "dumb", "NO_COLOR": "1"}
    import typer
    from typer.testing import CliRunner

    from transformer_xl.cli.app import app

    def help_of(*arguments: str) -> str:
        output = CliRunner().invoke(app, [*arguments, "--help"], prog_name="transformer-xl").output
        return "\n".join(line.rstrip() for line in output.strip("\n").splitlines()).strip("\n")

    commands = list(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
    parts = ["# The command line", WRITTEN.format(source="the help texts")]
    parts.append(f"```text\n{help_of()}\n```")
    parts += [f"## transformer-xl {name}\n\n```text\n{help_of(name)}\n```" for name in commands]
    return "\n\n".join(parts) + "\n"


def recipe_reference() -> str:
    """`docs/recipes.md` as the schema of recipes and the recipes have it now."""
    from transformer_xl.training.recipe import Recipe

    source = "`src/transformer_xl/training/recipe.py` and `recipes/`"
    parts = ["# Recipes", WRITTEN.format(source=source), RECIPES_INTRODUCTION, "## The recipes", recipe_list()]
    parts += ["## Keys", "`unset` is no value that can be written: leave the key out."]
    for name, field in Recipe.model_fields.items():
        if name == "model":
            parts += ["### [model]", MODEL_INTRODUCTION, model_keys()]
        elif hasattr(field.annotation, "model_fields"):
            table: Any = field.annotation
            heading, *rest = (table.__doc__ or "").split("\n\n")
            parts += [f"### [{name}]", heading, *(" ".join(part.split()) for part in rest), table_keys(table)]
    return "\n\n".join(parts) + "\n"


def recipe_list() -> str:
    """A Markdown table of the files in `recipes/`."""
    rows = []
    for path in sorted((ROOT / "recipes").glob("*.toml"), key=lambda path: path.stem):
        title = tomllib.loads(path.read_text(encoding="utf-8"))["title"]
        rows.append(f"| [{path.stem}](../recipes/{path.name}) | {title} |")
    return "\n".join(["| recipe | what it is |", "| --- | --- |", *rows])


def table_keys(table: Any) -> str:
    """A Markdown table of the keys of a table of the schema."""
    rows = ["| key | value | default | |", "| --- | --- | --- | --- |"]
    for name, field in table.model_fields.items():
        default = "needed" if field.is_required() else as_toml(field.default)
        rows.append(f"| `{name}` | {kind_of(field)} | {default} | {field.description} |")
    return "\n".join(rows)


def model_keys() -> str:
    """A Markdown table of the model's fields, from the docstring of its configuration."""
    from transformer_xl.configuration import TransfoXLConfig

    arguments = (TransfoXLConfig.__doc__ or "").partition("Args:\n")[2].partition("\n\n")[0]
    rows = ["| key | default | |", "| --- | --- | --- |"]
    for names, text in re.findall(r"^ {8}(\w[\w, ]*): (.+(?:\n {9,}.+)*)", arguments, re.MULTILINE):
        defaults = [
            OF_THE_CORPUS.get(name) or as_toml(getattr(TransfoXLConfig, name, None)) for name in names.split(", ")
        ]
        keys = ", ".join(f"`{name}`" for name in names.split(", "))
        rows.append(f"| {keys} | {', '.join(defaults)} | {' '.join(text.split())} |")
    return "\n".join(rows)


def as_toml(value: object) -> str:
    """A default as a recipe would write it."""
    import tomlkit

    if value is None:
        return "unset"
    return f"`{tomlkit.item(list(value) if isinstance(value, tuple) else value).as_string()}`"


def kind_of(field: Any) -> str:
    """What values a key may have."""
    kinds = [kind for kind in (get_args(field.annotation) or [field.annotation]) if kind is not NoneType]
    kind = field.annotation if get_origin(field.annotation) in (Literal, list) else kinds[0]
    if get_origin(kind) is Literal:
        return ", ".join(as_toml(choice) for choice in get_args(kind))
    words = {int: "integer", float: "number", bool: "`true`, `false`", str: "text", list[float]: "numbers"}[kind]
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    limits = [
        f"{sign} {getattr(limit, name)}"
        for limit in field.metadata
        for name, sign in signs.items()
        if hasattr(limit, name)
    ]
    return ", ".join([words, *limits])


REFERENCES = {ROOT / "docs" / "cli.md": cli_reference, ROOT / "docs" / "recipes.md": recipe_reference}
"""Documents that are written by this program."""


def main() -> int:
    """Check, or write with `--write`; the exit status."""
    if sys.argv[1:] == ["--write"]:
        for path, written in REFERENCES.items():
            path.write_text(written(), encoding="utf-8")
        return 0
    problems = [problem for document in documents() for problem in broken_links(document)]
    problems += [problem for document in documents() for problem in unknown_commands(document)]
    for path, written in REFERENCES.items():
        if not path.is_file() or path.read_text(encoding="utf-8") != written():
            problems.append(f"{path.relative_to(ROOT)} is stale: python scripts/check_docs.py --write")
    for problem in problems:
        print(problem)
    print(f"{len(documents())} documents checked, {len(problems)} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
