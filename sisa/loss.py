"""The loss of each lane of a pass, from that lane's rows alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint
from transformers.modeling_outputs import BaseModelOutputWithPast

from sisa.adapter import Adapter
from sisa.config import Recipe
from sisa.encoding import IGNORED, Example


def lane_losses(
    adapter: Adapter, inputs: Mapping[str, torch.Tensor], shown: Mapping[int, Sequence[Example]], recipe: Recipe
) -> dict[int, torch.Tensor]:
    """Cross-entropy of each lane: mean over its records (classification) or trained tokens (causal LM).

    Args:
        adapter: the model with its slots filled.
        inputs: ``input_ids`` and ``attention_mask``, (lanes x rows, width); a lane's first rows are its records.
        shown: lane → its records in this pass; other lanes hold nothing.
        recipe: task, and how many positions are scored at once.
    """
    lanes = len(adapter.lanes.names)
    if recipe.task == "classification":
        logits = adapter.model(**inputs).logits.float().chunk(lanes)
        return {
            lane: cross_entropy(logits[lane][: len(examples)], _numbers([e.targets[0] for e in examples], logits[lane]))
            for lane, examples in shown.items()
        }
    hidden = _backbone(adapter)(**inputs, use_cache=False).last_hidden_state.chunk(lanes)
    losses = {}
    for lane, examples in shown.items():
        with adapter.lanes.only(lane):
            losses[lane] = _next_token_loss(adapter, lane, hidden[lane], examples, recipe.loss_positions)
    return losses


def _next_token_loss(
    adapter: Adapter, lane: int, hidden: torch.Tensor, examples: Sequence[Example], most: int
) -> torch.Tensor:
    """Only trained positions are scored, ``most`` at a time, so that memory does not grow with vocabulary x length."""
    places = [
        (row, at - 1, target)
        for row, example in enumerate(examples)
        for at, target in enumerate(example.targets)
        if target != IGNORED
    ]
    rows, positions, targets = (_numbers(column, hidden) for column in zip(*places, strict=True))
    states = hidden[rows, positions]

    def summed(some: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        with adapter.lanes.only(lane):  # it is run again backwards, outside of the caller's
            return cross_entropy(_scores(adapter, some).float(), wanted, reduction="sum")

    if len(places) <= most:
        return summed(states, targets) / len(places)
    parts = [
        checkpoint(summed, some, wanted, use_reentrant=False)
        for some, wanted in zip(torch.split(states, most), torch.split(targets, most), strict=True)
    ]
    return torch.stack(parts).sum() / len(places)


def _scores(adapter: Adapter, states: torch.Tensor) -> torch.Tensor:
    """(positions, vocabulary): the model's own head, with whatever it does to its scores."""
    backbone = _backbone(adapter)
    forward = backbone.forward
    backbone.forward = lambda *_, **__: BaseModelOutputWithPast(last_hidden_state=states.unsqueeze(0))
    try:
        scores: torch.Tensor = adapter.model.get_base_model()(inputs_embeds=states.unsqueeze(0)).logits[0]
        return scores
    finally:
        backbone.forward = forward


def _backbone(adapter: Adapter) -> Any:
    """A causal model without its head."""
    return adapter.model.get_base_model().base_model


def _numbers(values: Sequence[int], beside: torch.Tensor) -> torch.Tensor:
    return torch.tensor(values, device=beside.device)
