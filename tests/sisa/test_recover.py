"""An older backup of the workspace is restored: noticed by the anchor, and every later deletion applied again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from shards import kinds
from shards.digest import parse_json
from shards.errors import ConfigError, InputError, IntegrityError, SisaError
from shards.ledger import Ledger
from shards.publication import announced
from shards.workspace import CONFIG_FILE, Workspace
from sisa.anchoring import NAME, anchored_requests, anchored_retirements, check_anchor, move_anchor, open_anchor
from sisa.audit import audit_everything
from sisa.certificate import certificate_path
from sisa.export import export_records
from sisa.hold import hold
from sisa.predict import Predictor
from sisa.receipt import receipt
from sisa.recover import Recovered, recover
from sisa.retention import retire
from sisa.session import Session
from sisa.verify_workspace import verify_against
from tests.exactness.oracle import assert_equals_fresh_run
from tests.s3 import s3_server
from tests.sisa.trained import (
    INLINE,
    TRAINER,
    assert_lawful,
    checked,
    failed,
    forget,
    held,
    ingest,
    public_key,
    reopened,
    restored,
    retrain,
    rows,
    trained,
)
from tests.toy import toy_recipe, toy_session


class Killed(BaseException):
    """The process ends here."""


NOTHING = Recovered(lost=0, reapplied=(), retired=(), irrecoverable=())


def recovered(session: Session) -> Recovered:
    return recover(session, executor=INLINE, trainer=TRAINER)


def backup_of(session: Session, to: Path) -> Path:
    return Path(shutil.copytree(session.workspace.path, to))


def with_anchor(session: Session, anchor: str | Path | None) -> Session:
    location = None if anchor is None else str(anchor)
    return replace(session, options=session.options.model_copy(update={"anchor": location}))


def blinded(session: Session) -> Session:
    """Somebody switched the anchor off, and said so."""
    move_anchor(session.workspace, None)
    return with_anchor(session, None)


@pytest.fixture
def anchor(memory_path: Path) -> Path:
    return memory_path / "elsewhere" / "anchor"


@pytest.fixture
def session(memory_path: Path, anchor: Path) -> Iterator[Session]:
    """A trained and anchored workspace with one certified deletion."""
    made = trained(memory_path / "workspace", 18, anchor=str(anchor))
    forget(made, "r0", request_id="old")
    yield made
    made.workspace.close()


@pytest.fixture
def old_state(session: Session, memory_path: Path) -> Session:
    """A backup, then a retirement and two deletions, then the backup again."""
    backup = backup_of(session, memory_path / "backup")
    with session.driving():
        assert retire(session.workspace, 0) == ["old"]
    forget(session, "r1", request_id="one", who={"requester": "Anna"})
    forget(session, "r5", "r6", request_id="two")
    again = restored(session, backup)
    assert {"r1", "r5", "r6"} <= held(again).keys()
    return again


CHANGES: dict[str, Callable[[Session, Path], Any]] = {
    "predict": lambda session, _: Predictor(session).answer([{"text": "hello"}]),
    "train": lambda session, tmp: retrain(session, rows(tmp / "more.jsonl", 30)),
    "ingest": lambda session, tmp: ingest(session, rows(tmp / "more.jsonl", 30)),
    "delete": lambda session, _: forget(session, "r2"),
    "export": lambda session, tmp: export_records(session, tmp / "out.jsonl"),
    "receipt": lambda session, _: receipt(session, "r2"),
}


@pytest.mark.parametrize("command", CHANGES)
def test_an_older_state_serves_and_changes_nothing_and_says_what_to_do(
    old_state: Session, tmp_path: Path, command: str
) -> None:
    before = old_state.workspace.ledger.head()
    with pytest.raises(IntegrityError, match="older state was restored") as caught:
        CHANGES[command](old_state, tmp_path)
    assert "sisa recover" in caught.value.remedy
    assert old_state.workspace.ledger.head() == before
    assert not (tmp_path / "out.jsonl").exists()


def test_an_audit_of_an_older_state_fails(old_state: Session, anchor: Path) -> None:
    outcomes = {check.name: check for check in audit_everything(old_state.workspace, str(anchor))}
    assert [name for name, check in outcomes.items() if check.outcome == "failed"] == [NAME]
    assert "older state was restored" in outcomes[NAME].detail


def test_an_anchor_dropped_from_the_configuration_is_missed(old_state: Session) -> None:
    blind = with_anchor(old_state, None)
    (check,) = [check for check in audit_everything(blind.workspace, None) if check.name == NAME]
    assert (check.outcome, "no anchor is configured" in check.detail) == ("failed", True)
    before = old_state.workspace.ledger.head()
    with pytest.raises(IntegrityError, match="no anchor is configured"):
        forget(blind, "r2")
    assert old_state.workspace.ledger.head() == before


def test_without_an_anchor_rollback_is_reported_as_not_checked(old_state: Session) -> None:
    blind = blinded(old_state)
    (check,) = [check for check in audit_everything(blind.workspace, None) if check.name == NAME]
    assert check.outcome == "not_checked"
    done = forget(blind, "r2")
    assert done.certificate is not None
    with pytest.raises(InputError, match=r"none in sisa\.yaml"):
        recovered(blind)


def test_verification_against_an_older_state_fails(old_state: Session, anchor: Path) -> None:
    from sisa.document import read_certificate

    document = read_certificate(certificate_path(old_state.workspace, "old").read_bytes())
    checks = {check.name: check for check in verify_against(document, old_state.workspace.path, anchor=str(anchor))}
    assert checks[NAME].outcome == "failed"
    checks = {check.name: check for check in verify_against(document, old_state.workspace.path)}
    assert checks[NAME].outcome == "failed"


def test_recovery_applies_every_later_deletion_again(old_state: Session, anchor: Path, tmp_path: Path) -> None:
    done = recovered(old_state)
    assert done.reapplied == ("one", "two")
    assert done.lost > 0
    workspace = old_state.workspace
    assert not {"r0", "r1", "r5", "r6"} & held(old_state).keys()
    assert_lawful(old_state)
    assert_equals_fresh_run(old_state, TRAINER, tmp_path / "fresh")
    for name in ("one", "two"):
        checks = checked(certificate_path(workspace, name), [public_key(old_state)])
        assert not failed(checks)
    assert check_anchor(workspace, str(anchor)).outcome == "passed"
    (restore,) = workspace.ledger.facts(kinds.RESTORE)
    assert restore.body["requests"] == ["one", "two"]
    assert not [check for check in audit_everything(workspace, str(anchor)) if check.outcome == "failed"]


def test_who_asked_is_still_referred_to_after_a_recovery(old_state: Session) -> None:
    recovered(old_state)
    found = old_state.workspace.book.request("one")
    assert found is not None
    assert set(found[1].references) == {"requester"}


def test_what_a_recovery_deleted_again_stays_out(old_state: Session, tmp_path: Path) -> None:
    recovered(old_state)
    taken = retrain(old_state, rows(tmp_path / "again.jsonl", 1, 5, 6))
    assert (taken.added, taken.tombstoned) == (0, 3)
    with pytest.raises(InputError, match="--strict"):
        ingest(old_state, tmp_path / "again.jsonl", strict=True)


def test_what_was_retired_stays_retired(old_state: Session, tmp_path: Path) -> None:
    assert recovered(old_state).retired == ("old",)
    found = old_state.workspace.book.request("old")
    assert found is not None
    assert found[1].retired
    assert not certificate_path(old_state.workspace, "old").exists()
    assert retrain(old_state, rows(tmp_path / "again.jsonl", 0)).added == 1


def test_the_workspace_goes_on_after_a_recovery(old_state: Session, tmp_path: Path) -> None:
    recovered(old_state)
    forget(old_state, "r2")
    retrain(old_state, rows(tmp_path / "more.jsonl", 30, 31))
    assert_lawful(old_state)
    assert_equals_fresh_run(old_state, TRAINER, tmp_path / "fresh")
    again = reopened(old_state)
    assert recovered(again) == NOTHING


def test_recovering_what_was_not_restored_changes_nothing(session: Session) -> None:
    before = session.workspace.ledger.head()
    assert recovered(session) == NOTHING
    assert session.workspace.ledger.head() == before


def test_the_same_backup_restored_twice_is_recovered_twice(session: Session, memory_path: Path, tmp_path: Path) -> None:
    backup = backup_of(session, memory_path / "backup")
    forget(session, "r1", request_id="one")
    first = restored(session, backup)
    assert recovered(first).reapplied == ("one",)
    forget(first, "r2", request_id="two")
    second = restored(first, backup)
    assert recovered(second).reapplied == ("one", "two")
    assert [request.request_id for _, request in second.workspace.book.requests()] == ["old", "one", "two"]
    assert_lawful(second)
    assert_equals_fresh_run(second, TRAINER, tmp_path / "fresh")


def test_a_request_id_given_twice_loses_no_deletion(
    session: Session, memory_path: Path, anchor: Path, tmp_path: Path
) -> None:
    """Somebody switched the anchor off, and used a lost request's name for other records."""
    backup = backup_of(session, memory_path / "backup")
    forget(session, "r1", request_id="one")
    blind = blinded(restored(session, backup))
    forget(blind, "r2", request_id="one")
    sighted = with_anchor(blind, anchor)
    (name,) = recovered(sighted).reapplied
    assert name.startswith("one-")
    assert not {"r1", "r2"} & held(sighted).keys()
    assert_lawful(sighted)
    assert_equals_fresh_run(sighted, TRAINER, tmp_path / "fresh")


