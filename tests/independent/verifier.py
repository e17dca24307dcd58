"""A second verifier of levels V0 to V2, written from ``docs/verify-it-yourself.md`` alone.

It imports nothing of ours: what both verifiers say of the same file shows that the page suffices. It is
plain on purpose; section numbers in comments are the page's.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

PAGE = Path(__file__).parents[2] / "docs" / "verify-it-yourself.md"
EMPTY = bytes(32)
TRUNK = 4096
Outcome = tuple[str, str, str]  # level, name, "passed" or "failed" or "not_checked"
Keys = list[tuple[int, Ed25519PublicKey | None]]


class UnusableError(Exception):
    """A file of the reader's, not the certificate, cannot be read."""


# -- 2: bytes -------------------------------------------------------------------------------------


def parse(data: bytes) -> Any:
    """Strict JSON, nested at most 32 deep."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        require(len(dict(pairs)) == len(pairs))
        return dict(pairs)

    def number(text: str) -> float:
        require(math.isfinite(float(text)))
        return float(text)

    def constant(text: str) -> None:
        raise ValueError(text)

    value = json.loads(data.decode(), object_pairs_hook=unique, parse_float=number, parse_constant=constant)
    require(depth(value) <= 32)
    return value


def depth(value: Any) -> int:
    level, deep = [value], 0
    while level := [one for one in level if isinstance(one, dict | list)]:
        deep += 1
        level = [child for one in level for child in (one.values() if isinstance(one, dict) else one)]
    return deep


def canonical(value: Any) -> bytes:
    """J: RFC 8785."""
    if isinstance(value, dict):
        names = sorted(value, key=lambda name: name.encode("utf-16-be"))
        return b"{" + b",".join(canonical(name) + b":" + canonical(value[name]) for name in names) + b"}"
    if isinstance(value, list):
        return b"[" + b",".join(map(canonical, value)) + b"]"
    if isinstance(value, float):
        return ecmascript(value).encode()
    if isinstance(value, int) and not isinstance(value, bool):
        require(abs(value) < 2**53)
    return json.dumps(value, ensure_ascii=False).encode()


def ecmascript(value: float) -> str:
    """A number as ECMAScript prints it: the shortest digits, with an exponent only below 1e-6 and from 1e21."""
    if value == 0:
        return "0"
    sign, (digits, exponent) = ("-" if value < 0 else ""), shortest(abs(value))
    point = len(digits) + exponent  # digits before the point
    if 0 < point <= 21:
        return sign + (digits + "0" * exponent if exponent >= 0 else f"{digits[:point]}.{digits[point:]}")
    if -6 < point <= 0:
        return f"{sign}0.{'0' * -point}{digits}"
    mantissa = digits if len(digits) == 1 else f"{digits[0]}.{digits[1:]}"
    return f"{sign}{mantissa}e{'+' if point > 0 else '-'}{abs(point - 1)}"


def shortest(value: float) -> tuple[str, int]:
    """Digits without zeros at the ends, and the power of ten behind them."""
    mantissa, _, power = repr(value).partition("e")
    whole, _, fraction = mantissa.partition(".")
    digits, exponent = (whole + fraction).lstrip("0"), int(power or 0) - len(fraction)
    stripped = digits.rstrip("0")
    return stripped, exponent + len(digits) - len(stripped)


def same(one: Any, other: Any) -> bool:
    return canonical(one) == canonical(other)


def encode(domain: str, *fields: bytes | str | int) -> bytes:
    """E: the length-prefixed encoding."""
    out = b"sisa/v1/" + domain.encode() + b"\0"
    for field in fields:
        data = field if isinstance(field, bytes) else str(field).encode()
        out += len(data).to_bytes(8, "big") + data
    return out


def h(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def d(domain: str, *fields: bytes | str | int) -> str:
    return h(encode(domain, *fields)).hex()


def k(key: bytes, domain: str, *fields: bytes | str | int) -> str:
    return hmac.digest(key, encode(domain, *fields), "sha256").hex()


def node(left: bytes, right: bytes) -> bytes:
    return h(b"\x01" + left + right)


def from_base64(text: str) -> bytes:
    data = base64.b64decode(text, validate=True)
    require(base64.b64encode(data).decode() == text)
    return data


def require(condition: object) -> None:
    if not condition:
        raise ValueError


def checkpoint_key(recipe: str, shard: int, link: Any, parent: str) -> str:
    return d("checkpoint", recipe, shard, link["chain"], link["slice"], parent, link["records"])


def lineage_digest(before: str, link: Any, environment: Any) -> str:
    return d("lineage", before, link["key"], link["tensors"], link["root"], canonical(environment))


def manifest_digest(recipe: str, heads: list[Any]) -> str:
    return d("manifest", recipe, canonical([[head["shard"], head["checkpoint"], head["tensors"]] for head in heads]))


def targets_digest(targets: Any, suppression: str) -> str:
    return d("files", "suppression", suppression, "targets", h(canonical(targets)).hex())


def tag_of(key: bytes, namespace: str, record_id: str, version: int) -> str:
    return k(key, "tag", namespace, record_id, version)


def commitment_to(record: Any, salt: bytes) -> str:
    return k(salt, "commitment", canonical(record))


def key_commitment(key: bytes) -> str:
    return d("key-commitment/tag", key)


# -- 3: the file ----------------------------------------------------------------------------------


def text(value: Any) -> bool:
    return isinstance(value, str)


def thing(value: Any) -> bool:
    return isinstance(value, dict)


def count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53


def hexed(value: Any) -> bool:
    return text(value) and re.fullmatch("[0-9a-f]{64}", value) is not None


def hashes(value: Any) -> bool:
    return isinstance(value, list) and len(value) <= 64 and all(map(hexed, value))


def one(value: Any) -> bool:
    return count(value) and value == 1


class Mapped:
    """Any names, all of one kind, over values of one kind."""

    def __init__(self, name: Callable[[Any], bool], value: Any) -> None:
        self.name, self.value = name, value


PROOF = {"siblings": text, "occupant": text}
FACT = {"seq": count, "kind": text, "body": thing, "created": text, "proof": hashes}
LOG = {"origin": text, "head": text, "facts": [FACT]}
ENVELOPE = {"payload": text, "payloadType": text, "signatures": [thing]}
LINK = dict.fromkeys(("slice", "chain", "environment"), count)
LINK |= dict.fromkeys(("records", "key", "root", "tensors"), hexed)
CERTIFICATE = {
    "version": one, "statement": lambda value: value in ("deleted", "not-present"), "issued": text, "clock": text,
    "supersedes": lambda value: value is None or hexed(value),
    "issuer": {"program": text, "code": hexed, "public_key": text}, "log": LOG,
    "request": {
        "id": text, "accepted": text, "suppression": hexed, "references": Mapped(text, hexed),
        "targets": {"tags": [hexed], "tombstones": [hexed], "absent": [hexed], "salt": hexed},
    },
    "recipe": hexed, "keys": hexed, "namespace": text, "before": thing, "after": thing, "impact": thing,
    "kept": [hexed], "purged": [hexed], "retrained": [hexed], "lineages": [{"shard": count, "links": [LINK]}],
    "environments": [Mapped(text, text)],
    "prior": [{"tag": hexed, "fact": count, "commitment": hexed, "proof": PROOF}], "absence": Mapped(hexed, [PROOF]),
    "records": {"surviving": count, "digest": hexed}, "erasure": [thing], "handed_out": [thing],
    "replay": {"recipe": thing, "seeds": text, "how": text, "expected": text},
    "law": [{"level": text, "name": text, "outcome": text, "detail": text}], "not_claimed": [text],
}  # fmt: skip
RECEIPT = {
    "version": one, "issued": text, "clock": text, "log": LOG, "namespace": text, "record": thing,
    "tag": hexed, "salt": hexed, "commitment": hexed, "proof": PROOF,
}  # fmt: skip
OUTER = {
    "mediaType": lambda value: value == "application/vnd.sisa.deletion-certificate.v1+json",
    "envelope": ENVELOPE, "sealed": {"created": text, "proof": text, "consistency": hashes},
}  # fmt: skip


def shaped(value: Any, shape: Any) -> None:
    """Exactly these fields, of these kinds."""
    if isinstance(shape, Mapped):
        require(isinstance(value, dict) and all(map(shape.name, value)))
        for part in value.values():
            shaped(part, shape.value)
    elif isinstance(shape, dict):
        require(isinstance(value, dict) and value.keys() == shape.keys())
        for name, part in value.items():
            shaped(part, shape[name])
    elif isinstance(shape, list):
        require(isinstance(value, list))
        for part in value:
            shaped(part, shape[0])
    else:
        require(shape(value))


def open_envelope(envelope: Any, predicate_type: str, shape: Any) -> tuple[Any, Any]:
    """Subject and predicate of a DSSE envelope; no signature is looked at."""
    shaped(envelope, ENVELOPE)
    require(envelope["payloadType"] == "application/vnd.in-toto+json")
    keyids = [signature.get("keyid") for signature in envelope["signatures"]]
    require(len(keyids) <= 16 and len(set(keyids)) == len(keyids) and all(map(text, keyids)))
    for signature in envelope["signatures"]:
        from_base64(signature.get("sig"))
    payload = from_base64(envelope["payload"])
    statement = parse(payload)
    require(canonical(statement) == payload)
    shaped(
        statement,
        {
            "_type": lambda value: value == "https://in-toto.io/Statement/v1",
            "predicateType": lambda value: value == predicate_type,
            "subject": [{"name": text, "digest": {"sha256": hexed}}],
            "predicate": shape,
        },
    )
    return statement["subject"], statement["predicate"]


def signs(key: Ed25519PublicKey | None, envelope: Any) -> bool:
    kind, payload = envelope["payloadType"].encode(), from_base64(envelope["payload"])
    signed = b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)
    return any(valid(key, from_base64(signature["sig"]), signed) for signature in envelope["signatures"])


def valid(key: Ed25519PublicKey | None, signature: bytes, data: bytes) -> bool:
    try:
        require(key is not None)
        key.verify(signature, data)  # type: ignore[union-attr]
    except (InvalidSignature, ValueError):
        return False
    return True


def public_key(pem: str) -> Ed25519PublicKey:
    key = load_pem_public_key(pem.encode())
    require(isinstance(key, Ed25519PublicKey) and to_pem(key) == pem)
    return key  # type: ignore[return-value]


def to_pem(key: Ed25519PublicKey | None) -> str:
    return "" if key is None else key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


# -- 4: the log -----------------------------------------------------------------------------------


def leaf(fact: Any) -> bytes:
    return h(b"\x00" + canonical({name: fact[name] for name in ("seq", "kind", "body", "created")}))


def included(root: bytes, size: int, index: int, start: bytes, proof: list[bytes]) -> bool:
    if not 0 <= index < size < 2**63:
        return False
    rest, last, at = list(proof), size - 1, start
    while last:
        if index % 2 or index < last:
            if not rest:
                return False
            beside = rest.pop(0)
            at = node(beside, at) if index % 2 else node(at, beside)
        index, last = index // 2, last // 2
    return not rest and at == root


def consistent(old: int, old_root: bytes, new: int, new_root: bytes, proof: list[bytes]) -> bool:
    if not 0 < old <= new < 2**63:
        return False
    if old == new:
        return old_root == new_root and not proof
    rest, index, last = list(proof), old - 1, new - 1
    while index % 2:
        index, last = index // 2, last // 2
    if index and not rest:
        return False
    a = b = rest.pop(0) if index else old_root
    while last:
        if index % 2 or index < last:
            if not rest:
                return False
            beside = rest.pop(0)
            a, b = (node(beside, a), node(beside, b)) if index % 2 else (a, node(b, beside))
        index, last = index // 2, last // 2
    return not rest and (a, b) == (old_root, new_root)


class Head:
    """A signed tree head, taken apart."""

    def __init__(self, note: str) -> None:
        require(len(note.encode()) <= 16 * 1024)
        self.text, blank, tail = note.rpartition("\n\n")
        self.text += "\n"
        *lines, end = tail.split("\n")
        require(blank and not end and 1 <= len(lines) <= 16)
        self.signatures = [self.signature(line) for line in lines]
        self.origin, size, root, _ = self.text.split("\n")
        require(name_of_key(self.origin))
        self.size, self.root = natural(size), from_base64(root)
        require(self.size < 2**63 and len(self.root) == 32)

    @staticmethod
    def signature(line: str) -> tuple[str, bytes]:
        require(line.startswith("\u2014 "))
        name, _, encoded = line[2:].partition(" ")
        data = from_base64(encoded)
        require(name_of_key(name) and len(data) > 4)
        return name, data

    def signed_by(self, key: Ed25519PublicKey | None) -> bool:
        if key is None:
            return False
        own = h(self.origin.encode() + b"\n\x01" + key.public_bytes_raw())[:4]
        mine = [data[4:] for name, data in self.signatures if name == self.origin and data[:4] == own]
        return bool(mine) and all(valid(key, signature, self.text.encode()) for signature in mine)


def name_of_key(name: str) -> bool:
    return bool(name) and not re.search(r"[\s+\x00-\x1f\x7f-\x9f]", name)


def natural(digits: str) -> int:
    require(re.fullmatch("0|[1-9][0-9]{0,18}", digits))
    return int(digits)


def open_seal(proof: str) -> tuple[int, list[bytes], Head]:
    require(len(proof.encode()) <= 64 * 1024)
    top, _, note = proof.partition("\n\n")
    version, index, *lines = top.split("\n")
    require(version == "c2sp.org/tlog-proof@v1" and index.startswith("index "))
    path, head, at = [from_base64(line) for line in lines], Head(note), natural(index.removeprefix("index "))
    require(len(path) <= 63 and all(len(one) == 32 for one in path) and at < head.size)
    return at, path, head


def unhex(values: list[str]) -> list[bytes]:
    return [bytes.fromhex(value) for value in values]


def keys_in_force(facts: list[Any], pinned: list[Ed25519PublicKey]) -> Keys:
    keys: Keys = []
    named = [fact for fact in facts if fact["kind"] in ("genesis/1", "key/1")]
    for fact in named:
        key = public_key(fact["body"]["public_key"])
        counts = not pinned or not keys or key in pinned
        if not counts and keys[-1][1] is not None:
            said = f"sisa-key-endorsement\n{named[0]['body']['log']}\n{fact['body']['public_key']}"
            counts = valid(keys[-1][1], bytes.fromhex(fact["body"]["endorsement"] or ""), said.encode())
        keys.append((fact["seq"], key if counts else None))
    return keys


def key_at(keys: Keys, size: int) -> Ed25519PublicKey | None:
    return next((key for seq, key in reversed(keys) if seq <= size), None)


def in_force(head: Head, origin: str, keys: Keys) -> bool:
    return head.origin == origin and head.signed_by(key_at(keys, head.size))


def all_logged(facts: list[Any], head: Head) -> bool:
    return all(included(head.root, head.size, fact["seq"] - 1, leaf(fact), unhex(fact["proof"])) for fact in facts)


def whole_log(facts: list[Any], head: Head) -> bool:
    """Every fact is in the head's tree, in order, the first one first."""
    seqs = [fact["seq"] for fact in facts]
    first = facts and seqs[0] == 1 and facts[0]["kind"] == "genesis/1" and facts[0]["body"]["log"] == head.origin
    return bool(first) and seqs == sorted(set(seqs)) and all_logged(facts, head)


