"""What the command line says to people: only what is known and was done, and nothing that steers their terminal."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.flows.helpers import done, refused, settings, sisa, unchanged
from tests.sisa.trained import configured

Command = tuple[str | Path, ...]

STEERING = "Eve\x1b[2J\u202e\x9b\u2028\nend"
CODES = ("\x1b", "\u202e", "\x9b", "\u2028")
FILES = settings('data=["a.jsonl", "b.jsonl"]')
MAY_HOLD = (
    "Registered files may still hold it: a.jsonl, b.jsonl "
    "(delete it there too; deleted records are left out at the next ingest)"
)


@pytest.fixture
def workspace(memory_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A trained toy workspace, of records r0 to r11."""
    return configured(memory_path / "workspace", monkeypatch)


def said(*command: str | Path) -> list[str]:
    """The lines that a command prints to people."""
    result = sisa(*command)
    assert result.code == 0, result.err
    return result.out.splitlines()


def today() -> str:
    return datetime.now(UTC).date().isoformat()


def test_a_deletion_says_what_it_cost_and_its_repetition_only_when_it_was_done(workspace: Path) -> None:
    command: Command = ("delete", "-w", workspace, "--id", "r1", "--request-id", "req")
    first = said(*command)
    assert any(line.startswith("1 record, ") and line.endswith("to repeat:") for line in first)
    assert any(line.startswith("shard") for line in first)
    assert first[-2].startswith("Request req is completed in ")
    with unchanged(workspace):
        assert said(*command) == [f"Request req was already completed on {today()}.", first[-1]]


def test_a_deletion_of_old_and_new_records_says_which_request_is_which(workspace: Path) -> None:
    said("delete", "-w", workspace, "--id", "r1", "--request-id", "old")
    lines = said("delete", "-w", workspace, "--id", "r1", "--id", "r2", "--request-id", "new")
    assert f"Request old was already completed on {today()}." in lines
    assert lines[-2].startswith("Request new is completed in ")
    assert any(line.startswith("shard") for line in lines)


