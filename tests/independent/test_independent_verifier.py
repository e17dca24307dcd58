"""Our verifier and one that was written from the page say the same of every file, honest or not."""

from __future__ import annotations

import ast
import copy
import json
import random
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from orchestration.inline import InlineExecutor
from shards import digest as hashing
from shards import kinds, note, sparse, tlog
from shards.digest import canonical_json, parse_json
from shards.errors import InputError
from shards.fact import Fact
from shards.keys import key_commitment
from shards.lineage import Link, lineage_digest
from shards.manifest import ModelManifest
from shards.targets import targets_digest
from sisa.certificate import certificate_path
from sisa.delete import delete
from sisa.document import envelope_digest, write_certificate
from sisa.export import export_records
from sisa.ingest import Ingested, commit
from sisa.key import hand_out_tag_key, rotate
from sisa.log import extension, newest_head, sealed_size
from sisa.receipt import receipt
from sisa.session import Session
from sisa.signing import read_envelope, sign
from sisa.train import train
from sisa.verify import Evidence
from sisa.verify import verify as verify_ours
from tests.independent import verifier
from tests.toy import ToyTrainer, memory_directory, stored, toy_recipe, toy_record, toy_session

VECTORS = Path(__file__).parents[1] / "data" / "certificates"
PAGE = verifier.PAGE
INLINE, TRAINER = InlineExecutor(), ToyTrainer()
SIGNING_KEYS = [Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32) for number in (1, 2, 3)]
UNUSABLE = [("reader", "a file of the reader's", "unusable")]


# -- a log with every kind of certificate in it -----------------------------------------------------


@dataclass(frozen=True, slots=True)
class Case:
    """A certificate and what its reader has; file names, but for the ID."""

    certificate: Path
    public_keys: tuple[Path, ...] = ()
    receipt: Path | None = None
    tag_key: Path | None = None
    record_id: str | None = None
    head: Path | None = None
    extension: Path | None = None


def make_vectors(directory: Path) -> None:
    """A history with each kind of certificate, and everything that its readers may hold.

    The root secret and the signing keys are fixed. Salts, and so roots and digests, are random each time.
    """
    with memory_directory() as scratch, mock.patch.object(Ed25519PrivateKey, "generate", side_effect=SIGNING_KEYS):
        session = toy_session(scratch / "workspace", toy_recipe(slices=2))
        try:
            _live(session, directory)
        finally:
            session.workspace.close()


