"""What Ray does equals what the inline executor does, whoever dies on the way."""

from __future__ import annotations

import os
import secrets
import signal
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import ray

import sisa.delete as deletion
from orchestration.attempt import prepare
from orchestration.executor import ATTEMPT, Files, Lesson, SliceTrainer, order
from orchestration.ray_executor import RayExecutor, Worker
from orchestration.schedule import schedule, teams
from shards.errors import OperationError, SisaError, StepFailedError
from shards.trunk import TRUNK
from sisa.config import Settings, write_settings
from sisa.ingest import Ingested, commit
from sisa.session import Session, open_session
from sisa.train import train
from tests.exactness.oracle import assert_equals_fresh_run, assert_lawful
from tests.flows.helpers import done, sisa
from tests.models import (
    Place,
    Row,
    checkpoint_files,
    delete_in,
    differences,
    flat,
    fresh_run,
    grid,
    make_workspace,
    train_in,
    write_rows,
)
from tests.sisa.trained import trained
from tests.toy import ToyTrainer, Wrapped, stored, toy_recipe, toy_record, toy_session

pytestmark = pytest.mark.usefixtures("ray_cluster")


@dataclass(frozen=True)
class Setting:
    """An empty workspace, its data, and a workspace that the inline executor trained."""

    path: Path
    data: Path
    places: dict[Place, list[Row]]
    inline: Path


def setting(root: Path, task: str, base: Path, trainer: SliceTrainer | None = None, **values: Any) -> Setting:
    recipe: dict[str, Any] = {"rehearsal": 0.25, **values}
    places = grid(task, 3, **recipe)
    data = write_rows(root / "data.jsonl", flat(places))
    inline = make_workspace(root / "inline", task, base, **recipe)
    train_in(inline, data, trainer=trainer)
    return Setting(make_workspace(root / "ray", task, base, **recipe), data, places, inline)


@pytest.fixture
def toy_setting(tmp_path: Path, tiny_llama: Path) -> Setting:
    """Trained by the toy trainer, whose workers start sooner."""
    return setting(tmp_path, "causal-lm", tiny_llama, ToyTrainer())


@pytest.mark.parametrize(
    ("task", "workers", "values"),
    [
        pytest.param("classification", 1, {}, marks=pytest.mark.slow),
        pytest.param("causal-lm", 2, {}, marks=pytest.mark.slow),
        pytest.param("classification", 2, {}, marks=pytest.mark.slow),
        pytest.param("causal-lm", 1, {}, marks=pytest.mark.slow),
        ("causal-lm", 2, {"shards": 3, "lanes": 2, "layers": "last-1"}),  # the most that can be between them
    ],
)
def test_train_and_delete_on_ray_equal_inline(
    tmp_path: Path, tiny_bert: Path, tiny_llama: Path, task: str, workers: int, values: dict[str, Any]
) -> None:
    here = setting(tmp_path, task, tiny_bert if task == "classification" else tiny_llama, **values)
    train_in(here.path, here.data, executor=RayExecutor(workers))
    assert differences(here.path, here.inline) == []
    assert checkpoint_files(here.path) == checkpoint_files(here.inline)
    victims = [here.places[0, 1][0]["id"], here.places[1, 0][2]["id"]]
    delete_in(here.path, victims, executor=RayExecutor(workers))
    delete_in(here.inline, victims)
    assert differences(here.path, here.inline) == []
    assert differences(here.path, fresh_run(here.path, tmp_path / "fresh")) == []


@dataclass(frozen=True)
class Deadly(Wrapped):
    """Kills its own process with SIGKILL in the middle of a step that shows a certain record.

    Attributes:
        record_id: the record.
        scratch: one file per death, so that processes know of each other's.
        deaths: how many processes may die.
    """

    record_id: str
    scratch: Path
    deaths: int

    def train(self, lesson: Lesson) -> Mapping[str, bytes]:
        died = len(list(self.scratch.iterdir()))
        if self.record_id in {record.id for record in lesson.passes[0]} and died < self.deaths:
            self.inner.train(replace(lesson, passes=lesson.passes[:1]))  # one epoch of two
            (self.scratch / str(os.getpid())).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return self.inner.train(lesson)


