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
from shards.errors import InputError, SisaError, StorageError
from shards.trunk import told
from sisa.wording import counted, plain, quoted

out = Console(highlight=False, soft_wrap=True, emoji=False)
err = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)
_STYLES = {"passed": "green", "failed": "bold red", "not_checked": "yellow"}


def print_json(document: dict[str, Any]) -> None:
    """The one JSON document of ``--json``."""
    click.echo(json.dumps(document, ensure_ascii=False, indent=1))


def _shown(text: str) -> str:
    """A text from outside: neither markup, nor anything that steers the terminal."""
    return escape(plain(text))


def print_ingested(counts: dict[str, Any]) -> None:
    """What an ingest took in and left out."""
    out.print(
        f"Took in {counted(counts['added'], 'record')}; {counts['unchanged']} held already, "
        f"{counts['tombstoned']} deleted earlier and left out, {counts['truncated']} longer than max_length and cut."
    )
    for where in counts["same_content"]:
        out.print(f"[yellow]the same content was deleted under another ID:[/] {_shown(where)}; taken in")
    if counts["readmitted"]:
        out.print(f"{counted(counts['readmitted'], 'deleted record')} taken in again (--readmit)")
    if counts["joined_trunk"]:
        joined = counted(counts["joined_trunk"], "record")
        out.print(f"[yellow]{joined} joined the trunk, from which every shard starts: everything is trained again.[/]")
    for file in counts["files_missing"]:
        out.print(f"[yellow]registered in sisa.yaml and not there:[/] {_shown(file)}")


def print_deleted(document: dict[str, Any], *, dry_run: bool, queued: bool = False) -> None:
    """The impact of a deletion, and its certificate; of what was deleted before, only when."""
    seconds, repeated = document["seconds"], document["earlier"].get(document["request_id"]) is not None
    if not repeated and document["impact"]["shards"]:
        _print_impact(document)
    for missing in document["missing"]:
        out.print(f"[yellow]never held, left out:[/] {escape(quoted(missing))}")
    for label in document["labels_gone"]:
        out.print(f"[yellow]last record of label[/] {_shown(label)}: its name stays in the recipe")
    _print_stale(document["stale"])
    if dry_run:
        for request, completed in document["earlier"].items():
            state = f"completed on {completed[:10]}" if completed else "not completed yet"
            out.print(f"Deleted already: request {request}, {state}.")
        out.print("Dry run: nothing was changed.")
        return
    for request in document["requests"]:
        completed = document["earlier"].get(request)
        done = f"is completed in {seconds:.1f} s"
        if queued:
            done = "is accepted: nothing served has seen the records since; `sisa work` does the rest"
        state = f"was already completed on {completed[:10]}" if completed else done
        out.print(f"Request {request} {state}.")
    if not queued:
        out.print(f"Certificate: [bold]{_shown(document['certificate'])}[/]")
    if document["registered_files"]:
        files = _shown(", ".join(document["registered_files"]))
        out.print(
            f"Registered files may still hold it: {files} "
            "(delete it there too; deleted records are left out at the next ingest)"
        )


def _print_stale(stale: Sequence[dict[str, Any]]) -> None:
    """What was made of the records' models: purged here, or to be recalled by whoever handed it out."""
    for made in stale:
        what = f"{made['form']} export" if made["form"] else made["kind"]
        if made["kept"]:
            done = {"purge": "To be purged", "purged": "Purged"}.get(made["fate"])  # or gone long ago
            if done:
                out.print(f"{done}: {what} kept at {_shown(made['location'] or '?')}")
            continue
        place = f" to {_shown(made['location'])}" if made["location"] else ""
        whom = f" for {_shown(made['recipient'])}" if made["recipient"] else ""
        out.print(f"[yellow]Left the house, recall it:[/] {what} of {made['created'][:10]}{place}{whom}")


