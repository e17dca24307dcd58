"""What acceptance tells from facts is what the plans and the evidence say."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.difference import difference
from orchestration.inline import InlineExecutor
from orchestration.reconcile import served
from shards.forgetting import Impact, foresee, places_of, rolled_back
from shards.plan import make_plan
from shards.vault import StoredRecord
from shards.workspace import SEEN_FILE, Workspace
from sisa.delete import delete
from sisa.ingest import ingest
from sisa.session import Session
from sisa.train import train
from tests.sisa.trained import ingested, rows
from tests.toy import ToyTrainer, toy_recipe


@pytest.fixture(params=[0.0, 0.5, 1.0])
def session(memory_path: Path, request: pytest.FixtureRequest) -> Iterator[Session]:
    made = ingested(memory_path / "workspace", toy_recipe(rehearsal=request.param))
    train(made, executor=InlineExecutor(), trainer=ToyTrainer())
    yield made
    made.workspace.close()


def told(workspace: Workspace, *gone: StoredRecord) -> Impact:
    return foresee(workspace, places_of(workspace, gone))


def queue(session: Session, record_id: str) -> None:
    delete(session, [record_id], queue=True, executor=InlineExecutor(), trainer=ToyTrainer())


def test_every_single_deletion_is_foreseen_as_the_plans_differ(session: Session) -> None:
    workspace = session.workspace
    survivors, layout, recipe = workspace.survivors(), workspace.layout(), workspace.pinned().digest
    before, visible = make_plan(survivors, layout, recipe), workspace.visible_sets()
    for gone in survivors:
        after = make_plan([one for one in survivors if one is not gone], layout, recipe)
        impact, found = told(workspace, gone), difference(before, after)
        (hit,) = impact.shards
        assert (hit.shard, hit.first_slice) == (layout.place(gone.record).shard, layout.place(gone.record).slice)
        assert hit.steps == len(found.retrained)
        assert set(hit.purged) == {key for key in workspace.book.live() if gone.tag in visible[key]}
        if layout.rehearsal in (0.0, 1.0):
            assert impact.retrained_share == pytest.approx(found.retrained_share)
        assert rolled_back(workspace, impact.purged).heads == served(workspace, after).heads


def test_several_records_fall_from_the_earliest_slice_of_each_shard(session: Session) -> None:
    workspace = session.workspace
    survivors, layout = workspace.survivors(), workspace.layout()
    impact = told(workspace, *survivors)
    assert [hit.shard for hit in impact.shards] == sorted({layout.place(one.record).shard for one in survivors})
    assert impact.purged == workspace.book.live().keys()
    assert {hit.steps for hit in impact.shards} == {0}
    assert impact.retrained_share == 0.0
    assert rolled_back(workspace, impact.purged).heads == ()


def test_what_was_never_trained_makes_nothing_fall(session: Session, tmp_path: Path) -> None:
    workspace = session.workspace
    ingest(session, [rows(tmp_path / "new.jsonl", 20)], trainer=ToyTrainer())
    late = next(one for one in workspace.survivors() if one.record.id == "r20")
    impact = told(workspace, late)
    assert impact.purged == frozenset()
    manifest = workspace.book.manifest()
    assert manifest is not None
    assert rolled_back(workspace, impact.purged).heads == manifest.heads


def test_of_lost_evidence_the_worst_is_assumed(session: Session) -> None:
    workspace = session.workspace
    for made in workspace.book.live().values():
        (workspace.store.path(made.seen) / SEEN_FILE).write_bytes(b"")
    gone = workspace.survivors()[0]
    place = workspace.layout().place(gone.record)
    assert told(workspace, gone).purged == {
        key
        for key, made in workspace.book.live().items()
        if made.link.shard == place.shard and made.link.slice >= place.slice
    }


def test_what_waits_to_be_erased_is_not_counted_again_with_or_without_an_index(session: Session) -> None:
    workspace = session.workspace
    queue(session, "r1")
    survivors, layout, recipe = workspace.survivors(), workspace.layout(), workspace.pinned().digest
    before = make_plan(survivors, layout, recipe)
    for indexed in (True, False):
        if not indexed:
            workspace.whereabouts.path.unlink()
        for gone in survivors:
            found = difference(before, make_plan([one for one in survivors if one is not gone], layout, recipe))
            impact = told(workspace, gone)
            assert sum(hit.steps for hit in impact.shards) == len(found.retrained)
            if layout.rehearsal in (0.0, 1.0):
                assert impact.retrained_share == pytest.approx(found.retrained_share)


def test_nothing_is_served_before_anything_was(memory_path: Path) -> None:
    made = ingested(memory_path / "workspace", toy_recipe())
    impact = told(made.workspace, made.workspace.survivors()[0])
    assert (impact.purged, rolled_back(made.workspace, impact.purged).heads) == (frozenset(), ())
    assert rolled_back(made.workspace, impact.purged).generation == 0
    made.workspace.close()


def test_an_index_that_lost_what_waits_is_not_believed(session: Session) -> None:
    workspace = session.workspace
    queue(session, "r1")
    gone = workspace.survivors()[0]
    impact = told(workspace, gone)
    with sqlite3.connect(workspace.whereabouts.path) as db:
        db.execute("DELETE FROM places")
    assert told(workspace, gone) == impact
