"""The commands about people, keys and backups, as typed: exit codes, JSON, and what lands in which file.

The toy trainer stands in for the real one, so that none of this needs torch.
"""

from __future__ import annotations

import shutil
import stat
from pathlib import Path

import pytest

from tests.flows.helpers import done, failed, outcomes, refused, settings, sisa, unchanged
from tests.sisa.trained import configured, rows


@pytest.fixture
def workspace(memory_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A trained toy workspace with a configuration that the command line can read."""
    return configured(memory_path / "workspace", monkeypatch)


def mode(file: Path) -> int:
    return stat.S_IMODE(file.stat().st_mode)


def test_a_person_checks_that_the_certificate_is_about_their_record(workspace: Path, tmp_path: Path) -> None:
    receipt, certificate = tmp_path / "receipt.json", tmp_path / "certificate.json"
    done("receipt", "-w", workspace, "--id", "r1", "--output", receipt)
    assert mode(receipt) == 0o600
    done("delete", "-w", workspace, "--id", "r1", "--certificate", certificate)
    key = workspace / "keys" / "signing.pub"
    document = done("verify", certificate, "--public-key", key, "--receipt", receipt)
    assert outcomes(document)["the tags belong to the reader's record"] == "passed"
    refused(sisa("receipt", "-w", workspace, "--id", "r1", "--output", tmp_path / "late.json"), "'r1'")
    assert not (tmp_path / "late.json").exists()
    refused(sisa("verify", certificate, "--receipt", certificate), "receipt")


def test_a_receipt_is_not_left_in_the_workspace(workspace: Path) -> None:
    with unchanged(workspace):
        result = sisa("receipt", "-w", workspace, "--id", "r1", "--output", workspace / "receipt.json")
    refused(result, "outside the workspace")


def test_an_auditor_checks_with_the_tag_key(workspace: Path, tmp_path: Path) -> None:
    key, certificate = tmp_path / "tag.key", tmp_path / "certificate.json"
    assert sisa("key", "tag-key", "-w", workspace, "--output", key).code == 0
    assert mode(key) == 0o600
    done("delete", "-w", workspace, "--id", "r1", "--certificate", certificate)
    arguments = ("verify", certificate, "--tag-key", key)
    assert outcomes(done(*arguments, "--id", "r1"))["the tags belong to the reader's record"] == "passed"
    other = sisa(*arguments, "--id", "r2", "--json")
    assert (other.code, failed(other.document)) == (1, {"the tags belong to the reader's record"})
    assert sisa(*arguments).code == 2
    key.chmod(0o644)
    refused(sisa(*arguments, "--id", "r1"), "0600")


def test_a_signing_key_is_rotated_and_both_certificates_verify(workspace: Path, tmp_path: Path) -> None:
    old = Path(shutil.copy(workspace / "keys" / "signing.pub", tmp_path / "old.pub"))
    done("delete", "-w", workspace, "--id", "r1", "--certificate", tmp_path / "one.json")
    document = done("key", "rotate", "-w", workspace)
    new = Path(document["public_key"])
    done("delete", "-w", workspace, "--id", "r2", "--certificate", tmp_path / "two.json")
    done("verify", tmp_path / "one.json", "--public-key", old)
    done("verify", tmp_path / "two.json", "--public-key", new)
    done("verify", tmp_path / "two.json", "--public-key", old, "--public-key", new, "-w", workspace)
    assert sisa("verify", tmp_path / "two.json", "--public-key", old).code == 1
    done("key", "rotate", "-w", workspace, "--stolen")
    told = done("key", "list", "-w", workspace)["keys"]
    assert [key["reason"] for key in told] == ["first", "planned", "stolen"]


def test_a_reader_learns_whether_the_release_is_still_the_current_one(workspace: Path, tmp_path: Path) -> None:
    certificate, head, extension = tmp_path / "certificate.json", tmp_path / "head", tmp_path / "extension.json"
    key = workspace / "keys" / "signing.pub"
    done("delete", "-w", workspace, "--id", "r1", "--certificate", certificate)

    def fresh() -> str:
        assert sisa("log", "head", "-w", workspace, "--output", head).code == 0
        arguments = ("--certificate", certificate, "--output", extension)
        assert sisa("log", "extension", "-w", workspace, *arguments).code == 0
        result = sisa("verify", certificate, "--public-key", key, "--head", head, "--extension", extension, "--json")
        return outcomes(result.document)["the certified release is the current one"]

    assert fresh() == "passed"
    done("hold", "-w", workspace, "--id", "r5")
    assert fresh() == "passed"
    done("delete", "-w", workspace, "--id", "r2")
    assert fresh() == "failed"
    assert sisa("log", "extension", "-w", workspace).code == 2
    refused(sisa("log", "extension", "-w", workspace, "--from", "0"), "log's size")


def test_a_hold_refuses_a_deletion_with_exit_code_3_until_it_is_lifted(workspace: Path, tmp_path: Path) -> None:
    made = done("hold", "-w", workspace, "--subject", "s0", "--reason", "lawsuit", "--requester", "Court")
    refused(sisa("delete", "-w", workspace, "--id", "r1", "--request-id", "req"), made["hold_id"], "--lift", code=3)
    (listed,) = done("hold", "-w", workspace, "--list")["holds"]
    assert (listed["records"], listed["reason"], listed["requester"]) == (3, "lawsuit", "Court")
    letter = sisa("letter", "-w", workspace, "--request", "req")
    assert (letter.code, "Reason: a legal hold" in letter.out) == (0, True)
    done("hold", "-w", workspace, "--lift", made["hold_id"])
    done("delete", "-w", workspace, "--id", "r1", "--request-id", "req", "--requester", "Anna")
    file = tmp_path / "letter.txt"
    assert sisa("letter", "-w", workspace, "--request", "req", "--output", file).code == 0
    assert file.read_text().startswith("Dear Anna,")
    assert mode(file) == 0o600
    assert sisa("hold", "-w", workspace).code == 2
    refused(sisa("hold", "-w", workspace, "--lift", "hold-0"), "hold-0")


def test_a_refusal_needs_its_reason(workspace: Path) -> None:
    with unchanged(workspace):
        refused(sisa("refuse", "-w", workspace, "--id", "r1"), "reason")
    made = done("refuse", "-w", workspace, "--id", "r1", "--reason", "tax law", "--request-id", "req")
    assert "tax law" in sisa("letter", "-w", workspace, "--request", made["refusal_id"]).out


def test_a_deleted_record_comes_back_only_when_somebody_says_so(workspace: Path, tmp_path: Path) -> None:
    file = rows(tmp_path / "again.jsonl", 1)
    done("delete", "-w", workspace, "--id", "r1")
    assert done("train", "-w", workspace, "--data", file)["ingested"]["tombstoned"] == 1
    refused(sisa("ingest", "-w", workspace, "--data", file, "--strict"), "'r1'")
    assert done("train", "-w", workspace, "--data", file, "--readmit", "r1")["ingested"]["readmitted"] == 1
    assert done("audit", "-w", workspace, "--id", "r1")["present"]


def test_tombstones_are_destroyed_only_when_that_is_confirmed(workspace: Path) -> None:
    done("delete", "-w", workspace, "--id", "r1", "--request-id", "req", "--requester", "Anna")
    (listed,) = done("tombstones", "-w", workspace)["requests"]
    assert (listed["request_id"], listed["requester"], listed["retired"]) == ("req", "Anna", False)
    with unchanged(workspace):
        assert sisa("tombstones", "-w", workspace, "--retire", "0").code == 2
        assert sisa("tombstones", "-w", workspace, "--destroy-keys").code == 2
        assert sisa("tombstones", "-w", workspace, "--retire", "0", "--destroy-keys", "--yes").code == 2
    assert done("tombstones", "-w", workspace, "--retire", "0", "--yes") == {"retired": ["req"]}
    (listed,) = done("tombstones", "-w", workspace)["requests"]
    assert listed["retired"]
    done("audit", "-w", workspace, "--all")


def test_once_a_namespace_ended_every_command_says_so(workspace: Path, tmp_path: Path) -> None:
    certificate = tmp_path / "certificate.json"
    key = shutil.copy(workspace / "keys" / "signing.pub", tmp_path / "signing.pub")
    refused(sisa("tombstones", "-w", workspace, "--destroy-keys", "--yes"), "12 records")
    everything = [part for number in range(12) for part in ("--id", f"r{number}")]
    done("delete", "-w", workspace, *everything, "--certificate", certificate)
    done("tombstones", "-w", workspace, "--destroy-keys", "--yes")
    for command in (("status",), ("train",), ("delete", "--id", "r1"), ("audit", "--all"), ("tombstones",)):
        refused(sisa(command[0], "-w", workspace, *command[1:]), "namespace ended on", "file and public key")
    done("verify", certificate, "--public-key", key)


def test_a_restored_backup_is_refused_and_recovered(workspace: Path, tmp_path: Path) -> None:
    anchor = settings(f"anchor={tmp_path / 'anchor'}")
    done("train", "-w", workspace, *anchor)
    shutil.copytree(workspace, tmp_path / "backup")
    done("delete", "-w", workspace, "--id", "r1", "--request-id", "req", *anchor)
    shutil.rmtree(workspace)
    shutil.copytree(tmp_path / "backup", workspace)
    refused(sisa("delete", "-w", workspace, "--id", "r2", *anchor), "older state", "sisa recover", code=1)
    audit = sisa("audit", "-w", workspace, "--all", *anchor, "--json")
    assert (audit.code, failed(audit.document)) == (1, {"the ledger is not older than its anchor"})
    document = done("recover", "-w", workspace, *anchor)
    assert document["reapplied"] == ["req"]
    assert done("audit", "-w", workspace, "--id", "r1")["present"] is False
    done("audit", "-w", workspace, "--all", *anchor)
    refused(sisa("recover", "-w", workspace), "none in sisa.yaml")
