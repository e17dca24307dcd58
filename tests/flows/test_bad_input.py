"""Bad input: a clear error with exit 2, and not one byte of the workspace changed."""

from __future__ import annotations

import base64
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.flows.fixtures import Deletion, Site
from tests.flows.helpers import (
    QUICK,
    begin,
    chat,
    copy_of,
    done,
    refused,
    settings,
    sisa,
    ticket,
    unchanged,
    write_jsonl,
)


@pytest.fixture
def untouched(classification: Site, tmp_path: Path) -> Path:
    """A workspace that has ingested nothing."""
    workspace = tmp_path / "untouched"
    labels = ("labels=[billing, login]", f"data=[{classification.data}]")
    begin(workspace, "--task", "classification", "--base-model", classification.base, *settings(*QUICK, *labels))
    return workspace


def without(row: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key != name}


# Each: the lines of the file, and what the message must name.
BAD_LINES: dict[str, tuple[list[Any], tuple[str, ...]]] = {
    "missing ID": ([ticket(20), without(ticket(21), "id")], ("bad.jsonl:2", "no ID")),
    "null ID": ([ticket(20, id=None)], ("bad.jsonl:1", "no ID")),
    "empty ID": ([ticket(20, id="")], ("bad.jsonl:1", "empty")),
    "blank ID": ([ticket(20, id="  \t")], ("bad.jsonl:1", "white space")),
    "ID that is a list": ([ticket(20, id=["a"])], ("bad.jsonl:1", "string or a whole number")),
    "ID that is no Unicode": (['{"id": "\\ud800", "text": "login", "label": "login"}'], ("bad.jsonl:1", "Unicode")),
    "ID twice": ([ticket(20), ticket(21), ticket(20)], ("bad.jsonl:3", "ticket-20-IDCANARY", "twice", "bad.jsonl:1")),
    "ID as number and as text": ([ticket(20, id=7), ticket(21, id="7")], ("bad.jsonl:2", "'7'", "twice")),
    "label outside the list": ([ticket(20, label="shipping")], ("bad.jsonl:1", "shipping")),
    "empty label": ([ticket(20, label="")], ("bad.jsonl:1", "label")),
    "label that is a list": ([ticket(20, label=["login"])], ("bad.jsonl:1", "label")),
    "empty file": ([], ("bad.jsonl", "no records")),
    "blank lines only": (["", "  "], ("bad.jsonl", "no records")),
    "broken JSON": ([ticket(20), '{"id": "x", '], ("bad.jsonl:2", "broken JSON")),
    "JSON nested too deep": (["[" * 100_000], ("bad.jsonl:1", "broken JSON")),
    "a key twice": (['{"id": "x", "id": "y", "text": "login", "label": "login"}'], ("bad.jsonl:1", "twice")),
    "not a number": (['{"id": "x", "text": "login", "label": "login", "risk": NaN}'], ("bad.jsonl:1", "NaN")),
    "a list for a record": (["[1, 2]"], ("bad.jsonl:1", "not an object")),
    "missing text": ([without(ticket(20), "text")], ("bad.jsonl:1", "missing column", "text+label")),
    "missing label": ([without(ticket(20), "label")], ("bad.jsonl:1", "missing column", "text+label")),
    "text that is a number": ([ticket(20, text=5)], ("bad.jsonl:1", "'text'", "string")),
    "text that is no Unicode": (['{"id": "x", "text": "\\ud800", "label": "login"}'], ("bad.jsonl:1", "Unicode")),
    "risk beyond one": ([ticket(20, risk=1.5)], ("bad.jsonl:1", "risk", "from 0 to 1")),
    "a retention of days": ([ticket(20, retention="30 days")], ("bad.jsonl:1", "retention", "'permanent' or empty")),
    "negative generation": ([ticket(20, generation=-1)], ("bad.jsonl:1", "generation")),
    "version zero": ([ticket(20, version=0)], ("bad.jsonl:1", "version")),
    "subject that is a list": ([ticket(20, subject=[])], ("bad.jsonl:1", "subject")),
}


def write_lines(path: Path, lines: list[Any]) -> Path:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


