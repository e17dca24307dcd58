"""The law: each of its checks passes at rest, and each can fail."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestration.inline import InlineExecutor
from shards import kinds, lock
from shards.book import Book
from shards.commitments import commit_slice
from shards.errors import IntegrityError
from shards.keyfiles import read_signing_key
from shards.law import check_law, lineage
from shards.layout import Assignment
from shards.ledger import Ledger
from shards.lineage import Checkpoint, pack_tags
from shards.manifest import ModelManifest
from shards.references import FILE, References
from shards.scratch import scratch
from shards.vault import Part, StoredRecord
from shards.workspace import SEEN_FILE, Workspace
from sisa.acceptance import accept
from sisa.delete import delete
from sisa.session import Session
from sisa.train import train
from tests.shards.test_ledger import vandalise
from tests.toy import ToyTrainer, toy_recipe, toy_record, toy_session

Entry = tuple[str, dict[str, Any]]

SERVED = "nothing served since acceptance saw a deleted record"
STORED = "nothing stored saw a deleted record"
HELD = "no deleted record is held"
VAULT = "the vault holds what the ledger says"
OBJECTS = "the store holds what the ledger says"
STRAYS = "nothing is stored that no fact names"
TENSORS = "every checkpoint's tensors are those recorded"
LINEAGES = "every served lineage is whole"
LOG = "every fact is one that a signed tree head covers"
COMMITTED = "every checkpoint was trained on the records its slice was committed to"
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
        [LOG, EVIDENCE, SERVED, STORED, HELD, VAULT, OBJECTS, TENSORS, STRAYS, PLANNED, COMMITTED, LINEAGES],
        "passed",
    )


def serve(workspace: Workspace, **change: Any) -> None:
    """Serve what is served now, but for a change."""
    manifest = workspace.book.manifest()
    assert manifest is not None
    other = ModelManifest.of(99, manifest.recipe, [replace(manifest.heads[0], **change)])
    workspace.ledger.append([(kinds.MANIFEST, other.to_json())])


def serve_a_head_that_saw_it(workspace: Workspace) -> None:
    stale = purged(workspace)
    serve(workspace, checkpoint=stale.key, tensors=stale.tensors)


def serve_a_head_that_nobody_knows(workspace: Workspace) -> None:
    serve(workspace, checkpoint="f" * 64, tensors="f" * 64)


def serve_by_another_lineage(workspace: Workspace) -> None:
    serve(workspace, lineage="0" * 64)


def serve_by_a_lineage_of_fewer_steps(workspace: Workspace) -> None:
    serve(workspace, steps=1)


def serve_by_the_lineage_of_its_parent(workspace: Workspace) -> None:
    digest = ""
    *before, _ = lineage(workspace, head(workspace).key)
    for made in before:
        digest = made.extend(digest)
    serve(workspace, lineage=digest, steps=len(before))


def record_a_checkpoint_that_saw_it(workspace: Workspace) -> None:
    stale = purged(workspace)
    workspace.store.put({"x": b"x"})
    workspace.ledger.append([(kinds.CHECKPOINT, stale.to_json())])


def leave_a_purged_checkpoints_files(workspace: Workspace) -> None:
    workspace.store.path(purged(workspace).files).mkdir()


def keep_the_record(session: Session) -> None:
    """A second request's record is still held when the request is said to be complete."""
    stored = session.workspace.survivors()[0]
    accept(session, [stored], [], [], "second")


def edit_a_part(workspace: Workspace) -> None:
    path = workspace.vault.root / workspace.parts()[0].file
    path.write_bytes(path.read_bytes() + b"x")


def lose_a_part(workspace: Workspace) -> None:
    (workspace.vault.root / workspace.parts()[0].file).unlink()


def link_a_part(workspace: Workspace) -> None:
    path = workspace.vault.root / workspace.parts()[0].file
    path.symlink_to(path.rename(workspace.path.parent / "elsewhere"))


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
    serve(workspace, tensors="0" * 64)


def record_other_tensors(workspace: Workspace) -> None:
    """The object is whole, and is not what the fact says; the lineage that is served covers tensors."""
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


def edit_a_fact(workspace: Workspace) -> None:
    vandalise(workspace.ledger.path, "UPDATE facts SET created = '1970-01-01T00:00:00.000+00:00' WHERE seq = 3")


