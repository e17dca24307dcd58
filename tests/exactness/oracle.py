"""The oracle of exactness: what a workspace holds must be what a fresh run of its survivors gives.

Every exactness test of the toy trainer asks these two functions and nothing weaker.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from orchestration.executor import ChainOrder, Executor, Outcome, SliceTrainer
from orchestration.inline import InlineExecutor
from shards.digest import bytes_digest, canonical_json, tensor_digest
from shards.keyfiles import read_root
from shards.law import check_law
from shards.lineage import Checkpoint
from shards.manifest import Head
from shards.workspace import WEIGHTS_FILE
from sisa.certificate import certificate_path
from sisa.delete import unfinished_requests
from sisa.export import export_records
from sisa.session import Session
from sisa.train import train
from sisa.verify import Evidence, verify
from sisa.verify_workspace import verify_against
from tests.toy import toy_session


@dataclass(frozen=True, slots=True)
class Holdings:
    """All that two workspaces with the same data, keys and recipe must have in common.

    Attributes:
        manifest: digest of what is served; None before anything was.
        heads: what is served.
        checkpoints: every live checkpoint by key.
        tensors: the tensor digest of each, hashed now from the bytes on disk.
    """

    manifest: str | None
    heads: tuple[Head, ...]
    checkpoints: dict[str, Checkpoint]
    tensors: dict[str, str]


def holdings(session: Session) -> Holdings:
    """What a workspace holds."""
    workspace = session.workspace
    manifest = workspace.book.manifest()
    live = workspace.book.live()
    return Holdings(
        manifest=None if manifest is None or not manifest.heads else manifest.digest,
        # Commitments hold random salts: they differ between workspaces, and nothing else may.
        heads=() if manifest is None else tuple(replace(head, lineage="") for head in manifest.heads),
        checkpoints={key: replace(made, root="") for key, made in live.items()},
        tensors={key: tensor_digest(workspace.store.get(made.files)[WEIGHTS_FILE]) for key, made in live.items()},
    )


class LoneExecutor:
    """Runs each chain with nobody beside it."""

    def run(
        self, chains: Iterable[ChainOrder], trainer: SliceTrainer, workspace: Path, store: Path
    ) -> Iterator[Outcome]:
        """One chain after the other."""
        for chain in chains:
            yield from InlineExecutor().run([chain], trainer, workspace, store)


def fresh_run(session: Session, trainer: SliceTrainer, scratch: Path, executor: Executor | None = None) -> Holdings:
    """What the same keys and recipe give, from nothing, on the exported surviving records."""
    scratch.mkdir(parents=True)
    file = scratch / "survivors.jsonl"
    count = export_records(session, file)
    fresh = toy_session(scratch / "fresh", session.recipe, read_root(session.workspace.path / "keys"))
    try:
        if count:  # an empty file is refused: there is nothing to train
            train(fresh, [file], executor=executor or InlineExecutor(), trainer=trainer)
        return holdings(fresh)
    finally:
        fresh.workspace.close()


def assert_equals_fresh_run(session: Session, trainer: SliceTrainer, scratch: Path) -> None:
    """E1: keys, tensors, what each checkpoint saw and the manifest are those of a fresh run.

    Where shards are trained side by side, also those of a fresh run in which none has another beside it.
    """
    found = holdings(session)
    _assert_equal(found, fresh_run(session, trainer, scratch))
    if trainer.lanes > 1:
        _assert_equal(found, fresh_run(session, trainer, scratch / "alone", LoneExecutor()))


def _assert_equal(found: Holdings, fresh: Holdings) -> None:
    assert found.checkpoints.keys() == fresh.checkpoints.keys(), "other checkpoint keys than a fresh run"
    assert found.checkpoints == fresh.checkpoints, "other checkpoint facts than a fresh run"
    assert found.tensors == fresh.tensors, "other tensors than a fresh run"
    assert found.heads == fresh.heads, "other heads than a fresh run"
    assert found.manifest == fresh.manifest, "another manifest than a fresh run"


def refuted(certificate: Path, workspace: Path) -> list[str]:
    """Names of the checks of a certificate that fail, by the file, the operator's key and the workspace."""
    document, checks = verify(certificate, Evidence(public_keys=(workspace / "keys" / "signing.pub",)))
    checks += verify_against(document, workspace) if document is not None else []
    return [check.name for check in checks if check.outcome == "failed"]


def assert_lawful(session: Session) -> None:
    """The law holds, every request is certified, and nothing of a deleted record is stored."""
    workspace = session.workspace
    failed = [check for check in check_law(workspace) if check.outcome != "passed"]
    assert not failed, f"the law does not hold: {failed}"
    assert not unfinished_requests(workspace), "a request was left unfinished"
    recorded = workspace.book.certificates()
    for _, request in workspace.book.requests():
        document = json.loads(certificate_path(workspace, request.request_id).read_bytes())
        digest = bytes_digest(canonical_json(document["envelope"]))
        assert digest == recorded[request.request_id].body["digest"], "another certificate than recorded"
        assert not set(request.tombstones) & {stored.tag.hex() for stored in workspace.survivors()}
    # Asked without the code under test: a tombstoned tag in any file of vault or store is a leak.
    tags = [bytes.fromhex(tag) for _, request in workspace.book.requests() for tag in request.tombstones]
    live = {made.files for made in workspace.book.live().values()}
    seen = {made.seen for made in workspace.book.live().values()}
    files = [
        *workspace.vault.root.iterdir(),
        *(f for name in live | seen for f in (workspace.store.root / name).iterdir()),
    ]
    for file in files:
        data = file.read_bytes()
        assert not any(tag in data for tag in tags), f"{file.name} holds a tombstoned tag"
