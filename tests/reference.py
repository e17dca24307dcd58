"""What each served head says alone: loaded by PEFT from its directory, one text at a time. Slow, and plainly right."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from shards.records import Record, make_content
from sisa.base_model import load_tokenizer, pinned_path
from sisa.encoding import IGNORED, encode, encode_prompt
from sisa.served import ServedHead, served_heads
from sisa.session import Session


def heads_of(session: Session) -> tuple[ServedHead, ...]:
    """What is served."""
    manifest = session.workspace.book.manifest()
    assert manifest is not None
    return served_heads(session.workspace, manifest)


def by_peft(session: Session, heads: Sequence[ServedHead] | None = None) -> list[Any]:
    """Each head as PEFT loads it; all that are served, unless told."""
    from peft import AutoPeftModelForCausalLM, AutoPeftModelForSequenceClassification

    live = session.workspace.book.live()
    files = [live[head.head.checkpoint].files for head in (heads_of(session) if heads is None else heads)]
    paths = [str(session.workspace.store.path(each)) for each in files]
    dtype = getattr(torch, session.recipe.dtype)
    if session.recipe.task == "causal-lm":
        return [AutoPeftModelForCausalLM.from_pretrained(path, dtype=dtype).eval() for path in paths]
    load = AutoPeftModelForSequenceClassification.from_pretrained
    return [load(path, num_labels=len(session.recipe.labels), dtype=dtype).eval() for path in paths]


@torch.no_grad()
def shard_logits(session: Session, heads: Sequence[ServedHead], inputs: Sequence[dict[str, Any]]) -> torch.Tensor:
    """(heads, inputs, labels)."""
    texts = [encode_prompt(fields, session.recipe, tokenizer_of(session)) for fields in inputs]
    rows = [[_logits(model, text) for text in texts] for model in by_peft(session, heads)]
    scores: torch.Tensor = torch.stack([torch.stack(row) for row in rows])
    return scores


@torch.no_grad()
def answer_logits(session: Session, heads: Sequence[ServedHead], content: dict[str, Any]) -> tuple[Any, list[int]]:
    """Scores of the next token (heads, tokens, vocabulary) where one is to be learnt, and these tokens."""
    example = encode(Record("x", make_content(content)), session.recipe, tokenizer_of(session))
    places = [at for at, target in enumerate(example.targets) if target != IGNORED]
    rows = [_logits(model, example.tokens)[[at - 1 for at in places]] for model in by_peft(session, heads)]
    return torch.stack(rows), [example.tokens[at] for at in places]


def answer_scores(
    session: Session, heads: Sequence[ServedHead], contents: Sequence[dict[str, Any]]
) -> list[torch.Tensor]:
    """Log-probability of each token to be learnt, for each record (heads, tokens)."""
    found = []
    for content in contents:
        logits, tokens = answer_logits(session, heads, content)
        found.append(logits.log_softmax(-1)[:, range(len(tokens)), tokens])
    return found


def tokenizer_of(session: Session) -> Any:
    """The base's."""
    return load_tokenizer(session.recipe, str(pinned_path(session.recipe, session.options.base_model)))


def _logits(model: Any, tokens: Sequence[int]) -> torch.Tensor:
    scores: torch.Tensor = model(input_ids=torch.tensor([tokens])).logits[0].double()
    return scores