# -- 5: slices ------------------------------------------------------------------------------------


def leads(root: str, tag: str, start: bytes, siblings: list[bytes]) -> bool:
    if len(siblings) > 256 or (siblings and siblings[-1] == EMPTY):
        return False
    bits, at = f"{int(tag, 16):0256b}", start
    for deep in reversed(range(len(siblings))):
        at = node(siblings[deep], at) if bits[deep] == "1" else node(at, siblings[deep])
    return at.hex() == root


def open_proof(proof: Any) -> tuple[list[bytes], list[bytes]]:
    parts = []
    for name in ("siblings", "occupant"):
        require(re.fullmatch("([0-9a-f]{64})*", proof[name]))
        data = bytes.fromhex(proof[name])
        parts.append([data[at : at + 32] for at in range(0, len(data), 32)])
    require(len(parts[0]) <= 256 and len(parts[1]) in (0, 2))
    return parts[0], parts[1]


def present(root: str, tag: str, value: str, proof: Any) -> bool:
    require(hexed(root))
    siblings, occupant = open_proof(proof)
    start = h(b"\x00" + bytes.fromhex(tag) + h(bytes.fromhex(value)))
    return not occupant and leads(root, tag, start, siblings)


def absent(root: str, tag: str, proof: Any) -> bool:
    siblings, occupant = open_proof(proof)
    if not occupant:
        return leads(root, tag, EMPTY, siblings)
    shared = 256 - (int(tag, 16) ^ int.from_bytes(occupant[0], "big")).bit_length()
    return len(siblings) <= shared < 256 and leads(root, tag, h(b"\x00" + occupant[0] + occupant[1]), siblings)


