"""Can a recipe be trained on its base, and exactly? Tried on invented texts before the recipe is pinned.

What is asked of the base is what the program relies on and no configuration tells: that lanes share nothing,
that the layers below a cut make a constant of each record, that the halves and the head compute what the model
does. A base of which one of these is not true is refused.
"""

from __future__ import annotations

from typing import Any

import torch

from orchestration.executor import Lesson
from shards.errors import ConfigError
from shards.records import Record, make_content
from sisa.adapter import Adapter
from sisa.config import Recipe
from sisa.course import Course, together
from sisa.encoding import Example
from sisa.layers import ADAPT_ALL

_RECORDS = tuple(Record(name, make_content({"text": name})) for name in ("long", "short"))


def prove_step(adapter: Adapter, recipe: Recipe, tokenizer: Any) -> None:
    """Make an update on two invented texts, one of full length.

    Raises:
        ConfigError: if lanes or layers meet a base that is not made for them.
    """
    examples = _invented(recipe, tokenizer)
    with torch.random.fork_rng(devices=[]):
        alone = _gradients(adapter, recipe, examples, tokenizer.pad_token_id, seed=1)
        beside = _gradients(adapter, recipe, examples, tokenizer.pad_token_id, seed=2)
    if recipe.lanes > 1 and not all(map(torch.equal, alone, beside)):
        raise _unfit("lanes that share nothing", "one by whose layers a lane's neighbours reach it", "set lanes to 1")
    if adapter.cut is not None:
        tokens = examples["long"].tokens
        with adapter.lanes.only(0):
            if not adapter.cut.whole(tokens):
                raise _unfit("halves that compute what the whole does", "others", ADAPT_ALL)
            if trained := adapter.trained_in(lambda: adapter.cut and adapter.cut.below(tokens)):
                raise _unfit("frozen layers below the adapted ones", f"{trained[0]}, which is trained", ADAPT_ALL)
    if not adapter.pristine() and (adapter.cut is not None or recipe.lanes > 1):
        raise _unfit(
            "buffers that are the same for every text, under lanes or frozen layers",
            "one that changes its buffers (dynamic rotary frequencies)",
            "set lanes to 1 and layers to all",
        )


def _invented(recipe: Recipe, tokenizer: Any) -> dict[str, Example]:
    """A text of full length and a shorter one, of tokens that differ from each other as far as there are some."""
    plain = sorted(set(range(len(tokenizer))) - set(tokenizer.all_special_ids)) or [tokenizer.pad_token_id]
    texts = {
        "long": tuple(plain[(7 * at) % len(plain)] for at in range(recipe.max_length)),
        "short": tuple(plain[(5 * at + 3) % len(plain)] for at in range(max(2, recipe.max_length // 2))),
    }
    labelled = recipe.task == "classification"
    return {name: Example(tokens, (0,) if labelled else tokens, truncated=False) for name, tokens in texts.items()}


def _gradients(
    adapter: Adapter, recipe: Recipe, examples: dict[str, Example], pad: int, seed: int
) -> list[torch.Tensor]:
    """What lane 0 ends an update with, while all other slots hold what follows from ``seed``."""
    course = Course(adapter, 0, Lesson((_RECORDS,), None, bytes(32)), recipe, examples)
    torch.manual_seed(seed)
    for lane in range(1, recipe.lanes):
        for parameter in adapter.parameters(lane):
            parameter.data.normal_()
    while course.left:
        together(adapter, [course], recipe, pad)
    return [parameter.detach().clone() for parameter in course.parameters]


def _unfit(expected: str, found: str, remedy: str) -> ConfigError:
    return ConfigError(f"a base model with {expected}", found, f"{remedy}; nothing was taken in")
