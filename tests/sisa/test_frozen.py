"""Frozen layers: computed once for each record alone, to the same bits wherever they are used."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestration.executor import Lesson
from shards.errors import ConfigError
from shards.workspace import ADAPTER_CONFIG_FILE, WEIGHTS_FILE
from sisa.adapter import Adapter, check_recipe
from sisa.base_model import load_tokenizer
from sisa.encoding import encode
from sisa.frozen import frozen_kind
from sisa.layers import Cut
from sisa.learner import LoraTrainer
from tests.models import recipe_for, record, save_tiny_bert, save_tiny_llama

TASKS = ("classification", "causal-lm")


class Shelf(dict[tuple[str, str], bytes]):
    """A shelf in memory that counts what is found on it."""

    found = 0

    def get(self, record_id: str, kind: str) -> bytes | None:  # type: ignore[override]
        value = super().get((record_id, kind))
        self.found += value is not None
        return value

    def put(self, record_id: str, kind: str, value: bytes) -> None:
        self[record_id, kind] = value


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Bases of four layers."""
    root = tmp_path_factory.mktemp("deep")
    return {
        "classification": save_tiny_bert(root / "bert", layers=4),
        "causal-lm": save_tiny_llama(root / "llama", layers=4),
    }


@pytest.fixture(params=TASKS)
def task(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def base(task: str, deep: dict[str, Path]) -> str:
    return str(deep[task])


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Lengths of the texts that frozen layers were run on."""
    lengths: list[int] = []
    sound = Cut.below

    def below(self: Cut, tokens: Any) -> Any:
        lengths.append(len(tokens))
        return sound(self, tokens)

    monkeypatch.setattr(Cut, "below", below)
    return lengths


def lesson(task: str, count: int = 9, shelf: Shelf | None = None) -> Lesson:
    records = tuple(record(number, task) for number in range(count))
    return Lesson((records, records[::-1], records), None, b"s" * 32, shelf)


def trainer_of(base: str, task: str, **values: Any) -> LoraTrainer:
    return LoraTrainer(recipe_for(base, task, **{"layers": "last-2", **values}), base)


def weights(files: Mapping[str, bytes]) -> bytes:
    return files[WEIGHTS_FILE]


def test_kept_or_computed_at_every_visit_the_bits_are_the_same(task: str, base: str, counted: list[int]) -> None:
    trainer, shelf = trainer_of(base, task), Shelf()
    without = weights(trainer.train(lesson(task)))
    assert len(counted) == 27, "three passes over nine records"
    counted.clear()
    cold = weights(trainer.train(lesson(task, shelf=shelf)))
    assert (len(counted), len(shelf)) == (9, 9)
    counted.clear()
    warm = weights(trainer.train(lesson(task, shelf=shelf)))
    assert counted == []
    del shelf["r3", frozen_kind(trainer.recipe, 2)]
    partly = weights(trainer.train(lesson(task, shelf=shelf)))
    assert len(counted) == 1
    assert without == cold == warm == partly


def test_a_trainer_that_is_told_not_to_keeps_nothing(task: str, base: str, counted: list[int]) -> None:
    shelf = Shelf()
    replace(trainer_of(base, task), keep=False).train(lesson(task, shelf=shelf))
    assert shelf == {}
    assert len(counted) == 27


def test_other_bytes_on_the_shelf_would_change_the_adapter(task: str, base: str) -> None:
    """So whoever fills it must be sure of what it hands out: the check above can fail."""
    trainer, shelf = trainer_of(base, task), Shelf()
    clean = weights(trainer.train(lesson(task, shelf=shelf)))
    key = next(iter(shelf))
    shelf[key] = shelf[key][4:] + shelf[key][:4]
    assert weights(trainer.train(lesson(task, shelf=shelf))) != clean


def test_a_record_has_the_same_activations_in_any_company(task: str, base: str) -> None:
    trainer = trainer_of(base, task)
    shelves = [Shelf(), Shelf()]
    for shelf, count in zip(shelves, (9, 4), strict=True):
        trainer.train(lesson(task, count, shelf))
    assert all(shelves[0][key] == value for key, value in shelves[1].items())


def test_only_the_last_layers_have_adapters_and_the_configuration_says_so(task: str, base: str) -> None:
    from safetensors.torch import load

    files = trainer_of(base, task).train(lesson(task))
    names = {name for name in load(files[WEIGHTS_FILE]) if "lora_" in name}
    numbers = {part for name in names for part in name.split(".") if part.isdigit()}
    assert numbers == {"2", "3"}
    targets = json.loads(files[ADAPTER_CONFIG_FILE])["target_modules"]
    assert {part for name in targets for part in name.split(".") if part.isdigit()} == {"2", "3"}


def test_named_modules_are_adapted_in_the_last_layers_alone(deep: dict[str, Path]) -> None:
    from safetensors.torch import load

    trainer = trainer_of(str(deep["causal-lm"]), "causal-lm", target_modules=("q_proj",), layers="last-1")
    names = set(load(trainer.train(lesson("causal-lm"))[WEIGHTS_FILE]))
    assert {name.rpartition(".lora_")[0] for name in names} == {"base_model.model.model.layers.3.self_attn.q_proj"}


def test_the_halves_compute_what_the_whole_does(task: str, base: str) -> None:
    import torch

    recipe = recipe_for(base, task, layers="last-2")
    adapter = Adapter(recipe, base)
    adapter.reset(1)
    example = encode(record(1, task), recipe, load_tokenizer(recipe, base))
    assert adapter.cut is not None
    assert adapter.cut.whole(example.tokens)
    with torch.no_grad(), adapter.cut.from_here(torch.zeros(1, len(example.tokens), 32)):
        ids = torch.tensor([example.tokens])
        other = adapter.model(input_ids=ids).logits
    assert not other.allclose(adapter.model(input_ids=ids).logits, rtol=1e-2, atol=1e-2), "the check above can fail"


@pytest.mark.parametrize("layers", ["last-4", "last-5"])
def test_more_layers_than_may_be_adapted_are_refused(layers: str, deep: dict[str, Path]) -> None:
    recipe = recipe_for(deep["causal-lm"], "causal-lm", layers=layers)
    with pytest.raises(ConfigError, match="fewer layers to adapt than the 4"):
        check_recipe(recipe, str(deep["causal-lm"]))


@pytest.mark.parametrize(
    "changed",
    [
        {"max_length": 12}, {"dtype": "bfloat16"}, {"attention": "eager"}, {"threads": 2}, {"end_token": "x"},
        {"base_model_digest": "1" * 64}, {"tokenizer_digest": "1" * 64}, {"device": "cuda"}, {"tf32": True},
        {"sdpa_backends": ("math",)},
    ],
    ids=lambda changed: next(iter(changed)),
)  # fmt: skip
def test_the_kind_names_all_that_reaches_the_frozen_layers(
    changed: dict[str, Any], deep: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sisa.frozen.environment_facts", lambda *_: {"machine": "one"})
    recipe = recipe_for(deep["causal-lm"], "causal-lm", layers="last-2")
    other = recipe.model_copy(update=changed)
    assert frozen_kind(other, 2) != frozen_kind(recipe, 2)
    assert frozen_kind(recipe, 3) != frozen_kind(recipe, 2)
    same = recipe.model_copy(update={"learning_rate": 5.0, "epochs": 7, "lora_rank": 3, "batch_size": 1, "shards": 9})
    assert frozen_kind(same, 2) == frozen_kind(recipe, 2), "what only changes the adapter reuses them"
    monkeypatch.setattr("sisa.frozen.environment_facts", lambda *_: {"machine": "another"})
    assert frozen_kind(recipe, 2) != frozen_kind(same, 3)