# -- 6: the checks --------------------------------------------------------------------------------


def verify(
    certificate: bytes,
    public_keys: tuple[bytes, ...] = (),
    receipt: bytes | None = None,
    tag_key: tuple[bytes, str] | None = None,
    head: bytes | None = None,
    extension: bytes | None = None,
) -> list[Outcome]:
    """Every check of the page's section 6.

    Args:
        certificate, receipt, head, extension: the files' bytes.
        public_keys: PEM.
        tag_key: the key file's bytes, and the ID.

    Raises:
        UnusableError: if a file of the reader's cannot be read.
    """
    try:
        outer = parse(certificate)
        shaped(outer, OUTER)
        seal = open_seal(outer["sealed"]["proof"])
        subject, p = open_envelope(outer["envelope"], "urn:sisa:deletion-certificate:v1", CERTIFICATE)
    except (ValueError, TypeError, RecursionError):
        return [("V0", "the file is a deletion certificate", "failed")]
    checks: list[Outcome] = [("V0", "the file is a deletion certificate", "passed")]
    with reader():
        loaded = [load_pem_public_key(pem) for pem in public_keys]
        pinned = [key for key in loaded if isinstance(key, Ed25519PublicKey)]
        require(len(pinned) == len(loaded))
    unanswered = False
    questions: list[Callable[[], list[Outcome]]] = [
        lambda: origin(outer, p, pinned),
        lambda: in_log(outer, p, seal, pinned),
        lambda: fields(p),
        lambda: lineages(p, subject),
        lambda: freshness(p, seal[0] + 1, seal[2], pinned, head, extension),
        lambda: gone(p),
        lambda: there_before(p),
        lambda: binding(p, pinned, receipt, tag_key),
    ]
    for ask in questions:
        try:
            checks += ask()
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError):
            unanswered = True
    if unanswered:
        checks.append(("V0", "the certificate's fields fit together", "failed"))
    return checks