def test_a_worker_killed_in_mid_slice_is_replaced_and_the_result_equals_inline(
    tiny_llama: Path, tmp_path: Path
) -> None:
    here = setting(tmp_path, "causal-lm", tiny_llama)
    graves = tmp_path / "deaths"
    graves.mkdir()
    with open_session(here.path) as session:
        trainer = session.trainer()
    deadly = Deadly(trainer, here.places[0, 1][0]["id"], graves, deaths=1)
    train_in(here.path, here.data, executor=RayExecutor(1), trainer=deadly)
    assert len(list(graves.iterdir())) == 1
    assert checkpoint_files(here.path) == checkpoint_files(here.inline)
    assert differences(here.path, here.inline) == []


def test_a_step_whose_every_worker_dies_fails_alone_and_training_continues_later(
    toy_setting: Setting, tmp_path: Path
) -> None:
    here = toy_setting
    graves = tmp_path / "deaths"
    graves.mkdir()
    deadly = Deadly(ToyTrainer(), here.places[0, 1][0]["id"], graves, deaths=100)
    with pytest.raises(StepFailedError, match="3 workers died"):
        train_in(here.path, here.data, executor=RayExecutor(1), trainer=deadly)
    assert len(list(graves.iterdir())) == 3
    assert set(checkpoint_files(here.path)) == {(0, 0), (1, 0), (1, 1), (1, 2)}
    train_in(here.path, here.data, trainer=ToyTrainer())
    assert differences(here.path, here.inline) == []


@dataclass(frozen=True)
class Failing(Deadly):
    """Fails instead of dying."""

    def train(self, lesson: Lesson) -> Mapping[str, bytes]:
        if self.record_id in {record.id for record in lesson.passes[0]}:
            raise ArithmeticError("a planted failure")
        return self.inner.train(lesson)


@dataclass(frozen=True)
class Quoting(ToyTrainer):
    """Fails in words that quote a record: in its own way, or with an error of ours caused by that."""

    ours: bool = False

    def train(self, lesson: Lesson) -> Mapping[str, bytes]:
        record = lesson.passes[0][0]
        try:
            raise LookupError(f"{record.id}: {record.content}")
        except LookupError as error:
            if self.ours:
                raise StepFailedError("finite weights", "others", "try again") from error
            raise


@pytest.mark.parametrize("ours", [True, False])
def test_what_a_worker_tells_of_a_failure_holds_nothing_of_a_record(tmp_path: Path, ours: bool) -> None:
    session = toy_session(tmp_path / "workspace", toy_recipe())
    commit(session, stored(session, [toy_record(n, id=f"IDCANARY-{n}") for n in range(6)]), Ingested(6, 0, 0, 0))
    chain = schedule(session.workspace.plan(), {})[0]
    step_order = order(chain, 0, None, session.workspace.path, session.workspace.store.root)
    prepare(step_order)
    (outcome,) = Worker(Quoting(ours=ours)).perform([step_order])
    session.workspace.close()
    assert isinstance(outcome.error, StepFailedError)
    assert outcome.error.__traceback__ is None
    assert b"IDCANARY" not in ray.cloudpickle.dumps(outcome)


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_step_that_always_fails_ends_its_chain_and_no_other(
    toy_setting: Setting, tmp_path: Path, workers: int
) -> None:
    here = toy_setting
    failing = Failing(ToyTrainer(), here.places[1, 1][0]["id"], tmp_path, deaths=0)
    with pytest.raises(StepFailedError, match=r"ArithmeticError in train \(test_ray_executor.py, line \d+\)"):
        train_in(here.path, here.data, executor=RayExecutor(workers), trainer=failing)
    assert set(checkpoint_files(here.path)) == {(0, 0), (0, 1), (0, 2), (1, 0)}
    train_in(here.path, here.data, trainer=ToyTrainer())
    assert differences(here.path, here.inline) == []


