"""A trained toy workspace, and the few things that every test of the flows around a deletion does with one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestration.inline import InlineExecutor
from shards.checks import Check
from shards.law import check_law
from shards.workspace import Workspace
from sisa.certificate import certificate_path
from sisa.config import Recipe, Settings, write_settings
from sisa.delete import Deleted, delete, unfinished_requests
from sisa.ingest import Ingested, commit
from sisa.ingest import ingest as take_in
from sisa.session import Session
from sisa.train import train
from sisa.verify import Evidence, verify
from tests.toy import ToyTrainer, stored, toy_recipe, toy_record, toy_session

INLINE = InlineExecutor()
TRAINER = ToyTrainer()


def trained(path: Path, count: int = 12, **options: Any) -> Session:
    """A new workspace of ``count`` records, three a subject, trained under these run options."""
    session = ingested(path, toy_recipe(), count, **options)
    train(session, executor=INLINE, trainer=TRAINER)
    return session


def configured(path: Path, monkeypatch: pytest.MonkeyPatch, **recipe: Any) -> Path:
    """A trained toy workspace that the command line can work on in this process."""
    session = ingested(path, toy_recipe(**recipe))
    train(session, executor=INLINE, trainer=TRAINER)
    write_settings(session.workspace.path, Settings(recipe=session.recipe, options=session.options))
    session.workspace.close()
    monkeypatch.setattr(Session, "trainer", lambda _: ToyTrainer())
    return session.workspace.path


def ingested(path: Path, recipe: Recipe, count: int = 12, **options: Any) -> Session:
    """A new workspace that holds records and has trained nothing."""
    made = toy_session(path, recipe)
    session = replace(made, options=made.options.model_copy(update=options))
    commit(session, stored(session, map(toy_record, range(count))), Ingested(count, 0, 0, 0))
    return session


def reopened(session: Session, path: Path | None = None) -> Session:
    """The same configuration on the workspace as it lies there now, or on another one."""
    session.workspace.close()
    return replace(session, workspace=Workspace.open(path or session.workspace.path))


def restored(session: Session, backup: Path) -> Session:
    """The workspace after its directory was replaced by a backup."""
    session.workspace.close()
    shutil.rmtree(session.workspace.path)
    shutil.copytree(backup, session.workspace.path)
    return replace(session, workspace=Workspace.open(session.workspace.path))


def forget(session: Session, *ids: str, **arguments: Any) -> Deleted:
    """Delete records, with the toy trainer."""
    return delete(session, ids, executor=INLINE, trainer=TRAINER, **arguments)


def retrain(session: Session, *files: Path, **arguments: Any) -> Ingested:
    """Train on files, with the toy trainer; returns what was taken in."""
    return train(session, files, executor=INLINE, trainer=TRAINER, **arguments).ingested


def ingest(session: Session, *files: Path, **arguments: Any) -> Ingested:
    """Take in files."""
    return take_in(session, files, trainer=TRAINER, **arguments)


def rows(path: Path, *numbers: int, **values: Any) -> Path:
    """A file of the toy records of these numbers, with other ``values``."""
    lines = [
        {"id": f"r{number}", "subject": f"s{number // 3}", "text": f"text {number}", "label": "a"} | values
        for number in numbers
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def held(session: Session) -> dict[str, int]:
    """ID → version of every surviving record."""
    return {one.record.id: one.record.version for one in session.workspace.survivors()}


def public_key(session: Session) -> Path:
    """The operator's current public key."""
    return session.workspace.path / "keys" / "signing.pub"


def checked(certificate: Path, keys: Sequence[Path] = (), **evidence: Any) -> dict[str, Check]:
    """Name → check of a certificate."""
    _, checks = verify(certificate, Evidence(public_keys=tuple(keys), **evidence))
    return {check.name: check for check in checks}


def failed(checks: dict[str, Check]) -> set[str]:
    """Names of the checks that failed."""
    return {name for name, check in checks.items() if check.outcome == "failed"}


def write_json(path: Path, document: Any) -> Path:
    """A JSON file."""
    path.write_text(json.dumps(document))
    return path


def assert_lawful(session: Session) -> None:
    """Nothing of the law failed, every request in force is certified, and each certificate holds."""
    workspace = session.workspace
    assert not [check for check in check_law(workspace) if check.outcome == "failed"]
    assert not unfinished_requests(workspace)
    survivors = {one.tag.hex() for one in workspace.survivors()}
    for _, request in workspace.book.requests():
        if not request.retired:
            assert not survivors & set(request.tombstones)
            assert not failed(checked(certificate_path(workspace, request.request_id)))
