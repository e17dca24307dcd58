"""Pure: who does which step next, whoever dies on the way.

Knows no Ray, no clock and no files: the executor tells what happened and is told what to hand out,
and the simulator of ``benchmarks/`` runs the very same code. A worker stays with its team of chains
until the last of them ends. Every call costs O(log teams), and what its own team's lanes do.
"""

from __future__ import annotations

import heapq
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace

from orchestration.schedule import EnvironmentClass, Team, environment_class
from shards.lineage import Checkpoint

TRIES = 3  # of one step, each on another worker


@dataclass(frozen=True, slots=True)
class Run:
    """The next step of a team, to be done or being done.

    Attributes:
        team: whose step it is.
        tries: how many workers had it, this one included.
        rank: of the team among those that wait: the smallest goes first.
    """

    team: Team
    tries: int
    rank: int


class Dispatch:
    """Hands teams to workers, dearest first as they were scheduled; a worker is any hashable name."""

    def __init__(self, teams: Sequence[Team]) -> None:
        self.running: dict[Hashable, Run] = {}
        self._waiting: dict[EnvironmentClass, list[tuple[int, int, Run]]] = {}
        for rank, team in enumerate(teams):
            self._park(Run(team, 1, rank))

    @property
    def waiting(self) -> int:
        """Teams that nobody is at."""
        return sum(map(len, self._waiting.values()))

    def waits_for(self, environment: Mapping[str, str] | None) -> bool:
        """Is there a team waiting that a worker of this class may do? None asks for teams of no class yet."""
        return any(map(self._waiting.get, {None, environment_class(environment)}))

    def begin(self, worker: Hashable, environment: Mapping[str, str] | None) -> Run | None:
        """The first waiting team that an idle worker of this class may do, or None."""
        if worker in self.running:
            raise ValueError(f"{worker!r} is at a step already")
        queues = [queue for queue in map(self._waiting.get, {None, environment_class(environment)}) if queue]
        if not queues:
            return None
        *_, run = heapq.heappop(min(queues))
        self.running[worker] = run
        return run

    def done(self, worker: Hashable, made: Mapping[int, Checkpoint]) -> Run | None:
        """A worker's step ended, with these checkpoints by shard: its next step, or None, and it is idle.

        A chain whose step ended with an error of its own is not among them and ends; the others go on.
        """
        run = self.running.pop(worker)
        team = run.team.after(made)
        if team is None:
            return None
        self.running[worker] = replace(run, team=team, tries=1)
        return self.running[worker]

    def failed(self, worker: Hashable) -> None:
        """A step ended with an error of all its lanes: their chains end, and the worker is idle."""
        del self.running[worker]

    def died(self, worker: Hashable) -> tuple[Run, ...]:
        """A worker is gone with its step: the runs that wait for the next workers, none if it is given up.

        A step that killed every worker but the last it may have has that one lane by lane: whichever lane it
        was, the others go on.
        """
        run = self.running.pop(worker)
        if run.tries == TRIES:
            return ()
        tries = run.tries + 1
        parts = run.team.apart() if tries == TRIES else (run.team,)
        parked = tuple(Run(team, tries, run.rank) for team in parts)
        for part in parked:
            self._park(part)
        return parked

    def give_up(self) -> list[Run]:
        """Take away all that waits, first team first: nobody will come who may do it."""
        left = [waiting for queue in self._waiting.values() for waiting in queue]
        self._waiting.clear()
        return [run for *_, run in sorted(left)]

    def _park(self, run: Run) -> None:
        queue = self._waiting.setdefault(environment_class(run.team.environment), [])
        heapq.heappush(queue, (run.rank, run.team.chains[0].shard, run))
