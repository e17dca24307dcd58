"""What the ledger's facts add up to: the current state, derived and never stored.

The kinds of fact, each with its schema version:

    recipe/1       what is pinned at the first ingest: recipe, digest, commitment to the keys
    ingest/1       records taken in: counts, parts added
    checkpoint/1   a step was trained
    manifest/1     what is served from now on
    request/1      a deletion was accepted: its tombstones hold from here
    erasure/1      records were taken out of the vault: parts replaced
    purge/1        checkpoints were destroyed
    certificate/1  a deletion was certified
    derived/1      something was made from served heads and left the workspace
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from shards.deletion import DeletionRequest
from shards.errors import IntegrityError
from shards.ledger import Fact, Ledger
from shards.lineage import Checkpoint
from shards.manifest import Head, ModelManifest
from shards.vault import Part

RECIPE = "recipe/1"
INGEST = "ingest/1"
CHECKPOINT = "checkpoint/1"
MANIFEST = "manifest/1"
REQUEST = "request/1"
ERASURE = "erasure/1"
PURGE = "purge/1"
CERTIFICATE = "certificate/1"
DERIVED = "derived/1"

# Facts after which a certificate signed before says less than everything about the present.
CHANGING = (INGEST, CHECKPOINT, MANIFEST, REQUEST, ERASURE, PURGE)


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

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger

    def _last(self, kind: str) -> Fact | None:
        facts = self.ledger.facts(kind)
        return facts[-1] if facts else None

    def pinned(self) -> Pinned | None:
        """The recipe pinned at the first ingest, if there was one."""
        fact = self._last(RECIPE)
        return None if fact is None else Pinned(**fact.body)

    def parts(self) -> list[Part]:
        """The vault's current parts."""
        parts: dict[str, Part] = {}
        for fact in self.ledger.facts(INGEST, ERASURE):
            for file in fact.body["removed"]:
                if parts.pop(file, None) is None:
                    raise _incomplete(f"vault part {file}", fact)
            parts |= {part["file"]: Part(**part) for part in fact.body["added"]}
        return list(parts.values())

    def next_generation(self) -> int:
        """One more than any generation ever taken in."""
        return max((fact.body["last_generation"] for fact in self.ledger.facts(INGEST)), default=-1) + 1

    def checkpoints(self) -> list[Stored]:
        """Every checkpoint ever recorded, with its fate."""
        history: list[Stored] = []
        live: dict[str, int] = {}
        for fact in self.ledger.facts(CHECKPOINT, PURGE):
            if fact.kind == CHECKPOINT:
                checkpoint = Checkpoint.from_json(fact.body)
                if checkpoint.key in live:  # damaged, and made again to the same tensors
                    place = live[checkpoint.key]
                    history[place] = replace(history[place], checkpoint=checkpoint)
                    continue
                live[checkpoint.key] = len(history)
                history.append(Stored(checkpoint, fact.created, fact.seq, None))
            else:
                for key in fact.body["checkpoints"]:
                    if key not in live:
                        raise _incomplete(f"checkpoint {key}", fact)
                    place = live.pop(key)
                    history[place] = replace(history[place], purged=fact.created)
        return history

    def live(self) -> dict[str, Checkpoint]:
        """Checkpoints that were not purged, by key."""
        return {stored.checkpoint.key: stored.checkpoint for stored in self.checkpoints() if stored.live}

    def manifests(self) -> list[tuple[Fact, ModelManifest]]:
        """Every manifest ever served, oldest first, with its fact."""
        return [(fact, ModelManifest.from_json(fact.body)) for fact in self.ledger.facts(MANIFEST)]

    def manifest(self) -> ModelManifest | None:
        """What is served now."""
        fact = self._last(MANIFEST)
        return None if fact is None else ModelManifest.from_json(fact.body)

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
        """Every request ever accepted, oldest first, with its fact."""
        return [(fact, DeletionRequest.from_json(fact.body)) for fact in self.ledger.facts(REQUEST)]

    def request_of(self, tag: str) -> DeletionRequest | None:
        """The request whose tombstone covers ``tag`` (hex)."""
        return next((request for _, request in self.requests() if tag in request.tombstones), None)

    def tombstones(self) -> frozenset[bytes]:
        """Tags of everything that may never train again."""
        return frozenset(bytes.fromhex(tag) for _, request in self.requests() for tag in request.tombstones)

    def certificates(self) -> dict[str, Fact]:
        """Certificate facts by request ID; the last one counts."""
        return {fact.body["request_id"]: fact for fact in self.ledger.facts(CERTIFICATE)}

    def issued(self, request_id: str) -> list[Fact]:
        """Every certificate ever issued for a request, oldest first."""
        return [fact for fact in self.ledger.facts(CERTIFICATE) if fact.body["request_id"] == request_id]

    def derived(self) -> list[Fact]:
        """What was made from served heads and left the workspace."""
        return self.ledger.facts(DERIVED)


def _incomplete(what: str, fact: Fact) -> IntegrityError:
    return IntegrityError(
        f"a fact that made {what}, which fact {fact.seq} removes", "none", "restore the ledger from a backup"
    )
