"""The schedule: exactly the missing steps, one ordered chain per shard; and who is trained side by side."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestration.executor import ChainOrder
from orchestration.schedule import Team, environment_class, schedule, teams
from shards.keys import Keyring
from shards.layout import ShardLayout
from shards.lineage import Checkpoint
from shards.plan import SliceStep, make_plan
from shards.vault import StoredRecord
from tests.toy import ENVIRONMENT, toy_record

KEYS = Keyring.from_root(bytes(32))
LAYOUT = ShardLayout(shards=3, slices=3, rehearsal=0.0, epochs=1, key=KEYS.placement)
PLAN = make_plan(
    [StoredRecord.of(toy_record(n, subject=None), KEYS, "n", truncated=False) for n in range(40)], LAYOUT, "recipe"
)
HAVE = {
    key: Checkpoint(step.link, "f", "t", step.root, "s", len(step.members), step.own, ENVIRONMENT)
    for key, step in PLAN.steps().items()
}


def test_with_nothing_stored_everything_is_ordered_from_nothing() -> None:
    chains = {chain.shard: chain for chain in schedule(PLAN, {})}
    assert {shard: chain.steps for shard, chain in chains.items()} == {c.shard: c.steps for c in PLAN.chains}
    assert all(chain.parent is None for chain in chains.values())


def test_with_everything_stored_nothing_is_ordered() -> None:
    assert schedule(PLAN, HAVE) == ()


@pytest.mark.parametrize("gap", [0, 1, 2])
def test_a_chain_is_ordered_from_its_first_gap_on(gap: int) -> None:
    whole = PLAN.chains[1]
    missing = whole.steps[gap].key
    (chain,) = schedule(PLAN, {key: made for key, made in HAVE.items() if key != missing})
    assert chain.shard == 1
    assert chain.steps == whole.steps[gap:], "a checkpoint after a gap has no parent to trust"
    assert chain.parent == (HAVE[whole.steps[gap - 1].key] if gap else None)


def test_the_dearest_chain_goes_first() -> None:
    costs = [chain.cost for chain in schedule(PLAN, {})]
    assert costs == sorted(costs, reverse=True)
    assert sum(costs) == 40


# -- teams --------------------------------------------------------------------------------------


def sized(shard: int, sizes: Sequence[int], environment: dict[str, str] | None = None) -> ChainOrder:
    """A chain with so many records in its steps."""
    steps = tuple(cast("SliceStep", SimpleNamespace(members=range(size), key="k")) for size in sizes)
    return ChainOrder(shard, steps, None, environment)


shapes: Any = st.dictionaries(
    st.integers(0, 12),
    st.tuples(st.lists(st.integers(1, 9), max_size=4), st.sampled_from([None, {"m": "a"}, {"m": "b"}])),
)


@given(shapes, st.integers(1, 5))
def test_every_chain_is_in_the_team_of_its_group_and_class_and_in_no_other(
    shapes: dict[int, tuple[list[int], dict[str, str] | None]], lanes: int
) -> None:
    chains = [sized(shard, sizes, environment) for shard, (sizes, environment) in shapes.items()]
    formed = teams(chains, lanes)
    found = sorted(chain.shard for team in formed for chain in team.chains)
    assert found == sorted(shard for shard, (sizes, _) in shapes.items() if sizes)
    for team in formed:
        assert len({chain.shard // lanes for chain in team.chains}) == 1
        assert len({chain.shard % lanes for chain in team.chains}) == len(team.chains) <= lanes
        assert all(chain.environment == team.environment for chain in team.chains)
    places = [(team.chains[0].shard // lanes, environment_class(team.environment)) for team in formed]
    assert len(places) == len(set(places)), "who can be trained together is"
    assert [team.cost for team in formed] == sorted((team.cost for team in formed), reverse=True)


@given(shapes)
def test_with_one_lane_a_team_is_a_chain_and_the_order_that_of_the_chains(
    shapes: dict[int, tuple[list[int], dict[str, str] | None]],
) -> None:
    chains = [sized(shard, sizes, environment) for shard, (sizes, environment) in shapes.items() if sizes]
    chains.sort(key=lambda chain: (-chain.cost, chain.shard))
    assert [team.chains for team in teams(chains, 1)] == [(chain,) for chain in chains]
    assert [team.cost for team in teams(chains, 1)] == [chain.cost for chain in chains]


def test_a_team_costs_what_its_longest_lane_costs_step_by_step() -> None:
    (team,) = teams([sized(0, [3, 9]), sized(1, [5]), sized(2, [1, 1, 1])], 4)
    assert team.cost == 5 + 9 + 1


@given(shapes, st.integers(1, 5), st.randoms(use_true_random=False))
def test_a_team_does_each_step_of_each_chain_once_in_order_until_its_last_lane_left(
    shapes: dict[int, tuple[list[int], dict[str, str] | None]], lanes: int, draw: random.Random
) -> None:
    chains = [sized(shard, sizes, environment) for shard, (sizes, environment) in shapes.items()]
    made = HAVE[PLAN.chains[0].steps[0].key]
    reached = dict.fromkeys(shapes, 0)
    for formed in teams(chains, lanes):
        team: Team | None = formed
        while team is not None:
            assert all(reached[chain.shard] == team.number < len(chain.steps) for chain in team.chains)
            orders = team.orders(Path("w"), Path("s"))
            assert [each.shard for each in orders] == [chain.shard for chain in team.chains]
            assert all(each.parent == (made if team.number else None) for each in orders)
            assert all(each.environment == team.environment for each in orders)
            stay = {chain.shard for chain in team.chains if draw.random() < 0.8}
            for shard in stay:
                reached[shard] += 1
            left = {chain.shard for chain in team.chains} - stay
            team = team.after(dict.fromkeys(stay, made))
            assert team is None or not left & {chain.shard for chain in team.chains}
            if not left:  # nobody stops early
                going = {shard for shard in stay if reached[shard] < len(shapes[shard][0])}
                assert going == ({chain.shard for chain in team.chains} if team else set())


def test_a_team_apart_has_each_lane_where_it_was() -> None:
    (team,) = teams([sized(0, [3, 9]), sized(1, [5, 5])], 2)
    made = HAVE[PLAN.chains[0].steps[0].key]
    later = team.after({0: made, 1: made})
    assert later is not None
    assert [(part.chains[0].shard, part.number, part.environment) for part in later.apart()] == [
        (0, 1, ENVIRONMENT),
        (1, 1, ENVIRONMENT),
    ]