@pytest.mark.parametrize("after", range(8))
def test_a_recovery_that_was_cut_off_can_be_run_again(
    old_state: Session, anchor: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    append, left = Ledger.append, after

    def cut(self: Ledger, *arguments: Any, **named: Any) -> Any:
        nonlocal left
        made = append(self, *arguments, **named)
        left -= 1
        if left < 0:
            raise Killed
        return made

    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "append", cut)
        with pytest.raises(Killed):
            recovered(old_state)
    again = reopened(old_state)
    recovered(again)
    assert not {"r0", "r1", "r5", "r6"} & held(again).keys()
    assert {request.request_id for _, request in again.workspace.book.requests()} == {"old", "one", "two"}
    assert_lawful(again)
    assert_equals_fresh_run(again, TRAINER, tmp_path / "fresh")
    assert check_anchor(again.workspace, str(anchor)).outcome == "passed"
    again.workspace.close()


def test_a_recovery_that_only_forgot_is_finished_by_the_next(
    old_state: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_: Any, **__: Any) -> Any:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("sisa.recover.finish_requests", gone)
        with pytest.raises(Killed):
            recovered(old_state)
    assert not {"r1", "r5", "r6"} & held(old_state).keys()
    recovered(old_state)
    assert_lawful(old_state)


# -- the anchor itself --------------------------------------------------------------------------


