"""Deletions that meet trouble: what is forgotten, what is certified, what is refused."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from orchestration.executor import Lesson, SliceTrainer
from orchestration.inline import InlineExecutor
from orchestration.reconcile import purge
from shards import kinds
from shards.errors import (
    InputError,
    IntegrityError,
    OperationError,
    RecipeMismatchError,
    StepFailedError,
    UnknownRecordError,
)
from shards.law import check_law
from shards.workspace import Workspace
from sisa.acceptance import accept
from sisa.audit import audit_record
from sisa.certificate import certificate_path, is_intact
from sisa.delete import delete, unfinished_requests
from sisa.export import export_records
from sisa.ingest import Ingested, commit
from sisa.session import Session
from sisa.train import train
from tests.exactness.oracle import assert_equals_fresh_run, assert_lawful
from tests.toy import ToyTrainer, stored, toy_recipe, toy_record, toy_session

INLINE = InlineExecutor()
TRAINER = ToyTrainer()


@pytest.fixture
def session(memory_path: Path) -> Iterator[Session]:
    """Twelve records of four subjects, trained."""
    made = toy_session(memory_path / "workspace", toy_recipe())
    commit(made, stored(made, map(toy_record, range(12))), Ingested(12, 0, 0, 0))
    train(made, executor=INLINE, trainer=TRAINER)
    yield made
    made.workspace.close()


@dataclass(frozen=True, slots=True)
class PoisonedTrainer(ToyTrainer):
    """Cannot train a step that shows one of these records."""

    poison: frozenset[str] = frozenset()

    def train(self, lesson: Lesson) -> Mapping[str, bytes]:
        if any(record.id in self.poison for record in lesson.passes[0]):
            raise StepFailedError("a step without poison", "poison", "remove it")
        return ToyTrainer.train(self, lesson)


def shard_of(session: Session, record_id: str) -> int:
    layout = session.workspace.layout()
    return next(
        layout.place(held.record).shard for held in session.workspace.survivors() if held.record.id == record_id
    )


def two_shards(session: Session) -> tuple[str, str, str]:
    """Two records of one shard, and one of the other."""
    by_shard: dict[int, list[str]] = {0: [], 1: []}
    for held in session.workspace.survivors():
        by_shard[session.workspace.layout().place(held.record).shard].append(held.record.id)
    return by_shard[0][0], by_shard[0][1], by_shard[1][0]


@pytest.mark.parametrize("request_id", ["", "a" * 129, "../up", ".hidden", "a b", "é", "a/b", "a\n"])
def test_a_request_id_that_could_not_name_a_file_is_refused_before_anything_is_accepted(
    session: Session, request_id: str
) -> None:
    with pytest.raises(InputError, match="request ID"):
        delete(session, ["r1"], request_id=request_id, executor=INLINE, trainer=TRAINER)
    assert not session.workspace.book.requests()


def forget_only(session: Session, record_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A deletion that comes as far as it does where no trainer can be had."""

    def gone(self: Session) -> SliceTrainer:
        raise RecipeMismatchError("the pinned base", "another one", "put it back")

    monkeypatch.setattr(Session, "trainer", gone)
    with pytest.raises(OperationError, match="forgotten already"):
        delete(session, [record_id], executor=INLINE)


