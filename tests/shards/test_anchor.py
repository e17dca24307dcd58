"""The anchor: what was put comes back whole, here and over S3, whatever dies or fails on the way."""

from __future__ import annotations

import multiprocessing
import os
import signal
import stat
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from pyarrow import ArrowException

from shards import anchor as module
from shards import files
from shards.anchor import Anchor, inside
from shards.errors import InputError, IntegrityError, SisaError, StorageError
from shards.files import TEMPORARY
from tests.s3 import ENVIRONMENT, S3Server, s3_server

LOG = "sisa/log/0f3c"
OLD, NEW = "old\n" * 50, "new\n" * 70


@pytest.fixture(scope="session")
def s3() -> Iterator[S3Server]:
    """One server for all tests that do not break it."""
    with s3_server() as server:
        server.make_bucket("bucket")
        yield server


@pytest.fixture
def breakable_s3() -> Iterator[S3Server]:
    """A server to be paused or killed."""
    with s3_server() as server:
        server.make_bucket("bucket")
        yield server


@pytest.fixture(params=["local", "s3"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An anchor's location where nothing lies yet."""
    if request.param == "local":
        return str(tmp_path / "far" / "anchor")
    server: S3Server = request.getfixturevalue("s3")
    return server.uri(f"bucket/{uuid.uuid4().hex}")


def process(act: Callable[..., None], *arguments: Any) -> BaseProcess:
    """Start ``act`` in a process forked from one that has nothing open."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.shards.test_anchor", "pyarrow.fs"])
    started = context.Process(target=with_credentials, args=(act, *arguments))
    started.start()
    return started


def with_credentials(act: Callable[..., None], *arguments: Any) -> None:
    """Run ``act`` with them: the process that forks may be older than the server they are for."""
    os.environ.update(ENVIRONMENT)
    act(*arguments)


def everything(location: str) -> dict[str, bytes]:
    """Whatever lies at a location, path below it → bytes: looked at without the code under test."""
    from pyarrow.fs import FileSelector, FileSystem, FileType

    filesystem, base = FileSystem.from_uri(location)
    found = filesystem.get_file_info(FileSelector(base, recursive=True, allow_not_found=True))
    paths = [info.path for info in found if info.type == FileType.File]
    return {path.removeprefix(f"{base}/"): filesystem.open_input_stream(path).read() for path in paths}


def plant(location: str, path: str, data: bytes) -> None:
    """Put bytes at a location behind the anchor's back."""
    from pyarrow.fs import FileSystem

    filesystem, base = FileSystem.from_uri(location)
    filesystem.create_dir(f"{base}/{path}".rpartition("/")[0])
    with filesystem.open_output_stream(f"{base}/{path}") as stream:
        stream.write(data)


# -- what is put comes back ------------------------------------------------------------------------


def test_an_anchor_that_was_never_written_holds_nothing_and_reading_makes_nothing(location: str) -> None:
    anchor = Anchor(location, LOG)
    assert anchor.head() is None
    assert anchor.requests() == {}
    anchor.remove_request("never")
    assert everything(location) == {}


def test_the_head_last_put_comes_back_from_another_anchor_of_the_same_log(location: str) -> None:
    for note in (OLD, NEW, OLD, "ü: a note\n"):
        Anchor(location, LOG).put_head(note)
        assert Anchor(location, LOG).head() == note
    assert everything(location) == {"sisa-log-0f3c/head": "ü: a note\n".encode()}


def test_requests_come_back_sorted_by_name_and_the_head_is_not_among_them(location: str) -> None:
    anchor = Anchor(location, LOG)
    anchor.put_head(NEW)
    for name, data in (("b", b"2"), ("a", b""), ("c", bytes(range(256)) * 300)):
        anchor.put_request(name, data)
    assert list(anchor.requests().items()) == [("a", b""), ("b", b"2"), ("c", bytes(range(256)) * 300)]
    assert sorted(everything(location)) == [
        f"sisa-log-0f3c/{name}" for name in ("head", *map("requests/{}".format, "abc"))
    ]


def test_two_logs_at_one_location_do_not_see_each_other(location: str) -> None:
    one, other = Anchor(location, LOG), Anchor(location, "sisa/log/ffff")
    one.put_head(OLD)
    one.put_request("a", b"1")
    assert (other.head(), other.requests()) == (None, {})
    other.put_head(NEW)
    other.put_request("a", b"2")
    assert (one.head(), one.requests()) == (OLD, {"a": b"1"})


def test_a_request_put_again_is_no_error_and_changes_nothing(location: str) -> None:
    anchor = Anchor(location, LOG)
    for _ in range(2):
        anchor.put_request("a", b"1")
    assert anchor.requests() == {"a": b"1"}


@pytest.mark.parametrize("other", [b"2", b"", b"11", b"1\n"])
def test_other_bytes_under_the_name_of_a_request_are_refused_and_the_first_stay(location: str, other: bytes) -> None:
    anchor = Anchor(location, LOG)
    anchor.put_request("a", b"1")
    with pytest.raises(IntegrityError, match=r"nothing under the name a.*\n.*other bytes"):
        anchor.put_request("a", other)
    assert anchor.requests() == {"a": b"1"}


def test_an_empty_request_is_not_taken_for_none(location: str) -> None:
    anchor = Anchor(location, LOG)
    anchor.put_request("a", b"")
    with pytest.raises(IntegrityError):
        anchor.put_request("a", b"1")


def test_a_removed_request_is_gone_and_removing_it_again_is_no_error(location: str) -> None:
    anchor = Anchor(location, LOG)
    anchor.put_request("a", b"1")
    anchor.put_request("b", b"2")
    for _ in range(2):
        anchor.remove_request("a")
        assert anchor.requests() == {"b": b"2"}
    anchor.put_request("a", b"other")
    assert anchor.requests() == {"a": b"other", "b": b"2"}


@pytest.mark.parametrize("name", ["case 1", "a+b", "a%2Fb", "a?b#c", "ü", "a&b=c;d", "~", "a.json", "head", "x" * 200])
def test_any_plain_file_name_names_a_request(location: str, name: str) -> None:
    anchor = Anchor(location, LOG)
    anchor.put_request(name, b"1")
    assert anchor.requests() == {name: b"1"}
    assert anchor.head() is None
    anchor.remove_request(name)
    assert everything(location) == {}


@pytest.mark.parametrize(
    "name", ["", ".", "..", ".hidden", "a/b", "/a", "../a", "a/", "a\\b", "a\0b", "a\nb", f"{TEMPORARY}1"]
)
def test_a_name_that_is_no_plain_file_name_is_refused(location: str, name: str) -> None:
    anchor = Anchor(location, LOG)
    with pytest.raises(ValueError, match="not a plain file name"):
        anchor.put_request(name, b"1")
    with pytest.raises(ValueError, match="not a plain file name"):
        anchor.remove_request(name)
    assert everything(location) == {}


@pytest.mark.parametrize("log", ["", ".", "..", "../up", ".hidden/log", "a\nb"])
def test_a_log_that_cannot_name_a_directory_is_refused(tmp_path: Path, log: str) -> None:
    with pytest.raises(ValueError, match="not a plain file name"):
        Anchor(str(tmp_path), log)


def test_a_head_that_is_no_text_is_refused_not_guessed(location: str) -> None:
    plant(location, "sisa-log-0f3c/head", b"\xff\xfe")
    with pytest.raises(IntegrityError, match="no text"):
        Anchor(location, LOG).head()


# -- whoever dies or fails half-way ----------------------------------------------------------------


def test_left_overs_of_a_killed_upload_are_not_read_and_the_next_writer_removes_them(location: str) -> None:
    writers: list[Callable[[Anchor], None]] = [
        lambda anchor: anchor.put_head(NEW),
        lambda anchor: anchor.put_request("a", b"1"),
        lambda anchor: anchor.remove_request("never"),
    ]
    for write in writers:
        plant(location, f"sisa-log-0f3c/{TEMPORARY}1", b"half a he")
        plant(location, f"sisa-log-0f3c/requests/{TEMPORARY}2", b"half a req")
        anchor = Anchor(location, LOG)
        assert not {name for name in anchor.requests() if name.startswith(".")}
        assert anchor.head() in {None, NEW}
        write(anchor)
        assert not [path for path in everything(location) if TEMPORARY in path]


WRITING = {
    "Anchor.put_head",
    "Anchor.put_request",
    "_Local.write",
    "_Remote.write",
    "_Remote._read",
    "replace_file",
    "write_new",
    "fsync_directory",
}


def put_and_die(location: str, point: int) -> None:
    """Put a head and a request, killed before the ``point``-th line of what writes; in a process of its own."""
    lines = 0

    def trace(frame: FrameType, event: str, _argument: Any) -> Any:
        nonlocal lines
        code = frame.f_code
        if code.co_filename not in {module.__file__, files.__file__} or code.co_qualname not in WRITING:
            return None
        lines += event == "line"
        if lines == point:
            os.kill(os.getpid(), signal.SIGKILL)
        return trace

    anchor = Anchor(location, LOG)
    sys.settrace(trace)
    anchor.put_head(NEW)
    anchor.put_request("b", b"2")


def assert_whole(location: str) -> None:
    anchor = Anchor(location, LOG)
    assert anchor.head() in {OLD, NEW}
    assert anchor.requests() in ({"a": b"1"}, {"a": b"1", "b": b"2"})
    if "b" in anchor.requests():
        assert anchor.head() == NEW
    anchor.put_head(NEW)
    anchor.put_request("b", b"2")
    assert anchor.head() == NEW
    assert anchor.requests() == {"a": b"1", "b": b"2"}
    assert sorted(everything(location)) == [f"sisa-log-0f3c/{name}" for name in ("head", "requests/a", "requests/b")]


def start(location: str) -> None:
    anchor = Anchor(location, LOG)
    anchor.put_head(OLD)
    anchor.put_request("a", b"1")


def test_killed_before_any_line_the_head_is_the_old_or_the_new_and_a_second_run_completes(location: str) -> None:
    start(location)
    for point in range(1, 1000):
        writer = process(put_and_die, location, point)
        writer.join()
        assert_whole(location)
        if writer.exitcode == 0:
            break
        assert writer.exitcode == -signal.SIGKILL
        Anchor(location, LOG).put_head(OLD)
        Anchor(location, LOG).remove_request("b")
    assert 30 < point < 999, "too few lines were seen, or the writer never came to its end"


class Failing:
    """A file system of pyarrow's whose ``point``-th call fails."""

    def __init__(self, inner: Any, point: int, error: Exception) -> None:
        self._inner = inner
        self._left = point
        self._error = error

    def __getattr__(self, name: str) -> Any:
        self._left -= 1
        if self._left == 0:
            raise self._error
        return getattr(self._inner, name)


def test_whichever_call_to_the_bucket_fails_the_head_is_the_old_or_the_new_and_a_second_run_completes(
    s3: S3Server,
) -> None:
    location = s3.uri(f"bucket/{uuid.uuid4().hex}")
    start(location)
    for point in range(1, 100):
        anchor = Anchor(location, LOG)
        error = (OSError, ArrowException)[point % 2]("no luck")  # Azure's file system raises the latter
        anchor._files._filesystem = Failing(anchor._files._filesystem, point, error)  # type: ignore[union-attr]
        completed = False
        with suppress(StorageError):
            anchor.put_head(NEW)
            anchor.put_request("b", b"2")
            completed = True
        assert_whole(location)
        if completed:
            break
        Anchor(location, LOG).put_head(OLD)
        Anchor(location, LOG).remove_request("b")
    assert 12 < point < 99


class Deaf:
    """A file system whose streams keep only the first half of what they are given."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def open_output_stream(self, path: str) -> Any:
        stream = self._inner.open_output_stream(path)

        class Half:
            def __enter__(self) -> Half:
                return self

            def __exit__(self, *_: object) -> None:
                stream.close()

            def write(self, data: bytes) -> None:
                stream.write(data[: len(data) // 2])

        return Half()


def test_an_upload_that_does_not_come_back_whole_never_becomes_the_head(s3: S3Server) -> None:
    location = s3.uri(f"bucket/{uuid.uuid4().hex}")
    start(location)
    anchor = Anchor(location, LOG)
    anchor._files._filesystem = Deaf(anchor._files._filesystem)  # type: ignore[union-attr]
    with pytest.raises(StorageError, match="280 bytes were sent and 140 others came back"):
        anchor.put_head(NEW)
    with pytest.raises(StorageError, match="others came back"):
        anchor.put_request("b", b"22")
    assert anchor.head() == OLD
    assert anchor.requests() == {"a": b"1"}


class Replacing:
    """A file system on which the head is replaced after a reader learnt its size and before it reads."""

    def __init__(self, inner: Any, replace: Callable[[], None]) -> None:
        self._inner = inner
        self._replacements = [replace]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def open_input_stream(self, path: str) -> Any:
        stream = self._inner.open_input_stream(path)
        if self._replacements:
            self._replacements.pop()()
        return stream


@pytest.mark.parametrize(("before", "after"), [(OLD, NEW), (NEW, OLD)])
def test_a_head_replaced_while_it_is_read_is_neither_cut_nor_padded(s3: S3Server, before: str, after: str) -> None:
    location = s3.uri(f"bucket/{uuid.uuid4().hex}")
    anchor = Anchor(location, LOG)
    anchor.put_head(before)
    inner = anchor._files._filesystem  # type: ignore[union-attr]
    anchor._files._filesystem = Replacing(inner, lambda: Anchor(location, LOG).put_head(after))  # type: ignore[union-attr]
    assert anchor.head() == after


def put_often(location: str, letter: str) -> None:
    """Put whole heads of one letter, some of which may lose to the other writer; at least one must not."""
    anchor = Anchor(location, LOG)
    done = 0
    for length in range(1000, 31_000, 1000):
        with suppress(StorageError):
            anchor.put_head(f"{letter * length}\n{length}")
            done += 1
    sys.exit(0 if done else 1)


def assert_whole_head(head: str | None) -> None:
    assert head
    letters, _, length = head.partition("\n")
    assert letters in {"a" * int(length), "b" * int(length)}


def test_two_processes_that_put_heads_at_once_leave_one_whole_head(location: str) -> None:
    anchor = Anchor(location, LOG)
    anchor.put_head("a\n1")
    writers = [process(put_often, location, letter) for letter in "ab"]
    while any(writer.is_alive() for writer in writers):
        assert_whole_head(anchor.head())
    for writer in writers:
        writer.join()
    assert {writer.exitcode for writer in writers} == {0}
    assert_whole_head(anchor.head())
    anchor.put_head(NEW)
    assert everything(location) == {"sisa-log-0f3c/head": NEW.encode()}


# -- the local place -------------------------------------------------------------------------------


def test_local_directories_and_files_are_for_their_owner_alone(tmp_path: Path) -> None:
    start(str(tmp_path / "far" / "anchor"))
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "far").rglob("*")}
    modes[tmp_path / "far"] = stat.S_IMODE((tmp_path / "far").stat().st_mode)
    assert {mode for path, mode in modes.items() if path.is_dir()} == {0o700}
    assert {mode for path, mode in modes.items() if path.is_file()} == {0o600}
    assert len(modes) == 6


def test_a_local_location_that_is_there_keeps_its_mode(tmp_path: Path) -> None:
    (tmp_path / "anchor").mkdir(mode=0o750)
    start(str(tmp_path / "anchor"))
    assert stat.S_IMODE((tmp_path / "anchor").stat().st_mode) == 0o750


def test_every_directory_made_on_the_way_is_durable_even_after_a_failed_sync(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_path: Path) -> None:
        raise OSError(5, "Input/output error")

    synced: list[Path] = []
    anchor = Anchor(str(tmp_path / "far" / "anchor"), LOG)
    (tmp_path / "far" / "anchor" / "sisa-log-0f3c").mkdir(parents=True)
    monkeypatch.setattr(module, "fsync_directory", fail)
    with pytest.raises(StorageError, match="Input/output error"):
        anchor.put_request("a", b"1")
    monkeypatch.setattr(module, "fsync_directory", synced.append)
    monkeypatch.setattr(files, "fsync_directory", synced.append)
    anchor.put_request("a", b"1")
    log = tmp_path / "far" / "anchor" / "sisa-log-0f3c"
    assert synced == [log.parent, log, log / "requests"]
    synced.clear()
    Anchor(str(tmp_path / "x" / "y"), "l").put_head(NEW)
    assert synced == [tmp_path, tmp_path / "x", tmp_path / "x" / "y", tmp_path / "x" / "y" / "l"]


def test_a_removal_is_made_durable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start(str(tmp_path))
    synced: list[Path] = []
    monkeypatch.setattr(module, "fsync_directory", synced.append)
    Anchor(str(tmp_path), LOG).remove_request("a")
    assert synced == [tmp_path / "sisa-log-0f3c" / "requests"]


def test_a_file_url_is_the_path_it_spells(tmp_path: Path) -> None:
    place = tmp_path / "a b"
    Anchor(f"file://{tmp_path}/a%20b", LOG).put_head(NEW)
    assert Anchor(str(place), LOG).head() == NEW


@pytest.mark.parametrize("obstacle", ["file", "directory as head"])
def test_what_cannot_be_read_or_written_locally_is_a_storage_error_never_nothing(tmp_path: Path, obstacle: str) -> None:
    if obstacle == "file":
        (tmp_path / "anchor").write_text("in the way")
    else:
        (tmp_path / "anchor" / "sisa-log-0f3c" / "head").mkdir(parents=True)
        (tmp_path / "anchor" / "sisa-log-0f3c" / "requests" / "a").mkdir(parents=True)
    anchor = Anchor(str(tmp_path / "anchor"), LOG)
    acts: list[Callable[[], object]] = [anchor.head, anchor.requests, lambda: anchor.put_head(NEW)]
    for act in acts:
        with pytest.raises(StorageError, match="directory"):
            act()


def test_a_forbidden_local_place_is_a_storage_error_never_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbid(path: Path, *_: object) -> Any:
        raise PermissionError(13, "Permission denied", str(path))

    start(str(tmp_path))
    anchor = Anchor(str(tmp_path), LOG)
    for method in ("iterdir", "read_bytes"):
        with monkeypatch.context() as patch:
            patch.setattr(Path, method, forbid)
            with pytest.raises(StorageError, match="Permission denied"):
                anchor.requests()
    monkeypatch.setattr(Path, "read_bytes", forbid)
    with pytest.raises(StorageError, match="Permission denied"):
        anchor.head()


def test_a_local_anchor_needs_no_pyarrow(tmp_path: Path) -> None:
    code = (
        "import sys; from shards.anchor import Anchor, inside; from pathlib import Path\n"
        "a = Anchor(sys.argv[1], 'l'); a.put_head('x'); a.put_request('a', b''); a.requests(); a.remove_request('a')\n"
        "inside('s3://b/x', Path('/')); assert 'pyarrow' not in sys.modules"
    )
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=root, check=True, timeout=60)


# -- places that are no places ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "location",
    [
        "",
        "anchor",
        "./anchor",
        "~/anchor",
        "s3:/bucket",
        "/a\0b",
        "/a\nb",
        "s3://",
        "s3:///x",
        "s3://buc ket/x",
        "s3://[bucket/x",
        "s3://bucket/x?unknown=1",
        "s3://bucket/x?scheme=ftp&endpoint_override=127.0.0.1:1",
        "s3://bucket//x?endpoint_override=127.0.0.1:1",
        "s3://bucket/../x?endpoint_override=127.0.0.1:1",
        "wat://bucket/x",
        "https://bucket/x",
        "file://host/x",
    ],
)
def test_a_malformed_location_is_the_callers_error(location: str) -> None:
    with pytest.raises(InputError, match="an anchor's location"):
        Anchor(location, LOG)


def test_a_secret_in_the_location_is_refused_and_not_repeated() -> None:
    for uri in ("s3://user:hush@bucket/x", "s3://user:hush@bucket/x y"):
        with pytest.raises(InputError, match="without a password") as caught:
            Anchor(uri, LOG)
        assert "hush" not in str(caught.value)


def test_a_location_inside_the_workspace_is_known_as_such(tmp_path: Path) -> None:
    workspace = tmp_path / "w"
    workspace.mkdir()
    (tmp_path / "link").symlink_to(workspace)
    (workspace / "out").symlink_to(tmp_path / "elsewhere")
    within = [workspace, workspace / "anchor", tmp_path / "x" / ".." / "w" / "a", tmp_path / "link" / "anchor"]
    outside = [tmp_path, tmp_path / "wx", workspace / ".." / "anchor", workspace / "out" / "anchor"]
    for path in within:
        assert inside(str(path), workspace)
        assert inside(f"file://{path}", workspace)
        assert inside(str(path), tmp_path / "link")
    for path in outside:
        assert not inside(str(path), workspace)
    assert not inside("s3://bucket/w", workspace)
    with pytest.raises(InputError):
        inside("anchor", workspace)


# -- a bucket that fails ---------------------------------------------------------------------------


def assert_every_act_is_a_storage_error(location: str, match: str, anchor: Anchor | None = None) -> None:
    anchor = anchor or Anchor(location, LOG)
    acts: list[Callable[[], object]] = [
        anchor.head,
        anchor.requests,
        lambda: anchor.put_head(NEW),
        lambda: anchor.put_request("a", b"1"),
        lambda: anchor.remove_request("a"),
    ]
    for act in acts:
        with pytest.raises(StorageError, match=match) as caught:
            act()
        assert isinstance(caught.value, SisaError)
        assert caught.value.remedy.startswith(f"check that {location} exists")
        assert "\n" not in caught.value.found


def test_a_bucket_that_is_not_there_is_a_storage_error_never_nothing(s3: S3Server) -> None:
    assert_every_act_is_a_storage_error(s3.uri("nowhere/x"), r"there is no bucket nowhere|NO_SUCH_BUCKET")


@pytest.mark.timeout(120)  # pyarrow alone would try for 99 seconds a request
def test_an_endpoint_that_is_gone_or_silent_is_a_storage_error_within_seconds(
    breakable_s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ANSWER_SECONDS", 1.0)
    monkeypatch.setattr(module, "ATTEMPTS", 2)
    location = breakable_s3.uri("bucket/x")
    start(location)
    anchor = Anchor(location, LOG)
    breakable_s3.pause()
    assert_every_act_is_a_storage_error(location, "Timeout was reached", anchor)
    breakable_s3.kill()
    assert_every_act_is_a_storage_error(location, "Could not connect", anchor)


def test_wrong_credentials_are_a_storage_error_never_nothing(breakable_s3: S3Server) -> None:
    location = breakable_s3.uri("bucket/x")
    start(location)
    breakable_s3.require_credentials()
    assert_every_act_is_a_storage_error(location, "ACCESS_DENIED|INVALID_ACCESS_KEY_ID|403")
