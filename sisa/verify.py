"""Check a deletion certificate, offline, without torch or ray (a replay needs them).

What can be checked grows with what is at hand:

    the file              V0  shape and version; V1 lineages hash to their keys
    + --public-key        V1  origin
    + -w WORKSPACE        V1  history and heads on disk; V2 absence from every live training set
    + --replay affected   V3  the hit shards, trained anew, give the same bits
    + --replay full       V4  so do all shards

Every check is reported as passed, failed or not checked; they are never merged into one word.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import FormatError

from shards.book import CHANGING
from shards.checks import Check, judged, unchecked
from shards.deletion import DeletionRequest
from shards.digest import bytes_digest, parse_json
from shards.errors import InputError, IntegrityError, SisaError
from shards.law import check_law
from shards.ledger import Fact
from shards.lineage import Link, check_chain
from shards.manifest import ModelManifest
from shards.workspace import Workspace
from sisa.certificate import PREDICATE_TYPE, STATEMENT_TYPE, statement
from sisa.signing import PAYLOAD_TYPE, PUBLIC_FILE, read_public_key, verify_signature

FIELDS = "the certificate's fields fit together"
READABLE = "certificate and workspace can be read"
MAX_BYTES = 256 * 2**20

ReplayScope = Literal["affected", "full"]
Replayer = Callable[[Workspace, list[int], str], list[Check]]


def verify(
    certificate: Path,
    *,
    public_key: Path | None = None,
    workspace: Path | None = None,
    replay: ReplayScope | None = None,
    replayer: Replayer | None = None,
) -> list[Check]:
    """Every check of a certificate that the given evidence allows.

    Args:
        certificate: the file.
        public_key: the operator's key, got from the operator by another way than this file.
        workspace: to compare with what is stored.
        replay: train the hit shards, or all, anew.
        replayer: does it; required with ``replay``.

    Raises:
        InputError: if a file cannot be read, or ``replay`` has no workspace.
    """
    data = _read(certificate)
    if replay is not None and (workspace is None or replayer is None):
        raise InputError("a workspace to replay", "none", "name it with -w")
    try:
        envelope, predicate, shape = _parse(data)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, FormatError) as error:
        return [judged("V0", "the file is a deletion certificate", [f"{type(error).__name__}: {error}"], "")]
    if workspace is not None:
        Workspace.open(workspace).close()  # a wrong path is said as such
    signature, origin = _signature(envelope, predicate, public_key, workspace)
    checks = [shape, signature, origin]
    if signature.outcome == "failed":
        return [*checks, unchecked("V1", "everything the certificate says", "its signature is not valid")]
    document = _guarded(lambda: _document(predicate))
    checks += document
    if any(check.name in (FIELDS, READABLE) for check in document):
        return checks
    checks.append(unchecked("V2", "the tags belong to the requested IDs", "needs the tag key or an ingestion receipt"))
    if workspace is None:
        return [*checks, unchecked("V2", "the workspace is as certified", "no workspace given (-w)")]
    opened = Workspace.open(workspace)
    try:
        stored = _guarded(lambda: _against_workspace(opened, data, predicate))
        checks += stored
        if replay is None or replayer is None:
            checks.append(unchecked("V3", "the training, run anew, gives the same bits", "no --replay asked for"))
        elif not any(check.name in (FIELDS, READABLE) for check in stored):
            checks += _replayed(opened, predicate, replay, replayer)
    finally:
        opened.close()
    return checks


def _guarded(ask: Callable[[], list[Check]]) -> list[Check]:
    """The answers, or one failed check if certificate or workspace are too broken to be asked."""
    try:
        return ask()
    except SisaError as error:
        return [judged("V1", READABLE, [f"expected {error.expected}, found {error.found}"], "")]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return [judged("V0", FIELDS, [f"{type(error).__name__}: {error}"], "")]


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as handle:
            data = handle.read(MAX_BYTES + 1)
    except OSError as error:
        raise InputError(f"a readable file {path}", str(error.strerror), "check the path") from error
    if len(data) > MAX_BYTES:
        raise InputError(f"a certificate of at most {MAX_BYTES} bytes", "a larger file", "check the path")
    return data


def _parse(data: bytes) -> tuple[Envelope, dict[str, Any], Check]:
    """The envelope, the predicate in it, and the check of its shape. The signature is not looked at."""
    envelope = Envelope.from_dict(parse_json(data))  # takes the document apart
    if envelope.to_dict() != parse_json(data):  # base64 can spell the same bytes in several ways
        raise ValueError("the envelope is not spelt as it is when it is written")
    if not all(isinstance(keyid, str) for keyid in envelope.signatures):
        raise TypeError("a key ID that is not text")
    if envelope.payload_type != PAYLOAD_TYPE:
        raise ValueError(f"payload type {envelope.payload_type!r}, expected {PAYLOAD_TYPE!r}")
    statement = parse_json(envelope.payload)
    if statement["_type"] != STATEMENT_TYPE:
        raise ValueError(f"statement type {statement['_type']!r}, expected {STATEMENT_TYPE!r}")
    if statement["predicateType"] != PREDICATE_TYPE or statement["predicate"]["version"] != 1:
        raise ValueError(f"predicate {statement['predicateType']!r}, expected {PREDICATE_TYPE!r} version 1")
    predicate: dict[str, Any] = statement["predicate"] | {"subject": statement["subject"]}
    _check_fields(predicate)
    shape = judged("V0", "the file is a deletion certificate", [], f"{PREDICATE_TYPE}, {len(data)} bytes")
    return envelope, predicate, shape


def _check_fields(predicate: dict[str, Any]) -> None:
    """Are the fields there that the checks read, and of their kinds? What they say is not looked at."""
    request, heads = predicate["request"], predicate["after"]["heads"]
    texts = [predicate["recipe"], predicate["keys"], request["id"]]
    texts += [head[name] for head in heads for name in ("checkpoint", "tensors")]
    texts += [key for name in ("kept", "purged", "retrained") for key in predicate[name]]
    if not all(isinstance(text, str) for text in texts):
        raise TypeError("a field that must be text is not")
    numbers = [entry["shard"] for entry in (*predicate["impact"]["shards"], *predicate["lineages"], *heads)]
    if not all(isinstance(number, int) for number in numbers):
        raise TypeError("a shard that is not a number")
    if not all(len(bytes.fromhex(tag)) == 32 for tag in request["tombstones"]):
        raise ValueError("a tombstone that is not 32 bytes")
    read_public_key(str(predicate["issuer"]["public_key"]).encode())


def _signature(
    envelope: Envelope, predicate: dict[str, Any], public_key: Path | None, workspace: Path | None
) -> tuple[Check, Check]:
    """Is it signed, and is it known by whom? A key inside the file shows integrity, never origin."""
    origin_name = "it was signed by the operator"
    if public_key is not None:
        pem = _read(public_key)
        origin = judged("V1", origin_name, [], f"key {public_key.name}, given by the caller")
    elif workspace is not None:
        pem = _read(workspace / "keys" / PUBLIC_FILE)
        origin = unchecked("V1", origin_name, "the key was taken from the workspace itself (--public-key F)")
    else:
        pem = str(predicate["issuer"]["public_key"]).encode()
        origin = unchecked("V1", origin_name, "the key was taken from the certificate itself (--public-key F)")
    valid = verify_signature(envelope, read_public_key(pem))
    problems = [] if valid else ["no signature by this key over these bytes: wrong key, or edited"]
    signature = judged("V1", "the signature is valid", problems, f"Ed25519, key SHA-256 {bytes_digest(pem)[:16]}")
    return signature, origin if valid else unchecked("V1", origin_name, "the signature is not valid")


def _document(predicate: dict[str, Any]) -> list[Check]:
    """What the certificate's own fields must satisfy together."""
    after = ModelManifest.from_json(predicate["after"])
    ends: dict[int, tuple[str, str]] = {}
    keys: set[str] = set()
    problems: list[str] = []
    for lineage in predicate["lineages"]:
        try:
            links = [
                Link.from_json({name: body[name] for name in (*Link.__slots__, "key")}) for body in lineage["links"]
            ]
        except IntegrityError as error:
            problems.append(f"shard {lineage['shard']}: {error.expected}, found {error.found}")
            continue
        problems += check_chain(links, predicate["recipe"], lineage["shard"])
        keys |= {link.key for link in links}
        if links:
            ends[lineage["shard"]] = (links[-1].key, lineage["links"][-1]["tensors"])
    lineages = judged("V1", "every lineage is whole and hashes to its keys", problems, f"{len(keys)} checkpoints")
    heads = {head.shard: (head.checkpoint, head.tensors) for head in after.heads}
    wrong = [f"shard {shard}" for shard in heads.keys() | ends.keys() if heads.get(shard) != ends.get(shard)]
    named = {item["name"]: item["digest"]["sha256"] for item in predicate["subject"]}
    expected = {"manifest": after.digest} | {f"shard-{shard}": tensors for shard, (_, tensors) in heads.items()}
    wrong += [name for name in named.keys() | expected.keys() if named.get(name) != expected.get(name)]
    if after.digest != predicate["after"]["digest"]:
        wrong.append("manifest digest")
    gone = sorted(set(predicate["purged"]) & keys)
    lost = sorted(keys ^ (set(predicate["kept"]) | set(predicate["retrained"])))
    return [
        lineages,
        judged("V1", "heads, subjects and lineages agree", wrong, f"{len(heads)} heads"),
        judged(
            "V1",
            "no purged checkpoint is in a served lineage",
            [f"{key[:12]} is" for key in gone] + [f"{key[:12]} is neither kept nor retrained" for key in lost],
            ", ".join(f"{len(predicate[kind])} {kind}" for kind in ("purged", "kept", "retrained")),
        ),
    ]