def test_forgetting_does_not_wait_for_a_trainer(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    forget_only(session, "r1", monkeypatch)
    tag = session.workspace.tag("r1")
    workspace = session.workspace
    assert tag in workspace.book.tombstones()
    assert tag not in workspace.vault.tags(workspace.book.parts())
    visible = workspace.visible_sets()
    assert not any(tag in visible[key] for key in workspace.book.live())
    manifest = workspace.book.manifest()
    assert manifest is not None
    assert not any(tag in visible[head.checkpoint] for head in manifest.heads)
    assert not workspace.book.certificates()
    monkeypatch.undo()
    train(session, executor=INLINE, trainer=TRAINER)
    assert_lawful(session)


def test_forgetting_leaves_nothing_stored_that_the_surviving_records_do_not_give(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checkpoints that an ingest made fall go too, and in no request's name."""
    workspace = session.workspace
    commit(session, stored(session, map(toy_record, range(12, 24))), Ingested(12, 0, 0, 0))
    unplanned = workspace.book.live().keys() - workspace.plan().steps().keys()
    forget_only(session, "r1", monkeypatch)
    assert workspace.book.live().keys() <= workspace.plan().steps().keys()
    tag, visible = workspace.tag("r1"), workspace.visible_sets()
    nobodys = {
        key
        for fact in workspace.ledger.facts(kinds.PURGE)
        if not fact.body["requests"]
        for key in fact.body["checkpoints"]
    }
    assert nobodys == {key for key in unplanned if tag not in visible[key]}
    assert nobodys


def test_forgetting_a_record_that_nothing_was_trained_on_unlinks_its_part(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No checkpoint falls then, so that no purge sweeps."""
    workspace = session.workspace
    commit(session, stored(session, [toy_record(12)]), Ingested(1, 0, 0, 0))
    purge(workspace, frozenset(workspace.book.live()) - frozenset(workspace.plan().steps()), ())
    forget_only(session, "r12", monkeypatch)
    strays = next(check for check in check_law(workspace) if check.name == "nothing is stored that no fact names")
    assert strays.outcome == "passed", strays.detail


def test_a_shard_that_cannot_be_trained_holds_back_its_own_requests_only(session: Session, tmp_path: Path) -> None:
    poisoned, poison, healthy = two_shards(session)
    trainer = PoisonedTrainer(poison=frozenset({poison}))
    with pytest.raises(StepFailedError):
        delete(session, [poisoned], request_id="poisoned", executor=INLINE, trainer=trainer)
    done = delete(session, [healthy], request_id="healthy", executor=INLINE, trainer=trainer)
    assert done.certificate is not None
    assert done.certificate.is_file()
    assert [request.request_id for request in unfinished_requests(session.workspace)] == ["poisoned"]
    train(session, executor=INLINE, trainer=TRAINER)
    assert_lawful(session)
    assert_equals_fresh_run(session, TRAINER, tmp_path / "fresh")


def test_what_is_whole_is_served_although_another_shard_fails(memory_path: Path) -> None:
    session = toy_session(memory_path / "workspace", toy_recipe())
    commit(session, stored(session, map(toy_record, range(12))), Ingested(12, 0, 0, 0))
    _, poison, healthy = two_shards(session)
    with pytest.raises(StepFailedError):
        train(session, executor=INLINE, trainer=PoisonedTrainer(poison=frozenset({poison})))
    served = {head.shard for head, _ in session.workspace.book.served()}
    assert shard_of(session, healthy) in served
    session.workspace.close()


@pytest.mark.parametrize("damage", ["lost", "altered"])
def test_a_certificate_that_was_lost_or_altered_is_issued_anew(session: Session, damage: str) -> None:
    first = delete(session, ["r1"], executor=INLINE, trainer=TRAINER)
    assert first.request_id is not None
    path = certificate_path(session.workspace, first.request_id)
    path.unlink() if damage == "lost" else path.write_bytes(b"{}")
    again = delete(session, ["r1"], executor=INLINE, trainer=TRAINER)
    assert (again.request_id, again.certificate) == (first.request_id, path)
    fact = session.workspace.book.certificates()[first.request_id]
    assert is_intact(session.workspace, first.request_id, fact)
    assert len(session.workspace.book.issued(first.request_id)) == 2


def test_a_subject_whose_records_were_deleted_one_by_one_is_known(session: Session) -> None:
    done = delete(session, ["r0", "r1", "r2"], executor=INLINE, trainer=TRAINER)
    assert delete(session, subjects=["s0"], executor=INLINE, trainer=TRAINER).request_id == done.request_id
    with pytest.raises(UnknownRecordError, match="s99"):
        delete(session, subjects=["s99"], executor=INLINE, trainer=TRAINER)


def test_a_lost_list_of_what_was_seen_is_made_again_with_its_checkpoint(session: Session) -> None:
    seen = next(iter(session.workspace.book.live().values())).seen
    session.workspace.store.purge(seen)
    train(session, executor=INLINE, trainer=TRAINER)
    assert session.workspace.store.intact(seen)
    assert_lawful(session)


def test_a_deletion_never_continues_from_a_swapped_checkpoint(session: Session) -> None:
    """A stored object is intact, and yet not the one of this checkpoint."""
    workspace = session.workspace
    chain = max(workspace.plan().chains, key=lambda chain: len(chain.steps))
    first, second = (workspace.book.live()[step.key] for step in chain.steps[:2])
    workspace.ledger.append([(kinds.CHECKPOINT, {**first.to_json(), "files": second.files})])
    damaged = workspace.book.live()[first.key]
    assert workspace.store.intact(damaged.files)
    assert first.key not in workspace.intact()
    victim = chain.steps[1].members[0].record.id
    trained = train(session, executor=INLINE, trainer=TRAINER)
    assert first.key in trained.reconciled.damaged
    delete(session, [victim], executor=INLINE, trainer=TRAINER)
    assert_lawful(session)


def test_a_checkpoint_fact_that_was_edited_stops_everything(session: Session) -> None:
    """As above, by somebody who does not hold the signing key."""
    ledger = session.workspace.ledger
    fact = ledger.facts(kinds.CHECKPOINT)[0]
    body = json.dumps({**fact.body, "files": "0" * 64})
    ledger._db.execute("DROP TRIGGER facts_are_never_edited")
    ledger._db.execute("UPDATE facts SET body = ? WHERE seq = ?", (body, fact.seq))
    with pytest.raises(IntegrityError, match=f"facts [0-9]+ to {fact.seq}: tree head {fact.seq} was signed over"):
        Workspace.open(session.workspace.path)
    with pytest.raises(IntegrityError, match="tree head"):
        delete(session, ["r1"], executor=INLINE, trainer=TRAINER)
    assert not session.workspace.book.certificates()


def test_two_sessions_with_different_recipes_cannot_both_begin(memory_path: Path) -> None:
    first = toy_session(memory_path / "workspace", toy_recipe())
    late = Session(Workspace.open(memory_path / "workspace"), toy_recipe(slices=2), first.options)
    commit(first, stored(first, map(toy_record, range(3))), Ingested(3, 0, 0, 0))
    with pytest.raises(RecipeMismatchError):
        train(late, executor=INLINE, trainer=TRAINER)
    with pytest.raises(RecipeMismatchError):
        delete(late, ["r1"], executor=INLINE, trainer=TRAINER)
    first.workspace.close()
    late.workspace.close()


def test_a_registered_file_that_is_gone_does_not_stop_a_resumption(session: Session) -> None:
    options = session.options.model_copy(update={"data": (str(session.workspace.path / "gone.jsonl"),)})
    resumed = Session(session.workspace, session.recipe, options)
    with session.workspace.driving():
        held = next(held for held in session.workspace.survivors() if held.record.id == "r1")
        accept(session, [held], [], [], "interrupted")
    train(resumed, executor=INLINE, trainer=TRAINER)
    assert_lawful(session)


def test_a_dry_run_before_training_purges_nothing(memory_path: Path) -> None:
    session = toy_session(memory_path / "workspace", toy_recipe())
    commit(session, stored(session, map(toy_record, range(12))), Ingested(12, 0, 0, 0))
    impact = delete(session, ["r1"], dry_run=True).impact
    assert [shard["purged"] for shard in impact["shards"]] == [[]]
    session.workspace.close()


def test_an_audit_shows_the_deleted_version_of_an_id_that_came_back(session: Session) -> None:
    delete(session, ["r1"], request_id="first", executor=INLINE, trainer=TRAINER)
    again = stored(session, [toy_record(1, version=2, generation=1, content='{"label":"b","text":"anew"}')])
    commit(session, again, Ingested(1, 0, 0, 0))
    train(session, executor=INLINE, trainer=TRAINER)
    found = audit_record(session.workspace, "r1")
    assert (found["present"], found["deleted"], found["request_id"]) == (True, True, "first")
    assert found["tag"] == again[0].tag.hex()
    assert {seen["live"] for seen in found["exposures"]} == {True, False}
    assert_lawful(session)


def test_copies_of_the_records_handed_out_before_are_named_in_the_certificate(session: Session, tmp_path: Path) -> None:
    export_records(session, tmp_path / "copy.jsonl")
    done = delete(session, ["r1"], executor=INLINE, trainer=TRAINER)
    assert done.certificate is not None
    payload = json.loads(base64.b64decode(json.loads(done.certificate.read_text())["envelope"]["payload"]))
    assert [copy["kind"] for copy in payload["predicate"]["handed_out"]] == ["records"]
    assert (tmp_path / "copy.jsonl").stat().st_mode & 0o077 == 0


def test_registered_files_that_are_missing_are_told(session: Session) -> None:
    options = session.options.model_copy(update={"data": ("gone.jsonl",)})
    told = train(Session(session.workspace, session.recipe, options), executor=INLINE, trainer=TRAINER)
    assert told.to_json()["ingested"]["files_missing"] == [str(session.workspace.path / "gone.jsonl")]


def linked_elsewhere(session: Session, record_id: str, elsewhere: Path) -> None:
    """Move the part that holds a record to another place, and put a link to it where it was."""
    vault = session.workspace.vault
    part = next(
        one for one in session.workspace.parts() if record_id in {stored.record.id for stored in vault.read(one)}
    )
    (vault.root / part.file).rename(elsewhere)
    (vault.root / part.file).symlink_to(elsewhere)


def test_a_part_that_is_a_link_stops_a_deletion_before_anything_is_certified(
    session: Session, memory_path: Path
) -> None:
    linked_elsewhere(session, "r1", memory_path / "elsewhere")
    before = session.workspace.ledger.head()
    with pytest.raises(IntegrityError, match="found a link"):
        delete(session, ["r1"], executor=INLINE, trainer=TRAINER)
    assert session.workspace.ledger.head() == before, "nothing was accepted: the link's target would keep the record"


def test_a_part_that_became_a_link_after_acceptance_holds_the_certificate_back(
    session: Session, memory_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def gone(*_: object, **__: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("sisa.delete.finish_requests", gone)
        with pytest.raises(Killed):
            delete(session, ["r1"], request_id="req", executor=INLINE, trainer=TRAINER)
    elsewhere = memory_path / "elsewhere"
    linked_elsewhere(session, "r1", elsewhere)
    with pytest.raises(IntegrityError, match="found a link"):
        train(session, executor=INLINE, trainer=TRAINER)
    assert [request.request_id for request in unfinished_requests(session.workspace)] == ["req"]
    assert not session.workspace.book.certificates()
    part = next(entry for entry in session.workspace.vault.root.iterdir() if entry.is_symlink())
    part.unlink()
    elsewhere.rename(part)
    train(session, executor=INLINE, trainer=TRAINER)
    assert set(session.workspace.book.certificates()) == {"req"}


def test_a_damaged_vault_part_stops_a_deletion_loudly(session: Session) -> None:
    part = session.workspace.book.parts()[0]
    (session.workspace.vault.root / part.file).write_bytes(b"rot")
    with pytest.raises(IntegrityError, match="other bytes"):
        delete(session, ["r1"], executor=INLINE, trainer=TRAINER)
    assert not session.workspace.book.requests()
