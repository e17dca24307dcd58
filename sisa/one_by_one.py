"""Served heads that cannot share a pass: one after the other, each over all of the base."""

from __future__ import annotations

from collections.abc import Sequence
from inspect import signature
from types import SimpleNamespace
from typing import Any

import torch

from sisa.adapter import Adapter


class OneByOne(torch.nn.Module):
    """Stands for the base of an ensemble, where shards cannot be lanes: it takes the rows of all of them.

    That is so where something is adapted that is no linear layer, where adapted layers compute what the rows share,
    and in a mixture of experts, whose shapes depend on the rows of all shards. No cache is kept.

    Args:
        adapter: the slot that heads are put into.
    """

    def __init__(self, adapter: Adapter) -> None:
        super().__init__()
        self.model: Any = adapter.model
        self.config = adapter.model.config
        self.heads: Sequence[bytes] = ()
        self._adapter = adapter
        self._taken = frozenset(signature(adapter.model.get_base_model().forward).parameters)

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        return_dict: bool | None = None,  # noqa: ARG002 - as models have it
    ) -> SimpleNamespace:
        """Scores of (heads x rows, width) tokens, each head's rows by that head."""
        given = {"input_ids": input_ids, "attention_mask": attention_mask, "position_ids": position_ids}
        taken = {name: value for name, value in given.items() if value is not None and name in self._taken}
        fixed = {"use_cache": False} if "use_cache" in self._taken else {}
        logits = []
        for number, weights in enumerate(self.heads):
            self._adapter.load(weights)
            rows = {name: value.chunk(len(self.heads))[number] for name, value in taken.items()}
            logits.append(self.model(**rows, **fixed).logits)
        return SimpleNamespace(logits=torch.cat(logits))
