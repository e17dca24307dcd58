"""What does sharding cost in accuracy, what buys it back, and what does each way to answer cost?

    python -m benchmarks.accuracy_by_shards --data DIR [--smoke] [--work DIR] [--out FILE]

DIR holds ``banking77/{train,test}.csv``, ``tofu/full.jsonl`` and ``stories260K/hf``. Every row is a training of the
packaged encoder on Banking77, really made by two Ray workers of one thread, and all aggregations and merges on its
adapters, judged on the test file. The memorising rows are a small Llama on TOFU's invented authors, judged on what it
was trained on: how much of that an answer still has.

FILE is written after each row; a row that is in it, with the same settings, is not made again, so the whole can be cut
off and begun again. With ``--work`` a row that was cut off goes on where it was, from its last checkpoint. About three
hours; ``--smoke`` takes some of the records, and about ten minutes.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.data import banking_records, labels_of, spread
from benchmarks.environment import environment, load
from benchmarks.passes import all_passes, positions
from benchmarks.settings import recipe_values
from orchestration.executor import Executor
from sisa.evaluate import evaluate
from sisa.initialise import initialise
from sisa.merge import METHODS
from sisa.results import Evaluation
from sisa.session import Session, open_session
from sisa.train import train

RESULT = Path(__file__).parent / "results" / "accuracy_by_shards.json"
_PERMANENT = 5  # every so many records of Banking77 are declared permanent where there is a trunk

_NOT_THE_RECIPES = {"trunk", "merges", "records", "held_out", "samples"}

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Training:
    """One row.

    Attributes:
        shards, slices, rehearsal, epochs: of the recipe.
        trunk: a part of the records is declared permanent and trains a trunk.
        values: further keys of the recipe.
        merged: merges are judged too.
    """

    shards: int
    slices: int = 1
    rehearsal: float = 0.0
    epochs: int = 3
    trunk: bool = False
    values: dict[str, Any] = field(default_factory=dict)
    merged: bool = False

    @property
    def name(self) -> str:
        """Short, for a directory."""
        extra = "".join(f"-{key}={value}" for key, value in self.values.items())
        return f"S{self.shards}-R{self.slices}-h{self.rehearsal:g}-E{self.epochs}{'-trunk' * self.trunk}{extra}"


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is measured.

    Attributes:
        records: of Banking77's training file.
        held_out: of its test file.
        trainings: on Banking77, the most telling first.
        authors: of TOFU, 20 records each.
        memorising: trainings on these.
        samples: answers that are generated for each memorising row.
        merges: that are judged.
    """

    records: int
    held_out: int
    trainings: tuple[Training, ...]
    authors: int
    memorising: tuple[Training, ...]
    samples: int
    merges: tuple[str, ...]


WHOLE = Sizes(
    10_003,
    3_080,
    (
        Training(1, epochs=3),
        Training(1, epochs=3, values={"schedule": "constant", "learning_rate": 1e-3}),
        Training(1, epochs=6),
        Training(8, epochs=10, merged=True),
        Training(4, epochs=6, merged=True),
        Training(16, epochs=10, merged=True),
        Training(8, epochs=3),
        Training(8, epochs=3, trunk=True),
        *(Training(8, 4, rehearsal, epochs=3) for rehearsal in (0.0, 0.25, 1.0)),
        Training(8, epochs=3, values={"lora_rank": 16, "lora_alpha": 32}),
    ),
    10,
    tuple(Training(shards, epochs=60, merged=True) for shards in (1, 2, 4, 8)),
    20,
    METHODS,
)
SMOKE = Sizes(
    1_000,
    500,
    (
        Training(1, epochs=4),
        Training(4, epochs=8, merged=True),
        Training(4, epochs=8, trunk=True),
        Training(4, 2, 0.25, epochs=4),
    ),
    2,
    (Training(1, epochs=20), Training(2, epochs=20, merged=True)),
    4,
    ("cat", "svd", "ties"),
)


