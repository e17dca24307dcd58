"""The vault: written once, verified on every read, and rewritten only to purge."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from shards.digest import file_digest
from shards.errors import IntegrityError, StorageError
from shards.keys import Keyring
from shards.layout import Assignment
from shards.records import Record
from shards.references import FILE, References
from shards.vault import Part, StoredRecord, Vault, record_commitment, record_fingerprint, record_tag, vault_digest
from tests.toy import toy_record

KEYS = Keyring.from_root(bytes(32))
RECORDS = [
    StoredRecord.of(record, KEYS, "n", truncated=number == 1)
    for number, record in enumerate(
        [
            toy_record(0),
            toy_record(1, subject=None),
            toy_record(2, risk=0.5, generation=3, version=7, retention="permanent"),
            toy_record(3, id="ü 🎫", content='{"text":"\\n"}'),
        ]
    )
]
PLACE, OTHER = Assignment(1, 4), Assignment(0, 2)


@pytest.fixture
def vault(memory_path: Path) -> Vault:
    return Vault(memory_path)


def by_tag(records: Sequence[StoredRecord]) -> list[StoredRecord]:
    return sorted(records, key=lambda stored: stored.tag)


def test_records_come_back_in_tag_order_with_every_attribute(vault: Vault) -> None:
    (part,) = vault.write({PLACE: RECORDS})
    assert vault.read(part) == by_tag(RECORDS)
    assert (part.shard, part.slice, part.records) == (1, 4, 4)
    assert part.digest == file_digest(vault.root / part.file)
    assert Part(**part.to_json()) == part


def test_one_part_a_place_and_none_for_no_records(vault: Vault) -> None:
    parts = vault.write({PLACE: RECORDS[:1], OTHER: RECORDS[1:], Assignment(3, 3): []})
    assert [(part.shard, part.slice) for part in parts] == [(0, 2), (1, 4)]
    assert {entry.name for entry in vault.root.iterdir()} == {part.file for part in parts}
    assert vault.size() == sum((vault.root / part.file).stat().st_size for part in parts)


def test_tags_name_the_part_that_holds_each(vault: Vault) -> None:
    parts = vault.write({PLACE: RECORDS[:1], OTHER: RECORDS[1:]})
    assert vault.tags(parts) == {RECORDS[0].tag: parts[1], **{stored.tag: parts[0] for stored in RECORDS[1:]}}


def test_the_same_records_written_twice_have_different_digests_on_disk() -> None:
    again = StoredRecord.of(RECORDS[0].record, KEYS, "n", truncated=False)
    assert again.salt != RECORDS[0].salt
    assert (again.tag, again.fingerprint) == (RECORDS[0].tag, RECORDS[0].fingerprint)


@pytest.mark.parametrize("damage", ["edit", "cut", "remove"])
def test_damage_is_seen(damage: str, vault: Vault) -> None:
    parts = vault.write({PLACE: RECORDS, OTHER: RECORDS[:1]})
    path = vault.root / parts[1].file
    data = path.read_bytes()
    if damage == "remove":
        path.unlink()
    else:
        path.write_bytes(data[:-1] if damage == "cut" else data[:9] + bytes([data[9] ^ 1]) + data[10:])
    assert vault.damaged(parts) == [parts[1].file]
    with pytest.raises(IntegrityError, match="restore this part"):
        vault.read(parts[1])
    assert vault.read(parts[0]) == [RECORDS[0]]


def test_a_link_to_the_same_bytes_elsewhere_is_no_part(vault: Vault, tmp_path: Path) -> None:
    (part,) = vault.write({PLACE: RECORDS})
    path = vault.root / part.file
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(path.read_bytes())
    vault.read(part)  # what was decoded once is asked for again as a file
    path.unlink()
    path.symlink_to(elsewhere)
    assert vault.damaged([part]) == [part.file]
    readers: list[Callable[[], object]] = [
        lambda: vault.read(part),
        lambda: vault.tags([part]),
        lambda: vault.rewrite_without(part, frozenset({RECORDS[2].tag})),
    ]
    for reader in readers:
        with pytest.raises(IntegrityError, match="found a link"):
            reader()
    assert [entry.name for entry in vault.root.iterdir()] == [part.file], "nothing was written"


def test_a_rewrite_leaves_out_the_tags_and_keeps_the_rest_with_their_salts(vault: Vault) -> None:
    (part,) = vault.write({PLACE: RECORDS})
    (rest,) = vault.rewrite_without(part, frozenset({RECORDS[2].tag, b"x" * 32}))
    assert vault.read(rest) == by_tag([RECORDS[0], RECORDS[1], RECORDS[3]])
    assert (rest.shard, rest.slice, rest.records) == (1, 4, 3)
    assert rest.file != part.file
    assert vault.read(part) == by_tag(RECORDS), "the old file stays until the ledger names the new one"


def test_a_rewrite_that_leaves_nothing_writes_nothing(vault: Vault) -> None:
    (part,) = vault.write({PLACE: RECORDS})
    assert vault.rewrite_without(part, frozenset(stored.tag for stored in RECORDS)) == []


def test_a_sweep_removes_what_is_not_named(vault: Vault) -> None:
    parts = vault.write({PLACE: RECORDS, OTHER: RECORDS})
    (vault.root / ".tmp-half").touch()
    (vault.root / "zz" / "deep").mkdir(parents=True)
    assert vault.sweep(parts[:1]) == sorted([".tmp-half", parts[1].file, "zz"])
    assert [entry.name for entry in vault.root.iterdir()] == [parts[0].file]
    assert vault.sweep(parts[:1]) == []


def test_a_sweep_keeps_the_references_and_still_removes_a_stray(vault: Vault) -> None:
    parts = vault.write({PLACE: RECORDS})
    references = References(vault.root / FILE, KEYS.tag)
    name = references.put("reason", "moved away")
    (vault.root / f"{FILE}.old").touch()
    assert vault.sweep(parts) == [f"{FILE}.old"]
    assert references.text(name) == "moved away"
    assert vault.damaged(parts) == []


def test_a_vault_that_cannot_be_written_is_a_storage_error(memory_path: Path) -> None:
    with pytest.raises(StorageError, match="write records"):
        Vault(memory_path / "nowhere").write({PLACE: RECORDS})


def test_a_tag_binds_key_namespace_id_and_version() -> None:
    other = Keyring.from_root(b"\1" * 32)
    tags = {
        record_tag(KEYS, "n", "r", 1),
        record_tag(KEYS, "n", "r", 2),
        record_tag(KEYS, "n", "s", 1),
        record_tag(KEYS, "m", "r", 1),
        record_tag(other, "n", "r", 1),
    }
    assert len(tags) == 5
    assert {len(tag) for tag in tags} == {32}


def test_a_fingerprint_is_keyed_and_covers_the_content() -> None:
    other = Keyring.from_root(b"\1" * 32)
    assert len({record_fingerprint(KEYS, "a"), record_fingerprint(KEYS, "b"), record_fingerprint(other, "a")}) == 3


def test_a_commitment_opens_to_its_record_under_its_salt_and_to_nothing_else() -> None:
    for one in RECORDS:
        assert one.opens()
        assert one.commitment == record_commitment(one.salt, one.record)
        assert not replace(one, salt=bytes(32)).opens()
        assert not replace(one, commitment=bytes(32)).opens()


@pytest.mark.parametrize(
    "change",
    [
        {"id": "r9"},
        {"content": '{"label":"a","text":"text 9"}'},
        {"subject": "s9"},
        {"subject": None},
        {"risk": 0.25},
        {"generation": 1},
        {"version": 2},
        {"retention": "permanent"},
    ],
)
def test_a_commitment_covers_every_attribute_of_a_record(change: dict[str, Any]) -> None:
    one = RECORDS[0]
    assert not replace(one, record=replace(one.record, **change)).opens()
    covered = {"id", "content", "subject", "risk", "generation", "version", "retention"}
    assert {field.name for field in fields(Record)} == covered


def test_a_part_written_before_records_had_a_retention_is_read(vault: Vault) -> None:
    (part,) = vault.write({PLACE: RECORDS[:1]})
    old = pq.read_table(vault.root / part.file).drop_columns(["retention"])
    pq.write_table(old, vault.root / part.file)
    assert vault.read(replace(part, digest=file_digest(vault.root / part.file))) == [RECORDS[0]]


def test_salts_and_commitments_never_repeat_whatever_repeats_in_the_records() -> None:
    made = [StoredRecord.of(toy_record(number % 3), KEYS, "n", truncated=False) for number in range(300)]
    assert len({one.salt for one in made}) == len({one.commitment for one in made}) == 300
    assert {len(one.salt) for one in made} == {len(one.commitment) for one in made} == {32}
    assert len({one.tag for one in made}) == 3


def test_a_salt_is_gone_from_the_vault_with_its_record_and_the_others_open_still(vault: Vault) -> None:
    (part,) = vault.write({PLACE: RECORDS})
    (rest,) = vault.rewrite_without(part, frozenset({RECORDS[2].tag}))
    vault.sweep([rest])
    assert RECORDS[2].salt not in {one.salt for one in vault.read(rest)}
    assert [one.opens() for one in vault.read(rest)] == [True] * 3
    assert {one.commitment for one in vault.read(rest)} == {RECORDS[n].commitment for n in (0, 1, 3)}


def test_a_vault_digest_covers_which_records_survive_not_salt_or_order() -> None:
    resalted = [replace(stored, salt=bytes(32)) for stored in reversed(RECORDS)]
    assert vault_digest(resalted) == vault_digest(RECORDS)
    assert vault_digest(RECORDS[1:]) != vault_digest(RECORDS)
    edited = StoredRecord.of(Record(RECORDS[0].record.id, "{}"), KEYS, "n", truncated=False)
    assert vault_digest([edited, *RECORDS[1:]]) != vault_digest(RECORDS)
