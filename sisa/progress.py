"""Progress bars on stderr, for people."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from orchestration import reconcile
from sisa.session import Report


@contextmanager
def progress_bar(console: Console, what: str) -> Iterator[Report]:
    """A bar that counts slice steps; it appears only once there is a step to count."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("slice steps"),
        TimeElapsedColumn(),
        TextColumn("[dim]{task.fields[last]}"),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(what, total=None, visible=False, last="")

        def report(progress: reconcile.Progress) -> None:
            last = ""
            if progress.outcome is not None and progress.outcome.checkpoint is not None:
                link = progress.outcome.checkpoint.link
                last = f"shard {link.shard} slice {link.slice} {progress.outcome.seconds:.1f} s"
            elif progress.outcome is not None:
                last = f"shard {progress.outcome.shard} failed"
            bar.update(task, total=progress.total, completed=progress.done, visible=progress.total > 0, last=last)

        yield report