@pytest.mark.parametrize("case", BAD_LINES)
def test_a_wrong_record_refuses_the_whole_file_and_changes_nothing(
    case: str, untouched: Path, classification: Site, tmp_path: Path
) -> None:
    lines, words = BAD_LINES[case]
    bad = write_lines(tmp_path / "bad.jsonl", lines)
    trained = copy_of(classification.path, tmp_path / "trained")
    for workspace in (untouched, trained):
        with unchanged(workspace):
            for command in ("ingest", "train"):
                refused(sisa(command, "-w", workspace, "--data", bad, "--json"), *words)


BAD_CHATS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "empty completion": ({"prompt": "login", "completion": ""}, ("no token to train",)),
    "blank text": ({"text": "  "}, ("no token to train",)),
    "prompt as long as the sequence": (
        {"prompt": "login " * 200, "completion": "yes"},
        ("no token to train within max_length=64",),
    ),
    "prompt alone": ({"prompt": "login"}, ("missing column", "prompt+completion")),
    "no messages": ({"messages": []}, ("messages",)),
    "messages that are text": ({"messages": ["login"]}, ("messages", "role")),
    "messages that end with the user": (
        {"messages": [{"role": "user", "content": "login"}]},
        ("the last of 'messages' must be the assistant's",),
    ),
    "silent assistant": (
        {"messages": [{"role": "user", "content": "login"}, {"role": "assistant", "content": " "}]},
        ("no token to train",),
    ),
}


@pytest.mark.parametrize("case", BAD_CHATS)
def test_a_causal_record_without_a_token_to_train_is_refused(case: str, causal: Site, tmp_path: Path) -> None:
    body, words = BAD_CHATS[case]
    bad = write_jsonl(tmp_path / "bad.jsonl", [chat(20), {"id": "x"} | body])
    with unchanged(causal.path):
        refused(sisa("train", "-w", causal.path, "--data", bad), "bad.jsonl:2", *words)


def test_the_same_id_with_other_content_names_the_way_to_replace_it_and_changes_nothing(
    classification: Site, tmp_path: Path
) -> None:
    other = write_jsonl(tmp_path / "other.jsonl", [ticket(20), ticket(3, text="something else")])
    with unchanged(classification.path):
        result = sisa("train", "-w", classification.path, "--data", other)
        refused(result, "other.jsonl:2", "ticket-3-IDCANARY", "another content", "sisa delete", "--readmit")
    for change in ({"subject": "somebody else"}, {"risk": 0.5}, {"retention": "permanent"}, {"generation": 3}):
        moved = write_jsonl(tmp_path / "moved.jsonl", [ticket(3, **change)])
        with unchanged(classification.path):
            refused(sisa("ingest", "-w", classification.path, "--data", moved), *change)


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("records.txt", b"", (".jsonl, .csv, .parquet",)),
        ("broken.csv", b'id,text,label\nx,"login', ("broken.csv:",)),
        ("short.csv", b"id,text,label\nx,login\n", ("short.csv:2",)),
        ("header.csv", b"id,text,label\n", ("header.csv", "no records")),
        ("latin.csv", "id,text,label\nx,caf\xe9,login\n".encode("latin-1"), ("latin.csv",)),
        ("latin.jsonl", b'{"id": "\xff"}\n', ("latin.jsonl:1", "broken JSON")),
        ("broken.parquet", b"PAR1 and no more", ("broken.parquet",)),
        ("empty.parquet", b"", ("empty.parquet",)),
    ],
)
def test_a_file_that_is_not_its_format_is_refused(
    name: str, data: bytes, words: tuple[str, ...], classification: Site, tmp_path: Path
) -> None:
    bad = tmp_path / name
    bad.write_bytes(data)
    with unchanged(classification.path):
        refused(sisa("ingest", "-w", classification.path, "--data", bad), *words)


def test_a_missing_file_and_a_directory_are_refused(classification: Site, tmp_path: Path) -> None:
    (tmp_path / "directory.jsonl").mkdir()
    with unchanged(classification.path):
        for name in ("nowhere.jsonl", "directory.jsonl"):
            refused(sisa("train", "-w", classification.path, "--data", tmp_path / name), name)


def test_training_without_any_data_file_is_refused(classification: Site, tmp_path: Path) -> None:
    workspace = tmp_path / "workspace"
    arguments = settings(*QUICK, "labels=[billing, login]")
    begin(workspace, "--task", "classification", "--base-model", classification.base, *arguments)
    with unchanged(workspace):
        refused(sisa("train", "-w", workspace), "--data")


# -- deleting -----------------------------------------------------------------------------------


