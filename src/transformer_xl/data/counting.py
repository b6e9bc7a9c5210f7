"""Which words a vocabulary has, from the counts of many shards, at bounded memory."""

import errno
import os
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from .encoding import load_shard


def most_frequent(shards: Sequence[Path], *, min_freq: int = 0, max_size: int | None = None) -> Counter[str]:
    """The words that stay in the vocabulary, the most frequent first; among equals, what occurs first.

    Counts are added up in a database on the disk beside the shards, so memory grows with the words that stay, not with
    those that are seen.

    Args:
        shards: the shards to count, in the order of the text.
        min_freq: occurrences below which a word is left out.
        max_size: most words; None keeps all.

    Raises:
        OSError: the disk is full.
    """
    if not shards:
        return Counter()
    with tempfile.TemporaryDirectory(dir=shards[0].parent) as folder:
        try:
            with closing(sqlite3.connect(Path(folder) / "counts.sqlite", isolation_level=None)) as database:
                _add_up(database, shards)
                query = "SELECT word, n FROM words WHERE n >= ? ORDER BY n DESC, place LIMIT ?"
                return Counter(dict(database.execute(query, (min_freq, -1 if max_size is None else max_size))))
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_FULL:
                raise
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), folder) from error


def _add_up(database: sqlite3.Connection, shards: Sequence[Path]) -> None:
    for setting in ("journal_mode=OFF", "synchronous=OFF", "cache_size=-65536", "temp_store=FILE"):
        database.execute(f"PRAGMA {setting}")
    database.execute("CREATE TABLE words (word TEXT PRIMARY KEY, n INTEGER, place INTEGER) WITHOUT ROWID")
    n_seen = 0
    for path in shards:
        shard = load_shard(path)
        rows = zip(shard.symbols, shard.counts.tolist(), range(n_seen, n_seen + len(shard.symbols)), strict=True)
        n_seen += len(shard.symbols)
        database.execute("BEGIN")
        database.executemany(
            "INSERT INTO words VALUES (?, ?, ?) ON CONFLICT (word) DO UPDATE SET n = n + excluded.n",
            sorted(rows),  # neighbours in the table come one after the other
        )
        database.execute("COMMIT")


__all__ = ["most_frequent"]
