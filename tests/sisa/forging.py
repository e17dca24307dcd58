"""The operator as a liar: certificates signed with the real key, logged and proven like honest ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from shards import kinds
from shards.checks import Check
from shards.digest import canonical_json, parse_json
from shards.keyfiles import PUBLIC_FILE, read_signing_key
from shards.note import LogProof, read_head
from shards.workspace import Workspace
from sisa.certificate import certificate_path
from sisa.document import envelope_digest, read_certificate, write_certificate
from sisa.signing import sign
from sisa.verify import Evidence, verify
from sisa.verify_workspace import Replayer, verify_against

Forgery = Callable[[dict[str, Any]], object]


def signed(workspace: Workspace, request_id: str) -> dict[str, Any]:
    """The statement of a certificate that lies in a workspace, to be altered."""
    document = read_certificate(certificate_path(workspace, request_id).read_bytes())
    statement: dict[str, Any] = parse_json(document.envelope.payload)
    return statement


def seal(workspace: Workspace, envelope: dict[str, Any], request_id: str, size: int) -> bytes:
    """Log an envelope as the certificate of a request, and prove that; the bytes of the file."""
    body = {"request_id": request_id, "digest": envelope_digest(envelope)}
    (fact,) = workspace.ledger.append([(kinds.CERTIFICATE, body)])
    note = workspace.ledger.head()
    sealed = read_head(note).size
    proof = tuple(workspace.ledger.prove([fact.seq], sealed)[fact.seq])
    consistency = [node.hex() for node in workspace.ledger.consistency(size, sealed)]
    seal = {"created": fact.created, "proof": LogProof(fact.seq - 1, proof, note).text(), "consistency": consistency}
    return write_certificate(envelope, seal)


def head_size(statement: dict[str, Any]) -> int:
    """How many facts a statement rests on."""
    return read_head(statement["predicate"]["log"]["head"]).size


def forge(workspace: Workspace, statement: dict[str, Any], request_id: str, size: int) -> Path:
    """Sign a statement, log it, prove it, and put it where the request's certificate lies."""
    envelope = sign(canonical_json(statement), read_signing_key(workspace.path / "keys"))
    path = certificate_path(workspace, request_id)
    path.write_bytes(seal(workspace, envelope, request_id, size))
    return path


def public_key(workspace: Workspace) -> Path:
    """The operator's public key, as somebody else got it."""
    return workspace.path / "keys" / PUBLIC_FILE


def from_the_file(path: Path, workspace: Workspace) -> list[Check]:
    """Every check that needs the certificate and the operator's key only."""
    return verify(path, Evidence(public_keys=(public_key(workspace),)))[1]


def with_the_workspace(path: Path, workspace: Workspace, replayer: Replayer | None = None) -> list[Check]:
    """Those, and every check that needs the workspace; a full replay too, with somebody to do it."""
    document, checks = verify(path, Evidence(public_keys=(public_key(workspace),)))
    if document is None:
        return checks
    return checks + verify_against(document, workspace.path, replay="full" if replayer else None, replayer=replayer)


def failed(checks: list[Check]) -> list[str]:
    """Names of the failed checks."""
    return [check.name for check in checks if check.outcome == "failed"]
