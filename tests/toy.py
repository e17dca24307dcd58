"""A trainer whose "weights" are the digests of what it saw.

Leakage becomes visible exactly, in milliseconds and without torch, so property-based tests can run
thousands of histories through the real ledger, vault, store, plan and reconcile.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from orchestration.attempt import perform_together, work_together
from orchestration.executor import Files, Fit, Lesson, Outcome, SliceTrainer, StepOrder
from shards.digest import digest, tensor_digest
from shards.errors import SisaError
from shards.keyfiles import create_root, create_signing_key
from shards.lineage import Checkpoint
from shards.records import Record, make_content
from shards.vault import StoredRecord
from shards.workspace import CONFIG_FILE, WEIGHTS_FILE, Workspace
from sisa.config import Recipe, RunOptions
from sisa.session import Session

ROOT = bytes(range(32))
ENVIRONMENT = {"machine": "toy"}


@dataclass(frozen=True, slots=True)
class ToyTrainer:
    """Its one tensor is a hash of parent, seed and every record it was shown, in order."""

    environment_facts: tuple[tuple[str, str], ...] = tuple(ENVIRONMENT.items())
    lanes: int = 1

    def environment(self) -> dict[str, str]:
        """A made-up environment class."""
        return dict(self.environment_facts)

    def train(self, lesson: Lesson) -> Mapping[str, bytes]:
        """Hash what the lesson shows."""
        shown = [part for records in lesson.passes for record in records for part in (record.id, record.content)]
        parent = "" if lesson.parent is None else tensor_digest(lesson.parent)
        state = digest("toy", parent, lesson.seed, *shown)
        return {WEIGHTS_FILE: safetensors_of(state)}

    def train_lanes(self, lessons: Mapping[int, Lesson]) -> dict[int, Files | SisaError]:
        """Each lane by itself, whatever a derived trainer makes of its lesson."""
        return lane_by_lane(self, lessons)

    def examine(self, record: Record) -> Fit:
        """Everything can be trained."""
        return Fit("", truncated=False)


def lane_by_lane(trainer: SliceTrainer, lessons: Mapping[int, Lesson]) -> dict[int, Files | SisaError]:
    """Lessons side by side, as any trainer would train them one after the other."""
    made: dict[int, Files | SisaError] = {}
    for lane, lesson in lessons.items():
        try:
            made[lane] = trainer.train(lesson)
        except SisaError as error:
            made[lane] = error
    return made


@dataclass(frozen=True)
class Wrapped:
    """A trainer around another one; by itself it changes nothing."""

    inner: SliceTrainer

    @property
    def lanes(self) -> int:
        """As many as the other has."""
        return self.inner.lanes

    def environment(self) -> dict[str, str]:
        """As the other says."""
        return self.inner.environment()

    def examine(self, record: Record) -> Fit:
        """As the other says."""
        return self.inner.examine(record)

    def train(self, lesson: Lesson) -> Files:
        """As the other does."""
        return self.inner.train(lesson)

    def train_lanes(self, lessons: Mapping[int, Lesson]) -> Mapping[int, Files | SisaError]:
        """Each lane by itself, whatever a derived trainer makes of its lesson."""
        return lane_by_lane(self, lessons)


@dataclass(frozen=True)
class Keeping(ToyTrainer):
    """Computes one value a record, or finds it on the shelf; its tensor is a hash of these values too.

    Attributes:
        kind: of the values.
        computed: a list to note the IDs in of records that a value was computed of.
    """

    kind: str = "ab" * 32
    computed: tuple[list[str], ...] = ()

    def train(self, lesson: Lesson) -> Mapping[str, bytes]:
        """Hash what the lesson shows, and the value of each record."""
        values = [self.value(lesson, record) for records in lesson.passes for record in records]
        toy = ToyTrainer.train(self, lesson)[WEIGHTS_FILE]
        return {WEIGHTS_FILE: safetensors_of(digest("keeping", tensor_digest(toy), *values))}

    def value(self, lesson: Lesson, record: Record) -> bytes:
        """What the frozen layers would make of a record."""
        kept = None if lesson.shelf is None else lesson.shelf.get(record.id, self.kind)
        if kept is not None:
            return kept
        for noted in self.computed:
            noted.append(record.id)
        value = digest("value", self.kind, record.content)
        if lesson.shelf is not None:
            lesson.shelf.put(record.id, self.kind, value)
        return value


def safetensors_of(state: bytes) -> bytes:
    """A safetensors file with one tensor of bytes."""
    header = json.dumps({"toy": {"dtype": "U8", "shape": [len(state)], "data_offsets": [0, len(state)]}}).encode()
    return len(header).to_bytes(8, "little") + header + state


def work(step_order: StepOrder, trainer: SliceTrainer) -> Checkpoint:
    """One lane's work, left in the place of its attempt; its error is raised."""
    return _only(work_together([step_order], trainer))


def perform(step_order: StepOrder, trainer: SliceTrainer) -> Checkpoint:
    """One step alone, from its order to the store; its error is raised."""
    return _only(perform_together([step_order], trainer))


def _only(outcomes: list[Outcome]) -> Checkpoint:
    (outcome,) = outcomes
    if outcome.checkpoint is None:
        raise outcome.error or AssertionError("neither a checkpoint nor an error")
    return outcome.checkpoint


@contextmanager
def fixed_root(ours: bytes = ROOT) -> Iterator[None]:
    """Workspaces that ``init`` makes inside get our root secret, where they would draw one."""

    def create(directory: Path, root: bytes | None = None) -> None:
        create_root(directory, root or ours)

    with mock.patch("sisa.initialise.create_root", create):
        yield


def toy_recipe(**values: Any) -> Recipe:
    """A recipe for toy training; nothing but its layout matters."""
    defaults: dict[str, Any] = {
        "task": "classification",
        "namespace": "toy",
        "base_model_digest": "0" * 64,
        "tokenizer_digest": "0" * 64,
        "labels": ("a", "b"),
        "shards": 2,
        "slices": 3,
        "epochs": 2,
        "rehearsal": 0.5,
    }
    return Recipe(**(defaults | values))


def toy_session(path: Path, recipe: Recipe, root: bytes = ROOT) -> Session:
    """A new workspace in ``path`` (made), with ``root`` as its secret, opened."""
    path.mkdir(parents=True)
    create_root(path / "keys", root)
    create_signing_key(path / "keys")
    (path / CONFIG_FILE).write_text("# a toy workspace is opened by its tests\n")
    workspace = Workspace.create(path)
    return Session(workspace, recipe, RunOptions(base_model="toy", executor="inline"))


def toy_record(number: int, **values: Any) -> Record:
    """Record ``r<number>``; its subject is shared by three records unless given."""
    defaults: dict[str, Any] = {
        "id": f"r{number}",
        "content": make_content({"text": f"text {number}", "label": "a"}),
        "subject": f"s{number // 3}",
    }
    return Record(**(defaults | values))


def stored(session: Session, records: Iterable[Record]) -> list[StoredRecord]:
    """Records as the vault would hold them."""
    keys, namespace = session.workspace.keys, session.recipe.namespace
    return [StoredRecord.of(record, keys, namespace, truncated=False) for record in records]


@contextmanager
def memory_directory() -> Iterator[Path]:
    """A scratch directory on a memory file system where there is one: syncs cost nothing there."""
    shared = Path("/dev/shm")
    root = shared if os.access(shared, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="sisa-test-", dir=root) as directory:
        yield Path(directory)
