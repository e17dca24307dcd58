"""``sisa`` in a process that notes when its first training step begins; started by ``startup.py``.

    python -c "from benchmarks.first_step import main; main()" FILE delete …

FILE gets a line for each step, in the process that trains: when the step was handed to the trainer, and when the
base lay there for it (imported, verified, loaded), by the clock that all processes of a machine share.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from orchestration.executor import Fit, Lesson, SliceTrainer
from shards.errors import SisaError
from shards.records import Record
from sisa.cli import main as sisa
from sisa.learner import LoraTrainer
from sisa.session import Session


@dataclass(frozen=True, slots=True)
class Noting:
    """A trainer that notes when its steps begin."""

    trainer: LoraTrainer
    notes: Path

    def environment(self) -> dict[str, str]:
        """As the trainer says."""
        return self.trainer.environment()

    def examine(self, record: Record) -> Fit:
        """As the trainer says."""
        return self.trainer.examine(record)

    @property
    def lanes(self) -> int:
        """As many as the trainer has: one, in this benchmark."""
        return self.trainer.lanes

    def train_lanes(self, lessons: Mapping[int, Lesson]) -> Mapping[int, Mapping[str, bytes] | SisaError]:
        """As the trainer does."""
        return self.trainer.train_lanes(lessons)

    def train(self, lesson: Lesson) -> Mapping[str, bytes]:
        """Have the base loaded, note it, train."""
        ordered = time.monotonic()
        from sisa.adapter import process_adapter
        from sisa.base_model import load_tokenizer

        load_tokenizer(self.trainer.recipe, self.trainer.base_model)
        process_adapter(self.trainer.recipe, self.trainer.base_model, self.trainer.lanes)
        with self.notes.open("a") as handle:
            handle.write(json.dumps({"ordered": ordered, "began": time.monotonic()}) + "\n")
        return self.trainer.train(lesson)


def main() -> None:
    """Run the command line with a trainer that notes."""
    notes, arguments = Path(sys.argv[1]), sys.argv[2:]
    made = Session.trainer

    def noting(session: Session) -> SliceTrainer:
        trainer = made(session)
        return Noting(trainer, notes) if isinstance(trainer, LoraTrainer) else trainer

    setattr(Session, "trainer", noting)  # noqa: B010 - a method is not assigned to
    sisa(arguments)
