"""Which shard saw which example? The answers are compared with what the trainer was shown."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from orchestration.inline import InlineExecutor
from shards import kinds
from shards.book import Book
from shards.errors import InputError, IntegrityError
from shards.keyfiles import PRIVATE_FILE, private_pem
from shards.ledger import Ledger
from sisa.anchoring import NAME as ANCHORED
from sisa.anchoring import bring_up_to_date
from sisa.audit import audit_checkpoint, audit_everything, audit_record, audit_shard, audit_subject
from sisa.delete import delete
from sisa.ingest import ingest
from sisa.key import rotate
from sisa.people import references
from sisa.session import Session
from sisa.train import train
from tests.shards.test_ledger import vandalise
from tests.toy import ToyTrainer, toy_recipe, toy_session


@pytest.fixture(params=[0.0, 0.5, 1.0])
def session(memory_path: Path, request: pytest.FixtureRequest) -> Iterator[Session]:
    """A toy workspace with eighteen records, without, with some and with full rehearsal."""
    made = toy_session(memory_path / "toy", toy_recipe(rehearsal=request.param))
    data = memory_path / "records.csv"
    data.write_text("id,subject,text,label\n" + "".join(f"r{n},s{n // 3},text {n},a\n" for n in range(18)))
    train(made, [data], executor=InlineExecutor(), trainer=ToyTrainer())
    yield made
    made.workspace.close()


def deleted(session: Session, *ids: str, subjects: tuple[str, ...] = ()) -> Any:
    return delete(session, ids, subjects, executor=InlineExecutor(), trainer=ToyTrainer())


def test_exposures_are_the_steps_that_trained_it_and_everything_after(session: Session) -> None:
    plan = session.workspace.plan()
    for number in range(18):
        document = audit_record(session.workspace, f"r{number}")
        tag = session.workspace.tag(f"r{number}")
        (chain,) = [chain for chain in plan.chains if any(tag in {m.tag for m in step.members} for step in chain.steps)]
        first = next(at for at, step in enumerate(chain.steps) if tag in {m.tag for m in step.members})
        wanted = {step.key: 2 * (tag in {m.tag for m in step.members}) for step in chain.steps[first:]}
        assert {seen["checkpoint"]: seen["epochs"] for seen in document["exposures"]} == wanted
        assert (document["shard"], document["slice"]) == (chain.shard, chain.steps[first].link.slice)
        assert all(seen["live"] for seen in document["exposures"])


def test_the_place_of_a_deleted_record_is_still_known(session: Session) -> None:
    before = audit_record(session.workspace, "r5")
    done = deleted(session, "r5")
    after = audit_record(session.workspace, "r5")
    for name in ("id", "tag", "shard", "slice"):
        assert after[name] == before[name]
    assert (after["present"], after["deleted"], after["request_id"]) == (False, True, done.request_id)
    assert [seen["checkpoint"] for seen in after["exposures"]] == [seen["checkpoint"] for seen in before["exposures"]]
    assert not any(seen["live"] for seen in after["exposures"])
    assert all(seen["purged"] for seen in after["exposures"])
    assert after["manifests"] == before["manifests"], "no later manifest was built on it"


def test_a_record_that_never_trained_has_no_exposure_and_a_place(session: Session, tmp_path: Path) -> None:
    data = tmp_path / "more.csv"
    data.write_text("id,text,label\nlate,text,a\n")
    ingest(session, [data], trainer=ToyTrainer())
    document = audit_record(session.workspace, "late")
    assert (document["present"], document["deleted"], document["exposures"]) == (True, False, [])
    assert document["generation"] == 1
    assert document["slice"] >= 3
    deleted(session, "late")
    document = audit_record(session.workspace, "late")
    assert (document["present"], document["deleted"], document["exposures"]) == (False, True, [])


def test_a_subject_is_its_records_and_its_requests(session: Session) -> None:
    document = audit_subject(session.workspace, "s1")
    assert [record["id"] for record in document["records"]] == ["r3", "r4", "r5"]
    assert len({record["shard"] for record in document["records"]}) == 1, "one person's records share a shard"
    done = deleted(session, subjects=("s1",))
    document = audit_subject(session.workspace, "s1")
    assert (document["records"], document["requests"]) == ([], [done.request_id])
    assert audit_subject(session.workspace, "nobody")["records"] == []


def test_shards_hold_every_record_once(session: Session) -> None:
    deleted(session, "r2")
    tags: list[str] = []
    for number in range(2):
        document = audit_shard(session.workspace, number)
        held = [tag for part in document["slices"] for tag in part["tags"]]
        assert document["records"] == len(held) == sum(part["records"] for part in document["slices"])
        assert document["head"] == document["lineage"][-1]["checkpoint"]
        tags += held
    wanted = {session.workspace.tag(f"r{n}").hex() for n in range(18) if n != 2}
    assert (set(tags), len(tags)) == (wanted, 17)


@pytest.mark.parametrize("shard", [-1, 2, 100])
def test_a_shard_that_is_not_there_is_refused(shard: int, session: Session) -> None:
    with pytest.raises(InputError, match="from 0 to 1"):
        audit_shard(session.workspace, shard)


def test_a_checkpoint_is_what_it_trained_and_inherited(session: Session) -> None:
    deleted(session, "r2")
    visible = session.workspace.visible_sets()
    for stored in session.workspace.book.checkpoints():
        key = stored.checkpoint.key
        document = audit_checkpoint(session.workspace, key[:24])
        assert document["live"] == stored.live
        own, inherited = set(document["trained"]), set(document["inherited"])
        assert not own & inherited
        assert own | inherited == {tag.hex() for tag in visible[key]}
        parents = [other["checkpoint"] for other in document["ancestors"]]
        assert parents[-1:] == ([stored.checkpoint.link.parent] if stored.checkpoint.link.parent else [])


@pytest.mark.parametrize("key", ["", "zz", "0" * 64])
def test_a_key_that_names_no_one_checkpoint_is_refused(key: str, session: Session) -> None:
    with pytest.raises(InputError, match="the key of one checkpoint"):
        audit_checkpoint(session.workspace, key)


def test_the_law_holds_after_deletions_and_is_asked_whole(session: Session) -> None:
    deleted(session, "r2")
    deleted(session, subjects=("s4",))
    checks = audit_everything(session.workspace, None)
    assert {check.outcome for check in checks if check.name != ANCHORED} == {"passed"}
    assert [check.outcome for check in checks if check.name == ANCHORED] == ["not_checked"]
    assert {check.level for check in checks} == {"law"}
    assert len(checks) >= 13


def test_an_anchor_that_knows_no_more_than_the_ledger_leaves_nothing_unchecked(
    session: Session, tmp_path: Path
) -> None:
    bring_up_to_date(session.workspace, str(tmp_path / "anchor"))
    checks = audit_everything(session.workspace, str(tmp_path / "anchor"))
    assert {check.outcome for check in checks} == {"passed"}


def failing(session: Session) -> list[str]:
    return [check.name for check in audit_everything(session.workspace, None) if check.outcome == "failed"]


def test_a_damaged_log_is_told_and_the_anchor_not_asked(session: Session, tmp_path: Path) -> None:
    bring_up_to_date(session.workspace, str(tmp_path / "anchor"))
    vandalise(session.workspace.ledger.path, "UPDATE facts SET body = '{}' WHERE kind IN ('key/1', 'genesis/1')")
    checks = audit_everything(session.workspace, str(tmp_path / "anchor"))
    assert checks[0].outcome == "failed"
    assert {check.outcome for check in checks[1:]} == {"not_checked"}
    assert ANCHORED in {check.name for check in checks}


@pytest.mark.parametrize(
    ("kind", "body"),
    [(kinds.CHECKPOINT, {}), (kinds.SLICE, {}), (kinds.MANIFEST, {}), (kinds.REQUEST, {}), (kinds.RETIRED, {}),
     (kinds.REFUSAL, {}), (kinds.RUN, {}), (kinds.DERIVED, {}),
     (kinds.SLICE, {"shard": 0, "slice": [], "root": 3, "leaves": 4, "records": 5})],
)  # fmt: skip
def test_a_well_signed_fact_of_another_form_fails_an_audit_and_is_no_accident(
    kind: str, body: dict[str, Any], session: Session
) -> None:
    session.workspace.ledger.append([(kind, body)])
    if kind == kinds.DERIVED:
        assert not failing(session), "the law does not rest on it"
        return
    with pytest.raises(IntegrityError, match=r"restore it from a backup|say"):
        audit_everything(session.workspace, None)


@pytest.mark.parametrize("reason", ["lost", "stolen"])
def test_a_key_that_nobody_endorsed_is_told(session: Session, reason: Any) -> None:
    rotate(session.workspace)
    name = "each signing key was endorsed by the one before"
    (check,) = [check for check in audit_everything(session.workspace, None) if check.name == name]
    assert check.outcome == "passed"
    fact = rotate(session.workspace, reason)["from_fact"]
    (check,) = [check for check in audit_everything(session.workspace, None) if check.name == name]
    assert check.outcome == "not_checked"
    assert f"declared {reason} at fact {fact}: nobody vouches" in check.detail


def test_another_private_key_fails_an_audit_and_a_missing_one_does_not(session: Session) -> None:
    file = session.workspace.path / "keys" / PRIVATE_FILE
    file.write_bytes(private_pem(Ed25519PrivateKey.generate()))
    assert failing(session) == ["the public key filed is the log's"]
    file.unlink()
    assert failing(session) == []


@pytest.mark.parametrize("name", ["records.jsonl", "keys/old.key", "certificates/other.json"])
def test_a_file_that_is_not_the_workspaces_fails_an_audit_by_name(session: Session, name: str) -> None:
    (session.workspace.path / name).touch()
    (check,) = [check for check in audit_everything(session.workspace, None) if check.outcome == "failed"]
    assert name in check.detail


def test_the_certificates_are_read_once_however_many_requests_there_are(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each reading goes through all of them: reading once a request makes an audit quadratic."""
    reads = 0
    certificates = Book.certificates

    def counted(book: Book) -> Any:
        nonlocal reads
        reads += 1
        return certificates(book)

    def readings() -> int:
        nonlocal reads
        reads = 0
        assert not failing(session)
        return reads

    deleted(session, "r1")
    monkeypatch.setattr(Book, "certificates", counted)
    one = readings()
    for number in range(2, 5):
        deleted(session, f"r{number}")
    assert readings() == one


def test_a_text_that_no_fact_in_force_names_fails_an_audit(session: Session) -> None:
    references(session.workspace).put("reason", "left over")
    assert failing(session) == ["the texts behind references are those that were referred to"]


def test_a_ledger_without_its_genesis_names_no_signing_keys_and_says_so(session: Session) -> None:
    vandalise(session.workspace.ledger.path, "DELETE FROM facts WHERE kind = 'genesis/1'")
    workspace = session.workspace
    unread = Book(Ledger(workspace.ledger.path, Ed25519PrivateKey.generate), workspace.store)
    with pytest.raises(IntegrityError, match="begins with its genesis"):
        unread.signing_keys()
