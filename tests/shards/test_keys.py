"""Keys: derived apart, readable by their owner alone, never printed."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from shards.errors import InputError, StorageError
from shards.keys import ROOT_FILE, Keyring, create_root, read_keyring, read_root

ROOT = bytes(range(32))


def test_the_four_keys_are_different_and_follow_from_the_root() -> None:
    keys = Keyring.from_root(ROOT)
    assert len({keys.tag, keys.placement, keys.fingerprint, keys.seed, ROOT}) == 5
    assert keys == Keyring.from_root(ROOT)
    assert keys.commitment() == Keyring.from_root(ROOT).commitment()
    assert keys.commitment() != Keyring.from_root(ROOT[::-1]).commitment()


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


@pytest.mark.parametrize("text", ["", "zz", "00" * 31, "00" * 33])
def test_a_damaged_root_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / ROOT_FILE).write_text(text)
    with pytest.raises(InputError, match="restore the keys directory"):
        read_root(tmp_path)


def test_a_missing_root_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="restore the keys directory"):
        read_root(tmp_path)
