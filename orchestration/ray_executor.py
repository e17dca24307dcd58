"""Runs chains on a Ray cluster: one actor per worker, one team of chains at a time on each.

Ray carries step orders out and checkpoint facts back, never records or tensors. An actor keeps the
frozen base model loaded between steps. Nodes may come and go: an actor that dies takes nothing
along, and its step is handed to another one, a bounded number of times.
"""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestration.attempt import adopted, discard, made_by, prepare, work_together
from orchestration.dispatch import TRIES, Dispatch, Run
from orchestration.executor import (
    ChainOrder,
    Outcome,
    SliceTrainer,
    StepOrder,
    environment_difference,
    failure,
    mismatch,
)
from orchestration.ray_cluster import connected
from orchestration.schedule import teams
from shards.errors import OperationError, SisaError, StepFailedError
from shards.trunk import chain_name

_PATIENCE_SECONDS = 60.0


class Worker:
    """Performs steps; becomes a Ray actor."""

    def __init__(self, trainer: SliceTrainer) -> None:
        self._trainer = trainer

    def environment(self) -> tuple[dict[str, str], str]:
        """The class of this process, and the node it is on."""
        return self._trainer.environment(), ray.get_runtime_context().get_node_id()

    def perform(self, orders: Sequence[StepOrder]) -> list[Outcome]:
        """Do one step of each lane; errors are outcomes, which Ray does not log: their words may quote a record."""
        started = time.monotonic()
        try:
            return work_together(orders, self._trainer)
        except Exception as error:  # noqa: BLE001 - the edge of the process
            seconds = (time.monotonic() - started) / len(orders)
            return [Outcome(each.shard, None, failure(error, each.shard), seconds) for each in orders]


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
        """Perform every step on Ray, as many teams at once as there are workers."""
        dispatch = Dispatch(teams(chains, trainer.lanes))
        if not dispatch.waiting:
            return
        with replace(self, workers=min(self.workers, dispatch.waiting)).cluster():  # Ray starts one for each CPU
            self.refuse_too_small()
            crew = _Crew(self, dispatch, trainer, (workspace, store))
            try:
                yield from crew.outcomes()
            finally:  # nobody may write after the caller has gone on
                crew.dismiss_all()

    def refuse_too_small(self) -> None:
        """An actor that fits nowhere would wait for ever.

        Raises:
            OperationError: if no worker fits on the whole cluster.
        """
        need = {"CPU": self.cpus_per_worker, "GPU": self.gpus_per_worker}
        have = ray.cluster_resources()
        lacking = [f"{have.get(name, 0):g} {name}" for name, count in need.items() if have.get(name, 0) < count]
        if lacking:
            raise OperationError(
                "a Ray cluster with " + " and ".join(f"{count:g} {name}" for name, count in need.items() if count),
                " and ".join(lacking),
                "add a node to the cluster, or name another with --ray-address",
            )

    def start(self, trainer: SliceTrainer, name: str, node: str | None, *, only: bool) -> Any:
        """A new actor with a readable name; on a certain node, or with ``only`` nowhere else."""
        options: dict[str, Any] = {"num_cpus": self.cpus_per_worker, "num_gpus": self.gpus_per_worker, "name": name}
        if self.runtime_env:
            options["runtime_env"] = dict(self.runtime_env)
        if node is not None:
            options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(node, soft=not only)
        return ray.remote(Worker).options(**options).remote(trainer)

    @contextmanager
    def cluster(self) -> Iterator[None]:
        """Use the cluster this process is connected to, else connect or start one and leave it after."""
        with connected(self.address, math.ceil(self.workers * self.cpus_per_worker), self.init):
            yield


@dataclass(eq=False, slots=True)
class _Member:
    """An actor: starting (without ``orders``), or at a step.

    Attributes:
        actor: its handle.
        probe: the node that it was sent to, to see of which class it is.
        environment: its class, once it has told.
        orders: what it is doing, one in each lane.
    """

    actor: Any
    probe: str | None
    environment: dict[str, str] | None = None
    orders: Sequence[StepOrder] = ()


