"""What the command line says to people, and the one JSON document it says to programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from shards.checks import Check, report
from shards.errors import SisaError

out = Console(highlight=False, soft_wrap=True, emoji=False)
err = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)
_STYLES = {"passed": "green", "failed": "bold red", "not_checked": "yellow"}


def print_json(document: dict[str, Any]) -> None:
    """The one JSON document of ``--json``."""
    click.echo(json.dumps(document, ensure_ascii=False, indent=1))


def print_ingested(counts: dict[str, Any]) -> None:
    """What an ingest took in and left out."""
    out.print(
        f"Took in {counts['added']} records; {counts['unchanged']} held already, {counts['tombstoned']} deleted "
        f"earlier and left out, {counts['truncated']} longer than max_length and cut."
    )
    for where in counts["same_content"]:
        out.print(f"[yellow]the same content was deleted under another ID:[/] {escape(where)}; taken in")
    if counts["readmitted"]:
        out.print(f"{counts['readmitted']} deleted records taken in again as new versions (--readmit)")
    for file in counts["files_missing"]:
        out.print(f"[yellow]registered in sisa.yaml and not there:[/] {escape(file)}")


def print_deleted(document: dict[str, Any], *, dry_run: bool) -> None:
    """The impact of a deletion, and its certificate."""
    share = document["impact"]["retrained_share"]
    table = Table("shard", "first hit slice", "checkpoints to purge", "steps to retrain", box=None, pad_edge=False)
    for shard in document["impact"]["shards"]:
        table.add_row(
            *(str(shard[key]) for key in ("shard", "first_slice")), str(len(shard["purged"])), str(shard["steps"])
        )
    out.print(f"{len(document['ids'])} record(s), {share:.1%} of the original training to repeat:")
    out.print(table)
    for missing in document["missing"]:
        out.print(f"[yellow]never held, left out:[/] {escape(repr(missing))}")
    for label in document["labels_gone"]:
        out.print(f"[yellow]last record of label[/] {escape(label)}: its name stays in the recipe")
    if dry_run:
        out.print("Dry run: nothing was changed.")
    elif document["certificate"]:
        out.print(f"Request {document['request_id']} is completed in {document['seconds']:.1f} s.")
        out.print(f"Certificate: [bold]{escape(document['certificate'])}[/]")


def print_checks(checks: Sequence[Check]) -> None:
    """Every check on a line of its own, and how many came out how."""
    for check in checks:
        outcome = f"[{_STYLES[check.outcome]}]{check.outcome.replace('_', ' '):<11}[/]"
        out.print(f"{outcome} {check.level:<3} {check.name}: {escape(check.detail)}")
    counts = report(checks)
    out.print(f"{counts['passed']} passed, {counts['failed']} failed, {counts['not_checked']} not checked")


def show_checks(checks: Sequence[Check], *, as_json: bool) -> None:
    """Print checks for people or for programs; a failed one ends the program with exit code 1."""
    document = report(checks)
    print_json(document) if as_json else print_checks(checks)
    if document["failed"]:
        sys.exit(1)


def print_record(document: dict[str, Any]) -> None:
    """Where a record is, and what saw it."""
    state = "present" if document["present"] else "deleted" if document["deleted"] else "never held"
    place = f"shard {document['shard']}, slice {document['slice']}"
    out.print(f"Record [bold]{escape(document['id'])}[/]: {state}, {place}")
    out.print(f"tag {document['tag']}")
    table = Table("checkpoint", "slice", "state", "epochs", "created", "purged", box=None, pad_edge=False)
    for seen in document["exposures"]:
        state = "[green]live[/]" if seen["live"] else "[dim]purged[/]"
        epochs = str(seen["epochs"]) if seen["epochs"] else "0 (inherited)"
        times = ((seen[name] or "")[:19] for name in ("created", "purged"))
        table.add_row(seen["checkpoint"][:16], str(seen["slice"]), state, epochs, *times)
    out.print(table if document["exposures"] else "No checkpoint ever saw it.")
    if document["unknown"]:
        out.print(f"[yellow]not known of {len(document['unknown'])} checkpoints:[/] the list of what they saw is lost")
    out.print(f"served in manifests {document['manifests']}; derived artefacts: {len(document['derived'])}")


def print_status(document: dict[str, Any]) -> None:
    """Shards, slices, heads and requests."""
    out.print(
        f"{document['records']} records, manifest {document['manifest_generation']} "
        f"({(document['manifest_digest'] or 'nothing served')[:16]}), {document['storage_bytes'] / 2**20:.1f} MiB"
    )
    table = Table("shard", "records", "slices (records)", "head", "tensors", box=None, pad_edge=False)
    for shard in document["shards"]:
        head = shard["head"]
        slices = " ".join(
            f"{part['slice']}({part['records']}{'' if part['checkpoint'] else ', untrained'})"
            for part in shard["slices"]
        )
        served = (head["checkpoint"][:16], head["tensor_digest"][:16]) if head else ("[yellow]absent[/]", "")
        table.add_row(str(shard["shard"]), str(shard["records"]), slices, *served)
    out.print(table)
    for request in document["requests"]:
        what = f"{request['state']}, {request['records']} record(s), accepted {request['accepted'][:19]}"
        out.print(f"request {request['request_id']}: {what}")
    if document["holds"] or document["refusals"]:
        out.print(f"{len(document['holds'])} legal hold(s) in force, {document['refusals']} refusal(s) on record")
    anchored = escape(document["anchor"]) if document["anchor"] else "[yellow]nowhere[/] (see docs/backups.md)"
    out.print(f"log of {document['log']['facts']} facts, anchored in {anchored}")


def print_document(document: dict[str, Any]) -> None:
    """A document that is read as JSON by people too."""
    out.print_json(json.dumps(document))


def print_error(error: SisaError) -> None:
    """What was expected, what was found, and what to do."""
    err.print(f"[bold red]error[/] {type(error).__name__.removesuffix('Error')}")
    err.print(str(error), markup=False)
