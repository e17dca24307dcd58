"""Which shard saw which example? Every function here only reads.

record      shard, slice, every checkpoint that saw it, everything built on those
subject     the same for each of a subject's records
shard       its records and its lineage
checkpoint  what it trained, what it inherited, its lineage
everything  the law, the anchor, the certificates: the workspace's fsck
residue     is anything of these deleted records still in the files?
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shards.book import Stored
from shards.checks import Check, judged, unchecked
from shards.deletion import subject_tag
from shards.derived import directory_digest
from shards.errors import InputError, IntegrityError, MissingDependencyError, RecordError, SisaError
from shards.files import storage
from shards.keyfiles import PRIVATE_FILE, PUBLIC_FILE, read_signing_key
from shards.keys import public_pem
from shards.law import check_law
from shards.lineage import Checkpoint
from shards.manifest import Head
from shards.records import Record, read_records
from shards.trunk import TRUNK, told
from shards.vault import StoredRecord
from shards.workspace import Workspace
from sisa.anchoring import NAME as ANCHORED
from sisa.anchoring import check_anchor
from sisa.certificate import is_intact
from sisa.derived import concerned, describe
from sisa.people import check_texts

if TYPE_CHECKING:
    from sisa.config import Settings


def audit_record(workspace: Workspace, record_id: str) -> dict[str, Any]:
    """Everything known of one record ID, its deleted versions included: the ``audit`` JSON document.

    ``unknown`` names checkpoints whose list of what they saw is lost.
    """
    held = next((stored for stored in workspace.survivors() if stored.record.id == record_id), None)
    deleted = _deleted(workspace, record_id)
    document = _audit_tags(workspace, {*deleted, *([] if held is None else [held.tag])} or {workspace.tag(record_id)})
    document["derived"] = _derived(workspace, deleted, held)
    if held is not None:
        place = workspace.layout().place(held.record)
        document |= {
            "tag": held.tag.hex(),
            "shard": told(place.shard),
            "slice": place.slice,
            "retention": held.record.retention,
            "generation": held.record.generation,
            "version": held.record.version,
            "truncated": held.truncated,
        }
    return {"id": record_id, **document, "present": held is not None}


def _deleted(workspace: Workspace, record_id: str) -> dict[bytes, int | None]:
    """Tags of the deleted versions of an ID, and by which fact each was deleted."""
    forgotten = workspace.book.tombstones()
    tags: list[bytes] = []
    while (tag := workspace.tag(record_id, len(tags) + 1)) in forgotten:
        tags.append(tag)
    requests = workspace.book.requests() if tags else []
    return {
        tag: next((accepted.seq for accepted, request in requests if tag.hex() in request.tombstones), None)
        for tag in tags
    }


def _derived(
    workspace: Workspace, deleted: Mapping[bytes, int | None], held: StoredRecord | None
) -> list[dict[str, Any]]:
    """What was made of an ID's versions, by the rule of a deletion; stale is what a deleted one is in, or may be."""
    live = workspace.book.live().keys()
    stale = {fact.seq for fact in concerned(workspace, deleted)}
    return [
        {
            **fact.body,
            **describe(workspace, fact),
            "stale": fact.seq in stale or not live >= set(fact.body["parents"]),
        }
        for fact in concerned(workspace, {**deleted, **({} if held is None else {held.tag: None})})
    ]


