"""Durable writes, and the one place where operating-system errors become ours."""

from __future__ import annotations

import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shards.errors import StorageError

_TRIES = 20
_MEANWHILE = (errno.ENOTEMPTY, errno.ENOENT)  # what somebody else did in the midst of a removal

TEMPORARY = ".tmp-"


@contextmanager
def storage(what: str) -> Iterator[None]:
    """Turn an ``OSError`` inside into a ``StorageError`` that says what could not be done."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"to {what}",
            f"{error.strerror or error}" + (f" ({error.filename})" if error.filename else ""),
            "free space or mend permissions, then run the same command again; nothing was lost",
        ) from error


def fsync_directory(path: Path) -> None:
    """Make names created in or removed from ``path`` durable (or, of a file, its content)."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove(path: Path) -> bool:
    """Remove whatever bears the name ``path``, never following a link; says if anything did.

    Somebody may still be writing into a directory, or remove it too: that is no reason to fail.
    """
    if path.is_dir() and not path.is_symlink():
        for left in reversed(range(_TRIES)):
            try:
                shutil.rmtree(path)
            except OSError as error:
                if error.errno not in _MEANWHILE or not left:
                    raise
            if not os.path.lexists(path):
                break
    elif os.path.lexists(path):
        path.unlink()
    else:
        return False
    return True


def sync_tree(path: Path) -> None:
    """Make a directory that others have written durable, with everything in it."""
    for directory, _, files in os.walk(path):
        for name in files:
            fsync_directory(Path(directory) / name)
        fsync_directory(Path(directory))


def move_tree(source: Path, target: Path) -> bool:
    """Give a directory another name, durably; says if it could: none on another file system can be given.

    Raises:
        StorageError: if the file system refuses, or the name is taken.
    """
    with storage(f"write {target}"):
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, "is there already", str(target))
        try:
            source.rename(target)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            return False
        fsync_directory(target.parent)
        return True


@contextmanager
def copied_beside(source: Path, target: Path) -> Iterator[Path]:
    """A durable copy of a directory on the file system of ``target``, removed unless it is moved there.

    Raises:
        StorageError: if the file system refuses.
    """
    copy = target.parent / f"{TEMPORARY}{uuid.uuid4().hex}"
    try:
        with storage(f"write {target}"):
            shutil.copytree(source, copy)
            sync_tree(copy)
        yield copy
    finally:
        with storage(f"remove {copy}"):
            remove(copy)


def write_new(path: Path, data: bytes, *, private: bool = False) -> None:
    """Write and sync one file that nobody refers to yet; a private one only its owner can read."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if private else 0o666)
    with os.fdopen(descriptor, "wb") as handle:
        handle.write(data)
        handle.flush()
        os.fsync(handle.fileno())


def replace_file(path: Path, data: bytes, *, private: bool = False) -> None:
    """Write ``path`` so that a crash leaves the old content or the new, never a mixture.

    Raises:
        StorageError: if the file system refuses.
    """
    temporary = path.parent / f"{TEMPORARY}{uuid.uuid4().hex}"
    with storage(f"write {path}"):
        try:
            write_new(temporary, data, private=private)
            temporary.replace(path)
            fsync_directory(path.parent)
        finally:
            temporary.unlink(missing_ok=True)
