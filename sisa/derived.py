"""What was made of served heads, told to people: which of it a deletion makes stale, and who has it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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

_REFERRED = ("recipient", "location")


def stale_after(
    workspace: Workspace, requests: Sequence[DeletionRequest], going: Iterable[StoredRecord]
) -> tuple[dict[str, Any], ...]:
    """What these requests made stale, and what deleting the records ``going`` would. This is a read-only operation.

    An export that is kept here is purged with the request; whatever else there is must be recalled by whoever
    handed it out.
    """
    if not workspace.book.derived():
        return ()
    asked = {request.request_id for request in requests}
    hit: list[tuple[frozenset[bytes], int | None]] = [
        (frozenset(map(bytes.fromhex, request.tags)), accepted.seq)
        for accepted, request in workspace.book.requests()
        if request.request_id in asked
    ]
    hit.append((frozenset(stored.tag for stored in going), None))
    found = {fact.seq: fact for tags, until in hit for fact in made_of(workspace, tags, until)}
    return tuple(describe(workspace, found[seq]) for seq in sorted(found))


def describe(workspace: Workspace, fact: Fact) -> dict[str, Any]:
    """One of them with the texts behind its references, as far as they are kept."""
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
        "fate": "purged" if kept else "recall",
        "recipient": texts.get("recipient"),
        "location": texts.get("location"),
    }
