"""One lever of ours taken out, or one of somebody else's put in: what the ablations train with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any
from unittest import mock

import torch
from torch.nn.functional import cross_entropy

from sisa.adapter import Adapter
from sisa.config import Recipe
from sisa.encoding import IGNORED, Example
from sisa.layers import layers_of


def peft_lora() -> AbstractContextManager[Any]:
    """PEFT's own modules compute the adapters."""
    return mock.patch("sisa.adapter.lay", return_value=None)


def whole_logits() -> AbstractContextManager[Any]:
    """Scores are made at every position at once, as the model itself does."""
    return mock.patch("sisa.course.lane_losses", _whole)


def foreach() -> AbstractContextManager[Any]:
    """AdamW in torch's default form for many tensors, instead of the fused one."""
    made = torch.optim.AdamW
    return mock.patch("torch.optim.AdamW", lambda some, **rest: made(some, **rest | {"fused": None, "foreach": True}))


@contextmanager
def compiled() -> Iterator[None]:
    """Each layer goes through torch.compile, for any shape."""
    make = Adapter.__init__

    def made(adapter: Adapter, *arguments: Any) -> None:
        make(adapter, *arguments)
        for layer in layers_of(adapter.model.get_base_model())[1]:
            layer.forward = torch.compile(layer.forward, dynamic=True)

    with mock.patch.object(Adapter, "__init__", made):
        yield


PATCHES = {each.__name__: each for each in (peft_lora, whole_logits, foreach, compiled)}


def _whole(
    adapter: Adapter, inputs: Mapping[str, torch.Tensor], shown: Mapping[int, Sequence[Example]], _: Recipe
) -> dict[int, torch.Tensor]:
    """The usual loss of a causal model, one lane."""
    (examples,) = shown.values()
    width = inputs["input_ids"].shape[1]
    rows = [[*each.targets, *[IGNORED] * (width - len(each.targets))] for each in examples]
    targets = torch.tensor(rows, device=inputs["input_ids"].device)
    scores = adapter.model(**inputs, use_cache=False).logits[:, :-1].float()
    return {0: cross_entropy(scores.flatten(0, 1), targets[:, 1:].flatten(), ignore_index=IGNORED)}
