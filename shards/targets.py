"""What a request or a hold is about, by tag.

It lies in the store, not in the ledger: the ledger is never edited, and tombstones are destroyed by
retention rule in the end. The ledger names the object by its digest.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from shards.digest import bytes_digest, canonical_json, files_digest, parse_json

TARGETS_FILE = "targets"
SUPPRESSION_FILE = "suppression"


@dataclass(frozen=True, slots=True)
class Targets:
    """What a request is about; tags and fingerprints in hex.

    Attributes:
        tags: records that were held and are to be forgotten.
        tombstones: what may never be taken in again: every version up to the deleted one.
        absent: tags of IDs that were asked for and never held.
        subjects: tags of the subjects named and of those whose records these are, so that a
            repeated request by subject is recognised.
        fingerprints: keyed digests of the deleted contents, so that the same content under another
            ID is reported.
        salts: keep the object's digest, which stays in the ledger, from confirming a guess.
    """

    tags: tuple[str, ...] = ()
    tombstones: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()
    subjects: tuple[str, ...] = ()
    fingerprints: tuple[str, ...] = ()
    salts: tuple[str, str] = field(default_factory=lambda: (os.urandom(32).hex(), os.urandom(32).hex()))

    def public(self) -> dict[str, Any]:
        """The part that a certificate shows."""
        return {
            "tags": list(self.tags),
            "tombstones": list(self.tombstones),
            "absent": list(self.absent),
            "salt": self.salts[0],
        }

    def files(self) -> dict[str, bytes]:
        """As stored: what a certificate shows, and what only suppression needs."""
        private = {"subjects": list(self.subjects), "fingerprints": list(self.fingerprints), "salt": self.salts[1]}
        return {TARGETS_FILE: canonical_json(self.public()), SUPPRESSION_FILE: canonical_json(private)}

    @classmethod
    def from_files(cls, files: Mapping[str, bytes]) -> Self:
        """The targets of a stored object."""
        values = parse_json(files[TARGETS_FILE])
        private = parse_json(files[SUPPRESSION_FILE])
        salts = (values.pop("salt"), private.pop("salt"))
        return cls(**{name: tuple(value) for name, value in (values | private).items()}, salts=salts)


def targets_digest(public: Mapping[str, Any], suppression: str) -> str:
    """Digest (hex) of a targets object, from what a certificate shows of it."""
    return files_digest({TARGETS_FILE: bytes_digest(canonical_json(dict(public))), SUPPRESSION_FILE: suppression})
