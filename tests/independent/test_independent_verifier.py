"""Our verifier and one that was written from the page say the same of every file, honest or not."""

from __future__ import annotations

import ast
import copy
import json
import random
import re
import shutil
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
from shards import note, sparse, tlog
from shards.digest import canonical_json, parse_json
from shards.errors import InputError
from shards.fact import Fact
from shards.keys import key_commitment
from shards.lineage import Link, lineage_digest
from shards.manifest import ModelManifest
from shards.targets import targets_digest
from sisa.certificate import certificate_path
from sisa.delete import delete
from sisa.document import write_certificate
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
    evidence = Evidence(case.public_keys, case.receipt, case.tag_key, case.record_id, case.head, case.extension)
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
    cases = [Case(files / f"{name}.json", keys, **record) for keys, record in product(pinned, records)]
    cases += [
        replace(cases[0], public_keys=keys, head=head, extension=shown)
        for keys, head, shown in product(pinned[::3], heads, extensions)
    ]
    seen: dict[str, set[str]] = {}
    for case in cases:
        for _, check, outcome in agreed(case):
            seen.setdefault(check, set()).add(outcome)
    every = {"passed", "failed", "not_checked"}
    assert seen["it was signed by the operator"] == every - {"failed"}
    assert seen["the signature is valid"] == every - {"not_checked"}
    assert seen["the tags belong to the reader's record"] == every
    # Its release is older than it: only an extension from that release shows that it is the current one.
    hidden = {"passed"} if name == "not-present" else set()
    assert seen["the certified release is the current one"] == every - hidden


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
    strange: list[Any] = [
        None,
        True,
        0,
        1.5,
        -1,
        "",
        "0" * 64,
        [],
        {},
        2**53,
        1e300,
        [[]],
        "\ud800",
        float(draw.random()),
    ]
    if isinstance(value, dict):
        keys = sorted(value)
        fewer = [{name: value[name] for name in keys if name != gone} for gone in keys]
        return [draw.choice([{**value, "extra": 1}, *fewer]), draw.choice(strange)]
    if isinstance(value, list):
        lists = [value[1:], value[:-1], [*value, *value[:1]], value[::-1], [*value, None], []]
        return [draw.choice(lists), draw.choice(lists), draw.choice(strange)]
    if isinstance(value, str) and value:
        spot = draw.randrange(len(value))
        other = draw.choice("0123456789abcdefABCDEF \n+=é\u2014")
        texts = [value[:spot] + other + value[spot + 1 :], value + other, value[:-1], value.upper(), value + value]
        return [draw.choice(texts), draw.choice(texts), draw.choice(strange)]
    if isinstance(value, int | float):
        return [
            draw.choice([value + 1, value - 1, float(value), bool(value), str(value), value + 2**60]),
            draw.choice(strange),
        ]
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


def agreed_on_mutant(case: Case, what: str) -> set[str]:
    """The checks that fail. What one cannot even evaluate, the other cannot either, or fails."""
    fields = "the certificate's fields fit together"
    pair = [{name: outcome for _, name, outcome in said} for said in (ours(case), theirs(case))]
    broken = [said.pop(fields, "passed") == "failed" for said in pair]
    shared = pair[0].keys() & pair[1].keys()
    differing = {name for name in shared if pair[0][name] != pair[1][name]}
    assert not differing, f"{what}: {differing}"
    for here, there in ((0, 1), (1, 0)):
        unanswered = {pair[there][name] for name in pair[there].keys() - shared}
        assert not unanswered or (broken[here] and (broken[there] or "failed" in unanswered)), f"{what}: {pair}"
    failed = {name for said in pair for name, outcome in said.items() if outcome == "failed"}
    return failed | ({fields} if any(broken) else set())


@pytest.mark.parametrize("name", CERTIFICATES)
def test_both_say_the_same_of_mutated_statements_that_the_operator_signed(
    name: str, files: Path, tmp_path: Path
) -> None:
    certificate = parse_json((files / f"{name}.json").read_bytes())
    statement, refused, tried = statement_of(certificate["envelope"]), 0, 0
    case = Case(
        tmp_path / "mutant.json", operator(files, 1, 2, 3), head=files / "head",
        extension=files / "deleted-extension.json", tag_key=files / "tag.key", record_id=RECORDS[name],
    )  # fmt: skip
    honest = ours(replace(case, certificate=files / f"{name}.json"))
    for what, altered in mutants(statement, random.Random(name), 80):
        try:
            data = signed_anew(certificate, altered, signer(name))
        except ValueError:  # it has no canonical JSON, so nobody can sign it as a statement
            continue
        case.certificate.write_bytes(data)
        tried += 1
        refused += bool(agreed_on_mutant(case, what) - failures(honest))
    assert refused > tried / 2


