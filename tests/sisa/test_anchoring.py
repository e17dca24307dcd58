"""The anchor follows the ledger, and asks nothing of who has none. (What it notices: test_recover.py.)"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from shards import kinds
from shards.errors import HeldError, IntegrityError, StorageError
from shards.note import read_head
from shards.workspace import Workspace
from sisa.anchoring import NAME, anchored_head, anchored_requests, check_anchor, move_anchor, open_anchor, rollback
from sisa.hold import hold
from sisa.key import rotate
from sisa.session import Session
from tests.sisa.trained import assert_lawful, forget, retrain, rows, trained


@pytest.fixture
def place(memory_path: Path) -> Path:
    return memory_path / "anchor"


@pytest.fixture
def session(memory_path: Path, place: Path) -> Iterator[Session]:
    made = trained(memory_path / "workspace", anchor=str(place))
    yield made
    made.workspace.close()


def up_to_date(session: Session, place: Path) -> None:
    anchor = open_anchor(session.workspace, str(place))
    assert anchor.head() == session.workspace.ledger.head()
    anchored = {fact.body["request_id"]: (fact, files) for fact, files in anchored_requests(anchor)}
    requests = session.workspace.book.requests()
    stored = {request.request_id: (fact, request.targets.files()) for fact, request in requests}
    assert anchored == stored


def test_without_an_anchor_nothing_is_asked_and_nothing_refused(memory_path: Path) -> None:
    session = trained(memory_path / "workspace")
    forget(session, "r1")
    check = check_anchor(session.workspace, None)
    assert (check.name, check.outcome) == (NAME, "not_checked")
    assert not session.workspace.ledger.facts(kinds.ANCHOR)
    session.workspace.close()


def test_every_change_is_anchored(session: Session, place: Path, tmp_path: Path) -> None:
    up_to_date(session, place)
    forget(session, "r1", request_id="one")
    up_to_date(session, place)
    retrain(session, rows(tmp_path / "more.jsonl", 20))
    up_to_date(session, place)
    with session.driving():
        rotate(session.workspace)
        hold(session.workspace, ["r5"], [])
    up_to_date(session, place)
    assert check_anchor(session.workspace, str(place)).outcome == "passed"


def test_the_use_of_an_anchor_is_logged_once_and_by_digest(session: Session, place: Path) -> None:
    forget(session, "r1")
    (fact,) = session.workspace.ledger.facts(kinds.ANCHOR)
    assert str(place) not in str(fact.body)


class Killed(BaseException):
    pass


def gone(*_: object, **__: object) -> object:
    raise Killed


def test_tombstones_are_anchored_before_retraining(
    session: Session, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("sisa.delete.reconcile", gone)
        with pytest.raises(Killed):
            forget(session, "r1", request_id="one")
    up_to_date(session, place)


def test_forgetting_waits_for_no_anchor(session: Session, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("shards.anchor.Anchor.put_request", gone)
        with pytest.raises(Killed):
            forget(session, "r1", request_id="one")
    workspace = session.workspace
    assert "r1" not in {stored.record.id for stored in workspace.survivors()}
    assert not workspace.vault.tags(workspace.book.parts()).keys() & workspace.book.tombstones()
    forget(session, "r5")
    up_to_date(session, place)


def test_an_anchored_request_that_is_gone_is_told_and_put_back(session: Session, place: Path) -> None:
    forget(session, "r1")
    (file,) = place.glob("*/requests/*.json")
    file.unlink()
    check = check_anchor(session.workspace, str(place))
    assert (check.outcome, "gone" in check.detail) == ("failed", True)
    forget(session, "r5")
    assert file.exists()
    up_to_date(session, place)


def test_a_ledger_ahead_of_its_anchor_is_no_rollback(session: Session, place: Path) -> None:
    """A driver that was killed, or refused something, has not anchored its last facts."""
    hold(session.workspace, ["r1"], [])
    with pytest.raises(HeldError):
        forget(session, "r1")
    anchored = anchored_head(open_anchor(session.workspace, str(place)))
    assert anchored is not None
    assert anchored[1].size < read_head(session.workspace.ledger.head()).size
    assert rollback(session.workspace, str(place)) == ""
    forget(session, "r5")
    up_to_date(session, place)
    assert_lawful(session)


def test_requests_made_before_there_was_an_anchor_are_anchored_too(memory_path: Path, place: Path) -> None:
    session = trained(memory_path / "workspace")
    forget(session, "r1", request_id="one")
    sighted = replace(session, options=session.options.model_copy(update={"anchor": str(place)}))
    with sighted.driving():
        pass
    up_to_date(sighted, place)
    sighted.workspace.close()


def test_an_anchor_that_cannot_be_written_stops_a_deletion_before_it_is_called_done(
    session: Session, place: Path
) -> None:
    (directory,) = place.iterdir()
    for file in sorted(directory.rglob("*"), reverse=True):
        file.unlink() if file.is_file() else file.rmdir()
    directory.rmdir()
    directory.write_text("in the way")
    with pytest.raises(StorageError):
        forget(session, "r1")
    assert not session.workspace.book.requests()
    assert check_anchor(session.workspace, str(place)).outcome == "not_checked"


def test_two_workspaces_share_one_place(session: Session, place: Path, memory_path: Path) -> None:
    other = trained(memory_path / "other", anchor=str(place))
    forget(other, "r1", request_id="theirs")
    forget(session, "r2", request_id="ours")
    up_to_date(other, place)
    up_to_date(session, place)
    other.workspace.close()


@pytest.mark.parametrize("spelling", ["{}/", "file://{}", "{}/../anchor", "{}-elsewhere", None])
def test_an_anchor_that_is_gone_is_missed_however_it_is_spelt(
    session: Session, place: Path, spelling: str | None
) -> None:
    place.rename(place.with_name("unmounted"))
    location = None if spelling is None else spelling.format(place)
    other = replace(session, options=session.options.model_copy(update={"anchor": location}))
    before = session.workspace.ledger.head()
    with pytest.raises(IntegrityError, match=r"the anchor is empty|no anchor is configured"):
        forget(other, "r1")
    assert session.workspace.ledger.head() == before
    assert check_anchor(session.workspace, location).outcome == "failed"


def test_an_anchor_is_moved_only_by_saying_so(session: Session, place: Path, tmp_path: Path) -> None:
    forget(session, "r1", request_id="one")
    place.rename(place.with_name("gone"))
    moved = replace(session, options=session.options.model_copy(update={"anchor": str(tmp_path / "new")}))
    move_anchor(moved.workspace, moved.options.anchor)
    up_to_date(moved, tmp_path / "new")
    forget(moved, "r2")
    up_to_date(moved, tmp_path / "new")
    with pytest.raises(IntegrityError, match="the anchor is empty"):
        forget(session, "r3")


def test_an_anchor_is_not_moved_to_where_more_is_known(session: Session, place: Path, memory_path: Path) -> None:
    forget(session, "r1")
    backup = shutil.copytree(session.workspace.path, memory_path / "backup")
    forget(session, "r2")
    session.workspace.close()
    older = replace(session, workspace=Workspace.open(backup))
    with pytest.raises(IntegrityError, match="older state"):
        move_anchor(older.workspace, str(place))
    older.workspace.close()


@pytest.mark.parametrize("change", [lambda data: data + b" ", lambda data: data[:-1]])
def test_a_damaged_anchored_request_is_noticed_before_it_is_needed(
    session: Session, place: Path, change: Callable[[bytes], bytes]
) -> None:
    forget(session, "r1")
    (file,) = place.glob("*/requests/*.json")
    file.write_bytes(change(file.read_bytes()))
    assert check_anchor(session.workspace, str(place)).outcome == "failed"
    with pytest.raises(IntegrityError, match="other bytes"):
        session.anchor()
    file.unlink()
    session.anchor()
    up_to_date(session, place)
    assert check_anchor(session.workspace, str(place)).outcome == "passed"
