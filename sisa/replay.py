"""Re-run the training of some shards from nothing, in a scratch place, and compare every tensor."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from orchestration.executor import Executor, Outcome, SliceTrainer, environment_difference
from orchestration.reconcile import Progress, records_in
from orchestration.schedule import schedule
from orchestration.starting import run_in_turn
from shards.checks import Check, judged, unchecked
from shards.lineage import Checkpoint
from shards.plan import Plan
from shards.scratch import scratch
from shards.trunk import TRUNK, chain_name
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

    What they start from is trained anew too: the trunk, if there is one. Nothing of the workspace is changed; the
    scratch place is removed.

    Args:
        workspace: to be checked.
        shards: which to replay.
        level: V3 or V4, for the report.
        executor, trainer: to train with.
        report: told of every step that ends.

    Returns:
        One check per shard, and one for the trunk.
    """
    plan = workspace.plan()
    live = workspace.book.live()
    wanted = frozenset(shards)
    checks, chains = [], []
    for chain in plan.every if plan.trunk.steps else plan.chains:
        if chain.shard not in wanted | {TRUNK}:
            continue
        name = _name(chain.shard)
        other = [live[step.key].environment for step in plan.lineage(chain) if step.key in live]
        foreign = [facts for facts in other if facts != trainer.environment()]
        if not chain.steps:
            checks.append(unchecked(level, name, "no record of this shard survives; nothing is served from it"))
        elif foreign:
            difference = environment_difference(foreign[0], trainer.environment())
            checks.append(unchecked(level, name, f"not comparable, another environment class: {difference}"))
        else:
            chains.append(chain)
    problems: dict[int, list[str]] = {chain.shard: [] for chain in chains}
    hindered: dict[int, str] = {}
    begun: set[int] = set()
    total = sum(len(chain.steps) for chain in chains)
    done = 0
    with scratch(workspace.path) as directory:
        orders = schedule(Plan(plan.recipe, tuple(chains)), {})
        sizes = records_in(orders)
        report(Progress(0, total, None, sizes))
        for outcome in run_in_turn(executor, orders, trainer, workspace.path, directory):
            done += 1
            report(Progress(done, total, outcome, sizes))
            problem, hindrance = _compared(outcome, live)
            problems[outcome.shard] += [problem] if problem else []
            hindered |= {outcome.shard: hindrance} if hindrance else {}
            begun.add(outcome.shard)
    for chain in chains:
        evidence = f"{len(chain.steps)} steps trained anew, every tensor equal"
        if chain.shard not in begun:
            hindered[chain.shard] = "not begun: the trunk that it starts from could not be replayed"
        if chain.shard in hindered and not problems[chain.shard]:
            checks.append(unchecked(level, _name(chain.shard), hindered[chain.shard]))
            continue
        checks.append(judged(level, _name(chain.shard), problems[chain.shard], evidence))
    return checks


def _compared(outcome: Outcome, live: Mapping[str, Checkpoint]) -> tuple[str, str]:
    """(what is wrong, why it cannot be said) of one step trained anew; both empty if it is equal."""
    made = outcome.checkpoint
    if made is None:
        return "", f"could not be replayed: {outcome.error}"
    stored = live.get(made.key)
    if stored is None:  # that what is served is stored is asked by the law
        return "", f"slice {made.link.slice} is not trained yet: run `sisa train`"
    if stored.environment != made.environment:
        difference = environment_difference(stored.environment, made.environment)
        return "", f"not comparable, another environment class: {difference}"
    if stored.root != made.root:
        return f"slice {made.link.slice}: its records have root {made.root[:16]}, committed was {stored.root[:16]}", ""
    if stored.tensors == made.tensors:
        return "", ""
    return f"slice {made.link.slice}: replayed tensors {made.tensors[:16]}, stored {stored.tensors[:16]}", ""


def _name(shard: int) -> str:
    return f"{chain_name(shard)} trained anew gives the stored bits"
