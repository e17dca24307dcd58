"""The same request twice, in parallel and after completion; another body; requests that overlap."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from orchestration.inline import InlineExecutor
from shards.errors import InputError, LockedError
from shards.workspace import Workspace
from sisa.certificate import certificate_path
from sisa.delete import Deleted, delete
from sisa.ingest import Ingested, commit
from sisa.session import Session
from sisa.train import train
from tests.exactness.oracle import assert_equals_fresh_run, assert_lawful, refuted
from tests.exactness.test_known_defects import Failing
from tests.flows.helpers import unchanged
from tests.toy import ToyTrainer, stored, toy_recipe, toy_record, toy_session

ROOT = Path(__file__).parents[2]
RECORDS = 14


@pytest.fixture
def session(memory_path: Path) -> Iterator[Session]:
    """A trained toy workspace."""
    made = toy_session(memory_path / "workspace", toy_recipe())
    commit(made, stored(made, map(toy_record, range(RECORDS))), Ingested(RECORDS, 0, 0, 0))
    train(made, executor=InlineExecutor(), trainer=ToyTrainer())
    yield made
    made.workspace.close()


def forget(session: Session, *ids: str, trainer: ToyTrainer | None = None, **options: Any) -> Deleted:
    return delete(session, ids, executor=InlineExecutor(), trainer=trainer or ToyTrainer(), **options)


def check(session: Session, scratch: Path) -> None:
    """The law, the fresh run, and every certificate."""
    assert_lawful(session)
    assert_equals_fresh_run(session, ToyTrainer(), scratch)
    for file in (session.workspace.path / "certificates").iterdir():
        assert refuted(file, session.workspace.path) == []


def in_one_shard(session: Session) -> list[str]:
    """IDs of the records of the shard that has most of them, in the order of its slices."""
    chain = max(session.workspace.plan().chains, key=lambda chain: len(chain.steps[-1].members) if chain.steps else 0)
    return [member.record.id for step in chain.steps for member in step.members[:2]]


# -- the same again ------------------------------------------------------------------------------


@pytest.mark.parametrize("request_id", [None, "case-1"])
@pytest.mark.parametrize("who", [{}, {"requester": "Anna", "reason": "withdrawn"}])
def test_the_same_request_after_completion_changes_nothing(
    request_id: str | None, who: dict[str, str], session: Session, memory_path: Path
) -> None:
    ids = ("r1", "r4", "never")
    first = forget(session, *ids, request_id=request_id, ignore_missing=True, who=who)
    with unchanged(session.workspace.path):
        for again in (ids, ids[::-1], (*ids, "r1")):
            repeated = forget(session, *again, request_id=request_id, ignore_missing=True, who=who)
            assert (repeated.request_id, repeated.certificate) == (first.request_id, first.certificate)
    check(session, memory_path / "oracle")


def test_a_statement_of_absence_asked_again_under_its_name_is_the_same(session: Session, memory_path: Path) -> None:
    first = forget(session, "never", request_id="case-1", ignore_missing=True)
    with unchanged(session.workspace.path):
        again = forget(session, "never", request_id="case-1", ignore_missing=True)
    assert (again.request_id, again.certificate) == ("case-1", first.certificate)
    check(session, memory_path / "oracle")


OTHER_BODIES: dict[str, dict[str, Any]] = {
    "another record": {"ids": ["r2"]},
    "one record more": {"ids": ["r1", "r2"]},
    "a record that was never held besides": {"ids": ["r1", "never"]},
    "a record that was never held instead": {"ids": ["never"]},
    "a subject with more records": {"subjects": ["s0"]},
    "another requester": {"ids": ["r1"], "who": {"requester": "Berta"}},
    "another reason besides": {"ids": ["r1"], "who": {"requester": "Anna", "reason": "withdrawn"}},
}


@pytest.mark.parametrize("case", OTHER_BODIES)
def test_a_request_id_with_another_body_is_refused(case: str, session: Session) -> None:
    forget(session, "r1", request_id="case-1", who={"requester": "Anna"})
    with unchanged(session.workspace.path), pytest.raises(InputError, match="case-1"):
        delete(
            session, request_id="case-1", ignore_missing=True, executor=InlineExecutor(), trainer=ToyTrainer(),
            **OTHER_BODIES[case],
        )  # fmt: skip


# -- in parallel ---------------------------------------------------------------------------------

DELETER = """
import sys
from pathlib import Path
from orchestration.inline import InlineExecutor
from shards.errors import LockedError
from shards.workspace import Workspace
from sisa.config import RunOptions
from sisa.delete import delete
from sisa.session import Session
from tests.toy import ToyTrainer, toy_recipe

