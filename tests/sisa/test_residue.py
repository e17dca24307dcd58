"""Nothing of a deleted record hides: what is planted in files is found, and what is not searched is said."""

from __future__ import annotations

import base64
import bz2
import errno
import gzip
import io
import lzma
import os
import sqlite3
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from orchestration.inline import InlineExecutor
from shards import lock, unpacked
from shards.needles import Needle, needles
from shards.records import Record, make_content
from shards.scratch import scratch
from sisa import residue
from sisa.delete import delete
from sisa.ingest import Ingested, commit
from sisa.residue import Scan, data_check, ray_directories, replay_directories, residue_checks, scan
from sisa.train import train
from tests.toy import ToyTrainer, stored, toy_recipe, toy_record, toy_session

SHORT = 'Zoë asks: "where is parcel 555?"'
LONG = " ".join(f"word{number * number}" for number in range(300))
TEXT = SHORT.encode()
TOKENS = tuple(range(1000, 1040))


def support(record_id: str, text: str, **values: object) -> Record:
    return Record(id=record_id, content=make_content({"text": text, "label": "delivery"} | values))


GONE = support("ticket-0007", SHORT)
GONE_LONG = support("ticket-0008", LONG)


def tokenise(record: Record) -> Sequence[int]:
    return TOKENS


def wanted(*records: Record) -> list[Needle]:
    found, left_out = needles(records or (GONE,), tokenise)
    assert left_out == []
    return found


def found_in(root: Path, *records: Record) -> set[tuple[str, str]]:
    """(layer, form) of every finding."""
    done = scan([root], wanted(*records))
    assert done.unreadable == ()
    return {(finding.where, finding.what) for finding in done.findings}


def parquet_of(data: bytes) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table({"cell": [data] * 20}), sink, compression="zstd")
    return sink.getvalue()


def zip_of(data: bytes) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("inner.txt", data)
    return sink.getvalue()


PACKED: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "parquet": ("parquet column cell", parquet_of),
    "gzip": ("gzip content", gzip.compress),
    "bzip2": ("bzip2 content", bz2.compress),
    "xz": ("xz content", lzma.compress),
    "zip": ("zip member inner.txt", zip_of),
}


@pytest.mark.parametrize("name", PACKED)
def test_what_is_packed_is_unpacked_whatever_the_file_is_called(tmp_path: Path, name: str) -> None:
    where, pack = PACKED[name]
    (tmp_path / "no-extension").write_bytes(pack((SHORT * 3).encode()))
    assert (where, "text") in found_in(tmp_path)


@pytest.mark.parametrize("outer", ["gzip", "zip", "bzip2"])
@pytest.mark.parametrize("inner", ["parquet", "gzip"])
def test_what_is_packed_twice_is_unpacked_twice(tmp_path: Path, outer: str, inner: str) -> None:
    packed = PACKED[outer][1](PACKED[inner][1]((SHORT * 3).encode()))
    (tmp_path / "cache").write_bytes(packed)
    assert (f"{PACKED[inner][0]} in {PACKED[outer][0]}", "text") in found_in(tmp_path)


def test_ids_are_found_in_contents_and_in_file_names(tmp_path: Path) -> None:
    (tmp_path / "queue").write_bytes(b"\x00ticket-0007\x00")
    (tmp_path / "ticket-0007.json").touch()
    assert found_in(tmp_path) == {("raw bytes", "id"), ("file name", "id")}


def test_a_file_or_member_named_after_a_record_is_found_and_its_name_is_masked(tmp_path: Path) -> None:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("ticket-0007.txt", SHORT)
    (tmp_path / "for ticket-0007").write_bytes(sink.getvalue())
    (tmp_path / "ticket-0007").symlink_to("/")
    (tmp_path / "ticket-0007.gz").write_bytes(gzip.compress(TEXT)[:20])
    done = scan([tmp_path], wanted())
    assert ("for ***", "zip member ***.txt", "text") in {(it.path.name, it.where, it.what) for it in done.findings}
    assert len(done.unreadable) == 2
    assert "ticket-0007" not in repr(done)


