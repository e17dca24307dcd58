"""Pure: surviving records + layout + recipe digest → slice steps.

A step's key covers everything that can reach its bytes, so "what must be trained?" is a set
operation on keys.

The trunk, if any record is its own, is a chain like a shard's, and the first step of every shard has its head for a
parent: so every key covers the trunk.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from shards.layout import ShardLayout
from shards.lineage import Link, records_digest
from shards.sparse import tree_root
from shards.trunk import TRUNK
from shards.vault import StoredRecord

CHAIN = 0  # one chain a shard; the number is part of keys and seeds


@dataclass(frozen=True)  # without slots: root and key are made once
class SliceStep:
    """Train one slice from its parent.

    Attributes:
        link: identity; ``link.key`` names the checkpoint.
        members: the records that take part, in the order of the first pass.
        leaves: tag → commitment of the records that live in this slice; the rest is rehearsal.
    """

    link: Link
    members: tuple[StoredRecord, ...]
    leaves: Mapping[bytes, bytes]

    @property
    def own(self) -> int:
        """How many records live in this slice."""
        return len(self.leaves)

    @cached_property
    def root(self) -> str:
        """Root (hex) of the slice's tree of commitments."""
        return tree_root(self.leaves).hex()

    @cached_property
    def key(self) -> str:
        """Name of the checkpoint this step makes."""
        return self.link.key


@dataclass(frozen=True, slots=True)
class Chain:
    """The steps of one shard, or of the trunk, in order; empty if none of its records survives."""

    shard: int
    steps: tuple[SliceStep, ...]

    @property
    def head(self) -> SliceStep | None:
        """The last step, which is served once trained."""
        return self.steps[-1] if self.steps else None


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that should be trained.

    Attributes:
        recipe: digest of the recipe.
        chains: one a shard, in order.
        trunk: what all of them start from; often empty.
    """

    recipe: str
    chains: tuple[Chain, ...]
    trunk: Chain = Chain(TRUNK, ())

    @property
    def every(self) -> tuple[Chain, ...]:
        """The trunk and the shards' chains, in the order in which they can be trained."""
        return self.trunk, *self.chains

    def steps(self) -> dict[str, SliceStep]:
        """Every step by key."""
        return {step.key: step for chain in self.every for step in chain.steps}

    def lineage(self, chain: Chain) -> tuple[SliceStep, ...]:
        """All steps on the way to a chain's head: the trunk's, then its own."""
        return chain.steps if chain.shard == TRUNK else self.trunk.steps + chain.steps


def make_plan(records: Iterable[StoredRecord], layout: ShardLayout, recipe: str) -> Plan:
    """The plan of the surviving ``records`` under the recipe with digest ``recipe``."""
    places = _placed(records, layout)
    trunk = _chain(TRUNK, places[TRUNK], layout, recipe)
    chains = (_chain(shard, places[shard], layout, recipe, trunk.head) for shard in range(layout.shards))
    return Plan(recipe, tuple(chains), trunk)


def make_chain(shard: int, records: Iterable[StoredRecord], layout: ShardLayout, recipe: str) -> Chain:
    """The chain of one shard, given its records and the trunk's; records of other shards are left out."""
    places = _placed(records, layout)
    trunk = _chain(TRUNK, places[TRUNK], layout, recipe)
    return trunk if shard == TRUNK else _chain(shard, places[shard], layout, recipe, trunk.head)


def _placed(records: Iterable[StoredRecord], layout: ShardLayout) -> dict[int, dict[int, list[StoredRecord]]]:
    """Shard → slice → its records."""
    places: dict[int, dict[int, list[StoredRecord]]] = defaultdict(lambda: defaultdict(list))
    for stored in records:
        place = layout.place(stored.record)
        places[place.shard][place.slice].append(stored)
    return places


def _chain(
    shard: int,
    slices: Mapping[int, list[StoredRecord]],
    layout: ShardLayout,
    recipe: str,
    start: SliceStep | None = None,
) -> Chain:
    """A slice without surviving records has no step at all; ``start`` is whose checkpoint the first step goes on from.

    What is rehearsed is the chain's own: records of the trunk take part in its steps alone.
    """
    steps: list[SliceStep] = []
    earlier: list[StoredRecord] = []
    for number in sorted(slices):
        own = slices[number]
        again = [stored for stored in earlier if layout.rehearsed(stored.record.id, number)]
        members = pass_order(own + again, layout, number, epoch=0)
        parent = steps[-1] if steps else start
        link = Link(
            recipe=recipe,
            shard=shard,
            chain=CHAIN,
            slice=number,
            parent=parent.key if parent is not None else None,
            records=records_digest((stored.tag, stored.fingerprint) for stored in members),
        )
        steps.append(SliceStep(link, members, {stored.tag: stored.commitment for stored in own}))
        earlier += own
    return Chain(shard, tuple(steps))


def pass_order(
    members: Iterable[StoredRecord], layout: ShardLayout, step: int, *, epoch: int
) -> tuple[StoredRecord, ...]:
    """The members of a step in the order of one pass."""
    return tuple(sorted(members, key=lambda stored: layout.order_key(stored.record.id, step, epoch)))
