"""The head of a causal model, run on some positions alone, where the model lets it.

Scoring every position of a batch takes memory that grows with vocabulary x length, and most prompts are
not trained on. The model's own code computes the scores, with whatever it does to them (soft caps,
scales); it is only given fewer states. Whether that works is a fact of the base, found out once.
"""

from __future__ import annotations

from copy import copy
from typing import Any

import torch


class Head:
    """The head of a causal model.

    Args:
        model: transformers' model, its adapters in place; run once here, on three tokens.

    Attributes:
        apart: it can be run on states of our choice, to the scores that it gives in the whole model.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        ids = torch.tensor([[3, 5, 2]], device=model.device)
        with torch.no_grad():
            whole = model(input_ids=ids, use_cache=False).logits[0]
            try:
                output = self.states(input_ids=ids)
                parts = self.scores(output, output.last_hidden_state[0])
                self.apart = parts.shape == whole.shape and torch.allclose(parts, whole, rtol=1e-2, atol=1e-2)
            except (AttributeError, KeyError, TypeError, ValueError, RuntimeError):
                self.apart = False

    def states(self, **inputs: torch.Tensor) -> Any:
        """What the head is given: transformers' output, with ``last_hidden_state`` (rows, width, hidden size)."""
        return self._model.get_decoder()(**inputs, use_cache=False)

    def scores(self, output: Any, states: torch.Tensor) -> torch.Tensor:
        """(positions, vocabulary) for ``states`` (positions, hidden size) in place of those of ``output``."""
        body, given = self._model.get_decoder(), copy(output)
        given["last_hidden_state"] = states.unsqueeze(0)
        forward = body.forward
        body.forward = lambda *_, **__: given
        try:
            scores: torch.Tensor = self._model(inputs_embeds=states.unsqueeze(0), use_cache=False).logits[0]
            return scores
        finally:
            body.forward = forward
