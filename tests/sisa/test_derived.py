"""What becomes of what was handed out or kept: a deletion names it, purges what is ours, and certifies both."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from shards import kinds
from shards.law import check_law
from shards.manifest import Head
from shards.workspace import Workspace
from sisa import delete as delete_module
from sisa.audit import audit_everything, audit_record
from sisa.certificate import certificate_path
from sisa.config import Settings, write_settings
from sisa.delete import delete
from sisa.document import read_certificate, read_limited
from sisa.export import export_records, register_derived
from sisa.letter import letter
from sisa.retention import retire
from sisa.session import Session
from sisa.verify_workspace import verify_against
from tests.flows.helpers import sisa
from tests.sisa.handed_out import exported, heads
from tests.sisa.trained import INLINE, TRAINER, assert_lawful, checked, forget, trained

STRAYS = "nothing is stored that no fact names"


@pytest.fixture
def session(memory_path: Path) -> Iterator[Session]:
    made = trained(memory_path / "workspace")
    yield made
    made.workspace.close()


def hit(session: Session) -> tuple[str, Head, Head]:
    """A record, the head that saw it, and another that did not."""
    record = "r1"
    shard = audit_record(session.workspace, record)["shard"]
    ours, others = [[head for head in heads(session) if (head.shard == shard) is same] for same in (True, False)]
    return record, ours[0], others[0]


def strays(session: Session) -> str:
    (check,) = [check for check in check_law(session.workspace) if check.name == STRAYS]
    return check.outcome


def predicate(session: Session, request: str) -> Any:
    return read_certificate(read_limited(certificate_path(session.workspace, request))).predicate


def test_a_deletion_purges_what_is_kept_and_names_what_left(session: Session, tmp_path: Path) -> None:
    record, ours, others = hit(session)
    kept = exported(session, [ours, others], kept=True, mark="aa" * 32)
    spared = exported(session, [others], kept=True, mark="bb" * 32)
    exported(session, [ours, others], kept=False, recipient="A Partner", mark="cc" * 32)
    exported(session, [others], kept=False, recipient="Nobody Hit", mark="dd" * 32)
    register_derived(session, "predictions", b"answers", [ours])
    export_records(session, tmp_path / "copy.jsonl", "An Archive")
    done = forget(session, record, request_id="req")
    assert not kept.exists()
    assert spared.exists()
    told = [(one["kind"], one["form"], one["fate"], one["recipient"], one["location"]) for one in done.stale]
    assert told == [
        ("export", "model", "purged", None, str(kept)),
        ("export", "model", "recall", "A Partner", f"/elsewhere/model-{'c' * 16}"),
        ("predictions", None, "recall", None, None),
        ("records", None, "recall", "An Archive", None),
    ]
    assert done.to_json()["stale"] == list(done.stale)
    assert_lawful(session)
    assert forget(session, record).stale == done.stale, "asked again, the same is told"


def test_the_certificate_tells_what_was_purged_and_what_must_be_recalled(session: Session) -> None:
    record, ours, _ = hit(session)
    exported(session, [ours], kept=True, mark="aa" * 32)
    exported(session, [ours], kept=False, recipient="A Partner", mark="cc" * 32)
    forget(session, record, request_id="req")
    said = predicate(session, "req")
    assert [(one["form"], one["kept"]) for one in said["handed_out"]] == [("model", True), ("model", False)]
    classes = {one["class"]: one for one in said["erasure"]}
    assert classes["exports of models kept in the workspace"]["evidence"]["exports"] == ["aa" * 32]
    assert classes["exports of models kept in the workspace"]["status"] == "done"
    (out,) = [one for name, one in classes.items() if name.startswith("predictions")]
    assert out["evidence"]["handed_out"] == ["cc" * 32]
    document = read_certificate(read_limited(certificate_path(session.workspace, "req")))
    problems = [check for check in verify_against(document, session.workspace.path) if check.outcome == "failed"]
    assert not problems
    text = letter(session.workspace, "req")
    assert "1 file that may hold the data" in text
    assert "A Partner" in text


def test_a_stranger_refuses_a_certificate_that_hides_a_kept_export(session: Session) -> None:
    from tests.independent.verifier import erasure

    record, ours, _ = hit(session)
    exported(session, [ours], kept=True)
    forget(session, record, request_id="req")
    said = predicate(session, "req")
    facts = {kind: [fact for fact in said["log"]["facts"] if fact["kind"] == kind] for kind in kinds_in(said)}
    told = (said, facts[kinds.REQUEST][0], facts[kinds.ERASURE], facts[kinds.PURGE])
    assert erasure(*told) == said["erasure"]
    said["handed_out"][0]["kept"] = False
    assert erasure(*told) != said["erasure"]


def kinds_in(said: Any) -> set[str]:
    return {fact["kind"] for fact in said["log"]["facts"]}


def test_a_kept_export_is_gone_before_its_deletion_is_certified(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before the certificate, it is gone already; killed in the purge, the next run goes on."""
    record, ours, _ = hit(session)
    kept = exported(session, [ours], kept=True)

    class Killed(BaseException):
        pass

    def killed(*_: Any) -> None:
        assert not kept.exists()
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(delete_module, "issue", killed)
        with pytest.raises(Killed):
            forget(session, record, request_id="req")
    assert not certificate_path(session.workspace, "req").exists()
    forget(session, record)
    assert_lawful(session)


