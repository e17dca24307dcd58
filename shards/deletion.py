"""The deletion request as received, and the tombstones it leaves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

from shards.digest import keyed
from shards.keys import Keyring
from shards.vault import StoredRecord, record_tag


@dataclass(frozen=True, slots=True)
class DeletionRequest:
    """A request whose tombstones are durable.

    Attributes:
        request_id: the caller's, or made up.
        tags: tags (hex) of the records that were held and are to be forgotten.
        tombstones: tags (hex) that may never be taken in again: every version up to the deleted one.
        subjects: tags (hex) of the subjects named and of those whose records these are, so that a
            repeated request by subject is recognised.
        before: digest and heads of the manifest served when the request came.
        impact: what was planned on acceptance (the JSON of :class:`shards.plan.Impact`).
    """

    request_id: str
    tags: tuple[str, ...]
    tombstones: tuple[str, ...]
    subjects: tuple[str, ...]
    before: dict[str, Any]
    impact: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """The body of its fact."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_json(cls, body: dict[str, Any]) -> Self:
        """The request of a fact's body."""
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in body.items()
        }
        return cls(**values)


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
