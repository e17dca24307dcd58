"""Dispatch: nobody idle while there is something to do, every step once and in order, bounded retries."""

from __future__ import annotations

import random
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestration.dispatch import TRIES, Dispatch, Run
from orchestration.executor import ChainOrder
from shards.lineage import Checkpoint
from shards.plan import SliceStep

CLASSES: tuple[dict[str, str], ...] = ({"machine": "a"}, {"machine": "b", "libc": "1"})


def made_in(environment: dict[str, str], name: object = None) -> Checkpoint:
    """A checkpoint as far as dispatch looks at it."""
    return cast("Checkpoint", SimpleNamespace(environment=environment, name=name))


def chain(shard: int, steps: int, environment: dict[str, str] | None = None) -> ChainOrder:
    parent = None if environment is None else made_in(environment)
    return ChainOrder(shard, tuple(cast("SliceStep", (shard, n)) for n in range(steps)), parent, environment)


def test_the_first_waiting_chain_goes_first_and_its_worker_stays_with_it() -> None:
    dispatch = Dispatch([chain(7, 2), chain(3, 1)])
    run = dispatch.begin("w", CLASSES[0])
    assert run == Run(chain(7, 2), 0, None, 1, 0)
    assert (dispatch.waiting, dict(dispatch.running)) == (1, {"w": run})
    first = made_in(CLASSES[0], "first")
    following = dispatch.done("w", first)
    assert following is not None
    assert (following.number, following.done, following.tries) == (1, first, 1)
    assert dispatch.done("w", made_in(CLASSES[0])) is None
    last = dispatch.begin("w", CLASSES[0])
    assert last is not None
    assert last.chain.shard == 3
    assert dispatch.done("w", made_in(CLASSES[0])) is None
    assert dispatch.begin("w", CLASSES[0]) is None
    assert (dispatch.waiting, dispatch.running) == (0, {})


def test_a_worker_at_a_step_is_given_no_other() -> None:
    dispatch = Dispatch([chain(0, 1), chain(1, 1)])
    dispatch.begin("w", None)
    with pytest.raises(ValueError, match="'w' is at a step already"):
        dispatch.begin("w", None)


def test_a_chain_without_steps_is_nothing_to_do() -> None:
    assert Dispatch([chain(0, 0)]).waiting == 0


def test_a_failed_step_ends_its_chain_and_no_other() -> None:
    dispatch = Dispatch([chain(0, 3), chain(1, 1)])
    dispatch.begin("w", None)
    dispatch.failed("w")
    run = dispatch.begin("w", None)
    assert run is not None
    assert run.chain.shard == 1
    assert dispatch.waiting == 0


def test_the_step_of_a_worker_that_died_goes_to_the_next_one_and_is_given_up_at_last() -> None:
    dispatch = Dispatch([chain(0, 2), chain(1, 1)])
    before = made_in(CLASSES[0])
    dispatch.begin(0, CLASSES[0])
    dispatch.done(0, before)
    for worker in range(TRIES - 1):
        parked = dispatch.died(worker)
        assert parked == Run(chain(0, 2), 1, before, worker + 2, 0)
        assert dispatch.begin(worker + 1, CLASSES[0]) == parked, "ahead of the chain after it"
    assert dispatch.died(TRIES - 1) is None
    assert dispatch.waiting == 1


def test_a_step_that_got_through_gives_the_next_one_all_its_tries() -> None:
    dispatch = Dispatch([chain(0, 2)])
    for worker in range(TRIES - 1):
        dispatch.begin(worker, CLASSES[0])
        dispatch.died(worker)
    last = dispatch.begin("last", CLASSES[0])
    assert last is not None
    assert last.tries == TRIES
    following = dispatch.done("last", made_in(CLASSES[0]))
    assert following is not None
    assert following.tries == 1


