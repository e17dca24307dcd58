"""The operator as a liar: certificates signed with the real key, logged and proven like honest ones."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

from shards import kinds
from shards.checks import Check
from shards.digest import canonical_json, parse_json
from shards.keyfiles import PUBLIC_FILE, read_signing_key
from shards.note import LogProof, read_head
from shards.targets import targets_digest
from shards.workspace import Workspace
from sisa.certificate import certificate_path
from sisa.document import LoggedFact, envelope_digest, read_certificate, write_certificate
from sisa.erasure import erasure_status
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


def logged_anew(workspace: Workspace, statement: dict[str, Any], seqs: Iterable[int]) -> dict[str, Any]:
    """The statement resting on these facts, proven in the log as it is now."""
    stored_facts = {fact.seq: fact for fact in workspace.ledger.since(0)}
    size = len(stored_facts)
    proofs = workspace.ledger.prove(stored_facts, size)
    facts = [stored_facts[seq].to_json() | {"proof": [node.hex() for node in proofs[seq]]} for seq in sorted({*seqs})]
    statement["predicate"]["log"] |= {"head": workspace.ledger.head(), "facts": facts}
    return statement


def rest_on(
    workspace: Workspace,
    statement: dict[str, Any],
    entries: Sequence[tuple[str, dict[str, Any]]],
    instead_of: Collection[str] = (),
) -> None:
    """Log facts, and let the statement rest on them too, and no more on those of some kinds."""
    made = [fact.seq for fact in workspace.ledger.append(entries)]
    kept = [fact["seq"] for fact in statement["predicate"]["log"]["facts"] if fact["kind"] not in instead_of]
    logged_anew(workspace, statement, [*kept, *made])


def follow(statement: dict[str, Any]) -> None:
    """Let the statement say of acceptance, purges and erasures what the facts that it rests on say."""
    said = statement["predicate"]
    facts = [LoggedFact.from_json(fact).fact for fact in said["log"]["facts"]]
    (accepted,), erasures, purges = (
        [fact for fact in facts if fact.kind == kind] for kind in (kinds.REQUEST, kinds.ERASURE, kinds.PURGE)
    )
    deleted = accepted.body["kind"] == "deleted"
    said["statement"] = accepted.body["kind"]
    said["request"]["accepted"] = accepted.created
    said["purged"] = sorted(key for fact in purges for key in fact.body["checkpoints"])
    recipe, handed_out = said["replay"]["recipe"], said["handed_out"]
    said["erasure"] = erasure_status(recipe, accepted, erasures, purges, handed_out) if deleted else []


def accept_anew(workspace: Workspace, statement: dict[str, Any], **change: Any) -> None:
    """Log the request, with what the statement names and a change, and serve the same after it."""
    said = statement["predicate"]
    accepted = next(fact["body"] for fact in said["log"]["facts"] if fact["kind"] == kinds.REQUEST)
    named = {"object": targets_digest(said["request"]["targets"], said["request"]["suppression"])}
    entries = [(kinds.REQUEST, accepted | named | change), (kinds.MANIFEST, said["after"])]
    rest_on(workspace, statement, entries, instead_of=(kinds.REQUEST, kinds.MANIFEST))
    follow(statement)


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
