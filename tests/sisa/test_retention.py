"""Tombstones destroyed by retention rule: what goes, what stays, and that nothing breaks over it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from shards import kinds
from shards.checks import Check
from shards.errors import HeldError, InputError, UnknownRecordError
from shards.law import check_law
from sisa.audit import audit_everything, audit_record
from sisa.certificate import certificate_path
from sisa.delete import unfinished_requests
from sisa.document import read_certificate
from sisa.export import export_records
from sisa.hold import hold, lift, refuse
from sisa.letter import letter
from sisa.retention import list_tombstones, retire, retire_requests
from sisa.session import Session
from sisa.verify_workspace import verify_against
from tests.exactness.oracle import assert_equals_fresh_run
from tests.sisa.trained import (
    TRAINER,
    assert_lawful,
    checked,
    failed,
    forget,
    held,
    public_key,
    reopened,
    retrain,
    rows,
    trained,
)


@pytest.fixture
def session(memory_path: Path) -> Iterator[Session]:
    made = trained(memory_path / "workspace", 18)
    yield made
    made.workspace.close()


def places(session: Session) -> dict[str, tuple[int, int]]:
    layout = session.workspace.layout()
    found = {one.record.id: layout.place(one.record) for one in session.workspace.survivors()}
    return {record_id: (place.shard, place.slice) for record_id, place in found.items()}


def of_one_slice(session: Session) -> tuple[str, str]:
    """Two records of one slice."""
    where = places(session)
    return next((one, two) for one in sorted(where) for two in sorted(where) if one < two and where[one] == where[two])


def failing(session: Session) -> list[Check]:
    return [check for check in check_law(session.workspace) if check.outcome == "failed"]


def naming(session: Session, tag: bytes) -> list[str]:
    """Files of the workspace that hold a tag, as bytes or in hex."""
    files = [file for file in session.workspace.path.rglob("*") if file.is_file()]
    return [
        str(file.relative_to(session.workspace.path))
        for file in files
        if tag in file.read_bytes() or tag.hex().encode() in file.read_bytes()
    ]


def test_retirement_destroys_everything_that_names_the_record(session: Session) -> None:
    tag = session.workspace.tag("r1")
    forget(session, "r1", request_id="req", who={"requester": "Anna CANARY"})
    names = naming(session, tag)
    assert any("store" in name for name in names)
    assert retire(session.workspace, 0) == ["req"]
    assert naming(session, tag) == []
    assert not certificate_path(session.workspace, "req").exists()
    assert b"CANARY" not in b"".join(f.read_bytes() for f in session.workspace.path.rglob("*") if f.is_file())
    (fact,) = session.workspace.ledger.facts(kinds.RETIRED)
    assert fact.body["requests"] == ["req"]
    assert not set(fact.body["objects"]) & session.workspace.store.objects()


def test_after_a_retirement_the_law_holds(session: Session, tmp_path: Path) -> None:
    forget(session, "r1", "r5")
    retire(session.workspace, 0)
    assert not failing(session)
    assert not [check for check in audit_everything(session.workspace, None) if check.outcome == "failed"]
    forget(session, "r2")
    retrain(session, rows(tmp_path / "more.jsonl", 30, 31))
    assert_lawful(session)
    assert_equals_fresh_run(session, TRAINER, tmp_path / "fresh")
    again = reopened(session)
    assert_lawful(again)
    again.workspace.close()


def test_every_deletion_after_a_retirement_can_be_certified(session: Session) -> None:
    """The proofs of what was held before walk past slices whose lists are gone."""
    for number in range(12):
        forget(session, f"r{number}", request_id=f"req{number}")
        assert retire(session.workspace, 0) == [f"req{number}"]
    assert_lawful(session)


def test_an_older_request_stays_provable_when_a_younger_one_is_retired(session: Session) -> None:
    """What was served between the two is known no more, and is no violation for that."""
    one, two = of_one_slice(session)
    forget(session, one, request_id="one")
    forget(session, two, request_id="two")
    retire_requests(session.workspace, ["two"], "test")
    assert not failing(session)
    certificate = certificate_path(session.workspace, "one")
    certificate.unlink()  # it is issued again
    retrain(session)
    assert certificate.exists()
    assert_lawful(session)


def test_requests_that_waited_together_stay_provable_one_without_the_other(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second rests on a slice that still had the first's record; its list waits for it."""

    class Killed(BaseException):
        pass

    def gone(*_: Any, **__: Any) -> Any:
        raise Killed

    one, two = of_one_slice(session)
    with monkeypatch.context() as patch:
        patch.setattr("sisa.delete.finish_requests", gone)
        for record_id, name in ((one, "one"), (two, "two")):
            with pytest.raises(Killed):
                forget(session, record_id, request_id=name)
    retrain(session)
    tags = {name: session.workspace.tag(name) for name in (one, two)}
    retire_requests(session.workspace, ["one"], "test")
    certificate_path(session.workspace, "two").unlink()
    retrain(session)
    assert_lawful(session)
    retire_requests(session.workspace, ["two"], "test")
    assert naming(session, tags[one]) == naming(session, tags[two]) == []
    assert not failing(session)


