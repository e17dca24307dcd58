"""Named schema changes of the ledger; each is applied and recorded in one transaction."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping

from shards.errors import OperationError

# Facts and signed tree heads are appended, never edited; the triggers hold every program to that.
_FACTS = """
CREATE TABLE facts (
    seq INTEGER PRIMARY KEY,
    kind TEXT NOT NULL,
    body TEXT NOT NULL,
    created TEXT NOT NULL
) STRICT;
CREATE TRIGGER facts_are_never_edited BEFORE UPDATE ON facts
BEGIN SELECT RAISE(ABORT, 'facts are never edited'); END;
CREATE TRIGGER facts_are_never_removed BEFORE DELETE ON facts
BEGIN SELECT RAISE(ABORT, 'facts are never removed'); END;
CREATE TABLE heads (
    size INTEGER PRIMARY KEY,
    note TEXT NOT NULL
) STRICT;
CREATE TRIGGER heads_are_never_edited BEFORE UPDATE ON heads
BEGIN SELECT RAISE(ABORT, 'tree heads are never edited'); END;
CREATE TRIGGER heads_are_never_removed BEFORE DELETE ON heads
BEGIN SELECT RAISE(ABORT, 'tree heads are never removed'); END;
"""

# Who drives the workspace, for drivers on other hosts (shards/lease.py): one row, no part of the log.
_LEASE = """
CREATE TABLE lease (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    token TEXT NOT NULL,
    host TEXT NOT NULL,
    boot TEXT NOT NULL,
    process INTEGER NOT NULL,
    since TEXT NOT NULL,
    renewed REAL NOT NULL
) STRICT;
"""

MIGRATIONS: Mapping[str, str] = {"0001-facts": _FACTS, "0002-lease": _LEASE}


def migrate(connection: sqlite3.Connection) -> None:
    """Bring the schema up to date.

    Raises:
        OperationError: if the ledger was written by a newer version of this program.
    """
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version > len(MIGRATIONS):
        raise OperationError(
            f"a ledger of schema {len(MIGRATIONS)} or older",
            f"schema {version}",
            "install the newer version of sisa that wrote it",
        )
    for number, script in enumerate(MIGRATIONS.values(), 1):
        if number > version:
            connection.executescript(f"BEGIN IMMEDIATE; {script} PRAGMA user_version = {number}; COMMIT;")
