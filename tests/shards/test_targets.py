"""Targets: what a request is about, in a part that a certificate shows and a part that it does not."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from shards.digest import bytes_digest
from shards.store import Store
from shards.targets import SUPPRESSION_FILE, TARGETS_FILE, Targets, targets_digest

A, B, C, D, E, F = (letter * 64 for letter in "abcdef")
TARGETS = Targets(tags=(A,), tombstones=(A, B), absent=(C,), subjects=(D, E), fingerprints=(F,))


def digest_of(targets: Targets, root: Path) -> str:
    return Store(root).put(targets.files())


def test_targets_are_read_back_as_they_were_stored() -> None:
    assert Targets.from_files(TARGETS.files()) == TARGETS
    assert Targets.from_files(Targets().files()).tags == ()


def test_a_certificate_shows_tags_and_neither_subjects_nor_contents() -> None:
    assert TARGETS.public() == {"tags": [A], "tombstones": [A, B], "absent": [C], "salt": TARGETS.salts[0]}
    shown = TARGETS.files()[TARGETS_FILE].decode()
    assert not any(hidden in shown for hidden in (D, E, F, TARGETS.salts[1]))


def test_the_digest_follows_from_what_is_shown_and_the_digest_of_the_rest(memory_path: Path) -> None:
    suppression = bytes_digest(TARGETS.files()[SUPPRESSION_FILE])
    assert targets_digest(TARGETS.public(), suppression) == digest_of(TARGETS, memory_path)
    assert targets_digest(TARGETS.public(), "0" * 64) != digest_of(TARGETS, memory_path)
    assert targets_digest(TARGETS.public() | {"tags": []}, suppression) != digest_of(TARGETS, memory_path)


@pytest.mark.parametrize(
    "change",
    [
        {"tags": (B,)},
        {"tombstones": (A,)},
        {"absent": ()},
        {"subjects": (D,)},
        {"fingerprints": ()},
        {"salts": ("00", TARGETS.salts[1])},
        {"salts": (TARGETS.salts[0], "00")},
        {"tags": TARGETS.absent, "absent": TARGETS.tags},
    ],
)
def test_the_digest_covers_every_field(change: dict[str, Any], memory_path: Path) -> None:
    assert digest_of(replace(TARGETS, **change), memory_path) != digest_of(TARGETS, memory_path)
    assert {field.name for field in fields(Targets)} == {
        "tags",
        "tombstones",
        "absent",
        "subjects",
        "fingerprints",
        "salts",
    }


def test_the_digest_of_equal_targets_confirms_no_guess_for_each_has_salts_of_its_own(memory_path: Path) -> None:
    made = [Targets(tags=(A,)) for _ in range(50)]
    salts = [salt for targets in made for salt in targets.salts]
    assert len(set(salts)) == 100
    assert {len(bytes.fromhex(salt)) for salt in salts} == {32}
    assert len({digest_of(targets, memory_path) for targets in made}) == 50
    shown = {bytes_digest(targets.files()[SUPPRESSION_FILE]) for targets in made}
    assert len(shown) == 50, "the part that is not shown has a salt that is not shown"


@pytest.mark.parametrize("name", [TARGETS_FILE, SUPPRESSION_FILE])
def test_a_key_that_occurs_twice_is_refused(name: str) -> None:
    files = TARGETS.files()
    twice = files[name].replace(b"{", b'{"salt":"00",', 1)
    with pytest.raises(ValueError, match="twice"):
        Targets.from_files(files | {name: twice})
