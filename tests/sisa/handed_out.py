"""Exports as facts and directories, without a model in them."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from shards.derived import Export, directory_digest
from shards.manifest import Head
from sisa.export import register_export
from sisa.session import Session


def heads(session: Session) -> list[Head]:
    """What is served."""
    return [head for head, _ in session.workspace.book.served()]


def exported(session: Session, of: Sequence[Head], *, kept: bool, recipient: str = "", mark: str = "") -> Path:
    """An export of these heads, where it went; its directory is there if it is kept.

    Args:
        mark: in place of its digest.
    """
    staged = session.workspace.path.parent / "staged"
    staged.mkdir()
    (staged / "model.safetensors").write_bytes(b"weights")
    digest = mark or directory_digest(staged, session.workspace.keys)
    made = Export("model", digest, frozenset(head.checkpoint for head in of), kept)
    path = session.workspace.exports / made.name if kept else Path("/elsewhere") / made.name
    with session.accepting():
        register_export(session.workspace, made, path, recipient)
    if kept:
        path.parent.mkdir(exist_ok=True)
        staged.rename(path)
    else:
        shutil.rmtree(staged)
    return path
