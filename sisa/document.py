"""The forms of what is handed out: deletion certificates and ingestion receipts, taken apart.

A certificate file is an in-toto Statement v1 in a DSSE envelope, and beside it the proof that the
envelope's digest is in the operator's log. A receipt file is such an envelope alone. Nothing here
trusts what it reads: it only says whether the parts are there and of their kinds (level V0).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shards.digest import bytes_digest, canonical_json, parse_json
from shards.errors import InputError
from shards.fact import Fact
from shards.note import LogProof
from sisa.signing import read_envelope

if TYPE_CHECKING:
    from securesystemslib.dsse import Envelope

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
CERTIFICATE_TYPE = "urn:sisa:deletion-certificate:v1"
RECEIPT_TYPE = "urn:sisa:ingestion-receipt:v1"
MEDIA_TYPE = "application/vnd.sisa.deletion-certificate.v1+json"
MAX_BYTES = 256 * 2**20
MAX_DEPTH = 32
MAX_SIGNATURES = 16


@dataclass(frozen=True, slots=True)
class LoggedFact:
    """A fact of the log with the proof that it is there."""

    fact: Fact
    proof: tuple[bytes, ...]

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> LoggedFact:
        """A fact as a certificate states it."""
        _matches(document, _FACT, "fact")
        fact = Fact(document["seq"], document["kind"], document["body"], document["created"])
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
    if seal.proof.text() != sealed["proof"]:
        raise ValueError("a proof that is not spelt as it is when it is written")
    return _document(outer["envelope"], CERTIFICATE_TYPE, _CERTIFICATE, seal)


def read_unsealed(envelope: dict[str, Any]) -> Document:
    """A certificate's envelope that is not in the log yet.

    Raises:
        ValueError, TypeError, KeyError: if a part is missing or of another kind.
    """
    return _document(envelope, CERTIFICATE_TYPE, _CERTIFICATE, None)


def read_receipt(data: bytes) -> Document:
    """Take an ingestion receipt apart.

    Raises:
        ValueError, TypeError, KeyError: if a part is missing or of another kind.
    """
    return _document(_bounded(data), RECEIPT_TYPE, _RECEIPT, None)


def _document(outer: dict[str, Any], predicate_type: str, shape: dict[str, Any], sealed: Sealed | None) -> Document:
    envelope = read_envelope(outer)
    if len(envelope.signatures) > MAX_SIGNATURES:
        raise ValueError(f"more than {MAX_SIGNATURES} signatures")
    statement = _bounded(envelope.payload)
    if statement["_type"] != STATEMENT_TYPE:
        raise ValueError(f"statement type {statement['_type']!r}, expected {STATEMENT_TYPE!r}")
    if statement["predicateType"] != predicate_type or not _is_version(statement["predicate"]["version"]):
        raise ValueError(f"predicate {statement['predicateType']!r}, expected {predicate_type!r} version 1")
    if statement.keys() != {"_type", "subject", "predicateType", "predicate"}:
        raise ValueError(f"a statement with {sorted(statement)}")
    if canonical_json(statement) != envelope.payload:  # so that no two readers understand it differently
        raise ValueError("a statement that is not in canonical JSON")
    _matches(statement["subject"], [{"name": _is_text, "digest": {"sha256": _is_digest}}], "subject")
    _matches(statement["predicate"], shape, "predicate")
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


def _matches(value: Any, shape: Any, where: str) -> None:
    """Does ``value`` have exactly the fields of ``shape``, and are they of their kinds? What they say is not looked at.

    A shape is a question to ask, ``[shape]`` for a list, ``{name: shape}`` for an object of these
    names, or ``{question: shape}`` for an object of any names that answer it.

    Raises:
        ValueError: naming the first place where it is not so.
    """
    if isinstance(shape, list):
        if not isinstance(value, list):
            raise ValueError(f"{where} is no list")
        for at, item in enumerate(value):
            _matches(item, shape[0], f"{where}[{at}]")
    elif isinstance(shape, dict):
        question = next(iter(shape))
        closed = isinstance(question, str)
        if not isinstance(value, dict) or not (value.keys() == shape.keys() if closed else all(map(question, value))):
            raise ValueError(f"{where} is no object of the fields expected")
        for name, item in value.items():
            _matches(item, shape[name if closed else question], f"{where}.{name}")
    elif not shape(value):
        raise ValueError(f"{where} is not as it is written: {str(value)[:32]!r}")


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_object(value: object) -> bool:
    return isinstance(value, dict)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53


def _is_version(value: object) -> bool:
    return _is_count(value) and value == 1


def _is_statement(value: object) -> bool:
    return value in ("deleted", "not-present")


def _is_digest(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None


def _is_digest_or_null(value: object) -> bool:
    return value is None or _is_digest(value)


_SPARSE = {"siblings": _is_text, "occupant": _is_text}
_FACT = {"seq": _is_count, "kind": _is_text, "body": _is_object, "created": _is_text, "proof": [_is_digest]}
_LOG = {"origin": _is_text, "head": _is_text, "facts": [_FACT]}
_LINK = dict.fromkeys(("slice", "chain", "environment"), _is_count)
_LINK |= dict.fromkeys(("records", "key", "root", "tensors"), _is_digest)
_TARGETS = {"tags": [_is_digest], "tombstones": [_is_digest], "absent": [_is_digest], "salt": _is_digest}
_CERTIFICATE = {
    "version": _is_version,
    "statement": _is_statement,
    "issued": _is_text,
    "clock": _is_text,
    "issuer": {"program": _is_text, "code": _is_digest, "public_key": _is_text},
    "supersedes": _is_digest_or_null,
    "log": _LOG,
    "request": {
        "id": _is_text,
        "accepted": _is_text,
        "targets": _TARGETS,
        "suppression": _is_digest,
        "references": {_is_text: _is_digest},
    },
    "recipe": _is_digest,
    "keys": _is_digest,
    "namespace": _is_text,
    "before": _is_object,
    "after": _is_object,
    "impact": _is_object,
    "kept": [_is_digest],
    "purged": [_is_digest],
    "retrained": [_is_digest],
    "lineages": [{"shard": _is_count, "links": [_LINK]}],
    "environments": [{_is_text: _is_text}],
    "prior": [{"tag": _is_digest, "fact": _is_count, "commitment": _is_digest, "proof": _SPARSE}],
    "absence": {_is_digest: [_SPARSE]},
    "records": {"surviving": _is_count, "digest": _is_digest},
    "erasure": [_is_object],
    "handed_out": [_is_object],
    "replay": {"recipe": _is_object, "seeds": _is_text, "how": _is_text, "expected": _is_text},
    "law": [{"level": _is_text, "name": _is_text, "outcome": _is_text, "detail": _is_text}],
    "not_claimed": [_is_text],
}
_RECEIPT = {
    "version": _is_version,
    "issued": _is_text,
    "clock": _is_text,
    "log": _LOG,
    "namespace": _is_text,
    "record": _is_object,
    "tag": _is_digest,
    "salt": _is_digest,
    "commitment": _is_digest,
    "proof": _SPARSE,
}


def _hex(text: object) -> bytes:
    """32 bytes from 64 lower-case hex digits, spelt in the one way."""
    if not isinstance(text, str) or not _is_digest(text):
        raise ValueError("a digest that is not 64 hex digits")
    return bytes.fromhex(text)


def read_hashes(texts: object) -> tuple[bytes, ...]:
    """The hashes of a proof from hex texts."""
    if not isinstance(texts, list) or len(texts) > 64:
        raise ValueError("a proof that is no list of at most 64 hashes")
    return tuple(map(_hex, texts))
