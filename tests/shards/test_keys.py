"""Keys: derived apart, readable by their owner alone, never printed."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from shards.errors import InputError, StorageError
from shards.keyfiles import (
    NEXT_FILE,
    PRIVATE_FILE,
    PUBLIC_FILE,
    ROOT_FILE,
    create_root,
    create_signing_key,
    discard_next_key,
    private_pem,
    promote_next_key,
    read_keyring,
    read_next_key,
    read_root,
    read_signing_key,
    write_next_key,
)
from shards.keys import Keyring, key_commitment, public_pem, read_public_key

ROOT = bytes(range(32))


def test_the_five_keys_are_different_and_follow_from_the_root() -> None:
    keys = Keyring.from_root(ROOT)
    assert len({keys.tag, keys.placement, keys.fingerprint, keys.seed, keys.reference, ROOT}) == 6
    assert keys == Keyring.from_root(ROOT)
    assert keys.commitment() == Keyring.from_root(ROOT).commitment()
    assert keys.commitment() != Keyring.from_root(ROOT[::-1]).commitment()


def test_each_key_has_a_commitment_by_which_its_holder_can_check_it() -> None:
    keys = Keyring.from_root(ROOT)
    commitments = keys.commitments()
    assert set(commitments) == {"tag", "placement", "fingerprint", "seed", "reference"}
    assert all(commitments[name] == key_commitment(name, getattr(keys, name)) for name in commitments)
    assert len(set(commitments.values())) == 5
    assert key_commitment("tag", keys.seed) != commitments["tag"]
    assert key_commitment("seed", keys.tag) != commitments["tag"], "a commitment is to a key for one purpose"


def test_a_keyring_never_prints_its_keys() -> None:
    keys = Keyring.from_root(ROOT)
    assert repr(keys) == "Keyring()"


def test_a_root_is_written_once_for_its_owner_alone_and_read_back(tmp_path: Path) -> None:
    create_root(tmp_path / "keys", ROOT)
    assert read_root(tmp_path / "keys") == ROOT
    assert read_keyring(tmp_path / "keys") == Keyring.from_root(ROOT)
    assert stat.S_IMODE((tmp_path / "keys" / ROOT_FILE).stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "keys").stat().st_mode) == 0o700
    with pytest.raises(FileExistsError):
        create_root(tmp_path / "keys")


def test_made_up_roots_differ(tmp_path: Path) -> None:
    create_root(tmp_path / "a")
    create_root(tmp_path / "b")
    assert read_root(tmp_path / "a") != read_root(tmp_path / "b")


@pytest.mark.parametrize("text", ["", "zz", "00" * 31, "00" * 33, "ü"])
def test_a_damaged_root_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / ROOT_FILE).write_text(text)
    (tmp_path / ROOT_FILE).chmod(0o600)
    with pytest.raises(InputError, match="restore the keys directory"):
        read_root(tmp_path)


def test_a_missing_root_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="restore the keys directory"):
        read_root(tmp_path)


SECRETS: dict[str, Callable[[Path], object]] = {ROOT_FILE: read_root, PRIVATE_FILE: read_signing_key}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A key directory with both secrets."""
    create_root(tmp_path / "keys", ROOT)
    create_signing_key(tmp_path / "keys")
    return tmp_path / "keys"


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o610, 0o601, 0o644, 0o666, 0o440])
def test_a_secret_that_others_can_reach_is_refused_with_its_mode_and_what_to_do(
    secret: str, mode: int, directory: Path
) -> None:
    (directory / secret).chmod(mode)
    with pytest.raises(InputError, match=f"mode {mode:04o}") as raised:
        SECRETS[secret](directory)
    assert "chmod 600" in raised.value.remedy
    assert secret in raised.value.expected


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize("mode", [0o600, 0o400])
def test_a_secret_that_its_owner_alone_can_reach_is_read(secret: str, mode: int, directory: Path) -> None:
    (directory / secret).chmod(mode)
    assert SECRETS[secret](directory)


def test_a_signing_key_is_written_once_for_its_owner_alone_and_read_back(directory: Path) -> None:
    key = read_signing_key(directory)
    assert stat.S_IMODE((directory / PRIVATE_FILE).stat().st_mode) == 0o600
    assert (directory / PUBLIC_FILE).read_bytes() == public_pem(key.public_key())
    assert read_public_key(public_pem(key.public_key())) == key.public_key()
    with pytest.raises(FileExistsError):
        create_signing_key(directory)
    assert read_signing_key(directory).private_bytes_raw() == key.private_bytes_raw()


def test_the_signing_key_does_not_follow_from_the_root(tmp_path: Path) -> None:
    for name in "ab":
        create_root(tmp_path / name, ROOT)
        create_signing_key(tmp_path / name)
    one, other = (read_signing_key(tmp_path / name) for name in "ab")
    assert one.private_bytes_raw() != other.private_bytes_raw()


def test_the_next_signing_key_is_private_and_takes_the_place_of_the_old_one(directory: Path) -> None:
    assert read_next_key(directory) is None
    following = Ed25519PrivateKey.generate()
    write_next_key(directory, private_pem(following))
    assert stat.S_IMODE((directory / NEXT_FILE).stat().st_mode) == 0o600
    assert read_signing_key(directory).public_key() != following.public_key()
    promote_next_key(directory)
    assert read_signing_key(directory).public_key() == following.public_key()
    assert read_public_key((directory / PUBLIC_FILE).read_bytes()) == following.public_key()
    assert stat.S_IMODE((directory / PRIVATE_FILE).stat().st_mode) == 0o600
    assert read_next_key(directory) is None
    discard_next_key(directory)  # nothing there is no error
    (directory / NEXT_FILE).write_bytes(private_pem(following))
    (directory / NEXT_FILE).chmod(0o640)
    with pytest.raises(InputError, match="mode 0640"):
        read_next_key(directory)


def test_what_is_no_signing_key_is_refused(directory: Path) -> None:
    (directory / PRIVATE_FILE).write_bytes(b"no key at all")
    with pytest.raises(StorageError, match="restore the operator's key"):
        read_signing_key(directory)
    (directory / PRIVATE_FILE).unlink()
    with pytest.raises(StorageError, match="restore the keys directory"):
        read_signing_key(directory)


@pytest.mark.parametrize("other", [b"", b"no key at all", X25519PrivateKey.generate().public_key()])
def test_what_is_no_public_key_of_ours_is_refused(other: bytes | X25519PublicKey) -> None:
    pem = (
        other
        if isinstance(other, bytes)
        else other.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    with pytest.raises(InputError, match="the operator's signing"):
        read_public_key(pem)


def test_every_key_is_durable_once_it_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append(str(Path(f"/proc/self/fd/{handle}").readlink())))
    keys = tmp_path / "keys"
    create_root(keys, ROOT)
    assert synced == [str(keys / ROOT_FILE), str(keys), str(tmp_path)]
    synced.clear()
    create_signing_key(keys)
    assert synced == [str(keys / PRIVATE_FILE), str(keys / PUBLIC_FILE), str(keys)]
