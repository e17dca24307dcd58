"""Ingestion receipts: what binds a certificate to the record of the person who holds it."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from shards import kinds
from shards.digest import canonical_json
from shards.errors import InputError, UnknownRecordError
from shards.keyfiles import read_signing_key
from sisa.certificate import certificate_path
from sisa.document import envelope_digest
from sisa.key import rotate
from sisa.receipt import receipt
from sisa.session import Session
from sisa.signing import sign
from sisa.verify import BOUND
from tests.sisa.trained import checked, failed, forget, public_key, trained, write_json

Json = dict[str, Any]


@pytest.fixture
def session(memory_path: Path) -> Iterator[Session]:
    made = trained(memory_path / "workspace")
    yield made
    made.workspace.close()


def bound(session: Session, document: Any, tmp_path: Path, request_id: str = "req") -> tuple[str, str]:
    """Outcome and detail of the check that a receipt and a certificate are about the same record."""
    file = write_json(tmp_path / "receipt.json", document)
    certificate = certificate_path(session.workspace, request_id)
    checks = checked(certificate, [public_key(session)], receipt=file)
    assert failed(checks) <= {BOUND}
    return checks[BOUND].outcome, checks[BOUND].detail


def statement_of(document: Json) -> Json:
    statement: Json = json.loads(base64.b64decode(document["payload"]))
    return statement


def signed_anew(session: Session, document: Json, change: Callable[[Json], None]) -> Json:
    """A receipt that says something else, signed by the operator."""
    statement = statement_of(document)
    change(statement["predicate"])
    return sign(canonical_json(statement), read_signing_key(session.workspace.path / "keys"))


def test_a_receipt_binds_a_certificate_to_its_record(session: Session, tmp_path: Path) -> None:
    mine = receipt(session, "r1")
    forget(session, "r1", request_id="req")
    assert bound(session, mine, tmp_path) == ("passed", "receipt for record 'r1'")


def test_without_a_receipt_whose_record_it_is_was_not_checked(session: Session) -> None:
    done = forget(session, "r1", request_id="req")
    assert done.certificate is not None
    assert checked(done.certificate, [public_key(session)])[BOUND].outcome == "not_checked"


def test_a_receipt_of_another_record_fails(session: Session, tmp_path: Path) -> None:
    other = receipt(session, "r2")
    forget(session, "r1", request_id="req")
    outcome, detail = bound(session, other, tmp_path)
    assert outcome == "failed"
    assert "other records" in detail


def test_a_receipt_does_not_bind_a_statement_of_absence(session: Session, tmp_path: Path) -> None:
    mine = receipt(session, "r1")
    forget(session, "nobody", request_id="req", ignore_missing=True)
    assert bound(session, mine, tmp_path)[0] == "failed"


def test_an_edited_receipt_fails(session: Session, tmp_path: Path) -> None:
    mine = receipt(session, "r1")
    forget(session, "r1", request_id="req")
    statement = statement_of(mine)
    statement["predicate"]["issued"] = "2001-01-01T00:00:00+00:00"
    mine["payload"] = base64.b64encode(canonical_json(statement)).decode()
    outcome, detail = bound(session, mine, tmp_path)
    assert outcome == "failed"
    assert "not signed" in detail


def test_a_receipt_signed_by_another_key_fails(session: Session, tmp_path: Path) -> None:
    mine = receipt(session, "r1")
    forget(session, "r1", request_id="req")
    stranger = sign(canonical_json(statement_of(mine)), Ed25519PrivateKey.generate())
    outcome, detail = bound(session, stranger, tmp_path)
    assert outcome == "failed"
    assert "not signed" in detail


def _another_tag(predicate: Json) -> None:
    predicate["tag"] = "ab" * 32


def _another_record(predicate: Json) -> None:
    predicate["record"]["id"] = "r7"


def _another_salt(predicate: Json) -> None:
    predicate["salt"] = "cd" * 32


def _another_commitment(predicate: Json) -> None:
    predicate["commitment"] = "cd" * 32


def _another_fact(predicate: Json) -> None:
    predicate["log"]["facts"][-1]["body"]["root"] = "cd" * 32


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_another_tag, "not in the slice"),
        (_another_record, "not to the record in it"),
        (_another_salt, "not to the record in it"),
        (_another_commitment, "not in the slice"),
        (_another_fact, "not in the log"),
    ],
)
def test_the_operator_cannot_make_up_a_receipt(
    session: Session, tmp_path: Path, change: Callable[[Json], None], words: str
) -> None:
    mine = receipt(session, "r1")
    forget(session, "r1", request_id="req")
    outcome, detail = bound(session, signed_anew(session, mine, change), tmp_path)
    assert outcome == "failed"
    assert words in detail


def test_a_receipt_for_the_same_tag_and_another_content_fails(
    session: Session, tmp_path: Path, memory_path: Path
) -> None:
    """Same keys and IDs in another workspace: the tags are equal, the log is not."""
    other = trained(memory_path / "other")
    foreign = receipt(other, "r1")
    other.workspace.close()
    forget(session, "r1", request_id="req")
    outcome, detail = bound(session, foreign, tmp_path)
    assert outcome == "failed"
    assert "tree head" in detail
    assert "not signed" in detail
    assert "another content" in detail


def test_a_receipt_issued_before_another_deletion_changed_its_slice_still_binds(
    session: Session, tmp_path: Path
) -> None:
    layout = session.workspace.layout()
    places = {one.record.id: layout.place(one.record) for one in session.workspace.survivors()}
    first, second = next((a, b) for a in sorted(places) for b in sorted(places) if a < b and places[a] == places[b])
    mine = receipt(session, second)
    forget(session, first, request_id="before")
    forget(session, second, request_id="req")
    assert bound(session, mine, tmp_path)[0] == "passed"
    assert bound(session, mine, tmp_path, "before")[0] == "failed"


@pytest.mark.parametrize("reason", ["planned", "lost", "stolen"])
def test_a_receipt_issued_before_a_key_rotation_still_binds(session: Session, tmp_path: Path, reason: Any) -> None:
    mine = receipt(session, "r1")
    rotate(session.workspace, reason)
    forget(session, "r1", request_id="req")
    assert bound(session, mine, tmp_path) == ("passed", "receipt for record 'r1'")


def test_a_receipt_issued_after_a_key_rotation_binds(session: Session, tmp_path: Path) -> None:
    rotate(session.workspace)
    mine = receipt(session, "r1")
    forget(session, "r1", request_id="req")
    assert bound(session, mine, tmp_path)[0] == "passed"


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"payload": 1}', json.dumps({"payload": "", "payloadType": "x", "signatures": []})]
)
def test_a_file_that_is_no_receipt_is_the_readers_mistake(session: Session, tmp_path: Path, text: str) -> None:
    done = forget(session, "r1", request_id="req")
    assert done.certificate is not None
    file = tmp_path / "receipt.json"
    file.write_text(text)
    with pytest.raises(InputError, match="receipt"):
        checked(done.certificate, receipt=file)
    with pytest.raises(InputError, match="receipt"):  # a certificate is none either
        checked(done.certificate, receipt=done.certificate)


def test_a_receipt_with_a_proof_that_is_none_is_the_readers_mistake(session: Session, tmp_path: Path) -> None:
    mine = receipt(session, "r1")
    forget(session, "r1", request_id="req")

    def spoil(predicate: Json) -> None:
        predicate["proof"]["siblings"] = "zz"

    with pytest.raises(InputError, match="receipt"):
        bound(session, signed_anew(session, mine, spoil), tmp_path)


@pytest.mark.parametrize("record_id", ["nobody", "", "r1"])
def test_no_receipt_is_issued_for_what_is_not_held(session: Session, record_id: str) -> None:
    forget(session, "r1")
    before = session.workspace.ledger.head()
    with pytest.raises(UnknownRecordError, match="held now"):
        receipt(session, record_id)
    assert session.workspace.ledger.head() == before


def test_the_workspace_keeps_nothing_of_a_receipt_but_a_digest(session: Session) -> None:
    workspace = session.workspace
    objects, files = workspace.store.objects(), set(workspace.path.rglob("*"))
    mine = receipt(session, "r1")
    (fact,) = workspace.ledger.facts(kinds.RECEIPT)
    assert fact.body == {"digest": envelope_digest(mine)}
    assert workspace.store.objects() == objects
    assert set(workspace.path.rglob("*")) == files
    salt = statement_of(mine)["predicate"]["salt"]
    outside = [file for file in workspace.path.rglob("*") if file.is_file() and "vault" not in file.parts]
    assert not [file for file in outside if salt.encode() in file.read_bytes()]
    assert not [file for file in outside if bytes.fromhex(salt) in file.read_bytes()]


def test_two_receipts_for_one_record_open_the_same_commitment(session: Session) -> None:
    one, two = (statement_of(receipt(session, "r1"))["predicate"] for _ in range(2))
    assert [one[name] for name in ("record", "salt", "commitment")] == [
        two[name] for name in ("record", "salt", "commitment")
    ]
