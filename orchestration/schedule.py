"""Pure: a plan and what is stored → the missing steps, one ordered chain per shard and the trunk's; chains → teams.

plan, checkpoints ─▶ schedule ─▶ chains ─▶ teams: chains trained side by side, a lane each
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import TypeAlias

from orchestration.executor import ChainOrder, StepOrder, order
from shards.lineage import Checkpoint
from shards.plan import Plan

EnvironmentClass: TypeAlias = frozenset[tuple[str, str]] | None


@dataclass(frozen=True, slots=True)
class Team:
    """Chains that are trained side by side: what comes next is step ``number`` of each.

    Which slices these are does not matter, since a pass over the base has one shape whatever its lanes hold.

    Attributes:
        chains: of different shards of one group and of one environment class, each with a step ``number``.
        number: how many steps of each were done.
        done: shard → the checkpoint before the next step, once one was made.
    """

    chains: tuple[ChainOrder, ...]
    number: int = 0
    done: Mapping[int, Checkpoint] = field(default_factory=dict)

    @property
    def environment(self) -> Mapping[str, str] | None:
        """The class that must do the next step; None if the chains begin there."""
        first = self.chains[0]
        return self.done[first.shard].environment if first.shard in self.done else first.environment

    @property
    def cost(self) -> int:
        """Sample passes up to a constant factor: a step of the team takes as long as that of its longest lane."""
        sizes = ([len(step.members) for step in chain.steps] for chain in self.chains)
        return sum(max(step) for step in zip_longest(*sizes, fillvalue=0))

    def orders(self, workspace: Path, store: Path) -> tuple[StepOrder, ...]:
        """The next step of every lane, to be attempted."""
        return tuple(
            order(chain, self.number, self.done.get(chain.shard, chain.parent), workspace, store)
            for chain in self.chains
        )

    def after(self, made: Mapping[int, Checkpoint]) -> Team | None:
        """The team once the shards in ``made`` have their next checkpoint; who has none, or no further step, leaves.

        None if all have left.
        """
        number = self.number + 1
        going = tuple(chain for chain in self.chains if chain.shard in made and number < len(chain.steps))
        return Team(going, number, made) if going else None

    def apart(self) -> tuple[Team, ...]:
        """Every chain as a team of its own."""
        return tuple(Team((chain,), self.number, self.done) for chain in self.chains)


def schedule(
    plan: Plan, have: Mapping[str, Checkpoint], recorded: Mapping[str, Checkpoint] | None = None
) -> tuple[ChainOrder, ...]:
    """Chains of missing steps, dearest first so that no worker waits for the last one.

    A chain that starts from a checkpoint which is yet to be made (the trunk's head) has no parent here.

    Args:
        plan: what should be stored.
        have: intact checkpoints by key.
        recorded: checkpoints with a fact, intact or not; a damaged one is remade in its own
            environment class.
    """
    chains = []
    for chain in plan.every:
        # A chain is trained from its first gap on: a checkpoint after a gap has no parent to trust.
        first = next((at for at, step in enumerate(chain.steps) if step.key not in have), None)
        if first is not None:
            parent = have.get(chain.steps[first].link.parent or "")
            begun = parent or (recorded or {}).get(chain.steps[first].key)
            environment = None if begun is None else begun.environment
            chains.append(ChainOrder(chain.shard, chain.steps[first:], parent, environment))
    return tuple(sorted(chains, key=lambda chain: (-chain.cost, chain.shard)))


def teams(chains: Iterable[ChainOrder], lanes: int) -> tuple[Team, ...]:
    """Chains with steps, as they are trained side by side in ``lanes`` lanes; dearest first, equals as given.

    Shard s has lane s modulo ``lanes`` and belongs to group s divided by ``lanes``, wherever and with whomever it
    is trained. Chains of different environment classes cannot share a worker.
    """
    together: dict[tuple[int, EnvironmentClass], list[ChainOrder]] = {}
    for chain in chains:
        if chain.steps:
            together.setdefault((chain.shard // lanes, environment_class(chain.environment)), []).append(chain)
    return tuple(sorted((Team(tuple(group)) for group in together.values()), key=lambda team: -team.cost))


def environment_class(environment: Mapping[str, str] | None) -> EnvironmentClass:
    """An environment, to be compared as a whole; None is that of chains not begun yet."""
    return None if environment is None else frozenset(environment.items())