def test_an_unknown_id_is_listed_and_deletes_nothing_unless_ignored(classification: Site, tmp_path: Path) -> None:
    workspace = copy_of(classification.path, tmp_path / "copy")
    ids = ("--id", ticket(1)["id"], "--id", "never-1", "--id", "never-2", "--subject", "nobody")
    for flags in ((), ("--dry-run",)):
        with unchanged(workspace):
            refused(
                sisa("delete", "-w", workspace, *ids, *flags, "--json"),
                "'never-1', 'never-2', 'nobody'",
                "--ignore-missing",
            )
    document = done("delete", "-w", workspace, *ids, "--ignore-missing")
    assert document["ids"] == [ticket(1)["id"]]
    assert document["missing"] == ["never-1", "never-2", "nobody"]
    before = done("status", "-w", workspace)
    nothing = done("delete", "-w", workspace, "--id", "never-1", "--id", "never-3", "--ignore-missing")
    assert (nothing["ids"], nothing["missing"]) == ([], ["never-1", "never-3"])
    after = done("status", "-w", workspace)
    same = ("manifest_digest", "manifest_generation", "shards")
    assert [after[name] for name in same] == [before[name] for name in same], "a statement changes nothing"
    assert done("verify", nothing["certificate"], "-w", workspace, "--replay", "full")["failed"] == 0
    envelope = json.loads(Path(nothing["certificate"]).read_text())["envelope"]
    assert json.loads(base64.b64decode(envelope["payload"]))["predicate"]["statement"] == "not-present"


def test_a_deletion_that_names_nothing_is_refused(classification: Site, tmp_path: Path) -> None:
    empty = tmp_path / "ids.txt"
    empty.write_text("\n\n")
    with unchanged(classification.path):
        refused(sisa("delete", "-w", classification.path), "--id")
        refused(sisa("delete", "-w", classification.path, "--ids-file", empty), "--id")
        refused(sisa("delete", "-w", classification.path, "--id", ""), "never held")
        assert sisa("delete", "-w", classification.path, "--ids-file", tmp_path / "nowhere").code == 2


def test_ids_that_are_not_unicode_are_refused(classification: Site, tmp_path: Path) -> None:
    latin = tmp_path / "ids.txt"
    latin.write_bytes(b"caf\xe9\n")
    with unchanged(classification.path):
        refused(sisa("delete", "-w", classification.path, "--ids-file", latin), "UTF-8")
        for command in ("delete", "audit"):  # an argument that is not UTF-8 reaches Python as a lone surrogate
            refused(sisa(command, "-w", classification.path, "--id", "caf\udce9"), "UTF-8")
            refused(sisa(command, "-w", classification.path, "--subject", "caf\udce9"), "UTF-8")


def test_a_request_id_belongs_to_its_records_alone(deletion: Deletion, tmp_path: Path) -> None:
    workspace = copy_of(deletion.site.path, tmp_path / "copy")
    arguments = ("delete", "-w", workspace, "--request-id", "case-7", "--id")
    assert done(*arguments, ticket(1)["id"])["request_id"] == "case-7"
    assert done(*arguments, ticket(1)["id"])["request_id"] == "case-7"
    with unchanged(workspace):
        refused(sisa(*arguments, ticket(2)["id"]), "case-7")
        for odd in ("../escape", "", ".hidden", "a b", "a/b"):
            refused(sisa("delete", "-w", workspace, "--request-id", odd, "--id", ticket(2)["id"]), repr(odd))


# -- configuration ------------------------------------------------------------------------------


def test_unknown_target_modules_are_refused_before_a_record_is_taken_in(untouched: Path) -> None:
    wrong = settings("target_modules=[query, no_such_layer_x, zzz]")
    only = settings("target_modules=[no_such_layer]")
    with unchanged(untouched):
        for command in ("ingest", "train"):
            refused(sisa(command, "-w", untouched, *only), "no_such_layer", "query", "all-linear")
            refused(sisa(command, "-w", untouched, *wrong), "no_such_layer_x", "zzz")
    assert done("train", "-w", untouched)["steps_trained"] == 4


