"""Who asked, who allowed and why: texts in one file of the vault, keyed references everywhere else."""

from __future__ import annotations

import base64
import json
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from shards.errors import IntegrityError
from sisa.delete import delete
from sisa.export import export_records
from sisa.people import KINDS, refer, references, told
from sisa.retention import retire_requests
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
    from sisa.hold import hold, holds, lift, refuse

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
    from sisa.hold import refuse

    refuse(session.workspace, ["r1"], [], "one", {"reason": "first refused"})
    forget(session, "r1", request_id="one")
    (fact,) = session.workspace.book.refusals()
    retire_requests(session.workspace, ["one"], "test")
    assert "first refused" not in texts(session)
    assert not session.workspace.store.path(fact.body["object"]).exists()
    assert_lawful(session)
