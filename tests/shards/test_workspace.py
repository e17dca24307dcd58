"""A workspace: opened whole or not at all, and read from the surviving records alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestration.inline import InlineExecutor
from shards import kinds
from shards.commitments import LEAVES_FILE, commit_slice, empty_slice
from shards.errors import InputError, IntegrityError, LockedError, RecipeMismatchError, StorageError
from shards.files import TEMPORARY
from shards.keyfiles import NEXT_FILE, PUBLIC_FILE, ROOT_FILE
from shards.note import read_head
from shards.plan import Plan, make_plan
from shards.references import FILE, References
from shards.scratch import scratch
from shards.vault import StoredRecord
from shards.workspace import Workspace
from sisa.acceptance import accept
from sisa.session import Session
from sisa.train import train
from tests.shards.test_ledger import vandalise
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


def test_a_workspace_begins_with_a_genesis_that_names_log_and_keys(session: Session) -> None:
    workspace = session.workspace
    genesis = workspace.ledger.since(0)[0]
    assert genesis == workspace.book.genesis() == workspace.book.signing_keys()[0]
    assert genesis.kind == kinds.GENESIS
    assert genesis.body == {
        "log": read_head(workspace.ledger.head()).origin,
        "public_key": (workspace.path / "keys" / PUBLIC_FILE).read_text(),
        "keys": workspace.keys.commitments(),
    }


def test_two_workspaces_of_the_same_keys_are_two_logs(session: Session, memory_path: Path) -> None:
    other = toy_session(memory_path / "other", toy_recipe()).workspace
    assert other.keys == session.workspace.keys
    assert other.book.genesis().body["log"] != session.workspace.book.genesis().body["log"]
    other.close()


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE facts SET created = 'x' WHERE seq = 2",
        "DELETE FROM facts WHERE seq = 2",
        "DELETE FROM heads WHERE size = (SELECT max(size) FROM heads)",
        "UPDATE heads SET note = 'x' WHERE size = 1",
    ],
)
def test_opening_recomputes_the_whole_log_unless_it_is_told_not_to(damage: str, session: Session) -> None:
    path = session.workspace.path
    Workspace.open(path).close()
    vandalise(session.workspace.ledger.path, damage)
    session.workspace.close()
    with pytest.raises(IntegrityError, match="fact"):
        Workspace.open(path)
    held = {entry.resolve() for entry in Path("/proc/self/fd").iterdir()}
    assert path / "ledger.sqlite" not in held, "a refused workspace was left open"
    unchecked = Workspace.open(path, check=False)
    assert unchecked.ledger.problems() != []
    unchecked.close()


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
    accept(session, [victim], [], [], None)
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


def without(session: Session, gone: Callable[[StoredRecord], bool]) -> Plan:
    """The plan that leaves these records out."""
    workspace = session.workspace
    kept = [one for one in workspace.survivors() if not gone(one)]
    return make_plan(kept, workspace.layout(), workspace.pinned().digest)


def place(session: Session, one: StoredRecord) -> tuple[int, int]:
    assigned = session.workspace.layout().place(one.record)
    return assigned.shard, assigned.slice


def test_there_is_nothing_to_commit_to_where_nothing_changed(session: Session) -> None:
    before = session.workspace.store.objects()
    assert session.workspace.recommit(session.workspace.plan()) == []
    assert session.workspace.store.objects() == before


def test_each_changed_slice_is_committed_to_once_more_and_no_other(session: Session) -> None:
    workspace = session.workspace
    victims = [max(members, key=lambda one: one.tag) for members in by_slice(session).values() if len(members) > 1]
    assert victims
    plan = without(session, lambda one: one in victims)
    facts = workspace.recommit(plan)
    assert {kind for kind, _ in facts} == {kinds.SLICE}
    changed = {(step.link.shard, step.link.slice): step for step in plan.steps().values()}
    places = {place(session, one) for one in victims}
    assert [body for _, body in facts] == [commit_slice(changed[at]).to_json() for at in sorted(places)]
    workspace.ledger.append(facts)
    assert workspace.recommit(plan) == []
    for at in places:
        assert workspace.slice_leaves(workspace.book.slices()[at].leaves) == changed[at].leaves


def by_slice(session: Session) -> dict[tuple[int, int], list[StoredRecord]]:
    slices: dict[tuple[int, int], list[StoredRecord]] = {}
    for one in session.workspace.survivors():
        slices.setdefault(place(session, one), []).append(one)
    return slices


def test_a_slice_that_lost_its_last_record_is_committed_to_as_empty_once(session: Session) -> None:
    workspace = session.workspace
    at = min(by_slice(session))
    plan = without(session, lambda one: place(session, one) == at)
    facts = workspace.recommit(plan)
    assert facts == [(kinds.SLICE, empty_slice(*at).to_json())]
    assert workspace.slice_leaves(empty_slice(*at).leaves) == {}
    workspace.ledger.append(facts)
    assert workspace.book.slices()[at].records == 0
    assert workspace.recommit(plan) == []


def test_a_slice_that_is_filled_again_is_committed_to_again(session: Session) -> None:
    workspace = session.workspace
    at, members = min(by_slice(session).items())
    workspace.ledger.append(workspace.recommit(without(session, lambda one: one in members)))
    ((_, body),) = workspace.recommit(workspace.plan())
    assert (body["shard"], body["slice"], body["records"]) == (*at, len(members))


def test_leaves_that_were_lost_or_damaged_are_stored_again_without_a_fact(session: Session) -> None:
    workspace = session.workspace
    lost, damaged, *_ = [made.leaves for made in workspace.book.slices().values()]
    workspace.store.purge(lost)
    (workspace.store.path(damaged) / LEAVES_FILE).write_bytes(b"x")
    assert workspace.recommit(workspace.plan()) == []
    assert workspace.store.intact(lost)
    assert workspace.store.intact(damaged)


def test_leaves_and_targets_of_the_past_are_swept_by_nobody(session: Session) -> None:
    workspace = session.workspace
    members = next(members for members in by_slice(session).values() if len(members) > 1)
    old = workspace.book.slices()[place(session, members[0])].leaves
    request = accept(session, members[:1], [], [], None)
    workspace.ledger.append(workspace.recommit(workspace.plan()))
    assert workspace.sweep() == []
    assert members[0].tag in workspace.slice_leaves(old)
    assert workspace.store.intact(request.object)


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


def test_a_private_key_that_a_killed_rotation_left_is_swept(session: Session) -> None:
    left = session.workspace.path / "keys" / f"{TEMPORARY}x"
    left.write_text("a key")
    assert session.workspace.leftovers() == [left]
    assert session.workspace.sweep() == [left.name]
    assert not left.exists()


def test_what_is_not_ours_is_told_and_left_alone(session: Session) -> None:
    path = session.workspace.path
    (path / "keys" / NEXT_FILE).touch()
    with scratch(session.workspace.path):
        assert session.workspace.foreign() == []
    strays = [path / "certificates" / "x.json", path / "keys" / "old.key", path / "records.jsonl"]
    for stray in strays:
        stray.touch()
    assert session.workspace.foreign() == strays
    assert session.workspace.sweep() == []


BROKEN: dict[str, dict[str, Any]] = {
    kinds.CHECKPOINT: {"link": {}},
    kinds.SLICE: {"shard": 0},
    kinds.MANIFEST: {"generation": 9, "recipe": "x", "heads": [{}]},
    kinds.REQUEST: {"request_id": "x"},
    kinds.RETIRED: {"requests": 3},
    kinds.HOLD: {},
    kinds.RELEASE: {},
    kinds.PURGE: {"checkpoints": None},
    kinds.ERASURE: {"removed": [], "added": [3]},
    kinds.CERTIFICATE: {},
    kinds.ANCHOR: {},
    kinds.RECIPE: {"recipe": {}},
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_well_signed_fact_of_another_form_is_named(kind: str, session: Session) -> None:
    (fact,) = session.workspace.ledger.append([(kind, BROKEN[kind])])
    book = session.workspace.book
    readers = (
        book.checkpoints, book.commitments, book.manifests, book.requests, book.retired, book.holds, book.parts,
        book.certificates, book.anchored_in, book.pinned,
    )  # fmt: skip
    named = 0
    for read in readers:
        try:
            read()
        except IntegrityError as error:
            assert f"fact {fact.seq} of the form that {kind} has" in error.expected  # noqa: PT017
            named += 1
    assert named