def test_a_record_may_come_back_after_its_retirement(session: Session, tmp_path: Path) -> None:
    forget(session, "r1", request_id="req")
    file = rows(tmp_path / "again.jsonl", 1)
    assert retrain(session, file).tombstoned == 1
    retire(session.workspace, 0)
    with pytest.raises(UnknownRecordError, match="never held"):
        forget(session, "r1")
    taken = retrain(session, file, strict=True)
    assert (taken.added, taken.tombstoned, taken.readmitted, taken.same_content) == (1, 0, 0, ())
    assert held(session)["r1"] == 1
    assert_lawful(session)
    assert_equals_fresh_run(session, TRAINER, tmp_path / "fresh")
    forget(session, "r1", request_id="again")
    assert_lawful(session)
    retire(session.workspace, 0)
    assert naming(session, session.workspace.tag("r1")) == []
    assert not failing(session)


def test_a_retired_request_is_never_certified_again(session: Session, tmp_path: Path) -> None:
    forget(session, "r1", request_id="req")
    issued = session.workspace.book.issued("req")
    retire(session.workspace, 0)
    retrain(session, rows(tmp_path / "more.jsonl", 30))
    forget(session, "r2")
    assert not unfinished_requests(session.workspace)
    assert session.workspace.book.issued("req") == issued
    assert not certificate_path(session.workspace, "req").exists()
    for ids in (("r2",), ("r3",)):
        with pytest.raises(InputError, match="req"):
            forget(session, *ids, request_id="req")


