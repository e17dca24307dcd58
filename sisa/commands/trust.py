"""The commands about evidence: receipts, signing keys, the log, and recovery from a backup."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sisa.commands.options import FILE, json_option, running_options, set_option, workspace_option
from sisa.printing import out, print_document, print_json

if TYPE_CHECKING:
    from sisa.session import Session


@click.command()
@workspace_option
@click.option("--id", "record_id", required=True, help="A record that is held.")
@click.option("--output", type=FILE, required=True, help="Write the receipt here; it holds the record and its salt.")
@set_option
@json_option
def receipt(workspace: Path, record_id: str, output: Path, overrides: tuple[str, ...], as_json: bool) -> None:
    """Issue a signed ingestion receipt, by which a later certificate can be bound to the record."""
    from shards.files import replace_file
    from sisa.export import outside
    from sisa.receipt import receipt as run
    from sisa.session import open_session

    with open_session(workspace, overrides) as session:
        file = outside(session.workspace, output)
        replace_file(file, json.dumps(run(session, record_id), indent=1).encode() + b"\n", private=True)
    document = {"id": record_id, "receipt": str(file)}
    if as_json:
        print_json(document)
    else:
        out.print(f"Wrote {output}. Give it to the person whose record it is; it is personal data.", markup=False)


@click.group()
def key() -> None:
    """Signing keys: rotate, list; hand the tag key to an auditor."""


@key.command()
@workspace_option
@click.option("--lost", is_flag=True, help="The old private key is lost: it cannot endorse the new one.")
@click.option("--stolen", is_flag=True, help="Somebody else may have it: it shall not endorse.")
@set_option
@json_option
def rotate(workspace: Path, lost: bool, stolen: bool, overrides: tuple[str, ...], as_json: bool) -> None:
    """Replace the signing key; the log names the new one from here on."""
    from sisa.key import rotate as run
    from sisa.session import open_session

    if lost and stolen:
        raise click.UsageError("give --lost or --stolen; if in doubt, --stolen")
    reason: Any = "lost" if lost else "stolen" if stolen else "planned"
    with open_session(workspace, overrides) as session, session.driving():
        document = run(session.workspace, reason)
    print_json(document) if as_json else print_document(document)


@key.command("list")
@workspace_option
@json_option
def list_keys(workspace: Path, as_json: bool) -> None:
    """Every signing key of the log and the facts it is valid for."""
    from sisa.key import history
    from sisa.session import open_session

    with open_session(workspace) as session:
        document = {"keys": history(session.workspace)}
    print_json(document) if as_json else print_document(document)


@key.command("tag-key")
@workspace_option
@click.option("--output", type=FILE, required=True, help="Write the tag key here, readable by you only.")
def tag_key(workspace: Path, output: Path) -> None:
    """Write the tag key for an auditor: it makes the tags of records, subjects and holds, and nothing else."""
    from sisa.key import hand_out_tag_key
    from sisa.session import open_session

    with open_session(workspace) as session:
        hand_out_tag_key(session.workspace, output.resolve())
    out.print(f"Wrote {output}. Whoever has it can tell which IDs the tags stand for.", markup=False)


@click.group()
def log() -> None:
    """The transparency log: its signed head, and how it goes on from an earlier one."""


@log.command()
@workspace_option
@click.option("--output", type=FILE, help="Write here instead of stdout.")
def head(workspace: Path, output: Path | None) -> None:
    """The newest signed tree head (C2SP tlog-checkpoint)."""
    from sisa.log import newest_head
    from sisa.session import open_session

    with open_session(workspace) as session:
        _give(session, output, newest_head(session.workspace))


@log.command("move-anchor")
@workspace_option
@set_option
@json_option
def move_anchor(workspace: Path, overrides: tuple[str, ...], as_json: bool) -> None:
    """Anchor the log where sisa.yaml says from here on, or nowhere; the old place is not asked."""
    from sisa.anchoring import move_anchor as run
    from sisa.session import open_session

    with open_session(workspace, overrides) as session, session.workspace.driving():
        run(session.workspace, session.options.anchor)
        document = {"anchor": session.options.anchor}
    if as_json:
        print_json(document)
    elif document["anchor"]:
        out.print(f"Anchored in {document['anchor']} from here on.", markup=False)
    else:
        out.print("Anchored nowhere from here on: a restored backup goes unnoticed.")


@log.command()
@workspace_option
@click.option("--certificate", type=FILE, help="From the tree head beside this certificate.")
@click.option("--from", "old", type=int, help="From a tree head of this many facts.")
@click.option("--to", "new", type=int, help="To a tree head of this many facts; the newest without it.")
@click.option("--output", type=FILE, help="Write here instead of stdout.")
def extension(workspace: Path, certificate: Path | None, old: int | None, new: int | None, output: Path | None) -> None:
    """How the log goes on: a consistency proof and every later fact, for `sisa verify --extension`."""
    from sisa.log import extension as run
    from sisa.log import sealed_size
    from sisa.session import open_session

    if (certificate is None) == (old is None):
        raise click.UsageError("give either --certificate or --from")
    with open_session(workspace) as session:
        start = old if old is not None else sealed_size(Path(str(certificate)))
        _give(session, output, json.dumps(run(session.workspace, start, new), indent=1) + "\n")


def _give(session: Session, output: Path | None, text: str) -> None:
    """To a file outside the workspace, or to stdout."""
    from shards.files import replace_file
    from sisa.export import outside

    click.echo(text, nl=False) if output is None else replace_file(outside(session.workspace, output), text.encode())


@click.command()
@workspace_option
@running_options
@set_option
@json_option
def recover(workspace: Path, running: dict[str, Any], overrides: tuple[str, ...], as_json: bool) -> None:
    """After an older backup was restored: apply all anchored deletions again (docs/backups.md)."""
    from sisa.progress import watched
    from sisa.recover import recover as run

    with watched(workspace, overrides, running, "recovering") as (session, report):
        document = run(session, report=report).to_json()
    print_json(document) if as_json else print_document(document)
