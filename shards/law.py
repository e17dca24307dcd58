"""The law, as a query.

    Nothing served from acceptance on, and nothing stored once the request completes, has a
    tombstoned record in its visible set = all records trained anywhere in its lineage.

Asked before a certificate is signed, by ``sisa audit --all``, by ``sisa verify`` and by tests.
"""

from __future__ import annotations

from shards import kinds, lock
from shards.checks import Check, judged, unchecked
from shards.errors import IntegrityError
from shards.files import storage
from shards.lineage import Checkpoint, check_lineage
from shards.trunk import TRUNK
from shards.workspace import LOCK_FILE, Workspace


def check_law(workspace: Workspace, *, completing: frozenset[str] = frozenset()) -> list[Check]:
    """Ask the law of a whole workspace. This is a read-only operation.

    Args:
        workspace: to be asked about.
        completing: request IDs that their driver is about to certify and that so must hold already.
    """
    with storage(f"ask the law of {workspace.path}"):
        return _asked(workspace, completing)


def _asked(workspace: Workspace, completing: frozenset[str]) -> list[Check]:
    log = _log(workspace)
    if log.outcome == "failed":
        return [log, unchecked("law", "the rest of the law", "it rests on facts that nobody signed for")]
    visible = workspace.visible_sets()
    return [
        log,
        _evidence(workspace, visible),
        _served(workspace, visible),
        _stored(workspace, visible, completing),
        _vault(workspace, completing),
        _parts(workspace),
        _objects(workspace),
        _strays(workspace, driving=bool(completing)),
        _tensors(workspace),
        _planned(workspace, completing),
        _committed(workspace),
        _lineages(workspace),
    ]


def _log(workspace: Workspace) -> Check:
    name = "every fact is one that a signed tree head covers"
    problems = workspace.ledger.problems()
    return judged("law", name, problems, "" if problems else f"{len(workspace.ledger.since(0))} facts")


def _evidence(workspace: Workspace, visible: dict[str, frozenset[bytes]]) -> Check:
    """What a checkpoint saw must be known while it is stored; of a purged one, its loss is told."""
    name = "what each checkpoint saw is known"
    history = workspace.book.checkpoints()
    retired = _retired(workspace)
    unknown = [stored for stored in history if stored.checkpoint.key not in visible]
    lost = [stored for stored in unknown if stored.live or stored.checkpoint.key not in retired]
    problems = [f"not of checkpoint {stored.checkpoint.key[:12]}, which is stored" for stored in lost if stored.live]
    if lost and not problems:
        return unchecked("law", name, f"{len(lost)} purged checkpoints have lost their list, {len(history)} were made")
    evidence = f"{len(history)} checkpoints ever made"
    evidence += f", {len(unknown)} of them purged and retired" if unknown else ""
    return judged("law", name, problems, evidence)


def _retired(workspace: Workspace) -> frozenset[str]:
    """Purged checkpoints of which a retention rule destroyed the list, or that of an ancestor."""
    destroyed = workspace.book.destroyed_objects()
    retired: set[str] = set()
    for stored in workspace.book.checkpoints():
        if not stored.live and (stored.checkpoint.seen in destroyed or stored.checkpoint.link.parent in retired):
            retired.add(stored.checkpoint.key)
    return frozenset(retired)


def _completed(workspace: Workspace, completing: frozenset[str]) -> frozenset[bytes]:
    done = completing | frozenset(workspace.book.certificates())
    return frozenset(
        bytes.fromhex(tag)
        for _, request in workspace.book.requests()
        if request.request_id in done
        for tag in request.tombstones
    )


def _served(workspace: Workspace, visible: dict[str, frozenset[bytes]]) -> Check:
    problems = []
    manifests = workspace.book.manifests()
    untold = _retired(workspace) - visible.keys()  # nobody can tell any more; the law held when they were destroyed
    for accepted, request in workspace.book.requests():
        forgotten = frozenset(map(bytes.fromhex, request.tombstones))
        for fact, manifest in manifests:
            if fact.seq < accepted.seq and fact != manifests[-1][0]:  # what is served now counts wherever it stands
                continue
            problems += [
                f"manifest {manifest.generation} serves shard {head.shard} from {head.checkpoint[:12]}, "
                f"which saw records of request {request.request_id}"
                for head in manifest.heads
                if head.checkpoint not in untold and forgotten & visible.get(head.checkpoint, forgotten)
            ]
    evidence = f"{len(manifests)} manifests against {len(workspace.book.requests())} requests"
    return judged("law", "nothing served since acceptance saw a deleted record", problems, evidence)


