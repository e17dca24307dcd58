"""The command that merges the served heads and says what came of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from rich.table import Table

from sisa.commands.options import json_option, merge_options, set_option, workspace_option
from sisa.methods import METHODS
from sisa.printing import out, print_json
from sisa.wording import counted


@click.command()
@workspace_option
@merge_options("all")
@set_option
@json_option
def merge(
    workspace: Path,
    method: str,
    weighting: str,
    rank: int | None,
    seed: int,
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """Merge the served heads in memory and tell the result's digest and error; writes nothing."""
    from shards.errors import OperationError
    from sisa.predict import Predictor
    from sisa.session import open_session

    with open_session(workspace, overrides) as session:
        manifest, heads = Predictor(session).held()
        names = METHODS if method == "all" else (method,)
        merges = [_tried(session, heads, name, weighting, rank, seed, every=method == "all") for name in names]
        if session.workspace.book.manifest() != manifest:
            raise OperationError("the same heads served throughout", "a swap meanwhile", "run the same command again")
    document = {
        "manifest_generation": manifest.generation,
        "manifest_digest": manifest.digest,
        "shards": [head.shard for head in manifest.heads],
        "weighting": weighting,
        "merges": merges,
    }
    print_json(document) if as_json else _print_merges(document)


def _tried(
    session: Any, heads: Any, method: str, weighting: str, rank: int | None, seed: int, *, every: bool
) -> dict[str, Any]:
    """What a method made; of all methods, those that cannot say why."""
    from shards.errors import InputError, MissingDependencyError
    from sisa.merge import merge as run

    if every and method != "svd":
        rank = None
    try:
        done = run(session, heads, method, weighting=weighting, rank=rank, seed=seed)
    except (InputError, MissingDependencyError) as error:
        if not every:
            raise
        return {"method": method, "digest": None, "refused": f"needs {error.expected}; found {error.found}"}
    return {
        "method": method,
        "digest": done.digest,
        "seed": done.seed,
        "error": done.error,
        "settings": done.settings,
        "warnings": list(done.warnings),
    }


def _print_merges(document: dict[str, Any]) -> None:
    """A line for each method, and each warning once."""
    shards = document["shards"]
    out.print(
        f"{counted(len(shards), 'shard')} ({', '.join(map(str, shards))}) of manifest "
        f"{document['manifest_generation']}, weighting {document['weighting']}; nothing was written."
    )
    table = Table("method", "digest", "seed", "error", "rank", box=None, pad_edge=False)
    for made in document["merges"]:
        if made["digest"] is None:
            table.add_row(made["method"], "[yellow]not possible[/]")
            continue
        seed, error = made["seed"], made["error"]
        table.add_row(
            made["method"],
            made["digest"][:16],
            "" if seed is None else str(seed),
            "" if error is None else f"{error:.2g}",
            str(made["settings"].get("rank", "")),
        )
    out.print(table)
    for made in document["merges"]:
        if made["digest"] is None:
            out.print(f"{made['method']}: {made['refused']}", markup=False)
    for warning in dict.fromkeys(text for made in document["merges"] for text in made.get("warnings", ())):
        out.print(f"[yellow]note[/] {warning}")
