"""The slice step: parent state + ordered records + recipe → new adapter state. Read this file first.

    lesson.passes ──▶ tokens ──▶ batches ──▶ AdamW updates of the adapter ──▶ safetensors
    lesson.parent ──▶ adapter (or fresh from lesson.seed)

The step sees its recipe, its parent's tensors and its visible records; nothing else. The optimiser
starts afresh in each step, and the course of the learning rate spans exactly one step, so both
depend on the step's own records only. Every random draw (adapter, head, dropout) comes from the
step's seed, set here, in whatever process this runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from jinja2 import TemplateError

from orchestration.executor import Fit, Lesson
from shards.errors import ConfigError, SisaError, StepFailedError
from shards.records import Record
from shards.workspace import WEIGHTS_FILE
from sisa.base_model import load_tokenizer
from sisa.config import Recipe
from sisa.determinism import environment_facts, reproducible, seed_number
from sisa.encoding import IGNORED, Example, encode

CONFIG_FILE = "adapter_config.json"

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class LoraTrainer:
    """Trains LoRA adapters with PEFT; a picklable value that loads its base where it runs.

    Attributes:
        recipe: what to do.
        base_model: where the frozen base lies.
    """

    recipe: Recipe
    base_model: str

    @property
    def lanes(self) -> int:
        """Shards trained in one pass over the base."""
        return self.recipe.lanes

    def environment(self) -> dict[str, str]:
        """Libraries, processor and switches of this process."""
        return dict(environment_facts(self.recipe.device))

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

    def train(self, lesson: Lesson) -> Mapping[str, bytes]:
        """One slice step; returns the files of a PEFT directory."""
        with reproducible(self.recipe):
            import torch
            from transformers import get_scheduler

            from sisa.adapter import process_adapter

            tokenizer = load_tokenizer(self.recipe, self.base_model)
            adapter = process_adapter(self.recipe, self.base_model)
            if lesson.parent is None:
                adapter.reset(seed_number(lesson.seed, "adapter"))
            else:
                adapter.load(lesson.parent)
            torch.manual_seed(seed_number(lesson.seed, "dropout"))
            parameters = adapter.parameters()
            optimiser = torch.optim.AdamW(
                parameters, lr=self.recipe.learning_rate, weight_decay=self.recipe.weight_decay, fused=True
            )
            updates = self._updates(lesson)
            schedule = get_scheduler(
                self.recipe.schedule if self.recipe.schedule != "constant" else "constant_with_warmup",
                optimiser,
                num_warmup_steps=self.recipe.warmup_updates,
                num_training_steps=updates,
            )
            adapter.model.train()
            for group in self._groups(lesson, tokenizer):
                optimiser.zero_grad(set_to_none=True)
                for batch in group:
                    loss = mean_loss(adapter.model, batch, self.recipe, tokenizer.pad_token_id)
                    (loss / len(group)).backward()
                torch.nn.utils.clip_grad_norm_(parameters, self.recipe.max_grad_norm)
                optimiser.step()
                schedule.step()
            adapter.model.eval()
            if not all(bool(parameter.isfinite().all()) for parameter in parameters):
                raise StepFailedError(
                    "finite weights", "a training that diverged", "make a workspace with a smaller learning_rate"
                )
            return {WEIGHTS_FILE: adapter.dump(), CONFIG_FILE: adapter.config_json()}

    def train_lanes(self, lessons: Mapping[int, Lesson]) -> Mapping[int, Mapping[str, bytes] | SisaError]:
        """One slice step in each lane; returns each lane's files, or its error."""
        raise NotImplementedError

    def prove(self) -> None:
        """Make one update on an invented text of full length, and throw it away.

        Asked before a recipe is pinned, because it cannot be changed afterwards.

        Raises:
            ConfigError: if this recipe cannot be trained on its base and device.
        """
        import torch
        from safetensors import SafetensorError

        from sisa.adapter import process_adapter

        try:
            with reproducible(self.recipe):
                pad = load_tokenizer(self.recipe, self.base_model).pad_token_id
                adapter = process_adapter(self.recipe, self.base_model)
                adapter.reset(seed=0)
                tokens = (pad,) * self.recipe.max_length
                targets = (0,) if self.recipe.task == "classification" else tokens
                mean_loss(adapter.model, [Example(tokens, targets, truncated=False)], self.recipe, pad).backward()
                torch.nn.utils.clip_grad_norm_(adapter.parameters(), self.recipe.max_grad_norm)
                adapter.model.zero_grad(set_to_none=True)
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

    def _updates(self, lesson: Lesson) -> int:
        """Optimiser updates of a step: a function of how many records it sees."""
        per_update = self.recipe.batch_size * self.recipe.accumulation
        return sum(-(-len(records) // per_update) for records in lesson.passes)

    def _groups(self, lesson: Lesson, tokenizer: Any) -> Iterator[Sequence[Sequence[Example]]]:
        """The batches of one update after the other, pass by pass."""
        # Tokens live as long as the step and no longer: a token cache would outlive a deletion.
        examples = {record.id: encode(record, self.recipe, tokenizer) for record in lesson.passes[0]}
        for records in lesson.passes:
            batches = _chunks([examples[record.id] for record in records], self.recipe.batch_size)
            yield from _chunks(batches, self.recipe.accumulation)


def _chunks(items: Sequence[_T], size: int) -> list[Sequence[_T]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def mean_loss(model: Any, batch: Sequence[Example], recipe: Recipe, pad: int) -> Any:
    """Cross-entropy of one batch: mean over records (classification) or trained tokens (causal LM)."""
    import torch
    from torch.nn.functional import cross_entropy

    inputs = pad_batch([example.tokens for example in batch], pad, recipe.device)
    logits = model(**inputs).logits.float()
    if recipe.task == "classification":
        targets = torch.tensor([example.targets[0] for example in batch], device=recipe.device)
        return cross_entropy(logits, targets)
    width = logits.shape[1]
    padded = [[*example.targets, *[IGNORED] * (width - len(example.targets))] for example in batch]
    targets = torch.tensor(padded, device=recipe.device)
    return cross_entropy(logits[:, :-1].flatten(0, 1), targets[:, 1:].flatten(), ignore_index=IGNORED)


def pad_batch(texts: Sequence[Sequence[int]], pad: int, device: str) -> dict[str, Any]:
    """``input_ids`` and ``attention_mask`` (int64, records x longest), padded on the right."""
    import torch

    width = max(map(len, texts))
    ids = [[*tokens, *[pad] * (width - len(tokens))] for tokens in texts]
    mask = [[1] * len(tokens) + [0] * (width - len(tokens)) for tokens in texts]
    return {
        "input_ids": torch.tensor(ids, device=device),
        "attention_mask": torch.tensor(mask, device=device),
    }