def test_a_chain_begun_goes_only_to_workers_of_its_class() -> None:
    ours, theirs = CLASSES
    dispatch = Dispatch([chain(0, 1, theirs), chain(1, 1), chain(2, 1, ours)])
    assert dispatch.waits_for(ours)
    assert dispatch.waits_for(theirs)
    assert dispatch.waits_for(None)
    taken = [run.chain.shard for run in (dispatch.begin(n, ours) for n in range(2)) if run]
    assert taken == [1, 2]
    assert dispatch.begin(2, ours) is None
    assert dispatch.begin(3, None) is None
    assert not dispatch.waits_for(ours)
    assert not dispatch.waits_for(None)
    run = dispatch.begin(4, dict(reversed(theirs.items())))
    assert run is not None
    assert run.chain.shard == 0


def test_a_chain_that_a_dead_worker_began_stays_with_its_class() -> None:
    ours, theirs = CLASSES
    dispatch = Dispatch([chain(0, 2)])
    dispatch.begin("w", ours)
    dispatch.done("w", made_in(ours))
    dispatch.died("w")
    assert dispatch.begin("other", theirs) is None
    assert dispatch.begin("same", ours) is not None


def test_what_nobody_may_do_is_given_up_in_order() -> None:
    dispatch = Dispatch([chain(0, 1, CLASSES[1]), chain(1, 1), chain(2, 1, CLASSES[0])])
    assert [run.chain.shard for run in dispatch.give_up()] == [0, 1, 2]
    assert dispatch.waiting == 0
    assert dispatch.give_up() == []


# -- any cluster --------------------------------------------------------------------------------


class Cluster:
    """Workers of both classes that finish, fail and die at random.

    Attributes:
        done: shard → its steps as they were done.
        tries: (shard, step) → how many workers had it.
        ended: shards whose chain ended early.
    """

    def __init__(self, chains: Sequence[ChainOrder], draw: random.Random, workers: int) -> None:
        self.dispatch, self.draw, self.workers = Dispatch(chains), draw, workers
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
            assert run is None or run.environment is None or run.environment == environment
            self.told(run)

    def strike(self) -> None:
        worker = self.draw.choice(sorted(self.crew.keys() & self.dispatch.running.keys()))
        run = self.dispatch.running[worker]
        shard, what = run.chain.shard, self.draw.choice(["done"] * 5 + ["failed", "died"])
        if what == "done":
            self.done[shard].append(run.number)
            self.told(self.dispatch.done(worker, made_in(self.crew[worker])))
        elif what == "failed":
            self.ended.add(shard)
            self.dispatch.failed(worker)
        else:
            del self.crew[worker]
            if self.dispatch.died(worker) is None:
                self.ended.add(shard)

    def told(self, run: Run | None) -> None:
        if run is not None:
            self.tries[run.chain.shard, run.number] += 1


environments: Any = st.sampled_from([None, *CLASSES])


@given(
    st.lists(st.tuples(st.integers(1, 4), environments), max_size=8),
    st.integers(2, 5),
    st.integers(0, 2**32),
)
def test_every_step_is_done_once_and_in_order_whoever_dies(
    shapes: list[tuple[int, dict[str, str] | None]], workers: int, seed: int
) -> None:
    chains = [chain(shard, steps, environment) for shard, (steps, environment) in enumerate(shapes)]
    cluster = Cluster(chains, random.Random(seed), workers)
    cluster.run()
    assert all(count <= TRIES for count in cluster.tries.values())
    for shard, (steps, _) in enumerate(shapes):
        done = cluster.done[shard]
        assert done == list(range(len(done)))
        assert (len(done) == steps) == (shard not in cluster.ended)


def test_a_step_costs_the_driver_well_under_a_millisecond() -> None:
    """No clock decides: calls of functions are counted, and grow with nothing but the steps."""

    def calls(chains: int) -> float:
        dispatch = Dispatch([chain(shard, 32) for shard in range(chains)])
        count = 0

        def counting(*_: object) -> None:
            nonlocal count
            count += 1

        made = made_in(CLASSES[0])
        sys.setprofile(counting)
        for number in range(8):
            dispatch.begin(number, CLASSES[0])
        while dispatch.running:
            for worker in list(dispatch.running):
                if dispatch.done(worker, made) is None:
                    dispatch.begin(worker, CLASSES[0])
        sys.setprofile(None)
        return count / (chains * 32)

    assert calls(1000) < 1.5 * calls(10) < 150
