"""Performing a step: only a step of the current plan, from a verified parent, in one environment class."""

from __future__ import annotations

import gc
import json
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from orchestration.attempt import adopt, discard, prepare, work_together
from orchestration.executor import (
    ATTEMPT,
    ChainOrder,
    Lesson,
    StepOrder,
    environment_difference,
    failure,
    order,
)
from orchestration.inline import InlineExecutor
from orchestration.schedule import schedule
from shards.errors import EnvironmentMismatchError, IntegrityError, StepFailedError, StorageError
from shards.files import write_new
from shards.store import Store
from shards.workspace import WEIGHTS_FILE
from sisa.acceptance import accept
from sisa.ingest import ingest
from sisa.session import Session
from tests.toy import ENVIRONMENT, ToyTrainer, perform, toy_recipe, toy_record, toy_session, work


@pytest.fixture
def session(memory_path: Path) -> Iterator[Session]:
    """A workspace that has ingested twelve records and trained nothing."""
    opened = toy_session(memory_path / "workspace", toy_recipe())
    file = memory_path / "data.jsonl"
    file.write_text("".join(json.dumps(toy_record(n, subject=None).to_json()) + "\n" for n in range(12)))
    ingest(opened, [file], trainer=ToyTrainer())
    yield opened
    opened.workspace.close()


def first_chain(session: Session) -> ChainOrder:
    return schedule(session.workspace.plan(), {})[0]


def first_order(session: Session) -> StepOrder:
    workspace = session.workspace
    return order(first_chain(session), 0, None, workspace.path, workspace.store.root)


def test_a_step_stores_its_checkpoint_and_what_it_saw(session: Session) -> None:
    workspace, chain = session.workspace, first_chain(session)
    made = perform(first_order(session), ToyTrainer())
    step = chain.steps[0]
    assert made.link == step.link
    assert workspace.store.intact(made.files)
    assert workspace.trained_tags(made.seen) == {member.tag for member in step.members}
    assert (made.members, made.own) == (len(step.members), step.own)
    assert made.root == step.root
    assert made.environment == ENVIRONMENT
    assert workspace.book.checkpoints() == [], "only reconcile writes facts"


def test_a_step_done_twice_gives_the_same_checkpoint(session: Session) -> None:
    assert perform(first_order(session), ToyTrainer()) == perform(first_order(session), ToyTrainer())


def test_a_stale_order_never_trains_a_deleted_record(session: Session) -> None:
    workspace, stale = session.workspace, first_order(session)
    accept(session, [first_chain(session).steps[0].members[0]], [], [], None)
    before = workspace.store.objects()
    with pytest.raises(StepFailedError, match="run the command again"):
        perform(stale, ToyTrainer())
    assert workspace.store.objects() == before


def test_a_record_deleted_while_its_step_trains_is_not_stored(session: Session) -> None:
    workspace, stale = session.workspace, first_order(session)
    victim = first_chain(session).steps[0].members[0]
    before = workspace.store.objects()

    @dataclass(frozen=True)
    class Overtaken(ToyTrainer):
        def train(self, lesson: Lesson) -> Mapping[str, bytes]:
            accept(session, [victim], [], [], "meanwhile")
            return ToyTrainer.train(self, lesson)

    with pytest.raises(StepFailedError, match="records changed"):
        perform(stale, Overtaken())
    ((_, request),) = workspace.book.requests()
    assert workspace.store.objects() == before | {request.object}


def test_a_parent_with_other_tensors_than_its_fact_is_refused(session: Session) -> None:
    workspace, chain = session.workspace, first_chain(session)
    made = perform(first_order(session), ToyTrainer())
    swapped = replace(made, tensors="0" * 64)
    with pytest.raises(IntegrityError, match="other tensors"):
        perform(order(chain, 1, swapped, workspace.path, workspace.store.root), ToyTrainer())


def test_a_worker_of_another_environment_class_gets_no_step_of_a_chain_begun(session: Session) -> None:
    foreign = replace(first_order(session), environment={"machine": "other", "libc": "1"})
    before = session.workspace.store.objects()
    with pytest.raises(EnvironmentMismatchError, match=r"libc None instead of '1', machine 'toy' instead of 'other'"):
        perform(foreign, ToyTrainer())
    assert session.workspace.store.objects() == before


def test_a_damaged_parent_is_refused(session: Session) -> None:
    workspace, chain = session.workspace, first_chain(session)
    made = perform(first_order(session), ToyTrainer())
    path = workspace.store.path(made.files) / WEIGHTS_FILE
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    with pytest.raises(IntegrityError, match=made.files):
        perform(order(chain, 1, made, workspace.path, workspace.store.root), ToyTrainer())


