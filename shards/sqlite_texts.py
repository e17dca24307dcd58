"""Every value of a SQLite file, for whoever searches it: a long one lies in pieces across its pages."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from shards.errors import StorageError


def texts(path: Path) -> Iterator[bytes]:
    """Every text (as UTF-8) and blob in every table of a database, whole.

    The file is opened read-only and as immutable: no journal is made, replayed or removed, and no
    lock taken.

    Raises:
        StorageError: if the file is no database, or a damaged one.
    """
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro&immutable=1", uri=True)) as database:
            database.text_factory = bytes
            tables = database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
            for (name,) in tables:
                quoted = name.decode().replace('"', '""')
                for row in database.execute(f'SELECT * FROM "{quoted}"'):  # noqa: S608 - a name from the schema
                    yield from (value for value in row if isinstance(value, bytes))
    except sqlite3.Error as error:
        raise StorageError(f"a readable SQLite database {path}", str(error), "check the file") from error
