"""Check a deletion certificate, offline, without torch, ray or any training code.

What can be checked grows with what is at hand:

    the file              V0  shape and limits; V1 log and lineages hang together; V2 absence proofs
    + --public-key        V1  origin
    + --head              V1  freshness: the certified release is still the current one
    + --receipt, or --tag-key and --id
                          V2  the tags belong to a record of the reader's
    + -w WORKSPACE        V1  what is stored bears it out (sisa/verify_workspace.py)
    + --replay affected   V3  the hit shards, trained anew, give the same bits
    + --replay full       V4  so do all shards

Every check is reported as passed, failed or not checked; they are never merged into one word. How
to write another verifier: ``docs/verify-it-yourself.md``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from shards import kinds
from shards.checks import Check, judged, unchecked
from shards.digest import bytes_digest, canonical_json, digest, keyed, parse_json
from shards.errors import InputError, SisaError, StorageError
from shards.fact import Fact
from shards.keys import endorsed, key_commitment, public_pem, read_public_key, read_secret
from shards.lineage import Link, check_chain, lineage_digest
from shards.manifest import ModelManifest
from shards.note import TreeHead, read_head, signed_by
from shards.sparse import SparseProof, verify_absence, verify_inclusion
from shards.targets import targets_digest
from shards.tlog import verify_consistency
from shards.tlog import verify_inclusion as verify_logged
from shards.trunk import TRUNK, chain_name
from sisa.document import Document, LoggedFact, Sealed, read_certificate, read_hashes, read_limited, read_receipt
from sisa.erasure import erasure_status
from sisa.signing import verify_signature

FIELDS = "the certificate's fields fit together"
SHAPE = "the file is a deletion certificate"
ORIGIN = "it was signed by the operator"
FRESH = "the certified release is the current one"
BOUND = "the tags belong to the reader's record"

_Keys = list[tuple[int, Ed25519PublicKey | None]]


@dataclass(frozen=True, slots=True)
class Evidence:
    """What the reader has besides the certificate.

    Attributes:
        public_keys: the operator's keys (PEM files), got by another way than the certificate.
        receipt: an ingestion receipt of the record in question.
        tag_key: file with the operator's tag key, for an auditor.
        record_id: the record in question, with ``tag_key``.
        head: a tree head got from elsewhere (an anchor, a witness, another reader).
        extension: what ``sisa log extension`` printed: how that head goes on from the certificate.
    """

    public_keys: tuple[Path, ...] = ()
    receipt: Path | None = None
    tag_key: Path | None = None
    record_id: str | None = None
    head: Path | None = None
    extension: Path | None = None


def verify(certificate: Path, evidence: Evidence) -> tuple[Document | None, list[Check]]:
    """Every check of a certificate that needs no workspace, and the certificate if it could be read.

    Raises:
        InputError: if a file cannot be read.
    """
    data = read_limited(certificate)
    try:
        document = read_certificate(data)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return None, [judged("V0", SHAPE, [f"{type(error).__name__}: {error}"], "")]
    pinned = [_pinned(path) for path in evidence.public_keys]
    checks = [judged("V0", SHAPE, [], f"{document.predicate['statement']}, {len(data)} bytes")]
    asked = _asked(
        lambda: _signed(document, pinned),
        lambda: _in_log(document, pinned),
        lambda: [_history(document)],
        lambda: _lineages(document),
        lambda: [_fresh(document, evidence, pinned)],
        lambda: [_absent(document)],
        lambda: [_was_there(document)],
        lambda: [_bound(document, evidence, pinned)],
    )
    return document, [*checks, *asked]


def examine(document: Document) -> list[Check]:
    """What a statement says, held against itself and its facts; asked before it is sealed too."""
    return _asked(
        lambda: [_history(document)],
        lambda: _lineages(document),
        lambda: [_absent(document)],
        lambda: [_was_there(document)],
    )


def _asked(*questions: Callable[[], Iterable[Check]]) -> list[Check]:
    """The answers, and one failed check if some cannot be given."""
    checks: list[Check] = []
    broken = []
    for ask in questions:
        try:
            checks += ask()
        except (InputError, StorageError):  # a file of the reader's, not the certificate
            raise
        except SisaError as error:
            broken.append(f"expected {error.expected}, found {error.found}")
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError) as error:
            broken.append(f"{type(error).__name__}: {error}")
    return checks + ([judged("V0", FIELDS, broken, "")] if broken else [])


@contextmanager
def _readers(what: str) -> Iterator[None]:
    """What cannot be read inside is a file of the reader's, and no fault of the certificate's."""
    try:
        yield
    except InputError:  # said already
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(what, f"{type(error).__name__}: {error}", "check the path") from error


# -- V1: who signed it --------------------------------------------------------------------------


def _signed(document: Document, pinned: Sequence[Ed25519PublicKey]) -> list[Check]:
    """Is it signed, and is it known by whom? A key inside the file shows integrity, never origin."""
    name = "the signature is valid"
    inside = _stated_key(document.predicate["issuer"]["public_key"])
    key = inside if inside in (pinned or [inside]) and verify_signature(document.envelope, inside) else None
    if key is None:
        problem = "no signature by this key over these bytes: wrong key, or edited"
        return [judged("V1", name, [problem], ""), unchecked("V1", ORIGIN, "the signature is not valid")]
    valid = judged("V1", name, [], f"Ed25519, key SHA-256 {bytes_digest(public_pem(key))[:16]}")
    if not pinned:
        return [valid, unchecked("V1", ORIGIN, "integrity only, not origin: its own key was used (--public-key F)")]
    return [valid, judged("V1", ORIGIN, [], "the key was given by the caller")]


def _keys_in_force(facts: Iterable[Fact], pinned: Sequence[Ed25519PublicKey]) -> _Keys:
    """(first fact signed by it, key), oldest first; None stands for a key that nobody vouches for.

    The next key is endorsed by the one before, or the reader has it from the operator. Without any key
    of the reader's, only integrity is claimed, and the log's own word is taken.
    """
    named = [fact for fact in facts if fact.kind in (kinds.GENESIS, kinds.KEY)]
    keys: _Keys = []
    for fact in named:
        key, last = _stated_key(fact.body["public_key"]), keys[-1][1] if keys else None
        vouched = not (pinned and keys) or key in pinned
        vouched = vouched or (last is not None and _endorses(last, named[0].body["log"], fact))
        keys.append((fact.seq, key if vouched else None))
    return keys


def _pinned(path: Path) -> Ed25519PublicKey:
    try:
        return read_public_key(read_limited(path))
    except InputError as error:
        raise InputError(f"{error.expected} in {path}", error.found, error.remedy) from error


def _stated_key(pem: str) -> Ed25519PublicKey:
    """A key that the certificate states, spelt in the one way; a wrong one is its fault, not the caller's."""
    try:
        key = read_public_key(pem.encode())
    except InputError as error:
        raise ValueError(f"a public key that is none: {error.found}") from error
    if public_pem(key).decode() != pem:
        raise ValueError("a public key that is not spelt as it is written")
    return key


