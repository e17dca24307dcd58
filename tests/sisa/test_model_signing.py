"""Signed exports verify with the verifier that everybody has, and nothing else in the directory can be changed."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization

from shards.digest import bytes_digest, parse_json
from shards.errors import InputError, OperationError, StorageError
from shards.keyfiles import (
    EXPORT_PRIVATE_FILE,
    EXPORT_PUBLIC_FILE,
    create_signing_key,
    export_key,
    private_pem,
    read_signing_key,
)
from sisa.model_signing import ENDORSEMENT, ENDORSEMENT_TYPE, PUBLIC_KEY, SIGNATURE, sign_directory
from sisa.signing import read_envelope, verify_signature

pytest.importorskip("model_signing")
LOG = "sisa/log/0"


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    (tmp_path / "keys").mkdir(mode=0o700)
    create_signing_key(tmp_path / "keys")
    return tmp_path / "keys"


@pytest.fixture
def signed(keys: Path, tmp_path: Path) -> Path:
    directory = tmp_path / "model"
    (directory / "shard-00").mkdir(parents=True)
    (directory / "shard-00" / "weights").write_bytes(b"weights")
    (directory / "README.md").write_text("card")
    sign_directory(directory, export_key(keys), LOG)
    return directory


def test_the_command_that_recipients_are_told_to_run_takes_it(signed: Path, keys: Path) -> None:
    told = ["verify", "key", signed, "--signature", signed / SIGNATURE, "--public_key", keys / EXPORT_PUBLIC_FILE]
    command = [sys.executable, "-m", "model_signing", *map(str, told)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr


def verify(directory: Path, public: Path) -> None:
    from model_signing import verifying

    config: Any = verifying.Config().use_elliptic_key_verifier(public_key=public)
    config.verify(directory, directory / SIGNATURE)


def test_the_standard_verifier_takes_a_signed_export_wherever_it_lies(signed: Path, keys: Path) -> None:
    verify(signed, keys / EXPORT_PUBLIC_FILE)
    moved = signed.rename(signed.parent / "elsewhere")
    verify(moved, moved / PUBLIC_KEY)
    assert (moved / PUBLIC_KEY).read_bytes() == (keys / EXPORT_PUBLIC_FILE).read_bytes()


@pytest.mark.parametrize("change", ["a byte", "a file more", "a file less", "the key beside it"])
def test_whatever_is_changed_in_a_signed_export_is_found(change: str, signed: Path, keys: Path) -> None:
    changes: dict[str, Callable[[], object]] = {
        "a byte": lambda: (signed / "shard-00" / "weights").write_bytes(b"weightz"),
        "a file more": lambda: (signed / "more").write_bytes(b""),
        "a file less": (signed / "README.md").unlink,
        "the key beside it": lambda: (signed / PUBLIC_KEY).write_bytes(b"another"),
    }
    changes[change]()
    with pytest.raises(ValueError, match="Signature mismatch"):
        verify(signed, keys / EXPORT_PUBLIC_FILE)


def test_the_logs_signing_key_endorses_the_key_of_the_exports(signed: Path, keys: Path) -> None:
    envelope = read_envelope(json.loads((signed / ENDORSEMENT).read_text()))
    assert verify_signature(envelope, read_signing_key(keys).public_key())
    statement = parse_json(envelope.payload)
    assert statement["predicateType"] == ENDORSEMENT_TYPE
    assert statement["predicate"]["log"] == LOG
    (subject,) = statement["subject"]
    assert subject["digest"]["sha256"] == bytes_digest((signed / PUBLIC_KEY).read_bytes())


def test_the_key_is_made_once_and_only_its_owner_can_read_it(signed: Path, keys: Path) -> None:
    private = (keys / EXPORT_PRIVATE_FILE).read_bytes()
    assert stat.S_IMODE((keys / EXPORT_PRIVATE_FILE).stat().st_mode) == 0o600
    assert not any(private in path.read_bytes() for path in signed.rglob("*") if path.is_file())
    (signed / SIGNATURE).unlink()
    sign_directory(signed, export_key(keys), LOG)
    assert (keys / EXPORT_PRIVATE_FILE).read_bytes() == private
    (keys / EXPORT_PRIVATE_FILE).chmod(0o644)
    with pytest.raises(InputError, match="readable by its owner only"):
        sign_directory(signed, export_key(keys), LOG)


def test_another_kind_of_key_signs_nothing(signed: Path, keys: Path) -> None:
    key = serialization.load_pem_private_key(private_pem(read_signing_key(keys)), password=None)
    (keys / EXPORT_PRIVATE_FILE).write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    with pytest.raises(StorageError, match="elliptic curve"):
        sign_directory(signed, export_key(keys), LOG)


def test_a_signature_that_its_public_key_does_not_verify_is_refused(signed: Path, keys: Path) -> None:
    private, public = export_key(keys), (keys / EXPORT_PUBLIC_FILE).read_bytes()
    private.unlink()
    export_key(keys)  # another
    (keys / EXPORT_PUBLIC_FILE).write_bytes(public)
    (signed / SIGNATURE).unlink()
    with pytest.raises(OperationError, match=r"signature that signer\.pub verifies"):
        sign_directory(signed, private, LOG)