@pytest.mark.parametrize("name", CERTIFICATES)
def test_both_say_the_same_of_mutated_files(name: str, files: Path, tmp_path: Path) -> None:
    certificate = parse_json((files / f"{name}.json").read_bytes())
    case = Case(tmp_path / "mutant.json", operator(files, 1, 2, 3))
    for what, altered in mutants(certificate, random.Random(name), 40):
        case.certificate.write_text(json.dumps(altered))
        assert agreed_on_mutant(case, what) or altered == certificate, what


def test_both_say_the_same_of_mutated_receipts(files: Path, tmp_path: Path) -> None:
    envelope = parse_json((files / "receipt-r1.json").read_bytes())
    case = Case(files / "deleted.json", operator(files, 1), receipt=tmp_path / "receipt.json")
    binding = ("V2", "the tags belong to the reader's record", "passed")
    for what, altered in mutants(statement_of(envelope), random.Random(1), 80):
        try:
            data = json.dumps(sign(canonical_json(altered), signer("deleted")))
        except ValueError:
            continue
        (tmp_path / "receipt.json").write_text(data)
        agreed(case, what)
    for what, altered in mutants(envelope, random.Random(2), 25):
        (tmp_path / "receipt.json").write_text(json.dumps(altered))
        same = altered.get("payload") == envelope["payload"]  # an altered key ID decides nothing
        assert binding not in agreed(case, what) or same, what


def test_both_say_the_same_of_mutated_heads_and_extensions(files: Path, tmp_path: Path) -> None:
    shown, head = parse_json((files / "deleted-extension.json").read_bytes()), (files / "head").read_text()
    case = Case(files / "deleted.json", operator(files, 1, 2, 3), head=files / "head", extension=tmp_path / "shown")
    for what, altered in mutants(shown, random.Random(3), 80):
        (tmp_path / "shown").write_text(json.dumps(altered))
        agreed(case, what)
    case = replace(case, head=tmp_path / "head", extension=files / "deleted-extension.json")
    for draw in map(random.Random, range(40)):
        altered = draw.choice([one for one in variants(head, draw) if isinstance(one, str)] or [head])
        (tmp_path / "head").write_bytes(altered.encode(errors="replace"))
        agreed(case, repr(altered))


def fact_of(predicate: Any, kind: str) -> Any:
    return next(fact for fact in predicate["log"]["facts"] if fact["kind"] == kind)


def _keep_what_was_to_be_purged(predicate: Any) -> None:
    for impact in (predicate["impact"], fact_of(predicate, "request/1")["body"]["impact"]):
        impact["shards"][0]["purged"].append("ab" * 32)


def _repeat_a_slice(predicate: Any) -> None:
    lineage = next(one for one in predicate["lineages"] if len(one["links"]) > 1)
    first, second = lineage["links"][:2]
    second["slice"] = first["slice"]
    second["key"] = verifier.checkpoint_key(predicate["recipe"], lineage["shard"], second, first["key"])


def _serve_from_before_the_request(predicate: Any) -> None:
    fact_of(predicate, "manifest/1")["seq"] = 2


def _commit_after_the_request(predicate: Any) -> None:
    fact_of(predicate, "slice/1")["seq"] = predicate["prior"][0]["fact"] = 999


def _claim_another_lineage(predicate: Any) -> None:
    for after in (predicate["after"], fact_of(predicate, "manifest/1")["body"]):
        after["heads"][0]["lineage"] = "ab" * 32


def _leave_a_slice_out(predicate: Any) -> None:
    predicate["lineages"][0]["links"].pop()
    for proofs in predicate["absence"].values():
        proofs.pop(1)


def _erase_nothing(predicate: Any) -> None:
    predicate["request"]["targets"]["tags"] = []


def _say_true_for_one(predicate: Any) -> None:
    predicate["replay"]["recipe"]["accumulation"] = True


@pytest.mark.parametrize(
    ("lie", "name"),
    [
        (_keep_what_was_to_be_purged, "its fields are what the logged facts say"),
        (_repeat_a_slice, "every lineage is whole and hashes to its keys"),
        (_serve_from_before_the_request, "heads, subjects and lineages are those of the logged manifest"),
        (_commit_after_the_request, "the deleted records had been committed to before"),
        (_claim_another_lineage, "heads, subjects and lineages are those of the logged manifest"),
        (_leave_a_slice_out, "the records are in no slice that the served heads were trained on"),
        (_erase_nothing, "its fields are what the logged facts say"),
        (_say_true_for_one, "its fields are what the logged facts say"),
    ],
)
def test_both_see_lies_that_fit_together(lie: Any, name: str, files: Path, tmp_path: Path) -> None:
    certificate = parse_json((files / "deleted.json").read_bytes())
    statement = statement_of(certificate["envelope"])
    lie(statement["predicate"])
    (tmp_path / "lie.json").write_bytes(signed_anew(certificate, statement, signer("deleted")))
    assert name in failures(agreed(Case(tmp_path / "lie.json", operator(files, 1))))


