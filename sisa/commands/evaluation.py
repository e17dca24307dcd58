"""The command that measures: held-out records against what is served, and lm-eval's tasks against what was exported."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from rich.markup import escape
from rich.table import Table

from sisa.choices import WEIGHTINGS
from sisa.commands.options import FILE, json_option, set_option, workspace_option
from sisa.methods import METHODS
from sisa.printing import out, print_json
from sisa.wording import counted

_HEADINGS = {
    "accuracy": "accuracy",
    "accuracy_error": "±",
    "accuracy_normalised": "by length",
    "accuracy_normalised_error": "±",
    "macro_f1": "macro F1",
    "log_loss": "log-loss",
    "calibration_error": "ECE",
    "brier": "Brier",
    "perplexity": "perplexity",
    "answer_probability": "answer p.",
    "rouge_l_recall": "ROUGE-L r.",
    "rouge_l_f1": "ROUGE-L F1",
}


@click.command()
@workspace_option
@click.option("--data", multiple=True, type=FILE, help="Held-out records, in any form that ingest reads; repeatable.")
@click.option("--method", "methods", multiple=True, type=click.Choice(METHODS), help="A merge to measure; repeatable.")
@click.option("--weighting", type=click.Choice(WEIGHTINGS), default="equal", help="Of the shards in a merge.")
@click.option("--samples", type=click.IntRange(min=0), help="Answers to generate for ROUGE-L (causal-lm); 20.")
@click.option("--include-known", is_flag=True, help="Also take records that are held here, or were deleted here.")
@click.option("--output", type=FILE, help="Write the JSON document here; the file is registered for audits.")
@click.option("--figure", type=FILE, help="Draw quality against cost here (PNG); registered too.")
@click.option("--model", type=FILE, help="An exported model or adapter, for --tasks; needs no workspace.")
@click.option("--base-model", help="Where the base of that adapter lies; unless given, where the adapter says.")
@click.option("--tasks", multiple=True, help="A task that lm-eval knows, or a file (.jsonl) of questions; repeatable.")
@click.option("--limit", type=click.IntRange(min=1), help="Ask only so many questions of each task.")
@set_option
@json_option
def evaluate(
    workspace: Path,
    data: tuple[Path, ...],
    model: Path | None,
    base_model: str | None,
    tasks: tuple[str, ...],
    limit: int | None,
    output: Path | None,
    figure: Path | None,
    overrides: tuple[str, ...],
    as_json: bool,
    **how: Any,
) -> None:
    """Measure every shard, aggregation and merge on held-out records, or an exported model on tasks."""
    if bool(data) == bool(tasks):
        raise click.UsageError("give either --data, or --tasks with --model")
    if tasks:
        if model is None or output is not None or figure is not None:
            raise click.UsageError("--tasks asks an exported model: give --model, and neither --output nor --figure")
        _evaluate_tasks(model, base_model, tasks, limit, as_json=as_json)
        return
    if (model, base_model, limit) != (None, None, None):
        raise click.UsageError("--data measures what is served; --model, --base-model and --limit belong to --tasks")
    _evaluate_served(workspace, data, output, figure, overrides, how, as_json=as_json)


def _evaluate_served(
    workspace: Path,
    data: tuple[Path, ...],
    output: Path | None,
    figure: Path | None,
    overrides: tuple[str, ...],
    how: dict[str, Any],
    *,
    as_json: bool,
) -> None:
    from sisa.evaluate import SAMPLES
    from sisa.evaluate import evaluate as run
    from sisa.export import hand_out, outside
    from sisa.figures import quality_against_cost, require_figures
    from sisa.session import open_session

    if figure is not None:
        require_figures()
    with open_session(workspace, overrides) as session:
        targets = [None if file is None else outside(session.workspace, file) for file in (output, figure)]
        done = run(
            session,
            data,
            methods=how["methods"],
            weighting=how["weighting"],
            samples=SAMPLES if how["samples"] is None else how["samples"],
            include_known=how["include_known"],
        )
        document = done.to_json()
        if targets[0] is not None:
            text = json.dumps(document, ensure_ascii=False, indent=1) + "\n"
            hand_out(session, targets[0], "metrics", text.encode(), done.manifest.heads)
        if targets[1] is not None:
            drawn = quality_against_cost(done.results, done.records)
            hand_out(session, targets[1], "metrics", drawn, done.manifest.heads)
    print_json(document) if as_json else _print_evaluation(document)


def _evaluate_tasks(
    model: Path, base_model: str | None, tasks: Sequence[str], limit: int | None, *, as_json: bool
) -> None:
    from sisa.tasks import run_tasks

    results = run_tasks(model, tasks, limit=limit, base_model=base_model)
    print_json({"model": str(model), "results": results}) if as_json else _print_results(results, ("questions",))


def _print_evaluation(document: Mapping[str, Any]) -> None:
    """What was measured on what, and first of all if it was not held out."""
    known, records = document["known"], counted(document["records"], "record")
    if known["held"] or known["deleted"]:
        out.print(
            f"[bold red]Not held out:[/] of {records}, {known['held']} held here and {known['deleted']} deleted here. "
            "This tells how well they are remembered, not how good answers are."
        )
    if known["same_content"]:
        same = counted(known["same_content"], "record")
        out.print(f"[yellow]{same} with the content of one held or deleted here,[/] under another ID")
    sampled = f", {document['samples']} answers generated" if document["samples"] else ""
    out.print(f"Manifest {document['manifest_generation']}, {records}{sampled}:")
    _print_results(document["results"], ("passes", "seconds"))
    for result in document["results"]:
        for warning in result.get("warnings", ()):
            out.print(f"[yellow]{result['name']}:[/] {escape(warning)}")


def _print_results(results: Sequence[Mapping[str, Any]], others: Sequence[str]) -> None:
    """A line a result; columns that none has are left out."""
    metrics = [name for name in _HEADINGS if any(name in result for result in results)]
    table = Table("name", *(_HEADINGS[name] for name in metrics), *others, box=None, pad_edge=False)
    for result in results:
        table.add_row(
            result["name"],
            *(_number(result.get(name, math.nan)) for name in metrics),
            *("" if result[name] is None else _cost(result[name]) for name in others),
        )
    out.print(table)


def _number(value: float | None) -> str:
    """Four digits; nothing where it was not measured, and of what JSON cannot say, the sign."""
    if value is None:
        return "∞"
    return "" if math.isnan(value) else f"{value:.4g}"


def _cost(value: float | str) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)