def test_another_logs_anchor_is_refused(old_state: Session, memory_path: Path, tmp_path: Path) -> None:
    other = trained(memory_path / "other", anchor=str(tmp_path / "theirs"))
    log = other.workspace.book.genesis().body["log"].replace("/", "-")
    mine = old_state.workspace.book.genesis().body["log"].replace("/", "-")
    other.workspace.close()
    with pytest.raises(InputError, match="nothing of this log"):
        recovered(with_anchor(old_state, tmp_path / "theirs"))
    (tmp_path / "theirs" / log).rename(tmp_path / "theirs" / mine)
    wrong = with_anchor(old_state, tmp_path / "theirs")
    with pytest.raises(InputError, match="another log"):
        recovered(wrong)
    with pytest.raises(IntegrityError, match="another log"):
        forget(wrong, "r2")


def test_an_anchor_that_is_empty_and_was_not_is_refused(session: Session, anchor: Path) -> None:
    """A disk that is not mounted looks like a new place."""
    shutil.rmtree(anchor)
    with pytest.raises(IntegrityError, match="was not when it was last used"):
        forget(session, "r1")
    with pytest.raises(InputError, match="mount"):
        recovered(session)
    assert check_anchor(session.workspace, str(anchor)).outcome == "failed"
    assert not anchor.exists()


def test_an_anchor_inside_the_workspace_is_refused(session: Session) -> None:
    inside = with_anchor(session, session.workspace.path / "anchor")
    with pytest.raises(ConfigError, match="outside the workspace"):
        forget(inside, "r1")
    with pytest.raises(ConfigError, match="outside the workspace"):
        recovered(inside)
    assert check_anchor(session.workspace, inside.options.anchor).outcome == "failed"
    assert not session.workspace.book.request("r1")


