"""Protocols between the work and whoever does it, and the one way a step is performed.

A worker is told *which* step to do, never given records or tensors: it opens the workspace itself,
rebuilds the chain of its shard from the surviving records, and refuses to train unless the step it
was asked for is in that chain. So nothing personal travels through task arguments or an object
store, and a stale order cannot train a record that was deleted meanwhile.

A worker writes into a place of its attempt alone, made by the driver with the order and gone when
the attempt is over; the driver takes from there into the store. So a worker that was given up, and
goes on nevertheless, finds no place to write to.

    driver: prepare ─▶ worker: work ─▶ driver: adopt, discard
"""

from __future__ import annotations

import secrets
import traceback
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from shards.activations import Activations, AttemptShelf
from shards.digest import derive, tensor_digest
from shards.errors import EnvironmentMismatchError, IntegrityError, StalePlanError, StepFailedError
from shards.files import TEMPORARY, remove, storage
from shards.frozen import has_frozen_layers
from shards.lineage import Checkpoint, pack_tags
from shards.plan import SliceStep, pass_order
from shards.records import Record
from shards.store import Store
from shards.workspace import ACTIVATIONS, SEEN_FILE, WEIGHTS_FILE, Workspace, open_store

ATTEMPT = ".attempt-"


class Shelf(Protocol):
    """Where a trainer finds again what it once computed from one record alone.

    A value may be gone at any time, and is then computed again: it must be a function of the record, of
    ``kind`` and of nothing else. It is personal data and goes with the record.
    """

    def get(self, record_id: str, kind: str) -> bytes | None:
        """What was put, byte for byte; or None."""
        ...

    def put(self, record_id: str, kind: str, value: bytes) -> None:
        """Keep a value; ``kind`` (hex) names all else that it depends on, the environment class included."""
        ...


@dataclass(frozen=True, slots=True)
class Lesson:
    """All that a slice step may look at.

    Attributes:
        passes: the visible records, once per epoch, each time in that epoch's order.
        parent: weights to start from (safetensors), or None to start from the base model.
        seed: 32 secret bytes for this (shard, chain, slice); every random draw derives from it.
        shelf: what was computed before from these records, one by one; None where nothing may be taken from
            before (a replay), and where the recipe leaves no layer frozen.
    """

    passes: tuple[tuple[Record, ...], ...]
    parent: bytes | None
    seed: bytes = field(repr=False)
    shelf: Shelf | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class Fit:
    """What a trainer would make of one record.

    Attributes:
        problem: why it cannot be trained, or nothing.
        truncated: it is longer than the recipe's sequence length and would be cut.
    """

    problem: str
    truncated: bool


class SliceTrainer(Protocol):
    """Does one step. A frozen, picklable value: it travels to the workers."""

    def environment(self) -> dict[str, str]:
        """What the calling process computes with: equal facts (one class) give equal bits."""
        ...

    def examine(self, record: Record) -> Fit:
        """Look at a record before it is taken in."""
        ...

    def train(self, lesson: Lesson) -> Mapping[str, bytes]:
        """Train; returns the checkpoint's files, the weights under ``WEIGHTS_FILE``.

        Must be a function of the trainer, the environment class and the lesson alone.
        """
        ...


@dataclass(frozen=True, slots=True)
class StepOrder:
    """One step to perform; holds no personal data.

    Attributes:
        workspace: where records, keys and facts are read.
        store: where checkpoints are read and written (a replay uses a scratch store).
        shard: the shard of the step.
        key: the checkpoint key to make.
        parent: the parent checkpoint, if the step has one.
        environment: environment the chain was begun in; None if it begins here.
        attempt: random name of this attempt at the step.
    """

    workspace: Path
    store: Path
    shard: int
    key: str
    parent: Checkpoint | None
    environment: dict[str, str] | None
    attempt: str

    @property
    def staging(self) -> Path:
        """Where the worker writes; a sweep of the store removes what a killed driver left there."""
        return self.store / f"{ATTEMPT}{self.attempt}"

    @property
    def replayed(self) -> bool:
        """Is it trained only to be compared? Then nothing is taken from before but the records."""
        return self.store != self.workspace / "store"


