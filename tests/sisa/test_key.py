"""Signing keys over time, and what an auditor is handed."""

from __future__ import annotations

import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

import shards.keyfiles
import sisa.key
from shards import kinds
from shards.digest import canonical_json
from shards.errors import InputError, IntegrityError, StorageError
from shards.keyfiles import NEXT_FILE, PRIVATE_FILE, PUBLIC_FILE, private_pem, read_root, read_signing_key
from shards.keys import endorsed, public_pem, read_public_key
from shards.note import read_head, signed_by
from shards.references import FILE as REFERENCES_FILE
from shards.workspace import Workspace
from sisa.certificate import _file, certificate_path, statement
from sisa.document import envelope_digest, read_certificate
from sisa.key import destroy, hand_out_tag_key, history, rotate
from sisa.people import references
from sisa.session import Session
from sisa.signing import sign
from sisa.verify import BOUND, ORIGIN
from sisa.verify_workspace import verify_against
from tests.exactness.oracle import assert_equals_fresh_run, assert_lawful
from tests.sisa.forging import head_size, seal, signed
from tests.sisa.trained import TRAINER, checked, failed, forget, public_key, reopened, trained

SEALED = "the certificate itself is in the log"


@pytest.fixture
def session(memory_path: Path) -> Iterator[Session]:
    made = trained(memory_path / "workspace")
    yield made
    made.workspace.close()


@pytest.fixture
def tag_key(session: Session, tmp_path: Path) -> Path:
    hand_out_tag_key(session.workspace, tmp_path / "tag.key")
    return tmp_path / "tag.key"


def kept(session: Session, file: Path) -> Path:
    """A copy of the public key as it is now, as a reader has it."""
    file.write_bytes(public_key(session).read_bytes())
    return file


# -- the tag key --------------------------------------------------------------------------------


def test_an_auditor_with_the_tag_key_sees_which_id_a_certificate_is_about(session: Session, tag_key: Path) -> None:
    done = forget(session, "r1", "nobody", ignore_missing=True)
    assert done.certificate is not None
    for record_id, outcome in {"r1": "passed", "nobody": "passed", "r2": "failed", "": "failed"}.items():
        checks = checked(done.certificate, [public_key(session)], tag_key=tag_key, record_id=record_id)
        assert checks[BOUND].outcome == outcome, record_id
        assert failed(checks) <= {BOUND}


def test_another_tag_key_than_the_logs_fails(session: Session, tag_key: Path) -> None:
    done = forget(session, "r1")
    assert done.certificate is not None
    tag_key.write_text("ab" * 32 + "\n")
    check = checked(done.certificate, tag_key=tag_key, record_id="r1")[BOUND]
    assert check.outcome == "failed"
    assert "not the tag key" in check.detail


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644])
def test_a_tag_key_that_others_can_read_is_refused(session: Session, tag_key: Path, mode: int) -> None:
    done = forget(session, "r1")
    assert done.certificate is not None
    tag_key.chmod(mode)
    with pytest.raises(InputError, match="0600"):
        checked(done.certificate, tag_key=tag_key, record_id="r1")


def test_the_tag_key_is_written_for_its_owner_alone_and_never_into_the_workspace(
    session: Session, tag_key: Path
) -> None:
    assert stat.S_IMODE(tag_key.stat().st_mode) == 0o600
    assert tag_key.read_text().strip() == session.workspace.keys.tag.hex()
    with pytest.raises(InputError, match="outside the workspace"):
        hand_out_tag_key(session.workspace, session.workspace.path / "vault" / "tag.key")


# -- rotation -----------------------------------------------------------------------------------


@pytest.mark.parametrize("reason", ["planned", "lost", "stolen"])
def test_each_certificate_verifies_with_the_key_that_was_in_force(
    session: Session, tmp_path: Path, reason: Any
) -> None:
    old = kept(session, tmp_path / "old.pub")
    before = forget(session, "r1").certificate
    made = rotate(session.workspace, reason)
    after = forget(session, "r2").certificate
    assert before is not None
    assert after is not None
    new = public_key(session)
    assert made["public_key"] == str(new)
    assert new.read_bytes() != old.read_bytes()
    assert not failed(checked(before, [old]))
    assert not failed(checked(after, [new]))
    assert not failed(checked(before, [old, new]))
    assert not failed(checked(after, [old, new]))
    assert "the signature is valid" in failed(checked(before, [new]))
    assert "the signature is valid" in failed(checked(after, [old]))
    for certificate in (before, after):
        assert checked(certificate)[ORIGIN].outcome == "not_checked"
        assert not failed(checked(certificate))


