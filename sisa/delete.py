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

import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestration.executor import Executor, SliceTrainer
from orchestration.reconcile import Reconciled, purge, reconcile, restart_foreign
from shards import kinds
from shards.deletion import DeletionRequest
from shards.errors import InputError, LawViolationError, LockedError, OperationError, StalePlanError
from shards.forgetting import foresee, places_of
from shards.law import check_law
from shards.lineage import standing_on
from shards.trunk import TRUNK
from shards.vault import StoredRecord
from shards.workspace import Workspace
from sisa.acceptance import Target, accept, as_queued, as_repeated, look_up
from sisa.certificate import certificate_path, is_intact, issue
from sisa.derived import stale_after
from sisa.hold import refuse_held
from sisa.people import NOBODY, refer
from sisa.session import Report, Session, silent


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
        lanes: that each pass of a retraining computes, whether or not other shards are in it.
        stale: what was made of heads that saw the records, or holds them: exports, predictions, copies.
        trunk: a record was the trunk's: every shard is trained anew.
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
    lanes: int
    stale: tuple[dict[str, Any], ...]
    trunk: bool

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
            "lanes": self.lanes,
            "stale": list(self.stale),
            "trunk": self.trunk,
        }


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
    if dry_run:
        target = look_up(session, ids, subjects, ignore_missing)
        impact = foresee(session.workspace, places_of(session.workspace, target.records)).to_json()
        labels_gone = _labels_gone(session.workspace, target.records)
        covering: list[DeletionRequest] = []
        earlier = _completed(session.workspace, target.earlier)
    else:
        with session.accepting() if queue else _at_once(session):
            session.refuse_other_recipe()
            session.workspace.whereabouts.follow(session.workspace.book.parts())
            target = look_up(session, ids, subjects, ignore_missing)
            target = as_queued(target) if queue else target
            target = as_repeated(session.workspace, request_id, target, who)
            earlier = _completed(session.workspace, target.earlier)
            covering = [*target.earlier, *_accepted(session, target, request_id, who, queue=queue)]
            labels_gone = () if queue else _labels_gone(session.workspace, target.records)
            if not queue:
                _finish_these(session, covering, executor, trainer, report)
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
        lanes=session.recipe.lanes,
        stale=stale_after(session.workspace, covering or target.earlier, target.records if dry_run else ()),
        trunk=any(hit["shard"] == TRUNK for hit in impact["shards"]),
    )


def _finish_these(
    session: Session,
    covering: Sequence[DeletionRequest],
    executor: Executor | None,
    trainer: SliceTrainer | None,
    report: Report,
) -> None:
    asked = [request for request in unfinished_requests(session.workspace) if request in covering]
    if not asked:
        return
    done = finish_requests(session, executor, trainer, report, only=at_hand(session.workspace, asked))
    left = [request.request_id for request in unfinished_requests(session.workspace) if request in covering]
    if left:
        done.raise_errors()
        raise OperationError(
            "the deletion to be completed", f"request {', '.join(left)} still open", "run the same command again"
        )


@contextmanager
def _at_once(session: Session) -> Iterator[None]:
    """Drive; whoever cannot is told how to forget at once all the same."""
    with ExitStack() as stack:
        try:
            stack.enter_context(session.driving())
        except LockedError as error:
            remedy = f"{error.remedy}; or add --queue: the records are forgotten at once, the training follows"
            raise LockedError(error.expected, error.found, remedy) from error
        yield


def _accepted(
    session: Session, target: Target, request_id: str | None, who: Mapping[str, str], *, queue: bool
) -> list[DeletionRequest]:
    """The request by which what is asked for is accepted; none if earlier ones cover it."""
    refuse_held(session.workspace, target.records, request_id, who)
    if not (target.records or target.absent):
        return []
    references = refer(session.workspace, who)
    return [accept(session, target.records, target.subjects, target.absent, request_id, references, queued=queue)]


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

    Of some requests ``only``, if they are named; shards that only others hit wait too, and requests that
    were accepted meanwhile. What these stopped in the midst of training is planned anew, with them. The
    caller drives the workspace. A request is certified once all shards it hit are whole again; what
    another shard's failure holds back is in the result's ``errors``. Shards are restarted after the
    forgetting: what a request made fall is purged in its name, and nothing else is.

    Raises:
        OperationError: if the trainer cannot be had; forgetting is done by then.
        LawViolationError: if the law does not hold; nothing is certified then.
    """
    workspace = session.workspace
    asked = workspace.book.asked()
    done = _finish(session, executor, trainer, report, restart_shards, only)
    while workspace.book.asked() != asked:
        asked, left = workspace.book.asked(), unfinished_requests(workspace)
        if only is not None:
            left = [one for one in left if one.request_id in only]
        stale = any(isinstance(error, StalePlanError) for error in done.errors)
        if not (left or stale):
            break
        only = None if only is None else at_hand(workspace, left)
        done += _finish(session, executor, trainer, report, restart_shards, only)
    return done


def _finish(
    session: Session,
    executor: Executor | None,
    trainer: SliceTrainer | None,
    report: Report,
    restart_shards: bool,
    only: Collection[str] | None,
) -> Reconciled:
    workspace = session.workspace
    unfinished = unfinished_requests(workspace)
    pending = [request for request in unfinished if only is None or request.request_id in only]
    waiting = [request for request in unfinished if request not in pending]
    shards = _turn(workspace, _hit(waiting) - _hit(pending))
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


def _turn(workspace: Workspace, waiting: Set[int]) -> frozenset[int]:
    """The shards whose turn it is: all but those ``waiting``; and the trunk, without which none can be trained."""
    shards = frozenset(range(workspace.layout().shards)) - waiting
    return shards | {TRUNK} if shards or TRUNK not in waiting else shards


def _relearnt(workspace: Workspace, pending: Sequence[DeletionRequest]) -> list[DeletionRequest]:
    """The requests whose shards are all trained as far as their records go."""
    if not pending:
        return []
    live = workspace.book.live()
    partial = {chain.shard for chain in workspace.plan().every if any(step.key not in live for step in chain.steps)}
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
            "requests": [request.request_id for request in unfinished if erased & set(request.tombstones)],
            "method": "rewrite and unlink",
        }
        workspace.ledger.append([(kinds.ERASURE, erasure), *workspace.recommit(workspace.plan())])
    steps, live = workspace.plan().steps(), workspace.book.live()
    fallen = standing_on({key for key, made in live.items() if key not in steps and made.link.shard in shards}, live)
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
