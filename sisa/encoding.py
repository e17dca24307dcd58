"""A record as tokens: which ids the model reads, and which of them it is trained to predict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from shards.errors import ConfigError
from shards.records import Record
from sisa.config import Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100  # PyTorch's index for a position without loss


@dataclass(frozen=True, slots=True)
class Example:
    """A record ready for the model.

    Attributes:
        tokens: token ids, at most ``max_length``.
        targets: per token the id to be predicted there, or ``IGNORED``; for classification one
            number, the label's.
        truncated: the record was longer.
    """

    tokens: tuple[int, ...]
    targets: tuple[int, ...]
    truncated: bool

    @property
    def trainable(self) -> bool:
        """Is there anything to learn?"""
        return any(target != IGNORED for target in self.targets)


def encode(record: Record, recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> Example:
    """Tokens and targets of one record.

    ``text`` is trained in full; ``prompt``/``completion`` and the last assistant turn of
    ``messages`` on the answer only, end token included.

    Raises:
        ConfigError: if ``messages`` meet a tokenizer without a chat template, or a template whose
            prompt is not a prefix of the conversation.
    """
    fields = record.fields()
    if recipe.task == "classification":
        tokens = _ids(tokenizer, fields["text"], special=True)
        cut = tokens
        if len(tokens) > recipe.max_length:  # let the tokenizer keep its closing special token
            cut = tokenizer(fields["text"], truncation=True, max_length=recipe.max_length)["input_ids"]
        return Example(tuple(cut), (recipe.labels.index(fields["label"]),), len(tokens) > recipe.max_length)
    end = [end_token_id(recipe, tokenizer)]
    if "messages" in fields:
        prompt, answer = _conversation(fields["messages"], tokenizer)
    elif "prompt" in fields:
        prompt = _ids(tokenizer, fields["prompt"], special=True)
        answer = _ids(tokenizer, fields["completion"], special=False)
        answer = answer + end if answer else []
    else:
        prompt = []
        answer = _ids(tokenizer, fields["text"], special=True)
        answer = answer + end if fields["text"].strip() else []
    tokens = prompt + answer
    targets = [IGNORED] * len(prompt) + answer
    targets[:1] = [IGNORED] if targets else []  # a causal model predicts every token but the first
    limit = recipe.max_length
    return Example(tuple(tokens[:limit]), tuple(targets[:limit]), len(tokens) > limit)


def encode_prompt(fields: dict[str, Any], recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Tokens from which an answer is generated, or (classification) the text to be labelled."""
    if recipe.task == "classification":
        cut = tokenizer(fields["text"], truncation=True, max_length=recipe.max_length)
        return list(cut["input_ids"])
    if "messages" in fields:
        text = _rendered(fields["messages"], tokenizer, generation=True)
        return _ids(tokenizer, text, special=False)
    return _ids(tokenizer, fields.get("prompt", fields.get("text", "")), special=True)


def pad_batch(
    texts: Sequence[Sequence[int]], pad: int, device: str, width: int | None = None, *, left: bool = False
) -> dict[str, Any]:
    """``input_ids`` and ``attention_mask`` (int64, texts x ``width``, or the longest), padded on the right or left.

    An empty text is all padding, of which one token is seen: attention over nothing is no number.
    """
    import torch

    width = max(1, *map(len, texts)) if width is None else width
    ids = [[*tokens, *[pad] * (width - len(tokens))] for tokens in texts]
    seen = [max(len(tokens), 1) for tokens in texts]
    mask = [[1] * count + [0] * (width - count) for count in seen]
    if left:
        ids, mask = ([row[count:] + row[:count] for row, count in zip(rows, seen, strict=True)] for rows in (ids, mask))
    return {
        "input_ids": torch.tensor(ids, device=device),
        "attention_mask": torch.tensor(mask, device=device),
    }


def end_token_id(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that ends an answer.

    Raises:
        ConfigError: if the recipe's ``end_token`` is not one token of this tokenizer.
    """
    token: Any = recipe.end_token if recipe.end_token is not None else tokenizer.eos_token
    number: Any = tokenizer.convert_tokens_to_ids(token) if token is not None else None
    if number is None or (number == tokenizer.unk_token_id and token != tokenizer.unk_token):
        raise ConfigError("an end_token that the tokenizer knows", repr(token), "set end_token in sisa.yaml")
    return int(number)


def _ids(tokenizer: PreTrainedTokenizerBase, text: str, *, special: bool) -> list[int]:
    return list(tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"])


def _conversation(messages: list[dict[str, str]], tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    whole = _rendered(messages, tokenizer, generation=False)
    prompt = _rendered(messages[:-1], tokenizer, generation=True)
    if not whole.startswith(prompt):
        raise ConfigError(
            "a chat template whose prompt is a prefix of the conversation",
            "one that renders the same turns differently",
            "use another template, or prompt/completion records",
        )
    if not messages[-1]["content"].strip():
        return _ids(tokenizer, prompt, special=False), []
    answer = whole[len(prompt) :]
    return _ids(tokenizer, prompt, special=False), _ids(tokenizer, answer, special=False)


def _rendered(messages: Sequence[dict[str, str]], tokenizer: PreTrainedTokenizerBase, *, generation: bool) -> str:
    if not tokenizer.chat_template:
        raise ConfigError(
            "a tokenizer with a chat template, which records with messages need",
            "none",
            "add one to the base model's directory, or use prompt/completion records",
        )
    if "strftime_now" in str(tokenizer.chat_template):
        raise ConfigError(
            "a chat template that depends on the messages alone",
            "one that reads the clock (strftime_now)",
            "write a fixed date into the template of the base model's directory",
        )
    text: Any = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=generation)
    return str(text)