def test_tree_heads_are_signed_by_the_key_in_force(session: Session, tmp_path: Path) -> None:
    old = read_public_key(kept(session, tmp_path / "old.pub").read_bytes())
    before = session.workspace.ledger.head()
    rotate(session.workspace)
    new = read_public_key(public_key(session).read_bytes())
    after = session.workspace.ledger.head()
    assert signed_by(before, old)
    assert signed_by(after, new)
    assert not signed_by(after, old)
    assert not session.workspace.ledger.problems()
    reopened(session).workspace.close()


def test_the_history_says_which_key_held_when(session: Session) -> None:
    first = public_key(session).read_text()
    for reason in ("planned", "lost", "stolen"):
        rotate(session.workspace, reason)
    told = history(session.workspace)
    assert [key["reason"] for key in told] == ["first", "planned", "lost", "stolen"]
    assert [key["endorsed"] for key in told] == [False, True, False, False]
    assert told[0]["public_key"] == first
    assert told[-1]["public_key"] == public_key(session).read_text()
    assert [key["to_fact"] for key in told] == [*(key["from_fact"] - 1 for key in told[1:]), None]
    assert len({key["sha256"] for key in told}) == 4


def test_the_old_key_endorses_the_new_one_only_if_it_is_still_the_operators(session: Session, tmp_path: Path) -> None:
    old = read_public_key(kept(session, tmp_path / "old.pub").read_bytes())
    rotate(session.workspace)
    rotate(session.workspace, "stolen")
    planned, stolen = (fact.body for fact in session.workspace.ledger.facts(kinds.KEY))
    said = endorsed(session.workspace.book.genesis().body["log"], planned["public_key"].encode())
    old.verify(bytes.fromhex(planned["endorsement"]), said)
    with pytest.raises(InvalidSignature):
        old.verify(bytes.fromhex(planned["endorsement"]), said + b"\n")
    assert stolen["endorsement"] is None


def test_a_lost_key_is_replaced_and_a_planned_rotation_of_it_refused(session: Session) -> None:
    (session.workspace.path / "keys" / PRIVATE_FILE).unlink()
    with pytest.raises(StorageError):
        rotate(session.workspace)
    rotate(session.workspace, "lost")
    forget(session, "r1")
    assert_lawful(session)


def test_a_key_that_the_log_does_not_name_endorses_nothing(session: Session) -> None:
    stranger = session.workspace.path / "keys" / PRIVATE_FILE
    stranger.write_bytes(private_pem(Ed25519PrivateKey.generate()))
    before = session.workspace.ledger.head()
    with pytest.raises(InputError, match="another key"):
        rotate(session.workspace)
    with pytest.raises(IntegrityError, match="another signing key"):
        forget(session, "r1")
    assert session.workspace.ledger.head() == before
    rotate(session.workspace, "lost")
    forget(session, "r1")
    assert_lawful(session)


class Killed(BaseException):
    """The process ends here."""


def _ends_after(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, *, before: bool = False) -> None:
    whole: Callable[..., Any] = getattr(owner, name)

    def cut(*arguments: Any, **named: Any) -> Any:
        if not before:
            whole(*arguments, **named)
        raise Killed

    monkeypatch.setattr(owner, name, cut)


STAGES: dict[str, Callable[[pytest.MonkeyPatch, Session], None]] = {
    "before the next key is written": lambda patch, _: _ends_after(patch, sisa.key, "write_next_key", before=True),
    "once the next key is durable": lambda patch, _: _ends_after(patch, sisa.key, "write_next_key"),
    "before the log names it": lambda patch, s: _ends_after(patch, type(s.workspace.ledger), "append", before=True),
    "once the log names it": lambda patch, s: _ends_after(patch, type(s.workspace.ledger), "append"),
    "once the public half is in place": lambda patch, _: _ends_after(patch, shards.keyfiles, "replace_file"),
    "before the next key's file goes": lambda patch, _: _ends_after(
        patch, shards.keyfiles, "discard_next_key", before=True
    ),
    "at the very end": lambda patch, _: _ends_after(patch, sisa.key, "promote_next_key"),
}


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("reason", ["planned", "stolen"])
def test_a_rotation_that_was_cut_off_is_finished_by_the_next(
    session: Session, monkeypatch: pytest.MonkeyPatch, stage: str, reason: Any
) -> None:
    with monkeypatch.context() as patch:
        STAGES[stage](patch, session)
        with pytest.raises(Killed):
            rotate(session.workspace, reason)
    again = reopened(session)  # whatever the stage, the log is whole
    rotate(again.workspace, reason)
    keys = again.workspace.path / "keys"
    named = again.workspace.book.signing_keys()[-1].body["public_key"]
    assert public_pem(read_signing_key(keys).public_key()).decode() == named
    assert (keys / PUBLIC_FILE).read_text() == named
    assert not (keys / NEXT_FILE).exists()
    done = forget(again, "r1")
    assert done.certificate is not None
    assert not failed(checked(done.certificate, [keys / PUBLIC_FILE]))
    assert_lawful(again)
    again.workspace.close()


