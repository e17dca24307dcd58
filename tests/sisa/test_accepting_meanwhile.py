"""A deletion is accepted while somebody else trains: forgotten at once, and nothing goes wrong."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from orchestration.executor import ChainOrder, Lesson, Outcome, SliceTrainer
from orchestration.inline import InlineExecutor
from shards import kinds
from shards.errors import InputError, LockedError
from shards.workspace import Workspace
from sisa.certificate import certificate_path
from sisa.delete import delete
from sisa.queue import cancel, list_requests, work
from sisa.session import Session
from sisa.train import train
from tests.exactness.oracle import assert_equals_fresh_run
from tests.sisa.trained import assert_lawful, forget, held, ingest, ingested, rows, trained
from tests.toy import ToyTrainer, toy_recipe


@dataclass(frozen=True)
class Visited(ToyTrainer):
    """Somebody comes along in the midst of a step that shows a record, once."""

    record_id: str = ""
    visit: Callable[[], object] = list
    came: list[str] = field(default_factory=list)

    def train(self, lesson: Lesson) -> Mapping[str, bytes]:
        shown = {record.id for records in lesson.passes for record in records}
        if self.record_id in shown and not self.came:
            self.came.append(self.record_id)
            self.visit()
        return ToyTrainer.train(self, lesson)


@pytest.fixture
def session(memory_path: Path) -> Iterator[Session]:
    made = ingested(memory_path / "workspace", toy_recipe(rehearsal=0.0))
    yield made
    made.workspace.close()


def elsewhere(session: Session, do: Callable[[Session], object]) -> None:
    """In another process's place: another session on the same workspace, which takes its own locks."""
    other = replace(session, workspace=Workspace.open(session.workspace.path))
    try:
        do(other)
    finally:
        other.workspace.close()


def queue_elsewhere(session: Session, *ids: str) -> None:
    elsewhere(session, lambda other: delete(other, ids, queue=True, request_id="-".join(ids)))


def saw(session: Session, record_id: str) -> bool:
    """Did what is served now see a record?"""
    manifest, visible = session.workspace.book.manifest(), session.workspace.visible_sets()
    heads = () if manifest is None else manifest.heads
    return any(session.workspace.tag(record_id) in visible[head.checkpoint] for head in heads)


def states(session: Session) -> dict[str, str]:
    return {entry["request_id"]: entry["state"] for entry in list_requests(session)}


@pytest.mark.parametrize("record_id", [f"r{number}" for number in range(0, 12, 2)])
def test_what_is_queued_during_a_training_is_finished_by_it(session: Session, record_id: str, tmp_path: Path) -> None:
    trainer = Visited(record_id=record_id, visit=lambda: queue_elsewhere(session, record_id))
    train(session, executor=InlineExecutor(), trainer=trainer)
    assert trainer.came == [record_id]
    assert states(session) == {record_id: "completed"}
    assert_lawful(session)
    assert_equals_fresh_run(session, ToyTrainer(), tmp_path / "oracle")


@pytest.mark.parametrize("number", range(4))
def test_what_is_queued_during_a_retraining_is_suppressed_at_once(
    session: Session, number: int, tmp_path: Path
) -> None:
    """Any record: in the shard that is retrained or in another."""
    train(session, executor=InlineExecutor(), trainer=ToyTrainer())
    gone, shown = first_and_last(session)
    victim = [one.record.id for one in session.workspace.survivors() if one.record.id not in (gone, shown)][number]
    served: list[bool] = []

    def visit() -> None:
        queue_elsewhere(session, victim)
        elsewhere(session, lambda other: served.append(saw(other, victim)))

    forget_with(session, gone, Visited(record_id=shown, visit=visit))
    assert served == [False]
    assert not saw(session, victim)
    train(session, executor=InlineExecutor(), trainer=ToyTrainer())
    assert set(states(session).values()) == {"completed"}
    assert_lawful(session)
    assert_equals_fresh_run(session, ToyTrainer(), tmp_path / "oracle")


def first_and_last(session: Session) -> tuple[str, str]:
    """A record of the first and one of the last step of the longest chain."""
    chain = max(session.workspace.plan().chains, key=lambda chain: len(chain.steps))
    return chain.steps[0].members[0].record.id, chain.steps[-1].members[0].record.id


