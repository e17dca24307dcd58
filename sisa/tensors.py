"""An adapter's tensors as they are stored: read, and held against what they must be."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from safetensors import SafetensorError
from safetensors.torch import load

from shards.errors import IntegrityError

PREFIX = "base_model.model."  # PEFT's, before the base's own names

Tensors = dict[str, torch.Tensor]
Forms = dict[str, tuple[tuple[int, ...], torch.dtype]]


def read_tensors(weights: bytes) -> Tensors:
    """Safetensors by name.

    Raises:
        IntegrityError: if they are none.
    """
    try:
        tensors: Tensors = load(weights)
    except SafetensorError as error:
        raise foreign(f"no safetensors file: {error}") from error
    return tensors


def forms_of(tensors: Mapping[str, torch.Tensor]) -> Forms:
    """Shape and type of each."""
    return {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}


def check_forms(tensors: Mapping[str, torch.Tensor], wanted: Forms) -> None:
    """Refuse other names, shapes or types, which PEFT would take or convert without a word.

    Raises:
        IntegrityError: naming one of them.
    """
    found = forms_of(tensors)
    if found != wanted:
        odd = sorted(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name))
        raise foreign(f"others, for instance {odd[0]}")


def foreign(found: str) -> IntegrityError:
    """What is stored is no adapter of this recipe."""
    return IntegrityError("the tensors of this recipe's adapter", found, "run `sisa audit --all`")
