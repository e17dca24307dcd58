"""The forms of what is handed out: deletion certificates and ingestion receipts, taken apart.

A certificate file is an in-toto Statement v1 in a DSSE envelope, and beside it the proof that the
envelope's digest is in the operator's log. A receipt file is such an envelope alone. Nothing here
trusts what it reads: it only says whether the parts are there and of their kinds (level V0).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from securesystemslib.dsse import Envelope

from shards.digest import bytes_digest, canonical_json, parse_json
from shards.errors import InputError
from shards.fact import Fact
from shards.note import LogProof
from sisa.signing import read_envelope

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
CERTIFICATE_TYPE = "urn:sisa:deletion-certificate:v1"
RECEIPT_TYPE = "urn:sisa:ingestion-receipt:v1"
MEDIA_TYPE = "application/vnd.sisa.deletion-certificate.v1+json"
MAX_BYTES = 256 * 2**20
MAX_DEPTH = 32


@dataclass(frozen=True, slots=True)
class LoggedFact:
    """A fact of the log with the proof that it is there."""

    fact: Fact
    proof: tuple[bytes, ...]

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> LoggedFact:
        """A fact as a certificate states it."""
        fact = Fact(document["seq"], document["kind"], document["body"], document["created"])
        if not (_is_count(fact.seq) and isinstance(fact.kind, str) and isinstance(fact.created, str)):
            raise TypeError("a fact whose number, kind or time is of another kind")
        if not isinstance(fact.body, dict):
            raise TypeError("a fact without a body")
        return cls(fact, read_hashes(document["proof"]))


@dataclass(frozen=True, slots=True)
class Sealed:
    """The proof that a certificate's envelope is in the log.

    Attributes:
        created: when its fact was appended, by the operator's clock.
        proof: place, inclusion proof and signed tree head.
        consistency: that this head extends the one inside the certificate.
    """

    created: str
    proof: LogProof
    consistency: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Document:
    """A certificate or receipt, taken apart.

    Attributes:
        envelope: what is signed, with its signatures.
        digest: digest (hex) of the envelope, which the log names.
        subject: the statement's subjects.
        predicate: what it says.
        sealed: its place in the log (certificates only).
    """

    envelope: Envelope
    digest: str
    subject: list[dict[str, Any]]
    predicate: dict[str, Any]
    sealed: Sealed | None

    def facts(self) -> list[LoggedFact]:
        """The facts that the predicate rests on."""
        return [LoggedFact.from_json(fact) for fact in self.predicate["log"]["facts"]]


def envelope_digest(envelope: Mapping[str, Any]) -> str:
    """Plain SHA-256 (hex) of an envelope in canonical JSON."""
    return bytes_digest(canonical_json(dict(envelope)))


def read_limited(path: Path) -> bytes:
    """A file's bytes.

    Raises:
        InputError: if it cannot be read or is larger than any certificate.
    """
    try:
        with path.open("rb") as handle:
            data = handle.read(MAX_BYTES + 1)
    except OSError as error:
        raise InputError(f"a readable file {path}", str(error.strerror), "check the path") from error
    if len(data) > MAX_BYTES:
        raise InputError(f"a file of at most {MAX_BYTES} bytes", "a larger file", "check the path")
    return data


def write_certificate(envelope: Mapping[str, Any], sealed: Mapping[str, Any]) -> bytes:
    """The bytes of a certificate file."""
    document = {"mediaType": MEDIA_TYPE, "envelope": dict(envelope), "sealed": dict(sealed)}
    return json.dumps(document, indent=1).encode() + b"\n"


def read_certificate(data: bytes) -> Document:
    """Take a certificate file apart.

    Raises:
        ValueError, TypeError, KeyError: if a part is missing or of another kind.
    """
    outer = _bounded(data)
    if outer["mediaType"] != MEDIA_TYPE or outer.keys() != {"mediaType", "envelope", "sealed"}:
        raise ValueError(f"media type {outer['mediaType']!r} with {sorted(outer)}, expected {MEDIA_TYPE!r}")
    sealed = outer["sealed"]
    if sealed.keys() != {"created", "proof", "consistency"} or not isinstance(sealed["created"], str):
        raise ValueError("a seal with other fields")
    seal = Sealed(sealed["created"], LogProof.parse(sealed["proof"]), read_hashes(sealed["consistency"]))
    document = _document(outer["envelope"], CERTIFICATE_TYPE, seal)
    _check_certificate(document.predicate)
    return document


def read_receipt(data: bytes) -> Document:
    """Take an ingestion receipt apart.

    Raises:
        ValueError, TypeError, KeyError: if a part is missing or of another kind.
    """
    document = _document(_bounded(data), RECEIPT_TYPE, None)
    predicate = document.predicate
    for name in ("tag", "salt", "commitment"):
        _hex(predicate[name])
    if not isinstance(predicate["record"], dict) or not isinstance(predicate["proof"], dict):
        raise TypeError("a record or a proof that is no object")
    _check_log(predicate["log"])
    return document


def _document(outer: dict[str, Any], predicate_type: str, sealed: Sealed | None) -> Document:
    envelope = read_envelope(outer)
    statement = _bounded(envelope.payload)
    if statement["_type"] != STATEMENT_TYPE:
        raise ValueError(f"statement type {statement['_type']!r}, expected {STATEMENT_TYPE!r}")
    if statement["predicateType"] != predicate_type or statement["predicate"]["version"] != 1:
        raise ValueError(f"predicate {statement['predicateType']!r}, expected {predicate_type!r} version 1")
    if statement.keys() != {"_type", "subject", "predicateType", "predicate"}:
        raise ValueError(f"a statement with {sorted(statement)}")
    return Document(envelope, envelope_digest(outer), statement["subject"], statement["predicate"], sealed)


def _bounded(data: bytes) -> dict[str, Any]:
    document = parse_json(data)
    if not isinstance(document, dict):
        raise TypeError("JSON that is no object")
    level: list[Any] = [document]
    for _ in range(MAX_DEPTH):
        level = [
            child
            for value in level
            for child in (value.values() if isinstance(value, dict) else value)
            if isinstance(child, dict | list)
        ]
    if level:
        raise ValueError(f"JSON nested deeper than {MAX_DEPTH}")
    return document


def _check_certificate(predicate: dict[str, Any]) -> None:
    """Are the fields there that the checks read, and of their kinds? What they say is not looked at."""
    request, after, lineages = predicate["request"], predicate["after"], predicate["lineages"]
    texts = [predicate[name] for name in ("statement", "recipe", "keys", "namespace")]
    texts += [request["id"], request["accepted"], request["suppression"], predicate["issuer"]["public_key"]]
    texts += [head[name] for head in after.get("heads", []) for name in ("checkpoint", "tensors", "lineage")]
    texts += [key for name in ("kept", "purged", "retrained") for key in predicate[name]]
    texts += [link[name] for lineage in lineages for link in lineage["links"] for name in ("key", "records", "tensors")]
    texts += [key for facts in predicate["environments"] for key in facts.values()]
    if not all(isinstance(text, str) for text in texts):
        raise TypeError("a field that must be text is not")
    numbers = [entry["shard"] for entry in (*predicate["impact"]["shards"], *lineages, *after.get("heads", []))]
    numbers += [link[n] for lineage in lineages for link in lineage["links"] for n in ("slice", "chain", "environment")]
    numbers += [head["steps"] for head in after.get("heads", [])]
    if not all(map(_is_count, numbers)):
        raise TypeError("a shard, slice or count that is no whole number")
    targets = request["targets"]
    for tag in (*targets["tags"], *targets["tombstones"], *targets["absent"], *predicate["absence"]):
        _hex(tag)
    for link in (link for lineage in lineages for link in lineage["links"]):
        _hex(link["root"])
    if not isinstance(predicate["not_claimed"], list) or not isinstance(predicate["law"], list):
        raise TypeError("a list that is none")
    _check_log(predicate["log"])


def _check_log(log: dict[str, Any]) -> None:
    if not isinstance(log["origin"], str) or not isinstance(log["head"], str):
        raise TypeError("a log without name or head")
    for fact in log["facts"]:
        LoggedFact.from_json(fact)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53


def _hex(text: object) -> bytes:
    """32 bytes from 64 lower-case hex digits, spelt in the one way."""
    data = bytes.fromhex(text) if isinstance(text, str) else b""
    if len(data) != 32 or data.hex() != text:
        raise ValueError("a digest that is not 64 hex digits")
    return data


def read_hashes(texts: object) -> tuple[bytes, ...]:
    """The hashes of a proof from hex texts."""
    if not isinstance(texts, list) or len(texts) > 64:
        raise ValueError("a proof that is no list of at most 64 hashes")
    return tuple(map(_hex, texts))
