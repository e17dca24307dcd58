"""Legal holds and refusals: what stands in the way of a deletion, visibly and on record."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from shards import kinds
from shards.deletion import id_tag, subject_tag
from shards.errors import HeldError, InputError
from shards.targets import Targets
from shards.vault import StoredRecord
from shards.workspace import Workspace
from sisa.people import NOBODY, refer, told


def hold(
    workspace: Workspace, ids: Sequence[str], subjects: Sequence[str], who: Mapping[str, str] = NOBODY
) -> dict[str, Any]:
    """Put records on hold: no deletion of them is accepted until the hold is lifted.

    Args:
        workspace: whose caller drives it.
        ids: record IDs, held now or not.
        subjects: all records of these subjects, held now or later.
        who: texts for requester, authoriser, reason and basis.

    Returns:
        ``{hold_id, records}``: its name, and how many records held now it covers.

    Raises:
        InputError: if nothing is named, or a deletion of it waits to be worked off.
    """
    if not ids and not subjects:
        raise InputError("IDs or subjects to hold", "none", "name them with --id or --subject")
    _refuse_waiting(workspace, ids, subjects)
    targets = Targets(
        tags=tuple(sorted(_id_tag(workspace, record_id) for record_id in ids)),
        subjects=tuple(sorted(_subject_tag(workspace, subject) for subject in subjects)),
    )
    hold_id = f"hold-{uuid.uuid4().hex[:16]}"
    body = {
        "hold_id": hold_id,
        "object": workspace.store.put(targets.files()),
        "references": refer(workspace, who),
    }
    workspace.ledger.append([(kinds.HOLD, body)])
    covered = sum(_covers(workspace, targets, stored) for stored in workspace.survivors())
    return {"hold_id": hold_id, "records": covered}


def _refuse_waiting(workspace: Workspace, ids: Sequence[str], subjects: Sequence[str]) -> None:
    """A hold would not stop what is accepted already, and must not seem to."""
    book = workspace.book
    waiting = [one for one in book.open_requests() if one.request_id not in book.begun()]
    tags = {workspace.tag(one).hex() for one in ids} if waiting else set()
    owners = {_subject_tag(workspace, subject) for subject in subjects} if waiting else set()
    for request in waiting:
        if tags & set(request.tombstones) or owners & set(request.subjects):
            raise InputError(
                "records whose deletion was not accepted yet",
                f"request {request.request_id}, which waits to be worked off",
                f"withdraw it with `sisa requests --cancel {request.request_id}`, then hold them",
            )


def lift(workspace: Workspace, hold_id: str, who: Mapping[str, str] = NOBODY) -> dict[str, Any]:
    """Lift a hold.

    Raises:
        InputError: if no such hold is in force.
    """
    if hold_id not in workspace.book.holds():
        raise InputError("the ID of a hold in force", repr(hold_id), "see `sisa hold --list`")
    workspace.ledger.append([(kinds.RELEASE, {"hold_id": hold_id, "references": refer(workspace, who)})])
    workspace.sweep()  # what the hold covered is nobody's business any more
    return {"hold_id": hold_id, "lifted": True}


def holds(workspace: Workspace) -> list[dict[str, Any]]:
    """Every hold in force, oldest first. This is a read-only operation."""
    survivors = workspace.survivors()
    return [
        {
            "hold_id": hold_id,
            "since": fact.created,
            "ids": len(targets.tags),
            "subjects": len(targets.subjects),
            "records": sum(_covers(workspace, targets, stored) for stored in survivors),
            **told(workspace, fact.body["references"]),
        }
        for hold_id, (fact, targets) in workspace.book.holds().items()
    ]


def refuse(
    workspace: Workspace,
    ids: Sequence[str],
    subjects: Sequence[str],
    request_id: str | None = None,
    who: Mapping[str, str] = NOBODY,
) -> dict[str, Any]:
    """Record that a deletion was refused; nothing else happens.

    Raises:
        InputError: if nothing is named, or no reason is given.
    """
    if not ids and not subjects:
        raise InputError("the IDs or subjects whose deletion is refused", "none", "name them with --id or --subject")
    if not who.get("reason"):
        raise InputError("a reason for the refusal", "none", "give it with --reason; the person must be told")
    targets = Targets(
        tags=tuple(sorted(workspace.tag(record_id).hex() for record_id in ids)),
        subjects=tuple(sorted(_subject_tag(workspace, subject) for subject in subjects)),
    )
    before = _refused_before(workspace, targets, request_id, ())
    taken = workspace.book.request(request_id or "") or [
        fact for fact in workspace.book.refusals() if request_id is not None and fact.body["request_id"] == request_id
    ]
    if taken and before is None:
        raise InputError("a new request ID, or the same refusal again", repr(request_id), "choose another --request-id")
    return before or _record_refusal(workspace, targets, request_id, (), who)


def refuse_held(
    workspace: Workspace, records: Sequence[StoredRecord], request_id: str | None, who: Mapping[str, str]
) -> None:
    """Record a refusal and raise if a hold covers one of the records.

    Raises:
        HeldError: naming the holds.
    """
    covering = {
        hold_id: count
        for hold_id, (_, targets) in workspace.book.holds().items()
        if (count := sum(_covers(workspace, targets, stored) for stored in records))
    }
    if not covering:
        return
    targets = Targets(tags=tuple(sorted(stored.tag.hex() for stored in records)))
    refusal = _refused_before(workspace, targets, request_id, tuple(covering)) or _record_refusal(
        workspace, targets, request_id, tuple(covering), who
    )
    found = ", ".join(f"{hold_id} covers {count} of {len(records)}" for hold_id, count in covering.items())
    raise HeldError(
        "no legal hold on the records to be deleted",
        f"{found}; refusal {refusal['refusal_id']} is recorded and nothing was deleted",
        "leave these records out, or lift the hold with `sisa hold --lift ID` and ask again",
    )


def _refused_before(
    workspace: Workspace, targets: Targets, request_id: str | None, covering: tuple[str, ...]
) -> dict[str, Any] | None:
    """The refusal of the same request, which was asked again under the same holds."""
    destroyed = workspace.book.destroyed_objects()
    for fact in workspace.book.refusals():
        asked = fact.body["request_id"], tuple(fact.body["holds"])
        if request_id is not None and asked == (request_id, covering) and fact.body["object"] not in destroyed:
            before = Targets.from_files(workspace.store.get(fact.body["object"]))
            if (before.tags, before.subjects) == (targets.tags, targets.subjects):
                return {name: fact.body[name] for name in ("refusal_id", "request_id", "holds")}
    return None


def _record_refusal(
    workspace: Workspace, targets: Targets, request_id: str | None, covering: tuple[str, ...], who: Mapping[str, str]
) -> dict[str, Any]:
    body = {
        "refusal_id": f"refusal-{uuid.uuid4().hex[:16]}",
        "request_id": request_id,
        "object": workspace.store.put(targets.files()),
        "holds": list(covering),
        "references": refer(workspace, who),
    }
    workspace.ledger.append([(kinds.REFUSAL, body)])
    return {"refusal_id": body["refusal_id"], "request_id": request_id, "holds": list(covering)}


def _covers(workspace: Workspace, targets: Targets, stored: StoredRecord) -> bool:
    subject = stored.record.subject
    return _id_tag(workspace, stored.record.id) in targets.tags or (
        subject is not None and _subject_tag(workspace, subject) in targets.subjects
    )


def _id_tag(workspace: Workspace, record_id: str) -> str:
    return id_tag(workspace.keys, workspace.pinned().namespace, record_id).hex()


def _subject_tag(workspace: Workspace, subject: str) -> str:
    return subject_tag(workspace.keys, workspace.pinned().namespace, subject).hex()
