"""How fast text becomes ids: this package beside the sacremoses pipeline that transformers 4.35 had.

    python benchmarks/tokenizer.py [--raw FILE] [--tokenized FILE] [--rounds N] [--results FILE]

Measured, one thread, the best of some rounds in which the contestants take turns, by the clock of the processor (which
stands still while other programs run) and by that on the wall:
    raw        text as people write it, Moses mode; without any word remembered from the round before
    tokenized  text whose words stand between white space; `encode` of the whole and `encode_file`, beside the loop that
               splits and looks up, which any word tokenizer in Python must run
    loading    `from_pretrained` of a folder with 267,735 words, as WikiText-103 has: our own, and an old vocab.bin
    empty      a loop that does nothing, which tells how busy the machine was

Without files, both texts are the play in the package. The last line is the result as JSON.
"""

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from datetime import date
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

import sacremoses
import torch

from transformer_xl.moses import moses_rules, tokenize_numbers
from transformer_xl.tokenization import TransfoXLTokenizer
from transformer_xl.vocabulary import read_vocabulary

WIKITEXT_103_WORDS = 267_735
PLAY = files("transformer_xl") / "data" / "tiny_shakespeare.txt"


def best_seconds(contestants: dict[str, Callable[[], object]], rounds: int) -> dict[str, dict[str, float]]:
    """The shortest times of each contestant; they run in turns, so that a busy machine slows all of them."""
    seconds = {name: {"processor": float("inf"), "wall": float("inf")} for name in contestants}
    for _ in range(rounds):
        for name, run in contestants.items():
            start = time.process_time(), time.perf_counter()
            run()
            taken = time.process_time() - start[0], time.perf_counter() - start[1]
            for clock, new in zip(("processor", "wall"), taken, strict=True):
                seconds[name][clock] = min(seconds[name][clock], new)
    return seconds


def rates(n_items: int, seconds: dict[str, dict[str, float]]) -> dict[str, dict[str, int]]:
    """Items a second instead of seconds."""
    return {
        name: {clock: round(n_items / best) for clock, best in by_clock.items()} for name, by_clock in seconds.items()
    }


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


def loading_contestants(folder: Path) -> dict[str, Callable[[], object]]:
    """A vocabulary of the size of WikiText-103's in our format, and as `torch.save` wrote it in old releases."""
    words = [f"w{n:x}" for n in range(WIKITEXT_103_WORDS - 2)]
    tokenizer = TransfoXLTokenizer.train(texts=[" ".join(words)], mode="whitespace")
    tokenizer.save_pretrained(folder)
    ids, counts = OrderedDict(tokenizer.sym2idx), Counter(tokenizer.counter)
    old = {"counter": counts, "special": ["<eos>"], "idx2sym": tokenizer.idx2sym, "sym2idx": ids, "lower_case": False}
    torch.save(old, folder / "vocab.bin")
    return {
        "from_pretrained": lambda: TransfoXLTokenizer.from_pretrained(folder),
        "old vocab.bin": lambda: read_vocabulary(folder / "vocab.bin"),
    }


def empty_loop() -> None:
    for _ in range(1_000_000):
        pass


def facts() -> Iterator[tuple[str, str]]:
    """What a reader must know to judge the numbers."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)  # noqa: S607 - git of the user
    arguments = [Path(argument).name for argument in sys.argv[1:]]  # names of files, not where they lie on one machine
    yield "command", " ".join(["python benchmarks/tokenizer.py", *arguments])
    yield "commit", commit.stdout.strip() or "unknown"
    yield "device", f"{platform.processor() or platform.machine()}, one thread"
    yield "python", platform.python_version()
    yield "date", date.today().isoformat()
    yield from ((name, version(name)) for name in ("torch", "transformers", "sacremoses"))


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
    result["raw tokens/s"] = rates(n_tokens, seconds)

    with tempfile.TemporaryDirectory() as folder:
        text = (arguments.tokenized or PLAY).read_text(encoding="utf-8")
        path = Path(folder, "tokenized")
        path.write_text(text, encoding="utf-8")
        seconds = best_seconds(tokenized_contestants(text, path), arguments.rounds)
        result["tokenized words/s"] = rates(len(text.split()), seconds)
        result["loading s"] = best_seconds(loading_contestants(Path(folder)), arguments.rounds)
    result["a million empty rounds s"] = best_seconds({"empty": empty_loop}, arguments.rounds)["empty"]
    result = json.loads(json.dumps(result), parse_float=lambda number: float(f"{float(number):.3g}"))

    line = json.dumps(result)
    if arguments.results:
        arguments.results.write_text(line + "\n", encoding="utf-8")
    for name, value in result.items():
        print(f"{name:20} {value}")
    print(line)


if __name__ == "__main__":
    main()