def forget_with(session: Session, record_id: str, trainer: ToyTrainer) -> None:
    delete(session, [record_id], executor=InlineExecutor(), trainer=trainer)


def test_a_queued_deletion_is_withdrawn_while_somebody_trains(session: Session, tmp_path: Path) -> None:
    train(session, executor=InlineExecutor(), trainer=ToyTrainer())
    gone, shown = first_and_last(session)
    shards = {
        one.record.id: session.workspace.layout().place(one.record).shard for one in session.workspace.survivors()
    }
    far = next(name for name, shard in shards.items() if shard != shards[gone])
    queue_elsewhere(session, far)
    assert not saw(session, far)
    trainer = Visited(record_id=shown, visit=lambda: elsewhere(session, lambda other: cancel(other, far)))
    forget_with(session, gone, trainer)
    assert trainer.came == [shown]
    assert states(session)[far] == "cancelled"
    assert saw(session, far)
    assert_lawful(session)
    assert_equals_fresh_run(session, ToyTrainer(), tmp_path / "oracle")


def test_a_request_that_is_being_worked_off_is_not_withdrawn(session: Session) -> None:
    train(session, executor=InlineExecutor(), trainer=ToyTrainer())
    gone, shown = first_and_last(session)
    refused: list[str] = []

    def visit() -> None:
        with pytest.raises(ValueError, match="was not begun") as caught:
            elsewhere(session, lambda other: cancel(other, "now"))
        refused.append(str(caught.value))

    delete(session, [gone], request_id="now", executor=InlineExecutor(), trainer=Visited(record_id=shown, visit=visit))
    assert len(refused) == 1
    assert states(session) == {"now": "completed"}


def test_whoever_deletes_during_a_training_is_told_of_the_queue(session: Session) -> None:
    told: list[str] = []

    def visit() -> None:
        with pytest.raises(LockedError, match="add --queue") as caught:
            elsewhere(session, lambda other: forget(other, "r1"))
        told.append(str(caught.value))

    train(session, executor=InlineExecutor(), trainer=Visited(record_id="r1", visit=visit))
    assert len(told) == 1
    assert states(session) == {}


def test_a_receipt_of_acceptance_survives_the_death_of_the_trainer(memory_path: Path, tmp_path: Path) -> None:
    """The driver dies right after somebody else's acceptance; the next run finishes both."""
    session = trained(memory_path / "other")

    class Died(BaseException):
        pass

    def visit() -> None:
        queue_elsewhere(session, "r5")
        raise Died

    gone, shown = first_and_last(session)
    assert "r5" not in (gone, shown)
    with pytest.raises(Died):
        forget_with(session, gone, Visited(record_id=shown, visit=visit))
    assert not saw(session, "r5")
    train(session, executor=InlineExecutor(), trainer=ToyTrainer())
    assert set(states(session).values()) == {"completed"}
    assert_lawful(session)
    assert_equals_fresh_run(session, ToyTrainer(), tmp_path / "oracle")
    session.workspace.close()


# -- found by a second pair of eyes -------------------------------------------------------------


@dataclass
class After:
    """Runs steps inline, and somebody comes along when the last of them has ended, or the number ``at``."""

    visit: Callable[[], object]
    at: int | None = None
    came: bool = False

    def run(
        self, chains: Iterable[ChainOrder], trainer: SliceTrainer, workspace: Path, store: Path
    ) -> Iterator[Outcome]:
        for number, outcome in enumerate(InlineExecutor().run(chains, trainer, workspace, store), 1):
            yield outcome
            if number == self.at:
                self._come()
        if self.at is None:
            self._come()

    def _come(self) -> None:
        if not self.came:
            self.came = True
            self.visit()


def of_one_shard(session: Session) -> list[str]:
    layout = session.workspace.layout()
    return sorted(one.record.id for one in session.workspace.survivors() if layout.place(one.record).shard == 0)


@pytest.fixture
def whole(session: Session) -> Session:
    train(session, executor=InlineExecutor(), trainer=ToyTrainer())
    return session


