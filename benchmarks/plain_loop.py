"""The yardstick: LoRA training as transformers and PEFT users write it, with nothing of ours in it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.settings import BATCH, LEARNING_RATE, LORA_ALPHA, LORA_RANK, MAX_GRAD_NORM, MAX_LENGTH
from shards.records import Record

_IGNORED = -100  # PyTorch's index for a position without loss


@dataclass(frozen=True, slots=True)
class Plain:
    """What a yardstick trains.

    Attributes:
        path: directory of the base.
        labels: of classification; none for a causal model.
        targets: full names of the layers that get an adapter; none for all linear ones.
        batch: records in an update.
        max_length: tokens kept of a record.
        dtype: of the base's weights.
        device: where it is trained.
    """

    path: Path
    labels: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    batch: int = BATCH
    max_length: int = MAX_LENGTH
    dtype: str = "float32"
    device: str = "cpu"


def adapted(plain: Plain) -> Any:
    """The base with adapters (and a head). Its dropouts are off, as a frozen base's are in our recipe."""
    import torch
    from peft import LoraConfig, TaskType, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(str(plain.path))
    for name, value in vars(config).copy().items():
        if "drop" in name and isinstance(value, float):
            setattr(config, name, 0.0)
    if plain.labels:
        config.num_labels = len(plain.labels)
    kind: Any = AutoModelForSequenceClassification if plain.labels else AutoModelForCausalLM
    base = kind.from_pretrained(str(plain.path), config=config, dtype=getattr(torch, plain.dtype))
    lora = LoraConfig(
        task_type=TaskType.SEQ_CLS if plain.labels else TaskType.CAUSAL_LM,
        r=LORA_RANK,
        lora_alpha=LORA_ALPHA,
        target_modules=list(plain.targets) or "all-linear",
    )
    return get_peft_model(base, lora).to(plain.device)


def tokenizer_of(plain: Plain) -> Any:
    """The base's tokenizer."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(plain.path))


def tokens_and_labels(plain: Plain, tokenizer: Any, record: Record) -> tuple[list[int], Any]:
    """Token ids, and the number of the label or (causal) the ids with the prompt's left out."""
    row = record.fields()
    if plain.labels:
        tokens = tokenizer(row["text"], truncation=True, max_length=plain.max_length)["input_ids"]
        return tokens, plain.labels.index(row["label"])
    prompt = tokenizer(row["prompt"])["input_ids"] if "prompt" in row else []
    answer = tokenizer(row.get("completion", row.get("text")), add_special_tokens=not prompt)["input_ids"]
    tokens = [*prompt, *answer, tokenizer.eos_token_id][: plain.max_length]
    return tokens, [_IGNORED if at < max(len(prompt), 1) else token for at, token in enumerate(tokens)]


class PlainLoop:
    """One model, one adapter, one pass at a time."""

    def __init__(self, plain: Plain) -> None:
        """Load the base and put an adapter and a head on it."""
        self._plain = plain
        self._tokenizer = tokenizer_of(plain)
        self.model = adapted(plain)

    def run(self, records: Sequence[Record], epochs: int = 1) -> float:
        """Passes in the given order; returns the loss of the last batch."""
        import torch
        from transformers import get_constant_schedule_with_warmup

        parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        optimiser = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=0.0)
        schedule = get_constant_schedule_with_warmup(optimiser, num_warmup_steps=0)
        self.model.train()
        last = 0.0
        for batch in self._batches(records, epochs):
            loss = self.model(**batch).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, MAX_GRAD_NORM)
            optimiser.step()
            schedule.step()
            optimiser.zero_grad()
            last = float(loss.detach())
        return last

    def _batches(self, records: Sequence[Record], epochs: int) -> Iterator[dict[str, Any]]:
        for _ in range(epochs):
            for start in range(0, len(records), self._plain.batch):
                yield self._batch(records[start : start + self._plain.batch])

    def _batch(self, records: Sequence[Record]) -> dict[str, Any]:
        import torch

        rows = [tokens_and_labels(self._plain, self._tokenizer, record) for record in records]
        batch = dict(self._tokenizer.pad({"input_ids": [tokens for tokens, _ in rows]}, return_tensors="pt"))
        labels = [each for _, each in rows]
        if not self._plain.labels:
            width = batch["input_ids"].shape[1]
            labels = [[*each, *[_IGNORED] * (width - len(each))] for each in labels]
        batch["labels"] = torch.tensor(labels)
        return {name: tensor.to(self._plain.device) for name, tensor in batch.items()}