def _endorses(old: Ed25519PublicKey, log: str, fact: Fact) -> bool:
    try:
        old.verify(bytes.fromhex(fact.body["endorsement"] or ""), endorsed(log, fact.body["public_key"].encode()))
    except InvalidSignature:
        return False
    return True


def _key_at(keys: _Keys, size: int) -> Ed25519PublicKey | None:
    return next((key for seq, key in reversed(keys) if seq <= size), None)


# -- V1: the log --------------------------------------------------------------------------------


def _in_log(document: Document, pinned: Sequence[Ed25519PublicKey]) -> list[Check]:
    """Are all facts, and the certificate itself, in one log signed by the operator?"""
    log, sealed = document.predicate["log"], document.sealed
    head = read_head(log["head"])
    facts = document.facts()
    problems = _unlogged(head, facts)
    keys = _keys_in_force((logged.fact for logged in facts), pinned)
    problems += _heads_signed(log["origin"], [(log["head"], head)], keys)
    key = _key_at(keys, head.size)
    stated = document.predicate["issuer"]["public_key"].encode()
    if key is None or stated != public_pem(key):
        problems.append("the key that signed it is not the one in force in the log")
    checks = [judged("V1", "the facts it rests on are in the operator's log", problems, f"{len(facts)} of {head.size}")]
    name = "the certificate itself is in the log"
    if sealed is None:
        return [*checks, judged("V1", name, ["no proof"], "")]
    later = read_head(sealed.proof.head)
    sealing = _sealing(document, sealed)
    problems = _heads_signed(log["origin"], [(sealed.proof.head, later)], keys)
    if not verify_logged(later.root, later.size, sealed.proof.index, sealing.leaf(), sealed.proof.hashes):
        problems.append("its digest is not where the proof says")
    if not verify_consistency(head.size, head.root, later.size, later.root, sealed.consistency):
        problems.append("the tree head beside it does not go on from the one in it")
    if pinned and not any(signed_by(sealed.proof.head, key) for key in pinned):
        problems.append("the tree head is not signed by the key given")
    return [*checks, judged("V1", name, problems, f"fact {sealing.seq} of {later.size}")]


