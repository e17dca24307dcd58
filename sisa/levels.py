"""The checks of a certificate that need its workspace, and how they are listed where none was asked."""

from __future__ import annotations

from shards.checks import Check, unchecked

# The two levels that only training anew can answer.
REPLAYS = {
    "V3": "the hit shards, trained anew, give the same bits",
    "V4": "every shard, trained anew, gives the same bits",
}


def not_compared(reason: str) -> list[Check]:
    """What is reported of the levels that need a workspace when none was asked, and why it was not."""
    return [unchecked("V2", "the workspace is as certified", reason), *not_replayed(reason)]


def not_replayed(reason: str) -> list[Check]:
    """The same of the replays alone."""
    return [unchecked(level, name, reason) for level, name in REPLAYS.items()]
