"""One fact of the ledger, and its leaf in the log's tree."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from shards.digest import canonical_json, tree_leaf


@dataclass(frozen=True, slots=True)
class Fact:
    """One row: ``kind`` names the schema and version of ``body``.

    ``created`` is informational; order comes from ``seq`` (from 1) alone.
    """

    seq: int
    kind: str
    body: dict[str, Any]
    created: str

    def to_json(self) -> dict[str, Any]:
        """What its leaf is the hash of, in canonical JSON."""
        return {"seq": self.seq, "kind": self.kind, "body": self.body, "created": self.created}

    def leaf(self) -> bytes:
        """Hash of its leaf in the log's tree."""
        return tree_leaf(canonical_json(self.to_json()))
