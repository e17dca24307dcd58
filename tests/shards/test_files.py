"""Durable writes: the old content or the new, and never a left-over of a failed write."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from pathlib import Path
from threading import Event, Thread

import pytest

from shards import files
from shards.errors import StorageError
from shards.files import copied_beside, move_tree, remove, replace_file, storage, write_new


def test_a_replaced_file_holds_the_new_content_and_leaves_no_other_file(tmp_path: Path) -> None:
    replace_file(tmp_path / "f", b"old")
    replace_file(tmp_path / "f", b"new")
    assert (tmp_path / "f").read_bytes() == b"new"
    assert [entry.name for entry in tmp_path.iterdir()] == ["f"]


def test_a_failed_replacement_keeps_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace_file(tmp_path / "f", b"old")

    def full(_path: Path, _data: bytes, **_options: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(files, "write_new", full)
    with pytest.raises(StorageError, match="No space left"):
        replace_file(tmp_path / "f", b"new")
    assert (tmp_path / "f").read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["f"]


def test_a_private_file_is_readable_by_its_owner_alone(tmp_path: Path) -> None:
    replace_file(tmp_path / "f", b"secret", private=True)
    assert stat.S_IMODE((tmp_path / "f").stat().st_mode) == 0o600


def test_a_new_file_never_overwrites(tmp_path: Path) -> None:
    write_new(tmp_path / "f", b"1")
    with pytest.raises(FileExistsError):
        write_new(tmp_path / "f", b"2")
    assert (tmp_path / "f").read_bytes() == b"1"


def test_an_operating_system_error_says_what_could_not_be_done_and_where() -> None:
    with pytest.raises(StorageError, match=r"to read it\n   found Permission denied \(/x\)"), storage("read it"):
        raise PermissionError(13, "Permission denied", "/x")


def made(path: Path) -> Path:
    (path / "inner").mkdir(parents=True)
    (path / "inner" / "f").write_bytes(b"1")
    return path


def test_a_directory_is_moved_in_full(tmp_path: Path) -> None:
    source, target = made(tmp_path / "source"), tmp_path / "target"
    assert move_tree(source, target)
    assert (target / "inner" / "f").read_bytes() == b"1"
    assert [entry.name for entry in tmp_path.iterdir()] == ["target"]


def test_a_directory_cannot_be_moved_to_another_file_system_but_its_copy_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = made(tmp_path / "source"), tmp_path / "target"
    real = Path.rename

    def elsewhere(self: Path, to: Path) -> Path:
        if self == source:
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        return real(self, to)

    monkeypatch.setattr(Path, "rename", elsewhere)
    assert not move_tree(source, target)
    with copied_beside(source, target) as copy:
        assert move_tree(copy, target)
    assert (target / "inner" / "f").read_bytes() == b"1"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["source", "target"]


def test_a_directory_is_moved_over_nothing(tmp_path: Path) -> None:
    source = made(tmp_path / "source")
    (tmp_path / "target").mkdir()
    with pytest.raises(StorageError, match="is there already"):
        move_tree(source, tmp_path / "target")
    assert (source / "inner" / "f").exists()


@pytest.mark.parametrize("when", ["in it", "after it"])
def test_a_copy_that_fails_leaves_nothing_there(when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = made(tmp_path / "source"), tmp_path / "target"

    def never(_: Path) -> None:
        raise OSError(errno.ENOSPC, "no")

    if when == "in it":
        monkeypatch.setattr("shards.files.sync_tree", never)
    with pytest.raises(StorageError), storage("go on"), copied_beside(source, target):
        never(source)
    assert [entry.name for entry in tmp_path.iterdir()] == ["source"]


def test_a_directory_into_which_somebody_writes_is_removed_all_the_same(tmp_path: Path) -> None:
    directory, stop = tmp_path / "d", Event()
    directory.mkdir()

    def write() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            with contextlib.suppress(OSError):
                (directory / f"{number}").write_bytes(b"1")

    writer = Thread(target=write)
    writer.start()
    try:
        for _ in range(50):
            assert remove(directory)
            assert not directory.exists()
            directory.mkdir()
    finally:
        stop.set()
        writer.join()


def test_a_directory_that_cannot_be_removed_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(_: Path) -> None:
        raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY))

    monkeypatch.setattr("shards.files.shutil.rmtree", never)
    with pytest.raises(OSError, match="not empty"):
        remove(made(tmp_path / "d"))
