"""A trunk under real models: every shard starts from its tensors, and no deletion leaves a trace of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from orchestration.executor import Files, Lesson
from shards.digest import tensor_digest
from shards.errors import SisaError
from shards.trunk import TRUNK
from shards.workspace import WEIGHTS_FILE
from sisa.session import open_session
from sisa.status import status
from tests.models import Row, delete_in, differences, fresh_run, make_workspace, row, train_in, write_rows
from tests.toy import Wrapped

COMMON = 12  # permanent records, at the beginning


@dataclass(frozen=True)
class Watching(Wrapped):
    """Notes what each step started from."""

    parents: list[bytes | None]

    def train(self, lesson: Lesson) -> Files:
        self.parents.append(lesson.parent)
        return self.inner.train(lesson)

    def train_lanes(self, lessons: Mapping[int, Lesson]) -> Mapping[int, Files | SisaError]:
        self.parents.extend(lesson.parent for lesson in lessons.values())
        return self.inner.train_lanes(lessons)


def records(task: str, count: int = 40) -> list[Row]:
    return [row(number, task) | ({"retention": "permanent"} if number < COMMON else {}) for number in range(count)]


def trained(path: Path, task: str, base: Path, **values: object) -> tuple[Path, list[bytes | None]]:
    """A workspace with a trunk, and what each of its steps started from."""
    workspace = make_workspace(path / "workspace", task, base, **values)
    data, parents = write_rows(path / "rows.jsonl", records(task)), list[bytes | None]()
    with open_session(workspace) as session:
        trainer = Watching(session.trainer(), parents)
    train_in(workspace, data, trainer=trainer)
    return workspace, parents


@pytest.mark.parametrize(("task", "lanes"), [("classification", 1), ("classification", 2), ("causal-lm", 1)])
def test_shards_start_from_the_trunks_tensors_and_every_deletion_equals_a_fresh_run(
    task: str, lanes: int, memory_path: Path, tiny_bert: Path, tiny_llama: Path
) -> None:
    base = tiny_bert if task == "classification" else tiny_llama
    path, parents = trained(memory_path, task, base, lanes=lanes, rehearsal=0.25)
    with open_session(path) as session:
        workspace, plan = session.workspace, session.workspace.plan()
        head = workspace.book.live()[plan.trunk.steps[-1].key]
        weights = workspace.store.get(head.files)[WEIGHTS_FILE]
        starts = [tensor_digest(parent) for parent in parents if parent is not None]
        assert starts.count(head.tensors) == len(plan.chains) == 2
        assert parents.count(None) == 1
        moved = {tensor_digest(weights), *(checkpoint.tensors for _, checkpoint in workspace.book.served())}
        assert len(moved) == 3, "each shard went on from there"
        victim = plan.trunk.steps[0].members[0].record.id
        other = next(one for one in plan.chains[0].steps[0].members if one.record.id != victim).record.id
    for gone in (victim, other):
        delete_in(path, [gone])
        assert differences(path, fresh_run(path, memory_path / f"fresh-{gone}")) == []
    with open_session(path) as session:
        told = status(session)
        assert told["trunk"]["records"] == COMMON - 1
        assert all(shard["head"] for shard in told["shards"])
        assert not [one for one in session.workspace.book.live().values() if one.link.shard not in (0, 1, TRUNK)]
