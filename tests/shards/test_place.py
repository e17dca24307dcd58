"""A place keeps files and sets of files under names, the same here and in a bucket."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from shards.digest import bytes_digest, canonical_json, files_digest
from shards.errors import StorageError
from shards.place import AbsentError, LocalPlace, Place
from shards.remote import ATTEMPTS, INDEX, RemotePlace, place_at
from tests.s3 import S3Server, s3_server

FILES = {"a": b"1", "b": b"22"}
NAME = files_digest({name: bytes_digest(data) for name, data in FILES.items()})


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    with s3_server() as server:
        server.make_bucket("bucket")
        yield server


@pytest.fixture
def bucket(s3: S3Server) -> Iterator[RemotePlace]:
    made = place_at(s3.uri(f"bucket/{uuid.uuid4().hex}"), "log", "store")
    assert isinstance(made, RemotePlace)
    yield made
    s3.misbehave()


@pytest.fixture(params=["here", "bucket"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    made: Place = (
        place_at(f"file://{tmp_path}", "log", "store") if request.param == "here" else request.getfixturevalue("bucket")
    )
    made.prepare()
    return made


def test_a_location_is_a_directory_here_or_a_prefix_elsewhere(tmp_path: Path, bucket: RemotePlace) -> None:
    assert place_at(str(tmp_path), "a", "b") == LocalPlace(tmp_path / "a" / "b")
    assert place_at(f"file://{tmp_path}", "a") == LocalPlace(tmp_path / "a")
    scheme, _, rest = bucket.where("x").partition("://bucket/")
    assert scheme == "s3"
    assert rest.partition("?")[0].endswith("/log/store/x")
    assert "endpoint_override=" in rest


def test_files_and_sets_come_back_and_are_gone_when_removed(place: Place) -> None:
    place.write("f", b"bytes")
    place.write_set(NAME, FILES)
    place.settle()
    assert place.read("f") == b"bytes"
    assert place.read_set(NAME) == FILES
    assert place.names() == {"f", NAME}
    assert place.size() >= 8
    place.replace("f", b"others")
    assert place.read("f") == b"others"
    for name in ("f", NAME):
        assert place.holds(name)
        assert place.remove(name)
        assert not place.holds(name)
        assert not place.remove(name)
    assert place.names() == frozenset()
    assert place.size() == 0


def test_what_vanishes_while_it_is_counted_has_no_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").write_bytes(b"1234")
    monkeypatch.setattr(os, "walk", lambda _: [(str(tmp_path), [], ["here", "gone"])])
    assert LocalPlace(tmp_path).size() == 4


def test_what_is_not_there_is_absent_and_not_empty(place: Place) -> None:
    with pytest.raises(AbsentError, match="no file"):
        place.read("none")
    with pytest.raises(AbsentError):
        place.read_set("0" * 64)
    assert place.names() == frozenset()
    assert not place.holds("none")


def test_a_set_that_lost_a_file_is_absent_and_can_be_written_again(place: Place) -> None:
    place.write_set(NAME, FILES)
    if isinstance(place, LocalPlace):
        (place.root / NAME / "a").unlink()
        assert place.read_set(NAME) == {"b": b"22"}, "whose digest tells"
    else:
        place.remove(f"{NAME}/a")
        with pytest.raises(AbsentError):
            place.read_set(NAME)
    assert place.holds(NAME)
    place.write_set(NAME, FILES)
    assert place.read_set(NAME) == FILES


@pytest.mark.parametrize(
    "listed",
    [b"", b"[]", b"{}", canonical_json({"../../f": bytes_digest(b"1")}), canonical_json({"a": bytes_digest(b"1")})],
)
def test_a_list_of_files_that_is_not_the_set_s_is_not_followed(listed: bytes, bucket: RemotePlace) -> None:
    bucket.write_set(NAME, FILES)
    bucket.replace(f"{NAME}/{INDEX}", listed)
    with pytest.raises(AbsentError, match="a damaged list of files"):
        bucket.read_set(NAME)
    assert bucket.remove(NAME), "by what a listing shows"
    assert bucket.names() == frozenset()


def test_what_somebody_put_beside_a_set_s_files_is_no_part_of_it_and_is_removed_with_it(bucket: RemotePlace) -> None:
    bucket.write_set(NAME, FILES)
    bucket.write(f"{NAME}/c", b"3")
    assert bucket.read_set(NAME) == FILES
    bucket.remove(NAME)
    assert bucket.size() == 0


def test_a_refusal_longer_than_the_file_is_tried_again(bucket: RemotePlace, s3: S3Server) -> None:
    bucket.write("f", b"1")
    s3.misbehave(refuse=4)  # a size, bytes, a size, and then bytes are refused
    assert [bucket.read("f") for _ in range(3)] == [b"1"] * 3
    assert s3.struck()["refuse"] == 2


def test_refusals_without_end_are_a_storage_error(
    bucket: RemotePlace, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.write("f", b"1")
    s3.misbehave(refuse=1)
    with pytest.raises(StorageError, match="to read f in bucket/"), bucket.trying("read f"):
        bucket.read("f")
    assert s3.struck()["refuse"] == ATTEMPTS


def test_an_upload_that_comes_back_halved_is_made_again_and_given_up_after_a_few_times(
    bucket: RemotePlace, s3: S3Server
) -> None:
    s3.misbehave(shorten=2)
    for number in range(4):
        bucket.write(f"f{number}", bytes(1000))
        assert bucket.read(f"f{number}") == bytes(1000)
    assert s3.struck()["shorten"] > 0
    s3.misbehave(shorten=1)
    with pytest.raises(OSError, match="1000 bytes were sent and 500 others came back"):
        bucket.write("g", bytes(1000))
    assert s3.struck()["shorten"] == ATTEMPTS


def test_a_removed_prefix_leaves_no_mark_of_a_directory(bucket: RemotePlace) -> None:
    from pyarrow.fs import FileSelector, FileSystem

    bucket.write_set(NAME, FILES)
    bucket.remove(NAME)
    filesystem, path = FileSystem.from_uri(bucket.where())
    found = filesystem.get_file_info(FileSelector(path, recursive=True, allow_not_found=True))
    assert not [info.path for info in found if NAME in info.path]
