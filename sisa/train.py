"""Train a shardable model: take in what is new, then bring the store to the plan.

    files ─▶ records ─▶ vault ─▶ plan ─▶ missing steps ─▶ checkpoints ─▶ manifest

Killed anywhere, run it again: it continues, and ends with the same bytes.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestration.executor import Executor, SliceTrainer
from orchestration.reconcile import Reconciled
from sisa.delete import finish_requests
from sisa.ingest import Ingested, take_in
from sisa.session import Report, Session, silent


@dataclass(frozen=True, slots=True)
class Trained:
    """What a training run did.

    Attributes:
        ingested: records taken in.
        reconciled: steps trained and what is served now.
    """

    ingested: Ingested
    reconciled: Reconciled

    def to_json(self) -> dict[str, Any]:
        """The ``train`` JSON document."""
        return {
            "ingested": self.ingested.to_json(),
            "steps_trained": len(self.reconciled.trained),
            "sample_passes": self.reconciled.passes,
            "step_seconds": round(self.reconciled.step_seconds, 3),
            "checkpoints_remade": list(self.reconciled.damaged),
            "manifest_generation": self.reconciled.manifest.generation,
            "manifest_digest": self.reconciled.manifest.digest,
        }


def train(
    session: Session,
    data: Sequence[Path] = (),
    *,
    strict: bool = False,
    readmit: Collection[str] = (),
    join_trunk: bool = False,
    restart_shards: bool = False,
    executor: Executor | None = None,
    trainer: SliceTrainer | None = None,
    report: Report = silent,
) -> Trained:
    """Ingest what is new in ``data`` (the registered files if none are named), then train.

    Deletions that an earlier process accepted and did not finish are finished too.

    Args:
        session: an open session.
        data: files to read.
        strict: refuse tombstoned records instead of leaving them out.
        readmit: IDs of deleted records to be taken in again, as new versions.
        join_trunk: take records too that belong to the trunk of what is trained already: everything is trained anew.
        restart_shards: begin shards anew whose unfinished chain belongs to another environment class.
        executor, trainer: in place of those that the configuration names.
        report: told of every step that ends.

    Raises:
        InputError: if records or configuration are wrong; nothing was changed.
        OperationError: if a step failed; what was finished is kept.
    """
    trainer = trainer or session.trainer()
    with session.driving():
        session.workspace.sweep()
        ingested = take_in(session, data, trainer, strict=strict, readmit=readmit, join_trunk=join_trunk)
        session.workspace.pinned()
        reconciled = finish_requests(session, executor, trainer, report, restart_shards=restart_shards)
    reconciled.raise_errors()
    return Trained(ingested, reconciled)