def test_a_dry_run_under_lanes_says_what_they_cost(memory_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_lanes = configured(memory_path / "workspace", monkeypatch, lanes=3)
    lines = said("delete", "-w", with_lanes, "--id", "r1", "--dry-run")
    assert "Each pass computes all 3 lanes, and costs so, whichever shards are in it." in lines


def test_status_says_how_much_is_kept_of_frozen_layers(workspace: Path) -> None:
    assert "activations" not in said("status", "-w", workspace)[0]
    entry = workspace / "activations" / "ab" / "0000" / "entry"
    entry.parent.mkdir(parents=True)
    entry.write_bytes(bytes(3 << 20))
    assert said("status", "-w", workspace)[0].endswith(", 3.0 of them activations")


def test_a_dry_run_says_what_was_deleted_already(workspace: Path) -> None:
    said("delete", "-w", workspace, "--id", "r1", "--request-id", "req")
    assert said("delete", "-w", workspace, "--id", "r1", "--dry-run") == [
        f"Deleted already: request req, completed on {today()}.",
        "Dry run: nothing was changed.",
    ]
    (workspace / "certificates" / "req.json").unlink()
    assert "Deleted already: request req, not completed yet." in said(
        "delete", "-w", workspace, "--id", "r1", "--dry-run"
    )


def test_what_a_killed_deletion_left_is_said_to_be_completed_now(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command: Command = ("delete", "-w", workspace, "--id", "r1", "--request-id", "req", *FILES)
    with monkeypatch.context() as patch:
        patch.setattr("sisa.delete.finish_requests", lambda *_, **__: 1 / 0)
        assert sisa(*command).code == 3
    lines = said(*command)
    assert lines[-3].startswith("Request req is completed in ")
    assert lines[-1] == MAY_HOLD


def test_a_statement_of_absence_has_no_table_of_what_is_retrained(workspace: Path) -> None:
    command: Command = ("delete", "-w", workspace, "--id", "nobody", "--ignore-missing", "--request-id", "req", *FILES)
    lines = said(*command)
    assert lines[0] == "never held, left out: 'nobody'"
    assert lines[1].startswith("Request req is completed in ")
    assert lines[2].startswith("Certificate: ")
    assert len(lines) == 3
    assert f"Request req was already completed on {today()}." in said(*command)


def test_a_deletion_names_the_registered_files_that_may_still_hold_the_record(workspace: Path) -> None:
    command: Command = ("delete", "-w", workspace, "--id", "r1", *FILES)
    assert MAY_HOLD not in said(*command, "--dry-run")
    assert said(*command)[-1] == MAY_HOLD
    assert MAY_HOLD not in said(*command)
    assert done(*command)["registered_files"] == []
    assert done("delete", "-w", workspace, "--id", "r2", *FILES)["registered_files"] == ["a.jsonl", "b.jsonl"]
    assert "Registered" not in said("delete", "-w", workspace, "--id", "r3")[-1]


def test_of_an_id_that_was_never_held_only_that_is_told(workspace: Path) -> None:
    first, tag, last = said("audit", "-w", workspace, "--id", "nope")
    assert (first, last) == ("Record nope: never held", "No checkpoint ever saw it.")
    assert len(tag.removeprefix("tag ")) == 64


def test_of_a_held_record_its_place_and_what_served_it_are_told(workspace: Path, tmp_path: Path) -> None:
    document = done("audit", "-w", workspace, "--id", "r1")
    lines = said("audit", "-w", workspace, "--id", "r1")
    assert lines[0] == f"Record r1: present, shard {document['shard']}, slice {document['slice']}"
    (generation,) = document["manifests"]
    assert lines[-1] == f"served in 1 manifest: {generation}"


def test_what_people_said_does_not_steer_the_terminal(workspace: Path) -> None:
    made = done("hold", "-w", workspace, "--id", "r9", "--reason", STEERING)
    done("delete", "-w", workspace, "--id", "r1", "--requester", STEERING)
    for command in (("hold", "--list"), ("tombstones",), ("audit", "--id", STEERING)):
        printed = sisa(command[0], "-w", workspace, *command[1:])
        assert printed.code == 0
        assert "Eve" in printed.out
        assert not any(code in printed.out for code in CODES), command
        assert "\nend" not in printed.out
    (held,) = done("hold", "-w", workspace, "--list")["holds"]
    assert (held["hold_id"], held["reason"]) == (made["hold_id"], STEERING)
    assert done("tombstones", "-w", workspace)["requests"][0]["requester"] == STEERING


def test_an_error_does_not_echo_ids_by_the_screenful(workspace: Path, tmp_path: Path) -> None:
    many = tmp_path / "ids"
    many.write_text("".join(f"{number}-{'x' * 10_000}\n" for number in range(25)))
    result = sisa("delete", "-w", workspace, "--ids-file", many)
    refused(result, "never held: '0-xxx", "(10002 characters)", " and 15 more")
    assert len(result.err) < 2_000
    result = sisa("delete", "-w", workspace, "--subject", "s" * 100_000, "--ignore-missing")
    refused(result, "subjects never held: 'sss", "(100000 characters)")
    assert len(result.err) < 1_000
    result = sisa("delete", "-w", workspace, "--id", "r1", "--request-id", "q" * 100_000)
    refused(result, "request ID", "'qqq", "(100000 characters)")
    assert len(result.err) < 1_000


def test_status_says_whether_the_log_is_anchored(workspace: Path, tmp_path: Path) -> None:
    assert said("status", "-w", workspace)[-1].endswith(" facts, not anchored (see docs/backups.md)")
    anchor = settings(f"anchor={tmp_path / 'anchor'}")
    assert said("status", "-w", workspace, *anchor)[-1].endswith(f" facts, anchored in {tmp_path / 'anchor'}")


def test_status_does_not_tell_one_of_a_thing_as_many(workspace: Path) -> None:
    done("delete", "-w", workspace, "--id", "r1", "--request-id", "req")
    done("hold", "-w", workspace, "--id", "r2")
    lines = said("status", "-w", workspace)
    assert lines[0].startswith("11 records, ")
    assert any(line.startswith("request req: completed, 1 record, accepted ") for line in lines)
    assert "1 legal hold in force, 0 refusals on record" in lines
