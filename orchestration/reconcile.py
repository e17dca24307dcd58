"""Brings the store to a plan by running exactly the missing steps, then serves it.

Training and deleting share this: a deletion is a smaller plan. It is the only writer of checkpoint
facts. Killed anywhere, it is run again and continues: a step's objects are written first, then its
fact in one transaction; an object without a fact is swept.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from orchestration.executor import ChainOrder, Executor, Outcome, SliceTrainer, failure
from orchestration.schedule import schedule
from orchestration.starting import run_in_turn
from shards import kinds
from shards.errors import IntegrityError, SisaError, StepFailedError
from shards.lineage import Checkpoint, standing_on
from shards.manifest import Head, ModelManifest
from shards.plan import Plan
from shards.workspace import Workspace


@dataclass(frozen=True, slots=True)
class Progress:
    """One step ended, or (``done == 0``) the work is known.

    Attributes:
        done, total: steps.
        outcome: the step that ended.
        shards: shard → records in each of its steps, in order.
    """

    done: int
    total: int
    outcome: Outcome | None
    shards: Mapping[int, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Reconciled:
    """What a reconcile did.

    Attributes:
        manifest: what is served now.
        trained: checkpoints made.
        passes: records in the steps trained, times epochs (sample passes).
        step_seconds: the sum of the steps' durations on their workers.
        damaged: keys of checkpoints that were found damaged and made again.
        errors: what ended a chain early.
    """

    manifest: ModelManifest
    trained: tuple[Checkpoint, ...]
    passes: int
    step_seconds: float
    damaged: tuple[str, ...]
    errors: tuple[SisaError, ...]

    def __add__(self, later: Reconciled) -> Reconciled:
        """This and what was done after it; what held this back is over."""
        return Reconciled(
            manifest=later.manifest,
            trained=self.trained + later.trained,
            passes=self.passes + later.passes,
            step_seconds=self.step_seconds + later.step_seconds,
            damaged=tuple(sorted({*self.damaged, *later.damaged})),
            errors=later.errors,
        )

    def raise_errors(self) -> None:
        """Raise what ended a chain early, if anything did.

        Raises:
            SisaError: the one error, or a ``StepFailedError`` that names them all.
        """
        if len(self.errors) == 1:
            raise self.errors[0]
        if self.errors:
            raise StepFailedError(
                "every chain to be trained",
                f"{len(self.errors)} failed: " + "; ".join(error.found for error in self.errors),
                "mend the causes and run the same command again; finished steps are kept",
            )


def reconcile(
    workspace: Workspace,
    executor: Executor,
    trainer: SliceTrainer,
    progress: Callable[[Progress], None] = lambda _: None,
    shards: Set[int] | None = None,
) -> Reconciled:
    """Train what the plan of the surviving records lacks, and serve the result.

    Only in ``shards`` (and the trunk, if it is one of them), if they are named: the others wait, served as far as
    they are clean. The caller drives the workspace. A step that fails ends its chain, which is served up to
    there; the others go on. The caller decides what to do about ``errors``.

    Raises:
        IntegrityError: if a damaged checkpoint, trained again, has other bits than its fact says.
    """
    workspace.sweep()
    asked, plan = workspace.book.asked(), workspace.plan()
    recorded = workspace.book.live()
    intact = workspace.intact()
    chains = [chain for chain in schedule(plan, intact, recorded) if shards is None or chain.shard in shards]
    total = sum(len(chain.steps) for chain in chains)
    _begin(workspace, plan, chains)
    sizes = records_in(chains)
    progress(Progress(0, total, None, sizes))
    trained: list[Checkpoint] = []
    errors: list[SisaError] = []
    seconds = 0.0
    running = run_in_turn(executor, chains, trainer, workspace.path, workspace.store.root)
    with closing(_outcomes(workspace, running)) as outcomes:  # whatever goes wrong here ends the workers
        for outcome in outcomes:
            seconds += outcome.seconds
            if outcome.checkpoint is not None:
                trained.append(outcome.checkpoint)
                _record(workspace, outcome.checkpoint, recorded)
            elif isinstance(outcome.error, SisaError):
                errors.append(outcome.error)
            elif outcome.error is not None:
                errors.append(failure(outcome.error, outcome.shard))
            progress(Progress(len(trained), total, outcome, sizes))
    # A deletion may have been accepted, or withdrawn, while steps were trained.
    now = plan if workspace.book.asked() == asked else workspace.plan()
    manifest = publish(workspace, now)
    # An ingest may have put a record before stored steps; what no plan has any more is dropped. What only
    # a deletion accepted meanwhile makes fall waits for its turn.
    steps = plan.steps().keys() | now.steps().keys()
    live = workspace.book.live()
    fallen = {key for key, made in live.items() if key not in steps and (shards is None or made.link.shard in shards)}
    _purge_fallen(workspace, standing_on(fallen, live))
    return Reconciled(
        manifest=manifest,
        trained=tuple(trained),
        passes=sum(checkpoint.members for checkpoint in trained) * workspace.layout().epochs,
        step_seconds=seconds,
        damaged=tuple(sorted(set(recorded) - set(intact))),
        errors=tuple(errors),
    )


def _outcomes(workspace: Workspace, running: Iterator[Outcome]) -> Generator[Outcome, None, None]:
    """The outcomes as they come; others may append facts while one is waited for."""
    try:
        while True:
            with workspace.giving_way():
                outcome = next(running, None)
            if outcome is None:
                return
            yield outcome
    finally:
        if isinstance(running, Generator):
            running.close()


def records_in(chains: Iterable[ChainOrder]) -> dict[int, tuple[int, ...]]:
    """Shard → records in each of the steps to train."""
    return {chain.shard: tuple(len(step.members) for step in chain.steps) for chain in chains}


def _begin(workspace: Workspace, plan: Plan, chains: Sequence[ChainOrder]) -> None:
    """Log what the slices consist of, then that training on them begins; one transaction."""
    facts: list[tuple[str, Mapping[str, Any]]] = [*workspace.recommit(plan)]
    for chain in chains:
        steps = [{"slice": step.link.slice, "checkpoint": step.key, "root": step.root} for step in chain.steps]
        facts.append((kinds.RUN, {"shard": chain.shard, "steps": steps}))
    if facts:
        workspace.ledger.append(facts)


def _record(workspace: Workspace, made: Checkpoint, recorded: dict[str, Checkpoint]) -> None:
    """Append the fact; a checkpoint that was only made again must have the same bits."""
    before = recorded.get(made.key)
    if before is not None and before.tensors != made.tensors:
        raise IntegrityError(
            f"checkpoint {made.key} with tensors {before.tensors}",
            f"tensors {made.tensors} when trained again",
            "this machine does not reproduce its own training; do not trust it, and run `sisa audit --all`",
        )
    if made != before:
        workspace.ledger.append([(kinds.CHECKPOINT, made.to_json())])


def purge(workspace: Workspace, keys: frozenset[str], request_ids: tuple[str, ...]) -> None:
    """Destroy checkpoints: the facts first, then the files; a kill in between is healed by a sweep.

    A head among them stops being served in the same transaction.
    """
    live = workspace.book.live()
    gone = sorted(keys & frozenset(live))
    if not gone:
        return
    facts: list[tuple[str, dict[str, Any]]] = []
    current = workspace.book.manifest()
    if current is not None and any(head.checkpoint in gone for head in current.heads):
        kept = [head for head in current.heads if head.checkpoint not in gone]
        rolled_back = ModelManifest.of(current.generation + 1, current.recipe, kept)
        facts.append((kinds.MANIFEST, rolled_back.to_json()))
    receipt = {
        "checkpoints": gone,
        "objects": sorted(live[key].files for key in gone),
        "requests": list(request_ids),
        "method": "unlink",
    }
    workspace.ledger.append([*facts, (kinds.PURGE, receipt)])
    workspace.sweep()


def _purge_fallen(workspace: Workspace, fallen: frozenset[str]) -> None:
    """Purge what fell, in the name of every open request that was to make it fall."""
    waiting = workspace.book.open_requests()
    foretold = {request.request_id: request.purged & fallen for request in waiting if request.purged & fallen}
    exposed = standing_on(frozenset[str]().union(*foretold.values()), workspace.book.live())
    purge(workspace, exposed, tuple(foretold))
    purge(workspace, fallen - exposed, ())


def restart_foreign(workspace: Workspace, environment: dict[str, str]) -> tuple[int, ...]:
    """Give up the chains that this environment class may not continue; returns their shards.

    Only shards with steps missing are given up; a whole chain of another class stays as it is. Where there is a
    trunk, it is of the same class as all that starts from it: everything is begun anew.
    """
    live, plan = workspace.book.live(), workspace.plan()
    shards = tuple(
        chain.shard
        for chain in schedule(plan, workspace.intact(), live)
        if chain.environment is not None and chain.environment != environment
    )
    if shards and plan.trunk.steps:
        shards = tuple(chain.shard for chain in plan.every)
    _purge_fallen(workspace, frozenset(key for key, made in live.items() if made.link.shard in shards))
    return shards


def served(workspace: Workspace, plan: Plan) -> ModelManifest:
    """The manifest of a plan: per shard, the last step of the unbroken run of stored ones, the trunk's first."""
    live = workspace.book.live()
    current = workspace.book.manifest()
    heads = []
    for chain in plan.chains:
        done: list[Checkpoint] = []
        lineage = ""
        for step in plan.lineage(chain):
            if step.key not in live:
                break
            done.append(live[step.key])
            lineage = done[-1].extend(lineage)
        if done and done[-1].link.shard == chain.shard:  # the trunk alone is never served
            heads.append(Head(chain.shard, done[-1].key, done[-1].tensors, lineage, len(done)))
    return ModelManifest.of(0 if current is None else current.generation + 1, plan.recipe, heads)


def publish(workspace: Workspace, plan: Plan) -> ModelManifest:
    """Serve what is stored of a plan; a new generation only if something changes."""
    manifest, current = served(workspace, plan), workspace.book.manifest()
    if current is not None and (current.recipe, current.heads) == (manifest.recipe, manifest.heads):
        return current
    workspace.ledger.append([(kinds.MANIFEST, manifest.to_json())])
    return manifest
