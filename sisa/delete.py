"""Issue a provable deletion by record ID.

    request ─▶ accept: tombstones + manifest rolled back to the clean prefix, one transaction
            ─▶ forget: erase from the vault, purge every checkpoint that saw the records
            ─▶ relearn: reconcile to the smaller plan, swap the manifest again
            ─▶ certify: ask the law, sign what the stored artefacts say

Forgetting is immediate and does not wait for relearning: should retraining fail, the checkpoints
that saw the record are gone all the same. Each stage is read from the ledger, so a killed deletion
is continued by the next ``delete`` or ``train``.
"""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Collection, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from orchestration.executor import Executor, SliceTrainer
from orchestration.reconcile import Reconciled, purge, reconcile, restart_foreign, served
from shards import kinds
from shards.deletion import DELETED, NOT_PRESENT, DeletionRequest, subject_tag, tombstones
from shards.errors import InputError, LawViolationError, OperationError, UnknownRecordError
from shards.law import check_law
from shards.plan import Impact, Plan, difference, make_plan
from shards.references import reference
from shards.targets import Targets
from shards.vault import StoredRecord
from shards.workspace import Workspace
from sisa.certificate import certificate_path, is_intact, issue
from sisa.hold import refuse_held
from sisa.people import NOBODY, refer
from sisa.session import Report, Session, silent
from sisa.wording import named, quoted