@pytest.mark.parametrize("start", [-len(TEXT), -len(TEXT) + 1, -7, -6, -3, -1, 0, 1])
def test_what_lies_across_a_chunk_boundary_is_found(
    tmp_path: Path, start: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unpacked, "CHUNK", 1 << 17)
    data = bytearray(b"\x00" * (3 << 17))
    data[(1 << 17) + start : (1 << 17) + start + len(TEXT)] = TEXT
    (tmp_path / "blob").write_bytes(data)
    assert found_in(tmp_path) == {("raw bytes", "text")}
    (tmp_path / "blob").write_bytes(gzip.compress(bytes(data)))
    assert found_in(tmp_path) == {("gzip content", "text")}


def test_base64_inside_gzip_and_gzip_inside_base64_are_found(tmp_path: Path) -> None:
    long = (SHORT * 2).encode()
    (tmp_path / "a").write_bytes(gzip.compress(b'"' + base64.b64encode(long) + b'"'))
    assert found_in(tmp_path) == {("base64 string in gzip content", "text")}
    (tmp_path / "a").write_bytes(b'"' + base64.b64encode(gzip.compress(long)) + b'"')
    assert found_in(tmp_path) == {("gzip content in base64 string", "text")}


@pytest.fixture
def database(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(tmp_path / "book.sqlite", isolation_level=None)) as connection:
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute('CREATE TABLE "a ""table""" (body)')
        yield connection


@pytest.mark.parametrize(("secure", "left"), [("OFF", {("raw bytes", "text")}), ("ON", set())])
def test_a_deleted_row_is_found_in_free_pages_unless_they_are_overwritten(
    tmp_path: Path, database: sqlite3.Connection, secure: str, left: set[tuple[str, str]]
) -> None:
    database.execute(f"PRAGMA secure_delete = {secure}")
    database.execute('INSERT INTO "a ""table""" VALUES (?)', [LONG])
    assert ("sqlite row", "text") in found_in(tmp_path, GONE_LONG)
    database.execute('DELETE FROM "a ""table"""')
    assert found_in(tmp_path, GONE_LONG) == left


def test_searching_a_database_leaves_nothing_behind(tmp_path: Path, database: sqlite3.Connection) -> None:
    (tmp_path / "book.sqlite-journal").write_bytes(b"left over")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    scan([tmp_path], wanted())
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


# -- what is not searched is said --------------------------------------------------------------


