"""The letter to the person: the numbers are right, and nothing is promised that was not done."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from shards.errors import HeldError, InputError, UnknownRecordError
from sisa.certificate import certificate_path
from sisa.document import read_certificate
from sisa.export import export_records
from sisa.hold import hold, refuse
from sisa.letter import letter
from sisa.retention import retire
from sisa.session import Session
from tests.sisa.trained import forget, trained

WHO = {"requester": "Anna Schmidt", "authoriser": "The DPO", "reason": "I left", "basis": "GDPR Art. 17(1)(b)"}


@pytest.fixture
def session(memory_path: Path) -> Iterator[Session]:
    made = trained(memory_path / "workspace")
    yield made
    made.workspace.close()


def written(session: Session, name: str) -> str:
    """A letter, with the marks of a template that was not filled in looked for."""
    text = letter(session.workspace, name)
    assert not re.search(r"[{}]|None|\[\]|reference [0-9a-f]{16}", text), text
    assert text.startswith("Dear ")
    assert text.endswith("\n")
    assert max(map(len, text.splitlines())) <= 160
    return text


def predicate_of(session: Session, name: str) -> Any:
    return read_certificate(certificate_path(session.workspace, name).read_bytes()).predicate


def under_way(session: Session, monkeypatch: pytest.MonkeyPatch, *ids: str, **arguments: Any) -> None:
    class Killed(BaseException):
        pass

    def gone(*_: Any) -> Any:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("sisa.delete.finish_requests", gone)
        with pytest.raises(Killed):
            forget(session, *ids, **arguments)


@pytest.mark.parametrize("ids", [("r1",), ("r1", "r5", "r9")])
def test_what_was_done_is_told_in_the_certificates_numbers(session: Session, ids: tuple[str, ...]) -> None:
    forget(session, *ids, request_id="req", who=WHO)
    text, said = written(session, "req"), predicate_of(session, "req")
    assert text.startswith("Dear Anna Schmidt,")
    assert f"delete {len(ids)} record{'s' if len(ids) > 1 else ''}." in text
    assert f"the {len(said['purged'])} model states" in text
    assert f"trained {len(said['retrained'])} model states" in text
    slices = sum(len(lineage["links"]) for lineage in said["lineages"])
    assert f"none of the {slices} sets" in text
    assert said["issued"][:10] in text
    assert session.workspace.book.requests()[0][0].created[:10] in text
    for claim in said["not_claimed"]:
        assert claim in text
    assert "no record of having given the data" in text
    assert "we hold no record" not in text


def test_ids_that_were_never_held_are_told_beside_what_was_deleted(session: Session) -> None:
    forget(session, "r1", "nobody", "nothing", request_id="req", ignore_missing=True)
    text = written(session, "req")
    assert "delete 1 record." in text
    assert "2 of the IDs you named we hold no record" in text


def test_a_person_who_gave_no_name_is_addressed_all_the_same(session: Session) -> None:
    forget(session, "r1", request_id="req")
    assert written(session, "req").startswith("Dear Sir or Madam,")


def test_backups_are_told_by_date_if_it_was_declared(memory_path: Path) -> None:
    session = trained(memory_path / "workspace", backup_days=30)
    forget(session, "r1", request_id="req")
    until = (datetime.now(UTC) + timedelta(days=30)).date().isoformat()
    assert f"until {until}" in written(session, "req")
    session.workspace.close()


def test_backups_are_told_if_nothing_was_declared(session: Session) -> None:
    forget(session, "r1", request_id="req")
    assert "we have not declared when they expire" in written(session, "req")


def test_recipients_of_exports_are_named(session: Session, tmp_path: Path) -> None:
    export_records(session, tmp_path / "one.jsonl", "Lab A")
    export_records(session, tmp_path / "two.jsonl", "Lab A")
    export_records(session, tmp_path / "three.jsonl", "University B")
    export_records(session, tmp_path / "four.jsonl")
    forget(session, "r1", request_id="req")
    export_records(session, tmp_path / "five.jsonl", "Afterwards Inc.")
    text = written(session, "req")
    assert "4 file(s)" in text
    assert "these recipients: Lab A, University B." in text
    assert "Afterwards" not in text


def test_a_statement_of_absence_says_that_nothing_was_deleted(session: Session) -> None:
    forget(session, "nobody", request_id="req", ignore_missing=True, who=WHO)
    text = written(session, "req")
    assert "hold no record under the IDs you named" in text
    assert "Nothing was deleted" in text
    assert "We removed" not in text


def test_a_deletion_under_way_promises_no_more_than_was_done(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    under_way(session, monkeypatch, "r1", "r5", request_id="req", who=WHO)
    text = written(session, "req")
    assert "to delete 2 records" in text
    assert "trained on them" in text
    assert "under\nway" in text
    assert "certificate" not in text


def test_a_statement_of_absence_under_way_says_that_no_record_is_held(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    under_way(session, monkeypatch, "nobody", request_id="req", ignore_missing=True)
    text = written(session, "req")
    assert "hold no record" in text
    assert "under way" in text
    assert "0 records" not in text


def test_a_refusal_gives_reason_and_basis_under_either_name(session: Session) -> None:
    done = refuse(session.workspace, ["r1"], [], "req", WHO | {"reason": "tax law", "basis": "GDPR Art. 17(3)(b)"})
    text = written(session, "req")
    assert text == written(session, done["refusal_id"])
    assert "did not carry out your request req" in text
    assert "Reason: tax law\nLegal basis: GDPR Art. 17(3)(b)\n" in text
    assert done["refusal_id"] in text
    assert "legal hold" not in text


def test_a_refusal_by_a_hold_does_not_give_the_persons_own_reason(session: Session) -> None:
    hold(session.workspace, ["r1"], [], {"reason": "SECRET lawsuit"})
    with pytest.raises(HeldError):
        forget(session, "r1", request_id="req", who=WHO)
    text = written(session, "req")
    assert text.startswith("Dear Anna Schmidt,")
    assert "Reason: a legal hold\n" in text
    assert "kept for now" in text
    for word in ("I left", "Art. 17(1)", "SECRET"):
        assert word not in text


def test_braces_in_what_was_said_are_no_template(session: Session) -> None:
    refuse(session.workspace, ["r1"], [], "req", {"reason": "{requester} {0} %s", "requester": "{x}"})
    assert "Reason: {requester} {0} %s\n" in letter(session.workspace, "req")


def test_there_is_no_letter_about_what_nobody_knows(session: Session) -> None:
    with pytest.raises(UnknownRecordError, match="'nothing'"):
        letter(session.workspace, "nothing")


def test_there_is_no_letter_on_a_damaged_certificate(session: Session) -> None:
    forget(session, "r1", request_id="req")
    path = certificate_path(session.workspace, "req")
    path.write_bytes(path.read_bytes().replace(b"deletion", b"Deletion", 1))
    with pytest.raises(InputError, match="damaged") as caught:
        letter(session.workspace, "req")
    assert "sisa train" in caught.value.remedy


def test_there_is_no_letter_on_a_retired_request(session: Session) -> None:
    forget(session, "r1", request_id="req")
    retire(session.workspace, 0)
    with pytest.raises(InputError, match="retired"):
        letter(session.workspace, "req")
