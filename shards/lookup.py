"""Find records by ID or subject without reading the whole vault where that is not needed."""

from __future__ import annotations

from collections.abc import Iterable

from shards.trunk import TRUNK
from shards.vault import StoredRecord
from shards.workspace import Workspace


def by_id(workspace: Workspace, ids: Iterable[str]) -> dict[str, StoredRecord]:
    """The surviving records with these IDs; an ID that is not held is left out.

    That one is not held is only said after every record was looked at.
    """
    parts, forgotten = workspace.book.parts(), workspace.book.tombstones()
    tags: dict[str, bytes] = {}
    for record_id in ids:
        version = 1
        while (tag := workspace.tag(record_id, version)) in forgotten:
            version += 1  # what is held of a deleted record is a later version
        tags[record_id] = tag
    places = workspace.whereabouts.find(tags.values(), parts) or {}
    found: dict[str, StoredRecord] = {}
    for tag in tags.values():
        if tag in places:
            found |= {stored.record.id: stored for stored in workspace.vault.pick(places[tag], "tag", tag)}
    if found.keys() != tags.keys():
        found |= {stored.record.id: stored for stored in workspace.survivors() if stored.record.id in tags}
    return {record_id: found[record_id] for record_id in tags if record_id in found}


def by_subject(workspace: Workspace, subject: str) -> dict[str, StoredRecord]:
    """The surviving records of a subject, by ID: all of them live in one shard, or in the trunk."""
    forgotten = workspace.book.tombstones()
    shard = workspace.layout().shard_of(subject)
    found = [
        stored
        for part in workspace.parts()
        if part.shard in (shard, TRUNK)
        for stored in workspace.vault.pick(part, "subject", subject)
    ]
    return {stored.record.id: stored for stored in found if stored.tag not in forgotten}
