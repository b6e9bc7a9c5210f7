"""The quickstart: a small Transformer-XL learns Shakespeare, character by character, in minutes on two cores."""

import json
import math
import os
import platform
import shlex
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from rich.console import Console
from torch import Tensor

from transformer_xl.data.corpus import split_text, tiny_shakespeare
from transformer_xl.data.streams import OrderedStream
from transformer_xl.evaluation import Evaluation, evaluate
from transformer_xl.files import written_whole
from transformer_xl.generation import Sampling, stream_text
from transformer_xl.modeling import TransfoXLLMHeadModel
from transformer_xl.plots import plot_quickstart
from transformer_xl.tokenization import TransfoXLTokenizer

from .interrupt import stop_on_interrupt
from .loop import Training
from .metrics import MetricsLog, loss_in_unit
from .progress import training_progress
from .recipe import Recipe, make_recipe

SUMMARY = "quickstart.json"  # a folder that holds it is an earlier quickstart's and may be written again
N_RECORDS, N_VALIDATIONS = 400, 10  # in a complete training
VALIDATION_LEN = 16_384  # characters of the validation split that are looked at each time, so that it stays quick
EVALUATION_BATCH = 16


@dataclass(frozen=True, kw_only=True)
class QuickstartOptions:
    """What the user decides.

    Attributes:
        output_dir: folder of everything that is written.
        max_steps: training steps.
        max_minutes: the training ends here at the latest.
        seed: of the initial weights, of dropout, and of the text that is written.
        prompt: what the written text goes on from.
        length: characters to write.
    """

    output_dir: Path
    max_steps: int
    max_minutes: float
    seed: int
    prompt: str
    length: int

    def __post_init__(self) -> None:
        if not self.prompt:
            raise ValueError("prompt is empty but must hold at least one character, such as 'ROMEO:'.")
        if self.length < 0:
            raise ValueError(f"length={self.length} must be at least 0.")

    def recipe(self) -> Recipe:
        """What is trained, and how (what was tried is in docs/log.md)."""
        model = {
            "cutoffs": [],
            "div_val": 1,
            "d_model": 128,
            "d_embed": 128,
            "n_head": 2,
            "d_head": 64,
            "d_inner": 512,
            "n_layer": 4,
            "tgt_len": 64,
            "mem_len": 64,
            "clamp_len": -1,
            "dropout": 0.0,
            "initial_memory": "empty",
        }
        train = {"batch_size": 16, "max_steps": self.max_steps, "max_minutes": self.max_minutes, "seed": self.seed}
        return make_recipe(
            {
                "title": "Transformer-XL quickstart",
                "data": {"path": "the package"},
                "model": model,
                "train": train,
                "optimizer": {"name": "muon", "lr": 5e-3, "betas": [0.9, 0.98], "weight_decay": 0.01, "clip_norm": 1.0},
                "schedule": {"warmup_steps": 50},
            }
        )


def run_quickstart(options: QuickstartOptions, console: Console) -> dict[str, Any]:
    """Train, evaluate, draw, save and write; gives what is in `quickstart.json` afterwards.

    Ctrl-C ends the training; the rest is then done with what was reached.

    Args:
        options: what the user decided.
        console: where the user watches.

    Raises:
        ValueError: an option is impossible, or the output folder holds something else.
    """
    recipe = options.recipe()
    text = tiny_shakespeare()
    tokenizer = TransfoXLTokenizer.train(texts=[text], mode="characters", unk_token=None, eos_token=None)
    tokenizer.encode(options.prompt)  # an unknown character is better found before the training than after it
    folder = _claim(options.output_dir)
    parts = {name: torch.tensor(tokenizer.encode(part)) for name, part in split_text(text).items()}
    training = _prepare(recipe, len(tokenizer), parts["train"])
    _introduce(console, training, parts)

    with MetricsLog(folder / "metrics.jsonl") as log:
        reached = _fit(training, parts, log, console)
        _save(folder / "model", training.model, tokenizer)
        with_memory, without_memory = _test(training.model, parts["test"], log, console)
    _draw(folder / "learning-curve.png", log, with_memory, without_memory, parts, console)
    summary = _summary(options, training.model, reached, with_memory, without_memory)
    with written_whole(folder / SUMMARY) as partial:
        partial.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    console.print(f"Written to {folder}: model, metrics.jsonl, learning-curve.png, {SUMMARY}\n", markup=False)
    _write_on(training.model, tokenizer, options, console)
    again = shlex.join(["transformer-xl", "generate", str(folder), options.prompt, "--length", "2000"])
    console.print(f"\nMore: {again}", markup=False)
    return summary


