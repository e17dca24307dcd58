"""Legal holds and refusals: a deletion that is not carried out, visibly."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from shards import kinds
from shards.errors import HeldError, InputError
from shards.law import check_law
from sisa.delete import delete
from sisa.hold import hold, holds, lift, refuse
from sisa.session import Session
from tests.sisa.trained import INLINE, TRAINER, assert_lawful, forget, held, reopened, retrain, rows, trained


@pytest.fixture
def session(memory_path: Path) -> Iterator[Session]:
    made = trained(memory_path / "workspace")
    yield made
    made.workspace.close()


def refused(session: Session, *ids: str, subjects: tuple[str, ...] = (), request_id: str | None = None) -> HeldError:
    """A deletion that a hold refuses: one fact more, one object more, and nothing else."""
    workspace = session.workspace
    facts, records, manifest = workspace.ledger.since(0), held(session), workspace.book.manifest()
    files = {file: file.read_bytes() for file in (workspace.path / "vault").rglob("*.parquet")}
    objects = workspace.store.objects()
    with pytest.raises(HeldError) as caught:
        delete(session, ids, subjects, request_id=request_id, executor=INLINE, trainer=TRAINER)
    (fact,) = workspace.ledger.since(0)[len(facts) :]
    assert fact.kind == kinds.REFUSAL
    assert (held(session), workspace.book.manifest()) == (records, manifest)
    assert {file: file.read_bytes() for file in (workspace.path / "vault").rglob("*.parquet")} == files
    assert workspace.store.objects() - objects == {fact.body["object"]}
    assert not [check for check in check_law(workspace) if check.outcome == "failed"]
    return caught.value


def test_a_held_id_is_not_deleted_and_the_refusal_is_on_record(session: Session) -> None:
    made = hold(session.workspace, ["r1"], [], {"reason": "lawsuit"})
    assert made["records"] == 1
    error = refused(session, "r1", request_id="req")
    assert error.exit_code == 3
    assert made["hold_id"] in error.found
    assert "--lift" in error.remedy
    (fact,) = session.workspace.book.refusals()
    assert fact.body["request_id"] == "req"
    assert fact.body["holds"] == [made["hold_id"]]
    assert fact.body["refusal_id"] in error.found


def test_a_held_subject_holds_all_its_records_by_id_and_by_subject(session: Session) -> None:
    assert hold(session.workspace, [], ["s0"])["records"] == 3
    for record_id in ("r0", "r1", "r2"):
        refused(session, record_id)
    refused(session, subjects=("s0",))
    forget(session, "r3")


def test_one_held_record_refuses_the_whole_batch(session: Session) -> None:
    made = hold(session.workspace, ["r1"], [])
    error = refused(session, "r0", "r1", "r5")
    assert f"{made['hold_id']} covers 1 of 3" in error.found
    refused(session, "r5", subjects=("s0",))
    forget(session, "r0", "r5")
    assert_lawful(session)


def test_every_hold_in_the_way_is_named(session: Session) -> None:
    one, two = hold(session.workspace, ["r1"], []), hold(session.workspace, [], ["s0"])
    error = refused(session, "r1")
    assert one["hold_id"] in error.found
    assert two["hold_id"] in error.found
    lift(session.workspace, one["hold_id"])
    refused(session, "r1")
    lift(session.workspace, two["hold_id"])
    forget(session, "r1")


def test_a_lifted_hold_is_in_nobodys_way_and_leaves_nothing_behind(session: Session) -> None:
    made = hold(session.workspace, ["r1"], [])
    (fact,) = session.workspace.ledger.facts(kinds.HOLD)
    lift(session.workspace, made["hold_id"])
    assert not session.workspace.store.path(fact.body["object"]).exists()
    assert not [check for check in check_law(session.workspace) if check.outcome == "failed"]
    forget(session, "r1", request_id="req")
    assert_lawful(session)


def test_a_hold_lasts_over_opening_and_training(session: Session, tmp_path: Path) -> None:
    hold(session.workspace, ["r1"], [])
    again = reopened(session)
    retrain(again, rows(tmp_path / "more.jsonl", 20, 21))
    refused(again, "r1")
    again.workspace.close()


def test_a_hold_of_an_id_not_yet_held_covers_it_later(session: Session, tmp_path: Path) -> None:
    made = hold(session.workspace, ["r40"], ["s99"])
    assert made["records"] == 0
    retrain(session, rows(tmp_path / "more.jsonl", 40), rows(tmp_path / "theirs.jsonl", 50, subject="s99"))
    refused(session, "r40")
    refused(session, "r50")
    assert holds(session.workspace)[0]["records"] == 2


def test_a_hold_covers_every_version_of_an_id(session: Session, tmp_path: Path) -> None:
    forget(session, "r1")
    hold(session.workspace, ["r1"], [])
    retrain(session, rows(tmp_path / "again.jsonl", 1), readmit=["r1"])
    assert held(session)["r1"] == 2
    refused(session, "r1")


def test_what_is_already_deleted_is_no_business_of_a_hold(session: Session) -> None:
    done = forget(session, "r1", request_id="req")
    hold(session.workspace, ["r1"], ["s0"])
    assert forget(session, "r1").certificate == done.certificate
    assert not session.workspace.book.refusals()


def test_holds_in_force_are_listed_with_what_was_said(session: Session) -> None:
    one = hold(session.workspace, ["r1", "r5"], ["s0"], {"requester": "Court", "reason": "lawsuit"})
    two = hold(session.workspace, ["nobody"], [])
    listed = holds(session.workspace)
    assert [item["hold_id"] for item in listed] == [one["hold_id"], two["hold_id"]]
    assert (listed[0]["ids"], listed[0]["subjects"], listed[0]["records"]) == (2, 1, 4)
    assert (listed[0]["requester"], listed[0]["reason"]) == ("Court", "lawsuit")
    lift(session.workspace, one["hold_id"])
    assert [item["hold_id"] for item in holds(session.workspace)] == [two["hold_id"]]


@pytest.mark.parametrize("hold_id", ["", "hold-0", "lifted"])
def test_only_a_hold_in_force_can_be_lifted(session: Session, hold_id: str) -> None:
    made = hold(session.workspace, ["r1"], [])
    if hold_id == "lifted":
        hold_id = made["hold_id"]
        lift(session.workspace, hold_id)
    before = session.workspace.ledger.head()
    with pytest.raises(InputError, match="hold in force"):
        lift(session.workspace, hold_id)
    assert session.workspace.ledger.head() == before


def test_a_hold_and_a_refusal_name_something(session: Session) -> None:
    with pytest.raises(InputError, match="to hold"):
        hold(session.workspace, [], [])
    with pytest.raises(InputError, match="refused"):
        refuse(session.workspace, [], [], who={"reason": "x"})
    with pytest.raises(InputError, match="reason"):
        refuse(session.workspace, ["r1"], [], who={"requester": "Anna"})


def test_a_refusal_is_recorded_and_deletes_nothing(session: Session) -> None:
    records = held(session)
    done = refuse(session.workspace, ["r1"], ["s3"], "req", {"reason": "tax law", "basis": "GDPR Art. 17(3)(b)"})
    assert done["request_id"] == "req"
    assert held(session) == records
    (fact,) = session.workspace.book.refusals()
    assert fact.body["refusal_id"] == done["refusal_id"]
    assert fact.body["holds"] == []
    assert not session.workspace.book.requests()
    assert_lawful(session)
    forget(session, "r1", request_id="req")  # the decision may change


def test_the_ledger_names_who_and_why_by_reference_only(session: Session) -> None:
    said = {"requester": "CANARY one", "authoriser": "CANARY two", "reason": "CANARY three", "basis": "CANARY four"}
    made = hold(session.workspace, ["r1"], ["s0"], said)
    refused(session, "r1")
    lift(session.workspace, made["hold_id"], said)
    refuse(session.workspace, ["r1"], [], None, said)
    outside = [file for file in session.workspace.path.rglob("*") if file.is_file() and file.parent.name != "vault"]
    data = b"".join(file.read_bytes() for file in outside)
    assert b"CANARY" not in data
    assert b"CANARY" in (session.workspace.path / "vault" / "references.json").read_bytes()
