"""``Record`` = stable ID + version + content, and the readers that make records from files.

Formats (``sisa.yaml`` maps other column names):

    classification    id, text, label
    causal-lm         id, and messages | prompt + completion | text

with optional ``subject``, ``risk`` and ``retention`` and the reserved ``generation`` and ``version``.
"""

from __future__ import annotations

import csv
import json
import math
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shards.digest import canonical_json, parse_json
from shards.errors import RecordError

MAX_VERSION = 100  # each version of a deleted record has a tombstone and its proofs
MAX_GENERATION = 1_000_000
PERMANENT = "permanent"
_SHOWN = 20

# Which content columns make up a record, tried in order.
FORMATS: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "classification": (("text", "label"),),
    "causal-lm": (("messages",), ("prompt", "completion"), ("text",)),
}


@dataclass(frozen=True, slots=True)
class Record:
    """One record of somebody's data.

    Attributes:
        id: stable, unique, chosen by the data's owner.
        content: canonical JSON of the content columns.
        subject: whose data it is; a subject's records share a shard.
        risk: declared likelihood of deletion, 0 to 1; picks the slice.
        generation: which ingest it came with.
        version: raised when the content of an ID changes.
        retention: ``permanent`` if it was declared to stay (public or licensed text that cannot be recalled).
    """

    id: str
    content: str
    subject: str | None = None
    risk: float | None = None
    generation: int = 0
    version: int = 1
    retention: str | None = None

    def fields(self) -> dict[str, Any]:
        """The content columns as they were read."""
        fields: dict[str, Any] = json.loads(self.content)
        return fields

    def to_json(self) -> dict[str, Any]:
        """The record as one line of JSONL, in the form that ingest reads back unchanged."""
        row: dict[str, Any] = {"id": self.id}
        if self.subject is not None:
            row["subject"] = self.subject
        if self.risk is not None:
            row["risk"] = self.risk
        if self.retention is not None:
            row["retention"] = self.retention
        return row | {"generation": self.generation, "version": self.version} | self.fields()


def make_content(fields: Mapping[str, Any]) -> str:
    """Canonical form of a record's content columns."""
    return canonical_json(dict(fields)).decode()


@dataclass(frozen=True, slots=True)
class Incoming:
    """A record as read, before the workspace has decided on its generation.

    Attributes:
        record: the record; its generation is meaningful only if ``declared`` is true.
        declared: the file had a ``generation`` column with a value for this record.
        where: ``file:line`` for messages.
    """

    record: Record
    declared: bool
    where: str


def read_records(
    paths: Sequence[Path],
    task: str,
    *,
    columns: Mapping[str, str] | None = None,
    labels: Sequence[str] | None = None,
) -> list[Incoming]:
    """Read and check every record of ``paths``; all problems are reported together.

    Args:
        paths: ``.jsonl``, ``.csv`` or ``.parquet`` files.
        task: ``classification`` or ``causal-lm``.
        columns: our column name → the file's column name.
        labels: the recipe's label list, if a label outside it is to be refused.

    Raises:
        RecordError: naming file and line of each problem.
    """
    seen: dict[str, str] = {}
    incoming: list[Incoming] = []
    problems: list[str] = []
    for path in paths:
        count = 0
        for line, row in _rows(path):
            count += 1
            where = f"{path.name}:{line}"
            try:
                item = _incoming(_renamed(row, columns or {}), task, labels, where)
            except (ValueError, RecursionError) as error:
                problems.append(f"{where}: {error}")
                continue
            if item.record.id in seen:
                first = seen[item.record.id]
                problems.append(f"{where}: ID {item.record.id!r} occurs twice (first at {first})")
                continue
            seen[item.record.id] = where
            incoming.append(item)
        if not count:
            problems.append(f"{path.name}: the file holds no records")
    if problems:
        raise RecordError(
            "records that can all be taken in", listed(problems), "mend the lines named; nothing was ingested"
        )
    return incoming


def listed(problems: Sequence[str]) -> str:
    """How many problems there are, and the first of them."""
    shown = "".join(f"\n         {problem}" for problem in problems[:_SHOWN])
    more = len(problems) - _SHOWN
    return f"{len(problems)} problem(s):{shown}" + (f"\n         and {more} more" if more > 0 else "")