@dataclass(frozen=True, slots=True)
class Deleted:
    """What a deletion did, or (``dry_run``) would do.

    Attributes:
        request_id: of the request that covers the records; None for a dry run.
        requests: every request that covers one of them (records may have been deleted before).
        ids: the IDs asked for that are or were held.
        missing: IDs never held (only with ``ignore_missing``).
        impact: JSON of the impact.
        labels_gone: labels that no surviving record has any more; they stay in the recipe.
        certificate: where the signed certificate lies; None for a dry run.
        seconds: from call to certificate.
        earlier: requests made before that cover some of what was asked for → when each was completed; None
            if it was not yet.
        registered_files: of ``sisa.yaml``, if this call deleted or went on deleting: they may still hold it.
    """

    request_id: str | None
    requests: tuple[str, ...]
    ids: tuple[str, ...]
    missing: tuple[str, ...]
    impact: dict[str, Any]
    labels_gone: tuple[str, ...]
    certificate: Path | None
    seconds: float
    earlier: Mapping[str, str | None]
    registered_files: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The ``delete`` JSON document."""
        return {
            "request_id": self.request_id,
            "requests": list(self.requests),
            "ids": list(self.ids),
            "missing": list(self.missing),
            "impact": self.impact,
            "labels_gone": list(self.labels_gone),
            "certificate": None if self.certificate is None else str(self.certificate),
            "seconds": round(self.seconds, 3),
            "earlier": dict(self.earlier),
            "registered_files": list(self.registered_files),
        }


@dataclass(frozen=True, slots=True)
class _Target:
    """What a call asks for, looked up."""

    records: tuple[StoredRecord, ...]
    earlier: tuple[DeletionRequest, ...]
    ids: tuple[str, ...]
    missing: tuple[str, ...]
    subjects: tuple[str, ...]
    absent: tuple[str, ...]


def delete(
    session: Session,
    ids: Sequence[str] = (),
    subjects: Sequence[str] = (),
    *,
    request_id: str | None = None,
    dry_run: bool = False,
    ignore_missing: bool = False,
    queue: bool = False,
    who: Mapping[str, str] = NOBODY,
    executor: Executor | None = None,
    trainer: SliceTrainer | None = None,
    report: Report = silent,
) -> Deleted:
    """Delete records by ID or subject: forget, relearn, certify.

    A record deleted before is no error; the request that did it is named.

    Args:
        session: an open session.
        ids: record IDs.
        subjects: all records of these subjects.
        request_id: the caller's name for the request; made up if None.
        dry_run: only compute the impact.
        ignore_missing: leave out IDs and subjects that were never held; the certificate says that the
            IDs are not present.
        queue: only accept: nothing served saw the records from here on; ``sisa work`` does the rest.
        who: texts for requester, authoriser, reason and basis; the ledger keeps keyed references.
        executor, trainer: in place of those that the configuration names.
        report: told of every step that ends.

    Raises:
        UnknownRecordError: naming the IDs or subjects that were never held; nothing was deleted.
        HeldError: if a legal hold covers one of the records; the refusal is recorded.
        LockedError: if another process drives the workspace.
        OperationError: if retraining failed; forgetting is done, and the next run continues. What
            holds back another request only is left to its own run, or to ``train``.
    """
    started = time.monotonic()
    if not ids and not subjects:
        raise InputError("IDs or subjects to delete", "none", "name them with --id, --ids-file or --subject")
    covering: list[DeletionRequest] = []
    if dry_run:
        target = _look_up(session, ids, subjects, ignore_missing)
        labels_gone = _labels_gone(session.workspace, target.records)
        impact = planned_impact(session.workspace, target.records).to_json()
        earlier = _completed(session.workspace, target.earlier)
    else:
        with session.driving():
            session.refuse_other_recipe()
            target = _look_up(session, ids, subjects, ignore_missing)
            target = _as_queued(target) if queue else target
            target = _as_repeated(session.workspace, request_id, target, who)
            labels_gone = _labels_gone(session.workspace, target.records)
            covering += target.earlier
            earlier = _completed(session.workspace, target.earlier)
            refuse_held(session.workspace, target.records, request_id, who)
            if target.records or target.absent:
                references = refer(session.workspace, who)
                covering.append(
                    accept(
                        session, target.records, target.subjects, target.absent, request_id, references, queued=queue
                    )
                )
            asked = [request for request in unfinished_requests(session.workspace) if request in covering]
            if asked and not queue:
                only = at_hand(session.workspace, asked)
                done = finish_requests(session, executor, trainer, report, only=only)
                if any(request in covering for request in unfinished_requests(session.workspace)):
                    done.raise_errors()
        impact = covering[-1].impact
    request = covering[-1].request_id if covering else None
    deleting = any(one.tags for one in covering if earlier.get(one.request_id) is None)
    return Deleted(
        request_id=request,
        requests=tuple(request.request_id for request in covering),
        ids=target.ids,
        missing=target.missing,
        impact=impact,
        labels_gone=labels_gone,
        certificate=certificate_path(session.workspace, request) if request is not None and not queue else None,
        seconds=time.monotonic() - started,
        earlier=earlier,
        registered_files=session.options.data if deleting else (),
    )


def _completed(workspace: Workspace, requests: Sequence[DeletionRequest]) -> dict[str, str | None]:
    """When each request was completed; None for one that nobody completed, or whose certificate was lost."""
    unfinished = unfinished_requests(workspace) if requests else []
    done = workspace.book.completed()
    return {one.request_id: None if one in unfinished else done[one.request_id] for one in requests}


def _labels_gone(workspace: Workspace, records: Sequence[StoredRecord]) -> tuple[str, ...]:
    """Labels whose last records these are; the names stay in the recipe, which is not retrained."""
    going = {stored.tag for stored in records}
    left = {stored.record.fields().get("label") for stored in workspace.survivors() if stored.tag not in going}
    lost = {stored.record.fields().get("label") for stored in records} - left
    return tuple(sorted(label for label in lost if label is not None))


def _look_up(session: Session, ids: Sequence[str], subjects: Sequence[str], ignore_missing: bool) -> _Target:
    workspace = session.workspace
    namespace = workspace.pinned().namespace
    survivors = workspace.survivors()
    by_id = {stored.record.id: stored for stored in survivors}
    covered = {tag: request for _, request in workspace.book.requests() for tag in request.tombstones}
    hit: dict[str, StoredRecord] = {}
    earlier: dict[str, DeletionRequest] = {}
    known: list[str] = []
    missing: dict[str, str] = {}  # ID → tag
    for record_id in dict.fromkeys(ids):
        before = covered.get(workspace.tag(record_id).hex())
        if record_id in by_id:
            hit[record_id] = by_id[record_id]
        elif before is not None:
            earlier[before.request_id] = before
        else:
            missing[record_id] = workspace.tag(record_id).hex()
            continue
        known.append(record_id)
    tags = {subject: subject_tag(workspace.keys, namespace, subject).hex() for subject in subjects}
    unknown: list[str] = []
    for subject, tag in tags.items():
        owned = {stored.record.id: stored for stored in survivors if stored.record.subject == subject}
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
    return _Target(
        records=tuple(hit.values()),
        earlier=tuple(earlier.values()),
        ids=tuple(dict.fromkeys(known)),
        missing=(*missing, *unknown),
        subjects=tuple(tag for subject, tag in tags.items() if subject not in unknown),
        absent=tuple(missing.values()),
    )


def _as_queued(target: _Target) -> _Target:
    """The target less the IDs never held: that they are not present is said of now, and not of weeks later."""
    if not target.records and not target.earlier:
        raise UnknownRecordError(
            "an ID that is or was held", f"never held: {named(target.missing)}", "certify that without --queue"
        )
    return replace(target, absent=())


def _as_repeated(workspace: Workspace, request_id: str | None, target: _Target, who: Mapping[str, str]) -> _Target:
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


def planned_impact(workspace: Workspace, records: Sequence[StoredRecord]) -> Impact:
    """What deleting ``records`` does to the plan and the store. This is a read-only operation."""
    plans = _plans(workspace, {stored.tag for stored in records})
    return difference(*plans, workspace.book.live().keys())


def _plans(workspace: Workspace, gone: Set[bytes]) -> tuple[Plan, Plan]:
    """The plan of the records that survive now, and the plan without those of tags ``gone``."""
    layout, recipe = workspace.layout(), workspace.pinned().digest
    survivors = workspace.survivors()
    rest = [stored for stored in survivors if stored.tag not in gone]
    return make_plan(survivors, layout, recipe), make_plan(rest, layout, recipe)


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
    return apply(session.workspace, targets, request_id, references, session.options.backup_days, queued=queued)


def apply(
    workspace: Workspace,
    targets: Targets,
    request_id: str,
    references: Mapping[str, str],
    backup_days: int | None,
    *,
    queued: bool = False,
) -> DeletionRequest:
    """The one transaction of :func:`accept`, for targets that are known (a restored backup's too)."""
    forgotten = {bytes.fromhex(tag) for tag in targets.tombstones}
    before, plan = _plans(workspace, forgotten)
    current = workspace.book.manifest()
    request = DeletionRequest(
        request_id=request_id,
        kind=DELETED if targets.tombstones else NOT_PRESENT,
        object=workspace.store.put(targets.files()),
        targets=targets,
        references=dict(references),
        backup_days=backup_days,
        before={} if current is None else current.to_json(),
        impact=difference(before, plan, workspace.book.live().keys()).to_json(),
        queued=queued,
    )
    facts: list[tuple[str, Mapping[str, Any]]] = [(kinds.REQUEST, request.to_json())]
    if targets.tombstones:
        facts.append((kinds.MANIFEST, served(workspace, plan).to_json()))
    workspace.ledger.append(facts)
    return request


def unfinished_requests(workspace: Workspace) -> list[DeletionRequest]:
    """Requests accepted and not certified, or whose certificate was lost or altered since."""
    done = workspace.book.certificates()
    return [
        request
        for _, request in workspace.book.requests()
        if not request.retired
        and not (request.request_id in done and is_intact(workspace, request.request_id, done[request.request_id]))
    ]


def finish_requests(
    session: Session,
    executor: Executor | None,
    trainer: SliceTrainer | None,
    report: Report,
    *,
    restart_shards: bool = False,
    only: Collection[str] | None = None,
) -> Reconciled:
    """Forget, relearn and certify for every accepted request, and train what else is missing.

    Of some requests ``only``, if they are named; shards that only others hit wait too. The caller drives the
    workspace. A request is certified once all shards it hit are whole again; what another shard's failure
    holds back is in the result's ``errors``. Shards are restarted after the forgetting: what a request
    made fall is purged in its name, and nothing else is.

    Raises:
        OperationError: if the trainer cannot be had; forgetting is done by then.
        LawViolationError: if the law does not hold; nothing is certified then.
    """
    workspace = session.workspace
    unfinished = unfinished_requests(workspace)
    pending = [request for request in unfinished if only is None or request.request_id in only]
    waiting = [request for request in unfinished if request not in pending]
    shards = frozenset(range(workspace.layout().shards)) - (_hit(waiting) - _hit(pending))
    if pending:
        _forget(workspace, unfinished, pending, shards)
        session.anchor()  # not before: forgetting waits for nothing outside
    try:
        trainer = trainer or session.trainer()
    except InputError as error:
        if not pending:
            raise
        remedy = f"{error.remedy}; then run `sisa train`. The records are forgotten already"
        raise OperationError(error.expected, error.found, remedy) from error
    if restart_shards:
        restart_foreign(workspace, trainer.environment())
    reconciled = reconcile(workspace, executor or session.executor(), trainer, report, shards)
    workspace.sweep()  # a worker that died in this run may have left something
    complete = _relearnt(workspace, pending)
    if complete:
        completing = frozenset(request.request_id for request in complete)
        law = check_law(workspace, completing=completing)
        failed = [check for check in law if check.outcome == "failed"]
        if failed:
            raise LawViolationError(
                f"the law to hold before signing: {failed[0].name}",
                failed[0].detail,
                "nothing was certified; run `sisa audit --all` and report this",
            )
        refused: list[LawViolationError] = []
        for request in complete:
            try:
                issue(workspace, request, law)
            except LawViolationError as error:  # that one's alone
                refused.append(error)
        if refused:
            raise refused[0]
    return reconciled


def _relearnt(workspace: Workspace, pending: Sequence[DeletionRequest]) -> list[DeletionRequest]:
    """The requests whose shards are all trained as far as their records go."""
    if not pending:
        return []
    live = workspace.book.live()
    partial = {chain.shard for chain in workspace.plan().chains if any(step.key not in live for step in chain.steps)}
    return [request for request in pending if not partial & request.shards]


def at_hand(workspace: Workspace, asked: Sequence[DeletionRequest]) -> frozenset[str]:
    """What is finished with these: all that was begun, and queued requests that hit no other shard."""
    shards = _hit(asked)
    return frozenset(
        request.request_id
        for request in unfinished_requests(workspace)
        if request in asked or not request.queued or request.shards <= shards
    )


def _hit(requests: Iterable[DeletionRequest]) -> frozenset[int]:
    return frozenset(shard for request in requests for shard in request.shards)


def _forget(
    workspace: Workspace,
    unfinished: Sequence[DeletionRequest],
    pending: Sequence[DeletionRequest],
    shards: Set[int],
) -> None:
    """Erase tombstoned records from the vault, then purge every checkpoint that saw one.

    Of ``pending`` requests, in ``shards``. What another ``unfinished`` request would purge
    there falls now, in its name too; its records are erased when its turn comes.

    A checkpoint that saw one cannot be in the plan of the surviving records, whose keys cover every
    record trained; so this needs no evidence of what was seen. (The law asks that evidence again.)
    What falls for another reason (an ingest put records before it) is no request's doing.
    """
    waiting = [request for request in unfinished if request not in pending]
    kept = {bytes.fromhex(tag) for request in waiting for tag in request.tombstones}
    kept -= {bytes.fromhex(tag) for request in pending for tag in request.tombstones}
    forgotten = workspace.book.tombstones() - kept
    held = workspace.vault.tags(workspace.book.parts())
    hit = {part.file: part for tag, part in held.items() if tag in forgotten}
    if hit:
        erased = {tag.hex() for tag in held if tag in forgotten}
        added = [new for part in hit.values() for new in workspace.vault.rewrite_without(part, forgotten)]
        erasure = {
            "added": [part.to_json() for part in added],
            "removed": sorted(hit),
            "digests": sorted(part.digest for part in hit.values()),
            "requests": [request.request_id for request in pending if erased & set(request.tombstones)],
            "method": "rewrite and unlink",
        }
        workspace.ledger.append([(kinds.ERASURE, erasure), *workspace.recommit(workspace.plan())])
    steps = workspace.plan().steps()
    fallen = frozenset(
        key for key, made in workspace.book.live().items() if key not in steps and made.link.shard in shards
    )
    visible = workspace.visible_sets()
    saw: dict[str, frozenset[str]] = {}
    for request in unfinished:
        tags = frozenset(map(bytes.fromhex, request.tombstones))
        saw[request.request_id] = frozenset(key for key in fallen if tags & visible.get(key, tags)) | (
            request.purged & fallen
        )
    exposed = frozenset[str]().union(*saw.values())
    purge(workspace, exposed, tuple(request_id for request_id, keys in saw.items() if keys))
    purge(workspace, fallen - exposed, ())
    workspace.sweep()
