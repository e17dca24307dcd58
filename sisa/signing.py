"""DSSE envelopes (Ed25519, through securesystemslib and cryptography).

securesystemslib imports the clients of every cloud that are installed: it waits until an envelope is at hand.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from shards.digest import canonical_json, parse_json

if TYPE_CHECKING:
    from securesystemslib.dsse import Envelope

PAYLOAD_TYPE = "application/vnd.in-toto+json"


def sign(payload: bytes, key: Ed25519PrivateKey) -> dict[str, Any]:
    """A DSSE envelope (as JSON) over ``payload``."""
    from securesystemslib.dsse import Envelope
    from securesystemslib.signer import CryptoSigner

    envelope = Envelope(payload, PAYLOAD_TYPE, {})
    envelope.sign(CryptoSigner(key))
    signed: dict[str, Any] = envelope.to_dict()
    return signed


def read_envelope(document: dict[str, Any]) -> Envelope:
    """The envelope that a JSON object spells. Its signatures are not looked at.

    Raises:
        ValueError: if it is no envelope of ours, or is spelt in another way than it is written.
    """
    from securesystemslib.dsse import Envelope
    from securesystemslib.exceptions import FormatError

    try:
        envelope = Envelope.from_dict(parse_json(canonical_json(document)))  # takes its argument apart
    except (FormatError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"no DSSE envelope: {error}") from error
    if not all(isinstance(keyid, str) for keyid in envelope.signatures):
        raise ValueError("a key ID that is not text")
    if envelope.to_dict() != document:  # base64 can spell the same bytes in several ways
        raise ValueError("the envelope is not spelt as it is when it is written")
    if envelope.payload_type != PAYLOAD_TYPE:
        raise ValueError(f"payload type {envelope.payload_type!r}, expected {PAYLOAD_TYPE!r}")
    return envelope


def verify_signature(envelope: Envelope, key: Ed25519PublicKey) -> bool:
    """Is the envelope signed by ``key``? The envelope's key IDs are hints and decide nothing."""
    return any(_signs(key, signature.signature, envelope.pae()) for signature in envelope.signatures.values())


def _signs(key: Ed25519PublicKey, signature: str, data: bytes) -> bool:
    try:
        key.verify(bytes.fromhex(signature), data)
    except (InvalidSignature, ValueError):
        return False
    return True
