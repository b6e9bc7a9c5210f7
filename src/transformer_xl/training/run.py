"""A run: from a recipe to a folder with checkpoints, records, a picture and a result.

RUN/recipe.toml          the recipe with all its values
RUN/metrics.jsonl        what happened, a line each
RUN/learning-curve.png   the same as a picture
RUN/tensorboard/         the same for TensorBoard
RUN/checkpoints/         see checkpoints.py
RUN/best.json            which of them is the best
RUN/result.json          the test, and what it took

A run that was killed goes on from its last checkpoint as if it had not been: with the same number of processes, bit for
bit on a CPU.
"""

import json
import math
import os
import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from rich.console import Console
from torch import Tensor

from transformer_xl.configuration import TransfoXLConfig
from transformer_xl.data.opening import CorpusOptions, open_corpus
from transformer_xl.data.prepared import PreparedCorpus
from transformer_xl.data.streams import OrderedStream, SentenceStream, Stream
from transformer_xl.evaluation import Evaluation, evaluate
from transformer_xl.files import written_whole
from transformer_xl.modeling import TransfoXLLMHeadModel
from transformer_xl.plots import plot_training

from .checkpoints import (
    BEST,
    MODEL,
    checkpoint_folder,
    checkpoints,
    prune,
    read_checkpoint,
    write_best,
    write_checkpoint,
)
from .interrupt import stop_on_interrupt
from .loop import ACCELERATE_PRECISION, Step, Training
from .metrics import MetricsLog, loss_in_unit, unit_title
from .processes import agreed, check_same, join_processes
from .progress import TrainingProgress, training_progress
from .recipe import OWN_FIELDS, Recipe, write_recipe

RECIPE, METRICS, PICTURE, RESULT, TENSORBOARD = (
    "recipe.toml", "metrics.jsonl", "learning-curve.png", "result.json", "tensorboard",
)  # fmt: skip


class Interrupted(Exception):  # noqa: N818 - no error
    """The user asked a run to end; its last checkpoint is written."""


def run_training(recipe: Recipe, output_dir: Path, *, resume: bool, console: Console) -> dict[str, Any]:
    """Train, evaluate, keep; gives what is in `result.json` afterwards.

    Ctrl-C and SIGTERM end the run after the step at hand, with a checkpoint.

    Args:
        recipe: what to do.
        output_dir: the run's folder.
        resume: go on from the last checkpoint in it, or begin if there is none.
        console: where the user watches; only the first process writes to it.

    Raises:
        ValueError: the recipe does not fit the corpus, the folder, or the machine; the loss is no number any more; a
            checkpoint is damaged.
        Interrupted: the user ended it.
        Elsewhere: another process has one of these errors.
        OSError: something cannot be read or written.
    """
    accelerator = make_accelerator(recipe)
    if not accelerator.is_main_process:
        console = Console(quiet=True)
    with agreed():
        folder = _check_folder(output_dir, resume=resume)
    corpus = _open_first(recipe, accelerator, console)
    with agreed():
        training = make_training(recipe, corpus, accelerator)
    with stop_on_interrupt() as stop:
        run = _Run(recipe, folder, corpus, training, console)
        run.begin(resume=resume)
        with run.log:
            run.train(stop.is_set)
            return run.finish()


def make_accelerator(recipe: Recipe) -> Accelerator:
    """The processes and the device, as the launcher started them (torchrun, accelerate launch, or one process).

    Raises:
        ValueError: the recipe asks for what the machine has not, or the rows cannot be dealt to the processes.
    """
    precision = recipe.train.precision
    if precision == "float16" and not torch.cuda.is_available():
        raise ValueError("train.precision='float16' must have a GPU: use bfloat16 or float32 on a CPU.")
    accelerator = join_processes(ACCELERATE_PRECISION[precision])
    n_rows = accelerator.num_processes * recipe.train.accumulation
    with agreed():
        if recipe.train.batch_size % n_rows:
            raise ValueError(
                f"train.batch_size={recipe.train.batch_size} must be a multiple of {n_rows}, "
                f"{accelerator.num_processes} processes times train.accumulation={recipe.train.accumulation}."
            )
    return accelerator


