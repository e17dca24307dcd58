"""Places on whatever file system pyarrow reaches: ``s3://bucket/prefix``, ``gs://…`` and so on.

PREFIX/NAME              a file
PREFIX/NAME/.files       what a set of files consists of: {file: digest}, whose digest is NAME
PREFIX/NAME/FILE         a file of the set

Nothing is read by listing: a listing may lack what was just written and show what was just removed.
A set's list of files goes before its files and is removed after them, so that whatever lies of a set
whose list was written is named in it. A listing serves to find what nobody names any more, and to
count bytes.

An upload counts once its bytes came back whole. Files below 10 MB go up in one request, of which an
interruption leaves nothing; larger ones in several, of which it leaves parts that only the service's
own rule removes (docs/storage.md).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, TypeVar
from urllib.parse import unquote, urlsplit

from shards.digest import bytes_digest, canonical_json, files_digest, parse_json
from shards.errors import InputError, StorageError
from shards.place import AbsentError, LocalPlace, Place

INDEX = ".files"

CONNECT_SECONDS = 3.0
ANSWER_SECONDS = 10.0
ATTEMPTS = 5
PAUSE_SECONDS = 0.1
# A refusal to a reader whose text is longer than the file: pyarrow gives the SDK room for the file alone,
# and it then does not understand that it was refused.
_GARBLED = "Failed to flush response stream"
_OTHERS = "upload it again"

T = TypeVar("T")

_OBJECT_STORES = frozenset({"s3", "gcs", "abfs"})  # these know no directories that would have to be made


def place_at(location: str, *parts: str) -> Place:
    """The place PARTS below a location: an absolute path or the URI of a file system.

    Raises:
        InputError: if ``location`` is malformed.
        StorageError: if it cannot be reached.
    """
    path = local_path(location, "storage")
    return RemotePlace(location, "/".join(parts)) if path is None else LocalPlace(path.joinpath(*parts))


class RemotePlace:
    """A prefix of a bucket, or a directory of another file system that pyarrow knows."""

    remote: ClassVar[bool] = True

    def __init__(self, location: str, directory: str) -> None:
        self._location = location
        self._directory = directory
        self._files, base = open_filesystem(
            location, "storage", answer_seconds=ANSWER_SECONDS, attempts=ATTEMPTS, allow_delayed_open=True
        )
        self._root = f"{base.rstrip('/')}/{directory}"

    def where(self, name: str = "") -> str:
        """The URI, as pyarrow takes it."""
        split = urlsplit(self._location)
        path = "/".join(part for part in (split.path.rstrip("/"), self._directory, name) if part)
        return split._replace(path=path).geturl()

    def trying(self, what: str) -> AbstractContextManager[None]:
        """See :class:`Place`."""
        return reaching(f"{what} in {self._root}", self._location)

    def prepare(self) -> None:
        """The bucket must be there; prefixes need no making."""
        with self.trying("find a place for records and checkpoints"):
            require_bucket(self._files, self._root)

    def settle(self) -> None:
        """What was uploaded is durable."""

    def read(self, name: str) -> bytes:
        """A file's bytes."""
        try:
            return self._read(f"{self._root}/{name}")
        except FileNotFoundError:
            require_bucket(self._files, self._root)
            raise AbsentError("no file") from None

    def write(self, name: str, data: bytes) -> None:
        """Upload a file and see it come back whole."""
        path = f"{self._root}/{name}"
        if self._files.type_name not in _OBJECT_STORES:
            self._files.create_dir(path.rpartition("/")[0], recursive=True)

        def upload() -> None:
            with self._files.open_output_stream(path) as stream:
                stream.write(data)
            returned = self._read(path)
            if returned != data:
                raise OSError(f"{len(data)} bytes were sent and {len(returned)} others came back; {_OTHERS}")

        _persistently(upload)

    def replace(self, name: str, data: bytes) -> None:
        """Upload a file; a bucket swaps whole objects."""
        self.write(name, data)

    def read_set(self, name: str) -> dict[str, bytes]:
        """The files that the set's own list names."""
        return {file: self.read(f"{name}/{file}") for file in self._listed_in(name)}

    def write_set(self, name: str, files: Mapping[str, bytes]) -> None:
        """The list of files, then each of them."""
        listed = {file: bytes_digest(data) for file, data in files.items()}
        self.write(f"{name}/{INDEX}", canonical_json(listed))
        for file, data in sorted(files.items()):
            self.write(f"{name}/{file}", data)

    def remove(self, name: str) -> bool:
        """Remove the file, or all of a set that its list names or a listing shows; the list goes last."""
        index = f"{self._root}/{name}/{INDEX}"
        try:
            named = {f"{self._root}/{name}/{file}" for file in self._listed_in(name)}
        except AbsentError:
            named = set()
        paths = (named | self._found(name).keys()) - {index}
        removed = [self._delete(path) for path in (f"{self._root}/{name}", *sorted(paths), index)]
        with suppress(FileNotFoundError):
            self._files.delete_dir(f"{self._root}/{name}")  # the mark of an empty directory, which pyarrow leaves
        return any(removed)

    def holds(self, name: str) -> bool:
        """Is there the file, the set's list, or anything that a listing shows and that is still there?"""
        path = f"{self._root}/{name}"
        return any(self._is_file(one) for one in (path, f"{path}/{INDEX}", *self._found(name)))

    def names(self) -> frozenset[str]:
        """What a listing shows, which may be out of date."""
        return frozenset(path.removeprefix(f"{self._root}/").partition("/")[0] for path in self._found())

    def size(self) -> int:
        """Bytes of all files, as a listing shows them."""
        return sum(self._found().values())

    def _read(self, path: str) -> bytes:
        def download() -> bytes:
            with self._files.open_input_file(path) as file:  # a stream would ask once for 256 KiB
                data: bytes = file.read()
            return data

        return _persistently(download)

    def _listed_in(self, name: str) -> list[str]:
        """The files of a set, from its list."""
        try:
            listed = parse_json(self.read(f"{name}/{INDEX}"))
            whole = files_digest(listed) == name
        except (ValueError, TypeError, AttributeError, RecursionError):
            whole = False
        if not whole:
            raise AbsentError(f"a damaged list of files at {self.where(name)}")
        return sorted(listed)

    def _found(self, name: str = "") -> dict[str, int]:
        """Path → size of each file that a listing shows below a name. Marks of directories are no files."""
        from pyarrow.fs import FileSelector, FileType

        below = f"{self._root}/{name}".rstrip("/")
        found = self._files.get_file_info(FileSelector(below, recursive=True, allow_not_found=True))
        if not found:
            require_bucket(self._files, self._root)
        return {info.path: info.size for info in found if info.type == FileType.File}

    def _is_file(self, path: str) -> bool:
        from pyarrow.fs import FileType

        return bool(self._files.get_file_info(path).type == FileType.File)

    def _delete(self, path: str) -> bool:
        try:
            self._files.delete_file(path)
        except FileNotFoundError:
            return False
        return True