@dataclass(frozen=True, slots=True)
class Task:
    """Records, and how they are judged.

    Attributes:
        task: of the recipe.
        base_model: directory, or the packaged encoder.
        records: to train on, as lines of JSONL.
        held_out: to judge on.
        values: of the recipe.
        include_known: what is judged on was trained on.
        samples: answers that are generated.
    """

    task: str
    base_model: str
    records: Sequence[Row]
    held_out: Sequence[Row]
    values: dict[str, Any]
    include_known: bool = False
    samples: int = 0

    def settings(self, training: Training, merges: Sequence[str]) -> Row:
        """All that a row depends on, but for the records themselves; keys of the recipe have their own names."""
        recipe = recipe_values(training.shards, training.slices, training.rehearsal) | self.values
        recipe.pop("labels", None)
        return recipe | {"epochs": training.epochs} | training.values | {
            "trunk": training.trunk,
            "merges": list(merges) if training.merged else [],
            "records": len(self.records),
            "held_out": len(self.held_out),
            "samples": self.samples,
        }  # fmt: skip

    def files(self, directory: Path, *, trunk: bool) -> tuple[Path, Path]:
        """Both as files; some records are permanent where they train a trunk."""
        rows = [
            row | {"retention": "permanent"} if trunk and number % _PERMANENT == 0 else row
            for number, row in enumerate(self.records)
        ]
        paths = directory / "records.jsonl", directory / "held_out.jsonl"
        for path, some in zip(paths, (rows, self.held_out), strict=True):
            path.write_text("".join(json.dumps(row) + "\n" for row in some), encoding="utf-8")
        return paths