def _sealing(document: Document, sealed: Sealed) -> Fact:
    """The fact by which the log names the certificate."""
    body = {"request_id": document.predicate["request"]["id"], "digest": document.digest}
    return Fact(sealed.proof.index + 1, kinds.CERTIFICATE, body, sealed.created)


def _unlogged(head: TreeHead, facts: Sequence[LoggedFact]) -> list[str]:
    problems = [
        f"fact {logged.fact.seq} ({logged.fact.kind}) is not in the log"
        for logged in facts
        if not verify_logged(head.root, head.size, logged.fact.seq - 1, logged.fact.leaf(), logged.proof)
    ]
    seqs = [logged.fact.seq for logged in facts]
    if seqs != sorted(set(seqs)):
        problems.append("facts out of order or twice")
    if not facts or (facts[0].fact.seq, facts[0].fact.kind) != (1, kinds.GENESIS):
        problems.append("the log's first fact is not among them")
    elif facts[0].fact.body["log"] != head.origin:
        problems.append("the tree head is another log's")
    return problems


def _heads_signed(origin: str, heads: Sequence[tuple[str, TreeHead]], keys: _Keys) -> list[str]:
    problems = []
    for note, head in heads:
        key = _key_at(keys, head.size)
        if head.origin != origin or key is None or not signed_by(note, key):
            problems.append(f"tree head {head.size} is not signed by the key in force in this log")
    return problems


# -- V1: what was done --------------------------------------------------------------------------


def _same(one: Any, other: Any) -> bool:
    """Are they equal as JSON? Python's ``1 == True`` is not."""
    return canonical_json(one) == canonical_json(other)


def _one(document: Document, kind: str) -> Fact:
    found = [logged.fact for logged in document.facts() if logged.fact.kind == kind]
    if len(found) != 1:
        raise ValueError(f"{len(found)} facts of kind {kind}, expected 1")
    return found[0]


def _about(document: Document, kind: str) -> list[Fact]:
    facts = [logged.fact for logged in document.facts() if logged.fact.kind == kind]
    if any(document.predicate["request"]["id"] not in fact.body["requests"] for fact in facts):
        raise ValueError(f"a fact of kind {kind} that is about another request")
    return facts