def remove_the_newest_head(workspace: Workspace) -> None:
    vandalise(workspace.ledger.path, "DELETE FROM heads WHERE size = (SELECT max(size) FROM heads)")


def sign_anew(workspace: Workspace, order: Callable[[list[Entry]], list[Entry]]) -> None:
    """Give the workspace another history, which the operator signs; the log is whole then."""
    facts = order([(fact.kind, fact.body) for fact in workspace.ledger.since(0)])
    workspace.ledger.close()
    workspace.ledger.path.unlink()
    keys = workspace.path / "keys"
    workspace.ledger = Ledger(workspace.ledger.path, lambda: read_signing_key(keys), create=True)
    workspace.ledger.append(facts)
    workspace.book = Book(workspace.ledger, workspace.store)


def late(kind: str) -> Callable[[Workspace], None]:
    """The harm of facts that were made up after everything else."""

    def harm(workspace: Workspace) -> None:
        sign_anew(workspace, lambda facts: sorted(facts, key=lambda fact: fact[0] == kind))

    return harm


def commit_to_other_slices(workspace: Workspace) -> None:
    """Each root is in the log before its run, for another slice."""

    def moved(facts: list[Entry]) -> list[Entry]:
        return [
            (kind, {**body, "slice": (body["slice"] + 1) % 3} if kind == kinds.SLICE else body) for kind, body in facts
        ]

    sign_anew(workspace, moved)


def begin_on_other_roots(workspace: Workspace) -> None:
    """Commitments and checkpoints agree; what was said to begin was something else."""

    def moved(facts: list[Entry]) -> list[Entry]:
        def other(body: dict[str, Any]) -> dict[str, Any]:
            return {**body, "steps": [{**step, "root": "0" * 64} for step in body["steps"]]}

        return [(kind, other(body) if kind == kinds.RUN else body) for kind, body in facts]

    sign_anew(workspace, moved)


def record_another_root(workspace: Workspace) -> None:
    made = head(workspace)
    workspace.ledger.append([(kinds.CHECKPOINT, replace(made, root="0" * 64).to_json())])


def record_the_root_of_an_earlier_commitment(workspace: Workspace) -> None:
    """It was committed to, and training on it begun, before a record was deleted from it."""
    stale = purged(workspace)
    made = next(one for one in workspace.book.live().values() if one.link.slice == stale.link.slice)
    begun = {"shard": 0, "steps": [{"slice": made.link.slice, "checkpoint": made.key, "root": stale.root}]}
    recorded = replace(made, root=stale.root)
    workspace.ledger.append([(kinds.RUN, begun), (kinds.CHECKPOINT, recorded.to_json())])


def hold_with(workspace: Workspace, change: Callable[[StoredRecord], StoredRecord]) -> None:
    """Put one changed record in place of a part's first."""
    part = workspace.parts()[0]
    first, *rest = workspace.vault.read(part)
    (added,) = workspace.vault.write({Assignment(part.shard, part.slice): [change(first), *rest]})
    body = {"added": [added.to_json()], "removed": [part.file], "digests": [part.digest], "requests": []}
    workspace.ledger.append([(kinds.ERASURE, body)])
    workspace.sweep()


def hold_a_record_that_its_commitment_is_not_to(workspace: Workspace) -> None:
    hold_with(workspace, lambda one: replace(one, salt=bytes(32)))


def hold_a_record_committed_to_otherwise(workspace: Workspace) -> None:
    """The commitment opens, and is not the one in the slice's tree."""
    keys, namespace = workspace.keys, workspace.pinned().namespace
    hold_with(workspace, lambda one: StoredRecord.of(one.record, keys, namespace, truncated=one.truncated))