def test_a_base_model_with_another_digest_is_refused(classification: Site, untouched: Path, tmp_path: Path) -> None:
    altered = copy_of(classification.base, tmp_path / "base")
    weights = altered / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    for workspace in (classification.path, untouched):
        with unchanged(workspace):
            result = sisa("train", "-w", workspace, *settings(f"base_model={altered}"))
            refused(result, "base model with digest", str(altered))
    with unchanged(classification.path):
        refused(sisa("predict", "--text", "x", "-w", classification.path, *settings(f"base_model={altered}")))
    # Forgetting needs no base model, so a deletion is accepted and waits to relearn.
    workspace = copy_of(classification.path, tmp_path / "copy")
    result = sisa("delete", "-w", workspace, "--id", ticket(1)["id"], *settings(f"base_model={altered}"))
    refused(result, "digest", "forgotten already", code=3)


def test_a_tokenizer_with_another_digest_is_refused(classification: Site, tmp_path: Path) -> None:
    altered = copy_of(classification.base, tmp_path / "base")
    with (altered / "tokenizer.json").open("a") as file:
        file.write("\n")
    with unchanged(classification.path):
        result = sisa("train", "-w", classification.path, *settings(f"base_model={altered}"))
        refused(result, "tokenizer with digest")


def test_a_base_model_that_is_not_there_is_refused(classification: Site, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    arguments = ("--task", "classification", "--data", classification.data)
    refused(sisa("init", tmp_path / "workspace", *arguments, "--base-model", empty), "safetensors")
    assert not (tmp_path / "workspace").exists()
    shutil.copy(classification.base / "config.json", empty)
    (empty / "pytorch_model.bin").write_bytes(b"a pickle")
    refused(sisa("init", tmp_path / "workspace", *arguments, "--base-model", empty), "pickled")
    with unchanged(classification.path):
        refused(sisa("train", "-w", classification.path, *settings(f"base_model={empty}")), "safetensors")


def test_a_misspelt_key_is_refused_with_the_likely_one(classification: Site, untouched: Path) -> None:
    for workspace in (classification.path, untouched):
        for command in ("train", "ingest", "status", "delete --id x", "predict --text x"):
            name, *rest = command.split()
            with unchanged(workspace):
                refused(sisa(name, *rest, "-w", workspace, "--set", "epochz=2"), "'epochz'", "did you mean 'epochs'?")
    config = untouched / "sisa.yaml"
    config.write_text(config.read_text().replace("\nepochs:", "\nepohcs:"))
    with unchanged(untouched):
        refused(sisa("train", "-w", untouched), "epohcs", "epochs", str(config))


@pytest.mark.parametrize(
    "pair",
    [
        "epochs=0", "epochs=two", "epochs=1.5", "epochs=true", "rehearsal=2", "rehearsal=.nan", "learning_rate=-1",
        "learning_rate=.inf", "shards=0", "lora_dropout=1", "dtype=float16", "labels=[a]", "labels=[a, a]", "labels=7",
        "executor=slurm", "workers=0", "columns=[id]", "epochs=[", "bytes_version=99", "epochs",
    ],
)  # fmt: skip
def test_a_value_out_of_range_is_refused(pair: str, untouched: Path) -> None:
    with unchanged(untouched):
        refused(sisa("train", "-w", untouched, "--set", pair), pair.partition("=")[0])


@pytest.mark.parametrize("pair", ["epochs=2", "shards=3", "lora_rank=4", "labels=[login, billing]", "threads=2"])
def test_another_recipe_after_the_first_ingest_is_refused(pair: str, classification: Site, tmp_path: Path) -> None:
    key = pair.partition("=")[0]
    with unchanged(classification.path):
        for command in ("train", "ingest", "status", f"delete --id {ticket(1)['id']}", "predict --text x"):
            name, *rest = command.split()
            refused(sisa(name, *rest, "-w", classification.path, "--set", pair), "pinned", key)
    workspace = copy_of(classification.path, tmp_path / "copy")
    config = workspace / "sisa.yaml"
    lines = [
        f"{key}: {pair.partition('=')[2]}" if line.startswith(f"{key}:") else line
        for line in config.read_text().splitlines()
    ]
    config.write_text("\n".join(lines))
    with unchanged(workspace):
        refused(sisa("train", "-w", workspace), "pinned", key)


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "epochs: [", "epochs: 1\nepochs: 2\n", "just words"])
def test_a_broken_configuration_file_is_refused(text: str, untouched: Path) -> None:
    (untouched / "sisa.yaml").write_text(text)
    with unchanged(untouched):
        refused(sisa("train", "-w", untouched), "sisa.yaml")


