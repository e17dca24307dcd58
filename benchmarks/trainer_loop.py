"""The other yardstick: transformers' own ``Trainer`` with PEFT, set to the same recipe and told to keep quiet."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.plain_loop import Plain, adapted, tokenizer_of, tokens_and_labels
from benchmarks.settings import LEARNING_RATE, MAX_GRAD_NORM
from shards.records import Record


class TrainerLoop:
    """One model, one adapter; tokens are made before the clock starts, padding is as wide as each batch needs."""

    def __init__(self, plain: Plain, scratch: Path) -> None:
        """Load the base and put an adapter and a head on it; ``scratch`` is for what Trainer insists on writing."""
        self._plain, self._scratch = plain, scratch
        self._tokenizer = tokenizer_of(plain)
        self.model = adapted(plain)

    def ready(self, records: Sequence[Record], epochs: int) -> Any:
        """A ``Trainer`` over these records that has only to be told to train."""
        from transformers import DataCollatorForSeq2Seq, DataCollatorWithPadding, Trainer, TrainingArguments

        rows = []
        for record in records:
            tokens, labels = tokens_and_labels(self._plain, self._tokenizer, record)
            rows.append({"input_ids": tokens, "attention_mask": [1] * len(tokens), "labels": labels})
        arguments = TrainingArguments(
            output_dir=str(self._scratch),
            per_device_train_batch_size=self._plain.batch,
            num_train_epochs=epochs,
            learning_rate=LEARNING_RATE,
            lr_scheduler_type="constant",
            weight_decay=0.0,
            max_grad_norm=MAX_GRAD_NORM,
            logging_strategy="no",
            save_strategy="no",
            eval_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=self._plain.device == "cpu",
        )
        collator = DataCollatorWithPadding if self._plain.labels else DataCollatorForSeq2Seq
        return Trainer(model=self.model, args=arguments, train_dataset=rows, data_collator=collator(self._tokenizer))
