"""What else may happen to a record of the trunk: it returns, joins late, is forgotten again after a restored backup."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from shards.errors import RecordError
from shards.trunk import TRUNK
from sisa.audit import audit_everything
from sisa.certificate import certificate_path
from sisa.recover import recover
from sisa.retention import retire
from sisa.session import Session
from sisa.train import train
from tests.exactness.oracle import assert_equals_fresh_run
from tests.exactness.test_trunk import first_of, opened, places, served, trunk_of, write_file
from tests.sisa.handed_out import exported, heads
from tests.sisa.trained import INLINE, TRAINER, assert_lawful, checked, failed, forget, held, restored, retrain


@pytest.fixture
def session(memory_path: Path) -> Iterator[Session]:
    made = opened(memory_path, TRAINER)
    yield made
    made.workspace.close()


def number_of(record_id: str) -> int:
    return int(record_id.removeprefix("r"))


@pytest.mark.parametrize("declared", [False, True], ids=["of now", "of generation 0"])
def test_a_record_that_returns_joins_the_trunk_only_if_its_file_says_the_first_generation(
    declared: bool, session: Session, memory_path: Path
) -> None:
    gone = first_of(trunk_of(session))
    forget(session, gone)
    number, trunk = number_of(gone), {step.key for step in trunk_of(session)}
    values = {"generation": 0} if declared else {}
    again = write_file(memory_path / "again.jsonl", [number], permanent=[number], **values)
    taken = retrain(session, again, readmit=[gone], join_trunk=declared)
    assert (taken.added, taken.readmitted, taken.joined_trunk) == (1, 1, int(declared))
    assert held(session)[gone] == 2
    assert (places(session)[gone] == TRUNK) is declared
    assert ({step.key for step in trunk_of(session)} == trunk) is not declared
    assert_lawful(session)
    assert_equals_fresh_run(session, TRAINER, memory_path / "oracle")


def test_permanent_records_of_later_are_told_of_only_where_they_join_the_trunk(
    session: Session, memory_path: Path
) -> None:
    before = session.workspace.book.live().keys()
    ordinary = retrain(session, write_file(memory_path / "late.jsonl", [20], permanent=[20]))
    assert (ordinary.added, ordinary.joined_trunk) == (1, 0), "of a later generation"
    assert before <= session.workspace.book.live().keys()
    late = write_file(memory_path / "first.jsonl", range(21, 24), permanent=range(21, 24), generation=0)
    before_it = session.workspace.ledger.head()
    with pytest.raises(RecordError, match=r"first\.jsonl:1: ID 'r21' belongs to the trunk.*--join-trunk"):
        retrain(session, late)
    assert session.workspace.ledger.head() == before_it
    assert retrain(session, late, join_trunk=True).joined_trunk == 3
    assert {places(session)[f"r{number}"] for number in range(21, 24)} == {TRUNK}
    assert not {head.checkpoint for head, _ in session.workspace.book.served()} & before
    assert_lawful(session)
    assert_equals_fresh_run(session, TRAINER, memory_path / "oracle")


def test_a_recovery_forgets_a_record_of_the_trunk_again(session: Session, memory_path: Path) -> None:
    anchored = replace(session, options=session.options.model_copy(update={"anchor": str(memory_path / "anchor")}))
    train(anchored, [], executor=INLINE, trainer=TRAINER)
    backup = Path(shutil.copytree(anchored.workspace.path, memory_path / "backup"))
    gone = first_of(trunk_of(anchored))
    forget(anchored, gone, request_id="req")
    old = restored(anchored, backup)
    assert places(old)[gone] == TRUNK
    assert recover(old, executor=INLINE, trainer=TRAINER).reapplied == ("req",)
    assert gone not in held(old)
    assert served(old) == [0, 1]
    assert not failed(checked(certificate_path(old.workspace, "req")))
    assert_lawful(old)
    assert_equals_fresh_run(old, TRAINER, memory_path / "oracle")
    old.workspace.close()


def test_a_request_about_the_trunk_is_retired_like_any_other(session: Session, memory_path: Path) -> None:
    gone = first_of(trunk_of(session), -1)
    forget(session, gone, request_id="req")
    with session.driving():
        assert retire(session.workspace, 0) == ["req"]
    assert not certificate_path(session.workspace, "req").exists()
    assert not [check for check in audit_everything(session.workspace, None) if check.outcome == "failed"]
    assert_equals_fresh_run(session, TRAINER, memory_path / "oracle")


def test_every_export_is_of_the_trunk(session: Session) -> None:
    one, other = heads(session)
    kept = exported(session, [one], kept=True, mark="aa" * 32)
    exported(session, [other], kept=False, mark="bb" * 32)
    done = forget(session, first_of(trunk_of(session)))
    assert [told["fate"] for told in done.stale] == ["purged", "recall"]
    assert not kept.exists()
    assert_lawful(session)
