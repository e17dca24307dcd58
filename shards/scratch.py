"""Where a replay puts the checkpoints that it makes, compares and throws away."""

from __future__ import annotations

import errno
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shards import lock
from shards.files import storage
from shards.workspace import LOCK_FILE, SCRATCH

ELSEWHERE = "sisa-replay-"  # in the temporary directory, where the workspace may not be written to


@contextmanager
def scratch(workspace: Path) -> Iterator[Path]:
    """A directory for a replay's checkpoints.

    It lies in the workspace, so that a driver that comes along sweeps what a killed replay left,
    and ends a running one: a deletion does not wait for replays. Only where the workspace may not
    be written to (an auditor's view of it) is it a temporary directory. Its lock tells that it is in use.

    Raises:
        StorageError: if there is no room.
    """
    try:
        directory = Path(tempfile.mkdtemp(prefix=SCRATCH, dir=workspace))
    except OSError as error:
        if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
            with storage(f"make a place for a replay in {workspace}"):
                raise
        directory = Path(tempfile.mkdtemp(prefix=ELSEWHERE))
    try:
        with lock.exclusive(directory / LOCK_FILE):
            yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)
