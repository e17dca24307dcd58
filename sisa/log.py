"""The log as readers elsewhere want it: its signed head, and how it goes on from an earlier one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from shards import kinds
from shards.errors import InputError
from shards.note import read_head
from shards.workspace import Workspace
from sisa.document import read_certificate, read_limited


def newest_head(workspace: Workspace) -> str:
    """The newest signed tree head (C2SP tlog-checkpoint). This is a read-only operation."""
    return workspace.ledger.head()


def sealed_size(certificate: Path) -> int:
    """How many facts the tree head beside a certificate covers.

    Raises:
        InputError: if the file is no certificate.
    """
    try:
        document = read_certificate(read_limited(certificate))
        return read_head(document.sealed.proof.head if document.sealed else "").size
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"a deletion certificate in {certificate}", str(error), "check the path") from error


def extension(workspace: Workspace, old: int, new: int | None = None) -> dict[str, Any]:
    """How the log goes on from ``old`` facts to ``new`` (all, if None): proof and every later fact.

    Returns:
        ``{from, to, consistency, facts}``; the facts from the release that ``old`` had, each with its
        inclusion proof.

    Raises:
        InputError: unless 0 < ``old`` <= ``new`` <= the log's size.
    """
    size = read_head(workspace.ledger.head()).size if new is None else new
    if not 0 < old <= size <= read_head(workspace.ledger.head()).size:
        raise InputError("0 < from <= to <= the log's size", f"from {old} to {size}", "see `sisa log head`")
    released = [fact.seq for fact in workspace.ledger.facts(kinds.MANIFEST) if fact.seq <= old]
    later = [fact for fact in workspace.ledger.since(max(released, default=old)) if fact.seq <= size]
    proofs = workspace.ledger.prove([fact.seq for fact in later], size)
    return {
        "from": old,
        "to": size,
        "consistency": [value.hex() for value in workspace.ledger.consistency(old, size)],
        "facts": [fact.to_json() | {"proof": [value.hex() for value in proofs[fact.seq]]} for fact in later],
    }
