"""``sisa verify`` and ``sisa audit --all`` must be able to fail: each test spoils one thing."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from shards import kinds
from shards.digest import bytes_digest, canonical_json, files_digest, tensor_digest
from shards.keyfiles import create_signing_key
from shards.law import check_law
from shards.workspace import WEIGHTS_FILE
from sisa.certificate import issue
from sisa.levels import REPLAYS
from sisa.session import open_session
from sisa.signing import PAYLOAD_TYPE
from tests.flows.fixtures import Deletion, Site
from tests.flows.helpers import (
    LOG,
    copy_of,
    done,
    edit_facts,
    edit_ledger,
    failed,
    forge,
    outcomes,
    refused,
    rewrite_checkpoints,
    sisa,
    ticket,
    unchanged,
    write_jsonl,
)

SIGNATURE = "the signature is valid"
SHAPE = "the file is a deletion certificate"
SEALED = "the certificate itself is in the log"
HEADS = "heads on disk are the heads certified"
LEDGER = "the workspace's ledger names this certificate"
ANEW = "the certificate, derived anew from what is stored, is the same"
TOMBSTONES = "the request's tombstones hold"
STORED = "nothing stored saw a deleted record"
HELD = "no deleted record is held"
PARTS = "the vault holds what the ledger says"
OBJECTS = "the store holds what the ledger says"
STRAYS = "nothing is stored that no fact names"
LOGGED = "every certificate is the one that was logged"


@pytest.fixture
def spoilt(deletion: Deletion, tmp_path: Path) -> Path:
    """A copy of the workspace after the deletion."""
    return copy_of(deletion.path, tmp_path / "spoilt")


def verified(deletion: Deletion, workspace: Path, *arguments: str, code: int = 1) -> set[str]:
    """Names of the failed checks, given the operator's key and a workspace."""
    key = deletion.path / "keys" / "signing.pub"
    with unchanged(workspace):
        result = sisa("verify", deletion.certificate, "--public-key", key, "-w", workspace, "--json", *arguments)
    assert result.code == code, result.err or result.out
    return failed(result.document)


def audited(workspace: Path) -> set[str]:
    result = sisa("audit", "-w", workspace, "--all", "--json")
    assert result.code == 1, result.err or result.out
    return failed(result.document)


def document_of(deletion: Deletion) -> Any:
    return json.loads(deletion.certificate.read_text())


def statement_of(deletion: Deletion) -> Any:
    return json.loads(base64.b64decode(document_of(deletion)["envelope"]["payload"]))


def head_weights(workspace: Path) -> list[Path]:
    shards = done("status", "-w", workspace)["shards"]
    return [Path(shard["head"]["adapter_dir"]) / WEIGHTS_FILE for shard in shards]


def hit_shard(deletion: Deletion) -> int:
    return int(statement_of(deletion)["predicate"]["impact"]["shards"][0]["shard"])


def test_an_honest_workspace_passes_every_check(deletion: Deletion, spoilt: Path) -> None:
    assert verified(deletion, spoilt, "--replay", "full", code=0) == set()
    assert done("audit", "-w", spoilt, "--all")["failed"] == 0


# -- the certificate ----------------------------------------------------------------------------


def test_another_key_fails(deletion: Deletion, classification: Site, tmp_path: Path) -> None:
    done("init", tmp_path / "other", "--keys-from", classification.path)
    result = sisa("verify", deletion.certificate, "--public-key", tmp_path / "other/keys/signing.pub", "--json")
    assert result.code == 1
    assert failed(result.document) == {SIGNATURE, SEALED}