def _against_workspace(workspace: Workspace, data: bytes, predicate: dict[str, Any]) -> list[Check]:
    ledger = _against_ledger(workspace, data, predicate)
    if any(check.outcome == "failed" for check in ledger):
        return [*ledger, unchecked("V2", "what the workspace stores", "the ledger does not bear the certificate out")]
    forgotten = {bytes.fromhex(tag) for tag in predicate["request"]["tombstones"]}
    checks = [*ledger, _heads_on_disk(workspace, predicate), _absence(workspace, forgotten), _records(workspace)]
    return checks + [Check("V2", check.name, check.outcome, check.detail) for check in check_law(workspace)]


def _against_ledger(workspace: Workspace, data: bytes, predicate: dict[str, Any]) -> list[Check]:
    """Is every claim what the ledger's facts say? Nothing is believed because it is signed."""
    request_id = predicate["request"]["id"]
    name = "the workspace's ledger names this certificate"
    issued = workspace.book.issued(request_id)
    recorded = next((fact for fact in issued if fact.body["digest"] == bytes_digest(data)), None)
    pinned = workspace.pinned()
    problems = []
    if (pinned.digest, pinned.keys) != (predicate["recipe"], predicate["keys"]):
        problems.append("it is about another recipe or other keys")
    if recorded is None:
        problems.append("the ledger does not name these bytes")
    found = [(fact, request) for fact, request in workspace.book.requests() if request.request_id == request_id]
    known = judged("V1", name, problems, f"request {request_id}")
    gone = set(predicate["request"]["tombstones"]) - {tag.hex() for tag in workspace.book.tombstones()}
    missing = [f"tombstone {tag[:12]} is gone" for tag in sorted(gone)]
    missing += [] if found else [f"no request {request_id} in the ledger"]
    tombstones = judged(
        "V2", "the request's tombstones hold", missing, f"{len(predicate['request']['tombstones'])} tags"
    )
    if recorded is None or not found:
        return [known, tombstones]
    accepted, request = found[0]
    return [
        known,
        tombstones,
        _claims(workspace, predicate, accepted, request),
        _rebuilt(workspace, predicate, recorded, request),
    ]