@pytest.mark.parametrize("command", ["delete", "work", "train"])
def test_a_run_that_is_overtaken_after_its_last_step_completes_what_it_was_asked_for(
    whole: Session, command: str, tmp_path: Path
) -> None:
    first, second = of_one_shard(whole)[:2]
    executor = After(lambda: queue_elsewhere(whole, second))
    if command == "delete":
        done = delete(whole, [first], request_id=first, executor=executor, trainer=ToyTrainer())
        assert done.certificate is not None
        assert done.certificate.is_file()
    else:
        queue_elsewhere(whole, first)
        later = datetime.now(UTC) + timedelta(days=2)
        if command == "work":
            assert first in work(whole, later, executor=executor, trainer=ToyTrainer()).completed
        else:
            train(whole, executor=executor, trainer=ToyTrainer())
    assert executor.came
    assert states(whole)[first] == "completed"
    train(whole, executor=InlineExecutor(), trainer=ToyTrainer())
    assert_lawful(whole)
    assert_equals_fresh_run(whole, ToyTrainer(), tmp_path / "oracle")


@pytest.mark.parametrize("at", [1, 2, None])
@pytest.mark.parametrize("victim", ["r11", "r5", "r0", "r2"])
def test_a_request_is_certified_although_what_it_makes_fall_had_fallen_already(
    whole: Session, victim: str, at: int | None
) -> None:
    """One request waits on two shards, another has one of them trained again, the first is withdrawn, and then."""
    delete(whole, ["r3", "r6"], queue=True, request_id="B")
    delete(whole, ["r9"], request_id="A", executor=InlineExecutor(), trainer=ToyTrainer())
    cancel(whole, "B")
    train(whole, executor=After(lambda: queue_elsewhere(whole, victim), at), trainer=ToyTrainer())
    train(whole, executor=InlineExecutor(), trainer=ToyTrainer())
    assert_lawful(whole)


def test_a_withdrawal_brings_back_no_second_version_of_a_record(whole: Session, tmp_path: Path) -> None:
    queue_elsewhere(whole, "r3")
    ingest(whole, rows(tmp_path / "again.jsonl", 3), readmit=["r3"])
    with pytest.raises(InputError, match="newer versions of 'r3'"):
        cancel(whole, "r3")
    train(whole, executor=InlineExecutor(), trainer=ToyTrainer())
    assert held(whole)["r3"] == 2
    assert_lawful(whole)
    assert_equals_fresh_run(whole, ToyTrainer(), tmp_path / "oracle")


def test_whose_record_is_erased_in_anothers_name_is_begun(whole: Session, tmp_path: Path) -> None:
    layout = whole.workspace.layout()
    shards = {one.record.id: layout.place(one.record).shard for one in whole.workspace.survivors()}
    other = next(name for name, shard in shards.items() if shard != shards["r3"])
    delete(whole, ["r3", other], queue=True, request_id="B")
    ingest(whole, rows(tmp_path / "again.jsonl", 3), readmit=["r3"])
    forget(whole, "r3", request_id="C")
    with pytest.raises(InputError, match="was not begun"):
        cancel(whole, "B")
    train(whole, executor=InlineExecutor(), trainer=ToyTrainer())
    assert set(states(whole).values()) == {"completed"}
    assert_lawful(whole)


def test_a_name_used_again_after_a_withdrawal_says_nothing_of_the_withdrawn_request(whole: Session) -> None:
    delete(whole, ["r3", "r6"], queue=True, request_id="B")
    forget(whole, "r9", request_id="A")
    cancel(whole, "B")
    forget(whole, "r7", request_id="B")
    predicate = signed(whole, "B")
    found = whole.workspace.book.request("B")
    assert found is not None
    named = [fact["seq"] for fact in predicate["log"]["facts"] if fact["kind"] == kinds.PURGE]
    assert named
    assert min(named) > found[0].seq


def test_a_certificate_counts_survivors_and_not_what_waits_to_be_erased(whole: Session) -> None:
    delete(whole, ["r3", "r6"], queue=True, request_id="B")
    forget(whole, "r9", request_id="A")
    assert signed(whole, "A")["records"]["surviving"] == len(whole.workspace.survivors()) == 9


def signed(session: Session, request_id: str) -> Any:
    """What a certificate says."""
    envelope = json.loads(certificate_path(session.workspace, request_id).read_text())["envelope"]
    return json.loads(base64.b64decode(envelope["payload"]))["predicate"]
