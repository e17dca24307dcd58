"""The difference of two plans, which what a deletion costs is counted from.

``sisa delete`` does not make two plans: ``shards/forgetting.py`` tells what falls from facts. Tests hold the one
against the other.
"""

from __future__ import annotations

from dataclasses import dataclass

from shards.plan import Plan


@dataclass(frozen=True, slots=True)
class Difference:
    """The difference of two plans.

    Attributes:
        kept: keys that stand in both plans.
        retrained: keys to be trained.
        retrained_share: records in retrained steps over records in all steps before (sample passes).
    """

    kept: tuple[str, ...]
    retrained: tuple[str, ...]
    retrained_share: float


def difference(before: Plan, after: Plan) -> Difference:
    """What must be trained to go from one plan to the other."""
    old, new = before.steps(), after.steps()
    retrained = [step for key, step in new.items() if key not in old]
    total = sum(len(step.members) for step in old.values())
    share = sum(len(step.members) for step in retrained) / total if total else 0.0
    return Difference(
        kept=tuple(key for key in old if key in new),
        retrained=tuple(step.key for step in retrained),
        retrained_share=share,
    )
