"""The letter to the person: the numbers are right, and nothing is promised that was not done."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from shards.errors import HeldError, InputError, UnknownRecordError
from sisa.audit import audit_record
from sisa.certificate import certificate_path
from sisa.document import read_certificate
from sisa.export import export_records
from sisa.hold import hold, refuse
from sisa.letter import letter
from sisa.recover import recover
from sisa.retention import retire
from sisa.session import Session
from tests.sisa.trained import INLINE, TRAINER, forget, held, ingest, restored, rows, trained

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

    def gone(*_: Any, **__: Any) -> Any:
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


def test_after_everything_was_deleted_no_model_is_said_to_be_in_use(session: Session) -> None:
    forget(session, *held(session), request_id="req")
    forget(session, "nobody", request_id="absent", ignore_missing=True)
    text, said = written(session, "req"), predicate_of(session, "req")
    assert (said["retrained"], said["after"]["heads"]) == ([], [])
    assert "No model state had to be trained again.\n  No model is in use now.\n" in text
    assert "that no model is in use.\n" in text
    assert "shows that\nno model is in use.\n" in written(session, "absent")
    for wrong in ("bit for bit", "the model in use", " 0 "):
        assert wrong not in text
        assert wrong not in written(session, "absent")


def test_where_a_whole_shard_was_deleted_nothing_is_said_to_be_trained_again(session: Session) -> None:
    ids = [stored.record.id for stored in session.workspace.survivors(0)]
    assert 0 < len(ids) < 12
    forget(session, *ids, request_id="req")
    text, said = written(session, "req"), predicate_of(session, "req")
    assert said["retrained"] == []
    assert "No model state had to be trained again.\n  The model now in use is bit for bit the model that" in text


def test_a_record_that_was_never_trained_was_in_no_model_state(session: Session, tmp_path: Path) -> None:
    ingest(session, rows(tmp_path / "more.jsonl", 20))
    forget(session, "r20", request_id="req")
    assert predicate_of(session, "req")["purged"] == []
    text = written(session, "req")
    assert "removed it from our data store. No model state that we store had been trained on it.\n" in text
    assert "destroyed" not in text


def test_one_of_a_thing_is_not_told_as_many(session: Session, tmp_path: Path) -> None:
    seen = {name: len(audit_record(session.workspace, name)["exposures"]) for name in held(session)}
    last = next(name for name, count in seen.items() if count == 1)
    export_records(session, tmp_path / "one.jsonl")
    forget(session, last, request_id="req")
    text = written(session, "req")
    assert "the 1 model state that" in text
    assert "We trained 1 model state again" in text
    assert "1 file that may hold the data or results of it was handed out" in text


def test_a_model_of_one_set_is_not_told_as_many(memory_path: Path) -> None:
    session = trained(memory_path / "workspace", 1)
    forget(session, "nobody", request_id="req", ignore_missing=True)
    assert "shows that\nthey are not in the one set of records that" in written(session, "req")
    session.workspace.close()


def test_what_is_told_of_several_records_is_grammatical(session: Session) -> None:
    forget(session, "r1", "r5", request_id="req")
    text = written(session, "req")
    assert "that they are in none of the" in text
    assert "so that they are not taken in again" in text


STEERING = "\x1b[31m\u202e\u2066\x9b\u2028\nDear Eve,\r\x07"


def steers(text: str) -> bool:
    """Does anything in it act on a terminal, or begin a line that its author made up?"""
    made_up = re.search(r"^Dear Eve", text, re.MULTILINE)
    return made_up is not None or re.search(r"[^\n\x20-\x7e]", text) is not None


def test_what_people_said_steers_neither_terminal_nor_letter(session: Session, tmp_path: Path) -> None:
    assert steers(STEERING)
    export_records(session, tmp_path / "one.jsonl", "Lab A" + STEERING)
    forget(session, "r1", request_id="req", who={"requester": "Anna" + STEERING})
    text = written(session, "req")
    assert text.startswith("Dear Anna [31m")
    assert "these recipients: Lab A [31m" in text
    assert not steers(text)
    said = {"requester": "Anna" + STEERING, "reason": "tax law" + STEERING, "basis": "Art. 17" + STEERING}
    refused = refuse(session.workspace, ["r1"], [], "no" + STEERING, said)
    text = written(session, refused["refusal_id"])
    for word in ("Dear Anna [31m", "your request no [31m", "Reason: tax law [31m", "Legal basis: Art. 17 [31m"):
        assert word in text
    assert not steers(text)


def test_a_name_that_was_lost_with_a_backup_is_not_a_row_of_digits(memory_path: Path) -> None:
    session = trained(memory_path / "workspace", anchor=str(memory_path / "anchor"))
    with session.driving():
        shutil.copytree(session.workspace.path, memory_path / "backup")
    forget(session, "r1", request_id="req", who=WHO)
    assert written(session, "req").startswith("Dear Anna Schmidt,")
    session = restored(session, memory_path / "backup")
    recover(session, executor=INLINE, trainer=TRAINER)
    assert written(session, "req").startswith("Dear Sir or Madam,")
    session.workspace.close()


def test_recipients_whose_names_were_destroyed_are_not_passed_over(session: Session, tmp_path: Path) -> None:
    export_records(session, tmp_path / "one.jsonl", "Lab A")
    forget(session, "r1", request_id="req")
    (session.workspace.vault.root / "references.json").unlink()
    assert "these recipients: some whose names we no longer keep." in written(session, "req")


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
    assert "\n4 files that may hold the data or results of it were handed out before." in text
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
    with pytest.raises(UnknownRecordError) as caught:
        letter(session.workspace, "x" * 100_000)
    assert len(str(caught.value)) < 300


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
