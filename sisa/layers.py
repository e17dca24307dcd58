"""The base cut in two: layers that are frozen, whose output is a constant of each record, and those on top.

    tokens of one record ──▶ embeddings, frozen layers ──▶ activations (kept) ──▶ adapted layers, head

What lies below is computed for one record alone, without padding: no neighbour can reach its bits, and
in whatever batch, epoch, slice or retraining it is used, the value is the same. The idea of keeping it
is that of Skip2-LoRA (arXiv 2410.21073).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint
from transformers.pytorch_utils import Conv1D

from shards.errors import ConfigError
from sisa.config import Recipe

LINEAR = (torch.nn.Linear, Conv1D)  # GPT-2's linear layers are called convolutions
ADAPT_ALL = "set layers to all in sisa.yaml"


class _ReachedError(Exception):
    """The cut, with what the layers below it made."""

    def __init__(self, hidden: torch.Tensor) -> None:
        super().__init__()
        self.hidden = hidden


def layers_of(model: Any, remedy: str = ADAPT_ALL) -> tuple[str, Any]:
    """Name and list of a transformer's layers.

    Raises:
        ConfigError: if it is not made of one list of layers; to do is ``remedy``.
    """
    count = model.config.get_text_config().num_hidden_layers
    lists = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.ModuleList) and len(module) == count
    ]
    if len(lists) != 1:
        raise ConfigError(f"one list of {count} layers in the base model", f"{len(lists)}", remedy)
    return lists[0]


def frozen_layers(recipe: Recipe, model: Any) -> int:
    """How many layers lie below the adapted ones; 0 if all are adapted.

    Raises:
        ConfigError: if the base has not so many layers.
    """
    if recipe.layers == "all":
        return 0
    top, count = int(recipe.layers.removeprefix("last-")), len(layers_of(model)[1])
    if top >= count:
        raise ConfigError(f"fewer layers to adapt than the {count} that the base model has", recipe.layers, ADAPT_ALL)
    return count - top


def targets(recipe: Recipe, model: Any) -> list[str]:
    """Full names of the linear layers that get an adapter, where only the last layers do."""
    name, layers = layers_of(model)
    wanted = recipe.target_modules
    found = [
        f"{name}.{number}.{inner}"
        for number in range(frozen_layers(recipe, model), len(layers))
        for inner, module in layers[number].named_modules()
        if isinstance(module, LINEAR)
        and (wanted == ("all-linear",) or any(f".{inner}".endswith(f".{each}") for each in wanted))
    ]
    if not found:
        raise ConfigError(f"{' or '.join(wanted)} in the last layers of the base model", "none", ADAPT_ALL)
    return found


def compute_twice(model: Any, below: int) -> None:
    """Keep of each adapted layer its input alone, and compute the rest anew on the way back (arXiv 1604.06174)."""
    for layer in layers_of(model, "set gradient_checkpointing to false")[1][below:]:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)


class Cut:
    """A model that can be run up to the cut, or from it on.

    Args:
        model: transformers' model; its layers are altered in place, and run as before outside of our methods.
        below: how many layers lie below the cut.
    """

    def __init__(self, model: Any, below: int) -> None:
        self._model = model
        self.dtype: torch.dtype = model.dtype
        self.device: torch.device = model.device
        self.height = below
        self.size: int = model.config.get_text_config().hidden_size
        self._given: torch.Tensor | None = None
        self._seeking = False
        _, layers = layers_of(model)
        others = self._others(layers[0])
        for layer in layers[:below]:
            layer.forward = self._passing(layer.forward, others)
        layers[below].register_forward_pre_hook(self._enter, with_kwargs=True)

    def below(self, tokens: Sequence[int]) -> torch.Tensor:
        """What the frozen layers make of one text: (tokens, hidden size), in the base's type."""
        ids = torch.tensor([list(tokens)], device=self.device)
        self._seeking = True
        try:
            with torch.no_grad():
                self._model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
        except _ReachedError as reached:
            return reached.hidden[0]
        finally:
            self._seeking = False
        raise ConfigError("a base model that runs through its layers", "one that does not", ADAPT_ALL)

    def whole(self, tokens: Sequence[int]) -> bool:
        """Do the two halves together compute what the model does, but for rounding?"""
        ids = torch.tensor([list(tokens)], device=self.device)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False}
        with torch.no_grad():
            plain = self._model(**inputs).logits
            with self.from_here(self.below(tokens).unsqueeze(0)):
                halves = self._model(**inputs).logits
        return bool(torch.allclose(plain.float(), halves.float(), rtol=1e-2, atol=1e-2))

    @contextmanager
    def from_here(self, activations: torch.Tensor) -> Iterator[None]:
        """Forward passes inside begin at the cut, with ``activations`` (rows, width, hidden size)."""
        self._given = activations
        try:
            yield
        finally:
            self._given = None

    def _others(self, layer: Any) -> tuple[None, ...] | None:
        """What a layer returns beside its states; None if it returns these alone."""
        seen: list[Any] = []
        hook = layer.register_forward_hook(lambda _, __, output: seen.append(output))
        with torch.no_grad():
            self._model(input_ids=torch.zeros(1, 2, dtype=torch.long, device=self.device))
        hook.remove()
        return (None,) * (len(seen[0]) - 1) if isinstance(seen[0], tuple) else None

    def _passing(self, forward: Callable[..., Any], others: tuple[None, ...] | None) -> Callable[..., Any]:
        def layer(hidden_states: torch.Tensor, *arguments: Any, **options: Any) -> Any:
            if self._given is None:
                return forward(hidden_states, *arguments, **options)
            return hidden_states if others is None else (hidden_states, *others)

        return layer

    def _enter(self, _: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        if self._seeking:
            raise _ReachedError(arguments[0] if arguments else options["hidden_states"])
        if self._given is None:
            return None
        if arguments:
            return (self._given, *arguments[1:]), options
        return (), options | {"hidden_states": self._given}
