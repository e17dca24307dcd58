"""The secrets that make placement, tags, fingerprints and seeds what they are.

One root secret, four keys derived from it. Whoever has the root and the surviving records can make
the fresh run; nobody can sign with it (the signing key is independent, see ``sisa/signing.py``).
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from shards.digest import derive, digest
from shards.errors import InputError, StorageError

ROOT_FILE = "root.key"


@dataclass(frozen=True, slots=True)
class Keyring:
    """Derived keys, 32 bytes each; never printed."""

    tag: bytes = field(repr=False)
    placement: bytes = field(repr=False)
    fingerprint: bytes = field(repr=False)
    seed: bytes = field(repr=False)

    @classmethod
    def from_root(cls, root: bytes) -> Keyring:
        """Derive the four keys of a root secret."""
        return cls(*(derive(root, f"key/{name}") for name in cls.__slots__))

    def commitment(self) -> str:
        """Digest (hex) that pins these keys without revealing them."""
        return digest("keyring", self.tag, self.placement, self.fingerprint, self.seed).hex()


def create_root(directory: Path, root: bytes | None = None) -> None:
    """Write a root secret (fresh unless given), readable by its owner only."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle = os.open(directory / ROOT_FILE, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w") as file:
        file.write((root or os.urandom(32)).hex() + "\n")


def read_root(directory: Path) -> bytes:
    """Read the root secret of a workspace's key directory.

    Raises:
        StorageError: if the file cannot be read.
        InputError: if it does not hold 32 bytes in hex.
    """
    path = directory / ROOT_FILE
    try:
        root = bytes.fromhex(path.read_text().strip())
    except OSError as error:
        raise StorageError(f"the root secret at {path}", f"{error.strerror}", "restore the keys directory") from error
    except ValueError as error:
        raise InputError(f"64 hex digits in {path}", "something else", "restore the keys directory") from error
    if len(root) != 32:
        raise InputError(f"32 bytes in {path}", f"{len(root)} bytes", "restore the keys directory")
    return root


def read_keyring(directory: Path) -> Keyring:
    """The derived keys of a workspace's key directory."""
    return Keyring.from_root(read_root(directory))
