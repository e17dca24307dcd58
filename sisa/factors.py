"""Low-rank updates of linear layers: added up, cut to a rank and measured without forming the matrix."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from shards.errors import ConfigError
from sisa.tensors import PREFIX, foreign, read_tensors

_FACTOR = re.compile(re.escape(PREFIX) + r"(.+)\.lora_([AB])\.weight")


@dataclass(frozen=True, slots=True)
class Factors:
    """An update ``up @ down``, or several beside one another, which is their sum.

    Attributes:
        down: (rank, in), LoRA's A.
        up: (out, rank), LoRA's B.
    """

    down: torch.Tensor
    up: torch.Tensor

    @property
    def rank(self) -> int:
        """How many columns ``up`` has."""
        return len(self.down)

    def double(self) -> Factors:
        """In float64."""
        return Factors(self.down.double(), self.up.double())

    def to(self, dtype: torch.dtype) -> Factors:
        """In another type."""
        return Factors(self.down.to(dtype).contiguous(), self.up.to(dtype).contiguous())

    def times(self, scale: float) -> Factors:
        """The update scaled."""
        return Factors(self.down, self.up * scale)

    def product(self) -> torch.Tensor:
        """The matrix itself, (out, in)."""
        return self.up @ self.down

    def norm(self) -> float:
        """Frobenius norm, from what QR leaves of both factors: (rank, rank) and no larger."""
        left, right = (torch.linalg.qr(factor, mode="r").R for factor in (self.up, self.down.mT))
        return float(torch.linalg.matrix_norm(left @ right.mT))


def stacked(parts: Sequence[Factors]) -> Factors:
    """The sum of updates, its rank the sum of theirs."""
    return Factors(torch.cat([part.down for part in parts]), torch.cat([part.up for part in parts], dim=1))


def cut(whole: Factors, rank: int) -> Factors:
    """The closest update of this rank in the Frobenius norm (Eckart and Young).

    The singular vectors come from QR of both factors and an SVD of what is between; each pair's sign is such
    that the largest entry of the left one is positive, and each factor gets the root of the singular value.
    A layer with fewer dimensions than ``rank`` gets zeros for the rest.
    """
    left, inner = torch.linalg.qr(whole.up)
    right, outer = torch.linalg.qr(whole.down.mT)
    u, values, vt = torch.linalg.svd(inner @ outer.mT, full_matrices=False)
    kept = min(rank, len(values))
    root = values[:kept].sqrt()
    up, down = left @ u[:, :kept], vt[:kept] @ right.mT
    sign = torch.where(up.gather(0, up.abs().argmax(0, keepdim=True)) < 0, -1.0, 1.0)  # (1, kept)
    up, down = up * (sign * root), down * (sign * root).mT
    pad = torch.nn.functional.pad
    return Factors(pad(down, (0, 0, 0, rank - kept)), pad(up, (0, rank - kept)))


def scaling(config: Mapping[str, Any]) -> float:
    """What PEFT multiplies ``up @ down`` with: alpha / r, or alpha / sqrt(r) under rsLoRA (arXiv 2312.03732).

    Raises:
        IntegrityError: if the configuration does not say.
    """
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not rank or alpha is None:
        raise foreign("no r or lora_alpha in its configuration")
    return float(alpha / (math.sqrt(rank) if config.get("use_rslora") else rank))


def read_adapter(weights: bytes) -> tuple[dict[str, Factors], dict[str, torch.Tensor]]:
    """An adapter's factors by layer, and what is trained whole by parameter, both named as in the base and sorted.

    Args:
        weights: safetensors, named as PEFT names them.

    Raises:
        IntegrityError: if they are no adapter.
        ConfigError: if something else than a linear layer is adapted.
    """
    tensors = read_tensors(weights)
    pairs: dict[str, dict[str, torch.Tensor]] = {}
    whole: dict[str, torch.Tensor] = {}
    for name in sorted(tensors):
        if match := _FACTOR.fullmatch(name):
            pairs.setdefault(match[1], {})[match[2]] = tensors[name]
        elif "lora_" in name:
            raise ConfigError("adapters of linear layers, which can be merged", name, "use other target_modules")
        else:
            whole[name.removeprefix(PREFIX)] = tensors[name]
    return {name: Factors(pair["A"], pair["B"]) for name, pair in pairs.items()}, whole


def name_adapter(layers: Mapping[str, Factors], whole: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The opposite of :func:`read_adapter`: tensors by PEFT's names."""
    tensors = {f"{PREFIX}{name}.lora_A.weight": factors.down for name, factors in layers.items()}
    tensors |= {f"{PREFIX}{name}.lora_B.weight": factors.up for name, factors in layers.items()}
    return tensors | {f"{PREFIX}{name}": tensor for name, tensor in whole.items()}