def make_training(recipe: Recipe, corpus: PreparedCorpus, accelerator: Accelerator) -> Training:
    """The training of a recipe before its first step."""
    config = recipe.config(corpus.vocab_size, eos_token_id=corpus.tokenizer.eos_token_id)
    _check_sampling(config, recipe, accelerator)
    stream = make_stream(recipe, config, corpus, accelerator)
    torch.manual_seed(recipe.train.seed)
    return Training(recipe, TransfoXLLMHeadModel(config), stream, accelerator)


def _check_sampling(config: TransfoXLConfig, recipe: Recipe, accelerator: Accelerator) -> None:
    """Refuse sparse gradients where they cannot be added up."""
    is_possible = (
        accelerator.device.type == "cpu" and config.tie_word_embeddings and recipe.train.parallel == "ddp"
    ) or accelerator.num_processes == 1
    if config.sample_softmax > 0 and not is_possible:
        raise ValueError(
            f"model.sample_softmax={config.sample_softmax} must be 0 with {accelerator.num_processes} processes, which "
            "cannot add its sparse gradients up (but on CPUs with tie_word_embeddings=true and train.parallel='ddp'): "
            "start one process, or set it to 0."
        )


def make_stream(recipe: Recipe, config: TransfoXLConfig, corpus: PreparedCorpus, accelerator: Accelerator) -> Stream:
    """The training text, as the recipe wants it read."""
    tokens, sentences = corpus.tokens("train"), corpus.sentences("train")
    common: dict[str, Any] = {
        "batch_size": recipe.train.batch_size,
        "segment_len": config.tgt_len,
        "seed": recipe.train.seed,
        "rank": accelerator.process_index,
        "world_size": accelerator.num_processes,
    }
    if sentences is None:
        if recipe.data.packed:
            raise ValueError(f"data.packed=True must go with unrelated sentences, but {corpus.name} is a running text.")
        return OrderedStream(
            tokens,
            roll=recipe.data.roll,
            varied=recipe.data.varied_lengths,
            ext_len=config.ext_len,
            **common,
        )
    for name in ("roll", "varied_lengths"):
        if getattr(recipe.data, name):
            raise ValueError(f"data.{name}=True must go with a running text, but {corpus.name} has sentences.")
    return SentenceStream(tokens, sentences, packed=recipe.data.packed, **common)


def _open_first(recipe: Recipe, accelerator: Accelerator, console: Console) -> PreparedCorpus:
    """The corpus; the first process prepares raw text if it must be, then the others find it prepared."""
    corpus = None
    for is_turn in (accelerator.is_main_process, not accelerator.is_main_process):
        with agreed():
            corpus = _open(recipe, console) if is_turn else corpus
    assert corpus is not None
    check_same(
        recipe=recipe.model_dump(exclude={"data": {"path"}}),
        corpus=[corpus.meta["splits"], corpus.meta["vocabulary"]],
    )
    return corpus


def _open(recipe: Recipe, console: Console) -> PreparedCorpus:
    data = recipe.data
    options = CorpusOptions(
        corpus=data.corpus,
        mode=data.mode,
        line_end=data.line_end,
        lower_case=data.lower_case,
        min_freq=data.min_freq,
        max_size=data.max_size,
    )
    corpus = open_corpus(data.path, options, console=console)
    if "train" not in corpus.splits:
        found = ", ".join(corpus.splits)
        raise ValueError(f"data.path={data.path!r} has no split 'train' but {found}: give the training text, too.")
    return corpus


