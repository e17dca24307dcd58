"""Requests as a queue: listed with state and deadline, worked off when it is their turn, withdrawn before.

Acceptance suppresses at once: nothing served saw the records from then on. What may wait is the rest:
erasing, training again, certifying. Requests whose turn comes together share one retraining a shard,
and each gets its own certificate.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from orchestration.batching import Pending, Policy, due
from orchestration.executor import Executor, SliceTrainer
from orchestration.reconcile import publish
from shards import kinds
from shards.deletion import DeletionRequest
from shards.errors import InputError, LockedError, SisaError, UnknownRecordError
from shards.fact import Fact
from shards.plan import make_plan
from shards.vault import StoredRecord
from shards.workspace import Workspace
from sisa.config import RunOptions
from sisa.delete import finish_requests, unfinished_requests
from sisa.session import Report, Session, silent
from sisa.wording import named, quoted

WAITING = ("accepted", "suppressed", "planned", "failed")


@dataclass(frozen=True, slots=True)
class Worked:
    """What a turn of work did.

    Attributes:
        completed: IDs of requests certified now.
        failed: IDs of requests that an error holds back.
        waiting: IDs of requests whose turn has not come.
        errors: what held them back.
    """

    completed: tuple[str, ...]
    failed: tuple[str, ...]
    waiting: tuple[str, ...]
    errors: tuple[SisaError, ...]

    def to_json(self) -> dict[str, Any]:
        """The ``work`` JSON document."""
        return {
            "completed": list(self.completed),
            "failed": list(self.failed),
            "waiting": list(self.waiting),
            "errors": [f"expected {error.expected}, found {error.found}" for error in self.errors],
        }


def policy(options: RunOptions) -> Policy:
    """The policy that a configuration states."""
    return Policy(
        rule=options.queue_policy,
        window=timedelta(hours=options.queue_window_hours),
        deadline=timedelta(days=options.deadline_days),
        margin=timedelta(hours=options.deadline_margin_hours),
        saving=options.queue_saving,
        quota=options.requester_quota,
        cost_cap=options.requester_cost_cap,
    )


def work(
    session: Session,
    now: datetime | None = None,
    *,
    executor: Executor | None = None,
    trainer: SliceTrainer | None = None,
    report: Report = silent,
) -> Worked:
    """Work off the requests whose turn it is, with all that costs nothing more.

    A request held back by an error stays, visible as failed, and is tried again at the next call; the
    others are completed.

    Args:
        session: an open session.
        now: the time, for the policy.
        executor, trainer: in place of those that the configuration names.
        report: told of every step that ends.

    Raises:
        LockedError: if another process drives the workspace.
    """
    workspace = session.workspace
    with session.driving():
        session.refuse_other_recipe()
        workspace.sweep()
        before = unfinished_requests(workspace)
        turn = _turn(session, before, now or datetime.now(UTC))
        errors: tuple[SisaError, ...] = ()
        if turn:
            try:
                errors = finish_requests(session, executor, trainer, report, only=turn).errors
            except SisaError as error:
                errors = (error,)
        left = [request.request_id for request in unfinished_requests(workspace)]
        failed = tuple(name for name in left if name in turn)
        if failed:
            said = {"requests": list(failed), "errors": sorted({type(error).__name__ for error in errors})}
            workspace.ledger.append([(kinds.FAILURE, said)])
    return Worked(
        completed=tuple(request.request_id for request in before if request.request_id not in left),
        failed=failed,
        waiting=tuple(name for name in left if name not in turn),
        errors=errors,
    )


def cancel(session: Session, request_id: str) -> None:
    """Withdraw a request that was not begun: its records are served again.

    Raises:
        UnknownRecordError: if there is no such request.
        InputError: if it was begun: what is erased does not come back.
    """
    workspace = session.workspace
    with session.accepting():
        found = workspace.book.request(request_id)
        if found is None:
            raise UnknownRecordError("the ID of a request", quoted(request_id), "see `sisa requests`")
        fact, request = found
        if request not in unfinished_requests(workspace) or request_id in workspace.book.begun():
            raise InputError(
                f"a request {request_id} that was not begun",
                "one whose records are erased" if request.tags else "one that is completed",
                "a deleted record can be taken in again, as a new version, with --readmit",
            )
        if not request.queued and workspace.driven():
            raise LockedError(
                f"nobody driving {workspace.path}, who may be working off request {request_id}",
                "another process",
                "wait for it to end; a request made with --queue can be withdrawn at any time",
            )
        others = [one for _, one in workspace.book.requests() if one != request]
        survivors = workspace.held({bytes.fromhex(tag) for one in others for tag in one.tombstones})
        _refuse_two_versions(survivors)
        # What comes back is committed to again in the same transaction: an ingest may have left it out.
        plan = make_plan(survivors, workspace.layout(), workspace.pinned().digest)
        withdrawal = {"request_id": request_id, "fact": fact.seq}
        workspace.ledger.append([(kinds.CANCEL, withdrawal), *workspace.recommit(plan)])
        publish(workspace, plan)
    with suppress(LockedError), session.driving():  # else whoever drives sweeps what nothing names any more
        workspace.sweep()


def _refuse_two_versions(survivors: Sequence[StoredRecord]) -> None:
    """A record that was taken in again as a new version meanwhile cannot come back beside it."""
    versions = Counter(one.record.id for one in survivors)
    again = sorted(record_id for record_id, count in versions.items() if count > 1)
    if again:
        raise InputError(
            "records that can come back",
            f"newer versions of {named(again)}, taken in with --readmit",
            "delete those first, or let `sisa work` complete the request",
        )


def list_requests(session: Session, now: datetime | None = None) -> list[dict[str, Any]]:
    """Every request with its state, oldest first; of those that wait, position, deadline and estimate.

    This is a read-only operation. States: ``accepted`` (its IDs were never held: nothing is to be
    suppressed, as acceptance does for all others), ``suppressed``, ``planned`` (its turn has come),
    ``retraining``, ``verifying`` (trained, not certified), ``completed``, ``failed`` (tried, to be tried
    again), ``rejected`` (refused), ``cancelled``, ``retired``.
    """
    workspace, now = session.workspace, now or datetime.now(UTC)
    rules = policy(session.options)
    unfinished = unfinished_requests(workspace)
    turn, begun, failed = _turn(session, unfinished, now), workspace.book.begun(), _failed(workspace)
    pending = {one.request_id: one for one in _pending(workspace, unfinished)}
    order = [request.request_id for request in unfinished]
    missing = _missing(workspace) if unfinished else frozenset()
    driven = bool(unfinished) and workspace.driven()
    listed: list[tuple[str, dict[str, Any]]] = []
    for fact, request in workspace.book.requests():
        name = request.request_id
        if request.retired:
            state = "retired"
        elif request not in unfinished:
            state = "completed"
        elif name in begun and (driven or name not in failed):
            state = "retraining" if request.shards & missing else "verifying"
        elif name in failed:
            state = "failed"
        elif not request.tags:
            state = "accepted"
        else:
            state = "planned" if name in turn else "suppressed"
        entry = {"request_id": name, "state": state, "accepted": fact.created, "records": len(request.tags)}
        if request in unfinished:
            entry |= {
                "position": order.index(name) + 1,
                "deadline": (pending[name].accepted + rules.deadline).isoformat(timespec="seconds"),
                "estimate_passes": sum(pending[name].passes.values()),
            }
        listed.append((fact.created, entry))
    listed += [(fact.created, _ended(fact, "cancelled")) for fact in workspace.book.withdrawn()]
    listed += [(fact.created, _ended(fact, "rejected")) for fact in workspace.book.refusals()]
    return [entry for _, entry in sorted(listed, key=lambda item: item[0])]


def _ended(fact: Fact, state: str) -> dict[str, Any]:
    name = fact.body["request_id"] or fact.body["refusal_id"]
    return {"request_id": name, "state": state, "accepted": fact.created, "records": None}


def _turn(session: Session, unfinished: Sequence[DeletionRequest], now: datetime) -> frozenset[str]:
    """Requests whose turn it is: queued ones by the policy, and all that was begun or never queued."""
    begun = session.workspace.book.begun()
    at_once = {request.request_id for request in unfinished if not request.queued or request.request_id in begun}
    waiting = _pending(session.workspace, [request for request in unfinished if request.request_id not in at_once])
    asked = _pending(session.workspace, [request for _, request in session.workspace.book.requests()])
    return frozenset(at_once | {one.request_id for one in due(waiting, policy(session.options), now, asked)})


def _pending(workspace: Workspace, requests: Sequence[DeletionRequest]) -> list[Pending]:
    """As the policy sees them; what each costs alone is counted in the plan of today."""
    chains = {chain.shard: chain.steps for chain in workspace.plan().every} if requests else {}
    accepted = {request.request_id: fact.created for fact, request in workspace.book.requests()}
    return [
        Pending(
            request_id=request.request_id,
            accepted=datetime.fromisoformat(accepted[request.request_id]),
            passes={
                hit["shard"]: sum(
                    len(step.members) for step in chains[hit["shard"]] if step.link.slice >= hit["first_slice"]
                )
                for hit in request.impact["shards"]
            },
            requester=request.references.get("requester"),
        )
        for request in requests
    ]


def _failed(workspace: Workspace) -> frozenset[str]:
    """Requests that the last attempt at them did not complete."""
    failed: set[str] = set()
    for fact in workspace.ledger.facts(kinds.FAILURE, kinds.CERTIFICATE, kinds.CANCEL):
        body: Mapping[str, Any] = fact.body
        if fact.kind == kinds.FAILURE:
            failed.update(body["requests"])
        else:
            failed.discard(body["request_id"])
    return frozenset(failed)


def _missing(workspace: Workspace) -> frozenset[int]:
    """Shards that steps of the plan are missing of, the trunk too."""
    live, chains = workspace.book.live(), workspace.plan().every
    return frozenset(chain.shard for chain in chains if any(step.key not in live for step in chain.steps))
