"""The commands that do the work, from an empty directory to what is handed out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.markup import escape

from sisa.commands.options import (
    FILE,
    LINES,
    admission_options,
    aggregate_option,
    given_options,
    json_option,
    merge_options,
    option_names,
    running_options,
    set_option,
    who_options,
    workspace_option,
)
from sisa.printing import out, print_deleted, print_exported, print_ingested, print_json, print_status

if TYPE_CHECKING:
    from sisa.session import Session


@click.command()
@click.argument("directory", type=FILE)
@click.option("--task", type=click.Choice(["classification", "causal-lm"]), help="What the model learns.")
@click.option("--base-model", help="Directory or hub ID; classification defaults to the packaged encoder.")
@click.option("--data", multiple=True, type=FILE, help="Records (.jsonl, .csv, .parquet) to register; repeatable.")
@click.option("--shards", type=int, help="Shards (S).")
@click.option("--slices", type=int, help="Slices per shard and generation (R).")
@click.option("--keys-from", type=FILE, help="Take keys and recipe from this workspace (never its signing key).")
@set_option
@json_option
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


@click.command()
@workspace_option
@click.option("--data", multiple=True, type=FILE, help="Files to read instead of the registered ones; repeatable.")
@admission_options
@set_option
@json_option
def ingest(
    workspace: Path, data: tuple[Path, ...], admission: dict[str, Any], overrides: tuple[str, ...], as_json: bool
) -> None:
    """Take in new records, train nothing."""
    from sisa.ingest import ingest as run
    from sisa.session import open_session

    with open_session(workspace, overrides) as session:
        done = run(session, data, **admission)
    print_json(done.to_json()) if as_json else print_ingested(done.to_json())


@click.command()
@workspace_option
@click.option("--data", multiple=True, type=FILE, help="Files to read instead of the registered ones; repeatable.")
@admission_options
@click.option("--restart-shards", is_flag=True, help="Begin unfinished shards of another environment class anew.")
@running_options
@set_option
@json_option
def train(
    workspace: Path,
    data: tuple[Path, ...],
    admission: dict[str, Any],
    restart_shards: bool,
    running: dict[str, Any],
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """Ingest what is new, then train what is missing; run again after an interruption."""
    from sisa.progress import watched
    from sisa.train import train as run

    with watched(workspace, overrides, running, "training") as (session, report):
        done = run(session, data, **admission, restart_shards=restart_shards, report=report)
    document = done.to_json()
    if as_json:
        print_json(document)
        return
    print_ingested(document["ingested"])
    out.print(
        f"Trained {document['steps_trained']} slice steps; serving manifest {document['manifest_generation']} "
        f"([dim]{document['manifest_digest'][:16]}[/])."
    )


@click.command()
@workspace_option
@click.option("--text", help="One input: a text to label, or a prompt.")
@click.option("--input", "source", type=LINES, help="JSONL with an optional id on each line; - is stdin.")
@click.option("--output", type=FILE, help="Write here instead of stdout; the file is registered for audits.")
@aggregate_option
@set_option
@json_option
def predict(
    workspace: Path,
    text: str | None,
    source: Any,
    output: Path | None,
    aggregation: str | None,
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """Label texts, or answer prompts: one JSON line a record, with --json too."""
    from sisa.export import hand_out, outside
    from sisa.predict import Predictor, read_inputs
    from sisa.session import open_session

    del as_json  # the output is JSON either way
    if (text is None) == (source is None):
        raise click.UsageError("give either --text or --input")
    with open_session(workspace, overrides, aggregation=aggregation) as session:
        task = session.recipe.task
        target = None if output is None else outside(session.workspace, output)
        inputs = read_inputs(source if text is None else [json.dumps({"text": text})], task)
        answer = Predictor(session).answer(inputs)
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in answer.rows)
        if target is None:
            click.echo(lines, nl=False)
            return
        hand_out(session, target, "predictions", lines.encode(), answer.manifest.heads)


@click.command()
@workspace_option
@click.option("--id", "ids", multiple=True, help="Record ID; repeatable.")
@click.option("--ids-file", type=LINES, help="One record ID a line; - is stdin.")
@click.option("--subject", "subjects", multiple=True, help="All records of this subject; repeatable.")
@click.option("--dry-run", is_flag=True, help="Only show what would be purged and retrained.")
@click.option("--ignore-missing", is_flag=True, help="Leave out IDs never held; certify that they are not present.")
@click.option("--queue", is_flag=True, help="Only accept and suppress; `sisa work` does the rest.")
@click.option("--request-id", help="Your name for the request; made up without it.")
@click.option("--certificate", type=FILE, help="Copy the signed certificate here.")
@who_options
@running_options
@set_option
@json_option
def delete(
    workspace: Path,
    ids: tuple[str, ...],
    ids_file: Any,
    subjects: tuple[str, ...],
    dry_run: bool,
    ignore_missing: bool,
    queue: bool,
    request_id: str | None,
    who: dict[str, str],
    certificate: Path | None,
    running: dict[str, Any],
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """Delete records: forget at once, retrain the hit shards, certify."""
    from shards.files import replace_file
    from sisa.delete import delete as run
    from sisa.export import outside
    from sisa.progress import watched

    if queue and (dry_run or certificate is not None):
        raise click.UsageError("--queue only accepts: leave out --dry-run and --certificate")
    listed = [line.rstrip("\r\n") for line in ids_file] if ids_file else []
    everything = [*ids, *filter(None, listed)]
    with watched(workspace, overrides, running, "retraining") as (session, report):
        copy = None if certificate is None else outside(session.workspace, certificate)
        done = run(
            session,
            everything,
            subjects,
            request_id=request_id,
            dry_run=dry_run,
            ignore_missing=ignore_missing,
            queue=queue,
            who=who,
            report=report,
        )
    if copy is not None and done.certificate is not None:
        replace_file(copy, done.certificate.read_bytes())
    if as_json:
        print_json(done.to_json())
    else:
        print_deleted(done.to_json(), dry_run=dry_run, queued=queue)


@click.command()
@workspace_option
@click.option("--records", type=FILE, help="Write the surviving records here (JSONL).")
@click.option(
    "--form",
    type=click.Choice(["adapters", "adapter", "model", "ensemble"]),
    help="Export the served model: a PEFT adapter per shard, one merged, a full model, or all shards as one model.",
)
@click.option("--out", "target", type=FILE, help="With --form: write this directory, which is not there yet.")
@click.option("--keep", is_flag=True, help="With --form: keep it in the workspace; a deletion purges it.")
@merge_options()
@click.option("--probe", type=LINES, help="JSONL inputs on which files and memory are compared; neutral ones if none.")
@click.option("--metrics", type=FILE, help="JSON for the card, such as `sisa evaluate --json` prints.")
@click.option("--sign", is_flag=True, help="Add an OpenSSF Model Signing bundle; needs the extra [sign].")
@click.option("--recipient", default="", help="Who gets it, and must be told of later deletions.")
@set_option
@json_option
def export(
    workspace: Path,
    records: Path | None,
    form: str | None,
    target: Path | None,
    keep: bool,
    probe: Any,
    metrics: Path | None,
    recipient: str,
    overrides: tuple[str, ...],
    as_json: bool,
    **merging: Any,
) -> None:
    """Hand out the surviving records for a fresh run elsewhere, or the served model."""
    from sisa.session import open_session

    if (records is None) == (form is None):
        raise click.UsageError("give either --records or --form")
    if (form is not None) != ((target is not None) != keep) or (form is None and (target is not None or keep)):
        raise click.UsageError("with --form, give either --out or --keep; without it, neither")
    _refuse_idle(form)
    if keep and recipient:
        raise click.UsageError("nobody receives what is kept: leave out --recipient, or give --out")
    with open_session(workspace, overrides) as session:
        if records is not None:
            document = _export_records(session, records, recipient)
        else:
            wish = {"form": form, "recipient": recipient, **merging}
            document = _export_model(session, wish, target, probe, metrics)
    if as_json:
        print_json(document)
    elif records is not None:
        out.print(f"Wrote {document['records']} records to {escape(str(records))}. It is personal data.")
    else:
        print_exported(document)


_OF_RECORDS = {"workspace", "records", "recipient", "overrides", "as_json"}
_OF_MERGES = {"method", "weighting", "rank", "seed"}


def _refuse_idle(form: str | None) -> None:
    """Refuse options that would say nothing to this form (None: to records): whoever gives one expects something."""
    given = given_options()
    idle = given - _OF_RECORDS if form is None else given & _OF_MERGES if form not in ("adapter", "model") else set()
    if idle:
        what = "--records" if form is None else f"--form {form}"
        raise click.UsageError(f"{what} has nothing to do with {option_names(idle)}: leave out one of them")


def _export_records(session: Session, records: Path, recipient: str) -> dict[str, Any]:
    from sisa.export import export_records

    return {"records": export_records(session, records.resolve(), recipient), "file": str(records.resolve())}


def _export_model(
    session: Session, wish: dict[str, Any], target: Path | None, probe: Any, metrics: Path | None
) -> dict[str, Any]:
    from sisa.export_model import Wish, export_model, read_metrics
    from sisa.predict import read_inputs

    inputs = () if probe is None else read_inputs(probe, session.recipe.task)
    measured = None if metrics is None else read_metrics(metrics)
    return export_model(session, Wish(**wish, probe=inputs, metrics=measured), target).to_json()


@click.command()
@workspace_option
@set_option
@json_option
def status(workspace: Path, overrides: tuple[str, ...], as_json: bool) -> None:
    """Shards, slices, served heads with digests, requests, storage."""
    from sisa.session import open_session
    from sisa.status import status as run

    with open_session(workspace, overrides) as session:
        document = run(session)
    print_json(document) if as_json else print_status(document)


@click.command()
@click.option("--directory", type=FILE, help="Keep the demo's files here instead of a temporary directory.")
def demo(directory: Path | None) -> None:
    """The whole story on invented customers, no input needed (about two minutes)."""
    from sisa.demo import run

    run(out, directory)
