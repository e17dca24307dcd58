"""One lane's way through its lesson, and the passes that lanes share.

    lesson ──▶ batches ──▶ gradients of this lane's own loss ──▶ AdamW updates of its adapter

A lane has its own batches, padding, clipping, optimiser, learning rate and dropout. Which lanes are in a
pass together follows from what each of them needs next, and changes no bit of any.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TypeVar

import torch
from transformers import get_scheduler

from orchestration.executor import Lesson
from shards.errors import SisaError, StepFailedError
from shards.workspace import ADAPTER_CONFIG_FILE, WEIGHTS_FILE
from sisa.adapter import Adapter
from sisa.batches import updates
from sisa.config import Recipe
from sisa.determinism import seed_number
from sisa.encoding import Example, pad_batch
from sisa.frozen import Frozen, frozen_kind
from sisa.loss import lane_losses

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Turn:
    """A batch of the course.

    Attributes:
        records: IDs.
        width: that they are padded to.
        share: of the update's gradient.
        last: the update is made after it.
    """

    records: tuple[str, ...]
    width: int
    share: float
    last: bool


class Course:
    """A lesson being learnt in one lane, from the filling of its slot to the trained tensors.

    Args:
        adapter: whose slot of the lane is filled.
        lane: its number.
        lesson: what is to be learnt.
        recipe: how.
        examples: record ID → its tokens.

    Raises:
        IntegrityError: if the lesson's parent is not this recipe's.
    """

    def __init__(
        self,
        adapter: Adapter,
        lane: int,
        lesson: Lesson,
        recipe: Recipe,
        examples: Mapping[str, Example],
    ) -> None:
        self.lane = lane
        self._adapter, self._recipe, self._examples = adapter, recipe, examples
        self._frozen = (
            Frozen(adapter.cut, lesson.shelf, frozen_kind(recipe, adapter.cut.height)) if adapter.cut else None
        )
        self._turns = turns_of(lesson, recipe, examples)
        self._done = 0
        self._dropout = seed_number(lesson.seed, "dropout")
        if lesson.parent is None:
            adapter.reset(seed_number(lesson.seed, "adapter"), lane)
        else:
            adapter.load(lesson.parent, lane)
        self.parameters = adapter.parameters(lane)
        for parameter in self.parameters:
            parameter.grad = None
        self._optimiser = torch.optim.AdamW(
            self.parameters, lr=recipe.learning_rate, weight_decay=recipe.weight_decay, fused=True
        )
        self._schedule = get_scheduler(
            recipe.schedule if recipe.schedule != "constant" else "constant_with_warmup",
            self._optimiser,
            num_warmup_steps=recipe.warmup_updates,
            num_training_steps=sum(turn.last for turn in self._turns),
        )

    @property
    def left(self) -> int:
        """How many batches are left to learn."""
        return len(self._turns) - self._done

    @property
    def turn(self) -> Turn:
        """What comes next."""
        return self._turns[self._done]

    @property
    def shown(self) -> list[Example]:
        """The records that come next."""
        return [self._examples[record_id] for record_id in self.turn.records]

    @property
    def activations(self) -> list[torch.Tensor]:
        """What the frozen layers make of them, each (tokens, hidden size); nothing where no layer is frozen."""
        if self._frozen is None:
            return []
        return [self._frozen.of(record_id, self._examples[record_id]) for record_id in self.turn.records]

    @property
    def seed(self) -> int:
        """What dropout is drawn from in the pass that comes next."""
        return self._dropout + self._done * 0x1_0000_0001

    def learn(self, gradients: Sequence[torch.Tensor | None]) -> None:
        """Take the gradients of the pass, and update the adapter where an update is complete."""
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            if gradient is not None:
                # In the parameter's own layout: fused AdamW reads a transposed gradient as if it were not.
                laid = gradient.contiguous()
                parameter.grad = laid if parameter.grad is None else parameter.grad + laid
        if self.turn.last:
            torch.nn.utils.clip_grad_norm_(self.parameters, self._recipe.max_grad_norm)
            self._optimiser.step()
            self._schedule.step()
            self._optimiser.zero_grad(set_to_none=True)
        self._done += 1

    def result(self) -> Mapping[str, bytes] | SisaError:
        """The files of a PEFT directory, or why there are none."""
        if not all(bool(parameter.isfinite().all()) for parameter in self.parameters):
            return StepFailedError(
                "finite weights", "a training that diverged", "make a workspace with a smaller learning_rate"
            )
        return {WEIGHTS_FILE: self._adapter.dump(self.lane), ADAPTER_CONFIG_FILE: self._adapter.config_json()}


def turns_of(lesson: Lesson, recipe: Recipe, examples: Mapping[str, Example]) -> list[Turn]:
    """Every batch of every pass, in order: a function of the step's own records."""
    turns = []
    for records in lesson.passes:
        for batches in updates([len(examples[record.id].tokens) for record in records], recipe):
            for number, batch in enumerate(batches, 1):
                ids = tuple(records[at].id for at in batch.members)
                turns.append(Turn(ids, batch.width, 1 / len(batches), number == len(batches)))
    return turns


def together(adapter: Adapter, courses: Sequence[Course], recipe: Recipe, pad: int) -> None:
    """One forward and backward pass for those of these courses that need the same width next."""
    width = max(courses, key=lambda course: course.left).turn.width  # whoever lags behind, so that none is left alone
    going = {course.lane: course for course in courses if course.turn.width == width}
    shown = {lane: course.shown for lane, course in going.items()}
    # With lanes every shape is fixed; alone, a last batch may be smaller.
    rows = recipe.batch_size if recipe.lanes > 1 else max(map(len, shown.values()))
    texts = _in_rows(
        {lane: [example.tokens for example in some] for lane, some in shown.items()}, recipe.lanes, rows, ()
    )
    inputs = pad_batch(texts, pad, recipe.device, width)
    with ExitStack() as stack:
        stack.enter_context(adapter.lanes.holding(recipe.lanes * rows, width))
        if adapter.cut is not None:
            made: dict[int, list[torch.Tensor | None]] = {lane: [*one.activations] for lane, one in going.items()}
            stack.enter_context(adapter.cut.from_here(_stacked(_in_rows(made, recipe.lanes, rows, None), width)))
        stack.enter_context(adapter.lanes.dropping({lane: course.seed for lane, course in going.items()}))
        losses = lane_losses(adapter, inputs, shown, recipe)
        total = torch.stack([losses[lane] * course.turn.share for lane, course in going.items()]).sum()
        # Of these lanes alone: a gradient of zeros added to an idle lane's could still turn a -0 into 0.
        parameters = [parameter for course in going.values() for parameter in course.parameters]
        gradients = iter(torch.autograd.grad(total, parameters, allow_unused=True))
    for course in going.values():
        course.learn([next(gradients) for _ in course.parameters])


def _in_rows(of_lanes: Mapping[int, Sequence[_T]], lanes: int, rows: int, nothing: _T) -> list[_T]:
    """Lane after lane, each filled up to ``rows``."""
    return [
        item
        for some in (of_lanes.get(lane, ()) for lane in range(lanes))
        for item in [*some, *[nothing] * (rows - len(some))]
    ]


def _stacked(activations: Sequence[torch.Tensor | None], width: int) -> torch.Tensor:
    """(rows, width, hidden size), zeros where there is nothing."""
    some = next(each for each in activations if each is not None)
    stacked = some.new_zeros(len(activations), width, some.shape[1])
    for row, each in zip(stacked, activations, strict=True):
        if each is not None:
            row[: len(each)] = each
    return stacked