def _audit_tags(workspace: Workspace, tags: set[bytes]) -> dict[str, Any]:
    history = workspace.book.checkpoints()
    visible = workspace.visible_sets()
    epochs = workspace.layout().epochs
    exposures: list[dict[str, Any]] = []
    trained: list[Stored] = []
    for stored in history:
        if not visible.get(stored.checkpoint.key, frozenset()) & tags:
            continue
        own = bool(workspace.trained_tags(stored.checkpoint.seen) & tags)
        trained += [stored] if own else []
        exposures.append(
            {
                "checkpoint": stored.checkpoint.key,
                "shard": told(stored.checkpoint.link.shard),
                "slice": stored.checkpoint.link.slice,
                "live": stored.live,
                "epochs": epochs if own else 0,
                "created": stored.created,
                "purged": stored.purged,
            }
        )
    keys = {exposure["checkpoint"] for exposure in exposures}
    first = min(trained, key=lambda stored: stored.checkpoint.link.slice, default=None)
    request = next((found for tag in sorted(tags) if (found := workspace.book.request_of(tag.hex()))), None)
    return {
        "tag": max(tags).hex(),
        "deleted": request is not None,
        "request_id": None if request is None else request.request_id,
        "shard": None if first is None else told(first.checkpoint.link.shard),
        "slice": None if first is None else first.checkpoint.link.slice,
        "exposures": exposures,
        "unknown": sorted({stored.checkpoint.key for stored in history} - visible.keys()),
        "manifests": [
            manifest.generation
            for _, manifest in workspace.book.manifests()
            if any(head.checkpoint in keys for head in manifest.heads)
        ],
    }


def audit_subject(workspace: Workspace, subject: str) -> dict[str, Any]:
    """Every held record of a subject, and the requests that deleted records of theirs."""
    records = [stored.record.id for stored in workspace.survivors() if stored.record.subject == subject]
    tag = subject_tag(workspace.keys, workspace.pinned().namespace, subject).hex()
    return {
        "subject": subject,
        "requests": [request.request_id for _, request in workspace.book.requests() if tag in request.subjects],
        "records": [audit_record(workspace, record_id) for record_id in sorted(records)],
    }


def audit_shard(workspace: Workspace, shard: int | str) -> dict[str, Any]:
    """A shard's surviving records by slice (tags) and its own lineage; ``trunk`` is what that starts from.

    Args:
        workspace: to be asked.
        shard: its number, or ``trunk``.

    Raises:
        InputError: if there is no such shard.
    """
    layout = workspace.layout()
    number = TRUNK if shard == "trunk" else int(shard)
    if not 0 <= number < layout.shards and shard != "trunk":
        raise InputError(f"a shard from 0 to {layout.shards - 1}, or trunk", str(shard), "see `sisa status`")
    slices: dict[int, list[str]] = {}
    for stored in workspace.survivors(number):
        slices.setdefault(layout.place(stored.record).slice, []).append(stored.tag.hex())
    manifest = workspace.book.manifest()
    head = manifest.head(number) if manifest is not None else None
    everything = workspace.book.checkpoints()
    history = [stored for stored in everything if stored.checkpoint.link.shard == number]
    return {
        "shard": shard,
        "records": sum(map(len, slices.values())),
        "slices": [{"slice": number, "records": len(tags), "tags": tags} for number, tags in sorted(slices.items())],
        "head": None if head is None else head.checkpoint,
        "trunk": _trunk_of(head, {stored.checkpoint.key: stored.checkpoint for stored in everything}),
        "lineage": [_described(stored) for stored in history if stored.live],
        "purged": [_described(stored) for stored in history if not stored.live],
    }


def _trunk_of(head: Head | None, made: Mapping[str, Checkpoint]) -> str | None:
    """The checkpoint of the trunk that a served head started from, if it did."""
    at = None if head is None else made[head.checkpoint]
    while at is not None and at.link.shard != TRUNK:
        at = None if at.link.parent is None else made[at.link.parent]
    return None if at is None else at.key


