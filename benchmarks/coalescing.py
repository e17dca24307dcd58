"""What do pending deletions cost together? Counted from plans; nothing is trained.

    python -m benchmarks.coalescing --data DIR [--quick] [--out FILE]

DIR holds Banking77's ``train.csv``. K records are drawn at random, and planned away at once, as a turn of
``sisa work`` does it, and one by one, as K single deletions would be. For equal shards of D = N/S records
in R slices and one epoch, k of K requests hit a shard with Binomial(K, 1/S), and its earliest hit slice r
has P(r >= j) = ((R - j + 1)/R)^k. Training it again costs

    rehearsal 1    D/R (R(R + 1)/2 - (E[r^2] - E[r])/2)
    rehearsal 0    D/R (R + 1 - E[r])

less the deleted records themselves: (R + 1)/2 passes each, or 1. With R = 1 this is N(1 - (1 - 1/S)^K) - K
(arXiv 1912.03817, appendix).
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from math import comb
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks import settings
from benchmarks.data import as_stored, banking_records, synthetic_records
from benchmarks.difference import difference
from benchmarks.environment import environment
from shards.layout import ShardLayout
from shards.plan import Plan, make_chain, make_plan
from shards.records import Record
from shards.vault import StoredRecord

RESULT = Path(__file__).parent / "results" / "coalescing.json"
REQUESTS = (20, 80)


def batch_formula(records: int, shards: int, slices: int, rehearsal: float, requests: int) -> float:
    """Expected sample passes of one turn that works off ``requests`` random single-record deletions.

    Raises:
        ValueError: for a rehearsal other than 0 or 1.
    """
    if rehearsal not in (0, 1):
        raise ValueError("rehearsal must be 0 or 1")
    total = 0.0
    for hits in range(1, requests + 1):
        likely = comb(requests, hits) * (1 / shards) ** hits * (1 - 1 / shards) ** (requests - hits)
        at_least = [((slices - first + 1) / slices) ** hits for first in range(1, slices + 2)]
        earliest = [at_least[first - 1] - at_least[first] for first in range(1, slices + 1)]
        mean = sum(chance * first for first, chance in enumerate(earliest, 1))
        square = sum(chance * first**2 for first, chance in enumerate(earliest, 1))
        steps = slices * (slices + 1) / 2 - (square - mean) / 2 if rehearsal else slices + 1 - mean
        total += likely * steps
    return total * records / slices - requests * ((slices + 1) / 2 if rehearsal else 1)


def passes_without(
    before: Plan, layout: ShardLayout, held: Sequence[StoredRecord], gone: set[bytes]
) -> tuple[int, int]:
    """(sample passes, shards trained again) of a plan without the records of tags ``gone``."""
    hit = {layout.place(stored.record).shard for stored in held if stored.tag in gone}
    chains = list(before.chains)
    for shard in hit:
        rest = [one for one in held if one.tag not in gone and layout.place(one.record).shard == shard]
        chains[shard] = make_chain(shard, rest, layout, before.recipe)
    after = Plan(before.recipe, tuple(chains))
    steps = after.steps()
    retrained = difference(before, after).retrained
    return layout.epochs * sum(len(steps[key].members) for key in retrained), len(hit)


def count(
    records: Sequence[Record], shards: int, slices: int, rehearsal: float, requests: int, placements: int, draws: int
) -> dict[str, Any]:
    """Passes of one turn over ``requests`` deletions, against the formula and against single deletions."""
    turns: list[dict[str, Any]] = []
    for placement in range(placements):
        stored, keys = as_stored(records, placement)
        layout = ShardLayout(shards, slices, rehearsal, 1, keys.placement)
        plan = make_plan(stored, layout, "benchmark")
        for draw in range(draws):
            chosen = random.Random(f"{placement} {draw}").sample(stored, requests)
            passes, hit = passes_without(plan, layout, stored, {one.tag for one in chosen})
            turns.append({"placement": placement, "draw": draw, "passes": passes, "shards": hit})
    wanted = batch_formula(len(records), shards, slices, rehearsal, requests)
    single = batch_formula(len(records), shards, slices, rehearsal, 1)
    mean = fmean(turn["passes"] for turn in turns)
    return {
        "rehearsal": rehearsal,
        "requests": requests,
        "formula_passes": wanted,
        "mean_passes": mean,
        "deviation": mean / wanted - 1,
        "most_shards": max(turn["shards"] for turn in turns),
        "saved_against_one_by_one": 1 - mean / (requests * single),
        "turns": turns,
    }


def main() -> None:
    """Count, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="directory with Banking77's train.csv")
    parser.add_argument("--quick", action="store_true", help="a few made-up records; the figures mean nothing")
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    if arguments.data is None and not arguments.quick:
        parser.error("expected --data DIR with Banking77's train.csv, or --quick")
    records = synthetic_records(200) if arguments.quick else banking_records(arguments.data)
    placements, draws = (1, 2) if arguments.quick else (4, 5)
    result = {
        "environment": environment(),
        "records": len(records),
        "shards": settings.SHARDS,
        "slices": settings.SLICES,
        "counts": [
            count(records, settings.SHARDS, settings.SLICES, rehearsal, requests, placements, draws)
            for rehearsal in (1, 0)
            for requests in REQUESTS
        ],
    }
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
