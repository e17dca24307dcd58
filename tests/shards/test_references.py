"""Keyed references: texts are kept, found and destroyed in one private file, and damage is seen."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shards import files
from shards.errors import IntegrityError, StorageError
from shards.references import FILE, References, reference

KEY = b"k" * 32
TEXTS = {
    "requester": "customer 12, by letter",
    "reason": 'said "ü 🎫"\n\x1f',
    "basis": "",
    "recipient": "customer 12, by letter",
}


@pytest.fixture
def references(memory_path: Path) -> References:
    return References(memory_path / FILE, KEY)


def names(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.parent.iterdir())


def test_a_text_is_found_by_its_reference_by_whoever_opens_the_file(references: References) -> None:
    put = {kind: references.put(kind, text) for kind, text in TEXTS.items()}
    assert put == {kind: reference(KEY, kind, text) for kind, text in TEXTS.items()}
    again = References(references.path, KEY)
    assert {kind: again.text(name) for kind, name in put.items()} == TEXTS


def test_a_reference_covers_key_kind_and_text_and_shows_none_of_them() -> None:
    made = {
        reference(KEY, "requester", "a"),
        reference(KEY, "reason", "a"),
        reference(KEY, "requester", "b"),
        reference(b"o" * 32, "requester", "a"),
        reference(KEY, "requestera", ""),
    }
    assert len(made) == 5
    assert {(len(name), name == bytes.fromhex(name).hex()) for name in made} == {(64, True)}


def test_putting_a_text_twice_changes_nothing(references: References) -> None:
    first = references.put("reason", "moved away")
    data = references.path.read_bytes()
    assert references.put("reason", "moved away") == first
    assert references.path.read_bytes() == data


def test_without_a_file_nothing_is_known_and_nothing_is_made(references: References) -> None:
    assert references.text(reference(KEY, "reason", "x")) is None
    assert names(references.path) == []


def test_a_forgotten_text_is_gone_from_the_bytes_and_the_others_stay(references: References) -> None:
    gone = references.put("requester", "Zyxwv Canary")
    kept = references.put("reason", "moved away")
    assert references.forget([gone, gone, reference(KEY, "reason", "never put")]) == 1
    assert references.text(gone) is None
    assert references.text(kept) == "moved away"
    assert b"Canary" not in references.path.read_bytes()
    assert names(references.path) == [FILE]
    assert references.forget([gone]) == 0


def test_a_forgotten_text_can_be_put_again_under_the_same_reference(references: References) -> None:
    name = references.put("reason", "moved away")
    references.forget([name])
    assert references.put("reason", "moved away") == name
    assert references.text(name) == "moved away"


def test_only_the_owner_can_read_the_file_after_every_write(references: References) -> None:
    name = references.put("reason", "moved away")
    assert stat.S_IMODE(references.path.stat().st_mode) == 0o600
    references.path.chmod(0o644)
    references.forget([name])
    assert stat.S_IMODE(references.path.stat().st_mode) == 0o600


def test_the_file_has_the_documented_form(references: References) -> None:
    name = references.put("reason", "moved away")
    assert json.loads(references.path.read_text()) == {
        "version": 1,
        "texts": {name: {"kind": "reason", "text": "moved away"}},
    }


def compact(document: dict[str, Any]) -> str:
    return json.dumps(document, sort_keys=True, separators=(",", ":"))


def damaged(references: References) -> None:
    """Nothing reads, adds to or destroys in a damaged file, and the error names it and no text."""
    before = references.path.read_bytes()
    for use in (
        lambda: references.text("0" * 64),
        lambda: references.put("reason", "x"),
        lambda: references.forget([]),
    ):
        with pytest.raises(IntegrityError, match=FILE) as raised:
            use()
        assert "moved" not in str(raised.value)
    assert references.path.read_bytes() == before


def test_every_flipped_bit_is_seen(references: References) -> None:
    references.put("reason", "moved away")
    references.put("requester", "ü\x1f")
    data = references.path.read_bytes()
    for bit in range(len(data) * 8):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        references.path.write_bytes(flipped)
        with pytest.raises(IntegrityError, match=FILE):
            references.text("0" * 64)


EDITS: dict[str, Callable[[dict[str, Any], str], object]] = {
    "another text": lambda document, name: document["texts"][name].update(text="stayed here"),
    "another kind": lambda document, name: document["texts"][name].update(kind="basis"),
    "a text that is no text": lambda document, name: document["texts"][name].update(text="\ud800"),
    "no kind": lambda document, name: document["texts"][name].pop("kind"),
    "a field more": lambda document, name: document["texts"][name].update(more="x"),
    "no entry": lambda document, name: document["texts"].update({name: None}),
    "a list of texts": lambda document, name: document.update(texts=[]),
    "no texts": lambda document, name: document.pop("texts"),
    "another version": lambda document, name: document.update(version=2),
    "a truth for a version": lambda document, name: document.update(version=True),
    "a key more": lambda document, name: document.update(more="x"),
}


@pytest.mark.parametrize("edit", EDITS)
def test_an_edited_file_is_refused(edit: str, references: References) -> None:
    name = references.put("reason", "moved away")
    document = json.loads(references.path.read_text())
    assert compact(document) == references.path.read_text(), "else any edit would be refused for its form"
    EDITS[edit](document, name)
    references.path.write_text(compact(document))
    damaged(references)


@pytest.mark.parametrize("data", [b"", b"null", b"\xff", b'{"texts":{},"version":1', b"[" * 100_000])
def test_what_is_no_such_file_is_refused(data: bytes, references: References) -> None:
    references.path.write_bytes(data)
    damaged(references)


def test_a_file_of_another_key_is_refused(references: References) -> None:
    References(references.path, b"o" * 32).put("reason", "moved away")
    damaged(references)


def test_a_number_where_its_digits_were_put_is_refused(references: References) -> None:
    references.put("reason", "5")
    data = references.path.read_bytes()
    references.path.write_bytes(data.replace(b'"text":"5"', b'"text":5'))
    assert references.path.read_bytes() != data
    damaged(references)


def test_a_file_that_cannot_be_read_is_not_taken_for_an_empty_one(references: References) -> None:
    references.path.mkdir()
    with pytest.raises(StorageError, match=FILE):
        references.text("0" * 64)


def test_a_failed_write_keeps_what_was_there(references: References, monkeypatch: pytest.MonkeyPatch) -> None:
    name = references.put("reason", "moved away")

    def full(_path: Path, _data: bytes, **_options: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(files, "write_new", full)
    with pytest.raises(StorageError, match="No space left"):
        references.forget([name])
    assert references.text(name) == "moved away"


@pytest.mark.parametrize("call", ["put", "forget"])
def test_a_call_repeated_after_a_failed_sync_of_the_name_makes_it_durable(
    call: str, references: References, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = references.put("reason", "moved away")
    synced: list[Path] = []

    def failing(_path: Path) -> None:
        raise OSError(5, os.strerror(5))

    def run() -> object:
        return references.put("basis", "consent") if call == "put" else references.forget([name])

    monkeypatch.setattr(files, "fsync_directory", failing)
    with pytest.raises(StorageError):
        run()
    monkeypatch.setattr(files, "fsync_directory", synced.append)
    run()
    assert synced == [references.path.parent]