def _history(document: Document) -> Check:
    """Do the certificate's own fields say what the logged facts say?"""
    predicate = document.predicate
    request, request_id = predicate["request"], predicate["request"]["id"]
    accepted, recipe = _one(document, kinds.REQUEST), _one(document, kinds.RECIPE)
    told = accepted.body | {"accepted": accepted.created}
    said = {
        "request_id": request_id,
        "accepted": request["accepted"],
        "kind": predicate["statement"],
        "object": targets_digest(request["targets"], request["suppression"]),
        "references": request["references"],
        "before": predicate["before"],
        "impact": predicate["impact"],
    }
    problems = [f"{name} is not what was accepted" for name, value in said.items() if not _same(told[name], value)]
    pinned = {"digest": predicate["recipe"], "keys": predicate["keys"], "namespace": predicate["namespace"]}
    pinned["recipe"] = predicate["replay"]["recipe"]
    problems += [
        f"{name} is not what was pinned" for name, value in pinned.items() if not _same(recipe.body[name], value)
    ]
    if digest("recipe", canonical_json(recipe.body["recipe"])).hex() != predicate["recipe"]:
        problems.append("the recipe does not hash to its digest")
    problems += _removed(document, accepted)
    if not predicate["law"] or any(asked["outcome"] not in ("passed", "not_checked") for asked in predicate["law"]):
        problems.append("it was signed although the law did not hold")
    if not predicate["not_claimed"]:
        problems.append("it does not say what is not claimed")
    return judged("V1", "its fields are what the logged facts say", problems, f"request {request_id}")


def _restored(document: Document) -> bool:
    """Was the request applied again after an older backup was restored? Its records may not have been held."""
    restores = [logged.fact.body for logged in document.facts() if logged.fact.kind == kinds.RESTORE]
    return any(document.predicate["request"]["id"] in body["requests"] for body in restores)


def _removed(document: Document, accepted: Fact) -> list[str]:
    """Problems of what is said to be purged and erased; all of it follows from logged facts."""
    predicate = document.predicate
    erasures, purges = (_about(document, kind) for kind in (kinds.ERASURE, kinds.PURGE))
    problems = []
    if predicate["purged"] != sorted(key for fact in purges for key in fact.body["checkpoints"]):
        problems.append("the purged checkpoints are not those of the logged purges")
    planned = {key for shard in accepted.body["impact"]["shards"] for key in shard["purged"]}
    problems += [f"checkpoint {key[:12]} was to be purged" for key in sorted(planned - set(predicate["purged"]))]
    deleted = predicate["statement"] == "deleted"
    recipe, handed_out = predicate["replay"]["recipe"], predicate["handed_out"]
    expected = erasure_status(recipe, accepted, erasures, purges, handed_out) if deleted else []
    if not _same(predicate["erasure"], expected):
        problems.append("what became of each class of artefact is not what the logged facts say")
    tags = predicate["request"]["targets"]["tags"]
    if deleted != bool(tags) or (deleted and not erasures and not _restored(document)):
        problems.append("nothing was erased, or what was is said not to have been there")
    return problems


