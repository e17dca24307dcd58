"""Trained workspaces to ask, and what plain PEFT makes of their heads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sisa.served import ServedHead, served_heads
from sisa.session import Session
from tests.models import LABELS, flat, grid, make_workspace, train_in, write_rows

TEXTS = ["my card was charged twice", "login fails", "please send a refund to this account", "x", "nobody answered"]
INPUTS = [{"text": text} for text in TEXTS]


def trained(root: Path, task: str, base: Path | str, **values: Any) -> Path:
    """A workspace of two records at every place."""
    workspace = make_workspace(root / "workspace", task, base, **values)
    train_in(workspace, write_rows(root / "data.jsonl", flat(grid(task, 2, **values))))
    return workspace


def heads_of(session: Session) -> tuple[ServedHead, ...]:
    """What is served."""
    manifest = session.workspace.book.manifest()
    assert manifest is not None
    return served_heads(session.workspace, manifest)


def by_peft(session: Session) -> list[Any]:
    """Each served head as PEFT loads it from its directory."""
    from peft import AutoPeftModelForCausalLM, AutoPeftModelForSequenceClassification

    paths = [str(session.workspace.store.path(made.files)) for _, made in session.workspace.book.served()]
    if session.recipe.task == "causal-lm":
        return [AutoPeftModelForCausalLM.from_pretrained(path).eval() for path in paths]
    load = AutoPeftModelForSequenceClassification.from_pretrained
    return [load(path, num_labels=len(LABELS)).eval() for path in paths]


def greedy_by_hand(models: Sequence[Any], tokens: list[int], end: int, limit: int) -> list[int]:
    """Token by token from the mean of the models' distributions, without any cache: the whole text every time."""
    import torch

    answer: list[int] = []
    with torch.inference_mode():
        while len(answer) < limit:
            seen = torch.tensor([tokens + answer])
            rows = [model(input_ids=seen).logits[0, -1].double().softmax(-1) for model in models]
            best = int(torch.stack(rows).mean(0).argmax())
            if best == end:
                break
            answer.append(best)
    return answer
