"""How fast do Ray's workers train, against one worker and against no Ray at all? Everything is really trained.

    python -m benchmarks.executor_throughput --data DIR [--quick] [--out FILE]

DIR holds Banking77's ``train.csv``. The same chains (8 shards x 2 slices, one thread a worker) are trained inline,
by one Ray worker and by two, by turns in rounds whose order rotates, each time into a store of its own. Rates
are records a second *after start-up*: each step says when it began and ended, by the clock that all processes of
a machine share. Time counts from the moment when the last worker has the base and begins its first step, until
the driver has the last outcome; a step that was under way at that moment counts with the part that came after.
Ray's start, the workers' start, imports and loading the base come before. What lies between steps (planning the
chain anew, reading and writing checkpoints, Ray's messages) counts, and so does a worker idle at the end.

Run it on a machine with nothing else to do: the load average is recorded at the beginning of each run, and
shows the run before as well.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

from benchmarks.data import banking_records, spread, synthetic_records, write_jsonl
from benchmarks.environment import environment, load
from benchmarks.settings import recipe_values
from orchestration.executor import ChainOrder, Executor, Files, Fit, Lesson
from orchestration.inline import InlineExecutor
from orchestration.schedule import schedule
from shards.errors import SisaError
from shards.records import Record
from sisa.base_model import locate
from sisa.ingest import ingest
from sisa.initialise import initialise
from sisa.learner import LoraTrainer
from sisa.session import open_session

RESULT = Path(__file__).parent / "results" / "executor_throughput.json"


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is trained: records, shards, slices of each, and rounds."""

    records: int
    shards: int
    slices: int
    rounds: int


WHOLE = Sizes(1000, 8, 2, 2)
QUICK = Sizes(48, 4, 2, 1)


@dataclass(frozen=True, slots=True)
class Step:
    """What a worker says of one step.

    Attributes:
        process: its process ID.
        began, ended: by the machine's monotonic clock; the base was loaded before.
        records: trained.
        loads: how often the base model was loaded for this step.
    """

    process: int
    began: float
    ended: float
    records: int
    loads: int


@dataclass(frozen=True, slots=True)
class Timed:
    """A trainer that loads the base before its clock starts, and leaves a line in a file after each step."""

    trainer: LoraTrainer
    diary: Path

    @property
    def lanes(self) -> int:
        """As the trainer says."""
        return self.trainer.lanes

    def environment(self) -> dict[str, str]:
        """As the trainer says."""
        return self.trainer.environment()

    def examine(self, record: Record) -> Fit:
        """As the trainer says."""
        return self.trainer.examine(record)

    def train(self, lesson: Lesson) -> Files:
        """Train, then report."""
        with self._noted(lesson):
            return self.trainer.train(lesson)

    def train_lanes(self, lessons: Mapping[int, Lesson]) -> Mapping[int, Files | SisaError]:
        """Train, then report: one line for all lanes."""
        with self._noted(*lessons.values()):
            return self.trainer.train_lanes(lessons)

    @contextmanager
    def _noted(self, *lessons: Lesson) -> Iterator[None]:
        from sisa import adapter, base_model

        with mock.patch.object(adapter, "load_base", wraps=base_model.load_base) as loading:
            adapter.process_adapter(self.trainer.recipe, self.trainer.base_model)
            began = time.monotonic()
            yield
            records = sum(len(records) for lesson in lessons for records in lesson.passes)
            step = Step(os.getpid(), began, time.monotonic(), records, loading.call_count)
        with self.diary.open("a") as handle:
            handle.write(json.dumps(asdict(step)) + "\n")


def rate(steps: Sequence[Step], end: float) -> float:
    """Records a second from the moment when every worker has begun to train, until ``end``.

    Raises:
        ValueError: if nothing was trained after that moment.
    """
    first: dict[int, float] = {}
    for step in steps:
        first[step.process] = min(step.began, first.get(step.process, step.began))
    start = max(first.values(), default=end)
    if start >= end:
        raise ValueError("expected steps after the start of the last worker, found none")
    trained = sum(
        step.records * (step.ended - max(start, step.began)) / (step.ended - step.began)
        for step in steps
        if step.ended > start
    )
    return trained / (end - start)