@contextmanager
def reader() -> Iterator[None]:
    try:
        yield
    except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise UnusableError(str(error)) from error


def outcome(level: str, name: str, holds: object) -> Outcome:
    return level, name, "passed" if holds else "failed"


def of_kind(p: Any, kind: str) -> list[Any]:
    return [fact for fact in p["log"]["facts"] if fact["kind"] == kind]


def only(p: Any, kind: str) -> Any:
    (fact,) = of_kind(p, kind)
    return fact


def origin(outer: Any, p: Any, pinned: list[Ed25519PublicKey]) -> list[Outcome]:
    inside = public_key(p["issuer"]["public_key"])
    signed = signs(inside, outer["envelope"]) and (not pinned or inside in pinned)
    told = "passed" if signed and pinned else "not_checked"
    return [outcome("V1", "the signature is valid", signed), ("V1", "it was signed by the operator", told)]


def in_log(outer: Any, p: Any, seal: tuple[int, list[bytes], Head], pinned: list[Ed25519PublicKey]) -> list[Outcome]:
    facts, head, (index, path, later) = p["log"]["facts"], Head(p["log"]["head"]), seal
    keys = keys_in_force(facts, pinned)
    logged = whole_log(facts, head) and in_force(head, p["log"]["origin"], keys)
    logged = logged and to_pem(key_at(keys, head.size)) == p["issuer"]["public_key"]
    body = {"request_id": p["request"]["id"], "digest": h(canonical(outer["envelope"])).hex()}
    fact = {"seq": index + 1, "kind": "certificate/1", "body": body, "created": outer["sealed"]["created"]}
    sealed = (
        included(later.root, later.size, index, leaf(fact), path)
        and consistent(head.size, head.root, later.size, later.root, unhex(outer["sealed"]["consistency"]))
        and in_force(later, p["log"]["origin"], keys)
        and (not pinned or any(later.signed_by(key) for key in pinned))
    )
    return [
        outcome("V1", "the facts it rests on are in the operator's log", logged),
        outcome("V1", "the certificate itself is in the log", sealed),
    ]


