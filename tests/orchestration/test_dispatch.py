"""Dispatch: nobody idle while there is something to do, every step once and in order, bounded retries."""

from __future__ import annotations

import random
import sys
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestration.dispatch import TRIES, Dispatch, Run
from orchestration.executor import ChainOrder
from orchestration.schedule import Team, teams
from shards.lineage import Checkpoint
from shards.plan import SliceStep

CLASSES: tuple[dict[str, str], ...] = ({"machine": "a"}, {"machine": "b", "libc": "1"})


def made_in(environment: dict[str, str], name: object = None) -> Checkpoint:
    """A checkpoint as far as dispatch looks at it."""
    return cast("Checkpoint", SimpleNamespace(environment=environment, name=name))


def chain(shard: int, steps: int, environment: dict[str, str] | None = None) -> ChainOrder:
    parent = None if environment is None else made_in(environment)
    planned = (SimpleNamespace(shard=shard, number=n, members=()) for n in range(steps))
    return ChainOrder(shard, tuple(cast("SliceStep", step) for step in planned), parent, environment)


def singly(*chains: ChainOrder) -> Dispatch:
    """One lane."""
    return Dispatch(teams(chains, 1))


def shards_of(run: Run | None) -> list[int]:
    return [] if run is None else [each.shard for each in run.team.chains]


def test_the_first_waiting_chain_goes_first_and_its_worker_stays_with_it() -> None:
    dispatch = singly(chain(7, 2), chain(3, 1))
    run = dispatch.begin("w", CLASSES[0])
    assert run == Run(Team((chain(7, 2),)), 1, 0)
    assert (dispatch.waiting, dict(dispatch.running)) == (1, {"w": run})
    first = made_in(CLASSES[0], "first")
    following = dispatch.done("w", {7: first})
    assert following == Run(Team((chain(7, 2),), 1, {7: first}), 1, 0)
    assert dispatch.done("w", {7: made_in(CLASSES[0])}) is None
    assert shards_of(dispatch.begin("w", CLASSES[0])) == [3]
    assert dispatch.done("w", {3: made_in(CLASSES[0])}) is None
    assert dispatch.begin("w", CLASSES[0]) is None
    assert (dispatch.waiting, dispatch.running) == (0, {})


def test_a_worker_at_a_step_is_given_no_other() -> None:
    dispatch = singly(chain(0, 1), chain(1, 1))
    dispatch.begin("w", None)
    with pytest.raises(ValueError, match="'w' is at a step already"):
        dispatch.begin("w", None)


def test_a_chain_without_steps_is_nothing_to_do() -> None:
    assert singly(chain(0, 0)).waiting == 0


def test_a_failed_step_ends_its_chain_and_no_other() -> None:
    dispatch = singly(chain(0, 3), chain(1, 1))
    dispatch.begin("w", None)
    dispatch.failed("w")
    assert shards_of(dispatch.begin("w", None)) == [1]
    assert dispatch.waiting == 0


def test_the_step_of_a_worker_that_died_goes_to_the_next_one_and_is_given_up_at_last() -> None:
    dispatch = singly(chain(0, 2), chain(1, 1))
    before = made_in(CLASSES[0])
    dispatch.begin(0, CLASSES[0])
    dispatch.done(0, {0: before})
    for worker in range(TRIES - 1):
        (parked,) = dispatch.died(worker)
        assert parked == Run(Team((chain(0, 2),), 1, {0: before}), worker + 2, 0)
        assert dispatch.begin(worker + 1, CLASSES[0]) == parked, "ahead of the chain after it"
    assert dispatch.died(TRIES - 1) == ()
    assert dispatch.waiting == 1


def test_a_step_that_got_through_gives_the_next_one_all_its_tries() -> None:
    dispatch = singly(chain(0, 2))
    for worker in range(TRIES - 1):
        dispatch.begin(worker, CLASSES[0])
        dispatch.died(worker)
    last = dispatch.begin("last", CLASSES[0])
    assert last is not None
    assert last.tries == TRIES
    following = dispatch.done("last", {0: made_in(CLASSES[0])})
    assert following is not None
    assert following.tries == 1


