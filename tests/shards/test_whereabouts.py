"""The index names parts; it is never an answer by itself, and its loss costs nothing but time."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from shards.lookup import by_id, by_subject
from shards.vault import Part, Vault
from sisa.session import Session
from tests.sisa.trained import forget, trained


@pytest.fixture
def session(memory_path: Path) -> Iterator[Session]:
    made = trained(memory_path / "workspace")
    yield made
    made.workspace.close()


def index(session: Session) -> Path:
    return session.workspace.whereabouts.path


def ids(session: Session) -> list[str]:
    return [stored.record.id for stored in session.workspace.survivors()]


def found(session: Session) -> dict[str, str] | None:
    parts, tags = session.workspace.book.parts(), {session.workspace.tag(one): one for one in ids(session)}
    places = session.workspace.whereabouts.find(tags, parts)
    return None if places is None else {tags[tag]: part.file for tag, part in places.items()}


def truth(session: Session) -> dict[str, str]:
    workspace = session.workspace
    return {stored.record.id: part.file for part in workspace.book.parts() for stored in workspace.vault.read(part)}


def test_an_ingest_leaves_an_index_of_every_record(session: Session) -> None:
    assert found(session) == truth(session)


def test_no_id_is_in_the_index(session: Session) -> None:
    data = index(session).read_bytes()
    assert not [one for one in ids(session) if one.encode() in data and len(one) > 3]
    rows = sqlite3.connect(index(session)).execute("SELECT mark FROM places").fetchall()
    marks = {int.from_bytes(session.workspace.tag(one)[:8], "big", signed=True) for one in ids(session)}
    assert {mark for (mark,) in rows} == marks


@pytest.mark.parametrize("damage", ["lost", "empty", "garbage", "behind", "locked away", "another schema"])
def test_a_lost_or_damaged_index_is_no_answer_and_is_made_anew(session: Session, damage: str) -> None:
    path, workspace = index(session), session.workspace
    if damage == "lost":
        path.unlink()
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "garbage":
        path.write_bytes(os.urandom(8192))
    elif damage == "locked away":
        path.unlink()
        path.mkdir()
    else:
        with sqlite3.connect(path) as db:
            db.execute("DELETE FROM parts WHERE number = 1" if damage == "behind" else "DROP TABLE places")
    assert found(session) is None
    assert by_id(workspace, ["r1", "never"]).keys() == {"r1"}
    workspace.whereabouts.follow(workspace.book.parts())
    if damage != "locked away":
        workspace.whereabouts.follow(workspace.book.parts())  # what was damaged is removed first
        assert found(session) == truth(session)


def test_an_index_that_lost_a_row_hides_no_record(session: Session) -> None:
    with sqlite3.connect(index(session)) as db:
        db.execute("DELETE FROM places")
    assert found(session) == {}
    assert by_id(session.workspace, ["r1"]).keys() == {"r1"}


def test_an_index_that_names_a_wrong_part_gives_no_wrong_record(session: Session) -> None:
    with sqlite3.connect(index(session)) as db:
        db.execute("UPDATE places SET part = (SELECT min(number) FROM parts WHERE number != part)")
    for one in ids(session):
        assert by_id(session.workspace, [one])[one].record.id == one


def test_a_found_record_is_read_without_the_other_parts(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    truly, looked_at = truth(session)["r1"], []
    original = Vault._verified

    def verified(vault: Vault, part: Part) -> bytes:
        looked_at.append(part.file)
        return original(vault, part)

    monkeypatch.setattr(Vault, "_verified", verified)
    assert by_id(session.workspace, ["r1"])["r1"].record.id == "r1"
    assert looked_at == [truly]


def test_all_records_of_a_subject_are_found_in_one_shard(session: Session) -> None:
    workspace = session.workspace
    for subject in {stored.record.subject for stored in workspace.survivors()}:
        if subject is not None:
            owned = {one.record.id for one in workspace.survivors() if one.record.subject == subject}
            assert by_subject(workspace, subject).keys() == owned
    assert by_subject(workspace, "nobody") == {}


def test_nothing_of_an_erased_record_stays_in_the_index(session: Session) -> None:
    workspace, victim = session.workspace, session.workspace.tag("r1")
    mark = victim[:8]
    assert mark in index(session).read_bytes()
    forget(session, "r1")
    assert mark not in index(session).read_bytes()
    assert workspace.whereabouts.find([victim], workspace.book.parts()) == {}
