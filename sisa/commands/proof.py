"""The commands that ask what is true; a failed check is exit code 1."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sisa.commands.options import FILE, json_option, running_options, set_option, workspace_option
from sisa.printing import print_document, print_json, print_record, show_checks

if TYPE_CHECKING:
    from shards.checks import Check
    from shards.workspace import Workspace
    from sisa.document import Document


@click.command()
@click.argument("certificate", type=FILE)
@click.option("--public-key", "public_keys", multiple=True, type=FILE, help="The operator's key (PEM), got from them.")
@click.option("--receipt", type=FILE, help="An ingestion receipt: is the certificate about its record?")
@click.option("--tag-key", type=FILE, help="The operator's tag key, for an auditor; with --id.")
@click.option("--id", "record_id", help="The record in question, with --tag-key.")
@click.option("--head", type=FILE, help="A tree head got from elsewhere: is the certified release still current?")
@click.option("--extension", type=FILE, help="What `sisa log extension` printed for that head.")
@click.option("-w", "--workspace", type=FILE, help="Compare with this workspace.")
@click.option("--replay", type=click.Choice(["affected", "full"]), help="Train hit shards, or all, anew and compare.")
@running_options
@set_option
@json_option
def verify(
    certificate: Path,
    public_keys: tuple[Path, ...],
    receipt: Path | None,
    tag_key: Path | None,
    record_id: str | None,
    head: Path | None,
    extension: Path | None,
    workspace: Path | None,
    replay: Any,
    running: dict[str, Any],
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """Check a deletion CERTIFICATE, offline; prints every check and its outcome.

    The file and --public-key suffice for levels V0 to V2; nothing is downloaded.
    """
    from sisa.levels import not_compared
    from sisa.verify import Evidence
    from sisa.verify import verify as run

    if (tag_key is None) != (record_id is None):
        raise click.UsageError("give --tag-key and --id together")
    if replay is not None and workspace is None:
        raise click.UsageError("name the workspace to replay with -w")
    evidence = Evidence(public_keys, receipt, tag_key, record_id, head, extension)
    document, checks = run(certificate, evidence)
    if workspace is None:
        checks += not_compared("no workspace given (-w)")
    elif document is None or any(check.outcome == "failed" for check in checks):
        checks += not_compared("the certificate itself does not hold")
    else:
        checks += _with_workspace(document, workspace, replay, running, overrides)
    show_checks(checks, as_json=as_json)


def _with_workspace(
    document: Document, path: Path, replay: Any, running: dict[str, Any], overrides: tuple[str, ...]
) -> list[Check]:
    from sisa.config import parse_overrides, read_settings
    from sisa.verify_workspace import verify_against

    def replayer(opened: Workspace, shards: list[int], level: str) -> list[Check]:
        from sisa.progress import watched
        from sisa.replay import replay as again

        with watched(opened.path, overrides, running, "replaying", keeps=False) as (session, report):
            return again(session.workspace, shards, level, session.executor(), session.trainer(), report)

    anchor = read_settings(path, parse_overrides(overrides)).options.anchor
    return verify_against(document, path, anchor=anchor, replay=replay, replayer=replayer)


def _shard(_: click.Context, __: click.Parameter, value: str | None) -> int | str | None:
    """The number of a shard, or ``trunk``."""
    return value if value in (None, "trunk") else click.INT(value)


@click.command()
@workspace_option
@click.option("--id", "record_id", help="A record: shard, slice, every checkpoint that saw it.")
@click.option("--subject", help="All records of a subject.")
@click.option("--shard", metavar="NUMBER", callback=_shard, help="A shard, or trunk: its records and lineage.")
@click.option("--checkpoint", help="A checkpoint: what it trained and inherited.")
@click.option("--all", "everything", is_flag=True, help="Ask the law of the whole workspace, its log first.")
@click.option("--residue", is_flag=True, help="Search everything stored for --records.")
@click.option(
    "--records",
    multiple=True,
    type=FILE,
    help="Your own copy of deleted records, with --residue; kept outside the workspace, or it would be found itself.",
)
@set_option
@json_option
def audit(
    workspace: Path,
    record_id: str | None,
    subject: str | None,
    shard: int | str | None,
    checkpoint: str | None,
    everything: bool,
    residue: bool,
    records: tuple[Path, ...],
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """Which shard saw which example? Only reads."""
    from shards.workspace import Workspace
    from sisa import audit as audits

    named = [record_id, subject, shard, checkpoint]
    if sum(value is not None for value in named) + everything + residue != 1:
        raise click.UsageError("ask one of --id, --subject, --shard, --checkpoint, --all, --residue")
    if residue != bool(records):
        raise click.UsageError("give --residue and --records together")
    opened = Workspace.open(workspace, check=not everything)
    try:
        if everything or residue:
            checks = _questions(opened, records, overrides)
        elif record_id is not None:
            document = audits.audit_record(opened, record_id)
        elif subject is not None:
            document = audits.audit_subject(opened, subject)
        elif shard is not None:
            document = audits.audit_shard(opened, shard)
        else:
            document = audits.audit_checkpoint(opened, str(checkpoint))
    finally:
        opened.close()
    if everything or residue:
        show_checks(checks, as_json=as_json)
    elif as_json:
        print_json(document)
    elif record_id is not None:
        print_record(document)
    else:
        print_document(document)


def _questions(opened: Workspace, records: tuple[Path, ...], overrides: tuple[str, ...]) -> list[Check]:
    """The law, or (with records) the residue scan."""
    from sisa.audit import audit_everything, audit_residue
    from sisa.config import parse_overrides, read_settings

    settings = read_settings(opened.path, parse_overrides(overrides))
    if records:
        return audit_residue(opened, settings, records)
    return audit_everything(opened, settings.options.anchor)
