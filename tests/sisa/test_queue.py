"""Requests as a queue: suppressed at once, worked off together, withdrawn before."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from orchestration.executor import Lesson, Outcome
from orchestration.inline import InlineExecutor
from shards import kinds
from shards.errors import HeldError, InputError, OperationError, UnknownRecordError
from shards.law import check_law
from sisa.certificate import certificate_path
from sisa.delete import Deleted, delete
from sisa.hold import hold
from sisa.ingest import ingest
from sisa.queue import cancel, list_requests, work
from sisa.session import Session
from sisa.train import train
from tests.exactness.oracle import assert_equals_fresh_run
from tests.sisa.trained import assert_lawful, retrain, rows, trained
from tests.toy import ToyTrainer

TRAINER = ToyTrainer()
LATER = datetime.now(UTC) + timedelta(days=2)


@pytest.fixture
def session(memory_path: Path) -> Iterator[Session]:
    made = trained(memory_path / "workspace")
    yield made
    made.workspace.close()


def queue(session: Session, *ids: str, **options: Any) -> Deleted:
    return delete(session, ids, queue=True, executor=InlineExecutor(), trainer=TRAINER, **options)


def worked(session: Session, now: datetime | None = LATER, **options: Any) -> Any:
    return work(session, now, executor=InlineExecutor(), **({"trainer": TRAINER} | options))


def states(session: Session, now: datetime | None = None) -> dict[str, str]:
    return {entry["request_id"]: entry["state"] for entry in list_requests(session, now)}


def served(session: Session) -> list[str]:
    return [head.checkpoint for head, _ in session.workspace.book.served()]


def saw(session: Session, record_id: str) -> list[str]:
    tag, visible = session.workspace.tag(record_id), session.workspace.visible_sets()
    return [key for key in served(session) if tag in visible[key]]


def test_a_queued_request_is_suppressed_at_once_and_nothing_else_happens(session: Session) -> None:
    live = session.workspace.book.live().keys()
    done = queue(session, "r1", request_id="one")
    assert (done.request_id, done.certificate) == ("one", None)
    assert saw(session, "r1") == []
    assert session.workspace.book.live().keys() == live
    assert states(session) == {"one": "suppressed"}
    assert not certificate_path(session.workspace, "one").exists()


def test_work_does_the_rest_once_the_turn_has_come(session: Session, tmp_path: Path) -> None:
    queue(session, "r1", request_id="one")
    queue(session, "r5", request_id="two")
    assert worked(session, None).waiting == ("one", "two"), "the window is open"
    assert states(session, LATER) == {"one": "planned", "two": "planned"}
    assert worked(session).completed == ("one", "two")
    assert states(session) == {"one": "completed", "two": "completed"}
    assert all(certificate_path(session.workspace, name).exists() for name in ("one", "two"))
    assert_lawful(session)
    assert_equals_fresh_run(session, TRAINER, tmp_path / "fresh")


def test_requests_that_hit_one_shard_share_one_retraining(session: Session) -> None:
    layout = session.workspace.layout()
    places = {stored.record.id: layout.place(stored.record).shard for stored in session.workspace.survivors()}
    same = [name for name in places if places[name] == places["r1"]][:3]
    for name in same:
        queue(session, name, request_id=f"about-{name}")
    runs = len(session.workspace.ledger.facts(kinds.RUN))
    assert len(worked(session).completed) == len(same) == 3
    assert len(session.workspace.ledger.facts(kinds.RUN)) == runs + 1
    assert len(session.workspace.ledger.facts(kinds.CERTIFICATE)) == 3


def test_a_direct_deletion_leaves_the_queue_of_other_shards_alone(session: Session, tmp_path: Path) -> None:
    layout = session.workspace.layout()
    places = {stored.record.id: layout.place(stored.record).shard for stored in session.workspace.survivors()}
    mine, same = [name for name in places if places[name] == places["r1"]][:2]
    other = next(name for name in places if places[name] != places["r1"])
    queue(session, other, request_id="other")
    queue(session, same, request_id="same")
    delete(session, [mine], request_id="now", executor=InlineExecutor(), trainer=TRAINER)
    assert states(session) == {"other": "suppressed", "same": "completed", "now": "completed"}
    assert saw(session, other) == []
    assert not [check for check in check_law(session.workspace) if check.outcome == "failed"]
    worked(session)
    assert_lawful(session)
    assert_equals_fresh_run(session, TRAINER, tmp_path / "fresh")


def test_training_finishes_the_queue(session: Session) -> None:
    queue(session, "r1", request_id="one")
    train(session, executor=InlineExecutor(), trainer=TRAINER)
    assert states(session) == {"one": "completed"}


def test_a_request_is_withdrawn_before_it_is_begun(session: Session, tmp_path: Path) -> None:
    before = served(session)
    queue(session, "r1", request_id="one")
    assert served(session) != before
    cancel(session, "one")
    assert served(session) == before
    assert states(session) == {"one": "cancelled"}
    assert_lawful(session)
    assert_equals_fresh_run(session, TRAINER, tmp_path / "fresh")
    queue(session, "r1", request_id="one")
    worked(session)
    assert sorted(states(session).values()) == ["completed"]
    with pytest.raises(InputError, match="erased"):
        cancel(session, "one")
    with pytest.raises(UnknownRecordError):
        cancel(session, "never")


def test_nothing_names_a_withdrawn_request_s_record(session: Session) -> None:
    queue(session, "r1", request_id="one", who={"requester": "Anna"})
    (fact,) = session.workspace.ledger.facts(kinds.REQUEST)
    cancel(session, "one")
    assert not session.workspace.store.path(fact.body["object"]).exists()


@dataclass(frozen=True)
class Failing(ToyTrainer):
    """Fails on the first step that shows a certain record, or on every step."""

    record_id: str = ""

    def train(self, lesson: Lesson) -> Mapping[str, bytes]:
        if self.record_id in {"", *(record.id for record in lesson.passes[0])}:
            raise OperationError("a step", "planted", "none")
        return ToyTrainer.train(self, lesson)


class OutOfReach:
    """An executor whose cluster is gone."""

    def run(self, *_: Any) -> Iterator[Outcome]:
        raise OperationError("a cluster", "none", "start one")


def test_a_request_that_fails_is_parked_visible_and_tried_again_and_others_go_on(session: Session) -> None:
    layout = session.workspace.layout()
    places = {stored.record.id: layout.place(stored.record) for stored in session.workspace.survivors()}
    one = min(places, key=lambda name: places[name].slice)
    other = next(name for name in places if places[name].shard != places[one].shard)
    neighbour = next(name for name in places if places[name] == places[one] and name != one)
    queue(session, one, request_id="one")
    queue(session, other, request_id="other")
    done = worked(session, trainer=Failing(record_id=neighbour))
    assert (done.completed, done.failed) == (("other",), ("one",))
    assert done.errors
    assert states(session) == {"one": "failed", "other": "completed"}
    assert worked(session).completed == ("one",)
    assert states(session) == {"one": "completed", "other": "completed"}
    assert_lawful(session)


def test_position_deadline_and_estimate_are_told(session: Session) -> None:
    queue(session, "r1", request_id="one")
    queue(session, "r5", request_id="two")
    one, two = list_requests(session)
    assert (one["position"], two["position"]) == (1, 2)
    accepted = datetime.fromisoformat(one["accepted"])
    assert datetime.fromisoformat(one["deadline"]) - accepted > timedelta(days=29)
    assert one["estimate_passes"] > 0


def test_a_request_for_what_was_never_held_is_accepted_until_it_is_certified(session: Session) -> None:
    with pytest.raises(OperationError):
        delete(session, ["never"], request_id="one", ignore_missing=True, executor=OutOfReach(), trainer=TRAINER)
    assert states(session) == {"one": "accepted"}
    worked(session)
    assert states(session) == {"one": "completed"}


def test_at_work_a_request_is_first_retraining_and_then_verifying(session: Session) -> None:
    seen: list[str] = []
    queue(session, "r1", request_id="one")
    worked(session, report=lambda _: seen.append(states(session)["one"]))
    assert seen[0] == "retraining"
    assert seen[-1] == "verifying", "all is trained and nothing certified"
    assert set(seen) == {"retraining", "verifying"}


def test_what_is_held_is_rejected_and_listed(session: Session) -> None:
    hold(session.workspace, ["r1"], [])
    with pytest.raises(HeldError):
        queue(session, "r1", request_id="one")
    assert states(session) == {"one": "rejected"}


@pytest.mark.parametrize("limit", ["requester_quota", "requester_cost_cap"])
def test_a_flood_by_one_requester_waits_for_its_deadline(session: Session, limit: str) -> None:
    """A quota of one request, or a cap at what the first costs."""
    queue(session, "r1", request_id="try")
    (first,) = list_requests(session)
    cancel(session, "try")
    allowed = {"requester_quota": 1, "requester_cost_cap": first["estimate_passes"]}[limit]
    limited = replace(session, options=session.options.model_copy(update={limit: allowed, "queue_policy": "now"}))
    layout = session.workspace.layout()
    places = {stored.record.id: layout.place(stored.record).shard for stored in session.workspace.survivors()}
    other = next(name for name in places if places[name] != places["r1"])
    who = {"requester": "Mallory"}
    queue(limited, "r1", request_id="one", who=who)
    queue(limited, other, request_id="two", who=who)
    assert worked(limited, None).completed == ("one",)
    assert states(limited) == {"try": "cancelled", "one": "completed", "two": "suppressed"}
    assert worked(limited, LATER + timedelta(days=30)).completed == ("two",)


def test_ids_never_held_are_left_out_of_the_queue_and_said(session: Session) -> None:
    done = queue(session, "r1", "never", request_id="one", ignore_missing=True)
    assert done.missing == ("never",)
    (_, request) = session.workspace.book.requests()[-1]
    assert request.targets.absent == ()
    with pytest.raises(UnknownRecordError, match="without --queue"):
        queue(session, "nobody", ignore_missing=True)


def test_what_is_being_stated_as_not_present_does_not_come_in_before_it_is_stated(
    session: Session, tmp_path: Path
) -> None:
    """A killed request for an ID that was never held, and then a file that has it."""
    with pytest.raises(OperationError):
        delete(
            session, ["r1", "r20"], request_id="one", ignore_missing=True, executor=InlineExecutor(),
            trainer=Failing(), who={},
        )  # fmt: skip
    retrain(session, rows(tmp_path / "new.jsonl", 20))
    assert states(session) == {"one": "completed"}
    assert "r20" not in {stored.record.id for stored in session.workspace.survivors()}
    retrain(session, tmp_path / "new.jsonl")
    assert "r20" in {stored.record.id for stored in session.workspace.survivors()}
    assert_lawful(session)


@pytest.mark.parametrize(("ids", "subjects"), [(["r1"], []), ([], ["s0"])])
def test_a_hold_does_not_seem_to_stop_what_waits(session: Session, ids: list[str], subjects: list[str]) -> None:
    queue(session, "r1", request_id="one")
    hold(session.workspace, ["r9"], [])
    with pytest.raises(InputError, match="requests --cancel one"):
        hold(session.workspace, ids, subjects)
    cancel(session, "one")
    hold(session.workspace, ids, subjects)
    with pytest.raises(HeldError):
        queue(session, "r1", request_id="two")


def test_what_comes_back_by_withdrawal_is_committed_to_although_an_ingest_left_it_out(
    session: Session, tmp_path: Path
) -> None:
    queue(session, "r1", request_id="one")
    ingest(session, [rows(tmp_path / "new.jsonl", 20)], trainer=TRAINER)
    cancel(session, "one")
    done = delete(session, ["r1"], executor=InlineExecutor(), trainer=TRAINER)
    assert done.certificate is not None
    retrain(session, tmp_path / "new.jsonl")
    assert_lawful(session)
