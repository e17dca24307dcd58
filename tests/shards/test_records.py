"""Readers: three formats give the same records, and every problem is named by file and line."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shards.errors import RecordError
from shards.records import Record, make_content, read_records

Rows = Sequence[Mapping[str, Any]]
FORMATS = ("jsonl", "csv", "parquet")
ROWS: Rows = (
    {"id": "a", "subject": "s", "text": 'one, "two"\nthree', "label": "x", "risk": 0.25, "generation": 2, "version": 3},
    {"id": "b", "subject": "t", "text": "ü 🎫", "label": "y", "risk": 1.0, "generation": 0, "version": 1},
)


def write(directory: Path, kind: str, rows: Rows, name: str = "data") -> Path:
    """Rows as a file of one of the three formats."""
    path = directory / f"{name}.{kind}"
    if kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif kind == "csv":
        text = io.StringIO()
        writer = csv.DictWriter(text, list(dict.fromkeys(name for row in rows for name in row)))
        writer.writeheader()
        writer.writerows(rows)
        path.write_text(text.getvalue(), newline="")
    else:
        pq.write_table(pa.Table.from_pylist([dict(row) for row in rows]), path)
    return path


def records(path: Path, task: str = "classification", **options: Any) -> list[Record]:
    return [item.record for item in read_records([path], task, **options)]


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_gives_the_same_records(kind: str, tmp_path: Path) -> None:
    incoming = read_records([write(tmp_path, kind, ROWS)], "classification")
    assert [item.record for item in incoming] == [
        Record("a", make_content({"text": 'one, "two"\nthree', "label": "x"}), "s", 0.25, 2, 3),
        Record("b", make_content({"text": "ü 🎫", "label": "y"}), "t", 1.0, 0, 1),
    ]
    assert all(item.declared for item in incoming)


@pytest.mark.parametrize("kind", FORMATS)
def test_optional_columns_may_be_absent_or_empty(kind: str, tmp_path: Path) -> None:
    rows: Rows = ({"id": 7, "text": "t", "label": 1}, {"id": 8, "text": "t", "label": 0})
    absent = dict.fromkeys(("subject", "risk", "retention", "generation", "version"))
    full = [{**row, **absent} for row in rows]
    for name, content in (("absent", rows), ("empty", full)):
        incoming = read_records([write(tmp_path, kind, content, name)], "classification")
        assert [item.record.id for item in incoming] == ["7", "8"]
        assert [item.record.fields()["label"] for item in incoming] == ["1", "0"]
        assert {(one.subject, one.risk, one.retention) for one in (item.record for item in incoming)} == {
            (None, None, None)
        }
        assert not any(item.declared for item in incoming)


@pytest.mark.parametrize("kind", FORMATS)
def test_columns_can_be_renamed(kind: str, tmp_path: Path) -> None:
    path = write(tmp_path, kind, [{"ticket": "a", "body": "t", "queue": "x", "id": "not this"}])
    columns = {"id": "ticket", "text": "body", "label": "queue"}
    assert records(path, columns=columns) == [Record("a", make_content({"text": "t", "label": "x"}))]


@pytest.mark.parametrize(
    ("row", "content"),
    [
        ({"text": "t"}, {"text": "t"}),
        ({"prompt": "p", "completion": "c"}, {"prompt": "p", "completion": "c"}),
        ({"prompt": "p", "completion": "c", "text": "unused"}, {"prompt": "p", "completion": "c"}),
        (
            {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "extra": 1}]},
            {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
        ),
    ],
)
def test_causal_records_have_messages_or_prompt_and_completion_or_text(
    row: dict[str, Any], content: dict[str, Any], tmp_path: Path
) -> None:
    path = write(tmp_path, "jsonl", [{"id": "a", **row}])
    assert records(path, "causal-lm") == [Record("a", make_content(content))]


def test_messages_may_come_as_text(tmp_path: Path) -> None:
    messages = [{"role": "assistant", "content": "a"}]
    path = write(tmp_path, "csv", [{"id": "a", "messages": json.dumps(messages)}])
    assert records(path, "causal-lm")[0].fields() == {"messages": messages}


def test_a_record_written_as_json_is_read_back_unchanged(tmp_path: Path) -> None:
    first = records(write(tmp_path, "jsonl", ROWS))
    assert records(write(tmp_path, "jsonl", [record.to_json() for record in first], "again")) == first


GOOD = {"id": "a", "text": "t", "label": "x"}


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"text": "t", "label": "x"}, "no ID"),
        ({**GOOD, "id": ""}, "no ID"),
        ({**GOOD, "id": None}, "no ID"),
        ({**GOOD, "id": " \t"}, "only white space"),
        ({**GOOD, "id": 1.5}, "'id' must be a string or a whole number"),
        ({**GOOD, "id": True}, "'id' must be a string or a whole number"),
        ({**GOOD, "id": "\ud800"}, "not valid Unicode"),
        ({**GOOD, "subject": ["x"]}, "'subject' must be a string"),
        ({**GOOD, "subject": "\ud800"}, "not valid Unicode"),
        ({"id": "a", "label": "x"}, "missing column: classification needs text+label, the columns are id, label"),
        ({"id": "a", "text": "t"}, "missing column"),
        ({**GOOD, "text": 3}, "'text' must be a string"),
        ({**GOOD, "text": "\ud800"}, "not valid Unicode"),
        ({**GOOD, "label": "z"}, "label 'z' is not one of the recipe's 2 labels"),
        ({**GOOD, "label": ""}, "'label' must be a string or a whole number"),
        ({**GOOD, "label": 0.5}, "'label' must be a string or a whole number"),
        ({**GOOD, "risk": 1.01}, "'risk' must be a number from 0 to 1"),
        ({**GOOD, "risk": "high"}, "'risk' must be a number from 0 to 1"),
        ({**GOOD, "risk": True}, "'risk' must be a number from 0 to 1"),
        ({**GOOD, "retention": "30 days"}, "'retention' must be 'permanent' or empty, not '30 days'"),
        ({**GOOD, "retention": True}, "'retention' must be 'permanent' or empty"),
        ({**GOOD, "generation": -1}, "'generation' must be a whole number from 0"),
        ({**GOOD, "generation": 1.5}, "'generation' must be a whole number from 0"),
        ({**GOOD, "generation": 10**7}, "'generation' must be a whole number from 0"),
        ({**GOOD, "version": 0}, "'version' must be a whole number from 1"),
        ({**GOOD, "version": "one"}, "'version' must be a whole number from 1"),
    ],
)
def test_a_wrong_record_is_named_by_file_and_line(row: dict[str, Any], problem: str, tmp_path: Path) -> None:
    path = write(tmp_path, "jsonl", [{**GOOD, "id": "first"}, row])
    with pytest.raises(RecordError, match=f"data.jsonl:2: .*{re.escape(problem)}"):
        records(path, labels=["x", "y"])


@pytest.mark.parametrize(
    ("messages", "problem"),
    [
        ([], "must be a list"),
        ("no json", "Expecting value"),
        ("[" * 100_000, "recursion|nest"),
        ([{"role": "user"}], "both strings"),
        (["text"], "both strings"),
        ([{"role": "user", "content": "q"}], "the last of 'messages' must be the assistant's"),
    ],
)
def test_wrong_messages_are_named_by_file_and_line(messages: Any, problem: str, tmp_path: Path) -> None:
    path = write(tmp_path, "jsonl", [{"id": "a", "messages": messages}])
    with pytest.raises(RecordError, match=f"data.jsonl:1: .*({problem})"):
        records(path, "causal-lm")


@pytest.mark.parametrize("kind", FORMATS)
def test_an_id_twice_is_named_with_both_places(kind: str, tmp_path: Path) -> None:
    path = write(tmp_path, kind, [GOOD, {**GOOD, "id": "b"}, GOOD])
    first, again = (2, 4) if kind == "csv" else (1, 3)  # a CSV file's first line is its header
    with pytest.raises(
        RecordError, match=rf"data.{kind}:{again}: ID 'a' occurs twice \(first at data.{kind}:{first}\)"
    ):
        records(path)


def test_an_id_twice_in_two_files_is_named_with_both_places(tmp_path: Path) -> None:
    paths = [write(tmp_path, kind, [GOOD]) for kind in ("jsonl", "parquet")]
    with pytest.raises(RecordError, match=r"data.parquet:1: ID 'a' occurs twice \(first at data.jsonl:1\)"):
        read_records(paths, "classification")


def test_all_problems_are_reported_together_and_a_long_list_is_cut(tmp_path: Path) -> None:
    path = write(tmp_path, "jsonl", [{**GOOD, "id": str(n), "risk": 7} for n in range(25)])
    with pytest.raises(RecordError, match="25 problem") as caught:
        records(path)
    assert "data.jsonl:20:" in str(caught.value)
    assert "data.jsonl:21:" not in str(caught.value)
    assert "and 5 more" in str(caught.value)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b"{", "broken JSON"),
        (b'{"id": "a", "id": "b"}', "a key occurs twice"),
        (b'{"risk": NaN}', "NaN is not JSON"),
        (b'"\xff"', "broken JSON"),
        (b"[" * 100_000, "broken JSON"),
        (b"[1]", "not an object"),
        (b"null", "not an object"),
    ],
)
def test_broken_json_is_named_by_file_and_line(line: bytes, problem: str, tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(json.dumps(GOOD).encode() + b"\n\n" + line + b"\n")
    with pytest.raises(RecordError, match=f"data.jsonl:3: .*{problem}"):
        records(path)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("id,text,label\na,t\n", "csv:2: a row of another length"),
        ("id,text,label\na,t,x,y\n", "csv:2: a row of another length"),
        ('id,text,label\na,"t"t,x\n', "csv:2: broken CSV"),
        ('id,text,label\na,"t,x\n', "csv:2: broken CSV"),
        ("id,text,text\na,t,u\n", "csv:1: a column occurs twice: text"),
    ],
)
def test_broken_csv_is_named_by_file_and_line(text: str, problem: str, tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text(text)
    with pytest.raises(RecordError, match=problem):
        records(tmp_path / "data.csv")


def test_a_parquet_column_twice_is_refused(tmp_path: Path) -> None:
    columns = [pa.array([value]) for value in ("a", "t", "u", "x")]
    pq.write_table(pa.Table.from_arrays(columns, names=["id", "text", "text", "label"]), tmp_path / "data.parquet")
    with pytest.raises(RecordError, match="a column occurs twice: text"):
        records(tmp_path / "data.parquet")


def test_csv_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_bytes("id,text,label\na,Zürich,x\n".encode("latin-1"))
    with pytest.raises(RecordError, match=r"data.csv:.* broken CSV"):
        records(tmp_path / "data.csv")


def test_csv_may_begin_with_a_byte_order_mark_and_hold_long_texts(tmp_path: Path) -> None:
    long = "word " * 60_000
    (tmp_path / "data.csv").write_text(f"id,text,label\na,{long},x\n", encoding="utf-8-sig")
    assert records(tmp_path / "data.csv")[0].fields()["text"] == long


@pytest.mark.parametrize("data", [b"", b"not parquet", b"PAR1" + b"\0" * 40 + b"PAR1"])
def test_broken_parquet_is_named(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "data.parquet").write_bytes(data)
    with pytest.raises(RecordError, match=r"data\.parquet"):
        records(tmp_path / "data.parquet")


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
@pytest.mark.parametrize("text", ["", "\n\n"])
def test_a_file_without_records_is_refused(kind: str, text: str, tmp_path: Path) -> None:
    (tmp_path / f"data.{kind}").write_text(text)
    with pytest.raises(RecordError, match=f"data.{kind}: the file holds no records"):
        records(tmp_path / f"data.{kind}")


def test_an_unknown_ending_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data.xlsx").touch()
    with pytest.raises(RecordError, match=r"ending in .jsonl, .csv, .parquet"):
        records(tmp_path / "data.xlsx")


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="No such file"):
        records(tmp_path / "none.jsonl")
    (tmp_path / "directory.csv").mkdir()
    with pytest.raises(RecordError, match="directory"):
        records(tmp_path / "directory.csv")


@pytest.mark.parametrize("kind", FORMATS)
def test_a_record_declared_to_stay_is_read_from_any_column_and_written_back(kind: str, tmp_path: Path) -> None:
    rows: Rows = ({**GOOD, "id": "a", "keep": "permanent"}, {**GOOD, "id": "b", "keep": ""})
    stays, goes = records(write(tmp_path, kind, rows), columns={"retention": "keep"})
    assert (stays.retention, goes.retention) == ("permanent", None)
    assert stays.to_json()["retention"] == "permanent"
    assert "retention" not in goes.to_json(), "nothing that was written before changes"
    assert records(write(tmp_path, "jsonl", [stays.to_json(), goes.to_json()], "again")) == [stays, goes]
