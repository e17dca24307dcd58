"""Signing keys and DSSE envelopes (Ed25519, through securesystemslib and cryptography).

The signing key is independent of the root secret, is never copied to another workspace, and can be
replaced without touching placement.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import VerificationError
from securesystemslib.signer import CryptoSigner, SSlibKey

from shards.errors import InputError, StorageError

PRIVATE_FILE = "signing.key"
PUBLIC_FILE = "signing.pub"
PAYLOAD_TYPE = "application/vnd.in-toto+json"


def create_signing_key(directory: Path) -> None:
    """Write a fresh key pair; the private half is readable by its owner only."""
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    handle = os.open(directory / PRIVATE_FILE, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(private)
    (directory / PUBLIC_FILE).write_bytes(public_pem(key.public_key()))


def public_pem(key: Ed25519PublicKey) -> bytes:
    """A public key as PEM."""
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def read_public_key(pem: bytes) -> Ed25519PublicKey:
    """An Ed25519 public key from PEM.

    Raises:
        InputError: if it is something else.
    """
    try:
        key = serialization.load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise InputError("an Ed25519 public key in PEM", str(error), "name the operator's signing.pub") from error
    if not isinstance(key, Ed25519PublicKey):
        raise InputError("an Ed25519 public key", type(key).__name__, "name the operator's signing.pub")
    return key


def sign(payload: bytes, directory: Path) -> dict[str, Any]:
    """A DSSE envelope over ``payload``, signed with the key in ``directory``.

    Raises:
        StorageError: if the private key cannot be read.
    """
    try:
        private = serialization.load_pem_private_key((directory / PRIVATE_FILE).read_bytes(), password=None)
    except (OSError, ValueError) as error:
        raise StorageError(
            f"a signing key in {directory / PRIVATE_FILE}", str(error), "restore it; certificates need it"
        ) from error
    if not isinstance(private, Ed25519PrivateKey):
        raise StorageError(
            f"an Ed25519 signing key in {directory / PRIVATE_FILE}",
            type(private).__name__,
            "restore the operator's key",
        )
    envelope = Envelope(payload, PAYLOAD_TYPE, {})
    envelope.sign(CryptoSigner(private))
    signed: dict[str, Any] = envelope.to_dict()
    return signed


def verify_signature(envelope: Envelope, key: Ed25519PublicKey) -> bool:
    """Is the envelope signed by ``key``? The envelope's key IDs are hints and decide nothing."""
    candidates = [SSlibKey.from_crypto(key, keyid=keyid) for keyid in envelope.signatures]
    try:
        return bool(candidates) and bool(envelope.verify(candidates, threshold=1))
    except VerificationError:
        return False
