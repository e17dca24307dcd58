"""Where a record goes and when it is read: decided by looking at that one record only.

This is what makes deletion exact. No position, no total and no other record takes part, so removing
a record moves nothing (SISA, arXiv 1912.03817, with the position-based assignment of its reference
code replaced by keyed hashes of stable IDs).

Permanent records of the first generation live in no shard but in the trunk, from whose head every shard starts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from shards.digest import keyed
from shards.records import PERMANENT, Record
from shards.trunk import TRUNK


@dataclass(frozen=True, slots=True)
class Assignment:
    """A record's place: ``slice`` counts through generations (generation x slices + local slice).

    ``shard`` is ``TRUNK`` for the trunk.
    """

    shard: int
    slice: int


@dataclass(frozen=True, slots=True)
class ShardLayout:
    """Placement, order and rehearsal for one recipe and placement key.

    Attributes:
        shards: number of shards (S).
        slices: slices per generation (R).
        rehearsal: fraction of earlier records, 0 to 1, that take part in a later step.
        epochs: passes over a step's records.
        key: the placement key.
    """

    shards: int
    slices: int
    rehearsal: float
    epochs: int
    key: bytes = field(repr=False)

    @classmethod
    def of_recipe(cls, recipe: Mapping[str, Any], key: bytes) -> ShardLayout:
        """The layout that a recipe's JSON describes."""
        return cls(
            shards=int(recipe["shards"]),
            slices=int(recipe["slices"]),
            rehearsal=float(recipe["rehearsal"]),
            epochs=int(recipe["epochs"]),
            key=key,
        )

    def place(self, record: Record) -> Assignment:
        """Shard by subject (or ID), slice by ID (or declared risk), generation as stored.

        A permanent record of the first generation is the trunk's. One that came later is an ordinary record:
        a growing trunk would retrain everything.
        """
        if record.retention == PERMANENT and record.generation == 0:
            shard = TRUNK
        else:
            shard = self.shard_of(record.subject) if record.subject else self._shard("id", record.id)
        if record.risk is None:
            local = _number(self.key, "slice", record.id) % self.slices
        else:  # likely deletions go last, where a restart is cheapest
            local = min(int(record.risk * self.slices), self.slices - 1)
        return Assignment(shard, record.generation * self.slices + local)

    def shard_of(self, subject: str) -> int:
        """Where all records of a subject live, but for those in the trunk."""
        return self._shard("subject", subject)

    def _shard(self, kind: str, owner: str) -> int:
        return _number(self.key, "shard", kind, owner) % self.shards

    def order_key(self, record_id: str, step: int, epoch: int) -> bytes:
        """Sort key of a record within one pass of one step."""
        return keyed(self.key, "order", record_id, step, epoch)

    def rehearsed(self, record_id: str, step: int) -> bool:
        """Does an earlier record take part in ``step``?"""
        if self.rehearsal in (0, 1):  # every draw would say the same
            return self.rehearsal == 1
        draw = int.from_bytes(keyed(self.key, "rehearsal", record_id, step)[:8], "big")
        return draw < int(self.rehearsal * 2**64)


def _number(key: bytes, domain: str, *fields: str) -> int:
    return int.from_bytes(keyed(key, domain, *fields)[:16], "big")
