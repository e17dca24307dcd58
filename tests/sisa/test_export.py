"""What is handed out: on record before it exists, and never inside the workspace."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shards import kinds
from shards.errors import InputError
from sisa.config import Settings, write_settings
from sisa.export import export_records
from sisa.session import Session
from tests.flows.helpers import refused, sisa, unchanged
from tests.sisa.trained import forget, trained


@pytest.fixture
def session(memory_path: Path) -> Iterator[Session]:
    made = trained(memory_path / "workspace")
    yield made
    made.workspace.close()


@pytest.fixture
def workspace(session: Session) -> Path:
    """The same, with a configuration that the command line can read."""
    write_settings(session.workspace.path, Settings(recipe=session.recipe, options=session.options))
    return session.workspace.path


def test_an_export_is_what_survives_and_only_its_owner_can_read_it(session: Session, tmp_path: Path) -> None:
    forget(session, "r1")
    file = tmp_path / "out.jsonl"
    assert export_records(session, file) == 11
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert {line["id"] for line in lines} == {f"r{number}" for number in range(12)} - {"r1"}
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_an_export_is_on_record_before_the_file_exists(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in between, a file too few is there, never one that no fact tells of."""

    class Killed(BaseException):
        pass

    def gone(*_: Any, **__: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("sisa.export.replace_file", gone)
        with pytest.raises(Killed):
            export_records(session, tmp_path / "out.jsonl")
    (fact,) = session.workspace.ledger.facts(kinds.DERIVED)
    assert fact.body["kind"] == "records"
    assert not (tmp_path / "out.jsonl").exists()


def test_an_export_that_no_fact_could_tell_of_is_not_written(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("sisa.export.register_derived", full)
    with pytest.raises(OSError, match="disk full"):
        export_records(session, tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()


def link(path: Path) -> Path:
    """A link from outside that leads into the workspace."""
    (path.parent / "link").symlink_to(path, target_is_directory=True)
    return path.parent / "link" / "out.jsonl"


INSIDE: dict[str, Callable[[Path], Path]] = {
    "its root": lambda path: path / "out.jsonl",
    "its vault": lambda path: path / "vault" / "out.jsonl",
    "a way round": lambda path: path / "vault" / ".." / ".." / path.name / "out.jsonl",
    "a link": link,
}


@pytest.mark.parametrize("place", INSIDE)
def test_no_records_are_written_into_the_workspace(session: Session, place: str) -> None:
    path = session.workspace.path
    file = INSIDE[place](path)
    with unchanged(path), pytest.raises(InputError, match="outside the workspace"):
        export_records(session, file)


def test_no_command_hands_out_into_the_workspace(workspace: Path) -> None:
    file = workspace / "out"
    with unchanged(workspace):
        for command in (
            ("export", "--records", file),
            ("export", "--form", "adapters", "--out", file),
            ("predict", "--text", "x", "--output", file),
            ("letter", "--request", "req", "--output", file),
        ):
            refused(sisa(*command, "-w", workspace), "outside the workspace")


@pytest.mark.parametrize(
    "arguments",
    [(), ("--records", "r", "--form", "model"), ("--form", "model"), ("--form", "model", "--out", "o", "--keep"),
     ("--form", "model", "--keep", "--recipient", "A Partner"), ("--records", "r", "--keep"),
     ("--records", "r", "--out", "o"), ("--form", "weights", "--out", "o")],
)  # fmt: skip
def test_an_export_is_of_one_thing_to_one_place(arguments: tuple[str, ...], workspace: Path, tmp_path: Path) -> None:
    with unchanged(workspace):
        result = sisa("export", "-w", workspace, *arguments)
    assert result.code == 2
    assert "Usage:" in result.err


def test_metrics_that_are_no_json_are_refused(workspace: Path, tmp_path: Path) -> None:
    (tmp_path / "metrics").write_text("accuracy: 0.9")
    out = tmp_path / "out"
    command = ("export", "-w", workspace, "--form", "adapters", "--out", out, "--metrics", tmp_path / "metrics")
    refused(sisa(*command), "JSON in")
    assert not out.exists()
