"""The cache of activations: what frozen layers made of one record, kept while the record is.

    ROOT/KIND/SHARD/NAME    32 bytes, the digest of (KIND, NAME, value), then the value

NAME stands for the record and its content, KIND for everything else that the value depends on. Nothing in it
is ever needed: what is missing, short, altered or misplaced reads as absent, is computed again and replaced. So
nothing is synced; a file that a power cut tore fails its digest. But it is personal data: a sweep removes every
file that is not of a record held.

Only a driver writes here. A worker leaves what it computed in the place of its attempt, and the driver takes
it from there, so that a worker that was given up leaves nothing (docs/decisions/0018).
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Set
from functools import cache
from pathlib import Path

from shards.digest import digest
from shards.files import remove, storage
from shards.place import LocalPlace
from shards.vault import StoredRecord

_DIGEST = 32
_KIND = re.compile(r"[0-9a-f]{1,128}")
_SHARD = re.compile(r"[0-9]{4}")
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EXDEV)


def entry_name(stored: StoredRecord) -> str:
    """What a record's entries are called (hex); another version or content is another name."""
    return digest("activation", stored.tag, stored.fingerprint).hex()


class Activations:
    """The cache in one directory of this machine, which need not be there.

    Args:
        root: the directory.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def directory(self, kind: str, shard: int) -> Path:
        """Where a shard's entries of one kind lie."""
        return self.root / kind / f"{shard:04d}"

    def adopt(self, staging: Path, shard: int) -> None:
        """Take over what a worker left in ``staging``, in place of entries of the same names.

        What there is no room for is not kept.

        Raises:
            StorageError: if the file system refuses for another reason.
        """
        with storage(f"keep activations in {self.root}"):
            try:
                for kind in staging.iterdir() if staging.is_dir() else ():
                    target = self.directory(kind.name, shard)
                    for directory in (self.root, target.parent, target):
                        directory.mkdir(mode=0o700, exist_ok=True)
                    for entry in kind.iterdir():
                        entry.replace(target / entry.name)
            except OSError as error:
                if error.errno not in _NO_ROOM:
                    raise

    def strays(self, names: Callable[[int], Set[str]]) -> list[Path]:
        """Whatever lies here and is no file with one of the ``names`` that a shard's entries may have.

        They are asked for only of shards of which something lies here.
        """
        names = cache(names)
        strays: list[Path] = []

        def directories(path: Path, form: re.Pattern[str]) -> Iterator[Path]:
            with os.scandir(path) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False) and form.fullmatch(entry.name):
                        yield Path(entry)
                    else:
                        strays.append(Path(entry))

        try:
            mode = self.root.lstat().st_mode
        except FileNotFoundError:
            return []
        if not stat.S_ISDIR(mode):
            return [self.root]
        for kind in directories(self.root, _KIND):
            for shard in directories(kind, _SHARD):
                known = names(int(shard.name))
                with os.scandir(shard) as entries:
                    others = (one for one in entries if one.name not in known or not one.is_file(follow_symlinks=False))
                    strays.extend(map(Path, others))
        return sorted(strays)

    def sweep(self, names: Callable[[int], Set[str]]) -> list[str]:
        """Remove the strays; returns their names.

        Raises:
            StorageError: if the file system refuses.
        """
        with storage(f"remove activations in {self.root}"):
            strays = self.strays(names)
            for stray in strays:
                remove(stray)
        return [stray.name for stray in strays]

    def size(self) -> int:
        """Bytes of all files.

        Raises:
            StorageError: if the file system refuses.
        """
        with storage(f"list activations in {self.root}"):
            return LocalPlace(self.root).size()


class AttemptShelf:
    """The entries of one step's records (a shelf of ``orchestration/executor.py``).

    Args:
        kept: the cache, which is only read.
        staging: where new entries go; in the place of the attempt, which must be there.
        shard: of the step.
        members: the records that may be asked for.
    """

    def __init__(self, kept: Activations, staging: Path, shard: int, members: Iterable[StoredRecord]) -> None:
        self._kept = kept
        self._staging = staging
        self._shard = shard
        self._names = {stored.record.id: entry_name(stored) for stored in members}
        self._full = False

    def get(self, record_id: str, kind: str) -> bytes | None:
        """What was put for a record of the step, verified; or None.

        Raises:
            KeyError: if it is no record of the step.
            ValueError: if ``kind`` is not hex.
        """
        name = self._name(record_id, kind)
        staged = _read(self._staging / kind / name, kind)
        return staged if staged is not None else _read(self._kept.directory(kind, self._shard) / name, kind)

    def put(self, record_id: str, kind: str, value: bytes) -> None:
        """Leave a value to the driver. Once the disk is full nothing is kept, and what was left is given up.

        Raises:
            KeyError: if it is no record of the step.
            ValueError: if ``kind`` is not hex.
            StorageError: if the attempt is over, or the file system refuses otherwise.
        """
        path = self._staging / kind / self._name(record_id, kind)
        if self._full:
            return
        with storage(f"keep activations in {self._staging}"):
            try:
                for directory in (self._staging, path.parent):  # not above: an attempt that is over has no place
                    directory.mkdir(mode=0o700, exist_ok=True)
                path.write_bytes(_seal(kind, path.name, value) + value)
            except OSError as error:
                if error.errno not in _NO_ROOM:
                    raise
                self._full = True
                remove(self._staging)  # the checkpoint needs the room

    def _name(self, record_id: str, kind: str) -> str:
        if not _KIND.fullmatch(kind):
            raise ValueError(f"kind is {kind!r}, expected a digest in hex")
        return self._names[record_id]


def _seal(kind: str, name: str, value: bytes) -> bytes:
    return digest("activation-entry", kind, name, value)


def _read(path: Path, kind: str) -> bytes | None:
    """The value of an entry; None for whatever is not that entry, whole."""
    try:
        if path.is_symlink() or not path.is_file():
            return None
        data = path.read_bytes()
    except OSError:
        return None
    value = data[_DIGEST:]
    return value if data[:_DIGEST] == _seal(kind, path.name, value) else None
