"""The house rules that a reader of one file cannot see: import direction, no unpickling, nothing of one machine."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from transformer_xl.cli.app import app

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "transformer_xl"
MODEL_ROOTS = {"configuration", "attention", "adaptive", "memory", "modeling", "tokenization", "pickle_reader"}
EVERYTHING_ELSE = {
    "analysis", "cli", "data", "evaluation", "files", "generation", "legacy", "plots", "scoring", "training",
}  # fmt: skip
COMMANDS = typer.main.get_command(app).commands
PYTHON_FILES = sorted(path for folder in ("src", "tests", "scripts") for path in (ROOT / folder).rglob("*.py"))
TEXT_FILES = sorted(
    path
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *ROOT.glob("*.toml"), ROOT / "Makefile"]
    if path.is_file()
)


def own_imports(path: Path) -> Iterator[str]:
    """The modules of this package that a file imports anywhere, as dotted names below `transformer_xl`."""
    folder = path.relative_to(PACKAGE).parent.parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level > 0:
            base = folder[: len(folder) - node.level + 1]
            names = [node.module] if node.module else [alias.name for alias in node.names]
            yield from (".".join((*base, name)) for name in names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "transformer_xl":
            yield node.module.partition(".")[2]
        elif isinstance(node, ast.Import):
            yield from (a.name.partition(".")[2] for a in node.names if a.name.split(".")[0] == "transformer_xl")


def test_model_files_import_only_each_other_and_by_a_flat_relative_import():
    """A Hub folder carries these files side by side, without the rest of the package."""
    found, to_read = set(), set(MODEL_ROOTS)
    while to_read:
        name = to_read.pop()
        found.add(name)
        path = PACKAGE / f"{name}.py"
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.level > 0:
                is_flat = node.level == 1 and node.module is not None and "." not in node.module
                assert is_flat, f"{path.name}:{node.lineno} must be `from .name import x`"
        to_read |= set(own_imports(path)) - found
    assert not found & EVERYTHING_ELSE


def test_only_the_command_line_imports_the_command_line():
    outside = [path for path in PACKAGE.rglob("*.py") if path.parent.name != "cli" and path.name != "__main__.py"]
    for path in outside:
        assert not [name for name in own_imports(path) if name.split(".")[0] == "cli"], path.name


def called_name(node: ast.Call) -> str:
    """`a.b.c(...)` as `a.b.c`; empty if the thing called is no dotted name."""
    parts: list[str] = []
    function = node.func
    while isinstance(function, ast.Attribute):
        parts.append(function.attr)
        function = function.value
    return ".".join(reversed([*parts, function.id])) if isinstance(function, ast.Name) else ""


FORBIDDEN_CALLS = re.compile(
    r"^(eval|exec|__import__|(torch|joblib|marshal|dill|cloudpickle|shelve|_?pickle|cPickle)\.(loads?|open|Unpickler)"
    r"|Unpickler|(pd|pandas)\.read_pickle)$"
)


def is_safe_in_a_test(call: ast.Call) -> bool:
    """Tests may compare with torch's own safe reader, and copy objects that they made themselves."""
    if called_name(call) == "torch.load":
        return any(k.arg == "weights_only" and getattr(k.value, "value", None) is True for k in call.keywords)
    made_here = isinstance(call.args[0], ast.Call) and called_name(call.args[0]) == "pickle.dumps"
    return called_name(call) == "pickle.loads" and made_here


@pytest.mark.parametrize("path", PYTHON_FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_in_a_file_is_ever_executed(path):
    is_test = path.is_relative_to(ROOT / "tests")
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            is_forbidden = FORBIDDEN_CALLS.match(called_name(node)) and not (is_test and is_safe_in_a_test(node))
            assert not is_forbidden, f"{path.name}:{node.lineno}"
            for keyword in node.keywords:
                unsafe = (keyword.arg, getattr(keyword.value, "value", None)) in {
                    ("allow_pickle", True),
                    ("weights_only", False),
                    ("trust_remote_code", True),
                }
                assert not unsafe, f"{path.name}:{node.lineno}"


@pytest.mark.parametrize("path", PYTHON_FILES + TEXT_FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_names_a_folder_of_one_machine(path):
    folders = "|".join(["work", "root", "home/[a-z]", "tmp/team"])
    assert not re.search(rf"(?<![\w.:/-])/({folders})/", path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], *([name, "--help"] for name in COMMANDS)])
def test_help_imports_nothing_heavy(arguments):
    """`-X importtime` lists every module that the process imported."""
    program = "import sys; sys.argv[1:] = sys.argv[2:]; from transformer_xl_command import main; main()"
    run = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", program, "--", *arguments],
        capture_output=True,
        text=True,
        check=True,
    )
    imported = {line.rpartition("|")[2].strip().split(".")[0] for line in run.stderr.splitlines()}
    assert {"typer", "transformer_xl"} <= imported
    assert not imported & {
        "torch",
        "transformers",
        "numpy",
        "matplotlib",
        "accelerate",
        "sacremoses",
        "pydantic",
        "rich",
    }