@pytest.mark.parametrize("spoil", [b"\xff", b"", b"sisa/log\n1\n"])
def test_a_damaged_head_in_the_anchor_is_refused(session: Session, anchor: Path, spoil: bytes) -> None:
    (head,) = anchor.glob("*/head")
    head.write_bytes(spoil)
    for attempt in (lambda: forget(session, "r1"), lambda: recovered(session)):
        with pytest.raises(IntegrityError, match=r"anchor|tree head"):
            attempt()
    assert check_anchor(session.workspace, str(anchor)).outcome == "failed"


@pytest.mark.parametrize(
    "change", [lambda data: data[:-1], lambda data: data.replace(b'\\"tags\\":[\\"', b'\\"tags\\":[\\"00')]
)
def test_a_damaged_request_in_the_anchor_is_not_applied(
    old_state: Session, anchor: Path, change: Callable[[bytes], bytes]
) -> None:
    file = max(anchor.glob("*/requests/*.json"))
    data = file.read_bytes()
    file.write_bytes(change(data))
    assert file.read_bytes() != data
    before = old_state.workspace.ledger.head()
    with pytest.raises(IntegrityError, match="anchor"):
        recovered(old_state)
    assert old_state.workspace.ledger.head() == before


def test_a_log_that_was_rewritten_is_noticed(session: Session, memory_path: Path, anchor: Path) -> None:
    """The backup went on without its anchor until it was as long as what was lost."""
    backup = backup_of(session, memory_path / "backup")
    forget(session, "r1", request_id="one")
    blind = blinded(restored(session, backup))
    forget(blind, "r2", request_id="else")
    forget(blind, "r3", request_id="more")
    sighted = with_anchor(blind, anchor)
    check = check_anchor(sighted.workspace, str(anchor))
    assert (check.outcome, "history was rewritten" in check.detail) == ("failed", True)
    with pytest.raises(IntegrityError, match="rewritten"):
        forget(sighted, "r4")
    assert recovered(sighted).reapplied == ("one",)
    assert not {"r1", "r2", "r3"} & held(sighted).keys()
    assert_lawful(sighted)


def test_the_anchor_holds_no_id_no_content_and_no_text(session: Session, anchor: Path) -> None:
    forget(session, "r1", who={"requester": "Anna CANARY", "reason": "because CANARY"})
    data = b"".join(file.read_bytes() for file in anchor.rglob("*") if file.is_file())
    assert data
    assert b"CANARY" not in data
    assert b"text 1" not in data
    assert b'"r1"' not in data


def test_a_retired_request_leaves_the_anchor(session: Session, anchor: Path) -> None:
    place = open_anchor(session.workspace, str(anchor))
    assert [fact.body["request_id"] for fact, _ in anchored_requests(place)] == ["old"]
    with session.driving():
        retire(session.workspace, 0)
    assert not anchored_requests(place)
    assert list(anchored_retirements(place).values()) == ["old"]
    (mark,) = anchor.glob("*/requests/*")
    found = session.workspace.ledger.facts(kinds.REQUEST)
    assert parse_json(mark.read_bytes()) == {"request_id": "old", "retired": found[0].body["object"]}


def test_a_request_that_was_retired_after_the_backup_cannot_be_applied_again_and_that_is_said(
    session: Session, memory_path: Path
) -> None:
    backup = backup_of(session, memory_path / "backup")
    forget(session, "r1", request_id="one")
    with session.driving():
        retire(session.workspace, 0)
    again = restored(session, backup)
    done = recovered(again)
    assert (done.reapplied, done.retired, done.irrecoverable) == ((), ("old",), ("one",))
    assert "r1" in held(again)
    assert_lawful(again)


def test_what_was_under_way_in_the_backup_and_retired_since_is_finished_and_retired(
    session: Session, memory_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_: Any, **__: Any) -> Any:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("sisa.delete.finish_requests", gone)
        with pytest.raises(Killed):
            forget(session, "r1", request_id="one")
    backup = backup_of(session, memory_path / "backup")
    forget(session, "r1")  # goes on with it
    with session.driving():
        retire(session.workspace, 0)
    again = restored(session, backup)
    done = recovered(again)
    assert (done.reapplied, done.irrecoverable) == ((), ())
    assert set(done.retired) == {"old", "one"}
    assert "r1" not in held(again)
    assert_lawful(again)


