"""Hold a certificate against a workspace: nothing is believed because it is signed.

Needs what the operator stores, and so is the auditor's part of ``sisa verify``: every claim is
compared with the ledger's facts, the whole certificate is derived anew while nothing has changed
since, tensors are hashed on disk, the law is asked, and shards are trained anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

from shards.checks import Check, judged, unchecked
from shards.deletion import DeletionRequest
from shards.errors import IntegrityError, SisaError
from shards.fact import Fact
from shards.kinds import CHANGING
from shards.law import check_law
from shards.manifest import ModelManifest
from shards.note import read_head
from shards.trunk import TRUNK, chain_name
from shards.workspace import Workspace
from sisa.anchoring import check_anchor
from sisa.certificate import statement
from sisa.document import Document
from sisa.levels import REPLAYS, not_replayed

READABLE = "certificate and workspace can be read"

ReplayScope = Literal["affected", "full"]
Replayer = Callable[[Workspace, list[int], str], list[Check]]


def verify_against(
    document: Document,
    path: Path,
    *,
    anchor: str | None = None,
    replay: ReplayScope | None = None,
    replayer: Replayer | None = None,
) -> list[Check]:
    """Every check of a certificate that needs the workspace.

    Args:
        document: the certificate.
        path: the workspace.
        anchor: where its tree heads are anchored.
        replay: train the hit shards, or all, anew.
        replayer: does it; required with ``replay``.

    Raises:
        InputError: if ``path`` is not a workspace.
    """
    workspace = Workspace.open(path, check=False)
    try:
        checks = _guarded(lambda: _compared(workspace, document, anchor))
        if replay is None or replayer is None:
            return checks + not_replayed("no --replay asked for")
        if any(check.name == READABLE for check in checks):
            return checks + not_replayed("what to replay cannot be read")
        return checks + _replays(workspace, document.predicate, replay, replayer)
    finally:
        workspace.close()


def _guarded(ask: Callable[[], list[Check]]) -> list[Check]:
    """The answers, or one failed check if certificate or workspace are too broken to be asked."""
    try:
        return ask()
    except SisaError as error:
        return [judged("V1", READABLE, [f"expected {error.expected}, found {error.found}"], "")]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return [judged("V1", READABLE, [f"{type(error).__name__}: {error}"], "")]


def _compared(workspace: Workspace, document: Document, anchor: str | None) -> list[Check]:
    predicate = document.predicate
    anchored = check_anchor(workspace, anchor)
    ledger = [*_against_ledger(workspace, document), Check("V1", anchored.name, anchored.outcome, anchored.detail)]
    if any(check.outcome == "failed" for check in ledger):
        return [*ledger, unchecked("V2", "what the workspace stores", "the ledger does not bear the certificate out")]
    checks = [*ledger, _heads_on_disk(workspace, predicate), _absence(workspace, predicate), _records(workspace)]
    return checks + [Check("V2", check.name, check.outcome, check.detail) for check in check_law(workspace)]


def _against_ledger(workspace: Workspace, document: Document) -> list[Check]:
    """Is every claim what the ledger's facts say?"""
    predicate = document.predicate
    request_id = predicate["request"]["id"]
    name = "the workspace's ledger names this certificate"
    issued = workspace.book.issued(request_id)
    recorded = next((fact for fact in reversed(issued) if fact.body["digest"] == document.digest), None)
    pinned = workspace.pinned()
    problems = []
    if (pinned.digest, pinned.keys) != (predicate["recipe"], predicate["keys"]):
        problems.append("it is about another recipe or other keys")
    if recorded is None:
        problems.append("the ledger does not name these bytes")
    found = workspace.book.request(request_id)
    known = judged("V1", name, problems, f"request {request_id}")
    gone = set(predicate["request"]["targets"]["tombstones"]) - {tag.hex() for tag in workspace.book.tombstones()}
    missing = [f"tombstone {tag[:12]} is gone" for tag in sorted(gone)]
    missing += [] if found else [f"no request {request_id} in the ledger"]
    name = "the request's tombstones hold"
    tombstones = judged("V2", name, missing, f"{len(predicate['request']['targets']['tombstones'])} tags")
    if found is not None and found[1].retired:
        tombstones = unchecked("V2", name, "they were destroyed by retention rule")
    if recorded is None or found is None:
        return [known, tombstones]
    accepted, request = found
    return [
        known,
        tombstones,
        _claims(workspace, predicate, accepted, request),
        _rebuilt(workspace, document, recorded, request),
    ]


