"""The slice step: equal to a plain training loop, and a function of recipe, parent, records and seed alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestration.executor import Lesson
from shards.records import Record
from shards.workspace import ADAPTER_CONFIG_FILE, WEIGHTS_FILE
from sisa.adapter import Adapter
from sisa.base_model import load_tokenizer
from sisa.determinism import seed_number
from sisa.encoding import encode, pad_batch
from sisa.learner import LoraTrainer
from tests.models import recipe_for, record

TASKS = ("classification", "causal-lm")
SEED = b"s" * 32


def lesson(task: str, count: int = 6, *, epochs: int = 2, parent: bytes | None = None) -> Lesson:
    records = tuple(record(number, task) for number in range(count))
    return Lesson(tuple(records if epoch % 2 == 0 else records[::-1] for epoch in range(epochs)), parent, SEED)


@pytest.fixture(params=TASKS)
def task(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def base(task: str, tiny_bert: Path, tiny_llama: Path) -> str:
    return str(tiny_bert if task == "classification" else tiny_llama)


def train(base: str, task: str, shown: Lesson, **values: Any) -> Mapping[str, Any]:
    from safetensors.torch import load

    loaded: Mapping[str, Any] = load(LoraTrainer(recipe_for(base, task, **values), base).train(shown)[WEIGHTS_FILE])
    return loaded


def same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return one.keys() == other.keys() and all(tensor.equal(other[name]) for name, tensor in one.items())


def test_the_same_lesson_gives_the_same_bits_and_each_of_its_parts_matters(task: str, base: str) -> None:
    from safetensors.torch import save

    shown = lesson(task)
    once = train(base, task, shown)
    assert same(once, train(base, task, shown))
    parent = save(dict(once))
    others = {
        "seed": replace(shown, seed=b"t" * 32),
        "parent": replace(shown, parent=parent),
        "order": replace(shown, passes=shown.passes[::-1]),
        "records": lesson(task, 5),
        "epochs": lesson(task, epochs=3),
    }
    results = {name: train(base, task, other) for name, other in others.items()}
    assert [name for name, result in results.items() if same(once, result)] == []


@pytest.mark.parametrize(
    "changed",
    [
        {"learning_rate": 2e-2},
        {"batch_size": 3},
        {"accumulation": 2},
        {"schedule": "constant"},
        {"schedule": "cosine"},
        {"warmup_updates": 2},
        {"weight_decay": 0.1},
        {"max_grad_norm": 0.01},
        {"lora_alpha": 4.0},
        {"rslora": True},
        {"lora_dropout": 0.3},
        {"max_length": 5},
        {"dtype": "bfloat16"},
        {"batching": "order"},
        {"layers": "last-1"},
        {"lanes": 2},
        {"loss_positions": 7},
    ],
    ids=lambda changed: "-".join(map(str, *changed.items())),
)
def test_every_key_that_shapes_the_step_changes_its_bits(tiny_llama: Path, changed: dict[str, Any]) -> None:
    before, after = (train(str(tiny_llama), "causal-lm", lesson("causal-lm"), **values) for values in ({}, changed))
    assert not same(before, after)


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_a_step_equals_a_plain_training_loop(task: str, base: str, schedule: str, accumulation: int) -> None:
    """The loop is written anew, with the loss that transformers computes itself."""
    import torch
    from safetensors.torch import load

    values: dict[str, Any] = {
        "lora_dropout": 0.0,
        "schedule": schedule,
        "accumulation": accumulation,
        "warmup_updates": 1,
        "weight_decay": 0.1,
        "batching": "order",
    }
    recipe = recipe_for(base, task, **values)
    shown = lesson(task, 9)
    trained = train(base, task, shown, **values)

    adapter = Adapter(recipe, base)
    adapter.reset(seed_number(SEED, "adapter"))
    tokenizer: Any = load_tokenizer(recipe, base)
    parameters = [parameter for parameter in adapter.model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=1.0, weight_decay=0.1, foreach=False)
    batches = [[records[start : start + 4] for start in range(0, 9, 4)] for records in shown.passes]
    groups = [each[at : at + accumulation] for each in batches for at in range(0, len(each), accumulation)]
    for update, group in enumerate(groups):
        rate = recipe.learning_rate * rate_at(update, len(groups), schedule)
        optimiser.param_groups[0]["lr"] = rate
        optimiser.zero_grad()
        for batch in group:
            (loss_of(adapter.model, batch, task, recipe, tokenizer) / len(group)).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
    expected = load(adapter.dump())
    assert expected.keys() == trained.keys()
    for name, tensor in expected.items():
        assert torch.allclose(trained[name], tensor, rtol=1e-3, atol=1e-5), name


def rate_at(update: int, updates: int, schedule: str) -> float:
    """The course of the learning rate over one step, with one update of warm-up."""
    import math

    if update < 1:
        return 0.0
    through = (update - 1) / (updates - 1)
    return {"constant": 1.0, "linear": 1 - through, "cosine": (1 + math.cos(math.pi * through)) / 2}[schedule]


def loss_of(model: Any, batch: tuple[Record, ...], task: str, recipe: Any, tokenizer: Any) -> Any:
    """The loss that the transformers model computes from labels."""
    import torch

    examples = [encode(each, recipe, tokenizer) for each in batch]
    inputs = pad_batch([example.tokens for example in examples], tokenizer.pad_token_id, "cpu")
    if task == "classification":
        labels = torch.tensor([example.targets[0] for example in examples])
    else:
        width = inputs["input_ids"].shape[1]
        labels = torch.tensor([[*each.targets, *[-100] * (width - len(each.targets))] for each in examples])
    return model(**inputs, labels=labels).loss


def test_training_learns_what_it_is_shown(task: str, base: str) -> None:
    import torch

    recipe = recipe_for(base, task)
    shown = lesson(task, epochs=15)
    adapter = Adapter(recipe, base)
    adapter.model.eval()
    tokenizer: Any = load_tokenizer(recipe, base)

    def loss() -> float:
        with torch.inference_mode():
            return float(loss_of(adapter.model, shown.passes[0], task, recipe, tokenizer))

    adapter.reset(seed_number(SEED, "adapter"))
    before = loss()
    adapter.load(LoraTrainer(recipe, base).train(shown)[WEIGHTS_FILE])
    assert loss() < before / 2


def test_a_step_returns_a_peft_directory_with_the_same_configuration_every_time(task: str, base: str) -> None:
    trainer = LoraTrainer(recipe_for(base, task), base)
    first, second = trainer.train(lesson(task)), trainer.train(lesson(task, 3))
    assert sorted(first) == [ADAPTER_CONFIG_FILE, WEIGHTS_FILE]
    assert first[ADAPTER_CONFIG_FILE] == second[ADAPTER_CONFIG_FILE]


def test_padding_is_masked_and_on_the_right() -> None:
    batch = pad_batch([[5, 6, 7], [8]], 0, "cpu")
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]


def test_the_model_is_left_without_dropout_after_a_step(task: str, base: str) -> None:
    from sisa.adapter import process_adapter

    trainer = LoraTrainer(recipe_for(base, task), base)
    trainer.train(lesson(task))
    assert not process_adapter(trainer.recipe, base).model.training