def test_a_deletion_killed_before_the_sweep_leaves_a_stray_that_the_law_finds_and_the_next_run_removes(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    record, ours, _ = hit(session)
    kept = exported(session, [ours], kept=True)
    assert strays(session) == "passed"

    class Killed(BaseException):
        pass

    def killed(_: Workspace) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Workspace, "sweep", killed)
        with pytest.raises(Killed):
            forget(session, record, request_id="req")
    assert kept.exists()
    assert strays(session) == "failed"
    forget(session, record)
    assert not kept.exists()
    assert_lawful(session)


def test_an_audit_finds_what_lies_among_the_exports_and_no_fact_names(session: Session) -> None:
    exported(session, heads(session), kept=True)
    assert {check.outcome for check in audit_everything(session.workspace, None)} <= {"passed", "not_checked"}
    (session.workspace.exports / "mine").mkdir()
    (failed,) = [check for check in audit_everything(session.workspace, None) if check.outcome == "failed"]
    assert failed.name == STRAYS
    assert "mine" in failed.detail


def test_an_audit_of_a_record_says_which_exports_are_stale(session: Session) -> None:
    record, ours, others = hit(session)
    exported(session, [ours], kept=False, recipient="A Partner")
    (before,) = audit_record(session.workspace, record)["derived"]
    assert (before["stale"], before["recipient"]) == (False, "A Partner")
    forget(session, record)
    (after,) = audit_record(session.workspace, record)["derived"]
    assert after["stale"] is True
    assert after["location"].startswith("/elsewhere/")
    del others


def digests(told: Sequence[dict[str, Any]]) -> list[str]:
    return [one["keyed_digest"] for one in told]


def test_an_audit_and_a_deletion_name_the_same(session: Session, tmp_path: Path) -> None:
    """Copies of the records, too, and what was made of a checkpoint whose list of what it saw is lost."""
    record, ours, others = hit(session)
    exported(session, [ours], kept=False, mark="aa" * 32)
    exported(session, [others], kept=False, mark="bb" * 32)
    export_records(session, tmp_path / "copy.jsonl", "An Archive")
    seen = session.workspace.book.live()[others.checkpoint].seen
    held = audit_record(session.workspace, record)["derived"]
    assert digests(held) == digests(delete(session, [record], dry_run=True, executor=INLINE, trainer=TRAINER).stale)
    assert len(held) == 2
    assert not any(one["stale"] for one in held)
    done = forget(session, record)
    export_records(session, tmp_path / "later.jsonl")
    deleted = audit_record(session.workspace, record)["derived"]
    assert digests(deleted) == digests(done.stale) == digests(held)
    assert all(one["stale"] for one in deleted)
    session.workspace.store.purge(seen)
    lost = audit_record(session.workspace, record)["derived"]
    assert "bb" * 32 in digests(lost)
    assert digests(lost) == digests(forget(session, record).stale)


