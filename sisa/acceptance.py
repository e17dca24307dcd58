"""Accept a deletion: from here on nothing served saw the records.

    IDs, subjects ─▶ records ─▶ what falls, told from facts ─▶ tombstones + manifest, one transaction

This reads the parts that hold the records and no others, and trains nothing: it takes milliseconds
however many records the workspace holds. ``sisa/delete.py`` does what follows.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from shards import kinds
from shards.deletion import DELETED, NOT_PRESENT, DeletionRequest, subject_tag, tombstones
from shards.errors import InputError, StorageError, UnknownRecordError
from shards.forgetting import Going, foresee, places_of, rolled_back
from shards.lookup import by_id, by_subject
from shards.publication import announce
from shards.references import reference
from shards.targets import Targets
from shards.vault import StoredRecord
from shards.workspace import Workspace
from sisa.people import NOBODY
from sisa.session import Session
from sisa.wording import named, quoted


@dataclass(frozen=True, slots=True)
class Target:
    """What a call asks for, looked up."""

    records: tuple[StoredRecord, ...]
    earlier: tuple[DeletionRequest, ...]
    ids: tuple[str, ...]
    missing: tuple[str, ...]
    subjects: tuple[str, ...]
    absent: tuple[str, ...]


def look_up(session: Session, ids: Sequence[str], subjects: Sequence[str], ignore_missing: bool) -> Target:
    """Find what is asked for: records that are held, requests that covered some before, and what never was.

    Raises:
        UnknownRecordError: naming what was never held, unless that is to be left out.
    """
    workspace = session.workspace
    namespace = workspace.pinned().namespace
    held = by_id(workspace, dict.fromkeys(ids))
    covered = {tag: request for _, request in workspace.book.requests() for tag in request.tombstones}
    hit: dict[str, StoredRecord] = {}
    earlier: dict[str, DeletionRequest] = {}
    known: list[str] = []
    missing: dict[str, str] = {}  # ID → tag
    for record_id in dict.fromkeys(ids):
        before = covered.get(workspace.tag(record_id).hex())
        if record_id in held:
            hit[record_id] = held[record_id]
        elif before is not None:
            earlier[before.request_id] = before
        else:
            missing[record_id] = workspace.tag(record_id).hex()
            continue
        known.append(record_id)
    tags = {subject: subject_tag(workspace.keys, namespace, subject).hex() for subject in subjects}
    unknown: list[str] = []
    for subject, tag in tags.items():
        owned = by_subject(workspace, subject)
        done = [request for _, request in workspace.book.requests() if tag in request.subjects]
        if not owned and not done:
            unknown.append(subject)
        hit |= owned
        earlier |= {request.request_id: request for request in done}
        known += owned
    if (missing or unknown) and not ignore_missing:
        raise UnknownRecordError(
            f"IDs and subjects that {workspace.path} holds or held",
            f"never held: {named([*missing, *unknown])}",
            "correct them, or leave them out with --ignore-missing; nothing was deleted",
        )
    if not (hit or earlier or missing):
        raise UnknownRecordError(
            "an ID, or a subject that is or was held",
            f"subjects never held: {named(unknown)}",
            "correct them; that somebody is not present can be certified of IDs only",
        )
    return Target(
        records=tuple(hit.values()),
        earlier=tuple(earlier.values()),
        ids=tuple(dict.fromkeys(known)),
        missing=(*missing, *unknown),
        subjects=tuple(tag for subject, tag in tags.items() if subject not in unknown),
        absent=tuple(missing.values()),
    )


def as_queued(target: Target) -> Target:
    """The target less the IDs never held: that they are not present is said of now, and not of weeks later."""
    if not target.records and not target.earlier:
        raise UnknownRecordError(
            "an ID that is or was held", f"never held: {named(target.missing)}", "certify that without --queue"
        )
    return replace(target, absent=())


def as_repeated(workspace: Workspace, request_id: str | None, target: Target, who: Mapping[str, str]) -> Target:
    """The target less what earlier requests said already; a request ID may be repeated for the same only."""
    said = {tag for request in target.earlier for tag in request.targets.absent}
    target = replace(target, absent=tuple(tag for tag in target.absent if tag not in said))
    if request_id is None:
        return target
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", request_id):
        raise InputError(
            "a request ID of up to 128 letters, digits, '-', '_', '.'", quoted(request_id), "choose another"
        )
    found = workspace.book.request(request_id)
    if found is None:
        return target
    same = found[1]
    said_by = {kind: reference(workspace.keys.reference, kind, text) for kind, text in who.items() if text}
    if said_by and said_by != same.references:
        raise InputError(
            f"a new request, or request {request_id} as it was made",
            f"request {request_id} exists with another requester, authoriser, reason or basis",
            "choose another --request-id, or repeat it without these",
        )
    if not target.records and set(target.absent) == set(same.targets.absent) and not (same.tags or same.retired):
        return replace(target, earlier=(*target.earlier, same), absent=())
    before = {request.request_id for fact, request in workspace.book.requests() if fact.seq < found[0].seq}
    others = [one for one in target.earlier if one != same and one.request_id not in before]
    its_own = [one for one in target.ids if workspace.tag(one).hex() in same.tombstones]
    whole = set(target.subjects) <= set(same.subjects) if target.subjects else len(its_own) == len(same.tags)
    if target.records or target.absent or same not in target.earlier or others or not whole:
        raise InputError(
            f"a new request, or the records of request {request_id} again",
            f"request {request_id} exists and covers other records",
            "choose another --request-id",
        )
    return target


def accept(
    session: Session,
    records: Sequence[StoredRecord],
    subjects: Sequence[str],
    absent: Sequence[str],
    request_id: str | None,
    references: Mapping[str, str] = NOBODY,
    *,
    queued: bool = False,
) -> DeletionRequest:
    """Make the tombstones durable and roll the served manifest back, in one transaction.

    From here on the records are forgotten: nothing served saw them.

    Args:
        session: an open session that drives the workspace.
        records: what is to be forgotten; none for a statement that something is not present.
        subjects: tags (hex) of the subjects named.
        absent: tags (hex) of IDs asked for and never held.
        request_id: the caller's name for the request.
        references: requester, authoriser, reason, basis → keyed reference.
        queued: it is to be worked off later.
    """
    keys, namespace = session.workspace.keys, session.workspace.pinned().namespace
    named = {stored.record.subject for stored in records if stored.record.subject is not None}
    owners = {subject_tag(keys, namespace, subject).hex() for subject in named}
    targets = Targets(
        tags=tuple(sorted(stored.tag.hex() for stored in records)),
        tombstones=tombstones(records, keys, namespace),
        absent=tuple(sorted(absent)),
        subjects=tuple(sorted({*subjects, *owners})),
        fingerprints=tuple(sorted({stored.fingerprint.hex() for stored in records})),
    )
    request_id = request_id or f"req-{uuid.uuid4().hex[:16]}"
    going = places_of(session.workspace, records)
    return apply(session.workspace, targets, going, request_id, references, session.options.backup_days, queued=queued)


def apply(
    workspace: Workspace,
    targets: Targets,
    going: Going,
    request_id: str,
    references: Mapping[str, str],
    backup_days: int | None,
    *,
    queued: bool = False,
) -> DeletionRequest:
    """The one transaction of :func:`accept`, for targets that are known (a restored backup's too).

    ``going`` says where the records live that are held of them: place → tags.
    """
    current = workspace.book.manifest()
    impact = foresee(workspace, going)
    request = DeletionRequest(
        request_id=request_id,
        kind=DELETED if targets.tombstones else NOT_PRESENT,
        object=workspace.store.put(targets.files()),
        targets=targets,
        references=dict(references),
        backup_days=backup_days,
        before={} if current is None else current.to_json(),
        impact=impact.to_json(),
        queued=queued,
    )
    facts: list[tuple[str, Mapping[str, Any]]] = [(kinds.REQUEST, request.to_json())]
    if targets.tombstones:
        facts.append((kinds.MANIFEST, rolled_back(workspace, impact.purged).to_json()))
    workspace.ledger.append(facts)
    with suppress(StorageError):  # whoever drives or accepts tries again at the end, and is told
        announce(workspace)
    return request
