"""The reference executor: every step in this process, one after the other."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from orchestration.attempt import made_by, perform_together
from orchestration.executor import ChainOrder, Outcome, SliceTrainer
from orchestration.schedule import Team, teams


@dataclass(frozen=True, slots=True)
class InlineExecutor:
    """Performs steps in the calling process. What Ray does is tested against this.

    Only our own errors end a chain quietly; anything else is a defect and is raised where it is.
    """

    def run(
        self, chains: Iterable[ChainOrder], trainer: SliceTrainer, workspace: Path, store: Path
    ) -> Iterator[Outcome]:
        """Perform every step here, team after team."""
        for formed in teams(chains, trainer.lanes):
            team: Team | None = formed
            while team is not None:
                outcomes = perform_together(team.orders(workspace, store), trainer)
                yield from outcomes
                team = team.after(made_by(outcomes))