def test_between_log_and_key_file_every_command_says_how_to_go_on(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        STAGES["once the log names it"](patch, session)
        with pytest.raises(Killed):
            rotate(session.workspace)
    with pytest.raises(IntegrityError, match="sisa key rotate"):
        forget(session, "r1")
    assert not session.workspace.book.requests()


@pytest.mark.parametrize("given", ["new", "old and new"])
def test_a_certificate_forged_with_the_stolen_key_after_its_rotation_fails(
    session: Session, tmp_path: Path, given: str
) -> None:
    """The thief also has the workspace's facts, and could even have the operator log it: the key is not in force."""
    old, stolen = kept(session, tmp_path / "old.pub"), read_signing_key(session.workspace.path / "keys")
    forget(session, "r1", request_id="req")
    rotate(session.workspace, "stolen")
    workspace = session.workspace
    found = workspace.book.request("req")
    assert found is not None
    size = read_head(workspace.ledger.head()).size
    said = statement(workspace, found[1], (), size)
    said["predicate"]["law"] = [{"level": "law", "name": "x", "outcome": "passed", "detail": ""}]
    said["predicate"]["issuer"]["public_key"] = old.read_text()
    envelope = sign(canonical_json(said), stolen)
    body = {"request_id": "req", "digest": envelope_digest(envelope)}
    (fact,) = workspace.ledger.append([(kinds.CERTIFICATE, body)])
    forged = tmp_path / "forged.json"
    forged.write_bytes(_file(workspace, envelope, size, fact))
    keys = [public_key(session)] if given == "new" else [old, public_key(session)]
    assert failed(checked(forged, keys)) & {"the signature is valid", "the facts it rests on are in the operator's log"}


def test_a_log_that_a_thief_carries_on_with_the_stolen_key_fails(session: Session, tmp_path: Path) -> None:
    """A copy of the workspace from before the rotation, with the old key: only the new key's reader is safe."""
    copy = tmp_path / "copy"
    shutil.copytree(session.workspace.path, copy)
    rotate(session.workspace, "stolen")
    thief = reopened(session, copy)
    done = forget(thief, "r1")
    assert done.certificate is not None
    new = public_key(session)
    assert failed(checked(done.certificate, [new])) == {"the signature is valid", SEALED}
    thief.workspace.close()


def test_a_log_that_the_stolen_key_carries_on_is_not_believed_for_a_signature_by_the_new_one(
    session: Session, tmp_path: Path
) -> None:
    """Whatever got the new key's signature: the log beside it must be signed by a key of the reader's."""
    copy, forged = tmp_path / "copy", tmp_path / "forged.json"
    shutil.copytree(session.workspace.path, copy)
    rotate(session.workspace, "stolen")
    signing = read_signing_key(session.workspace.path / "keys")
    thief = reopened(session, copy)
    forget(thief, "r1", request_id="req")
    said = signed(thief.workspace, "req")
    forged.write_bytes(seal(thief.workspace, sign(canonical_json(said), signing), "req", head_size(said)))
    assert failed(checked(forged, [public_key(session)])) == {"the signature is valid", SEALED}
    both = [public_key(session), public_key(thief)]
    assert failed(checked(forged, both)) == {"the signature is valid"}, "a signature is by the key that it states"
    thief.workspace.close()


def test_rotation_touches_neither_placement_nor_seeds(session: Session, tmp_path: Path) -> None:
    root, checkpoints = read_root(session.workspace.path / "keys"), session.workspace.book.live()
    rotate(session.workspace)
    forget(session, "r1")
    rotate(session.workspace, "lost")
    forget(session, "r4", "r5")
    assert read_root(session.workspace.path / "keys") == root
    assert checkpoints.keys() & session.workspace.book.live().keys()
    assert_lawful(session)
    assert_equals_fresh_run(session, TRAINER, tmp_path / "fresh")


def test_after_a_rotation_old_certificates_still_agree_with_the_workspace(session: Session) -> None:
    done = forget(session, "r1")
    rotate(session.workspace)
    assert done.certificate is not None
    document = read_certificate(done.certificate.read_bytes())
    assert not [check for check in verify_against(document, session.workspace.path) if check.outcome == "failed"]


@pytest.mark.parametrize("name", [PRIVATE_FILE, PUBLIC_FILE])
def test_new_key_files_have_the_modes_of_the_first(session: Session, name: str) -> None:
    keys = session.workspace.path / "keys"
    before = stat.S_IMODE((keys / PRIVATE_FILE).stat().st_mode)
    rotate(session.workspace)
    mode = stat.S_IMODE((keys / name).stat().st_mode)
    assert mode == before == 0o600 or name == PUBLIC_FILE
    assert mode & 0o400


# -- the end of a namespace ---------------------------------------------------------------------


def _emptied(session: Session) -> None:
    forget(session, *(f"r{number}" for number in range(12)), request_id="all")


def test_keys_are_not_destroyed_while_records_are_held(session: Session) -> None:
    with pytest.raises(InputError, match="12 records"):
        destroy(session.workspace)
    assert read_root(session.workspace.path / "keys")


def test_keys_are_not_destroyed_while_a_deletion_is_under_way(session: Session) -> None:
    _emptied(session)
    certificate_path(session.workspace, "all").unlink()
    with pytest.raises(InputError, match="under way"):
        destroy(session.workspace)
    assert read_root(session.workspace.path / "keys")


def test_once_the_namespace_ended_every_opening_says_so(session: Session) -> None:
    _emptied(session)
    destroy(session.workspace)
    path = session.workspace.path
    assert not (path / "keys" / "root.key").exists()
    with pytest.raises(InputError, match="namespace ended on") as caught:
        Workspace.open(path)
    assert "by file and public key" in caught.value.remedy
    checks = checked(certificate_path(session.workspace, "all"), [public_key(session)])
    assert not failed(checks)


def test_a_lost_root_secret_is_not_taken_for_an_ended_namespace(session: Session) -> None:
    (session.workspace.path / "keys" / "root.key").unlink()
    with pytest.raises(StorageError, match="restore the keys"):
        Workspace.open(session.workspace.path)


def test_a_destruction_that_was_cut_off_is_finished_by_the_next(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    _emptied(session)
    with monkeypatch.context() as patch:
        _ends_after(patch, sisa.key, "remove", before=True)
        with pytest.raises(Killed):
            destroy(session.workspace)
    again = reopened(session)
    destroy(again.workspace)
    assert len(again.workspace.ledger.facts(kinds.END)) == 1
    assert not (again.workspace.path / "keys" / "root.key").exists()
    again.workspace.close()


def test_a_theft_is_never_answered_by_finishing_an_older_rotation(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A planned rotation was killed at its very end, so all went on with the key that is stolen later."""
    with monkeypatch.context() as patch:
        STAGES["before the next key's file goes"](patch, session)
        with pytest.raises(Killed):
            rotate(session.workspace)
    forget(session, "r1")
    stolen = public_key(session).read_text()
    assert rotate(session.workspace, "stolen")["reason"] == "stolen"
    assert public_key(session).read_text() != stolen
    assert history(session.workspace)[-1]["reason"] == "stolen"
    assert_lawful(session)


def test_a_planned_rotation_that_only_left_a_file_behind_is_followed_by_another(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        STAGES["before the next key's file goes"](patch, session)
        with pytest.raises(Killed):
            rotate(session.workspace)
    rotate(session.workspace)
    assert [key["reason"] for key in history(session.workspace)] == ["first", "planned", "planned"]


def test_the_end_of_a_namespace_takes_the_texts_behind_references_along(session: Session) -> None:
    file = session.workspace.vault.root / REFERENCES_FILE
    with session.driving():
        references(session.workspace).put("requester", "Ada Example")
    _emptied(session)
    assert file.exists()
    destroy(session.workspace)
    assert not file.exists()