def audit_checkpoint(workspace: Workspace, key: str) -> dict[str, Any]:
    """What one checkpoint trained and inherited, and the chain it stands in.

    Args:
        key: its key, or an unambiguous beginning of it.

    Raises:
        InputError: if no checkpoint, or more than one, has such a key.
    """
    history = workspace.book.checkpoints()
    matches = [stored for stored in history if stored.checkpoint.key.startswith(key)]
    if len({stored.checkpoint.key for stored in matches}) != 1:
        raise InputError(
            "the key of one checkpoint", f"{len(matches)} that begin with {key!r}", "see `sisa audit --shard N`"
        )
    stored = matches[-1]
    own = workspace.trained_tags(stored.checkpoint.seen)
    visible = workspace.visible_sets().get(stored.checkpoint.key, own)
    by_key = {other.checkpoint.key: other for other in history}
    chain, at = [], stored.checkpoint.link.parent
    while at is not None:
        chain.append(_described(by_key[at]))
        at = by_key[at].checkpoint.link.parent
    return _described(stored) | {
        "trained": sorted(tag.hex() for tag in own),
        "inherited": sorted(tag.hex() for tag in visible - own),
        "ancestors": chain[::-1],
        "environment": stored.checkpoint.environment,
    }


def _described(stored: Stored) -> dict[str, Any]:
    checkpoint = stored.checkpoint
    return {
        "checkpoint": checkpoint.key,
        "shard": told(checkpoint.link.shard),
        "slice": checkpoint.link.slice,
        "parent": checkpoint.link.parent,
        "records": checkpoint.members,
        "own_records": checkpoint.own,
        "tensor_digest": checkpoint.tensors,
        "live": stored.live,
        "created": stored.created,
        "purged": stored.purged,
    }


def audit_everything(workspace: Workspace, anchor: str | None) -> list[Check]:
    """The law of the whole workspace, its log first, and whether it is older than its anchor.

    Raises:
        IntegrityError: if facts that are signed for are not what their kinds say.
    """
    try:
        law = check_law(workspace)
        if law[0].outcome == "failed":
            return [*law, unchecked("law", ANCHORED, "it rests on facts that nobody signed for")]
        return [
            *law,
            check_anchor(workspace, anchor),
            _certified(workspace),
            _kept(workspace),
            check_texts(workspace),
            _key(workspace),
            _endorsed(workspace),
            _foreign(workspace),
        ]
    except SisaError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise IntegrityError(
            "facts that say what their kinds say",
            f"others ({type(error).__name__}: {error})",
            "trust nothing in this workspace; restore it from a backup (docs/backups.md)",
        ) from error


def _certified(workspace: Workspace) -> Check:
    """Every certificate lies there as it was signed and logged."""
    done = workspace.book.certificates()
    problems = [
        f"the certificate of request {request.request_id} is missing or altered (`sisa train` issues it again)"
        for _, request in workspace.book.requests()
        if request.request_id in done
        and not request.retired
        and not is_intact(workspace, request.request_id, done[request.request_id])
    ]
    return judged("law", "every certificate is the one that was logged", problems, f"{len(done)} certificates")


def _kept(workspace: Workspace) -> Check:
    """Every export that is kept here has the files that were compared with memory; one may have been cut off."""
    kept = {made.name: made for made in workspace.book.exports() if made.kept}
    there = {name: made for name, made in kept.items() if (workspace.exports / name).is_dir()}
    problems = [
        f"exports/{name} has other files (remove it, and export again)"
        for name, made in sorted(there.items())
        if directory_digest(workspace.exports / name, workspace.keys) != made.keyed_digest
    ]
    return judged("law", "every kept export is the one that was logged", problems, f"{len(there)} exports")


def _key(workspace: Workspace) -> Check:
    """The public key that lies there to be given away is the one in force, and the private one its other half."""
    name = "the public key filed is the log's"
    named = workspace.book.signing_keys()[-1]
    pem = named.body["public_key"].encode()
    keys = workspace.path / "keys"
    with storage(f"read the keys in {keys}"):
        intact = (keys / PUBLIC_FILE).is_file() and (keys / PUBLIC_FILE).read_bytes() == pem
        here = (keys / PRIVATE_FILE).exists()  # an auditor has none, and a lost one is replaced
    problems = [] if intact else [f"keys/{PUBLIC_FILE} is another"]
    try:
        if here and public_pem(read_signing_key(keys).public_key()) != pem:
            problems.append(f"keys/{PRIVATE_FILE} is another")
    except SisaError as error:
        problems.append(f"keys/{PRIVATE_FILE}: {error.found}")
    return judged("law", name, problems, f"of fact {named.seq}" + ("" if here else ", the private one is not here"))


