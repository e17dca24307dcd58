"""Pure: which records of a pass share a batch, and how wide it is. A function of the step's own records.

    lengths in pass order ──▶ windows ──▶ batches of like length ──▶ updates

Records are sorted by length inside windows of a pass, not over all of it, so that other records meet in
each pass; a window's batches follow each other as their first records do in the pass, whose order is a
keyed hash, so that lengths do not rise and fall with time. Under lanes they do, in wider windows: lanes
that all go from short to long need the same width at about the same time, and share more passes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from sisa.config import Recipe

WINDOW = 16  # batches; wider windows waste less padding and mix less
LANES_WINDOW = 64
_STEP = 8  # tokens between the widths of lanes

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
        width = recipe.batch_size * (WINDOW if recipe.lanes == 1 else LANES_WINDOW)
        groups = [group for window in chunks(positions, width) for group in _alike(window, lengths, recipe)]
    batches = [Batch(tuple(group), _width(max(lengths[at] for at in group), recipe)) for group in groups]
    return chunks(batches, recipe.accumulation)


def _alike(window: Sequence[int], lengths: Sequence[int], recipe: Recipe) -> list[Sequence[int]]:
    """Batches of records of like length."""
    groups = chunks(sorted(window, key=lambda at: lengths[at]), recipe.batch_size)
    return groups if recipe.lanes > 1 else sorted(groups, key=min)


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
    step = max(_STEP, (1 << longest.bit_length()) // 8)  # of long texts at most a quarter is padding
    return min((longest // step + 1) * step, recipe.max_length + 1)