def run(
    executor: Executor, chains: Sequence[ChainOrder], trainer: LoraTrainer, workspace: Path, scratch: Path
) -> tuple[dict[str, Any], dict[str, str]]:
    """One training into a store of its own: its figures, and checkpoint key → digest of tensors."""
    (scratch / "store").mkdir(parents=True)
    before, started = load(), time.monotonic()
    made: dict[str, str] = {}
    for outcome in executor.run(chains, Timed(trainer, scratch / "diary"), workspace, scratch / "store"):
        if outcome.error is not None:
            raise outcome.error
        if outcome.checkpoint is not None:
            made[outcome.checkpoint.key] = outcome.checkpoint.tensors
        ended = time.monotonic()
    steps = [Step(**json.loads(line)) for line in (scratch / "diary").read_text().splitlines()]
    figures = {
        "records_per_second": rate(steps, ended),
        "seconds": ended - started,
        "seconds_before_the_first_step": min(step.began for step in steps) - started,
        "processes": len({step.process for step in steps}),
        "base_loads": sum(step.loads for step in steps),
        "load_average": before,
    }
    return figures, made


def most(chains: Sequence[ChainOrder], workers: int) -> float:
    """How many times faster ``workers`` can be than one, if each takes the dearest chain left when it is free."""
    loads = [0] * workers
    for chain in chains:
        loads[loads.index(min(loads))] += chain.cost
    return sum(loads) / max(loads)


def measure(records: Sequence[Record], sizes: Sizes, scratch: Path) -> dict[str, Any]:
    """All rounds, and the ratios that they give."""
    from orchestration.ray_executor import RayExecutor
    from sisa.adapter import release

    data, path = scratch / "records.jsonl", scratch / "workspace"
    write_jsonl(data, records)
    initialise(path, task="classification", data=[data], values=recipe_values(sizes.shards, sizes.slices, 0.0))
    sides: dict[str, Executor] = {"inline": InlineExecutor(), "ray_1": RayExecutor(1), "ray_2": RayExecutor(2)}
    rounds: list[dict[str, Any]] = []
    tensors: list[dict[str, str]] = []
    with open_session(path, executor="inline") as session:
        ingest(session)
        chains = schedule(session.workspace.plan(), {})
        trainer = LoraTrainer(session.recipe, str(locate("minilm")))
        for number in range(sizes.rounds):
            found: dict[str, Any] = {}
            for name in rotated(list(sides), number):
                release()
                directory = scratch / f"{number}-{name}"
                found[name], made = run(sides[name], chains, trainer, session.workspace.path, directory)
                tensors.append(made)
            rounds.append(found)
            print(f"round {number + 1} of {sizes.rounds}: {_rates(found)}", flush=True)
    return {
        "records": len(records),
        "shards": sizes.shards,
        "slices": sizes.slices,
        "most_with_2_workers": most(chains, 2),
        "ray_2_over_ray_1": ratio(rounds, "ray_2", "ray_1"),
        "ray_1_over_inline": ratio(rounds, "ray_1", "inline"),
        "same_tensors": all(made == tensors[0] for made in tensors),
        "rounds": rounds,
    }


def rotated(names: list[str], number: int) -> list[str]:
    """The order of round ``number``: each name comes first equally often."""
    number %= len(names)
    return names[number:] + names[:number]


def ratio(rounds: Sequence[Mapping[str, Any]], one: str, other: str) -> dict[str, float]:
    """Median and range of the ratio of two sides' rates, round by round."""
    ratios = [found[one]["records_per_second"] / found[other]["records_per_second"] for found in rounds]
    return {"median": median(ratios), "lowest": min(ratios), "highest": max(ratios)}


def _rates(found: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {figures['records_per_second']:.1f} records/s" for name, figures in found.items())


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="directory of Banking77's train.csv")
    parser.add_argument("--quick", action="store_true", help="a few made-up records; the figures mean nothing")
    parser.add_argument("--out", type=Path, help=f"default: {RESULT.name} in benchmarks/results, with --quick nowhere")
    given = parser.parse_args(arguments)
    if given.data is None and not given.quick:
        parser.error("name Banking77's directory with --data, or try the code with --quick")
    for name, value in (("HF_HUB_OFFLINE", "1"), ("TOKENIZERS_PARALLELISM", "false"), ("RAY_USAGE_STATS_ENABLED", "0")):
        os.environ.setdefault(name, value)
    sizes = QUICK if given.quick else WHOLE
    records = synthetic_records(sizes.records) if given.quick else spread(banking_records(given.data), sizes.records)
    out = given.out or (None if given.quick else RESULT)
    started = time.monotonic()
    document: dict[str, Any] = {
        "schema": "executor-throughput/1",
        "command": f"python -m benchmarks.executor_throughput {'--quick' if given.quick else '--data DIR'}",
        "environment": environment(),
        "settings": recipe_values(sizes.shards, sizes.slices, 0.0),
    }
    with tempfile.TemporaryDirectory(prefix="sisa-bench-") as scratch:
        document |= measure(records, sizes, Path(scratch))
    document["wall_seconds_of_all"] = round(time.monotonic() - started, 1)
    if out is not None:
        out.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