def fields(p: Any) -> list[Outcome]:
    accepted, recipe, request = only(p, "request/1"), only(p, "recipe/1")["body"], p["request"]
    erasures, purges = of_kind(p, "erasure/1"), of_kind(p, "purge/1")
    require(all(request["id"] in fact["body"]["requests"] for fact in erasures + purges))
    said, deleted = accepted["body"], p["statement"] == "deleted"
    purged = sorted(key for fact in purges for key in fact["body"]["checkpoints"])
    planned = {key for shard in said["impact"]["shards"] for key in shard["purged"]}
    erased = erasure(p, accepted, erasures, purges) if deleted else []
    pairs = [
        (said["request_id"], request["id"]), (said["kind"], p["statement"]), (accepted["created"], request["accepted"]),
        (said["references"], request["references"]), (said["before"], p["before"]), (said["impact"], p["impact"]),
        (said["object"], targets_digest(request["targets"], request["suppression"])),
        (recipe["digest"], p["recipe"]), (recipe["keys"], p["keys"]), (recipe["namespace"], p["namespace"]),
        (recipe["recipe"], p["replay"]["recipe"]), (d("recipe", canonical(recipe["recipe"])), p["recipe"]),
        (purged, p["purged"]), (erased, p["erasure"]),
    ]  # fmt: skip
    holds = (
        all(same(*pair) for pair in pairs)
        and planned <= set(purged)
        and bool(p["law"] and p["not_claimed"])
        and all(asked["outcome"] in ("passed", "not_checked") for asked in p["law"])
        and deleted == bool(request["targets"]["tags"])
        and not (deleted and not erasures and not restored(p))
    )
    return [outcome("V1", "its fields are what the logged facts say", holds)]


