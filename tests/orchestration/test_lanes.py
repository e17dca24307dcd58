"""Steps trained side by side: each lane's result, and each lane's trouble, is its own."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from orchestration.attempt import adopted, made_by, perform_together, prepare, work_together
from orchestration.executor import Files, Lesson, Outcome, StepOrder, order
from orchestration.inline import InlineExecutor
from orchestration.reconcile import reconcile
from orchestration.schedule import schedule, teams
from shards.errors import EnvironmentMismatchError, IntegrityError, SisaError, StalePlanError, StepFailedError
from shards.lineage import Checkpoint
from shards.store import Store
from shards.workspace import WEIGHTS_FILE
from sisa.acceptance import accept
from sisa.ingest import Ingested, commit, ingest
from sisa.session import Session
from sisa.train import train
from tests.exactness.oracle import assert_equals_fresh_run, assert_lawful
from tests.toy import ENVIRONMENT, ToyTrainer, perform, stored, toy_recipe, toy_record, toy_session

LANES = 4
TOGETHER = ToyTrainer(lanes=LANES)


@pytest.fixture
def session(memory_path: Path) -> Iterator[Session]:
    """A workspace of six shards, the first four of which are one group, that has trained nothing."""
    opened = toy_session(memory_path / "workspace", toy_recipe(shards=6))
    file = memory_path / "data.jsonl"
    file.write_text("".join(json.dumps(toy_record(n, subject=None).to_json()) + "\n" for n in range(48)))
    ingest(opened, [file], trainer=ToyTrainer())
    assert all(chain.steps for chain in opened.workspace.plan().chains)
    yield opened
    opened.workspace.close()


def first_orders(session: Session) -> list[StepOrder]:
    """The first step of each shard of the first group."""
    workspace = session.workspace
    chains = sorted(schedule(workspace.plan(), {}), key=lambda chain: chain.shard)[:LANES]
    return [order(chain, 0, None, workspace.path, workspace.store.root) for chain in chains]


def first_record(session: Session, shard: int) -> str:
    """ID of a record that the first step of a shard sees."""
    return session.workspace.chain(shard).steps[0].members[0].record.id


def forget(session: Session, record_id: str) -> None:
    """Accept the deletion of a record."""
    held = next(held for held in session.workspace.survivors() if held.record.id == record_id)
    accept(session, [held], [], [], None)


def shown(lesson: Lesson) -> set[str]:
    return {record.id for record in lesson.passes[0]}


def trained(outcomes: Sequence[Outcome]) -> set[int]:
    """Shards that have their checkpoint; the others have an error, and each outcome has either."""
    assert all((outcome.checkpoint is None) != (outcome.error is None) for outcome in outcomes)
    return set(made_by(outcomes))


def error_of(outcomes: Sequence[Outcome], shard: int) -> Exception | None:
    return next(outcome.error for outcome in outcomes if outcome.shard == shard)


@dataclass(frozen=True)
class Troubled(ToyTrainer):
    """In a lesson that shows a certain record, something happens."""

    lanes: int = LANES
    record_id: str = ""
    what: Callable[[], object] = list

    def train(self, lesson: Lesson) -> Files:
        if self.record_id in shown(lesson):
            self.what()
        return ToyTrainer.train(self, lesson)


@dataclass(frozen=True)
class Listening(ToyTrainer):
    """Notes the lanes and lessons of each pass."""

    lanes: int = LANES
    passes: list[Mapping[int, Lesson]] = field(default_factory=list)

    def train_lanes(self, lessons: Mapping[int, Lesson]) -> dict[int, Files | SisaError]:
        self.passes.append(dict(lessons))
        return ToyTrainer.train_lanes(self, lessons)


def fail() -> None:
    raise StepFailedError("finite weights", "a training that diverged", "another learning rate")


def test_what_is_trained_side_by_side_is_what_each_lane_makes_alone(session: Session, memory_path: Path) -> None:
    scratch = memory_path / "scratch"
    scratch.mkdir()
    orders, before = first_orders(session), session.workspace.store.objects()
    outcomes = perform_together(orders, TOGETHER)
    assert [outcome.shard for outcome in outcomes] == [each.shard for each in orders] == [0, 1, 2, 3]
    alone = {each.shard: perform(replace(each, store=scratch), TOGETHER) for each in orders}
    assert made_by(outcomes) == alone
    assert session.workspace.store.objects() == before | Store(scratch).objects()


def test_a_shard_has_the_same_lane_whoever_is_beside_it(session: Session) -> None:
    listening = Listening()
    orders = first_orders(session)
    perform_together(orders, listening)
    for each in orders:
        perform(each, listening)
    together, *alone = listening.passes
    assert set(together) == {0, 1, 2, 3}
    assert alone == [{lane: together[lane]} for lane in range(LANES)]
    last = schedule(session.workspace.plan(), {})
    (fifth,) = (chain for chain in last if chain.shard == 5)
    perform(order(fifth, 0, None, session.workspace.path, session.workspace.store.root), listening)
    assert set(listening.passes[-1]) == {1}


def test_with_lanes_no_step_is_trained_the_other_way_and_without_none_side_by_side(session: Session) -> None:
    class Never(ToyTrainer):
        def train(self, lesson: Lesson) -> Files:
            raise AssertionError("another way to the bits")

        def train_lanes(self, lessons: Mapping[int, Lesson]) -> dict[int, Files | SisaError]:
            return {lane: ToyTrainer.train(self, lesson) for lane, lesson in lessons.items()}

    class Ever(ToyTrainer):
        def train_lanes(self, lessons: Mapping[int, Lesson]) -> dict[int, Files | SisaError]:
            raise AssertionError("one lane is not side by side")

    one = first_orders(session)[0]
    assert perform(one, Never(lanes=2)) == perform(one, Ever())


def test_two_shards_of_one_lane_are_never_trained_together(session: Session) -> None:
    """One's weights would be stored as the other's."""
    before = session.workspace.store.objects()
    with pytest.raises(ValueError, match="different lanes of 2"):
        perform_together(first_orders(session), ToyTrainer(lanes=2))
    assert session.workspace.store.objects() == before


# -- the trouble of one lane --------------------------------------------------------------------


def test_a_lane_that_fails_ends_alone(session: Session) -> None:
    outcomes = perform_together(first_orders(session), Troubled(record_id=first_record(session, 2), what=fail))
    assert trained(outcomes) == {0, 1, 3}
    assert isinstance(error_of(outcomes, 2), StepFailedError)
    assert made_by(outcomes) == {
        each.shard: perform(each, TOGETHER) for each in first_orders(session) if each.shard != 2
    }


def test_a_defect_in_one_lane_is_a_defect_of_the_pass(session: Session) -> None:
    before = session.workspace.store.objects()

    def break_down() -> None:
        raise KeyError("defect")

    with pytest.raises(KeyError, match="defect"):
        perform_together(first_orders(session), Troubled(record_id=first_record(session, 2), what=break_down))
    assert session.workspace.store.objects() == before, "and no attempt is left"


def test_an_error_of_ours_that_is_of_no_lane_ends_them_all(session: Session) -> None:
    class Worn(ToyTrainer):
        def train_lanes(self, lessons: Mapping[int, Lesson]) -> dict[int, Files | SisaError]:
            raise StepFailedError("a base model", "none", "buy one")

    before = session.workspace.store.objects()
    outcomes = perform_together(first_orders(session), Worn(lanes=LANES))
    assert trained(outcomes) == set()
    assert {str(outcome.error) for outcome in outcomes} == {str(outcomes[0].error)}
    assert session.workspace.store.objects() == before


def test_a_stale_lane_is_not_trained_and_the_others_are(session: Session) -> None:
    orders, victim, listening = first_orders(session), first_record(session, 1), Listening()
    forget(session, victim)
    outcomes = perform_together(orders, listening)
    assert trained(outcomes) == {0, 2, 3}
    assert isinstance(error_of(outcomes, 1), StalePlanError)
    ((lessons),) = listening.passes
    assert set(lessons) == {0, 2, 3}
    assert not any(victim in shown(lesson) for lesson in lessons.values())


def test_where_every_lane_is_stale_nothing_is_trained(session: Session) -> None:
    orders, listening = first_orders(session), Listening()
    for shard in range(LANES):
        forget(session, first_record(session, shard))
    assert trained(perform_together(orders, listening)) == set()
    assert listening.passes == []


def test_a_lane_that_saw_a_record_deleted_meanwhile_is_not_stored_and_the_others_are(session: Session) -> None:
    orders, victim = first_orders(session), first_record(session, 3)
    before = session.workspace.store.objects()
    outcomes = perform_together(orders, Troubled(record_id=victim, what=lambda: forget(session, victim)))
    assert trained(outcomes) == {0, 1, 2}
    assert isinstance(error_of(outcomes, 3), StalePlanError)
    ((_, request),) = session.workspace.book.requests()
    kept = {name for made in made_by(outcomes).values() for name in (made.files, made.seen)}
    assert session.workspace.store.objects() == before | kept | {request.object}


def test_a_lane_that_saw_a_record_deleted_after_its_own_lesson_is_not_stored_either(session: Session) -> None:
    """The pass is one: what is looked at again is looked at after all lanes."""
    orders, victim = first_orders(session), first_record(session, 0)
    last = Troubled(record_id=first_record(session, 3), what=lambda: forget(session, victim))
    assert trained(perform_together(orders, last)) == {1, 2, 3}


def test_a_lane_of_another_environment_class_ends_alone(session: Session) -> None:
    orders = first_orders(session)
    orders[1] = replace(orders[1], environment={"machine": "other"})
    outcomes = perform_together(orders, TOGETHER)
    assert trained(outcomes) == {0, 2, 3}
    assert isinstance(error_of(outcomes, 1), EnvironmentMismatchError)


def test_a_lane_with_a_damaged_parent_ends_alone(session: Session) -> None:
    workspace = session.workspace
    made = made_by(perform_together(first_orders(session), TOGETHER))
    path = workspace.store.path(made[2].files) / WEIGHTS_FILE
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    chains = [chain for chain in schedule(workspace.plan(), {}) if chain.shard in made and len(chain.steps) > 1]
    assert 2 in {chain.shard for chain in chains}
    orders = [order(chain, 1, made[chain.shard], workspace.path, workspace.store.root) for chain in chains]
    outcomes = perform_together(orders, TOGETHER)
    assert trained(outcomes) == {chain.shard for chain in chains} - {2}
    assert isinstance(error_of(outcomes, 2), IntegrityError)


def test_a_lane_whose_result_is_damaged_is_not_adopted_and_the_others_are(session: Session) -> None:
    orders, store = first_orders(session), session.workspace.store
    for each in orders:
        prepare(each)
    outcomes = work_together(orders, TOGETHER)
    damaged = made_by(outcomes)[1]
    (Store(orders[1].staging).path(damaged.files) / WEIGHTS_FILE).write_bytes(b"other")
    before = store.objects() - {each.staging.name for each in orders}
    kept = [adopted(each, outcome) for each, outcome in zip(orders, outcomes, strict=True)]
    assert trained(kept) == {0, 2, 3}
    assert isinstance(error_of(kept, 1), IntegrityError)
    assert store.objects() == before | {name for made in made_by(kept).values() for name in (made.files, made.seen)}


def test_where_no_place_can_be_made_no_lane_is_trained_and_no_place_is_left(session: Session) -> None:
    orders, listening = first_orders(session), Listening()
    orders[2].staging.mkdir()
    before = session.workspace.store.objects() - {orders[2].staging.name}
    assert trained(perform_together(orders, listening)) == set()
    assert listening.passes == []
    assert session.workspace.store.objects() == before


def test_the_seconds_of_a_pass_are_shared_among_its_lanes(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([10.0, 16.0])
    monkeypatch.setattr("orchestration.attempt.time.monotonic", lambda: next(clock))
    outcomes = perform_together(first_orders(session)[:3], Troubled(record_id=first_record(session, 1), what=fail))
    assert [outcome.seconds for outcome in outcomes] == [2.0, 2.0, 2.0]


# -- whole runs ---------------------------------------------------------------------------------


@pytest.mark.parametrize("lanes", [1, 2, 4, 9])
def test_inline_trains_every_step_of_every_chain_in_order_in_as_few_passes_as_lanes_allow(
    session: Session, lanes: int
) -> None:
    workspace, listening = session.workspace, Listening(lanes=lanes)
    chains = schedule(workspace.plan(), {})
    outcomes = list(InlineExecutor().run(chains, listening, workspace.path, workspace.store.root))
    for chain in chains:
        keys = [each.checkpoint.key for each in outcomes if each.checkpoint and each.shard == chain.shard]
        assert keys == [step.key for step in chain.steps]
    if lanes > 1:
        longest = (max(len(chain.steps) for chain in team.chains) for team in teams(chains, lanes))
        assert len(listening.passes) == sum(longest)


def test_a_failed_lane_ends_its_chain_and_no_other(session: Session) -> None:
    workspace, chains = session.workspace, schedule(session.workspace.plan(), {})
    troubled = Troubled(record_id=first_record(session, 1), what=fail)
    outcomes = list(InlineExecutor().run(chains, troubled, workspace.path, workspace.store.root))
    assert [outcome.shard for outcome in outcomes if outcome.error is not None] == [1]
    ended = {outcome.checkpoint.key for outcome in outcomes if outcome.checkpoint is not None}
    assert ended == {step.key for chain in chains if chain.shard != 1 for step in chain.steps}


def test_chains_of_two_environment_classes_are_not_one_team_s(session: Session) -> None:
    """Two shards of a group were begun elsewhere: they end with the error that says so, and the others train on."""
    workspace = session.workspace
    foreign = replace(TOGETHER, environment_facts=(("machine", "other"),))
    with session.driving():
        reconcile(workspace, InlineExecutor(), foreign, shards={1, 2})
        late = [toy_record(number, subject=None, generation=1) for number in range(48, 96)]
        commit(session, stored(session, late), Ingested(48, 0, 0, 0))
        done = reconcile(workspace, InlineExecutor(), TOGETHER)
    assert [type(error) for error in done.errors] == [EnvironmentMismatchError] * 2
    assert {made.link.shard for made in done.trained} == {0, 3, 4, 5}
    assert all(made.environment == ENVIRONMENT for made in done.trained)


def test_a_deletion_retrains_the_hit_shard_alone_in_its_lane_and_nothing_is_different(
    session: Session, memory_path: Path
) -> None:
    import sisa.delete as deletion

    listening = Listening()
    train(session, [memory_path / "data.jsonl"], executor=InlineExecutor(), trainer=TOGETHER)
    deletion.delete(session, [first_record(session, 3)], executor=InlineExecutor(), trainer=listening)
    assert listening.passes
    assert all(set(lessons) == {3} for lessons in listening.passes)
    assert_lawful(session)
    assert_equals_fresh_run(session, TOGETHER, memory_path / "together")
    assert_equals_fresh_run(session, ToyTrainer(), memory_path / "alone")


def test_outcomes_of_a_team_s_step_are_facts_of_their_own(session: Session, memory_path: Path) -> None:
    """A driver that dies between two lanes' outcomes keeps the first and trains the second again."""

    class Dies(InlineExecutor):
        def run(self, *args: object, **options: object) -> Iterator[Outcome]:
            for number, outcome in enumerate(InlineExecutor.run(self, *args, **options)):  # type: ignore[arg-type]
                if number == 2:
                    raise KeyboardInterrupt
                yield outcome

    with session.driving(), pytest.raises(KeyboardInterrupt):
        reconcile(session.workspace, Dies(), TOGETHER)
    kept: dict[str, Checkpoint] = session.workspace.book.live()
    assert len(kept) == 2
    train(session, [memory_path / "data.jsonl"], executor=InlineExecutor(), trainer=TOGETHER)
    assert kept.items() <= session.workspace.book.live().items()
    assert_lawful(session)
    assert_equals_fresh_run(session, TOGETHER, memory_path / "fresh")
