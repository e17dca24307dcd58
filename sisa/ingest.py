"""Take in new records: all of a file or none, with nothing trained."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence, Set
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from orchestration.executor import SliceTrainer
from shards import kinds
from shards.errors import InputError, RecordError
from shards.layout import Assignment, ShardLayout
from shards.plan import make_plan
from shards.records import Incoming, Record, listed, read_records
from shards.trunk import TRUNK
from shards.vault import StoredRecord, record_tag
from sisa.delete import unfinished_requests
from sisa.session import Session

_COUNTS = ("added", "unchanged", "tombstoned", "truncated", "readmitted")


@dataclass(frozen=True, slots=True)
class Ingested:
    """What an ingest did, in records.

    Attributes:
        added: taken in.
        unchanged: held already with the same content, under this or a later version.
        tombstoned: left out because they were deleted.
        truncated: taken in, and longer than the recipe's sequence length.
        files_missing: registered files that are not there (any more).
        same_content: where records were read that were taken in although the same content was deleted
            under another ID; leaving them out would make the order of requests matter.
        readmitted: of those added, new versions of deleted records: the caller or the file said so.
        joined_trunk: of those added, records of a trunk that was trained without them: everything is trained again.
    """

    added: int
    unchanged: int
    tombstoned: int
    truncated: int
    files_missing: tuple[str, ...] = ()
    same_content: tuple[str, ...] = ()
    readmitted: int = 0
    joined_trunk: int = 0

    def to_json(self) -> dict[str, Any]:
        """As printed."""
        return asdict(self) | {"files_missing": list(self.files_missing), "same_content": list(self.same_content)}


def ingest(
    session: Session,
    data: Sequence[Path] = (),
    *,
    strict: bool = False,
    readmit: Collection[str] = (),
    join_trunk: bool = False,
    trainer: SliceTrainer | None = None,
) -> Ingested:
    """Take in what is new in ``data`` (the registered files if none are named).

    Args:
        session: an open session; it becomes the workspace's driver.
        data: files to read.
        strict: refuse tombstoned records instead of leaving them out, later versions of them that
            ``readmit`` does not name, and contents that were deleted under another ID instead of
            reporting them.
        readmit: IDs of deleted records to be taken in again, as new versions; each must be in ``data``. One
            that is held (again) is left as it is, so that a call that was cut off can be repeated.
        join_trunk: take records too that belong to the trunk of what is trained already (permanent, and declared of
            generation 0): everything is trained anew. Otherwise they are refused.
        trainer: examines each record, in place of the one that the configuration names.

    Raises:
        RecordError: if any record is wrong; nothing is ingested then.
    """
    trainer = trainer or session.trainer()
    with session.driving():
        session.workspace.sweep()
        return take_in(session, data, trainer, strict=strict, readmit=readmit, join_trunk=join_trunk)


def take_in(
    session: Session,
    data: Sequence[Path],
    trainer: SliceTrainer,
    *,
    strict: bool,
    readmit: Collection[str] = (),
    join_trunk: bool = False,
) -> Ingested:
    """:func:`ingest` for a caller that drives the workspace already."""
    workspace, recipe = session.workspace, session.recipe
    session.refuse_other_recipe()
    files, missing = (list(data), ()) if data else _registered(session)
    read = read_records(files, recipe.task, columns=session.options.columns, labels=recipe.labels or None)
    forgotten, deleted_contents = workspace.book.tombstones(), workspace.book.deleted_contents()
    # What somebody is being told is not present does not come in before they are told.
    stated = (tag for request in unfinished_requests(workspace) for tag in request.targets.absent)
    forgotten |= frozenset(map(bytes.fromhex, stated))
    held = {stored.record.id: stored for stored in workspace.survivors()}
    generation = workspace.book.next_generation()
    wanted = frozenset(readmit) - held.keys()
    incoming = [_as_new_version(item, session, forgotten) if item.record.id in wanted else item for item in read]

    new: list[StoredRecord] = []
    places: list[str] = []
    missed = sorted(set(readmit) - {item.record.id for item in read})
    problems = [f"no line has the ID {record_id!r} that --readmit names" for record_id in missed]
    unchanged = tombstoned = 0
    for item in incoming:
        tag = record_tag(workspace.keys, recipe.namespace, item.record.id, item.record.version)
        before = held.get(item.record.id)
        difference = "" if before is None else _difference(item, before.record)
        if before is not None and not difference:
            unchanged += 1
        elif tag in forgotten:
            tombstoned += 1
            if strict:
                problems.append(f"{item.where}: ID {item.record.id!r} was deleted and may not return (--strict)")
        elif before is not None:
            problems.append(
                f"{item.where}: ID {item.record.id!r} is held with another {difference}; to replace it, "
                "`sisa delete` it and take this one in with --readmit"
            )
        else:
            record = item.record if item.declared else replace(item.record, generation=generation)
            fit = trainer.examine(record)
            if fit.problem:
                problems.append(f"{item.where}: ID {record.id!r}: {fit.problem}")
            if strict and record.id not in wanted and _returns(session, record, forgotten):
                problems.append(
                    f"{item.where}: ID {record.id!r} was deleted; version {record.version} of it may only come in "
                    "by name, with --readmit (--strict)"
                )
            new.append(StoredRecord.of(record, workspace.keys, recipe.namespace, truncated=fit.truncated))
            places.append(item.where)
    same_content = tuple(
        where
        for stored, where in zip(new, places, strict=True)
        if stored.fingerprint in deleted_contents
        and stored.record.id not in wanted
        and not _returns(session, stored.record, forgotten)
    )
    if strict:
        problems += [f"{where}: this content was deleted under another ID (--strict)" for where in same_content]
    joined = _joining(session, new, places)
    problems += [] if join_trunk else joined
    if problems:
        raise RecordError(
            "records that can all be taken in",
            listed(problems),
            "mend what is named; nothing was ingested",
        )
    truncated = sum(stored.truncated for stored in new)
    readmitted = sum(_returns(session, stored.record, forgotten) for stored in new)
    ingested = Ingested(len(new), unchanged, tombstoned, truncated, missing, same_content, readmitted, len(joined))
    commit(session, new, ingested)
    return ingested


def _as_new_version(item: Incoming, session: Session, forgotten: Set[bytes]) -> Incoming:
    """A record as the first version of its ID, from the one it declares, that was not deleted."""
    keys, namespace = session.workspace.keys, session.recipe.namespace
    version = item.record.version
    while record_tag(keys, namespace, item.record.id, version) in forgotten:
        version += 1
    return replace(item, record=replace(item.record, version=version))


def _returns(session: Session, record: Record, forgotten: Set[bytes]) -> bool:
    """Is it a version after a deleted one, however much later: readmitted, or declared so in the file?

    The tombstones of a record cover its versions from the first on.
    """
    return record_tag(session.workspace.keys, session.recipe.namespace, record.id, 1) in forgotten


def _joining(session: Session, new: Sequence[StoredRecord], places: Sequence[str]) -> list[str]:
    """What is to be said of each record that belongs to the trunk, if anything is trained already."""
    if not session.workspace.book.live():
        return []
    layout = ShardLayout.of_recipe(session.recipe.to_json(), session.workspace.keys.placement)
    return [
        f"{where}: ID {stored.record.id!r} belongs to the trunk, from which everything would be trained anew; "
        "declare another generation, or none, or say --join-trunk"
        for stored, where in zip(new, places, strict=True)
        if layout.place(stored.record).shard == TRUNK
    ]


def _registered(session: Session) -> tuple[list[Path], tuple[str, ...]]:
    """The registered files, and those that are missing: once records are held, that is only told."""
    files = [session.workspace.path / name for name in session.options.data]
    if session.workspace.book.pinned() is not None:
        return [file for file in files if file.exists()], tuple(str(file) for file in files if not file.exists())
    if not files:
        raise InputError("data files", "none registered in sisa.yaml and none named", "name some with --data")
    return files, ()


def _difference(item: Incoming, held: Record) -> str:
    """The first attribute in which an incoming record differs from the held one, or nothing.

    An earlier version is no difference: the file of a record that was readmitted still has the deleted one.
    """
    for name in ("content", "subject", "risk", "retention", *(["generation"] if item.declared else [])):
        if getattr(item.record, name) != getattr(held, name):
            return name
    return "version" if item.record.version > held.version else ""


def commit(session: Session, new: Sequence[StoredRecord], ingested: Ingested) -> None:
    """Parts first, then one transaction that pins the recipe (once) and names the parts."""
    if not new:
        return
    workspace, recipe = session.workspace, session.recipe
    layout = ShardLayout.of_recipe(recipe.to_json(), workspace.keys.placement)
    places: dict[Assignment, list[StoredRecord]] = defaultdict(list)
    for stored in new:
        places[layout.place(stored.record)].append(stored)
    plan = make_plan([*workspace.survivors(), *new], layout, recipe.digest)
    parts = workspace.vault.write(places)
    facts: list[tuple[str, dict[str, Any]]] = []
    if workspace.book.pinned() is None:
        facts.append(workspace.pin(recipe.to_json(), recipe.digest, recipe.namespace))
    body = {
        "counts": {name: getattr(ingested, name) for name in _COUNTS} | {"same_content": len(ingested.same_content)},
        "last_generation": max(stored.record.generation for stored in new),
        "added": [part.to_json() for part in parts],
        "removed": [],
    }
    facts.append((kinds.INGEST, body))
    if ingested.readmitted:  # how many, not which: a tag could never be destroyed again
        facts.append((kinds.READMISSION, {"records": ingested.readmitted}))
    workspace.ledger.append([*facts, *workspace.recommit(plan)])
    workspace.whereabouts.follow(workspace.book.parts())
