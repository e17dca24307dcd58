"""Canonical bytes and hashing: the only file that calls a hash function.

Our own digests (``digest``, ``keyed``, ``derive`` and what is made of them) are over a domain name and
length-prefixed fields, so that neither two lists of fields share an encoding nor a digest made for one
purpose can stand in for another. A field is its bytes: text counts as UTF-8 and a number as its decimal
digits, so 5 and "5" are one field. ``sha256``, ``bytes_digest``, ``file_digest`` (plain SHA-256) and
``tree_leaf``, ``tree_node`` (RFC 6962) have the form that others fixed.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import rfc8785
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

_PREFIX = b"sisa/v1/"

Field = bytes | str | int


def canonical_json(value: Any) -> bytes:
    """RFC 8785 canonical JSON: equal values give equal bytes.

    Raises:
        ValueError: for NaN, infinities and integers beyond 2**53.
    """
    return rfc8785.dumps(value)


def parse_json(data: bytes | str) -> Any:
    """Parse JSON strictly: a key that occurs twice in one object, NaN and infinities are refused.

    Raises:
        ValueError: if the text is not JSON in that strict sense.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        parsed = dict(pairs)
        if len(parsed) != len(pairs):
            raise ValueError("a key occurs twice in one JSON object")
        return parsed

    def no_constant(name: str) -> Any:
        raise ValueError(f"{name} is not JSON")

    def finite(text: str) -> float:
        number = float(text)
        if math.isinf(number):
            raise ValueError(f"{text} is beyond every finite number")
        return number

    text = data.decode() if isinstance(data, bytes) else data  # UTF-8 and nothing else; json would guess
    return json.loads(text, object_pairs_hook=unique, parse_constant=no_constant, parse_float=finite)


def _encode(domain: str, fields: Iterable[Field]) -> bytes:
    out = [_PREFIX, domain.encode(), b"\0"]
    for field in fields:
        data = field if isinstance(field, bytes) else str(field).encode()
        out += [len(data).to_bytes(8, "big"), data]
    return b"".join(out)


def digest(domain: str, *fields: Field) -> bytes:
    """SHA-256 (32 bytes) of length-prefixed ``fields`` under ``domain``."""
    return hashlib.sha256(_encode(domain, fields)).digest()


def keyed(key: bytes, domain: str, *fields: Field) -> bytes:
    """HMAC-SHA-256 (32 bytes) of length-prefixed ``fields`` under ``domain``."""
    return hmac.digest(key, _encode(domain, fields), "sha256")


def derive(key: bytes, purpose: str, *fields: Field) -> bytes:
    """HKDF-SHA-256 (RFC 5869): 32 bytes for one purpose, independent of those for any other."""
    info = _encode(purpose, fields)
    return HKDF(algorithm=hashes.SHA256(), length=32, salt=None, info=info).derive(key)


def sha256(data: bytes) -> bytes:
    """Plain SHA-256 (32 bytes), for formats of others that fix what is hashed."""
    return hashlib.sha256(data).digest()


def tree_leaf(data: bytes) -> bytes:
    """Hash of a Merkle tree's leaf: SHA-256 over 0x00 and ``data`` (RFC 6962, section 2.1)."""
    return hashlib.sha256(b"\x00" + data).digest()


def tree_node(left: bytes, right: bytes) -> bytes:
    """Hash of a Merkle tree's inner node: SHA-256 over 0x01 and both children."""
    return hashlib.sha256(b"\x01" + left + right).digest()


def bytes_digest(data: bytes) -> str:
    """Plain SHA-256 of ``data`` in hex: what ``sha256sum`` prints."""
    return hashlib.sha256(data).hexdigest()


def file_digest(path: Path) -> str:
    """Plain SHA-256 of a file in hex, read in blocks."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def files_digest(files: Mapping[str, str]) -> str:
    """Digest (hex) of a set of named files, given the plain SHA-256 of each."""
    fields = [part for name in sorted(files) for part in (name, files[name])]
    return digest("files", *fields).hex()


def tensor_digest(data: bytes) -> str:
    """Digest (hex) of the tensors in safetensors ``data``, whatever the container looks like.

    Covers each tensor's name, dtype, shape and raw little-endian bytes, in name order.

    Raises:
        ValueError: if ``data`` is not safetensors.
    """
    from safetensors import SafetensorError, deserialize

    try:
        tensors = sorted(deserialize(data))  # type: ignore[no-untyped-call]
    except SafetensorError as error:
        raise ValueError(f"not a safetensors file: {error}") from error
    state = hashlib.sha256()
    for name, tensor in tensors:
        shape = ",".join(map(str, tensor["shape"]))
        state.update(_encode("tensor", [name, tensor["dtype"], shape, bytes(tensor["data"])]))
    return state.hexdigest()
