"""How long from a deletion's acceptance until nothing served saw the record?

    python -m benchmarks.acceptance [--scratch DIR] [--quick] [--out FILE]

Made-up records are taken in, and a stand-in trains them: its "weights" are digests of what it saw, and
acceptance never looks at weights. Then single records, drawn at random, are deleted with ``--queue``:

    open      by a process that holds the workspace open, from the call to its return: the request, its
              tombstones and the manifest without the record are durable, and readers find them
    process   by ``sisa delete --queue``, a new process each time: Python, imports and the check of the
              whole log included

Nothing is worked off meanwhile, so the last acceptance finds all others pending. ``--scratch`` names a
directory on the disk to be measured; a memory file system is refused, because a sync costs nothing there.
``--quick`` runs the same code on few records; its figures mean nothing.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import quantiles
from typing import Any

from benchmarks.data import synthetic_records
from benchmarks.environment import environment, file_system, load, peak_memory
from orchestration.inline import InlineExecutor
from shards.files import replace_file
from shards.law import lineage
from shards.vault import StoredRecord
from sisa.config import Recipe, RunOptions, Settings, write_settings
from sisa.delete import delete
from sisa.ingest import Ingested, commit
from sisa.session import Session
from sisa.train import train
from tests.toy import ToyTrainer, toy_recipe, toy_session

RESULT = Path(__file__).parent / "results" / "acceptance.json"
IN_MEMORY = ("tmpfs", "ramfs")
SEED = "acceptance"


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is measured.

    Attributes:
        records: held.
        shards, slices: of the workspace.
        open: acceptances by a process that holds the workspace open.
        process: acceptances by a new process each.
    """

    records: int
    shards: int
    slices: int
    open: int
    process: int


WHOLE = (Sizes(1_000_000, 100, 10, 300, 5), Sizes(10_000, 8, 8, 300, 5))
QUICK = (Sizes(300, 3, 2, 5, 1),)


def prepared(sizes: Sizes, path: Path) -> Session:
    """A trained workspace."""
    recipe: Recipe = toy_recipe(shards=sizes.shards, slices=sizes.slices, rehearsal=0.0, epochs=1)
    session = toy_session(path, recipe)
    keys = session.workspace.keys
    held = [
        StoredRecord.of(record, keys, recipe.namespace, truncated=False) for record in synthetic_records(sizes.records)
    ]
    commit(session, held, Ingested(len(held), 0, 0, 0))
    del held
    train(session, executor=InlineExecutor(), trainer=ToyTrainer())
    write_settings(path, Settings(recipe=recipe, options=RunOptions(base_model="toy", executor="inline")))
    return session


def measured(sizes: Sizes, path: Path) -> dict[str, Any]:
    """The figures of one workspace."""
    started = time.monotonic()
    session = prepared(sizes, path)
    seconds = time.monotonic() - started
    numbers = random.Random(SEED).sample(range(sizes.records), sizes.open + sizes.process + 1)
    ids = [record.id for record in _numbered(numbers)]
    delete(session, ids[:1], queue=True)  # the first reads what a process that goes on has read already
    loads = [load()]
    times = []
    for record_id in ids[1 : sizes.open + 1]:
        began = time.monotonic()
        delete(session, [record_id], queue=True)
        times.append(time.monotonic() - began)
        _refuse_served(session, record_id)
    alone = []
    for record_id in ids[sizes.open + 1 :]:
        began = time.monotonic()
        command = [sys.executable, "-c", "from sisa.cli import main; main()", "delete", "--queue"]
        subprocess.run([*command, "-w", str(path), "--id", record_id], check=True, capture_output=True)
        alone.append(time.monotonic() - began)
        _refuse_served(session, record_id)
    loads.append(load())
    figures = {
        "records": sizes.records,
        "shards": sizes.shards,
        "slices": sizes.slices,
        "parts": len(session.workspace.book.parts()),
        "facts": session.workspace.ledger.last("manifest/1"),
        "open": _spread(times),
        "process": _spread(alone),
        "seconds_to_prepare": round(seconds, 1),
        "index_bytes": session.workspace.whereabouts.path.stat().st_size,
        "vault_bytes": session.workspace.vault.size(),
        "load_average": loads,
        "peak_memory": peak_memory(),
    }
    session.workspace.close()
    return figures


def _numbered(numbers: Sequence[int]) -> list[Any]:
    every = synthetic_records(max(numbers) + 1)
    return [every[number] for number in numbers]


def _refuse_served(session: Session, record_id: str) -> None:
    """What is served now must not have seen the record: a fast answer that forgets nothing is worth nothing."""
    workspace = session.workspace
    manifest, tag = workspace.book.manifest(), workspace.tag(record_id)
    shard = next(one["shard"] for _, request in workspace.book.requests()[-1:] for one in request.impact["shards"])
    head = None if manifest is None else manifest.head(shard)
    saw = [] if head is None else lineage(workspace, head.checkpoint)
    if tag not in workspace.book.tombstones() or any(tag in workspace.trained_tags(made.seen) for made in saw):
        raise AssertionError(f"{record_id} is still served")


def _spread(times: Sequence[float]) -> dict[str, Any]:
    """Median, 90th and 99th percentile, and the longest, in seconds; one value stands for all."""
    several = list(times) if len(times) > 1 else [*times, *times]
    cuts = quantiles(several, n=100, method="inclusive")
    return {"count": len(times), "p50": cuts[49], "p90": cuts[89], "p99": cuts[98], "longest": max(times)}


def main() -> None:
    """Measure, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scratch", type=Path, help="directory on the disk to be measured")
    parser.add_argument("--quick", action="store_true", help="few records; the figures mean nothing")
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    result: dict[str, Any] = {"environment": environment(), "command": "python -m benchmarks.acceptance"}
    runs = []
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
        kind = file_system(Path(scratch))
        if kind in IN_MEMORY and not arguments.quick:
            parser.error(f"expected --scratch on a disk; {scratch} is on {kind}, where a sync costs nothing")
        result["environment"]["file_system"] = kind
        for number, sizes in enumerate(QUICK if arguments.quick else WHOLE):
            runs.append(measured(sizes, Path(scratch) / str(number)))
            replace_file(arguments.out, (json.dumps(result | {"runs": runs}, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
