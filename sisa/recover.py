"""After an older backup was restored: apply again what the anchor remembers, before anything is served.

The facts between the backup and its loss are gone, and so the log goes another way from here: the
fact ``restore/1`` names the lost head. Whoever holds an earlier certificate or head learns from it
that history was lost; nothing hides that (``docs/backups.md``).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import Any

from orchestration.executor import Executor, SliceTrainer
from shards import kinds
from shards.anchor import Anchor
from shards.digest import bytes_digest, files_digest
from shards.errors import InputError, IntegrityError
from shards.fact import Fact
from shards.forgetting import Going
from shards.layout import Assignment
from shards.note import read_head
from shards.publication import announce
from shards.targets import Targets
from shards.vault import Part
from shards.workspace import Workspace
from sisa.acceptance import apply
from sisa.anchoring import (
    UNSIGNED,
    anchored_head,
    anchored_requests,
    anchored_retirements,
    foreign,
    open_anchor,
    rollback,
)
from sisa.delete import finish_requests, unfinished_requests
from sisa.retention import retire_requests
from sisa.session import Report, Session, silent


@dataclass(frozen=True, slots=True)
class Recovered:
    """What a recovery did.

    Attributes:
        lost: facts that the anchored head covered and the restored ledger has not.
        reapplied: IDs of requests accepted again.
        retired: IDs of requests whose tombstones had been destroyed, and are again.
        irrecoverable: IDs of requests made after the backup whose tombstones were destroyed: nobody can tell
            any more which records they were about, and the backup brought these back.
    """

    lost: int
    reapplied: tuple[str, ...]
    retired: tuple[str, ...]
    irrecoverable: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The ``recover`` JSON document."""
        return {
            "lost_facts": self.lost,
            "reapplied": list(self.reapplied),
            "retired": list(self.retired),
            "irrecoverable": list(self.irrecoverable),
        }


def recover(
    session: Session,
    *,
    executor: Executor | None = None,
    trainer: SliceTrainer | None = None,
    report: Report = silent,
) -> Recovered:
    """Bring a restored workspace up to every deletion that was ever anchored.

    Raises:
        InputError: if there is no anchor, it holds nothing, or it belongs to another log.
        IntegrityError: if the anchor is damaged.
        OperationError: if retraining failed; everything is forgotten again by then.
    """
    workspace, location = session.workspace, session.options.anchor
    if location is None:
        raise InputError("an anchor to recover from", "none in sisa.yaml", "set anchor, or see docs/backups.md")
    with workspace.driving():
        announce(workspace)  # refuses a storage that was not restored with the workspace
        anchor = open_anchor(workspace, location)
        anchored = anchored_head(anchor)
        if anchored is None:
            raise InputError(
                f"this log's anchor in {location}",
                "nothing of this log",
                "mount or reach the place this workspace was anchored in, and set anchor to it",
            )
        note, head = anchored
        problem = rollback(workspace, location)
        if foreign(workspace, head):
            raise InputError("this log's anchor", problem, "set anchor to the place this workspace was anchored in")
        if problem == UNSIGNED:
            raise IntegrityError(
                "an anchored head that goes on to this ledger's", problem, "somebody else wrote it: see docs/backups.md"
            )
        size, retirements = read_head(workspace.ledger.head()).size, anchored_retirements(anchor)
        known = {request.object for _, request in workspace.book.requests()}
        reapplied = _reapply(workspace, anchor, note, retirements.keys() | known) if problem else _begun(workspace)
        session.anchor()
        if unfinished_requests(workspace):
            finish_requests(session, executor, trainer, report).raise_errors()
        # What was destroyed by retention rule came back with the backup, and goes again.
        again = [request for _, request in workspace.book.requests() if request.object in retirements]
        retired = tuple(request.request_id for request in again if not request.retired)
        retire_requests(workspace, retired, "destroyed before the backup was restored")
        announce(workspace)
        session.anchor()
    return Recovered(
        lost=max(0, head.size - size) if problem else 0,
        reapplied=reapplied,
        retired=retired,
        irrecoverable=tuple(name for made, name in retirements.items() if problem and made not in known),
    )


def _going(held: Mapping[bytes, Part], targets: Targets, forgotten: Set[bytes]) -> Going:
    """Where the backup holds the records of a request: it may hold any of their versions."""
    places: dict[Assignment, set[bytes]] = defaultdict(set)
    for tag in map(bytes.fromhex, targets.tombstones):
        if tag in held and tag not in forgotten:
            places[Assignment(held[tag].shard, held[tag].slice)].add(tag)
    return {place: frozenset(tags) for place, tags in places.items()}


def _begun(workspace: Workspace) -> tuple[str, ...]:
    """IDs of the requests that a recovery which was cut off accepted again."""
    open_ones = {request.request_id for request in unfinished_requests(workspace)}
    named = [str(name) for fact in workspace.ledger.facts(kinds.RESTORE) for name in fact.body["requests"]]
    return tuple(name for name in named if name in open_ones)


def _reapply(workspace: Workspace, anchor: Anchor, note: str, known: Set[str]) -> tuple[str, ...]:
    """Accept every anchored request again that is not known here; returns their IDs.

    A request is the same if its targets are: their salts are random, and a name may have been given twice.
    """
    anchored = {fact.body["object"]: (fact, files) for fact, files in anchored_requests(anchor)}
    lost = [found for name, found in anchored.items() if name not in known]
    for fact, files in lost:
        if files_digest({name: bytes_digest(data) for name, data in files.items()}) != fact.body["object"]:
            raise IntegrityError("the targets that an anchored request names", "others", "see docs/backups.md")
    taken = {request.request_id for _, request in workspace.book.requests()}
    again: dict[str, tuple[Fact, dict[str, bytes]]] = {}
    for fact, files in lost:
        name = str(fact.body["request_id"])
        if name in taken | again.keys():
            name = f"{name[:119]}-{fact.body['object'][:8]}"
        again[name] = fact, files
    size = read_head(workspace.ledger.head()).size
    workspace.ledger.append([(kinds.RESTORE, {"lost_head": note, "from": size, "requests": list(again)})])
    held = workspace.vault.tags(workspace.book.parts())
    for name, (fact, files) in again.items():
        targets = Targets.from_files(files)
        going = _going(held, targets, workspace.book.tombstones())
        apply(workspace, targets, going, name, fact.body["references"], fact.body["backup_days"])
    return tuple(again)