def test_an_audit_of_an_id_that_was_never_held_names_nothing(session: Session, tmp_path: Path) -> None:
    export_records(session, tmp_path / "copy.jsonl")
    assert audit_record(session.workspace, "nobody")["derived"] == []


def test_an_export_that_went_with_an_earlier_deletion_is_not_purged_again(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    record, ours, _ = hit(session)
    kept = exported(session, [ours], kept=True, mark="aa" * 32)
    shard = audit_record(session.workspace, record)["shard"]
    same = [stored.record.id for stored in session.workspace.survivors(shard) if stored.record.id != record]
    later = next(one for one in same if digests(audit_record(session.workspace, one)["derived"]))
    fates = {one: delete(session, [one], dry_run=True).stale[0]["fate"] for one in (record, later)}
    assert fates == {record: "purge", later: "purge"}
    assert audit_record(session.workspace, record)["derived"][0]["fate"] == "purge"
    assert [one["fate"] for one in forget(session, record).stale] == ["purged"]
    assert audit_record(session.workspace, record)["derived"][0]["fate"] == "purged"
    assert [one["fate"] for one in delete(session, [later], dry_run=True).stale] == ["gone"]
    write_settings(session.workspace.path, Settings(recipe=session.recipe, options=session.options))
    monkeypatch.setattr(Session, "trainer", lambda _: TRAINER)
    result = sisa("delete", "-w", session.workspace.path, "--id", later)
    assert result.code == 0, result.err
    assert str(kept) not in result.out
    assert [one["fate"] for one in forget(session, record).stale] == ["purged"], "asked again, as it was then"


def test_a_dry_run_says_what_would_be_stale_and_purges_nothing(session: Session) -> None:
    record, ours, others = hit(session)
    kept = exported(session, [ours], kept=True, mark="aa" * 32)
    exported(session, [others], kept=False, mark="bb" * 32)
    told = delete(session, [record], dry_run=True, executor=INLINE, trainer=TRAINER).stale
    assert [one["location"] for one in told] == [str(kept)]
    assert kept.exists()


def test_a_deletion_prints_what_to_recall(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    record, ours, _ = hit(session)
    left = exported(session, [ours], kept=False, recipient="A [bold]Partner[/]")
    kept = exported(session, [ours], kept=True, mark="aa" * 32)
    write_settings(session.workspace.path, Settings(recipe=session.recipe, options=session.options))
    monkeypatch.setattr(Session, "trainer", lambda _: TRAINER)
    result = sisa("delete", "-w", session.workspace.path, "--id", record, "--dry-run")
    assert f"To be purged: model export kept at {kept}" in result.out
    result = sisa("delete", "-w", session.workspace.path, "--id", record)
    assert result.code == 0, result.err
    assert "Left the house, recall it: model export of " in result.out
    assert f"to {left} for A [bold]Partner[/]" in result.out
    assert f"Purged: model export kept at {kept}" in result.out


def test_where_an_export_went_is_kept_as_a_reference_and_retired_like_a_recipient(session: Session) -> None:
    exported(session, heads(session), kept=False, recipient="A Partner")
    (fact,) = session.workspace.ledger.facts(kinds.EXPORT)
    assert "/elsewhere" not in json.dumps(fact.body)
    with session.driving():
        pass  # sweeps texts that no fact names
    (told,) = audit_record(session.workspace, "r1")["derived"]
    assert told["location"].startswith("/elsewhere/")
    with session.driving():
        assert set(retire(session.workspace, 0)) == {fact.body["recipient"], fact.body["location"]}
    (told,) = audit_record(session.workspace, "r1")["derived"]
    assert told["location"] == f"reference {fact.body['location']}"


def test_an_export_after_the_certificate_makes_it_say_less_about_the_present(session: Session) -> None:
    forget(session, "r1", request_id="req")
    assert kinds.EXPORT in kinds.CHANGING
    exported(session, heads(session), kept=False)
    assert not [c for c in checked(certificate_path(session.workspace, "req")).values() if c.outcome == "failed"]
