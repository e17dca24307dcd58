"""Pure: a plan and what is stored → the missing steps, as one ordered chain per shard."""

from __future__ import annotations

from collections.abc import Mapping

from orchestration.executor import ChainOrder
from shards.lineage import Checkpoint
from shards.plan import Plan


def schedule(
    plan: Plan, have: Mapping[str, Checkpoint], recorded: Mapping[str, Checkpoint] | None = None
) -> tuple[ChainOrder, ...]:
    """Chains of missing steps, dearest first so that no worker waits for the last one.

    Args:
        plan: what should be stored.
        have: intact checkpoints by key.
        recorded: checkpoints with a fact, intact or not; a damaged one is remade in its own
            environment class.
    """
    chains = []
    for chain in plan.chains:
        # A chain is trained from its first gap on: a checkpoint after a gap has no parent to trust.
        first = next((at for at, step in enumerate(chain.steps) if step.key not in have), None)
        if first is not None:
            parent = have[chain.steps[first - 1].key] if first else None
            begun = parent or (recorded or {}).get(chain.steps[first].key)
            environment = None if begun is None else begun.environment
            chains.append(ChainOrder(chain.shard, chain.steps[first:], parent, environment))
    return tuple(sorted(chains, key=lambda chain: (-chain.cost, chain.shard)))
