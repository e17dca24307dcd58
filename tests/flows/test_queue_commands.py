"""``delete --queue``, ``requests`` and ``work``, as typed.

The toy trainer stands in for the real one, so that none of this needs torch.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from shards.lock import exclusive
from shards.workspace import LOCK_FILE
from tests.flows.helpers import done, refused, sisa
from tests.sisa.trained import configured


@pytest.fixture
def workspace(memory_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return configured(memory_path / "workspace", monkeypatch)


def states(workspace: Path) -> dict[str, str]:
    return {entry["request_id"]: entry["state"] for entry in done("requests", "-w", workspace)["requests"]}


def test_a_queued_deletion_is_listed_worked_off_and_certified(workspace: Path, tmp_path: Path) -> None:
    document = done("delete", "-w", workspace, "--id", "r1", "--request-id", "one", "--queue")
    assert (document["request_id"], document["certificate"]) == ("one", None)
    assert states(workspace) == {"one": "suppressed"}
    assert done("work", "-w", workspace)["waiting"] == ["one"]
    assert done("work", "-w", workspace, "--set", "queue_policy=now")["completed"] == ["one"]
    assert states(workspace) == {"one": "completed"}
    certificate = workspace / "certificates" / "one.json"
    done("verify", certificate, "--public-key", workspace / "keys" / "signing.pub", "-w", workspace)


def test_what_people_read(workspace: Path) -> None:
    said = sisa("delete", "-w", workspace, "--id", "r1", "--request-id", "one", "--queue").out
    assert "Request one is accepted: nothing served has seen the records since; `sisa work` does the rest." in said
    assert "Certificate" not in said
    assert "suppressed" in sisa("requests", "-w", workspace).out
    assert "waiting 1" in sisa("work", "-w", workspace).out
    assert "cancelled" in sisa("requests", "-w", workspace, "--cancel", "one").out
    refused(sisa("requests", "-w", workspace, "--cancel", "one"), "'one'")


def test_no_request_is_said_plainly(workspace: Path) -> None:
    assert sisa("requests", "-w", workspace).out.strip() == "No requests."
    assert "Completed 0, failed 0, waiting 0." in sisa("work", "-w", workspace).out


@pytest.mark.parametrize("other", [("--dry-run",), ("--certificate", "c.json")])
def test_queueing_only_accepts(workspace: Path, other: tuple[str, ...]) -> None:
    result = sisa("delete", "-w", workspace, "--id", "r1", "--queue", *other)
    assert (result.code, "--queue only accepts" in result.err) == (2, True)


def test_the_queue_is_read_and_withdrawn_from_while_a_driver_is_at_work_and_not_worked_off(workspace: Path) -> None:
    done("delete", "-w", workspace, "--id", "r1", "--request-id", "one", "--queue")
    with exclusive(workspace / LOCK_FILE):
        assert states(workspace) == {"one": "suppressed"}
        refused(sisa("work", "-w", workspace), code=3)
        done("requests", "-w", workspace, "--cancel", "one")
        assert states(workspace) == {"one": "cancelled"}


WATCHED = """
import sys
from sisa.cli import main
from sisa.session import Session
from tests.toy import ToyTrainer
Session.trainer = lambda _: ToyTrainer()
main(["work", "--watch", "--interval", "1", "--json", "-w", sys.argv[1], "--set", "queue_policy=now"])
"""


def test_watching_works_off_what_comes_in_until_it_is_interrupted(workspace: Path) -> None:
    command = [sys.executable, "-c", WATCHED, str(workspace)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]) as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline()) == {"completed": [], "errors": [], "failed": [], "waiting": []}
        while sisa("delete", "-w", workspace, "--id", "r1", "--request-id", "one", "--queue").code:
            time.sleep(0.2)  # a turn of work was under way
        while "one" not in json.loads(process.stdout.readline())["completed"]:
            pass
        os.kill(process.pid, signal.SIGINT)
        assert process.wait(30) == 3
    assert states(workspace) == {"one": "completed"}
