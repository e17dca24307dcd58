"""What a workspace holds and serves. This is a read-only operation."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from shards import kinds, lock
from shards.deletion import DeletionRequest
from shards.layout import ShardLayout
from shards.lineage import Checkpoint
from shards.manifest import Head
from shards.note import read_head
from shards.plan import make_plan
from shards.workspace import LOCK_FILE, Workspace
from sisa.delete import unfinished_requests
from sisa.session import Session


def status(session: Session) -> dict[str, Any]:
    """The ``status`` JSON document.

    A request's state is ``accepted`` (not certified yet), ``completed``, ``uncertified`` (its certificate
    was lost or altered since; ``sisa train`` issues it again) or ``retired``. ``storage_bytes`` are those of
    records, checkpoints, ledger and cached activations; ``activations_bytes`` are the latter alone.
    """
    workspace = session.workspace
    layout = ShardLayout.of_recipe(session.recipe.to_json(), workspace.keys.placement)
    survivors = workspace.survivors()
    plan = make_plan(survivors, layout, session.recipe.digest)
    manifest = workspace.book.manifest()
    live = workspace.book.live()
    completed = workspace.book.completed()
    unfinished = {request.request_id for request in unfinished_requests(workspace)}
    activations_bytes = workspace.activations.size()
    heads = {head.shard: (head, checkpoint) for head, checkpoint in workspace.book.served()}
    shards = [
        {
            "shard": chain.shard,
            "records": sum(step.own for step in chain.steps),
            "slices": [
                {"slice": step.link.slice, "records": step.own, "checkpoint": step.key if step.key in live else None}
                for step in chain.steps
            ],
            "head": _described(workspace, *heads[chain.shard]) if chain.shard in heads else None,
        }
        for chain in plan.chains
    ]
    return {
        "running": running(workspace),
        "manifest_generation": None if manifest is None else manifest.generation,
        "manifest_digest": None if manifest is None else manifest.digest,
        "recipe_digest": session.recipe.digest,
        "records": len(survivors),
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
        + activations_bytes,
        "activations_bytes": activations_bytes,
    }


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
