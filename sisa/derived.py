"""What was made of served heads, told to people: which of it a deletion makes stale, and who has it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from shards import kinds
from shards.deletion import DeletionRequest
from shards.derived import Export, made_of
from shards.errors import IntegrityError
from shards.fact import Fact
from shards.vault import StoredRecord
from shards.workspace import Workspace
from sisa.people import told

# A record's tag → number of the fact by which it was deleted; None if it is held.
Deletions = Mapping[bytes, int | None]
_REFERRED = ("recipient", "location")


def stale_after(
    workspace: Workspace, requests: Sequence[DeletionRequest], going: Iterable[StoredRecord]
) -> tuple[dict[str, Any], ...]:
    """What these requests made stale, and what deleting the records ``going`` would. This is a read-only operation.

    An export that is kept here is purged with the request, and told as ``gone`` if it was before; whatever else
    there is must be recalled by whoever handed it out.
    """
    if not workspace.book.derived():
        return ()
    asked = {request.request_id for request in requests}
    hit: dict[bytes, int | None] = {
        bytes.fromhex(tag): accepted.seq
        for accepted, request in workspace.book.requests()
        if request.request_id in asked
        for tag in request.tags
    }
    hit |= {stored.tag: None for stored in going}
    accepted_by = min((until for until in hit.values() if until is not None), default=math.inf)
    return tuple(describe(workspace, fact, accepted_by) for fact in concerned(workspace, hit))


def concerned(workspace: Workspace, records: Deletions) -> list[Fact]:
    """What holds these records or may come of them, oldest first: the one rule of deletion and audit."""
    by_fact: dict[int | None, set[bytes]] = {}
    for tag, until in records.items():
        by_fact.setdefault(until, set()).add(tag)
    found = {fact.seq: fact for until, tags in by_fact.items() for fact in made_of(workspace, tags, until)}
    return [found[seq] for seq in sorted(found)]


def describe(workspace: Workspace, fact: Fact, before: float = 0) -> dict[str, Any]:
    """One of them with the texts behind its references, as far as they are kept, and its fate.

    ``recall``: it left. ``purge``: it is kept here, and goes with the first of its checkpoints. ``purged``: it went;
    ``gone``, if that was before the fact of number ``before``.
    """
    texts = {name: fact.body[name] for name in _REFERRED if name in fact.body}
    with suppress(IntegrityError):  # damaged texts hold back no deletion; `audit --all` tells of them
        texts = told(workspace, texts)
    export = Export.of(fact) if fact.kind == kinds.EXPORT else None
    kept = export is not None and export.kept
    if export is not None and kept:
        texts["location"] = str(workspace.exports / export.name)
    return {
        "kind": fact.body["kind"],
        "form": fact.body.get("form"),
        "keyed_digest": fact.body["keyed_digest"],
        "created": fact.created,
        "kept": kept,
        "fate": _fate(workspace, fact, before) if kept else "recall",
        "recipient": texts.get("recipient"),
        "location": texts.get("location"),
    }


def _fate(workspace: Workspace, fact: Fact, before: float) -> str:
    """What became of an export that was kept: it went when the first of its checkpoints did."""
    parents = set(fact.body["parents"])
    purges = (
        purge.seq
        for purge in workspace.ledger.facts(kinds.PURGE)
        if purge.seq > fact.seq and not parents.isdisjoint(purge.body["checkpoints"])
    )
    went = next(purges, None)
    if went is None:
        return "purge"
    return "gone" if went < before else "purged"
