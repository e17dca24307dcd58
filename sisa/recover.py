"""After an older backup was restored: apply again what the anchor remembers, before anything is served.

The facts between the backup and its loss are gone, and so the log goes another way from here: the
fact ``restore/1`` names the lost head. Whoever holds an earlier certificate or head learns from it
that history was lost; nothing hides that (``docs/backups.md``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from orchestration.executor import Executor, SliceTrainer
from shards import kinds
from shards.digest import bytes_digest, files_digest
from shards.errors import InputError, IntegrityError
from shards.note import read_head
from shards.targets import Targets
from sisa.anchoring import anchored_requests, foreign, open_anchor, rollback
from sisa.delete import apply, finish_requests
from sisa.retention import retire_requests
from sisa.session import Report, Session, silent


@dataclass(frozen=True, slots=True)
class Recovered:
    """What a recovery did.

    Attributes:
        lost: facts that the anchored head covered and the restored ledger has not.
        reapplied: IDs of requests accepted again.
        retired: IDs of requests whose tombstones had been destroyed, and are again.
    """

    lost: int
    reapplied: tuple[str, ...]
    retired: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The ``recover`` JSON document."""
        return {"lost_facts": self.lost, "reapplied": list(self.reapplied), "retired": list(self.retired)}


def recover(
    session: Session,
    *,
    executor: Executor | None = None,
    trainer: SliceTrainer | None = None,
    report: Report = silent,
) -> Recovered:
    """Bring a restored workspace up to every deletion that was ever anchored.

    Raises:
        InputError: if there is no anchor, or it belongs to another log.
        IntegrityError: if the anchor is damaged.
        OperationError: if retraining failed; everything is forgotten again by then.
    """
    workspace, location = session.workspace, session.options.anchor
    if location is None:
        raise InputError("an anchor to recover from", "none in sisa.yaml", "set anchor, or see docs/backups.md")
    with workspace.driving():
        anchor = open_anchor(workspace, location)
        note, problem = anchor.head(), rollback(workspace, location)
        if note is None or not problem:
            return Recovered(0, (), ())
        if foreign(workspace, read_head(note)):
            raise InputError("this log's anchor", problem, "set anchor to the place this workspace was anchored in")
        local = {request.request_id for _, request in workspace.book.requests()}
        anchored = anchored_requests(anchor)
        known = {fact.body["request_id"] for fact, _ in anchored}
        lost = [(fact, files) for fact, files in anchored if fact.body["request_id"] not in local]
        for fact, files in lost:
            if files_digest({name: bytes_digest(data) for name, data in files.items()}) != fact.body["object"]:
                raise IntegrityError("the targets that an anchored request names", "others", "see docs/backups.md")
        size = read_head(workspace.ledger.head()).size
        reapplied = tuple(str(fact.body["request_id"]) for fact, _ in lost)
        restore = {"lost_head": note, "from": size, "requests": list(reapplied)}
        workspace.ledger.append([(kinds.RESTORE, restore)])
        for fact, files in lost:
            said = fact.body
            apply(workspace, Targets.from_files(files), said["request_id"], said["references"], said["backup_days"])
        # What was destroyed by retention rule came back with the backup, and goes again.
        gone = sorted((local & workspace.book.certificates().keys()) - known - workspace.book.retired())
        retire_requests(workspace, gone, "destroyed before the backup was restored")
        session.anchor()
        finish_requests(session, executor, trainer, report).raise_errors()
        session.anchor()
    return Recovered(max(0, read_head(note).size - size), reapplied, tuple(gone))
