"""Hand data to other tools: the surviving records, ready for a fresh run."""

from __future__ import annotations

import json
from pathlib import Path

from shards import book
from shards.digest import bytes_digest
from shards.files import replace_file
from sisa.session import Session


def export_records(session: Session, file: Path) -> int:
    """Write the surviving records as JSONL, with their generation and version; returns how many.

    What ``sisa init --keys-from`` and ``sisa train --data FILE`` make of it has, bit for bit, the
    adapters of this workspace.
    """
    records = [stored.record for stored in session.workspace.survivors()]
    lines = [json.dumps(record.to_json(), ensure_ascii=False, sort_keys=False) + "\n" for record in records]
    replace_file(file, "".join(lines).encode())
    return len(records)


def register_derived(session: Session, kind: str, data: bytes) -> None:
    """Record that something made from the served heads left the workspace.

    An audit of a record then names it, and so does the certificate of a later deletion.
    """
    manifest = session.workspace.book.manifest()
    parents = [head.checkpoint for head in manifest.heads] if manifest is not None else []
    body = {"kind": kind, "digest": bytes_digest(data), "parents": parents}
    session.workspace.ledger.append([(book.DERIVED, body)])
