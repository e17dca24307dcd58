"""The slice step: parent state + ordered records + recipe → new adapter state. Read this file first.

    lesson.passes ──▶ tokens ──▶ batches ──▶ AdamW updates of the adapter ──▶ safetensors
    lesson.parent ──▶ adapter (or fresh from lesson.seed)           (``course``: the loop)

The step sees its recipe, its parent's tensors and its visible records; nothing else. The optimiser
starts afresh in each step, and the course of the learning rate spans exactly one step, so both
depend on the step's own records only. Every random draw (adapter, head, dropout) comes from the
step's seed, set here, in whatever process this runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from jinja2 import TemplateError

from orchestration.executor import Fit, Lesson
from shards.errors import ConfigError, SisaError
from shards.records import Record
from sisa.base_model import load_tokenizer
from sisa.config import Recipe
from sisa.determinism import environment_facts, reproducible
from sisa.encoding import Example, encode


@dataclass(frozen=True, slots=True)
class LoraTrainer:
    """Trains LoRA adapters with PEFT; a picklable value that loads its base where it runs.

    Attributes:
        recipe: what to do.
        base_model: where the frozen base lies.
        keep: what frozen layers make of a record is kept, where there is a place for it.
    """

    recipe: Recipe
    base_model: str
    keep: bool = True

    def environment(self) -> dict[str, str]:
        """Libraries, processor and switches of this process."""
        return dict(environment_facts(self.recipe.device, self.recipe.dtype))

    def examine(self, record: Record) -> Fit:
        """Can a record be trained, and is it cut?"""
        try:
            example = encode(record, self.recipe, load_tokenizer(self.recipe, self.base_model))
        except TemplateError as error:
            return Fit(f"the chat template refuses it ({error})", truncated=False)
        if example.tokens and example.trainable:
            return Fit("", example.truncated)
        within = f" within max_length={self.recipe.max_length}" if example.truncated else ""
        return Fit(f"no token to train{within}", example.truncated)

    @property
    def lanes(self) -> int:
        """How many shards are trained in one pass."""
        return self.recipe.lanes

    def train(self, lesson: Lesson) -> Mapping[str, bytes]:
        """One slice step alone; returns the files of a PEFT directory.

        Raises:
            StepFailedError: if it diverged.
        """
        made = self.train_lanes({0: lesson})[0]
        if isinstance(made, SisaError):
            raise made.bare()  # not held by the frame that it holds
        return made

    def train_lanes(self, lessons: Mapping[int, Lesson]) -> dict[int, Mapping[str, bytes] | SisaError]:
        """Slice steps of several shards in the same passes, each as if it were alone.

        Args:
            lessons: lane → its lesson.

        Returns:
            Lane → the files of a PEFT directory, or why there are none.
        """
        with reproducible(self.recipe):
            from sisa.adapter import process_adapter
            from sisa.course import Course, together

            tokenizer = load_tokenizer(self.recipe, self.base_model)
            adapter = process_adapter(self.recipe, self.base_model, self.recipe.lanes)
            courses: list[Course] = []
            results: dict[int, Mapping[str, bytes] | SisaError] = {}
            for lane, lesson in lessons.items():
                try:
                    examples = self._examples(lesson, tokenizer)
                    courses.append(Course(adapter, lane, self._kept(lesson), self.recipe, examples))
                except SisaError as error:  # that lane's alone
                    results[lane] = error.bare()
            while going := [course for course in courses if course.left]:
                together(adapter, going, self.recipe, tokenizer.pad_token_id)
            return results | {course.lane: course.result() for course in courses}

    def _kept(self, lesson: Lesson) -> Lesson:
        return lesson if self.keep else replace(lesson, shelf=None)

    def _examples(self, lesson: Lesson, tokenizer: Any) -> dict[str, Example]:
        """Record ID → tokens; they live as long as the step and no longer: a token cache would outlive a deletion."""
        return {record.id: encode(record, self.recipe, tokenizer) for record in lesson.passes[0]}

    def prove(self) -> None:
        """Make updates on invented texts, and throw them away (``proof``).

        Asked before a recipe is pinned, because it cannot be changed afterwards.

        Raises:
            ConfigError: if this recipe cannot be trained on its base and device.
        """
        from safetensors import SafetensorError

        from sisa.adapter import process_adapter
        from sisa.proof import prove_step

        try:
            with reproducible(self.recipe):
                tokenizer = load_tokenizer(self.recipe, self.base_model)
                adapter = process_adapter(self.recipe, self.base_model, self.recipe.lanes)
                prove_step(adapter, self.recipe, tokenizer)
        except SisaError:
            raise
        except (
            RuntimeError,
            LookupError,
            AttributeError,
            TypeError,
            AssertionError,
            ValueError,
            SafetensorError,
        ) as error:
            raise ConfigError(
                "a base model that this recipe can train",
                f"{type(error).__name__}: {error}",
                "change base_model or the recipe in sisa.yaml; nothing was taken in",
            ) from error
