"""The trunk: a chain like a shard's, trained on permanent records, from whose head every shard starts."""

from __future__ import annotations

MAX_SHARDS = 4096
# Where a shard's number stands, this stands for the trunk: the first number that no shard can have.
TRUNK = MAX_SHARDS


def told(shard: int) -> int | str:
    """A shard's number as documents and tables say it; of the trunk, which is no shard, its name."""
    return "trunk" if shard == TRUNK else shard


def chain_name(shard: int) -> str:
    """The same in a sentence."""
    return "trunk" if shard == TRUNK else f"shard {shard}"
