"""Would the schedule hold on a large cluster? The real code, in simulated time; nothing is trained.

    python -m benchmarks.scheduler_simulation [--quick] [--processes N] [--out FILE]

``orchestration.schedule``, ``orchestration.dispatch`` and ``orchestration.batching`` decide; what they decide
about is simulated: 1,000 shards x 32 slices with 10 million records, 64 workers that die and come back, and
90 days of deletion requests, evenly at random (Poisson) or half of them in bursts. Two questions:

    trainings   first training: how long, against max(longest chain, all work / workers)
    queues      for each policy of the queue: from acceptance to completion how long, at what cost

and for both: processor time of the deciding code for each step, and peak memory of the process. What they leave
out is measured apart, ``planning``: what a real plan takes for each record. A turn of work
begins as ``sisa work --watch`` begins it, takes along what the real queue takes along, and completes what the
real queue completes: not a request one of whose shards another request hit meanwhile. Steps take as long as
measured (``results/deletion_cost.json``). Planning, erasing, purging and certifying take no time here.
Each scenario runs in a process of its own; the same seed gives the same simulated figures.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import product
from math import ceil, inf
from multiprocessing import get_context
from pathlib import Path
from typing import Any, get_args

from benchmarks.data import as_stored, synthetic_records
from benchmarks.environment import environment, load, peak_memory
from benchmarks.simulated_cluster import CostModel, Fleet, Holdings, Meter, Turn
from orchestration.batching import Pending, Policy, Rule, due
from orchestration.executor import ChainOrder
from orchestration.schedule import schedule
from shards.layout import ShardLayout
from shards.plan import make_plan
from sisa.config import RunOptions
from sisa.queue import policy

RESULTS = Path(__file__).parent / "results"
RESULT = RESULTS / "scheduler_simulation.json"
MEASURED = RESULTS / "deletion_cost.json"
SEED = "scheduler simulation 1"
START = datetime(2026, 1, 1, tzinfo=UTC)
HOUR, DAY = 3600.0, 86400.0
STREAMS = ("poisson", "bursty")
RULES: tuple[Rule, ...] = get_args(Rule)


@dataclass(frozen=True, slots=True)
class Scale:
    """How much is simulated.

    Attributes:
        records, shards, slices: of the workspace.
        workers: that train.
        days: during which requests come; what waits then is worked off.
        requests: a day, on average.
        burst: requests in a burst, on average; half of all requests of the stream with bursts come so.
        burst_hours: mean time of a burst's requests after its beginning (exponential).
        several: share of requests about several subjects.
        requesters: that requests come from.
        quota: ``requester_quota``: never reached here, but counted.
        interval: seconds between two looks of ``sisa work --watch``.
        planned: records really planned, to learn what a plan takes.
    """

    records: int = 10_000_000
    shards: int = 1000
    slices: int = 32
    workers: int = 64
    days: int = 90
    requests: float = 400
    burst: float = 1800
    burst_hours: float = 6
    several: float = 0.05
    requesters: int = 5000
    quota: int = 100
    interval: float = 1800
    planned: int = 50_000

    @property
    def bursts(self) -> int:
        """How many there are, at any time: as many as have half of all requests."""
        return round(self.days * self.requests / 2 / self.burst)


WHOLE = Scale()
QUICK = Scale(records=2000, shards=20, slices=4, workers=4, days=4, requests=15, burst=15, requesters=9, planned=500)


@dataclass(frozen=True, slots=True)
class Request:
    """A deletion to come: when, by whom, and the places (shard, slice) of its records."""

    at: float
    requester: str
    places: tuple[tuple[int, int], ...]


def stream(kind: str, scale: Scale) -> list[Request]:
    """Requests in the order of their coming; a subject has 1 to 4 records, in one shard.

    Raises:
        ValueError: for a kind that is none of ``STREAMS``.
    """
    if kind not in STREAMS:
        raise ValueError(f"expected one of {STREAMS}, found {kind!r}")
    draw = random.Random(f"{SEED} {kind}")
    bursts = kind == "bursty"
    times = list(_poisson(draw, DAY / scale.requests * (2 if bursts else 1), scale.days * DAY))
    if bursts:
        for beginning in (draw.uniform(0, scale.days * DAY) for _ in range(scale.bursts)):
            count = round(draw.gauss(scale.burst, scale.burst**0.5))
            times += [beginning + draw.expovariate(1 / (scale.burst_hours * HOUR)) for _ in range(count)]
    return [_request(draw, at, scale) for at in sorted(times)]


def _poisson(draw: random.Random, mean: float, end: float) -> Iterator[float]:
    at = draw.expovariate(1 / mean)
    while at < end:
        yield at
        at += draw.expovariate(1 / mean)


def _request(draw: random.Random, at: float, scale: Scale) -> Request:
    subjects = draw.randint(2, 10) if draw.random() < scale.several else 1
    places = [
        (shard, draw.randrange(scale.slices))
        for shard in (draw.randrange(scale.shards) for _ in range(subjects))
        for _ in range(draw.randint(1, 4))
    ]
    return Request(at, f"requester {draw.randrange(scale.requesters)}", tuple(places))


def cost_model(rehearsal: int) -> CostModel:
    """Speed and start as measured; deaths and errors as on machines that fail more than one would like."""
    measured = json.loads(MEASURED.read_text())
    (rate,) = (run["records_per_core_second"] for run in measured["core_seconds"] if run["rehearsal"] == rehearsal)
    starts = [run["core_seconds_before_training"] for run in measured["memory"]["processes"] if run["what"] == "step"]
    return CostModel(rate=rate, start=max(starts), life=DAY, absence=600, errors=1 / 20_000)


def first_training(scale: Scale, rehearsal: int, dying: bool) -> dict[str, Any]:
    """Train everything; a turn takes up what failed in the one before."""
    model = cost_model(rehearsal)
    model = model if dying else replace(model, life=inf, errors=0)
    holdings = Holdings(scale.records, scale.shards, scale.slices, rehearsal, SEED)
    meter, fleet = Meter(), Fleet(scale.workers, model, SEED)
    turns: list[Turn] = []
    steps = holdings.plan().steps()
    now, chains = 0.0, meter.call("schedule", schedule, holdings.plan(), holdings.have)
    work, longest = sum(chain.cost for chain in chains) / model.rate, max(chain.cost for chain in chains) / model.rate
    while chains:
        turns.append(Turn(chains, fleet, holdings, meter))
        turns[-1].run(now, lambda _: None)
        now = turns[-1].end
        chains = meter.call("schedule", schedule, holdings.plan(), holdings.have)
    if holdings.have.keys() != steps.keys():
        raise RuntimeError("the training ended without all of its steps")
    bound = max(longest, work / scale.workers)
    return {
        "rehearsal": rehearsal,
        "dying": dying,
        "model": {name: None if value == inf else value for name, value in asdict(model).items()},
        "makespan_hours": now / HOUR,
        "bound_hours": bound / HOUR,
        "longest_chain_hours": longest / HOUR,
        "ratio": now / bound,
        **_totals(turns, meter),
    }


def _totals(turns: Sequence[Turn], meter: Meter) -> dict[str, Any]:
    steps = sum(turn.steps for turn in turns)
    return {
        "turns": len(turns),
        "chains": sum(turn.chains for turn in turns),
        "failed_chains": sum(len(turn.failed) for turn in turns),
        "steps": steps,
        "passes": sum(turn.passes for turn in turns),
        "lost_passes": round(sum(turn.lost for turn in turns)),
        "deaths_in_steps": sum(turn.deaths for turn in turns),
        "driver_ms_per_step": {part: 1000 * spent / steps for part, spent in sorted(meter.seconds.items())},
        "peak_bytes": peak_memory(),
        "load_average": load(),
    }


def planning(scale: Scale) -> dict[str, Any]:
    """What the plan of real records takes, which the simulation does without; and for all of them, in proportion."""
    before = peak_memory()
    stored, keys = as_stored(synthetic_records(scale.planned), 0)
    shards = max(1, round(scale.shards * scale.planned / scale.records))
    layout = ShardLayout(shards, scale.slices, 0.0, 1, keys.placement)
    started = time.process_time()
    plan = make_plan(stored, layout, "benchmark")
    seconds, size = time.process_time() - started, peak_memory() - before
    factor = scale.records / len(stored)
    return {
        "records": len(stored),
        "steps": len(plan.steps()),
        "core_seconds": seconds,
        "bytes": size,
        "core_seconds_for_all": seconds * factor,
        "bytes_for_all": size * factor,
    }


class Queue:
    """The queue of one workspace, under one policy, worked off turn by turn as ``sisa.queue.work`` does it."""

    def __init__(self, scale: Scale, requests: Sequence[Request], rules: Policy, rehearsal: int) -> None:
        self.scale = scale
        self.rules = rules
        self.meter = Meter()
        self.holdings = Holdings(scale.records, scale.shards, scale.slices, rehearsal, SEED)
        for step in self.holdings.plan().steps().values():
            self.holdings.store(step)
        self.fleet = Fleet(scale.workers, cost_model(rehearsal), SEED)
        self.asked: list[Pending] = []
        self.latencies: list[float] = []
        self.alone = 0
        self.held_back: set[str] = set()  # not completed in their first turn
        self.turns: list[Turn] = []
        self.busy = 0.0
        self._requests = requests
        self._waiting: dict[str, Pending] = {}
        self._begun: dict[str, Pending] = {}

    def run(self) -> None:
        """Work until the last request is completed."""
        now = 0.0
        while len(self.latencies) < len(self._requests):
            self._accept(now)
            turn = self._turn(now)
            if turn:
                now = self._work(turn, now)
            if not self._waiting and not self._begun and len(self.asked) < len(self._requests):
                now = self._requests[len(self.asked)].at
            now = (now // self.scale.interval + 1) * self.scale.interval

    def _accept(self, now: float) -> None:
        """Take in what came by ``now``: its records leave the plan, though not yet the store."""
        while len(self.asked) < len(self._requests) and self._requests[len(self.asked)].at <= now:
            request = self._requests[len(self.asked)]
            first: dict[int, int] = {}
            for shard, number in request.places:
                self.holdings.delete(shard, number)
                first[shard] = min(number, first.get(shard, number))
            passes = {shard: self.holdings.passes_from(shard, number) for shard, number in first.items()}
            accepted = START + timedelta(seconds=request.at)
            pending = Pending(f"r{len(self.asked):06d}", accepted, passes, request.requester)
            self.alone += sum(passes.values())
            self.asked.append(pending)
            self._waiting[pending.request_id] = pending

    def _turn(self, now: float) -> list[Pending]:
        """Whose turn it is: what was begun, and what the policy says."""
        time_is = START + timedelta(seconds=now)
        waiting = list(self._waiting.values())
        chosen = self.meter.call("batching", due, waiting, self.rules, time_is, self.asked) if waiting else ()
        return [*self._begun.values(), *chosen]

    def _work(self, turn: Sequence[Pending], now: float) -> float:
        """One turn; returns its end."""
        for pending in turn:
            self._begun[pending.request_id] = pending
            self._waiting.pop(pending.request_id, None)
        self.holdings.refresh()
        done = Turn(self.meter.call("schedule", self._chains, turn), self.fleet, self.holdings, self.meter)
        done.run(now, self._accept)
        self._accept(done.end)
        partial = done.failed | self.holdings.changed
        for pending in turn:
            if not partial & pending.passes.keys():
                del self._begun[pending.request_id]
                self.latencies.append((START + timedelta(seconds=done.end) - pending.accepted).total_seconds())
            else:
                self.held_back.add(pending.request_id)
        self.turns.append(done)
        self.busy += done.end - now
        return done.end

    def _chains(self, turn: Sequence[Pending]) -> list[ChainOrder]:
        """As ``reconcile`` makes them, leaving alone the shards that only others hit."""
        hit = frozenset(shard for pending in turn for shard in pending.passes)
        others = frozenset(shard for pending in self._waiting.values() for shard in pending.passes) - hit
        return [chain for chain in schedule(self.holdings.plan(), self.holdings.have) if chain.shard not in others]


def work_off(scale: Scale, rehearsal: int, kind: str, rule: Rule) -> dict[str, Any]:
    """One stream under one policy, with the numbers that the configuration has unless it is told others."""
    rules = policy(RunOptions(base_model="none", queue_policy=rule, requester_quota=scale.quota))
    queue = Queue(scale, stream(kind, scale), rules, rehearsal)
    queue.run()
    ordered = sorted(queue.latencies)
    totals = _totals(queue.turns, queue.meter)
    within = sum(latency <= rules.deadline.total_seconds() for latency in ordered)
    return {
        "rehearsal": rehearsal,
        "stream": kind,
        "policy": rule,
        "requests": len(ordered),
        "latency_hours": {
            "p50": percentile(ordered, 0.5) / HOUR,
            "p90": percentile(ordered, 0.9) / HOUR,
            "p99": percentile(ordered, 0.99) / HOUR,
            "max": ordered[-1] / HOUR,
        },
        "deadlines_met": within / len(ordered),
        "passes_per_request": totals["passes"] / len(ordered),
        "passes_per_request_alone": queue.alone / len(ordered),
        "held_back": len(queue.held_back),
        "in_turns": queue.busy / (scale.days * DAY),
        "workers_busy": (totals["passes"] + totals["lost_passes"])
        / queue.fleet.model.rate
        / (scale.workers * scale.days * DAY),
        **totals,
    }


def percentile(ordered: Sequence[float], share: float) -> float:
    """The smallest value that at least ``share`` of all do not exceed."""
    return ordered[max(0, ceil(share * len(ordered)) - 1)]


def _timed(function: Callable[..., dict[str, Any]], *args: Any) -> dict[str, Any]:
    started = time.process_time()
    found = function(*args)
    print(f"{function.__name__}{args[1:]} done after {time.process_time() - started:.0f} core-seconds", flush=True)
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Simulate, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tiny cluster; the figures mean nothing")
    parser.add_argument("--processes", type=int, default=1, help="scenarios at once")
    parser.add_argument("--out", type=Path, help=f"default: {RESULT.name} in benchmarks/results, with --quick nowhere")
    given = parser.parse_args(arguments)
    scale, out = (QUICK, given.out) if given.quick else (WHOLE, given.out or RESULT)
    started = time.monotonic()
    document: dict[str, Any] = {
        "schema": "scheduler-simulation/1",
        "command": f"python -m benchmarks.scheduler_simulation{' --quick' if given.quick else ''}",
        "environment": environment(),
        "seed": SEED,
        "scale": asdict(scale),
    }
    trainings = product((0, 1), (False, True))
    queues = product((0, 1), STREAMS, RULES)
    # A process for each scenario: nobody else's memory is in its peak.
    with ProcessPoolExecutor(given.processes, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        planned = pool.submit(_timed, planning, scale)
        trained = [pool.submit(_timed, first_training, scale, *scenario) for scenario in trainings]
        worked = [pool.submit(_timed, work_off, scale, *scenario) for scenario in queues]
        document["planning"] = planned.result()
        document["trainings"] = [future.result() for future in trained]
        document["queues"] = [future.result() for future in worked]
    document["wall_seconds_of_all"] = round(time.monotonic() - started, 1)
    if out is not None:
        out.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
