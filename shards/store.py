"""Content-addressed objects: small sets of named files, put once, verified on every read.

An object is a directory named by the digest of its files' names and contents, so a checkpoint *is*
the PEFT directory that other tools load. Existence of a path never means anything by itself: a put
compares, a get verifies (mergekit's merge cache and PEFT's adapter names, which reuse by name, are
the cautionary tales).
"""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path

from shards.digest import bytes_digest, files_digest
from shards.errors import IntegrityError
from shards.files import TEMPORARY, fsync_directory, remove, storage, write_new


class Store:
    """Objects under one local directory."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, digest: str) -> Path:
        """Where an object's files lie."""
        return self.root / digest

    def put(self, files: Mapping[str, bytes]) -> str:
        """Store ``files`` (name → bytes) unless an intact copy is there; returns the digest.

        Raises:
            ValueError: if a name is not a plain file name.
            StorageError: if the file system refuses.
        """
        for name in files:
            if not name or name.startswith(".") or Path(name).name != name:
                raise ValueError(f"{name!r} is not a plain file name")
        digest = files_digest({name: bytes_digest(data) for name, data in files.items()})
        if self.intact(digest):
            with storage(f"store an object in {self.root}"):
                fsync_directory(self.root)  # whoever put it may have been killed before it was durable
            return digest
        temporary = self.root / f"{TEMPORARY}{uuid.uuid4().hex}"
        with storage(f"store an object in {self.root}"):
            try:
                temporary.mkdir()
                for name, data in sorted(files.items()):
                    write_new(temporary / name, data)
                fsync_directory(temporary)
                target = self.path(digest)
                remove(target)  # what lies there is not intact, or we would not be here
                temporary.rename(target)
                fsync_directory(self.root)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
        return digest

    def adopt(self, staging: Path, digest: str) -> None:
        """Take over an object that was put into a store in ``staging``, on the same file system.

        Raises:
            IntegrityError: if it is not there, or damaged.
            StorageError: if the file system refuses.
        """
        given = Store(staging)
        given.get(digest)
        here = self.intact(digest)
        with storage(f"store an object in {self.root}"):
            if not here:
                remove(self.path(digest))
                given.path(digest).rename(self.path(digest))
            fsync_directory(self.root)

    def get(self, digest: str) -> dict[str, bytes]:
        """The files of an object.

        Raises:
            IntegrityError: if it is missing, or its bytes are not those of the digest.
        """
        path = self.path(digest)
        with storage(f"read {path}"):
            missing = path.is_symlink() or not path.is_dir()  # a purge of a link would leave what it points to
        if missing:
            raise IntegrityError(f"object {digest}", f"nothing at {path}", "run `sisa audit --all`")
        with storage(f"read {path}"):
            entries = sorted(path.iterdir())
            odd = [entry.name for entry in entries if entry.is_symlink() or not entry.is_file()]
            files = {} if odd else {entry.name: entry.read_bytes() for entry in entries}
        found = files_digest({name: bytes_digest(data) for name, data in files.items()})
        if odd or found != digest:
            raise IntegrityError(
                f"object {digest}",
                f"not plain files: {', '.join(odd)}" if odd else f"files with digest {found}",
                "run `sisa audit --all`; `sisa train` retrains a damaged checkpoint to the same bytes",
            )
        return files

    def intact(self, digest: str) -> bool:
        """Is the object there with the bytes of its digest?"""
        try:
            self.get(digest)
        except IntegrityError:
            return False
        return True

    def purge(self, digest: str) -> None:
        """Remove an object; no error if it is gone already (a purge may be repeated)."""
        with storage(f"purge {self.path(digest)}"):
            if remove(self.path(digest)):
                fsync_directory(self.root)

    def objects(self) -> frozenset[str]:
        """Digests of everything stored, left-overs of killed writes included."""
        with storage(f"list {self.root}"):
            if not self.root.is_dir():
                return frozenset()
            return frozenset(entry.name for entry in self.root.iterdir())

    def size(self) -> int:
        """Bytes of all stored files."""
        return sum(file.stat().st_size for file in self.root.rglob("*") if file.is_file())
