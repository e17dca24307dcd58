"""Hand data to other tools: the surviving records, ready for a fresh run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shards import kinds
from shards.digest import keyed
from shards.files import replace_file
from shards.manifest import Head
from sisa.people import refer
from sisa.session import Session


def export_records(session: Session, file: Path, recipient: str = "") -> int:
    """Write the surviving records as JSONL, with their generation and version; returns how many.

    What ``sisa init --keys-from`` and ``sisa train --data FILE`` make of it has, bit for bit, the
    adapters of this workspace.
    """
    with session.driving():
        records = [stored.record for stored in session.workspace.survivors()]
        lines = [json.dumps(record.to_json(), ensure_ascii=False, sort_keys=False) + "\n" for record in records]
        data = "".join(lines).encode()
        replace_file(file, data, private=True)
        register_derived(session, "records", data, (), recipient)
    return len(records)


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