def _claims(workspace: Workspace, predicate: dict[str, Any], accepted: Fact, request: DeletionRequest) -> Check:
    """The claims that hold for good, whatever happened in the workspace since."""
    facts: dict[str, Any] = {"before": request.before, "impact": request.impact, "statement": request.kind}
    problems = [f"{name} is not what was accepted" for name, value in facts.items() if predicate[name] != value]
    if not request.retired and predicate["request"]["targets"] != request.targets.public():
        problems.append("the records are not those of the request")
    served = [fact.body for fact, _ in workspace.book.manifests() if fact.seq > accepted.seq]
    served += [request.before] if not request.tags else []
    if predicate["after"] not in served:
        problems.append("the certified heads were never served after the request")
    tensors = {(stored.checkpoint.key, stored.checkpoint.tensors) for stored in workspace.book.checkpoints()}
    links = [link for lineage in predicate["lineages"] for link in lineage["links"]]
    stored = {fact.seq: fact.to_json() for fact in workspace.ledger.since(0)}
    problems += [
        f"fact {fact['seq']} is another one"
        for fact in predicate["log"]["facts"]
        if stored.get(fact["seq"]) != {name: value for name, value in fact.items() if name != "proof"}
    ]
    problems += [
        f"checkpoint {link['key'][:12]} never had these tensors" for link in links if _trained(link) not in tensors
    ]
    return judged(
        "V1", "its claims are the ledger's facts", problems, f"{len(request.tags)} records, {len(links)} steps"
    )


def _trained(link: dict[str, Any]) -> tuple[str, str]:
    return link["key"], link["tensors"]


def _rebuilt(workspace: Workspace, document: Document, recorded: Fact, request: DeletionRequest) -> Check:
    """While nothing has changed since, the whole certificate follows from what is stored."""
    name = "the certificate, derived anew from what is stored, is the same"
    predicate = document.predicate
    later = [fact for fact in workspace.ledger.facts(*CHANGING) if fact.seq > recorded.seq]
    if later:
        return unchecked("V1", name, f"the workspace has moved on since ({len(later)} later facts)")
    try:
        again = statement(workspace, request, (), read_head(predicate["log"]["head"]).size)
    except SisaError as error:
        return judged("V1", name, [f"it cannot be derived: expected {error.expected}, found {error.found}"], "")
    anew, old = again["predicate"] | {"subject": again["subject"]}, predicate | {"subject": document.subject}
    different = sorted(key for key in anew.keys() | old.keys() if anew.get(key) != old.get(key))
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


def _absence(workspace: Workspace, predicate: dict[str, Any]) -> Check:
    name = "the deleted records are in no live training set"
    if predicate["request"]["id"] in workspace.book.retired():
        return unchecked("V2", name, "the request was retired, and its records may be taken in again")
    forgotten = {bytes.fromhex(tag) for tag in predicate["request"]["targets"]["tombstones"]}
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


def _replays(workspace: Workspace, predicate: dict[str, Any], scope: ReplayScope, replayer: Replayer) -> list[Check]:
    """Train shards anew: those that the ledger says the request hit, or every shard there is.

    What is trained anew is today's; where that is not what was certified any more, it says nothing of it.
    """
    level = "V3" if scope == "affected" else "V4"
    hit: list[int] = []
    try:
        found = workspace.book.request(predicate["request"]["id"])
        hit = [shard["shard"] for shard in found[1].impact["shards"]] if found is not None else []
        plan = workspace.plan()
        shards = hit if scope == "affected" else [chain.shard for chain in plan.chains]
        shards = shards + [TRUNK] * (bool(shards and plan.trunk.steps) and TRUNK not in shards)
        later = _superseded(workspace, predicate, level, shards)
        left = [shard for shard in shards if shard not in later]
        checks = [*later.values(), *(replayer(workspace, left, level) if left else [])]
    except IntegrityError as error:  # the other answers stand
        checks = [judged(level, REPLAYS[level], [f"expected {error.expected}, found {error.found}"], "")]
    if scope == "affected":
        checks = checks or [unchecked("V3", REPLAYS["V3"], "the request hit no shard")]
        return [*checks, unchecked("V4", REPLAYS["V4"], "no --replay full asked for")]
    return [_affected(hit, checks), *checks]


def _superseded(workspace: Workspace, predicate: dict[str, Any], level: str, shards: Iterable[int]) -> dict[int, Check]:
    """Shards whose certified head is none of today's steps, or was certified with other tensors than are stored."""
    steps, live = workspace.plan().steps(), workspace.book.live()
    certified = {lineage["shard"]: lineage["links"] for lineage in predicate["lineages"]}
    found = {}
    for shard in shards:
        name = f"{chain_name(shard)} trained anew gives the certified bits"
        links = certified.get(shard, [])
        other = [link for link in links if link["key"] in live and live[link["key"]].tensors != link["tensors"]]
        if other:
            said = ", ".join(f"slice {link['slice']}: tensors {link['tensors'][:16]}" for link in other)
            found[shard] = judged(level, name, [f"what was certified is not what is stored: {said}"], "")
        elif links and links[-1]["key"] not in steps:
            found[shard] = unchecked(level, name, "superseded by a later request: replay the newest certificate")
    return found


def _affected(hit: list[int], full: list[Check]) -> Check:
    """What a full replay says of the hit shards."""
    if hit and all(check.outcome == "passed" for check in full):
        named = ", ".join(map(chain_name, hit))
        return Check("V3", REPLAYS["V3"], "passed", f"among those of V4: {named}")
    why = "not every shard of V4 passed (--replay affected asks these alone)" if hit else "the request hit no shard"
    return unchecked("V3", REPLAYS["V3"], why)