def _lineages(document: Document) -> list[Check]:
    """Do the lineages hash to their keys, and to what the logged manifest serves?"""
    predicate = document.predicate
    manifest_fact = _one(document, kinds.MANIFEST)
    after = ModelManifest.from_json(manifest_fact.body)
    ends: dict[int, tuple[str, str, str, int]] = {}
    keys: set[str] = set()
    problems: list[str] = []
    shards, trunk = _split(predicate["lineages"])
    for lineage in [*trunk, *shards]:
        number, (start, _, end, before) = lineage["shard"], ends.get(TRUNK, (None, "", "", 0))
        links = _links(lineage, predicate["recipe"], start)
        problems += [
            f"{chain_name(number)}: key {body['key'][:12]} is not the hash of its fields"
            for link, body in zip(links, lineage["links"], strict=True)
            if link.key != body["key"]
        ]
        problems += check_chain(links, predicate["recipe"], number, start)
        keys |= {link.key for link in links}
        for body in lineage["links"]:
            environment = predicate["environments"][body["environment"]]
            end = lineage_digest(end, body["key"], body["tensors"], body["root"], environment)
        if links:
            ends[number] = (links[-1].key, lineage["links"][-1]["tensors"], end, before + len(links))
    if trunk and not (TRUNK in ends and len(ends) > 1):
        problems.append("a trunk without steps, or from which no shard starts")
    ends.pop(TRUNK, None)  # it is never served by itself
    numbers = [lineage["shard"] for lineage in shards]
    if numbers != list(range(len(numbers))) or len(numbers) != predicate["replay"]["recipe"]["shards"]:
        problems.append("not every shard of the recipe occurs once, in order, and the trunk after them")
    used = {body["environment"] for lineage in predicate["lineages"] for body in lineage["links"]}
    if used != set(range(len(predicate["environments"]))):
        problems.append("an environment that no step ran in")
    whole = judged("V1", "every lineage is whole and hashes to its keys", problems, f"{len(keys)} checkpoints")
    heads = {head.shard: (head.checkpoint, head.tensors, head.lineage, head.steps) for head in after.heads}
    wrong = [f"shard {shard}" for shard in heads.keys() | ends.keys() if heads.get(shard) != ends.get(shard)]
    named = [("manifest", after.digest), *((f"shard-{head.shard}", head.tensors) for head in after.heads)]
    if [(item["name"], item["digest"]["sha256"]) for item in document.subject] != named or len(named) != len(heads) + 1:
        wrong.append("subjects")
    if after.digest != manifest_fact.body["digest"] or not _same(predicate["after"], manifest_fact.body):
        wrong.append("manifest")
    if manifest_fact.seq < _one(document, kinds.REQUEST).seq and predicate["statement"] == "deleted":
        wrong.append("the manifest is older than the request")
    gone = sorted(set(predicate["purged"]) & keys)
    split = sorted([*predicate["kept"], *predicate["retrained"]])
    lost = sorted(keys) != split
    return [
        whole,
        judged("V1", "heads, subjects and lineages are those of the logged manifest", wrong, f"{len(heads)} heads"),
        judged(
            "V1",
            "no purged checkpoint is in a served lineage",
            [f"{key[:12]} is" for key in gone] + ["kept and retrained are not the served lineages"] * lost,
            ", ".join(f"{len(predicate[kind])} {kind}" for kind in ("purged", "kept", "retrained")),
        ),
    ]


def _split(lineages: Sequence[Mapping[str, Any]]) -> tuple[list[Mapping[str, Any]], list[Mapping[str, Any]]]:
    """(the shards' lineages, that of the trunk if there is one), as far as it stands where it belongs."""
    at = len(lineages) - 1 if lineages and lineages[-1]["shard"] == TRUNK else len(lineages)
    return list(lineages[:at]), list(lineages[at:])


def _links(lineage: Mapping[str, Any], recipe: str, start: str | None) -> list[Link]:
    links: list[Link] = []
    for body in lineage["links"]:
        parent = links[-1].key if links else start
        links.append(Link(recipe, lineage["shard"], body["chain"], body["slice"], parent, body["records"]))
    return links


# -- V1: freshness ------------------------------------------------------------------------------


def _fresh(document: Document, evidence: Evidence, pinned: Sequence[Ed25519PublicKey]) -> Check:
    """Does a tree head got from elsewhere go on from the certificate's, without another release?"""
    if evidence.head is None or document.sealed is None:
        return unchecked("V1", FRESH, "no tree head from elsewhere was given (--head F)")
    note = read_limited(evidence.head).decode(errors="replace")
    try:
        later = read_head(note)
    except ValueError as error:
        raise InputError(f"a signed tree head in {evidence.head}", str(error), "see `sisa log head`") from error
    seal = read_head(document.sealed.proof.head)
    if evidence.extension is None and later.size != seal.size:
        return unchecked("V1", FRESH, f"{later.size} facts then, {seal.size} here: give --extension F")
    with _readers(f"what `sisa log extension` printed, in {evidence.extension}"):
        nothing: dict[str, Any] = {"consistency": [], "facts": []}
        extension = parse_json(read_limited(evidence.extension)) if evidence.extension else nothing
        facts = [LoggedFact.from_json(fact) for fact in extension["facts"]]
        consistency = read_hashes(extension["consistency"])
        keys = _keys_in_force((logged.fact for logged in (*document.facts(), *facts)), pinned)
    problems = _heads_signed(seal.origin, [(note, later)], keys)
    if not verify_consistency(seal.size, seal.root, later.size, later.root, consistency):
        problems.append(
            f"tree head {later.size} does not go on from tree head {seal.size}: another history"
            + (", or an extension for other heads" if evidence.extension else "")
        )
    problems += [
        f"fact {logged.fact.seq} is not in the log"
        for logged in facts
        if not verify_logged(later.root, later.size, logged.fact.seq - 1, logged.fact.leaf(), logged.proof)
    ]
    if problems:
        return judged("V1", FRESH, problems, "")
    shown = {logged.fact.seq: logged.fact for logged in (*document.facts(), *facts)}
    shown[document.sealed.proof.index + 1] = _sealing(document, document.sealed)
    since = range(_one(document, kinds.MANIFEST).seq + 1, later.size + 1)
    if not shown.keys() >= set(since):
        return unchecked("V1", FRESH, "not every fact after the release is shown: give --extension F")
    releases = [shown[seq] for seq in since if shown[seq].kind == kinds.MANIFEST][-1:]
    others = [fact.seq for fact in releases if fact.body["digest"] != document.predicate["after"]["digest"]]
    return judged(
        "V1", FRESH, [f"fact {seq} serves another release" for seq in others], f"as of fact {later.size} of the log"
    )