def _stored(workspace: Workspace, visible: dict[str, frozenset[bytes]], completing: frozenset[str]) -> Check:
    forgotten = _completed(workspace, completing)
    live = workspace.book.live()
    problems = [
        f"checkpoint {key[:12]} is stored and saw a deleted record"
        for key in live
        if forgotten & visible.get(key, forgotten)
    ]
    referenced = workspace.referenced_objects()
    problems += [
        f"checkpoint {stored.checkpoint.key[:12]} was purged and its files are still there"
        for stored in workspace.book.checkpoints()
        if not stored.live
        and stored.checkpoint.files not in referenced
        and workspace.store.holds(stored.checkpoint.files)
    ]
    evidence = f"{len(live)} checkpoints against {len(forgotten)} tombstones"
    return judged("law", "nothing stored saw a deleted record", problems, evidence)


def _vault(workspace: Workspace, completing: frozenset[str]) -> Check:
    damaged = workspace.vault.damaged(workspace.book.parts())  # reported by the check of parts
    parts = [part for part in workspace.book.parts() if part.file not in damaged]
    kept = _completed(workspace, completing) & frozenset(workspace.vault.tags(parts))
    problems = [f"record {tag.hex()[:12]} was deleted and is in the vault" for tag in sorted(kept)]
    return judged("law", "no deleted record is held", problems, f"{len(parts)} parts")


def _parts(workspace: Workspace) -> Check:
    parts = workspace.book.parts()
    problems = [f"vault part {name} is missing or altered" for name in workspace.vault.damaged(parts)]
    return judged("law", "the vault holds what the ledger says", problems, f"{len(parts)} parts")


def _objects(workspace: Workspace) -> Check:
    objects = workspace.referenced_objects()
    problems = [
        f"object {name[:12]} is missing or altered" for name in sorted(objects) if not workspace.store.intact(name)
    ]
    return judged("law", "the store holds what the ledger says", problems, f"{len(objects)} objects")


def _strays(workspace: Workspace, *, driving: bool) -> Check:
    name = "nothing is stored that no fact names"
    unnamed = sorted(workspace.store.objects() - workspace.referenced_objects())
    strays = [name for name in unnamed if workspace.store.holds(name)]  # a listing may show what is gone
    strays += workspace.vault.strays(workspace.book.parts())
    strays += [path.name for path in workspace.stray_activations()]  # where it is erased, not where it only waits
    strays += sorted(entry.name for entry in workspace.leftovers() if not lock.held(entry / LOCK_FILE))  # replays
    if strays and not driving and workspace.driven():
        return unchecked("law", name, "a live process is writing")
    return judged("law", name, [f"{stray[:16]} (run `sisa train` to sweep)" for stray in strays], "no strays")


def _tensors(workspace: Workspace) -> Check:
    """Hashes the tensors on disk: an intact object of another checkpoint is not this one's."""
    problems = []
    live = workspace.book.live()
    for key, made in live.items():
        try:
            found = workspace.stored_tensors(made)
        except IntegrityError as error:
            problems.append(f"checkpoint {key[:12]}: {error.found}")
            continue
        if found != made.tensors:
            problems.append(f"checkpoint {key[:12]} has tensors {found[:12]}, recorded were {made.tensors[:12]}")
    manifest = workspace.book.manifest()
    problems += [
        f"shard {head.shard} is served from {head.checkpoint[:12]} with other tensors than recorded"
        for head in (manifest.heads if manifest is not None else ())
        if head.checkpoint not in live or live[head.checkpoint].tensors != head.tensors
    ]
    return judged("law", "every checkpoint's tensors are those recorded", problems, f"{len(live)} checkpoints")


