"""Lanes: whatever the others hold, or whether there are others, a lane's adapter has the same bits."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from orchestration.executor import Lesson
from shards.errors import ConfigError, SisaError, StepFailedError
from shards.workspace import WEIGHTS_FILE
from sisa import course
from sisa.base_model import locate
from sisa.learner import LoraTrainer
from sisa.lora import Lanes
from sisa.loss import lane_losses
from tests.models import recipe_for, record, save_tiny_llama

TASKS = ("classification", "causal-lm")
LANES = 3
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "dropout": {"lora_dropout": 0.3},
    "frozen": {"layers": "last-1"},
    "accumulating": {"accumulation": 2, "schedule": "cosine", "warmup_updates": 1},
    "twice": {"gradient_checkpointing": True, "lora_dropout": 0.3},
    "chunked": {"loss_positions": 7},
    "eager": {"attention": "eager"},
    "bfloat16": {"dtype": "bfloat16"},
    "4 bits": {"dtype": "nf4"},
    "in order": {"batching": "order"},
}

FIRST = {"plain", "dropout", "frozen"}


@pytest.fixture(params=TASKS)
def task(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def base(task: str, tiny_bert: Path, tiny_llama: Path) -> str:
    return str(tiny_bert if task == "classification" else tiny_llama)


def trainer_of(base: str, task: str, **values: Any) -> LoraTrainer:
    return LoraTrainer(recipe_for(base, task, lanes=LANES, **values), base)


def lesson(task: str, first: int, count: int, *, parent: bytes | None = None) -> Lesson:
    records = tuple(record(number, task) for number in range(first, first + count))
    return Lesson((records, records[::-1]), parent, bytes([first]) * 32)


def weights(made: Mapping[str, bytes] | SisaError) -> bytes:
    assert not isinstance(made, SisaError)
    return made[WEIGHTS_FILE]


def lessons(trainer: LoraTrainer, task: str) -> dict[int, Lesson]:
    """One for each lane: of other records, counts, parents and seeds, so of other lengths and steps."""
    parent = weights(trainer.train_lanes({1: lesson(task, 90, 3)})[1])
    return {0: lesson(task, 0, 10), 1: lesson(task, 30, 5), 2: lesson(task, 60, 13, parent=parent)}


@pytest.mark.parametrize(
    ("task", "variant"),
    [
        *(("causal-lm", variant) for variant in VARIANTS),
        *(("classification", variant) for variant in sorted(FIRST)),
        *(
            pytest.param("classification", variant, marks=pytest.mark.slow)
            for variant in sorted(VARIANTS.keys() - FIRST - {"chunked"})
        ),
    ],
)
def test_a_lane_has_the_same_bits_with_any_of_the_others_beside_it(
    tiny_bert: Path, tiny_llama: Path, task: str, variant: str
) -> None:
    base = str(tiny_bert if task == "classification" else tiny_llama)
    trainer = trainer_of(base, task, **VARIANTS[variant])
    shown = lessons(trainer, task)
    alone = {lane: weights(trainer.train_lanes({lane: one})[lane]) for lane, one in shown.items()}
    assert len(set(alone.values())) == LANES
    for count in (2, 3):
        for subset in itertools.combinations(shown, count):
            made = trainer.train_lanes({lane: shown[lane] for lane in subset})
            assert {lane: weights(made[lane]) for lane in subset} == {lane: alone[lane] for lane in subset}


def test_a_lane_has_the_same_bits_whoever_its_neighbour_is(base: str, task: str) -> None:
    trainer = trainer_of(base, task)
    mine = lesson(task, 0, 10)
    neighbours = [lesson(task, first, count) for first, count in ((30, 1), (31, 4), (60, 17))]
    assert len({weights(trainer.train_lanes({1: mine, 2: other})[1]) for other in neighbours}) == 1


def test_two_lanes_given_the_same_lesson_need_not_agree_but_each_repeats_itself(base: str, task: str) -> None:
    trainer = trainer_of(base, task)
    mine = lesson(task, 0, 6)
    for lane in range(LANES):
        assert weights(trainer.train_lanes({lane: mine})[lane]) == weights(trainer.train_lanes({lane: mine})[lane])


def test_lanes_learn_what_one_alone_learns_but_for_rounding(base: str, task: str) -> None:
    from safetensors.torch import load

    values = {"lora_dropout": 0.0, "batching": "order"}
    mine = lesson(task, 0, 8)
    plain = load(LoraTrainer(recipe_for(base, task, **values), base).train(mine)[WEIGHTS_FILE])
    lane = load(weights(trainer_of(base, task, **values).train_lanes({1: mine, 2: lesson(task, 30, 5)})[1]))
    # A head or factor A is drawn from the same seed in whatever slot it lies.
    assert plain.keys() == lane.keys()
    for name, tensor in plain.items():
        assert tensor.allclose(lane[name], rtol=1e-2, atol=1e-4), name


@pytest.mark.parametrize("lane", range(LANES))
def test_a_lane_that_diverges_ends_alone(tiny_llama: Path, lane: int, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = trainer_of(str(tiny_llama), "causal-lm")
    shown = lessons(trainer, "causal-lm")
    alone = {other: weights(trainer.train_lanes({other: one})[other]) for other, one in shown.items()}
    sound = lane_losses

    def diverging(*arguments: Any) -> dict[int, Any]:
        losses = sound(*arguments)
        return {each: loss * float("nan") if each == lane else loss for each, loss in losses.items()}

    monkeypatch.setattr(course, "lane_losses", diverging)
    made = trainer.train_lanes(shown)
    assert isinstance(made[lane], StepFailedError)
    for other in set(shown) - {lane}:
        assert weights(made[other]) == alone[other]


def test_planted_gradient_of_a_neighbour_is_caught(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the tests above would say if lanes were clipped together."""
    import torch

    trainer = trainer_of(str(tiny_llama), "causal-lm")
    shown = lessons(trainer, "causal-lm")
    sound = course.Course.learn
    seen: list[torch.Tensor] = []

    def planted(self: course.Course, gradients: list[torch.Tensor | None]) -> None:
        seen.extend(each for each in gradients if each is not None)
        norm = torch.stack([each.norm() for each in seen]).norm()
        sound(self, [None if each is None else each / (1 + norm) for each in gradients])

    monkeypatch.setattr(course.Course, "learn", planted)
    alone = weights(trainer.train_lanes({1: shown[1]})[1])
    seen.clear()
    assert weights(trainer.train_lanes(shown)[1]) != alone


