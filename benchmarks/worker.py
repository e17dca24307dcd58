"""One fresh process that trains once and prints what it cost: ``python -m benchmarks.worker WHAT``.

    plain   the loop of ``plain_loop.py``
    step    our step alone, in a process that has nothing else
    ray     our steps in a real Ray worker, which reports on itself

All train the same records once, in the same batches. Input is ``DIR/records.jsonl``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.data import labels_of, write_jsonl
from benchmarks.environment import load, peak_memory
from benchmarks.settings import THREADS, recipe_values
from orchestration.executor import Files, Fit, Lesson, SliceTrainer
from shards.errors import SisaError
from shards.records import Record, read_records
from sisa.base_model import locate, model_digests
from sisa.config import make_settings
from sisa.learner import LoraTrainer

KINDS = ("plain", "step", "ray")


def make_trainer(labels: Sequence[str]) -> LoraTrainer:
    """Our trainer over the packaged base with the benchmark's settings."""
    path = locate("minilm")
    weights, tokenizer = model_digests(path)
    values = recipe_values(1, 1, 0.0) | {
        "batching": "order",  # the batches of the plain loop
        "task": "classification",
        "base_model": "minilm",
        "base_model_digest": weights,
        "tokenizer_digest": tokenizer,
        "labels": list(labels),
    }
    return LoraTrainer(make_settings(values, "the benchmark").recipe, str(path))


@dataclass(frozen=True, slots=True)
class Reporting:
    """A trainer that leaves the peak memory of its process in a file after each step."""

    trainer: SliceTrainer
    report: Path

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
        files = self.trainer.train(lesson)
        self._tell()
        return files

    def train_lanes(self, lessons: Mapping[int, Lesson]) -> Mapping[int, Files | SisaError]:
        """Train, then report."""
        made = self.trainer.train_lanes(lessons)
        self._tell()
        return made

    def _tell(self) -> None:
        self.report.write_text(json.dumps({"peak_bytes": peak_memory(), "process": os.getpid()}))


def fresh(kinds: Sequence[str], records: Sequence[Record], scratch: Path) -> list[dict[str, Any]]:
    """The figures of one fresh process after the other."""
    figures = []
    for number, kind in enumerate(kinds):
        directory = scratch / f"{number}-{kind}"
        directory.mkdir()
        write_jsonl(directory / "records.jsonl", records)
        quiet = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "RAY_USAGE_STATS_ENABLED": "0"}
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.worker", kind, str(directory)],
            env=os.environ | quiet,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        figures.append(json.loads(done.stdout.splitlines()[-1]))
    return figures


def _plain(records: Sequence[Record]) -> dict[str, Any]:
    import torch

    from benchmarks.plain_loop import Plain, PlainLoop

    torch.set_num_threads(THREADS)
    loop = PlainLoop(Plain(locate("minilm"), labels_of(records)))
    ready = time.process_time()
    loop.run(records)
    return {"peak_bytes": peak_memory(), "core_seconds_before_training": ready}


def _step(records: Sequence[Record]) -> dict[str, Any]:
    from sisa.adapter import process_adapter

    trainer = make_trainer(labels_of(records))
    process_adapter(trainer.recipe, trainer.base_model)
    ready = time.process_time()
    trainer.train(Lesson((tuple(records),), None, bytes(32)))
    return {"peak_bytes": peak_memory(), "core_seconds_before_training": ready}


def _ray(data: Path, directory: Path) -> dict[str, Any]:
    from orchestration.ray_executor import RayExecutor
    from orchestration.schedule import schedule
    from sisa.ingest import ingest
    from sisa.initialise import initialise
    from sisa.session import open_session

    initialise(
        directory / "w", task="classification", data=[data], values=recipe_values(1, 1, 0.0) | {"batching": "order"}
    )
    report = directory / "report.json"
    with open_session(directory / "w", executor="ray", workers=1) as session:
        ingest(session)
        workspace = session.workspace
        trainer = Reporting(session.trainer(), report)
        chains = schedule(workspace.plan(), {})
        for outcome in RayExecutor(workers=1).run(chains, trainer, workspace.path, workspace.store.root):
            if outcome.error is not None:
                raise outcome.error
    figures: dict[str, Any] = json.loads(report.read_text())
    if figures.pop("process") == os.getpid():
        raise RuntimeError("the step ran in the driver, so this is no figure of a worker")
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=KINDS)
    parser.add_argument("directory", type=Path)
    arguments = parser.parse_args()
    data = arguments.directory / "records.jsonl"
    records = [item.record for item in read_records([data], "classification")]
    measured = {
        "plain": lambda: _plain(records),
        "step": lambda: _step(records),
        "ray": lambda: _ray(data, arguments.directory),
    }[arguments.what]()
    print(json.dumps({"what": arguments.what, "records": len(records), **measured, "load_average": load()}))


if __name__ == "__main__":
    main()
