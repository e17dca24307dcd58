"""Which part of the vault holds a record: an index, so that forgetting need not read every part.

It is derived, holds no ID (the first bytes of tags), and is never trusted: what it names is read and
looked at, and who finds nothing by it reads every part before saying that nothing is there. So it may
be lost, damaged or behind at any time: that costs seconds and never an answer, and its own troubles
are no error.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from shards.errors import SisaError
from shards.vault import Part, Vault

_SCHEMA = """
CREATE TABLE parts (number INTEGER PRIMARY KEY, file TEXT NOT NULL UNIQUE);
CREATE TABLE places (mark INTEGER NOT NULL, part INTEGER NOT NULL, PRIMARY KEY (mark, part)) WITHOUT ROWID;
"""
_BUSY_SECONDS = 5
_AT_ONCE = 500  # SQLite takes so many parameters in every build


class Whereabouts:
    """The index of one vault, in one SQLite file."""

    def __init__(self, path: Path, vault: Vault) -> None:
        self.path = path
        self._vault = vault

    def follow(self, parts: Sequence[Part]) -> None:
        """Bring the index to the vault's current parts. Whoever drives the workspace calls this."""
        try:
            self._follow(parts)
        except (sqlite3.Error, OSError, SisaError):
            with contextlib.suppress(OSError):
                self.path.unlink(missing_ok=True)  # it is made anew at the next occasion

    def _follow(self, parts: Sequence[Part]) -> None:
        if not parts and not self.path.exists():
            return
        with self._opened(create=True) as db:
            known = dict(db.execute("SELECT file, number FROM parts"))
            db.execute("SELECT mark, part FROM places LIMIT 1")  # it is not another's file
            current = {part.file: part for part in parts}
            gone = [(known[file],) for file in known.keys() - current.keys()]
            added = [current[file] for file in current.keys() - known.keys()]
            if not (gone or added):
                return
            with db:
                db.execute("BEGIN IMMEDIATE")
                if gone:
                    db.executemany("DELETE FROM parts WHERE number = ?", gone)
                    db.execute("DELETE FROM places WHERE part NOT IN (SELECT number FROM parts)")
                for part in added:
                    number = db.execute("INSERT INTO parts (file) VALUES (?)", (part.file,)).lastrowid
                    marks = ((_mark(tag), number) for tag in self._vault.tags([part]))
                    db.executemany("INSERT OR IGNORE INTO places VALUES (?, ?)", marks)

    def find(self, tags: Iterable[bytes], parts: Sequence[Part]) -> dict[bytes, Part] | None:
        """The current parts that may hold ``tags``, as far as the index knows; None if it is behind."""
        wanted = {_mark(tag): tag for tag in tags}
        current = {part.file: part for part in parts}
        found: dict[bytes, Part] = {}
        try:
            with self._opened() as db:
                if {file for (file,) in db.execute("SELECT file FROM parts")} != current.keys():
                    return None
                marks = list(wanted)
                for start in range(0, len(marks), _AT_ONCE):
                    some = marks[start : start + _AT_ONCE]
                    query = f"SELECT mark, file FROM places JOIN parts ON part = number WHERE mark IN ({','.join('?' * len(some))})"  # noqa: E501, S608
                    found |= {wanted[mark]: current[file] for mark, file in db.execute(query, some)}
        except (sqlite3.Error, OSError, KeyError, TypeError):
            return None
        return found

    @contextmanager
    def _opened(self, *, create: bool = False) -> Iterator[sqlite3.Connection]:
        if not (create or self.path.is_file()):
            raise FileNotFoundError(self.path)
        with closing(sqlite3.connect(self.path, timeout=_BUSY_SECONDS, isolation_level=None)) as db:
            db.execute("PRAGMA journal_mode = MEMORY")  # no second file, and nothing is lost with it
            db.execute("PRAGMA synchronous = OFF")
            db.execute("PRAGMA secure_delete = ON")
            if create and not db.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]:
                db.executescript(_SCHEMA)
            yield db


def _mark(tag: bytes) -> int:
    """The first eight bytes of a tag, as SQLite's integer."""
    return int.from_bytes(tag[:8], "big", signed=True)