def erasure(p: Any, accepted: Any, erasures: list[Any], purges: list[Any]) -> Any:
    """The page's own list, with its capitals filled in."""
    page = PAGE.read_text()
    kept = "all layers" if p["replay"]["recipe"].get("layers", "all") == "all" else "frozen layers"
    listed, forms, intermediate = (
        re.findall(rf"<!-- {name} -->\n```json\n(.*?)```", page, re.DOTALL)[0] for name in ("erasure", "backups", kept)
    )
    days, of_purges = accepted["body"]["backup_days"], "slice checkpoints from the first hit slice on"
    filled = json.loads(listed)
    at = filled.index("INTERMEDIATE")
    filled[at : at + 1] = json.loads(intermediate)
    values = {
        "PARTS": sorted(part for fact in erasures for part in fact["body"]["digests"]),
        "OBJECTS": sorted(part for fact in purges for part in fact["body"]["objects"]),
        "MARKS": [item["keyed_digest"] for item in p["handed_out"] if not item.get("kept")],
        "KEPT": [item["keyed_digest"] for item in p["handed_out"] if item.get("kept")],
    }
    if not values["KEPT"]:
        filled = [item for item in filled if item == "BACKUPS" or "exports" not in item["evidence"]]
    for at, item in enumerate(filled):
        if item == "BACKUPS":
            filled[at] = json.loads(forms)[days is not None]
            if days is not None:
                filled[at]["evidence"]["declared_days"] = days
                filled[at]["until"] = (
                    (datetime.fromisoformat(accepted["created"]) + timedelta(days=days)).date().isoformat()
                )
            continue
        removing = purges if item["class"].startswith(of_purges) else erasures
        values["FACTS"] = [fact["seq"] for fact in removing]
        item["evidence"] = {name: values.get(value, value) for name, value in item["evidence"].items()}
    return filled


