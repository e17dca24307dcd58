"""One driver a workspace: an operating-system lock that dies with its holder, and says who holds it."""

from __future__ import annotations

import contextlib
import fcntl
import getpass
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from shards.errors import LockedError
from shards.files import storage

_TRIES = 4
_PAUSE_SECONDS = 0.05
_LONGEST = 1024  # bytes of a holder's description


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold the lock file ``path`` for the duration.

    Raises:
        LockedError: if a live process holds it.
        StorageError: if the file cannot be opened.
    """
    with storage(f"lock {path}"):
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        with storage(f"lock {path}"):
            _take(handle, path)
        with storage(f"lock {path}"):
            os.ftruncate(handle, 0)
            os.pwrite(handle, holder().encode(), 0)
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # who held it is nobody's business afterwards
                os.ftruncate(handle, 0)
    finally:
        with contextlib.suppress(OSError):  # the lock goes with the descriptor, which is closed even so
            os.close(handle)


def holder() -> str:
    """The calling process for others to read: number, user, host, command and time.

    Of the command line only our own command's name is told; the rest may name records or people.
    """
    program = Path(sys.argv[0] if sys.argv else "")
    name = program.parent.name if program.name == "__main__.py" else program.name or "python"
    command = " ".join([name, *sys.argv[1:2]]) if name == "sisa" else name
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return f"process {os.getpid()} of {_user()} on host {socket.gethostname()} ({command}, since {now})"


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container may run as a number without a name
        return f"user {os.getuid()}"


def _take(handle: int, path: Path) -> None:
    for left in reversed(range(_TRIES)):
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError as error:
            if left:  # somebody may only be asking whether it is held
                time.sleep(_PAUSE_SECONDS)
                continue
            found = os.pread(handle, _LONGEST, 0).decode(errors="replace").strip() or "an unknown process"
            raise LockedError(
                f"nobody else driving {path.parent}",
                f"{found} holds its lock",
                "wait for it to end, or stop it, and run the same command again",
            ) from error


def held(path: Path) -> bool:
    """Does a live process hold the lock file ``path``? This is a read-only operation."""
    with storage(f"ask who holds {path}"):
        if not path.exists():
            return False
        handle = os.open(path, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(handle)
        return False
