"""A certificate that the operator's own key signed and the ledger names is still not believed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestration.inline import InlineExecutor
from shards import kinds
from shards.checks import Check
from shards.errors import RecipeMismatchError
from shards.law import check_law
from shards.scratch import scratch
from shards.sparse import prove
from shards.workspace import Workspace
from sisa.acceptance import accept
from sisa.certificate import certificate_path
from sisa.certificate import statement as state
from sisa.delete import delete
from sisa.ingest import Ingested, commit
from sisa.replay import replay
from sisa.session import Session
from sisa.train import train
from sisa.verify import Evidence, verify
from sisa.verify_workspace import verify_against
from tests.sisa.forging import (
    Forgery,
    accept_anew,
    failed,
    follow,
    forge,
    from_the_file,
    head_size,
    rest_on,
    signed,
    with_the_workspace,
)
from tests.toy import ToyTrainer, stored, toy_recipe, toy_record, toy_session

INLINE = InlineExecutor()
TRAINER = ToyTrainer()


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
    checks = with_the_workspace(certificate_path(session.workspace, "req"), session.workspace, replayer)
    return {f"{check.level} {check.name}": check.outcome for check in checks}


def lie(session: Session, change: Forgery) -> Path:
    """Sign an altered certificate with the workspace's key, and let the log name it."""
    statement = signed(session.workspace, "req")
    size = head_size(statement)
    change(statement["predicate"])
    return forge(session.workspace, statement, "req", size)


def test_an_honest_certificate_passes_whole(session: Session) -> None:
    found = outcomes(session)
    assert "failed" not in found.values()
    assert sum(name.startswith("V4") for name in found) == session.recipe.shards
    lie(session, lambda predicate: None)
    assert "failed" not in outcomes(session).values()


def _hide_the_tombstones(predicate: dict[str, Any]) -> None:
    predicate["request"]["targets"]["tombstones"] = []


def _name_another_record(predicate: dict[str, Any]) -> None:
    predicate["request"]["targets"]["tags"] = ["ab" * 32]


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
    next(part for part in predicate["lineages"] if part["links"])["links"][0]["root"] = "00" * 32


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
    path = lie(session, change)
    assert failed(with_the_workspace(path, session.workspace, replayer))
    assert bool(failed(from_the_file(path, session.workspace))) == (change is not _claim_other_records)


LOGGED = "the facts it rests on are in the operator's log"
SAID = "its fields are what the logged facts say"
SERVED = "no purged checkpoint is in a served lineage"
ABSENT = "the records are in no slice that the served heads were trained on"
Statement = dict[str, Any]


def accept_it_again(workspace: Workspace, statement: Statement) -> None:
    accept_anew(workspace, statement)


def tell_facts_out_of_order(_: Workspace, statement: Statement) -> None:
    log = statement["predicate"]["log"]
    first, second, *rest = log["facts"]
    log["facts"] = [first, *rest, second]


def tell_a_fact_twice(_: Workspace, statement: Statement) -> None:
    log = statement["predicate"]["log"]
    at, slice_fact = next((at, fact) for at, fact in enumerate(log["facts"]) if fact["kind"] == kinds.SLICE)
    log["facts"].insert(at, slice_fact)


def say_that_a_deleted_record_was_never_there(workspace: Workspace, statement: Statement) -> None:
    accept_anew(workspace, statement, kind="not-present")


def say_that_something_was_deleted_which_is_not_told(workspace: Workspace, statement: Statement) -> None:
    statement["predicate"]["request"]["targets"]["tags"] = []
    accept_anew(workspace, statement)


def say_that_a_record_was_deleted_from_no_part(_: Workspace, statement: Statement) -> None:
    log = statement["predicate"]["log"]
    log["facts"] = [fact for fact in log["facts"] if fact["kind"] != kinds.ERASURE]
    follow(statement)


def leave_a_deleted_record_without_its_tombstone(workspace: Workspace, statement: Statement) -> None:
    """Its tag may come back; the tombstone that stands is for a record that never was."""
    said, never = statement["predicate"], "ab" * 32
    said["request"]["targets"]["tombstones"] = [never]
    steps = [step for chain in workspace.plan().chains for step in chain.steps]
    said["absence"] = {never: [prove(step.leaves, bytes.fromhex(never)).to_json() for step in steps]}
    accept_anew(workspace, statement)


