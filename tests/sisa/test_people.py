"""Who asked, who allowed and why: texts in one file of the vault, keyed references everywhere else."""

from __future__ import annotations

import base64
import json
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shards.errors import IntegrityError
from shards.ledger import Ledger
from shards.references import References
from sisa.delete import delete
from sisa.export import export_records
from sisa.hold import hold, lift, refuse
from sisa.people import KINDS, check_texts, refer, references, told
from sisa.retention import retire, retire_requests
from sisa.session import Session
from tests.sisa.trained import assert_lawful, forget, reopened, trained

SAID = {kind: f"CANARY {kind}" for kind in KINDS}


@pytest.fixture
def session(memory_path: Path) -> Iterator[Session]:
    made = trained(memory_path / "workspace")
    yield made
    made.workspace.close()


def texts(session: Session) -> str:
    return (session.workspace.path / "vault" / "references.json").read_text()


def test_texts_lie_in_the_vault_alone(session: Session, tmp_path: Path) -> None:
    done = forget(session, "r1", "nobody", ignore_missing=True, who=SAID)
    export_records(session, tmp_path / "out.jsonl", "CANARY recipient")
    forget(session, "r5")
    assert done.certificate is not None
    said = json.loads(done.certificate.read_bytes())["envelope"]["payload"]
    assert b"CANARY" not in base64.b64decode(said)
    for file in session.workspace.path.rglob("*"):
        if file.is_file():
            assert (b"CANARY" in file.read_bytes()) == (file.name == "references.json"), file
    assert all(text in texts(session) for text in (*SAID.values(), "CANARY recipient"))
    assert stat.S_IMODE((session.workspace.path / "vault" / "references.json").stat().st_mode) == 0o600
    assert_lawful(session)


def test_a_request_leads_to_what_was_said(session: Session) -> None:
    forget(session, "r1", request_id="req", who=SAID)
    again = reopened(session)
    found = again.workspace.book.request("req")
    assert found is not None
    assert told(again.workspace, found[1].references) == SAID
    assert set(found[1].references.values()).isdisjoint(SAID.values())
    again.workspace.close()


def test_the_same_text_in_another_part_has_another_reference(session: Session) -> None:
    made = refer(session.workspace, dict.fromkeys(KINDS, "Anna"))
    assert len(set(made.values())) == len(KINDS)
    assert refer(session.workspace, {"requester": "Anna"})["requester"] == made["requester"]


def test_what_was_not_said_has_no_reference(session: Session) -> None:
    assert refer(session.workspace, {"requester": "", "reason": "x"}).keys() == {"reason"}
    assert not (forget(session, "r1", request_id="req") and session.workspace.book.requests()[0][1].references)


def test_a_destroyed_text_is_told_by_its_reference(session: Session) -> None:
    made = refer(session.workspace, {"reason": "x"})
    references(session.workspace).forget(made.values())
    assert told(session.workspace, made) == {"reason": f"reference {made['reason']}"}


def test_altered_texts_are_noticed(session: Session) -> None:
    forget(session, "r1", request_id="req", who=SAID)
    path = session.workspace.path / "vault" / "references.json"
    path.write_text(texts(session).replace("CANARY reason", "CANARY rea5on"))
    with pytest.raises(IntegrityError, match="match their references"):
        told(session.workspace, session.workspace.book.requests()[0][1].references)


def test_a_dry_run_and_an_unknown_id_say_nothing(session: Session) -> None:
    delete(session, ["r1"], dry_run=True, who=SAID)
    with pytest.raises(ValueError, match="never held"):
        forget(session, "nobody", who=SAID)
    assert not (session.workspace.path / "vault" / "references.json").exists()


def test_retirement_forgets_what_nobody_else_said(session: Session) -> None:
    forget(session, "r1", request_id="one", who={"requester": "Anna", "reason": "only one"})
    forget(session, "r5", request_id="two", who={"requester": "Anna", "reason": "only two"})
    retire_requests(session.workspace, ["one"], "test")
    assert "only one" not in texts(session)
    assert "only two" in texts(session)
    assert "Anna" in texts(session)
    retire_requests(session.workspace, ["two"], "test")
    assert "Anna" not in texts(session)
    assert "only" not in texts(session)


@pytest.mark.parametrize("elsewhere", ["hold", "lift", "refuse"])
def test_retirement_keeps_what_a_hold_or_refusal_says(session: Session, elsewhere: str) -> None:
    from sisa.hold import holds

    who = {"requester": "Anna", "reason": "the same"}
    forget(session, "r1", request_id="one", who=who)
    made = hold(session.workspace, ["r5"], [], who if elsewhere == "hold" else {})
    if elsewhere == "lift":
        lift(session.workspace, made["hold_id"], who)
    if elsewhere == "refuse":
        refuse(session.workspace, ["r5"], [], None, who)
    retire_requests(session.workspace, ["one"], "test")
    assert "the same" in texts(session)
    if elsewhere == "hold":
        assert holds(session.workspace)[0]["reason"] == "the same"


