"""What reviewers found in the proof side, each mended and pinned here by the promise that it broke."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from shards.digest import parse_json
from shards.errors import InputError
from shards.law import check_law
from sisa.acceptance import accept
from sisa.document import read_certificate
from sisa.export import export_records, register_derived
from sisa.letter import letter
from sisa.log import extension, newest_head, sealed_size
from sisa.recover import recover
from sisa.session import Session
from sisa.verify import FRESH
from tests.sisa.trained import (
    INLINE,
    TRAINER,
    assert_lawful,
    checked,
    failed,
    forget,
    public_key,
    restored,
    retrain,
    rows,
    trained,
    write_json,
)

THERE = "the deleted records had been committed to before"


@pytest.fixture
def session(memory_path: Path) -> Iterator[Session]:
    made = trained(memory_path / "workspace", anchor=str(memory_path / "anchor"))
    yield made
    made.workspace.close()


def test_the_ledger_has_no_index_that_could_hide_a_fact(session: Session) -> None:
    with closing(sqlite3.connect(session.workspace.ledger.path)) as database:
        assert database.execute("SELECT name FROM sqlite_master WHERE type = 'index'").fetchall() == []


def test_the_law_is_asked_of_what_is_served_now_even_if_it_was_published_before_the_request(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = next(one for one in session.workspace.survivors() if one.record.id == "r1")
    stale = session.workspace.book.manifests()[-1:]
    accept(session, [record], (), (), "req")
    monkeypatch.setattr(type(session.workspace.book), "manifests", lambda _: stale)
    law = {check.name: check.outcome for check in check_law(session.workspace)}
    assert law["nothing served since acceptance saw a deleted record"] == "failed"


def test_a_release_is_current_only_if_every_fact_since_it_is_shown(session: Session, tmp_path: Path) -> None:
    export_records(session, tmp_path / "out.jsonl")
    done = forget(session, "never-held", ignore_missing=True)
    assert done.certificate is not None
    (tmp_path / "head").write_text(newest_head(session.workspace))
    whole = extension(session.workspace, sealed_size(done.certificate))
    arguments = {"head": tmp_path / "head", "extension": write_json(tmp_path / "whole.json", whole)}
    assert checked(done.certificate, [public_key(session)], **arguments)[FRESH].outcome == "passed"
    size = sealed_size(done.certificate)
    part = whole | {"facts": [fact for fact in whole["facts"] if fact["seq"] > size]}
    arguments["extension"] = write_json(tmp_path / "part.json", part)
    assert checked(done.certificate, [public_key(session)], **arguments)[FRESH].outcome == "not_checked"
    assert checked(done.certificate, [public_key(session)], head=tmp_path / "head")[FRESH].outcome == "not_checked"


def test_what_was_handed_out_is_told_of_the_second_record_of_a_shard_too(session: Session) -> None:
    heads = [head for head, _ in session.workspace.book.served()]
    register_derived(session, "predictions", b"answers", heads, "A Newspaper")
    for number in ("r1", "r2"):  # both in the lineage of what was handed out; the first purges it
        done = forget(session, number, request_id=f"req-{number}")
        assert done.certificate is not None
        document = read_certificate(done.certificate.read_bytes())
        assert [item["kind"] for item in document.predicate["handed_out"]] == ["predictions"]
        assert "A Newspaper" in letter(session.workspace, f"req-{number}")


def test_a_deletion_of_what_a_restored_backup_never_held_is_said_as_it_is(session: Session, tmp_path: Path) -> None:
    backup = Path(shutil.copytree(session.workspace.path, tmp_path / "backup"))
    retrain(session, rows(tmp_path / "more.jsonl", 30))
    forget(session, "r30", request_id="late")
    forget(session, "r1", request_id="early")
    again = restored(session, backup)
    done = recover(again, executor=INLINE, trainer=TRAINER)
    assert set(done.reapplied) == {"late", "early"}
    for name, outcome in (("late", "not_checked"), ("early", "passed")):
        checks = checked(again.workspace.path / "certificates" / f"{name}.json", [public_key(again)])
        assert not failed(checks), (name, failed(checks))
        assert checks[THERE].outcome == outcome
    assert_lawful(again)
    again.workspace.close()


def test_the_same_request_id_for_other_records_is_refused_however_they_overlap(session: Session) -> None:
    forget(session, "r1", request_id="a")
    forget(session, "r2", request_id="b")
    forget(session, "r5", "r6", request_id="c")
    for request_id, ids in (("a", ("r1", "r2")), ("c", ("r5",)), ("b", ("r1",))):
        with pytest.raises(InputError, match="covers other records"):
            forget(session, *ids, request_id=request_id)
    assert forget(session, "r6", "r5", request_id="c").request_id == "c"


def test_only_what_saw_a_record_is_said_to_be_purged_for_it(session: Session, tmp_path: Path) -> None:
    record = next(one for one in session.workspace.survivors() if one.record.id == "r1")
    accept(session, [record], (), (), "req")
    accept(session, [], (), (session.workspace.tag("never").hex(),), "absent")
    retrain(session, rows(tmp_path / "early.jsonl", 40, 41, 42, 43, generation=0))  # before stored steps
    book = session.workspace.book
    visible = session.workspace.visible_sets()
    said = {name: set(parse_json(_payload(session, name))["predicate"]["purged"]) for name in ("req", "absent")}
    assert said["absent"] == set()
    assert said["req"] == {
        made.checkpoint.key for made in book.checkpoints() if record.tag in visible[made.checkpoint.key]
    }


def _payload(session: Session, request_id: str) -> bytes:
    data = (session.workspace.path / "certificates" / f"{request_id}.json").read_bytes()
    return bytes(read_certificate(data).envelope.payload)


def test_a_lost_private_key_does_not_stop_an_auditor(session: Session) -> None:
    from sisa.verify import Evidence, verify
    from sisa.verify_workspace import verify_against

    done = forget(session, "r1")
    assert done.certificate is not None
    (session.workspace.path / "keys" / "signing.key").unlink()
    document, _ = verify(done.certificate, Evidence())
    assert document is not None
    checks = verify_against(document, session.workspace.path, anchor=session.options.anchor)
    assert not [check for check in checks if check.outcome == "failed"]


def test_a_missing_tag_key_is_the_readers_mistake(session: Session, tmp_path: Path) -> None:
    from shards.errors import InputError

    done = forget(session, "r1")
    assert done.certificate is not None
    with pytest.raises(InputError, match="check the path"):
        checked(done.certificate, tag_key=tmp_path / "none", record_id="r1")


def test_json_is_utf_8_and_nothing_else() -> None:
    for encoding in ("utf-16", "utf-32", "utf-8-sig"):
        with pytest.raises(ValueError, match=r".+"):
            parse_json(json.dumps({"a": 1}).encode(encoding))
