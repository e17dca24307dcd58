"""The law: each of its checks passes at rest, and each can fail."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from orchestration.inline import InlineExecutor
from shards import kinds, lock
from shards.book import Book
from shards.errors import IntegrityError
from shards.law import check_law, lineage
from shards.lineage import Checkpoint, pack_tags
from shards.manifest import Head, ModelManifest
from shards.references import FILE, References
from shards.vault import Part
from shards.workspace import SEEN_FILE, Workspace
from sisa.delete import accept, delete
from sisa.session import Session
from sisa.train import train
from tests.toy import ToyTrainer, toy_recipe, toy_record, toy_session

SERVED = "nothing served since acceptance saw a deleted record"
STORED = "nothing stored saw a deleted record"
HELD = "no deleted record is held"
VAULT = "the vault holds what the ledger says"
OBJECTS = "the store holds what the ledger says"
STRAYS = "nothing is stored that no fact names"
TENSORS = "every checkpoint's tensors are those recorded"
LINEAGES = "every served lineage is whole"
EVIDENCE = "what each checkpoint saw is known"
PLANNED = "what is stored is what the surviving records give"


@pytest.fixture
def session(memory_path: Path) -> Iterator[Session]:
    """A workspace that has trained ten records in one shard and deleted one."""
    opened = toy_session(memory_path / "workspace", toy_recipe(shards=1))
    file = memory_path / "data.jsonl"
    file.write_text("".join(json.dumps(toy_record(n).to_json()) + "\n" for n in range(10)))
    train(opened, [file], executor=InlineExecutor(), trainer=ToyTrainer())
    delete(opened, ["r0"], executor=InlineExecutor(), trainer=ToyTrainer())
    yield opened
    opened.workspace.close()


def outcomes(workspace: Workspace, completing: frozenset[str] = frozenset()) -> dict[str, str]:
    return {check.name: check.outcome for check in check_law(workspace, completing=completing)}


def failing(workspace: Workspace, completing: frozenset[str] = frozenset()) -> set[str]:
    return {name for name, outcome in outcomes(workspace, completing).items() if outcome == "failed"}


def head(workspace: Workspace) -> Checkpoint:
    manifest = workspace.book.manifest()
    assert manifest is not None
    return workspace.book.live()[manifest.heads[0].checkpoint]


def purged(workspace: Workspace) -> Checkpoint:
    return next(stored.checkpoint for stored in workspace.book.checkpoints() if not stored.live)


def test_at_rest_every_check_passes(session: Session) -> None:
    assert outcomes(session.workspace) == dict.fromkeys(
        [EVIDENCE, SERVED, STORED, HELD, VAULT, OBJECTS, TENSORS, STRAYS, PLANNED, LINEAGES], "passed"
    )


def serve_a_head_that_saw_it(workspace: Workspace) -> None:
    stale = purged(workspace)
    manifest = ModelManifest.of(99, workspace.pinned().digest, [Head(0, stale.key, stale.tensors)])
    workspace.ledger.append([(kinds.MANIFEST, manifest.to_json())])


def serve_a_head_that_nobody_knows(workspace: Workspace) -> None:
    manifest = ModelManifest.of(99, workspace.pinned().digest, [Head(0, "f" * 64, "f" * 64)])
    workspace.ledger.append([(kinds.MANIFEST, manifest.to_json())])


def record_a_checkpoint_that_saw_it(workspace: Workspace) -> None:
    stale = purged(workspace)
    workspace.store.put({"x": b"x"})
    workspace.ledger.append([(kinds.CHECKPOINT, stale.to_json())])


def leave_a_purged_checkpoints_files(workspace: Workspace) -> None:
    workspace.store.path(purged(workspace).files).mkdir()


def keep_the_record(workspace: Workspace) -> None:
    """A second request's record is still held when the request is said to be complete."""
    stored = workspace.survivors()[0]
    accept(workspace, [stored], [], "second")


def edit_a_part(workspace: Workspace) -> None:
    path = workspace.vault.root / workspace.parts()[0].file
    path.write_bytes(path.read_bytes() + b"x")


def lose_a_part(workspace: Workspace) -> None:
    (workspace.vault.root / workspace.parts()[0].file).unlink()


def edit_a_checkpoint(workspace: Workspace) -> None:
    path = workspace.store.path(head(workspace).files) / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")


def leave_an_object(workspace: Workspace) -> None:
    workspace.store.put({"left": b"over"})


def leave_a_part(workspace: Workspace) -> None:
    (workspace.vault.root / "left-over.parquet").touch()


def purge_an_ancestor(workspace: Workspace) -> None:
    parent = head(workspace).link.parent
    assert parent is not None
    files = workspace.book.live()[parent].files
    body = {"checkpoints": [parent], "objects": [files], "requests": [], "method": "unlink"}
    workspace.ledger.append([(kinds.PURGE, body)])
    workspace.store.purge(files)


def serve_other_tensors_than_recorded(workspace: Workspace) -> None:
    made = head(workspace)
    manifest = ModelManifest.of(99, workspace.pinned().digest, [Head(0, made.key, "0" * 64)])
    workspace.ledger.append([(kinds.MANIFEST, manifest.to_json())])


def record_other_tensors(workspace: Workspace) -> None:
    """The object is whole, and is not what the fact says."""
    made = next(made for made in workspace.book.live().values() if made.key != head(workspace).key)
    workspace.ledger.append([(kinds.CHECKPOINT, replace(made, tensors="0" * 64).to_json())])


