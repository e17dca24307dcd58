"""One bit flipped in each class of file: it is found, it is named, and nothing is served from it.

Exit codes are the contract's: 1 where stored bytes are not those that were committed to, 2 where
the flip makes a key or a setting another one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from shards.digest import canonical_json
from shards.keyfiles import PUBLIC_FILE, ROOT_FILE
from shards.references import FILE as REFERENCES_FILE
from shards.workspace import WEIGHTS_FILE, Workspace
from sisa.verify import Evidence, verify
from tests.flows.fixtures import Deletion
from tests.flows.helpers import LOG, copy_of, done, outcomes, refused, sisa, ticket, unchanged

OBJECTS = "the store holds what the ledger says"
CERTIFICATE = "every certificate is the one that was logged"
Place = tuple[Path, int]


@pytest.fixture(scope="module")
def everything(deletion: Deletion, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with everything in it: deletions, one of them with its reason."""
    workspace = copy_of(deletion.path, tmp_path_factory.mktemp("everything") / "workspace")
    done("delete", "-w", workspace, "--id", ticket(9)["id"], "--request-id", "case-9", "--reason", "withdrawn")
    return workspace


@pytest.fixture
def referred(everything: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return copy_of(everything, tmp_path / "workspace")


# -- where the bit is flipped --------------------------------------------------------------------


def within(file: Path, text: bytes, offset: int = 0) -> Place:
    """The place of a text in a file."""
    at = file.read_bytes().find(text)
    assert at >= 0, f"{file.name} holds it"
    return file, at + offset


def middle(file: Path) -> Place:
    return file, file.stat().st_size // 2


def served(workspace: Path) -> Path:
    """The directory of a served adapter."""
    shards = done("status", "-w", workspace)["shards"]
    return Path(next(shard["head"]["adapter_dir"] for shard in shards if shard["head"]))


def stored(workspace: Path, name: Callable[[Workspace], str], file: str) -> Place:
    """The middle of one file of an object that the ledger names."""
    opened = Workspace.open(workspace)
    try:
        return middle(opened.store.path(name(opened)) / file)
    finally:
        opened.close()


def ledger_row(workspace: Path) -> Place:
    opened = Workspace.open(workspace)
    _, request = opened.book.requests()[0]
    opened.close()
    return within(workspace / "ledger.sqlite", canonical_json(request.before["digest"]), 9)


def tree_head(workspace: Path) -> Place:
    opened = Workspace.open(workspace)
    head = opened.ledger.head()
    opened.close()
    return within(workspace / "ledger.sqlite", head.encode(), len(head) - 20)


def last_leaves(opened: Workspace) -> str:
    return opened.book.commitments()[-1][1].leaves


def first_seen(opened: Workspace) -> str:
    return next(iter(opened.book.live().values())).seen


def first_targets(opened: Workspace) -> str:
    return opened.book.requests()[0][1].object


@dataclass(frozen=True, slots=True)
class Flip:
    """Where, and what must come of it.

    Attributes:
        place: a file of the workspace and the byte in it.
        audit: exit code of ``audit --all``.
        named: what its answer names: a failed check, or the words of a refusal.
        predict: exit code of ``predict``; 0 where the flip does not concern what is served.
        healed: ``train`` puts it right, from what is left.
    """

    place: Callable[[Path], Place]
    audit: int
    named: str
    predict: int
    healed: bool = False


FLIPS = {
    "ledger row": Flip(ledger_row, 1, LOG, 1),
    "tree head": Flip(tree_head, 1, LOG, 1),
    "checkpoint weights": Flip(lambda path: middle(served(path) / WEIGHTS_FILE), 1, OBJECTS, 1, healed=True),
    "adapter_config": Flip(lambda path: middle(served(path) / "adapter_config.json"), 1, OBJECTS, 1, healed=True),
    "list of what was seen": Flip(lambda path: stored(path, first_seen, "tags"), 1, OBJECTS, 0, healed=True),
    "leaves object": Flip(lambda path: stored(path, last_leaves, "leaves"), 1, OBJECTS, 0, healed=True),
    "targets object": Flip(lambda path: stored(path, first_targets, "targets"), 1, "object", 0),
    "vault part": Flip(
        lambda path: middle(min((path / "vault").glob("*.parquet"))), 1, "the vault holds what the ledger says", 0
    ),
    "references.json": Flip(
        lambda path: within(path / "vault" / REFERENCES_FILE, b"withdrawn"), 1, "the texts behind references", 0
    ),
    "certificate envelope": Flip(
        lambda path: within(path / "certificates" / "case-9.json", b'"payload": "', 999), 1, CERTIFICATE, 0, healed=True
    ),
    "certificate seal": Flip(
        lambda path: within(path / "certificates" / "case-9.json", b'"consistency": [', 30), 1, CERTIFICATE, 0,
        healed=True,
    ),
    "signing.pub": Flip(lambda path: middle(path / "keys" / PUBLIC_FILE), 1, "the public key filed", 0),
    "root.key": Flip(lambda path: (path / "keys" / ROOT_FILE, 1), 2, "keys", 2),
    "sisa.yaml": Flip(lambda path: within(path / "sisa.yaml", b"\nepochs: 1", 9), 2, "epochs", 2),
}  # fmt: skip


def flip(place: Place) -> None:
    file, at = place
    data = bytearray(file.read_bytes())
    data[at] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize("name", FLIPS)
def test_one_bit_flipped_is_found_named_and_not_served(name: str, referred: Path) -> None:
    case = FLIPS[name]
    before = sisa("predict", "-w", referred, "--text", "login")
    assert (before.code, done("audit", "-w", referred, "--all")["failed"]) == (0, 0)
    flip(case.place(referred))
    with unchanged(referred):
        audit = sisa("audit", "-w", referred, "--all", "--json")
        assert audit.code == case.audit, audit.err
        if audit.out:
            failed = [check for check, outcome in outcomes(audit.document).items() if outcome == "failed"]
            assert any(case.named in check for check in failed), failed
        else:
            refused(audit, case.named, code=case.audit)
        answer = sisa("predict", "-w", referred, "--text", "login")
        assert answer.code == case.predict, answer.err
        if case.predict:
            refused(answer, code=case.predict)
        else:
            assert answer.out == before.out, "what is served is what was served"
    if case.healed:
        done("train", "-w", referred)
        assert done("audit", "-w", referred, "--all")["failed"] == 0
        assert sisa("predict", "-w", referred, "--text", "login").out == before.out
    elif name not in {"references.json", "signing.pub"}:  # neither is read to train
        with unchanged(referred):
            assert sisa("train", "-w", referred).code == case.audit


@pytest.mark.parametrize("name", ["certificate envelope", "certificate seal"])
def test_a_certificate_with_a_flipped_bit_does_not_verify(name: str, referred: Path) -> None:
    flip(FLIPS[name].place(referred))
    certificate = referred / "certificates" / "case-9.json"
    assert sisa("verify", certificate, "--json").code == 1
    assert sisa("verify", certificate, "-w", referred, "--json").code == 1


def test_a_public_key_with_a_flipped_bit_verifies_nothing(referred: Path) -> None:
    certificate = referred / "certificates" / "case-9.json"
    key = referred / "keys" / PUBLIC_FILE
    assert sisa("verify", certificate, "--public-key", key).code == 0
    flip(middle(key))
    assert sisa("verify", certificate, "--public-key", key).code in {1, 2}


def spelt_otherwise(data: bytes, at: int) -> Iterator[bytes]:
    """The file with each bit of one byte flipped."""
    for bit in range(8):
        edited = bytearray(data)
        edited[at] ^= 1 << bit
        yield bytes(edited)


def test_no_bit_of_a_certificate_can_be_flipped_unseen(deletion: Deletion, tmp_path: Path) -> None:
    """Every part of the file: what says something fails; only white space between parts says nothing."""
    data = deletion.certificate.read_bytes()
    key = deletion.path / "keys" / PUBLIC_FILE
    file = tmp_path / "flipped.json"
    said = json.loads(data)
    payload = data.find(b'"payload": "') + 12
    seal = data.find(b'"sealed"') - 400
    places = {*range(0, payload, 2), *range(payload, seal, len(data) // 60), *range(seal, len(data), 7)}
    for at in sorted(places):
        for edited in list(spelt_otherwise(data, at))[at % 8 :: 8]:
            file.write_bytes(edited)
            _, checks = verify(file, Evidence(public_keys=(key,)))
            if not any(check.outcome == "failed" for check in checks):
                assert json.loads(edited) == said, (at, edited[at : at + 1])