@pytest.mark.parametrize("step", ["put_head", "append", "put_request", "second put_head"])
def test_the_first_use_of_an_anchor_can_be_cut_off_anywhere(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    from shards.anchor import Anchor

    moved = with_anchor(session, tmp_path / "new")
    owner: Any = Ledger if step == "append" else Anchor
    name = step.removeprefix("second ")
    whole, calls = getattr(owner, name), int(step.startswith("second"))

    def cut(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        done = whole(*arguments, **named)
        calls -= 1
        if calls < 0:
            raise Killed
        return done

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, cut)
        with pytest.raises(Killed):
            move_anchor(moved.workspace, moved.options.anchor)
    forget(reopened(moved), "r1")
    again = reopened(moved)
    assert check_anchor(again.workspace, str(tmp_path / "new")).outcome == "passed"
    place = open_anchor(again.workspace, str(tmp_path / "new"))
    assert len(anchored_requests(place)) == 2
    again.workspace.close()


def test_a_hold_does_not_stand_in_the_way_of_a_recovery(session: Session, memory_path: Path) -> None:
    """The deletion was lawful when it was accepted; the hold in the backup is older than that."""
    with session.driving():
        made = hold(session.workspace, ["r1"], [])
    backup = backup_of(session, memory_path / "backup")
    from sisa.hold import lift

    with session.driving():
        lift(session.workspace, made["hold_id"])
    forget(session, "r1", request_id="one")
    again = restored(session, backup)
    assert recovered(again).reapplied == ("one",)
    assert "r1" not in held(again)
    assert_lawful(again)


@pytest.fixture
def apart(memory_path: Path, anchor: Path) -> Iterator[Session]:
    """As ``session``, with records and checkpoints in a storage of their own."""
    path = memory_path / "apart"
    session = toy_session(path, toy_recipe())
    session.workspace.close()
    (memory_path / "storage").mkdir()
    (path / CONFIG_FILE).write_text(json.dumps({"storage": str(memory_path / "storage")}))
    session = with_anchor(replace(session, workspace=Workspace.open(path)), anchor)
    retrain(session, rows(memory_path / "first.jsonl", *range(18)))
    yield session
    session.workspace.close()


def test_what_is_served_is_announced_after_a_recovery(apart: Session, memory_path: Path) -> None:
    storage = memory_path / "storage"
    backups = backup_of(apart, memory_path / "backup"), Path(shutil.copytree(storage, memory_path / "kept"))
    forget(apart, "r1", request_id="one")
    session = restored(apart, backups[0])
    shutil.rmtree(storage)
    shutil.copytree(backups[1], storage)
    recovered(session)
    place = session.workspace.place()
    assert place is not None
    assert announced(place)[0] == session.workspace.book.manifest()
    session.workspace.close()


def test_a_workspace_restored_without_its_storage_is_not_recovered(apart: Session, memory_path: Path) -> None:
    backup = backup_of(apart, memory_path / "backup")
    forget(apart, "r1", request_id="one")
    session = restored(apart, backup)
    before = sorted(memory_path.joinpath("storage").rglob("*"))
    with pytest.raises(IntegrityError, match="restore its storage too"):
        recovered(session)
    assert sorted(memory_path.joinpath("storage").rglob("*")) == before
    session.workspace.close()


def test_recovery_from_a_bucket(memory_path: Path, tmp_path: Path) -> None:
    with s3_server() as server:
        server.make_bucket("anchors")
        session = trained(memory_path / "workspace", anchor=server.uri("anchors/ours"))
        backup = backup_of(session, memory_path / "backup")
        forget(session, "r1", request_id="one")
        again = restored(session, backup)
        with pytest.raises(IntegrityError, match="older state was restored"):
            forget(again, "r2")
        assert recovered(again).reapplied == ("one",)
        assert_lawful(again)
        assert_equals_fresh_run(again, TRAINER, tmp_path / "fresh")
        server.kill()
        with pytest.raises(SisaError, match="anchors"):
            forget(again, "r2")
        assert "r2" in held(again)
        again.workspace.close()