def _claims(workspace: Workspace, predicate: dict[str, Any], accepted: Fact, request: DeletionRequest) -> Check:
    """The claims that hold for good, whatever happened in the workspace since."""
    facts = {
        "request": {
            "id": request.request_id,
            "accepted": accepted.created,
            "tags": list(request.tags),
            "tombstones": list(request.tombstones),
        },
        "before": request.before,
        "impact": request.impact,
    }
    problems = [f"{name} is not what was accepted" for name, value in facts.items() if predicate[name] != value]
    if not request.tags or not set(request.tags) <= set(request.tombstones):
        problems.append("the request names no record, or one without a tombstone")
    served = [fact.body for fact, _ in workspace.book.manifests() if fact.seq > accepted.seq]
    if predicate["after"] not in served:
        problems.append("the certified heads were never served after the request")
    tensors = {(stored.checkpoint.key, stored.checkpoint.tensors) for stored in workspace.book.checkpoints()}
    links = [link for lineage in predicate["lineages"] for link in lineage["links"]]
    problems += [
        f"checkpoint {link['key'][:12]} never had these tensors" for link in links if _trained(link) not in tensors
    ]
    lawful = predicate["law"] and all(check["outcome"] != "failed" for check in predicate["law"])
    if not predicate["not_claimed"] or not lawful:
        problems.append("it lacks what is not claimed, or was signed although the law did not hold")
    return judged(
        "V1", "its claims are the ledger's facts", problems, f"{len(request.tags)} records, {len(links)} steps"
    )


def _trained(link: dict[str, Any]) -> tuple[str, str]:
    return link["key"], link["tensors"]