# -- V2: absence --------------------------------------------------------------------------------


def _absent(document: Document) -> Check:
    """Are the tags in none of the slices that the served heads were trained on?"""
    predicate = document.predicate
    targets, absence = predicate["request"]["targets"], predicate["absence"]
    links = [(lineage["shard"], link) for lineage in predicate["lineages"] for link in lineage["links"]]
    wanted = {*targets["tombstones"], *targets["absent"]}
    expected = sum(head["steps"] for head in predicate["after"].get("heads", []))
    shards, trunk = _split(predicate["lineages"])
    common = sum(len(lineage["links"]) for lineage in trunk)  # every head stands on them
    shown = sum(common + len(lineage["links"]) for lineage in shards if lineage["links"])
    problems = [f"tag {tag[:12]} has no proofs, or was not asked for" for tag in sorted(wanted ^ absence.keys())]
    if expected != shown:
        problems.append(f"{shown} slices, the manifest has {expected}")
    if not set(targets["tags"]) <= set(targets["tombstones"]) or not wanted:
        problems.append("no record is named, or one has no tombstone")
    for tag, proofs in absence.items():
        if len(proofs) != len(links):
            problems.append(f"tag {tag[:12]} has {len(proofs)} proofs for {len(links)} slices")
            continue
        problems += [
            f"tag {tag[:12]} is not shown to be absent from {chain_name(shard)}, slice {link['slice']}"
            for (shard, link), proof in zip(links, proofs, strict=True)
            if not verify_absence(bytes.fromhex(link["root"]), bytes.fromhex(tag), SparseProof.from_json(proof))
        ]
    name = "the records are in no slice that the served heads were trained on"
    return judged("V2", name, problems, f"{len(wanted)} tags, {len(links)} slices")


def _was_there(document: Document) -> Check:
    """Was something really removed? Each tag was in a slice committed to before the request."""
    predicate = document.predicate
    name = "the deleted records had been committed to before"
    tags = set(predicate["request"]["targets"]["tags"])
    if not tags:
        return unchecked("V2", name, "no record was held; this is a statement of absence")
    accepted = _one(document, kinds.REQUEST)
    slices = {logged.fact.seq: logged.fact for logged in document.facts() if logged.fact.kind == kinds.SLICE}
    shown = [entry["tag"] for entry in predicate["prior"]]
    missing = tags - set(shown) if _restored(document) else set[str]()
    problems = [f"tag {tag[:12]} is not" for tag in sorted((tags - missing) ^ set(shown))]
    problems += ["a tag is there twice"] * (len(set(shown)) != len(shown))
    for entry in predicate["prior"]:
        fact = slices.get(entry["fact"])
        tag, commitment = bytes.fromhex(entry["tag"]), bytes.fromhex(entry["commitment"])
        if fact is None or fact.seq > accepted.seq:
            problems.append(f"tag {entry['tag'][:12]}: no slice committed to before the request")
        elif not verify_inclusion(
            read_hashes([fact.body["root"]])[0], tag, commitment, SparseProof.from_json(entry["proof"])
        ):
            problems.append(f"tag {entry['tag'][:12]} was not in the slice of fact {fact.seq}")
    if missing and not problems:
        why = "were not held when the request was applied again, after a backup was restored"
        return unchecked("V2", name, f"{len(missing)} of {len(tags)} records {why}")
    return judged("V2", name, problems, f"{len(tags)} records, {len(slices)} slices")


