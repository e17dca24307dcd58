"""The schedule: exactly the missing steps, one ordered chain per shard."""

from __future__ import annotations

import pytest

from orchestration.schedule import schedule
from shards.keys import Keyring
from shards.layout import ShardLayout
from shards.lineage import Checkpoint
from shards.plan import make_plan
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