def test_a_request_whose_step_always_fails_is_parked_and_the_others_are_completed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = trained(tmp_path / "workspace", 24)
    workspace = session.workspace.path
    write_settings(workspace, Settings(recipe=session.recipe, options=session.options))
    first, second = session.workspace.plan().chains
    gone, broken = (chain.steps[0].members[0].record for chain in (first, second))
    failing = next(held.record for held in second.steps[-1].members if held.record.subject != broken.subject)
    session.workspace.close()
    for name, record in (("fine", gone), ("parked", broken)):
        done("delete", "-w", workspace, "--id", record.id, "--request-id", name, "--queue")
    work = ("work", "-w", workspace, "--executor", "ray", "--workers", "2", "--set", "queue_policy=now")
    monkeypatch.setattr(Session, "trainer", lambda _: Failing(ToyTrainer(), failing.id, tmp_path, deaths=0))
    result = sisa(*work, "--json")
    assert result.code == 3
    assert (result.document["completed"], result.document["failed"]) == (["fine"], ["parked"])
    assert "StepFailedError" not in result.err
    assert f"every step of shard {second.shard} to train" in result.err
    states = {entry["request_id"]: entry["state"] for entry in done("requests", "-w", workspace)["requests"]}
    assert states == {"fine": "completed", "parked": "failed"}
    status = {entry["request_id"]: entry["state"] for entry in done("status", "-w", workspace)["requests"]}
    assert status == {"fine": "completed", "parked": "accepted"}
    monkeypatch.setattr(Session, "trainer", lambda _: ToyTrainer())
    assert done(*work)["completed"] == ["parked"]
    assert done("audit", "-w", workspace, "--all")["failed"] == 0


@dataclass(frozen=True)
class Loading(ToyTrainer):
    """Loads a base once a process, as the real trainer does, and leaves word of it."""

    loads: Path = Path()

    def train(self, lesson: Lesson) -> Mapping[str, bytes]:
        if self.loads not in LOADED:
            LOADED.add(self.loads)
            with self.loads.open("a") as file:
                file.write(f"{os.getpid()}\n")
        return super().train(lesson)


LOADED: set[Path] = set()


def test_each_worker_loads_the_base_once_however_many_chains_it_does(tmp_path: Path) -> None:
    session = toy_session(tmp_path / "workspace", toy_recipe(shards=6))
    commit(session, stored(session, [toy_record(number, subject=None) for number in range(48)]), Ingested(48, 0, 0, 0))
    trainer = Loading(loads=tmp_path / "loads")
    trained = train(session, executor=RayExecutor(workers=2), trainer=trainer)
    session.workspace.close()
    assert len(trained.reconciled.trained) > 12
    loads = (tmp_path / "loads").read_text().split()
    assert len(loads) == len(set(loads)) <= 2


@dataclass(frozen=True)
class Unborn(ToyTrainer):
    """Works here and on no worker."""

    here: int = 0

    def environment(self) -> dict[str, str]:
        if os.getpid() != self.here:
            raise StepFailedError("a machine", "none", "buy one")
        return super().environment()


def test_workers_that_cannot_even_start_are_not_hired_for_ever(tmp_path: Path) -> None:
    session = toy_session(tmp_path / "workspace", toy_recipe())
    commit(session, stored(session, map(toy_record, range(12))), Ingested(12, 0, 0, 0))
    with pytest.raises(StepFailedError, match="2 failed: none; none"):
        train(session, executor=RayExecutor(workers=2), trainer=Unborn(here=os.getpid()))
    session.workspace.close()


def test_a_cluster_that_can_never_hold_a_worker_is_said_and_not_waited_for(tmp_path: Path) -> None:
    session = toy_session(tmp_path / "workspace", toy_recipe())
    commit(session, stored(session, map(toy_record, range(6))), Ingested(6, 0, 0, 0))
    with pytest.raises(OperationError, match="999 GPU"):
        train(session, executor=RayExecutor(workers=1, gpus_per_worker=999), trainer=ToyTrainer())
    session.workspace.close()


def test_more_workers_than_the_cluster_holds_take_turns(tmp_path: Path) -> None:
    session = toy_session(tmp_path / "workspace", toy_recipe(shards=4))
    commit(session, stored(session, [toy_record(number, subject=None) for number in range(24)]), Ingested(24, 0, 0, 0))
    train(session, executor=RayExecutor(workers=4), trainer=ToyTrainer())
    assert len(session.workspace.book.served()) == 4
    session.workspace.close()


@dataclass(frozen=True)
class Telling(ToyTrainer):
    """Leaves the value of an environment variable of its process in a file."""

    file: Path = Path()

    def train(self, lesson: Lesson) -> Mapping[str, bytes]:
        self.file.write_text(os.environ.get("SISA_TOLD", "nothing"))
        return super().train(lesson)


