"""A cluster and a plan in simulated time, for :mod:`benchmarks.scheduler_simulation`.

Workers take time for a step, die, and come back; records are numbers only. What is handed to whom is
decided by the real :class:`orchestration.dispatch.Dispatch`, and steps and their keys are real ones.
"""

from __future__ import annotations

import heapq
import random
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import inf
from typing import ParamSpec, TypeVar, cast

from orchestration.dispatch import Dispatch, Run
from orchestration.executor import ChainOrder
from orchestration.schedule import teams
from shards.lineage import Checkpoint, Link
from shards.plan import CHAIN, Chain, Plan, SliceStep
from shards.vault import StoredRecord

RECIPE = "0" * 64
CLASS = {"machine": "simulated"}

_P = ParamSpec("_P")
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class CostModel:
    """How long things take, in seconds.

    Attributes:
        rate: records a second that one worker trains.
        start: from the start of a worker to its first step; workers are started for each turn.
        life: mean time until a worker dies (exponential); infinite: none does.
        absence: mean time until it is there again (exponential).
        errors: share of steps that end with an error of their own.
    """

    rate: float
    start: float
    life: float
    absence: float
    errors: float


class Meter:
    """Processor time spent in the code that is looked at, by part."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)

    def call(self, part: str, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Call a function; the clock's own cost is counted with it."""
        started = time.process_time_ns()
        try:
            return function(*args, **kwargs)
        finally:
            self.seconds[part] += (time.process_time_ns() - started) / 1e9


class Holdings:
    """Records by number alone, the plan of those that survive, and the checkpoints that are stored.

    Deletions reach the plan at :meth:`refresh`, as they do when a turn of work plans anew.
    """

    def __init__(self, records: int, shards: int, slices: int, rehearsal: int, seed: str) -> None:
        """Keyed hashes put each record anywhere; so sizes are normal about their mean, with its root as deviation."""
        draw, places = random.Random(f"{seed} sizes"), shards * slices
        mean = records / places
        sizes = [max(1, round(draw.gauss(mean, mean**0.5))) for _ in range(places)]
        missing = records - sum(sizes)
        for number in range(abs(missing)):
            sizes[number % places] += 1 if missing > 0 else -1
        self.rehearsal = rehearsal
        self.sizes = [sizes[shard * slices : (shard + 1) * slices] for shard in range(shards)]
        self.have: dict[str, Checkpoint] = {}
        self._chains = [self._chain(shard) for shard in range(shards)]
        self._changed: dict[int, int] = {}

    def plan(self) -> Plan:
        """What should be trained."""
        return Plan(RECIPE, tuple(self._chains))

    def store(self, step: SliceStep) -> Checkpoint:
        """Have the checkpoint of a step, as a worker sends it: it shares no text with another."""
        texts = (f"{word} of {step.key}" for word in ("files", "tensors", "root", "seen"))
        files, tensors, root, seen = texts
        made = Checkpoint(step.link, files, tensors, root, seen, len(step.members), len(step.members), dict(CLASS))
        self.have[step.key] = made
        return made

    def passes_from(self, shard: int, number: int) -> int:
        """Records in the steps of a shard from one slice on."""
        return sum(self._members(shard)[number:])

    def delete(self, shard: int, number: int) -> None:
        """A record of slice ``number`` goes, from the next refresh on."""
        if self.sizes[shard][number]:
            self.sizes[shard][number] -= 1
            self._changed[shard] = min(number, self._changed.get(shard, number))

    def outdated(self, step: SliceStep) -> bool:
        """Was a record deleted that the step sees?"""
        return step.link.slice >= self._changed.get(step.link.shard, inf)

    @property
    def changed(self) -> frozenset[int]:
        """Shards that lost records since the last refresh."""
        return frozenset(self._changed)

    def refresh(self) -> None:
        """Plan the shards that lost records anew; what is not in the plan any more is purged."""
        for shard in self._changed:
            before, self._chains[shard] = self._chains[shard], self._chain(shard)
            kept = {step.key for step in self._chains[shard].steps}
            for step in before.steps:
                if step.key not in kept:
                    self.have.pop(step.key, None)
        self._changed.clear()

    def _members(self, shard: int) -> list[int]:
        """Records in each step of a shard."""
        return list(accumulate(self.sizes[shard])) if self.rehearsal else self.sizes[shard]

    def _chain(self, shard: int) -> Chain:
        steps: list[SliceStep] = []
        for number, count in enumerate(self._members(shard)):
            if self.sizes[shard][number]:
                # Counts only ever fall, so a count stands for the records that it counts.
                parent = steps[-1].key if steps else None
                link = Link(RECIPE, shard, CHAIN, number, parent, f"{count:064d}")
                steps.append(SliceStep(link, cast("tuple[StoredRecord, ...]", range(count)), {}))
        return Chain(shard, tuple(steps))


