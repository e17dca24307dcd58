"""The key directory of a workspace: made, read, and the signing key in it replaced.

A secret that others than its owner can read is refused.
"""

from __future__ import annotations

import os
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from shards.errors import StorageError
from shards.files import fsync_directory, remove, replace_file, storage, write_new
from shards.keys import Keyring, public_pem, read_private, read_secret

ROOT_FILE = "root.key"
PRIVATE_FILE = "signing.key"
PUBLIC_FILE = "signing.pub"
NEXT_FILE = "signing.next"
EXPORT_PRIVATE_FILE = "exports.key"
EXPORT_PUBLIC_FILE = "exports.pub"


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


def read_keyring(directory: Path) -> Keyring:
    """The derived keys of a workspace's key directory."""
    return Keyring.from_root(read_root(directory))


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
    data = read_private(path)
    try:
        key = serialization.load_pem_private_key(data, password=None)
    except ValueError as error:
        raise StorageError(f"a signing key in {path}", "something else", "restore the operator's key") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise StorageError(f"an Ed25519 signing key in {path}", type(key).__name__, "restore the operator's key")
    return key


def export_key(directory: Path) -> Path:
    """The file of the key that signs exported models, made where there is none; its public half lies beside it.

    It is an elliptic curve key (P-256), because verifiers of model signatures take no Ed25519 one.

    Raises:
        StorageError: if it cannot be read or written, or is another kind of key.
        InputError: if others can read it.
    """
    path = directory / EXPORT_PRIVATE_FILE
    if not path.exists():
        replace_file(path, private_pem(ec.generate_private_key(ec.SECP256R1())), private=True)
    data = read_private(path)
    try:
        key = serialization.load_pem_private_key(data, password=None)
    except ValueError as error:
        raise StorageError(f"a key in {path}", "something else", "remove it; the next export makes one") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise StorageError(f"an elliptic curve key in {path}", type(key).__name__, "remove it")
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    replace_file(directory / EXPORT_PUBLIC_FILE, public)  # killed in between, it was not there
    return path


def private_pem(key: Ed25519PrivateKey | ec.EllipticCurvePrivateKey) -> bytes:
    """A private key as PEM, not encrypted."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
