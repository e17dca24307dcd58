"""`sisa audit --residue`: after a deletion nothing is found, and whatever is planted is found and named."""

from __future__ import annotations

import gzip
import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from sisa import residue
from sisa.base_model import load_tokenizer
from sisa.config import read_settings
from tests.flows.fixtures import Deletion
from tests.flows.helpers import Result, copy_of, failed, outcomes, refused, settings, sisa, ticket, write_jsonl

ID, TEXT, TOKENS = (
    f"no {form} of a deleted record is in the files searched" for form in ("ID", "text", "tokenised form")
)
DATA = "registered data files outside the workspace"


@dataclass(frozen=True, slots=True)
class Scene:
    """A workspace out of which records were deleted, the caller's copy of them, and a machine of its own.

    Attributes:
        workspace: after the deletion.
        records: the copy.
        temporary: where Ray keeps its sessions.
    """

    workspace: Path
    records: Path
    temporary: Path

    def audit(self, *arguments: str | Path) -> Result:
        return sisa("audit", "-w", self.workspace, "--residue", "--records", self.records, *arguments)


@pytest.fixture
def scene(deletion: Deletion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scene:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(residue, "_TEMPORARY", str(temporary))  # not the sessions of others on this machine
    monkeypatch.setattr(residue, "_SHARED_MEMORY", temporary)
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    rows = [row for row in map(ticket, range(16)) if row["id"] in deletion.ids]
    return Scene(copy_of(deletion.path, tmp_path / "w"), write_jsonl(tmp_path / "deleted.jsonl", rows), temporary)


def found(result: Result) -> set[str]:
    """The checks that failed; what was printed names no ID and says no text."""
    assert result.code == 1, result.err
    assert "CANARY" not in result.out + result.err
    return failed(result.document)


def test_after_a_deletion_nothing_is_found_and_what_was_not_searched_is_named(scene: Scene) -> None:
    result = scene.audit("--json")
    assert result.code == 0, result.out
    said = outcomes(result.document)
    assert {said[name] for name in (ID, TEXT, TOKENS, "every file was read and unpacked")} == {"passed"}
    assert {name for name, outcome in said.items() if outcome == "not_checked"} == {*residue.OUT_OF_REACH, DATA}
    assert "CANARY" not in result.out + result.err


def test_before_a_deletion_a_record_is_refused(scene: Scene) -> None:
    write_jsonl(scene.records, [ticket(0)])
    refused(scene.audit(), "1 that are held")


def test_an_older_wording_of_a_held_record_is_searched_for_and_its_id_is_not(scene: Scene) -> None:
    write_jsonl(scene.records, [ticket(0, text="an older wording, deleted when the record was renewed")])
    result = scene.audit("--json")
    assert result.code == 0, result.out
    assert "record 1: ID is that of a surviving record" in result.out
    assert [outcomes(result.document)[name] for name in (ID, TEXT)] == ["not_checked", "passed"]


def test_a_registered_data_file_that_still_holds_a_record_is_named_and_fails_nothing(
    scene: Scene, deletion: Deletion
) -> None:
    checks = {check["name"]: check for check in scene.audit("--json").document["checks"]}
    assert checks[DATA]["outcome"] == "not_checked"
    assert f"{deletion.site.data} still holds a deleted record" in checks[DATA]["detail"]
    clean = write_jsonl(scene.temporary / "clean.jsonl", [ticket(0)])
    cleaned = scene.audit("--json", *settings(f"data=[{clean}]"))
    assert outcomes(cleaned.document)[DATA] == "passed"


def test_a_copy_of_a_text_in_a_stray_file_is_found(scene: Scene) -> None:
    (scene.workspace / "store" / "notes").write_text(f"ask again: {ticket(4)['text']}!")
    result = scene.audit("--json")
    assert found(result) == {TEXT}
    assert f"{scene.workspace}/store/notes: raw bytes: record 1" in result.out
    assert "CANARY" not in (shown := scene.audit().out)
    assert "store/notes" in shown.replace("\n", "")


@pytest.mark.parametrize("variable", ["RAY_TMPDIR", "TMPDIR"])
def test_a_packed_copy_in_a_session_of_ray_is_found(
    scene: Scene, variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, str(tmp_path / "elsewhere"))
    spilled = tmp_path / "elsewhere" / "ray" / "session_1" / "spilled"
    spilled.parent.mkdir(parents=True)
    spilled.write_bytes(gzip.compress(json.dumps(ticket(5)).encode()))
    result = scene.audit("--json")
    assert found(result) == {ID, TEXT}
    assert f"{spilled}: gzip content: record 2" in result.out


def test_an_id_in_what_a_killed_replay_left_is_found(scene: Scene) -> None:
    left = scene.temporary / "sisa-replay-x"
    left.mkdir()
    (left / "worker.log").write_text(f"at {ticket(4)['id']}")
    result = scene.audit("--json")
    assert found(result) == {ID}
    assert f"{left}/worker.log: raw bytes: record 1" in result.out


def test_tokens_in_an_array_are_found(scene: Scene) -> None:
    configured = read_settings(scene.workspace, {})
    tokens = load_tokenizer(configured.recipe, configured.options.base_model)(ticket(5)["text"])["input_ids"]
    np.save(scene.workspace / "cache.npy", np.array(tokens, np.int64))
    result = scene.audit("--json")
    assert found(result) == {TOKENS}
    assert f"{scene.workspace}/cache.npy: raw bytes: record 2" in result.out


def test_an_id_in_a_log_is_found(scene: Scene) -> None:
    log = scene.temporary / "ray" / "session_1" / "logs" / "worker.out"
    log.parent.mkdir(parents=True)
    log.write_text(f"step 3: {ticket(4)['id']} is too long\n")
    result = scene.audit("--json")
    assert found(result) == {ID}
    assert f"{log}: raw bytes: record 1" in result.out


def test_a_file_named_after_a_record_is_found_and_its_name_is_masked(scene: Scene) -> None:
    (scene.workspace / "vault" / f"{ticket(4)['id']}.json").touch()
    result = scene.audit("--json")
    assert found(result) == {ID}
    assert f"{scene.workspace}/vault/***.json: file name: record 1" in result.out


@pytest.mark.parametrize("place", ["w", "temporary/ray"])
def test_a_copy_that_would_itself_be_found_is_refused(scene: Scene, place: str, tmp_path: Path) -> None:
    (tmp_path / place).mkdir(exist_ok=True)
    inside = shutil.copy(scene.records, tmp_path / place / "deleted.jsonl")
    refused(sisa("audit", "-w", scene.workspace, "--residue", "--records", inside), "would itself be a residue")
