"""The deletion request as received, and the tombstones it leaves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

from shards.digest import keyed
from shards.keys import Keyring
from shards.targets import Targets
from shards.vault import StoredRecord, record_tag

DELETED = "deleted"
NOT_PRESENT = "not-present"


@dataclass(frozen=True, slots=True)
class DeletionRequest:
    """A request whose tombstones are durable.

    Attributes:
        request_id: the caller's, or made up.
        kind: ``deleted``, or ``not-present`` if none of the records asked for was ever held.
        object: digest of the stored targets.
        targets: what it is about; empty once destroyed by retention rule.
        references: requester, authoriser, reason, basis → keyed reference.
        backup_days: how long the operator's backups live, if that is declared.
        before: digest and heads of the manifest served when the request came.
        impact: what was planned on acceptance (the JSON of :class:`shards.forgetting.Impact`).
        queued: it was accepted to be worked off later, with others.
        retired: its tombstones were destroyed by retention rule.
    """

    request_id: str
    kind: str
    object: str
    targets: Targets
    references: dict[str, str]
    backup_days: int | None
    before: dict[str, Any]
    impact: dict[str, Any]
    queued: bool = False
    retired: bool = False

    @property
    def tags(self) -> tuple[str, ...]:
        """Tags (hex) of the records that were held."""
        return self.targets.tags

    @property
    def tombstones(self) -> tuple[str, ...]:
        """Tags (hex) that may never be taken in again."""
        return self.targets.tombstones

    @property
    def subjects(self) -> tuple[str, ...]:
        """Tags (hex) of subjects."""
        return self.targets.subjects

    @property
    def shards(self) -> frozenset[int]:
        """The shards that it hit."""
        return frozenset(shard["shard"] for shard in self.impact["shards"])

    @property
    def purged(self) -> frozenset[str]:
        """Checkpoints that were to be purged, as planned on acceptance."""
        return frozenset(key for shard in self.impact["shards"] for key in shard["purged"])

    def to_json(self) -> dict[str, Any]:
        """The body of its fact."""
        return {name: value for name, value in asdict(self).items() if name not in ("targets", "retired")}

    @classmethod
    def from_json(cls, body: dict[str, Any], targets: Targets | None) -> Self:
        """The request of a fact's body; without targets they were destroyed."""
        return cls(**body, targets=targets or Targets(), retired=targets is None)


def id_tag(keys: Keyring, namespace: str, record_id: str) -> bytes:
    """Pseudonym (32 bytes) of an ID whatever its version: what a legal hold covers."""
    return record_tag(keys, namespace, record_id, 0)


def tombstones(records: Sequence[StoredRecord], keys: Keyring, namespace: str) -> tuple[str, ...]:
    """Tags (hex) of every version, up to the held one, of each record."""
    return tuple(
        record_tag(keys, namespace, stored.record.id, version).hex()
        for stored in records
        for version in range(1, stored.record.version + 1)
    )


def subject_tag(keys: Keyring, namespace: str, subject: str) -> bytes:
    """Pseudonym (32 bytes) of a subject: HMAC under the tag key."""
    return keyed(keys.tag, "subject", namespace, subject)
