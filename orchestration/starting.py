"""Runs chains of which some start from another one's head, as every shard does from the trunk's.

The executors know nothing of that: they are given the chains that can begin, and then those that waited.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from orchestration.executor import ChainOrder, Executor, Outcome, SliceTrainer
from shards.errors import IntegrityError
from shards.lineage import Checkpoint
from shards.trunk import chain_name


def run_in_turn(
    executor: Executor, chains: Iterable[ChainOrder], trainer: SliceTrainer, workspace: Path, store: Path
) -> Iterator[Outcome]:
    """Perform every step, each chain in order; yields each step's outcome as it ends.

    A chain whose start was not made is not begun: the outcome that ended the other chain says why. Where nobody was
    to make it, that is an ``IntegrityError`` of the chain.
    """
    chains = tuple(chains)
    waiting = [chain for chain in chains if _waits(chain)]
    starts = {_start(chain) for chain in waiting}
    lost = starts - {step.key for chain in chains for step in chain.steps}
    for chain in waiting:
        if _start(chain) in lost:
            yield Outcome(chain.shard, None, _nowhere(chain), 0.0)
    made: dict[str, Checkpoint] = {}
    begun = executor.run([chain for chain in chains if not _waits(chain)], trainer, workspace, store)
    try:
        for outcome in begun:
            if outcome.checkpoint is not None and outcome.checkpoint.key in starts:
                made[outcome.checkpoint.key] = outcome.checkpoint
            yield outcome
    finally:  # nobody may write after the caller has gone on
        if isinstance(begun, Generator):
            begun.close()
    # One lineage is of one environment class, so that it can be trained anew somewhere.
    ready = [
        replace(chain, parent=start, environment=start.environment)
        for chain in waiting
        if (start := made.get(_start(chain))) is not None
    ]
    if ready:
        yield from executor.run(ready, trainer, workspace, store)


def _waits(chain: ChainOrder) -> bool:
    """Does its first step start from a checkpoint that is not there yet?"""
    return bool(chain.steps) and chain.parent is None and bool(_start(chain))


def _start(chain: ChainOrder) -> str:
    """Key of the checkpoint that its first step starts from, if it starts from one."""
    return chain.steps[0].link.parent or ""


def _nowhere(chain: ChainOrder) -> IntegrityError:
    return IntegrityError(
        f"checkpoint {_start(chain)}, which {chain_name(chain.shard)} starts from",
        "none stored, and none to be trained",
        "run `sisa audit --all`",
    )
