"""The mutable store of personal data: the only place that holds IDs, content and salts.

One Parquet part per (shard, slice) and ingest, written once, rewritten only to purge. The ledger
knows each part by file name and digest; a file that no fact names is a left-over and is swept. The
random salt in every row keeps a part's digest, which stays in the ledger, from confirming a guess
about the records that were in it.

pyarrow, which loads numpy, takes longer to import than most of what only reads the ledger takes to
run: it is imported where a part is written or decoded.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shards import references
from shards.digest import bytes_digest, canonical_json, digest, keyed
from shards.errors import IntegrityError
from shards.keys import Keyring
from shards.layout import Assignment
from shards.place import AbsentError, LocalPlace, Place, places
from shards.records import Record

if TYPE_CHECKING:
    import pyarrow as pa

# Files beside the parts that no fact names and no sweep removes.
KEPT = frozenset({references.FILE})


def record_tag(keys: Keyring, namespace: str, record_id: str, version: int) -> bytes:
    """Pseudonym (32 bytes) of one version of a record: HMAC under the tag key."""
    return keyed(keys.tag, "tag", namespace, record_id, version)


def record_commitment(salt: bytes, record: Record) -> bytes:
    """Commitment (32 bytes) to a record; once its salt is destroyed, nobody can open it."""
    return keyed(salt, "commitment", canonical_json(record.to_json()))


def record_fingerprint(keys: Keyring, content: str) -> bytes:
    """Keyed digest (32 bytes) of canonical content."""
    return keyed(keys.fingerprint, "content", content)


@dataclass(frozen=True, slots=True)
class StoredRecord:
    """A record as the vault holds it.

    Attributes:
        record: the record.
        tag: its pseudonym.
        fingerprint: keyed digest of its content.
        salt: random bytes that die with the record.
        commitment: to the record, under its salt; the slice's tree holds it.
        truncated: its text is longer than the recipe's sequence length.
    """

    record: Record
    tag: bytes
    fingerprint: bytes
    salt: bytes
    commitment: bytes
    truncated: bool

    @classmethod
    def of(cls, record: Record, keys: Keyring, namespace: str, *, truncated: bool) -> StoredRecord:
        """A record as it goes into the vault, with a fresh salt."""
        tag = record_tag(keys, namespace, record.id, record.version)
        salt = os.urandom(32)
        commitment = record_commitment(salt, record)
        return cls(record, tag, record_fingerprint(keys, record.content), salt, commitment, truncated)

    def opens(self) -> bool:
        """Is the commitment to this record, under this salt?"""
        return self.commitment == record_commitment(self.salt, self.record)


@dataclass(frozen=True, slots=True)
class Part:
    """The ledger's name for one Parquet file of the vault."""

    file: str
    digest: str
    shard: int
    slice: int
    records: int

    def to_json(self) -> dict[str, Any]:
        """As the ledger records it."""
        return asdict(self)


