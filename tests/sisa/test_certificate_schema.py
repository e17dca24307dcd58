"""The schema, the document that explains it, and what is really signed say the same."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from orchestration.inline import InlineExecutor
from shards.derived import Export
from sisa.certificate import certificate_path
from sisa.delete import delete
from sisa.export import export_records, register_derived, register_export
from sisa.ingest import Ingested, commit
from sisa.key import rotate
from sisa.session import Session
from sisa.train import train
from sisa.verify import Evidence, verify
from tests.sisa.forging import failed, signed
from tests.toy import ToyTrainer, memory_directory, stored, toy_recipe, toy_record, toy_session

DOCS = Path(__file__).parents[2] / "docs"
INLINE = InlineExecutor()
TRAINER = ToyTrainer()
SCHEMA = json.loads((DOCS / "certificate.schema.json").read_text())
STATEMENT = Draft202012Validator(SCHEMA)
FILE = Draft202012Validator({**SCHEMA["$defs"]["file"], "$defs": SCHEMA["$defs"]})
CASES = ("deleted", "not-present", "several", "emptied", "rotated")


@pytest.fixture(scope="module")
def sessions() -> Iterator[dict[str, Session]]:
    """One workspace for all cases; a certificate under each case's name."""
    with memory_directory() as directory:
        made = toy_session(directory / "workspace", toy_recipe(slices=2))
        made = Session(made.workspace, made.recipe, made.options.model_copy(update={"backup_days": 30}))
        commit(made, stored(made, map(toy_record, range(12))), Ingested(12, 0, 0, 0))
        train(made, executor=INLINE, trainer=TRAINER)
        export_records(made, directory / "copy.jsonl", recipient="a partner")
        register_derived(made, "predictions", b"answers", [head for head, _ in made.workspace.book.served()])
        parents = frozenset(head.checkpoint for head, _ in made.workspace.book.served())
        for kept in (False, True):
            model = Export("model", f"{kept:d}" * 64, parents, kept)
            register_export(made.workspace, model, directory / "model", "a partner")
        layout = made.workspace.layout()
        emptied = [one.record.id for one in made.workspace.survivors() if layout.place(one.record).shard == 1]
        left = [one.record.id for one in made.workspace.survivors() if one.record.id not in emptied]
        everybody = {"requester": "a", "authoriser": "b", "reason": "c", "basis": "d"}
        requests: dict[str, tuple[list[str], dict[str, str]]] = {
            "deleted": (left[:1], {}),
            "not-present": (["nobody"], {}),
            "several": ([*left[1:3], "no one"], everybody),
            "emptied": (emptied, {}),
        }
        for name, (ids, who) in requests.items():
            delete(made, ids, request_id=name, ignore_missing=True, who=who, executor=INLINE, trainer=TRAINER)
        with made.workspace.driving():
            rotate(made.workspace)
        delete(made, left[3:4], request_id="rotated", executor=INLINE, trainer=TRAINER)
        yield dict.fromkeys(CASES, made)
        made.workspace.close()