def print_exported(document: dict[str, Any]) -> None:
    """What was exported, how near its files are to memory, and what to know."""
    compared, merge = document["compared"], document["merge"]
    how = f" ({merge['method']})" if merge else ""
    out.print(f"Wrote [bold]{document['form']}[/]{how} of {counted(len(document['heads']), 'shard')}, ", end="")
    out.print(f"manifest {document['manifest_generation']}, to {_shown(document['path'])}")
    out.print(
        f"Loaded again from there: the tensors are the same bits, {counted(compared['probes'], 'answer')} within "
        f"{compared['difference']:.1g} (allowed {compared['tolerance']:g})."
    )
    for warning in document["warnings"]:
        out.print(f"[yellow]mind:[/] {_shown(warning)}")
    if document["kept"]:
        out.print("It is the workspace's: purged with the first of its checkpoints.")
    else:
        out.print("It left the workspace: a later deletion names it, and you have to recall it.")


def print_requests(listed: Sequence[dict[str, Any]]) -> None:
    """A line each request, oldest first."""
    if not listed:
        out.print("No requests.")
        return
    table = Table("request", "state", "accepted", "records", "position", "deadline", "passes", box=None, pad_edge=False)
    for entry in listed:
        table.add_row(
            _shown(entry["request_id"]),
            entry["state"],
            entry["accepted"][:16],
            *("" if entry.get(name) is None else str(entry[name]) for name in ("records", "position")),
            entry.get("deadline", "")[:16],
            str(entry.get("estimate_passes", "")),
        )
    out.print(table)


def _print_impact(document: dict[str, Any]) -> None:
    """The table of shards, and what share of the training they are."""
    table = Table("shard", "first hit slice", "checkpoints to purge", "steps to retrain", box=None, pad_edge=False)
    if document["trunk"]:
        out.print("[yellow]A record of the trunk, from which every shard starts: everything is trained anew.[/]")
    for shard in document["impact"]["shards"]:
        cells = (told(shard["shard"]), shard["first_slice"], len(shard["purged"]), shard["steps"])
        table.add_row(*map(str, cells))
    share = document["impact"]["retrained_share"]
    out.print(f"{counted(len(document['ids']), 'record')}, {share:.1%} of the original training to repeat:")
    out.print(table)
    if document["lanes"] > 1:
        out.print(f"Each pass computes all {document['lanes']} lanes, and costs so, whichever shards are in it.")


def print_checks(checks: Sequence[Check]) -> None:
    """Every check on a line of its own, and how many came out how."""
    for check in checks:
        outcome = f"[{_STYLES[check.outcome]}]{check.outcome.replace('_', ' '):<11}[/]"
        out.print(f"{outcome} {check.level:<3} {check.name}: {_shown(check.detail)}")
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
    chain = "trunk" if document["shard"] == "trunk" else f"shard {document['shard']}"
    place = "" if document["shard"] is None else f", {chain}, slice {document['slice']}"
    out.print(f"Record [bold]{_shown(document['id'])}[/]: {state}{place}")
    out.print(f"tag {document['tag']}")
    table = Table("checkpoint", "shard", "slice", "state", "epochs", "created", "purged", box=None, pad_edge=False)
    for seen in document["exposures"]:
        state = "[green]live[/]" if seen["live"] else "[dim]purged[/]"
        epochs = str(seen["epochs"]) if seen["epochs"] else "0 (inherited)"
        times = ((seen[name] or "")[:19] for name in ("created", "purged"))
        table.add_row(seen["checkpoint"][:16], str(seen["shard"]), str(seen["slice"]), state, epochs, *times)
    out.print(table if document["exposures"] else "No checkpoint ever saw it.")
    if document["unknown"]:
        checkpoints = counted(len(document["unknown"]), "checkpoint")
        out.print(f"[yellow]not known of {checkpoints}:[/] the list of what was seen is lost")
    if document["manifests"]:
        manifests = counted(len(document["manifests"]), "manifest")
        out.print(f"served in {manifests}: {', '.join(map(str, document['manifests']))}")
    if document["derived"]:
        out.print(f"{counted(len(document['derived']), 'derived artefact')} handed out (see --json)")


def print_running(running: dict[str, Any] | None) -> None:
    """That somebody drives the workspace, since when and how far, if somebody does."""
    if running is not None:
        steps = running["steps"]
        done = f": {steps['done']} of {counted(steps['total'], 'slice step')} done" if steps["total"] else ""
        out.print(f"[bold]at work[/]: {_shown(running['holder'])}{done}")


