"""What is packed in files: every format is opened, whatever the file is called."""

from __future__ import annotations

import base64
import bz2
import gzip
import io
import json
import lzma
import os
import sqlite3
import struct
import zipfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
import pytest

from shards import unpacked
from shards.errors import StorageError
from shards.sqlite_texts import texts
from shards.unpacked import BROKEN, HEAD, Base64, chunks, opener_of

SHORT = 'Zoë asks: "where is parcel 555?"'
TEXT = SHORT.encode()
TOKENS = tuple(range(1000, 1040))


def contents(data: bytes) -> dict[str, bytes]:
    """Everything that is packed in some bytes."""
    opener = opener_of(data[:HEAD])
    assert opener is not None
    return {name: b"".join(content) for name, content in opener(io.BytesIO(data))}


def parquet_of(columns: dict[str, object], **options: object) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink, **options)
    return sink.getvalue()


def zip_of(data: bytes) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("inner.txt", data)
    return sink.getvalue()


def ipc_of(new: Callable[..., pa.RecordBatchWriter], data: bytes) -> bytes:
    batch = pa.record_batch({"cell": [["x", data.decode()]]})
    sink = io.BytesIO()
    with new(sink, batch.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_batch(batch)
    return sink.getvalue()


PACKED: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "parquet": ("parquet column cell", lambda data: parquet_of({"cell": [data] * 20}, compression="zstd")),
    "parquet-nested": (
        "parquet column cell",
        lambda data: parquet_of({"cell": [[{"a": "x"}, {"a": data.decode()}]] * 20}, compression="zstd"),
    ),
    "arrow-file": ("arrow column cell", lambda data: ipc_of(pa.ipc.new_file, data * 20)),
    "arrow-stream": ("arrow column cell", lambda data: ipc_of(pa.ipc.new_stream, data * 20)),
    "gzip": ("gzip content", gzip.compress),
    "bzip2": ("bzip2 content", bz2.compress),
    "xz": ("xz content", lzma.compress),
    "zstd": ("zstd content", lambda data: pa.compress(data, codec="zstd", asbytes=True)),
    "zip": ("zip member inner.txt", zip_of),
}


@pytest.mark.parametrize("name", PACKED)
def test_what_is_packed_is_unpacked(name: str) -> None:
    where, pack = PACKED[name]
    packed = pack(TEXT * 3)
    assert TEXT * 3 in contents(packed)[where]


@pytest.mark.parametrize("data", [b"", b"PAR", TEXT, b"{}", b"PK"])
def test_in_other_files_nothing_is_packed(data: bytes) -> None:
    assert opener_of(data) is None


def test_four_bytes_of_0xff_alone_are_no_arrow_stream() -> None:
    assert contents(b"\xff" * 4 + TEXT) == {}


@pytest.mark.parametrize("kind", [pa.uint16(), pa.int32(), pa.int64()])
@pytest.mark.parametrize("nested", [False, True])
def test_numbers_in_parquet_lie_together_over_batches_and_in_lists(kind: pa.DataType, nested: bool) -> None:
    flat = [1] * 1010 + list(TOKENS)  # across the batches of 1024 rows in which columns are read
    column = pa.array([[1], TOKENS], pa.list_(kind)) if nested else pa.array(flat, kind)
    packed = parquet_of({"ids": column}, compression="zstd")
    code = {"uint16": "H", "int32": "i", "int64": "q"}[str(kind)]
    assert struct.pack(f"<40{code}", *TOKENS) in contents(packed)["parquet column ids"]


