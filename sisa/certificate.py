"""Make the deletion certificate, its fields documented one by one in ``docs/certificate.md``.

Every field is derived from stored artefacts when it is signed; nothing is taken from the memory of
the workflow that did the work. The statement's subjects are the served heads. It says what was done
to which committed inputs, never how a model behaves, and it lists what it does not claim.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from shards import kinds
from shards.checks import Check
from shards.deletion import NOT_PRESENT, DeletionRequest
from shards.derived import made_of
from shards.digest import bytes_digest, canonical_json, files_digest, parse_json
from shards.errors import IntegrityError, LawViolationError
from shards.fact import Fact
from shards.files import replace_file, storage
from shards.keyfiles import read_signing_key
from shards.lineage import Checkpoint
from shards.note import LogProof, read_head
from shards.plan import Chain, SliceStep
from shards.sparse import prove, prove_all
from shards.targets import SUPPRESSION_FILE
from shards.trunk import TRUNK
from shards.vault import vault_digest
from shards.workspace import Workspace
from sisa import __version__
from sisa.document import CERTIFICATE_TYPE, STATEMENT_TYPE, envelope_digest, read_unsealed, write_certificate
from sisa.erasure import erasure_status
from sisa.signing import read_envelope, sign
from sisa.verify import examine

NOT_CLAIMED = (
    "copies kept elsewhere, backups beyond the declared time, or adapters and predictions handed out before",
    "training runs that were never recorded in this ledger",
    "the same person under another ID, a paraphrase, or a mention inside somebody else's record",
    "what the base model's pretraining data contained",
    "that a tag belongs to an ID, unless the tag key or an ingestion receipt is at hand",
    "that label names and other keys of the recipe were chosen without the deleted records",
    "that a serving process loads the heads named here",
    "what can be inferred by comparing answers from before and after the deletion",
    "that deletions were chosen independently of what earlier models revealed",
    "physical remanence on storage media: files are rewritten and unlinked (NIST SP 800-88: Clear)",
    "the time, beyond the operator's own clock",
    "one history for all readers: no independent witness signed the tree heads",
    "later versions of a deleted record's ID, taken in since",
    "that what was trained is what the slices committed to, unless somebody else replayed it (V3, V4)",
    "equal bits in another environment class than the one named here",
)

# Said in addition where records and checkpoints lay in a storage that this program only asks.
NOT_CLAIMED_OF_STORAGE = (
    "old versions, replicas, snapshots and unfinished uploads that the storage service keeps of what was removed",
)


def certificate_path(workspace: Workspace, request_id: str) -> Path:
    """Where the certificate of a request lies."""
    return workspace.path / "certificates" / f"{request_id}.json"


def issue(workspace: Workspace, request: DeletionRequest, law: Sequence[Check]) -> Path:
    """Sign the certificate of a completed request, log it, and write it; returns its path.

    Args:
        workspace: whose deletion it is.
        request: the completed request.
        law: the law as it was just asked.

    Raises:
        LawViolationError: if a stranger would refuse it.
    """
    key = read_signing_key(workspace.path / "keys")
    size = read_head(workspace.ledger.head()).size
    envelope = sign(canonical_json(statement(workspace, request, law, size)), key)
    failed = [check for check in examine(read_unsealed(envelope)) if check.outcome == "failed"]
    if failed:
        raise LawViolationError(
            f"a certificate that verifies: {failed[0].name}",
            failed[0].detail,
            "nothing was certified; run `sisa audit --all` and report this",
        )
    body = {"request_id": request.request_id, "digest": envelope_digest(envelope)}
    (fact,) = workspace.ledger.append([(kinds.CERTIFICATE, body)])
    path = certificate_path(workspace, request.request_id)
    replace_file(path, _file(workspace, envelope, size, fact))
    return path


def is_intact(workspace: Workspace, request_id: str, fact: Fact) -> bool:
    """Does the request's certificate lie there with exactly the bytes that its fact gives it?"""
    path = certificate_path(workspace, request_id)
    with storage(f"read {path}"):
        data = path.read_bytes() if path.is_file() else b""
    try:
        envelope = parse_json(data)["envelope"]
        size = read_head(parse_json(read_envelope(envelope).payload)["predicate"]["log"]["head"]).size
        return envelope_digest(envelope) == fact.body["digest"] and data == _file(workspace, envelope, size, fact)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False


