"""Which shards answer an input, by a rule that the user gives: nothing here is learnt.

A learnt router would be one more model of the records, with no shard to keep it in: deleting a record would have to
retrain it. Rules by subject or by a declared field know nothing that a deletion could concern.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from shards.errors import RecordError
from shards.layout import ShardLayout
from shards.lookup import by_subject
from sisa.config import FieldRule
from sisa.served import ServedHead
from sisa.session import Session


@dataclass(frozen=True, slots=True)
class Route:
    """Where an input goes.

    Attributes:
        shards: numbers of the shards that are asked.
        by: the field that said so; None if all are asked.
        note: what the answer's reader has to know, empty if nothing.
    """

    shards: tuple[int, ...]
    by: str | None
    note: str = ""


def route(session: Session, heads: Sequence[ServedHead], inputs: Sequence[dict[str, Any]]) -> list[Route]:
    """Where each input goes by the options' ``routing``, and what has become of those shards.

    Args:
        session: an open session with a rule.
        heads: what is served now.
        inputs: as :func:`sisa.predict.read_inputs` reads them.

    Raises:
        RecordError: if what the rule looks at is no text.
    """
    rule = session.options.routing
    field = rule.field if isinstance(rule, FieldRule) else "subject"
    layout = ShardLayout.of_recipe(session.recipe.to_json(), session.workspace.keys.placement)
    states = _states(session, heads)

    @cache
    def has_records(subject: str) -> bool:
        """In its shard: what a trunk has learned of a subject, every shard has."""
        held = by_subject(session.workspace, subject).values()
        return any(layout.place(stored.record).shard == layout.shard_of(subject) for stored in held)

    routes: list[Route] = []
    for number, fields in enumerate(inputs, 1):
        value = _value(fields, field, number)
        if value is None or (isinstance(rule, FieldRule) and value not in rule.shards):
            why = f"no {field}" if value is None else f"no shards are listed for this {field}"
            routes.append(Route(tuple(range(layout.shards)), None, f"{why}: answered by all shards"))
            continue
        asked = tuple(rule.shards[value]) if isinstance(rule, FieldRule) else (layout.shard_of(value),)
        notes = [states[shard] for shard in asked if shard in states]
        if rule == "subject" and not has_records(value):
            notes.append(f"no surviving record of this subject is in shard {asked[0]}")
        routes.append(Route(asked, field, "; ".join(notes)))
    return routes


def _value(fields: dict[str, Any], field: str, number: int) -> str | None:
    value = fields.get(field)
    if value is None or (isinstance(value, str) and value.strip()):
        return value
    raise RecordError(
        f"a text that is not empty as {field} of input {number}, for it says which shards are asked",
        f"{value!r}"[:80],
        "mend the input, or leave the field out; nothing was predicted",
    )


def _states(session: Session, heads: Iterable[ServedHead]) -> dict[int, str]:
    """Of each shard that does not serve all that its records are, what is amiss.

    A shard serves all of them if its head is of the last slice that has any: a deletion puts the head back before
    the slice that it hits, and what survives there is learnt again afterwards.
    """
    live = session.workspace.book.live()
    served = {head.head.shard: live[head.head.checkpoint].link.slice for head in heads if head.head.checkpoint in live}
    last: dict[int, int] = {}
    for (shard, number), made in session.workspace.book.slices().items():
        if made.records:
            last[shard] = max(last.get(shard, -1), number)
    states = {}
    for shard in range(session.recipe.shards):
        if shard not in served:
            why = "its records are not learnt" if shard in last else "it has no records"
            states[shard] = f"shard {shard} serves nothing: {why}"
        elif served[shard] < last.get(shard, -1):
            states[shard] = f"shard {shard} is behind its records: some were deleted or added, and it is to learn again"
    return states
