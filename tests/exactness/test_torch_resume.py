"""Killed in the middle of a step and run again: the same bytes as if nothing had happened.

Real processes, killed with SIGKILL; so these tests also compare steps of different processes.
"""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from shards import kinds
from shards.workspace import Workspace
from sisa.delete import unfinished_requests
from tests.exactness.conftest import Trainery
from tests.models import (
    checkpoint_files,
    delete_in,
    differences,
    flat,
    fresh_run,
    grid,
    make_workspace,
    train_in,
    write_rows,
)

LONG: dict[str, Any] = {"epochs": 12, "rehearsal": 0.25}  # a step lasts long enough to be hit in the middle
DEADLINE = 240


def checkpoint_facts(workspace: Path) -> int:
    """How many checkpoint facts the ledger holds, read as any other process would."""
    connection = sqlite3.connect(f"file:{workspace / 'ledger.sqlite'}?mode=ro", uri=True, timeout=30)
    try:
        (count,) = connection.execute("SELECT COUNT(*) FROM facts WHERE kind = ?", (kinds.CHECKPOINT,)).fetchone()
    finally:
        connection.close()
    return int(count)


def kill_after_next_checkpoint(arguments: list[str], workspace: Path) -> None:
    """Start a command; as soon as it has recorded one more checkpoint, it is in its next step: kill it there."""
    before = checkpoint_facts(workspace)
    log = workspace.parent / "stderr.txt"
    with log.open("w") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "sisa", *arguments, "-w", str(workspace)], stdout=stderr, stderr=stderr
        )
    started = time.monotonic()
    try:
        while checkpoint_facts(workspace) == before:
            if process.poll() is not None:
                pytest.fail(f"the command ended before a checkpoint: {log.read_text()}")
            if time.monotonic() - started > DEADLINE:
                pytest.fail(f"no checkpoint within {DEADLINE} s")
            time.sleep(0.002)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == -signal.SIGKILL


@pytest.mark.parametrize("task", ["causal-lm", pytest.param("classification", marks=pytest.mark.slow)])
def test_train_and_delete_killed_in_mid_slice_and_run_again_equal_an_unbroken_fresh_run(
    trainery: Trainery, task: str, tmp_path: Path
) -> None:
    places = grid(task, **LONG)
    workspace = make_workspace(tmp_path / "workspace", task, trainery.bases[task], **LONG)
    data = write_rows(tmp_path / "data.jsonl", flat(places))

    kill_after_next_checkpoint(["train", "--data", str(data)], workspace)
    assert 0 < len(checkpoint_files(workspace)) < 6
    kept = len(checkpoint_files(workspace))
    assert len(train_in(workspace, data).reconciled.trained) == 6 - kept
    assert differences(workspace, fresh_run(workspace, tmp_path / "fresh")) == []

    victims = [places[0, 0][3]["id"], places[1, 1][0]["id"]]
    arguments = [part for victim in victims for part in ("--id", victim)]
    kill_after_next_checkpoint(["delete", *arguments], workspace)
    opened = Workspace.open(workspace)
    assert len(unfinished_requests(opened)) == 1
    opened.close()
    delete_in(workspace, victims)
    opened = Workspace.open(workspace)
    assert unfinished_requests(opened) == []
    opened.close()
    assert differences(workspace, fresh_run(workspace, tmp_path / "after")) == []


@pytest.mark.slow
def test_a_killed_deletion_that_train_finishes_equals_one_that_was_never_killed(trainery: Trainery) -> None:
    broken, whole = (trainery("causal-lm", **LONG) for _ in range(2))
    victim = broken.ids(1, 0)[1]
    kill_after_next_checkpoint(["delete", "--id", victim], broken.path)
    delete_in(whole.path, [victim])
    data = write_rows(broken.scratch / "data.jsonl", flat(broken.places))
    assert train_in(broken.path, data).ingested.tombstoned == 1
    assert differences(broken.path, whole.path) == []
