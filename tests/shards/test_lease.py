"""One driver a workspace across hosts: refused while the other lives, taken over when not, and fenced off."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from shards import kinds, lease
from shards.errors import LockedError
from shards.lease import Host, Lease, this_host
from shards.workspace import Workspace
from sisa.session import Session
from sisa.status import running
from tests.toy import toy_recipe, toy_session

# A driver as it would be on another host: that host's name and boot, and locks that nobody here sees.
DRIVER = """
import sys, time
from pathlib import Path
from unittest import mock
from shards import lease, workspace
from shards.errors import LockedError

path, host, life = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
mock.patch.object(lease, "this_host", lambda: lease.Host(host, f"boot of {host}")).start()
mock.patch.object(workspace, "LOCK_FILE", f"../lock-{host}").start()
mock.patch.object(workspace, "TURN_FILE", f"../turn-{host}").start()
lease.LIFE_SECONDS, lease.RENEW_SECONDS = life, float(sys.argv[4])
opened = workspace.Workspace.open(path)
try:
    with opened.driving():
        print("drives", flush=True)
        for line in sys.stdin:
            opened.ledger.append([("note", {"by": host})])
            print("wrote", flush=True)
except LockedError as error:
    print(f"refused: {error.found}", flush=True)
"""


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Session]:
    opened = toy_session(tmp_path / "w", toy_recipe())
    yield opened
    opened.workspace.close()


class Driver:
    """A process on another host that drives a workspace and writes when it is told to."""

    def __init__(self, path: Path, host: str, life: float, renew: float) -> None:
        command = [sys.executable, "-c", DRIVER, str(path), host, str(life), str(renew)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.first = self.said()

    def said(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def write(self) -> str:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self.said()

    def end(self) -> None:
        self.process.send_signal(signal.SIGCONT)
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.kill()
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()


@contextmanager
def driver(session: Session, host: str, life: float = 120, renew: float = 30) -> Iterator[Driver]:
    """A driver on another host, gone at the end."""
    started = Driver(session.workspace.path, host, life, renew)
    try:
        yield started
    finally:
        started.end()


def test_a_driver_on_another_host_is_refused_and_told_who_drives_since_when_and_until_when(session: Session) -> None:
    with driver(session, "far") as far:
        assert far.first == "drives"
        with pytest.raises(LockedError) as caught, session.workspace.driving():
            pass
        assert f"process {far.process.pid} on host far" in caught.value.found
        assert "since 20" in caught.value.found
        assert "runs until 20" in caught.value.found
        assert session.workspace.driven()
        told = running(session.workspace)
        assert told is not None
        assert told["holder"] == f"process {far.process.pid} on host far"
        with driver(session, "farther") as farther:
            assert farther.first.startswith(f"refused: process {far.process.pid} on host far")
        assert far.write() == "wrote"


def test_a_driver_that_ended_leaves_no_lease(session: Session) -> None:
    with driver(session, "far") as far:
        assert far.process.stdin is not None
        far.process.stdin.close()
        far.process.wait(30)
        assert not session.workspace.driven()
        with session.workspace.driving():
            session.workspace.ledger.append([("note", {})])


def test_a_crashed_driver_of_this_host_is_followed_at_once(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    with driver(session, "far") as far:
        far.process.kill()
        far.process.wait()
        with pytest.raises(LockedError), session.workspace.driving():
            pass
        monkeypatch.setattr(lease, "this_host", lambda: Host("renamed", "boot of far"))
        with session.workspace.driving():
            session.workspace.ledger.append([("note", {})])


def test_a_driver_renews_its_lease_while_it_lives(session: Session) -> None:
    def renewed() -> float:
        with closing(sqlite3.connect(session.workspace.ledger.path)) as db:
            found = lease.read(db)
        assert found is not None
        return found.renewed

    with driver(session, "far", renew=0.05):
        taken = renewed()
        while renewed() <= taken:
            time.sleep(0.05)


def test_a_driver_that_was_taken_for_dead_cannot_write_any_more(session: Session) -> None:
    with driver(session, "far", life=1) as far:
        assert far.write() == "wrote"
        far.process.send_signal(signal.SIGSTOP)
        time.sleep(1.5)
        with driver(session, "farther", life=1) as farther:
            assert farther.first == "drives"
            assert farther.write() == "wrote"
            far.process.send_signal(signal.SIGCONT)
            assert "took over" in far.write()
            assert farther.write() == "wrote"
    written = [fact.body["by"] for fact in session.workspace.ledger.facts("note")]
    assert written == ["far", "farther", "farther"]
    session.workspace.ledger.check()


def test_an_append_of_a_driver_without_its_lease_changes_nothing(session: Session) -> None:
    ledger = session.workspace.ledger
    with session.workspace.driving():
        before = ledger.since(0)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(lease, "this_host", lambda: Host("far", "another boot"))
            patch.setattr(lease, "LIFE_SECONDS", 0.0)
            patch.setattr("shards.workspace.LOCK_FILE", "../other-lock")
            patch.setattr("shards.workspace.TURN_FILE", "../other-turn")
            other = Workspace.open(session.workspace.path)
            with other.driving(), pytest.raises(LockedError, match="took over"):
                ledger.append([("note", {})])
            other.close()
        with pytest.raises(LockedError, match="nobody took over"):
            ledger.append([(kinds.RUN, {})])
        assert ledger.since(0) == before
    with session.workspace.driving():
        ledger.append([("note", {})])


def test_the_lease_is_no_part_of_the_log_and_names_no_person(session: Session) -> None:
    ledger = session.workspace.ledger
    before = ledger.since(0), ledger.head()
    with session.workspace.driving():
        stored = ledger.path.read_bytes()
        assert this_host().name.encode() in stored
    assert (ledger.since(0), ledger.head()) == before
    assert this_host().boot.encode() not in ledger.path.read_bytes(), "an ended driver's lease was left"


def test_two_boots_of_one_machine_are_two_hosts_and_one_boot_is_one() -> None:
    ours = Lease.of_this_process()
    assert ours.host == this_host()
    assert ours.process == os.getpid()
    again = Lease("other", Host("another name", ours.host.boot), 1, ours.since, ours.renewed)
    assert not again.stands_against(ours)
    rebooted = Lease("other", Host(ours.host.name, "another boot"), 1, ours.since, ours.renewed)
    assert rebooted.stands_against(ours)
    for renewed in (time.time() - lease.LIFE_SECONDS, time.time() + 2 * lease.LIFE_SECONDS):
        assert not Lease("other", rebooted.host, 1, ours.since, renewed).stands_against(ours)


def test_a_token_is_shown_nowhere() -> None:
    ours = Lease.of_this_process()
    assert ours.token not in repr(ours)
    assert ours.token not in str(ours.refusal(Path("/w/ledger.sqlite")))


def test_nobody_accepts_beside_a_driver_on_another_host(session: Session) -> None:
    with (
        driver(session, "far"),
        session.workspace.writing(),
        pytest.raises(LockedError, match="on host far"),
    ):
        session.workspace.ledger.append([("note", {})])


def test_beside_a_driver_on_this_host_others_append(session: Session) -> None:
    with session.workspace.driving(), session.workspace.giving_way():
        beside = Workspace.open(session.workspace.path)
        with closing(beside), beside.writing():
            beside.ledger.append([("note", {"by": "an acceptor of this host"})])
