"""Hand data to other tools: the surviving records, ready for a fresh run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shards import kinds
from shards.derived import Export
from shards.digest import keyed
from shards.errors import InputError, OperationError
from shards.files import replace_file
from shards.manifest import Head
from shards.workspace import Workspace
from sisa.people import refer
from sisa.session import Session


def outside(workspace: Workspace, path: Path, *, directory: bool = False) -> Path:
    """Where to write what leaves the workspace, resolved: in it lies nothing that no fact names.

    Args:
        workspace: what is left.
        path: a file, which may be there, or a ``directory``, which may not.

    Raises:
        InputError: if it lies in the workspace, where no deletion would reach it, or cannot be there.
    """
    path = path.resolve()
    what = "a directory" if directory else "a file"
    if (path.exists() if directory else path.is_dir()) or not path.parent.is_dir():
        wanted = f"{what} {'that is not there yet, ' if directory else ''}in a directory that exists"
        raise InputError(wanted, str(path), "choose another place")
    if path.is_relative_to(workspace.path.resolve()):
        raise InputError(
            f"{what} outside the workspace",
            str(path),
            "what is handed out is not the workspace's; choose another place",
        )
    return path


def export_records(session: Session, file: Path, recipient: str = "") -> int:
    """Write the surviving records as JSONL, with their generation and version; returns how many.

    What ``sisa init --keys-from`` and ``sisa train --data FILE`` make of it has, bit for bit, the
    adapters of this workspace. The fact comes first: a file that nobody was told of would outlive
    every deletion unnoticed.

    Raises:
        InputError: if the file is to lie in the workspace.
    """
    file = outside(session.workspace, file)
    with session.driving():
        records = [stored.record for stored in session.workspace.survivors()]
        lines = [json.dumps(record.to_json(), ensure_ascii=False, sort_keys=False) + "\n" for record in records]
        data = "".join(lines).encode()
        register_derived(session, "records", data, (), recipient)
        replace_file(file, data, private=True)
    return len(records)


def hand_out(session: Session, file: Path, kind: str, data: bytes, parents: Sequence[Head]) -> None:
    """Write what was made from served heads, and record that it left the workspace.

    Raises:
        OperationError: if other heads are served by now: a deletion may have come in between.
        LockedError: if another process writes for long.
    """
    file = outside(session.workspace, file)
    with session.accepting():
        refuse_swapped(session.workspace, parents)
        register_derived(session, kind, data, parents)
        replace_file(file, data, private=True)


def refuse_swapped(workspace: Workspace, parents: Sequence[Head]) -> None:
    """Refuse to hand out what was made of ``parents`` once other heads are served.

    Raises:
        OperationError: if they are: a deletion may have come in between.
    """
    if list(parents) != [head for head, _ in workspace.book.served()]:
        raise OperationError("the same heads served throughout", "a swap meanwhile", "run the same command again")


def register_derived(session: Session, kind: str, data: bytes, parents: Sequence[Head], recipient: str = "") -> None:
    """Record that something made from served heads left the workspace.

    An audit of a record then names it, and so does the certificate of a later deletion.

    Args:
        session: an open session.
        kind: ``predictions``, or ``records`` (a copy of all that survived then).
        data: its bytes; only a keyed digest of them is kept.
        parents: the heads it was made from.
        recipient: who gets it and must be told of a later deletion (GDPR Art. 19); kept as a reference.
    """
    mark = keyed(session.workspace.keys.fingerprint, "derived", data).hex()
    body: dict[str, Any] = {"kind": kind, "keyed_digest": mark, "parents": [head.checkpoint for head in parents]}
    body |= refer(session.workspace, {"recipient": recipient})
    session.workspace.ledger.append([(kinds.DERIVED, body)])


def register_export(workspace: Workspace, made: Export, path: Path, recipient: str = "") -> None:
    """Record that a model was made of served heads, before its directory is there.

    Args:
        workspace: whose caller may append.
        made: the export.
        path: where it will be; kept as a reference unless it is the workspace's own.
        recipient: who gets it and must be told of a later deletion; kept as a reference.
    """
    said = {"recipient": recipient} | ({} if made.kept else {"location": str(path)})
    body: dict[str, Any] = {
        "kind": "export",
        "form": made.form,
        "keyed_digest": made.keyed_digest,
        "parents": sorted(made.parents),
        "kept": made.kept,
    }
    workspace.ledger.append([(kinds.EXPORT, body | refer(workspace, said))])