@dataclass(frozen=True, slots=True)
class ChainOrder:
    """The missing steps of one shard, in order.

    Attributes:
        shard: its number.
        steps: what is to be trained.
        parent: the checkpoint they start from, if any.
        environment: environment the chain was begun in; None if it begins here.
    """

    shard: int
    steps: tuple[SliceStep, ...]
    parent: Checkpoint | None
    environment: dict[str, str] | None

    @property
    def cost(self) -> int:
        """Sample passes, up to the constant factor of epochs."""
        return sum(len(step.members) for step in self.steps)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one step: a checkpoint, or the error that ended its chain."""

    shard: int
    checkpoint: Checkpoint | None
    error: Exception | None
    seconds: float


class Executor(Protocol):
    """Runs chains of steps somewhere."""

    def run(
        self, chains: Iterable[ChainOrder], trainer: SliceTrainer, workspace: Path, store: Path
    ) -> Iterator[Outcome]:
        """Perform every step, each chain in order; yields each step's outcome as it ends.

        A failed step ends its chain and no other.
        """
        ...


def order(chain: ChainOrder, number: int, done: Checkpoint | None, workspace: Path, store: Path) -> StepOrder:
    """The order for step ``number`` of a chain, given the checkpoint before it."""
    return StepOrder(
        workspace=workspace,
        store=store,
        shard=chain.shard,
        key=chain.steps[number].key,
        parent=done,
        environment=chain.environment if done is None else done.environment,
        attempt=secrets.token_hex(16),
    )


def perform(step_order: StepOrder, trainer: SliceTrainer) -> Checkpoint:
    """Do one step in this process and store its result; returns the fact to be recorded.

    Raises:
        SisaError: as :func:`prepare`, :func:`work`, :func:`adopt` and :func:`discard` do.
    """
    prepare(step_order)
    try:
        made = work(step_order, trainer)
        adopt(step_order, made)
    finally:
        discard(step_order)
    return made


def prepare(step_order: StepOrder) -> None:
    """Make the place that the attempt may write to.

    Raises:
        StorageError: if the file system refuses.
    """
    with storage(f"make a place for a step in {step_order.store}"):
        step_order.staging.mkdir(mode=0o700)


def adopt(step_order: StepOrder, made: Checkpoint) -> None:
    """Take what the attempt made into the store, verified.

    A record of it may be deleted between the worker's last look and this: nothing is certified then before
    the driver of this run has ended, and the next one purges what the plan no longer has.

    Activations that it computed become cached ones.

    Raises:
        IntegrityError: if it is not there as the worker said.
        StorageError: if the file system refuses.
    """
    store = open_store(step_order.workspace, step_order.store)
    for name in (made.files, made.seen):
        store.adopt(step_order.staging, name)
    Activations(step_order.workspace / ACTIVATIONS).adopt(step_order.staging / ACTIVATIONS, step_order.shard)


def discard(step_order: StepOrder) -> None:
    """End the attempt: whoever still writes for it has no place any more.

    Raises:
        StorageError: if the file system refuses.
    """
    gone = step_order.store / f"{TEMPORARY}{step_order.attempt}"
    with storage(f"end an attempt in {step_order.store}"):
        if step_order.staging.exists():
            step_order.staging.rename(gone)  # at once, where a removal file by file could be overtaken
        remove(gone)


def work(step_order: StepOrder, trainer: SliceTrainer) -> Checkpoint:
    """Do one step in this process, its result being left in the place of the attempt.

    Raises:
        EnvironmentMismatchError: if this process is of another class than the chain.
        StalePlanError: if the step is not (or no longer) part of the plan.
        IntegrityError: if parent or records are damaged.
        StorageError: if the file system refuses, or the attempt is over.
    """
    environment = trainer.environment()
    if step_order.environment is not None and step_order.environment != environment:
        raise mismatch(step_order.shard, environment_difference(step_order.environment, environment))
    with closing(Workspace.open(step_order.workspace)) as workspace:
        return _trained(workspace, step_order, trainer, environment)


def _trained(
    workspace: Workspace, step_order: StepOrder, trainer: SliceTrainer, environment: dict[str, str]
) -> Checkpoint:
    forgotten = workspace.book.tombstones()
    step, layout = _planned(workspace, step_order), workspace.layout()
    passes = tuple(
        tuple(stored.record for stored in pass_order(step.members, layout, step.link.slice, epoch=epoch))
        for epoch in range(layout.epochs)
    )
    seed = derive(workspace.keys.seed, "step-seed", step.link.shard, step.link.chain, step.link.slice)
    shelf = _shelf(workspace, step_order, step)
    files = trainer.train(Lesson(passes, _parent_weights(step_order, workspace), seed, shelf))
    if workspace.book.tombstones() != forgotten:
        _planned(workspace, step_order)  # what saw a record that was deleted meanwhile is not even stored
    store = Store(step_order.staging)
    return Checkpoint(
        link=step.link,
        files=store.put(files),
        tensors=tensor_digest(files[WEIGHTS_FILE]),
        root=step.root,
        seen=store.put({SEEN_FILE: pack_tags(stored.tag for stored in step.members)}),
        members=len(step.members),
        own=step.own,
        environment=environment,
    )


def _shelf(workspace: Workspace, step_order: StepOrder, step: SliceStep) -> Shelf | None:
    """The activations of a step's records; none for a replay, and none where no layer is frozen."""
    if step_order.replayed or not has_frozen_layers(workspace.pinned().recipe):
        return None
    return AttemptShelf(workspace.activations, step_order.staging / ACTIVATIONS, step_order.shard, step.members)


