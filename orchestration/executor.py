"""Protocols and values between the work and whoever does it.

A worker is told *which* step to do, never given records or tensors: it opens the workspace itself,
rebuilds the chain of its shard from the surviving records, and refuses to train unless the step it
was asked for is in that chain (``attempt``). So nothing personal travels through task arguments or an
object store, and a stale order cannot train a record that was deleted meanwhile.

Steps of several shards may be trained in one pass over one base, each in a lane of its own. A lane's
result must not depend on what the others hold, so its trouble is its own too: it ends one lane, and the
others go on.
"""

from __future__ import annotations

import secrets
import traceback
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ParamSpec, Protocol, TypeAlias, TypeVar

from shards.errors import EnvironmentMismatchError, SisaError, StepFailedError
from shards.lineage import Checkpoint
from shards.plan import SliceStep
from shards.records import Record
from shards.trunk import chain_name

ATTEMPT = ".attempt-"

Files: TypeAlias = Mapping[str, bytes]  # of a checkpoint, by name

_P = ParamSpec("_P")
_T = TypeVar("_T")


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
    """Does steps. A frozen, picklable value: it travels to the workers."""

    @property
    def lanes(self) -> int:
        """How many shards are trained in one pass: 1, and ``train`` does it; more, and ``train_lanes`` does."""
        ...

    def environment(self) -> dict[str, str]:
        """What the calling process computes with: equal facts (one class) give equal bits."""
        ...

    def examine(self, record: Record) -> Fit:
        """Look at a record before it is taken in."""
        ...

    def train(self, lesson: Lesson) -> Files:
        """Train; returns the checkpoint's files, the weights under ``WEIGHTS_FILE``.

        Must be a function of the trainer, the environment class and the lesson alone.
        """
        ...

    def train_lanes(self, lessons: Mapping[int, Lesson]) -> Mapping[int, Files | SisaError]:
        """Train one lesson or more side by side; returns each lane's files, or the error that ended it alone.

        A lane's result must be a function of the trainer, the environment class, the lane and its lesson alone,
        whatever the other lanes hold.

        Args:
            lessons: lane (below ``lanes``) → lesson; lanes that are left out have nothing to do.
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
    """The missing steps of one shard, or of the trunk, in order.

    Attributes:
        shard: its number, or the trunk's.
        steps: what is to be trained.
        parent: the checkpoint they start from, if any; None too if that is yet to be made (``starting``).
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
    """What became of one step: a checkpoint, or the error that ended its chain.

    Attributes:
        shard: of the step.
        checkpoint: what was made, if anything was.
        error: why nothing was.
        seconds: how long its worker was at it; steps trained side by side share the time of their pass.
    """

    shard: int
    checkpoint: Checkpoint | None
    error: Exception | None
    seconds: float


class Executor(Protocol):
    """Runs chains of steps somewhere, side by side in as many lanes as the trainer has."""

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


def environment_difference(wanted: Mapping[str, str], found: Mapping[str, str]) -> str:
    """The facts in which two environments differ, for a message."""
    names = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
    return ", ".join(f"{name} {found.get(name)!r} instead of {wanted.get(name)!r}" for name in names)


def mismatch(shard: int, difference: str) -> EnvironmentMismatchError:
    """The error that the user sees for a step that no worker may do."""
    return EnvironmentMismatchError(
        f"the environment class in which {chain_name(shard)} was begun",
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
        f"every step of {chain_name(shard)} to train",
        f"{type(error).__name__}{where}; its words are left out, since they may quote a record",
        "mend the cause (--executor inline shows the whole of it) and run the same command again; "
        "finished steps are kept",
    )
