"""Which recipes have frozen layers below every adapted one, so that there are activations worth keeping."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def has_frozen_layers(recipe: Mapping[str, Any]) -> bool:
    """May a step under this pinned recipe keep activations? A recipe without ``layers`` adapts all of them."""
    return bool(recipe.get("layers", "all") != "all")