def test_a_chain_begun_goes_only_to_workers_of_its_class() -> None:
    ours, theirs = CLASSES
    dispatch = singly(chain(0, 1, theirs), chain(1, 1), chain(2, 1, ours))
    assert dispatch.waits_for(ours)
    assert dispatch.waits_for(theirs)
    assert dispatch.waits_for(None)
    assert [shards_of(dispatch.begin(n, ours)) for n in range(2)] == [[1], [2]]
    assert dispatch.begin(2, ours) is None
    assert dispatch.begin(3, None) is None
    assert not dispatch.waits_for(ours)
    assert not dispatch.waits_for(None)
    assert shards_of(dispatch.begin(4, dict(reversed(theirs.items())))) == [0]


def test_a_chain_that_a_dead_worker_began_stays_with_its_class() -> None:
    ours, theirs = CLASSES
    dispatch = singly(chain(0, 2))
    dispatch.begin("w", ours)
    dispatch.done("w", {0: made_in(ours)})
    dispatch.died("w")
    assert dispatch.begin("other", theirs) is None
    assert dispatch.begin("same", ours) is not None


def test_what_nobody_may_do_is_given_up_in_order() -> None:
    dispatch = singly(chain(0, 1, CLASSES[1]), chain(1, 1), chain(2, 1, CLASSES[0]))
    assert [shards_of(run) for run in dispatch.give_up()] == [[0], [1], [2]]
    assert dispatch.waiting == 0
    assert dispatch.give_up() == []


# -- lanes --------------------------------------------------------------------------------------


def test_a_team_is_handed_out_whole_and_goes_on_with_those_that_have_a_further_step() -> None:
    dispatch = Dispatch(teams([chain(0, 3), chain(1, 1), chain(2, 2)], 4))
    assert shards_of(dispatch.begin("w", CLASSES[0])) == [0, 1, 2]
    assert dispatch.waiting == 0
    made = made_in(CLASSES[0])
    assert shards_of(dispatch.done("w", {0: made, 1: made, 2: made})) == [0, 2]
    assert shards_of(dispatch.done("w", {0: made, 2: made})) == [0]
    assert dispatch.done("w", {0: made}) is None


def test_a_lane_without_a_checkpoint_leaves_its_team_and_a_team_without_lanes_ends() -> None:
    dispatch = Dispatch(teams([chain(0, 3), chain(1, 3)], 2))
    dispatch.begin("w", CLASSES[0])
    first = made_in(CLASSES[0])
    following = dispatch.done("w", {1: first})
    assert following == Run(Team((chain(1, 3),), 1, {1: first}), 1, 0)
    assert dispatch.done("w", {}) is None
    assert (dispatch.waiting, dispatch.running) == (0, {})


def test_a_dead_worker_takes_no_lane_along_and_the_last_try_is_each_lane_s_own() -> None:
    dispatch = Dispatch(teams([chain(0, 2), chain(1, 2), chain(2, 2)], 3))
    made = made_in(CLASSES[0])
    dispatch.begin("begins", CLASSES[0])
    dispatch.done("begins", {0: made, 1: made, 2: made})
    parked = dispatch.died("begins")
    for worker in range(2, TRIES):
        assert [shards_of(run) for run in parked] == [[0, 1, 2]]
        dispatch.begin(worker, CLASSES[0])
        parked = dispatch.died(worker)
    assert [(shards_of(run), run.tries, run.team.number) for run in parked] == [([n], TRIES, 1) for n in range(3)]
    assert all(run.team.environment == CLASSES[0] for run in parked)
    assert [shards_of(dispatch.begin(f"last {n}", CLASSES[0])) for n in range(3)] == [[0], [1], [2]]
    assert dispatch.died("last 1") == (), "whose lane it was"
    assert dispatch.done("last 0", {0: made}) is None
    assert dispatch.done("last 2", {2: made}) is None


# -- any cluster --------------------------------------------------------------------------------


