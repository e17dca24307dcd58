"""Progress on stderr: bars for people, lines where there is no terminal, JSON for machines."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import click
from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, Task, TaskID, TextColumn
from rich.text import Text

from orchestration import reconcile
from shards.errors import SisaError
from shards.trunk import chain_name, told
from shards.workspace import Workspace
from sisa.delete import unfinished_requests
from sisa.printing import err
from sisa.session import Report, Session, open_session
from sisa.wording import counted, named


class Stopped(click.Abort):
    """Somebody stopped the work (Ctrl-C, or a signal to terminate); the text says what is kept."""


@contextmanager
def watched(
    path: Path, overrides: Iterable[str], running: Mapping[str, Any], what: str, *, keeps: bool = True
) -> Iterator[tuple[Session, Report]]:
    """An open session, and a report of its steps in the form that the caller asked for.

    Args:
        path: the workspace.
        overrides: ``key=value`` texts.
        running: run options, and ``json_events``.
        what: the work, in one word.
        keeps: a step that ended is kept, should the work be stopped.

    Raises:
        Stopped: in place of KeyboardInterrupt.
    """
    options = {name: value for name, value in running.items() if name != "json_events"}
    show = json_events if running.get("json_events") else bars if err.is_terminal else lines
    heard: list[reconcile.Progress] = []

    def hear(progress: reconcile.Progress) -> None:
        heard[:] = [progress]
        report(progress)

    with open_session(path, overrides, **options) as session:
        try:
            with show(err, what) as report:
                yield session, hear
        except KeyboardInterrupt:
            raise Stopped(_stand(session.workspace, keeps, *heard)) from None


def _stand(workspace: Workspace, keeps: bool, progress: reconcile.Progress | None = None) -> str:
    """What stands of work that was stopped after this report, if there was one."""
    text = "No slice step was begun."
    if progress is not None:
        kept = "kept" if keeps else "not kept"
        text = f"{progress.done} of {counted(progress.total, 'slice step')} finished and {kept}."
    with suppress(SisaError):  # it is only to be said what stands; the next run will say what is wrong
        begun = [request.request_id for request in unfinished_requests(workspace) if request.tags]
        if begun:
            text += f" Accepted and not completed: {named(begun)}; nothing served has seen those records since."
    return text


class Pace:
    """How much is done and how fast, from the reports of one run.

    Attributes:
        total, done: records in the steps to train, and in those trained (sample passes of one epoch).
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._begun = clock()
        self.total = self.done = 0

    def take(self, progress: reconcile.Progress) -> None:
        """Count a report."""
        if progress.outcome is None:
            self._begun = self._clock()
            self.total, self.done = sum(sum(steps) for steps in progress.shards.values()), 0
        elif progress.outcome.checkpoint is not None:
            self.done += progress.outcome.checkpoint.members

    @property
    def rate(self) -> float:
        """Records a second."""
        elapsed = self._clock() - self._begun
        return self.done / elapsed if elapsed > 0 else 0.0

    @property
    def left(self) -> float | None:
        """Seconds left at this rate; None before the first step."""
        return (self.total - self.done) / self.rate if self.rate > 0 else None

    def text(self) -> str:
        """``12.3 records/s, 0:01:30 left``."""
        if self.left is None:
            return ""
        return f"{self.rate:.1f} records/s, {timedelta(seconds=round(self.left))} left"


class _Fitting(Progress):
    """The first bar, and those of the others that fit on the terminal: unfinished ones, if not all do."""

    def get_renderables(self) -> Iterable[RenderableType]:
        """The bars, and how many are not shown for lack of lines; asked at every drawing."""
        if not self.tasks:  # asked first by the base class, which has no console yet
            return
        whole, *parts = self.tasks
        open_ = [part for part in parts if not part.finished and not part.fields["failed"]]
        room = self.console.height - 2  # the whole's line, and the one that the cursor is on
        if len(parts) <= room:
            yield self.make_tasks_table(self.tasks)
            return
        yield self.make_tasks_table([whole, *open_[: room - 1]])
        yield Text(f"  {_not_shown(parts, len(open_[room - 1 :]))}", style="dim", overflow="ellipsis", no_wrap=True)


def _not_shown(parts: Sequence[Task], waiting: int) -> str:
    finished = sum(part.finished for part in parts)
    failed = sum(part.fields["failed"] for part in parts)
    numbers = {"more waiting": waiting, "finished": finished, "failed": failed}
    return "… shards: " + ", ".join(f"{number} {words}" for words, number in numbers.items() if number)


@contextmanager
def bars(console: Console, what: str) -> Iterator[Report]:
    """A bar of slice steps for each shard and one for all, once there is a step to train."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(20),  # narrow: a full line and the echo of Ctrl-C would make the terminal scroll
        MofNCompleteColumn(),
        TextColumn("[dim]{task.fields[note]}"),
    )
    pace, tasks = Pace(), dict[int, TaskID]()
    with _Fitting(*columns, console=console) as shown:
        total = shown.add_task(what, total=None, visible=False, note="", failed=False)

        def report(progress: reconcile.Progress) -> None:
            pace.take(progress)
            for shard, steps in progress.shards.items() if progress.outcome is None else ():
                tasks[shard] = shown.add_task(f"  {chain_name(shard)}", total=len(steps), note="", failed=False)
            shown.update(
                total, total=progress.total, completed=progress.done, visible=progress.total > 0, note=pace.text()
            )
            outcome = progress.outcome
            if outcome is not None and outcome.checkpoint is not None:
                note = f"slice {outcome.checkpoint.link.slice} {outcome.seconds:.1f} s"
                shown.update(tasks[outcome.shard], advance=1, note=note)
            elif outcome is not None:
                shown.update(tasks[outcome.shard], note="[red]failed", failed=True)

        yield report


@contextmanager
def lines(console: Console, what: str) -> Iterator[Report]:
    """A plain line a step."""
    pace = Pace()

    def report(progress: reconcile.Progress) -> None:
        pace.take(progress)
        outcome, counted = progress.outcome, f"{what} {progress.done}/{progress.total}"
        if outcome is not None and outcome.checkpoint is not None:
            step = f"{chain_name(outcome.shard)} slice {outcome.checkpoint.link.slice} in {outcome.seconds:.1f} s"
            console.print(f"{counted}: {step}, {pace.text()}", markup=False, highlight=False, soft_wrap=True)
        elif outcome is not None:
            failed = f"{counted}: {chain_name(outcome.shard)} failed"
            console.print(failed, markup=False, highlight=False, soft_wrap=True)

    yield report


@contextmanager
def json_events(_: Console, what: str) -> Iterator[Report]:
    """One JSON object a line: ``begin``, ``step`` and ``failed``; no record's ID or text is in them."""
    pace = Pace()

    def report(progress: reconcile.Progress) -> None:
        pace.take(progress)
        event: dict[str, Any] = {"event": "begin", "work": what, "done": progress.done, "total": progress.total}
        outcome = progress.outcome
        if outcome is None:
            event["shards"] = {str(told(shard)): len(steps) for shard, steps in progress.shards.items()}
        else:
            event |= {"event": "failed", "shard": told(outcome.shard), "seconds": round(outcome.seconds, 3)}
            event |= {"records_per_second": round(pace.rate, 3), "seconds_left": pace.left and round(pace.left, 1)}
        if outcome is not None and outcome.checkpoint is not None:
            made = outcome.checkpoint
            event |= {"event": "step", "slice": made.link.slice, "checkpoint": made.key, "records": made.members}
        elif outcome is not None:
            event["error"] = type(outcome.error).__name__
        click.echo(json.dumps(event), err=True)

    yield report
