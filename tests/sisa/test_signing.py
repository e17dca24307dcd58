"""Signing keys and envelopes."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st
from securesystemslib.dsse import Envelope

from shards.digest import parse_json
from shards.errors import InputError, StorageError
from shards.keyfiles import PRIVATE_FILE, PUBLIC_FILE, create_signing_key, read_signing_key
from shards.keys import public_pem, read_public_key
from sisa.signing import PAYLOAD_TYPE, sign
from sisa.signing import verify_signature as verified


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    create_signing_key(tmp_path)
    return tmp_path


def test_a_signature_is_valid_under_its_key_alone(keys: Path, tmp_path: Path) -> None:
    envelope = Envelope.from_dict(sign(b"a payload", read_signing_key(keys)))
    assert envelope.payload_type == PAYLOAD_TYPE
    assert verified(envelope, read_public_key((keys / PUBLIC_FILE).read_bytes()))
    assert not verified(envelope, Ed25519PrivateKey.generate().public_key())


def test_signatures_are_the_same_bytes_every_time(keys: Path) -> None:
    assert sign(b"a payload", read_signing_key(keys)) == sign(b"a payload", read_signing_key(keys))


@settings(max_examples=50, deadline=None)
@given(payload=st.binary(min_size=1, max_size=60), data=st.data())
def test_no_other_payload_or_type_fits_a_signature(payload: bytes, data: st.DataObject) -> None:
    private = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
    from securesystemslib.signer import CryptoSigner

    envelope = Envelope(payload, PAYLOAD_TYPE, {})
    envelope.sign(CryptoSigner(private))
    place = data.draw(st.integers(0, len(payload) - 1))
    edited = bytearray(payload)
    edited[place] ^= data.draw(st.integers(1, 255))
    assert verified(envelope, private.public_key())
    assert not verified(Envelope(bytes(edited), PAYLOAD_TYPE, envelope.signatures), private.public_key())
    assert not verified(Envelope(payload, "text/plain", envelope.signatures), private.public_key())


def test_an_envelope_without_signatures_is_not_signed(keys: Path) -> None:
    key = read_public_key((keys / PUBLIC_FILE).read_bytes())
    assert not verified(Envelope(b"a payload", PAYLOAD_TYPE, {}), key)


def test_the_private_key_is_its_owners_and_never_overwritten(keys: Path) -> None:
    assert (keys / PRIVATE_FILE).stat().st_mode & 0o077 == 0
    before = (keys / PRIVATE_FILE).read_bytes()
    with pytest.raises(FileExistsError):
        create_signing_key(keys)
    assert (keys / PRIVATE_FILE).read_bytes() == before


def test_two_keys_are_never_the_same(keys: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    create_signing_key(other)
    assert (keys / PUBLIC_FILE).read_bytes() != (other / PUBLIC_FILE).read_bytes()


def test_a_missing_or_broken_private_key_is_the_worlds_fault(keys: Path) -> None:
    (keys / PRIVATE_FILE).write_text("no key")
    with pytest.raises(StorageError, match="a signing key in"):
        read_signing_key(keys)
    (keys / PRIVATE_FILE).unlink()
    with pytest.raises(StorageError, match=f"the secret at .*{PRIVATE_FILE}"):
        read_signing_key(keys)


def test_a_private_key_of_another_kind_does_not_sign(keys: Path) -> None:
    from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key

    pem = generate_private_key(SECP256R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (keys / PRIVATE_FILE).write_bytes(pem)
    with pytest.raises(StorageError, match="Ed25519"):
        read_signing_key(keys)


@pytest.mark.parametrize("pem", [b"", b"no key", b"\xff", b"-----BEGIN PUBLIC KEY-----\n-----END PUBLIC KEY-----\n"])
def test_what_is_no_public_key_is_refused(pem: bytes) -> None:
    with pytest.raises(InputError, match="Ed25519"):
        read_public_key(pem)


def test_a_public_key_survives_pem() -> None:
    key = Ed25519PrivateKey.generate().public_key()
    assert read_public_key(public_pem(key)) == key


def test_an_envelope_is_plain_json(keys: Path) -> None:
    import json

    envelope = sign(b"a payload", read_signing_key(keys))
    assert parse_json(json.dumps(envelope)) == envelope
    assert set(envelope) == {"payload", "payloadType", "signatures"}
