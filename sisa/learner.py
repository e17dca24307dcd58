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
from shards.records import Record, make_content
from sisa.base_model import load_tokenizer
from sisa.config import Recipe
from sisa.determinism import environment_facts, reproducible
from sisa.encoding import Example, encode

_INVENTED = Record("invented", make_content({"text": ""}))


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
            raise made
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
            courses = [
                Course(adapter, lane, self._kept(lesson), self.recipe, self._examples(lesson, tokenizer))
                for lane, lesson in lessons.items()
            ]
            while going := [course for course in courses if course.left]:
                together(adapter, going, self.recipe, tokenizer.pad_token_id)
            return {course.lane: course.result() for course in courses}

    def _kept(self, lesson: Lesson) -> Lesson:
        return lesson if self.keep else replace(lesson, shelf=None)

    def _examples(self, lesson: Lesson, tokenizer: Any) -> dict[str, Example]:
        """Record ID → tokens; they live as long as the step and no longer: a token cache would outlive a deletion."""
        return {record.id: encode(record, self.recipe, tokenizer) for record in lesson.passes[0]}

    def prove(self) -> None:
        """Make one update on an invented text of full length, and throw it away.

        Asked before a recipe is pinned, because it cannot be changed afterwards.

        Raises:
            ConfigError: if this recipe cannot be trained on its base and device.
        """
        from safetensors import SafetensorError

        from sisa.adapter import process_adapter
        from sisa.course import Course, together

        try:
            with reproducible(self.recipe):
                pad = load_tokenizer(self.recipe, self.base_model).pad_token_id
                adapter = process_adapter(self.recipe, self.base_model, self.recipe.lanes)
                tokens = (pad,) * self.recipe.max_length
                targets = (0,) if self.recipe.task == "classification" else tokens
                examples = {_INVENTED.id: Example(tokens, targets, truncated=False)}
                course = Course(adapter, 0, Lesson(((_INVENTED,),), None, bytes(32)), self.recipe, examples)
                together(adapter, [course], self.recipe, pad)
                with adapter.lanes.only(0):
                    whole = adapter.cut is None or adapter.cut.whole(tokens)
                if not adapter.pristine() and (adapter.cut is not None or self.recipe.lanes > 1):
                    raise ConfigError(
                        "a base model that is the same for every text, under lanes or frozen layers",
                        "one that changes its buffers with the text (dynamic rotary frequencies)",
                        "set lanes to 1 and layers to all; nothing was taken in",
                    )
                if not whole:
                    raise ConfigError(
                        "a base model that can be cut below its last layers",
                        "one whose halves compute something else",
                        "set layers to all; nothing was taken in",
                    )
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
