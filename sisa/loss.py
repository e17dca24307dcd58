"""The loss of each lane of a pass, from that lane's rows alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from sisa.adapter import Adapter
from sisa.config import Recipe
from sisa.encoding import IGNORED, Example
from sisa.head import Head


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
    head = adapter.head
    if head is None or not head.apart:
        scores = adapter.model(**inputs, use_cache=False).logits.chunk(lanes)
        return {lane: _next_token_loss(scores[lane], examples, _given) for lane, examples in shown.items()}
    output = head.states(**inputs)
    hidden = output.last_hidden_state.chunk(lanes)

    def scored(lane: int) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
        return partial(_summed_in_parts, partial(_scores, adapter, head, lane, output), recipe.loss_positions)

    return {lane: _next_token_loss(hidden[lane], examples, scored(lane)) for lane, examples in shown.items()}


def _next_token_loss(
    states: torch.Tensor, examples: Sequence[Example], summed: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    """Mean over the trained tokens; no other position is scored."""
    places = [
        (row, at - 1, target)
        for row, example in enumerate(examples)
        for at, target in enumerate(example.targets)
        if target != IGNORED
    ]
    rows, positions, targets = (_numbers(column, states) for column in zip(*places, strict=True))
    return summed(states[rows, positions], targets) / len(places)


def _given(scores: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return cross_entropy(scores.float(), targets, reduction="sum")


def _summed_in_parts(
    scores: Callable[[torch.Tensor], torch.Tensor], most: int, states: torch.Tensor, targets: torch.Tensor
) -> torch.Tensor:
    """``most`` positions are scored at a time, so that memory does not grow with vocabulary x length."""

    def summed(some: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        return _given(scores(some), wanted)

    if len(states) <= most:
        return summed(states, targets)
    parts = [
        checkpoint(summed, some, wanted, use_reentrant=False)
        for some, wanted in zip(torch.split(states, most), torch.split(targets, most), strict=True)
    ]
    return torch.stack(parts).sum()


def _scores(adapter: Adapter, head: Head, lane: int, output: Any, states: torch.Tensor) -> torch.Tensor:
    with adapter.lanes.only(lane):  # here, for it is run again on the way back
        return head.scores(output, states)


def _numbers(values: Sequence[int], beside: torch.Tensor) -> torch.Tensor:
    return torch.tensor(values, device=beside.device)
