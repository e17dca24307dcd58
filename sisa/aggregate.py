"""Combine the predictions of the served constituent models.

Classification: the mean of their probabilities (SISA found it better than a vote of labels).
Causal LM: the mean of their next-token probabilities, token by token, decoded greedily.

Gradients are off by ``no_grad``, not by inference mode: the process keeps the adapter slot, and
tensors made in inference mode could never be trained afterwards.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from sisa.adapter import Adapter, process_adapter
from sisa.base_model import load_tokenizer, pinned_path
from sisa.determinism import reproducible
from sisa.encoding import encode_prompt, end_token_id, pad_batch
from sisa.session import Session


@dataclass(frozen=True, slots=True)
class _Served:
    """What an answer is made with."""

    tokenizer: Any
    adapter: Adapter


@contextmanager
def _serving(session: Session) -> Iterator[_Served]:
    """The adapter slot to put heads in, under the recipe's switches."""
    recipe = session.recipe
    with reproducible(recipe), torch.no_grad():
        base = str(pinned_path(recipe, session.options.base_model))
        adapter = process_adapter(recipe, base)
        adapter.model.eval()
        yield _Served(load_tokenizer(recipe, base), adapter)


def classify(session: Session, heads: Sequence[bytes], inputs: Sequence[dict[str, Any]]) -> list[dict[str, float]]:
    """Label → mean probability over ``heads`` (their tensors), for each input with a ``text``."""
    recipe = session.recipe
    with _serving(session) as served:
        texts = [encode_prompt(fields, recipe, served.tokenizer) for fields in inputs]
        total = torch.zeros(len(texts), len(recipe.labels), dtype=torch.float64)
        for weights in heads:
            served.adapter.load(weights)
            for start in range(0, len(texts), recipe.batch_size):
                chunk = texts[start : start + recipe.batch_size]
                logits = served.adapter.model(**pad_batch(chunk, served.tokenizer.pad_token_id, recipe.device)).logits
                total[start : start + recipe.batch_size] += logits.double().softmax(-1).cpu()
        means = (total / len(heads)).tolist()
    return [dict(zip(recipe.labels, mean, strict=True)) for mean in means]


def generate(session: Session, heads: Sequence[bytes], inputs: Sequence[dict[str, Any]]) -> list[str]:
    """The greedy answer of ``heads`` (their tensors) together to each input's ``prompt``, ``text`` or ``messages``."""
    recipe = session.recipe
    answers = []
    with _serving(session) as served:
        end = end_token_id(recipe, served.tokenizer)
        for fields in inputs:
            prompt = encode_prompt(fields, recipe, served.tokenizer)
            answer = _decode(served.adapter, heads, prompt, end, session.options.max_new_tokens)
            answers.append(str(served.tokenizer.decode(answer, skip_special_tokens=True)))
    return answers


def _decode(adapter: Adapter, heads: Sequence[bytes], prompt: list[int], end: int, limit: int) -> list[int]:
    """Greedy tokens from the mean distribution; each head reads with a cache of its own."""
    caches: list[Any] = [None] * len(heads)
    answer: list[int] = []
    tokens = torch.tensor([prompt], device=adapter.model.device)
    while len(answer) < limit:
        total = torch.zeros((), dtype=torch.float64)
        for number, weights in enumerate(heads):
            if len(heads) > 1 or not answer:  # one head stays where it is
                adapter.load(weights)
            out = adapter.model(input_ids=tokens, past_key_values=caches[number], use_cache=True)
            caches[number] = out.past_key_values
            total = total + out.logits[0, -1].double().softmax(-1).cpu()
        best = int(total.argmax())
        if best == end:
            break
        answer.append(best)
        tokens = torch.tensor([[best]], device=adapter.model.device)
    return answer
