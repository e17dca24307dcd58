"""How a model of a recipe's task is asked: for labels, for what it holds of an answer, and for an answer.

Many models side by side are asked in the same way, so what is said of them can be held against what is said of one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig

from shards.errors import RecordError
from shards.records import Record, make_content
from sisa.base_model import quiet_transformers
from sisa.config import Recipe, RunOptions
from sisa.encoding import IGNORED, Example, encode, encode_prompt, end_token_id, pad_batch


@dataclass(frozen=True, slots=True)
class Asked:
    """A model, or several side by side. Whoever asks turns gradients off, and the recipe's switches on.

    Attributes:
        recipe, options: how.
        tokenizer: the base's.
        model: what generates.
        scores: a model's inputs → each part's scores, (parts x rows, ...), part after part.
        parts: how many models are side by side.
        positions: how many may be scored at once, for each has the whole vocabulary's scores.
        cached: can it keep a cache?
        context: positions that the base has for a prompt and its answer; None where it has no end.
    """

    recipe: Recipe
    options: RunOptions
    tokenizer: Any
    model: Any
    scores: Callable[..., torch.Tensor]
    parts: int
    positions: int
    cached: bool = True
    context: int | None = None

    def logits(self, inputs: Sequence[Mapping[str, Any]]) -> torch.Tensor:
        """Scores of each input's ``text``: (parts, inputs, labels), float64 on the CPU."""
        texts = [encode_prompt(dict(fields), self.recipe, self.tokenizer) for fields in inputs]
        found: list[Any] = [None] * len(texts)
        for some in _alike(texts, self.recipe.batch_size):
            scores = self.scores(**self._batch([texts[at] for at in some])).double().cpu()
            for at, each in zip(some, scores.view(self.parts, len(some), -1).unbind(1), strict=True):
                found[at] = each
        return torch.stack(found, 1)

    def answer_scores(self, records: Sequence[Mapping[str, Any]]) -> list[torch.Tensor]:
        """Log-probability (nats) of each token that training would learn: (parts, tokens), float64 on the CPU.

        Args:
            records: contents as records have them: ``prompt`` and ``completion``, ``messages``, or ``text``.
        """
        return [self._scored(self._example(fields)) for fields in records]

    def _example(self, fields: Mapping[str, Any]) -> Example:
        return encode(Record(id="answer", content=make_content(dict(fields))), self.recipe, self.tokenizer)

    def _scored(self, example: Example) -> torch.Tensor:
        places = [at for at, target in enumerate(example.targets) if target != IGNORED]
        tokens = torch.tensor([example.tokens], device=self.recipe.device)
        found = [torch.zeros(self.parts, 0, dtype=torch.float64)]
        for start in range(0, len(places), self.positions):
            some = torch.tensor(places[start : start + self.positions], device=self.recipe.device)
            seen = tokens[:, : int(some[-1])]  # a causal model reads no further
            logits = self.scores(input_ids=seen, use_cache=False, logits_to_keep=some - 1)
            found.append(logits.double().log_softmax(-1)[:, range(len(some)), tokens[0, some]].cpu())
        return torch.cat(found, 1)

    def generate(self, inputs: Sequence[Mapping[str, Any]]) -> list[str]:
        """The answer to each input's ``prompt``, ``text`` or ``messages``, up to where answers were trained to end.

        Greedy, unless the options ask for beams or sampling; sampling begins at the options' seed in every call.
        """
        recipe, options, tokenizer = self.recipe, self.options, self.tokenizer
        sampling = {"do_sample": True, "temperature": options.temperature, "top_k": 0} if options.temperature else {}
        end = end_token_id(recipe, tokenizer)
        how = GenerationConfig(
            max_new_tokens=options.max_new_tokens,
            num_beams=options.num_beams,
            eos_token_id=end,
            pad_token_id=tokenizer.pad_token_id,
            use_cache=self.cached,
            **sampling,
        )
        torch.manual_seed(options.sampling_seed)
        prompts = [encode_prompt(dict(fields), recipe, tokenizer) for fields in inputs]
        refuse_too_long(prompts, self.context, options.max_new_tokens)
        answers = [""] * len(prompts)
        for some in _alike(prompts, recipe.batch_size):
            rows = self._batch([prompts[at] for at in some], left=True)
            with quiet_transformers():
                made = self.model.generate(**rows, generation_config=how)
            for at, tokens in zip(some, made[:, rows["input_ids"].shape[1] :].tolist(), strict=True):
                answer = tokens[: tokens.index(end)] if end in tokens else tokens
                answers[at] = str(tokenizer.decode(answer, skip_special_tokens=True))
        return answers

    def _batch(self, texts: Sequence[Sequence[int]], *, left: bool = False) -> dict[str, Any]:
        return pad_batch(texts, self.tokenizer.pad_token_id, self.recipe.device, left=left)


def plain_generation(recipe: Recipe, tokenizer: Any) -> GenerationConfig:
    """Settings with nothing of the base's own, which a model would add to any that it is given."""
    return GenerationConfig(eos_token_id=end_token_id(recipe, tokenizer), pad_token_id=tokenizer.pad_token_id)


def context_of(config: Any) -> int | None:
    """How many positions a base with this configuration has, if it says."""
    found = getattr(config.get_text_config(), "max_position_embeddings", None)
    return None if found is None else int(found)


def refuse_too_long(prompts: Sequence[Sequence[int]], context: int | None, new: int) -> None:
    """Raise RecordError unless each prompt leaves ``new`` of the base's ``context`` positions for an answer."""
    for number, prompt in enumerate(prompts, 1):
        if context is not None and len(prompt) + new > context:
            raise RecordError(
                f"prompts of at most {max(context - new, 0)} tokens, leaving {new} of the base's {context} to answer",
                f"{len(prompt)} tokens in input {number}",
                "shorten it, or set a smaller max_new_tokens",
            )


def _alike(texts: Sequence[Sequence[int]], size: int) -> Iterator[list[int]]:
    """Positions of texts of like length, ``size`` at a time: little of a pass is padding."""
    order = sorted(range(len(texts)), key=lambda at: len(texts[at]))
    for start in range(0, len(order), size):
        yield order[start : start + size]
