"""The yardstick: LoRA training as transformers and PEFT users write it, with nothing of ours in it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.settings import BATCH, LEARNING_RATE, LORA_ALPHA, LORA_RANK, MAX_GRAD_NORM, MAX_LENGTH
from shards.records import Record


class PlainLoop:
    """One model, one adapter, one pass at a time."""

    def __init__(self, path: Path, labels: Sequence[str]) -> None:
        """Load the base from the directory ``path`` and put an adapter and a head on it."""
        import torch
        from peft import LoraConfig, TaskType, get_peft_model
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        torch.manual_seed(0)
        self._labels = {label: number for number, label in enumerate(labels)}
        self._tokenizer: Any = AutoTokenizer.from_pretrained(str(path))
        base = AutoModelForSequenceClassification.from_pretrained(str(path), num_labels=len(labels))
        config = LoraConfig(task_type=TaskType.SEQ_CLS, r=LORA_RANK, lora_alpha=LORA_ALPHA, target_modules="all-linear")
        self._model: Any = get_peft_model(base, config)

    def run(self, records: Sequence[Record]) -> float:
        """One pass in the given order; returns the loss of the last batch."""
        import torch
        from transformers import get_constant_schedule_with_warmup

        parameters = [parameter for parameter in self._model.parameters() if parameter.requires_grad]
        optimiser = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=0.0)
        schedule = get_constant_schedule_with_warmup(optimiser, num_warmup_steps=0)
        self._model.train()
        last = 0.0
        for start in range(0, len(records), BATCH):
            loss = self._model(**self._batch(records[start : start + BATCH])).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, MAX_GRAD_NORM)
            optimiser.step()
            schedule.step()
            optimiser.zero_grad()
            last = float(loss.detach())
        return last

    def _batch(self, records: Sequence[Record]) -> dict[str, Any]:
        import torch

        rows = [record.fields() for record in records]
        tokens = self._tokenizer(
            [row["text"] for row in rows], padding=True, truncation=True, max_length=MAX_LENGTH, return_tensors="pt"
        )
        return {**tokens, "labels": torch.tensor([self._labels[row["label"]] for row in rows])}
