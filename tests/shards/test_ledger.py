"""The ledger: facts are appended in one transaction and never edited, by whatever program."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from shards.errors import OperationError, StorageError
from shards.ledger import Ledger


@pytest.fixture
def ledger(memory_path: Path) -> Iterator[Ledger]:
    with closing(Ledger(memory_path / "ledger.sqlite", create=True)) as opened:
        yield opened


def test_facts_come_back_in_order_and_by_kind(ledger: Ledger) -> None:
    ledger.append([("a/1", {"n": 1}), ("b/1", {"n": 2})])
    ledger.append([("a/1", {"n": 3, "text": "ü"})])
    assert [(fact.kind, fact.body) for fact in ledger.facts("a/1", "b/1")] == [
        ("a/1", {"n": 1}),
        ("b/1", {"n": 2}),
        ("a/1", {"n": 3, "text": "ü"}),
    ]
    assert [fact.seq for fact in ledger.facts("a/1")] == [1, 3]
    assert ledger.facts("c/1") == []
    assert all(fact.created.endswith("+00:00") for fact in ledger.facts("a/1"))


def test_an_append_is_all_or_nothing(ledger: Ledger) -> None:
    with pytest.raises(StorageError, match="append facts"):
        ledger.append([("a/1", {"n": 1}), (None, {"n": 2})])  # type: ignore[list-item]
    assert ledger.facts("a/1") == []
    ledger.append([("a/1", {"n": 3})])
    assert len(ledger.facts("a/1")) == 1


def test_what_json_cannot_carry_is_refused_before_anything_is_written(ledger: Ledger) -> None:
    with pytest.raises(ValueError, match=r".+"):
        ledger.append([("a/1", {"n": 1}), ("a/1", {"n": float("nan")})])
    assert ledger.facts("a/1") == []


@pytest.mark.parametrize("statement", ["UPDATE facts SET body = '{}'", "DELETE FROM facts"])
def test_facts_cannot_be_edited_or_removed(statement: str, ledger: Ledger) -> None:
    ledger.append([("a/1", {"n": 1})])
    with closing(sqlite3.connect(ledger.path)) as other:
        with pytest.raises(sqlite3.IntegrityError, match="never"):
            other.execute(statement)
        other.rollback()
    assert [fact.body for fact in ledger.facts("a/1")] == [{"n": 1}]


def test_facts_are_durable_and_seen_by_another_reader(ledger: Ledger) -> None:
    ledger.append([("a/1", {"n": 1})])
    with closing(Ledger(ledger.path)) as reader:
        ledger.append([("a/1", {"n": 2})])
        assert [fact.body["n"] for fact in reader.facts("a/1")] == [1, 2]


def test_the_journal_is_the_one_without_the_reset_bug(ledger: Ledger) -> None:
    with closing(sqlite3.connect(ledger.path)) as other:
        assert other.execute("PRAGMA journal_mode").fetchone() == ("delete",)


def test_a_newer_ledger_is_refused_and_left_alone(ledger: Ledger) -> None:
    with closing(sqlite3.connect(ledger.path)) as other:
        other.execute("PRAGMA user_version = 99")
    before = ledger.path.read_bytes()
    with pytest.raises(OperationError, match="schema 99"):
        Ledger(ledger.path)
    assert ledger.path.read_bytes() == before


def test_a_missing_ledger_is_never_made_by_opening(memory_path: Path) -> None:
    with pytest.raises(StorageError, match="no file"):
        Ledger(memory_path / "ledger.sqlite")
    assert list(memory_path.iterdir()) == []


def test_a_file_that_is_no_ledger_is_a_storage_error(memory_path: Path) -> None:
    (memory_path / "ledger.sqlite").write_bytes(b"no database at all, " * 100)
    with pytest.raises(StorageError, match="not a database"):
        Ledger(memory_path / "ledger.sqlite")
