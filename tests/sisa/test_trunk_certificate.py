"""Certificates of workspaces with a trunk: what they show of it, and that no lie about it verifies."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from orchestration.executor import Executor
from shards.checks import Check
from shards.sparse import prove
from shards.trunk import TRUNK
from shards.workspace import Workspace
from sisa.certificate import certificate_path
from sisa.ingest import Ingested, commit
from sisa.receipt import receipt
from sisa.replay import replay
from sisa.session import Session
from sisa.train import train
from sisa.verify import Evidence, verify
from sisa.verify_workspace import verify_against
from tests.independent import verifier
from tests.sisa.forging import failed, forge, from_the_file, head_size, public_key, signed, with_the_workspace
from tests.sisa.trained import INLINE, TRAINER, forget
from tests.toy import memory_directory, stored, toy_recipe, toy_record, toy_session

WHOLE = "every lineage is whole and hashes to its keys"
LOGGED = "heads, subjects and lineages are those of the logged manifest"
ABSENT = "the records are in no slice that the served heads were trained on"
SCHEMA = json.loads((Path(__file__).parents[2] / "docs" / "certificate.schema.json").read_text())
Predicate = dict[str, Any]


@pytest.fixture(scope="module")
def session() -> Iterator[Session]:
    """Three permanent records of sixteen; a deletion in a shard, and one in the trunk, with a receipt."""
    with memory_directory() as directory:
        made = toy_session(directory / "workspace", toy_recipe(slices=2))
        records = [
            toy_record(number, subject=None, **({"retention": "permanent"} if number < 5 else {}))
            for number in range(18)
        ]
        commit(made, stored(made, records), Ingested(18, 0, 0, 0))
        train(made, executor=INLINE, trainer=TRAINER)
        (directory / "receipt.json").write_text(json.dumps(receipt(made, "r0")))
        forget(made, "r10", request_id="shard")
        forget(made, "r0", request_id="trunk")
        yield made
        made.workspace.close()


@pytest.fixture
def honest(session: Session) -> Iterator[Any]:
    """The statement of the newest certificate; the honest file lies in its place again afterwards."""
    path = certificate_path(session.workspace, "trunk")
    data = path.read_bytes()
    yield signed(session.workspace, "trunk")
    path.write_bytes(data)


def both(path: Path, workspace: Workspace, **evidence: Any) -> dict[str, str]:
    """What both verifiers say of a file."""
    key = public_key(workspace)
    _, ours = verify(path, Evidence(public_keys=(key,), **evidence))
    given = {name: file.read_bytes() for name, file in evidence.items()}
    theirs = verifier.verify(path.read_bytes(), (key.read_bytes(),), **given)
    assert sorted((check.level, check.name, check.outcome) for check in ours) == sorted(theirs)
    return {check.name: check.outcome for check in ours}


def replayer(opened: Workspace, shards: list[int], level: str) -> list[Check]:
    executor: Executor = INLINE
    return replay(opened, shards, level, executor, TRAINER)


def test_the_trunk_is_one_more_lineage_and_every_head_is_accounted_for(honest: Any) -> None:
    said = honest["predicate"]
    *shards, trunk = said["lineages"]
    assert [lineage["shard"] for lineage in said["lineages"]] == [0, 1, TRUNK]
    for lineage, head in zip(shards, said["after"]["heads"], strict=True):
        assert head["steps"] == len(trunk["links"]) + len(lineage["links"])
    assert [shard["shard"] for shard in said["impact"]["shards"]] == [0, 1, TRUNK]
    below = {link["key"] for link in trunk["links"]}
    assert set(said["kept"]) < below, "all but the trunk's clean prefix was trained again"
    count = sum(len(lineage["links"]) for lineage in said["lineages"])
    assert {len(proofs) for proofs in said["absence"].values()} == {count}
    Draft202012Validator(SCHEMA).validate(honest)


@pytest.mark.parametrize("request_id", ["shard", "trunk"])
def test_both_verifiers_accept_it_and_no_check_fails_with_the_workspace(session: Session, request_id: str) -> None:
    path = certificate_path(session.workspace, request_id)
    assert "failed" not in both(path, session.workspace).values()
    assert failed(with_the_workspace(path, session.workspace, replayer)) == []


def test_a_full_and_an_affected_replay_train_the_trunk_anew(session: Session) -> None:
    document, _ = verify(certificate_path(session.workspace, "trunk"), Evidence())
    assert document is not None
    for scope, level in (("affected", "V3"), ("full", "V4")):
        checks = verify_against(document, session.workspace.path, replay=scope, replayer=replayer)  # type: ignore[arg-type]
        names = {check.name for check in checks if check.level == level and check.outcome == "passed"}
        assert {f"{one} trained anew gives the stored bits" for one in ("trunk", "shard 0", "shard 1")} <= names


def test_a_receipt_for_a_record_of_the_trunk_binds_its_certificate(session: Session) -> None:
    path = session.workspace.path.parent / "receipt.json"
    found = both(certificate_path(session.workspace, "trunk"), session.workspace, receipt=path)
    assert found["the tags belong to the reader's record"] == "passed"
    found = both(certificate_path(session.workspace, "shard"), session.workspace, receipt=path)
    assert found["the tags belong to the reader's record"] == "failed"


def _without(said: Predicate, gone: list[Any]) -> None:
    """Leave links out, with all that is said of them."""
    links = [link for lineage in said["lineages"] for link in lineage["links"]]
    keys = {link["key"] for link in gone}
    for name in ("kept", "retrained"):
        said[name] = [key for key in said[name] if key not in keys]
    for tag, proofs in said["absence"].items():
        said["absence"][tag] = [proof for link, proof in zip(links, proofs, strict=True) if link["key"] not in keys]


def leave_the_trunk_out(said: Predicate) -> None:
    _without(said, said["lineages"][-1]["links"])
    said["lineages"].pop()


def leave_its_first_step_out(said: Predicate) -> None:
    _without(said, said["lineages"][-1]["links"][:1])
    said["lineages"][-1]["links"].pop(0)


def leave_its_last_step_out(said: Predicate) -> None:
    _without(said, said["lineages"][-1]["links"][-1:])
    said["lineages"][-1]["links"].pop()


def leave_its_steps_out(said: Predicate) -> None:
    _without(said, said["lineages"][-1]["links"])
    said["lineages"][-1]["links"] = []


def call_it_a_shard(said: Predicate) -> None:
    said["lineages"][-1]["shard"] = 2


def call_a_shard_the_trunk(said: Predicate) -> None:
    said["lineages"][0]["shard"] = TRUNK


def put_it_first(said: Predicate) -> None:
    said["lineages"].insert(0, said["lineages"].pop())


def say_it_twice(said: Predicate) -> None:
    count = len(said["lineages"][-1]["links"])
    said["lineages"].append(copy.deepcopy(said["lineages"][-1]))
    for proofs in said["absence"].values():
        proofs.extend(proofs[-count:])


def claim_another_commitment(said: Predicate) -> None:
    """Of a slice that had the record: an empty one, in which nothing is."""
    said["lineages"][-1]["links"][0]["root"] = "00" * 32
    at = sum(len(lineage["links"]) for lineage in said["lineages"][:-1])
    for tag, proofs in said["absence"].items():
        proofs[at] = prove({}, bytes.fromhex(tag)).to_json()


def claim_other_tensors(said: Predicate) -> None:
    said["lineages"][-1]["links"][-1]["tensors"] = "ab" * 32


def claim_other_records(said: Predicate) -> None:
    said["lineages"][-1]["links"][0]["records"] = "ab" * 32


def prove_nothing_of_it(said: Predicate) -> None:
    count = len(said["lineages"][-1]["links"])
    for tag in said["absence"]:
        said["absence"][tag] = said["absence"][tag][:-count]


def begin_a_shard_without_it(said: Predicate) -> None:
    """Each key is the hash of its fields again, as if there had been no trunk."""
    parent = ""
    for link in said["lineages"][0]["links"]:
        parent = verifier.checkpoint_key(said["recipe"], 0, link, parent)
        link["key"] = parent


@pytest.mark.parametrize(
    ("lie", "names"),
    [
        (leave_the_trunk_out, {WHOLE, LOGGED, ABSENT}),
        (leave_its_first_step_out, {WHOLE, LOGGED, ABSENT}),
        (leave_its_last_step_out, {WHOLE, LOGGED, ABSENT}),
        (leave_its_steps_out, {WHOLE, LOGGED, ABSENT}),
        (call_it_a_shard, {WHOLE, LOGGED, ABSENT}),
        (call_a_shard_the_trunk, {WHOLE}),
        (put_it_first, {WHOLE}),
        (say_it_twice, {WHOLE}),
        (claim_another_commitment, {LOGGED}),
        (claim_other_tensors, {LOGGED}),
        (claim_other_records, {WHOLE}),
        (prove_nothing_of_it, {ABSENT}),
        (begin_a_shard_without_it, {WHOLE}),
    ],
)
def test_no_lie_about_the_trunk_verifies(
    session: Session, honest: Any, lie: Callable[[Predicate], None], names: set[str]
) -> None:
    size = head_size(honest)
    lie(honest["predicate"])
    path = forge(session.workspace, honest, "trunk", size)
    found = set(failed(from_the_file(path, session.workspace)))
    assert names <= found
    told = {name for name, outcome in _theirs(path, session.workspace).items() if outcome == "failed"}
    assert names <= told


def _theirs(path: Path, workspace: Workspace) -> dict[str, str]:
    checks = verifier.verify(path.read_bytes(), (public_key(workspace).read_bytes(),))
    return {name: outcome for _, name, outcome in checks}