def purge_what_is_served(workspace: Workspace, statement: Statement) -> None:
    made = next(iter(workspace.book.live().values()))
    body = {"checkpoints": [made.key], "objects": [made.files], "requests": ["req"], "method": "unlink"}
    rest_on(workspace, statement, [(kinds.PURGE, body)])
    follow(statement)


@pytest.mark.parametrize(
    ("harm", "names"),
    [
        (accept_it_again, []),
        (tell_facts_out_of_order, [LOGGED]),
        (tell_a_fact_twice, [LOGGED]),
        (say_that_a_deleted_record_was_never_there, [SAID]),
        (say_that_something_was_deleted_which_is_not_told, [SAID]),
        (say_that_a_record_was_deleted_from_no_part, [SAID]),
        (leave_a_deleted_record_without_its_tombstone, [ABSENT]),
        (purge_what_is_served, [SERVED]),
    ],
)
def test_each_lie_that_is_consistent_otherwise_fails_its_one_check(
    session: Session, harm: Callable[[Workspace, Statement], None], names: list[str]
) -> None:
    """What follows from the lie is told with it: facts are logged, digests and proofs are right."""
    workspace, statement = session.workspace, signed(session.workspace, "req")
    harm(workspace, statement)
    assert failed(from_the_file(forge(workspace, statement, "req", head_size(statement)), workspace)) == names


def test_a_statement_that_names_no_record_at_all_fails(session: Session) -> None:
    request = accept(session, [], [], [], "nothing")
    size = len(session.workspace.ledger.since(0))
    statement = state(session.workspace, request, check_law(session.workspace), size)
    path = forge(session.workspace, statement, "nothing", size)
    assert failed(from_the_file(path, session.workspace)) == [ABSENT]


def test_a_replay_that_could_not_be_run_is_not_checked(session: Session) -> None:
    foreign = ToyTrainer((("machine", "another"),))

    def elsewhere(workspace: Workspace, shards: list[int], level: str) -> list[Check]:
        return replay(workspace, shards, level, INLINE, foreign)

    document, _ = verify(certificate_path(session.workspace, "req"), Evidence())
    assert document is not None
    checks = verify_against(document, session.workspace.path, replay="affected", replayer=elsewhere)
    (replayed,) = (check for check in checks if check.level == "V3")
    assert replayed.outcome == "not_checked"
    assert "another environment class" in replayed.detail


@pytest.mark.parametrize(
    "field",
    [
        "absence", "after", "before", "clock", "environments", "erasure", "handed_out", "impact", "issued", "issuer",
        "keys", "kept", "law", "lineages", "log", "namespace", "not_claimed", "prior", "purged", "recipe", "records",
        "replay", "request", "retrained", "statement", "supersedes", "version",
    ],
)  # fmt: skip
def test_a_signed_certificate_that_lacks_a_field_fails_without_a_traceback(session: Session, field: str) -> None:
    document, checks = verify(lie(session, lambda predicate: predicate.pop(field)), Evidence())
    assert document is None
    assert [(check.level, check.outcome) for check in checks] == [("V0", "failed")]


def test_what_a_killed_replay_left_is_reported_and_swept_before_a_certificate(session: Session) -> None:
    workspace = session.workspace
    with scratch(workspace.path) as directory:
        left = directory.with_name(directory.name + "-killed")
        (left / "object").mkdir(parents=True)
    assert not directory.exists()
    strays = [check for check in check_law(workspace) if check.outcome == "failed"]
    assert [check.name for check in strays] == ["nothing is stored that no fact names"]
    delete(session, ["r2"], executor=INLINE, trainer=TRAINER)
    assert not left.exists()


def test_a_replay_that_cannot_begin_is_the_callers_matter_and_no_failed_check(session: Session) -> None:
    def baseless(workspace: Workspace, shards: list[int], level: str) -> list[Check]:
        raise RecipeMismatchError("the pinned base", "another", "name it")

    with pytest.raises(RecipeMismatchError):
        with_the_workspace(certificate_path(session.workspace, "req"), session.workspace, baseless)