def test_workers_have_readable_names_share_processors_and_get_their_runtime_env(tmp_path: Path) -> None:
    session = toy_session(tmp_path / "workspace", toy_recipe(shards=4))
    commit(session, stored(session, [toy_record(number, subject=None) for number in range(24)]), Ingested(24, 0, 0, 0))
    executor = RayExecutor(workers=2, cpus_per_worker=0.5, runtime_env={"env_vars": {"SISA_TOLD": "something"}})
    names: set[str] = set()
    train(
        session,
        executor=executor,
        trainer=Telling(file=tmp_path / "told"),
        report=lambda _: names.update(ray.util.list_named_actors()),
    )
    assert {name.rpartition(" ")[0] for name in names} == {"sisa workspace worker 1", "sisa workspace worker 2"}
    assert (tmp_path / "told").read_text() == "something"
    assert len(session.workspace.book.served()) == 4
    session.workspace.close()


# -- lanes --------------------------------------------------------------------------------------


def lanes_setting(root: Path) -> Session:
    """Five shards, all with steps to train, and nothing trained."""
    session = toy_session(root / "workspace", toy_recipe(shards=5))
    records = [toy_record(number, subject=None) for number in range(40)]
    commit(session, stored(session, records), Ingested(40, 0, 0, 0))
    assert all(chain.steps for chain in session.workspace.plan().chains)
    return session


def first_record(session: Session, shard: int) -> str:
    return session.workspace.chain(shard).steps[0].members[0].record.id


@dataclass(frozen=True)
class Counting(Wrapped):
    """Leaves a file for every pass, named after the lanes that it filled."""

    scratch: Path

    def train_lanes(self, lessons: Mapping[int, Lesson]) -> Mapping[int, Files | SisaError]:
        filled = "".join(str(lane) for lane in sorted(lessons))
        (self.scratch / f"{filled}-{secrets.token_hex(8)}").touch()
        return super().train_lanes(lessons)