class Vault:
    """Parts in one place.

    Args:
        root: the local directory of what is no part (:data:`KEPT`).
        place: where the parts lie, if not in ``root``.
    """

    def __init__(self, root: Path, place: Place | None = None) -> None:
        self.root = root
        self.place = place or LocalPlace(root)
        # By digest. The bytes of a local part are read and hashed every time, those of a remote one once.
        self._decoded: dict[str, list[StoredRecord]] = {}

    def write(self, places: Mapping[Assignment, Sequence[StoredRecord]]) -> list[Part]:
        """Write one part per place, durably; nothing refers to them until the ledger does.

        Raises:
            StorageError: if the file system refuses.
        """
        parts = []
        with self.place.trying("write records"):
            for place, records in sorted(places.items(), key=lambda item: (item[0].shard, item[0].slice)):
                if not records:
                    continue
                data = _encode(records)
                name = f"{place.shard:04d}-{place.slice:06d}-{uuid.uuid4().hex}.parquet"
                self.place.write(name, data)
                parts.append(Part(name, bytes_digest(data), place.shard, place.slice, len(records)))
            self.place.settle()
        return parts

    def read(self, part: Part) -> list[StoredRecord]:
        """The records of a part, in tag order.

        Raises:
            IntegrityError: if the file is missing, a link, or not the one the ledger names.
        """
        if not (self.place.remote and part.digest in self._decoded):
            data = self._verified(part)
            if part.digest not in self._decoded:
                self._decoded[part.digest] = _decode(data)
        return list(self._decoded[part.digest])

    def pick(self, part: Part, column: str, value: bytes | str) -> list[StoredRecord]:
        """The records of a part whose ``column`` has a value, in tag order; no other is decoded.

        Raises:
            IntegrityError: if the file is missing, a link, or not the one the ledger names.
        """
        import pyarrow as pa
        import pyarrow.compute as pc
        import pyarrow.parquet as pq

        with pq.ParquetFile(pa.BufferReader(self._verified(part))) as file:
            at = file.read(columns=[column], use_threads=False).column(column)
            rows = pc.indices_nonzero(pc.equal(at, value))
            return _records(file.read(use_threads=False).take(rows)) if len(rows) else []

    def tags(self, parts: Iterable[Part]) -> dict[bytes, Part]:
        """Every tag held, and the part that holds it, without decoding content that is not to be remembered.

        Raises:
            IntegrityError: if a file is missing, a link, or not the one the ledger names.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        held: dict[bytes, Part] = {}
        for part in parts:
            if self.place.remote:
                held |= {stored.tag: part for stored in self.read(part)}
                continue
            with pq.ParquetFile(pa.BufferReader(self._verified(part))) as file:
                column = file.read(columns=["tag"], use_threads=False).column("tag")
            held |= dict.fromkeys(column.to_pylist(), part)
        return held

    def _verified(self, part: Part) -> bytes:
        with self.place.trying(f"read {part.file}"):
            try:
                data = self.place.read(part.file)
            except AbsentError as error:
                raise self._damaged(part, str(error)) from error
        if bytes_digest(data) != part.digest:
            raise self._damaged(part, "other bytes")
        return data

    def _damaged(self, part: Part, found: str) -> IntegrityError:
        return IntegrityError(
            f"{self.place.where(part.file)} with digest {part.digest}",
            found,
            "restore this part of the vault from a backup, or put `storage` in sisa.yaml back if it was changed",
        )

    def rewrite_without(self, part: Part, tags: frozenset[bytes]) -> list[Part]:
        """Write the part's other records anew; none or one part comes back. The old file stays."""
        kept = [stored for stored in self.read(part) if stored.tag not in tags]
        return self.write({Assignment(part.shard, part.slice): kept})

    def sweep(self, parts: Iterable[Part]) -> list[str]:
        """Remove every file that is neither one of ``parts`` nor kept; returns the names removed."""
        parts = list(parts)
        self.forget_all_but(parts)
        swept = []
        for place, names in self._unnamed(parts):
            with place.trying("remove superseded parts"):
                for name in names:
                    place.remove(name)
                if names:
                    place.settle()
            swept += names
        return sorted(swept)

    def forget_all_but(self, parts: Iterable[Part]) -> None:
        """Drop from memory what was read from other parts: it may have been deleted since."""
        held = {part.digest for part in parts}
        if self._decoded.keys() - held:
            self._decoded = {digest: records for digest, records in self._decoded.items() if digest in held}

    def strays(self, parts: Iterable[Part]) -> list[str]:
        """Names of files that are neither one of ``parts`` nor kept, and that really are there."""
        found = []
        for place, names in self._unnamed(parts):
            with place.trying("look for strays"):
                found += [name for name in names if place.holds(name)]  # a listing may show what is gone
        return sorted(found)

    def _unnamed(self, parts: Iterable[Part]) -> list[tuple[Place, list[str]]]:
        """Of each place: what is no part and not kept. What lies here although parts lie elsewhere may be one."""
        known = KEPT | {part.file for part in parts}
        unnamed = []
        for place in places(self.place, self.root):
            with place.trying("list records"):
                unnamed.append((place, sorted(place.names() - known)))
        return unnamed

    def damaged(self, parts: Iterable[Part]) -> list[str]:
        """Names of parts that are missing, links, or hold other bytes than the ledger says; each is read."""
        return [part.file for part in parts if not self._is_whole(part)]

    def _is_whole(self, part: Part) -> bool:
        try:
            self._verified(part)
        except IntegrityError:
            return False
        return True

    def size(self) -> int:
        """Bytes of all parts."""
        with self.place.trying("list records"):
            return self.place.size()


def vault_digest(records: Iterable[StoredRecord]) -> str:
    """Digest (hex) of a set of records: equal wherever the same records survive."""
    pairs = sorted((stored.tag, stored.fingerprint) for stored in records)
    return digest("records", *(part for pair in pairs for part in pair)).hex()


def _encode(records: Sequence[StoredRecord]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema(
        [
            ("tag", pa.binary(32)),
            ("fingerprint", pa.binary(32)),
            ("salt", pa.binary(32)),
            ("commitment", pa.binary(32)),
            ("id", pa.string()),
            ("version", pa.int64()),
            ("subject", pa.string()),
            ("risk", pa.float64()),
            ("retention", pa.string()),
            ("generation", pa.int64()),
            ("truncated", pa.bool_()),
            ("content", pa.string()),
        ]
    )
    rows = [
        {
            "tag": stored.tag,
            "fingerprint": stored.fingerprint,
            "salt": stored.salt,
            "commitment": stored.commitment,
            "id": stored.record.id,
            "version": stored.record.version,
            "subject": stored.record.subject,
            "risk": stored.record.risk,
            "retention": stored.record.retention,
            "generation": stored.record.generation,
            "truncated": stored.truncated,
            "content": stored.record.content,
        }
        for stored in sorted(records, key=lambda stored: stored.tag)
    ]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), sink, compression="zstd", use_dictionary=False)
    data: bytes = sink.getvalue().to_pybytes()
    return data


def _decode(data: bytes) -> list[StoredRecord]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    return _records(pq.ParquetFile(pa.BufferReader(data)).read(use_threads=False))


def _records(table: pa.Table) -> list[StoredRecord]:
    return [
        StoredRecord(
            Record(
                id=row["id"],
                content=row["content"],
                subject=row["subject"],
                risk=row["risk"],
                retention=row.get("retention"),  # parts written before there was such a column
                generation=row["generation"],
                version=row["version"],
            ),
            tag=row["tag"],
            fingerprint=row["fingerprint"],
            salt=row["salt"],
            commitment=row["commitment"],
            truncated=row["truncated"],
        )
        for row in table.to_pylist()
    ]