def test_an_order_holds_no_personal_data_and_a_lesson_hides_its_seed(session: Session) -> None:
    text = repr(first_order(session))
    assert all(item.record.id not in text.split("'") for item in session.workspace.survivors())
    assert "secret" not in repr(Lesson((), None, b"secret"))


def test_a_step_may_be_stored_elsewhere(session: Session, memory_path: Path) -> None:
    scratch = memory_path / "scratch"
    before = session.workspace.store.objects()
    with pytest.raises(StorageError, match="No such file"):  # a swept scratch is not made again
        perform(replace(first_order(session), store=scratch), ToyTrainer())
    scratch.mkdir()
    made = perform(replace(first_order(session), store=scratch), ToyTrainer())
    assert Store(scratch).objects() == {made.files, made.seen}
    assert Store(scratch).intact(made.files)
    assert session.workspace.store.objects() == before


@dataclass(frozen=True)
class Breaking(ToyTrainer):
    """Fails on one shard's first step, in a way of its own."""

    seed: bytes = b""
    how: Callable[[], Exception] = RuntimeError

    def train(self, lesson: Lesson) -> Mapping[str, bytes]:
        if lesson.seed == self.seed:
            raise self.how()
        return ToyTrainer.train(self, lesson)


@dataclass(frozen=True)
class Listening(ToyTrainer):
    """Notes the seed of each step."""

    seeds: tuple[list[bytes], ...] = ()

    def train(self, lesson: Lesson) -> Mapping[str, bytes]:
        self.seeds[0].append(lesson.seed)
        return ToyTrainer.train(self, lesson)


def first_seed(session: Session) -> bytes:
    listening = Listening(seeds=([],))
    perform(first_order(session), listening)
    return listening.seeds[0][0]


def test_inline_runs_every_step_of_every_chain_in_order(session: Session) -> None:
    workspace, chains = session.workspace, schedule(session.workspace.plan(), {})
    outcomes = list(InlineExecutor().run(chains, ToyTrainer(), workspace.path, workspace.store.root))
    keys = [outcome.checkpoint.key for outcome in outcomes if outcome.checkpoint]
    assert keys == [step.key for chain in chains for step in chain.steps]
    assert all(outcome.error is None and outcome.seconds >= 0 for outcome in outcomes)


def test_a_failed_step_ends_its_chain_and_no_other(session: Session) -> None:
    workspace, chains = session.workspace, schedule(session.workspace.plan(), {})
    breaking = Breaking(seed=first_seed(session), how=lambda: StepFailedError("a", "b", "c"))
    outcomes = list(InlineExecutor().run(chains, breaking, workspace.path, workspace.store.root))
    failed, *others = outcomes
    assert failed.shard == chains[0].shard
    assert isinstance(failed.error, StepFailedError)
    assert failed.checkpoint is None
    assert [outcome.shard for outcome in others] == [chain.shard for chain in chains[1:] for _ in chain.steps]


def test_a_defect_of_the_trainer_is_raised_where_it_is(session: Session) -> None:
    workspace, chains = session.workspace, schedule(session.workspace.plan(), {})
    breaking = Breaking(seed=first_seed(session), how=lambda: KeyError("defect"))
    with pytest.raises(KeyError, match="defect"):
        list(InlineExecutor().run(chains, breaking, workspace.path, workspace.store.root))


def test_a_foreign_failure_is_told_by_kind_and_place_only() -> None:
    try:
        raise KeyError("the text of a record")
    except KeyError as error:
        told = failure(error, 3)
    assert isinstance(told, StepFailedError)
    assert "shard 3" in told.expected
    assert told.found.startswith("KeyError in test_a_foreign_failure_is_told_by_kind_and_place_only (")
    assert "the text of a record" not in str(told) + repr(told)
    assert failure(ZeroDivisionError("by nothing"), 3).found.startswith("ZeroDivisionError; its words are left out")


def test_environments_are_compared_fact_by_fact() -> None:
    assert environment_difference({"a": "1", "b": "2"}, {"a": "1", "b": "2"}) == ""
    assert environment_difference({"a": "1"}, {"a": "2"}) == "a '2' instead of '1'"


