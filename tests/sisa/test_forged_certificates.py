"""A certificate that the operator's own key signed and the ledger names is still not believed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestration.inline import InlineExecutor
from shards import kinds
from shards.checks import Check
from shards.digest import bytes_digest, canonical_json
from shards.errors import RecipeMismatchError
from shards.law import check_law
from shards.workspace import Workspace
from sisa.certificate import certificate_path, statement
from sisa.delete import delete
from sisa.ingest import Ingested, commit
from sisa.replay import replay
from sisa.session import Session
from sisa.signing import sign
from sisa.train import train
from sisa.verify import verify
from tests.toy import ToyTrainer, stored, toy_recipe, toy_record, toy_session

INLINE = InlineExecutor()
TRAINER = ToyTrainer()
Forgery = Callable[[dict[str, Any]], object]


@pytest.fixture
def session(memory_path: Path) -> Iterator[Session]:
    """Twelve records trained, one of them deleted."""
    made = toy_session(memory_path / "workspace", toy_recipe())
    commit(made, stored(made, map(toy_record, range(12))), Ingested(12, 0, 0, 0))
    train(made, executor=INLINE, trainer=TRAINER)
    delete(made, ["r1"], request_id="req", executor=INLINE, trainer=TRAINER)
    yield made
    made.workspace.close()


def replayer(workspace: Workspace, shards: list[int], level: str) -> list[Check]:
    return replay(workspace, shards, level, INLINE, TRAINER)


def outcomes(session: Session) -> dict[str, str]:
    path = certificate_path(session.workspace, "req")
    checks = verify(path, workspace=session.workspace.path, replay="full", replayer=replayer)
    return {f"{check.level} {check.name}": check.outcome for check in checks}


def forge(session: Session, change: Forgery) -> None:
    """Sign an altered certificate with the workspace's key, and let the ledger name it."""
    workspace = session.workspace
    request = workspace.book.requests()[0][1]
    document = statement(workspace, request, check_law(workspace))
    change(document["predicate"])
    after = document["predicate"]["after"]
    names = [{"name": "manifest", "digest": {"sha256": after["digest"]}}]
    names += [{"name": f"shard-{head['shard']}", "digest": {"sha256": head["tensors"]}} for head in after["heads"]]
    document["subject"] = names
    data = json.dumps(sign(canonical_json(document), workspace.path / "keys")).encode()
    certificate_path(workspace, "req").write_bytes(data)
    workspace.ledger.append([(kinds.CERTIFICATE, {"request_id": "req", "digest": bytes_digest(data)})])


def test_an_honest_certificate_passes_whole(session: Session) -> None:
    found = outcomes(session)
    assert "failed" not in found.values()
    assert sum(name.startswith("V4") for name in found) == session.recipe.shards
    forge(session, lambda predicate: None)
    assert "failed" not in outcomes(session).values()


def _hide_the_tombstones(predicate: dict[str, Any]) -> None:
    predicate["request"]["tombstones"] = []


def _name_another_record(predicate: dict[str, Any]) -> None:
    predicate["request"]["tags"] = ["ab" * 32]


def _claim_no_impact(predicate: dict[str, Any]) -> None:
    predicate["impact"]["shards"] = []


def _claim_impact_elsewhere(predicate: dict[str, Any]) -> None:
    predicate["impact"]["shards"] = [{**predicate["impact"]["shards"][0], "shard": 77}]


def _leave_out_the_lineages(predicate: dict[str, Any]) -> None:
    predicate["lineages"] = []


def _claim_an_old_generation(predicate: dict[str, Any]) -> None:
    predicate["after"]["generation"] = 0


def _claim_other_tensors_on_the_way(predicate: dict[str, Any]) -> None:
    next(part for part in predicate["lineages"] if len(part["links"]) > 1)["links"][0]["tensors"] = "00" * 32


def _claim_another_slice(predicate: dict[str, Any]) -> None:
    next(part for part in predicate["lineages"] if part["links"])["links"][0]["slice_digest"] = "00" * 32


