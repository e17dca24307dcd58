"""Keys: those derived from the root secret, what commits to them, and the public half of the signing key.

Whoever has the root and the surviving records can make the fresh run; nobody can sign with it. The
signing key is independent: it is never copied to another workspace and can be replaced without
touching placement. The files they lie in: ``shards/keyfiles.py``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from shards.digest import derive, digest
from shards.errors import InputError, StorageError


@dataclass(frozen=True, slots=True)
class Keyring:
    """Derived keys, 32 bytes each; never printed."""

    tag: bytes = field(repr=False)
    placement: bytes = field(repr=False)
    fingerprint: bytes = field(repr=False)
    seed: bytes = field(repr=False)
    reference: bytes = field(repr=False)

    @classmethod
    def from_root(cls, root: bytes) -> Keyring:
        """Derive the keys of a root secret."""
        return cls(*(derive(root, f"key/{name}") for name in cls.__slots__))

    def commitment(self) -> str:
        """Digest (hex) that pins these keys without revealing them."""
        return digest("keyring", *(getattr(self, name) for name in self.__slots__)).hex()

    def commitments(self) -> dict[str, str]:
        """Key name → digest (hex): whoever is shown one key can check that it is the one committed to."""
        return {name: key_commitment(name, getattr(self, name)) for name in self.__slots__}


def key_commitment(name: str, key: bytes) -> str:
    """Digest (hex) that pins the derived key ``name`` without revealing it."""
    return digest(f"key-commitment/{name}", key).hex()


def read_secret(path: Path) -> bytes:
    """Read 32 secret bytes in hex.

    Raises:
        StorageError: if the file cannot be read.
        InputError: if others can read it, or it holds something else.
    """
    data = read_private(path)
    try:
        secret = bytes.fromhex(data.decode().strip())
    except ValueError as error:
        raise InputError(f"64 hex digits in {path}", "something else", "restore the keys directory") from error
    if len(secret) != 32:
        raise InputError(f"32 bytes in {path}", f"{len(secret)} bytes", "restore the keys directory")
    return secret


def read_private(path: Path) -> bytes:
    """The bytes of a secret file.

    Raises:
        StorageError: if it cannot be read.
        InputError: if others than its owner can read it.
    """
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode & 0o777
            data = file.read()
    except OSError as error:
        remedy = "restore the keys directory; a signing key that is lost is replaced by `sisa key rotate --lost`"
        raise StorageError(f"the secret at {path}", f"{error.strerror}", remedy) from error
    if mode & 0o077:
        raise InputError(
            f"{path} readable by its owner only (mode 0600)",
            f"mode {mode:04o}",
            f"run `chmod 600 {path}`; if others may have read it, treat it as stolen (docs/keys.md)",
        )
    return data


def public_pem(key: Ed25519PublicKey) -> bytes:
    """A public key as PEM."""
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def endorsed(log: str, pem: bytes) -> bytes:
    """What a log's signing key signs to endorse the next one (its public PEM)."""
    return b"sisa-key-endorsement\n" + log.encode() + b"\n" + pem


def is_succession(old: Ed25519PublicKey, log: str, body: Mapping[str, Any]) -> bool:
    """Does the body of a ``key/1`` fact say truly whether ``old`` endorses the key that it names?

    A planned rotation needs the endorsement; whoever declares the old key lost or stolen has none.
    """
    if body["reason"] in ("lost", "stolen"):
        return body["endorsement"] is None
    try:
        old.verify(bytes.fromhex(body["endorsement"]), endorsed(log, body["public_key"].encode()))
    except InvalidSignature:
        return False
    return bool(body["reason"] == "planned")


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
