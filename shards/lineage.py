"""Checkpoint keys, the facts of a checkpoint, and the check that a chain is whole."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import asdict, dataclass
from typing import Any, Self

from shards.digest import canonical_json, digest
from shards.errors import IntegrityError
from shards.trunk import TRUNK


def records_digest(entries: Iterable[tuple[bytes, bytes]]) -> str:
    """Digest (hex) of ordered (tag, keyed content fingerprint) pairs."""
    return digest("step-records", *(part for entry in entries for part in entry)).hex()


def lineage_digest(parent: str, key: str, tensors: str, root: str, environment: Mapping[str, str]) -> str:
    """Digest (hex) of a lineage up to a checkpoint: what was trained, on which commitment, into which tensors.

    Args:
        parent: lineage digest of the parent, empty for a first step that starts from nothing.
        key: the checkpoint's key.
        tensors: digest of its tensors.
        root: root (hex) of its slice's tree of commitments.
        environment: what the step ran in.
    """
    return digest("lineage", parent, key, tensors, root, canonical_json(dict(environment))).hex()


@dataclass(frozen=True, slots=True)
class Link:
    """What identifies one slice step; its ``key`` names the checkpoint the step makes.

    Equal in any two workspaces with the same keys, recipe and records. The environment class is
    recorded with the checkpoint and deliberately not part of the key.
    """

    recipe: str
    shard: int
    chain: int
    slice: int
    parent: str | None
    records: str

    @property
    def key(self) -> str:
        """Digest (hex) that names the checkpoint."""
        return digest(
            "checkpoint", self.recipe, self.shard, self.chain, self.slice, self.parent or "", self.records
        ).hex()

    def to_json(self) -> dict[str, Any]:
        """The body of its fact."""
        return asdict(self) | {"key": self.key}

    @classmethod
    def from_json(cls, body: dict[str, Any]) -> Self:
        """Rebuild a link; a stated key that its fields do not hash to is refused.

        Raises:
            IntegrityError: if key and fields disagree.
        """
        link = cls(**{name: body[name] for name in cls.__slots__})
        if body["key"] != link.key:
            raise IntegrityError(
                f"checkpoint key {link.key} from the fields of the link", str(body["key"]), "do not trust this document"
            )
        return link


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The fact that a step was trained.

    Attributes:
        link: what was trained.
        files: digest of the stored object (the PEFT directory).
        tensors: digest of its tensors, whatever the container.
        root: root (hex) of the slice's tree of commitments, as the step found its records. Random salts
            are in it, so it is no part of the key.
        seen: digest of the stored object that lists the tags trained in this step. It outlives the
            checkpoint, so that an audit can say what a purged checkpoint had seen.
        members: how many records took part.
        own: how many of them live in this slice (the rest is rehearsal).
        environment: what the step ran in (libraries, processor, switches). Equal facts are one
            environment class; bitwise claims hold within a class.
    """

    link: Link
    files: str
    tensors: str
    root: str
    seen: str
    members: int
    own: int
    environment: dict[str, str]

    @property
    def key(self) -> str:
        """Digest (hex) that names the checkpoint."""
        return self.link.key

    def extend(self, lineage: str) -> str:
        """The lineage digest up to this checkpoint, given that of its parent."""
        return lineage_digest(lineage, self.key, self.tensors, self.root, self.environment)

    def to_json(self) -> dict[str, Any]:
        """The body of its fact."""
        return asdict(self) | {"link": self.link.to_json()}

    @classmethod
    def from_json(cls, body: dict[str, Any]) -> Self:
        """The checkpoint of a fact's body."""
        return cls(**(body | {"link": Link.from_json(body["link"])}))


def check_lineage(links: Sequence[Link], recipe: str, shard: int) -> list[str]:
    """Problems of a shard's lineage from first step to head: of the trunk's part, if it has one, and of its own."""
    own = [link for link in links if link.shard != TRUNK]
    trunk = links[: len(links) - len(own)]
    start = trunk[-1].key if trunk else None
    problems = check_chain(trunk, recipe, TRUNK) + check_chain(own, recipe, shard, start)
    return problems + ["the trunk alone is no shard's lineage"] * (bool(trunk) and not own)


def check_chain(links: Sequence[Link], recipe: str, shard: int, start: str | None = None) -> list[str]:
    """Problems of a chain from first step to head; empty if it is whole.

    Args:
        links: its steps.
        recipe: the recipe's digest.
        shard: whose it is, or the trunk's number.
        start: the checkpoint that its first step starts from.
    """
    problems = []
    parent = start
    last = -1
    for link in links:
        if (link.recipe, link.shard) != (recipe, shard):
            problems.append(f"checkpoint {link.key[:12]} belongs to another recipe or shard")
        if link.parent != parent:
            problems.append(f"checkpoint {link.key[:12]} has parent {link.parent}, expected {parent}")
        if link.slice <= last:
            problems.append(f"checkpoint {link.key[:12]}: slice {link.slice} does not follow {last}")
        parent, last = link.key, link.slice
    return problems


def standing_on(keys: Set[str], live: Mapping[str, Checkpoint]) -> frozenset[str]:
    """``keys``, and every stored checkpoint that was trained on from one of them, directly or not.

    Args:
        keys: of checkpoints.
        live: what is stored, in the order in which it was made.
    """
    found = set(keys)
    for key, made in live.items():
        if made.link.parent in found:
            found.add(key)
    return frozenset(found)


def pack_tags(tags: Iterable[bytes]) -> bytes:
    """Sorted 32-byte tags, end to end."""
    return b"".join(sorted(tags))


def unpack_tags(data: bytes) -> frozenset[bytes]:
    """The tags that :func:`pack_tags` packed."""
    return frozenset(data[start : start + 32] for start in range(0, len(data), 32))
