"""Export models to be read by an older transformers, and store what they answer here. Run by ``make test-compat``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from sisa.export_model import Wish, export_model
from sisa.session import open_session
from tests.models import LABELS, TEXT, flat, grid, make_workspace, save_tiny_bert, save_tiny_llama, train_in, write_rows

TEXTS = (TEXT, "please don't send it , again .", "x")
EXPECTED = "expected.json"


def main(root: Path) -> None:
    """A full model and a merged adapter of each task under ``root``."""
    root.mkdir(parents=True)
    for task, save in (("classification", save_tiny_bert), ("causal-lm", save_tiny_llama)):
        base = save(root / f"{task}-base")
        workspace = make_workspace(root / f"{task}-workspace", task, base, slices=2)
        train_in(workspace, write_rows(root / f"{task}.jsonl", flat(grid(task, 3, slices=2))))
        with open_session(workspace) as session:
            for form in ("model", "adapter"):
                export_model(session, Wish(form), root / f"{task}-{form}")
        auto: Any = AutoModelForSequenceClassification if task == "classification" else AutoModelForCausalLM
        remember(auto.from_pretrained(root / f"{task}-model"), root / f"{task}-model", root / f"{task}-model")
        labels = {"num_labels": len(LABELS)} if task == "classification" else {}
        adapted = PeftModel.from_pretrained(auto.from_pretrained(base, **labels), root / f"{task}-adapter")
        remember(adapted, base, root / f"{task}-adapter")


def remember(model: Any, tokenizer_at: Path, directory: Path) -> None:
    """What a model answers, beside it."""
    tokenizer: Any = AutoTokenizer.from_pretrained(tokenizer_at)
    model.eval()
    rows = []
    for text in TEXTS:
        inputs = tokenizer(text)
        with torch.no_grad():
            logits = model(**{name: torch.tensor([ids]) for name, ids in inputs.items()}).logits[0]
        decoded = tokenizer.decode(inputs["input_ids"], skip_special_tokens=True)
        rows.append({"text": text, "inputs": dict(inputs), "decoded": decoded, "logits": logits.tolist()})
    (directory / EXPECTED).write_text(json.dumps(rows))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
