"""One transformers model, asked without PEFT: a merge over a base of its own, or an ensemble as it is exported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from inspect import signature
from typing import Any

import torch

from shards.errors import InputError
from sisa.asking import Asked, context_of, plain_generation
from sisa.base_model import load_base, load_tokenizer, pinned_path, quiet_transformers
from sisa.config import Recipe
from sisa.determinism import reproducible
from sisa.session import Session


def merged_model(session: Session, tensors: Mapping[str, torch.Tensor]) -> PlainModel:
    """What :func:`folded` gives of a session's base, ready to be asked.

    Raises:
        InputError: as there.
    """
    base = str(pinned_path(session.recipe, session.options.base_model))
    return PlainModel(session, folded(session.recipe, base, tensors))


def folded(recipe: Recipe, base: str, tensors: Mapping[str, torch.Tensor]) -> Any:
    """The base, fresh from disk, with a merge's full weights (by the base's own names) in place of its own.

    Raises:
        InputError: if they are not this base's, or leave a head that no file holds.
    """
    with quiet_transformers():
        model, missing = load_base(recipe, base)
    own = model.state_dict()
    odd = [name for name, tensor in tensors.items() if name not in own or own[name].shape != tensor.shape]
    odd += sorted(missing - tensors.keys())
    if odd or not tensors:
        raise InputError(
            "full weights that this base can take",
            f"none that fit, for instance of {odd[0]}" if odd else "a merge that is an adapter only",
            "export the merge, and evaluate what was exported",
        )
    model.load_state_dict(tensors, strict=False)
    return model.eval()


class PlainModel:
    """A model of the recipe's task, asked under the recipe's switches."""

    def __init__(self, session: Session, model: Any) -> None:
        recipe, options = session.recipe, session.options
        tokenizer: Any = load_tokenizer(recipe, str(pinned_path(recipe, options.base_model)))
        if recipe.task == "causal-lm":
            model.generation_config = plain_generation(recipe, tokenizer)
        lanes = getattr(model.config, "shards", 1)  # an ensemble has so many rows of scores where it gives one
        most = max(1, recipe.loss_positions // lanes)
        self._recipe, self._model, self._taken = recipe, model, frozenset(signature(model.forward).parameters)
        context = context_of(getattr(model, "base", model).config)  # an ensemble's is its base's
        self._asked = Asked(recipe, options, tokenizer, model, self._scores, 1, most, context=context)

    def _scores(self, **inputs: Any) -> torch.Tensor:
        given = {name: value for name, value in inputs.items() if name in self._taken}
        scores: torch.Tensor = self._model(**given).logits
        kept = inputs.get("logits_to_keep")
        return scores if kept is None or "logits_to_keep" in self._taken else scores[:, kept]

    def logits(self, inputs: Sequence[Mapping[str, Any]]) -> torch.Tensor:
        """Scores (inputs, labels) of each input's ``text``."""
        with reproducible(self._recipe), torch.no_grad():
            return self._asked.logits(inputs)[0]

    def answer_scores(self, records: Sequence[Mapping[str, Any]]) -> list[torch.Tensor]:
        """The log-probability (nats) of each target token, one tensor (tokens) a record's content."""
        with reproducible(self._recipe), torch.no_grad():
            return [scores[0] for scores in self._asked.answer_scores(records)]

    def generate(self, inputs: Sequence[Mapping[str, Any]]) -> list[str]:
        """The answer to each input's ``prompt``, ``text`` or ``messages``, as the options say."""
        with reproducible(self._recipe), torch.no_grad():
            return self._asked.generate(inputs)