def test_a_configuration_that_is_not_utf8_is_refused(untouched: Path) -> None:
    (untouched / "sisa.yaml").write_bytes(b"namespace: caf\xe9\n")
    with unchanged(untouched):
        refused(sisa("train", "-w", untouched), "sisa.yaml")


# -- workspaces ---------------------------------------------------------------------------------


def test_a_second_init_is_refused(classification: Site, tmp_path: Path) -> None:
    arguments = ("--task", "classification", "--base-model", classification.base, "--data", classification.data)
    with unchanged(classification.path):
        refused(sisa("init", classification.path, *arguments), "sisa.yaml", "another directory")
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine.txt").write_text("mine")
    with unchanged(full):
        refused(sisa("init", full, *arguments), "empty or new directory")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--base-model", "x", "--task", "causal-lm"), ("hub ID",)),
        (("--task", "causal-lm"), ("--base-model",)),
        ((), ("--task",)),
        (("--task", "classification"), ("label list",)),
        (("--task", "classification", "--set", "epochz=1"), ("epochz",)),
        (("--task", "classification", "--set", "labels=[a, b]", "--shards", "0"), ("shards",)),
    ],
)
def test_an_init_that_is_refused_leaves_no_directory(
    flags: tuple[str, ...], words: tuple[str, ...], tmp_path: Path
) -> None:
    with unchanged(tmp_path):
        refused(sisa("init", tmp_path / "workspace", *flags), *words)
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_record_refuses_init(classification: Site, tmp_path: Path) -> None:
    bad = write_lines(tmp_path / "bad.jsonl", [ticket(20), "{"])
    arguments = ("--task", "classification", "--base-model", classification.base, "--data", bad)
    refused(sisa("init", tmp_path / "workspace", *arguments), "bad.jsonl:2")
    assert list(tmp_path.iterdir()) == [bad]


@pytest.mark.parametrize(
    "flags",
    [
        ("--task", "causal-lm"),
        ("--shards", "3"),
        ("--slices", "9"),
        ("--set", "namespace=other"),
        ("--set", "epochs=5"),
    ],
)
def test_a_flag_that_contradicts_keys_from_is_refused(
    flags: tuple[str, ...], classification: Site, tmp_path: Path
) -> None:
    with unchanged(classification.path):
        refused(sisa("init", tmp_path / "fresh", "--keys-from", classification.path, *flags), "--keys-from")
    assert not (tmp_path / "fresh").exists()


def test_a_flag_that_repeats_keys_from_is_taken(classification: Site, tmp_path: Path) -> None:
    flags = ("--shards", "2", "--task", "classification", *settings("epochs=1"))
    done("init", tmp_path / "fresh", "--keys-from", classification.path, *flags)


def test_keys_from_something_else_is_refused(tmp_path: Path) -> None:
    refused(sisa("init", tmp_path / "fresh", "--keys-from", tmp_path), "sisa.yaml")
    assert not (tmp_path / "fresh").exists()


@pytest.mark.parametrize("command", ["status", "train", "audit --all", "delete --id x", "predict --text x", "ingest"])
def test_a_directory_that_is_no_workspace_is_refused(command: str, tmp_path: Path) -> None:
    name, *rest = command.split()
    with unchanged(tmp_path):
        refused(sisa(name, *rest, "-w", tmp_path / "nowhere"), "sisa init")
        refused(sisa(name, *rest, "-w", tmp_path), "sisa init")


def test_questions_before_the_first_ingest_get_an_answer(untouched: Path) -> None:
    assert done("status", "-w", untouched)["manifest_digest"] is None
    assert done("audit", "-w", untouched, "--all")["failed"] == 0
    with unchanged(untouched):
        for command in ("audit --id x", "audit --shard 0", "audit --subject x", "delete --id x", "predict --text x"):
            name, *rest = command.split()
            refused(sisa(name, *rest, "-w", untouched), "sisa train")


def test_an_audit_asks_one_question(classification: Site) -> None:
    assert sisa("audit", "-w", classification.path).code == 2
    assert sisa("audit", "-w", classification.path, "--all", "--shard", "1").code == 2
    refused(sisa("audit", "-w", classification.path, "--shard", "9"), "from 0 to 1")
    refused(sisa("audit", "-w", classification.path, "--shard", "-1"), "from 0 to 1")
    refused(sisa("audit", "-w", classification.path, "--checkpoint", "zz"), "0 that begin with 'zz'")
    refused(sisa("audit", "-w", classification.path, "--checkpoint", ""), "that begin with ''")


