"""One driver a workspace, by a lock that dies with its holder."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from shards.errors import LockedError, StorageError
from shards.lock import exclusive, held

HOLDER = """
import sys, time
from pathlib import Path
from shards.lock import exclusive
with exclusive(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_lock_is_held_for_its_duration_and_then_free(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    assert not held(path)
    with exclusive(path):
        assert held(path)
    assert not held(path)
    with exclusive(path):
        assert held(path)


def test_a_second_driver_is_refused_and_told_who_drives(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
            with pytest.raises(LockedError, match=f"process {process.pid} of .* holds its lock"), exclusive(path):
                pass
            assert held(path)
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
    assert not held(path), "the lock outlived its holder"
    with exclusive(path):
        pass


def test_an_error_inside_frees_the_lock(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with pytest.raises(RuntimeError), exclusive(path):
        raise RuntimeError
    assert not held(path)


def test_a_lock_that_cannot_be_made_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="lock"), exclusive(tmp_path / "nowhere" / "lock"):
        pass
