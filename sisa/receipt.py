"""Ingestion receipts: what lets a person bind a later certificate to their own record.

A receipt opens the commitment to one record: it holds the record, the salt, and the proof that the
commitment is in a slice that the log knew. Its holder can show that a certificate is about exactly
this record, and that the operator did not make the tag up. It is the holder's: the workspace keeps
only its digest.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from shards import kinds
from shards.digest import canonical_json
from shards.errors import IntegrityError, UnknownRecordError
from shards.keyfiles import read_signing_key
from shards.note import read_head
from shards.sparse import prove
from sisa.certificate import log_section
from sisa.document import RECEIPT_TYPE, STATEMENT_TYPE, envelope_digest
from sisa.session import Session
from sisa.signing import sign
from sisa.wording import quoted


def receipt(session: Session, record_id: str) -> dict[str, Any]:
    """A signed receipt (a DSSE envelope as JSON) for one record that is held; the log notes its digest.

    Args:
        session: an open session; it becomes the workspace's driver.
        record_id: the record.

    Raises:
        UnknownRecordError: if the record is not held.
        IntegrityError: if its slice was committed to without it.
    """
    workspace = session.workspace
    with session.driving():
        stored = next((one for one in workspace.survivors() if one.record.id == record_id), None)
        if stored is None:
            raise UnknownRecordError("an ID that is held now", quoted(record_id), "see `sisa audit --id`")
        place = workspace.layout().place(stored.record)
        logged = [
            (fact, made)
            for fact, made in workspace.book.commitments()
            if (made.shard, made.slice) == (place.shard, place.slice)
        ]
        leaves = workspace.slice_leaves(logged[-1][1].leaves) if logged else {}
        if leaves.get(stored.tag) != stored.commitment:
            raise IntegrityError("a commitment to this record in its slice", "none", "run `sisa audit --all`")
        size = read_head(workspace.ledger.head()).size
        facts = [*workspace.book.signing_keys(), logged[-1][0]]
        predicate = {
            "version": 1,
            "issued": datetime.now(UTC).isoformat(timespec="seconds"),
            "clock": "the operator's",
            "log": log_section(workspace, facts, size),
            "namespace": workspace.pinned().namespace,
            "record": stored.record.to_json(),
            "tag": stored.tag.hex(),
            "salt": stored.salt.hex(),
            "commitment": stored.commitment.hex(),
            "proof": prove(leaves, stored.tag).to_json(),
        }
        statement = {
            "_type": STATEMENT_TYPE,
            "subject": [{"name": "commitment", "digest": {"sha256": stored.commitment.hex()}}],
            "predicateType": RECEIPT_TYPE,
            "predicate": predicate,
        }
        envelope = sign(canonical_json(statement), read_signing_key(workspace.path / "keys"))
        workspace.ledger.append([(kinds.RECEIPT, {"digest": envelope_digest(envelope)})])
    return envelope