def test_a_request_under_way_is_not_retired(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(BaseException):
        pass

    def gone(*_: Any, **__: Any) -> Any:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("sisa.delete.finish_requests", gone)
        with pytest.raises(Killed):
            forget(session, "r1", request_id="req")
    assert retire(session.workspace, 0) == []
    retrain(session)
    assert retire(session.workspace, 0) == ["req"]


def test_only_what_is_older_than_the_rule_is_retired(session: Session) -> None:
    forget(session, "r1", request_id="req")
    before = session.workspace.ledger.head()
    assert retire(session.workspace, 1) == []
    assert session.workspace.ledger.head() == before
    with pytest.raises(InputError, match="days"):
        retire(session.workspace, -1)
    assert retire(session.workspace, 0) == ["req"]
    assert retire(session.workspace, 0) == []


def test_a_tombstone_lives_as_long_as_the_backups_that_were_declared(memory_path: Path) -> None:
    session = trained(memory_path / "workspace", backup_days=30)
    forget(session, "r1", request_id="req")
    assert retire(session.workspace, 0) == []
    session.workspace.close()


def test_tombstones_are_listed_with_their_fate_and_what_was_said(session: Session) -> None:
    forget(session, "r1", request_id="one", who={"requester": "Anna"})
    forget(session, "nobody", request_id="two", ignore_missing=True)
    retire_requests(session.workspace, ["one"], "test")
    forget(session, "r5", request_id="three", who={"requester": "Bob"})
    one, two, three = list_tombstones(session.workspace)
    assert (one["request_id"], one["retired"], one["tombstones"]) == ("one", True, [])
    assert one["requester"].startswith("reference ")
    assert (two["kind"], two["tombstones"], two["retired"]) == ("not-present", [], False)
    assert three["tombstones"] == [session.workspace.tag("r5").hex()]
    assert three["requester"] == "Bob"
    assert three["completed"] >= three["accepted"]


def test_a_statement_of_absence_can_be_retired_while_a_record_of_that_id_is_held(
    session: Session, tmp_path: Path
) -> None:
    forget(session, "r30", request_id="absent", ignore_missing=True)
    retrain(session, rows(tmp_path / "more.jsonl", 30, 31, 32, 33))
    assert retire(session.workspace, 0) == ["absent"]
    assert not failing(session)
    forget(session, "r31")
    forget(session, "r30")
    assert_lawful(session)


def test_a_certificate_kept_elsewhere_verifies_after_the_retirement(session: Session, tmp_path: Path) -> None:
    forget(session, "r1", request_id="req")
    copy = tmp_path / "certificate.json"
    copy.write_bytes(certificate_path(session.workspace, "req").read_bytes())
    retire(session.workspace, 0)
    assert not failed(checked(copy, [public_key(session)]))
    checks = {
        check.name: check for check in verify_against(read_certificate(copy.read_bytes()), session.workspace.path)
    }
    assert not failed(checks)
    assert checks["the request's tombstones hold"].outcome == "not_checked"


def test_an_audit_of_a_retired_record_knows_it_no_more(session: Session) -> None:
    forget(session, "r1")
    assert audit_record(session.workspace, "r1")["deleted"]
    retire(session.workspace, 0)
    document = audit_record(session.workspace, "r1")
    assert not document["deleted"]
    assert not document["exposures"]


def test_a_retirement_that_was_cut_off_is_swept_by_the_next_driver(
    session: Session, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Killed(BaseException):
        pass

    def gone(*_: Any, **__: Any) -> Any:
        raise Killed

    tag = session.workspace.tag("r1")
    forget(session, "r1", request_id="req")
    with monkeypatch.context() as patch:
        patch.setattr(type(session.workspace), "sweep", gone)
        with pytest.raises(Killed):
            retire(session.workspace, 0)
    retrain(session, rows(tmp_path / "more.jsonl", 30))
    assert naming(session, tag) == []
    assert_lawful(session)


def test_holds_outlive_the_retirement_of_what_was_deleted_before(session: Session) -> None:
    hold(session.workspace, ["r5"], [])
    forget(session, "r1")
    retire(session.workspace, 0)
    assert len(session.workspace.book.holds()) == 1
    assert_lawful(session)


def test_a_version_that_came_back_is_destroyed_like_the_first(session: Session, tmp_path: Path) -> None:
    forget(session, "r1", request_id="one")
    retrain(session, rows(tmp_path / "again.jsonl", 1), readmit=["r1"])
    forget(session, "r1", request_id="two")
    assert retire(session.workspace, 0) == ["one", "two"]
    assert naming(session, session.workspace.tag("r1", 1)) == naming(session, session.workspace.tag("r1", 2)) == []
    assert_lawful(session)


def test_retirement_destroys_the_refusals_of_what_was_deleted_and_no_other(session: Session) -> None:
    """A refusal need not bear the request's name to be about the same record."""
    tags = {name: session.workspace.tag(name) for name in ("r1", "r5")}
    made = hold(session.workspace, ["r1"], [])
    with pytest.raises(HeldError):
        forget(session, "r1", who={"requester": "Anna CANARY"})
    refuse(session.workspace, ["r5"], [], None, {"reason": "tax law"})
    lift(session.workspace, made["hold_id"])
    forget(session, "r1", request_id="req")
    mine, other = session.workspace.book.refusals()
    retire_requests(session.workspace, ["req"], "test")
    assert naming(session, tags["r1"]) == []
    assert not session.workspace.store.path(mine.body["object"]).exists()
    assert session.workspace.store.intact(other.body["object"])
    assert b"CANARY" not in b"".join(f.read_bytes() for f in session.workspace.path.rglob("*") if f.is_file())
    with pytest.raises(InputError, match="retired"):
        letter(session.workspace, mine.body["refusal_id"])
    assert "tax law" in letter(session.workspace, other.body["refusal_id"])
    assert_lawful(session)


def test_what_was_destroyed_and_came_back_is_evidence_again(session: Session, tmp_path: Path) -> None:
    """The same record in the same slice gives the same list of tags, which a retirement destroyed before."""
    tag = session.workspace.tag("r1")
    forget(session, "r1", request_id="one")
    retire(session.workspace, 0)
    (destroyed,) = session.workspace.ledger.facts(kinds.RETIRED)
    retrain(session, rows(tmp_path / "again.jsonl", 1, generation=0))
    again = {stored.checkpoint.seen for stored in session.workspace.book.checkpoints() if stored.live}
    assert again & set(destroyed.body["objects"]), "the scene: one list of tags, destroyed and made again"
    forget(session, "r1", request_id="two")
    assert not again & session.workspace.book.destroyed_objects()
    document = audit_record(session.workspace, "r1")
    assert document["request_id"] == "two"
    assert document["exposures"]
    assert not any(exposure["live"] for exposure in document["exposures"])
    assert naming(session, tag)
    assert_lawful(session)
    assert retire(session.workspace, 0) == ["two"]
    assert again & session.workspace.book.destroyed_objects()
    assert naming(session, tag) == []
    assert not failing(session)


def test_the_law_sees_what_came_back_after_its_retirement_and_is_served_on(session: Session, tmp_path: Path) -> None:
    """Were its list still taken for a destroyed one, the checkpoint would be passed over."""
    forget(session, "r1", request_id="one")
    retire(session.workspace, 0)
    retrain(session, rows(tmp_path / "again.jsonl", 1, generation=0))
    manifest = session.workspace.book.manifest()
    assert manifest is not None
    forget(session, "r1", request_id="two")
    session.workspace.ledger.append([(kinds.MANIFEST, manifest.to_json())])  # an operator who serves it all the same
    assert "nothing served since acceptance saw a deleted record" in {check.name for check in failing(session)}


# -- what ages by itself -----------------------------------------------------------------------


@contextmanager
def days_ago(days: int) -> Iterator[None]:
    """What the ledger records meanwhile is so old."""
    past = SimpleNamespace(now=lambda zone: datetime.now(zone) - timedelta(days=days))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("shards.ledger.datetime", past)
        yield


def bytes_of(session: Session) -> bytes:
    """Every file of the workspace."""
    return b"".join(file.read_bytes() for file in session.workspace.path.rglob("*") if file.is_file())


def test_a_refusal_by_subject_goes_with_the_deletion_of_that_subject_and_no_other(session: Session) -> None:
    refuse(session.workspace, [], ["s0"], None, {"reason": "first CANARY"})
    refuse(session.workspace, [], ["s4"], None, {"reason": "other"})
    forget(session, subjects=["s0"], request_id="req")
    mine, other = session.workspace.book.refusals()
    retire_requests(session.workspace, ["req"], "test")
    assert not session.workspace.store.path(mine.body["object"]).exists()
    assert b"CANARY" not in bytes_of(session)
    assert session.workspace.store.intact(other.body["object"])
    assert "other" in letter(session.workspace, other.body["refusal_id"])
    assert_lawful(session)


def test_a_refusal_of_what_was_never_deleted_is_retired_when_it_is_old(session: Session) -> None:
    with days_ago(10):
        old = refuse(session.workspace, ["r5"], ["s2"], None, {"requester": "Anna CANARY", "reason": "tax law"})
    young = refuse(session.workspace, ["r6"], [], None, {"reason": "a court"})
    gone, kept = session.workspace.book.refusals()
    assert retire(session.workspace, 11) == []
    assert not session.workspace.ledger.facts(kinds.RETIRED)
    assert retire(session.workspace, 9) == [old["refusal_id"]]
    (fact,) = session.workspace.ledger.facts(kinds.RETIRED)
    assert fact.body == {"requests": [], "objects": [gone.body["object"]], "rule": "older than 9 days"}
    assert not session.workspace.store.path(gone.body["object"]).exists()
    assert b"CANARY" not in bytes_of(session)
    with pytest.raises(InputError, match="retired"):
        letter(session.workspace, old["refusal_id"])
    assert session.workspace.store.intact(kept.body["object"])
    assert "a court" in letter(session.workspace, young["refusal_id"])
    assert retire(session.workspace, 9) == []
    assert_lawful(session)


def test_a_hold_is_retired_when_it_was_lifted_long_ago(session: Session) -> None:
    """The age that counts is that of the lifting; what is in force has none."""
    with days_ago(20):
        first, second, third = (hold(session.workspace, [name], [], {"reason": f"CANARY {name}"}) for name in "abc")
    with days_ago(10):
        lift(session.workspace, first["hold_id"], {"authoriser": "CANARY lifted"})
    lift(session.workspace, second["hold_id"])
    assert retire(session.workspace, 11) == []
    assert retire(session.workspace, 9) == [first["hold_id"]]
    left = bytes_of(session)
    assert b"CANARY a" not in left
    assert b"CANARY lifted" not in left
    assert b"CANARY b" in left
    assert retire(session.workspace, 0) == [second["hold_id"]]
    assert b"CANARY b" not in bytes_of(session)
    assert b"CANARY c" in bytes_of(session)
    assert list(session.workspace.book.holds()) == [third["hold_id"]]
    assert retire(session.workspace, 0) == []
    assert_lawful(session)


def test_a_recipient_is_retired_when_nothing_was_handed_to_them_for_so_long(session: Session, tmp_path: Path) -> None:
    with days_ago(20):
        for recipient in ("CANARY one", "CANARY two"):
            export_records(session, tmp_path / "out.jsonl", recipient)
    export_records(session, tmp_path / "out.jsonl", "CANARY two")
    one, two, _ = [fact.body["recipient"] for fact in session.workspace.book.derived()]
    assert retire(session.workspace, 19) == [one]
    assert b"CANARY one" not in bytes_of(session)
    assert b"CANARY two" in bytes_of(session)
    assert retire(session.workspace, 19) == []
    assert retire(session.workspace, 0) == [two]
    assert b"CANARY" not in bytes_of(session)
    assert_lawful(session)


def test_a_recipient_who_comes_back_after_their_retirement_is_remembered_again(
    session: Session, tmp_path: Path
) -> None:
    export_records(session, tmp_path / "out.jsonl", "CANARY")
    retire(session.workspace, 0)
    export_records(session, tmp_path / "out.jsonl", "CANARY")
    forget(session, "r1")
    assert b"CANARY" in bytes_of(session)
    assert len(retire(session.workspace, 0)) == 2
    assert b"CANARY" not in bytes_of(session)


def test_what_is_still_said_elsewhere_outlives_what_is_old(session: Session) -> None:
    with days_ago(10):
        refuse(session.workspace, ["r5"], [], None, {"requester": "Anna", "reason": "CANARY"})
    forget(session, "r1", who={"requester": "Anna"})
    retire(session.workspace, 9)
    assert b"CANARY" not in bytes_of(session)
    assert b"Anna" in bytes_of(session)


def test_a_certificate_that_was_lost_and_issued_again_makes_no_request_younger(session: Session) -> None:
    with days_ago(10):
        forget(session, "r1", request_id="req")
    certificate_path(session.workspace, "req").unlink()
    retrain(session)
    first, second = session.workspace.book.issued("req")
    assert first.created < second.created
    assert list_tombstones(session.workspace)[0]["completed"] == first.created
    assert retire(session.workspace, 11) == []
    assert retire(session.workspace, 9) == ["req"]


def test_a_kept_certificate_of_a_retired_request_is_not_contradicted_by_a_return(
    session: Session, tmp_path: Path
) -> None:
    done = forget(session, "r1", request_id="one")
    assert done.certificate is not None
    document = read_certificate(done.certificate.read_bytes())
    retire(session.workspace, 0)
    retrain(session, rows(tmp_path / "again.jsonl", 1))
    checks = {check.name: check.outcome for check in verify_against(document, session.workspace.path)}
    assert "failed" not in checks.values()
    assert checks["the deleted records are in no live training set"] == "not_checked"
