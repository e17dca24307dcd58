"""Cached activations: the same models with them and without, and nothing of a deleted record among them."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from orchestration.attempt import discard, prepare
from orchestration.executor import Lesson, StepOrder, order
from orchestration.schedule import schedule
from shards import lock
from shards.activations import Activations, AttemptShelf, entry_name
from shards.errors import LawViolationError, StorageError
from shards.law import check_law
from shards.vault import StoredRecord
from shards.workspace import LOCK_FILE
from sisa import delete as deleting
from sisa.audit import audit_everything
from sisa.certificate import certificate_path, issue
from sisa.delete import delete
from sisa.document import read_certificate
from sisa.erasure import CLEAR, NEVER_WRITTEN
from sisa.queue import cancel
from sisa.replay import replay
from sisa.residue import activations_check
from sisa.session import Session
from sisa.status import status
from sisa.train import train
from tests.exactness.histories import Kill, Killed, killing
from tests.exactness.oracle import assert_equals_fresh_run, assert_lawful, refuted
from tests.independent.verifier import verify as verify_independently
from tests.sisa.trained import INLINE, ingested, public_key, reopened, rows
from tests.toy import Keeping, toy_recipe, work

FROZEN = toy_recipe(layers="last-1")
STRAYS = "nothing is stored that no fact names"


@pytest.fixture
def session(memory_path: Path) -> Iterator[Session]:
    """Twelve records trained, their activations kept."""
    made = ingested(memory_path / "workspace", FROZEN)
    train(made, executor=INLINE, trainer=Keeping())
    yield made
    made.workspace.close()


def forget(session: Session, *ids: str, trainer: Keeping | None = None, **arguments: object) -> None:
    delete(session, ids, executor=INLINE, trainer=trainer or Keeping(), **arguments)  # type: ignore[arg-type]


def entries(session: Session) -> dict[str, bytes]:
    """Path below the cache → bytes."""
    root = session.workspace.activations.root
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def entry_of(session: Session, record_id: str) -> Path:
    """The file of a record that survives."""
    stored = next(one for one in session.workspace.survivors() if one.record.id == record_id)
    (found,) = session.workspace.activations.root.rglob(entry_name(stored))
    return found


def early(session: Session, shard: int) -> list[StoredRecord]:
    """Records of a shard, those of its first slice first; r2 and r5 last."""
    layout = session.workspace.layout()
    return sorted(
        session.workspace.survivors(shard),
        key=lambda one: (one.record.id in ("r2", "r5"), layout.place(one.record).slice),
    )


def assert_exact(session: Session, scratch: Path) -> None:
    """The law, E1, and an entry for survivors only."""
    assert_lawful(session)
    assert_equals_fresh_run(session, Keeping(), scratch)
    assert session.workspace.stray_activations(session.workspace.book.tombstones()) == []


def outcome(session: Session, name: str = STRAYS) -> str:
    return {check.name: check.outcome for check in check_law(session.workspace)}[name]


# -- kept and found again ----------------------------------------------------------------------------


def test_a_value_is_computed_once_a_record_for_every_epoch_slice_and_retraining(
    session: Session, memory_path: Path
) -> None:
    assert len(entries(session)) == 12
    trainer = Keeping(computed=([],))
    forget(session, "r1", trainer=trainer)
    train(session, [rows(memory_path / "more.jsonl", 20)], executor=INLINE, trainer=trainer)
    assert trainer.computed == (["r20"],)
    assert len(entries(session)) == 12
    assert_exact(session, memory_path / "fresh")


def test_without_a_frozen_layer_nothing_is_kept(memory_path: Path) -> None:
    session = ingested(memory_path / "workspace", toy_recipe())
    train(session, executor=INLINE, trainer=Keeping())
    assert not session.workspace.activations.root.exists()
    session.workspace.close()


def test_without_activations_a_sweep_reads_no_record(memory_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = ingested(memory_path / "workspace", FROZEN)
    monkeypatch.setattr(session.workspace.vault, "read", lambda part: pytest.fail(f"{part} was read"))
    session.workspace.sweep()
    assert session.workspace.stray_activations() == []
    session.workspace.close()


def swap(session: Session) -> None:
    one, other = entry_of(session, "r2"), entry_of(session, "r5")
    data = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(data)


def tear(session: Session) -> None:
    for path in session.workspace.activations.root.rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:-3])


def remove_some(session: Session) -> None:
    entry_of(session, "r2").unlink()


def move_to_another_shard(session: Session) -> None:
    path = entry_of(session, "r2")
    other = path.parent.with_name("0001" if path.parent.name == "0000" else "0000")
    path.rename(other / path.name)


@pytest.mark.parametrize("damage", [swap, tear, remove_some, move_to_another_shard])
def test_a_damaged_or_swapped_entry_never_reaches_training_and_is_made_again(
    damage: Callable[[Session], None], session: Session, memory_path: Path
) -> None:
    before = entries(session)
    damage(session)
    trainer = Keeping(computed=([],))
    for shard in (0, 1):
        forget(session, early(session, shard)[0].record.id, trainer=trainer)
    assert "r2" in trainer.computed[0]
    assert_exact(session, memory_path / "fresh")
    made = entries(session)
    assert made == {name: before[name] for name in made}
    assert len(made) == 10


def test_a_poisoned_entry_with_a_right_digest_is_found_by_a_replay(session: Session) -> None:
    """Whoever can write there can: the digest is against accidents."""
    workspace = session.workspace
    shard, cause, victim = 0, *early(session, 0)[:2]
    staging = workspace.path / "poison"
    AttemptShelf(workspace.activations, staging, shard, [victim]).put(victim.record.id, Keeping().kind, b"poison")
    workspace.activations.adopt(staging, shard)
    forget(session, cause.record.id)
    checks = replay(workspace, [0, 1], "V4", INLINE, Keeping())
    assert [check.outcome for check in checks] == ["failed", "passed"]


@dataclass(frozen=True)
class Looking(Keeping):
    """Notes whether it was given a shelf."""

    shelves: tuple[list[bool], ...] = ()

    def train(self, lesson: Lesson) -> Mapping[str, bytes]:
        self.shelves[0].append(lesson.shelf is not None)
        return Keeping.train(self, lesson)


def test_a_replay_takes_nothing_from_before_and_keeps_nothing(session: Session) -> None:
    before = entries(session)
    trainer = Looking(shelves=([],))
    checks = replay(session.workspace, [0, 1], "V4", INLINE, trainer)
    assert {check.outcome for check in checks} == {"passed"}
    assert set(trainer.shelves[0]) == {False}
    assert entries(session) == before


# -- purged with the record ----------------------------------------------------------------------------


def test_a_deleted_records_entry_is_gone_before_its_certificate_is_signed(
    session: Session, memory_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone, before = entry_of(session, "r1"), entries(session)
    signed = []

    def looked(*arguments: object) -> object:
        signed.append(gone.exists())
        return issue(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(deleting, "issue", looked)
    forget(session, "r1")
    assert signed == [False]
    del before[str(gone.relative_to(session.workspace.activations.root))]
    assert entries(session) == before, "other entries were touched"
    assert_exact(session, memory_path / "fresh")


def test_killed_between_erasure_and_sweep_the_entry_goes_with_the_next_run(session: Session, memory_path: Path) -> None:
    gone = entry_of(session, "r1")
    with pytest.raises(Killed), killing(Kill("Activations.sweep", 1, after=False), session.workspace.path):
        forget(session, "r1", request_id="case")
    session = reopened(session)
    assert gone.exists()
    assert outcome(session) == "failed"
    assert activations_check(session.workspace).outcome == "failed"
    assert not certificate_path(session.workspace, "case").exists()
    train(session, executor=INLINE, trainer=Keeping())
    assert not gone.exists()
    assert certificate_path(session.workspace, "case").exists()
    assert_exact(session, memory_path / "fresh")
    session.workspace.close()


def test_nothing_is_signed_over_an_entry_that_was_not_swept(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Activations, "sweep", lambda *_: [])
    with pytest.raises(LawViolationError, match=STRAYS):
        forget(session, "r1", request_id="case")
    assert not certificate_path(session.workspace, "case").exists()


def test_an_entry_of_a_suppressed_record_waits_as_the_record_does(session: Session, memory_path: Path) -> None:
    waits = entry_of(session, "r1")
    forget(session, "r1", request_id="case", queue=True)
    assert waits.exists()
    assert outcome(session) == "passed"
    assert activations_check(session.workspace).outcome == "failed", "it is deleted, as far as people know"
    cancel(session, "case")
    train(session, executor=INLINE, trainer=Keeping())
    assert waits.exists()
    assert_equals_fresh_run(session, Keeping(), memory_path / "fresh")


def test_a_record_taken_in_again_is_another_entry(session: Session, memory_path: Path) -> None:
    before = entry_of(session, "r1")
    forget(session, "r1")
    file = rows(memory_path / "again.jsonl", 1)
    train(session, [file], readmit=["r1"], executor=INLINE, trainer=Keeping())
    assert entry_of(session, "r1").name != before.name
    assert not before.exists()
    assert_exact(session, memory_path / "fresh")


def test_of_a_shard_whose_records_cannot_be_read_no_entry_stays(session: Session) -> None:
    part = next(part for part in session.workspace.parts() if part.shard == 0)
    (session.workspace.vault.root / part.file).write_bytes(b"x")
    others = {name: data for name, data in entries(session).items() if "/0001/" in name}
    assert others
    session.workspace.sweep()
    assert entries(session) == others


# -- the law, the residue scan, status, the certificate ------------------------------------------------------


@pytest.mark.parametrize("stray", ["x", "ab/x", "ab/0000/x", "ab/9999/" + "0" * 64])
def test_the_law_and_the_residue_scan_find_what_is_no_survivors(stray: str, session: Session) -> None:
    path = session.workspace.activations.root / stray
    assert (outcome(session), activations_check(session.workspace).outcome) == ("passed", "passed")
    assert not [check for check in audit_everything(session.workspace, None) if check.outcome == "failed"]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")
    assert (outcome(session), activations_check(session.workspace).outcome) == ("failed", "failed")
    with lock.exclusive(session.workspace.path / LOCK_FILE):
        assert (outcome(session), activations_check(session.workspace).outcome) == ("not_checked", "not_checked")
    session.workspace.sweep()
    assert not path.exists()
    assert (outcome(session), activations_check(session.workspace).outcome) == ("passed", "passed")


def test_status_says_how_much_lies_there(session: Session) -> None:
    told = status(session)
    assert told["activations_bytes"] == sum(map(len, entries(session).values())) > 0
    for path in session.workspace.activations.root.rglob("*"):
        if path.is_file():
            path.unlink()
    after = status(session)
    assert after["activations_bytes"] == 0
    assert told["storage_bytes"] - after["storage_bytes"] == told["activations_bytes"]


@pytest.mark.parametrize("layers", ["all", "last-1"])
def test_a_certificate_says_what_became_of_activations_and_both_verifiers_agree(layers: str, memory_path: Path) -> None:
    session = ingested(memory_path / "workspace", toy_recipe(layers=layers))
    train(session, executor=INLINE, trainer=Keeping())
    forget(session, "r1", request_id="case")
    path = certificate_path(session.workspace, "case")
    methods = {
        item["class"]: item["method"]
        for item in read_certificate(path.read_bytes()).predicate["erasure"]
        if "activations" in item["class"]
    }
    if layers == "all":
        assert list(methods.values()) == [NEVER_WRITTEN]
    else:
        assert methods["activations of frozen layers, cached by record"] == CLEAR
    assert refuted(path, session.workspace.path) == []
    independently = verify_independently(path.read_bytes(), (public_key(session).read_bytes(),))
    assert "failed" not in {found for _, _, found in independently}
    session.workspace.close()


# -- the worker ------------------------------------------------------------------------------------------


def first_order(session: Session) -> StepOrder:
    workspace = session.workspace
    return order(schedule(workspace.plan(), {})[0], 0, None, workspace.path, workspace.store.root)


def all_files(session: Session) -> set[Path]:
    return {path for path in session.workspace.path.rglob("*") if path.is_file()}


def test_a_worker_whose_attempt_is_over_leaves_no_activation(memory_path: Path) -> None:
    session = ingested(memory_path / "workspace", FROZEN)
    ours, before = first_order(session), all_files(session)

    @dataclass(frozen=True)
    class GivenUp(Keeping):
        def train(self, lesson: Lesson) -> Mapping[str, bytes]:
            assert lesson.shelf is not None
            record, *_ = lesson.passes[0]
            lesson.shelf.put(record.id, self.kind, b"value")
            discard(ours)
            return Keeping.train(self, lesson)

    prepare(ours)
    with pytest.raises(StorageError, match="No such file"):
        work(ours, GivenUp())
    assert all_files(session) == before
    session.workspace.close()


def test_a_step_of_a_replay_is_one_that_is_stored_elsewhere(session: Session, memory_path: Path) -> None:
    ours = first_order(session)
    assert not ours.replayed
    assert replace(ours, store=memory_path).replayed


def test_a_full_disk_does_not_stop_training(memory_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = ingested(memory_path / "workspace", FROZEN)
    write, written = Path.write_bytes, 0

    def full(path: Path, data: bytes) -> int:
        nonlocal written
        if "activations" in path.parts:
            written += 1
            if written > 2:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return write(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        train(session, executor=INLINE, trainer=Keeping())
        assert written > 2
        assert not session.workspace.activations.root.exists()
    assert_exact(session, memory_path / "fresh")
    session.workspace.close()


def test_two_workspaces_of_the_same_records_have_the_same_entries(session: Session, memory_path: Path) -> None:
    again = ingested(memory_path / "again", FROZEN)
    train(again, executor=INLINE, trainer=Keeping())
    assert entries(again) == entries(session)
    again.workspace.close()
