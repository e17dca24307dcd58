"""Runs chains on a Ray cluster: one actor per worker, one chain at a time on each.

Ray carries step orders out and checkpoint facts back, never records or tensors. An actor keeps the
frozen base model loaded between steps. An actor that dies takes nothing along: its step is handed
to a new one, a bounded number of times.
"""

from __future__ import annotations

import math
import os
import signal
import threading
import time
import uuid
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from orchestration.executor import ChainOrder, Outcome, SliceTrainer, StepOrder, failure, order, perform
from shards.errors import OperationError, SisaError, StepFailedError
from shards.lineage import Checkpoint

_TRIES = 3


class Worker:
    """Performs steps; becomes a Ray actor."""

    def __init__(self, trainer: SliceTrainer) -> None:
        self._trainer = trainer

    def perform(self, step_order: StepOrder) -> Outcome:
        """Do one step; our own errors come back as values."""
        started = time.monotonic()
        try:
            checkpoint = perform(step_order, self._trainer)
        except SisaError as error:
            return Outcome(step_order.shard, None, error, time.monotonic() - started)
        return Outcome(step_order.shard, checkpoint, None, time.monotonic() - started)


@dataclass(frozen=True, slots=True)
class _Run:
    """A chain under way: the next step, what came before it, who does it, and how often it was tried."""

    chain: ChainOrder
    number: int
    done: Checkpoint | None
    worker: Any
    tries: int = 1


@dataclass(frozen=True, slots=True)
class RayExecutor:
    """Performs chains on Ray.

    Attributes:
        workers: how many steps run at once.
        address: of a running cluster; None starts a local one for the duration, unless this process
            is connected to a cluster already.
        cpus_per_worker, gpus_per_worker: reserved by each worker; fractions share a processor.
        init: further settings of ``ray.init``, where this process is not connected yet.
        runtime_env: of every worker.
    """

    workers: int
    address: str | None = None
    cpus_per_worker: float = 1
    gpus_per_worker: float = 0
    init: Mapping[str, Any] = field(default_factory=dict)
    runtime_env: Mapping[str, Any] = field(default_factory=dict)

    def run(
        self, chains: Iterable[ChainOrder], trainer: SliceTrainer, workspace: Path, store: Path
    ) -> Iterator[Outcome]:
        """Perform every step on Ray, as many chains at once as there are workers."""
        waiting = deque(chains)
        if not waiting:
            return
        crew: list[Any] = []
        with self.cluster():
            self._refuse_too_small()
            try:
                yield from self._drive(waiting, crew, trainer, (workspace, store))
            finally:  # nobody may write after the caller has gone on
                for worker in crew:
                    ray.kill(worker)

    def _refuse_too_small(self) -> None:
        """An actor that fits nowhere would wait for ever."""
        need = {"CPU": self.cpus_per_worker, "GPU": self.gpus_per_worker}
        have = ray.cluster_resources()
        lacking = [f"{have.get(name, 0):g} {name}" for name, count in need.items() if have.get(name, 0) < count]
        if lacking:
            raise OperationError(
                "a Ray cluster with " + " and ".join(f"{count:g} {name}" for name, count in need.items() if count),
                " and ".join(lacking),
                "add a node to the cluster, or name another with --ray-address",
            )

    def _drive(
        self,
        waiting: deque[ChainOrder],
        crew: list[Any],
        trainer: SliceTrainer,
        paths: tuple[Path, Path],
    ) -> Iterator[Outcome]:
        running: dict[Any, _Run] = {}
        mark = uuid.uuid4().hex[:6]  # two runs on one cluster

        def hire() -> Any:
            crew.append(self._start(trainer, f"sisa {paths[0].name} worker {len(crew) + 1} {mark}"))
            return crew[-1]

        def submit(run: _Run) -> None:
            running[run.worker.perform.remote(order(run.chain, run.number, run.done, *paths))] = run

        def begin(worker: Any) -> None:
            chain = waiting.popleft()
            submit(_Run(chain, 0, chain.parent, worker))

        for _ in range(min(self.workers, len(waiting))):
            begin(hire())
        while running:
            (ready,), _ = ray.wait(list(running), num_returns=1)
            run = running.pop(ready)
            outcome = self._outcome(ready, run)
            if outcome is None:  # the worker died; nothing was recorded
                submit(replace(run, worker=hire(), tries=run.tries + 1))
                continue
            yield outcome
            if outcome.checkpoint is not None and run.number + 1 < len(run.chain.steps):
                submit(_Run(run.chain, run.number + 1, outcome.checkpoint, run.worker))
            elif waiting and outcome.error is None:
                begin(run.worker)
            else:  # idle, or dead, or in an odd state: its place is given back
                ray.kill(run.worker)
                if waiting:
                    begin(hire())

    def _start(self, trainer: SliceTrainer, name: str) -> Any:
        options: dict[str, Any] = {"num_cpus": self.cpus_per_worker, "num_gpus": self.gpus_per_worker, "name": name}
        if self.runtime_env:
            options["runtime_env"] = dict(self.runtime_env)
        return ray.remote(Worker).options(**options).remote(trainer)

    def _outcome(self, ready: Any, run: _Run) -> Outcome | None:
        """The step's outcome, or None if its worker died and the step may be tried again."""
        try:
            outcome: Outcome = ray.get(ready)
        except RayTaskError as error:
            return Outcome(run.chain.shard, None, failure(error.cause, run.chain.shard), 0.0)
        except RayError as error:
            ray.kill(run.worker)  # it may only be out of reach, and must not write later
            if run.tries < _TRIES:
                return None
            died = StepFailedError(
                f"a worker to live through a step of shard {run.chain.shard}",
                f"{_TRIES} workers died ({type(error).__name__}: {error})",
                "look for a lack of memory, then run the same command again; finished steps are kept",
            )
            return Outcome(run.chain.shard, None, died, 0.0)
        return outcome

    @contextmanager
    def cluster(self) -> Iterator[None]:
        """Use the cluster this process is connected to, else connect or start one and leave it after."""
        if ray.is_initialized():
            yield
            return
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        local: dict[str, Any] = {}
        if self.address is None:
            cpus = max(1, math.ceil(self.workers * self.cpus_per_worker))
            local = {"num_cpus": cpus, "include_dashboard": False, "_node_ip_address": "127.0.0.1"}
        settings = {"address": self.address or "local", "log_to_driver": False, "logging_level": "error", **local}
        try:
            self._connect(settings | dict(self.init))
            yield
        finally:  # also of what a signal left half started
            ray.shutdown()

    def _connect(self, settings: Mapping[str, Any]) -> None:
        try:
            with _signals_as_before():
                ray.init(**settings)
        except ConnectionError as error:
            raise OperationError(
                f"a Ray cluster at {self.address or 'this machine'}", str(error), "check --ray-address and the cluster"
            ) from error


@contextmanager
def _signals_as_before() -> Iterator[None]:
    """Ray takes the signal to terminate for itself: whoever handles it (the command line does) goes on to."""
    before = signal.getsignal(signal.SIGTERM)
    if not callable(before) or threading.current_thread() is not threading.main_thread():
        yield
        return
    try:
        yield
    except SystemExit as stop:
        raise KeyboardInterrupt from stop
    finally:
        signal.signal(signal.SIGTERM, before)
