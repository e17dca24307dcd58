"""What a workspace holds and serves. This is a read-only operation."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from typing import Any

from shards import kinds, lock
from shards.deletion import DeletionRequest
from shards.derived import Export
from shards.layout import ShardLayout
from shards.lineage import Checkpoint
from shards.manifest import Head
from shards.note import read_head
from shards.place import LocalPlace
from shards.plan import make_plan
from shards.trunk import TRUNK
from shards.workspace import LOCK_FILE, Workspace
from sisa.delete import unfinished_requests
from sisa.session import Session


def status(session: Session) -> dict[str, Any]:
    """The ``status`` JSON document.

    A request's state is ``accepted`` (not certified yet), ``completed``, ``uncertified`` (its certificate
    was lost or altered since; ``sisa train`` issues it again) or ``retired``. ``storage_bytes`` are those of
    records, checkpoints, ledger, cached activations and kept exports; ``activations_bytes`` and ``exports_bytes``
    are the latter two alone. ``trunk`` is None where there is none.
    """
    workspace = session.workspace
    manifest = workspace.book.manifest()
    completed = workspace.book.completed()
    unfinished = {request.request_id for request in unfinished_requests(workspace)}
    activations_bytes, exports_bytes = workspace.activations.size(), LocalPlace(workspace.exports).size()
    slices = None if unfinished else _settled(workspace, session.recipe.digest)
    if slices is None:
        slices = _planned(session)
    trunk = slices.get(TRUNK, [])
    heads = {head.shard: (head, checkpoint) for head, checkpoint in workspace.book.served()}
    shards = [
        {
            "shard": shard,
            "records": sum(one["records"] for one in slices.get(shard, [])),
            "slices": slices.get(shard, []),
            "head": _described(workspace, *heads[shard]) if shard in heads else None,
        }
        for shard in range(session.recipe.shards)
    ]
    return {
        "running": running(workspace),
        "manifest_generation": None if manifest is None else manifest.generation,
        "manifest_digest": None if manifest is None else manifest.digest,
        "recipe_digest": session.recipe.digest,
        "records": sum(one["records"] for described in slices.values() for one in described),
        "trunk": {"records": sum(one["records"] for one in trunk), "slices": trunk} if trunk else None,
        "shards": shards,
        "requests": [
            {
                "request_id": request.request_id,
                "state": _state(request, request.request_id in completed, request.request_id in unfinished),
                "records": len(request.tags),
                "accepted": fact.created,
                "completed": completed.get(request.request_id),
            }
            for fact, request in workspace.book.requests()
        ],
        "holds": sorted(workspace.book.holds()),
        "refusals": len(workspace.book.refusals()),
        "log": {"origin": workspace.book.genesis().body["log"], "facts": read_head(workspace.ledger.head()).size},
        "anchor": session.options.anchor,
        "storage_bytes": workspace.store.size()
        + workspace.vault.size()
        + workspace.ledger.path.stat().st_size
        + activations_bytes
        + exports_bytes,
        "activations_bytes": activations_bytes,
        "exports_bytes": exports_bytes,
        "exports": _exports(workspace),
    }


# Shard, or trunk → its slices in order, as the document describes them.
_Slices = dict[int, list[dict[str, Any]]]


def _planned(session: Session) -> _Slices:
    """The slices of the surviving records, and their checkpoints as far as they are trained."""
    workspace, live = session.workspace, session.workspace.book.live()
    layout = ShardLayout.of_recipe(session.recipe.to_json(), workspace.keys.placement)
    plan = make_plan(workspace.survivors(), layout, session.recipe.digest)
    return {
        chain.shard: [
            {"slice": step.link.slice, "records": step.own, "checkpoint": step.key if step.key in live else None}
            for step in chain.steps
        ]
        for chain in plan.every
    }


def _settled(workspace: Workspace, recipe: str) -> _Slices | None:
    """The same from the facts alone, where they show that every record held is trained; None where they do not.

    No request is open. Then the records held are those of the slice commitments if there are as many: whatever
    changes the parts commits to what survives. And a checkpoint that found a slice as it is committed to now, after
    such a parent, is the plan's. The vault's bytes are compared with their digests, and not decoded, which is much
    slower; a damaged vault is left to `_planned`, which says what is wrong with it.
    """
    in_order = sorted(workspace.book.slices().items(), key=lambda item: (item[0][0] != TRUNK, item[0]))
    committed = {place: made for place, made in in_order if made.records}
    held: Counter[tuple[int, int]] = Counter()
    for part in workspace.book.parts():
        held[part.shard, part.slice] += part.records
    if held != {place: made.records for place, made in committed.items()}:
        return None
    if workspace.vault.damaged(workspace.book.parts()):
        return None
    links = {key: (made.link, made.root) for key, made in workspace.book.live().items()}
    trained = {(link.recipe, link.shard, link.slice, link.parent, root): key for key, (link, root) in links.items()}
    slices: _Slices = {}
    for (shard, number), now in committed.items():
        before = slices.setdefault(shard, [])
        last = (before or slices.get(TRUNK, []))[-1:]
        parent = last[0]["checkpoint"] if last else None
        key = trained.get((recipe, shard, number, parent, now.root))
        if key is None:
            return None
        before.append({"slice": number, "records": now.records, "checkpoint": key})
    return slices


def _exports(workspace: Workspace) -> list[dict[str, Any]]:
    """The exports that are kept, with the manifest that was served when each was made, oldest first."""
    kept = []
    for fact in workspace.ledger.facts(kinds.EXPORT):
        made = Export.of(fact)
        if made.kept and (workspace.exports / made.name).is_dir():
            served = [manifest.generation for at, manifest in workspace.book.manifests() if at.seq < fact.seq]
            kept.append({"name": made.name, "form": made.form, "manifest_generation": served[-1]})
    return kept


def running(workspace: Workspace) -> dict[str, Any] | None:
    """Who drives the workspace now, since when, and how many of the steps begun since are done; None: nobody."""
    file, elsewhere = workspace.path / LOCK_FILE, workspace.ledger.driven_elsewhere()
    if lock.held(file):
        holder = file.read_text()
        since = datetime.fromtimestamp(file.stat().st_mtime, UTC).isoformat(timespec="milliseconds")
    elif elsewhere is not None:
        holder, since = f"process {elsewhere.process} on host {elsewhere.host.name}", elsewhere.since
    else:
        return None
    begun = {
        step["checkpoint"]: fact.seq
        for fact in workspace.ledger.facts(kinds.RUN)
        if fact.created >= since
        for step in fact.body["steps"]
    }
    made = {stored.checkpoint.key: stored.seq for stored in workspace.book.checkpoints()}
    done = sum(made.get(key, -1) > seq for key, seq in begun.items())
    return {"holder": holder, "since": since, "steps": {"done": done, "total": len(begun)}}


def _state(request: DeletionRequest, certified: bool, unfinished: bool) -> str:
    if request.retired:
        return "retired"
    if unfinished:
        return "uncertified" if certified else "accepted"
    return "completed"


def _described(workspace: Workspace, head: Head, checkpoint: Checkpoint) -> dict[str, Any]:
    return {
        "checkpoint": head.checkpoint,
        "slice": checkpoint.link.slice,
        "tensor_digest": head.tensors,
        "adapter_dir": workspace.store.where(checkpoint.files),
    }