def test_train_and_delete_in_lanes_on_ray_equal_fresh_runs_side_by_side_and_alone(tmp_path: Path) -> None:
    session, passes = lanes_setting(tmp_path), tmp_path / "passes"
    passes.mkdir()
    trainer = Counting(ToyTrainer(lanes=2), passes)
    train(session, executor=RayExecutor(workers=2), trainer=trainer)
    longest: dict[int, int] = {}
    for chain in session.workspace.plan().chains:
        longest[chain.shard // 2] = max(len(chain.steps), longest.get(chain.shard // 2, 0))
    assert len(list(passes.iterdir())) == sum(longest.values()), "one call for each step of a team"
    before = set(passes.iterdir())
    gone = first_record(session, 3)
    deletion.delete(session, [gone], executor=RayExecutor(workers=2), trainer=trainer)
    assert {file.name[:2] for file in set(passes.iterdir()) - before} == {"1-"}, "its own lane, and no other"
    assert_lawful(session)
    assert_equals_fresh_run(session, ToyTrainer(lanes=2), tmp_path / "side by side")
    assert_equals_fresh_run(session, ToyTrainer(), tmp_path / "one lane")
    session.workspace.close()


@pytest.mark.slow
def test_the_lanes_of_a_worker_that_died_are_trained_by_the_next_one(tmp_path: Path) -> None:
    session, graves = lanes_setting(tmp_path), tmp_path / "deaths"
    graves.mkdir()
    deadly = Deadly(ToyTrainer(lanes=5), first_record(session, 3), graves, deaths=2)
    train(session, executor=RayExecutor(workers=1), trainer=deadly)
    assert len(list(graves.iterdir())) == 2
    assert_lawful(session)
    assert_equals_fresh_run(session, ToyTrainer(lanes=5), tmp_path / "fresh")
    session.workspace.close()


@pytest.mark.slow
def test_a_lane_whose_every_worker_dies_takes_no_other_along(tmp_path: Path) -> None:
    session, graves = lanes_setting(tmp_path), tmp_path / "deaths"
    graves.mkdir()
    deadly = Deadly(ToyTrainer(lanes=5), first_record(session, 3), graves, deaths=100)
    with pytest.raises(StepFailedError, match="3 workers died"):
        train(session, executor=RayExecutor(workers=1), trainer=deadly)
    assert len(list(graves.iterdir())) == 3
    whole = {chain.shard for chain in session.workspace.plan().chains} - {3}
    live = session.workspace.book.live()
    assert {made.link.shard for made in live.values()} == whole
    assert len(live) == sum(len(chain.steps) for chain in session.workspace.plan().chains if chain.shard in whole)
    train(session, executor=RayExecutor(workers=1), trainer=ToyTrainer(lanes=5))
    assert_equals_fresh_run(session, ToyTrainer(lanes=5), tmp_path / "fresh")
    session.workspace.close()


@dataclass(frozen=True)
class Diverging(Deadly):
    """Ends with an error of ours instead of dying."""

    def train(self, lesson: Lesson) -> Mapping[str, bytes]:
        if self.record_id in {record.id for record in lesson.passes[0]}:
            raise StepFailedError("finite weights", "a training that diverged", "none")
        return self.inner.train(lesson)


@pytest.mark.slow
def test_a_lane_that_fails_leaves_its_team_and_its_worker_goes_on_with_the_others(tmp_path: Path) -> None:
    session = lanes_setting(tmp_path)
    names: set[str] = set()
    diverging = Diverging(ToyTrainer(lanes=5), first_record(session, 3), tmp_path, deaths=0)
    with pytest.raises(StepFailedError, match="diverged"):
        train(
            session,
            executor=RayExecutor(workers=1),
            trainer=diverging,
            report=lambda _: names.update(ray.util.list_named_actors()),
        )
    assert {name.split()[3] for name in names} == {"1"}
    assert [file.name for file in session.workspace.store.root.iterdir() if file.name.startswith(ATTEMPT)] == []
    live, chains = session.workspace.book.live(), session.workspace.plan().chains
    assert live.keys() == {step.key for chain in chains if chain.shard != 3 for step in chain.steps}
    train(session, executor=RayExecutor(workers=1), trainer=ToyTrainer(lanes=5))
    assert_lawful(session)
    assert_equals_fresh_run(session, ToyTrainer(lanes=5), tmp_path / "fresh")
    session.workspace.close()


@pytest.mark.parametrize("ours", [True, False])
def test_what_a_worker_tells_of_the_failure_of_its_lanes_holds_nothing_of_a_record(tmp_path: Path, ours: bool) -> None:
    session = toy_session(tmp_path / "workspace", toy_recipe())
    commit(session, stored(session, [toy_record(n, id=f"IDCANARY-{n}") for n in range(12)]), Ingested(12, 0, 0, 0))
    (team,) = teams(schedule(session.workspace.plan(), {}), 2)
    orders = team.orders(session.workspace.path, session.workspace.store.root)
    for each in orders:
        prepare(each)
    outcomes = Worker(Quoting(ours=ours, lanes=2)).perform(orders)
    session.workspace.close()
    assert {outcome.shard for outcome in outcomes} == {0, 1}
    assert all(isinstance(outcome.error, StepFailedError) for outcome in outcomes)
    assert all(outcome.error is not None and outcome.error.__traceback__ is None for outcome in outcomes)
    assert b"IDCANARY" not in ray.cloudpickle.dumps(outcomes)


def test_shards_wait_on_ray_for_the_trunk_they_start_from_whoever_dies_meanwhile(
    memory_path: Path, tmp_path: Path
) -> None:
    session = toy_session(memory_path / "workspace", toy_recipe())
    kept = [toy_record(number, subject=None, retention="permanent" if number < 4 else None) for number in range(14)]
    commit(session, stored(session, kept), Ingested(14, 0, 0, 0))
    graves = tmp_path / "deaths"
    graves.mkdir()
    trunk = session.workspace.plan().trunk.steps
    deadly = Deadly(ToyTrainer(), trunk[-1].members[0].record.id, graves, deaths=1)
    train(session, executor=RayExecutor(2), trainer=deadly)
    assert len(list(graves.iterdir())) == 1
    made = [stored.checkpoint.link.shard for stored in session.workspace.book.checkpoints()]
    assert set(made[: len(trunk)]) == {TRUNK}
    assert TRUNK not in made[len(trunk) :]
    deletion.delete(session, ["r0", "r9"], executor=RayExecutor(2), trainer=ToyTrainer())
    assert_lawful(session)
    assert_equals_fresh_run(session, ToyTrainer(), memory_path / "oracle")
    session.workspace.close()
