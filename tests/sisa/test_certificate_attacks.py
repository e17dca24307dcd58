"""Attacks on certificates: by strangers with any file they like, and by the operator who holds every key.

The operator signs what it wants and logs it. What the log or the proofs speak against must fail all
the same, from the file and a public key alone; what they cannot speak against is listed here.
"""

from __future__ import annotations

import base64
import copy
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from securesystemslib.dsse import Envelope
from securesystemslib.signer import CryptoSigner

from orchestration.inline import InlineExecutor
from shards import kinds
from shards.derived import Export
from shards.digest import canonical_json, keyed
from shards.errors import InputError
from shards.keyfiles import read_signing_key
from shards.keys import public_pem
from shards.sparse import prove, tree_root
from shards.workspace import Workspace
from sisa import log
from sisa.certificate import certificate_path, is_intact
from sisa.delete import delete, unfinished_requests
from sisa.export import export_records, register_derived, register_export
from sisa.ingest import Ingested, commit
from sisa.receipt import receipt
from sisa.session import Session
from sisa.signing import PAYLOAD_TYPE, sign
from sisa.train import train
from sisa.verify import BOUND, FIELDS, FRESH, ORIGIN, SHAPE, Evidence, verify
from tests.sisa.forging import (
    failed,
    follow,
    forge,
    from_the_file,
    head_size,
    logged_anew,
    public_key,
    seal,
    signed,
    with_the_workspace,
)  # fmt: skip
from tests.toy import ToyTrainer, memory_directory, stored, toy_recipe, toy_record, toy_session

INLINE = InlineExecutor()
TRAINER = ToyTrainer()
ABSENT = "the records are in no slice that the served heads were trained on"
REBUILT = "the certificate, derived anew from what is stored, is the same"
Place = tuple[str | int, ...]


@pytest.fixture(scope="module")
def session() -> Iterator[Session]:
    """Ten records trained and handed out once; two of them deleted, and one asked for that never was."""
    with memory_directory() as directory:
        made = toy_session(directory / "workspace", toy_recipe(slices=2))
        made = Session(made.workspace, made.recipe, made.options.model_copy(update={"backup_days": 30}))
        commit(made, stored(made, map(toy_record, range(10))), Ingested(10, 0, 0, 0))
        train(made, executor=INLINE, trainer=TRAINER)
        export_records(made, directory / "copy.jsonl", recipient="a partner")
        register_derived(made, "predictions", b"answers", [head for head, _ in made.workspace.book.served()])
        parents = frozenset(head.checkpoint for head, _ in made.workspace.book.served())
        for kept in (False, True):
            model = Export("model", f"{kept:d}" * 64, parents, kept)
            register_export(made.workspace, model, directory / "model", "a partner")
        who = {"requester": "somebody", "reason": "Art. 17"}
        ids = ["r1", "r4", "nobody"]
        delete(made, ids, request_id="req", ignore_missing=True, who=who, executor=INLINE, trainer=TRAINER)
        yield made
        made.workspace.close()


@pytest.fixture(scope="module")
def honest(session: Session) -> dict[str, Any]:
    """The honest statement."""
    return signed(session.workspace, "req")


# -- every field, changed by the operator ---------------------------------------------------------

# What a file cannot speak against, and why. Somebody with the workspace finds these out.
WORKSPACE_ONLY = {
    "predicate.supersedes": "the facts of earlier certificates are not in the file",
    "predicate.clock": "words",
    "predicate.records.surviving": "the vault is not in the file",
    "predicate.records.digest": "the vault is not in the file",
    "predicate.handed_out[*].kind": "the facts of what was handed out are not in the file",
    "predicate.handed_out[*].form": "the facts of what was handed out are not in the file",
    "predicate.handed_out[*].location": "the facts of what was handed out are not in the file",
    "predicate.handed_out[*].recipient": "the facts of what was handed out are not in the file",
    "predicate.handed_out[*].parents[*]": "the facts of what was handed out are not in the file",
    "predicate.replay.seeds": "words",
    "predicate.replay.how": "words",
    "predicate.replay.expected": "words",
    "predicate.not_claimed[*]": "words",
}
# What nothing can speak against.
NOBODY = {
    "predicate.issued": "the operator's clock",
    "predicate.issuer.program": "the program may have been replaced since",
    "predicate.issuer.code": "the program may have been replaced since",
    "predicate.law[*].level": "how the law was put; whoever has the workspace asks it again",
    "predicate.law[*].name": "how the law was put; whoever has the workspace asks it again",
    "predicate.law[*].detail": "how the law was put; whoever has the workspace asks it again",
}
# The same lists, for what is left out and for what is there too many.
LEFT_OUT = {
    "predicate.handed_out[*].kind",
    "predicate.handed_out[*].form",
    "predicate.handed_out[*].kept",
    "predicate.handed_out[*].location",
    "predicate.handed_out[*].recipient",
    "predicate.handed_out[*].parents",
    "predicate.handed_out[*].parents[*]",
    "predicate.law[*]",
    "predicate.not_claimed[*]",
}
TOO_MANY = {
    "predicate.handed_out[*]",
    "predicate.handed_out[*].parents",
    "predicate.law",
    "predicate.not_claimed",
}