def _planned(workspace: Workspace, completing: frozenset[str]) -> Check:
    """Keys cover every record trained, so a stored step of the plan saw survivors only."""
    name = "what is stored is what the surviving records give"
    try:
        steps = workspace.plan().steps() if workspace.book.pinned() is not None else {}
    except IntegrityError:  # reported by the check of parts
        return unchecked("law", name, "the surviving records cannot be read")
    live = workspace.book.live()
    unplanned = [key for key in live if key not in steps]
    done = completing | frozenset(workspace.book.certificates())
    waiting = any(request.request_id not in done for _, request in workspace.book.requests())
    if unplanned and (waiting or steps.keys() - live.keys()):
        return unchecked("law", name, "a deletion or training is under way (`sisa train`)")
    problems = [f"checkpoint {key[:12]} is not in the plan of the surviving records" for key in unplanned]
    for key, made in live.items():
        members = {stored.tag for stored in steps[key].members} if key in steps else set()
        if key in steps and workspace.store.intact(made.seen) and workspace.trained_tags(made.seen) != members:
            problems.append(f"checkpoint {key[:12]} is recorded to have seen other records than its key says")
    return judged("law", name, problems, f"{len(live)} checkpoints, {len(steps)} steps")


def _committed(workspace: Workspace) -> Check:
    """Each slice was committed to before its training began, and the commitments open to the records held."""
    name = "every checkpoint was trained on the records its slice was committed to"
    try:
        plan = workspace.plan() if workspace.book.pinned() is not None else None
        survivors = workspace.survivors()
    except IntegrityError:  # reported by the check of parts
        return unchecked("law", name, "the surviving records cannot be read")
    steps = plan.steps() if plan is not None else {}
    problems = [f"the commitment to record {one.tag.hex()[:12]} is not to it" for one in survivors if not one.opens()]
    logged: dict[tuple[int, int], set[str]] = {}
    begun: set[tuple[str, str]] = set()
    for fact in workspace.ledger.facts(kinds.SLICE, kinds.RUN, kinds.CHECKPOINT):
        body = fact.body
        if fact.kind == kinds.SLICE:
            logged.setdefault((body["shard"], body["slice"]), set()).add(body["root"])
        elif fact.kind == kinds.RUN:
            begun |= {
                (step["checkpoint"], step["root"])
                for step in body["steps"]
                if step["root"] in logged.get((body["shard"], step["slice"]), ())
            }
        elif (body["link"]["key"], body["root"]) not in begun:
            problems.append(f"checkpoint {body['link']['key'][:12]}: its slice was not committed to before")
    live = workspace.book.live()
    problems += [
        f"checkpoint {key[:12]} was trained on slice root {made.root[:12]}, its records have {steps[key].root[:12]}"
        for key, made in live.items()
        if key in steps and steps[key].root != made.root
    ]
    return judged("law", name, problems, f"{len(live)} checkpoints, {len(survivors)} commitments opened")


def _lineages(workspace: Workspace) -> Check:
    manifest = workspace.book.manifest()
    problems: list[str] = []
    trunks: set[tuple[str, ...]] = set()
    for head in manifest.heads if manifest else ():
        try:
            chain = lineage(workspace, head.checkpoint)
        except IntegrityError as error:
            problems.append(f"shard {head.shard}: {error.found}")
            continue
        problems += check_lineage([made.link for made in chain], workspace.pinned().digest, head.shard)
        trunks.add(tuple(made.key for made in chain if made.link.shard == TRUNK))
        digest = ""
        for made in chain:
            digest = made.extend(digest)
        if (digest, len(chain)) != (head.lineage, head.steps):
            problems.append(f"shard {head.shard}: the manifest names another lineage")
    problems += ["shards are served that start from different trunks"] * (len(trunks) > 1)
    return judged("law", "every served lineage is whole", problems, f"{len(manifest.heads) if manifest else 0} heads")


def lineage(workspace: Workspace, key: str) -> list[Checkpoint]:
    """The checkpoints from the first step to ``key``, those of the trunk included, all of them live.

    Raises:
        IntegrityError: if a checkpoint of the chain is not stored.
    """
    live = workspace.book.live()
    chain: list[Checkpoint] = []
    at: str | None = key
    while at is not None:
        if at not in live:
            raise IntegrityError(f"checkpoint {at} in the store", f"no live checkpoint {at[:12]}", "run `sisa train`")
        chain.append(live[at])
        at = live[at].link.parent
    return chain[::-1]
