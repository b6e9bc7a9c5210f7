"""What happened in a run, as JSON lines: one object a line, written when it happens, so a killed run keeps its past."""

import json
from pathlib import Path
from types import TracebackType
from typing import Any, Self

Record = dict[str, Any]


class MetricsLog:
    """The records of a run, in memory and in a file.

    Args:
        path: the file, written anew.

    Attributes:
        records: what was written, in order. Each has `kind` (`"train"`, `"valid"` or `"test"`) and `step`.
    """

    def __init__(self, path: Path) -> None:
        self.records: list[Record] = []
        self._file = path.open("w", encoding="utf-8", buffering=1)  # a line leaves at once

    def write(self, kind: str, **values: Any) -> None:
        """Add a record; every value must have a place in JSON."""
        record = {"kind": kind, **values}
        self.records.append(record)
        self._file.write(json.dumps(record, allow_nan=False) + "\n")

    def of(self, kind: str) -> list[Record]:
        """The records of one kind."""
        return [record for record in self.records if record["kind"] == kind]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()


__all__ = ["MetricsLog", "Record"]
