"""Holding a workspace against its anchor, and bringing the anchor up to date.

An old backup of a workspace is whole in itself: its log verifies. That it is old shows only where
something outside remembers more. The anchor remembers the newest signed tree head and the
tombstones, so that a restored backup is noticed before anything is served, and later deletions can
be applied again (``sisa/recover.py``).
"""

from __future__ import annotations

from typing import Any

from shards import kinds
from shards.anchor import Anchor, inside
from shards.checks import Check, judged, unchecked
from shards.digest import bytes_digest, canonical_json, parse_json
from shards.errors import ConfigError, IntegrityError, SisaError, StorageError
from shards.fact import Fact
from shards.keys import read_public_key
from shards.note import TreeHead, read_head, signed_by
from shards.tlog import tree_hash
from shards.workspace import Workspace

_MARK = ".retired"
RESTORED = "an older state was restored"
UNSIGNED = "the anchored head is not signed by a key of this log"
NAME = "the ledger is not older than its anchor"


def open_anchor(workspace: Workspace, location: str) -> Anchor:
    """The anchor of a workspace.

    Raises:
        ConfigError: if it lies inside the workspace, where a restored backup would bring it along.
    """
    if inside(location, workspace.path):
        raise ConfigError("an anchor outside the workspace", location, "choose a place that backups do not restore")
    return Anchor(location, workspace.book.genesis().body["log"])


def anchored_head(anchor: Anchor) -> tuple[str, TreeHead] | None:
    """The head last anchored: as it was signed, and what it says.

    Raises:
        IntegrityError: if what lies there is no tree head.
    """
    note = anchor.head()
    try:
        return None if note is None else (note, read_head(note))
    except ValueError as error:
        raise IntegrityError("a signed tree head in the anchor", str(error), "see docs/backups.md") from error


def foreign(workspace: Workspace, head: TreeHead) -> bool:
    """Is the head another log's?"""
    return bool(head.origin != workspace.book.genesis().body["log"])


def rollback(workspace: Workspace, location: str | None) -> str:
    """What the anchor knows and the ledger does not; empty if the ledger goes on from there.

    A log that was anchored once has an anchor until :func:`move_anchor` says otherwise: a disk that is
    not mounted looks like a new place, and so does another spelling of it.
    """
    anchor = None if location is None else open_anchor(workspace, location)
    anchored = None if anchor is None else anchored_head(anchor)
    if anchored is None:
        lost = (
            "the anchor is empty, and was not when it was last used"
            if anchor
            else "the log has one, and no anchor is configured"
        )
        return lost if workspace.book.anchored_in() is not None else ""
    note, head = anchored
    leaves = workspace.ledger.leaves()
    keys = [read_public_key(fact.body["public_key"].encode()) for fact in workspace.book.signing_keys()]
    if foreign(workspace, head):
        return f"the anchor belongs to another log, {head.origin}"
    if len(leaves) < head.size:
        return f"the ledger has {len(leaves)} facts, the anchored head covers {head.size}: {RESTORED}"
    if tree_hash(leaves[: head.size]) != head.root:
        return f"the first {head.size} facts are not those that were anchored: history was rewritten"
    if not any(signed_by(note, key) for key in keys):
        return UNSIGNED
    return ""


def _mark(location: str) -> str:
    return bytes_digest(location.encode())


def refuse_rollback(workspace: Workspace, location: str | None) -> None:
    """Serve and change nothing on a state older than what is anchored.

    Raises:
        IntegrityError: if the ledger was rolled back or rewritten, or the anchor lost.
    """
    problem = rollback(workspace, location)
    if problem:
        raise IntegrityError(
            "a ledger that goes on from its anchor" + (f" in {location}" if location else ""),
            problem,
            "`sisa recover` applies all later deletions again; see docs/backups.md"
            if problem.endswith(RESTORED)
            else "see docs/backups.md, When the anchor is the problem",
        )


def check_anchor(workspace: Workspace, location: str | None) -> Check:
    """The question as ``audit --all`` and ``verify`` put it."""
    try:
        problem = rollback(workspace, location)
        damaged = [] if location is None or problem else _damaged(workspace, open_anchor(workspace, location))
    except StorageError as error:
        return unchecked("law", NAME, f"{error.expected}: {error.found}")
    except SisaError as error:
        return judged("law", NAME, [f"{error.expected}: {error.found}"], "")
    if location is None and not problem:
        return unchecked("law", NAME, "no anchor is configured, so a restored backup would go unnoticed")
    return judged("law", NAME, [problem] if problem else damaged, str(location))


