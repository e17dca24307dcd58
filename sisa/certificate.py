"""The deletion certificate: an in-toto Statement v1 in a DSSE envelope.

Every field is derived from stored artefacts when it is signed; nothing is taken from the memory of
the workflow that did the work. The statement's subjects are the served heads. It says what was done
to which committed inputs, never how a model behaves, and it lists what it does not claim.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from shards import book
from shards.checks import Check
from shards.deletion import DeletionRequest
from shards.digest import bytes_digest, canonical_json
from shards.files import replace_file
from shards.lineage import Checkpoint
from shards.plan import Chain
from shards.vault import vault_digest
from shards.workspace import Workspace
from sisa import __version__
from sisa.signing import PUBLIC_FILE, sign

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "urn:sisa:deletion-certificate:v1"

NOT_CLAIMED = (
    "copies kept elsewhere, backups, or adapters and predictions handed out before",
    "training runs that were never recorded in this ledger",
    "the same person under another ID, a paraphrase, or a mention inside somebody else's record",
    "what the base model's pretraining data contained",
    "that a tag belongs to an ID, unless the tag key or an ingestion receipt is at hand",
    "that label names and other keys of the recipe were chosen without the deleted records",
    "that a serving process loads the heads named here",
    "what can be inferred by comparing answers from before and after the deletion",
    "physical remanence on storage media: files are rewritten and unlinked (NIST SP 800-88: Clear)",
    "the time, beyond the operator's own clock",
    "equal bits in another environment class than the one named here",
)


def certificate_path(workspace: Workspace, request_id: str) -> Path:
    """Where the certificate of a request lies."""
    return workspace.path / "certificates" / f"{request_id}.json"


def certificate_digest(workspace: Workspace, request_id: str) -> str | None:
    """Plain SHA-256 (hex) of a request's certificate as it lies there, or None."""
    path = certificate_path(workspace, request_id)
    return bytes_digest(path.read_bytes()) if path.is_file() else None


def issue(workspace: Workspace, request: DeletionRequest, law: Sequence[Check]) -> Path:
    """Sign the certificate of a completed request and record it; returns its path.

    Args:
        workspace: whose deletion it is.
        request: the completed request.
        law: the law as it was just asked.
    """
    envelope = sign(canonical_json(statement(workspace, request, law)), workspace.path / "keys")
    data = json.dumps(envelope, indent=1).encode() + b"\n"
    path = certificate_path(workspace, request.request_id)
    replace_file(path, data)
    workspace.ledger.append([(book.CERTIFICATE, {"request_id": request.request_id, "digest": bytes_digest(data)})])
    return path


def statement(workspace: Workspace, request: DeletionRequest, law: Sequence[Check]) -> dict[str, Any]:
    """The in-toto statement of a completed request, from stored artefacts alone."""
    manifest = workspace.book.manifest()
    heads = manifest.heads if manifest is not None else ()
    subjects = [{"name": f"shard-{head.shard}", "digest": {"sha256": head.tensors}} for head in heads]
    if manifest is not None:
        subjects.insert(0, {"name": "manifest", "digest": {"sha256": manifest.digest}})
    return {
        "_type": STATEMENT_TYPE,
        "subject": subjects,
        "predicateType": PREDICATE_TYPE,
        "predicate": _predicate(workspace, request, law),
    }


def _predicate(workspace: Workspace, request: DeletionRequest, law: Sequence[Check]) -> dict[str, Any]:
    pinned = workspace.pinned()
    plan = workspace.plan()
    live = workspace.book.live()
    manifest = workspace.book.manifest()
    accepted = next(fact for fact, other in workspace.book.requests() if other.request_id == request.request_id)
    history = workspace.book.checkpoints()
    before = {stored.checkpoint.key for stored in history if stored.seq < accepted.seq}
    purges = [fact for fact in workspace.ledger.facts(book.PURGE) if request.request_id in fact.body["requests"]]
    erasures = [fact for fact in workspace.ledger.facts(book.ERASURE) if request.request_id in fact.body["requests"]]
    purged = sorted(key for fact in purges for key in fact.body["checkpoints"])
    environments: list[dict[str, str]] = []
    return {
        "version": 1,
        "issued": datetime.now(UTC).isoformat(timespec="seconds"),
        "clock": "the operator's",
        "issuer": {"program": f"sisa {__version__}", "public_key": (workspace.path / "keys" / PUBLIC_FILE).read_text()},
        "request": {
            "id": request.request_id,
            "accepted": accepted.created,
            "tags": list(request.tags),
            "tombstones": list(request.tombstones),
        },
        "recipe": pinned.digest,
        "keys": pinned.keys,
        "namespace": pinned.namespace,
        "before": request.before,
        "after": manifest.to_json() if manifest is not None else {},
        "impact": request.impact,
        "kept": sorted(key for key in live if key in before),
        "purged": purged,
        "retrained": sorted(key for key in live if key not in before),
        "lineages": [_lineage(chain, live, environments) for chain in plan.chains],
        "environments": environments,
        "records": {
            "surviving": sum(part.records for part in workspace.book.parts()),
            "digest": vault_digest(workspace.survivors()),
        },
        "erasure": [_action("vault parts", fact.body["digests"], fact.body["method"]) for fact in erasures]
        + [_action("checkpoints", fact.body["objects"], fact.body["method"]) for fact in purges],
        "handed_out": [
            fact.body
            for fact in workspace.book.derived()
            if set(fact.body["parents"]) & set(purged) or (fact.body["kind"] == "records" and fact.seq < accepted.seq)
        ],
        "law": [check.to_json() for check in law],
        "not_claimed": list(NOT_CLAIMED),
    }


def _action(what: str, digests: list[str], method: str) -> dict[str, Any]:
    return {"class": what, "digests": digests, "method": method, "result": "done"}


def _lineage(chain: Chain, live: dict[str, Checkpoint], environments: list[dict[str, str]]) -> dict[str, Any]:
    """One shard's lineage; ``environment`` is an index into the certificate's list."""
    links = []
    for step in chain.steps:
        if step.key not in live:  # its training failed; this shard is served up to here
            break
        made = live[step.key]
        if made.environment not in environments:
            environments.append(made.environment)
        links.append(
            step.link.to_json()
            | {
                "tensors": made.tensors,
                "slice_digest": step.slice_digest,
                "members": made.members,
                "environment": environments.index(made.environment),
            }
        )
    return {"shard": chain.shard, "links": links}
