"""What happened in a run, as JSON lines: one object a line, written when it happens, so a killed run keeps its past."""

import json
import math
import os
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from transformer_xl.data.corpora import Unit

Record = dict[str, Any]
UNIT_NAMES: dict[Unit, str] = {
    "word": "perplexity",
    "character": "bits per character",
    "byte": "bits per byte",
}


class MetricsLog:
    """The records of a run, in memory and in a file.

    Args:
        path: the file.
        last_step: records of the file up to this step are kept, later ones and a line cut off by a kill are not; 0
            begins anew.
        is_silent: write no file, as all processes but the first.

    Attributes:
        records: what was written, in order. Each has `kind` (`"train"`, `"valid"` or `"test"`) and `step`.
    """

    def __init__(self, path: Path, *, last_step: int = 0, is_silent: bool = False) -> None:
        self.records: list[Record] = _records_until(path, last_step)
        self._file = None
        if not is_silent:
            partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
            partial.write_text("".join(_line(record) for record in self.records), encoding="utf-8")
            partial.replace(path)
            self._file = path.open("a", encoding="utf-8", buffering=1)  # a line leaves at once

    def write(self, kind: str, **values: Any) -> None:
        """Add a record; every value must have a place in JSON."""
        record = {"kind": kind, **values}
        line = _line(record)
        self.records.append(record)
        if self._file is not None:
            self._file.write(line)

    def of(self, kind: str) -> list[Record]:
        """The records of one kind."""
        return [record for record in self.records if record["kind"] == kind]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()


def _line(record: Record) -> str:
    return json.dumps(record, allow_nan=False) + "\n"


def _records_until(path: Path, last_step: int) -> list[Record]:
    if last_step == 0 or not path.is_file():
        return []
    records = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        if not line.endswith("\n"):
            break  # cut off
        record: Record = json.loads(line)
        if record["step"] <= last_step and record["kind"] != "test":
            records.append(record)
    return records


def unit_title(unit: Unit) -> str:
    """What a loss is stated in: perplexity for words, bits per character or byte."""
    return UNIT_NAMES[unit]


def loss_in_unit(loss_nats: float, unit: Unit) -> Record:
    """A mean loss in nats, and in the unit of its corpus."""
    value = math.exp(min(loss_nats, 700.0)) if unit == "word" else loss_nats / math.log(2)
    return {"loss_nats": round(loss_nats, 6), UNIT_NAMES[unit].replace(" ", "_"): round(value, 5)}


__all__ = ["MetricsLog", "Record", "loss_in_unit", "unit_title"]