def serve_another_recipes_lineage(workspace: Workspace) -> None:
    pinned = workspace.pinned()
    body = {"recipe": pinned.recipe, "digest": "0" * 64, "keys": pinned.keys, "namespace": pinned.namespace}
    workspace.ledger.append([(kinds.RECIPE, body)])


def record_that_less_was_seen(workspace: Workspace) -> None:
    """The list is whole, and leaves out a record that the key covers."""
    made = head(workspace)
    less = pack_tags(sorted(workspace.trained_tags(made.seen))[1:])
    shorter = replace(made, seen=workspace.store.put({SEEN_FILE: less}))
    workspace.ledger.append([(kinds.CHECKPOINT, shorter.to_json())])
    workspace.sweep()


@pytest.mark.parametrize(
    ("harm", "names"),
    [
        (serve_a_head_that_saw_it, {SERVED, LINEAGES, TENSORS}),
        (serve_a_head_that_nobody_knows, {SERVED, LINEAGES, TENSORS}),
        (record_a_checkpoint_that_saw_it, {STORED, OBJECTS, TENSORS, STRAYS, PLANNED}),
        (leave_a_purged_checkpoints_files, {STORED, STRAYS}),
        (edit_a_part, {VAULT}),
        (lose_a_part, {VAULT}),
        (edit_a_checkpoint, {OBJECTS, TENSORS}),
        (serve_other_tensors_than_recorded, {TENSORS}),
        (record_other_tensors, {TENSORS}),
        (leave_an_object, {STRAYS}),
        (leave_a_part, {STRAYS}),
        (purge_an_ancestor, {LINEAGES}),
        (serve_another_recipes_lineage, {LINEAGES}),
        (record_that_less_was_seen, {PLANNED}),
    ],
)
def test_each_harm_fails_its_check(harm: Callable[[Workspace], None], names: set[str], session: Session) -> None:
    harm(session.workspace)
    assert failing(session.workspace) == names


def test_a_record_still_held_fails_only_once_its_request_is_to_complete(session: Session) -> None:
    keep_the_record(session.workspace)
    assert failing(session.workspace) == set(), "forgetting may still be under way"
    assert outcomes(session.workspace)[PLANNED] == "not_checked"
    assert failing(session.workspace, frozenset({"second"})) >= {HELD, STORED}


def test_lost_evidence_of_a_stored_checkpoint_is_failure(session: Session) -> None:
    session.workspace.store.purge(head(session.workspace).seen)
    assert failing(session.workspace) == {EVIDENCE, SERVED, STORED, OBJECTS}


def test_lost_evidence_of_a_purged_checkpoint_is_told_and_stops_nothing_else(session: Session) -> None:
    session.workspace.store.purge(purged(session.workspace).seen)
    found = outcomes(session.workspace)
    assert found.pop(EVIDENCE) == "not_checked"
    assert found.pop(OBJECTS) == "failed"
    assert set(found.values()) == {"passed"}


def test_a_checkpoint_without_its_parents_fact_is_failure(session: Session) -> None:
    orphan = purged(session.workspace).to_json()
    orphan["link"]["parent"] = "e" * 64
    orphan["link"].pop("key")
    link = type(head(session.workspace).link)(**orphan["link"])
    session.workspace.ledger.append([(kinds.CHECKPOINT, orphan | {"link": link.to_json()})])
    assert {EVIDENCE, STORED, PLANNED} <= failing(session.workspace)


def test_strays_are_not_judged_while_a_live_process_writes(session: Session) -> None:
    leave_an_object(session.workspace)
    with lock.exclusive(session.workspace.path / "lock"):
        assert outcomes(session.workspace)[STRAYS] == "not_checked"
    assert outcomes(session.workspace)[STRAYS] == "failed"


def test_the_references_in_the_vault_are_no_stray_and_what_lies_beside_them_is(session: Session) -> None:
    vault = session.workspace.vault.root
    References(vault / FILE, session.workspace.keys.tag).put("reason", "moved away")
    assert outcomes(session.workspace)[STRAYS] == "passed"
    (vault / f"{FILE}.old").touch()
    assert failing(session.workspace) == {STRAYS}


def test_asking_the_law_changes_nothing(session: Session) -> None:
    before = {path: path.read_bytes() for path in session.workspace.path.rglob("*") if path.is_file()}
    check_law(session.workspace)
    assert {path: path.read_bytes() for path in session.workspace.path.rglob("*") if path.is_file()} == before


def test_a_lineage_runs_from_the_first_step_to_the_head(session: Session) -> None:
    made = head(session.workspace)
    links = lineage(session.workspace, made.key)
    assert links[0].parent is None
    assert links[-1] == made.link
    with pytest.raises(IntegrityError, match="no live checkpoint"):
        lineage(session.workspace, purged(session.workspace).key)


def test_the_book_derives_parts_fates_and_requests(session: Session) -> None:
    workspace = session.workspace
    found = Book(workspace.ledger)
    assert {part.file for part in found.parts()} == {entry.name for entry in workspace.vault.root.iterdir()}
    assert all(isinstance(part, Part) for part in found.parts())
    assert sum(part.records for part in found.parts()) == 9
    assert found.next_generation() == 1
    fates = {stored.checkpoint.key: stored.live for stored in found.checkpoints()}
    assert found.live().keys() == {key for key, live in fates.items() if live}
    ((_, request),) = found.requests()
    assert found.request_of(request.tags[0]) == request
    assert found.request_of("0" * 64) is None
    assert found.tombstones() == {bytes.fromhex(tag) for tag in request.tombstones}
    assert found.certificates().keys() == {request.request_id}
    assert found.derived() == []
    assert [manifest.generation for _, manifest in found.manifests()] == [0, 1, 2]