def _live(session: Session, directory: Path) -> None:
    workspace = session.workspace

    def publish(name: str) -> None:
        (directory / f"{name}.pub").write_bytes((workspace.path / "keys" / "signing.pub").read_bytes())

    def forget(name: str, *ids: str, **values: Any) -> None:
        delete(session, ids, request_id=name, executor=INLINE, trainer=TRAINER, **values)
        (directory / f"{name}.json").write_bytes(certificate_path(workspace, name).read_bytes())

    commit(session, stored(session, map(toy_record, range(14))), Ingested(14, 0, 0, 0))
    train(session, executor=INLINE, trainer=TRAINER)
    publish("operator-1")
    for record_id in ("r1", "r5"):
        path = directory / f"receipt-{record_id}.json"
        path.write_text(json.dumps(receipt(session, record_id), indent=1) + "\n")
    forget("deleted", "r1", who={"requester": "R. Reader"})
    export_records(session, workspace.path.parent / "exported.jsonl", "another processor")
    session = replace(session, options=session.options.model_copy(update={"backup_days": 30}))
    forget("several", "r2", "r3", "unknown", ignore_missing=True)
    forget("not-present", "never held", ignore_missing=True)
    rotate(workspace)
    publish("operator-2")
    forget("rotated", "r5")
    rotate(workspace, "stolen")
    publish("operator-3")
    forget("everything", *(f"r{number}" for number in range(14) if number not in (1, 2, 3, 5)))
    (directory / "head").write_text(newest_head(workspace))
    for name in ("deleted", "everything"):
        shown = extension(workspace, sealed_size(directory / f"{name}.json"))
        (directory / f"{name}-extension.json").write_text(json.dumps(shown, indent=1) + "\n")
    hand_out_tag_key(workspace, directory / "tag.key")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One such history."""
    directory = tmp_path_factory.mktemp("history")
    make_vectors(directory)
    return directory


# -- what the two say ---------------------------------------------------------------------------------


def ours(case: Case) -> list[verifier.Outcome]:
    evidence = Evidence(
        case.public_keys, case.receipt, case.tag_key, case.record_id, case.head, case.extension
    )
    try:
        _, checks = verify_ours(case.certificate, evidence)
    except InputError:
        return UNUSABLE
    return sorted((check.level, check.name, check.outcome) for check in checks)


def theirs(case: Case) -> list[verifier.Outcome]:
    def read(path: Path | None) -> bytes | None:
        return None if path is None else path.read_bytes()

    key = read(case.tag_key)
    try:
        checks = verifier.verify(
            case.certificate.read_bytes(),
            tuple(path.read_bytes() for path in case.public_keys),
            read(case.receipt),
            None if key is None else (key, case.record_id or ""),
            read(case.head),
            read(case.extension),
        )
    except verifier.UnusableError:
        return UNUSABLE
    return sorted(checks)


def failures(outcomes: list[verifier.Outcome]) -> set[str]:
    return {name for _, name, outcome in outcomes if outcome == "failed"}


def agreed(case: Case, what: str = "") -> list[verifier.Outcome]:
    """The answer that both give."""
    one, other = ours(case), theirs(case)
    assert one == other, f"{what}: only ours {set(one) - set(other)}, only theirs {set(other) - set(one)}"
    return one


CERTIFICATES = ("deleted", "several", "not-present", "rotated", "everything")
RECORDS = {"deleted": "r1", "several": "r2", "not-present": "never held", "rotated": "r5", "everything": "r13"}


def operator(files: Path, *numbers: int) -> tuple[Path, ...]:
    return tuple(files / f"operator-{number}.pub" for number in numbers)


def test_the_second_verifier_imports_the_standard_library_and_cryptography_only() -> None:
    tree = ast.parse(Path(verifier.__file__).read_text())
    imported = [name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names]
    imported += [str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level]
    assert "import_module" not in ast.dump(tree)
    assert {name.partition(".")[0] for name in imported} <= sys.stdlib_module_names | {"cryptography"}


# -- honest files -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CERTIFICATES)
def test_both_accept_every_kind_of_certificate(name: str, files: Path) -> None:
    outcomes = agreed(Case(files / f"{name}.json", operator(files, 1, 2, 3)))
    assert not failures(outcomes)
    assert ("V1", "it was signed by the operator", "passed") in outcomes


@pytest.mark.parametrize("name", CERTIFICATES)
def test_both_say_the_same_whatever_the_reader_has(name: str, files: Path, tmp_path: Path) -> None:
    short = parse_json((files / "deleted-extension.json").read_bytes())
    for at, change in enumerate((short["facts"].pop, short["consistency"].clear)):
        change()
        (tmp_path / f"short-{at}.json").write_text(json.dumps(short))
    (tmp_path / "seal").write_text(
        parse_json((files / f"{name}.json").read_bytes())["sealed"]["proof"].partition("\n\n")[2]
    )
    pinned = [operator(files, *numbers) for numbers in ((), (1,), (2,), (3,), (1, 2), (1, 3), (3, 2, 1))]
    records: list[dict[str, Any]] = [{}, *({"receipt": files / f"receipt-{one}.json"} for one in ("r1", "r5"))]
    records += [{"tag_key": files / "tag.key", "record_id": one} for one in (RECORDS[name], "r6", "")]
    heads = [None, files / "head", tmp_path / "seal"]
    extensions = [None, *(files / f"{one}-extension.json" for one in ("deleted", "everything"))]
    extensions += [tmp_path / "short-0.json", tmp_path / "short-1.json"]
    seen: dict[str, set[str]] = {}
    for keys, record, head, shown in product(pinned, records, heads, extensions):
        outcomes = agreed(Case(files / f"{name}.json", keys, head=head, extension=shown, **record))
        for _, check, outcome in outcomes:
            seen.setdefault(check, set()).add(outcome)
    every = {"passed", "failed", "not_checked"}
    assert seen["it was signed by the operator"] == every - {"failed"}
    assert seen["the signature is valid"] == every - {"not_checked"}
    assert seen["the tags belong to the reader's record"] == every
    assert seen["the certified release is the current one"] == every


@pytest.mark.parametrize(
    ("name", "evidence", "outcome"),
    [
        ("deleted", {"receipt": "receipt-r1.json"}, "passed"),
        ("deleted", {"receipt": "receipt-r5.json"}, "failed"),
        ("rotated", {"receipt": "receipt-r5.json"}, "passed"),
        ("several", {"tag_key": "tag.key", "record_id": "r3"}, "passed"),
        ("several", {"tag_key": "tag.key", "record_id": "unknown"}, "passed"),
        ("several", {"tag_key": "tag.key", "record_id": "r1"}, "failed"),
        ("several", {}, "not_checked"),
    ],
)
def test_both_tie_the_tags_to_the_right_record_only(
    name: str, evidence: dict[str, str], outcome: str, files: Path
) -> None:
    given: dict[str, Any] = {what: value if what == "record_id" else files / value for what, value in evidence.items()}
    outcomes = agreed(Case(files / f"{name}.json", operator(files, 1, 2, 3), **given))
    assert ("V2", "the tags belong to the reader's record", outcome) in outcomes


def test_a_release_that_was_superseded_is_not_the_current_one(files: Path) -> None:
    for name, outcome in (("deleted", "failed"), ("everything", "passed")):
        shown = files / f"{name}-extension.json"
        case = Case(files / f"{name}.json", operator(files, 1, 2, 3), head=files / "head", extension=shown)
        assert ("V1", "the certified release is the current one", outcome) in agreed(case)


# -- mutated files ------------------------------------------------------------------------------------


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of everything in a JSON document."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in items:
        yield from places(child, (*path, key))


def at(document: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        document = document[key]
    return document


def variants(value: Any, draw: random.Random) -> list[Any]:
    """Other values that might be taken for this one: of its kind, of another kind, cut and repeated."""
    strange: list[Any] = [None, True, 0, 1.5, -1, "", "0" * 64, [], {}, 2**53, 1e300, [[]], "\ud800", float(draw.random())]
    if isinstance(value, dict):
        keys = sorted(value)
        shapes = [{**value, "extra": 1}, *({name: value[name] for name in keys if name != gone} for gone in keys)]
        return [draw.choice(shapes), draw.choice(strange)]
    if isinstance(value, list):
        shapes = [value[1:], value[:-1], [*value, *value[:1]], value[::-1], [*value, None], []]
        return [draw.choice(shapes), draw.choice(shapes), draw.choice(strange)]
    if isinstance(value, str) and value:
        spot = draw.randrange(len(value))
        other = draw.choice("0123456789abcdefABCDEF \n+=é\u2014")
        texts = [value[:spot] + other + value[spot + 1 :], value + other, value[:-1], value.upper(), value + value]
        return [draw.choice(texts), draw.choice(texts), draw.choice(strange)]
    if isinstance(value, int | float):
        return [draw.choice([value + 1, value - 1, float(value), bool(value), str(value), value + 2**60]), draw.choice(strange)]
    return [draw.choice(strange)]


def mutants(document: Any, draw: random.Random, count: int) -> Iterator[tuple[str, Any]]:
    """Copies of a document, each altered in one place (two, now and then)."""
    paths = [path for path in places(document) if path]
    for number in range(count):
        altered = copy.deepcopy(document)
        where = []
        for _ in range(1 + (number % 5 == 4)):
            path = draw.choice(paths)
            try:
                holder = at(altered, path[:-1])
                swapped = at(altered, draw.choice([one for one in paths if one[-1] == path[-1]]))
                choices = [*variants(holder[path[-1]], draw), copy.deepcopy(swapped)]
                holder[path[-1]] = draw.choice(choices)
            except (KeyError, IndexError, TypeError):  # gone with the alteration before
                continue
            where.append("/".join(map(str, path)))
        yield f"{number} {' and '.join(where)}", altered


def signed_anew(certificate: dict[str, Any], statement: Any, key: Ed25519PrivateKey) -> bytes:
    """A certificate of another statement, signed by the operator's key; the seal is the old one's."""
    return write_certificate(sign(canonical_json(statement), key), certificate["sealed"])


def statement_of(envelope: dict[str, Any]) -> Any:
    return parse_json(read_envelope(envelope).payload)


def signer(name: str) -> Ed25519PrivateKey:
    return SIGNING_KEYS[{"rotated": 1, "everything": 2}.get(name, 0)]


@pytest.mark.parametrize("name", CERTIFICATES)
def test_both_say_the_same_of_mutated_statements_that_the_operator_signed(
    name: str, files: Path, tmp_path: Path
) -> None:
    certificate = parse_json((files / f"{name}.json").read_bytes())
    statement, draw, refused = statement_of(certificate["envelope"]), random.Random(name), 0
    evidence = Case(
        tmp_path / "mutant.json", operator(files, 1, 2, 3), head=files / "head", extension=files / "deleted-extension.json",
        tag_key=files / "tag.key", record_id=RECORDS[name],
    )  # fmt: skip
    for what, altered in mutants(statement, draw, 250):
        try:
            data = signed_anew(certificate, altered, signer(name))
        except ValueError:  # it has no canonical JSON, so nobody can sign it as a statement
            continue
        evidence.certificate.write_bytes(data)
        refused += bool(failures(agreed(evidence, what)))
    assert refused > 150


@pytest.mark.parametrize("name", CERTIFICATES)
def test_both_say_the_same_of_mutated_files(name: str, files: Path, tmp_path: Path) -> None:
    certificate = parse_json((files / f"{name}.json").read_bytes())
    path = tmp_path / "mutant.json"
    for what, altered in mutants(certificate, random.Random(name), 150):
        path.write_text(json.dumps(altered))
        outcomes = agreed(Case(path, operator(files, 1, 2, 3)), what)
        assert failures(outcomes) or altered == certificate, what
