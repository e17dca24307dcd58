"""Tombstones: what they are, and their destruction by retention rule.

A tombstone keeps a record from coming back, and is pseudonymous data itself. When the rule says that
it has served, its tags, the refusals and lists that still name them, its certificate's copy here and the texts
behind its references go; the ledger keeps a salted digest. A record may come back after that.

What belongs to no request ages by itself: refusals, holds since they were lifted, recipients since something
was last handed to them.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from datetime import UTC, datetime, timedelta
from typing import Any

from shards import kinds
from shards.errors import InputError, IntegrityError
from shards.fact import Fact
from shards.targets import Targets
from shards.workspace import Workspace
from sisa.people import forget_unnamed, recipients, told


def list_tombstones(workspace: Workspace) -> list[dict[str, Any]]:
    """Every request with its tombstones, oldest first. This is a read-only operation."""
    done = workspace.book.completed()
    return [
        {
            "request_id": request.request_id,
            "kind": request.kind,
            "accepted": fact.created,
            "completed": done.get(request.request_id),
            "tombstones": list(request.tombstones),
            "retired": request.retired,
            **told(workspace, request.references),
        }
        for fact, request in workspace.book.requests()
    ]


def retire(workspace: Workspace, older_than_days: int) -> list[str]:
    """Destroy the tombstones of requests completed longer ago than that, and what is as old and of no request.

    Where the operator declared how long backups live, a tombstone lives at least as long: after that
    no backup brings the record back.

    Args:
        workspace: whose caller drives it.
        older_than_days: the retention rule.

    Returns:
        Names of what is so old: IDs of requests, refusals and lifted holds, references of recipients.

    Raises:
        InputError: if the rule is no number of days.
    """
    if older_than_days < 0:
        raise InputError("a number of days", str(older_than_days), "name how long tombstones are kept")
    now = datetime.now(UTC)
    done = workspace.book.completed()
    old = [
        request.request_id
        for _, request in workspace.book.requests()
        if not request.retired
        and request.request_id in done
        and datetime.fromisoformat(done[request.request_id])
        <= now - timedelta(days=max(older_than_days, request.backup_days or 0))
    ]
    until = now - timedelta(days=older_than_days)
    alone = {
        thing: name for thing, (name, since) in _alone(workspace).items() if datetime.fromisoformat(since) <= until
    }
    _destroy(workspace, old, alone.keys(), f"older than {older_than_days} days")
    return [*old, *alone.values()]


def retire_requests(workspace: Workspace, request_ids: Sequence[str], rule: str) -> None:
    """Destroy the tombstones of these requests."""
    _destroy(workspace, request_ids, frozenset(), rule)


def _alone(workspace: Workspace) -> dict[str, tuple[str, str]]:
    """What ages by itself: object of each refusal and lifted hold, and reference of each recipient → (name, since)."""
    lifted = {fact.body["hold_id"]: fact.created for fact in workspace.ledger.facts(kinds.RELEASE)}
    destroyed = workspace.book.destroyed_objects()
    found = {
        fact.body["object"]: (fact.body["hold_id"], lifted[fact.body["hold_id"]])
        for fact in workspace.ledger.facts(kinds.HOLD)
        if fact.body["hold_id"] in lifted and fact.body["object"] not in destroyed
    }
    found |= {fact.body["object"]: (fact.body["refusal_id"], fact.created) for fact in _refusals(workspace)}
    return found | {reference: (reference, since) for reference, since in recipients(workspace).items()}


def _destroy(workspace: Workspace, request_ids: Sequence[str], alone: Set[str], rule: str) -> None:
    """The fact first, then what it names."""
    if not request_ids and not alone:
        return
    going = set(request_ids)
    requests = [request for _, request in workspace.book.requests() if request.request_id in going]
    tags = {bytes.fromhex(tag) for request in requests for tag in request.tombstones}
    subjects = {bytes.fromhex(tag) for request in requests for tag in request.subjects}
    objects = alone | {request.object for request in requests} | _refusing(workspace, going, tags | subjects)
    objects |= _naming(workspace, tags) - _proving(workspace, going)
    body = {"requests": sorted(request_ids), "objects": sorted(objects), "rule": rule}
    workspace.ledger.append([(kinds.RETIRED, body)])
    forget_unnamed(workspace)
    workspace.sweep()


def _refusing(workspace: Workspace, going: Set[str], tags: Set[bytes]) -> set[str]:
    """Targets of refusals of those requests, or of records or subjects that they are about."""

    def refused(name: str) -> set[bytes]:
        targets = Targets.from_files(workspace.store.get(name))
        return set(map(bytes.fromhex, (*targets.tags, *targets.subjects)))

    return {
        fact.body["object"]
        for fact in _refusals(workspace)
        if fact.body["request_id"] in going or _holds(lambda n=fact.body["object"]: refused(n), tags)
    }


def _refusals(workspace: Workspace) -> list[Fact]:
    """Refusals that are not retired."""
    destroyed = workspace.book.destroyed_objects()
    return [fact for fact in workspace.book.refusals() if fact.body["object"] not in destroyed]


def _proving(workspace: Workspace, going: Set[str]) -> set[str]:
    """Slices by which another request's certificate proves what was held; they go with that request."""
    return {
        made.leaves
        for accepted, request in workspace.book.requests()
        if not request.retired and request.request_id not in going
        for _, made in workspace.book.slices_at(accepted.seq)
        if _holds(lambda n=made.leaves: workspace.slice_leaves(n).keys(), {bytes.fromhex(tag) for tag in request.tags})
    }


def _naming(workspace: Workspace, tags: Set[bytes]) -> set[str]:
    """Lists of purged checkpoints and superseded slices that name one of the tags."""
    found = set()
    for stored in workspace.book.checkpoints():
        name = stored.checkpoint.seen
        if not stored.live and name not in found and _holds(lambda n=name: workspace.trained_tags(n), tags):
            found.add(name)
    for _, made in workspace.book.commitments():
        if made.leaves not in found and _holds(lambda n=made.leaves: workspace.slice_leaves(n).keys(), tags):
            found.add(made.leaves)
    return found


def _holds(read: Any, tags: Set[bytes]) -> bool:
    try:
        return not tags.isdisjoint(read())
    except IntegrityError:  # lost or destroyed before
        return False