def _claim(folder: Path) -> Path:
    """The output folder, made if it is missing; refuses one that holds other things than an earlier quickstart."""
    if folder.is_file():
        raise ValueError(f"output_dir={str(folder)!r} is a file but must be a folder: pass another.")
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()) and not (folder / SUMMARY).is_file():
        raise ValueError(f"output_dir={str(folder)!r} must be empty or hold an earlier quickstart: pass another.")
    with written_whole(folder / SUMMARY) as partial:
        partial.write_text("{}\n", encoding="utf-8")  # an interrupted quickstart may be repeated in its folder, too
    return folder


def _prepare(recipe: Recipe, vocab_size: int, tokens: Tensor) -> Training:
    config = recipe.config(vocab_size)
    config.prefix = ""  # else transformers' text-generation pipeline puts an English article before each prompt
    torch.manual_seed(recipe.train.seed)
    stream = OrderedStream(tokens, batch_size=recipe.train.batch_size, segment_len=config.tgt_len)
    return Training(recipe, TransfoXLLMHeadModel(config), stream, Accelerator(cpu=True))


def _introduce(console: Console, training: Training, parts: Mapping[str, Tensor]) -> None:
    config, train = training.model.config, training.recipe.train
    n_parameters = sum(parameter.numel() for parameter in training.model.parameters())
    n_read = train.max_steps * train.batch_size * config.tgt_len
    console.print(
        "[bold]Transformer-XL quickstart[/] (Ctrl-C: stop here, and look at what was learned)\n"
        f"corpus    Tiny Shakespeare, {sum(map(len, parts.values())):,} characters, {config.vocab_size} different: "
        "90% to learn from, 5% to watch, 5% to test\n"
        f"model     {config.n_layer} layers, {config.d_model} wide, a memory of {config.mem_len} characters in each; "
        f"{n_parameters:,} parameters\n"
        f"training  {train.max_steps:,} steps of {train.batch_size} x {config.tgt_len} characters, "
        f"{n_read / len(parts['train']):.1f} times through the text, at most {train.max_minutes:g} minutes, "
        f"threads: {torch.get_num_threads()}\n"
    )


def _fit(training: Training, parts: Mapping[str, Tensor], log: MetricsLog, console: Console) -> dict[str, Any]:
    """Train until the end or Ctrl-C; gives how far it came."""
    record_every = max(1, training.recipe.train.max_steps // N_RECORDS)
    next_validation, losses, n_tokens, place = 1 / N_VALIDATIONS, [], 0, {}
    with stop_on_interrupt() as stop, training_progress(console, unit="character") as shown:
        while training.progress < 1 and not stop.is_set():
            step = training.step()
            is_last = step.progress == 1 or stop.is_set()
            n_tokens += step.n_tokens
            place = {"step": step.number, "tokens": n_tokens, "seconds": round(60 * training.minutes, 3)}
            losses.append(step.loss)
            if step.number % record_every == 0 or is_last:
                mean = float(torch.stack(losses).mean())  # waits for the device, hence not at each step
                shown.advance(mean, n_tokens=step.n_tokens * len(losses), progress=step.progress)
                tokens_per_s = round(shown.tokens_per_s, 1)
                log.write("train", **place, **loss_in_unit(mean, "character"), lr=step.lr, tokens_per_s=tokens_per_s)
                losses = []
            if step.progress >= next_validation:
                next_validation += 1 / N_VALIDATIONS
                bits = _validate(training.model, parts["valid"], log, place)
                console.print(f"{step.progress:4.0%}  validation {bits:.3f} bits per character")
    if stop.is_set():
        console.print(f"Stopped after {training.number:,} steps. Once more Ctrl-C leaves at once.")
    return {**place, "tokens_per_s": round(shown.tokens_per_s, 1)}


def _validate(model: TransfoXLLMHeadModel, tokens: Tensor, log: MetricsLog, place: Mapping[str, float]) -> float:
    """A look at the beginning of the validation split: bits per character."""
    evaluation = evaluate(model, tokens[:VALIDATION_LEN], batch_size=EVALUATION_BATCH)
    log.write("valid", **place, **loss_in_unit(evaluation.loss_nats, "character"))
    return evaluation.bits_per_token


def _test(
    model: TransfoXLLMHeadModel, tokens: Tensor, log: MetricsLog, console: Console
) -> tuple[Evaluation, Evaluation]:
    """The test split with memory and without."""
    evaluations = []
    for name, mem_len in (("with memory", None), ("without memory", 0)):
        evaluation = evaluate(model, tokens, batch_size=EVALUATION_BATCH, mem_len=mem_len)
        place = {"mem_len": model.config.mem_len if mem_len is None else mem_len, "tokens": evaluation.n_tokens}
        log.write("test", **place, **loss_in_unit(evaluation.loss_nats, "character"))
        console.print(f"test {name:<15} [bold]{evaluation.bits_per_token:.3f}[/] bits per character")
        evaluations.append(evaluation)
    return evaluations[0], evaluations[1]


def _save(folder: Path, model: TransfoXLLMHeadModel, tokenizer: TransfoXLTokenizer) -> None:
    with written_whole(folder) as partial:
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)


