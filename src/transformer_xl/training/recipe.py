"""What a recipe may say: every table and key of `recipes/*.toml`, with its type, unit, default and help.

A recipe is a TOML file. Its tables are the classes below; `[model]` holds the fields of `TransfoXLConfig`, whose
`vocab_size` comes from the corpus unless it is given. Unknown keys are refused. `docs/recipes.md` is written from here.
"""

import tomllib
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, Self, get_args

import tomlkit
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from transformer_xl.configuration import ALIASES, TransfoXLConfig
from transformer_xl.data.corpora import LineEnd, Mode
from transformer_xl.files import written_whole

Precision = Literal["float32", "bfloat16", "float16"]
Parallel = Literal["ddp", "fsdp"]


def _require(is_fulfilled: bool, name: str, value: object, rule: str) -> None:
    if not is_fulfilled:
        raise ValueError(f"{name}={value!r} must {rule}.")


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class DataTable(_Table):
    """The text, and in which pieces it is read."""

    path: str = Field(description="Prepared folder, raw corpus folder, or text file.", min_length=1)
    corpus: str | None = Field(None, description="A corpus of the paper, or text; by the names of the files if unset.")
    mode: Mode | None = Field(None, description="What a token is, for raw text of one's own.")
    line_end: LineEnd | None = Field(None, description="What stands for the end of a line, for raw text.")
    lower_case: bool | None = Field(None, description="Lower-case raw text.")
    min_freq: int | None = Field(None, ge=0, description="Rarer words are unknown, for raw text (occurrences).")
    max_size: int | None = Field(None, ge=2, description="Most words of the vocabulary, for raw text.")
    roll: bool = Field(False, description="Begin each round through the text at a random place.")
    varied_lengths: bool = Field(
        False, description="Draw the length of each segment around tgt_len, and scale the learning rate with it."
    )
    packed: bool = Field(
        False,
        description="Fill segments with several unrelated sentences and carry memory across, as the authors did, also "
        "in evaluation.",
    )