def test_what_saw_a_record_that_was_deleted_meanwhile_is_not_even_stored(session: Session) -> None:
    begun = first_order(session)
    stored_before = session.workspace.store.objects()

    class Interrupted(ToyTrainer):
        def train(self, lesson: Lesson) -> Mapping[str, bytes]:
            victim = next(h for h in session.workspace.survivors() if h.record.id == lesson.passes[0][0].id)
            accept(session, [victim], [], [], "meanwhile")
            return ToyTrainer.train(self, lesson)

    with pytest.raises(StepFailedError, match="records changed"):
        perform(begun, Interrupted())
    ((_, request),) = session.workspace.book.requests()
    assert session.workspace.store.objects() == stored_before | {request.object}


# -- attempts -----------------------------------------------------------------------------------


def test_a_worker_writes_into_the_place_of_its_attempt_and_the_driver_takes_it_from_there(session: Session) -> None:
    store, ours = session.workspace.store, first_order(session)
    before = store.objects()
    prepare(ours)
    made = work(ours, ToyTrainer())
    assert store.objects() == before | {ours.staging.name}
    assert Store(ours.staging).objects() == {made.files, made.seen}
    adopt(ours, made)
    discard(ours)
    assert store.objects() == before | {made.files, made.seen}
    assert store.intact(made.files)
    assert store.intact(made.seen)


def test_no_two_attempts_share_a_place(session: Session) -> None:
    one, other = first_order(session), first_order(session)
    assert one.staging != other.staging
    assert one.staging.name.startswith(ATTEMPT)
    assert replace(other, attempt=one.attempt) == one


def test_a_worker_whose_attempt_is_over_writes_nothing(session: Session) -> None:
    """It was given up while it trained, and goes on afterwards."""
    ours, before = first_order(session), session.workspace.store.objects()

    @dataclass(frozen=True)
    class GivenUp(ToyTrainer):
        def train(self, lesson: Lesson) -> Mapping[str, bytes]:
            discard(ours)
            return ToyTrainer.train(self, lesson)

    prepare(ours)
    with pytest.raises(StorageError, match="No such file"):
        work(ours, GivenUp())
    assert session.workspace.store.objects() == before


@pytest.mark.parametrize("ends", ["in training", "in writing"])
def test_an_attempt_that_failed_lets_go_of_what_it_saw_at_once(session: Session, ends: str) -> None:
    """Not when Python next looks for cycles: an idle worker never does, and would go on holding records."""
    ours, seen = first_order(session), []

    class Files(dict[str, bytes]):
        """Can be watched."""

    @dataclass(frozen=True)
    class Failing(ToyTrainer):
        def train(self, lesson: Lesson) -> Mapping[str, bytes]:
            files = Files(ToyTrainer.train(self, lesson))
            seen.append(weakref.ref(files))
            discard(ours)
            if ends == "in training":
                raise StepFailedError("a", "b", "c")
            return files

    prepare(ours)
    gc.disable()
    try:
        (outcome,) = work_together([ours], Failing())
        assert isinstance(outcome.error, StepFailedError | StorageError)
        assert seen[0]() is None
    finally:
        gc.enable()


def test_a_worker_whose_attempt_ends_in_the_midst_of_writing_leaves_nothing(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, before = first_order(session), session.workspace.store.objects()

    def overtaken(path: Path, data: bytes) -> None:
        write_new(path, data)
        discard(ours)

    monkeypatch.setattr("shards.place.write_new", overtaken)
    prepare(ours)
    with pytest.raises(StorageError, match="No such file"):
        work(ours, ToyTrainer())
    assert session.workspace.store.objects() == before


def test_what_is_damaged_in_the_place_of_an_attempt_is_not_adopted(session: Session) -> None:
    store, ours = session.workspace.store, first_order(session)
    prepare(ours)
    made = work(ours, ToyTrainer())
    (Store(ours.staging).path(made.files) / WEIGHTS_FILE).write_bytes(b"other")
    before = store.objects()
    with pytest.raises(IntegrityError, match=made.files):
        adopt(ours, made)
    assert store.objects() == before


def test_a_sweep_ends_the_attempts_of_a_killed_driver(session: Session) -> None:
    ours = first_order(session)
    prepare(ours)
    made = work(ours, ToyTrainer())
    session.workspace.sweep()
    assert not ours.staging.exists()
    with pytest.raises(IntegrityError):  # the driver was not dead after all
        adopt(ours, made)
    discard(ours)
    with pytest.raises(StorageError, match="No such file"):
        work(ours, ToyTrainer())


def test_a_failed_step_leaves_no_place_behind(session: Session) -> None:
    before = session.workspace.store.objects()
    breaking = Breaking(seed=first_seed(session))
    known = session.workspace.store.objects()
    with pytest.raises(RuntimeError):
        perform(first_order(session), breaking)
    assert session.workspace.store.objects() == known
    assert before <= known
