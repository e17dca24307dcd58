"""What is served now: one lineage head per shard."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Self

from shards.digest import canonical_json, digest


@dataclass(frozen=True, slots=True)
class Head:
    """The checkpoint a shard is served from.

    Attributes:
        shard: its number.
        checkpoint: its key.
        tensors: digest of its tensors.
        lineage: digest of everything that was trained on the way to it, commitments included.
        steps: how many checkpoints that is; a certificate must account for each.
    """

    shard: int
    checkpoint: str
    tensors: str
    lineage: str
    steps: int


@dataclass(frozen=True, slots=True)
class ModelManifest:
    """The served set. A shard that has not trained, or lost all its records, is absent.

    The digest covers recipe, keys and tensors only, so two workspaces that serve the same bits have
    the same digest whatever their histories; the generation number counts swaps in one workspace.
    """

    generation: int
    recipe: str
    heads: tuple[Head, ...]

    @classmethod
    def of(cls, generation: int, recipe: str, heads: Iterable[Head]) -> Self:
        """A manifest with its heads in shard order."""
        return cls(generation, recipe, tuple(sorted(heads, key=lambda head: head.shard)))

    @property
    def digest(self) -> str:
        """Digest (hex) of recipe and heads."""
        heads = [[head.shard, head.checkpoint, head.tensors] for head in self.heads]
        return digest("manifest", self.recipe, canonical_json(heads)).hex()

    def head(self, shard: int) -> Head | None:
        """The head a shard is served from, if it is."""
        return next((head for head in self.heads if head.shard == shard), None)

    def to_json(self) -> dict[str, Any]:
        """The body of its fact."""
        return {
            "generation": self.generation,
            "digest": self.digest,
            "recipe": self.recipe,
            "heads": [asdict(head) for head in self.heads],
        }

    @classmethod
    def from_json(cls, body: dict[str, Any]) -> Self:
        """The manifest of a fact's body."""
        return cls.of(body["generation"], body["recipe"], (Head(**head) for head in body["heads"]))