class OptimizerTable(_Table):
    """How a gradient becomes a step."""

    name: Literal["adam", "adamw", "sgd", "adagrad", "muon"] = Field(
        "adam",
        description="adam adds weight decay to the gradient, adamw takes it from the weights; muon makes the layers' "
        "matrices orthogonal steps and gives the rest to adamw.",
    )
    lr: float = Field(2.5e-4, gt=0, description="Peak learning rate.")
    embedding_lr_factor: float = Field(1.0, gt=0, description="Times lr, the learning rate of the embeddings.")
    betas: list[float] = Field([0.9, 0.999], description="How much Adam's two means keep per step.")
    eps: float = Field(1e-8, gt=0, description="Added to Adam's root mean square.")
    momentum: float = Field(0.0, ge=0, lt=1, description="Of sgd.")
    weight_decay: float = Field(0.0, ge=0, description="Pull of the weights towards zero.")
    clip_norm: float = Field(0.25, ge=0, description="Longer gradients are shortened to this norm; 0: never.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        is_pair = len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas)
        _require(is_pair, "optimizer.betas", self.betas, "hold two numbers from 0 to below 1")
        return self


class ScheduleTable(_Table):
    """The learning rate over time."""

    name: Literal["cosine", "inverse_sqrt", "constant", "plateau"] = Field(
        "cosine",
        description="cosine falls to lr_min over decay_steps; inverse_sqrt falls with the root of the steps after "
        "warm-up; plateau is cut by plateau_factor when the validation loss no longer falls.",
    )
    warmup_steps: int = Field(0, ge=0, description="Steps of a linear rise from 0 to lr.")
    decay_steps: int | None = Field(None, ge=1, description="Steps until cosine is at lr_min; all if unset.")
    lr_min: float = Field(0.0, ge=0, description="Learning rate that is never gone below after warm-up.")
    plateau_factor: float = Field(0.5, gt=0, lt=1, description="Of plateau: the cut.")
    plateau_patience: int = Field(0, ge=0, description="Of plateau: evaluations without a better loss that are borne.")


class AveragingTable(_Table):
    """A mean of the weights over time, which is then what is evaluated and saved as the model."""

    name: Literal["none", "exponential", "uniform"] = Field(
        "none", description="exponential forgets old weights; uniform is the plain mean of all since start_step."
    )
    decay: float = Field(0.999, gt=0, lt=1, description="Of exponential: share of the mean that a step keeps.")
    start_step: int = Field(0, ge=0, description="Steps before the mean begins.")
    lr_factor: float = Field(1.0, gt=0, description="Times the schedule, the learning rate from start_step on.")


class RegularisationTable(_Table):
    """Beside the model's dropout: what the authors' Penn Treebank run adds (AWD-LSTM, Merity et al. 2018).

    A dropout that is set takes the place of the model's own at that place and is locked: one mask for all positions.
    """

    word_dropout: float = Field(0.0, ge=0, lt=1, description="Probability of taking a word out of the embedding.")
    input_dropout: float | None = Field(None, ge=0, lt=1, description="Locked, of embeddings and position signal.")
    attention_dropout: float | None = Field(
        None, ge=0, lt=1, description="Locked, of queries, keys and values and of the attention's output."
    )
    feed_forward_dropout: float | None = Field(None, ge=0, lt=1, description="Locked, twice in each feed-forward.")
    output_dropout: float | None = Field(None, ge=0, lt=1, description="Locked, of the last layer's output.")
    activation_penalty: float = Field(0.0, ge=0, description="AR: times the mean square of the last layer's output.")
    change_penalty: float = Field(
        0.0, ge=0, description="TAR: times the mean square of its change from a position to the next."
    )


class TrainTable(_Table):
    """The training itself."""

    batch_size: int = Field(ge=1, description="Rows, each with its own text and memory, on all processes together.")
    accumulation: int = Field(1, ge=1, description="Parts that a process computes its rows in, one after the other.")
    max_steps: int = Field(ge=1, description="Steps of the whole training.")
    max_minutes: float | None = Field(
        None, gt=0, description="End after this time at the latest; the learning rate then falls with the time."
    )
    seed: int = Field(1111, ge=0, description="Of the initial weights, dropout and the order of the text.")
    precision: Precision = Field("float32", description="What matrix products are computed in; weights stay float32.")
    compile: bool = Field(False, description="Compile the model with torch.compile.")
    gradient_checkpointing: bool = Field(False, description="Compute layers twice to keep less of them in memory.")
    parallel: Parallel = Field(
        "ddp", description="With several processes: ddp, each has the whole model; fsdp, each has a part of it."
    )


class EvaluationTable(_Table):
    """How the validation text is read, and when; unset: as the model's configuration says."""

    every: int = Field(1000, ge=1, description="Steps from one evaluation to the next.")
    batch_size: int = Field(10, ge=1, description="Parts that the text is cut into, each starting without memory.")
    tgt_len: int | None = Field(None, ge=1, description="Tokens of a segment.")
    mem_len: int | None = Field(None, ge=0, description="Tokens remembered.")
    ext_len: int | None = Field(None, ge=0, description="Tokens before a segment that are read again with it.")
    clamp_len: int | None = Field(None, description="Distances beyond this count as this; -1: none do.")
    same_length: bool | None = Field(None, description="Every token sees the same number of tokens.")
    temperature: float = Field(1.0, gt=0, description="Divides the log-probabilities.")
    max_tokens: int | None = Field(None, ge=2, description="Look at the first so many tokens only.")
    patience: int | None = Field(None, ge=1, description="Stop after so many evaluations without a better loss.")


class TestTable(_Table):
    """How the test text is read, once at the end; unset: as in [evaluation]."""

    batch_size: int | None = Field(None, ge=1, description="See evaluation.batch_size.")
    tgt_len: int | None = Field(None, ge=1, description="See evaluation.tgt_len.")
    mem_len: int | None = Field(None, ge=0, description="See evaluation.mem_len.")
    ext_len: int | None = Field(None, ge=0, description="See evaluation.ext_len.")
    clamp_len: int | None = Field(None, description="See evaluation.clamp_len.")
    same_length: bool | None = Field(None, description="See evaluation.same_length.")
    temperature: float | None = Field(None, gt=0, description="See evaluation.temperature.")


class CheckpointTable(_Table):
    """What is kept of a run."""

    every: int = Field(1000, ge=1, description="Steps from one checkpoint to the next.")
    keep: int = Field(2, ge=1, description="Last checkpoints that are kept, beside the best.")


class LogTable(_Table):
    """What is written down of a run."""

    every: int = Field(50, ge=1, description="Steps from one record in metrics.jsonl to the next.")
    tensorboard: bool = Field(True, description="Write for TensorBoard, too, if it is installed.")


class Recipe(_Table):
    """A complete experiment."""

    title: str = Field(description="What it is, in a line.", min_length=1)
    data: DataTable
    model: dict[str, Any] = Field(description="Fields of TransfoXLConfig.")
    train: TrainTable
    optimizer: OptimizerTable = OptimizerTable()
    schedule: ScheduleTable = ScheduleTable()
    averaging: AveragingTable = AveragingTable()
    regularisation: RegularisationTable = RegularisationTable()
    evaluation: EvaluationTable = EvaluationTable()
    test: TestTable = TestTable()
    checkpoints: CheckpointTable = CheckpointTable()
    log: LogTable = LogTable()

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name in self.model:
            _refuse_unknown("model", name, MODEL_FIELDS)
        lr_min = self.schedule.lr_min
        _require(lr_min <= self.optimizer.lr, "schedule.lr_min", lr_min, f"be at most optimizer.lr={self.optimizer.lr}")
        n_parts = self.train.accumulation
        rule = f"be a multiple of train.accumulation={n_parts}"
        _require(self.train.batch_size % n_parts == 0, "train.batch_size", self.train.batch_size, rule)
        is_sharded_muon = self.train.parallel == "fsdp" and self.optimizer.name == "muon"
        rule = "be another than muon with train.parallel='fsdp', which leaves no process a whole matrix"
        _require(not is_sharded_muon, "optimizer.name", self.optimizer.name, rule)
        return self

    def config(self, vocab_size: int, *, eos_token_id: int | None = None) -> TransfoXLConfig:
        """The model's configuration; what the recipe says goes before what the corpus says.

        Raises:
            ValueError: the sizes are impossible, or too small for the corpus.
        """
        try:
            config = TransfoXLConfig(**{"vocab_size": vocab_size, "eos_token_id": eos_token_id, **self.model})
        except (TypeError, ValueError) as error:
            raise ValueError(f"model.{error}") from error
        rule = f"be at least {vocab_size}, the size of the corpus's vocabulary, or be left out"
        _require(config.vocab_size >= vocab_size, "model.vocab_size", config.vocab_size, rule)
        return config


_NOT_SET_BY_USERS = {"model_type", "attribute_map", "keys_to_ignore_at_inference"}
OWN_FIELDS = set(TransfoXLConfig.__annotations__) - _NOT_SET_BY_USERS
MODEL_FIELDS = {*OWN_FIELDS, *ALIASES, "proj_share_all_but_first"}


def read_recipe(path: Path, changes: Iterable[str] = ()) -> Recipe:
    """The recipe of a file, with changes.

    Args:
        path: a TOML file.
        changes: such as `"train.max_steps=30"`; the value is TOML, or else text (`"data.path=FOLDER"`).

    Raises:
        ValueError: the file or a change is no recipe's.
        OSError: the file cannot be read.
    """
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no TOML file: {error}.") from error
    for change in changes:
        _apply(tables, change)
    return make_recipe(tables, source=str(path))


def make_recipe(tables: Mapping[str, Any], *, source: str = "recipe") -> Recipe:
    """The recipe that the tables of a TOML file describe.

    Args:
        tables: the tables.
        source: how errors call them.

    Raises:
        ValueError: a key is unknown or missing, or a value is impossible.
    """
    try:
        return Recipe.model_validate(tables)
    except ValidationError as error:
        raise ValueError(f"{source}: {_message(error)}") from error


def _apply(tables: dict[str, Any], change: str) -> None:
    """Set one key in place."""
    key, equals, text = change.partition("=")
    *path, name = key.strip().split(".")
    if not equals or not name or not all(path):
        raise ValueError(f"--set {change} must be KEY=VALUE, such as train.max_steps=30.")
    if not path and key.strip() != "title":
        raise ValueError(f"--set {change} names no table: write TABLE.KEY=VALUE, such as train.max_steps=30.")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    table = tables
    for part in path:
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            raise ValueError(f"--set {change}: {part} is a value, no table.")
    table[name] = value


_RULES = {"string_too_short": "not be empty", "dict_type": "be a table", "model_type": "be a table"}
"""What pydantic says less plainly, by the type of its error."""


def _message(error: ValidationError) -> str:
    """The first thing that is wrong with a recipe, in a line."""
    first = error.errors()[0]
    where, kind = ".".join(str(part) for part in first["loc"]), first["type"]
    if kind == "extra_forbidden":
        table, name = first["loc"][:-1], str(first["loc"][-1])
        known = _fields_of(table)
        return _unknown(".".join(map(str, table)), name, known)
    if kind == "missing":
        return f"{where} is missing: give it a value."
    if kind == "value_error":
        return str(first["ctx"]["error"])
    rule = _RULES.get(kind, str(first["msg"]).removeprefix("Input should "))
    return f"{where}={first['input']!r} must {rule}."


def _fields_of(location: tuple[Any, ...]) -> set[str]:
    """The keys of the table at a place of the recipe."""
    table: Any = Recipe
    for name in location:
        annotation = table.model_fields[name].annotation
        table = next((kind for kind in (annotation, *get_args(annotation)) if hasattr(kind, "model_fields")), None)
    return set(table.model_fields)


def _refuse_unknown(table: str, name: str, known: set[str]) -> None:
    if name not in known:
        raise ValueError(_unknown(table, name, known))


def _unknown(table: str, name: str, known: set[str]) -> str:
    prefix = f"{table}." if table else ""
    near = get_close_matches(name, sorted(known), n=1, cutoff=0.5)
    remedy = (
        f"did you mean {prefix}{near[0]}?" if near else f"see docs/recipes.md for the keys of {table or 'a recipe'}."
    )
    return f"{prefix}{name} is unknown: {remedy}"


def write_recipe(path: Path, recipe: Recipe, config: TransfoXLConfig | None = None) -> None:
    """Write a recipe with all its values, also those that were left to the defaults, as TOML.

    Args:
        path: the file, replaced as a whole.
        recipe: what to write.
        config: the model's configuration, to write its fields in full.
    """
    tables = recipe.model_dump(exclude_none=True)
    if config is not None:
        values = {name: getattr(config, name) for name in sorted(OWN_FIELDS)}
        tables["model"] = {name: value for name, value in values.items() if value is not None}  # TOML knows no null
    with written_whole(path) as partial:
        partial.write_text(tomlkit.dumps(tables), encoding="utf-8")


__all__ = ["MODEL_FIELDS", "OWN_FIELDS", "Recipe", "make_recipe", "read_recipe", "write_recipe"]
