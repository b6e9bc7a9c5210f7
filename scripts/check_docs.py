"""Check that the documentation tells the truth where a program can tell: links, commands, and the command reference.

python scripts/check_docs.py           # check; prints what is wrong and exits with 1
python scripts/check_docs.py --write   # write docs/cli.md from the help texts
"""

import os
import re
import shlex
import sys
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

ROOT = Path(__file__).parents[1]
CLI_REFERENCE = ROOT / "docs" / "cli.md"
HELP_WIDTH = "100"
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


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
    parts = [
        "# The command line",
        "Written by `python scripts/check_docs.py --write` from the help texts; do not edit.",
    ]
    parts.append(f"```text\n{help_of()}\n```")
    parts += [f"## transformer-xl {name}\n\n```text\n{help_of(name)}\n```" for name in commands]
    return "\n\n".join(parts) + "\n"


def main() -> int:
    """Check, or write with `--write`; the exit status."""
    if sys.argv[1:] == ["--write"]:
        CLI_REFERENCE.write_text(cli_reference(), encoding="utf-8")
        return 0
    problems = [problem for document in documents() for problem in broken_links(document)]
    problems += [problem for document in documents() for problem in unknown_commands(document)]
    if not CLI_REFERENCE.is_file() or CLI_REFERENCE.read_text(encoding="utf-8") != cli_reference():
        problems.append("docs/cli.md is stale: python scripts/check_docs.py --write")
    for problem in problems:
        print(problem)
    print(f"{len(documents())} documents checked, {len(problems)} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