def _persistently(act: Callable[[], T]) -> T:
    """Try again, a few times, later each time, what the SDK does not try again itself."""
    attempt = 1
    while True:
        try:
            return act()
        except OSError as error:
            if attempt == ATTEMPTS or not any(hindrance in str(error) for hindrance in (_GARBLED, _OTHERS)):
                raise
        time.sleep(PAUSE_SECONDS * 2**attempt)
        attempt += 1


# -- reaching a file system --------------------------------------------------------------------


@contextmanager
def reaching(what: str, location: str) -> Iterator[None]:
    """Turn any failure of pyarrow's inside into a ``StorageError`` that says what could not be done."""
    from pyarrow import ArrowException

    try:
        yield
    except (OSError, ArrowException) as error:
        raise StorageError(
            f"to {what}",
            " ".join(str(error).split()),
            f"check that {location} exists and can be reached, and the credentials in the environment; then run again",
        ) from error


def open_filesystem(
    location: str, what: str, *, answer_seconds: float, attempts: int, **settings: Any
) -> tuple[Any, str]:
    """The file system of a URI, and the path in it.

    Args:
        location: the URI.
        what: what it is the location of, for messages.
        answer_seconds, attempts: how long a silent S3 service is waited for, and how often it is asked.
            Between two attempts the SDK waits longer each time.
        **settings: further ones of an S3 file system.

    Raises:
        InputError: if it is malformed.
        StorageError: if it cannot be reached.
    """
    from pyarrow import ArrowInvalid
    from pyarrow.fs import AwsStandardS3RetryStrategy, FileSystem, S3FileSystem

    with reaching(f"reach {location}", location):
        try:
            filesystem, base = FileSystem.from_uri(location)
        except ArrowInvalid as error:
            raise malformed(what, "the URI of a file system that pyarrow knows", f"{location!r}: {error}") from error
    if {"", ".", ".."} & set(base.strip("/").split("/")):
        raise malformed(what, "a URI that names a bucket and plain directories in it", repr(location))
    if filesystem.type_name == "s3":
        # Neither a URI nor the environment bounds pyarrow's patience with a silent server, 99 s a
        # request; only the constructor does. Its pickled form tells what the URI came to.
        _, (options,) = filesystem.__reduce__()
        filesystem = S3FileSystem(
            **options
            | {
                "connect_timeout": CONNECT_SECONDS,
                "request_timeout": answer_seconds,
                "retry_strategy": AwsStandardS3RetryStrategy(max_attempts=attempts),
            }
            | settings
        )
    return filesystem, base


def require_bucket(filesystem: Any, path: str) -> None:
    """An empty answer counts only from a bucket that is there: pyarrow gives the same for a missing one.

    Raises:
        OSError: if it is not there.
    """
    from pyarrow.fs import FileType

    bucket = PurePosixPath(path).parts[0]
    if filesystem.get_file_info(bucket).type == FileType.NotFound:
        raise OSError(f"there is no bucket {bucket}")


def local_path(location: str, what: str) -> Path | None:
    """The path that a location is or spells as ``file://``; None if it is another URI.

    Raises:
        InputError: if it is neither, or holds a password.
    """
    if not location.isprintable():
        raise malformed(what, "an absolute path or a URI", f"{location!r}, with characters that cannot be printed")
    if location.startswith("file:///"):
        return Path(unquote(location.removeprefix("file://")))
    if "://" in location:
        try:
            secret = urlsplit(location).password is not None
        except ValueError as error:
            raise malformed(what, "an absolute path or a URI", str(error)) from error
        if secret:
            raise malformed(what, "a URI without a password, since it is kept and shown", "a user and a password in it")
        return None
    path = Path(location)
    if not path.is_absolute():
        raise malformed(what, "an absolute path or a URI, which mean the same from everywhere", repr(location))
    return path


def malformed(what: str, expected: str, found: str) -> InputError:
    """The error for a location that cannot be one."""
    return InputError(
        f"{what}: {expected}",
        found,
        "write it as /mnt/elsewhere/directory or s3://bucket/prefix, with credentials in the environment",
    )
