"""The reference executor: every step in this process, one after the other."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from orchestration.executor import ChainOrder, Outcome, SliceTrainer, order, perform
from shards.errors import SisaError


@dataclass(frozen=True, slots=True)
class InlineExecutor:
    """Performs steps in the calling process. What Ray does is tested against this.

    Only our own errors end a chain quietly; anything else is a defect and is raised where it is.
    """

    def run(
        self, chains: Iterable[ChainOrder], trainer: SliceTrainer, workspace: Path, store: Path
    ) -> Iterator[Outcome]:
        """Perform every step here, chain after chain."""
        for chain in chains:
            done = chain.parent
            for number in range(len(chain.steps)):
                started = time.monotonic()
                try:
                    done = perform(order(chain, number, done, workspace, store), trainer)
                except SisaError as error:
                    yield Outcome(chain.shard, None, error, time.monotonic() - started)
                    break
                yield Outcome(chain.shard, done, None, time.monotonic() - started)