def _check_folder(folder: Path, *, resume: bool) -> Path:
    if folder.is_file():
        raise ValueError(f"--output-dir {folder} is a file but must be a folder: give another.")
    is_used = folder.is_dir() and any(path for path in folder.iterdir() if path.name != "logs")
    if is_used and not resume:
        remedy = "holds a run: go on with --resume" if (folder / RECIPE).is_file() else "is not empty: give another"
        raise ValueError(f"--output-dir {folder} {remedy}, or delete it.")
    return folder


@dataclass
class _Run:
    """A run while it is running."""

    recipe: Recipe
    folder: Path
    corpus: PreparedCorpus
    training: Training
    console: Console
    log: MetricsLog = field(init=False)
    tokens: int = 0
    seconds: float = 0.0  # of steps alone
    _pending: list[Tensor] = field(default_factory=list)  # losses since the last record
    _saved_step: int = -1
    _best: tuple[str, float] | None = None  # checkpoint and validation loss
    _tensorboard: Any = None

    @property
    def is_main(self) -> bool:
        return bool(self.training.accelerator.is_main_process)

    def begin(self, *, resume: bool) -> None:
        """Make the folder, or take up what is in it."""
        found = checkpoints(self.folder) if resume else []
        check_same(checkpoint=[path.name for path in found[-1:]])
        with agreed():
            if found:
                self._resume(found[-1])
            if self.is_main:
                self.folder.mkdir(parents=True, exist_ok=True)
                (self.folder / BEST).unlink(missing_ok=True)  # it may be later than the checkpoint
                if self._best is not None:
                    write_best(self.folder, self.folder / "checkpoints" / self._best[0], self._best[1])
                prune(self.folder, keep=self.recipe.checkpoints.keep)
                write_recipe(self.folder / RECIPE, self.recipe, self.training.model.config)
                self._start_tensorboard()
            self.log = MetricsLog(self.folder / METRICS, last_step=self.training.number, is_silent=not self.is_main)
        self._introduce(found[-1] if found else None)

    def _resume(self, checkpoint: Path) -> None:
        tensors, state = read_checkpoint(checkpoint)
        _check_model(self.training, state["model"], checkpoint)
        self.training.restore(tensors, state["training"])
        self.tokens, self.seconds = state["tokens"], state["seconds"]
        self._pending = [torch.tensor(loss, device=self.training.accelerator.device) for loss in state["pending"]]
        self._best = None if state["best"] is None else (state["best"][0], state["best"][1])
        self._saved_step = self.training.number

    def _introduce(self, checkpoint: Path | None) -> None:
        model, train, accelerator = self.training.model, self.recipe.train, self.training.accelerator
        n_parameters = sum(parameter.numel() for parameter in model.parameters())
        sizes = ", ".join(f"{self.corpus.meta['splits'][split]['tokens']:,} {split}" for split in self.corpus.splits)
        self.console.print(
            f"[bold]{self.recipe.title}[/] (Ctrl-C: stop with a checkpoint)\n"
            f"corpus    {self.corpus.name}: {self.corpus.vocab_size:,} different {self.corpus.unit}s; tokens: {sizes}\n"
            f"model     {n_parameters:,} parameters\n"
            f"training  {train.max_steps:,} steps of {train.batch_size} x {model.config.tgt_len} tokens, "
            f"{accelerator.num_processes} process(es) on {accelerator.device}, {train.precision}\n"
            f"run       {self.folder}" + (f", resumed from {checkpoint.name}" if checkpoint else ""),
        )

    def train(self, is_stopped: Any) -> None:
        """Make all steps, with what has to happen between them.

        Raises:
            Interrupted: `is_stopped()` became true.
            ValueError: the loss is no number any more.
        """
        recipe, training = self.recipe, self.training
        with training_progress(self.console, unit=self.corpus.unit) as shown:
            while training.progress < 1 and not self._is_early_end():
                started = training.minutes
                step = training.step()
                self.seconds += 60 * (training.minutes - started)
                self.tokens += step.n_tokens
                self._pending.append(step.loss)
                is_last = step.progress == 1
                if step.number % recipe.log.every == 0 or is_last:
                    self._record(step, shown)
                if step.number % recipe.evaluation.every == 0 or is_last:
                    self._evaluate(step)
                if step.number % recipe.checkpoints.every == 0 or is_last or self._is_early_end():
                    self._save()
                if self._agrees(is_stopped(), step):
                    self._save()
                    raise Interrupted

    def _is_early_end(self) -> bool:
        patience = self.recipe.evaluation.patience
        return patience is not None and self._n_worse >= patience

    @property
    def _n_worse(self) -> int:
        """Evaluations since the best one."""
        losses = [record["loss_nats"] for record in self.log.of("valid")]
        return len(losses) - 1 - losses.index(min(losses)) if losses else 0

    def _agrees(self, is_stopped: bool, step: Step) -> bool:
        """Whether any process was asked to stop; all get the same answer."""
        accelerator = self.training.accelerator
        if accelerator.num_processes == 1:
            return is_stopped
        if accelerator.device.type != "cpu" and step.number % self.recipe.log.every:
            return False  # asking makes a GPU wait
        asked = torch.tensor(float(is_stopped), device=accelerator.device)
        return bool(accelerator.reduce(asked, "sum"))

    def _mean_loss(self, number: int) -> float:
        """The mean of the losses since the last record, of all processes.

        Raises:
            ValueError: it is no number.
        """
        mean = float(self._mean_of_processes().mean())
        with agreed():
            if not math.isfinite(mean):
                kept = checkpoints(self.folder)
                last = f"go on from {kept[-1].name} with --resume and" if kept else "start again with"
                raise ValueError(
                    f"The loss is {mean} at step {number}, and nothing was saved since it was a number: {last} a lower "
                    f"optimizer.lr (it was {self.recipe.optimizer.lr}), or a longer schedule.warmup_steps."
                )
        return mean

    def _mean_of_processes(self) -> Tensor:
        """The losses of the steps since the last record, `[steps]`."""
        losses: Tensor = self.training.accelerator.reduce(torch.stack(self._pending), "mean")
        return losses

    def _record(self, step: Step, shown: TrainingProgress) -> None:
        mean = self._mean_loss(step.number)
        n_tokens = len(self._pending) * step.n_tokens
        self._pending = []
        tokens_per_s = self.tokens / self.seconds
        shown.advance(mean, n_tokens=n_tokens, progress=step.progress)
        norm = None if step.gradient_norm is None else round(float(step.gradient_norm), 5)
        self._write(
            "train",
            **loss_in_unit(mean, self.corpus.unit),
            lr=step.lr,
            gradient_norm=norm,
            tokens_per_s=round(tokens_per_s, 1),
        )

    def _write(self, kind: str, **values: Any) -> None:
        place = {"step": self.training.number, "tokens": self.tokens, "seconds": round(self.seconds, 3)}
        self.log.write(kind, **place, **values)
        if self._tensorboard is not None:
            for name, value in values.items():
                if value is not None:
                    self._tensorboard.add_scalar(f"{kind}/{name}", value, self.training.number)

    def _evaluate(self, step: Step) -> None:
        """Look at the validation split; note, and keep, what is better than before."""
        if "valid" not in self.corpus.splits:
            return
        if self._pending:
            self._mean_loss(step.number)
        with self.training.weights_for_use() as model:
            result = self._evaluated(model, "valid", self.recipe.evaluation.model_dump())
        self.training.rate.tell(result.loss_nats)
        self._write("valid", **loss_in_unit(result.loss_nats, self.corpus.unit))
        mark = ""
        if self._best is None or result.loss_nats < self._best[1]:
            self._best = (checkpoint_folder(self.folder, step.number).name, result.loss_nats)
            mark = ", the best so far"
            self._save()
        value = loss_in_unit(result.loss_nats, self.corpus.unit)
        shown = value[unit_title(self.corpus.unit).replace(" ", "_")]
        self.console.print(f"step {step.number:,}: validation {unit_title(self.corpus.unit)} {shown:.4g}{mark}")

    def _evaluated(self, model: TransfoXLLMHeadModel, split: str, settings: Mapping[str, Any]) -> Evaluation:
        tokens, sentences = self.corpus.tokens(split), self.corpus.sentences(split)
        if self.recipe.data.packed:
            sentences = None
        limit = settings.get("max_tokens")
        if limit is not None and split == "valid":
            tokens = tokens[:limit]
            sentences = None if sentences is None else sentences[sentences < len(tokens)]
        accelerator = self.training.accelerator
        batch_size = min(settings["batch_size"], len(tokens) - 1)
        shares = batch_size % accelerator.num_processes == 0
        names = ("tgt_len", "mem_len", "ext_len", "clamp_len", "same_length", "temperature")
        with accelerator.autocast():
            result = evaluate(
                model,
                tokens,
                batch_size=batch_size,
                sentences=sentences,
                accelerator=accelerator if shares else None,  # else each process reads all of it
                **{name: settings[name] for name in names},
            )
        # What follows from it must follow on all processes, though their last digits may differ.
        loss = torch.tensor(result.loss_nats, dtype=torch.float64, device=accelerator.device)
        return replace(result, loss_nats=float(broadcast(loss)))

    def _save(self) -> None:
        """Write a checkpoint of this step, if there is none yet."""
        if self._saved_step == self.training.number:
            return
        if self._pending:
            self._mean_loss(self.training.number)
        tensors = self.training.tensors()
        pending = self._mean_of_processes().tolist() if self._pending else []
        state = {
            "training": self.training.state(),
            "model": self.training.model.config.to_dict(),
            "tokens": self.tokens,
            "seconds": self.seconds,
            "pending": pending,
            "best": self._best,
            "versions": {name: version(name) for name in ("transformer-xl", "torch", "transformers")},
        }
        with agreed():
            if self.is_main:
                self._write_checkpoint(tensors, state)
        self._saved_step = self.training.number

    def _write_checkpoint(self, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> None:
        damaged = next((name for name, weight in tensors["weights"].items() if not bool(weight.isfinite().all())), None)
        if damaged is not None:
            raise ValueError(
                f"{damaged} is no number any more after step {self.training.number}: lower optimizer.lr="
                f"{self.recipe.optimizer.lr}; the checkpoints before are whole."
            )
        folder = checkpoint_folder(self.folder, self.training.number)
        weights = tensors["average" if self.training.uses_average else "weights"]
        write_checkpoint(folder, tensors=tensors, state=state, write_model=lambda path: self._model(path, weights))
        if self._best is not None and self._best[0] == folder.name:
            write_best(self.folder, folder, self._best[1])
        prune(self.folder, keep=self.recipe.checkpoints.keep)

    def _model(self, folder: Path, weights: Mapping[str, Tensor]) -> None:
        model = self.training.model
        model.save_pretrained(folder / MODEL, state_dict=dict(weights))
        self.corpus.tokenizer.save_pretrained(folder / MODEL)
        write_recipe(folder / RECIPE, self.recipe, model.config)

    def finish(self) -> dict[str, Any]:
        """Test the best checkpoint, draw, and write the result."""
        accelerator = self.training.accelerator
        test = None
        valid_loss = None if self._best is None else self._best[1]
        chosen = checkpoint_folder(self.folder, self._saved_step)
        if self._best is not None:
            chosen = chosen.with_name(self._best[0])
        if "test" in self.corpus.splits:
            with agreed():
                model = TransfoXLLMHeadModel.from_pretrained(chosen / MODEL).to(accelerator.device).eval()
            wanted = self.recipe.test.model_dump(exclude_none=True)
            test = self._evaluated(model, "test", {**self.recipe.evaluation.model_dump(), **wanted})
            self._write("test", **loss_in_unit(test.loss_nats, self.corpus.unit))
        result = self._result(chosen, valid_loss, test)
        with agreed():
            if self.is_main:
                with written_whole(self.folder / RESULT) as partial:
                    partial.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
                self._draw()
        for name in ("valid", "test"):
            if result[name] is not None:
                numbers = ", ".join(f"{key.replace('_', ' ')} {value:.5g}" for key, value in result[name].items())
                self.console.print(f"{name:<6}[bold]{numbers}[/] ({chosen.name})", markup=True)
        self.console.print(
            f"Written to {self.folder}; more: transformer-xl evaluate {self.folder} --data {self.recipe.data.path}",
            markup=False,
        )
        return result

    def _result(self, chosen: Path, valid_loss: float | None, test: Evaluation | None) -> dict[str, Any]:
        unit, accelerator = self.corpus.unit, self.training.accelerator
        is_gpu = accelerator.device.type == "cuda"
        return {
            "title": self.recipe.title,
            "checkpoint": chosen.name,
            "valid": None if valid_loss is None else loss_in_unit(valid_loss, unit),
            "test": None if test is None else loss_in_unit(test.loss_nats, unit),
            "test_tokens": None if test is None else test.n_tokens,
            "parameters": sum(parameter.numel() for parameter in self.training.model.parameters()),
            "steps": self.training.number,
            "tokens": self.tokens,
            "seconds": round(self.seconds, 1),
            "tokens_per_s": round(self.tokens / max(self.seconds, 1e-9), 1),
            "peak_memory_mib": _peak_memory_mib(),
            "peak_gpu_memory_mib": round(torch.cuda.max_memory_allocated() / 2**20, 1) if is_gpu else None,
            "processes": accelerator.num_processes,
            "device": torch.cuda.get_device_name() if is_gpu else platform.processor() or platform.machine(),
            "threads": torch.get_num_threads(),
            "cores": os.cpu_count(),
            "versions": {name: version(name) for name in ("transformer-xl", "torch", "transformers", "accelerate")},
        }

    def _draw(self) -> None:
        if find_spec("matplotlib") is None:
            self.console.print(f"No {PICTURE}: it needs matplotlib (pip install 'transformer-xl\\[plots]').")
            return
        records = {kind: self.log.of(kind) for kind in ("train", "valid", "test")}
        plot_training(self.folder / PICTURE, title=self.recipe.title, unit=unit_title(self.corpus.unit), **records)

    def _start_tensorboard(self) -> None:
        if not self.recipe.log.tensorboard:
            return
        if find_spec("tensorboard") is None:
            self.console.print("No TensorBoard: it needs pip install 'transformer-xl\\[tensorboard]'.")
            return
        from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415 - heavy, and an extra installs it

        self._tensorboard = SummaryWriter(str(self.folder / TENSORBOARD), purge_step=self.training.number + 1)


def _peak_memory_mib() -> float | None:
    """The most memory that this process has had; None on Windows, which has no such count."""
    if sys.platform == "win32":
        return None
    import resource  # noqa: PLC0415 - Windows has none

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # in KiB, but in bytes on macOS
    return round(peak / 1024 if sys.platform == "darwin" else peak, 1)


def _check_model(training: Training, saved: Mapping[str, Any], checkpoint: Path) -> None:
    """Refuse to go on with another model than the checkpoint's."""
    now = training.model.config.to_dict()
    for name in sorted(OWN_FIELDS - {"dropout", "dropatt"}):
        if now[name] != saved[name]:
            raise ValueError(
                f"model.{name}={now[name]!r} must be {saved[name]!r} as in {checkpoint}: resume with the recipe that "
                "it was made with, or start in another folder."
            )


__all__ = ["Interrupted", "make_accelerator", "make_stream", "make_training", "run_training"]