def test_retirement_forgets_what_an_earlier_refusal_of_that_request_said(session: Session) -> None:
    refuse(session.workspace, ["r1"], [], "one", {"reason": "first refused"})
    forget(session, "r1", request_id="one")
    (fact,) = session.workspace.book.refusals()
    retire_requests(session.workspace, ["one"], "test")
    assert "first refused" not in texts(session)
    assert not session.workspace.store.path(fact.body["object"]).exists()
    assert_lawful(session)


class Killed(BaseException):
    pass


def gone(*_: Any, **__: Any) -> Any:
    raise Killed


def drive(session: Session) -> None:
    """What every command does that writes."""
    with session.driving():
        pass


def test_a_retirement_that_was_cut_off_leaves_no_text_behind(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    forget(session, "r1", request_id="one", who=SAID)
    forget(session, "r5", request_id="two", who={"requester": "Bob"})
    with monkeypatch.context() as patch:
        patch.setattr(References, "forget", gone)
        with pytest.raises(Killed):
            retire_requests(session.workspace, ["one"], "test")
    assert "CANARY" in texts(session)
    drive(session)
    assert "CANARY" not in texts(session)
    assert "Bob" in texts(session)
    session.workspace.sweep()
    assert_lawful(session)


CUT_OFF: dict[str, Callable[[Session, Path], Any]] = {
    "delete": lambda session, _: forget(session, "r1", who=SAID),
    "hold": lambda session, _: hold(session.workspace, ["r1"], [], SAID),
    "refuse": lambda session, _: refuse(session.workspace, ["r1"], [], None, SAID),
    "export": lambda session, tmp: export_records(session, tmp / "out.jsonl", "CANARY recipient"),
}


@pytest.mark.parametrize("call", CUT_OFF)
def test_a_text_that_was_kept_and_never_referred_to_goes_with_the_next_driver(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "append", gone)
        with pytest.raises(Killed):
            CUT_OFF[call](session, tmp_path)
    assert "CANARY" in texts(session)
    assert check_texts(session.workspace).outcome == "failed"
    drive(session)
    assert "CANARY" not in texts(session)
    assert check_texts(session.workspace).outcome == "passed"


def test_a_retirement_of_holds_refusals_and_recipients_that_was_cut_off_leaves_no_text_behind(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = hold(session.workspace, ["r9"], [], {"reason": "CANARY held"})
    lift(session.workspace, made["hold_id"], {"reason": "CANARY lifted"})
    refuse(session.workspace, ["r5"], [], None, {"reason": "CANARY refused"})
    export_records(session, tmp_path / "out.jsonl", "CANARY recipient")
    with monkeypatch.context() as patch:
        patch.setattr(References, "forget", gone)
        with pytest.raises(Killed):
            retire(session.workspace, 0)
    assert texts(session).count("CANARY") == 4
    assert check_texts(session.workspace).outcome == "failed"
    drive(session)
    assert "CANARY" not in texts(session)
    assert check_texts(session.workspace).outcome == "passed"
    assert retire(session.workspace, 0) == []


def test_what_a_fact_in_force_names_outlives_every_driver(session: Session, tmp_path: Path) -> None:
    """Of requests, refusals, holds, lifted ones too, and of recipients."""
    made = hold(session.workspace, ["r9"], [], {"reason": "held"})
    lift(session.workspace, made["hold_id"], {"reason": "lifted"})
    refuse(session.workspace, ["r5"], [], None, {"reason": "refused"})
    export_records(session, tmp_path / "out.jsonl", "recipient")
    forget(session, "r1", who={"reason": "requested"})
    before = texts(session)
    drive(session)
    assert texts(session) == before
    assert all(said in before for said in ("held", "lifted", "refused", "recipient", "requested"))


def test_no_file_of_texts_is_made_where_nothing_was_said(session: Session) -> None:
    drive(session)
    assert check_texts(session.workspace).outcome == "passed"
    assert not (session.workspace.path / "vault" / "references.json").exists()


def test_damaged_texts_hold_back_no_deletion_and_are_reported(session: Session) -> None:
    forget(session, "r1", request_id="req", who=SAID)
    path = session.workspace.path / "vault" / "references.json"
    path.write_text(texts(session).replace("CANARY reason", "CANARY rea5on"))
    damaged = texts(session)
    forget(session, "r5")
    assert texts(session) == damaged
    assert check_texts(session.workspace).outcome == "failed"


def test_texts_of_a_driver_at_work_are_not_judged(session: Session) -> None:
    with session.driving():
        refer(session.workspace, SAID)
        assert check_texts(session.workspace).outcome == "not_checked"
    assert check_texts(session.workspace).outcome == "failed"
