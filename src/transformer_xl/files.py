"""Output that is whole or not there: written under another name, then renamed."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Give a path to write a file or folder to; it gets its real name at the end of the block, if that ends well."""
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        yield partial
        if partial.is_dir() and path.is_dir():
            shutil.rmtree(path)  # a folder cannot be replaced in one go
        partial.replace(path)
    finally:
        if partial.is_dir():
            shutil.rmtree(partial)
        else:
            partial.unlink(missing_ok=True)


__all__ = ["written_whole"]
