"""What the layers below the adapted ones make of a record: computed once, kept, and the same bits ever after."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from orchestration.executor import Shelf
from shards.digest import canonical_json, digest
from sisa.config import Recipe
from sisa.determinism import environment_facts
from sisa.encoding import Example
from sisa.layers import Cut

# All of a recipe that reaches the frozen layers' output; the cut's height and the environment class come with it.
_KEYS = (
    "bytes_version", "task", "base_model_digest", "tokenizer_digest", "max_length", "end_token", "dtype", "attention",
    "sdpa_backends", "device", "threads", "tf32",
)  # fmt: skip


def frozen_kind(recipe: Recipe, below: int) -> str:
    """Digest (hex) of everything but the record that the activations depend on.

    The batch shape is not in it: a record is computed alone and without padding.
    """
    parts = {name: getattr(recipe, name) for name in _KEYS}
    parts |= {"below": below, "environment": environment_facts(recipe.device, recipe.dtype)}
    return digest("frozen-layers", canonical_json(parts)).hex()


@dataclass(frozen=True, slots=True)
class Frozen:
    """Activations of one lesson's records.

    Attributes:
        cut: of the base.
        shelf: where they are kept; None computes them at every visit, to the same bits.
        kind: see :func:`frozen_kind`.
    """

    cut: Cut
    shelf: Shelf | None
    kind: str

    def of(self, record_id: str, example: Example) -> torch.Tensor:
        """(tokens, hidden size), in the base's type and on its device."""
        kept = self.shelf.get(record_id, self.kind) if self.shelf is not None else None
        if kept is not None and len(kept) == len(example.tokens) * self.cut.size * self.cut.dtype.itemsize:
            values = torch.frombuffer(bytearray(kept), dtype=self.cut.dtype).view(len(example.tokens), -1)
            return values.to(self.cut.device)
        made = self.cut.below(example.tokens).to(self.cut.dtype)
        if self.shelf is not None:
            self.shelf.put(record_id, self.kind, made.cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return made