def _hide_what_was_purged(predicate: dict[str, Any]) -> None:
    predicate["purged"] = []


def _hide_what_was_served(predicate: dict[str, Any]) -> None:
    predicate["before"] = {}


def _claim_other_records(predicate: dict[str, Any]) -> None:
    predicate["records"]["digest"] = "00" * 32


def _sign_although_the_law_failed(predicate: dict[str, Any]) -> None:
    predicate["law"][0]["outcome"] = "failed"


def _claim_everything(predicate: dict[str, Any]) -> None:
    predicate["not_claimed"] = []


def _hide_the_erasure(predicate: dict[str, Any]) -> None:
    predicate["erasure"] = []


@pytest.mark.parametrize(
    "change",
    [
        _hide_the_tombstones,
        _name_another_record,
        _claim_no_impact,
        _claim_impact_elsewhere,
        _leave_out_the_lineages,
        _claim_an_old_generation,
        _claim_other_tensors_on_the_way,
        _claim_another_slice,
        _hide_what_was_purged,
        _hide_what_was_served,
        _claim_other_records,
        _sign_although_the_law_failed,
        _claim_everything,
        _hide_the_erasure,
    ],
)
def test_a_signed_lie_fails(session: Session, change: Forgery) -> None:
    forge(session, change)
    assert "failed" in outcomes(session).values()


def test_a_replay_that_could_not_be_run_is_not_checked(session: Session) -> None:
    foreign = ToyTrainer((("machine", "another"),))

    def elsewhere(workspace: Workspace, shards: list[int], level: str) -> list[Check]:
        return replay(workspace, shards, level, INLINE, foreign)

    path = certificate_path(session.workspace, "req")
    checks = verify(path, workspace=session.workspace.path, replay="affected", replayer=elsewhere)
    (replayed,) = (check for check in checks if check.level == "V3")
    assert replayed.outcome == "not_checked"
    assert "another environment class" in replayed.detail


@pytest.mark.parametrize(
    "field",
    [
        "after", "before", "environments", "erasure", "handed_out", "impact", "issuer", "keys", "kept", "law",
        "lineages", "not_claimed", "purged", "recipe", "records", "request", "retrained", "version",
    ],
)  # fmt: skip
def test_a_signed_certificate_that_lacks_a_field_fails_without_a_traceback(session: Session, field: str) -> None:
    workspace = session.workspace
    request = workspace.book.requests()[0][1]
    document = statement(workspace, request, check_law(workspace))
    assert document["predicate"].pop(field) is not None
    data = json.dumps(sign(canonical_json(document), workspace.path / "keys")).encode()
    certificate_path(workspace, "req").write_bytes(data)
    workspace.ledger.append([(kinds.CERTIFICATE, {"request_id": "req", "digest": bytes_digest(data)})])
    assert "failed" in outcomes(session).values()


def test_what_a_killed_replay_left_is_reported_and_swept_before_a_certificate(session: Session) -> None:
    workspace = session.workspace
    with workspace.scratch() as scratch:
        left = scratch.with_name(scratch.name + "-killed")
        (left / "object").mkdir(parents=True)
    assert not scratch.exists()
    strays = [check for check in check_law(workspace) if check.outcome == "failed"]
    assert [check.name for check in strays] == ["nothing is stored that no fact names"]
    delete(session, ["r2"], executor=INLINE, trainer=TRAINER)
    assert not left.exists()


def test_a_replay_that_cannot_begin_is_the_callers_matter_and_no_failed_check(session: Session) -> None:
    def baseless(workspace: Workspace, shards: list[int], level: str) -> list[Check]:
        raise RecipeMismatchError("the pinned base", "another", "name it")

    path = certificate_path(session.workspace, "req")
    with pytest.raises(RecipeMismatchError):
        verify(path, workspace=session.workspace.path, replay="full", replayer=baseless)
