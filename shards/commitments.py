"""What a slice consists of, committed to in public: a sparse Merkle tree over tag → commitment.

A root says nothing about the records in it (tags are keyed, commitments salted), and yet one short
proof shows that a tag is, or is not, among them. Roots hold random salts, so they are no part of
checkpoint keys; a checkpoint's fact names the root that its step found. The leaves stay in the
store after the records are gone, so that it can still be shown that a record had been there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from shards.digest import bytes_digest, files_digest
from shards.plan import SliceStep
from shards.sparse import EMPTY

LEAVES_FILE = "leaves"
_LEAF = 64


@dataclass(frozen=True, slots=True)
class SliceCommitment:
    """The fact that a slice consists of certain records from now on.

    Attributes:
        shard, slice: which slice.
        root: root (hex) of its tree.
        leaves: digest of the stored object that lists tag and commitment of each record.
        records: how many there are.
    """

    shard: int
    slice: int
    root: str
    leaves: str
    records: int

    def to_json(self) -> dict[str, Any]:
        """The body of its fact."""
        return asdict(self)


def commit_slice(step: SliceStep) -> SliceCommitment:
    """The commitment to a step's own slice."""
    link = step.link
    return SliceCommitment(link.shard, link.slice, step.root, leaves_digest(step.leaves), step.own)


def empty_slice(shard: int, number: int) -> SliceCommitment:
    """The commitment to a slice that has no record any more."""
    return SliceCommitment(shard, number, EMPTY.hex(), leaves_digest({}), 0)


def leaves_object(leaves: Mapping[bytes, bytes]) -> dict[str, bytes]:
    """Files of the stored object: tag and commitment, 32 bytes each, in tag order, end to end."""
    return {LEAVES_FILE: b"".join(tag + leaves[tag] for tag in sorted(leaves))}


def read_leaves(files: Mapping[str, bytes]) -> dict[bytes, bytes]:
    """The leaves that :func:`leaves_object` stored."""
    data = files[LEAVES_FILE]
    return {data[at : at + 32]: data[at + 32 : at + _LEAF] for at in range(0, len(data), _LEAF)}


def leaves_digest(leaves: Mapping[bytes, bytes]) -> str:
    """Digest (hex) of the stored object."""
    return files_digest({name: bytes_digest(data) for name, data in leaves_object(leaves).items()})