def places(value: Any, place: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The place of every object."""
    if isinstance(value, dict):
        yield place
    for at, item in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(item, (*place, at))


def inside(value: Any, place: tuple[str | int, ...]) -> Any:
    for step in place:
        value = value[step]
    return value


def test_the_schema_is_a_schema() -> None:
    Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize("case", CASES)
def test_real_certificates_validate(sessions: dict[str, Session], case: str) -> None:
    workspace = sessions[case].workspace
    path = certificate_path(workspace, case)
    FILE.validate(json.loads(path.read_text()))
    STATEMENT.validate(signed(workspace, case))
    assert failed(verify(path, Evidence())[1]) == []


def test_the_cases_are_what_they_are_called(sessions: dict[str, Session]) -> None:
    said = {case: signed(sessions[case].workspace, case)["predicate"] for case in CASES}
    assert {case: predicate["statement"] for case, predicate in said.items()} == {
        case: "not-present" if case == "not-present" else "deleted" for case in CASES
    }
    assert len(said["several"]["request"]["targets"]["tags"]) == 2
    assert said["several"]["request"]["targets"]["absent"]
    assert said["emptied"]["lineages"][1]["links"] == []
    assert "key/1" in [fact["kind"] for fact in said["rotated"]["log"]["facts"]]


OPTIONAL = ("until", "recipient", "form", "kept", "location")
OPEN = re.compile(r"predicate\.(environments\[\d+\]|replay\.recipe|log\.facts\[\d+\]\.body\.recipe)")


@pytest.mark.parametrize("case", ["several", "rotated"])
def test_a_field_too_many_or_too_few_does_not_validate(sessions: dict[str, Session], case: str) -> None:
    """Wherever the format is closed: everywhere but in environments, the recipe, and maps by name."""
    statement = signed(sessions[case].workspace, case)
    for place in {re.sub(r"\d+|[0-9a-f]{64}", "", str(place)): place for place in places(statement)}.values():
        name = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in place).removeprefix(".")
        lie = copy.deepcopy(statement)
        inside(lie, place)["note"] = "all copies everywhere are destroyed"
        assert STATEMENT.is_valid(lie) == bool(OPEN.fullmatch(name)), name
        for field in inside(statement, place):
            optional = OPEN.fullmatch(name) or name in ("predicate.absence", "predicate.request.references")
            optional = optional or name.endswith((".evidence", "body.references")) or field in OPTIONAL
            if not optional:
                lie = copy.deepcopy(statement)
                del inside(lie, place)[field]
                assert not STATEMENT.is_valid(lie), f"{name} without {field}"


MUTATIONS: dict[str, Any] = {
    "_type": "https://in-toto.io/Statement/v2",
    "predicateType": "urn:sisa:deletion-certificate:v2",
    "subject": [],
    "predicate.version": 2,
    "predicate.statement": "forgotten",
    "predicate.issued": "yesterday",
    "predicate.issuer.public_key": "",
    "predicate.supersedes": "",
    "predicate.log.head": "a head",
    "predicate.log.facts": [],
    "predicate.request.id": "../up",
    "predicate.request.targets.tags": ["AB" * 32],
    "predicate.request.targets.salt": "ab",
    "predicate.recipe": None,
    "predicate.after": {},
    "predicate.after.generation": -1,
    "predicate.kept": ["0" * 63],
    "predicate.lineages": {},
    "predicate.absence": {},
    "predicate.records.surviving": 1.5,
    "predicate.law": [],
    "predicate.not_claimed": [],
}


@pytest.mark.parametrize("field", MUTATIONS)
def test_a_value_of_another_kind_does_not_validate(sessions: dict[str, Session], field: str) -> None:
    statement = signed(sessions["deleted"].workspace, "deleted")
    *above, last = field.split(".")
    inside(statement, tuple(above))[last] = MUTATIONS[field]
    assert not STATEMENT.is_valid(statement)


def test_a_statement_of_absence_claims_no_erasure_and_a_deletion_some(sessions: dict[str, Session]) -> None:
    absent, deleted = (signed(sessions[case].workspace, case) for case in ("not-present", "deleted"))
    for name in ("erasure", "prior"):
        lie = copy.deepcopy(absent)
        lie["predicate"][name] = deleted["predicate"][name]
        assert not STATEMENT.is_valid(lie)
        lie = copy.deepcopy(deleted)
        lie["predicate"][name] = []
        assert not STATEMENT.is_valid(lie)


def fields(schema: dict[str, Any], place: str = "") -> Iterator[str]:
    """Every field below a schema as the document names it; what is defined by name has its own table."""
    for name, part in schema.get("properties", {}).items():
        here = f"{place}.{name}".removeprefix(".")
        yield here
        yield from fields(part, here)
    if "items" in schema:
        yield from fields(schema["items"], f"{place}[]")
    if isinstance(schema.get("additionalProperties"), dict):
        yield f"{place}{{}}"
        more = schema["additionalProperties"]
        if "items" in more:
            yield f"{place}{{}}[]"


def test_every_field_of_the_schema_is_documented_and_every_documented_field_is_in_the_schema() -> None:
    in_schema = {name: set(fields(part)) for name, part in {"statement": SCHEMA, **SCHEMA["$defs"]}.items()}
    documented: dict[str, set[str]] = {}
    for line in (DOCS / "certificate.md").read_text().splitlines():
        if heading := re.fullmatch(r"## `(.+)`", line):
            section = documented.setdefault(heading[1], set())
        elif field := re.match(r"\| `([^`]+)` \|", line):
            assert field[1] not in section, f"{field[1]} is there twice"
            section.add(field[1])
    assert documented == {name: named for name, named in in_schema.items() if named}
