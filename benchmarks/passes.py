"""What does one deletion cost in sample passes? Counted from plans; nothing is trained.

A deletion at (shard, slice) is planned exactly as ``sisa delete --dry-run`` plans it. The formulas

    rehearsal 1    S / (2/3 + 1/(3R))
    rehearsal 0    2SR / (R + 1)

are full retraining divided by the *mean* cost of a deletion over the S x R positions, all positions
alike (a ratio of means, not a mean of ratios), for shards and slices of equal size. Keyed hashes make
them unequal, so the same average is taken over the real places and over several placement keys. The
average over records, which weighs a position by its records, is given beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from benchmarks.data import as_stored
from benchmarks.difference import difference
from shards.layout import ShardLayout
from shards.plan import Chain, Plan, make_chain, make_plan
from shards.records import Record
from shards.vault import StoredRecord


@dataclass(frozen=True, slots=True)
class Position:
    """One deletion from one place.

    Attributes:
        shard: where the record lived.
        slice: where the record lived.
        records: how many records lived there.
        passes: sample passes of the steps that are trained again.
    """

    shard: int
    slice: int
    records: int
    passes: int


def formula(shards: int, slices: int, rehearsal: float) -> float:
    """Full retraining over the mean deletion, for equal shards and slices; rehearsal 0 or 1.

    Raises:
        ValueError: for a rehearsal in between, which has no such closed form here.
    """
    if rehearsal == 1:
        return shards / (2 / 3 + 1 / (3 * slices))
    if rehearsal == 0:
        return 2 * shards * slices / (slices + 1)
    raise ValueError("rehearsal must be 0 or 1")


def all_passes(plan: Plan, layout: ShardLayout) -> int:
    """Sample passes of training everything."""
    return layout.epochs * sum(len(step.members) for step in plan.steps().values())


def deletion_passes(before: Plan, gone: StoredRecord, layout: ShardLayout) -> int:
    """Sample passes that deleting one record costs.

    Only the chain of its shard is planned anew: no other depends on it. Not for records of a trunk.
    """
    shard = layout.place(gone.record).shard
    rest = [stored for stored in _records(before.chains[shard], layout) if stored.tag != gone.tag]
    rest += _records(before.trunk, layout)
    chains = list(before.chains)
    chains[shard] = make_chain(shard, rest, layout, before.recipe)
    after = Plan(before.recipe, tuple(chains), before.trunk)
    steps = {step.key: step for step in chains[shard].steps}
    return layout.epochs * sum(len(steps[key].members) for key in difference(before, after).retrained)


def _records(chain: Chain, layout: ShardLayout) -> list[StoredRecord]:
    """The records of a shard, each once."""
    return [
        stored
        for step in chain.steps
        for stored in step.members
        if layout.place(stored.record).slice == step.link.slice
    ]


def positions(records: Sequence[StoredRecord], layout: ShardLayout, plan: Plan) -> list[Position]:
    """One deletion from every place that holds a record (the cost is the same for each record there)."""
    places: dict[tuple[int, int], list[StoredRecord]] = {}
    for stored in records:
        place = layout.place(stored.record)
        places.setdefault((place.shard, place.slice), []).append(stored)
    return [
        Position(shard, number, len(held), deletion_passes(plan, held[0], layout))
        for (shard, number), held in sorted(places.items())
    ]


def count_passes(
    records: Sequence[Record], shards: int, slices: int, rehearsal: float, placements: int
) -> dict[str, Any]:
    """The answer for one rehearsal: raw counts per placement key and the ratios they give."""
    expected = formula(shards, slices, rehearsal)
    runs: list[dict[str, Any]] = []
    for number in range(placements):
        stored, keys = as_stored(records, number)
        layout = ShardLayout(shards, slices, rehearsal, 1, keys.placement)
        plan = make_plan(stored, layout, "benchmark")
        full = all_passes(plan, layout)
        costs = positions(stored, layout, plan)
        by_position = fmean(cost.passes for cost in costs)
        by_record = sum(cost.passes * cost.records for cost in costs) / len(stored)
        runs.append(
            {
                "placement": number,
                "full_passes": full,
                "positions": len(costs),
                "mean_deletion_passes": by_position,
                "ratio": full / by_position,
                "ratio_weighted_by_records": full / by_record,
                "deletion_passes": [[cost.passes for cost in costs if cost.shard == shard] for shard in range(shards)],
                "records": [[cost.records for cost in costs if cost.shard == shard] for shard in range(shards)],
            }
        )
    ratios = [run["ratio"] for run in runs]
    return {
        "rehearsal": rehearsal,
        "records": len(records),
        "formula": expected,
        "ratio": fmean(ratios),
        "ratio_lowest": min(ratios),
        "ratio_highest": max(ratios),
        "ratio_weighted_by_records": fmean(run["ratio_weighted_by_records"] for run in runs),
        "largest_deviation": max(abs(ratio / expected - 1) for ratio in ratios),
        # One unsharded model trained once over everything is what a deletion costs without sharding.
        "ratio_to_one_pass_over_all_records": fmean(len(records) / run["mean_deletion_passes"] for run in runs),
        "placements": runs,
    }
