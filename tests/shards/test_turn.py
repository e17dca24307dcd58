"""Whoever writes waits for the turn; a driver gives it away while it trains."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from shards.errors import LockedError
from shards.turn import Turn

ROOT = Path(__file__).parents[2]
HOLDER = """
import sys, time
from pathlib import Path
from shards.turn import Turn
with Turn(Path(sys.argv[1])).taken():
    print("held", flush=True)
    time.sleep(600)
"""


def free(path: Path) -> bool:
    try:
        with Turn(path, patience=0).taken():
            return True
    except LockedError:
        return False


def test_the_turn_is_one_writers_and_given_away_for_a_while(tmp_path: Path) -> None:
    path = tmp_path / "turn"
    ours = Turn(path)
    with ours.taken():
        assert not free(path)
        with ours.taken():
            assert not free(path)
        assert not free(path), "an inner taking ended the outer one"
        with ours.given_away():
            assert free(path)
        assert not free(path)
    assert free(path)


def test_what_is_not_held_is_not_given_away(tmp_path: Path) -> None:
    with Turn(tmp_path / "turn").given_away():
        assert free(tmp_path / "turn")
    assert free(tmp_path / "turn")


def test_an_error_gives_the_turn_back(tmp_path: Path) -> None:
    ours = Turn(tmp_path / "turn")
    with pytest.raises(ZeroDivisionError), ours.taken(), ours.given_away():
        raise ZeroDivisionError
    assert free(tmp_path / "turn")


def test_a_turn_dies_with_its_holder(tmp_path: Path) -> None:
    path = tmp_path / "turn"
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(LockedError, match="another process that has been writing"), Turn(path, 0).taken():
            pass
        holder.kill()
        with Turn(path, 30).taken():
            pass


def test_who_gave_the_turn_away_waits_for_it_however_long_another_has_it(tmp_path: Path) -> None:
    """What was trained meanwhile must not be lost."""
    path, ours, other = tmp_path / "turn", Turn(tmp_path / "turn", patience=0), Turn(tmp_path / "turn")
    with ours.taken(), ours.given_away():
        other._take(0)
        threading.Timer(0.3, other._give).start()
    assert other._handle is None
    assert free(path)


def test_a_child_process_that_was_forked_does_not_keep_the_turn(tmp_path: Path) -> None:
    path = tmp_path / "turn"
    with Turn(path).taken():
        child = os.fork()
        if child == 0:
            time.sleep(60)
            os._exit(0)
    try:
        assert free(path)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