class Cluster:
    """Workers of both classes that finish, fail and die at random.

    Attributes:
        done: shard → its steps as they were done.
        tries: (shard, step) → how many workers had it.
        ended: shards whose chain ended early.
    """

    def __init__(self, formed: Sequence[Team], draw: random.Random, workers: int) -> None:
        self.dispatch, self.draw, self.workers = Dispatch(formed), draw, workers
        self.crew: dict[int, dict[str, str]] = {}
        self.hired = 0
        self.done: dict[int, list[int]] = defaultdict(list)
        self.tries: Counter[tuple[int, int]] = Counter()
        self.ended: set[int] = set()

    def run(self) -> None:
        while self.dispatch.waiting or self.dispatch.running:
            while len(self.crew) < self.workers:  # of every class in turn, so that each chain finds its own
                self.crew[self.hired] = CLASSES[self.hired % 2]
                self.hired += 1
            self.hand_out()
            if self.dispatch.running:
                self.strike()
            else:  # all of the wrong class
                self.crew.clear()

    def hand_out(self) -> None:
        for worker in self.crew.keys() - self.dispatch.running.keys():
            environment = self.crew[worker]
            may = self.dispatch.waits_for(environment)
            run = self.dispatch.begin(worker, environment)
            assert (run is not None) == may, "nobody is idle who could do something"
            self.told(run, environment)

    def strike(self) -> None:
        worker = self.draw.choice(sorted(self.crew.keys() & self.dispatch.running.keys()))
        run = self.dispatch.running[worker]
        shards = shards_of(run)
        what = self.draw.choice(["done"] * 4 + ["some done", "failed", "died"])
        if what in ("done", "some done"):
            left = [] if what == "done" else [shard for shard in shards if self.draw.random() < 0.5]
            self.ended |= set(left)
            made = {shard: made_in(self.crew[worker]) for shard in shards if shard not in left}
            for shard in made:
                self.done[shard].append(run.team.number)
            self.told(self.dispatch.done(worker, made), self.crew[worker])
        elif what == "failed":
            self.ended |= set(shards)
            self.dispatch.failed(worker)
        else:
            del self.crew[worker]
            parked = self.dispatch.died(worker)
            self.ended |= set() if parked else set(shards)
            assert not parked or sorted(shard for part in parked for shard in shards_of(part)) == sorted(shards)

    def told(self, run: Run | None, environment: Mapping[str, str]) -> None:
        if run is None:
            return
        for each in run.team.chains:
            assert run.team.number == len(self.done[each.shard])
            begun = run.team.done.get(each.shard, each.parent)
            assert begun is None or begun.environment == environment
            self.tries[each.shard, run.team.number] += 1


environments: Any = st.sampled_from([None, *CLASSES])


@given(
    st.lists(st.tuples(st.integers(1, 4), environments), max_size=8),
    st.integers(1, 4),
    st.integers(2, 5),
    st.integers(0, 2**32),
)
def test_every_step_is_done_once_and_in_order_whoever_dies(
    shapes: list[tuple[int, dict[str, str] | None]], lanes: int, workers: int, seed: int
) -> None:
    chains = [chain(shard, steps, environment) for shard, (steps, environment) in enumerate(shapes)]
    cluster = Cluster(teams(chains, lanes), random.Random(seed), workers)
    cluster.run()
    assert all(count <= TRIES for count in cluster.tries.values())
    for shard, (steps, _) in enumerate(shapes):
        done = cluster.done[shard]
        assert done == list(range(len(done)))
        assert (len(done) == steps) == (shard not in cluster.ended)


def test_a_step_costs_the_driver_well_under_a_millisecond() -> None:
    """No clock decides: calls of functions are counted, and grow with nothing but the steps."""

    def calls(chains: int) -> float:
        dispatch = singly(*(chain(shard, 32) for shard in range(chains)))
        count = 0

        def counting(*_: object) -> None:
            nonlocal count
            count += 1

        made = made_in(CLASSES[0])
        sys.setprofile(counting)
        for number in range(8):
            dispatch.begin(number, CLASSES[0])
        while dispatch.running:
            for worker, run in list(dispatch.running.items()):
                if dispatch.done(worker, {run.team.chains[0].shard: made}) is None:
                    dispatch.begin(worker, CLASSES[0])
        sys.setprofile(None)
        return count / (chains * 32)

    assert calls(1000) < 1.5 * calls(10) < 150