@pytest.mark.parametrize(
    ("harm", "names"),
    [
        (serve_a_head_that_saw_it, {SERVED, LINEAGES, TENSORS}),
        (serve_a_head_that_nobody_knows, {SERVED, LINEAGES, TENSORS}),
        (record_a_checkpoint_that_saw_it, {STORED, OBJECTS, TENSORS, STRAYS, PLANNED}),
        (leave_a_purged_checkpoints_files, {STORED, STRAYS}),
        (edit_a_part, {VAULT}),
        (lose_a_part, {VAULT}),
        (link_a_part, {VAULT}),
        (edit_a_checkpoint, {OBJECTS, TENSORS}),
        (serve_other_tensors_than_recorded, {TENSORS}),
        (serve_by_another_lineage, {LINEAGES}),
        (serve_by_a_lineage_of_fewer_steps, {LINEAGES}),
        (serve_by_the_lineage_of_its_parent, {LINEAGES}),
        (record_other_tensors, {TENSORS, LINEAGES}),
        (leave_an_object, {STRAYS}),
        (leave_a_part, {STRAYS}),
        (purge_an_ancestor, {LINEAGES}),
        (serve_another_recipes_lineage, {LINEAGES}),
        (record_that_less_was_seen, {PLANNED}),
        (edit_a_fact, {LOG}),
        (remove_the_newest_head, {LOG}),
        (late(kinds.SLICE), {COMMITTED}),
        (late(kinds.RUN), {COMMITTED}),
        (commit_to_other_slices, {COMMITTED}),
        (begin_on_other_roots, {COMMITTED}),
        (record_another_root, {COMMITTED, LINEAGES}),
        (record_the_root_of_an_earlier_commitment, {COMMITTED, LINEAGES}),
        (hold_a_record_that_its_commitment_is_not_to, {COMMITTED}),
        (hold_a_record_committed_to_otherwise, {COMMITTED}),
    ],
)
def test_each_harm_fails_its_check(harm: Callable[[Workspace], None], names: set[str], session: Session) -> None:
    harm(session.workspace)
    assert failing(session.workspace) == names


def test_a_history_signed_anew_without_a_change_is_as_lawful_as_it_was(session: Session) -> None:
    sign_anew(session.workspace, list)
    assert set(outcomes(session.workspace).values()) == {"passed"}


def test_each_purged_checkpoint_too_must_have_been_committed_to(session: Session) -> None:
    current = {made.root for made in session.workspace.book.slices().values()}
    history = [stored.checkpoint.root for stored in session.workspace.book.checkpoints() if not stored.live]
    (past,) = set(history) - current

    def unsaid(facts: list[Entry]) -> list[Entry]:
        return [
            (kind, {**body, "root": "0" * 64} if body.get("root") == past and kind == kinds.SLICE else body)
            for kind, body in facts
        ]

    sign_anew(session.workspace, unsaid)
    assert failing(session.workspace) == {COMMITTED}


def test_commitments_are_not_judged_where_the_surviving_records_cannot_be_read(session: Session) -> None:
    lose_a_part(session.workspace)
    assert outcomes(session.workspace)[COMMITTED] == "not_checked"


def test_a_record_still_held_fails_only_once_its_request_is_to_complete(session: Session) -> None:
    keep_the_record(session)
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
    chain = lineage(session.workspace, made.key)
    assert chain[0].link.parent is None
    assert chain[-1] == made
    assert [one.key for one in chain[:-1]] == [one.link.parent for one in chain[1:]]
    with pytest.raises(IntegrityError, match="no live checkpoint"):
        lineage(session.workspace, purged(session.workspace).key)


def test_the_book_derives_parts_fates_and_requests(session: Session) -> None:
    workspace = session.workspace
    found = Book(workspace.ledger, workspace.store)
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


def test_the_book_says_what_each_slice_consists_of_now_and_did_before(session: Session) -> None:
    workspace = session.workspace
    steps = workspace.plan().steps().values()
    current = {place: made for place, made in workspace.book.slices().items() if made.records}
    assert current == {(step.link.shard, step.link.slice): commit_slice(step) for step in steps}
    made = [commitment for _, commitment in workspace.book.commitments()]
    ((_, request),) = workspace.book.requests()
    was_there = [one for one in made if bytes.fromhex(request.tags[0]) in workspace.slice_leaves(one.leaves)]
    assert len(was_there) == 1, "the leaves outlive the record, so that it can be shown that it had been there"
    assert was_there[0] not in current.values()


def test_the_scratch_of_a_live_replay_is_no_stray_and_that_of_a_killed_one_is(session: Session) -> None:
    outcomes = {check.name: check.outcome for check in check_law(session.workspace)}
    with scratch(session.workspace.path) as directory:
        assert {check.name: check.outcome for check in check_law(session.workspace)} == outcomes
        directory.with_name(f"{directory.name}-killed").mkdir()
        (check,) = [check for check in check_law(session.workspace) if check.name == STRAYS]
        assert check.outcome == "failed"