def leaves(value: Any, place: Place = ()) -> Iterator[Place]:
    """The place of every value that is no list and no object."""
    if isinstance(value, dict | list):
        for at, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(item, (*place, at))
    else:
        yield place


def containers(value: Any, place: Place = ()) -> Iterator[Place]:
    """The place of every list and object."""
    if isinstance(value, dict | list):
        yield place
        for at, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from containers(item, (*place, at))


def at(value: Any, place: Place) -> Any:
    for step in place:
        value = value[step]
    return value


def named(place: Place) -> str:
    """A place as the lists above name it."""
    text = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in place).removeprefix(".")
    return re.sub(r"\[\d+\]", "[*]", text)


def other(value: Any) -> Any:
    """Another value of the same kind."""
    if value is None:
        return "0" * 64
    if isinstance(value, str) and re.fullmatch("(?:[0-9a-f]{64})+", value):
        return value[:-1] + ("0" if value[-1] != "0" else "1")
    if isinstance(value, str):
        return value + "x"
    return value + 1


def survivors(session: Session, honest: dict[str, Any], lies: Iterator[tuple[Place, dict[str, Any]]]) -> set[str]:
    """The places of the lies in which no check from the file fails; each was signed, logged and proven."""
    believed = set()
    for place, lie in lies:
        path = forge(session.workspace, lie, "req", head_size(honest))
        if not failed(from_the_file(path, session.workspace)):
            believed.add(named(place))
    forge(session.workspace, honest, "req", head_size(honest))
    return believed


def test_the_honest_statement_signed_again_is_believed(session: Session, honest: dict[str, Any]) -> None:
    path = forge(session.workspace, honest, "req", head_size(honest))
    assert failed(with_the_workspace(path, session.workspace)) == []


def test_every_changed_field_fails_from_the_file_alone_or_is_listed(session: Session, honest: dict[str, Any]) -> None:
    def lies() -> Iterator[tuple[Place, dict[str, Any]]]:
        for place in leaves(honest):
            lie = copy.deepcopy(honest)
            *above, last = place
            at(lie, tuple(above))[last] = other(at(honest, place))
            yield place, lie

    assert survivors(session, honest, lies()) == WORKSPACE_ONLY.keys() | NOBODY.keys()


def test_every_left_out_field_or_item_fails_from_the_file_alone_or_is_listed(
    session: Session, honest: dict[str, Any]
) -> None:
    def lies() -> Iterator[tuple[Place, dict[str, Any]]]:
        for place in containers(honest):
            inside = at(honest, place)
            for step in inside if isinstance(inside, dict) else range(len(inside)):
                lie = copy.deepcopy(honest)
                del at(lie, place)[step]
                yield (*place, step), lie

    assert survivors(session, honest, lies()) == LEFT_OUT


def test_every_field_too_many_fails_from_the_file_alone_or_is_listed(session: Session, honest: dict[str, Any]) -> None:
    def lies() -> Iterator[tuple[Place, dict[str, Any]]]:
        for place in containers(honest):
            lie = copy.deepcopy(honest)
            inside = at(lie, place)
            if isinstance(inside, dict):
                inside["note"] = "all copies everywhere are destroyed"
            else:
                inside.append(copy.deepcopy(inside[-1]) if inside else "0" * 64)
            yield place, lie

    assert survivors(session, honest, lies()) == TOO_MANY


@pytest.mark.parametrize("field", [*WORKSPACE_ONLY, "predicate.handed_out", "kept or retrained"])
def test_what_a_file_cannot_speak_against_the_workspace_does(
    session: Session, honest: dict[str, Any], field: str
) -> None:
    lie = copy.deepcopy(honest)
    if field == "kept or retrained":
        lie["predicate"]["retrained"] = sorted([*lie["predicate"]["retrained"], lie["predicate"]["kept"].pop()])
    elif field == "predicate.handed_out":
        lie["predicate"]["handed_out"][0]["note"] = "and more"
    else:
        place = next(place for place in leaves(honest) if named(place) == field)
        *above, last = place
        at(lie, tuple(above))[last] = other(at(honest, place))
    path = forge(session.workspace, lie, "req", head_size(honest))
    assert failed(from_the_file(path, session.workspace)) == []
    assert failed(with_the_workspace(path, session.workspace)) == [REBUILT]
    forge(session.workspace, honest, "req", head_size(honest))


def test_a_purge_or_an_erasure_left_out_with_everything_that_follows_from_it(
    session: Session, honest: dict[str, Any]
) -> None:
    """The operator hides a purge: its fact, its checkpoints, its evidence."""
    workspace = session.workspace
    for hidden in (kinds.PURGE, kinds.ERASURE):
        lie = copy.deepcopy(honest)
        said = lie["predicate"]
        said["log"]["facts"] = [fact for fact in said["log"]["facts"] if fact["kind"] != hidden]
        follow(lie)
        path = forge(workspace, lie, "req", head_size(honest))
        assert failed(from_the_file(path, workspace)) == ["its fields are what the logged facts say"]
    forge(workspace, honest, "req", head_size(honest))


