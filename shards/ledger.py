"""The SQLite book of facts: appended, never edited; no personal data and no row per record.

It is a transparency log: every fact is a leaf of an RFC 6962 tree, and every transaction ends with
a tree head signed by the operator (C2SP tlog-checkpoint). Whoever keeps a head can tell any later
change of what it covers; opening a workspace recomputes the whole tree. The first fact commits to
the keys and names the log.

One driver at a time writes (see ``shards/lock.py`` and ``shards/lease.py``); anybody may read. The
journal is a rollback journal (SQLite 3.7.0 to 3.51.2 can corrupt a write-ahead log when several
connections reset it) that is emptied, not removed, by a commit: its name is made durable once, when
the ledger is made, because SQLite swallows an error when it syncs the directory of a new one.
"""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from heapq import merge
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from shards import lease
from shards.digest import canonical_json, parse_json
from shards.errors import IntegrityError, StorageError
from shards.fact import Fact
from shards.files import fsync_directory, storage
from shards.logtree import LogTree, Row
from shards.migrations import migrate
from shards.note import sign_head
from shards.tlog import consistency_proof, inclusion_proofs

_BUSY_SECONDS = 30


class Ledger:
    """An open ledger file."""

    def __init__(self, path: Path, signing_key: Callable[[], Ed25519PrivateKey], *, create: bool = False) -> None:
        """Open a ledger.

        Args:
            path: the file.
            signing_key: asked for the key that signs tree heads, on append only.
            create: make the file.

        Raises:
            StorageError: if the file is missing (unless ``create``) or cannot be used.
        """
        self.path = path
        self._signing_key = signing_key
        self._tree = LogTree()
        self._read: dict[str, list[Row]] = defaultdict(list)  # by kind; facts are appended and never edited
        self._known: dict[int, Fact] = {}
        self._last = 0
        with storage(f"find the ledger {path}"):
            found = path.is_file()
        if not create and not found:
            raise StorageError(f"a ledger at {path}", "no file", "run `sisa init` first, or check -w")
        self._lease: lease.Lease | None = None
        with self._errors():
            self._db = self._connect()
            if not create and not self._db.execute("PRAGMA user_version").fetchone()[0]:
                raise _broken(path, "an empty database")
            self._db.text_factory = lambda data: data.decode(errors="surrogateescape")  # damage is judged below
            migrate(self._db)
        self._file = _identity(path)
        if create:  # SQLite ignores a failed sync of the directory that holds a new journal
            with storage(f"make the ledger {path} durable"):
                fsync_directory(path.parent)

    def _connect(self) -> sqlite3.Connection:
        db = sqlite3.connect(self.path, timeout=_BUSY_SECONDS, isolation_level=None)
        db.execute("PRAGMA journal_mode = TRUNCATE")
        db.execute("PRAGMA synchronous = EXTRA")
        db.execute("PRAGMA secure_delete = ON")
        return db

    @contextmanager
    def driven(self) -> Iterator[None]:
        """Hold the lease for the duration: nobody appends from another host meanwhile. Take the lock first.

        Raises:
            LockedError: if a driver on another host holds it; also from any append, if it was taken over.
            StorageError: if the file cannot be written.
        """
        ours = lease.Lease.of_this_process()
        with self._writing():
            lease.take(self._db, self.path, ours)
        self._lease = ours
        try:
            with lease.renewing(self._connect, ours):
                yield
        except BaseException:
            with suppress(StorageError):  # what cannot be given up runs out
                self._give_up(ours)
            raise
        self._give_up(ours)

    def _give_up(self, ours: lease.Lease) -> None:
        self._lease = None
        with self._writing():
            lease.release(self._db, ours)

    def driven_elsewhere(self) -> lease.Lease | None:
        """The lease of a driver on another host, if there is one. This is a read-only operation."""
        with self._errors():
            found = lease.read(self._db)
        return found if found is not None and found.stands_against(lease.Lease.of_this_process()) else None

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """One transaction: all that is written inside, or nothing."""
        with self._errors():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            finally:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")

    def append(
        self, facts: Iterable[tuple[str, Mapping[str, Any]]], *, key: Ed25519PrivateKey | None = None
    ) -> list[Fact]:
        """Append facts and a signed tree head in one transaction: all of them or none.

        Args:
            facts: (kind, body) each.
            key: signs in place of the log's current key, which a fact appended here replaces.

        Raises:
            StorageError: if they could not be made durable; none of them holds then.
            LockedError: if a driver on another host took over meanwhile.
            IntegrityError: if what is stored is not what the last head was signed over.
        """
        created = datetime.now(UTC).isoformat(timespec="milliseconds")
        texts = [(kind, canonical_json(dict(body)).decode()) for kind, body in facts]
        if not texts:
            return []
        try:
            with self._writing():
                lease.require(self._db, self.path, self._lease)
                self._catch_up()
                first = len(self._tree.leaves) + 1
                rows = [(seq, kind, body, created) for seq, (kind, body) in enumerate(texts, first)]
                self._db.executemany("INSERT INTO facts (seq, kind, body, created) VALUES (?, ?, ?, ?)", rows)
                note = self._sealed(rows, key)
                self._db.execute("INSERT INTO heads (size, note) VALUES (?, ?)", (len(self._tree.leaves), note))
        except BaseException:
            self._tree = LogTree()  # read anew from what turns out to be stored
            raise
        return [self._fact(row) for row in rows]

    def _catch_up(self) -> None:
        """Take in what is stored and was not read yet; it must be what the last head covers."""
        self._take(self._rows(len(self._tree.leaves)))
        last = self._db.execute("SELECT size, note FROM heads ORDER BY size DESC LIMIT 1").fetchone()
        problem = self._tree.refuses(*last) if last else "facts without a tree head" if self._tree.leaves else ""
        if problem:
            raise _broken(self.path, problem)

    def _sealed(self, rows: Sequence[Row], key: Ed25519PrivateKey | None) -> str:
        """The signed head after ``rows``, which are taken in."""
        signer = key or self._signing_key()
        self._take(rows)
        if not self._tree.keys or self._tree.keys[-1] != signer.public_key():
            raise IntegrityError(
                f"the signing key that the log in {self.path} names last",
                "another signing key",
                "run `sisa key rotate` to finish an interrupted rotation, restore keys/signing.key, or declare it lost",
            )
        return sign_head(self._tree.head(), signer)

    def _take(self, rows: Iterable[Row]) -> None:
        try:
            for row in rows:
                self._tree.take(row)
        except ValueError as error:
            raise _broken(self.path, str(error)) from error

    def _rows(self, after: int = 0) -> list[Row]:
        query = "SELECT seq, kind, body, created FROM facts WHERE seq > ? ORDER BY seq"
        return self._db.execute(query, (after,)).fetchall()

    def facts(self, *kinds: str) -> list[Fact]:
        """All facts of these kinds, oldest first. This is a read-only operation."""
        self._read_on()
        return [self._understood(row) for row in merge(*(self._read[kind] for kind in kinds))]

    def last(self, *kinds: str) -> int:
        """Number of the newest fact of these kinds, 0 if there is none. This is a read-only operation."""
        self._read_on()
        return max((self._read[kind][-1][0] for kind in kinds if self._read[kind]), default=0)

    def newest(self, kind: str) -> Fact | None:
        """The newest fact of a kind, if there is one. This is a read-only operation."""
        self._read_on()
        return self._understood(self._read[kind][-1]) if self._read[kind] else None

    def _read_on(self) -> None:
        """Read what anybody has appended since; what was read before is kept."""
        with self._errors():
            rows = self._rows(self._last)
        for row in rows:
            if not self._read[row[1]] or self._read[row[1]][-1][0] < row[0]:  # an interrupted reading goes on here
                self._read[row[1]].append(row)
            self._last = row[0]

    def _understood(self, row: Row) -> Fact:
        if row[0] not in self._known:
            self._known[row[0]] = self._fact(row)
        return self._known[row[0]]

    def since(self, size: int) -> list[Fact]:
        """All facts after the first ``size``. This is a read-only operation."""
        with self._errors():
            return [self._fact(row) for row in self._rows(size)]

    def _fact(self, row: Row) -> Fact:
        seq, kind, body, created = row
        try:
            return Fact(seq, kind, parse_json(body.encode()), created)
        except ValueError as error:
            raise _broken(self.path, f"fact {seq} is damaged ({error})") from error

    # -- the log -------------------------------------------------------------------------------

    def problems(self, *, every_signature: bool = True) -> list[str]:
        """What is wrong with the log, recomputed from what is stored; empty if nothing is.

        A ledger that was rolled back as a whole is whole in itself: only its anchor tells.

        Args:
            every_signature: of older heads too; the newest one's covers every fact.
        """
        tree = LogTree()
        with self._reading():
            rows = self._rows()
            heads = self._db.execute("SELECT size, note FROM heads ORDER BY size").fetchall()
        covered = 0
        pending = iter(rows)
        for size, note in heads:
            for row in pending:
                try:
                    tree.take(row)
                except ValueError as error:
                    return [str(error)]
                if row[0] == size:
                    break
            old = not every_signature and size != heads[-1][0]
            problem = "" if old and size == len(tree.leaves) and tree.covers(note) else tree.refuses(size, note)
            if problem:
                return [f"facts {covered + 1} to {size}: {problem}"]
            covered = size
        return [] if covered == len(rows) and rows else [f"fact {covered + 1} and later have no signed tree head"]

    def check(self) -> None:
        """Recompute the log; of the signatures only the newest, which covers every fact.

        Raises:
            IntegrityError: if a fact or a tree head was edited, removed, inserted or reordered.
        """
        found = self.problems(every_signature=False)
        if found:
            raise _broken(self.path, found[0])

    def head(self, size: int | None = None) -> str:
        """The signed tree head of ``size`` facts (they were the last of a transaction), or the newest.

        Raises:
            IntegrityError: if there is none.
        """
        which = "ORDER BY size DESC LIMIT 1" if size is None else "WHERE size = ?"
        with self._errors():
            row = self._db.execute(f"SELECT note FROM heads {which}", () if size is None else (size,)).fetchone()  # noqa: S608
        if row is None:
            raise _broken(self.path, f"no tree head of size {size}")
        return str(row[0])

    def head_after(self, seq: int) -> str:
        """The signed head of the transaction that appended fact ``seq``."""
        with self._errors():
            row = self._db.execute("SELECT min(size) FROM heads WHERE size >= ?", (seq,)).fetchone()
        return self.head(row[0] or seq)

    def leaves(self) -> list[bytes]:
        """The leaf hashes of all facts, by which proofs are made."""
        with self._reading():
            self._catch_up()
        return list(self._tree.leaves)

    def prove(self, seqs: Iterable[int], size: int) -> dict[int, list[bytes]]:
        """Inclusion proofs of facts in the tree of the first ``size``."""
        proofs = inclusion_proofs(self.leaves(), [seq - 1 for seq in seqs], size)
        return {index + 1: proof for index, proof in proofs.items()}

    def consistency(self, old: int, new: int) -> list[bytes]:
        """Proof that the tree of ``new`` facts extends that of ``old``."""
        return consistency_proof(self.leaves(), old, new)

    def replaced(self) -> bool:
        """Does another file bear the name by now? This one is still read, and says nothing of the present."""
        return _identity(self.path) != self._file

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """One state of the file, whoever appends meanwhile."""
        with self._errors():
            self._db.execute("BEGIN")
            try:
                yield
            finally:
                self._db.execute("ROLLBACK")

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except UnicodeDecodeError as error:  # a name in a damaged schema
            raise _broken(self.path, str(error)) from error
        except sqlite3.Error as error:
            # Malformed, no database, or another schema; the subclasses of the error are other troubles.
            code = getattr(error, "sqlite_errorcode", None)  # errors of Python's own have none
            if type(error) is sqlite3.DatabaseError or code == sqlite3.SQLITE_ERROR:
                raise _broken(self.path, str(error)) from error
            raise StorageError(
                f"to read and append facts in {self.path}",
                str(error),
                "free space or mend permissions, then run the same command again; nothing was lost",
            ) from error


def _identity(path: Path) -> tuple[int, int]:
    with storage(f"find the ledger {path}"):
        found = path.stat()
    return found.st_dev, found.st_ino


def _broken(path: Path, found: str) -> IntegrityError:
    return IntegrityError(
        f"the facts in {path} that its tree heads were signed over",
        found,
        "trust nothing in this workspace; restore it from a backup (docs/backups.md)",
    )
