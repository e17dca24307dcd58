"""Arithmetic that a training really does, counted while it runs: one unit is one layer's forward of one token.

Going back through a frozen layer under an adapter takes about one unit more (the gradients of its inputs, none of
its weights); below the lowest adapter nothing goes back. Padding is counted as it is computed. A causal model's
head counts by its share of a layer's weights. Adapters, attention's square and embeddings are left out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from sisa.layers import layers_of


class UnitMeter:
    """Counts units in the layers of a PEFT model, whoever trains it.

    Args:
        model: PEFT's model.
        below: layers below the lowest adapter.
    """

    def __init__(self, model: Any, below: int) -> None:
        self.units = 0.0
        base = model.get_base_model()
        layers = layers_of(base)[1]
        for number, layer in enumerate(layers):
            _first_linear(layer).register_forward_hook(self._counter(1.0, twice=number >= below))
        head = base.get_output_embeddings()
        if head is not None:
            share = head.weight.numel() / sum(each.weight.numel() for each in _linears(layers[0]))
            head.register_forward_hook(self._counter(share, twice=True))

    def _counter(self, weight: float, *, twice: bool) -> Callable[..., None]:
        def count(_: Any, arguments: tuple[torch.Tensor, ...], __: Any) -> None:
            rows = arguments[0].numel() // arguments[0].shape[-1]
            self.units += weight * rows * (1 + (twice and torch.is_grad_enabled()))

        return count


def _linears(layer: Any) -> list[torch.nn.Linear]:
    """A layer's own products, without those of adapters."""
    found = layer.named_modules()
    return [module for name, module in found if isinstance(module, torch.nn.Linear) and "lora_" not in name]


def _first_linear(layer: Any) -> torch.nn.Linear:
    """It runs when the layer is computed, and not where a layer is passed over."""
    return _linears(layer)[0]
