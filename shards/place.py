"""A directory on some file system: files and small sets of files, each under a name.

The vault and the store build on it. :class:`LocalPlace` is a directory here: synced, never through a
link, never overwriting. ``shards/remote.py`` reaches everything else. What bytes should lie there is
for those who ask: a place compares nothing.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

from shards.files import TEMPORARY, fsync_directory, remove, replace_file, storage, write_new


class AbsentError(Exception):
    """Nothing that can be read bears the name; the text says what there is instead."""


class Place(Protocol):
    """A directory on some file system.

    Every method may raise what the file system raises; :meth:`trying` makes a ``StorageError`` of it.
    """

    @property
    def remote(self) -> bool:
        """Is each reading worth remembering, and a listing not to be relied on?"""
        ...

    def where(self, name: str = "") -> str:
        """Where a name lies, for people and other tools."""
        ...

    def trying(self, what: str) -> AbstractContextManager[None]:
        """Turn a failure inside into a ``StorageError`` that says what could not be done."""
        ...

    def prepare(self) -> None:
        """Make the directory, if the file system needs one; the place above it must be there."""
        ...

    def settle(self) -> None:
        """Make the names written and removed so far durable."""
        ...

    def read(self, name: str) -> bytes:
        """A file.

        Raises:
            AbsentError: if there is none.
        """
        ...

    def write(self, name: str, data: bytes) -> None:
        """Write a file under a name that nobody refers to yet; call :meth:`settle` after the last."""
        ...

    def replace(self, name: str, data: bytes) -> None:
        """Write a file: readers get the old one or this one."""
        ...

    def read_set(self, name: str) -> dict[str, bytes]:
        """A set of files.

        Raises:
            AbsentError: if there is none, or something in it is no file.
        """
        ...

    def write_set(self, name: str, files: Mapping[str, bytes]) -> None:
        """Write a set of files, durably, in place of whatever bears the name, which is the set's digest."""
        ...

    def remove(self, name: str) -> bool:
        """Remove whatever bears the name, file or set; says if anything did."""
        ...

    def holds(self, name: str) -> bool:
        """Does anything bear the name, in full or in part?"""
        ...

    def names(self) -> frozenset[str]:
        """Every name, what killed writers left included."""
        ...

    def size(self) -> int:
        """Bytes of all files."""
        ...


@dataclass(frozen=True, slots=True)
class LocalPlace:
    """A directory of a mounted file system; a set of files is a directory in it."""

    root: Path
    remote: ClassVar[bool] = False

    def where(self, name: str = "") -> str:
        """The path."""
        return str(self.root / name)

    def trying(self, what: str) -> AbstractContextManager[None]:
        """See :class:`Place`."""
        return storage(f"{what} in {self.root}")

    def prepare(self) -> None:
        """Make the directory and the one above it, for their owner alone."""
        with self.trying("make a place for records and checkpoints"):
            for directory in (self.root.parent, self.root):
                directory.mkdir(mode=0o700, exist_ok=True)
                fsync_directory(directory.parent)

    def settle(self) -> None:
        """Sync the directory."""
        fsync_directory(self.root)

    def read(self, name: str) -> bytes:
        """A plain file's bytes: to purge a link would leave what it leads to."""
        path = self.root / name
        if path.is_symlink() or not path.is_file():
            raise AbsentError("a link" if path.is_symlink() else "no file")
        return path.read_bytes()

    def write(self, name: str, data: bytes) -> None:
        """Write and sync a new file."""
        write_new(self.root / name, data)

    def replace(self, name: str, data: bytes) -> None:
        """Write aside, sync, rename."""
        replace_file(self.root / name, data)

    def read_set(self, name: str) -> dict[str, bytes]:
        """All files of a directory, none of them a link or a directory."""
        path = self.root / name
        if path.is_symlink() or not path.is_dir():  # a purge of a link would leave what it points to
            raise AbsentError(f"nothing at {path}")
        entries = sorted(path.iterdir())
        odd = [entry.name for entry in entries if entry.is_symlink() or not entry.is_file()]
        if odd:
            raise AbsentError(f"not plain files: {', '.join(odd)}")
        return {entry.name: entry.read_bytes() for entry in entries}

    def write_set(self, name: str, files: Mapping[str, bytes]) -> None:
        """Write a directory aside, sync everything, rename."""
        temporary = self.root / f"{TEMPORARY}{uuid.uuid4().hex}"
        try:
            temporary.mkdir()
            for file, data in sorted(files.items()):
                write_new(temporary / file, data)
            fsync_directory(temporary)
            target = self.root / name
            remove(target)
            temporary.rename(target)
            fsync_directory(self.root)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def remove(self, name: str) -> bool:
        """Remove a file, a directory or a link, never what it leads to."""
        return remove(self.root / name)

    def holds(self, name: str) -> bool:
        """Does a file, a directory or a link bear the name?"""
        return os.path.lexists(self.root / name)

    def names(self) -> frozenset[str]:
        """Every entry of the directory; none if there is no directory."""
        if not self.root.is_dir():
            return frozenset()
        return frozenset(entry.name for entry in self.root.iterdir())

    def size(self) -> int:
        """Bytes of all files."""
        total = 0
        for directory, _, names in os.walk(self.root):
            for name in names:
                with suppress(FileNotFoundError):  # an attempt may end while it is counted
                    total += (Path(directory) / name).lstat().st_size
        return total


def places(place: Place, root: Path) -> tuple[Place, ...]:
    """A place, and the local directory that stands for it where that is another: something may lie there too."""
    here = LocalPlace(root)
    return (place,) if place == here else (place, here)
