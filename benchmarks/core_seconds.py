"""What does one deletion cost in core-seconds? Everything is really trained, deleted and certified.

Core-seconds are the processor time of this process; steps run in it (inline), on one thread. What a
process pays once, imports and loading the base, is measured apart (see ``worker.py``).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.data import write_jsonl
from benchmarks.environment import load
from benchmarks.passes import formula
from benchmarks.settings import recipe_values
from orchestration.executor import Files, Fit, Lesson, SliceTrainer
from orchestration.inline import InlineExecutor
from orchestration.reconcile import reconcile
from shards.errors import SisaError
from shards.records import Record
from sisa.delete import delete
from sisa.ingest import ingest
from sisa.initialise import initialise
from sisa.session import Session, open_session


class Metered:
    """A trainer that counts its passes and core-seconds; inline only."""

    def __init__(self, trainer: SliceTrainer) -> None:
        self._trainer = trainer
        self.passes = 0
        self.core_seconds = 0.0

    @property
    def lanes(self) -> int:
        """As the trainer says."""
        return self._trainer.lanes

    def environment(self) -> dict[str, str]:
        """As the trainer says."""
        return self._trainer.environment()

    def examine(self, record: Record) -> Fit:
        """As the trainer says."""
        return self._trainer.examine(record)

    def train(self, lesson: Lesson) -> Files:
        """Train and count."""
        with self._counted(lesson):
            return self._trainer.train(lesson)

    def train_lanes(self, lessons: Mapping[int, Lesson]) -> Mapping[int, Files | SisaError]:
        """Train and count."""
        with self._counted(*lessons.values()):
            return self._trainer.train_lanes(lessons)

    @contextmanager
    def _counted(self, *lessons: Lesson) -> Iterator[None]:
        started = time.process_time()
        yield
        self.core_seconds += time.process_time() - started
        self.passes += sum(len(records) for lesson in lessons for records in lesson.passes)


@contextmanager
def _measured(meter: Metered, figures: dict[str, Any]) -> Iterator[None]:
    """Fill ``figures`` with what the block cost."""
    passes, steps = meter.passes, meter.core_seconds
    core, wall = time.process_time(), time.monotonic()
    yield
    figures["passes"] = meter.passes - passes
    figures["core_seconds"] = round(time.process_time() - core, 3)
    figures["core_seconds_in_steps"] = round(meter.core_seconds - steps, 3)
    figures["wall_seconds"] = round(time.monotonic() - wall, 3)


def measure(
    records: Sequence[Record], scratch: Path, *, shards: int, slices: int, rehearsal: float, hit: Sequence[int]
) -> dict[str, Any]:
    """Train everything, then delete one record from each slice in ``hit``, each in another shard.

    Full training is what ``reconcile`` does to an ingested workspace. A deletion is the whole of
    ``sisa delete``: look up, tombstone, erase, purge, train again, ask the law, sign.
    """
    data, workspace = scratch / "records.jsonl", scratch / "workspace"
    write_jsonl(data, records)
    initialise(workspace, task="classification", data=[data], values=recipe_values(shards, slices, rehearsal))
    full: dict[str, Any] = {}
    taken: dict[str, Any] = {}
    with open_session(workspace, executor="inline") as session:
        meter = Metered(session.trainer())
        _warm_up(session, records)
        with _measured(meter, taken):
            ingest(session, trainer=meter)
        with _measured(meter, full), session.workspace.driving():
            reconcile(session.workspace, InlineExecutor(), meter)
        deletions = [_delete(session, meter, number * 3 % shards, number) for number in hit]
    return _summary(len(records), shards, slices, rehearsal, full, deletions) | {
        "ingest": taken,
        "load_average_at_end": load(),
    }


def _warm_up(session: Session, records: Sequence[Record]) -> None:
    """Load base and tokenizer before anything is timed."""
    session.trainer().train(Lesson((tuple(records[:2]),), None, bytes(32)))


def _delete(session: Session, meter: Metered, shard: int, number: int) -> dict[str, Any]:
    layout = session.workspace.layout()
    held = (s.record for s in session.workspace.survivors(shard) if layout.place(s.record).slice == number)
    record = next(held)
    figures: dict[str, Any] = {"shard": shard, "slice": number}
    with _measured(meter, figures):
        delete(session, [record.id], trainer=meter, executor=InlineExecutor())
    return figures


def _summary(
    records: int, shards: int, slices: int, rehearsal: float, full: dict[str, Any], deletions: list[dict[str, Any]]
) -> dict[str, Any]:
    def ratio(name: str) -> float:
        return float(full[name] / fmean(deletion[name] for deletion in deletions))

    expected = formula(shards, slices, rehearsal)
    return {
        "rehearsal": rehearsal,
        "shards": shards,
        "slices": slices,
        "records": records,
        "formula": expected,
        "pass_ratio": ratio("passes"),
        "core_second_ratio": ratio("core_seconds"),
        "wall_second_ratio": ratio("wall_seconds"),
        "core_ratio_over_formula": ratio("core_seconds") / expected,
        "core_ratio_over_pass_ratio": ratio("core_seconds") / ratio("passes"),
        "records_per_core_second": full["passes"] / full["core_seconds"],
        "mean_deletion_core_seconds_outside_steps": fmean(
            deletion["core_seconds"] - deletion["core_seconds_in_steps"] for deletion in deletions
        ),
        "full": full,
        "deletions": deletions,
    }
