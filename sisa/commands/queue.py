"""Requests as a queue: ``requests`` and ``work``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from sisa.commands.options import json_option, running_options, set_option, workspace_option
from sisa.printing import err, out, print_json, print_requests
from sisa.session import open_session


@click.command()
@workspace_option
@click.option("--cancel", metavar="ID", help="Withdraw a request that was not begun; its records are served again.")
@set_option
@json_option
def requests(workspace: Path, cancel: str | None, overrides: tuple[str, ...], as_json: bool) -> None:
    """List deletion requests with state, deadline and estimate; or withdraw one."""
    from sisa import queue

    with open_session(workspace, overrides) as session:
        if cancel is not None:
            queue.cancel(session, cancel)
        listed = queue.list_requests(session)
    print_json({"requests": listed}) if as_json else print_requests(listed)


@click.command()
@workspace_option
@click.option("--watch", is_flag=True, help="Go on: look again every --interval seconds, until interrupted.")
@click.option("--interval", type=click.FloatRange(min=1), default=60.0, show_default=True, help="Seconds.")
@running_options
@set_option
@json_option
def work(
    workspace: Path, watch: bool, interval: float, running: dict[str, Any], overrides: tuple[str, ...], as_json: bool
) -> None:
    """Work off the queued deletions whose turn it is by queue_policy: erase, retrain, certify."""
    from shards.errors import LockedError, SisaError

    while True:
        try:
            document, errors = _turn(workspace, running, overrides)
            if as_json:
                print_json(document)
            elif not watch or document["completed"] or document["failed"]:
                out.print(
                    f"Completed {len(document['completed'])}, failed {len(document['failed'])}, "
                    f"waiting {len(document['waiting'])}."
                )
            if errors and not watch:
                raise errors[0]
        except LockedError:
            if not watch:
                raise
        except SisaError as error:
            if not watch:
                raise
            err.print(f"{error}", markup=False)
        if not watch:
            return
        time.sleep(interval)


def _turn(
    workspace: Path, running: dict[str, Any], overrides: tuple[str, ...]
) -> tuple[dict[str, Any], tuple[Exception, ...]]:
    from sisa.progress import watched
    from sisa.queue import work as run

    with watched(workspace, overrides, running, "retraining") as (session, report):
        worked = run(session, report=report)
    return worked.to_json(), worked.errors
