"""The command line: each command a few lines over a public function.

The one place that prints and chooses exit codes: 0 done; 1 a check failed; 2 bad usage or bad
input; 3 the operation could not be completed and can be run again.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from io import TextIOWrapper
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from shards.checks import Check, report
from shards.errors import InputError, OperationError, SisaError, StorageError
from shards.workspace import Workspace
from sisa import __version__
from sisa.session import open_session

_out = Console(highlight=False, soft_wrap=True, emoji=False)
_err = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)
_STYLES = {"passed": "green", "failed": "bold red", "not_checked": "yellow"}

Command = Callable[..., None]
_FILE = click.Path(path_type=Path)
_LINES = click.File("r", encoding="utf-8")


def _workspace(command: Command) -> Command:
    return click.option(
        "-w", "--workspace", type=_FILE, default=Path(), show_default="current directory", help="Workspace directory."
    )(command)


def _json(command: Command) -> Command:
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")(command)


def _set(command: Command) -> Command:
    return click.option(
        "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a key of sisa.yaml; repeatable."
    )(command)


def _running(command: Command) -> Command:
    """Options of every command that runs slice steps."""
    for option in (
        click.option("--ray-address", help="A running Ray cluster; without it, one is started here."),
        click.option("--workers", type=click.IntRange(min=1), help="Worker processes."),
        click.option("--executor", type=click.Choice(["ray", "inline"]), help="Where steps run."),
    ):
        command = option(command)
    return command


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__)
def cli() -> None:
    """Exact unlearning for fine-tuned models.

    Train a shardable model, delete by record ID with a certificate, audit which shard saw what.
    Exit codes: 0 done, 1 a check failed, 2 bad usage or input, 3 could not complete (run again).
    """


@cli.command()
@click.argument("directory", type=_FILE)
@click.option("--task", type=click.Choice(["classification", "causal-lm"]), help="What the model learns.")
@click.option("--base-model", help="Directory or hub ID; classification defaults to the packaged encoder.")
@click.option("--data", multiple=True, type=_FILE, help="Records (.jsonl, .csv, .parquet) to register; repeatable.")
@click.option("--shards", type=int, help="Shards (S).")
@click.option("--slices", type=int, help="Slices per shard and generation (R).")
@click.option("--keys-from", type=_FILE, help="Take keys and recipe from this workspace (never its signing key).")
@_set
@_json
def init(
    directory: Path,
    task: str | None,
    base_model: str | None,
    data: tuple[Path, ...],
    shards: int | None,
    slices: int | None,
    keys_from: Path | None,
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """Make a workspace in DIRECTORY; registers data files and ingests nothing."""
    from sisa.config import parse_overrides
    from sisa.initialise import initialise

    values = parse_overrides(overrides)
    values |= {name: value for name, value in (("shards", shards), ("slices", slices)) if value is not None}
    settings = initialise(directory, task=task, base_model=base_model, data=data, keys_from=keys_from, values=values)
    if as_json:
        _print_json({"workspace": str(directory.resolve()), "recipe_digest": settings.recipe.digest})
        return
    recipe = settings.recipe
    where = escape(str(directory))
    _out.print(f"Made workspace [bold]{where}[/]: {recipe.shards} shards x {recipe.slices} slices, {recipe.task}.")
    _out.print(f"Every key is explained in {where}/sisa.yaml. Next: [bold]sisa train -w {where}[/]")


@cli.command()
@_workspace
@click.option("--data", multiple=True, type=_FILE, help="Files to read instead of the registered ones; repeatable.")
@click.option("--strict", is_flag=True, help="Refuse records that were deleted instead of leaving them out.")
@_set
@_json
def ingest(workspace: Path, data: tuple[Path, ...], strict: bool, overrides: tuple[str, ...], as_json: bool) -> None:
    """Take in new records, train nothing."""
    from sisa.ingest import ingest as run

    with open_session(workspace, overrides) as session:
        done = run(session, data, strict=strict)
    _print_json(done.to_json()) if as_json else _print_ingested(done.to_json())


@cli.command()
@_workspace
@click.option("--data", multiple=True, type=_FILE, help="Files to read instead of the registered ones; repeatable.")
@click.option("--strict", is_flag=True, help="Refuse records that were deleted instead of leaving them out.")
@click.option("--restart-shards", is_flag=True, help="Begin unfinished shards of another environment class anew.")
@_running
@_set
@_json
def train(
    workspace: Path,
    data: tuple[Path, ...],
    strict: bool,
    restart_shards: bool,
    executor: str | None,
    workers: int | None,
    ray_address: str | None,
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """Ingest what is new, then train what is missing; run again after an interruption."""
    from sisa.progress import progress_bar
    from sisa.train import train as run

    running = {"executor": executor, "workers": workers, "ray_address": ray_address}
    with open_session(workspace, overrides, **running) as session, progress_bar(_err, "training") as bar:
        done = run(session, data, strict=strict, restart_shards=restart_shards, report=bar)
    document = done.to_json()
    if as_json:
        _print_json(document)
        return
    _print_ingested(document["ingested"])
    _out.print(
        f"Trained {document['steps_trained']} slice steps; serving manifest {document['manifest_generation']} "
        f"([dim]{document['manifest_digest'][:16]}[/])."
    )


@cli.command()
@_workspace
@click.option("--text", help="One input: a text to label, or a prompt.")
@click.option("--input", "source", type=_LINES, help="JSONL with an optional id on each line; - is stdin.")
@click.option("--output", type=_FILE, help="Write here instead of stdout; the file is registered for audits.")
@_set
@_json
def predict(
    workspace: Path, text: str | None, source: Any, output: Path | None, overrides: tuple[str, ...], as_json: bool
) -> None:
    """Label texts, or answer prompts: one JSON line a record, with --json too."""
    from shards.files import replace_file
    from sisa.export import register_derived
    from sisa.predict import predict as run
    from sisa.predict import read_inputs

    del as_json  # the output is JSON either way
    if (text is None) == (source is None):
        raise click.UsageError("give either --text or --input")
    with open_session(workspace, overrides) as session:
        task = session.recipe.task
        inputs = read_inputs(source if text is None else [json.dumps({"text": text})], task)
        heads = [head for head, _ in session.workspace.book.served()]
        lines = "".join(json.dumps(answer, ensure_ascii=False) + "\n" for answer in run(session, inputs))
        if output is None:
            click.echo(lines, nl=False)
            return
        if heads != [head for head, _ in session.workspace.book.served()]:
            raise OperationError("the same heads served throughout", "a swap meanwhile", "run the same command again")
        register_derived(session, "predictions", lines.encode(), heads)
        replace_file(output, lines.encode())


@cli.command()
@_workspace
@click.option("--id", "ids", multiple=True, help="Record ID; repeatable.")
@click.option("--ids-file", type=_LINES, help="One record ID a line; - is stdin.")
@click.option("--subject", "subjects", multiple=True, help="All records of this subject; repeatable.")
@click.option("--dry-run", is_flag=True, help="Only show what would be purged and retrained.")
@click.option("--ignore-missing", is_flag=True, help="Leave out IDs that were never held.")
@click.option("--request-id", help="Your name for the request; made up without it.")
@click.option("--certificate", type=_FILE, help="Copy the signed certificate here.")
@_running
@_set
@_json
def delete(
    workspace: Path,
    ids: tuple[str, ...],
    ids_file: Any,
    subjects: tuple[str, ...],
    dry_run: bool,
    ignore_missing: bool,
    request_id: str | None,
    certificate: Path | None,
    executor: str | None,
    workers: int | None,
    ray_address: str | None,
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """Delete records: forget at once, retrain the hit shards, certify."""
    from shards.files import replace_file
    from sisa.delete import delete as run
    from sisa.progress import progress_bar

    listed = [line.rstrip("\r\n") for line in ids_file] if ids_file else []
    everything = [*ids, *filter(None, listed)]
    running = {"executor": executor, "workers": workers, "ray_address": ray_address}
    with open_session(workspace, overrides, **running) as session, progress_bar(_err, "retraining") as bar:
        done = run(
            session,
            everything,
            subjects,
            request_id=request_id,
            dry_run=dry_run,
            ignore_missing=ignore_missing,
            report=bar,
        )
    if certificate is not None and done.certificate is not None:
        replace_file(certificate.resolve(), done.certificate.read_bytes())
    if as_json:
        _print_json(done.to_json())
    else:
        _print_deleted(done.to_json(), dry_run)


@cli.command()
@click.argument("certificate", type=_FILE)
@click.option("--public-key", type=_FILE, help="The operator's public key (PEM), got from the operator.")
@click.option("-w", "--workspace", type=_FILE, help="Compare with this workspace.")
@click.option("--replay", type=click.Choice(["affected", "full"]), help="Train hit shards, or all, anew and compare.")
@_running
@_set
@_json
def verify(
    certificate: Path,
    public_key: Path | None,
    workspace: Path | None,
    replay: Any,
    executor: str | None,
    workers: int | None,
    ray_address: str | None,
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """Check a deletion CERTIFICATE, offline; prints every check and its outcome."""
    from sisa.verify import verify as run

    running = {"executor": executor, "workers": workers, "ray_address": ray_address}

    def replayer(opened: Workspace, shards: list[int], level: str) -> list[Check]:
        from sisa.progress import progress_bar
        from sisa.replay import replay as again

        with open_session(opened.path, overrides, **running) as session, progress_bar(_err, "replaying") as bar:
            return again(session.workspace, shards, level, session.executor(), session.trainer(), bar)

    checks = run(certificate, public_key=public_key, workspace=workspace, replay=replay, replayer=replayer)
    _print_checks(checks, as_json)


@cli.command()
@_workspace
@click.option("--id", "record_id", help="A record: shard, slice, every checkpoint that saw it.")
@click.option("--subject", help="All records of a subject.")
@click.option("--shard", type=int, help="A shard: its records and lineage.")
@click.option("--checkpoint", help="A checkpoint: what it trained and inherited.")
@click.option("--all", "everything", is_flag=True, help="Ask the law of the whole workspace.")
@_json
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
        _print_checks(checks, as_json)
    elif as_json:
        _print_json(document)
    elif record_id is not None:
        _print_record(document)
    else:
        _print_document(document)


@cli.command()
@_workspace
@_set
@_json
def status(workspace: Path, overrides: tuple[str, ...], as_json: bool) -> None:
    """Shards, slices, served heads with digests, requests, storage."""
    from sisa.status import status as run

    with open_session(workspace, overrides) as session:
        document = run(session)
    _print_json(document) if as_json else _print_status(document)


@cli.command()
@_workspace
@click.option("--records", type=_FILE, required=True, help="Write the surviving records here (JSONL).")
@_json
def export(workspace: Path, records: Path, as_json: bool) -> None:
    """Hand out the surviving records, with generation and version, for a fresh run elsewhere."""
    from sisa.export import export_records

    with open_session(workspace) as session:
        count = export_records(session, records.resolve())
    _print_json({"records": count, "file": str(records.resolve())}) if as_json else _out.print(
        f"Wrote {count} records to {escape(str(records))}. It is personal data."
    )


@cli.command()
@click.option("--directory", type=_FILE, help="Keep the demo's files here instead of a temporary directory.")
def demo(directory: Path | None) -> None:
    """The whole story on invented customers, no input needed (about two minutes)."""
    from sisa.demo import run

    run(_out, directory)


# -- printing --------------------------------------------------------------------------------------


def _print_json(document: dict[str, Any]) -> None:
    click.echo(json.dumps(document, ensure_ascii=False, indent=1))


def _print_ingested(counts: dict[str, int]) -> None:
    _out.print(
        f"Took in {counts['added']} records; {counts['unchanged']} held already, {counts['tombstoned']} deleted "
        f"earlier and left out, {counts['truncated']} longer than max_length and cut."
    )


def _print_deleted(document: dict[str, Any], dry_run: bool) -> None:
    share = document["impact"]["retrained_share"]
    table = Table("shard", "first hit slice", "checkpoints to purge", "steps to retrain", box=None, pad_edge=False)
    for shard in document["impact"]["shards"]:
        table.add_row(
            *(str(shard[key]) for key in ("shard", "first_slice")), str(len(shard["purged"])), str(shard["steps"])
        )
    _out.print(f"{len(document['ids'])} record(s), {share:.1%} of the original training to repeat:")
    _out.print(table)
    for missing in document["missing"]:
        _out.print(f"[yellow]never held, left out:[/] {escape(repr(missing))}")
    for label in document["labels_gone"]:
        _out.print(f"[yellow]last record of label[/] {escape(label)}: its name stays in the recipe")
    if dry_run:
        _out.print("Dry run: nothing was changed.")
    elif document["certificate"]:
        _out.print(f"Request {document['request_id']} is completed in {document['seconds']:.1f} s.")
        _out.print(f"Certificate: [bold]{escape(document['certificate'])}[/]")


def _print_checks(checks: Sequence[Check], as_json: bool) -> None:
    document = report(checks)
    if as_json:
        _print_json(document)
    else:
        for check in checks:
            outcome = f"[{_STYLES[check.outcome]}]{check.outcome.replace('_', ' '):<11}[/]"
            _out.print(f"{outcome} {check.level:<3} {check.name}: {escape(check.detail)}")
        _out.print(f"{document['passed']} passed, {document['failed']} failed, {document['not_checked']} not checked")
    if document["failed"]:
        sys.exit(1)


def _print_record(document: dict[str, Any]) -> None:
    state = "present" if document["present"] else "deleted" if document["deleted"] else "never held"
    place = f"shard {document['shard']}, slice {document['slice']}"
    _out.print(f"Record [bold]{escape(document['id'])}[/]: {state}, {place}")
    _out.print(f"tag {document['tag']}")
    table = Table("checkpoint", "slice", "state", "epochs", "created", "purged", box=None, pad_edge=False)
    for seen in document["exposures"]:
        state = "[green]live[/]" if seen["live"] else "[dim]purged[/]"
        epochs = str(seen["epochs"]) if seen["epochs"] else "0 (inherited)"
        times = ((seen[name] or "")[:19] for name in ("created", "purged"))
        table.add_row(seen["checkpoint"][:16], str(seen["slice"]), state, epochs, *times)
    _out.print(table if document["exposures"] else "No checkpoint ever saw it.")
    _out.print(f"served in manifests {document['manifests']}; derived artefacts: {len(document['derived'])}")


def _print_status(document: dict[str, Any]) -> None:
    _out.print(
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
    _out.print(table)
    for request in document["requests"]:
        what = f"{request['state']}, {request['records']} record(s), accepted {request['accepted'][:19]}"
        _out.print(f"request {request['request_id']}: {what}")


def _print_document(document: dict[str, Any]) -> None:
    _out.print_json(json.dumps(document))


def main(arguments: Iterable[str] | None = None) -> None:
    """Run the command line and exit with its code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # what a file says is printed, whatever it says
            stream.reconfigure(errors="backslashreplace")
    try:
        cli.main(args=None if arguments is None else list(arguments), standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except click.Abort:
        _err.print("Stopped. Run the same command again to continue.")
        sys.exit(3)
    except SisaError as error:
        _fail(error)
    except UnicodeError as error:
        _fail(InputError("text in UTF-8", str(error), "convert the file or argument to UTF-8"))
    except OSError as error:
        _fail(
            StorageError(
                "the operating system to go along", str(error), "free space or mend permissions, then run again"
            )
        )


def _fail(error: SisaError) -> None:
    kind = type(error).__name__.removesuffix("Error")
    _err.print(f"[bold red]error[/] {kind}", highlight=False)
    _err.print(f"{error}", markup=False, highlight=False)
    sys.exit(error.exit_code)
