"""Who asked, who allowed, and why: texts in the vault, keyed references in the ledger."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from shards.references import FILE, References
from shards.workspace import Workspace

# What may be said of a request; each is personal or confidential, so the ledger holds references.
KINDS = ("requester", "authoriser", "reason", "basis")
NOBODY: Mapping[str, str] = MappingProxyType({})


def references(workspace: Workspace) -> References:
    """The texts behind a workspace's references."""
    return References(workspace.vault.root / FILE, workspace.keys.reference)


def refer(workspace: Workspace, said: Mapping[str, str]) -> dict[str, str]:
    """Kind → reference of each text, which is kept in the vault."""
    book = references(workspace)
    return {kind: book.put(kind, text) for kind, text in said.items() if text}


def told(workspace: Workspace, referred: Mapping[str, str]) -> dict[str, str]:
    """Kind → text behind each reference; the reference itself where the text was destroyed."""
    book = references(workspace)
    return {kind: book.text(reference) or f"reference {reference}" for kind, reference in referred.items()}