PRETRAINED: dict[str, dict[str, Any]] = {"all layers": {}, "last-2": {"layers": "last-2"}}


@pytest.mark.parametrize("variant", PRETRAINED)
def test_layers_of_a_real_size_have_the_same_bits_in_any_company(variant: str) -> None:
    """Tiny layers hardly ever show a shape in their bits; these do, as the next test says."""
    base = str(locate("minilm"))
    trainer = trainer_of(base, "classification", epochs=1, **PRETRAINED[variant])
    shown = lessons(trainer, "classification")
    alone = {lane: weights(trainer.train_lanes({lane: one})[lane]) for lane, one in shown.items()}
    for subset in ((0, 1), (1, 2), (0, 1, 2)):
        made = trainer.train_lanes({lane: shown[lane] for lane in subset})
        assert {lane: weights(made[lane]) for lane in subset} == {lane: alone[lane] for lane in subset}


def test_planted_pass_without_room_for_idle_lanes_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """The shapes of a pass must not depend on who is in it: it is refused, and without that its bits would differ."""
    trainer = trainer_of(str(locate("minilm")), "classification")
    shown = lessons(trainer, "classification")
    sound = course._in_rows

    def planted(of_lanes: Mapping[int, Any], lanes: int, rows: int, nothing: Any) -> Any:
        return sound(of_lanes, lanes, max(map(len, of_lanes.values())), nothing)

    def unchecked(self: Lanes, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(len(self._present), -1, x.shape[-1])

    monkeypatch.setattr(course, "_in_rows", planted)
    with pytest.raises(ConfigError, match="rows of 3 lanes"):
        trainer.train_lanes(shown)
    monkeypatch.setattr(Lanes, "blocks", unchecked)
    alone = weights(trainer.train_lanes({1: shown[1]})[1])
    assert weights(trainer.train_lanes(shown)[1]) != alone


def test_full_lanes_would_be_computed_without_a_mask_if_nothing_were_padded(tiny_bert: Path) -> None:
    """Why lanes are one token wider than their longest record: see ``batches``."""
    from sisa.batches import updates

    recipe = recipe_for(tiny_bert, "classification", lanes=LANES)
    for longest in range(1, recipe.max_length + 1):
        ((batch,),) = updates([longest], recipe)
        assert batch.width > longest


def test_a_base_without_a_position_to_spare_is_refused(tmp_path: Path) -> None:
    from sisa.adapter import check_recipe

    base = save_tiny_llama(tmp_path / "base")  # 128 positions
    check_recipe(recipe_for(base, "causal-lm", max_length=128), str(base))
    with pytest.raises(ConfigError, match="max_length of at most 127"):
        check_recipe(recipe_for(base, "causal-lm", max_length=128, lanes=2), str(base))


def test_a_recipe_of_lanes_is_proved_before_it_is_pinned(base: str, task: str) -> None:
    trainer = trainer_of(base, task, layers="last-1")
    before = weights(trainer.train_lanes({0: lesson(task, 0, 4)})[0])
    trainer.prove()
    assert weights(trainer.train_lanes({0: lesson(task, 0, 4)})[0]) == before


def test_a_lane_alone_is_the_step_of_one_shard(base: str, task: str) -> None:
    trainer = LoraTrainer(recipe_for(base, task), base)
    mine = lesson(task, 0, 6)
    assert weights(trainer.train_lanes({0: mine})[0]) == trainer.train(replace(mine))[WEIGHTS_FILE]
