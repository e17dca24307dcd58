"""The certificate: its statement says what the stored artefacts say."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestration.inline import InlineExecutor
from shards import kinds
from shards.deletion import DeletionRequest
from shards.digest import canonical_json
from shards.law import check_law
from shards.note import read_head
from sisa.certificate import NOT_CLAIMED, certificate_path, is_intact, issue, statement
from sisa.delete import Deleted, delete
from sisa.document import CERTIFICATE_TYPE, STATEMENT_TYPE, Document, read_certificate
from sisa.session import Session
from sisa.train import train
from tests.toy import ToyTrainer, toy_recipe, toy_session


@pytest.fixture
def session(memory_path: Path) -> Iterator[Session]:
    """A toy workspace with twelve records."""
    made = toy_session(memory_path / "toy", toy_recipe())
    data = memory_path / "records.csv"
    data.write_text("id,subject,text,label\n" + "".join(f"r{n},s{n // 3},text {n},a\n" for n in range(12)))
    train(made, [data], executor=InlineExecutor(), trainer=ToyTrainer())
    yield made
    made.workspace.close()


def deleted(session: Session, *ids: str, **values: Any) -> Deleted:
    return delete(session, ids, executor=InlineExecutor(), trainer=ToyTrainer(), **values)


def raw(path: Path | None) -> bytes:
    assert path is not None
    return base64.b64decode(json.loads(path.read_text())["envelope"]["payload"])


def payload(path: Path | None) -> Any:
    return json.loads(raw(path))


def document(path: Path | None) -> Document:
    assert path is not None
    return read_certificate(path.read_bytes())


def only_request(session: Session) -> DeletionRequest:
    ((_, request),) = session.workspace.book.requests()
    return request


def test_it_is_an_in_toto_statement_in_canonical_json(session: Session) -> None:
    done = deleted(session, "r1")
    said = payload(done.certificate)
    assert (said["_type"], said["predicateType"]) == (STATEMENT_TYPE, CERTIFICATE_TYPE)
    assert (said["predicate"]["version"], said["predicate"]["statement"]) == (1, "deleted")
    assert raw(done.certificate) == canonical_json(said)


def test_its_subjects_are_the_served_heads(session: Session) -> None:
    said = payload(deleted(session, "r1").certificate)
    manifest = session.workspace.book.manifest()
    assert manifest is not None
    assert {item["name"]: item["digest"]["sha256"] for item in said["subject"]} == {
        "manifest": manifest.digest,
        **{f"shard-{head.shard}": head.tensors for head in manifest.heads},
    }


def test_kept_purged_and_retrained_are_what_happened_to_the_store(session: Session) -> None:
    before = set(session.workspace.book.live())
    predicate = payload(deleted(session, "r1", "r7").certificate)["predicate"]
    after = set(session.workspace.book.live())
    assert set(predicate["kept"]) == before & after
    assert set(predicate["purged"]) == before - after
    assert set(predicate["retrained"]) == after - before
    assert predicate["before"]["heads"] != predicate["after"]["heads"]
    planned = {key for shard in predicate["impact"]["shards"] for key in shard["purged"]}
    assert planned == before - after, "the impact foretold it"


def test_its_targets_are_those_of_the_request(session: Session) -> None:
    targets = payload(deleted(session, "r1", "r7", "nobody", ignore_missing=True).certificate)["predicate"]["request"]
    targets = targets["targets"]
    assert set(targets["tags"]) == {session.workspace.tag(name).hex() for name in ("r1", "r7")}
    assert set(targets["tags"]) <= set(targets["tombstones"])
    assert targets["absent"] == [session.workspace.tag("nobody").hex()]


def test_every_tag_has_an_absence_proof_for_every_live_slice(session: Session) -> None:
    predicate = payload(deleted(session, "r1", "r7", "nobody", ignore_missing=True).certificate)["predicate"]
    targets = predicate["request"]["targets"]
    manifest = session.workspace.book.manifest()
    assert manifest is not None
    assert predicate["absence"].keys() == {*targets["tombstones"], *targets["absent"]}
    live = sum(head.steps for head in manifest.heads)
    assert live == len(session.workspace.book.live())
    assert {len(proofs) for proofs in predicate["absence"].values()} == {live}


def test_what_was_there_before_is_proven_by_a_slice_that_the_log_knew(session: Session) -> None:
    said = document(deleted(session, "r1", "r7").certificate)
    facts = {logged.fact.seq: logged.fact for logged in said.facts()}
    (accepted,) = (fact for fact in facts.values() if fact.kind == kinds.REQUEST)
    assert {entry["tag"] for entry in said.predicate["prior"]} == set(only_request(session).tags)
    for entry in said.predicate["prior"]:
        assert facts[entry["fact"]].kind == kinds.SLICE
        assert entry["fact"] < accepted.seq


def test_the_facts_it_rests_on_are_those_of_the_ledger(session: Session) -> None:
    said = document(deleted(session, "r1").certificate)
    stored = {fact.seq: fact for fact in session.workspace.ledger.since(0)}
    facts = [logged.fact for logged in said.facts()]
    assert facts == [stored[fact.seq] for fact in facts]
    wanted = [kinds.GENESIS, kinds.RECIPE, kinds.SLICE, kinds.REQUEST, kinds.ERASURE, kinds.PURGE, kinds.MANIFEST]
    assert [fact.kind for fact in facts] == wanted


def test_lineages_reach_every_head_and_name_their_environment(session: Session) -> None:
    predicate = payload(deleted(session, "r1").certificate)["predicate"]
    heads = {head["shard"]: head["checkpoint"] for head in predicate["after"]["heads"]}
    for lineage in predicate["lineages"]:
        if lineage["links"]:
            assert lineage["links"][-1]["key"] == heads[lineage["shard"]]
        for link in lineage["links"]:
            assert predicate["environments"][link["environment"]] == {"machine": "toy"}


def test_it_says_what_it_does_not_claim_and_whose_clock_it_reads(session: Session) -> None:
    predicate = payload(deleted(session, "r1").certificate)["predicate"]
    assert predicate["not_claimed"] == list(NOT_CLAIMED)
    assert any("base model" in line for line in NOT_CLAIMED)
    assert predicate["clock"] == "the operator's"
    assert {check["outcome"] for check in predicate["law"]} == {"passed"}


def test_it_holds_no_id_subject_text_or_salt(session: Session) -> None:
    salts = {stored.salt.hex() for stored in session.workspace.survivors()}
    done = deleted(session, "r1", "r10", request_id="case-1", who={"requester": "Anna Canary", "reason": "a canary"})
    text = raw(done.certificate).decode()
    for secret in ('"r1"', '"r10"', '"s0"', "text 1", "anary", *salts):
        assert secret not in text
    key = (session.workspace.path / "keys" / "root.key").read_text().strip()
    assert key not in text


def test_the_ledger_names_its_envelope_and_an_issue_again_supersedes_it(session: Session) -> None:
    deleted(session, "r1", request_id="case-1")
    path = certificate_path(session.workspace, "case-1")
    assert path == session.workspace.path / "certificates" / "case-1.json"
    first = document(path)
    fact = session.workspace.book.certificates()["case-1"]
    assert fact.body == {"request_id": "case-1", "digest": first.digest}
    assert first.predicate["supersedes"] is None
    issue(session.workspace, only_request(session), check_law(session.workspace))
    second = document(path)
    assert session.workspace.book.certificates()["case-1"].body["digest"] == second.digest
    assert second.predicate["supersedes"] == first.digest


def test_the_statement_comes_from_the_store_and_is_the_same_when_asked_again(session: Session) -> None:
    signed = payload(deleted(session, "r1").certificate)
    size = read_head(signed["predicate"]["log"]["head"]).size
    again = statement(session.workspace, only_request(session), check_law(session.workspace), size)
    for said in (again, signed):
        said["predicate"].pop("issued")
        said["predicate"].pop("law")  # its evidence counts facts, and the certificate is one by now
    assert canonical_json(again) == canonical_json(signed)


@pytest.mark.parametrize("damage", ["", " ", "{}", "[]", "null", "\xff", '{"envelope": []}', "[" * 100_000])
def test_a_damaged_file_is_not_intact(session: Session, damage: str) -> None:
    deleted(session, "r1", request_id="case-1")
    path, fact = certificate_path(session.workspace, "case-1"), session.workspace.book.certificates()["case-1"]
    assert is_intact(session.workspace, "case-1", fact)
    path.write_bytes(damage.encode("latin-1"))
    assert not is_intact(session.workspace, "case-1", fact)


def test_one_flipped_bit_anywhere_in_the_file_is_damage(session: Session) -> None:
    deleted(session, "r1", request_id="case-1")
    path, fact = certificate_path(session.workspace, "case-1"), session.workspace.book.certificates()["case-1"]
    whole = path.read_bytes()
    for at in range(0, len(whole), len(whole) // 97):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        assert not is_intact(session.workspace, "case-1", fact), at


def test_an_id_never_held_is_certified_as_not_present(session: Session) -> None:
    before = session.workspace.book.manifest()
    predicate = payload(deleted(session, "nobody", ignore_missing=True).certificate)["predicate"]
    assert predicate["statement"] == "not-present"
    assert (predicate["prior"], predicate["purged"], predicate["erasure"]) == ([], [], [])
    assert predicate["absence"].keys() == {session.workspace.tag("nobody").hex()}
    assert session.workspace.book.manifest() == before


def test_a_deletion_of_a_record_that_never_trained_is_certified_without_a_purge(session: Session) -> None:
    from sisa.ingest import ingest

    data = session.workspace.path.parent / "more.csv"
    data.write_text("id,text,label\nlate,text,a\n")
    ingest(session, [data], trainer=ToyTrainer())
    before = session.workspace.book.manifest()
    predicate = payload(deleted(session, "late").certificate)["predicate"]
    assert predicate["purged"] == []
    after = session.workspace.book.manifest()
    assert before is not None
    assert after is not None
    assert after.digest == before.digest
