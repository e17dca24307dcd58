"""Content-addressed objects: small sets of named files, put once, verified when they are read.

An object is named by the digest of its files' names and contents; in a directory it is a directory of
that name, so a checkpoint *is* the PEFT directory that other tools load. Existence of a path never means
anything by itself: a put compares, a get verifies (mergekit's merge cache and PEFT's adapter names, which
reuse by name, are the cautionary tales).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from shards.digest import bytes_digest, files_digest
from shards.errors import IntegrityError
from shards.files import remove
from shards.place import AbsentError, LocalPlace, Place, places

# What of a remote place is kept in memory once it was verified: lists of tags, not weights.
_SMALL = 1 << 20
_REMEMBERED = 64 << 20


class Store:
    """Objects in one place.

    Args:
        root: the local directory that names this store to other processes, and where workers leave
            what is not adopted yet.
        place: where the objects lie, if not in ``root``.
    """

    def __init__(self, root: Path, place: Place | None = None) -> None:
        self.root = root
        self.place = place or LocalPlace(root)
        self._remembered: dict[str, dict[str, bytes]] = {}

    def path(self, digest: str) -> Path:
        """Where an object's files lie, in a store in its own directory."""
        return self.root / digest

    def where(self, digest: str) -> str:
        """Where an object's files lie: an absolute path or a URI."""
        return self.place.where(digest)

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
        intact = self.intact(digest)
        with self.place.trying("store an object"):
            if intact:
                self.place.settle()  # whoever put it may have been killed before it was durable
            else:
                self.place.write_set(digest, files)  # what lies there is not intact, or we would not be here
        return digest

    def adopt(self, staging: Path, digest: str) -> None:
        """Take over an object that was put into a store in ``staging``, a directory in this one's root.

        Raises:
            IntegrityError: if it is not there, or damaged.
            StorageError: if it cannot be stored.
        """
        given = Store(staging)
        files, here = given.get(digest), self.intact(digest)
        with self.place.trying("store an object"):
            if not here and self.place == LocalPlace(self.root):
                remove(self.path(digest))
                given.path(digest).rename(self.path(digest))
            elif not here:
                self.place.write_set(digest, files)
            self.place.settle()

    def get(self, digest: str) -> dict[str, bytes]:
        """The files of an object; small ones of a remote place are read and verified once.

        Raises:
            IntegrityError: if it is missing, or its bytes are not those of the digest.
            StorageError: if it cannot be read.
        """
        if digest in self._remembered:
            return dict(self._remembered[digest])
        files = self._read(digest)
        if self.place.remote:
            self._remember(digest, files)
        return files

    def _read(self, digest: str) -> dict[str, bytes]:
        with self.place.trying(f"read object {digest}"):
            try:
                files = self.place.read_set(digest)
            except AbsentError as error:
                raise _damaged(digest, str(error)) from error
        found = files_digest({name: bytes_digest(data) for name, data in files.items()})
        if found != digest:
            raise _damaged(digest, f"files with digest {found}")
        return files

    def _remember(self, digest: str, files: dict[str, bytes]) -> None:
        if _weight(files) > _SMALL:
            return
        self._remembered[digest] = dict(files)
        total = sum(map(_weight, self._remembered.values()))
        while total > _REMEMBERED:
            total -= _weight(self._remembered.pop(next(iter(self._remembered))))

    def intact(self, digest: str) -> bool:
        """Is the object there with the bytes of its digest? They are read, whatever is remembered."""
        try:
            self._read(digest)
        except IntegrityError:
            return False
        return True

    def holds(self, digest: str) -> bool:
        """Does anything bear the name, intact or not?"""
        for place in places(self.place, self.root):
            with place.trying(f"look for object {digest}"):
                if place.holds(digest):
                    return True
        return False

    def purge(self, digest: str) -> None:
        """Remove an object; no error if it is gone already (a purge may be repeated)."""
        self._remembered.pop(digest, None)
        for place in places(self.place, self.root):
            with place.trying(f"purge object {digest}"):
                if place.remove(digest):
                    place.settle()

    def objects(self) -> frozenset[str]:
        """Digests of everything stored, left-overs of killed writes included."""
        found: frozenset[str] = frozenset()
        for place in places(self.place, self.root):
            with place.trying("list objects"):
                found |= place.names()
        return found

    def size(self) -> int:
        """Bytes of all stored files."""
        with self.place.trying("list objects"):
            return self.place.size()


def _weight(files: Mapping[str, bytes]) -> int:
    return sum(map(len, files.values()))


def _damaged(digest: str, found: str) -> IntegrityError:
    return IntegrityError(
        f"object {digest}",
        found,
        "run `sisa audit --all`; `sisa train` retrains a damaged checkpoint to the same bytes",
    )