@pytest.mark.parametrize("field", ["payload", "sig"])
def test_any_edited_byte_of_payload_or_signature_fails(field: str, deletion: Deletion, tmp_path: Path) -> None:
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    edited = tmp_path / "edited.json"
    document = document_of(deletion)
    envelope = document["envelope"]
    holder = envelope if field == "payload" else envelope["signatures"][0]
    text = holder[field]
    last = len(text.rstrip("="))
    places = {*range(0, last, max(1, last // 60)), *range(last - 4, last)}
    for place in sorted(places):
        # The next letter, and for the last ones every other: base64 can spell the same bytes in several ways.
        letters = alphabet if place >= last - 1 else alphabet[(alphabet.index(text[place]) + 1) % 64]
        for letter in set(letters) - {text[place]}:
            holder[field] = text[:place] + letter + text[place + 1 :]
            edited.write_text(json.dumps(document))
            result = sisa("verify", edited, "--json")
            assert (result.code, result.err) == (1, ""), (place, letter)
            assert failed(result.document), (place, letter)
            assert outcomes(result.document).get(SIGNATURE) != "passed", (place, letter)


def test_an_edited_statement_fails_however_well_formed(deletion: Deletion, tmp_path: Path) -> None:
    document, statement = document_of(deletion), statement_of(deletion)
    statement["predicate"]["not_claimed"].pop()
    document["envelope"]["payload"] = base64.b64encode(canonical_json(statement)).decode()
    edited = tmp_path / "edited.json"
    edited.write_text(json.dumps(document))
    assert failed(sisa("verify", edited, "--json").document) == {SIGNATURE, SEALED}


def test_another_payload_type_fails_even_when_signed(deletion: Deletion, tmp_path: Path) -> None:
    document = document_of(deletion)
    document["envelope"]["payloadType"] = "application/json"
    edited = tmp_path / "edited.json"
    edited.write_text(json.dumps(document))
    result = sisa("verify", edited, "--json")
    assert (result.code, failed(result.document)) == (1, {SHAPE})


Change = Callable[[Any], Any]


def _drop(name: str) -> Change:
    return lambda predicate: predicate.pop(name)


FALSE_STATEMENTS: dict[str, Change] = {
    **{
        f"without {name}": _drop(name)
        for name in ("issuer", "log", "request", "after", "lineages", "impact", "purged", "absence", "prior", "law")
    },
    "request without an ID": lambda predicate: predicate["request"].pop("id"),
    "request without tombstones": lambda predicate: predicate["request"]["targets"].pop("tombstones"),
    "request that is text": lambda predicate: predicate.update(request="r"),
    "tombstones that are no digests": lambda predicate: predicate["request"]["targets"].update(tombstones=["zz"]),
    "lineages that are text": lambda predicate: predicate.update(lineages="r"),
    "impact that is text": lambda predicate: predicate.update(impact="r"),
    "issuer without a key": lambda predicate: predicate["issuer"].update(public_key="no key"),
    "issuer that is text": lambda predicate: predicate.update(issuer="me"),
    "head of another checkpoint": lambda predicate: predicate["after"]["heads"][0].update(checkpoint="0" * 64),
    "head with other tensors": lambda predicate: predicate["after"]["heads"][0].update(tensors="0" * 64),
    "purged checkpoint that is served": lambda predicate: predicate["purged"].append(
        predicate["after"]["heads"][0]["checkpoint"]
    ),
    "link with another key": lambda predicate: predicate["lineages"][0]["links"][0].update(key="0" * 64),
    "link of another slice": lambda predicate: predicate["lineages"][0]["links"][0].update(slice=7),
    "lineage of another shard": lambda predicate: predicate["lineages"][0].update(shard=7),
    "lineage without its first link": lambda predicate: predicate["lineages"][-1]["links"].pop(0),
    "checkpoint neither kept nor retrained": lambda predicate: predicate.update(kept=[], retrained=[]),
    "another version": lambda predicate: predicate.update(version=2),
}


@pytest.mark.parametrize("case", FALSE_STATEMENTS)
def test_a_false_statement_fails_even_when_signed_by_the_operator(
    case: str, deletion: Deletion, spoilt: Path, tmp_path: Path
) -> None:
    statement = statement_of(deletion)
    request_id = statement["predicate"]["request"]["id"]
    FALSE_STATEMENTS[case](statement["predicate"])
    forged = tmp_path / "forged.json"
    forged.write_bytes(forge(spoilt, statement, request_id))
    evidence: tuple[list[str | Path], ...] = ([], ["--public-key", spoilt / "keys/signing.pub"], ["-w", spoilt])
    for arguments in evidence:
        result = sisa("verify", forged, *arguments, "--json")
        assert (result.code, result.err) == (1, ""), arguments
        assert failed(result.document) - {SIGNATURE, SEALED}, "signature and place in the log are in order"


def test_a_true_statement_signed_and_logged_again_passes(deletion: Deletion, spoilt: Path, tmp_path: Path) -> None:
    """So that what fails above is the statement, never the way in which it is forged."""
    statement = statement_of(deletion)
    again = tmp_path / "again.json"
    again.write_bytes(forge(spoilt, statement, statement["predicate"]["request"]["id"]))
    assert done("verify", again, "--public-key", spoilt / "keys/signing.pub")["failed"] == 0


MEDIA = '{"mediaType": "application/vnd.sisa.deletion-certificate.v1+json", "envelope": %s, "sealed": %s}'
ENVELOPE = '{"payload": "%s", "payloadType": "application/vnd.in-toto+json", "signatures": [%s]}'
SEAL = '{"created": "", "proof": "", "consistency": []}'


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "null", "[]", "5", '"text"', "{}", '{"payload": 5}', '{"a": 1, "a": 2}', "[" * 100_000,
        ENVELOPE % ("e30=", ""), MEDIA % ("{}", "{}"), MEDIA % ("[]", "5"), MEDIA % (ENVELOPE % ("e30=", ""), SEAL),
        MEDIA % (ENVELOPE % ("W10=", '{"keyid": "a", "sig": "AA=="}'), SEAL),
        MEDIA % (ENVELOPE % ("e30=", '{"keyid": {}, "sig": "AA=="}'), SEAL),
        MEDIA % ('{"payload": "e30=", "payloadType": "application/vnd.in-toto+json", "signatures": 7}', SEAL),
        '{"name": "a package", "version": "1.0"}', '{"a": NaN}', "[/red]",
    ],
)  # fmt: skip
def test_a_file_that_is_no_certificate_fails_without_a_traceback(text: str, tmp_path: Path) -> None:
    file = tmp_path / "file.json"
    file.write_text(text)
    result = sisa("verify", file, "--json")
    assert (result.code, result.err) == (1, "")
    assert failed(result.document) == {SHAPE}
    assert sisa("verify", file).code == 1


def test_random_bytes_fail_without_a_traceback(tmp_path: Path) -> None:
    file = tmp_path / "file.json"
    for data in (b"\xff\xfe\x00", bytes(range(256)), b"\x00" * 1000):
        file.write_bytes(data)
        assert failed(sisa("verify", file, "--json").document) == {SHAPE}


def test_signatures_with_odd_key_ids_decide_nothing(deletion: Deletion, tmp_path: Path) -> None:
    odd = tmp_path / "odd.json"
    for keyid in ("", "x" * 10_000, "[/red]", 7, None, ["a"]):
        document = document_of(deletion)
        document["envelope"]["signatures"][0]["keyid"] = keyid
        odd.write_text(json.dumps(document))
        result = sisa("verify", odd, "--json")
        # The signature stays good, and the log still tells that these are not the bytes it was told of.
        wanted = {SEALED} if isinstance(keyid, str) else {SHAPE}
        assert (result.code, failed(result.document)) == (1, wanted), keyid
    document = document_of(deletion)
    document["envelope"]["signatures"] = []
    odd.write_text(json.dumps(document))
    assert sisa("verify", odd).code == 1


def test_a_certificate_or_key_that_cannot_be_read_is_bad_usage(deletion: Deletion, tmp_path: Path) -> None:
    refused(sisa("verify", tmp_path / "nowhere"), "nowhere")
    refused(sisa("verify", tmp_path), str(tmp_path))
    refused(sisa("verify", deletion.certificate, "--public-key", tmp_path / "nowhere"), "nowhere")
    refused(sisa("verify", deletion.certificate, "--public-key", deletion.certificate), "Ed25519")
    refused(sisa("verify", deletion.certificate, "-w", tmp_path), str(tmp_path))
    unplaced = sisa("verify", deletion.certificate, "--replay", "full")
    assert (unplaced.code, unplaced.out, "-w" in unplaced.err) == (2, "", True)


def test_a_key_of_another_kind_is_bad_usage(deletion: Deletion, tmp_path: Path) -> None:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key

    public = generate_private_key(SECP256R1()).public_key()
    pem = public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    (tmp_path / "ec.pub").write_bytes(pem)
    refused(sisa("verify", deletion.certificate, "--public-key", tmp_path / "ec.pub"), "Ed25519")


def test_the_certificate_of_another_workspace_fails(deletion: Deletion, classification: Site, tmp_path: Path) -> None:
    other = tmp_path / "other"
    done("init", other, "--keys-from", classification.path)
    done("train", "-w", other, "--data", classification.data)
    assert {LEDGER, TOMBSTONES} <= verified(deletion, other)
    assert LEDGER in failed(sisa("verify", deletion.certificate, "-w", other, "--json").document)
    key = other / "keys" / "signing.pub"
    assert failed(sisa("verify", deletion.certificate, "--public-key", key, "--json").document) == {SIGNATURE, SEALED}


def test_a_certificate_issued_again_supersedes_the_first_which_stays_true(deletion: Deletion, spoilt: Path) -> None:
    with open_session(spoilt) as session:
        ((_, request),) = session.workspace.book.requests()
        renewed = issue(session.workspace, request, check_law(session.workspace))
    for certificate in (deletion.certificate, renewed):  # each follows from what was stored when it was issued
        document = done("verify", certificate, "-w", spoilt)
        assert document["failed"] == 0
        assert outcomes(document)[ANEW] == "passed"


def test_white_space_around_a_certificate_is_seen_where_it_was_filed_and_changes_nothing_that_was_signed(
    deletion: Deletion, spoilt: Path, tmp_path: Path
) -> None:
    spaced = tmp_path / "spaced.json"
    spaced.write_text(deletion.certificate.read_text() + "\n")
    assert failed(sisa("verify", spaced, "-w", spoilt, "--json").document) == set()
    (filed,) = (spoilt / "certificates").iterdir()
    shutil.copy(spaced, filed)
    assert audited(spoilt) == {LOGGED}
    done("train", "-w", spoilt)
    assert done("audit", "-w", spoilt, "--all")["failed"] == 0


# -- the store ----------------------------------------------------------------------------------


def test_swapped_checkpoints_fail(deletion: Deletion, spoilt: Path) -> None:
    one, other = head_weights(spoilt)
    data = one.read_bytes(), other.read_bytes()
    one.write_bytes(data[1])
    other.write_bytes(data[0])
    assert {HEADS, OBJECTS} <= verified(deletion, spoilt)
    assert OBJECTS in audited(spoilt)


@pytest.mark.parametrize("place", [-1, 20, 0])
def test_an_edited_tensor_fails(place: int, deletion: Deletion, spoilt: Path) -> None:
    file = head_weights(spoilt)[0]
    data = bytearray(file.read_bytes())
    data[place] ^= 1
    file.write_bytes(data)
    assert OBJECTS in verified(deletion, spoilt)
    assert OBJECTS in audited(spoilt)


def test_a_missing_head_fails(deletion: Deletion, spoilt: Path) -> None:
    shutil.rmtree(head_weights(spoilt)[1].parent)
    assert {HEADS, OBJECTS} <= verified(deletion, spoilt)


def test_a_file_added_to_a_checkpoint_fails(deletion: Deletion, spoilt: Path) -> None:
    (head_weights(spoilt)[0].parent / "old.safetensors").write_bytes(b"an older adapter")
    assert OBJECTS in verified(deletion, spoilt)


def test_a_purged_checkpoint_restored_from_a_copy_fails(deletion: Deletion, spoilt: Path) -> None:
    for entry in (deletion.site.path / "store").iterdir():
        if not (spoilt / "store" / entry.name).exists():
            shutil.copytree(entry, spoilt / "store" / entry.name)
    assert {STORED, STRAYS} <= verified(deletion, spoilt)
    done("train", "-w", spoilt)  # sweeps
    assert verified(deletion, spoilt, code=0) == set()


def test_a_purged_checkpoint_restored_with_its_fact_fails(deletion: Deletion, spoilt: Path) -> None:
    for entry in (deletion.site.path / "store").iterdir():
        shutil.copytree(entry, spoilt / "store" / entry.name, dirs_exist_ok=True)
    edit_ledger(spoilt, ("DELETE FROM facts WHERE kind = ?", (kinds.PURGE,)), resign=True)
    assert verified(deletion, spoilt)
    assert STORED in audited(spoilt)


def tamper(workspace: Path, shard: int) -> None:
    """Change the served tensors of a shard and every digest of them in the ledger; sign it all anew."""
    file = head_weights(workspace)[shard]
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    tensors = tensor_digest(bytes(data))
    old = file.parent.name
    files = files_digest({entry.name: bytes_digest(entry.read_bytes()) for entry in file.parent.iterdir()})
    file.parent.rename(file.parent.parent / files)
    rewrite_checkpoints(
        workspace, lambda body: body | {"files": files, "tensors": tensors} if body["files"] == old else body
    )


def test_tensors_rehashed_consistently_are_caught_by_the_certificate(deletion: Deletion, spoilt: Path) -> None:
    tamper(spoilt, hit_shard(deletion))
    assert audited(spoilt) == {LOGGED}, "the ledger alone cannot know"
    assert verified(deletion, spoilt)


@pytest.mark.parametrize("scope", ["affected", "full"])
def test_tensors_rehashed_and_certified_anew_are_caught_by_a_replay_alone(
    scope: str, deletion: Deletion, spoilt: Path
) -> None:
    shard = hit_shard(deletion)
    tamper(spoilt, shard)
    with open_session(spoilt) as session:
        ((_, request),) = session.workspace.book.requests()
        certificate = issue(session.workspace, request, check_law(session.workspace))
    assert done("audit", "-w", spoilt, "--all")["failed"] == 0
    assert done("verify", certificate, "-w", spoilt)["failed"] == 0
    result = sisa("verify", certificate, "-w", spoilt, "--replay", scope, "--json")
    assert result.code == 1
    assert failed(result.document) == {f"shard {shard} trained anew gives the stored bits"}


def test_a_replay_reads_only_and_cleans_up(
    deletion: Deletion, spoilt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    assert verified(deletion, spoilt, "--replay", "affected", code=0) == set()
    assert list(scratch.iterdir()) == []


def test_a_replay_in_another_environment_class_is_not_comparable(spoilt: Path) -> None:
    rewrite_checkpoints(spoilt, lambda body: body | {"environment": body["environment"] | {"torch": "0.1"}})
    with open_session(spoilt) as session:
        ((_, request),) = session.workspace.book.requests()
        certificate = issue(session.workspace, request, check_law(session.workspace))
    document = done("verify", certificate, "-w", spoilt, "--replay", "full")
    replays = [check for check in document["checks"] if check["level"] == "V4"]
    assert {check["outcome"] for check in replays} == {"not_checked"}
    assert all("'0.1'" in check["detail"] for check in replays)


# -- the records --------------------------------------------------------------------------------


def restore_part(deletion: Deletion, spoilt: Path) -> tuple[Any, Path]:
    """Bring back a vault part that held a deleted record; returns its fact and the file."""
    with open_session(deletion.site.path) as session:
        tags = [session.workspace.tag(name) for name in deletion.ids]
        part = session.workspace.vault.tags(session.workspace.parts())[tags[0]]
    shutil.copy(deletion.site.path / "vault" / part.file, spoilt / "vault" / part.file)
    return part.to_json(), spoilt / "vault" / part.file


def test_a_record_put_back_beside_the_parts_fails(deletion: Deletion, spoilt: Path) -> None:
    restore_part(deletion, spoilt)
    assert STRAYS in verified(deletion, spoilt)
    assert audited(spoilt) == {STRAYS}


def test_a_record_put_back_into_a_part_fails(deletion: Deletion, spoilt: Path) -> None:
    part, file = restore_part(deletion, spoilt)
    with open_session(spoilt) as session:
        now = next(
            other for other in session.workspace.parts() if (other.shard, other.slice) == (part["shard"], part["slice"])
        )
    file.replace(spoilt / "vault" / now.file)
    assert verified(deletion, spoilt)
    assert PARTS in audited(spoilt)


def test_a_record_put_back_with_its_fact_fails(deletion: Deletion, spoilt: Path) -> None:
    part, _ = restore_part(deletion, spoilt)
    body = {"counts": {}, "last_generation": 0, "added": [part], "removed": []}
    with open_session(spoilt) as session:
        session.workspace.ledger.append([(kinds.INGEST, body)])
    assert HELD in verified(deletion, spoilt)
    assert HELD in audited(spoilt)


def test_a_record_ingested_again_under_removed_tombstones_fails(
    deletion: Deletion, spoilt: Path, tmp_path: Path
) -> None:
    edit_ledger(spoilt, ("DELETE FROM facts WHERE kind = ?", (kinds.REQUEST,)), resign=True)
    assert TOMBSTONES in verified(deletion, spoilt)
    numbers = [int(name.split("-")[1]) for name in deletion.ids]
    data = write_jsonl(tmp_path / "again.jsonl", [ticket(number) for number in numbers])
    done("train", "-w", spoilt, "--data", data)
    assert TOMBSTONES in verified(deletion, spoilt)


def test_a_tombstone_taken_out_of_a_request_fails(deletion: Deletion, spoilt: Path) -> None:
    with open_session(spoilt) as session:
        ((_, request),) = session.workspace.book.requests()
        fewer = replace(request.targets, tombstones=request.tombstones[1:])
        name = session.workspace.store.put(fewer.files())
    edit_facts(spoilt, kinds.REQUEST, lambda body: body | {"object": name}, resign=True)
    assert TOMBSTONES in verified(deletion, spoilt)


KINDS = (
    kinds.GENESIS, kinds.RECIPE, kinds.INGEST, kinds.SLICE, kinds.RUN, kinds.CHECKPOINT, kinds.MANIFEST, kinds.REQUEST,
    kinds.ERASURE, kinds.PURGE, kinds.CERTIFICATE,
)  # fmt: skip
FIRST = "DELETE FROM facts WHERE seq = (SELECT seq FROM facts WHERE kind = ? ORDER BY seq {} LIMIT 1)"


def questions(deletion: Deletion) -> list[list[str]]:
    """Commands that read."""
    return [["audit", "--id", deletion.ids[0]], ["status"], ["predict", "--text", "login"]]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("order", ["", "DESC"])
def test_a_fact_taken_out_of_the_ledger_stops_every_command(
    kind: str, order: str, deletion: Deletion, spoilt: Path
) -> None:
    edit_ledger(spoilt, (FIRST.format(order), (kind,)))
    assert verified(deletion, spoilt)
    assert LOG in audited(spoilt)
    with unchanged(spoilt):
        for command in (*questions(deletion), ["train"], ["ingest"], ["delete", "--id", ticket(1)["id"]]):
            refused(sisa(*command, "-w", spoilt), "facts in", "tree head", "backup", code=1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("order", ["", "DESC"])
def test_a_fact_taken_out_by_the_operator_is_noticed_without_a_traceback(
    kind: str, order: str, deletion: Deletion, spoilt: Path
) -> None:
    edit_ledger(spoilt, (FIRST.format(order), (kind,)), resign=True)
    assert verified(deletion, spoilt)
    with unchanged(spoilt):
        # Without its fact a request is one that waits, but its certificate lies there, of which nobody was told.
        audit = sisa("audit", "-w", spoilt, "--all")
        assert audit.code in ({1} if kind == kinds.CERTIFICATE else {1, 2})
        assert kind != kinds.CERTIFICATE or "certificates/req-" in audit.out
        for result in (audit, *(sisa(*command, "-w", spoilt) for command in questions(deletion))):
            assert result.code in {0, 1, 2}
            assert "Traceback" not in result.err


@pytest.mark.parametrize("kind", KINDS)
def test_an_edited_fact_stops_every_command(kind: str, deletion: Deletion, spoilt: Path) -> None:
    edit_facts(spoilt, kind, lambda body: body | {"and": "more"})
    assert verified(deletion, spoilt)
    assert LOG in audited(spoilt)
    with unchanged(spoilt):
        for command in (*questions(deletion), ["train"], ["delete", "--id", ticket(1)["id"]]):
            refused(sisa(*command, "-w", spoilt), "facts", "backup", code=1)


def test_a_history_signed_by_another_key_stops_every_command(deletion: Deletion, spoilt: Path) -> None:
    """Whoever can write to the ledger and has no key of ours can make a log, and not this one."""
    for name in ("signing.key", "signing.pub"):
        (spoilt / "keys" / name).unlink()
    create_signing_key(spoilt / "keys")
    edit_facts(spoilt, kinds.REQUEST, lambda body: body, resign=True)
    assert verified(deletion, spoilt)
    assert LOG in audited(spoilt)
    with unchanged(spoilt):
        for command in questions(deletion):
            refused(sisa(*command, "-w", spoilt), "not signed by the log's key", code=1)


def test_a_ledger_or_root_secret_that_is_broken_is_said_plainly(spoilt: Path) -> None:
    root = spoilt / "keys" / "root.key"
    secret = root.read_text()
    for text, words in (("", "32 bytes"), ("zz", "64 hex digits"), ("00" * 32, "commitment")):
        root.write_text(text)
        refused(sisa("audit", "-w", spoilt, "--all"), words)
    root.unlink()
    refused(sisa("audit", "-w", spoilt, "--all"), "root.key", code=3)
    root.write_text(secret)
    (spoilt / "ledger.sqlite").write_bytes(b"not a database" * 1000)
    refused(sisa("audit", "-w", spoilt, "--all"), "ledger.sqlite", code=1)
    (spoilt / "ledger.sqlite").unlink()
    refused(sisa("audit", "-w", spoilt, "--all"), "ledger.sqlite", code=3)


def test_a_certificate_is_signed_over_its_payload_type(deletion: Deletion) -> None:
    assert document_of(deletion)["envelope"]["payloadType"] == PAYLOAD_TYPE


def test_unchecked_is_neither_passed_nor_failed(deletion: Deletion) -> None:
    document = done("verify", deletion.certificate)
    assert outcomes(document)["it was signed by the operator"] == "not_checked"
    assert outcomes(document)["the workspace is as certified"] == "not_checked"
    assert {check["level"]: check["outcome"] for check in document["checks"] if check["level"] in REPLAYS} == {
        "V3": "not_checked",
        "V4": "not_checked",
    }
    assert document["not_checked"] >= 3


@pytest.mark.parametrize("spoil", [True, False])
def test_levels_that_need_a_workspace_are_reported_after_a_failed_check(
    spoil: bool, deletion: Deletion, spoilt: Path, tmp_path: Path
) -> None:
    document = document_of(deletion)
    document["sealed"]["created"] = "another time"
    broken = tmp_path / "broken.json"
    broken.write_text(json.dumps(document) if spoil else "{}")
    result = sisa("verify", broken, "-w", spoilt, "--replay", "affected", "--json")
    assert result.code == 1
    told = [(check["level"], check["outcome"]) for check in result.document["checks"][-3:]]
    assert told == [(level, "not_checked") for level in ("V2", "V3", "V4")]