class _Crew:
    """The actors of one run: hires them, hears them, and sends home who has nothing to do."""

    def __init__(
        self, executor: RayExecutor, dispatch: Dispatch, trainer: SliceTrainer, paths: tuple[Path, Path]
    ) -> None:
        self._executor, self._dispatch, self._trainer, self._paths = executor, dispatch, trainer, paths
        self._mark = uuid.uuid4().hex[:6]  # two runs on one cluster
        self._hired = 0
        self._calls: dict[Any, _Member] = {}  # what every member is awaited with
        self._nodes: dict[str, dict[str, str] | None] = {}  # class of each node that was tried; None if it told none
        self._stillborn: list[Exception] = []  # since the last actor that came up

    def outcomes(self) -> Iterator[Outcome]:
        """Drive until nothing is left that anybody may do."""
        self._hire()
        while self._calls:
            ready, _ = ray.wait(list(self._calls), num_returns=1, timeout=_PATIENCE_SECONDS)
            for call in ready:
                member = self._calls.pop(call)
                yield from self._ended(member, call) if member.orders else self._came_up(member, call)
            if not ready and not self._dispatch.running:
                self._executor.refuse_too_small()  # the nodes that it had may be gone
            self._hire()
        for run in self._dispatch.give_up():
            for chain in run.team.chains:
                yield Outcome(chain.shard, None, self._why_nobody_came(chain.shard, run.team.environment), 0.0)

    def dismiss_all(self) -> None:
        """End every actor and every attempt."""
        with ExitStack() as each:  # whatever goes wrong with another
            for member in self._calls.values():
                each.callback(self._dismiss, member)

    # -- hiring ----------------------------------------------------------------------------------

    def _hire(self) -> None:
        wanted = min(self._executor.workers, len(self._dispatch.running) + self._dispatch.waiting)
        while len(self._calls) < wanted and len(self._stillborn) < TRIES:
            node, probe = None, False
            if self._nodes and not self._dispatch.waits_for(None):
                node, probe = self._place()
                if node is None:
                    return
            self._hired += 1
            name = f"sisa {self._paths[0].name} worker {self._hired} {self._mark}"
            actor = self._executor.start(self._trainer, name, node, only=probe)
            member = _Member(actor, node if probe else None)
            self._calls[actor.environment.remote()] = member

    def _place(self) -> tuple[str | None, bool]:
        """The node to hire on, where only chains that were begun are waiting; and is it only a try?"""
        alive = [node["NodeID"] for node in ray.nodes() if node["Alive"] and self._fits(node["Resources"])]
        for node in alive:
            known = self._nodes.get(node)
            if known is not None and self._dispatch.waits_for(known):
                return node, False
        for node in alive:
            if node not in self._nodes:
                self._nodes[node] = None
                return node, True
        return None, False

    def _fits(self, resources: Mapping[str, float]) -> bool:
        need = {"CPU": self._executor.cpus_per_worker, "GPU": self._executor.gpus_per_worker}
        return all(resources.get(name, 0) >= count for name, count in need.items())

    def _came_up(self, member: _Member, call: Any) -> Iterator[Outcome]:
        try:
            member.environment, node = ray.get(call)
        except RayError as error:
            if member.probe is None:
                self._stillborn.append(error)
            self._dismiss(member)
            return
        self._stillborn.clear()
        self._nodes[node] = member.environment
        yield from self._next(member)

    def _why_nobody_came(self, shard: int, wanted: Mapping[str, str] | None) -> SisaError:
        if self._stillborn:
            error = self._stillborn[-1]
            cause = error.cause if isinstance(error, RayTaskError) else error
            if isinstance(cause, SisaError):
                return cause
            return StepFailedError(
                f"a worker for {chain_name(shard)}",
                f"{TRIES} that could not be started ({type(cause).__name__}: {cause})",
                "mend the cause and run the same command again; finished steps are kept",
            )
        known = [environment for environment in self._nodes.values() if environment is not None]
        differences = sorted({environment_difference(wanted or {}, environment) for environment in known})
        return mismatch(shard, "; ".join(differences))

    # -- steps -----------------------------------------------------------------------------------

    def _next(self, member: _Member) -> Iterator[Outcome]:
        """Give an idle member a team of chains, or send it home."""
        run = self._dispatch.begin(member, member.environment)
        if run is None:
            self._dismiss(member)
        else:
            yield from self._submit(member, run)

    def _submit(self, member: _Member, run: Run) -> Iterator[Outcome]:
        member.orders = run.team.orders(*self._paths)
        try:
            for each in member.orders:
                prepare(each)
        except SisaError as error:
            self._dispatch.failed(member)
            self._dismiss(member)
            yield from (Outcome(each.shard, None, error, 0.0) for each in member.orders)
            return
        self._calls[member.actor.perform.remote(member.orders)] = member

    def _ended(self, member: _Member, call: Any) -> Iterator[Outcome]:
        """A step ended in every lane, or its worker did."""
        try:
            outcomes: list[Outcome] = ray.get(call)
        except RayTaskError as error:
            outcomes = [Outcome(each.shard, None, failure(error.cause, each.shard), 0.0) for each in member.orders]
        except RayError as error:
            self._dismiss(member)
            if not self._dispatch.died(member):
                yield from (Outcome(each.shard, None, _died(each.shard, error), 0.0) for each in member.orders)
            return
        outcomes = [adopted(each, outcome) for each, outcome in zip(member.orders, outcomes, strict=True)]
        yield from outcomes
        made = made_by(outcomes)
        if not made:  # it may be in an odd state
            self._dispatch.failed(member)
            self._dismiss(member)
            return
        following = self._dispatch.done(member, made)
        yield from self._next(member) if following is None else self._submit(member, following)

    def _dismiss(self, member: _Member) -> None:
        """It may only be out of reach, and must not write later."""
        ray.kill(member.actor)
        for each in member.orders:
            discard(each)


def _died(shard: int, error: RayError) -> StepFailedError:
    return StepFailedError(
        f"a worker to live through a step of {chain_name(shard)}",
        f"{TRIES} workers died ({type(error).__name__}: {error})",
        "look for a lack of memory, then run the same command again; finished steps are kept",
    )
