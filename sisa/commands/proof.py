"""The commands that ask what is true; a failed check is exit code 1."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from shards.checks import Check
from shards.workspace import Workspace
from sisa.commands.options import FILE, json_option, running_options, set_option, workspace_option
from sisa.printing import err, print_document, print_json, print_record, show_checks
from sisa.session import open_session


@click.command()
@click.argument("certificate", type=FILE)
@click.option("--public-key", type=FILE, help="The operator's public key (PEM), got from the operator.")
@click.option("-w", "--workspace", type=FILE, help="Compare with this workspace.")
@click.option("--replay", type=click.Choice(["affected", "full"]), help="Train hit shards, or all, anew and compare.")
@running_options
@set_option
@json_option
def verify(
    certificate: Path,
    public_key: Path | None,
    workspace: Path | None,
    replay: Any,
    running: dict[str, Any],
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """Check a deletion CERTIFICATE, offline; prints every check and its outcome."""
    from sisa.verify import verify as run

    def replayer(opened: Workspace, shards: list[int], level: str) -> list[Check]:
        from sisa.progress import progress_bar
        from sisa.replay import replay as again

        with open_session(opened.path, overrides, **running) as session, progress_bar(err, "replaying") as bar:
            return again(session.workspace, shards, level, session.executor(), session.trainer(), bar)

    checks = run(certificate, public_key=public_key, workspace=workspace, replay=replay, replayer=replayer)
    show_checks(checks, as_json=as_json)


@click.command()
@workspace_option
@click.option("--id", "record_id", help="A record: shard, slice, every checkpoint that saw it.")
@click.option("--subject", help="All records of a subject.")
@click.option("--shard", type=int, help="A shard: its records and lineage.")
@click.option("--checkpoint", help="A checkpoint: what it trained and inherited.")
@click.option("--all", "everything", is_flag=True, help="Ask the law of the whole workspace.")
@json_option
def audit(
    workspace: Path,
    record_id: str | None,
    subject: str | None,
    shard: int | None,
    checkpoint: str | None,
    everything: bool,
    as_json: bool,
) -> None:
    """Which shard saw which example? Only reads."""
    from sisa import audit as audits

    asked = [record_id is not None, subject is not None, shard is not None, checkpoint is not None, everything]
    if sum(asked) != 1:
        raise click.UsageError("ask one of --id, --subject, --shard, --checkpoint, --all")
    opened = Workspace.open(workspace)
    try:
        if everything:
            checks = audits.audit_everything(opened)
            document: dict[str, Any] = {}
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
    if everything:
        show_checks(checks, as_json=as_json)
    elif as_json:
        print_json(document)
    elif record_id is not None:
        print_record(document)
    else:
        print_document(document)
