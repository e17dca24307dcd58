"""One driver a workspace: an operating-system lock that dies with its holder."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shards.errors import LockedError
from shards.files import storage

_TRIES = 4
_PAUSE_SECONDS = 0.05


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
            os.pwrite(handle, str(os.getpid()).encode(), 0)
        yield
    finally:
        with contextlib.suppress(OSError):  # the lock goes with the descriptor, which is closed even so
            os.close(handle)


def _take(handle: int, path: Path) -> None:
    for left in reversed(range(_TRIES)):
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError as error:
            if left:  # somebody may only be asking whether it is held
                time.sleep(_PAUSE_SECONDS)
                continue
            holder = os.pread(handle, 32, 0).decode().strip() or "unknown"
            raise LockedError(
                f"nobody else driving {path.parent}",
                f"process {holder} holds its lock",
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