def _file(workspace: Workspace, envelope: Mapping[str, Any], size: int, fact: Fact) -> bytes:
    """The certificate's file: the envelope, and the proof that its fact is in the log."""
    note = workspace.ledger.head_after(fact.seq)
    sealed = read_head(note).size
    proof = workspace.ledger.prove([fact.seq], sealed)[fact.seq]
    return write_certificate(
        envelope,
        {
            "created": fact.created,
            "proof": LogProof(fact.seq - 1, tuple(proof), note).text(),
            "consistency": _hex(workspace.ledger.consistency(size, sealed)),
        },
    )


def statement(workspace: Workspace, request: DeletionRequest, law: Sequence[Check], size: int) -> dict[str, Any]:
    """The in-toto statement of a completed request, from stored artefacts alone.

    Args:
        workspace: whose deletion it is.
        request: the completed request.
        law: the answers to the law.
        size: facts in the log that the statement rests on.
    """
    manifest = workspace.book.manifest()
    heads = manifest.heads if manifest is not None else ()
    subjects = [{"name": f"shard-{head.shard}", "digest": {"sha256": head.tensors}} for head in heads]
    if manifest is not None:
        subjects.insert(0, {"name": "manifest", "digest": {"sha256": manifest.digest}})
    return {
        "_type": STATEMENT_TYPE,
        "subject": subjects,
        "predicateType": CERTIFICATE_TYPE,
        "predicate": _predicate(workspace, request, law, size),
    }


def _predicate(workspace: Workspace, request: DeletionRequest, law: Sequence[Check], size: int) -> dict[str, Any]:
    pinned = workspace.pinned()
    found = workspace.book.request(request.request_id)
    if found is None:
        raise IntegrityError(f"request {request.request_id} in the ledger", "none", "run `sisa audit --all`")
    accepted = found[0]
    stored = workspace.book.live()
    plan = workspace.plan()
    chains = {chain.shard: _trained(chain, stored) for chain in plan.chains}
    if any(chains.values()) and plan.trunk.steps:  # after the shards that start from it
        chains[TRUNK] = _trained(plan.trunk, stored)
    steps = [step for chain in chains.values() for step in chain]
    live = {step.key: stored[step.key] for step in steps}  # not what other requests will purge
    before = {made.checkpoint.key for made in workspace.book.checkpoints() if made.seq < accepted.seq}
    erasures, purges = (_about(workspace, kind, request, accepted.seq) for kind in (kinds.ERASURE, kinds.PURGE))
    survivors = workspace.survivors()
    purged = sorted(key for fact in purges for key in fact.body["checkpoints"])
    tags = frozenset(map(bytes.fromhex, request.tags))
    handed_out = [fact.body for fact in made_of(workspace, tags, accepted.seq)]
    prior, proving = _prior(workspace, request, accepted)
    manifests = workspace.ledger.facts(kinds.MANIFEST)[-1:]
    facts = [*workspace.book.signing_keys(), *workspace.ledger.facts(kinds.RECIPE), accepted, *proving]
    facts += [*_about(workspace, kinds.RESTORE, request), *erasures, *purges, *manifests]
    environments = [dict(facts) for facts in sorted({tuple(sorted(live[key].environment.items())) for key in live})]
    return {
        "version": 1,
        "statement": request.kind,
        "issued": datetime.now(UTC).isoformat(timespec="seconds"),
        "clock": "the operator's",
        "issuer": {
            "program": f"sisa {__version__}",
            "code": code_digest(),
            "public_key": workspace.book.signing_keys()[-1].body["public_key"],
        },
        "supersedes": next(
            (fact.body["digest"] for fact in reversed(workspace.book.issued(request.request_id)) if fact.seq <= size),
            None,
        ),
        "log": log_section(workspace, facts, size),
        "request": {
            "id": request.request_id,
            "accepted": accepted.created,
            "targets": request.targets.public(),
            "suppression": bytes_digest(request.targets.files()[SUPPRESSION_FILE]),
            "references": request.references,
        },
        "recipe": pinned.digest,
        "keys": pinned.keys,
        "namespace": pinned.namespace,
        "before": request.before,
        "after": manifests[0].body if manifests else {},
        "impact": request.impact,
        "kept": sorted(key for key in live if key in before),
        "purged": purged,
        "retrained": sorted(key for key in live if key not in before),
        "lineages": [_lineage(shard, chain, live, environments) for shard, chain in chains.items()],
        "environments": environments,
        "prior": prior,
        "absence": _absence(steps, request),
        "records": {"surviving": len(survivors), "digest": vault_digest(survivors)},
        "erasure": []
        if request.kind == NOT_PRESENT
        else erasure_status(pinned.recipe, accepted, erasures, purges, handed_out),
        "handed_out": handed_out,
        "replay": {
            "recipe": pinned.recipe,
            "seeds": "HKDF of the seed key for step-seed, shard, chain and slice; see docs/verify-it-yourself.md",
            "how": "sisa verify CERTIFICATE -w WORKSPACE --replay full, or the fresh run of README.md",
            "expected": "the tensor digests in lineages",
        },
        "law": [check.to_json() for check in law],
        "not_claimed": [*NOT_CLAIMED, *(NOT_CLAIMED_OF_STORAGE if workspace.storage else ())],
    }