def _rebuilt(workspace: Workspace, predicate: dict[str, Any], recorded: Fact, request: DeletionRequest) -> Check:
    """While nothing has changed since, the whole certificate follows from what is stored."""
    name = "the certificate, derived anew from what is stored, is the same"
    if recorded != workspace.book.issued(request.request_id)[-1]:
        return unchecked("V1", name, "it was issued again since, after the operator's copy was lost")
    later = [fact for fact in workspace.ledger.facts(*CHANGING) if fact.seq > recorded.seq]
    if later:
        return unchecked("V1", name, f"the workspace has moved on since ({len(later)} later facts)")
    try:
        document = statement(workspace, request, ())
    except SisaError as error:
        return judged("V1", name, [f"it cannot be derived: expected {error.expected}, found {error.found}"], "")
    anew = document["predicate"] | {"subject": document["subject"]}
    different = sorted(key for key in anew.keys() | predicate.keys() if anew.get(key) != predicate.get(key))
    # When, by which version, and how the law put its evidence may differ; the law is asked below.
    told = [key for key in different if key not in ("issued", "issuer", "law")]
    return judged("V1", name, [f"{key} differs" for key in told], f"{len(anew)} fields")


def _heads_on_disk(workspace: Workspace, predicate: dict[str, Any]) -> Check:
    """Tensors on disk, hashed now, against the certificate; a shard that moved on is not compared."""
    name = "heads on disk are the heads certified"
    certified = ModelManifest.from_json(predicate["after"])
    current = workspace.book.manifest()
    live = workspace.book.live()
    problems, compared, moved = [], 0, []
    if current is None or current.generation < certified.generation:
        served = "nothing" if current is None else f"manifest {current.generation}"
        problems.append(f"{served} is served, certified was manifest {certified.generation}")
    for head in certified.heads:
        now = current.head(head.shard) if current is not None else None
        if current is not None and current.generation > certified.generation and (now is None or now != head):
            moved.append(head.shard)
            continue
        compared += 1
        if head.checkpoint not in live:
            problems.append(f"shard {head.shard}: checkpoint {head.checkpoint[:12]} is not stored")
            continue
        try:
            found = workspace.stored_tensors(live[head.checkpoint])
        except IntegrityError as error:
            problems.append(f"shard {head.shard}: expected {error.expected}, found {error.found}")
            continue
        if found != head.tensors:
            problems.append(f"shard {head.shard}: tensors {found[:16]} on disk, certified {head.tensors[:16]}")
    later = f"; superseded by manifest {current.generation} for shards {moved}" if moved and current else ""
    if not problems and not compared and moved:
        return unchecked("V1", name, later.removeprefix("; "))
    return judged("V1", name, problems, f"{compared} heads{later}")


def _absence(workspace: Workspace, forgotten: set[bytes]) -> Check:
    name = "the deleted records are in no live training set"
    visible = workspace.visible_sets()
    live = workspace.book.live()
    problems = [
        f"checkpoint {key[:12]} saw a deleted record" for key in live if visible.get(key, forgotten) & forgotten
    ]
    return judged("V2", name, problems, f"{len(live)} live checkpoints")


def _records(workspace: Workspace) -> Check:
    """Do the records held now hash to the keys of what is served?"""
    name = "the surviving records hash to the served checkpoints' keys"
    try:
        plan = workspace.plan()
    except IntegrityError as error:
        return judged("V2", name, [f"{error.expected}: {error.found}"], "")
    manifest = workspace.book.manifest()
    served = {head.shard: head.checkpoint for head in manifest.heads} if manifest is not None else {}
    steps = plan.steps()
    problems = [
        f"shard {shard}: {key[:12]} is not what its records give" for shard, key in served.items() if key not in steps
    ]
    waiting = [chain.shard for chain in plan.chains if chain.head and served.get(chain.shard) != chain.head.key]
    if not problems and waiting:
        return unchecked("V2", name, f"records of shards {waiting} still wait to be trained (`sisa train`)")
    return judged("V2", name, problems, f"{len(served)} heads, {len(steps)} steps")


def _replayed(workspace: Workspace, predicate: dict[str, Any], scope: ReplayScope, replayer: Replayer) -> list[Check]:
    """Train shards anew: those that the ledger says the request hit, or every shard there is."""
    level, everything = ("V3" if scope == "affected" else "V4"), [chain.shard for chain in workspace.plan().chains]
    hit = [
        shard["shard"]
        for _, request in workspace.book.requests()
        if request.request_id == predicate["request"]["id"]
        for shard in request.impact["shards"]
    ]
    checks = replayer(workspace, hit if scope == "affected" else everything, level)
    return checks or [judged(level, "the training, run anew, gives the same bits", ["no shard to replay"], "")]
