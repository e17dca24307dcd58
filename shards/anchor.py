"""The anchor: a place outside the workspace that remembers the log's last head and the tombstones.

Whoever restores an old backup of a workspace brings back an old ledger that is whole in itself. Only
something the backup did not cover can tell; that is the anchor. This file stores and nothing more:
what a head says and which tombstones still count is for those who call it.

LOCATION/LOG/head              the signed tree head last put
LOCATION/LOG/requests/NAME     one file a request, put once; NAME.retired beside it, a mark that stays

LOCATION is an absolute path, or the URI of any file system that pyarrow knows, such as
``s3://bucket/prefix?region=eu-central-1`` or, for another S3 service,
``s3://bucket/prefix?endpoint_override=host:port&scheme=https``. Credentials come from the environment
(``AWS_ACCESS_KEY_ID`` and so on), never from the URI, and must allow listing the bucket: without that
a missing file and a forbidden one look alike. Tested with S3 only. An S3 service that refuses is given
up after two seconds and one that is silent after twenty; for Google Cloud Storage write
``?retry_limit_seconds=10`` into the URI, or pyarrow tries for a quarter of an hour.

One writer at a time is the rule (the workspace's driver). Of two at once one may be told that its
upload vanished; the head is always a whole one.
"""

from __future__ import annotations

import uuid
from pathlib import Path

from shards.errors import IntegrityError
from shards.files import TEMPORARY, fsync_directory, replace_file, storage
from shards.remote import local_path, open_filesystem, reaching, require_bucket

HEAD = "head"
REQUESTS = "requests"
_WHAT = "an anchor's location"

ANSWER_SECONDS = 5.0
ATTEMPTS = 3


class Anchor:
    """The anchored files of one log.

    Args:
        location: an absolute path or a file system's URI.
        log: the log's origin, such as ``sisa/log/0f3c…``; "/" becomes "-" in the directory's name.

    Raises:
        ValueError: if ``log`` cannot name a directory.
        InputError: if ``location`` is malformed.
        StorageError: if it cannot be reached.
    """

    def __init__(self, location: str, log: str) -> None:
        directory = log.replace("/", "-")
        _require_plain(directory)
        path = local_path(location, _WHAT)
        self._files = _Remote(location, directory) if path is None else _Local(path, directory)

    def head(self) -> str | None:
        """The signed note last put; None if none ever was.

        Raises:
            IntegrityError: if what lies there is not text.
            StorageError: if it cannot be read.
        """
        data = self._files.read(HEAD)
        try:
            return None if data is None else data.decode()
        except UnicodeDecodeError as error:
            raise IntegrityError(
                f"a signed tree head at {self._files}", f"bytes that are no text: {error.reason}", "see docs/backups.md"
            ) from error

    def put_head(self, note: str) -> None:
        """Replace the head, durably: whatever happens meanwhile, readers get the old one or this one.

        Raises:
            StorageError: if it cannot be written.
        """
        self._sweep()
        self._files.write(HEAD, note.encode())

    def requests(self) -> dict[str, bytes]:
        """All requests, name → bytes, sorted by name.

        Raises:
            StorageError: if they cannot be read.
        """
        names = sorted(name for name in self._files.names(REQUESTS) if not name.startswith("."))
        read = ((name, self._files.read(f"{REQUESTS}/{name}")) for name in names)
        return {name: data for name, data in read if data is not None}  # None: removed since it was listed

    def put_request(self, name: str, data: bytes) -> None:
        """Keep a request's bytes under ``name``, durably; doing it again changes nothing.

        Raises:
            ValueError: if ``name`` is not a plain file name.
            IntegrityError: if other bytes bear that name.
            StorageError: if it cannot be written.
        """
        _require_plain(name)
        path = f"{REQUESTS}/{name}"
        found = self._files.read(path)
        if found is not None and found != data:
            raise IntegrityError(
                f"nothing under the name {name}, or the same {len(data)} bytes, at {self._files}",
                f"{len(found)} other bytes",
                "a request never changes: find out who wrote it; see docs/backups.md",
            )
        self._sweep()
        self._files.write(path, data)  # the same bytes too: their first writer may have died before its last sync

    def remove_request(self, name: str) -> None:
        """Remove a request whose retention is over; no error if it is gone already.

        A bucket that keeps old versions keeps this one until its own rule removes it.

        Raises:
            ValueError: if ``name`` is not a plain file name.
            StorageError: if it cannot be removed.
        """
        _require_plain(name)
        self._sweep()
        self._files.remove(f"{REQUESTS}/{name}")

    def _sweep(self) -> None:
        """Remove what killed writers left."""
        for folder in ("", REQUESTS):
            for name in self._files.names(folder):
                if name.startswith(TEMPORARY):
                    self._files.remove(f"{folder}/{name}".lstrip("/"))