def test_another_recipe_under_the_digest_of_the_pinned_one(session: Session, honest: dict[str, Any]) -> None:
    """The operator logs a second recipe that never trained anything, and certifies that."""
    workspace, lie = session.workspace, copy.deepcopy(honest)
    pinned = workspace.ledger.facts(kinds.RECIPE)[0]
    recipe = pinned.body["recipe"] | {"epochs": 9}
    (fact,) = workspace.ledger.append([(kinds.RECIPE, pinned.body | {"recipe": recipe})])
    seqs = [logged["seq"] for logged in honest["predicate"]["log"]["facts"] if logged["kind"] != kinds.RECIPE]
    logged_anew(workspace, lie, [*seqs, fact.seq])
    lie["predicate"]["replay"]["recipe"] = recipe
    path = forge(workspace, lie, "req", head_size(lie))
    assert failed(from_the_file(path, workspace)) == ["its fields are what the logged facts say"]
    workspace.ledger.append([(kinds.RECIPE, pinned.body)])
    forge(workspace, honest, "req", head_size(honest))


def test_facts_of_the_log_proven_anew_are_believed(session: Session, honest: dict[str, Any]) -> None:
    """The two attacks above fail for what they say, not for how they are made."""
    seqs = [logged["seq"] for logged in honest["predicate"]["log"]["facts"]]
    again = logged_anew(session.workspace, copy.deepcopy(honest), seqs)
    assert failed(from_the_file(forge(session.workspace, again, "req", head_size(again)), session.workspace)) == []
    forge(session.workspace, honest, "req", head_size(honest))


# -- item by item ---------------------------------------------------------------------------------


@pytest.fixture
def copied(session: Session, honest: dict[str, Any], tmp_path: Path) -> Path:
    """A stranger's copy of an honest certificate, to be altered without the operator's key."""
    path = forge(session.workspace, honest, "req", head_size(honest))
    copy = tmp_path / "certificate.json"
    copy.write_bytes(path.read_bytes())
    return copy