def code_digest() -> str:
    """Digest (hex) of this program's source files."""
    root = Path(__file__).parent.parent
    sources = [file for name in ("shards", "orchestration", "sisa") for file in (root / name).rglob("*.py")]
    return files_digest({file.relative_to(root).as_posix(): bytes_digest(file.read_bytes()) for file in sources})


def log_section(workspace: Workspace, facts: Iterable[Fact], size: int) -> dict[str, Any]:
    """The log as a document rests on it: its head at ``size``, and facts with their inclusion proofs."""
    chosen = {fact.seq: fact for fact in facts}
    proofs = workspace.ledger.prove(chosen, size)
    return {
        "origin": workspace.book.genesis().body["log"],
        "head": workspace.ledger.head(size),
        "facts": [chosen[seq].to_json() | {"proof": _hex(proofs[seq])} for seq in sorted(chosen)],
    }


def _hex(hashes: Iterable[bytes]) -> list[str]:
    return [value.hex() for value in hashes]


def _about(workspace: Workspace, kind: str, request: DeletionRequest, after: int = 0) -> list[Fact]:
    facts = [fact for fact in workspace.ledger.facts(kind) if fact.seq > after]  # its name may have been used
    return [fact for fact in facts if request.request_id in fact.body["requests"]]


def _trained(chain: Chain, live: Mapping[str, Checkpoint]) -> list[SliceStep]:
    """The chain up to where it is stored: beyond it a step failed, and the shard is served up to here."""
    steps: list[SliceStep] = []
    for step in chain.steps:
        if step.key not in live:
            break
        steps.append(step)
    return steps


def _lineage(
    shard: int, steps: Sequence[SliceStep], live: Mapping[str, Checkpoint], environments: list[dict[str, str]]
) -> dict[str, Any]:
    """One shard's own lineage, or the trunk's; ``environment`` is an index into the certificate's list."""
    links = [
        {
            "slice": step.link.slice,
            "chain": step.link.chain,
            "records": step.link.records,
            "key": step.key,
            "root": live[step.key].root,
            "tensors": live[step.key].tensors,
            "environment": environments.index(live[step.key].environment),
        }
        for step in steps
    ]
    return {"shard": shard, "links": links}


def _prior(workspace: Workspace, request: DeletionRequest, accepted: Fact) -> tuple[list[dict[str, Any]], list[Fact]]:
    """For each record that was held: the last committed slice that had it, proven; and those facts."""
    wanted = {bytes.fromhex(tag) for tag in request.tags}
    proofs: list[dict[str, Any]] = []
    facts: list[Fact] = []
    for fact, made in workspace.book.slices_at(accepted.seq) if wanted else ():
        try:
            leaves = workspace.slice_leaves(made.leaves) if made.records else {}
        except IntegrityError:  # destroyed with another request; had it been needed, the statement is refused
            continue
        for tag in sorted(wanted & leaves.keys()):
            proof = prove(leaves, tag).to_json()
            proofs.append({"tag": tag.hex(), "fact": fact.seq, "commitment": leaves[tag].hex(), "proof": proof})
            facts.append(fact)
    return sorted(proofs, key=lambda entry: str(entry["tag"])), facts


def _absence(steps: Sequence[SliceStep], request: DeletionRequest) -> dict[str, list[dict[str, str]]]:
    """For each tag: one absence proof per live slice, in the order of the lineages' links."""
    tags = [bytes.fromhex(tag) for tag in (*request.tombstones, *request.targets.absent)]
    proofs = [prove_all(step.leaves, tags) for step in steps]
    return {tag.hex(): [proof[tag].to_json() for proof in proofs] for tag in tags}
