"""The commands about people: holds, refusals, letters, tombstones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from sisa.commands.options import FILE, json_option, set_option, who_options, workspace_option
from sisa.printing import out, print_document, print_json


@click.command()
@workspace_option
@click.option("--id", "ids", multiple=True, help="Record ID to hold, held now or not; repeatable.")
@click.option("--subject", "subjects", multiple=True, help="All records of this subject; repeatable.")
@click.option("--lift", metavar="HOLD", help="Lift this hold.")
@click.option("--list", "listing", is_flag=True, help="List the holds in force.")
@who_options
@set_option
@json_option
def hold(
    workspace: Path,
    ids: tuple[str, ...],
    subjects: tuple[str, ...],
    lift: str | None,
    listing: bool,
    who: dict[str, str],
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """Put records on legal hold: their deletion is refused, on record, until the hold is lifted."""
    from sisa import hold as holding
    from sisa.session import open_session

    if (lift is not None) + listing + bool(ids or subjects) != 1:
        raise click.UsageError("give --id or --subject, or --lift, or --list")
    with open_session(workspace, overrides) as session:
        if listing:
            document: dict[str, Any] = {"holds": holding.holds(session.workspace)}
        else:
            with session.driving():
                if lift is not None:
                    document = holding.lift(session.workspace, lift, who)
                else:
                    document = holding.hold(session.workspace, ids, subjects, who)
    print_json(document) if as_json else print_document(document)


@click.command()
@workspace_option
@click.option("--id", "ids", multiple=True, help="Record ID whose deletion is refused; repeatable.")
@click.option("--subject", "subjects", multiple=True, help="Subject whose deletion is refused; repeatable.")
@click.option("--request-id", help="Your name for the request that is refused.")
@who_options
@set_option
@json_option
def refuse(
    workspace: Path,
    ids: tuple[str, ...],
    subjects: tuple[str, ...],
    request_id: str | None,
    who: dict[str, str],
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """Put on record that a deletion was refused, and why; nothing is deleted."""
    from sisa.hold import refuse as run
    from sisa.session import open_session

    with open_session(workspace, overrides) as session, session.driving():
        document = run(session.workspace, ids, subjects, request_id, who)
    print_json(document) if as_json else print_document(document)


@click.command()
@workspace_option
@click.option("--request", "request_id", required=True, help="The request's, or a refusal's, ID.")
@click.option("--output", type=FILE, help="Write here instead of stdout.")
def letter(workspace: Path, request_id: str, output: Path | None) -> None:
    """Write the plain-language answer to the person: what was done, and what was not."""
    from shards.files import replace_file
    from sisa.export import outside
    from sisa.letter import letter as run
    from sisa.session import open_session

    with open_session(workspace) as session:
        target = None if output is None else outside(session.workspace, output)
        text = run(session.workspace, request_id)
    if target is None:
        click.echo(text, nl=False)
    else:
        replace_file(target, text.encode(), private=True)
        out.print(f"Wrote {output}. It is personal data.", markup=False)


@click.command()
@workspace_option
@click.option(
    "--retire",
    "days",
    type=click.IntRange(0, 36_500),
    metavar="DAYS",
    help="Destroy those of requests completed longer ago (0: all), never before backup_days; and the refusals, the "
    "lifted holds and the texts that name recipients of exports that are as old.",
)
@click.option("--destroy-keys", is_flag=True, help="End the namespace: destroy its root secret. Needs --yes.")
@click.option("--yes", is_flag=True, help="Really destroy.")
@set_option
@json_option
def tombstones(
    workspace: Path,
    days: int | None,
    destroy_keys: bool,
    yes: bool,
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """List tombstones, or destroy them by retention rule; at the end of a namespace's life, its keys."""
    from sisa import key, retention
    from sisa.session import open_session

    if (days is not None) + destroy_keys > 1:
        raise click.UsageError("give --retire or --destroy-keys, not both")
    if (destroy_keys or days is not None) and not yes:
        raise click.UsageError("this cannot be undone: add --yes")
    with open_session(workspace, overrides) as session:
        if destroy_keys:
            with session.driving():
                key.destroy(session.workspace)
            document: dict[str, Any] = {"destroyed": "keys/root.key"}
        elif days is not None:
            with session.driving():
                document = {"retired": retention.retire(session.workspace, days)}
        else:
            document = {"requests": retention.list_tombstones(session.workspace)}
    print_json(document) if as_json else print_document(document)
