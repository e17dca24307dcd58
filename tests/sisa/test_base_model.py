"""What could change bits beside the weights: files, templates that read clocks, bases that remember."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from orchestration.executor import Lesson
from shards.digest import file_digest
from shards.errors import ConfigError, RecipeMismatchError, StepFailedError
from shards.records import Record, make_content
from shards.workspace import WEIGHTS_FILE
from sisa import adapter, base_model
from sisa.adapter import check_recipe
from sisa.base_model import load_tokenizer, locate, model_digests, pinned_path
from sisa.initialise import initialise
from sisa.learner import LoraTrainer
from sisa.session import open_session
from sisa.train import train
from tests.models import WORDS, recipe_for, record, row, write_rows


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


@pytest.fixture
def growing(tiny_llama: Path, tmp_path: Path) -> Path:
    """A base whose rotary frequencies grow with the longest text so far."""
    path = tmp_path / "base"
    shutil.copytree(tiny_llama, path)
    config = json.loads((path / "config.json").read_text())
    config["rope_parameters"] = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}
    config["max_position_embeddings"] = 8
    (path / "config.json").write_text(json.dumps(config))
    return path


@pytest.mark.parametrize("values", [{"lanes": 2}, {"layers": "last-1"}], ids=["lanes", "frozen"])
def test_a_base_that_remembers_texts_is_refused_where_records_must_not_meet(
    growing: Path, values: dict[str, Any]
) -> None:
    LoraTrainer(recipe_for(growing, "causal-lm", max_length=64), str(growing)).prove()
    with pytest.raises(ConfigError, match="changes its buffers"):
        LoraTrainer(recipe_for(growing, "causal-lm", max_length=64, **values), str(growing)).prove()


def test_a_base_that_grows_its_rotary_frequencies_carries_nothing_into_the_next_step(growing: Path) -> None:
    path = growing
    trainer = LoraTrainer(recipe_for(path, "causal-lm", max_length=64), str(path))
    short = Record("short", make_content({"text": " ".join(WORDS[:2])}))
    long = Record("long", make_content({"text": " ".join(WORDS * 3)}))

    def lesson(record: Record) -> Lesson:
        return Lesson(((record,),), None, bytes(32))

    before = trainer.train(lesson(short))[WEIGHTS_FILE]
    trainer.train(lesson(long))
    grown = adapter._loaded[trainer.recipe, str(path), 1]
    assert not grown.pristine(), "the base changed nothing; this test shows nothing"
    assert trainer.train(lesson(short))[WEIGHTS_FILE] == before


def test_weights_that_diverge_are_never_stored(tiny_bert: Path) -> None:
    recipe = recipe_for(tiny_bert, "classification", learning_rate=1e30)
    with pytest.raises(StepFailedError, match="diverged"):
        LoraTrainer(recipe, str(tiny_bert)).train(
            Lesson((tuple(record(number, "classification") for number in range(4)),) * 2, None, bytes(32))
        )


@pytest.mark.parametrize(
    ("task", "values", "spoil"),
    [
        ("classification", {"device": "cuda"}, False),
        ("causal-lm", {"end_token": "[SEP]"}, False),
        ("classification", {}, True),
    ],
    ids=["no such device", "an encoder as causal model", "cut weights"],
)
def test_a_recipe_that_cannot_be_trained_is_refused_before_anything_is_pinned(
    tiny_bert: Path, tmp_path: Path, task: str, values: dict[str, str], spoil: bool
) -> None:
    if values.get("device") == "cuda" and torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device, so the recipe can be trained")
    base = tmp_path / "base"
    shutil.copytree(tiny_bert, base)
    if spoil:
        weights = base / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-100])
    data = write_rows(
        tmp_path / "data.jsonl",
        [row(number, task) for number in (range(6) if task == "classification" else range(0, 9, 3))],
    )
    workspace = tmp_path / "workspace"
    initialise(workspace, task=task, base_model=str(base), data=[data], values={"executor": "inline", **values})
    with open_session(workspace) as session, pytest.raises(ConfigError):
        train(session)
    with open_session(workspace) as session:
        assert session.workspace.book.pinned() is None


def test_init_proposes_what_was_measured_for_the_packaged_encoder_and_for_no_other(
    tiny_bert: Path, tmp_path: Path
) -> None:
    def made(base_model: str, **values: Any) -> tuple[float, int, float]:
        values |= {"labels": ["a", "b"]}
        directory = tmp_path / str(len(list(tmp_path.iterdir())))
        recipe = initialise(directory, task="classification", base_model=base_model, values=values).recipe
        return recipe.learning_rate, recipe.epochs, recipe.rehearsal

    assert made("minilm") == (0.002, 6, 0.25)
    assert made("minilm", epochs=2) == (0.002, 2, 0.25)
    assert made(str(tiny_bert)) == (0.001, 3, 0.0)


def test_a_process_reads_a_base_once_while_its_files_are_as_they_were(tiny_bert: Path, tmp_path: Path) -> None:
    path = tmp_path / "base"
    shutil.copytree(tiny_bert, path)
    recipe = recipe_for(path, "classification")
    with mock.patch.object(base_model, "file_digest", wraps=file_digest) as read:
        assert pinned_path(recipe, str(path)) == path
        once = read.call_count
        assert once == sum(file.is_file() for file in path.iterdir())
        assert pinned_path(recipe, str(path)) == path
        assert read.call_count == once
        (path / "extra.json").write_text("{}")
        with pytest.raises(RecipeMismatchError, match="tokenizer"):
            pinned_path(recipe, str(path))
        (path / "extra.json").unlink()
        assert pinned_path(recipe, str(path)) == path


@pytest.mark.parametrize("how", ["in place", "another file"])
def test_a_base_changed_meanwhile_is_refused_although_size_and_time_are_as_before(
    tiny_bert: Path, tmp_path: Path, how: str
) -> None:
    path = tmp_path / "base"
    shutil.copytree(tiny_bert, path)
    recipe = recipe_for(path, "classification")
    pinned_path(recipe, str(path))
    weights = path / "model.safetensors"
    before, data = weights.stat(), bytearray(weights.read_bytes())
    data[-1] ^= 1
    if how == "another file":
        weights.unlink()
    weights.write_bytes(data)
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (weights.stat().st_size, weights.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    with pytest.raises(RecipeMismatchError, match="base model"):
        pinned_path(recipe, str(path))