# -- V2: whose record ---------------------------------------------------------------------------


def _bound(document: Document, evidence: Evidence, pinned: Sequence[Ed25519PublicKey]) -> Check:
    """Do the tags belong to the record that the reader means?"""
    if evidence.receipt is not None:
        data = read_limited(evidence.receipt)
        with _readers(f"an ingestion receipt, as `sisa receipt` writes it, in {evidence.receipt}"):
            return _bound_by_receipt(document, read_receipt(data), pinned)
    if evidence.tag_key is not None:
        read_limited(evidence.tag_key)  # the reader's own file: missing is their mistake
        return _bound_by_key(document, read_secret(evidence.tag_key), evidence.record_id or "")
    return unchecked("V2", BOUND, "needs an ingestion receipt (--receipt F) or the tag key (--tag-key F --id ID)")


def _bound_by_key(document: Document, key: bytes, record_id: str) -> Check:
    """An auditor makes the tag anew, with the key that the log's first fact commits to."""
    genesis = document.facts()[0].fact
    if genesis.body["keys"]["tag"] != key_commitment("tag", key):
        return judged("V2", BOUND, ["this is not the tag key that the log commits to"], "")
    targets, namespace = document.predicate["request"]["targets"], document.predicate["namespace"]
    tags = {*targets["tombstones"], *targets["absent"]}
    made = [keyed(key, "tag", namespace, record_id, version).hex() for version in range(1, len(tags) + 1)]
    problems = [] if tags & set(made) else ["the certificate is about other records than this ID"]
    return judged("V2", BOUND, problems, "the tag was made anew from the ID with the committed tag key")


def _bound_by_receipt(document: Document, receipt: Document, pinned: Sequence[Ed25519PublicKey]) -> Check:
    """The receipt's holder knows record and salt: they open the commitment that the tag stood for."""
    said = receipt.predicate
    head = read_head(said["log"]["head"])
    facts = receipt.facts()
    keys = _keys_in_force((logged.fact for logged in document.facts()), pinned)
    signer = _key_at(keys, head.size)
    problems = _unlogged(head, facts) + _heads_signed(
        document.predicate["log"]["origin"], [(said["log"]["head"], head)], keys
    )
    trusted = [*pinned, signer] if signer is not None and pinned else [signer]
    if not any(key is not None and verify_signature(receipt.envelope, key) for key in trusted):
        problems.append("the receipt is not signed by the operator")
    slices = [logged.fact for logged in facts if logged.fact.kind == kinds.SLICE]
    tag, commitment = bytes.fromhex(said["tag"]), bytes.fromhex(said["commitment"])
    if len(slices) != 1 or not verify_inclusion(
        read_hashes([slices[0].body["root"]])[0], tag, commitment, SparseProof.from_json(said["proof"])
    ):
        problems.append("the receipt's tag is not in the slice that it names")
    if keyed(bytes.fromhex(said["salt"]), "commitment", canonical_json(said["record"])) != commitment:
        problems.append("the receipt's commitment is not to the record in it")
    prior = {entry["tag"]: entry["commitment"] for entry in document.predicate["prior"]}
    if said["tag"] not in prior:
        problems.append("the certificate is about other records than the receipt")
    elif prior[said["tag"]] != said["commitment"]:
        problems.append("the certificate removes another content than the receipt is for")
    return judged("V2", BOUND, problems, f"receipt for record {said['record'].get('id')!r}")
