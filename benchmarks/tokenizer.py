"""How fast text becomes ids: this package beside the sacremoses pipeline that transformers 4.35 had.

    python benchmarks/tokenizer.py [--raw FILE] [--tokenized FILE] [--rounds N] [--results FILE]

Measured, one thread, the best of some rounds in which the contestants take turns:
    raw        text as people write it, Moses mode; without any word remembered from the round before
    tokenized  text whose words stand between white space; `encode` of the whole and `encode_file`
    loading    `from_pretrained` of a folder with 267,735 words, as WikiText-103 has

Without files, both texts are the play in the package. The last line is the result as JSON.
"""

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

import sacremoses

from transformer_xl.moses import moses_rules, tokenize_numbers
from transformer_xl.tokenization import TransfoXLTokenizer

WIKITEXT_103_WORDS = 267_735
PLAY = files("transformer_xl") / "data" / "tiny_shakespeare.txt"


def best_seconds(contestants: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """The shortest time of each contestant; they run in turns, so that a busy machine slows all of them."""
    seconds = dict.fromkeys(contestants, float("inf"))
    for _ in range(rounds):
        for name, run in contestants.items():
            start = time.perf_counter()
            run()
            seconds[name] = min(seconds[name], time.perf_counter() - start)
    return seconds


def raw_contestants(lines: list[str]) -> dict[str, Callable[[], object]]:
    """Lines of raw text to ids by this package, by sacremoses, and by the loop that any word tokenizer must run."""
    tokenizer = TransfoXLTokenizer.train(texts=lines)
    normalizer, moses = sacremoses.MosesPunctNormalizer("en"), sacremoses.MosesTokenizer("en")
    ids, protected = tokenizer.get_vocab(), tokenizer.all_special_tokens

    def ours() -> None:
        moses_rules.cache_clear()
        for line in lines:
            tokenizer.convert_tokens_to_ids(tokenizer.tokenize(line))

    def theirs() -> None:
        for line in lines:
            tokens = moses.tokenize(
                normalizer.normalize(line.strip()),
                aggressive_dash_splits=True,
                return_str=False,
                escape=False,
                protected_patterns=protected,
            )
            for token in tokenize_numbers(tokens):
                ids.get(token, 1)

    return {"transformer-xl": ours, "sacremoses": theirs}


def tokenized_contestants(text: str, path: Path) -> dict[str, Callable[[], object]]:
    """Tokenised text to ids in the ways that this package has, and the bare loop for comparison."""
    tokenizer = TransfoXLTokenizer.train(texts=[text], mode="whitespace")
    ids = tokenizer.get_vocab()
    return {
        "encode": lambda: tokenizer.encode(text),
        "encode_file": lambda: tokenizer.encode_file(path, ordered=True),
        "bare loop": lambda: [ids.get(word, 1) for word in text.split()],
    }


def facts() -> Iterator[tuple[str, str]]:
    """What a reader must know to judge the numbers."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)  # noqa: S607 - git of the user
    yield "command", " ".join(["python", *sys.argv])
    yield "commit", commit.stdout.strip() or "unknown"
    yield "device", f"{platform.processor() or platform.machine()}, one thread"
    yield "python", platform.python_version()
    yield from ((name, version(name)) for name in ("transformers", "sacremoses"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--raw", type=Path, help="UTF-8 file of raw text")
    parser.add_argument("--tokenized", type=Path, help="UTF-8 file of tokenised text")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--results", type=Path, help="write the JSON line to this file as well")
    arguments = parser.parse_args()
    result: dict[str, object] = dict(facts())

    raw = (arguments.raw or PLAY).read_text(encoding="utf-8")
    contestants = raw_contestants(raw.splitlines())
    n_tokens = len(TransfoXLTokenizer().moses_pipeline(raw))
    seconds = best_seconds(contestants, arguments.rounds)
    result["raw tokens/s"] = {name: round(n_tokens / best) for name, best in seconds.items()}

    with tempfile.TemporaryDirectory() as folder:
        text = (arguments.tokenized or PLAY).read_text(encoding="utf-8")
        path = Path(folder, "tokenized")
        path.write_text(text, encoding="utf-8")
        seconds = best_seconds(tokenized_contestants(text, path), arguments.rounds)
        result["tokenized words/s"] = {name: round(len(text.split()) / best) for name, best in seconds.items()}

        words = TransfoXLTokenizer.train(
            texts=[" ".join(f"w{n:x}" for n in range(WIKITEXT_103_WORDS - 2))], mode="whitespace"
        )
        words.save_pretrained(folder)
        seconds = best_seconds(
            {"from_pretrained": lambda: TransfoXLTokenizer.from_pretrained(folder)}, arguments.rounds
        )
        result["loading s"] = {name: round(best, 3) for name, best in seconds.items()}

    line = json.dumps(result)
    if arguments.results:
        arguments.results.write_text(line + "\n", encoding="utf-8")
    for name, value in result.items():
        print(f"{name:20} {value}")
    print(line)


if __name__ == "__main__":
    main()
