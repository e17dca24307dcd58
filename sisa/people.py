"""Who asked, who allowed, and why: texts in the vault, keyed references in the ledger."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from shards import kinds
from shards.checks import Check, judged, unchecked
from shards.errors import IntegrityError
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


def forget_unnamed(workspace: Workspace) -> None:
    """Destroy the texts that no fact in force names: of what was retired, or of a call that was cut off.

    Args:
        workspace: whose caller drives it.

    Raises:
        IntegrityError: if the file of texts is damaged.
    """
    unnamed = _unnamed(workspace)
    if unnamed:
        references(workspace).forget(unnamed)


def check_texts(workspace: Workspace) -> Check:
    """The file of texts is intact, and holds nothing that no fact in force names. This is a read-only operation."""
    name = "the texts behind references are those that were referred to"
    try:
        unnamed = _unnamed(workspace)
    except IntegrityError as error:
        return judged("law", name, [f"expected {error.expected}, found {error.found}"], "")
    if unnamed and workspace.driven():
        return unchecked("law", name, "a live process is writing")
    problems = [f"no fact in force names the text of {one[:12]} (run `sisa train` to sweep)" for one in sorted(unnamed)]
    return judged("law", name, problems, "one private file of the vault")


def recipients(workspace: Workspace) -> dict[str, str]:
    """Reference of each recipient, and place, → when something was last handed out there; without those retired."""
    last: dict[str, str] = {}
    for fact in workspace.ledger.facts(kinds.DERIVED, kinds.EXPORT, kinds.RETIRED):
        if fact.kind == kinds.RETIRED:
            for name in fact.body["objects"]:
                last.pop(name, None)
        else:
            last |= {fact.body[name]: fact.created for name in ("recipient", "location") if name in fact.body}
    return last


def _unnamed(workspace: Workspace) -> frozenset[str]:
    kept = references(workspace).names()
    return kept - _named(workspace) if kept else kept


def _named(workspace: Workspace) -> frozenset[str]:
    """References by facts in force: a lifted hold, a refusal and a recipient are until a retention rule ends them."""
    book = workspace.book
    retired, destroyed = book.retired(), book.destroyed_objects()
    facts = [fact for fact in workspace.ledger.facts(kinds.REQUEST) if fact.body["request_id"] not in retired]
    facts += [fact for fact in book.refusals() if fact.body["object"] not in destroyed]
    ended = {fact.body["hold_id"] for fact in workspace.ledger.facts(kinds.HOLD) if fact.body["object"] in destroyed}
    facts += [fact for fact in workspace.ledger.facts(kinds.HOLD, kinds.RELEASE) if fact.body["hold_id"] not in ended]
    return frozenset(recipients(workspace)).union(*(fact.body["references"].values() for fact in facts))
