"""Records to measure with: Banking77 as published, or made-up ones of the same size."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path

from shards.keys import Keyring
from shards.records import Record, make_content
from shards.vault import StoredRecord

BANKING77 = 10_003  # records in its training file
NAMESPACE = "benchmark"

_WORDS = ("card", "payment", "transfer", "still", "pending", "why", "my", "account", "top", "up", "fee", "refund")


def banking_records(directory: Path) -> list[Record]:
    """The training file of Banking77 (``train.csv``: text, category); line numbers become IDs.

    The file is sorted by category. IDs keep that order, and hashing the IDs undoes it.
    """
    with (directory / "train.csv").open(newline="", encoding="utf-8") as handle:
        rows = list(csv.DictReader(handle))
    return [_record(number, row["text"], row["category"]) for number, row in enumerate(rows)]


def synthetic_records(count: int) -> list[Record]:
    """``count`` short texts with 77 labels."""
    size = len(_WORDS)
    return [
        _record(
            number,
            " ".join(_WORDS[(number * step + number // size) % size] for step in range(1, 12)),
            f"intent_{number % 77:02d}",
        )
        for number in range(count)
    ]


def _record(number: int, text: str, label: str) -> Record:
    return Record(f"q{number:05d}", make_content({"text": text, "label": label}))


def labels_of(records: Sequence[Record]) -> tuple[str, ...]:
    """Every label, sorted."""
    return tuple(sorted({str(record.fields()["label"]) for record in records}))


def spread(records: Sequence[Record], count: int) -> list[Record]:
    """``count`` records (at most all) at even distances: of a file sorted by label, some of every label."""
    count = min(count, len(records))
    return [records[number * len(records) // count] for number in range(count)]


def write_jsonl(path: Path, records: Sequence[Record]) -> None:
    """A file that ``sisa init --data`` takes."""
    rows = [json.dumps({"id": record.id} | record.fields()) for record in records]
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")


def benchmark_root(number: int) -> bytes:
    """A root secret (32 bytes) that anybody can make again: for measuring, never for use."""
    return f"benchmark root {number}".encode().ljust(32, b".")


def as_stored(records: Sequence[Record], number: int) -> tuple[list[StoredRecord], Keyring]:
    """The records as a vault would hold them under :func:`benchmark_root` ``number``, and its keys."""
    keys = Keyring.from_root(benchmark_root(number))
    return [StoredRecord.of(record, keys, NAMESPACE, truncated=False) for record in records], keys
