"""Commands that look at answers rather than give them."""

from __future__ import annotations

import json
from pathlib import Path

import click

from sisa.commands.options import aggregate_option, json_option, set_option, workspace_option
from sisa.printing import print_explained, print_json


@click.command()
@workspace_option
@click.option("--text", required=True, help="A text to label, or a prompt.")
@aggregate_option
@set_option
@json_option
def explain(workspace: Path, text: str, aggregation: str | None, overrides: tuple[str, ...], as_json: bool) -> None:
    """What each shard says to a text, and what would be said without it."""
    from sisa.explain import explain as run
    from sisa.predict import read_inputs
    from sisa.session import open_session

    with open_session(workspace, overrides, aggregation=aggregation) as session:
        (fields,) = read_inputs([json.dumps({"text": text})], session.recipe.task)
        document = run(session, fields["text"])
    print_json(document) if as_json else print_explained(document)
