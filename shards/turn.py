"""Whose turn it is to write: held for moments, where the driver's lock is held for hours.

A driver gives its turn away while steps are trained, so that a deletion is accepted, and what it
names is no longer served, at once and not when the training ends.
"""

from __future__ import annotations

import fcntl
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from shards.errors import LockedError
from shards.files import storage

PATIENCE_SECONDS = 300.0
_PAUSE_SECONDS = 0.005


class Turn:
    """A lock file that is waited for; the lock dies with its holder."""

    def __init__(self, path: Path, patience: float = PATIENCE_SECONDS) -> None:
        self._path = path
        self._patience = patience
        self._handle: int | None = None

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Hold the turn for the duration; within another ``taken`` of this object, go on holding it.

        Raises:
            LockedError: if another process does not give it away.
            StorageError: if the file cannot be opened.
        """
        if self._handle is not None:
            yield
            return
        self._take(self._patience)
        try:
            yield
        finally:
            self._give()

    @contextmanager
    def given_away(self) -> Iterator[None]:
        """Let others have the turn for the duration, and take it again; nothing if it is not held."""
        if self._handle is None:
            yield
            return
        self._give()
        try:
            yield
        finally:
            self._take(math.inf)  # whoever has it is alive, and what was trained must not be lost

    def _take(self, patience: float) -> None:
        with storage(f"lock {self._path}"):
            handle = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            with storage(f"lock {self._path}"):
                self._wait(handle, patience)
        except BaseException:
            os.close(handle)
            raise
        self._handle = handle

    def _wait(self, handle: int, patience: float) -> None:
        until = time.monotonic() + patience
        while not _locked(handle):
            if time.monotonic() >= until:
                raise LockedError(
                    f"a turn to write in {self._path.parent}",
                    f"another process that has been writing for {self._patience:.0f} seconds",
                    "run the same command again; `sisa status` says who drives",
                )
            time.sleep(_PAUSE_SECONDS)

    def _give(self) -> None:
        handle, self._handle = self._handle, None
        if handle is not None:
            with suppress(OSError):  # unlocked, so that a forked child with the descriptor does not keep it
                fcntl.flock(handle, fcntl.LOCK_UN)
            with suppress(OSError):  # it is closed even so
                os.close(handle)


def _locked(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
