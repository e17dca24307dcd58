"""What forgetting some records does, told from facts and the evidence of the checkpoints hit.

Acceptance must not read every record: which checkpoints fall follows from where the records live and
from what those checkpoints saw; what is still served follows from that.

Every shard starts from the trunk: who forgets a record of it hits them all.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass
from typing import Any

from shards.errors import IntegrityError
from shards.layout import Assignment
from shards.lineage import Checkpoint
from shards.manifest import Head, ModelManifest
from shards.trunk import TRUNK
from shards.vault import StoredRecord
from shards.workspace import Workspace

Going = Mapping[Assignment, frozenset[bytes]]


@dataclass(frozen=True, slots=True)
class ShardImpact:
    """What forgetting does to one shard, or to the trunk.

    Attributes:
        shard: its number, or the trunk's.
        first_slice: the first slice that loses a record, or its trunk.
        steps: how many steps must be trained.
        purged: keys of the stored checkpoints that saw one of the records.
    """

    shard: int
    first_slice: int
    steps: int
    purged: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """As printed and recorded."""
        return {
            "shard": self.shard,
            "first_slice": self.first_slice,
            "steps": self.steps,
            "purged": list(self.purged),
        }


@dataclass(frozen=True, slots=True)
class Impact:
    """What forgetting does.

    Attributes:
        shards: the shards hit, and the trunk last, if it is.
        retrained_share: records in the steps to be trained over records in all steps before (sample
            passes); rehearsed records are counted at their expected number.
    """

    shards: tuple[ShardImpact, ...]
    retrained_share: float

    @property
    def purged(self) -> frozenset[str]:
        """Keys of all checkpoints that fall."""
        return frozenset(key for shard in self.shards for key in shard.purged)

    def to_json(self) -> dict[str, Any]:
        """As printed and recorded."""
        return {
            "shards": [shard.to_json() for shard in self.shards],
            "retrained_share": self.retrained_share,
        }


def places_of(workspace: Workspace, records: Iterable[StoredRecord]) -> Going:
    """Where records live: place → their tags."""
    layout = workspace.layout()
    places: dict[Assignment, set[bytes]] = defaultdict(set)
    for stored in records:
        places[layout.place(stored.record)].add(stored.tag)
    return {place: frozenset(tags) for place, tags in places.items()}


def foresee(workspace: Workspace, going: Going) -> Impact:
    """What forgetting the records ``going`` (place → tags) does. This is a read-only operation."""
    held = _held(workspace)
    rehearsal = workspace.layout().rehearsal
    fallen = _exposed(workspace, going)
    shards: list[ShardImpact] = []
    retrained = 0.0
    hit = _hit(workspace, going)
    for shard in sorted(hit):
        lost = {place.slice: len(tags) for place, tags in going.items() if place.shard == shard}
        first = min(lost) if TRUNK not in hit or shard == TRUNK else 0
        left = {number: count - lost.get(number, 0) for number, count in held[shard].items()}
        again = [passes for number, passes in _steps(left, rehearsal) if number >= first]
        retrained += sum(again)
        shards.append(ShardImpact(shard, first, len(again), tuple(fallen[shard])))
    total = sum(passes for slices in held.values() for _, passes in _steps(slices, rehearsal))
    return Impact(tuple(shards), retrained / total if total else 0.0)


def rolled_back(workspace: Workspace, fallen: Set[str]) -> ModelManifest:
    """What may be served without the checkpoints ``fallen``: of each lineage, the prefix before the first of them."""
    current, live = workspace.book.manifest(), workspace.book.live()
    if current is None:
        return ModelManifest.of(0, workspace.pinned().digest, [])
    heads = [_clean(head, live, fallen) for head in current.heads]
    return ModelManifest.of(current.generation + 1, current.recipe, [head for head in heads if head is not None])


def _clean(head: Head, live: Mapping[str, Checkpoint], fallen: Set[str]) -> Head | None:
    chain: list[Checkpoint] = []
    at: str | None = head.checkpoint
    while at is not None:
        if at not in live:
            return None  # nothing is served of which not everything is known
        chain.append(live[at])
        at = live[at].link.parent
    clean: list[Checkpoint] = []
    lineage = ""
    for made in reversed(chain):
        if made.key in fallen:
            break
        clean.append(made)
        lineage = made.extend(lineage)
    if len(clean) == len(chain):
        return head
    if not clean or clean[-1].link.shard != head.shard:  # the trunk alone is never served
        return None
    return Head(head.shard, clean[-1].key, clean[-1].tensors, lineage, len(clean))


def _hit(workspace: Workspace, going: Going) -> frozenset[int]:
    """The shards hit, and the trunk."""
    shards = frozenset(place.shard for place in going)
    return shards | frozenset(range(workspace.layout().shards)) if TRUNK in shards else shards


def _held(workspace: Workspace) -> dict[int, dict[int, int]]:
    """Shard → slice → how many records survive there, before anything is forgotten now."""
    parts = workspace.book.parts()
    begun, waiting, present = workspace.book.begun(), set[bytes](), set[bytes]()
    for request in workspace.book.open_requests():
        tags = set(map(bytes.fromhex, request.tags))
        waiting |= tags
        present |= tags if request.request_id not in begun else set()
    places = workspace.whereabouts.find(waiting, parts) if waiting else {}
    if places is None or len(places) < len(present):  # the index lacks what was not erased yet
        places = {tag: part for tag, part in workspace.vault.tags(parts).items() if tag in waiting}
    doomed = Counter((part.shard, part.slice) for part in places.values())
    held: dict[int, dict[int, int]] = defaultdict(lambda: defaultdict(int))
    for part in parts:
        held[part.shard][part.slice] += part.records
    for (shard, number), count in doomed.items():
        held[shard][number] -= count
    return held


def _steps(slices: Mapping[int, int], rehearsal: float) -> Iterator[tuple[int, float]]:
    """(slice, records in its step) for each slice that has records."""
    earlier = 0
    for number in sorted(slices):
        if slices[number] > 0:
            yield number, slices[number] + rehearsal * earlier
            earlier += slices[number]


def _exposed(workspace: Workspace, going: Going) -> dict[int, list[str]]:
    """Shard → stored checkpoints, in order, that saw one of the records.

    A record is trained in its own slice first, so whose ancestor there did not see it never did; the trunk comes
    before all shards. Where the evidence is lost, it is taken to have seen it.
    """
    fallen: dict[int, list[str]] = defaultdict(list)
    keys: set[str] = set()
    hit = _hit(workspace, going)
    live = [made for made in workspace.book.live().values() if made.link.shard in hit]
    for made in sorted(live, key=lambda made: (made.link.shard != TRUNK, made.link.slice)):
        tags = going.get(Assignment(made.link.shard, made.link.slice), frozenset())
        if made.link.parent in keys or (tags and _saw(workspace, made, tags)):
            keys.add(made.key)
            fallen[made.link.shard].append(made.key)
    return fallen


def _saw(workspace: Workspace, made: Checkpoint, tags: frozenset[bytes]) -> bool:
    try:
        return bool(tags & workspace.trained_tags(made.seen))
    except IntegrityError:
        return True
