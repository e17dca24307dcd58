"""Signing keys over time: rotation, loss and theft, and what an auditor may be handed.

Placement, seed, tag and fingerprint keys never rotate: they are what makes two runs the same run.
The signing key can be replaced at any time; the log remembers which key held when.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from shards import kinds
from shards.digest import bytes_digest
from shards.errors import InputError
from shards.files import fsync_directory, remove, replace_file, storage
from shards.keyfiles import (
    PRIVATE_FILE,
    PUBLIC_FILE,
    ROOT_FILE,
    discard_next_key,
    private_pem,
    promote_next_key,
    read_next_key,
    read_signing_key,
    write_next_key,
)
from shards.keys import endorsed, public_pem
from shards.references import FILE as REFERENCES_FILE
from shards.workspace import Workspace
from sisa.delete import unfinished_requests
from sisa.export import outside

Reason = Literal["planned", "lost", "stolen"]


def rotate(workspace: Workspace, reason: Reason = "planned") -> dict[str, Any]:
    """Replace the signing key; the log names the new one from here on.

    The new key is durable before the log names it, and put in place after; killed in between, the
    next call finishes what this one began. One that declares a loss or theft always makes another key.

    Args:
        workspace: whose caller drives it.
        reason: ``planned``: the old key endorses the new one. ``lost`` or ``stolen``: it does not, and
            readers must get the new public key by another way.

    Returns:
        ``{public_key, from_fact, reason}``.

    Raises:
        InputError, StorageError: if the rotation is a planned one and the old key cannot be read, or is
            not the one that the log names.
    """
    keys = workspace.path / "keys"
    last = workspace.book.signing_keys()[-1]
    waiting = read_next_key(keys)
    if waiting is not None and public_pem(waiting.public_key()).decode() == last.body["public_key"]:
        waited = promote_next_key(keys)
        if waited and reason == "planned":  # else it was in use, or is itself what is lost or stolen: replace it
            return {"public_key": str(keys / PUBLIC_FILE), "from_fact": last.seq, "reason": last.body["reason"]}
    discard_next_key(keys)
    old = read_signing_key(keys) if reason == "planned" else None
    if old is not None and public_pem(old.public_key()).decode() != last.body["public_key"]:
        raise InputError(
            "the signing key that the log names last, to endorse the next one",
            f"another key in {keys / PRIVATE_FILE}",
            "restore that key, or declare it --lost or --stolen",
        )
    new = Ed25519PrivateKey.generate()
    pem = public_pem(new.public_key())
    write_next_key(keys, private_pem(new))
    body = {
        "public_key": pem.decode(),
        "previous": bytes_digest(last.body["public_key"].encode()),
        "reason": reason,
        "endorsement": old.sign(endorsed(workspace.book.genesis().body["log"], pem)).hex() if old is not None else None,
    }
    (fact,) = workspace.ledger.append([(kinds.KEY, body)], key=new)
    promote_next_key(keys)
    return {"public_key": str(keys / PUBLIC_FILE), "from_fact": fact.seq, "reason": reason}


def history(workspace: Workspace) -> list[dict[str, Any]]:
    """Every signing key of the log with its validity, oldest first. This is a read-only operation.

    Each endorsement was verified when the log was: ``Ledger.problems`` refuses a false one.
    """
    named = workspace.book.signing_keys()
    ends = [fact.seq - 1 for fact in named[1:]] + [None]
    return [
        {
            "public_key": fact.body["public_key"],
            "sha256": bytes_digest(fact.body["public_key"].encode()),
            "from_fact": fact.seq,
            "to_fact": end,
            "created": fact.created,
            "reason": fact.body.get("reason", "first"),
            "endorsed": bool(fact.body.get("endorsement")),
        }
        for fact, end in zip(named, ends, strict=True)
    ]


def hand_out_tag_key(workspace: Workspace, file: Path) -> None:
    """Write the tag key for an auditor: it makes the tags of records, subjects and holds anew, and nothing else.

    Raises:
        InputError: if the file would lie in the workspace.
    """
    replace_file(outside(workspace, file), workspace.keys.tag.hex().encode() + b"\n", private=True)


def destroy(workspace: Workspace) -> None:
    """End the namespace: destroy its root secret; every tag is as good as random from then on.

    The texts of who asked and why go with it, before it: without the root nothing opens the workspace again.

    Raises:
        InputError: if records are still held, or a deletion is not completed.
    """
    held = len(workspace.survivors())
    if held:
        raise InputError(
            "a namespace without records", f"{held} records", "delete them first, each with its certificate"
        )
    waiting = unfinished_requests(workspace)
    if waiting:
        raise InputError(
            "a namespace whose deletions are all certified",
            f"request {waiting[0].request_id} is under way",
            "finish it with `sisa train`; without the keys nobody can",
        )
    keys = workspace.path / "keys"
    if not workspace.ledger.facts(kinds.END):  # or it was said, and killed before it was done
        workspace.ledger.append([(kinds.END, {"destroyed": ROOT_FILE})])
    for path in (workspace.vault.root / REFERENCES_FILE, keys / ROOT_FILE):
        with storage(f"destroy {path}"):
            remove(path)
            fsync_directory(path.parent)