class Fleet:
    """Workers with lives of their own, which outlast a turn.

    Attributes:
        model: how long things take.
        size: how many workers there are.
        dies: when each dies next.
    """

    def __init__(self, size: int, model: CostModel, seed: str) -> None:
        self.model = model
        self.size = size
        self._draw = random.Random(f"{seed} fleet")
        self._back = [0.0] * size
        self.dies = [self._after(model.life) for _ in range(size)]

    def back(self, worker: int, now: float) -> float:
        """When a worker is there, at ``now`` or later; between turns it dies as ever."""
        while self.dies[worker] < now:
            self.die(worker)
        return max(now, self._back[worker])

    def die(self, worker: int) -> None:
        """It dies when it should, and will be back."""
        self._back[worker] = self.dies[worker] + self._after(self.model.absence)
        self.dies[worker] = self._back[worker] + self._after(self.model.life)

    def errs(self) -> bool:
        """Does a step end with an error of its own?"""
        return self._draw.random() < self.model.errors

    def _after(self, mean: float) -> float:
        return inf if mean == inf else self._draw.expovariate(1 / mean)


class Turn:
    """One run of chains, as an executor makes it.

    Attributes:
        end: when the last step ended.
        chains, steps, passes: chains to be run; steps completed, and records in them.
        lost: records trained in steps that were not completed.
        deaths: of workers in mid-step.
        failed: shards whose chain ended early.
    """

    def __init__(self, chains: Sequence[ChainOrder], fleet: Fleet, holdings: Holdings, meter: Meter) -> None:
        self.end = 0.0
        self.chains, self.steps, self.passes, self.deaths, self.lost = len(chains), 0, 0, 0, 0.0
        self.failed: set[int] = set()
        self._fleet, self._holdings, self._meter = fleet, holdings, meter
        self._dispatch = meter.call("dispatch", Dispatch, teams(chains, lanes=1))
        self._idle: list[int] = []
        self._cold: set[int] = set()  # without the base
        self._began: dict[int, float] = {}  # worker → when the step it is at was begun
        self._events: list[tuple[float, int, Callable[[int, float], None]]] = []

    def run(self, now: float, news: Callable[[float], None]) -> None:
        """Perform everything from ``now`` on.

        Args:
            now: seconds.
            news: told the time of an event before it is looked at; what was accepted by then must reach the
                holdings, because a worker asks before and after each step whether it is still planned.
        """
        self.end = now
        for worker in range(self._fleet.size):
            self._at(self._fleet.back(worker, now), worker, self._comes)
        while self._events and (self._dispatch.running or self._dispatch.waiting):
            now, worker, happen = heapq.heappop(self._events)
            news(now)
            happen(worker, now)
        self._events.clear()

    def _at(self, when: float, worker: int, happen: Callable[[int, float], None]) -> None:
        heapq.heappush(self._events, (when, worker, happen))

    def _comes(self, worker: int, now: float) -> None:
        """A worker is there and looks for a chain; it loads the base with its first."""
        self._cold.add(worker)
        self._idle.append(worker)
        self._hand_out(now)

    def _hand_out(self, now: float) -> None:
        while self._idle:
            worker = self._idle.pop()
            there = self._fleet.back(worker, now)
            if there > now:  # it died while it was idle
                self._at(there, worker, self._comes)
                continue
            run = self._meter.call("dispatch", self._dispatch.begin, worker, CLASS)
            if run is None:
                self._idle.append(worker)
                return
            self._begin(worker, run, now)

    def _begin(self, worker: int, run: Run, now: float) -> None:
        step = _step(run)
        start = self._fleet.model.start if worker in self._cold else 0.0
        seconds = 0.0 if self._holdings.outdated(step) else len(step.members) / self._fleet.model.rate
        self._cold.discard(worker)
        self._began[worker] = now + start
        if self._fleet.dies[worker] < now + start + seconds:
            self._at(self._fleet.dies[worker], worker, self._dies)
        else:
            self._at(now + start + seconds, worker, self._ends)

    def _dies(self, worker: int, now: float) -> None:
        run, self.end = self._dispatch.running[worker], now
        if not self._meter.call("dispatch", self._dispatch.died, worker):
            self.failed.add(_step(run).link.shard)
        self.deaths += 1
        self.lost += max(0.0, now - self._began[worker]) * self._fleet.model.rate
        self._fleet.die(worker)
        self._at(self._fleet.back(worker, now), worker, self._comes)
        self._hand_out(now)

    def _ends(self, worker: int, now: float) -> None:
        run, self.end = self._dispatch.running[worker], now
        step = _step(run)
        if self._holdings.outdated(step) or self._fleet.errs():
            self._meter.call("dispatch", self._dispatch.failed, worker)
            self.failed.add(step.link.shard)
            self.lost += (now - self._began[worker]) * self._fleet.model.rate
            following = None
        else:
            made = self._holdings.store(step)
            self.steps += 1
            self.passes += len(step.members)
            following = self._meter.call("dispatch", self._dispatch.done, worker, {step.link.shard: made})
        if following is None:
            self._idle.append(worker)
            self._hand_out(now)
        else:
            self._begin(worker, following, now)


def _step(run: Run) -> SliceStep:
    """The step that a run is at, of its one lane."""
    (chain,) = run.team.chains
    return chain.steps[run.team.number]
