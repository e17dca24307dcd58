"""Local task files become lm-eval's tasks; lm-eval itself is asked where it is installed."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from shards.errors import ConfigError, InputError, MissingDependencyError, RecordError
from sisa import ensemble, tasks
from sisa.tasks import ENSEMBLE, run_tasks, task_config
from tests.flows.helpers import refused, sisa
from tests.sisa.answering import trained

QUESTIONS = [
    {"query": "Question: which mail came back?\n", "choices": ["password reset", "this account"], "gold": 0},
    {"query": "my card was", "choices": ["charged twice", "never support", "last week"], "gold": 2},
]
CONTEXTS = [{"context_options": ["my card", "my login"], "continuation": "was charged twice", "gold": 0}] * 3


def written(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_file_of_choices_is_scored_with_and_without_their_length(tmp_path: Path) -> None:
    file = written(tmp_path / "arc.jsonl", *QUESTIONS)
    config = task_config(file, tmp_path / "cache")
    assert config["task"] == "local_arc"
    assert config["dataset_kwargs"] == {"data_files": {"test": str(file)}, "cache_dir": str(tmp_path / "cache")}
    assert [each["metric"] for each in config["metric_list"]] == ["acc", "acc_norm"]
    assert (config["doc_to_choice"], config["doc_to_target"]) == ("choices", "gold")


def test_a_question_is_answered_and_anything_else_is_continued(tmp_path: Path) -> None:
    from jinja2 import Template

    prompt = Template(task_config(written(tmp_path / "q.jsonl", *QUESTIONS), tmp_path)["doc_to_text"])
    assert prompt.render(**QUESTIONS[0]) == "Question: which mail came back?\nAnswer:"
    assert prompt.render(**QUESTIONS[1]) == "my card was"


def test_a_shared_continuation_is_scored_after_each_context(tmp_path: Path) -> None:
    config = task_config(written(tmp_path / "w.jsonl", *CONTEXTS), tmp_path)
    assert (config["doc_to_choice"], config["doc_to_target"]) == ("context_options", "continuation")
    assert [each["metric"] for each in config["metric_list"]] == ["acc"]  # all choices have the same length


@pytest.mark.parametrize(
    ("rows", "found"),
    [
        ([QUESTIONS[0], {"query": "x"}], "2: a line of another form"),
        ([QUESTIONS[0], CONTEXTS[0]], "2: a line of another form"),
        ([[1]], "1: a line of another form"),
        ([QUESTIONS[0] | {"gold": 2}], "1: gold is 2 of 2 choices"),
        ([QUESTIONS[0] | {"gold": True}], "1: gold is True"),
        ([QUESTIONS[0] | {"choices": ["a"]}], "1: fewer than two"),
        ([QUESTIONS[0] | {"choices": "ab"}], "1: fewer than two"),
        ([], "no questions"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, rows: list[Any], found: str) -> None:
    with pytest.raises(RecordError, match=found):
        task_config(written(tmp_path / "t.jsonl", *rows), tmp_path)


def test_broken_json_and_a_missing_file_are_named(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text("{")
    with pytest.raises(RecordError, match="1: broken JSON"):
        task_config(tmp_path / "t.jsonl", tmp_path)
    with pytest.raises(RecordError, match=r"none\.jsonl"):
        task_config(tmp_path / "none.jsonl", tmp_path)


def test_a_text_with_other_ends_of_lines_is_one_line(tmp_path: Path) -> None:
    odd = QUESTIONS[0] | {"query": "one\u2028two\x85three"}
    (tmp_path / "t.jsonl").write_text(json.dumps(odd, ensure_ascii=False) + "\n", encoding="utf-8")
    assert task_config(tmp_path / "t.jsonl", tmp_path)["doc_to_choice"] == "choices"
    (tmp_path / "t.jsonl").write_bytes(b"\xff\n")
    with pytest.raises(RecordError, match="UTF-8"):
        task_config(tmp_path / "t.jsonl", tmp_path)


def test_files_of_one_name_are_refused(tmp_path: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: object())
    places = [tmp_path / name for name in ("a", "b")]
    for place in places:
        place.mkdir()
    files = [str(written(place / "arc.jsonl", *QUESTIONS)) for place in places]
    with pytest.raises(InputError, match="arc twice"):
        run_tasks(tiny_llama, files)


def test_without_lm_eval_the_extra_to_install_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(MissingDependencyError, match=r"sisa\[eval\]"):
        run_tasks(tmp_path, ["piqa"])
    refused(sisa("evaluate", "--model", tmp_path, "--tasks", "piqa"), "sisa[eval]", code=3)


def test_a_directory_without_a_model_is_refused_and_an_adapter_brings_its_base(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="neither"):
        tasks._model_arguments(tmp_path, None)
    for name in ("shard-00", "shard-01"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter_config.json").write_text("{}")
    with pytest.raises(ConfigError, match="2 adapters, one a shard") as refusal:
        tasks._model_arguments(tmp_path, None)
    assert str(tmp_path / "shard-00") in refusal.value.remedy
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "base", "task_type": "CAUSAL_LM"}')
    assert tasks._model_arguments(tmp_path, None) == {"pretrained": "base", "peft": str(tmp_path)}
    assert tasks._model_arguments(tmp_path, "elsewhere") == {"pretrained": "elsewhere", "peft": str(tmp_path)}


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("config.json", {"architectures": ["BertForSequenceClassification"]}),
        ("config.json", {"architectures": ["EnsembleForSequenceClassification"], "model_type": "sisa-ensemble"}),
        ("config.json", {}),
        ("adapter_config.json", {"base_model_name_or_path": "base", "task_type": "SEQ_CLS"}),
    ],
)
def test_what_is_no_causal_model_is_refused(tmp_path: Path, file: str, said: dict[str, Any]) -> None:
    (tmp_path / file).write_text(json.dumps(said))
    with pytest.raises(ConfigError, match="a causal language model"):
        tasks._model_arguments(tmp_path, None)


def test_the_code_of_an_ensemble_is_run_only_if_it_is_ours(tmp_path: Path) -> None:
    said = {"architectures": ["EnsembleForCausalLM"], "model_type": ENSEMBLE}
    code = tmp_path / "ensemble.py"
    code.write_bytes(Path(ensemble.__file__).read_bytes())
    named = {"AutoModelForCausalLM": "ensemble.EnsembleForCausalLM"}
    for where, trusted in ((named, True), ({"AutoConfig": "of/others--ensemble.Config"}, False), ({}, False)):
        (tmp_path / "config.json").write_text(json.dumps(said | {"auto_map": where}))
        if trusted:
            assert tasks._model_arguments(tmp_path, None) == {"pretrained": str(tmp_path), "trust_remote_code": True}
            continue
        with pytest.raises(ConfigError, match="other code"):
            tasks._model_arguments(tmp_path, None)
    (tmp_path / "config.json").write_text(json.dumps(said | {"auto_map": named}))
    code.write_text(code.read_text() + "\nprint()\n")
    with pytest.raises(ConfigError, match="other code"):
        tasks._model_arguments(tmp_path, None)
    assert ensemble.EnsembleConfig.model_type == ENSEMBLE


def test_lm_eval_answers_exported_forms(tmp_path: Path, tiny_llama: Path) -> None:
    pytest.importorskip("lm_eval", reason="lm-eval is not installed (extra [eval])")
    workspace = trained(tmp_path, "causal-lm", tiny_llama, slices=1)
    file = written(tmp_path / "arc.jsonl", *QUESTIONS)
    for form in ("ensemble", "model"):
        out = tmp_path / "out" / form
        out.parent.mkdir(exist_ok=True)
        told = sisa("export", "-w", workspace, "--form", form, "--out", out)
        assert told.code == 0, told.err
        (row,) = run_tasks(out, [str(file)])
        assert (row["name"], row["questions"]) == ("local_arc", 2)


def test_lm_eval_answers_local_files_without_a_network(tmp_path: Path, tiny_llama: Path) -> None:
    pytest.importorskip("lm_eval", reason="lm-eval is not installed (extra [eval])")
    files = [written(tmp_path / "arc.jsonl", *QUESTIONS), written(tmp_path / "winogrande.jsonl", *CONTEXTS)]
    result = sisa("evaluate", "--model", tiny_llama, "--tasks", files[0], "--tasks", files[1], "--json")
    assert result.code == 0, result.err
    rows = result.document["results"]
    assert [(row["name"], row["questions"]) for row in rows] == [("local_arc", 2), ("local_winogrande", 3)]
    assert all(0 <= row["accuracy"] <= 1 for row in rows)
    assert rows[1]["accuracy"] in {0, 1}  # the same question three times
    assert "accuracy_normalised" in rows[0]
    table = sisa("evaluate", "--model", tiny_llama, "--tasks", files[0], "--limit", "1").out
    assert "local_arc" in table
    (alone,) = run_tasks(tiny_llama, [str(files[0])], limit=1)
    assert alone.keys() == {"name", "kind", "questions", "accuracy", "accuracy_normalised"}, "and no error of one"
    with pytest.raises(InputError, match="no_such_task"):
        run_tasks(tiny_llama, ["no_such_task"])
