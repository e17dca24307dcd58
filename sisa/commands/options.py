"""Options that several commands have, spelled and explained in one place."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import wraps
from pathlib import Path
from typing import Any

import click

from sisa.choices import AGGREGATIONS, WEIGHTINGS
from sisa.methods import METHODS

Command = Callable[..., None]
FILE = click.Path(path_type=Path)
LINES = click.File("r", encoding="utf-8")


def workspace_option(command: Command) -> Command:
    """``-w``, the workspace; the current directory unless given."""
    return click.option(
        "-w", "--workspace", type=FILE, default=Path(), show_default="current directory", help="Workspace directory."
    )(command)


def json_option(command: Command) -> Command:
    """``--json``, handed on as ``as_json``."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")(command)


def set_option(command: Command) -> Command:
    """``--set``, handed on as ``overrides``."""
    return click.option(
        "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a key of sisa.yaml; repeatable."
    )(command)


def aggregate_option(command: Command) -> Command:
    """``--aggregate``, handed on as ``aggregation``."""
    ways = click.Choice(AGGREGATIONS)
    return click.option("--aggregate", "aggregation", type=ways, help="How the shards' answers are combined.")(command)


def running_options(command: Command) -> Command:
    """Options of every command that runs slice steps, handed on together as ``running``."""

    @wraps(command)
    def packed(
        executor: str | None, workers: int | None, ray_address: str | None, json_events: bool, **arguments: Any
    ) -> None:
        running = {"executor": executor, "workers": workers, "ray_address": ray_address, "json_events": json_events}
        command(running=running, **arguments)

    for option in (
        click.option("--json-events", is_flag=True, help="Progress as one JSON object a line, on stderr."),
        click.option("--ray-address", help="A running Ray cluster; without it, one is started here."),
        click.option("--workers", type=click.IntRange(min=1), help="Worker processes."),
        click.option("--executor", type=click.Choice(["ray", "inline"]), help="Where steps run."),
    ):
        packed = option(packed)
    return packed


def admission_options(command: Command) -> Command:
    """What may be taken in, handed on together as ``admission``."""

    @wraps(command)
    def packed(strict: bool, readmit: tuple[str, ...], join_trunk: bool, **arguments: Any) -> None:
        command(admission={"strict": strict, "readmit": readmit, "join_trunk": join_trunk}, **arguments)

    for option in (
        click.option(
            "--join-trunk", is_flag=True, help="Take permanent records of generation 0 too: everything is trained anew."
        ),
        click.option(
            "--readmit", multiple=True, metavar="ID", help="Take a deleted record in again, as a new version."
        ),
        click.option("--strict", is_flag=True, help="Refuse what was deleted instead of leaving it out, or telling."),
    ):
        packed = option(packed)
    return packed


def who_options(command: Command) -> Command:
    """Who asked, who allowed and why, handed on together as ``who``; the ledger keeps keyed references."""

    @wraps(command)
    def packed(requester: str, authorised_by: str, reason: str, legal_basis: str, **arguments: Any) -> None:
        who = {"requester": requester, "authoriser": authorised_by, "reason": reason, "basis": legal_basis}
        command(who={kind: text for kind, text in who.items() if text}, **arguments)

    for option in (
        click.option("--legal-basis", default="", help="Legal basis, such as 'GDPR Art. 17(1)(b)'."),
        click.option("--reason", default="", help="Why."),
        click.option("--authorised-by", default="", help="Who allowed it."),
        click.option("--requester", default="", help="Who asked."),
    ):
        packed = option(packed)
    return packed


def merge_options(*more: str) -> Callable[[Command], Command]:
    """How shards are merged, handed on as ``method``, ``weighting``, ``rank`` and ``seed``.

    Args:
        *more: what else may be given for a method.
    """
    options = (
        click.option(
            "--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True, help="Of random methods."
        ),
        click.option(
            "--rank", type=click.IntRange(min=1), help="Of svd's adapter; the recipe's lora_rank unless given."
        ),
        click.option(
            "--weighting", type=click.Choice(WEIGHTINGS), default="equal", show_default=True,
            help="Of the shards in a merge.",
        ),
        click.option(
            "--method", type=click.Choice([*METHODS, *more]), default="cat", show_default=True, help="How to merge."
        ),
    )  # fmt: skip

    def decorated(command: Command) -> Command:
        for option in options:
            command = option(command)
        return command

    return decorated


def given_options() -> frozenset[str]:
    """Options of the running command that were said, by the names that it knows them by."""
    context = click.get_current_context()
    default = click.core.ParameterSource.DEFAULT
    return frozenset(name for name in context.params if context.get_parameter_source(name) is not default)


def option_names(names: Iterable[str]) -> str:
    """Options as they are typed."""
    spelled = {option.name: option.opts[-1] for option in click.get_current_context().command.params}
    return ", ".join(sorted(spelled[name] for name in names))
