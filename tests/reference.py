"""What each served head says alone: in the one adapter slot, one text at a time. Slow, and plainly right."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from shards.records import Record, make_content
from sisa.adapter import process_adapter
from sisa.base_model import load_tokenizer, pinned_path
from sisa.encoding import IGNORED, encode, encode_prompt, pad_batch
from sisa.served import ServedHead
from sisa.session import Session

Slot = Callable[[ServedHead], Any]


def alone(session: Session) -> tuple[Slot, Any]:
    """What puts a head into the slot and returns the model, and the tokenizer."""
    base = str(pinned_path(session.recipe, session.options.base_model))
    adapter = process_adapter(session.recipe, base)

    def put(head: ServedHead) -> Any:
        adapter.load(head.weights)
        return adapter.model

    return put, load_tokenizer(session.recipe, base)


@torch.no_grad()
def shard_logits(session: Session, heads: Sequence[ServedHead], inputs: Sequence[dict[str, Any]]) -> torch.Tensor:
    put, tokenizer = alone(session)
    texts = [encode_prompt(fields, session.recipe, tokenizer) for fields in inputs]
    rows = []
    for head in heads:
        model = put(head)
        rows.append([model(**pad_batch([text], 0, "cpu")).logits[0].double() for text in texts])
    scores: torch.Tensor = torch.stack([torch.stack(row) for row in rows])
    return scores


@torch.no_grad()
def answer_scores(
    session: Session, heads: Sequence[ServedHead], contents: Sequence[dict[str, Any]]
) -> list[torch.Tensor]:
    put, tokenizer = alone(session)
    found: list[list[torch.Tensor]] = [[] for _ in contents]
    for head in heads:
        model = put(head)
        for scores, content in zip(found, contents, strict=True):
            example = encode(Record("x", make_content(content)), session.recipe, tokenizer)
            logits = model(**pad_batch([example.tokens], 0, "cpu")).logits[0].double().log_softmax(-1)
            pairs = [(at, target) for at, target in enumerate(example.targets) if target != IGNORED]
            scores.append(torch.stack([logits[at - 1, target] for at, target in pairs]))
    return [torch.stack(scores) for scores in found]