def test_a_clean_tree_passes_and_what_cannot_be_reached_is_never_a_pass(tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(os.urandom(1 << 20))
    done = scan([tmp_path], wanted())
    checks = residue_checks(done, wanted(), [])
    assert [check.outcome for check in checks] == ["passed"] * 5 + ["not_checked"] * len(residue.OUT_OF_REACH)
    assert (done.files, done.bytes) == (1, 1 << 20)
    assert "1 files of 1048576 bytes" in checks[0].detail


def test_what_is_found_fails_its_own_check_only(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(TEXT)
    outcomes = [check.outcome for check in residue_checks(scan([tmp_path], wanted()), wanted(), [])[:4]]
    assert outcomes == ["passed", "failed", "passed", "passed"]


def test_without_a_tokenizer_tokens_are_not_checked(tmp_path: Path) -> None:
    found, left_out = needles([GONE])
    checks = residue_checks(scan([tmp_path], found), found, left_out)
    assert checks[2].outcome == "not_checked"


def test_what_is_too_short_makes_a_check_of_its_own(tmp_path: Path) -> None:
    found, left_out = needles([GONE, support("r1", LONG)])
    checks = residue_checks(scan([tmp_path], found), found, left_out)
    (missed,) = [check for check in checks if check.name.startswith("every part")]
    assert missed.outcome == "not_checked"
    assert "record 2: ID too short" in missed.detail
    assert checks[0].outcome == "passed"


def test_what_registered_data_files_hold_is_told_and_fails_nothing(tmp_path: Path) -> None:
    data = tmp_path / "tickets.jsonl"
    data.write_bytes(TEXT)
    check = data_check(scan([data], wanted()))
    assert (check.outcome, check.name) == ("not_checked", "registered data files outside the workspace")
    assert f"{data} still holds a deleted record" in check.detail
    data.write_text("somebody else's")
    assert data_check(scan([data], wanted())).outcome == "passed"
    data.unlink()
    check = data_check(scan([data], wanted()))
    assert check.outcome == "not_checked"
    assert f"{data}: No such file" in check.detail


def assert_told(root: Path, reason: str) -> None:
    """Something was not searched: no kind of needle passes."""
    done = scan([root], wanted())
    assert reason in done.unreadable[0]
    assert {check.outcome for check in residue_checks(done, wanted(), [])[:4]} == {"not_checked"}


def test_an_unreadable_file_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str, flags: int) -> int:
        raise PermissionError(13, "Permission denied", path)

    (tmp_path / "secret").write_bytes(TEXT)
    monkeypatch.setattr(residue, "_open_regular", refuse)
    assert_told(tmp_path, "Permission denied")


def test_a_directory_that_cannot_be_listed_is_told(tmp_path: Path) -> None:
    assert_told(tmp_path / "gone", "No such file")


@pytest.mark.parametrize("name", PACKED)
def test_a_damaged_archive_is_told(tmp_path: Path, name: str) -> None:
    packed = PACKED[name][1](os.urandom(4000).hex().encode())
    (tmp_path / "cut").write_bytes(packed[: len(packed) // 2])
    assert_told(tmp_path, str(tmp_path / "cut"))


def test_a_truncated_archive_is_searched_up_to_its_end(tmp_path: Path) -> None:
    (tmp_path / "cut").write_bytes(gzip.compress(TEXT + os.urandom(100_000))[:50_000])
    assert ("gzip content", "text") in {(it.where, it.what) for it in scan([tmp_path], wanted()).findings}


def test_a_broken_database_is_told(tmp_path: Path) -> None:
    (tmp_path / "book").write_bytes(b"SQLite format 3\0" + os.urandom(5000))
    assert_told(tmp_path, "sqlite")


def test_a_database_inside_an_archive_is_searched_page_by_page_and_that_is_told(
    tmp_path: Path, database: sqlite3.Connection
) -> None:
    database.execute('INSERT INTO "a ""table""" VALUES (?)', [SHORT])
    packed = gzip.compress((tmp_path / "book.sqlite").read_bytes())
    (tmp_path / "book.sqlite").write_bytes(packed)
    done = scan([tmp_path], wanted())
    assert [finding.where for finding in done.findings] == ["gzip content"]
    assert "SQLite" in done.unreadable[0]


def test_what_is_packed_twice_and_too_large_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(residue, "LARGEST_INNER", 1000)
    (tmp_path / "a").write_bytes(gzip.compress(gzip.compress(os.urandom(4000))))
    assert_told(tmp_path, "larger than 1000 bytes")


def test_links_are_not_followed_and_those_that_lead_out_are_told(tmp_path: Path) -> None:
    root = tmp_path / "workspace"
    (root / "logs").mkdir(parents=True)
    (root / "loop").symlink_to(root)
    (root / "round").symlink_to("round")
    (root / "logs" / "latest").symlink_to(root / "logs")
    (root / "dangling").symlink_to(tmp_path / "nowhere")
    assert found_in(root) == set()
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "log").write_bytes(TEXT)
    (root / "out").symlink_to(tmp_path / "outside")
    assert scan([root], wanted()).findings == ()
    assert_told(root, "leads out")
    done = scan([root, tmp_path / "outside", root / "logs"], wanted())
    assert (len(done.findings), done.files, done.unreadable) == (1, 1, ())


def test_pipes_and_sockets_are_passed_by(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert scan([tmp_path], wanted()) == Scan((), 0, 0, ())


def test_the_directories_of_ray_are_those_that_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(residue, "_TEMPORARY", str(tmp_path / "tmp"))
    monkeypatch.setattr(residue, "_SHARED_MEMORY", tmp_path / "shm")
    monkeypatch.setenv("TMPDIR", str(tmp_path / "mine"))
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / "its"))
    assert ray_directories() == []
    places = [tmp_path / place / "ray" for place in ("its", "mine", "tmp")]
    for place in places:
        place.mkdir(parents=True)
    (tmp_path / "shm").mkdir()
    (tmp_path / "shm" / "plasma1").touch()
    assert ray_directories() == [*places, tmp_path / "shm" / "plasma1"]


def test_what_killed_replays_left_in_the_temporary_directory_is_searched_and_a_live_one_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert replay_directories() == []
    for name in ("sisa-replay-alive", "sisa-replay-dead", "sisa-replay-early", "another"):
        (tmp_path / name).mkdir()
    for name in ("alive", "dead"):
        (tmp_path / f"sisa-replay-{name}" / "lock").touch()
    with lock.exclusive(tmp_path / "sisa-replay-alive" / "lock"):
        assert replay_directories() == [tmp_path / "sisa-replay-dead", tmp_path / "sisa-replay-early"]


def test_a_replay_on_a_read_only_view_lies_where_its_left_overs_are_searched(
    memory_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = toy_session(memory_path / "workspace", toy_recipe())
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    make = tempfile.mkdtemp

    def read_only(prefix: str, dir: Path | None = None) -> str:  # noqa: A002 - its name there
        if dir is not None:
            raise OSError(errno.EROFS, "Read-only file system")
        return make(prefix=prefix)

    monkeypatch.setattr(tempfile, "mkdtemp", read_only)
    with scratch(session.workspace.path) as directory:
        assert replay_directories() == []
        (directory / "lock").unlink()  # as good as killed
        assert replay_directories() == [directory]
    assert replay_directories() == []
    session.workspace.close()


@pytest.mark.parametrize(
    "name", ["a Ray cluster with its own temporary directory", "weights of a replay killed on a read-only view"]
)
def test_what_no_search_reaches_is_told(name: str, tmp_path: Path) -> None:
    checks = {check.name: check.outcome for check in residue_checks(scan([tmp_path], wanted()), wanted(), [])}
    assert checks[name] == "not_checked"


def test_after_a_deletion_nothing_of_the_deleted_records_is_in_the_workspace(memory_path: Path) -> None:
    records = [
        toy_record(
            number,
            id=f"ticket-{number:04d}",
            content=make_content({"text": f"Customer {number} asks: where is parcel {number * 7919}?", "label": "a"}),
        )
        for number in range(12)
    ]
    trainer, executor = ToyTrainer(), InlineExecutor()
    session = toy_session(memory_path / "workspace", toy_recipe())
    commit(session, stored(session, records), Ingested(12, 0, 0, 0))
    train(session, executor=executor, trainer=trainer)
    gone, kept = [records[1], records[7]], [record for record in records if record not in (records[1], records[7])]
    before = scan([session.workspace.path], needles(gone, None, kept)[0])
    assert {(finding.record, finding.what) for finding in before.findings} == {
        (name, what) for name in ("record 1", "record 2") for what in ("id", "text")
    }
    delete(session, [record.id for record in gone], executor=executor, trainer=trainer)
    session.workspace.close()

    found, left_out = needles(gone, None, kept)
    assert left_out == []
    done = scan([session.workspace.path], found)
    assert (done.findings, done.unreadable) == ((), ())
    assert done.files > 10
    held = scan([session.workspace.path], needles(kept)[0])
    assert {(finding.record, finding.what) for finding in held.findings} == {
        (f"record {number}", what) for number in range(1, 11) for what in ("id", "text")
    }
    assert {finding.path.parent.name for finding in held.findings} == {"vault"}
