"""A workspace: opened whole or not at all, and read from the surviving records alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestration.inline import InlineExecutor
from shards.errors import InputError, LockedError, RecipeMismatchError, StorageError
from shards.keys import ROOT_FILE
from shards.references import FILE, References
from shards.workspace import Workspace
from sisa.delete import accept
from sisa.session import Session
from sisa.train import train
from tests.toy import ToyTrainer, toy_recipe, toy_record, toy_session


@pytest.fixture
def session(memory_path: Path) -> Iterator[Session]:
    """A workspace that has trained ten records."""
    opened = toy_session(memory_path / "workspace", toy_recipe())
    file = memory_path / "data.jsonl"
    file.write_text("".join(json.dumps(toy_record(n, subject=None).to_json()) + "\n" for n in range(10)))
    train(opened, [file], executor=InlineExecutor(), trainer=ToyTrainer())
    yield opened
    opened.workspace.close()


def test_a_directory_without_configuration_is_no_workspace(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="sisa init"):
        Workspace.open(tmp_path)


def test_a_workspace_without_its_ledger_is_not_opened_afresh(session: Session) -> None:
    session.workspace.ledger.path.unlink()
    with pytest.raises(StorageError, match="a ledger"):
        Workspace.open(session.workspace.path)


def test_another_root_secret_is_refused(session: Session) -> None:
    path = session.workspace.path
    (path / "keys" / ROOT_FILE).write_text("ff" * 32)
    session.workspace.close()
    with pytest.raises(RecipeMismatchError, match="restore the root secret"):
        Workspace.open(path)
    held = {entry.resolve() for entry in Path("/proc/self/fd").iterdir()}
    assert path / "ledger.sqlite" not in held, "a refused workspace was left open"


def test_nothing_is_pinned_before_the_first_ingest(memory_path: Path) -> None:
    session = toy_session(memory_path / "workspace", toy_recipe())
    try:
        with pytest.raises(InputError, match="ingested nothing"):
            session.workspace.pinned()
        assert session.workspace.survivors() == []
    finally:
        session.workspace.close()


def test_one_driver_at_a_time(session: Session) -> None:
    with session.workspace.driving(), pytest.raises(LockedError), Workspace.open(session.workspace.path).driving():
        pass


def test_a_tombstone_takes_a_record_from_survivors_and_plan_at_once(session: Session) -> None:
    workspace = session.workspace
    victim = workspace.survivors()[0]
    accept(workspace, [victim], [], None)
    assert victim not in workspace.survivors()
    assert not any(victim in step.members for step in workspace.plan().steps().values())


def test_a_shards_chain_is_its_part_of_the_plan(session: Session) -> None:
    workspace = session.workspace
    for chain in workspace.plan().chains:
        assert workspace.chain(chain.shard) == chain


def test_a_visible_set_is_all_that_was_trained_in_the_lineage(session: Session) -> None:
    workspace = session.workspace
    visible = workspace.visible_sets()
    for chain in workspace.plan().chains:
        seen: set[bytes] = set()
        for step in chain.steps:
            seen |= {member.tag for member in step.members}
            assert visible[step.key] == seen


def test_a_sweep_keeps_what_a_fact_names_and_removes_the_rest(session: Session) -> None:
    workspace = session.workspace
    before = (workspace.store.objects(), {entry.name for entry in workspace.vault.root.iterdir()})
    assert workspace.sweep() == []
    stray = workspace.store.put({"stray": b"x"})
    (workspace.vault.root / "stray.parquet").touch()
    assert sorted(workspace.sweep()) == sorted([stray, "stray.parquet"])
    assert (workspace.store.objects(), {entry.name for entry in workspace.vault.root.iterdir()}) == before


def test_a_sweep_keeps_the_texts_of_references(session: Session) -> None:
    workspace = session.workspace
    references = References(workspace.vault.root / FILE, workspace.keys.tag)
    name = references.put("reason", "moved away")
    (workspace.vault.root / "stray.json").touch()
    assert workspace.sweep() == ["stray.json"]
    assert references.text(name) == "moved away"


def test_intact_checkpoints_are_those_whose_tensors_and_evidence_are_as_recorded(session: Session) -> None:
    workspace = session.workspace
    live = workspace.book.live()
    assert workspace.intact() == live
    one, other, *_ = live.values()
    workspace.store.purge(one.files)
    workspace.store.purge(other.seen)
    assert workspace.intact().keys() == live.keys() - {one.key, other.key}