def test_both_read_proofs_in_honest_and_crafted_trees_alike() -> None:
    """Also where leaves stand deeper than they must, beside empty subtrees."""
    draw, shown = random.Random(5), 0
    for _ in range(3000):
        tag, other, value = (draw.randbytes(32) for _ in range(3))
        shared = draw.choice([0, 1, 2, 255])
        near = int.from_bytes(tag, "big") ^ 1 << (255 - shared)  # shares exactly so many bits
        occupant = draw.choice([None, (near.to_bytes(32, "big"), hashing.sha256(value)), (other, value), (tag, value)])
        siblings = [draw.choice([sparse.EMPTY, other]) for _ in range(draw.choice([0, 1, 2, 3]))]
        at = sparse.EMPTY if occupant is None else verifier.h(b"\0" + b"".join(occupant))
        if draw.random() < 0.3:
            occupant, at = None, verifier.h(b"\0" + tag + verifier.h(value))
        for deep in reversed(range(len(siblings))):
            right = tag[0] >> (7 - deep) & 1
            at = verifier.node(siblings[deep], at) if right else verifier.node(at, siblings[deep])
        proof = sparse.SparseProof(tuple(siblings), occupant)
        absent, present = sparse.verify_absence(at, tag, proof), sparse.verify_inclusion(at, tag, value, proof)
        assert verifier.absent(at.hex(), tag.hex(), proof.to_json()) == absent
        assert verifier.present(at.hex(), tag.hex(), value.hex(), proof.to_json()) == present
        shown += absent or present
    assert 500 < shown < 2500