def banking(data: Path, sizes: Sizes) -> Task:
    """Banking77: its training file, or some of it evenly, and its test file."""
    every = banking_records(data / "banking77")
    records = spread(every, sizes.records)
    with (data / "banking77" / "test.csv").open(newline="", encoding="utf-8") as handle:
        tests = [
            {"id": f"t{number:05d}", "text": row["text"], "label": row["category"]}
            for number, row in enumerate(csv.DictReader(handle))
        ]
    held_out = [tests[number * len(tests) // sizes.held_out] for number in range(sizes.held_out)]
    rows = [{"id": record.id} | record.fields() for record in records]
    values = {"labels": list(labels_of(every)), "schedule": "linear", "learning_rate": 2e-3}
    return Task("classification", "minilm", rows, held_out, values)


def tofu(data: Path, sizes: Sizes) -> Task:
    """TOFU's first authors; judged on the same records."""
    lines = (data / "tofu" / "full.jsonl").read_text(encoding="utf-8").splitlines()
    some = [row for row in map(json.loads, lines) if row["author_id"] < sizes.authors]
    rows = [
        {
            "id": f"tofu-{row['id']}",
            "subject": f"author-{row['author_id']}",
            "prompt": f"{row['question']} ",
            "completion": row["answer"],
        }
        for row in some
    ]
    values = {
        "max_length": 320,
        "lora_rank": 32,
        "lora_alpha": 64,
        "learning_rate": 3e-3,
        "batch_size": 8,
        "end_token": "<s>",
    }
    return Task(
        "causal-lm", str(data / "stories260K" / "hf"), rows, rows, values, include_known=True, samples=sizes.samples
    )


def measure(task: Task, training: Training, directory: Path, merges: Sequence[str], executor: Executor | None) -> Row:
    """Train, or go on training, and judge.

    Args:
        task: what is learned.
        training: how.
        directory: where; kept if this is cut off.
        merges: to judge, if the row wants any.
        executor: in place of two Ray workers.
    """
    directory.mkdir(parents=True, exist_ok=True)
    data, held_out = task.files(directory, trunk=training.trunk)
    workspace = directory / "workspace"
    if not workspace.is_dir():
        settings = task.settings(training, merges)
        values = task.values | {key: value for key, value in settings.items() if key not in _NOT_THE_RECIPES}
        initialise(workspace, task=task.task, base_model=task.base_model, data=[data], values=values)
    with open_session(workspace, executor="ray", workers=2) as session:
        started = time.monotonic()
        done = train(session, executor=executor)
        seconds = time.monotonic() - started
        costs = _costs(session)
        judged = evaluate(
            session,
            [held_out],
            methods=merges if training.merged else (),
            samples=task.samples,
            include_known=task.include_known,
        )
        return {
            "training": asdict(training),
            "settings": task.settings(training, merges),
            "environment": environment(),
            "manifest_digest": judged.manifest.digest,
            **costs,
            "train_wall_seconds": round(seconds, 1),
            "went_on": done.reconciled.passes < costs["passes"],
            "load_average_at_end": load(),
            **_judged(judged),
        }


def _costs(session: Session) -> Row:
    """Sample passes of everything, and of the mean deletion of a record that may be recalled."""
    layout, plan = session.workspace.layout(), session.workspace.plan()
    ordinary = [stored for stored in session.workspace.survivors() if stored.record.retention is None]
    costs = positions(ordinary, layout, plan)
    return {
        "passes": all_passes(plan, layout),
        "deletion_passes": sum(cost.passes * cost.records for cost in costs) / len(ordinary),
    }


def _judged(judged: Evaluation) -> Row:
    """Every way to answer; shards alone as a mean."""
    results = [result.to_json() for result in judged.results]
    alone = [result for result in results if result["kind"] == "shard"]
    return {
        "held_out": judged.records,
        "alone": {name: _spread(result[name] for result in alone) for name in judged.results[0].metrics},
        "results": [result for result in results if result["kind"] != "shard"],
    }


def _spread(values: Iterable[float]) -> Row:
    found = list(values)
    return {"mean": fmean(found), "lowest": min(found), "highest": max(found)}


def measure_all(
    data: Path,
    sizes: Sizes,
    work: Path,
    document: dict[str, Any],
    keep: Callable[[], None],
    executor: Executor | None = None,
) -> None:
    """Every row that ``document`` has not yet, each kept when it is there."""
    for part, make, trainings in (
        ("banking77", banking, sizes.trainings),
        ("tofu", tofu, sizes.memorising),
    ):
        rows = document.setdefault(part, [])
        task = make(data, sizes)
        for training in trainings:
            if any(row["settings"] == task.settings(training, sizes.merges) for row in rows):
                continue
            directory = work / f"{part}-{training.name}"
            print(f"{part} {training.name}", flush=True)
            rows.append(measure(task, training, directory, sizes.merges, executor))
            keep()
            shutil.rmtree(directory)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what is missing, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="directory of banking77, tofu and stories260K")
    parser.add_argument("--smoke", action="store_true", help="some of the records, ten minutes")
    parser.add_argument("--work", type=Path, help="where trainings lie until they are judged; default: a temporary one")
    parser.add_argument("--out", type=Path, help=f"default: {RESULT.name} in benchmarks/results, with --smoke nowhere")
    given = parser.parse_args(arguments)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    out = given.out or (None if given.smoke else RESULT)
    document: dict[str, Any] = json.loads(out.read_text()) if out is not None and out.is_file() else {}
    document |= {
        "schema": "accuracy-by-shards/1",
        "command": f"python -m benchmarks.accuracy_by_shards --data DIR{' --smoke' if given.smoke else ''}",
    }

    def keep() -> None:
        if out is not None:
            out.write_text(json.dumps(document, indent=1) + "\n")

    with tempfile.TemporaryDirectory(prefix="sisa-bench-") as scratch:
        measure_all(given.data, SMOKE if given.smoke else WHOLE, given.work or Path(scratch), document, keep)
    if out is None:
        print(json.dumps(document, indent=1))


if __name__ == "__main__":
    main()
