"""The certificate: its statement says what the stored artefacts say."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestration.inline import InlineExecutor
from shards.digest import bytes_digest, canonical_json
from shards.law import check_law
from sisa.certificate import NOT_CLAIMED, PREDICATE_TYPE, STATEMENT_TYPE, certificate_path, issue, statement
from sisa.delete import Deleted, delete
from sisa.session import Session
from sisa.train import train
from tests.toy import ToyTrainer, toy_recipe, toy_session


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Session]:
    """A toy workspace with twelve records."""
    made = toy_session(tmp_path / "toy", toy_recipe())
    data = tmp_path / "records.csv"
    data.write_text("id,subject,text,label\n" + "".join(f"r{n},s{n // 3},text {n},a\n" for n in range(12)))
    train(made, [data], executor=InlineExecutor(), trainer=ToyTrainer())
    yield made
    made.workspace.close()


def deleted(session: Session, *ids: str, **values: Any) -> Deleted:
    return delete(session, ids, executor=InlineExecutor(), trainer=ToyTrainer(), **values)


def payload(path: Path | None) -> Any:
    assert path is not None
    return json.loads(base64.b64decode(json.loads(path.read_text())["payload"]))


def test_it_is_an_in_toto_statement_in_canonical_json(session: Session) -> None:
    done = deleted(session, "r1")
    document = payload(done.certificate)
    assert (document["_type"], document["predicateType"]) == (STATEMENT_TYPE, PREDICATE_TYPE)
    assert document["predicate"]["version"] == 1
    assert done.certificate is not None
    raw = base64.b64decode(json.loads(done.certificate.read_text())["payload"])
    assert raw == canonical_json(document)


def test_its_subjects_are_the_served_heads(session: Session) -> None:
    document = payload(deleted(session, "r1").certificate)
    manifest = session.workspace.book.manifest()
    assert manifest is not None
    assert {item["name"]: item["digest"]["sha256"] for item in document["subject"]} == {
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


def test_tags_and_tombstones_are_those_of_the_request(session: Session) -> None:
    request = payload(deleted(session, "r1", "r7").certificate)["predicate"]["request"]
    assert set(request["tags"]) == {session.workspace.tag(name).hex() for name in ("r1", "r7")}
    assert set(request["tags"]) <= set(request["tombstones"])


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


def test_it_holds_no_id_subject_or_text(session: Session) -> None:
    done = deleted(session, "r1", "r10", request_id="case-1")
    assert done.certificate is not None
    text = base64.b64decode(json.loads(done.certificate.read_text())["payload"]).decode()
    for secret in ('"r1"', '"r10"', '"s0"', "text 1"):
        assert secret not in text
    key = (session.workspace.path / "keys" / "root.key").read_text().strip()
    assert key not in text


def test_the_ledger_names_its_bytes_and_an_issue_again_replaces_it(session: Session) -> None:
    deleted(session, "r1", request_id="case-1")
    path = certificate_path(session.workspace, "case-1")
    assert path == session.workspace.path / "certificates" / "case-1.json"
    fact = session.workspace.book.certificates()["case-1"]
    assert fact.body["digest"] == bytes_digest(path.read_bytes())
    ((_, request),) = session.workspace.book.requests()
    issue(session.workspace, request, check_law(session.workspace))
    assert session.workspace.book.certificates()["case-1"].body["digest"] == bytes_digest(path.read_bytes())


def test_the_statement_comes_from_the_store_and_is_the_same_when_asked_again(session: Session) -> None:
    done = deleted(session, "r1")
    ((_, request),) = session.workspace.book.requests()
    again = statement(session.workspace, request, check_law(session.workspace))
    signed = payload(done.certificate)
    for document in (again, signed):
        document["predicate"].pop("issued")
    assert canonical_json(again) == canonical_json(signed)


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