def _rows(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """(line or row number from 1, row) of one file."""
    readers = {".jsonl": _jsonl, ".csv": _csv, ".parquet": _parquet}
    reader = readers.get(path.suffix)
    if reader is None:
        raise RecordError(f"a file ending in {', '.join(readers)}", path.name, "convert or rename the file")
    try:
        yield from reader(path)
    except OSError as error:
        raise RecordError(f"a readable file {path}", str(error.strerror or error), "check the path") from error


def _jsonl(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    with path.open("rb") as handle:
        for number, line in enumerate(handle, 1):
            if not line.strip():
                continue
            try:
                row = parse_json(line.decode())
            except (ValueError, RecursionError) as error:
                raise _broken(path, number, f"broken JSON ({error})") from error
            if not isinstance(row, dict):
                raise _broken(path, number, "JSON that is not an object")
            yield number, row


def _csv(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    with path.open(newline="", encoding="utf-8-sig") as handle:
        csv.field_size_limit(sys.maxsize)  # a long text is no error, and the default limit is 128 KiB
        reader = csv.DictReader(handle, strict=True)
        try:
            _refuse_twice(path, reader.fieldnames or ())
            for row in reader:
                if None in row or None in row.values():
                    raise _broken(path, reader.line_num, "a row of another length than the header")
                yield reader.line_num, row
        except (csv.Error, UnicodeDecodeError) as error:
            raise _broken(path, reader.reader.line_num, f"broken CSV ({error})") from error


def _parquet(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path) as file:
            _refuse_twice(path, file.schema_arrow.names)
            for batch in file.iter_batches():
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except pa.ArrowInvalid as error:
        raise _broken(path, number + 1, f"broken Parquet ({error})") from error


def _refuse_twice(path: Path, names: Sequence[str]) -> None:
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if twice:
        raise _broken(path, 1, f"a column occurs twice: {', '.join(twice)}")


def _broken(path: Path, line: int, what: str) -> RecordError:
    return RecordError(
        f"a whole {path.suffix[1:].upper()} file", f"{path.name}:{line}: {what}", "mend the file; nothing was ingested"
    )


def _renamed(row: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """The row under our own column names; an absent value counts as no column at all."""
    theirs = {source: ours for ours, source in columns.items()}
    renamed = {theirs.get(name, name): value for name, value in row.items() if name not in columns or name in theirs}
    return {name: value for name, value in renamed.items() if value is not None}


def _incoming(row: Mapping[str, Any], task: str, labels: Sequence[str] | None, where: str) -> Incoming:
    for name in row:
        if name in ("id", "subject") and isinstance(row[name], str):
            _well_formed(row[name], name)
    record_id = _identifier(row, "id")
    if record_id is None:
        raise ValueError("no ID: column 'id' is missing or empty")
    generation = _whole(row, "generation", 0, MAX_GENERATION)
    version = _whole(row, "version", 1, MAX_VERSION)
    record = Record(
        id=record_id,
        content=_content(row, task, labels),
        subject=_identifier(row, "subject"),
        risk=_risk(row),
        generation=generation or 0,
        version=1 if version is None else version,
        retention=_retention(row),
    )
    return Incoming(record, generation is not None, where)


def _identifier(row: Mapping[str, Any], name: str) -> str | None:
    value = row.get(name)
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise ValueError(f"column {name!r} must be a string or a whole number, not {type(value).__name__}")
    if not value.strip():
        raise ValueError(f"column {name!r} holds only white space")
    return value


def _well_formed(text: str, name: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"column {name!r} is not valid Unicode ({error.reason})") from error


def _whole(row: Mapping[str, Any], name: str, least: int, most: int) -> int | None:
    value = row.get(name)
    if value is None or value == "":
        return None
    if isinstance(value, str) and value.isascii() and value.isdigit():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise ValueError(f"column {name!r} must be a whole number from {least} to {most}, not {value!r}")
    return value


def _risk(row: Mapping[str, Any]) -> float | None:
    value = row.get("risk")
    if value is None or value == "":
        return None
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not 0 <= number <= 1:
        raise ValueError(f"column 'risk' must be a number from 0 to 1, not {value!r}")
    return number


def _retention(row: Mapping[str, Any]) -> str | None:
    value = row.get("retention")
    if value is None or value == "":
        return None
    if value != PERMANENT:
        raise ValueError(f"column 'retention' must be {PERMANENT!r} or empty, not {value!r}")
    return PERMANENT


def _content(row: Mapping[str, Any], task: str, labels: Sequence[str] | None) -> str:
    for names in FORMATS[task]:
        if all(name in row for name in names):
            break
    else:
        wanted = " or ".join("+".join(names) for names in FORMATS[task])
        raise ValueError(f"missing column: {task} needs {wanted}, the columns are {', '.join(sorted(row))}")
    fields = {name: row[name] for name in names}
    if "label" in fields:
        fields["label"] = _label(fields["label"], labels)
    if "messages" in fields:
        fields["messages"] = _messages(fields["messages"])
    for name in names:
        if name not in ("messages", "label") and not isinstance(fields[name], str):
            raise ValueError(f"column {name!r} must be a string, not {type(fields[name]).__name__}")
    try:
        return make_content(fields)
    except (ValueError, UnicodeEncodeError) as error:
        raise ValueError(f"the content is not valid Unicode JSON ({error})") from error


def _label(value: Any, labels: Sequence[str] | None) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise ValueError(f"column 'label' must be a string or a whole number, not {value!r}")
    label = str(value)
    if labels is not None and label not in labels:
        raise ValueError(f"label {label!r} is not one of the recipe's {len(labels)} labels")
    return label


def _messages(value: Any) -> list[dict[str, str]]:
    if isinstance(value, str):  # CSV can only carry it as text
        value = parse_json(value)
    if not isinstance(value, list) or not value:
        raise ValueError("column 'messages' must be a list of {role, content}")
    messages = []
    for message in value:
        if not isinstance(message, dict) or not all(isinstance(message.get(k), str) for k in ("role", "content")):
            raise ValueError("column 'messages' must be a list of {role, content}, both strings")
        messages.append({"role": message["role"], "content": message["content"]})
    if messages[-1]["role"] != "assistant":
        raise ValueError("the last of 'messages' must be the assistant's: it is what is trained")
    return messages
