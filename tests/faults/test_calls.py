"""Struck at any file-system call, a command ends well when it is run again, with the bytes of an undisturbed run.

Every call of one training and of one deletion is struck in turn, with the toy trainer and real SQLite,
Arrow and safetensors bytes: enumerated, not sampled. The process of the struck command must die by the
signal or end with one of our errors (or well, and then with nothing missing); a certificate may be
there only once all that it speaks of is done; and the next run must bring the same end. What is
counted as a call, and why, is said in ``shim.c``; what is asked afterwards, in ``calls.py``.

`make test` kills at every call that leaves another state behind (a kill at any other call leaves the
state of the next of these). It fails every call of ours that changes something or makes it durable;
of the calls that only look, and of those that SQLite makes within one statement, it fails one for
each place in our code they come from. `make faults` leaves out none, and strikes in every way.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.faults.calls import CHANGE, KINDS, SYNC
from tests.faults.conftest import Order, server
from tests.toy import memory_directory

STEPS = ("train", "delete")


@pytest.fixture(scope="session")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library that strikes, compiled."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler (cc) to build the shim that strikes; on Debian: apt-get install gcc libc6-dev")
    shim = tmp_path_factory.mktemp("shim") / "shim.so"
    source = Path(__file__).with_name("shim.c")
    flags = ["-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror"]
    subprocess.run([compiler, *flags, "-o", shim, source, "-ldl"], check=True)
    return shim


@pytest.fixture(scope="session")
def strikers(shim: Path) -> Iterator[list[Order]]:
    """Processes that strike, one a processor."""
    with ExitStack() as stack:
        yield [
            stack.enter_context(server(module="calls", LD_PRELOAD=str(shim)))
            for _ in range(min(os.cpu_count() or 1, 4))
        ]


@dataclass(frozen=True, slots=True)
class Trial:
    """A step, ready to be struck.

    Attributes:
        step: its name.
        place: where its workspaces lie.
        data: the records.
        calls: what there is to strike; the first is number 1.
        strikers: who does it.
    """

    step: str
    place: Path
    data: Path
    calls: tuple[dict[str, Any], ...]
    strikers: Sequence[Order]

    def numbers(self, traits: int) -> list[int]:
        """Calls with one of these traits."""
        return [number for number, call in enumerate(self.calls, 1) if call["traits"] & traits]

    def distinct(self) -> list[int]:
        """Every call of ours that changes or syncs something; of the rest, one for each place in our code."""
        first: dict[Any, int] = {}
        for number, call in enumerate(self.calls, 1):
            within_sqlite = "".join(call["stack"][:1]).startswith(("shards/ledger.py", "shards/lease.py"))
            ours = call["traits"] & (CHANGE | SYNC) and not within_sqlite
            place = (call["name"], call["path"].partition("/")[0], *call["stack"][:1])
            first.setdefault(number if ours else place, number)
        return sorted(first.values())

    def problems(self, kind: str, numbers: Sequence[int]) -> list[str]:
        """All that is wrong after the calls of these numbers were struck, each in a run of its own."""

        def work(worker: int) -> list[str]:
            found = []
            for number in numbers[worker :: len(self.strikers)]:
                answer = self.strikers[worker]("strike", self.place, self.data, self.step, kind, number)
                problems = answer["problems"]
                listed = self.calls[number - 1]
                if [(call["name"], call["stack"]) for call in answer["calls"][:1]] != [
                    (listed["name"], listed["stack"])
                ]:
                    problems.append(f"another call was struck: {answer['calls'][:1]}")
                if answer["how"] == "done" and KINDS[kind].error and self._must_be_told(number):
                    problems.append("it ended well although a sync failed")
                found += [f"{self._describe(kind, number)}: {problem}" for problem in problems]
            return found

        with ThreadPoolExecutor(len(self.strikers)) as pool:
            return [problem for found in pool.map(work, range(len(self.strikers))) for problem in found]

    def _must_be_told(self, number: int) -> bool:
        """Is it a sync, but for the one that SQLite leaves unjudged: of the directory, once a journal is in it?"""
        calls = [(call["name"], call["path"]) for call in self.calls[max(number - 3, 0) : number]]
        of_new_journal = [("fdatasync", "ledger.sqlite-journal"), ("open", "."), ("fdatasync", ".")]
        return bool(self.calls[number - 1]["traits"] & SYNC) and calls != of_new_journal

    def _describe(self, kind: str, number: int) -> str:
        call = self.calls[number - 1]
        return (
            f"{kind} at call {number} of {self.step}: {call['name']} {call['path']} by {', '.join(call['stack'][:3])}"
        )


def make_trial(step: str, place: Path, strikers: Sequence[Order]) -> Trial:
    """Make a workspace ready for a step in ``place``, and list what there is to strike."""
    data = place / "toy.jsonl"
    rows = [{"id": f"r{n}", "text": f"text {n}", "label": "a"} for n in (0, 1, 4, 8)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    listed = strikers[0]("prepare", place, data, step)
    assert listed["how"] == "done"
    return Trial(step, place, data, tuple(listed["calls"]), strikers)


@pytest.fixture(scope="session", params=STEPS)
def trial(request: pytest.FixtureRequest, strikers: list[Order]) -> Iterator[Trial]:
    """A training, or a deletion that empties a slice and a shard, rewrites another slice, and purges an export."""
    with memory_directory() as place:
        yield make_trial(request.param, place, strikers)


def test_the_calls_listed_are_those_of_a_whole_step(trial: Trial) -> None:
    names = Counter(call["name"] for call in trial.calls)
    struck = ["open", "read", "pread", "write", "pwrite", "fsync", "fdatasync", "rename", "ftruncate", "list", "close"]
    assert [name for name in struck if not names[name]] == []
    places = {call["path"].partition("/")[0] for call in trial.calls}
    wanted = {"ledger.sqlite", "store", "vault", "keys", "lock", *(["exports"] if trial.step == "delete" else [])}
    assert places >= wanted


def test_killed_at_any_call_it_ends_the_same_when_run_again(trial: Trial) -> None:
    problems = trial.problems("SIGKILL", trial.numbers(CHANGE))
    assert not problems, "\n".join(problems)


def test_with_any_call_failed_it_ends_with_an_error_of_ours_and_the_same_when_run_again(trial: Trial) -> None:
    problems = trial.problems("EIO", trial.distinct())
    assert not problems, "\n".join(problems)


@pytest.mark.faults
@pytest.mark.parametrize("kind", KINDS)
def test_struck_in_any_way_at_any_call_it_ends_the_same_when_run_again(trial: Trial, kind: str) -> None:
    problems = trial.problems(kind, trial.numbers(KINDS[kind].strikes))
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize(
    ("plant", "kind", "struck"),
    [
        ("a failed sync is not told", "EIO", "fsync"),
        ("an error of the system escapes", "EIO", "mkdir"),
        ("a certificate is written in place", "torn write", "write"),
        ("a certificate comes before the deed", "SIGKILL", "unlink"),
        ("an export outlives its heads", "EIO", "read"),
    ],
)
def test_a_planted_defect_is_found(
    plant: str, kind: str, struck: str, strikers: list[Order], memory_path: Path
) -> None:
    trial = make_trial("delete", memory_path, [partial(strikers[0], "planted", plant)])
    calls = [number for number, call in enumerate(trial.calls, 1) if call["name"] == struck]
    assert trial.problems(kind, calls[-4:])
