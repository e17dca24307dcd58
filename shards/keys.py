"""The secrets: one root that placement, tags, fingerprints and seeds come from, and the signing key.

Whoever has the root and the surviving records can make the fresh run; nobody can sign with it. The
signing key is independent: it is never copied to another workspace and can be replaced without
touching placement. A secret that others than its owner can read is refused.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from shards.digest import derive, digest
from shards.errors import InputError, StorageError
from shards.files import fsync_directory, remove, replace_file, storage, write_new

ROOT_FILE = "root.key"
PRIVATE_FILE = "signing.key"
PUBLIC_FILE = "signing.pub"
NEXT_FILE = "signing.next"


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


def create_root(directory: Path, root: bytes | None = None) -> None:
    """Write a root secret (fresh unless given), durably, readable by its owner only."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_new(directory / ROOT_FILE, (root or os.urandom(32)).hex().encode() + b"\n", private=True)
    fsync_directory(directory)
    fsync_directory(directory.parent)


def read_root(directory: Path) -> bytes:
    """Read the root secret of a workspace's key directory.

    Raises:
        StorageError: if the file cannot be read.
        InputError: if others can read it, or it does not hold 32 bytes in hex.
    """
    return read_secret(directory / ROOT_FILE)


def read_secret(path: Path) -> bytes:
    """Read 32 secret bytes in hex.

    Raises:
        StorageError: if the file cannot be read.
        InputError: if others can read it, or it holds something else.
    """
    data = _private(path)
    try:
        secret = bytes.fromhex(data.decode().strip())
    except ValueError as error:
        raise InputError(f"64 hex digits in {path}", "something else", "restore the keys directory") from error
    if len(secret) != 32:
        raise InputError(f"32 bytes in {path}", f"{len(secret)} bytes", "restore the keys directory")
    return secret


def read_keyring(directory: Path) -> Keyring:
    """The derived keys of a workspace's key directory."""
    return Keyring.from_root(read_root(directory))


def _private(path: Path) -> bytes:
    """The bytes of a secret file that only its owner can read."""
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode & 0o777
            data = file.read()
    except OSError as error:
        raise StorageError(f"the secret at {path}", f"{error.strerror}", "restore the keys directory") from error
    if mode & 0o077:
        raise InputError(
            f"{path} readable by its owner only (mode 0600)",
            f"mode {mode:04o}",
            f"run `chmod 600 {path}`; if others may have read it, treat it as stolen (docs/keys.md)",
        )
    return data


def create_signing_key(directory: Path) -> None:
    """Write a fresh key pair where there is none, durably; the private half is readable by its owner only."""
    key = Ed25519PrivateKey.generate()
    write_new(directory / PRIVATE_FILE, private_pem(key), private=True)
    write_new(directory / PUBLIC_FILE, public_pem(key.public_key()))
    fsync_directory(directory)


def write_next_key(directory: Path, private: bytes) -> None:
    """Keep the next signing key (PEM), durably, until the log names it."""
    replace_file(directory / NEXT_FILE, private, private=True)


def read_next_key(directory: Path) -> Ed25519PrivateKey | None:
    """The next signing key, if a rotation was begun and not ended."""
    return _signing_key(directory / NEXT_FILE) if (directory / NEXT_FILE).exists() else None


def promote_next_key(directory: Path) -> bool:
    """Put the next signing key in place of the one there, whose private half is gone then.

    Returns:
        Was it not in place already?
    """
    key = _signing_key(directory / NEXT_FILE)
    path, pem = directory / PRIVATE_FILE, private_pem(key)
    with storage(f"read {path}"):
        waited = not path.exists() or path.read_bytes() != pem
    replace_file(directory / PUBLIC_FILE, public_pem(key.public_key()))
    replace_file(path, pem, private=True)
    discard_next_key(directory)
    return waited


def discard_next_key(directory: Path) -> None:
    """Remove a next signing key that the log does not name, or that is in place."""
    with storage(f"remove {directory / NEXT_FILE}"):
        if remove(directory / NEXT_FILE):
            fsync_directory(directory)


def read_signing_key(directory: Path) -> Ed25519PrivateKey:
    """The signing key of a workspace's key directory.

    Raises:
        StorageError: if it cannot be read, or is no Ed25519 key.
        InputError: if others can read it.
    """
    return _signing_key(directory / PRIVATE_FILE)


def _signing_key(path: Path) -> Ed25519PrivateKey:
    data = _private(path)
    try:
        key = serialization.load_pem_private_key(data, password=None)
    except ValueError as error:
        raise StorageError(f"a signing key in {path}", "something else", "restore the operator's key") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise StorageError(f"an Ed25519 signing key in {path}", type(key).__name__, "restore the operator's key")
    return key


def private_pem(key: Ed25519PrivateKey) -> bytes:
    """A private key as PEM, not encrypted."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


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