def print_status(document: dict[str, Any]) -> None:
    """Who is at work, shards, slices, heads and requests."""
    print_running(document["running"])
    out.print(
        f"{counted(document['records'], 'record')}, manifest {document['manifest_generation']} "
        f"({(document['manifest_digest'] or 'nothing served')[:16]}), {document['storage_bytes'] / 2**20:.1f} MiB"
        + "".join(
            f", {document[f'{what}_bytes'] / 2**20:.1f} of them {what}"
            for what in ("activations", "exports")
            if document[f"{what}_bytes"]
        )
    )
    table = Table("shard", "records", "slices (records)", "head", "tensors", box=None, pad_edge=False)
    if document["trunk"] is not None:
        trunk = document["trunk"]
        table.add_row("trunk", str(trunk["records"]), _slices(trunk), "[dim]every shard starts here[/]", "")
    for shard in document["shards"]:
        head = shard["head"]
        served = (head["checkpoint"][:16], head["tensor_digest"][:16]) if head else ("[yellow]absent[/]", "")
        table.add_row(str(shard["shard"]), str(shard["records"]), _slices(shard), *served)
    out.print(table)
    for request in document["requests"]:
        what = f"{request['state']}, {counted(request['records'], 'record')}, accepted {request['accepted'][:19]}"
        out.print(f"request {request['request_id']}: {what}")
    for kept in document["exports"]:
        out.print(f"export kept: {kept['name']} ({kept['form']}), of manifest {kept['manifest_generation']}")
    if document["holds"] or document["refusals"]:
        holds, refusals = counted(len(document["holds"]), "legal hold"), counted(document["refusals"], "refusal")
        out.print(f"{holds} in force, {refusals} on record")
    anchor = document["anchor"]
    anchored = f"anchored in {_shown(anchor)}" if anchor else "[yellow]not anchored[/] (see docs/backups.md)"
    out.print(f"log of {counted(document['log']['facts'], 'fact')}, {anchored}")


def print_explained(document: dict[str, Any]) -> None:
    """What each shard says to a text, and what would be said without it."""
    labels = "probabilities" in document
    answer = f"{_shown(document['label'])} ({_share(document)})" if labels else _shown(document["text"])
    served = counted(len(document["shards"]), "shard")
    out.print(f"Answer of {served}, by {document['aggregation']}: [bold]{answer}[/]")
    table = Table("shard", "records", "says", "share" if labels else "log-probability", "without it", box=None)
    for shard in document["shards"]:
        without = shard["without"]
        if labels:
            said, score = shard["label"], f"{shard['probability']:.1%}"
            rest = "" if without is None else f"{_shown(without['label'])} ({_share(without)})"
            changes = without is not None and without["label"] != document["label"]
        else:
            score = "" if shard["log_probability"] is None else f"{shard['log_probability']:.3f}"
            said, rest = shard["text"], "" if without is None else _shown(without["text"])
            changes = without is not None and without["text"] != document["text"]
        rest = f"[yellow]{rest}[/]" if changes else rest or "nothing"
        table.add_row(str(shard["shard"]), str(shard["records"]), _shown(said), score, rest)
    out.print(table)
    if not labels:
        out.print("log-probability: of the answer above, a token, under that shard alone")


def _share(answer: dict[str, Any]) -> str:
    return f"{answer['probabilities'][answer['label']]:.1%}"


def _slices(shard: dict[str, Any]) -> str:
    """Each slice with its records, and whether it waits to be trained."""
    return " ".join(
        f"{part['slice']}({part['records']}{'' if part['checkpoint'] else ', untrained'})" for part in shard["slices"]
    )


def print_document(document: dict[str, Any]) -> None:
    """A document that is read as JSON by people too; ``--json`` prints it as it is."""
    out.print_json(plain(json.dumps(document, ensure_ascii=False)))


def print_error(error: SisaError) -> None:
    """What was expected, what was found, and what to do."""
    err.print(f"[bold red]error[/] {type(error).__name__.removesuffix('Error')}")
    err.print(str(error), markup=False)


def as_ours(error: SisaError | OSError | UnicodeError) -> SisaError:
    """An error that a run may end with, as one that says what to do."""
    if isinstance(error, SisaError):
        return error
    if isinstance(error, OSError):
        remedy = "free space or mend permissions, then run again"
        return StorageError("the operating system to go along", str(error), remedy)
    return InputError("text in UTF-8", str(error), "convert the file or argument to UTF-8")
