"""LoRA over lanes: the rows of a pass belong to several adapters, in blocks of equal shape.

    x (lanes x rows, ..., in) ──▶ frozen layer, all rows at once ──────────────▶ + ──▶ y
                          └─▶ per lane: x A' B' alpha/r (batched products) ─────┘

Every product has one fixed shape, whatever a lane holds, so a lane's rows and gradients are the same
bits whatever its neighbours are, or whether it has any. One lane is the ordinary LoRA of Hu et al.
(arXiv 2106.09685), with two kernels in place of PEFT's five modules a layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from shards.errors import ConfigError

_ODD = 0x9E3779B97F4A7C15  # spreads consecutive numbers over 64 bits


class Lanes:
    """Whose rows a pass holds; shared by all adapted layers of a model.

    Args:
        names: PEFT's adapter name of each lane.
        dropout: probability that an input of an adapter is dropped in training.
    """

    def __init__(self, names: Sequence[str], dropout: float) -> None:
        self.names = tuple(names)
        self._present = self.names
        self._dropout = dropout
        self._seeds: Mapping[str, int] = {}
        self._leading: tuple[int, ...] = ()

    @contextmanager
    def only(self, lane: int) -> Iterator[None]:
        """Rows of one lane alone inside."""
        self._present, before = (self.names[lane],), self._present
        try:
            yield
        finally:
            self._present = before

    @contextmanager
    def holding(self, rows: int, width: int) -> Iterator[None]:
        """A pass of ``rows`` records, each ``width`` tokens, inside: layers must be given them and nothing else."""
        self._leading = (rows, rows * width)
        try:
            yield
        finally:
            self._leading = ()

    @contextmanager
    def dropping(self, seeds: Mapping[int, int]) -> Iterator[None]:
        """Dropout inside, drawn for each of these lanes from a seed that must be another one in every pass."""
        self._seeds = {self.names[lane]: seed for lane, seed in seeds.items()}
        try:
            yield
        finally:
            self._seeds = {}

    def blocks(self, x: torch.Tensor) -> torch.Tensor:
        """(lanes x rows, ..., width) as (lanes, all else, width).

        Raises:
            ConfigError: if it is something else that lanes would share, such as a table of positions.
        """
        if len(self._present) > 1 and x.shape[0] not in self._leading:
            raise ConfigError(
                f"rows of {len(self._present)} lanes in every adapted layer",
                f"{tuple(x.shape)}, which all lanes share",
                "set lanes to 1 in sisa.yaml, or other target_modules",
            )
        return x.reshape(len(self._present), -1, x.shape[-1])

    def weights(self, modules: Any) -> torch.Tensor:
        """A factor of every lane, (lanes, out, in)."""
        if len(self._present) == 1:
            weight: torch.Tensor = modules[self._present[0]].weight
            return weight.unsqueeze(0)
        return torch.stack([modules[name].weight for name in self._present])

    def dropped(self, x: torch.Tensor, number: int) -> torch.Tensor:
        """``x`` (lanes, n, width) after dropout.

        The mask is a function of the lane's seed and the layer's ``number``: no stream is shared, so
        nothing depends on how often others drew, and a recomputed layer has the same mask again.
        """
        if not self._dropout or not self._seeds:
            return x
        kept = 1 - self._dropout
        mask = torch.ones_like(x)
        generator = torch.Generator(x.device)
        for block, name in zip(mask, self._present, strict=True):
            if name in self._seeds:
                generator.manual_seed((self._seeds[name] + (number + 1) * _ODD) >> 8 & 0xFFFFFFFF)
                block.bernoulli_(kept, generator=generator)
        return x * (mask / kept)

    def split(self, x: torch.Tensor) -> list[tuple[str, torch.Tensor]]:
        """The rows of each lane."""
        return list(zip(self._present, x.chunk(len(self._present)), strict=True))


def adapted(layer: Any, lanes: Lanes, number: int) -> Callable[..., torch.Tensor]:
    """How a linear layer of PEFT's computes by lanes; ``number`` tells it from the model's other layers."""
    scaling = layer.scaling[lanes.names[0]]

    def forward(x: torch.Tensor, *arguments: Any, **options: Any) -> torch.Tensor:
        frozen: torch.Tensor = layer.base_layer(x, *arguments, **options)
        down, up = lanes.weights(layer.lora_A), lanes.weights(layer.lora_B)
        blocks = lanes.dropped(lanes.blocks(x).to(down.dtype), number)
        onto = lanes.blocks(frozen)
        if frozen.dtype != up.dtype:
            both = onto + (torch.bmm(torch.bmm(blocks, down.mT), up.mT) * scaling).to(frozen.dtype)
        elif len(blocks) == 1:  # plain products are faster than batches of one
            both = torch.addmm(onto[0], torch.mm(blocks[0], down[0].t()), up[0].t(), alpha=scaling)
        else:
            both = torch.baddbmm(onto, torch.bmm(blocks, down.mT), up.mT, alpha=scaling)
        merged: torch.Tensor = both.view(frozen.shape)
        return merged

    return forward


def headed(wrapper: Any, lanes: Lanes) -> Callable[..., torch.Tensor]:
    """How a module that PEFT trains whole computes, each lane's rows by its own copy."""

    def forward(x: torch.Tensor, *arguments: Any, **options: Any) -> torch.Tensor:
        return torch.cat([wrapper.modules_to_save[name](rows, *arguments, **options) for name, rows in lanes.split(x)])

    return forward
