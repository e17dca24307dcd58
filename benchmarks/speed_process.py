"""Sides in processes of their own, and rounds in which they take turns."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from types import TracebackType
from typing import Any, Self

from benchmarks.environment import load
from benchmarks.executor_throughput import rotated

Command = dict[str, Any]
Answer = dict[str, Any]


class Process:
    """A side in a process of its own, from the driver's end."""

    def __init__(self, side: str, job: Path) -> None:
        quiet = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "TRANSFORMERS_VERBOSITY": "error"}
        rest = {name: value for name, value in os.environ.items() if name not in {"OMP_NUM_THREADS", "MKL_NUM_THREADS"}}
        self._ready = False
        self._log = job.with_name(f"{job.stem}-{side}-{os.urandom(4).hex()}.log").open("w")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.speed_worker", side, str(job)],
            env=rest | quiet, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True, bufsize=1,
        )  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        if kind is not None:
            self._process.kill()
        self._process.wait()
        self._log.close()

    def ready(self) -> None:
        """Wait until it has loaded its base and warmed up."""
        if not self._ready:
            self.answer()
            self._ready = True

    def ask(self, command: Command) -> None:
        """Tell it to train."""
        if self._process.stdin is None:
            raise RuntimeError("expected a process that listens")
        with contextlib.suppress(BrokenPipeError):  # its last answer says why
            self._process.stdin.write(json.dumps(command) + "\n")

    def answer(self) -> Answer:
        """What it says next.

        Raises:
            SideError: if it failed.
        """
        line = self._process.stdout.readline() if self._process.stdout is not None else ""
        said: Answer = json.loads(line) if line else {"error": "the process ended"}
        if "error" in said:
            raise SideError(said["error"].splitlines()[0])
        return said


class SideError(Exception):
    """A side could not train."""


# A side of a comparison: processes that begin together, each with what it is told.
Side = Sequence[tuple[Process, Command]]


def turn(side: Side) -> dict[str, Any]:
    """One run of a side: from the common start until the last process has ended."""
    for process, _ in side:
        process.ready()
    before = load()
    for process, command in side:
        process.ask(command)
    answers = [process.answer() for process, _ in side]
    seconds = max(answer["ended"] for answer in answers) - min(answer["began"] for answer in answers)
    passes = sum(answer["passes"] for answer in answers)
    units = [answer["units"] for answer in answers if answer["units"] is not None]
    return {
        "seconds": seconds,
        "core_seconds": sum(answer["core_seconds"] for answer in answers),
        "records_per_second": passes / seconds,
        "passes": passes,
        "tokens": sum(answer.get("tokens", 0) for answer in answers),
        "units": sum(units) if len(units) == len(answers) else None,
        "peak_bytes": max(answer["peak_bytes"] for answer in answers),
        "spent": answers[0].get("spent", {}),
        "load_average": before,
    }


def by_turns(sides: Mapping[str, Side], rounds: int) -> list[dict[str, dict[str, Any]]]:
    """All sides in each round, the order rotated; none begins before all are ready."""
    for process, _ in (each for side in sides.values() for each in side):
        process.ready()
    return [{name: turn(sides[name]) for name in rotated(list(sides), number)} for number in range(rounds)]


def middle(rounds: Sequence[Mapping[str, Any]], side: str, figure: str) -> float:
    """Median of a side's figure."""
    return float(median(found[side][figure] for found in rounds))


def peak(rounds: Sequence[Mapping[str, Any]], side: str) -> int:
    """The most bytes of memory that one process of a side ever had."""
    return int(max(found[side]["peak_bytes"] for found in rounds))