@pytest.mark.parametrize(
    "data",
    [
        b"", b"{", b"[]", b"null", b"\xff\xfe{}", b'{"mediaType": NaN}', b'{"mediaType": 1e999}', b"[" * 100_000,
        b'{"mediaType": "a", "mediaType": "application/vnd.sisa.deletion-certificate.v1+json"}',
    ],
)  # fmt: skip
def test_both_refuse_what_is_no_certificate(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(data)
    assert failures(agreed(Case(tmp_path / "file"))) == {"the file is a deletion certificate"}


def test_both_see_a_certificate_that_was_signed_and_logged_by_a_thief(files: Path, tmp_path: Path) -> None:
    """In the time of the third key, which nothing endorses, a reader with the first two keys is not fooled."""
    outcomes = agreed(Case(files / "everything.json", operator(files, 1, 2)))
    assert {"the signature is valid", "the facts it rests on are in the operator's log"} <= failures(outcomes)
    assert not failures(agreed(Case(files / "everything.json", operator(files, 3))))


# -- the page -----------------------------------------------------------------------------------------


def test_both_give_the_known_answers_of_the_page() -> None:
    (block,) = re.findall(r"<!-- known answers -->\n```json\n(.*?)```", PAGE.read_text(), re.DOTALL)
    a, b, key = "aa" * 32, "bb" * 32, bytes(range(32))
    link = {"chain": 0, "slice": 2, "records": b, "key": a, "tensors": b, "root": "00" * 32}
    recipe, environment = {"epochs": 2, "rate": 5e-05}, {"machine": "toy"}
    targets: dict[str, Any] = {"tags": [], "tombstones": [], "absent": [], "salt": a}
    fact, pairs = Fact(1, "a/1", {}, ""), {bytes.fromhex(a): b"\1", bytes.fromhex("ab" + "aa" * 31): b"\2"}
    public = Ed25519PrivateKey.from_private_bytes(key).public_key()
    leaves = [verifier.h(b"\0" + bytes([number])) for number in range(5)]
    pair = verifier.node(verifier.node(leaves[0], leaves[1]), verifier.node(leaves[2], leaves[3]))
    here = [
        hashing._encode("lineage", ["", 7]).hex(),
        hashing.digest("recipe", canonical_json(recipe)).hex(),
        Link(a, 1, 0, 2, None, b).key,
        lineage_digest("", a, b, "00" * 32, environment),
        ModelManifest.of(0, a, []).digest,
        targets_digest(targets, b),
        hashing.keyed(key, "tag", "toy", "r1", 1).hex(),
        hashing.keyed(key, "commitment", canonical_json({"id": "r1"})).hex(),
        key_commitment("tag", key),
        fact.leaf().hex(),
        tlog.tree_hash(leaves).hex(),
        note.key_id("sisa/log/0", public).hex(),
        sparse.tree_root(pairs).hex(),
    ]
    there = [
        verifier.encode("lineage", "", 7).hex(),
        verifier.d("recipe", verifier.canonical(recipe)),
        verifier.checkpoint_key(a, 1, link, ""),
        verifier.lineage_digest("", link, environment),
        verifier.manifest_digest(a, []),
        verifier.targets_digest(targets, b),
        verifier.tag_of(key, "toy", "r1", 1),
        verifier.commitment_to({"id": "r1"}, key),
        verifier.key_commitment(key),
        verifier.leaf(fact.to_json()).hex(),
        verifier.node(pair, leaves[4]).hex(),
        verifier.h(b"sisa/log/0\n\x01" + public.public_bytes_raw())[:4].hex(),
    ]
    known = list(parse_json(block).values())
    assert here == known
    assert there == known[:-1]
    tree, (one, other) = known[-1], (verifier.h(b"\0" + key + verifier.h(value)) for key, value in pairs.items())
    proof = {"siblings": bytes(32 * 7).hex() + other.hex(), "occupant": ""}
    assert verifier.present(tree, a, "01", proof), one.hex()


def test_numbers_are_printed_as_ecmascript_prints_them() -> None:
    draw = random.Random(4)
    numbers = [draw.uniform(-1, 1) * 10.0 ** draw.randint(-30, 30) for _ in range(2000)]
    numbers += [0.0, -0.0, 1.0, 5e-324, 1.7976931348623157e308, 1e21, 1e20, 1e-6, 1e-7, 123456.789, 100.0]
    for number in numbers:
        assert verifier.canonical(number) == canonical_json(number)
    strings = ["\x00\x1f\x7f\u2028", 'quote " and \\', "\ufffd", "\U0001f600 \ue000"]
    assert verifier.canonical(dict.fromkeys(strings, strings)) == canonical_json(dict.fromkeys(strings, strings))


def test_the_page_names_every_check_as_it_is_printed(files: Path) -> None:
    table = PAGE.read_text()
    for level, name, _ in ours(Case(files / "deleted.json")):
        assert f"| {level} | {name} |" in table


# -- the vectors --------------------------------------------------------------------------------------


def test_both_accept_the_stored_test_vectors(tmp_path: Path) -> None:
    """They were made by an earlier version: a change of the format breaks what people hold."""
    vectors = tmp_path / "vectors"
    shutil.copytree(VECTORS, vectors)
    (vectors / "tag.key").chmod(0o600)  # git does not keep it
    expected = parse_json((vectors / "expected.json").read_bytes())
    assert {row["certificate"] for row in expected} == {f"{name}.json" for name in CERTIFICATES}
    for row in expected:
        given = {what: row[what] for what in ("receipt", "tag_key", "head", "extension") if what in row}
        case = Case(
            vectors / row["certificate"],
            tuple(vectors / key for key in row["public_keys"]),
            record_id=row.get("id"),
            **{what: vectors / file for what, file in given.items()},
        )
        wanted = sorted((level, name, outcome) for name, (level, outcome) in row["outcomes"].items())
        assert agreed(case, row["certificate"]) == wanted, row


def describe_vectors(directory: Path) -> None:
    """Write what a verifier must answer, once both agree."""
    all_keys = [f"operator-{number}.pub" for number in (1, 2, 3)]
    rows: list[dict[str, Any]] = [{"certificate": f"{name}.json", "public_keys": all_keys} for name in CERTIFICATES]
    rows += [
        {"certificate": "deleted.json", "public_keys": []},
        {"certificate": "deleted.json", "public_keys": all_keys[2:]},
        {"certificate": "deleted.json", "public_keys": all_keys[:1], "receipt": "receipt-r1.json"},
        {"certificate": "deleted.json", "public_keys": all_keys[:1], "receipt": "receipt-r5.json"},
        {"certificate": "rotated.json", "public_keys": all_keys[1:2], "receipt": "receipt-r5.json"},
        {"certificate": "several.json", "public_keys": all_keys[:1], "tag_key": "tag.key", "id": "r3"},
        {"certificate": "several.json", "public_keys": all_keys[:1], "tag_key": "tag.key", "id": "r1"},
        {"certificate": "everything.json", "public_keys": all_keys, "head": "head"},
        {"certificate": "deleted.json", "public_keys": all_keys, "head": "head"},
        {
            "certificate": "deleted.json", "public_keys": all_keys, "head": "head",
            "extension": "deleted-extension.json",
        },
    ]  # fmt: skip
    for row in rows:
        given = {what: directory / row[what] for what in ("receipt", "tag_key", "head", "extension") if what in row}
        keys = tuple(directory / key for key in row["public_keys"])
        case = Case(directory / row["certificate"], keys, record_id=row.get("id"), **given)
        row["outcomes"] = {name: [level, outcome] for level, name, outcome in agreed(case)}
    (directory / "expected.json").write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":  # python -m tests.independent.test_independent_verifier, after the format changed
    make_vectors(VECTORS)
    describe_vectors(VECTORS)
