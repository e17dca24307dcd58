"""Pure: who does which step next, whoever dies on the way.

Knows no Ray, no clock and no files: the executor tells what happened and is told what to hand out,
and the simulator of ``benchmarks/`` runs the very same code. A worker stays with its chain until
the chain ends. Every call costs O(log chains).
"""

from __future__ import annotations

import heapq
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace

from orchestration.executor import ChainOrder
from shards.lineage import Checkpoint

TRIES = 3  # of one step, each on another worker

_Class = frozenset[tuple[str, str]] | None


@dataclass(frozen=True, slots=True)
class Run:
    """A step to be done, or being done.

    Attributes:
        chain: it belongs to.
        number: of the step in its chain.
        done: the checkpoint before it, if any.
        tries: how many workers had it, this one included.
        rank: of the chain among those that wait: the smallest goes first.
    """

    chain: ChainOrder
    number: int
    done: Checkpoint | None
    tries: int
    rank: int

    @property
    def environment(self) -> Mapping[str, str] | None:
        """The class that must do it; None if the chain begins here."""
        return self.chain.environment if self.done is None else self.done.environment


class Dispatch:
    """Hands chains to workers, dearest first as they were scheduled; a worker is any hashable name."""

    def __init__(self, chains: Sequence[ChainOrder]) -> None:
        self.running: dict[Hashable, Run] = {}
        self._waiting: dict[_Class, list[tuple[int, Run]]] = {}
        for rank, chain in enumerate(chains):
            if chain.steps:
                self._park(Run(chain, 0, chain.parent, 1, rank))

    @property
    def waiting(self) -> int:
        """Chains that nobody is at."""
        return sum(map(len, self._waiting.values()))

    def waits_for(self, environment: Mapping[str, str] | None) -> bool:
        """Is there a chain waiting that a worker of this class may do? None asks for chains of no class yet."""
        return any(map(self._waiting.get, {None, _class(environment)}))

    def begin(self, worker: Hashable, environment: Mapping[str, str] | None) -> Run | None:
        """The first waiting chain that an idle worker of this class may do, or None."""
        if worker in self.running:
            raise ValueError(f"{worker!r} is at a step already")
        queues = [queue for queue in map(self._waiting.get, {None, _class(environment)}) if queue]
        if not queues:
            return None
        _, run = heapq.heappop(min(queues))
        self.running[worker] = run
        return run

    def done(self, worker: Hashable, checkpoint: Checkpoint) -> Run | None:
        """A worker made its step's checkpoint: its next step, or None, and it is idle."""
        run = self.running.pop(worker)
        if run.number + 1 == len(run.chain.steps):
            return None
        self.running[worker] = replace(run, number=run.number + 1, done=checkpoint, tries=1)
        return self.running[worker]

    def failed(self, worker: Hashable) -> None:
        """A step ended with an error of its own: its chain ends, and the worker is idle."""
        del self.running[worker]

    def died(self, worker: Hashable) -> Run | None:
        """A worker is gone with its step: the run as it waits for the next worker, or None if it is given up."""
        run = self.running.pop(worker)
        if run.tries == TRIES:
            return None
        parked = replace(run, tries=run.tries + 1)
        self._park(parked)
        return parked

    def give_up(self) -> list[Run]:
        """Take away all that waits, first chain first: nobody will come who may do it."""
        left = [run for queue in self._waiting.values() for _, run in queue]
        self._waiting.clear()
        return sorted(left, key=lambda run: run.rank)

    def _park(self, run: Run) -> None:
        heapq.heappush(self._waiting.setdefault(_class(run.environment), []), (run.rank, run))


def _class(environment: Mapping[str, str] | None) -> _Class:
    return None if environment is None else frozenset(environment.items())