def test_an_id_never_held_is_audited_as_such(classification: Site) -> None:
    document = done("audit", "-w", classification.path, "--id", "never")
    assert (document["present"], document["deleted"], document["exposures"]) == (False, False, [])
    assert "never held" in sisa("audit", "-w", classification.path, "--id", "never").out


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("", ("at least one input",)),
        ('{"text": "a"}\n{"text": ', ("line 2",)),
        ('{"id": 1}\n', ("line 1", "text")),
        ("[1]\n", ("line 1",)),
        ('{"text": 5}\n', ("line 1", "string")),
        ('{"text": null}\n', ("line 1", "string")),
        ('{"text": "\\ud800"}\n', ("line 1", "Unicode")),
        ("[" * 100_000 + "\n", ("line 1",)),
    ],
)
def test_inputs_that_cannot_be_predicted_are_refused(
    lines: str, words: tuple[str, ...], classification: Site, causal: Site, tmp_path: Path
) -> None:
    source = tmp_path / "input.jsonl"
    source.write_text(lines)
    for site in (classification, causal):
        with unchanged(site.path):
            refused(sisa("predict", "-w", site.path, "--input", source), *words)


@pytest.mark.parametrize("messages", ["login", [], [5], [{"role": "user"}], [{"role": "user", "content": 5}]])
def test_messages_that_are_no_conversation_are_not_predicted(messages: Any, causal: Site) -> None:
    line = json.dumps({"messages": messages})
    refused(sisa("predict", "-w", causal.path, "--input", "-", stdin=line), "line 1", "messages")


def test_an_input_file_that_is_not_utf8_is_refused(classification: Site, tmp_path: Path) -> None:
    source = tmp_path / "input.jsonl"
    source.write_bytes(b'{"text": "caf\xe9"}\n')
    refused(sisa("predict", "-w", classification.path, "--input", source), "UTF-8")


def test_predict_takes_one_source(classification: Site, tmp_path: Path) -> None:
    assert sisa("predict", "-w", classification.path).code == 2
    assert sisa("predict", "-w", classification.path, "--text", "a", "--input", "-").code == 2
    assert sisa("predict", "-w", classification.path, "--input", tmp_path / "nowhere").code == 2


def test_unknown_commands_and_options_are_usage_errors() -> None:
    for arguments in (("unknown",), ("status", "--unknown"), ("train", "--workers", "0"), ("train", "--executor", "x")):
        result = sisa(*arguments)
        assert (result.code, result.out) == (2, "")
        assert "Usage:" in result.err


# -- no errors ----------------------------------------------------------------------------------


def test_a_text_longer_than_the_sequence_is_counted_reported_and_recorded(untouched: Path, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "long.jsonl", [ticket(30), ticket(31, text="login " * 500)])
    assert done("ingest", "-w", untouched, "--data", data)["truncated"] == 1
    assert done("audit", "-w", untouched, "--id", ticket(31)["id"])["truncated"] is True
    assert done("audit", "-w", untouched, "--id", ticket(30)["id"])["truncated"] is False
    more = write_jsonl(tmp_path / "more.jsonl", [ticket(32, text="refund " * 500)])
    assert "1 longer than max_length" in sisa("train", "-w", untouched, "--data", more).out


def test_a_deleted_record_is_left_out_and_counted_and_strict_refuses_it(deletion: Deletion, tmp_path: Path) -> None:
    workspace = copy_of(deletion.path, tmp_path / "copy")
    with unchanged(workspace):
        document = done("train", "-w", workspace)
        assert (document["ingested"]["tombstoned"], document["ingested"]["unchanged"]) == (2, 14)
        refused(sisa("train", "-w", workspace, "--strict"), *deletion.ids, "--strict")


def test_new_records_join_and_the_old_ones_are_no_change(classification: Site, tmp_path: Path) -> None:
    workspace = copy_of(classification.path, tmp_path / "copy")
    data = write_jsonl(tmp_path / "more.jsonl", [ticket(n) for n in range(14, 18)])
    document = done("train", "-w", workspace, "--data", data)
    assert (document["ingested"]["added"], document["ingested"]["unchanged"]) == (2, 2)
    assert done("audit", "-w", workspace, "--id", ticket(16)["id"])["generation"] == 1