def lineages(p: Any, subject: Any) -> list[Outcome]:
    accepted, manifest = only(p, "request/1"), only(p, "manifest/1")
    after, whole = manifest["body"], True
    keys: list[str] = []
    ends: dict[int, list[Any]] = {}
    used: set[int] = set()
    shards, trunk = apart(p["lineages"])
    root, before, steps = "", "", 0
    for lineage in [*trunk, *shards]:
        parent, last, end = root, -1, before
        for link in lineage["links"]:
            parent = checkpoint_key(p["recipe"], lineage["shard"], link, parent)
            whole = whole and link["key"] == parent and link["slice"] > last
            end = lineage_digest(end, link, p["environments"][link["environment"]])
            last = link["slice"]
            used.add(link["environment"])
            keys.append(parent)
        if lineage["shard"] == TRUNK:
            root, before, steps = parent, end, len(lineage["links"])
        elif lineage["links"]:
            ends[lineage["shard"]] = [parent, lineage["links"][-1]["tensors"], end, steps + len(lineage["links"])]
    whole = whole and [part["shard"] for part in shards] == list(range(len(shards)))
    whole = whole and len(shards) == p["replay"]["recipe"]["shards"]
    whole = whole and bool(not trunk or (steps and ends))
    whole = whole and used == set(range(len(p["environments"])))
    for head in after["heads"]:
        require(head.keys() == {"shard", "checkpoint", "tensors", "lineage", "steps"})
    heads = sorted(after["heads"], key=lambda head: head["shard"])
    served = {head["shard"]: [head[name] for name in ("checkpoint", "tensors", "lineage", "steps")] for head in heads}
    named = [("manifest", after["digest"]), *((f"shard-{head['shard']}", head["tensors"]) for head in heads)]
    logged = (
        same(after, p["after"])
        and after["digest"] == manifest_digest(after["recipe"], heads)
        and served == ends
        and len(served) == len(heads)
        and [(item["name"], item["digest"]["sha256"]) for item in subject] == named
        and (p["statement"] != "deleted" or manifest["seq"] > accepted["seq"])
    )
    unpurged = not set(p["purged"]) & set(keys) and sorted(p["kept"] + p["retrained"]) == sorted(set(keys))
    return [
        outcome("V1", "every lineage is whole and hashes to its keys", whole),
        outcome("V1", "heads, subjects and lineages are those of the logged manifest", logged),
        outcome("V1", "no purged checkpoint is in a served lineage", unpurged),
    ]


def apart(lineages: list[Any]) -> tuple[list[Any], list[Any]]:
    """The shards' lineages, and the trunk's, which is the last if there is one."""
    trunk = [part for part in lineages[-1:] if part["shard"] == TRUNK]
    return lineages[: len(lineages) - len(trunk)], trunk


def gone(p: Any) -> list[Outcome]:
    targets, proofs = p["request"]["targets"], p["absence"]
    shards, trunk = apart(p["lineages"])
    below = sum(len(lineage["links"]) for lineage in trunk)
    steps = sum(below + len(lineage["links"]) for lineage in shards if lineage["links"])
    roots = [link["root"] for lineage in p["lineages"] for link in lineage["links"]]
    wanted = {*targets["tombstones"], *targets["absent"]}
    holds = bool(wanted) and proofs.keys() == wanted and set(targets["tags"]) <= set(targets["tombstones"])
    holds = holds and steps == sum(head["steps"] for head in p["after"].get("heads", []))
    for tag, given in proofs.items():
        if len(given) != len(roots):
            holds = False
            continue
        for root, proof in zip(roots, given, strict=True):
            holds = absent(root, tag, proof) and holds
    return [outcome("V2", "the records are in no slice that the served heads were trained on", holds)]


def there_before(p: Any) -> list[Outcome]:
    name, tags = "the deleted records had been committed to before", p["request"]["targets"]["tags"]
    if not tags:
        return [("V2", name, "not_checked")]
    missing = set(tags) - {entry["tag"] for entry in p["prior"]} if restored(p) else set[str]()
    if not committed(p, sorted(set(tags) - missing)):
        return [("V2", name, "failed")]
    return [("V2", name, "not_checked" if missing else "passed")]


def restored(p: Any) -> bool:
    name: str = p["request"]["id"]
    return any(name in fact["body"]["requests"] for fact in of_kind(p, "restore/1"))