def _draw(
    path: Path,
    log: MetricsLog,
    with_memory: Evaluation,
    without_memory: Evaluation,
    parts: Mapping[str, Tensor],
    console: Console,
) -> None:
    if find_spec("matplotlib") is None:
        console.print(f"No {path.name}: it needs matplotlib (pip install 'transformer-xl\\[plots]').")
        return
    plot_quickstart(
        path,
        training=log.of("train"),
        validation=log.of("valid"),
        with_memory=with_memory,
        without_memory=without_memory,
        references=_references(parts["train"].tolist(), parts["test"].tolist()),
    )


def _references(train: list[int], test: list[int]) -> dict[str, float]:
    """Bits per character of two predictors that only count: single characters, and pairs of neighbours."""
    n_symbols = len(set(train) | set(test))
    singles, pairs = Counter(train), Counter(pairwise(train))
    single_bits = [-math.log2((singles[c] + 1) / (len(train) + n_symbols)) for c in test[1:]]
    pair_bits = [-math.log2((pairs[p] + 1) / (singles[p[0]] + n_symbols)) for p in pairwise(test)]
    return {
        "counting characters": sum(single_bits) / len(single_bits),
        "counting pairs": sum(pair_bits) / len(pair_bits),
    }


def _summary(
    options: QuickstartOptions,
    model: TransfoXLLMHeadModel,
    reached: dict[str, Any],
    with_memory: Evaluation,
    without_memory: Evaluation,
) -> dict[str, Any]:
    return {
        "options": {name: value for name, value in asdict(options).items() if name != "output_dir"},
        "training": reached,
        "test_bits_per_character": round(with_memory.bits_per_token, 4),
        "test_bits_per_character_without_memory": round(without_memory.bits_per_token, 4),
        "test_characters": with_memory.n_tokens,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "machine": {"platform": platform.platform(), "cores": os.cpu_count(), "threads": torch.get_num_threads()},
        "versions": {name: version(name) for name in ("transformer-xl", "torch", "transformers")},
    }


def _write_on(
    model: TransfoXLLMHeadModel, tokenizer: TransfoXLTokenizer, options: QuickstartOptions, console: Console
) -> None:
    """Print the prompt and what the model writes after it, as it comes."""
    model.eval()
    sampling = Sampling(temperature=0.8, seed=options.seed)
    console.print(options.prompt, style="bold", end="", markup=False, highlight=False)
    for piece in stream_text(model, tokenizer, options.prompt, sampling=sampling, length=options.length):
        console.print(piece, end="", markup=False, highlight=False)
    console.print()


__all__ = ["QuickstartOptions", "run_quickstart"]