class Waiting(ToyTrainer):
    def train(self, lesson):
        print("training", flush=True)
        sys.stdin.readline()
        return ToyTrainer.train(self, lesson)

workspace, patient = Workspace.open(Path(sys.argv[1])), sys.argv[2] == "waiting"
session = Session(workspace, toy_recipe(), RunOptions(base_model="toy", executor="inline"))
print("ready", flush=True)
sys.stdin.readline()
try:
    trainer = Waiting() if patient else ToyTrainer()
    done = delete(session, ["r1"], request_id="case-1", executor=InlineExecutor(), trainer=trainer)
except LockedError:
    print("locked", flush=True)
else:
    print(done.request_id, done.certificate.read_bytes().hex()[-64:], flush=True)
workspace.close()
"""


@contextmanager
def deleter(workspace: Path, how: str = "quick") -> Iterator[subprocess.Popen[str]]:
    """A process that is ready to ask for the deletion of r1; a line lets it go on."""
    command = [sys.executable, "-c", DELETER, str(workspace), how]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as process:
        assert said(process) == "ready"
        try:
            yield process
        finally:
            process.kill()


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def go_on(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def test_the_same_request_while_it_is_carried_out_is_locked_out(session: Session, memory_path: Path) -> None:
    path = session.workspace.path
    with deleter(path, "waiting") as first, deleter(path) as second:
        go_on(first)
        assert said(first) == "training"
        go_on(second)
        assert said(second) == "locked"
        with pytest.raises(LockedError):
            forget(session, "r1", request_id="case-1")
        answer = "training"
        while answer == "training":
            go_on(first)
            answer = said(first)
    assert answer.startswith("case-1 ")
    with unchanged(path):
        assert forget(session, "r1", request_id="case-1").request_id == "case-1"
    check(session, memory_path / "oracle")


def test_of_two_at_once_each_is_locked_out_or_gets_the_one_certificate(session: Session, memory_path: Path) -> None:
    path = session.workspace.path
    with deleter(path) as one, deleter(path) as other:
        go_on(one)
        go_on(other)
        answers = {said(one), said(other)} - {"locked"}
    assert len(answers) == 1
    assert len(session.workspace.book.requests()) == len(session.workspace.book.certificates()) == 1
    assert answers == {f"case-1 {certificate_path(session.workspace, 'case-1').read_bytes().hex()[-64:]}"}
    check(session, memory_path / "oracle")


# -- overlapping ---------------------------------------------------------------------------------


def test_a_deletion_that_overlaps_a_finished_one_covers_the_rest(session: Session, memory_path: Path) -> None:
    one, two, three = in_one_shard(session)[:3]
    first = forget(session, one, two, request_id="first")
    second = forget(session, two, three, request_id="second")
    assert second.requests == ("first", "second")
    assert first.certificate != second.certificate
    requests = {request.request_id: len(request.tags) for _, request in session.workspace.book.requests()}
    assert requests == {"first": 2, "second": 1}
    check(session, memory_path / "oracle")


@pytest.mark.parametrize("finished_by", ["delete", "train"])
def test_two_deletions_in_one_shard_that_were_both_cut_off_are_both_finished(
    finished_by: str, session: Session, memory_path: Path
) -> None:
    """The second is accepted while the first has forgotten and not yet relearnt, in the same shard."""
    one, two, three, four = in_one_shard(session)[:4]
    for request_id, ids in (("first", (one, two)), ("second", (two, three))):
        with pytest.raises(Exception, match="memory"):
            forget(session, *ids, request_id=request_id, trainer=Failing())
    workspace: Workspace = session.workspace
    assert workspace.book.certificates() == {}
    if finished_by == "delete":
        forget(session, four, request_id="third")
    else:
        train(session, executor=InlineExecutor(), trainer=ToyTrainer())
    assert {"first", "second"} <= workspace.book.certificates().keys()
    check(session, memory_path / "oracle")
