"""The command line: each command a few lines over a public function.

The one place that prints and chooses exit codes: 0 done; 1 a check failed; 2 bad usage or bad
input; 3 the operation could not be completed and can be run again.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from io import TextIOWrapper
from pathlib import Path
from typing import Any

import click
from rich.markup import escape

from shards.checks import Check, report
from shards.errors import InputError, OperationError, SisaError, StorageError
from shards.workspace import Workspace
from sisa import __version__
from sisa.printing import (
    err,
    out,
    print_checks,
    print_deleted,
    print_document,
    print_error,
    print_ingested,
    print_json,
    print_record,
    print_status,
)
from sisa.session import open_session

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
    """Options of every command that runs slice steps, handed on together as ``running``."""

    @wraps(command)
    def packed(executor: str | None, workers: int | None, ray_address: str | None, **arguments: Any) -> None:
        running = {"executor": executor, "workers": workers, "ray_address": ray_address}
        command(running=running, **arguments)

    for option in (
        click.option("--ray-address", help="A running Ray cluster; without it, one is started here."),
        click.option("--workers", type=click.IntRange(min=1), help="Worker processes."),
        click.option("--executor", type=click.Choice(["ray", "inline"]), help="Where steps run."),
    ):
        packed = option(packed)
    return packed


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
        print_json({"workspace": str(directory.resolve()), "recipe_digest": settings.recipe.digest})
        return
    recipe = settings.recipe
    where = escape(str(directory))
    out.print(f"Made workspace [bold]{where}[/]: {recipe.shards} shards x {recipe.slices} slices, {recipe.task}.")
    out.print(f"Every key is explained in {where}/sisa.yaml. Next: [bold]sisa train -w {where}[/]")


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
    print_json(done.to_json()) if as_json else print_ingested(done.to_json())


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
    running: dict[str, Any],
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """Ingest what is new, then train what is missing; run again after an interruption."""
    from sisa.progress import progress_bar
    from sisa.train import train as run

    with open_session(workspace, overrides, **running) as session, progress_bar(err, "training") as bar:
        done = run(session, data, strict=strict, restart_shards=restart_shards, report=bar)
    document = done.to_json()
    if as_json:
        print_json(document)
        return
    print_ingested(document["ingested"])
    out.print(
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
    running: dict[str, Any],
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """Delete records: forget at once, retrain the hit shards, certify."""
    from shards.files import replace_file
    from sisa.delete import delete as run
    from sisa.progress import progress_bar

    listed = [line.rstrip("\r\n") for line in ids_file] if ids_file else []
    everything = [*ids, *filter(None, listed)]
    with open_session(workspace, overrides, **running) as session, progress_bar(err, "retraining") as bar:
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
        print_json(done.to_json())
    else:
        print_deleted(done.to_json(), dry_run=dry_run)


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
    _show_checks(checks, as_json=as_json)


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
        _show_checks(checks, as_json=as_json)
    elif as_json:
        print_json(document)
    elif record_id is not None:
        print_record(document)
    else:
        print_document(document)


@cli.command()
@_workspace
@_set
@_json
def status(workspace: Path, overrides: tuple[str, ...], as_json: bool) -> None:
    """Shards, slices, served heads with digests, requests, storage."""
    from sisa.status import status as run

    with open_session(workspace, overrides) as session:
        document = run(session)
    print_json(document) if as_json else print_status(document)


@cli.command()
@_workspace
@click.option("--records", type=_FILE, required=True, help="Write the surviving records here (JSONL).")
@_json
def export(workspace: Path, records: Path, as_json: bool) -> None:
    """Hand out the surviving records, with generation and version, for a fresh run elsewhere."""
    from sisa.export import export_records

    with open_session(workspace) as session:
        count = export_records(session, records.resolve())
    print_json({"records": count, "file": str(records.resolve())}) if as_json else out.print(
        f"Wrote {count} records to {escape(str(records))}. It is personal data."
    )


@cli.command()
@click.option("--directory", type=_FILE, help="Keep the demo's files here instead of a temporary directory.")
def demo(directory: Path | None) -> None:
    """The whole story on invented customers, no input needed (about two minutes)."""
    from sisa.demo import run

    run(out, directory)


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
        err.print("Stopped. Run the same command again to continue.")
        sys.exit(3)
    except SisaError as error:
        _fail(error)
    except UnicodeError as error:
        _fail(InputError("text in UTF-8", str(error), "convert the file or argument to UTF-8"))
    except OSError as error:
        remedy = "free space or mend permissions, then run again"
        _fail(StorageError("the operating system to go along", str(error), remedy))
    except Exception:  # noqa: BLE001 - the program's edge: a defect is shown whole, and is no failed check (1)
        traceback.print_exc()
        sys.exit(3)


def _fail(error: SisaError) -> None:
    print_error(error)
    sys.exit(error.exit_code)


def _show_checks(checks: Sequence[Check], *, as_json: bool) -> None:
    """Print checks; a failed one decides the exit code."""
    document = report(checks)
    print_json(document) if as_json else print_checks(checks)
    if document["failed"]:
        sys.exit(1)
