"""One driver a workspace, across hosts: a lease in the ledger's database, with fencing.

On one host the lock of ``shards/lock.py`` decides, because it dies with its holder. Another host may not
see that lock. So whoever has it also takes the lease: a row that names the holder and a random token, and
that a thread renews while its holder lives. A lease of another host that was renewed lately is refused;
of this host it is overridden, because the lock was had. Whoever was taken for dead and is not cannot write:
each append asks, in its own transaction, whether the token is still its own.

Hosts are told apart by the boot that they are in: two names may be one machine, one name two. After a
restart of the machine the old lease runs out like another host's.
"""

from __future__ import annotations

import os
import secrets
import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from shards.errors import LockedError

LIFE_SECONDS = 120.0
RENEW_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Host:
    """Where a process runs.

    Attributes:
        name: for people.
        boot: tells one boot of one machine from all others; the name where the system has no such thing.
    """

    name: str
    boot: str


def this_host() -> Host:
    """The host of this process."""
    name = socket.gethostname()
    with suppress(OSError):
        return Host(name, Path("/proc/sys/kernel/random/boot_id").read_text().strip())
    return Host(name, name)


@dataclass(frozen=True, slots=True)
class Lease:
    """What the row says.

    Attributes:
        token: random, known to its holder alone.
        host, process: who holds it.
        since: when it was taken (ISO 8601, UTC).
        renewed: when it was last renewed, in seconds of the holder's clock.
    """

    token: str = field(repr=False)
    host: Host
    process: int
    since: str
    renewed: float

    @classmethod
    def of_this_process(cls) -> Lease:
        """A new lease for the calling process."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        return cls(secrets.token_hex(16), this_host(), os.getpid(), now, time.time())

    def stands_against(self, other: Lease) -> bool:
        """Does it keep another from being taken: held on another host, and renewed lately?

        By the clocks of both hosts, which should agree within a minute. Where they do not, a live holder
        may be taken for dead; it is fenced off, and nothing is lost but its work.
        """
        return self.host.boot != other.host.boot and abs(time.time() - self.renewed) < LIFE_SECONDS

    def refusal(self, path: Path) -> LockedError:
        """What whoever is kept out is told."""
        until = datetime.fromtimestamp(self.renewed + LIFE_SECONDS, UTC).isoformat(timespec="seconds")
        return LockedError(
            f"nobody else driving {path.parent}",
            f"process {self.process} on host {self.host.name} does since {self.since}; its lease runs until {until}",
            "wait for it to end, or stop it there; if that host is gone, run the same command again after that time",
        )


def read(db: sqlite3.Connection) -> Lease | None:
    """The lease there is, live or not."""
    row = db.execute("SELECT token, host, boot, process, since, renewed FROM lease").fetchone()
    return None if row is None else Lease(row[0], Host(row[1], row[2]), row[3], row[4], row[5])


def take(db: sqlite3.Connection, path: Path, lease: Lease) -> None:
    """Take the lease in a transaction of the caller's.

    Raises:
        LockedError: if another host holds it.
    """
    found = read(db)
    if found is not None and found.stands_against(lease):
        raise found.refusal(path)
    row = (lease.token, lease.host.name, lease.host.boot, lease.process, lease.since, lease.renewed)
    db.execute("INSERT OR REPLACE INTO lease VALUES (1, ?, ?, ?, ?, ?, ?)", row)


def require(db: sqlite3.Connection, path: Path, lease: Lease | None) -> None:
    """Ask, in a transaction of the caller's, whether it may write: the lease is still the caller's.

    Who has none (None) writes beside a driver, which is then one of this host.

    Raises:
        LockedError: if the lease was taken over, or another host holds it.
    """
    found = read(db)
    if lease is None:
        if found is not None and found.stands_against(Lease.of_this_process()):
            raise found.refusal(path)
        return
    if found is None or found.token != lease.token:
        holder = "nobody" if found is None else f"process {found.process} on host {found.host.name}"
        raise LockedError(
            f"this process to drive {path.parent}, as it did since {lease.since}",
            f"its lease was not renewed in time, and {holder} took over; nothing was written",
            "see `sisa status`; run the same command again if it is not done",
        )


def release(db: sqlite3.Connection, lease: Lease) -> None:
    """Give the lease up, if it is still the caller's."""
    db.execute("DELETE FROM lease WHERE token = ?", (lease.token,))


@contextmanager
def renewing(connect: Callable[[], sqlite3.Connection], lease: Lease) -> Iterator[None]:
    """Renew the lease by a thread for the duration. What the thread cannot renew runs out."""
    ended = threading.Event()

    def renew() -> None:
        while not ended.wait(RENEW_SECONDS):
            with suppress(sqlite3.Error), closing(connect()) as db:
                db.execute("UPDATE lease SET renewed = ? WHERE token = ?", (time.time(), lease.token))

    thread = threading.Thread(target=renew, name="sisa lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