@pytest.mark.parametrize("name", [name for name in PACKED if name != "arrow-stream"])
def test_a_damaged_archive_is_told(name: str) -> None:
    packed = PACKED[name][1](os.urandom(4000).hex().encode())
    with pytest.raises(BROKEN):
        contents(packed[: len(packed) // 2])


def test_a_truncated_archive_is_read_up_to_its_end() -> None:
    packed = gzip.compress(TEXT + os.urandom(100_000))[:50_000]
    with gzip.GzipFile(fileobj=io.BytesIO(packed)) as source:
        read = chunks(source)
        assert next(read).startswith(TEXT)
        with pytest.raises(EOFError):
            next(read)


def test_a_database_inside_a_file_is_refused() -> None:
    with pytest.raises(ValueError, match="only its pages were searched"):
        contents(b"SQLite format 3\0" + bytes(500))


# -- SQLite ------------------------------------------------------------------------------------


@pytest.mark.parametrize("blob", [False, True])
def test_a_value_cut_in_two_by_an_overflow_page_is_whole(tmp_path: Path, blob: bool) -> None:
    path = tmp_path / "book.sqlite"
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute("PRAGMA synchronous = OFF")
        database.execute("PRAGMA secure_delete = ON")  # or the raw bytes of an earlier try would be found
        database.execute('CREATE TABLE "a ""table""" (body)')
        for after in range(9000, 13200, len(TEXT) // 2):  # how much lies on the first page depends on the length
            body = "x" * 2000 + SHORT + "y" * after
            database.execute('DELETE FROM "a ""table"""')
            database.execute('INSERT INTO "a ""table""" VALUES (?)', [body.encode() if blob else body])
            if TEXT not in path.read_bytes():
                break
        else:
            pytest.fail("the text was never cut")
        assert list(texts(path)) == [body.encode()]
        with path.open("rb") as source:
            opener = opener_of(source.read(HEAD))
            assert opener is not None
            assert [(name, b"".join(content)) for name, content in opener(source)] == [
                ("sqlite row", body.encode() + b"\0")
            ]


def test_a_broken_database_is_told(tmp_path: Path) -> None:
    (tmp_path / "book").write_bytes(b"SQLite format 3\0" + os.urandom(5000))
    with pytest.raises(StorageError):
        list(texts(tmp_path / "book"))


# -- base64 ------------------------------------------------------------------------------------


def decoded(data: bytes, size: int = 1 << 20) -> list[bytes]:
    runs = Base64(len(TEXT))
    fed = [run for start in range(0, len(data), size) for run in runs.feed(data[start : start + size])]
    return [*fed, *runs.close()]


@pytest.mark.parametrize("encode", [base64.b64encode, base64.urlsafe_b64encode])
def test_base64_strings_are_decoded(encode: Callable[[bytes], bytes]) -> None:
    payload = json.dumps({"subject": "\u00ff\u00fe" * 9, "id": "ticket-0007"}, ensure_ascii=False).encode()
    first, *shifted = decoded(json.dumps({"payload": encode(payload).decode(), "x": 1}).encode())
    assert first == payload
    assert len(shifted) == 3


@pytest.mark.parametrize("size", [1, 7, 100, 150, 1000])
def test_base64_in_chunks_is_decoded_and_nothing_is_lost_at_a_cut(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpacked, "LONGEST_BASE64", 400)
    for before in range(200, 700, 11):
        data = b'{"p":"' + base64.b64encode(bytes(before) + TEXT + bytes(300)) + b'"}'
        runs = decoded(data, size)
        assert any(TEXT in run for run in runs)
        assert all(len(run) <= 400 + size for run in runs)


def test_a_base64_string_at_the_end_is_decoded() -> None:
    first, *shifted = decoded(b": " + base64.b64encode(TEXT * 2).rstrip(b"="))
    assert first == TEXT * 2
    assert len(shifted) == 3


@pytest.mark.parametrize("before", [b"v", b"/a/", b"x/", b"https://host/path/", b"id_", b"0x0/"])
@pytest.mark.parametrize("encode", [base64.b64encode, base64.urlsafe_b64encode])
def test_letters_before_a_base64_string_hide_nothing(before: bytes, encode: Callable[[bytes], bytes]) -> None:
    assert any(TEXT in run for run in decoded(before + encode(TEXT * 2)))


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("width", [20, 64, 75, 76])
@pytest.mark.parametrize("size", [1, 77, 1000])
def test_text_across_the_lines_of_a_base64_string_is_whole(end: bytes, width: int, size: int) -> None:
    letters = base64.b64encode(TEXT * 20)
    lines = end.join(letters[start : start + width] for start in range(0, len(letters), width))
    for data in (
        lines,
        b"Content-Transfer-Encoding: base64" + end * 2 + lines + end * 2 + b"--",
        b"a word" + end + lines,
    ):
        assert any(TEXT * 20 in run for run in decoded(data, size))


def test_a_base64_string_of_short_lines_is_cut_without_a_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpacked, "LONGEST_BASE64", 800)
    for before in range(200, 700, 11):
        letters = base64.b64encode(bytes(before) + TEXT + bytes(300))
        data = b"\r\n".join(letters[start : start + 1] for start in range(len(letters)))
        assert any(TEXT in run for run in decoded(data, 100))


def test_what_is_packed_in_base64_is_known_on_every_line_and_after_a_blank_one() -> None:
    packed = [gzip.compress(TEXT * number) for number in range(1, 4)]
    runs = decoded(b"\n".join(base64.b64encode(one).rstrip(b"=") for one in packed))
    assert runs[0].startswith(packed[0])
    assert all(one in runs for one in packed[1:])
    assert decoded(b"base64\r\n\r\n" + base64.encodebytes(packed[0]))[0] == packed[0]


def test_lines_of_words_are_no_base64_however_many_there_are() -> None:
    assert decoded(b"a plain text\nof several lines,\neach with spaces\n" * 50) == []
