"""What does a training spend on being checkable? The calls that do it are timed in a real training.

Timed are: making tags and salted commitments at ingest (tags would be made anyway), slice trees and
their leaves, appends to the log (hashing, signing, syncing), the recomputation of the log at every
opening of the workspace, and the lists of what each step saw. A call inside another such call counts
once, as part of the outer one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property, wraps
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks.data import write_jsonl
from benchmarks.environment import load
from orchestration.executor import SliceTrainer
from orchestration.inline import InlineExecutor
from shards.commitments import LEAVES_FILE
from shards.digest import canonical_json
from shards.ledger import Ledger
from shards.plan import SliceStep
from shards.records import Record
from shards.store import Store
from shards.vault import StoredRecord
from shards.workspace import SEEN_FILE, Workspace
from sisa.initialise import initialise
from sisa.session import open_session
from sisa.train import train

PARTS = {
    "commitments": "tags and salted commitments of records",
    "trees": "slice trees, their leaves and facts",
    "appends": "appends to the log: hashing, signing, syncing",
    "checks": "recomputing the log whenever the workspace is opened",
    "lists": "lists of what each step saw",
}


class Meter:
    """Wall-clock seconds, core-seconds and number of the calls of each part, while :meth:`watching`."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self.core_seconds = dict.fromkeys(PARTS, 0.0)
        self.calls = dict.fromkeys(PARTS, 0)
        self._inside = False

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Time the calls made inside, in this process."""
        plain_put, timed_put = Store.put, self._timed("lists", Store.put)

        def put(store: Store, files: Mapping[str, bytes]) -> str:
            lists = files.keys() <= {SEEN_FILE, LEAVES_FILE}
            return timed_put(store, files) if lists else plain_put(store, files)

        root = cached_property(self._timed("trees", SliceStep.__dict__["root"].func))
        root.__set_name__(SliceStep, "root")
        with ExitStack() as patches:
            for owner, name, replacement in (
                (StoredRecord, "of", self._timed("commitments", StoredRecord.of)),
                (Workspace, "recommit", self._timed("trees", Workspace.recommit)),
                (SliceStep, "root", root),
                (Ledger, "append", self._timed("appends", Ledger.append)),
                (Ledger, "check", self._timed("checks", Ledger.check)),
                (Store, "put", put),
            ):
                patches.enter_context(mock.patch.object(owner, name, replacement))
            yield

    def _timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def call(*arguments: Any, **named: Any) -> Any:
            if self._inside:
                return function(*arguments, **named)
            self._inside = True
            started, core = time.perf_counter(), time.process_time()
            try:
                return function(*arguments, **named)
            finally:
                self.core_seconds[part] += time.process_time() - core
                self.seconds[part] += time.perf_counter() - started
                self.calls[part] += 1
                self._inside = False

        return call


def trained(
    records: Sequence[Record], directory: Path, values: Mapping[str, Any], trainer: SliceTrainer | None
) -> dict[str, Any]:
    """Make a workspace in ``directory``, train it, and say what provenance took of that.

    Args:
        records: what is trained.
        directory: made; stays.
        values: keys of ``sisa.yaml``.
        trainer: stands in for the real trainer, whose base is loaded before anything is timed.
    """
    data = directory.with_suffix(".jsonl")
    write_jsonl(data, records)
    initialise(directory, task="classification", data=[data], values=values)
    meter = Meter()
    with open_session(directory, executor="inline") as session:
        trainer = trainer or session.trainer()
        started, core = time.perf_counter(), time.process_time()
        with meter.watching():
            done = train(session, executor=InlineExecutor(), trainer=trainer)
        wall, core = time.perf_counter() - started, time.process_time() - core
        stored = stored_bytes(session.workspace)
    spent = {
        "wall_seconds": sum(meter.seconds.values()),
        "core_seconds": sum(meter.core_seconds.values()),
    }
    return {
        "records": len(records),
        "steps": len(done.reconciled.trained),
        "microbatches": sum(-(-made.members // values["batch_size"]) for made in done.reconciled.trained),
        "wall_seconds": wall,
        "core_seconds": core,
        "provenance": spent,
        "wall_share": spent["wall_seconds"] / wall,
        "core_share": spent["core_seconds"] / core,
        "parts": {
            part: {
                "calls": meter.calls[part],
                "wall_seconds": meter.seconds[part],
                "core_seconds": meter.core_seconds[part],
            }
            for part in PARTS
        },
        "bytes": stored,
        "load_average_at_end": load(),
    }


def stored_bytes(workspace: Workspace) -> dict[str, int]:
    """What a trained workspace keeps besides its records, by what it is."""
    checkpoints = [workspace.store.path(made.files) for made in workspace.book.live().values()]
    kept = sum(file.stat().st_size for path in checkpoints for file in path.iterdir())
    return {
        "facts": sum(len(canonical_json(fact.to_json())) for fact in workspace.ledger.since(0)),
        "ledger_file": workspace.ledger.path.stat().st_size,
        "lists": workspace.store.size() - kept,
        "checkpoints": kept,
    }