def _endorsed(workspace: Workspace) -> Check:
    """The log's check refuses a false endorsement; where there is none, whoever has the workspace may have put it."""
    name = "each signing key was endorsed by the one before"
    keys = workspace.book.signing_keys()
    alone = [f"{fact.body['reason']} at fact {fact.seq}" for fact in keys[1:] if fact.body["endorsement"] is None]
    if alone:
        said = "; ".join(f"the signing key was declared {what}" for what in alone)
        return unchecked("law", name, f"{said}: nobody vouches for the next one (docs/keys.md)")
    return judged("law", name, [], f"{len(keys)} keys")


def _foreign(workspace: Workspace) -> Check:
    """Whatever lies beside our files may hold anything."""
    problems = [
        f"{path.relative_to(workspace.path)} is not of this workspace (move or remove it)"
        for path in workspace.foreign()
    ]
    return judged("law", "nothing lies beside the workspace's own files", problems, "no other files")


def audit_residue(workspace: Workspace, settings: Settings, files: Sequence[Path]) -> list[Check]:
    """Search what is stored here, in Ray's directories and by killed replays for the caller's deleted records.

    Registered data files outside the workspace are searched too; what they hold is the operator's
    to clean, and fails nothing.

    Args:
        workspace: to be searched.
        settings: its configuration; the tokenizer is asked if the training extra is installed.
        files: the caller's copy of the deleted records, outside of what is searched.

    Raises:
        InputError: if the copy lies where residues are searched for.
        RecordError: if it cannot be read, or holds a record that is not deleted.
    """
    from shards.needles import needles
    from sisa.residue import activations_check, data_check, ray_directories, replay_directories, residue_checks, scan

    places = [workspace.vault.place, workspace.store.place]
    roots = [workspace.path, *ray_directories(), *replay_directories()]
    roots += [Path(place.where()) for place in places if not place.remote]
    elsewhere = [place.where() for place in places if place.remote]
    for file in files:
        if _lies_in(file, roots):
            raise InputError(
                "your copy of the deleted records outside of what is searched",
                f"{file}, which is searched and would itself be a residue",
                "move it out of the workspace, of Ray's directories and of what replays left",
            )
    recipe = settings.recipe
    incoming = read_records(files, recipe.task, columns=settings.options.columns, labels=recipe.labels or None)
    deleted = [item.record for item in incoming]
    survivors = [stored.record for stored in workspace.survivors()]
    held = {(record.id, record.content) for record in survivors}
    kept = sum((record.id, record.content) in held for record in deleted)
    if kept:
        raise RecordError("deleted records only", f"{kept} that are held", "delete them first, or leave them out")
    wanted, left_out = needles(deleted, _tokeniser(settings), survivors)
    checks = [*residue_checks(scan(roots, wanted), wanted, left_out, elsewhere), activations_check(workspace)]
    data = [path for name in settings.options.data if not _lies_in(path := workspace.path / name, roots)]
    return [*checks, data_check(scan(data, wanted))] if data else checks


def _lies_in(file: Path, roots: Sequence[Path]) -> bool:
    return any(file.resolve().is_relative_to(root.resolve()) for root in roots)


def _tokeniser(settings: Settings) -> Callable[[Record], Sequence[int]] | None:
    """How the trainer turns a record into tokens; None without the training extra or the base model."""
    recipe = settings.recipe
    try:
        from sisa.base_model import load_tokenizer, require_train_extra
        from sisa.encoding import encode

        require_train_extra()
        tokenizer = load_tokenizer(recipe, settings.options.base_model)
    except (MissingDependencyError, InputError):
        return None
    return lambda record: encode(record, recipe, tokenizer).tokens
