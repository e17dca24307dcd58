"""What the ledger's facts add up to: the current state, derived and never stored.

The kinds of fact are listed in ``shards/kinds.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from shards import kinds
from shards.commitments import SliceCommitment
from shards.deletion import DeletionRequest
from shards.derived import Export
from shards.errors import IntegrityError
from shards.fact import Fact
from shards.ledger import Ledger
from shards.lineage import Checkpoint
from shards.manifest import Head, ModelManifest
from shards.store import Store
from shards.targets import Targets
from shards.vault import Part

T = TypeVar("T")

# The facts that name stored objects, and in which fields.
_NAMED_IN = {
    kinds.CHECKPOINT: ("files", "seen"),
    kinds.SLICE: ("leaves",),
    kinds.REQUEST: ("object",),
    kinds.REFUSAL: ("object",),
    kinds.HOLD: ("object",),
}


@dataclass(frozen=True, slots=True)
class Pinned:
    """The recipe and keys fixed at the first ingest."""

    recipe: dict[str, Any]
    digest: str
    keys: str
    namespace: str


@dataclass(frozen=True, slots=True)
class Stored:
    """A checkpoint fact with its fate.

    Attributes:
        checkpoint: the fact.
        created: when it was recorded.
        seq: its place in the ledger.
        purged: when it was destroyed, or None while it is live.
    """

    checkpoint: Checkpoint
    created: str
    seq: int
    purged: str | None

    @property
    def live(self) -> bool:
        """Is it stored?"""
        return self.purged is None


class Book:
    """Reads a ledger. Every method is a read-only operation."""

    def __init__(self, ledger: Ledger, store: Store) -> None:
        self.ledger = ledger
        self._store = store
        self._targets: dict[str, Targets] = {}
        self._known: dict[tuple[int, bool], DeletionRequest] = {}
        self._added_up: dict[str, tuple[int, Any]] = {}

    def _once(self, name: str, add_up: Callable[[], T], *kinds: str) -> T:
        """What ``add_up`` makes of the facts of these kinds, made again only when there are more."""
        last = self.ledger.last(*kinds)
        if name not in self._added_up or self._added_up[name][0] != last:
            self._added_up[name] = (last, add_up())
        made: T = self._added_up[name][1]
        return made

    def _each(self, read: Callable[[Fact], T], *kinds: str) -> list[T]:
        """What ``read`` makes of each fact of these kinds, oldest first.

        Raises:
            IntegrityError: naming a fact whose body is not what its kind says.
        """
        return [_understood(fact, read) for fact in self.ledger.facts(*kinds)]

    def _last(self, read: Callable[[Fact], T], kind: str) -> T | None:
        """What ``read`` makes of the last fact of a kind, if there is one."""
        fact = self.ledger.newest(kind)
        return None if fact is None else _understood(fact, read)

    def genesis(self) -> Fact:
        """The log's first fact.

        Raises:
            IntegrityError: if there is none.
        """
        facts = self.ledger.facts(kinds.GENESIS)
        if not facts:
            raise IntegrityError("a ledger that begins with its genesis", "another ledger", "restore it from a backup")
        return facts[0]

    def signing_keys(self) -> list[Fact]:
        """The facts that name a signing key, oldest first; each holds until the next.

        Raises:
            IntegrityError: if there is no genesis.
        """
        return [self.genesis(), *self.ledger.facts(kinds.KEY)]

    def pinned(self) -> Pinned | None:
        """The recipe pinned at the first ingest, if there was one."""
        return self._last(lambda fact: Pinned(**fact.body), kinds.RECIPE)

    def anchored_in(self) -> str | None:
        """Digest of the place where tree heads and tombstones are anchored, if they are."""
        return self._last(lambda fact: fact.body["location"], kinds.ANCHOR)

    def parts(self) -> list[Part]:
        """The vault's current parts."""
        return list(self._once("parts", self._parts, kinds.INGEST, kinds.ERASURE))

    def _parts(self) -> tuple[Part, ...]:
        parts: dict[str, Part] = {}

        def swap(fact: Fact) -> None:
            for file in fact.body["removed"]:
                if parts.pop(file, None) is None:
                    raise _incomplete(f"vault part {file}", fact)
            parts.update({part["file"]: Part(**part) for part in fact.body["added"]})

        self._each(swap, kinds.INGEST, kinds.ERASURE)
        return tuple(parts.values())

    def next_generation(self) -> int:
        """One more than any generation ever taken in."""
        taken: list[int] = self._each(lambda fact: fact.body["last_generation"], kinds.INGEST)
        return max(taken, default=-1) + 1

    def checkpoints(self) -> list[Stored]:
        """Every checkpoint ever recorded, with its fate."""
        return list(self._once("checkpoints", self._checkpoints, kinds.CHECKPOINT, kinds.PURGE))

    def _checkpoints(self) -> list[Stored]:
        history: list[Stored] = []
        live: dict[str, int] = {}

        def take(fact: Fact) -> None:
            if fact.kind == kinds.CHECKPOINT:
                checkpoint = Checkpoint.from_json(fact.body)
                if checkpoint.key in live:  # damaged, and made again to the same tensors
                    place = live[checkpoint.key]
                    history[place] = replace(history[place], checkpoint=checkpoint)
                    return
                live[checkpoint.key] = len(history)
                history.append(Stored(checkpoint, fact.created, fact.seq, None))
            else:
                for key in fact.body["checkpoints"]:
                    if key not in live:
                        raise _incomplete(f"checkpoint {key}", fact)
                    place = live.pop(key)
                    history[place] = replace(history[place], purged=fact.created)

        self._each(take, kinds.CHECKPOINT, kinds.PURGE)
        return history

    def live(self) -> dict[str, Checkpoint]:
        """Checkpoints that were not purged, by key."""
        return dict(self._once("live", self._live, kinds.CHECKPOINT, kinds.PURGE))

    def _live(self) -> dict[str, Checkpoint]:
        return {stored.checkpoint.key: stored.checkpoint for stored in self.checkpoints() if stored.live}

    def commitments(self) -> list[tuple[Fact, SliceCommitment]]:
        """Every slice commitment ever made, oldest first, with its fact."""
        return self._each(lambda fact: (fact, SliceCommitment(**fact.body)), kinds.SLICE)

    def slices(self) -> dict[tuple[int, int], SliceCommitment]:
        """(shard, slice) → what it consists of now."""
        return {(made.shard, made.slice): made for _, made in self.commitments()}

    def slices_at(self, seq: int) -> list[tuple[Fact, SliceCommitment]]:
        """What each slice that was committed to consisted of when fact ``seq`` was appended, with the fact."""
        then = [(fact, made) for fact, made in self.commitments() if fact.seq <= seq]
        return list({(made.shard, made.slice): (fact, made) for fact, made in then}.values())

    def manifests(self) -> list[tuple[Fact, ModelManifest]]:
        """Every manifest ever served, oldest first, with its fact."""
        return self._each(lambda fact: (fact, ModelManifest.from_json(fact.body)), kinds.MANIFEST)

    def manifest(self) -> ModelManifest | None:
        """What is served now."""
        return self._last(lambda fact: ModelManifest.from_json(fact.body), kinds.MANIFEST)

    def served(self) -> list[tuple[Head, Checkpoint]]:
        """The heads served now, in shard order, each with its checkpoint.

        Raises:
            IntegrityError: if a head's checkpoint is not recorded or was purged.
        """
        manifest, live = self.manifest(), self.live()
        heads = [] if manifest is None else list(manifest.heads)
        lost = [head.checkpoint for head in heads if head.checkpoint not in live]
        if lost:
            raise IntegrityError(f"a live checkpoint {lost[0]}, which is served", "none", "run `sisa audit --all`")
        return [(head, live[head.checkpoint]) for head in heads]

    def requests(self) -> list[tuple[Fact, DeletionRequest]]:
        """Every request ever accepted and not withdrawn, oldest first, with its fact."""
        return list(self._once("requests", self._requests, kinds.REQUEST, kinds.CANCEL, kinds.RETIRED))

    def _requests(self) -> list[tuple[Fact, DeletionRequest]]:
        retired, withdrawn = self.retired(), {fact.seq for fact in self.withdrawn()}
        return [
            (fact, self._request(fact, _understood(fact, lambda fact: fact.body["request_id"] in retired)))
            for fact in self.ledger.facts(kinds.REQUEST)
            if fact.seq not in withdrawn
        ]

    def _request(self, fact: Fact, retired: bool) -> DeletionRequest:
        """The request of a fact; a lost object of targets stops everything, a retired one is nothing."""
        if (fact.seq, retired) not in self._known:
            self._known[fact.seq, retired] = _understood(
                fact,
                lambda fact: DeletionRequest.from_json(
                    fact.body, None if retired else self._targets_of(fact.body["object"])
                ),
            )
        return self._known[fact.seq, retired]

    def open_requests(self) -> list[DeletionRequest]:
        """Requests that were never certified, oldest first."""
        done = self.completed()
        return [request for _, request in self.requests() if request.request_id not in done]

    def begun(self) -> frozenset[str]:
        """IDs of the requests some of whose records were erased: there is no way back."""
        named = self._each(lambda fact: frozenset[str](fact.body["requests"]), kinds.ERASURE)
        return frozenset[str]().union(*named)

    def asked(self) -> int:
        """Number of the newest fact by which deletions were accepted or withdrawn."""
        return self.ledger.last(kinds.REQUEST, kinds.CANCEL)

    def withdrawn(self) -> list[Fact]:
        """Facts of the requests that were withdrawn before they were begun, oldest first."""
        named = set(self._each(lambda fact: int(fact.body["fact"]), kinds.CANCEL))
        return [fact for fact in self.ledger.facts(kinds.REQUEST) if fact.seq in named]

    def holds(self) -> dict[str, tuple[Fact, Targets]]:
        """Legal holds in force, by ID, with what they cover."""
        lifted = set(self._each(lambda fact: str(fact.body["hold_id"]), kinds.RELEASE))
        named = self._each(lambda fact: (str(fact.body["hold_id"]), str(fact.body["object"]), fact), kinds.HOLD)
        return {name: (fact, self._targets_of(made)) for name, made, fact in named if name not in lifted}

    def refusals(self) -> list[Fact]:
        """Deletions that were refused, oldest first."""
        return self.ledger.facts(kinds.REFUSAL)

    def _targets_of(self, name: str) -> Targets:
        if name not in self._targets:
            self._targets[name] = Targets.from_files(self._store.get(name))
        return self._targets[name]

    def retired(self) -> frozenset[str]:
        """Requests whose tombstones were destroyed by retention rule."""
        named = self._each(lambda fact: frozenset[str](fact.body["requests"]), kinds.RETIRED)
        return frozenset[str]().union(*named)

    def destroyed_objects(self) -> frozenset[str]:
        """Objects that a retention rule destroyed, and that no later fact names again.

        A list of tags comes again, the same, once a record came back after its retirement.
        """
        destroyed: set[str] = set()
        for fact in self.ledger.facts(kinds.RETIRED, *_NAMED_IN):
            if fact.kind == kinds.RETIRED:
                destroyed.update(fact.body["objects"])
            else:
                destroyed.difference_update(fact.body[name] for name in _NAMED_IN[fact.kind])
        return frozenset(destroyed)

    def request(self, request_id: str) -> tuple[Fact, DeletionRequest] | None:
        """One request, with its fact."""
        return next((found for found in self.requests() if found[1].request_id == request_id), None)

    def request_of(self, tag: str) -> DeletionRequest | None:
        """The request whose tombstone covers ``tag`` (hex)."""
        return next((request for _, request in self.requests() if tag in request.tombstones), None)

    def deleted_contents(self) -> frozenset[bytes]:
        """Keyed fingerprints of everything that was deleted."""
        return frozenset(bytes.fromhex(mark) for _, request in self.requests() for mark in request.targets.fingerprints)

    def tombstones(self) -> frozenset[bytes]:
        """Tags of everything that may never train again."""
        return self._once("tombstones", self._tombstones, kinds.REQUEST, kinds.CANCEL, kinds.RETIRED)

    def _tombstones(self) -> frozenset[bytes]:
        return frozenset(bytes.fromhex(tag) for _, request in self.requests() for tag in request.tombstones)

    def certificates(self) -> dict[str, Fact]:
        """Certificate facts by request ID; the last one counts."""
        return dict(self._each(lambda fact: (str(fact.body["request_id"]), fact), kinds.CERTIFICATE))

    def completed(self) -> dict[str, str]:
        """When each request was first certified, by ID; a later certificate replaces the file and no more."""
        named = self._each(lambda fact: (str(fact.body["request_id"]), fact.created), kinds.CERTIFICATE)
        return dict(reversed(named))

    def issued(self, request_id: str) -> list[Fact]:
        """Every certificate ever issued for a request, oldest first."""
        named = self._each(lambda fact: (str(fact.body["request_id"]), fact), kinds.CERTIFICATE)
        return [fact for name, fact in named if name == request_id]

    def derived(self) -> list[Fact]:
        """What was made from served heads, or of all records, and left the workspace or is kept in it."""
        return self.ledger.facts(kinds.DERIVED, kinds.EXPORT)

    def exports(self) -> list[Export]:
        """Every export of a model ever made, oldest first."""
        return self._each(Export.of, kinds.EXPORT)


def _understood(fact: Fact, read: Callable[[Fact], T]) -> T:
    try:
        return read(fact)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise IntegrityError(
            f"fact {fact.seq} of the form that {fact.kind} has",
            f"another body ({type(error).__name__}: {error})",
            "trust nothing in this workspace; restore it from a backup (docs/backups.md)",
        ) from error


def _incomplete(what: str, fact: Fact) -> IntegrityError:
    return IntegrityError(
        f"a fact that made {what}, which fact {fact.seq} removes", "none", "restore the ledger from a backup"
    )
