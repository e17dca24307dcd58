"""The three flows end to end, as a user walks them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import pytest

from sisa.cli import cli
from tests.flows.fixtures import Site
from tests.flows.helpers import (
    QUICK,
    begin,
    chat,
    copy_of,
    done,
    outcomes,
    same_models,
    settings,
    sisa,
    ticket,
    tree,
    unchanged,
    write_jsonl,
)

HEX = set("0123456789abcdef")


def is_digest(value: Any) -> bool:
    return isinstance(value, str) and len(value) == 64 and set(value) <= HEX


@pytest.mark.parametrize("task", ["classification", "causal-lm"])
def test_the_whole_walk_ends_with_the_fresh_run(task: str, tmp_path: Path, tiny_bert: Path, tiny_llama: Path) -> None:
    base, make = (tiny_bert, ticket) if task == "classification" else (tiny_llama, chat)
    data = write_jsonl(tmp_path / "records.jsonl", [make(n) for n in range(12)])
    workspace = tmp_path / "workspace"

    made = begin(workspace, "--task", task, "--base-model", base, "--data", data, *settings(*QUICK))
    assert made["workspace"] == str(workspace)
    assert done("status", "-w", workspace)["records"] == 0, "init ingests nothing"

    trained = done("train", "-w", workspace, "--executor", "inline")
    assert trained["ingested"] == {
        "added": 12,
        "unchanged": 0,
        "tombstoned": 0,
        "truncated": trained["ingested"]["truncated"],
        "files_missing": [],
        "same_content": [],
        "readmitted": 0,
        "joined_trunk": 0,
    }
    before = check_status(workspace)
    check_prediction(workspace, task)

    gone = make(3)["id"]
    exposed = check_audit(workspace, gone, present=True)
    assert {seen["live"] for seen in exposed["exposures"]} == {True}

    with unchanged(workspace):
        dry = done("delete", "-w", workspace, "--id", gone, "--dry-run")
    check_deletion(dry, [gone])
    assert dry["certificate"] is None

    certificate = tmp_path / "certificate.json"
    deleted = done("delete", "--id", gone, "--certificate", certificate, "-w", workspace)
    check_deletion(deleted, [gone])
    assert deleted["impact"] == dry["impact"], "a dry run says what happens"
    assert Path(deleted["certificate"]).read_bytes() == certificate.read_bytes()

    forgotten = check_audit(workspace, gone, present=False)
    assert {seen["live"] for seen in forgotten["exposures"]} == {False}
    assert {seen["checkpoint"] for seen in forgotten["exposures"]} == set(deleted["impact"]["shards"][0]["purged"])
    after = check_status(workspace)
    assert after["manifest_digest"] != before["manifest_digest"]
    assert [request["state"] for request in after["requests"]] == ["completed"]
    check_prediction(workspace, task)

    key = workspace / "keys" / "signing.pub"
    evidence: tuple[list[str | Path], ...] = (
        [],
        ["--public-key", key],
        ["-w", workspace],
        ["-w", workspace, "--public-key", key, "--replay", "affected"],
        ["-w", workspace, "--public-key", key, "--replay", "full"],
    )
    for arguments in evidence:
        with unchanged(workspace):
            check_verification(done("verify", certificate, *arguments))
    full = done("verify", certificate, "-w", workspace, "--public-key", key, "--replay", "full")
    assert outcomes(full)["it was signed by the operator"] == "passed"
    assert [check["outcome"] for check in full["checks"] if check["level"] == "V4"] == ["passed", "passed"]

    survivors, fresh = tmp_path / "survivors.jsonl", tmp_path / "fresh"
    assert done("export", "-w", workspace, "--records", survivors)["records"] == 11
    done("init", fresh, "--keys-from", workspace)
    assert (fresh / "keys/signing.key").read_bytes() != (workspace / "keys/signing.key").read_bytes()
    done("train", "-w", fresh, "--data", survivors)
    same_models(workspace, fresh)


def check_status(workspace: Path) -> Any:
    """The ``status`` document of the design, and adapters that any PEFT user can load."""
    document = done("status", "-w", workspace)
    assert isinstance(document["manifest_generation"], int)
    assert is_digest(document["manifest_digest"])
    assert isinstance(document["storage_bytes"], int)
    assert isinstance(document["requests"], list)
    for number, shard in enumerate(document["shards"]):
        assert shard["shard"] == number
        assert shard["records"] == sum(part["records"] for part in shard["slices"])
        for part in shard["slices"]:
            assert isinstance(part["slice"], int)
            assert is_digest(part["checkpoint"])
        head = shard["head"]
        assert head["checkpoint"] == shard["slices"][-1]["checkpoint"]
        assert head["slice"] == shard["slices"][-1]["slice"]
        assert is_digest(head["tensor_digest"])
        directory = Path(head["adapter_dir"])
        assert directory.is_absolute()
        assert {file.name for file in directory.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
        assert json.loads((directory / "adapter_config.json").read_text())["peft_type"] == "LORA"
    return document


def check_audit(workspace: Path, record_id: str, *, present: bool) -> Any:
    document = done("audit", "--id", record_id, "-w", workspace)
    assert document["id"] == record_id
    assert is_digest(document["tag"])
    assert (document["present"], document["deleted"]) == (present, not present)
    assert isinstance(document["shard"], int)
    assert isinstance(document["slice"], int)
    assert isinstance(document["derived"], list)
    assert document["exposures"]
    for seen in document["exposures"]:
        assert is_digest(seen["checkpoint"])
        assert isinstance(seen["slice"], int)
        assert isinstance(seen["live"], bool)
        assert isinstance(seen["epochs"], int)
        assert isinstance(seen["created"], str)
    return document


def check_deletion(document: Any, ids: list[str]) -> None:
    assert document["ids"] == ids
    assert isinstance(document["seconds"], float)
    assert 0 < document["impact"]["retrained_share"] < 1
    for shard in document["impact"]["shards"]:
        assert {name: type(shard[name]) for name in ("shard", "first_slice", "steps")} == {
            "shard": int,
            "first_slice": int,
            "steps": int,
        }
        assert all(map(is_digest, shard["purged"]))


def check_verification(document: Any) -> None:
    assert document["failed"] == 0
    counts = dict.fromkeys(("passed", "failed", "not_checked"), 0)
    for check in document["checks"]:
        assert set(check) >= {"level", "name", "outcome", "detail"}
        assert check["level"] in {"V0", "V1", "V2", "V3", "V4"}
        counts[check["outcome"]] += 1
    assert {name: document[name] for name in counts} == counts
    assert counts["passed"] > 0


def check_prediction(workspace: Path, task: str) -> None:
    """One JSON line a record, with ``--json`` too, from --text, a file and standard input."""
    rows = '{"id": "a", "text": "the login fails"}\n\n{"text": "please send a refund"}\n'
    lines = [json.loads(line) for line in sisa("predict", "-w", workspace, "--input", "-", stdin=rows).out.splitlines()]
    assert [line["id"] for line in lines] == ["a", None]
    single = sisa("predict", "--text", "the login fails", "-w", workspace, "--json")
    assert single.code == 0, single.err
    (line,) = single.out.splitlines()
    one = json.loads(line)
    for answer in [*lines, one]:
        if task == "classification":
            assert set(answer) == {"id", "label", "probabilities", "generation"}
            assert set(answer["probabilities"]) == {"billing", "login"}
            assert sum(answer["probabilities"].values()) == pytest.approx(1)
            assert answer["probabilities"][answer["label"]] == max(answer["probabilities"].values())
        else:
            assert set(answer) == {"id", "text", "generation"}
            assert isinstance(answer["text"], str)


@pytest.mark.parametrize("task", ["classification", "causal-lm"])
def test_a_second_train_trains_nothing_and_changes_no_file(
    task: str, classification: Site, causal: Site, tmp_path: Path
) -> None:
    workspace = copy_of((classification if task == "classification" else causal).path, tmp_path / "copy")
    with unchanged(workspace):
        document = done("train", "-w", workspace)
    assert document["steps_trained"] == 0
    assert document["ingested"]["unchanged"] == 16


def test_deleting_again_gives_the_same_request_and_certificate(classification: Site, tmp_path: Path) -> None:
    workspace = copy_of(classification.path, tmp_path / "copy")
    arguments = ("delete", "-w", workspace, "--id", ticket(1)["id"])
    first = done(*arguments)
    with unchanged(workspace):
        again = done(*arguments)
    assert [again[name] for name in ("request_id", "certificate", "ids")] == [
        first[name] for name in ("request_id", "certificate", "ids")
    ]


def test_ids_can_come_from_a_file_standard_input_and_a_subject(classification: Site, tmp_path: Path) -> None:
    workspace = classification.path
    listed = tmp_path / "ids.txt"
    listed.write_text(f"{ticket(1)['id']}\r\n\n{ticket(2)['id']}\n")
    impact = done("delete", "-w", workspace, "--ids-file", listed, "--dry-run")
    assert impact["ids"] == [ticket(1)["id"], ticket(2)["id"]]
    piped = done("delete", "-w", workspace, "--ids-file", "-", "--dry-run", stdin=listed.read_text())
    assert (piped["ids"], piped["impact"]) == (impact["ids"], impact["impact"])
    owned = done("delete", "-w", workspace, "--subject", ticket(4)["subject"], "--dry-run")
    assert sorted(owned["ids"]) == sorted([ticket(4)["id"], ticket(5)["id"]])


def test_every_later_certificate_leaves_the_earlier_ones_valid(classification: Site, tmp_path: Path) -> None:
    workspace = copy_of(classification.path, tmp_path / "copy")
    certificates = []
    for number in (0, 1, 6, 7, 9):
        certificates.append(tmp_path / f"{number}.json")
        done("delete", "-w", workspace, "--id", ticket(number)["id"], "--certificate", certificates[-1])
    for certificate in certificates:
        key = workspace / "keys/signing.pub"
        document = done("verify", certificate, "-w", workspace, "--public-key", key, "--replay", "affected")
        assert document["failed"] == 0
    assert done("audit", "-w", workspace, "--all")["failed"] == 0


def test_emptying_a_shard_and_then_everything_is_visible_and_certified(classification: Site, tmp_path: Path) -> None:
    workspace = copy_of(classification.path, tmp_path / "copy")
    places = {ticket(n)["id"]: done("audit", "-w", workspace, "--id", ticket(n)["id"])["shard"] for n in range(16)}
    for shard in (0, 1):
        ids = [part for name, place in places.items() if place == shard for part in ("--id", name)]
        certificate = tmp_path / f"{shard}.json"
        done("delete", "-w", workspace, *ids, "--certificate", certificate)
        document = done("status", "-w", workspace)["shards"][shard]
        assert (document["records"], document["slices"], document["head"]) == (0, [], None)
        verified = done("verify", certificate, "-w", workspace, "--replay", "full")
        assert verified["failed"] == 0
    nothing = sisa("predict", "-w", workspace, "--text", "login")
    assert nothing.code == 2
    assert "none is served" in nothing.err


def test_predictions_written_to_a_file_are_found_by_an_audit_and_named_in_the_certificate(
    classification: Site, tmp_path: Path
) -> None:
    workspace = copy_of(classification.path, tmp_path / "copy")
    output, certificate = tmp_path / "answers.jsonl", tmp_path / "certificate.json"
    before = done("audit", "-w", workspace, "--id", ticket(1)["id"])["derived"]  # by other tests on this site
    result = sisa("predict", "-w", workspace, "--text", "login", "--output", output)
    assert (result.code, result.out) == (0, "")
    assert json.loads(output.read_text())["label"] in {"billing", "login"}
    after = done("audit", "-w", workspace, "--id", ticket(1)["id"])["derived"]
    (derived,) = [each for each in after if each not in before]
    assert derived["kind"] == "predictions"
    done("delete", "-w", workspace, "--id", ticket(1)["id"], "--certificate", certificate)
    assert done("verify", certificate, "-w", workspace)["failed"] == 0


def test_audit_of_subject_shard_and_checkpoint_agree_with_the_record(classification: Site) -> None:
    workspace = classification.path
    record = done("audit", "-w", workspace, "--id", ticket(4)["id"])
    subject = done("audit", "-w", workspace, "--subject", ticket(4)["subject"])
    assert record in subject["records"]
    shard = done("audit", "-w", workspace, "--shard", str(record["shard"]))
    assert record["tag"] in {
        tag for part in shard["slices"] for tag in part["tags"] if part["slice"] == record["slice"]
    }
    for seen in record["exposures"]:
        checkpoint = done("audit", "-w", workspace, "--checkpoint", seen["checkpoint"][:20])
        assert record["tag"] in checkpoint["trained" if seen["epochs"] else "inherited"]
    assert done("audit", "-w", workspace, "--all")["failed"] == 0


def test_reading_commands_change_no_file(deletion: Any) -> None:
    with unchanged(deletion.path):
        for arguments in (
            ("status",),
            ("audit", "--all"),
            ("audit", "--id", deletion.ids[0]),
            ("audit", "--subject", ticket(4)["subject"]),
            ("audit", "--shard", "0"),
        ):
            done(*arguments, "-w", deletion.path)
            assert sisa(*arguments, "-w", deletion.path).code == 0
        assert sisa("predict", "--text", "login", "-w", deletion.path).code == 0
        assert sisa("verify", deletion.certificate, "-w", deletion.path).code == 0


def test_the_words_for_people_name_what_was_done(classification: Site, tmp_path: Path) -> None:
    workspace = copy_of(classification.path, tmp_path / "copy")
    assert "Dry run" in sisa("delete", "-w", workspace, "--id", ticket(1)["id"], "--dry-run").out
    assert "Certificate:" in sisa("delete", "-w", workspace, "--id", ticket(1)["id"]).out
    assert "deleted" in sisa("audit", "-w", workspace, "--id", ticket(1)["id"]).out
    assert "completed" in sisa("status", "-w", workspace).out
    assert "slice steps" in sisa("train", "-w", workspace).out


def test_brackets_in_an_id_are_text_and_never_markup(classification: Site, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "odd.jsonl", [ticket(40, id="[/red]", subject="[bold]")])
    workspace = copy_of(classification.path, tmp_path / "copy")
    done("train", "-w", workspace, "--data", data)
    audited = sisa("audit", "-w", workspace, "--id", "[/red]")
    assert (audited.code, "[/red]" in audited.out) == (0, True)
    missing = sisa("delete", "-w", workspace, "--id", "[/red]", "--id", "[/never]", "--ignore-missing", "--dry-run")
    assert (missing.code, "[/never]" in missing.out) == (0, True)
    made = sisa("init", tmp_path / "[bold]", "--keys-from", workspace)
    assert (made.code, "[bold]" in made.out) == (0, True)


def test_every_command_and_option_has_help() -> None:
    for name, command in cli.commands.items():
        assert command.help, name
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                assert parameter.help, f"{name} {parameter.name}"
        result = sisa(name, "--help")
        assert result.code == 0
        assert "Usage:" in result.out
    assert sisa("--version").code == 0


def test_every_line_of_the_configuration_is_explained_and_read_back(classification: Site) -> None:
    import yaml

    from sisa.config import known_keys

    text = (classification.path / "sisa.yaml").read_text()
    assert set(yaml.safe_load(text)) == known_keys()
    lines = text.splitlines()
    for key in known_keys():
        at = next(number for number, line in enumerate(lines) if line.startswith(f"{key}:"))
        assert lines[at - 2].startswith("# "), key
        for word in ("type:", "default:", "recipe"):
            assert word in lines[at - 1], key


def test_a_workspace_moved_elsewhere_goes_on_working(classification: Site, tmp_path: Path) -> None:
    moved = copy_of(classification.path, tmp_path / "elsewhere")
    assert tree(moved) == tree(classification.path)
    document = done("status", "-w", moved)
    assert all(shard["head"]["adapter_dir"].startswith(str(moved)) for shard in document["shards"])
    assert done("train", "-w", moved)["steps_trained"] == 0
