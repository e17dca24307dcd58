"""The SQLite book of facts: appended, never edited; no personal data and no row per record.

One driver at a time writes (see ``shards/lock.py``); anybody may read. The journal mode is
rollback with ``synchronous=EXTRA``: SQLite 3.7.0 to 3.51.2 can corrupt a write-ahead log when
several connections reset it, and EXTRA also syncs the directory after a commit.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from shards.digest import canonical_json, parse_json
from shards.errors import StorageError
from shards.migrations import migrate

_BUSY_SECONDS = 30


@dataclass(frozen=True, slots=True)
class Fact:
    """One row: ``kind`` names the schema and version of ``body``.

    ``created`` is informational; order comes from ``seq`` alone.
    """

    seq: int
    kind: str
    body: dict[str, Any]
    created: str


class Ledger:
    """An open ledger file."""

    def __init__(self, path: Path, *, create: bool = False) -> None:
        """Open a ledger.

        Raises:
            StorageError: if the file is missing (unless ``create``) or cannot be used.
        """
        self.path = path
        if not create and not path.is_file():
            raise StorageError(f"a ledger at {path}", "no file", "run `sisa init` first, or check -w")
        with self._errors():
            self._db = sqlite3.connect(path, timeout=_BUSY_SECONDS, isolation_level=None)
            self._db.execute("PRAGMA journal_mode = DELETE")
            self._db.execute("PRAGMA synchronous = EXTRA")
            migrate(self._db)

    def append(self, facts: Iterable[tuple[str, Mapping[str, Any]]]) -> None:
        """Append facts in one transaction: all of them or none.

        Raises:
            StorageError: if they could not be made durable; none of them holds then.
        """
        created = datetime.now(UTC).isoformat(timespec="milliseconds")
        rows = [(kind, canonical_json(dict(body)).decode(), created) for kind, body in facts]
        with self._errors():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                self._db.executemany("INSERT INTO facts (kind, body, created) VALUES (?, ?, ?)", rows)
                self._db.execute("COMMIT")
            finally:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")

    def facts(self, *kinds: str) -> list[Fact]:
        """All facts of these kinds, oldest first. This is a read-only operation."""
        marks = ", ".join("?" * len(kinds))
        query = f"SELECT seq, kind, body, created FROM facts WHERE kind IN ({marks}) ORDER BY seq"  # noqa: S608
        with self._errors():
            rows = self._db.execute(query, kinds).fetchall()
        return [Fact(seq, kind, parse_json(body), created) for seq, kind, body, created in rows]

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise StorageError(
                f"to read and append facts in {self.path}",
                str(error),
                "free space or mend permissions, then run the same command again; nothing was lost",
            ) from error
