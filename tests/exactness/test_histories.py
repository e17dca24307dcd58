"""The law of exactness over thousands of histories, with the toy trainer.

Ledger, vault, store, plan, reconcile, delete, law and certificate are the real ones; only the
arithmetic of training is replaced by a hash that leaks whatever it was shown.
"""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestration.executor import Executor
from sisa.config import Recipe
from tests.exactness.histories import (
    POOL,
    Delete,
    Event,
    Ingest,
    Operation,
    World,
    executors,
    histories,
    kills,
    permanents,
)
from tests.exactness.oracle import Holdings, holdings, refuted
from tests.toy import ToyTrainer, memory_directory, toy_recipe


def examples(count: int) -> settings:
    """The same examples every time, however slow the machine is."""
    return settings(
        max_examples=count,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


def recipes() -> st.SearchStrategy[Recipe]:
    """Every shape that matters."""
    return st.builds(
        lambda shards, slices, rehearsal: toy_recipe(shards=shards, slices=slices, rehearsal=rehearsal),
        st.integers(1, 3),
        st.integers(1, 3),
        st.sampled_from([0.0, 0.25, 0.5, 1.0]),
    )


def play(
    recipe: Recipe,
    events: list[Event],
    permanent: frozenset[int] = frozenset(),
    *,
    certificates: bool = False,
    lanes: int = 1,
) -> None:
    """Play a history and ask the whole law at its end."""
    with memory_directory() as path:
        world = World(path, recipe, ToyTrainer(lanes=lanes), permanent=permanent)
        try:
            for event in events:
                world.play(event)
            world.settle()
            world.check()
            if certificates:
                assert_verified(world)
        finally:
            world.close()


def assert_verified(world: World) -> None:
    """No check of any certificate fails, however much happened after it was signed."""
    workspace = world.session.workspace
    for file in sorted((workspace.path / "certificates").iterdir()):
        assert refuted(file, workspace.path) == []


@examples(120)
@given(recipe=recipes(), events=histories(st.none()), permanent=permanents())
def test_any_history_equals_a_fresh_run(recipe: Recipe, events: list[Event], permanent: frozenset[int]) -> None:
    play(recipe, events, permanent)


@examples(120)
@given(recipe=recipes(), events=histories(kills() | st.none()), permanent=permanents())
def test_any_history_killed_anywhere_equals_a_fresh_run(
    recipe: Recipe, events: list[Event], permanent: frozenset[int]
) -> None:
    play(recipe, events, permanent)


@examples(30)
@given(recipe=recipes(), events=histories(st.none()), permanent=permanents(), lanes=st.integers(2, 3))
def test_any_history_in_lanes_equals_fresh_runs_side_by_side_and_alone(
    recipe: Recipe, events: list[Event], permanent: frozenset[int], lanes: int
) -> None:
    play(recipe, events, permanent, lanes=lanes)


@examples(30)
@given(recipe=recipes(), events=histories(kills() | st.none()), permanent=permanents(), lanes=st.integers(2, 3))
def test_any_history_in_lanes_killed_anywhere_equals_fresh_runs_side_by_side_and_alone(
    recipe: Recipe, events: list[Event], permanent: frozenset[int], lanes: int
) -> None:
    play(recipe, events, permanent, lanes=lanes)


@examples(30)
@given(recipe=recipes(), events=histories(kills() | st.none()), permanent=permanents())
def test_every_certificate_of_any_history_verifies(
    recipe: Recipe, events: list[Event], permanent: frozenset[int]
) -> None:
    play(recipe, events, permanent, certificates=True)


@examples(30)
@given(
    recipe=recipes(),
    gone=st.lists(st.integers(0, POOL - 1), min_size=1, max_size=4, unique=True),
    permanent=permanents(),
    batched=executors(),
    singly=executors(),
)
def test_batched_deletion_equals_deletion_one_by_one_in_any_order(
    recipe: Recipe, gone: list[int], permanent: frozenset[int], batched: Executor, singly: Executor
) -> None:
    def run(operations: list[Operation], executor: Executor) -> Holdings:
        with memory_directory() as path:
            world = World(path, recipe, permanent=permanent)
            try:
                for operation in operations:
                    world.play(Event(operation, None, repeat=True, executor=executor))
                return holdings(world.session)
            finally:
                world.close()

    everything = Ingest(tuple(range(POOL)), None, trained=True)
    at_once = run([everything, Delete(tuple(sorted(gone)))], batched)
    in_turn = run([everything, *(Delete((number,)) for number in gone)], singly)
    never_there = run([Ingest(tuple(n for n in range(POOL) if n not in gone), None, trained=True)], batched)
    assert at_once == in_turn == never_there


@pytest.mark.slow
@pytest.mark.timeout(3600)
@examples(5000)
@given(recipe=recipes(), events=histories(kills() | st.none()), permanent=permanents(), lanes=st.integers(1, 3))
def test_thousands_of_histories_killed_anywhere_equal_a_fresh_run(
    recipe: Recipe, events: list[Event], permanent: frozenset[int], lanes: int
) -> None:
    play(recipe, events, permanent, lanes=lanes)