def committed(p: Any, tags: list[str]) -> bool:
    if not tags:
        return not p["prior"]
    accepted = only(p, "request/1")
    slices = {fact["seq"]: fact["body"] for fact in of_kind(p, "slice/1") if fact["seq"] <= accepted["seq"]}
    there: bool = sorted(entry["tag"] for entry in p["prior"]) == sorted(set(tags))
    for entry in p["prior"]:
        body = slices.get(entry["fact"])
        there = bool(body and present(body["root"], entry["tag"], entry["commitment"], entry["proof"])) and there
    return there


# -- 7: freshness ---------------------------------------------------------------------------------


def freshness(
    p: Any, sealing: int, seal: Head, pinned: list[Ed25519PublicKey], note: bytes | None, extension: bytes | None
) -> list[Outcome]:
    level, name = "V1", "the certified release is the current one"
    if note is None:
        return [(level, name, "not_checked")]
    with reader():
        head = Head(note.decode())
        said = parse(extension) if extension is not None else {"consistency": [], "facts": []}
        shaped([said["consistency"], *(fact["proof"] for fact in said["facts"])], [hashes])
        shaped(said["facts"], [FACT])
        facts, consistency = said["facts"], unhex(said["consistency"])
        keys = keys_in_force([*p["log"]["facts"], *facts], pinned)
    if extension is None and head.size != seal.size:
        return [(level, name, "not_checked")]
    goes_on = consistent(seal.size, seal.root, head.size, head.root, consistency)
    if not (in_force(head, seal.origin, keys) and goes_on and all_logged(facts, head)):
        return [(level, name, "failed")]
    shown = {fact["seq"]: fact for fact in [*p["log"]["facts"], *facts]}
    since = range(only(p, "manifest/1")["seq"] + 1, head.size + 1)
    if set(since) - shown.keys() - {sealing}:
        return [(level, name, "not_checked")]
    later = [shown[seq] for seq in since if seq in shown and seq != sealing]
    releases = [fact["body"]["digest"] for fact in later if fact["kind"] == "manifest/1"]
    return [outcome(level, name, releases[-1:] in ([], [p["after"]["digest"]]))]


# -- 8: whose record ------------------------------------------------------------------------------


def binding(
    p: Any, pinned: list[Ed25519PublicKey], receipt: bytes | None, tag_key: tuple[bytes, str] | None
) -> list[Outcome]:
    level, name = "V2", "the tags belong to the reader's record"
    if receipt is not None:
        with reader():
            return [outcome(level, name, bound_by_receipt(p, pinned, parse(receipt)))]
    if tag_key is not None:
        with reader():
            key = bytes.fromhex(tag_key[0].decode().strip())
            require(len(key) == 32)
        targets = p["request"]["targets"]
        tags = {*targets["tombstones"], *targets["absent"]}
        made = {tag_of(key, p["namespace"], tag_key[1], version) for version in range(1, len(tags) + 1)}
        committed_to = p["log"]["facts"][0]["body"]["keys"]["tag"]
        return [outcome(level, name, committed_to == key_commitment(key) and tags & made)]
    return [(level, name, "not_checked")]


def bound_by_receipt(p: Any, pinned: list[Ed25519PublicKey], envelope: Any) -> bool:
    _, said = open_envelope(envelope, "urn:sisa:ingestion-receipt:v1", RECEIPT)
    head, facts = Head(said["log"]["head"]), said["log"]["facts"]
    keys = keys_in_force(p["log"]["facts"], pinned)
    slices = [fact["body"]["root"] for fact in facts if fact["kind"] == "slice/1"]
    prior = {entry["tag"]: entry["commitment"] for entry in p["prior"]}
    there = len(slices) == 1 and present(slices[0], said["tag"], said["commitment"], said["proof"])
    return (
        there
        and whole_log(facts, head)
        and in_force(head, p["log"]["origin"], keys)
        and any(signs(key, envelope) for key in [*pinned, key_at(keys, head.size)])
        and commitment_to(said["record"], bytes.fromhex(said["salt"])) == said["commitment"]
        and prior.get(said["tag"]) == said["commitment"]
    )
