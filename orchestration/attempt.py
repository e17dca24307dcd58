"""One attempt at a step, or at a step of each lane: the place it may write to, the work, what becomes of it.

    driver: prepare ─▶ worker: work_together ─▶ driver: adopt, discard

A worker writes into a place of its attempt alone, made by the driver with the order and gone when
the attempt is over; the driver takes from there into the store. So a worker that was given up, and
goes on nevertheless, finds no place to write to.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from typing import ParamSpec, TypeVar

from orchestration.executor import (
    Files,
    Lesson,
    Outcome,
    Shelf,
    SliceTrainer,
    StepOrder,
    environment_difference,
    mismatch,
)
from shards.activations import Activations, AttemptShelf
from shards.digest import derive, tensor_digest
from shards.errors import IntegrityError, SisaError, StalePlanError
from shards.files import TEMPORARY, remove, storage
from shards.lineage import Checkpoint, pack_tags
from shards.plan import SliceStep, pass_order
from shards.recipes import has_frozen_layers
from shards.store import Store
from shards.workspace import ACTIVATIONS, SEEN_FILE, WEIGHTS_FILE, Workspace, open_store

_P = ParamSpec("_P")
_T = TypeVar("_T")


def perform_together(orders: Sequence[StepOrder], trainer: SliceTrainer) -> list[Outcome]:
    """Do one step of each lane in this process and store what they make; the outcomes, in the order of ``orders``.

    Our errors are outcomes: those of :func:`prepare`, of all lanes; those of :func:`work_together`,
    :func:`adopt` and :func:`discard`, as there.
    """
    try:
        with ExitStack() as attempts:
            for each in orders:
                attempts.callback(discard, each)
                prepare(each)
            outcomes = work_together(orders, trainer)
            return [adopted(each, outcome) for each, outcome in zip(orders, outcomes, strict=True)]
    except SisaError as error:
        return [Outcome(each.shard, None, error, 0.0) for each in orders]


def adopted(step_order: StepOrder, outcome: Outcome) -> Outcome:
    """The outcome of an attempt that is over, once what it made is in the store."""
    try:
        with ExitStack() as attempt:
            attempt.callback(discard, step_order)
            if outcome.checkpoint is not None:
                adopt(step_order, outcome.checkpoint)
    except SisaError as error:
        return replace(outcome, checkpoint=None, error=outcome.error or error)
    return outcome


def made_by(outcomes: Iterable[Outcome]) -> dict[int, Checkpoint]:
    """Shard → its new checkpoint, where there is one."""
    return {outcome.shard: outcome.checkpoint for outcome in outcomes if outcome.checkpoint is not None}


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


def work_together(orders: Sequence[StepOrder], trainer: SliceTrainer) -> list[Outcome]:
    """Do one step of each lane in this process, the results being left in the places of the attempts.

    Args:
        orders: of different lanes; all of one workspace.
        trainer: who trains them, in one pass.

    Returns:
        The outcomes, in the order of ``orders``, each with its share of the time. Our errors are outcomes, of
        their lane alone where they have one: ``EnvironmentMismatchError`` if this process is of another class
        than the chain, ``StalePlanError`` if the step is not (or no longer) part of the plan, ``IntegrityError``
        if parent or records are damaged, ``StorageError`` if the file system refuses, or the attempt is over.
    """
    started = time.monotonic()
    results = _tried(_results, orders, trainer)
    seconds = (time.monotonic() - started) / len(orders)
    outcomes = []
    for each in orders:
        result = results if isinstance(results, SisaError) else results[each.shard]
        checkpoint, error = (None, result) if isinstance(result, SisaError) else (result, None)
        outcomes.append(Outcome(each.shard, checkpoint, error, seconds))
    return outcomes


def _tried(do: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T | SisaError:
    """What ``do`` returns, or our error that it raises: one lane's is not to end the others.

    The error is bare: among its frames are its keeper's, so that nothing but a search for cycles would let go of
    the records that they hold.
    """
    try:
        return do(*args, **kwargs)
    except SisaError as error:
        return error.bare()


def _results(orders: Sequence[StepOrder], trainer: SliceTrainer) -> dict[int, Checkpoint | SisaError]:
    """Shard → what became of its order."""
    environment = trainer.environment()
    steps: dict[int, SliceStep] = {}
    lessons: dict[int, Lesson] = {}
    results: dict[int, Checkpoint | SisaError] = {}
    with closing(Workspace.open(orders[0].workspace)) as workspace:
        forgotten = workspace.book.tombstones()
        for each in orders:
            begun = _tried(_begun, workspace, each, environment)
            if isinstance(begun, SisaError):
                results[each.shard] = begun
            else:
                steps[each.shard], lessons[each.shard] = begun
        taught = _taught(trainer, lessons)
        for each in orders:
            files = taught.get(each.shard)
            if isinstance(files, SisaError):
                results[each.shard] = files.bare()
            elif files is not None:
                results[each.shard] = _tried(_left, workspace, each, steps[each.shard], files, environment, forgotten)
    return results


def _begun(workspace: Workspace, step_order: StepOrder, environment: Mapping[str, str]) -> tuple[SliceStep, Lesson]:
    """The ordered step, and all that it may look at."""
    if step_order.environment is not None and step_order.environment != environment:
        raise mismatch(step_order.shard, environment_difference(step_order.environment, environment))
    step, layout = _planned(workspace, step_order), workspace.layout()
    given = None if step_order.parent is None else step_order.parent.key
    if given != step.link.parent:  # the key would name a start that the bytes do not have
        raise IntegrityError(
            f"an order that starts from checkpoint {step.link.parent}",
            f"one that starts from {given or 'nothing'}",
            "run the command again",
        )
    passes = tuple(
        tuple(stored.record for stored in pass_order(step.members, layout, step.link.slice, epoch=epoch))
        for epoch in range(layout.epochs)
    )
    seed = derive(workspace.keys.seed, "step-seed", step.link.shard, step.link.chain, step.link.slice)
    return step, Lesson(passes, _parent_weights(step_order, workspace), seed, _shelf(workspace, step_order, step))


def _taught(trainer: SliceTrainer, lessons: Mapping[int, Lesson]) -> dict[int, Files | SisaError]:
    """Shard → the files that its lesson gives, or the error that ended it: the one place that knows two ways.

    Raises:
        ValueError: if two shards have one lane: neither's files may end up under the other's key.
    """
    if trainer.lanes == 1:
        return {shard: _tried(trainer.train, lesson) for shard, lesson in lessons.items()}
    lanes = {shard % trainer.lanes: lesson for shard, lesson in lessons.items()}
    if len(lanes) < len(lessons):
        raise ValueError(f"expected shards of different lanes of {trainer.lanes}, found {sorted(lessons)}")
    taught = trainer.train_lanes(lanes) if lanes else {}
    return {shard: taught[shard % trainer.lanes] for shard in lessons}


def _left(
    workspace: Workspace,
    step_order: StepOrder,
    step: SliceStep,
    files: Files,
    environment: dict[str, str],
    forgotten: frozenset[bytes],
) -> Checkpoint:
    """The checkpoint of a step that was trained, left in the place of the attempt."""
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