def altered(path: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """The file with something changed in it, signed by nobody."""
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    return path


def payload_altered(path: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """The file with something changed in what is signed, signed by nobody."""

    def inside(document: dict[str, Any]) -> None:
        statement = json.loads(base64.b64decode(document["envelope"]["payload"]))
        change(statement)
        document["envelope"]["payload"] = base64.b64encode(canonical_json(statement)).decode()

    return altered(path, inside)


def forged_bytes(session: Session, payload: bytes, size: int, payload_type: str = PAYLOAD_TYPE) -> Path:
    """A file whose payload, whatever it is, the operator signed and logged."""
    envelope = Envelope(payload, payload_type, {})
    envelope.sign(CryptoSigner(read_signing_key(session.workspace.path / "keys")))
    path = session.workspace.path.parent / "forged.json"
    path.write_bytes(seal(session.workspace, envelope.to_dict(), "req", size))
    return path


def unreadable(path: Path) -> str:
    """Why the file is no certificate at all (V0); nothing else is then said of it."""
    document, checks = verify(path, Evidence())
    assert document is None
    assert [(check.level, check.name, check.outcome) for check in checks] == [("V0", SHAPE, "failed")]
    return checks[0].detail


def key_file(path: Path, key: bytes) -> Path:
    path.write_text(key.hex())
    path.chmod(0o600)
    return path


def outcome(path: Path, evidence: Evidence, name: str) -> str:
    return next(check.outcome for check in verify(path, evidence)[1] if check.name == name)


def test_replayed_for_another_request(session: Session, copied: Path) -> None:
    workspace = session.workspace
    payload_altered(copied, lambda said: said["predicate"]["request"].update(id="other"))
    assert "the signature is valid" in failed(from_the_file(copied, workspace))
    lie = signed(workspace, "req")
    lie["predicate"]["request"]["id"] = "other"
    found = failed(from_the_file(forge(workspace, lie, "req", head_size(lie)), workspace))
    assert found == ["the certificate itself is in the log", FIELDS], "its facts are about another request"
    fact = workspace.book.certificates()["req"]
    assert not is_intact(workspace, "other", fact)


def test_replayed_for_another_id(session: Session, copied: Path, tmp_path: Path) -> None:
    tag_key = key_file(tmp_path / "tag.key", session.workspace.keys.tag)
    for record_id, expected in {
        "r1": "passed",
        "r4": "passed",
        "nobody": "passed",
        "r2": "failed",
        "": "failed",
    }.items():
        assert outcome(copied, Evidence(tag_key=tag_key, record_id=record_id), BOUND) == expected, record_id


def test_replayed_for_the_receipt_of_another_record(session: Session, copied: Path, tmp_path: Path) -> None:
    file = tmp_path / "receipt.json"
    file.write_text(json.dumps(receipt(session, "r2")))
    assert outcome(copied, Evidence(receipt=file), BOUND) == "failed"


def test_a_receipt_of_the_record_binds_and_an_altered_one_does_not(memory_path: Path) -> None:
    session = toy_session(memory_path / "workspace", toy_recipe(slices=2))
    commit(session, stored(session, map(toy_record, range(6))), Ingested(6, 0, 0, 0))
    train(session, executor=INLINE, trainer=TRAINER)
    file = memory_path / "receipt.json"
    file.write_text(json.dumps(receipt(session, "r1")))
    delete(session, ["r1"], request_id="req", executor=INLINE, trainer=TRAINER)
    path, workspace = certificate_path(session.workspace, "req"), session.workspace
    evidence = Evidence(public_keys=(public_key(workspace),), receipt=file)
    assert outcome(path, evidence, BOUND) == "passed"
    said = json.loads(base64.b64decode(json.loads(file.read_text())["payload"]))
    for name in ("record", "salt", "commitment", "tag", "proof"):
        lie = copy.deepcopy(said)
        if name == "record":
            lie["predicate"]["record"]["text"] += " "
        elif name == "proof":
            lie["predicate"]["proof"]["siblings"] = lie["predicate"]["proof"]["siblings"][64:] + "ab" * 32
        else:
            lie["predicate"][name] = other(lie["predicate"][name])
        file.write_text(json.dumps(sign(canonical_json(lie), read_signing_key(workspace.path / "keys"))))
        assert outcome(path, evidence, BOUND) == "failed", name
    workspace.close()


def test_replayed_for_another_release(session: Session, honest: dict[str, Any]) -> None:
    """The operator names a manifest that the log really has, and that this certificate is not about."""
    workspace, size = session.workspace, head_size(honest)
    for fact in workspace.ledger.facts(kinds.MANIFEST)[:-1]:
        lie = copy.deepcopy(honest)
        proof = [node.hex() for node in workspace.ledger.prove([fact.seq], size)[fact.seq]]
        facts = [logged for logged in lie["predicate"]["log"]["facts"] if logged["kind"] != kinds.MANIFEST]
        facts.append(fact.to_json() | {"proof": proof})
        lie["predicate"]["log"]["facts"] = sorted(facts, key=lambda logged: int(logged["seq"]))
        lie["predicate"]["after"] = fact.body
        heads = [
            {"name": f"shard-{head['shard']}", "digest": {"sha256": head["tensors"]}} for head in fact.body["heads"]
        ]
        lie["subject"] = [{"name": "manifest", "digest": {"sha256": fact.body["digest"]}}, *heads]
        found = failed(from_the_file(forge(workspace, lie, "req", size), workspace))
        assert "heads, subjects and lineages are those of the logged manifest" in found
    forge(workspace, honest, "req", size)


def test_replayed_from_another_namespace(session: Session, copied: Path, memory_path: Path) -> None:
    """The same records, recipe and signing key; another namespace, root secret and log."""
    root = bytes(reversed(range(32)))
    elsewhere = toy_session(memory_path / "elsewhere", toy_recipe(slices=2, namespace="elsewhere"), root)
    commit(elsewhere, stored(elsewhere, map(toy_record, range(10))), Ingested(10, 0, 0, 0))
    train(elsewhere, executor=INLINE, trainer=TRAINER)
    tag_key = key_file(memory_path / "tag.key", elsewhere.workspace.keys.tag)
    head = memory_path / "head"
    head.write_text(elsewhere.workspace.ledger.head())
    theirs = (public_key(elsewhere.workspace),)
    assert outcome(copied, Evidence(public_keys=theirs), "the signature is valid") == "failed"
    assert outcome(copied, Evidence(tag_key=tag_key, record_id="r1"), BOUND) == "failed"
    extension = memory_path / "extension"
    extension.write_text(json.dumps(log.extension(elsewhere.workspace, 1)))
    assert outcome(copied, Evidence(head=head, extension=extension), FRESH) == "failed"
    elsewhere.workspace.close()


def test_a_stale_release_is_told_by_a_later_head(memory_path: Path) -> None:
    session = toy_session(memory_path / "workspace", toy_recipe(slices=2))
    workspace = session.workspace
    commit(session, stored(session, map(toy_record, range(10))), Ingested(10, 0, 0, 0))
    train(session, executor=INLINE, trainer=TRAINER)
    delete(session, ["r1"], request_id="req", executor=INLINE, trainer=TRAINER)
    path = certificate_path(workspace, "req")
    head, extension, key = memory_path / "head", memory_path / "extension", (public_key(workspace),)
    evidence = Evidence(key, head=head, extension=extension)
    head.write_text(workspace.ledger.head())
    assert outcome(path, Evidence(key), FRESH) == "not_checked"
    assert outcome(path, Evidence(key, head=head), FRESH) == "passed"
    receipt(session, "r2")  # the log goes on, the release stays
    head.write_text(workspace.ledger.head())
    same = log.extension(workspace, log.sealed_size(path))
    for consistency, expected in (
        (same["consistency"], "passed"),
        (same["consistency"][:-1], "failed"),
        ([], "failed"),
    ):
        extension.write_text(json.dumps(same | {"consistency": consistency}))
        assert outcome(path, evidence, FRESH) == expected
    delete(session, ["r2"], executor=INLINE, trainer=TRAINER)
    head.write_text(workspace.ledger.head())
    whole = log.extension(workspace, log.sealed_size(path))
    extension.write_text(json.dumps(whole))
    assert outcome(path, Evidence(key, head=head), FRESH) == "not_checked"
    assert outcome(path, evidence, FRESH) == "failed"
    kept = [fact for fact in whole["facts"] if fact["kind"] != kinds.MANIFEST]
    extension.write_text(json.dumps(whole | {"facts": kept}))
    assert outcome(path, evidence, FRESH) == "not_checked", "the release that supersedes it was left out"
    extension.write_text(json.dumps(whole | {"consistency": []}))
    assert outcome(path, evidence, FRESH) == "failed"
    for name in ("kind", "created"):
        renamed = [fact | {name: "other"} for fact in whole["facts"]]
        extension.write_text(json.dumps(whole | {"facts": renamed}))
        assert outcome(path, evidence, FRESH) == "failed", "the facts are not those of the log"
    workspace.close()


def shortened(statement: dict[str, Any]) -> list[dict[str, Any]]:
    """The links of a lineage with more than one."""
    links: list[dict[str, Any]] = next(
        lineage["links"] for lineage in statement["predicate"]["lineages"] if len(lineage["links"]) > 1
    )
    return links


def place_of(statement: dict[str, Any], wanted: dict[str, Any]) -> int:
    """Where the absence proofs of a link stand."""
    links = [link for lineage in statement["predicate"]["lineages"] for link in lineage["links"]]
    return links.index(wanted)


def test_an_omitted_slice(session: Session, honest: dict[str, Any]) -> None:
    for which in (0, -1):
        lie = copy.deepcopy(honest)
        links = shortened(lie)
        where = place_of(lie, links[which])
        for proofs in lie["predicate"]["absence"].values():
            del proofs[where]
        gone = links.pop(which)["key"]
        for name in ("kept", "retrained"):
            lie["predicate"][name] = [key for key in lie["predicate"][name] if key != gone]
        found = failed(from_the_file(forge(session.workspace, lie, "req", head_size(honest)), session.workspace))
        assert "the records are in no slice that the served heads were trained on" in found
        assert "heads, subjects and lineages are those of the logged manifest" in found
    forge(session.workspace, honest, "req", head_size(honest))


def test_a_duplicate_slice_proof_that_fills_the_count(session: Session, honest: dict[str, Any]) -> None:
    lie = copy.deepcopy(honest)
    first, second = shortened(lie)[:2]
    proofs = {tag: found[place_of(lie, first)] for tag, found in lie["predicate"]["absence"].items()}
    for tag, found in lie["predicate"]["absence"].items():
        found[place_of(lie, second)] = proofs[tag]
    path = forge(session.workspace, lie, "req", head_size(honest))
    assert failed(from_the_file(path, session.workspace)) == [ABSENT]
    second["root"] = first["root"]  # and the commitment is claimed to be the same
    path = forge(session.workspace, lie, "req", head_size(honest))
    assert failed(from_the_file(path, session.workspace)) == [
        "heads, subjects and lineages are those of the logged manifest"
    ]
    forge(session.workspace, honest, "req", head_size(honest))


def test_an_absence_proof_from_a_crafted_tree(session: Session, honest: dict[str, Any]) -> None:
    """A tree made for the purpose, a leaf put beside its path, and a path that leads elsewhere."""
    predicate = honest["predicate"]
    tag = predicate["request"]["targets"]["tags"][0]
    prior = next(entry for entry in predicate["prior"] if entry["tag"] == tag)
    present = {bytes.fromhex(tag): bytes.fromhex(prior["commitment"])}
    others = {bytes([number]) * 32: bytes(32) for number in range(1, 9)}
    crafted = {
        "a tree without it": prove(others, bytes.fromhex(tag)).to_json(),
        "an empty tree": prove({}, bytes.fromhex(tag)).to_json(),
        "the proof that it is there": prove(present | others, bytes.fromhex(tag)).to_json(),
        "its neighbour's leaf": {"siblings": "", "occupant": (bytes([1]) * 32 + bytes(32)).hex()},
        "itself as the occupant": {"siblings": "", "occupant": tag + prior["commitment"]},
    }
    for name, proof in crafted.items():
        lie = copy.deepcopy(honest)
        lie["predicate"]["absence"][tag][0] = proof
        path = forge(session.workspace, lie, "req", head_size(honest))
        assert failed(from_the_file(path, session.workspace)) == [ABSENT], name
        lie["predicate"]["lineages"][0]["links"][0]["root"] = tree_root(others).hex()
        path = forge(session.workspace, lie, "req", head_size(honest))
        assert failed(from_the_file(path, session.workspace)), f"{name}, with its root in the lineage"
    forge(session.workspace, honest, "req", head_size(honest))


def test_a_tag_of_another_namespace(session: Session, honest: dict[str, Any]) -> None:
    """It is absent from every slice, provably; but nobody asked for it."""
    lie = copy.deepcopy(honest)
    workspace, targets = session.workspace, lie["predicate"]["request"]["targets"]
    foreign = keyed(workspace.keys.tag, "tag", "elsewhere", "r1", 1).hex()
    mine = targets["tags"][0]
    steps = [step for chain in workspace.plan().chains for step in chain.steps]
    for names in (targets["tags"], targets["tombstones"]):
        names[names.index(mine)] = foreign
    del lie["predicate"]["absence"][mine]
    proofs = [prove(step.leaves, bytes.fromhex(foreign)).to_json() for step in steps]
    lie["predicate"]["absence"][foreign] = proofs
    found = failed(from_the_file(forge(workspace, lie, "req", head_size(honest)), workspace))
    assert found == ["its fields are what the logged facts say", "the deleted records had been committed to before"]
    forge(workspace, honest, "req", head_size(honest))


@pytest.mark.parametrize("change", ["truncated", "over-long"])
def test_a_truncated_or_over_long_proof(session: Session, honest: dict[str, Any], copied: Path, change: str) -> None:
    workspace, size = session.workspace, head_size(honest)

    def spoilt(text: str) -> str:
        return text[:-64] if change == "truncated" else text + "ab" * 32

    for tag in honest["predicate"]["absence"]:
        for number, proof in enumerate(honest["predicate"]["absence"][tag]):
            for part in ("siblings", "occupant"):
                if proof[part] or change == "over-long":
                    lie = copy.deepcopy(honest)
                    lie["predicate"]["absence"][tag][number][part] = spoilt(proof[part])
                    assert failed(from_the_file(forge(workspace, lie, "req", size), workspace))
    for number, logged in enumerate(honest["predicate"]["log"]["facts"]):
        lie = copy.deepcopy(honest)
        proof = logged["proof"][:-1] if change == "truncated" else [*logged["proof"], "ab" * 32]
        lie["predicate"]["log"]["facts"][number]["proof"] = proof
        found = failed(from_the_file(forge(workspace, lie, "req", size), workspace))
        assert "the facts it rests on are in the operator's log" in found
    forge(workspace, honest, "req", size)

    def sealed(document: dict[str, Any]) -> None:
        top, _, head = document["sealed"]["proof"].partition("\n\n")
        line = base64.b64encode(bytes(32)).decode()
        top = top.rpartition("\n")[0] if change == "truncated" else f"{top}\n{line}"
        document["sealed"]["proof"] = f"{top}\n\n{head}"

    assert "the certificate itself is in the log" in failed(from_the_file(altered(copied, sealed), workspace))


@pytest.mark.parametrize(
    "text", ["00" * 32 * 257, "00" * 31, "zz" * 32, "AB" * 32, " " + "ab" * 32, "ab" * 2**20], ids=range(6)
)
def test_a_sparse_proof_that_no_tree_has_is_refused(session: Session, honest: dict[str, Any], text: str) -> None:
    lie = copy.deepcopy(honest)
    tag = next(iter(lie["predicate"]["absence"]))
    lie["predicate"]["absence"][tag][0]["siblings"] = text
    path = forge(session.workspace, lie, "req", head_size(honest))
    assert failed(from_the_file(path, session.workspace)) in ([FIELDS], [ABSENT])
    forge(session.workspace, honest, "req", head_size(honest))


def test_more_hashes_than_any_log_has(session: Session, copied: Path) -> None:
    altered(copied, lambda document: document["sealed"].update(consistency=["ab" * 32] * 65))
    assert "at most 64 hashes" in unreadable(copied)


def test_duplicate_json_keys(session: Session, honest: dict[str, Any], copied: Path) -> None:
    payload = canonical_json(honest)
    assert payload.startswith(b'{"_type"')
    doubled = payload.replace(b'"version":1', b'"version":1,"version":1')
    assert "a key occurs twice" in unreadable(forged_bytes(session, doubled, head_size(honest)))
    copied.write_text(copied.read_text().replace('"sealed": {', '"sealed": {"created": "never", ', 1))
    assert "a key occurs twice" in unreadable(copied)


@pytest.mark.parametrize(
    "number", ["9007199254740993", "1" + "0" * 400, "-1", "1e999", "1.5", "1.0", "NaN", "Infinity"]
)
@pytest.mark.parametrize("place", ['"version":1', '"steps":', '"seq":', '"shard":', '"surviving":'])
def test_huge_and_odd_numbers(session: Session, honest: dict[str, Any], number: str, place: str) -> None:
    before, name, after = canonical_json(honest).decode().partition(place)
    rest = after.lstrip("0123456789")
    payload = f"{before}{name.removesuffix('1')}{number}{rest}".encode()
    assert failed(verify(forged_bytes(session, payload, head_size(honest)), Evidence())[1])


@pytest.mark.parametrize("place", ["shards", "slices"])
def test_a_huge_number_costs_the_reader_nothing(session: Session, honest: dict[str, Any], place: str) -> None:
    lie = copy.deepcopy(honest)
    lie["predicate"]["replay"]["recipe"][place] = 2**53 - 1
    path = forge(session.workspace, lie, "req", head_size(honest))
    assert "its fields are what the logged facts say" in failed(from_the_file(path, session.workspace))
    forge(session.workspace, honest, "req", head_size(honest))


def test_a_number_with_more_digits_than_can_be_read(session: Session, honest: dict[str, Any]) -> None:
    payload = canonical_json(honest).replace(b'"version":1', b'"version":1' + b"0" * 100_000)
    assert unreadable(forged_bytes(session, payload, head_size(honest)))


@pytest.mark.parametrize("depth", [33, 1_000, 200_000])
def test_deep_nesting(session: Session, honest: dict[str, Any], copied: Path, depth: int) -> None:
    nested = b"[" * depth + b"]" * depth
    payload = canonical_json(honest).replace(b'"clock":', b'"deep":' + nested + b',"clock":')
    assert unreadable(forged_bytes(session, payload, head_size(honest)))
    copied.write_bytes(copied.read_bytes().replace(b'"sealed":', b'"deep": ' + nested + b', "sealed":', 1))
    assert unreadable(copied)


@pytest.mark.parametrize("version", [b"2", b"0", b"true", b'"1"', b"null", b"[1]", b"1.0"])
def test_an_unknown_version(session: Session, honest: dict[str, Any], version: bytes) -> None:
    payload = canonical_json(honest).replace(b'"version":1', b'"version":' + version)
    assert unreadable(forged_bytes(session, payload, head_size(honest)))


@pytest.mark.parametrize("name", ["_type", "predicateType"])
def test_another_type_of_statement(session: Session, honest: dict[str, Any], name: str) -> None:
    lie = honest | {name: "urn:sisa:ingestion-receipt:v1"}
    assert "expected" in unreadable(forged_bytes(session, canonical_json(lie), head_size(honest)))


def test_an_ingestion_receipt_is_no_certificate(session: Session, copied: Path) -> None:
    altered(copied, lambda document: document.update(envelope=receipt(session, "r2")))
    assert "predicate" in unreadable(copied)


def test_a_payload_that_is_not_spelt_in_the_one_way(session: Session, honest: dict[str, Any]) -> None:
    payload = json.dumps(honest).encode()
    assert "canonical" in unreadable(forged_bytes(session, payload, head_size(honest)))


@pytest.mark.parametrize("payload_type", ["", "text/plain", "application/vnd.in-toto+JSON", "application/json"])
def test_a_wrong_payload_type(session: Session, honest: dict[str, Any], payload_type: str) -> None:
    path = forged_bytes(session, canonical_json(honest), head_size(honest), payload_type)
    assert "payload type" in unreadable(path)


def test_a_valid_signature_by_an_untrusted_key_under_a_trusted_keys_id(session: Session, copied: Path) -> None:
    key_id = json.loads(copied.read_text())["envelope"]["signatures"][0]["keyid"]
    stranger = Ed25519PrivateKey.generate()

    def resigned(document: dict[str, Any]) -> None:
        payload = base64.b64decode(document["envelope"]["payload"])
        (signature,) = sign(payload, stranger)["signatures"]
        document["envelope"]["signatures"] = [signature | {"keyid": key_id}]

    found = failed(from_the_file(altered(copied, resigned), session.workspace))
    assert found == ["the signature is valid", "the certificate itself is in the log"]


def test_one_key_under_two_key_ids_counts_once_and_was_not_logged(session: Session, copied: Path) -> None:
    def doubled(document: dict[str, Any]) -> None:
        (signature,) = document["envelope"]["signatures"]
        document["envelope"]["signatures"].append(signature | {"keyid": "0" * 64})

    assert failed(from_the_file(altered(copied, doubled), session.workspace)) == [
        "the certificate itself is in the log"
    ]


def test_one_key_id_twice(session: Session, copied: Path) -> None:
    altered(copied, lambda document: document["envelope"]["signatures"].append(document["envelope"]["signatures"][0]))
    assert unreadable(copied)


def test_more_signatures_than_anybody_needs(session: Session, copied: Path) -> None:
    def many(document: dict[str, Any]) -> None:
        (signature,) = document["envelope"]["signatures"]
        document["envelope"]["signatures"] = [signature | {"keyid": f"{number:064x}"} for number in range(17)]

    assert "16 signatures" in unreadable(altered(copied, many))


@pytest.mark.parametrize("signatures", [[], None, [{}], [{"keyid": 1, "sig": ""}], [{"keyid": "", "sig": ""}]])
def test_an_unsigned_certificate(session: Session, copied: Path, signatures: Any) -> None:
    altered(copied, lambda document: document["envelope"].update(signatures=signatures))
    assert failed(from_the_file(copied, session.workspace))


@pytest.mark.parametrize("stated", ["an elliptic curve of another kind", "RSA", "nothing"])
def test_an_algorithm_downgraded(session: Session, honest: dict[str, Any], tmp_path: Path, stated: str) -> None:
    """Only Ed25519 counts, whatever a certificate says its key is; and a reader's key of another kind is refused."""
    weak: Any = rsa.generate_private_key(65537, 1024) if stated == "RSA" else ec.generate_private_key(ec.SECP256R1())
    form = (serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    pem = b"" if stated == "nothing" else weak.public_key().public_bytes(*form)
    lie = copy.deepcopy(honest)
    lie["predicate"]["issuer"]["public_key"] = pem.decode()
    path = forge(session.workspace, lie, "req", head_size(honest))
    for evidence in (Evidence(), Evidence((public_key(session.workspace),))):
        checks = verify(path, evidence)[1]
        assert FIELDS in failed(checks)
        assert "the signature is valid" not in [check.name for check in checks if check.outcome == "passed"]
    (tmp_path / "key.pem").write_bytes(pem)
    with pytest.raises(InputError, match="Ed25519"):
        verify(path, Evidence(public_keys=(tmp_path / "key.pem",)))
    forge(session.workspace, honest, "req", head_size(honest))


def test_a_swapped_key(session: Session, honest: dict[str, Any], copied: Path) -> None:
    """A stranger signs with a key of its own and names that as the issuer's."""
    stranger = Ed25519PrivateKey.generate()

    def resigned(document: dict[str, Any]) -> None:
        lie = copy.deepcopy(honest)
        lie["predicate"]["issuer"]["public_key"] = public_pem(stranger.public_key()).decode()
        document["envelope"] = sign(canonical_json(lie), stranger)

    altered(copied, resigned)
    assert "the signature is valid" not in failed(verify(copied, Evidence())[1])
    assert "the facts it rests on are in the operator's log" in failed(verify(copied, Evidence())[1])
    assert "the signature is valid" in failed(from_the_file(copied, session.workspace))


def test_a_strangers_whole_workspace_is_integrity_only_and_never_the_operators(
    session: Session, memory_path: Path
) -> None:
    strange = toy_session(memory_path / "strange", toy_recipe(slices=2))
    commit(strange, stored(strange, map(toy_record, range(6))), Ingested(6, 0, 0, 0))
    train(strange, executor=INLINE, trainer=TRAINER)
    delete(strange, ["r1"], request_id="req", executor=INLINE, trainer=TRAINER)
    path = certificate_path(strange.workspace, "req")
    assert failed(verify(path, Evidence())[1]) == []
    assert outcome(path, Evidence(), ORIGIN) == "not_checked"
    found = failed(from_the_file(path, session.workspace))
    assert found == ["the signature is valid", "the certificate itself is in the log"]
    strange.workspace.close()


def test_a_fork_is_told_by_a_head_of_the_other_branch(memory_path: Path) -> None:
    """The operator shows one history to the person, and another to everybody else."""
    session = toy_session(memory_path / "workspace", toy_recipe(slices=2))
    commit(session, stored(session, map(toy_record, range(10))), Ingested(10, 0, 0, 0))
    train(session, executor=INLINE, trainer=TRAINER)
    session.workspace.close()
    shutil.copytree(memory_path / "workspace", memory_path / "fork")
    shown, hidden = (
        Session(Workspace.open(memory_path / name), session.recipe, session.options) for name in ("workspace", "fork")
    )
    delete(shown, ["r1"], request_id="req", executor=INLINE, trainer=TRAINER)
    delete(hidden, ["r2"], request_id="req", executor=INLINE, trainer=TRAINER)
    delete(hidden, ["r3"], executor=INLINE, trainer=TRAINER)
    path, head, extension = certificate_path(shown.workspace, "req"), memory_path / "head", memory_path / "extension"
    head.write_text(hidden.workspace.ledger.head())
    extension.write_text(json.dumps(log.extension(hidden.workspace, log.sealed_size(path))))
    evidence = Evidence((public_key(shown.workspace),), head=head, extension=extension)
    assert failed(from_the_file(path, shown.workspace)) == []
    assert outcome(path, evidence, FRESH) == "failed"
    envelope, size = json.loads(path.read_text())["envelope"], head_size(signed(shown.workspace, "req"))
    path.write_bytes(seal(hidden.workspace, envelope, "req", size))
    found = failed(from_the_file(path, shown.workspace))
    assert found == ["the certificate itself is in the log"], "it rests on one branch, and is in the other"
    for opened in (shown, hidden):
        opened.workspace.close()


def _none(hashes: list[str]) -> list[str]:
    return []


def _one_less(hashes: list[str]) -> list[str]:
    return hashes[:-1]


def _one_more(hashes: list[str]) -> list[str]:
    return [*hashes, hashes[-1]]


def _another(hashes: list[str]) -> list[str]:
    return [*hashes[:-1], other(hashes[-1])]


@pytest.mark.parametrize("spoilt", [_none, _one_less, _one_more, _another])
def test_a_seal_whose_head_is_not_shown_to_go_on_from_the_one_inside(
    session: Session, copied: Path, spoilt: Callable[[list[str]], list[str]]
) -> None:
    altered(copied, lambda document: document["sealed"].update(consistency=spoilt(document["sealed"]["consistency"])))
    assert failed(from_the_file(copied, session.workspace)) == ["the certificate itself is in the log"]


def test_a_certificate_put_in_another_requests_place_is_issued_anew(memory_path: Path) -> None:
    session = toy_session(memory_path / "workspace", toy_recipe(slices=2))
    commit(session, stored(session, map(toy_record, range(10))), Ingested(10, 0, 0, 0))
    train(session, executor=INLINE, trainer=TRAINER)
    for number in (1, 2):
        delete(session, [f"r{number}"], request_id=f"req-{number}", executor=INLINE, trainer=TRAINER)
    first, second = (certificate_path(session.workspace, f"req-{number}") for number in (1, 2))
    second.write_bytes(first.read_bytes())
    assert [request.request_id for request in unfinished_requests(session.workspace)] == ["req-2"]
    train(session, executor=INLINE, trainer=TRAINER)
    assert signed(session.workspace, "req-2")["predicate"]["request"]["id"] == "req-2"
    assert failed(with_the_workspace(second, session.workspace)) == []
    session.workspace.close()