def _damaged(workspace: Workspace, anchor: Anchor) -> list[str]:
    """Anchored requests that are not what the ledger says, or gone; those that it does not know must be readable."""
    anchored_requests(anchor)
    anchored_retirements(anchor)
    known, head = anchor.requests(), anchored_head(anchor)
    told = {_name(fact) for fact, _ in workspace.book.requests() if head and fact.seq <= head[1].size}
    return [
        f"the anchored request in {name} is {'damaged' if name in known else 'gone'}"
        for name, document in _documents(workspace).items()
        if known.get(name) != document and (name in known or name in told)
    ]


def move_anchor(workspace: Workspace, location: str | None) -> None:
    """Anchor the log in ``location`` from here on, or nowhere, whatever became of the place before.

    Raises:
        IntegrityError: if what lies there already is of a newer or another log.
    """
    if location is not None and open_anchor(workspace, location).head() is not None:
        refuse_rollback(workspace, location)
    _use(workspace, location)
    bring_up_to_date(workspace, location)


def _use(workspace: Workspace, location: str | None) -> None:
    """Log where the anchor is."""
    if location is not None:
        # The head first: killed in between, the place is used and not said to be, which does no harm.
        open_anchor(workspace, location).put_head(workspace.ledger.head())
    workspace.ledger.append([(kinds.ANCHOR, {"location": None if location is None else _mark(location)})])


def bring_up_to_date(workspace: Workspace, location: str | None) -> None:
    """Anchor every request in force and the newest head; what is there already is left alone.

    Of a retired request only a mark stays, so that a restored backup retires it again.

    Raises:
        IntegrityError: if an anchored request is not as it was put there.
        StorageError: if the anchor cannot be reached.
    """
    if location is None:
        return
    anchor = open_anchor(workspace, location)
    if workspace.book.anchored_in() != _mark(location):
        _use(workspace, location)
    known = anchor.requests()
    for name, data in _documents(workspace).items():
        if known.get(name) != data:
            anchor.put_request(name, data)  # refuses to replace other bytes
    gone = {request.object for _, request in workspace.book.requests() if request.retired}
    gone |= {fact.body["object"] for fact in workspace.book.withdrawn()}
    for fact, _ in anchored_requests(anchor) if gone else ():
        if fact.body["object"] in gone:
            anchor.remove_request(_name(fact))
    note = workspace.ledger.head()
    if anchor.head() != note:
        anchor.put_head(note)


def _documents(workspace: Workspace) -> dict[str, bytes]:
    """What the anchor should hold of every request, by file name."""
    documents: dict[str, dict[str, Any]] = {}
    for fact, request in workspace.book.requests():
        if request.retired:
            mark = {"request_id": request.request_id, "retired": request.object}
            documents[f"{request.object}{_MARK}"] = mark
        else:
            files = {name: data.decode() for name, data in request.targets.files().items()}
            documents[_name(fact)] = {"fact": fact.to_json(), "targets": files}
    return {name: canonical_json(document) for name, document in documents.items()}


def anchored_requests(anchor: Anchor) -> list[tuple[Fact, dict[str, bytes]]]:
    """Every anchored request: its fact, and the files of what it is about, in their order.

    Raises:
        IntegrityError: if one is damaged.
    """
    requests: list[tuple[Fact, dict[str, bytes]]] = []
    for name, data in anchor.requests().items():
        if name.endswith(_MARK):
            continue
        try:
            document: dict[str, Any] = parse_json(data)
            fact = Fact(**document["fact"])
            files = {file: text.encode() for file, text in document["targets"].items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise IntegrityError(f"an anchored request in {name}", str(error), "see docs/backups.md") from error
        if fact.kind != kinds.REQUEST or name != _name(fact):
            raise IntegrityError(f"an anchored request in {name}", f"another fact, {fact.kind}", "see docs/backups.md")
        requests.append((fact, files))
    return requests


def anchored_retirements(anchor: Anchor) -> dict[str, str]:
    """Object of each request whose tombstones were destroyed by retention rule → the request's ID.

    Raises:
        IntegrityError: if a mark is damaged.
    """
    marks = [(name, data) for name, data in anchor.requests().items() if name.endswith(_MARK)]
    try:
        documents = [(name, parse_json(data)) for name, data in marks]
        retired = {str(mark["retired"]): str(mark["request_id"]) for _, mark in documents}
    except (ValueError, KeyError, TypeError) as error:
        raise IntegrityError(
            "the mark of a retired request in the anchor", str(error), "see docs/backups.md"
        ) from error
    if [name for name, _ in marks] != [f"{mark['retired']}{_MARK}" for _, mark in documents]:
        raise IntegrityError("the mark of a retired request in the anchor", "another's", "see docs/backups.md")
    return retired


def _name(fact: Fact) -> str:
    return f"{fact.seq:012d}-{fact.leaf().hex()[:16]}.json"
