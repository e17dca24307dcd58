"""Requests as a queue: ``requests`` and ``work``."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import click

from shards.errors import LockedError, SisaError
from sisa.commands.options import json_option, running_options, set_option, workspace_option
from sisa.printing import as_ours, out, print_error, print_json, print_requests, print_running


@click.command()
@workspace_option
@click.option("--cancel", metavar="ID", help="Withdraw a request that was not begun; its records are served again.")
@set_option
@json_option
def requests(workspace: Path, cancel: str | None, overrides: tuple[str, ...], as_json: bool) -> None:
    """List deletion requests with state, deadline and estimate; or withdraw one."""
    from sisa import queue
    from sisa.session import open_session
    from sisa.status import running

    with open_session(workspace, overrides) as session:
        if cancel is not None:
            queue.cancel(session, cancel)
        listed, driver = queue.list_requests(session), running(session.workspace)
    if as_json:
        print_json({"requests": listed, "running": driver})
    else:
        print_running(driver)
        print_requests(listed)


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
    if not watch:
        document, errors = _turn(workspace, running, overrides)
        print_json(document) if as_json else _told(document)
        if errors:
            raise errors[0]
        return
    while True:
        _watched_turn(workspace, running, overrides, as_json)
        time.sleep(interval)


def _watched_turn(workspace: Path, running: dict[str, Any], overrides: tuple[str, ...], as_json: bool) -> None:
    """A turn whose errors end nothing: the next one tries again."""
    try:
        document, errors = _turn(workspace, running, overrides)
    except LockedError:  # another driver is at work, and may be about the same
        return
    except (SisaError, OSError, UnicodeError) as error:
        print_error(as_ours(error))
        return
    if as_json:
        click.echo(json.dumps(document))  # a line a turn
        return
    for held_back in errors:
        print_error(held_back)
    if document["completed"] or document["failed"]:
        _told(document)


def _told(document: dict[str, Any]) -> None:
    out.print(
        ", ".join(f"{word} {len(document[word])}" for word in ("completed", "failed", "waiting")).capitalize() + "."
    )


def _turn(
    workspace: Path, running: dict[str, Any], overrides: tuple[str, ...]
) -> tuple[dict[str, Any], tuple[SisaError, ...]]:
    from sisa.progress import watched
    from sisa.queue import work as run

    with watched(workspace, overrides, running, "retraining") as (session, report):
        worked = run(session, report=report)
    return worked.to_json(), worked.errors