def _planned(workspace: Workspace, step_order: StepOrder) -> SliceStep:
    """The ordered step as the surviving records give it now."""
    steps = workspace.chain(step_order.shard).steps
    step = next((step for step in steps if step.key == step_order.key), None)
    if step is None:
        raise StalePlanError(
            f"step {step_order.key[:12]} in the plan of the surviving records",
            "a plan without it: records changed after the order was given",
            "run the command again",
        )
    return step


def _parent_weights(step_order: StepOrder, workspace: Workspace) -> bytes | None:
    """The parent's tensors, which must be those of its fact."""
    if step_order.parent is None:
        return None
    weights = workspace.store_at(step_order.store).get(step_order.parent.files)[WEIGHTS_FILE]
    if tensor_digest(weights) != step_order.parent.tensors:
        raise IntegrityError(
            f"tensors {step_order.parent.tensors} in checkpoint {step_order.parent.key}",
            "other tensors",
            "run `sisa audit --all`; `sisa train` remakes damaged checkpoints",
        )
    return weights


def environment_difference(wanted: Mapping[str, str], found: Mapping[str, str]) -> str:
    """The facts in which two environments differ, for a message."""
    names = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
    return ", ".join(f"{name} {found.get(name)!r} instead of {wanted.get(name)!r}" for name in names)


def mismatch(shard: int, difference: str) -> EnvironmentMismatchError:
    """The error that the user sees for a step that no worker may do."""
    return EnvironmentMismatchError(
        f"the environment class in which shard {shard} was begun",
        difference,
        "train where these are the same, or `sisa train --restart-shards` to begin such shards anew",
    )


def failure(error: BaseException, shard: int) -> StepFailedError:
    """The error that the user sees for a step that failed for a reason of its own.

    It says what was raised and where, not the words: they may quote a record, and go to logs and other machines.
    """
    frames = traceback.extract_tb(error.__traceback__)
    where = f" in {frames[-1].name} ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return StepFailedError(
        f"every step of shard {shard} to train",
        f"{type(error).__name__}{where}; its words are left out, since they may quote a record",
        "mend the cause (--executor inline shows the whole of it) and run the same command again; "
        "finished steps are kept",
    )