def inside(location: str, workspace: Path) -> bool:
    """Does an anchor's location lie in the workspace, where a restored backup would overwrite it?

    Raises:
        InputError: if ``location`` is malformed.
    """
    path = local_path(location, _WHAT)
    return path is not None and path.resolve().is_relative_to(workspace.resolve())


class _Local:
    """Files below LOCATION/LOG on a mounted file system, for their owner alone."""

    def __init__(self, location: Path, log: str) -> None:
        self._location = location
        self._root = location / log

    def __str__(self) -> str:
        return str(self._root)

    def read(self, name: str) -> bytes | None:
        with storage(f"read {self._root / name}"):
            try:
                return (self._root / name).read_bytes()
            except FileNotFoundError:
                return None

    def names(self, folder: str) -> list[str]:
        with storage(f"list {self._root / folder}"):
            try:
                return [entry.name for entry in (self._root / folder).iterdir()]
            except FileNotFoundError:
                return []

    def write(self, name: str, data: bytes) -> None:
        path = self._root / name
        with storage(f"make the directory {path.parent}"):
            for directory in reversed((path.parent, *path.parent.parents)):
                ours = self._location in directory.parents  # made by us, perhaps by one killed before the sync
                if ours or not directory.is_dir():
                    directory.mkdir(mode=0o700, exist_ok=True)
                    fsync_directory(directory.parent)
        replace_file(path, data, private=True)

    def remove(self, name: str) -> None:
        path = self._root / name
        with storage(f"remove {path}"):
            path.unlink(missing_ok=True)
            if path.parent.is_dir():
                fsync_directory(path.parent)


class _Remote:
    """Objects below LOCATION/LOG on whatever pyarrow reaches."""

    def __init__(self, location: str, log: str) -> None:
        self._filesystem, base = open_filesystem(location, _WHAT, answer_seconds=ANSWER_SECONDS, attempts=ATTEMPTS)
        self._root = f"{base.rstrip('/')}/{log}"
        self._location = location

    def __str__(self) -> str:
        return f"{self._location} ({self._root})"

    def read(self, name: str) -> bytes | None:
        path = f"{self._root}/{name}"
        with reaching(f"read {path}", self._location):
            try:
                data = self._read(path)
                # pyarrow asks for the size, then for so many bytes. A file replaced in between comes back
                # cut, or with what lay in memory behind it; two equal readings running are of one file.
                # Requests need no second one: they are never replaced by other bytes.
                while name == HEAD and (again := self._read(path)) != data:
                    data = again
            except FileNotFoundError:
                require_bucket(self._filesystem, self._root)
                return None
            return data

    def names(self, folder: str) -> list[str]:
        from pyarrow.fs import FileSelector

        path = f"{self._root}/{folder}".rstrip("/")
        with reaching(f"list {path}", self._location):
            found = self._filesystem.get_file_info(FileSelector(path, allow_not_found=True))
            if not found:
                require_bucket(self._filesystem, self._root)
        return [info.base_name for info in found]

    def write(self, name: str, data: bytes) -> None:
        # A stream that is dropped half-way publishes what it has. So the final name is given only to
        # bytes that came back whole; what a failure leaves is the next writer's to sweep.
        path = f"{self._root}/{name}"
        temporary = f"{path.rpartition('/')[0]}/{TEMPORARY}{uuid.uuid4().hex}"
        with reaching(f"write {path}", self._location):
            with self._filesystem.open_output_stream(temporary) as stream:
                stream.write(data)
            returned = self._read(temporary)
            if returned != data:
                raise OSError(f"{len(data)} bytes were sent and {len(returned)} others came back")
            self._filesystem.move(temporary, path)

    def remove(self, name: str) -> None:
        path = f"{self._root}/{name}"
        with reaching(f"remove {path}", self._location):
            try:
                self._filesystem.delete_file(path)
            except FileNotFoundError:
                require_bucket(self._filesystem, self._root)

    def _read(self, path: str) -> bytes:
        with self._filesystem.open_input_stream(path) as stream:
            data: bytes = stream.read()
        return data


def _require_plain(name: str) -> None:
    if not name or name.startswith(".") or not name.isprintable() or "/" in name or "\\" in name:
        raise ValueError(f"{name!r} is not a plain file name")
