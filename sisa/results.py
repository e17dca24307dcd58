"""What an evaluation found, as values: a line a shard, aggregation or merge."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from shards.manifest import ModelManifest


@dataclass(frozen=True, slots=True)
class Known:
    """Records to evaluate on that this workspace knows.

    Attributes:
        held: trained on, or about to be.
        deleted: deleted here.
        same_content: neither, but with the content of one that is held or was deleted, under another ID.
    """

    held: int
    deleted: int
    same_content: int

    def to_json(self) -> dict[str, int]:
        """As printed."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Result:
    """How good one way to answer is.

    Attributes:
        name: of the shard, aggregation or merge.
        kind: which of these.
        passes: through the base for each input (for each token of a generated answer).
        seconds: wall-clock of reading all records, if it was measured alone.
        metrics: name → value; infinite where an answer was given no chance.
        notes: what else there is to know, as of a merge its error and warnings.
    """

    name: str
    kind: Literal["shard", "aggregation", "merge"]
    passes: int
    seconds: float | None
    metrics: Mapping[str, float]
    notes: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """As printed; JSON has no infinity, so that is null."""
        metrics = {name: value if math.isfinite(value) else None for name, value in self.metrics.items()}
        return {"name": self.name, "kind": self.kind, **metrics, "passes": self.passes, "seconds": self.seconds} | dict(
            self.notes
        )


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What was found.

    Attributes:
        manifest: what was served from the first to the last answer.
        records: how many were read.
        samples: to how many of them answers were generated.
        known: how many of them are no held-out records.
        results: shards, then aggregations, then merges.
    """

    manifest: ModelManifest
    records: int
    samples: int
    known: Known
    results: tuple[Result, ...]

    def to_json(self) -> dict[str, Any]:
        """As printed."""
        return {
            "manifest_generation": self.manifest.generation,
            "manifest_digest": self.manifest.digest,
            "records": self.records,
            "samples": self.samples,
            "known": self.known.to_json(),
            "results": [result.to_json() for result in self.results],
        }
