"""Read exported models with whatever transformers is installed, and compare with what was stored beside them.

Runs in an environment of its own, without sisa: ``python read_models.py DIRECTORY``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

TOLERANCE = 1e-5
AUTO: dict[str, Any] = {"classification": AutoModelForSequenceClassification, "causal-lm": AutoModelForCausalLM}


def main(root: Path) -> int:
    """Compare everything under ``root``; how many models differ."""
    print(f"transformers {transformers.__version__}, peft {peft.__version__}, torch {torch.__version__}")  # noqa: T201
    bad = 0
    for task, auto in AUTO.items():
        directory = root / f"{task}-model"
        model, info = auto.from_pretrained(directory, torch_dtype="auto", output_loading_info=True)
        bad += judged(directory, model, directory, [f"{what} {names}" for what, names in info.items() if names])
        adapter = root / f"{task}-adapter"
        labels = {"num_labels": model.config.num_labels} if task == "classification" else {}
        base = readable_base(root / f"{task}-base", directory)
        adapted = PeftModel.from_pretrained(auto.from_pretrained(base, **labels), str(adapter))
        bad += judged(adapter, adapted, directory, [])
    return bad


def readable_base(base: Path, model: Path) -> Path:
    """The base under the exported model's configuration: its own was written by a newer transformers."""
    for name in ("config.json", "tokenizer_config.json"):
        (base / name).write_text((model / name).read_text())
    return base


def judged(directory: Path, model: Any, tokenizer_at: Path, problems: list[str]) -> bool:
    """Print how a model compares; whether it differs."""
    tokenizer: Any = AutoTokenizer.from_pretrained(tokenizer_at)
    model.eval()
    worst = 0.0
    for row in json.loads((directory / "expected.json").read_text()):
        inputs = tokenizer(row["text"])
        if dict(inputs) != row["inputs"]:
            problems.append(f"other tokens of {row['text']!r}: {dict(inputs)}")
        if tokenizer.decode(row["inputs"]["input_ids"], skip_special_tokens=True) != row["decoded"]:
            problems.append(f"other text of {row['text']!r}")
        with torch.no_grad():
            logits = model(**{name: torch.tensor([ids]) for name, ids in row["inputs"].items()}).logits[0]
        wanted = torch.tensor(row["logits"])
        worst = max(worst, float((logits - wanted).abs().max() / wanted.abs().max().clamp(min=1)))
    problems += [] if worst <= TOLERANCE else [f"logits differ by {worst:g}"]
    if "model" in directory.name and model.can_generate() and "causal" in directory.name:
        model.generate(**tokenizer("my card", return_tensors="pt"), do_sample=False, max_new_tokens=4)
    print(f"{directory.name}: {'; '.join(problems) or f'the same, logits within {worst:g}'}")  # noqa: T201
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
