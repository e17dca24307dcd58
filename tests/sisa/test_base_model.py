"""What could change bits beside the weights: files, templates that read clocks, bases that remember."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from orchestration.executor import Lesson
from shards.errors import ConfigError
from shards.records import Record, make_content
from shards.workspace import WEIGHTS_FILE
from sisa import adapter
from sisa.adapter import check_recipe
from sisa.base_model import load_tokenizer, locate, model_digests
from sisa.learner import LoraTrainer
from tests.models import WORDS, recipe_for


@pytest.mark.parametrize("name", ["spm.model", "vocab.bpe", "chat_templates/tool.jinja", "extra.json"])
def test_any_file_that_could_be_loaded_is_in_the_digests(tiny_llama: Path, tmp_path: Path, name: str) -> None:
    path = tmp_path / "base"
    shutil.copytree(tiny_llama, path)
    before = model_digests(path)
    (path / name).parent.mkdir(exist_ok=True)
    (path / name).write_text("something")
    assert model_digests(path) != before


@pytest.mark.parametrize("name", ["README.md", "LICENSE", ".gitattributes", "pytorch_model.bin", "onnx/model.onnx"])
def test_files_that_are_never_loaded_are_not(tiny_llama: Path, tmp_path: Path, name: str) -> None:
    path = tmp_path / "base"
    shutil.copytree(tiny_llama, path)
    before = model_digests(path)
    (path / name).parent.mkdir(exist_ok=True)
    (path / name).write_text("something")
    assert model_digests(path) == before


def test_a_base_with_an_adapter_beside_it_is_refused(tiny_llama: Path, tmp_path: Path) -> None:
    path = tmp_path / "base"
    shutil.copytree(tiny_llama, path)
    (path / "adapter_config.json").write_text("{}")
    with pytest.raises(ConfigError, match="adapter"):
        locate(str(path))


def test_a_chat_template_that_reads_the_clock_is_refused(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = recipe_for(tiny_llama, "causal-lm")
    tokenizer = load_tokenizer(recipe, str(tiny_llama))
    monkeypatch.setattr(tokenizer, "chat_template", "{{ strftime_now('%d') }}{{ messages[0].content }}")
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    record = Record("r", make_content({"messages": messages}))
    with pytest.raises(ConfigError, match="clock"):
        LoraTrainer(recipe, str(tiny_llama)).examine(record)


def test_a_record_that_the_chat_template_refuses_is_named_a_problem(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_for(tiny_llama, "causal-lm")
    tokenizer = load_tokenizer(recipe, str(tiny_llama))
    monkeypatch.setattr(tokenizer, "chat_template", "{{ raise_exception('roles must alternate') }}")
    record = Record("r", make_content({"messages": [{"role": "assistant", "content": "b"}]}))
    assert "roles must alternate" in LoraTrainer(recipe, str(tiny_llama)).examine(record).problem


def test_a_sequence_length_beyond_the_bases_positions_is_refused_before_anything_is_pinned(tiny_bert: Path) -> None:
    with pytest.raises(ConfigError, match="positions"):
        check_recipe(recipe_for(tiny_bert, "classification", max_length=4096), str(tiny_bert))


def test_a_base_that_grows_its_rotary_frequencies_carries_nothing_into_the_next_step(
    tiny_llama: Path, tmp_path: Path
) -> None:
    path = tmp_path / "base"
    shutil.copytree(tiny_llama, path)
    config = json.loads((path / "config.json").read_text())
    config["rope_parameters"] = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}
    config["max_position_embeddings"] = 8
    (path / "config.json").write_text(json.dumps(config))
    trainer = LoraTrainer(recipe_for(path, "causal-lm", max_length=64), str(path))
    short = Record("short", make_content({"text": " ".join(WORDS[:2])}))
    long = Record("long", make_content({"text": " ".join(WORDS * 3)}))

    def lesson(record: Record) -> Lesson:
        return Lesson(((record,),), None, bytes(32))

    before = trainer.train(lesson(short))[WEIGHTS_FILE]
    trainer.train(lesson(long))
    grown = adapter._loaded(trainer.recipe, str(path))
    assert not grown.pristine(), "the base changed nothing; this test shows nothing"
    assert trainer.train(lesson(short))[WEIGHTS_FILE] == before
