"""Pure: which records of a pass share a batch, and how wide it is. A function of the step's own records.

    lengths in pass order ──▶ windows ──▶ batches of like length ──▶ updates

Records are sorted by length inside windows of a pass, not over all of it, so that other records meet in
each pass; a window's batches follow each other as their first records do in the pass, whose order is a
keyed hash, so that lengths do not rise and fall with time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from sisa.config import Recipe

WINDOW = 16  # batches; wider windows waste less padding and mix less
_NARROWEST = 8

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Batch:
    """Records in one forward and backward pass.

    Attributes:
        members: their positions in the pass.
        width: tokens that each of them is padded to.
    """

    members: tuple[int, ...]
    width: int


def updates(lengths: Sequence[int], recipe: Recipe) -> list[Sequence[Batch]]:
    """One pass over records of these ``lengths`` (tokens, in pass order): the batches of each optimiser update."""
    positions = range(len(lengths))
    if recipe.batching == "order":
        groups = chunks(positions, recipe.batch_size)
    else:
        groups = [
            group
            for window in chunks(positions, recipe.batch_size * WINDOW)
            for group in sorted(chunks(sorted(window, key=lambda at: lengths[at]), recipe.batch_size), key=min)
        ]
    batches = [Batch(tuple(group), _width(max(lengths[at] for at in group), recipe)) for group in groups]
    return chunks(batches, recipe.accumulation)


def chunks(items: Sequence[_T], size: int) -> list[Sequence[_T]]:
    """``items`` in pieces of ``size``, the last one perhaps shorter."""
    return [items[start : start + size] for start in range(0, len(items), size)]


def _width(longest: int, recipe: Recipe) -> int:
    """As wide as needed; with lanes one of a few widths, so that lanes find others to share a pass with.

    Lanes are always wider than their longest record: where nothing is padded, transformers leaves out the
    mask and computes otherwise, so that a lane would tell by its bits whether its neighbours were full.
    """
    if recipe.lanes == 1:
        return longest
    return min(max(_NARROWEST, 1 << longest.bit_length()), recipe.max_length + 1)
