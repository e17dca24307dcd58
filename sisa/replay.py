"""Re-run the training of some shards from nothing, in a scratch place, and compare every tensor."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path

from orchestration.executor import Executor, SliceTrainer, environment_difference
from orchestration.schedule import schedule
from shards.checks import Check, judged, unchecked
from shards.plan import Plan
from shards.workspace import Workspace
from sisa.session import Report, silent


def replay(
    workspace: Workspace,
    shards: Iterable[int],
    level: str,
    executor: Executor,
    trainer: SliceTrainer,
    report: Report = silent,
) -> list[Check]:
    """Train ``shards`` anew on the surviving records and compare with what is stored.

    The scratch place lies under the system's temporary directory and is removed. The workspace is
    only read.

    Args:
        workspace: to be checked.
        shards: which to replay.
        level: V3 or V4, for the report.
        executor, trainer: to train with.
        report: told of every step that ends.

    Returns:
        One check per shard.
    """
    from orchestration.reconcile import Progress

    plan = workspace.plan()
    live = workspace.book.live()
    wanted = frozenset(shards)
    checks, chains = [], []
    for chain in plan.chains:
        if chain.shard not in wanted:
            continue
        name = _name(chain.shard)
        other = [live[step.key].environment for step in chain.steps if step.key in live]
        foreign = [facts for facts in other if facts != trainer.environment()]
        if not chain.steps:
            checks.append(unchecked(level, name, "no record of this shard survives; nothing is served from it"))
        elif foreign:
            difference = environment_difference(foreign[0], trainer.environment())
            checks.append(unchecked(level, name, f"not comparable, another environment class: {difference}"))
        else:
            chains.append(chain)
    problems: dict[int, list[str]] = {chain.shard: [] for chain in chains}
    total = sum(len(chain.steps) for chain in chains)
    done = 0
    with tempfile.TemporaryDirectory(prefix="sisa-replay-") as scratch:
        orders = schedule(Plan(plan.recipe, tuple(chains)), {})
        report(Progress(0, total, None))
        for outcome in executor.run(orders, trainer, workspace.path, Path(scratch)):
            done += 1
            report(Progress(done, total, outcome))
            if outcome.checkpoint is None:
                problems[outcome.shard].append(f"could not be replayed: {outcome.error}")
                continue
            stored = live.get(outcome.checkpoint.key)
            found = None if stored is None else stored.tensors
            if found != outcome.checkpoint.tensors:
                problems[outcome.shard].append(
                    f"slice {outcome.checkpoint.link.slice}: replayed tensors {outcome.checkpoint.tensors[:16]}, "
                    f"stored {found and found[:16]}"
                )
    for chain in chains:
        evidence = f"{len(chain.steps)} steps trained anew, every tensor equal"
        checks.append(judged(level, _name(chain.shard), problems[chain.shard], evidence))
    return checks


def _name(shard: int) -> str:
    return f"shard {shard} trained anew gives the stored bits"
