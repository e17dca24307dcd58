"""Is anything of a deleted record still in the files? Searches bytes; believes no file name and no ledger.

    deleted records ─▶ needles (text, ID, tokens, each in every form it may be stored in)
    roots ─▶ files ─▶ raw bytes ─┬─▶ hits
                                 └─▶ what is packed in them (Parquet, gzip, SQLite, base64 ...) ─▶ hits

It only reads. What it says names files and positions in the caller's list, never an ID or a text: where
a file or a zip member is named after a record, that part of the name is ``***``.
"""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BufferedReader, BytesIO, FileIO
from pathlib import Path
from typing import BinaryIO

from shards import lock
from shards.bytesearch import Stream, find
from shards.checks import Check, unchecked
from shards.errors import StorageError
from shards.needles import Needle, What, patterns_of
from shards.records import listed
from shards.scratch import ELSEWHERE
from shards.unpacked import BROKEN, HEAD, Base64, chunks, opener_of
from shards.workspace import LOCK_FILE, Workspace

LARGEST_INNER = 64 << 20  # bytes; an archive inside an archive is held in memory
DEEPEST = 2  # a file is 0, what is packed in it 1, what is packed in that 2
_RAW = "raw bytes"


@dataclass(frozen=True, slots=True)
class Finding:
    """A needle that was found.

    Attributes:
        path: the file; a needle in its name is masked.
        where: in which layer of it, such as ``raw bytes`` or ``base64 string in gzip content``.
        record: position of the record.
        what: which of its forms.
    """

    path: Path
    where: str
    record: str
    what: What


@dataclass(frozen=True, slots=True)
class Scan:
    """What a search found, and over what.

    Attributes:
        findings: each (file, layer, record, form) once.
        files: number of files read.
        bytes: their size as they lie on disk.
        unreadable: what was not searched, or not in full, and why.
    """

    findings: tuple[Finding, ...]
    files: int
    bytes: int
    unreadable: tuple[str, ...]


def scan(roots: Iterable[Path], wanted: Sequence[Needle]) -> Scan:
    """Search every file under ``roots`` (directories or files), raw and unpacked. Only reads.

    Links are not followed: what they lead to inside the roots is found by itself, and a link out
    of them is reported as unreadable. Memory is bounded by a few chunks and ``LARGEST_INNER``.
    """
    search = _Search(wanted)
    files = size = 0
    for path in _files(roots, search.note):
        size += search.file(path)
        files += 1
    return Scan(tuple(search.findings), files, size, tuple(search.unreadable))


def _files(roots: Iterable[Path], note: Callable[[str], None]) -> Iterator[Path]:
    """Regular files, each once. Sockets, pipes and devices hold no stored bytes."""
    places = sorted({Path(os.path.realpath(root)) for root in roots})
    outermost = [place for place in places if not any(other in place.parents for other in places)]
    for place in outermost:
        walk = os.walk(place, onerror=lambda error: note(f"{error.filename}: {error.strerror}"))
        names = (Path(directory) / name for directory, inner, files in walk for name in sorted(inner + files))
        for path in [place] if place.is_file() else names:
            if path.is_symlink():
                target = Path(os.path.realpath(path))
                if target.exists() and not any(root in (target, *target.parents) for root in outermost):
                    note(f"{path}: a link that leads out, to {target}")
            elif path.is_file():
                yield path


class _Search:
    """Findings gathered over files."""

    def __init__(self, wanted: Sequence[Needle]) -> None:
        self._patterns = patterns_of(wanted)
        self._owners: dict[bytes, list[Needle]] = {}
        for needle in wanted:
            for pattern in needle.patterns:
                self._owners.setdefault(pattern, []).append(needle)
        self._path = Path()
        self.findings: dict[Finding, None] = {}
        self.unreadable: list[str] = []

    def file(self, path: Path) -> int:
        """Search one file and its name; returns its size in bytes."""
        self._path = Path(self._masked(str(path)))
        self._layer([os.fsencode(path)], "file name", DEEPEST)
        try:
            with BufferedReader(FileIO(path, opener=_open_regular)) as source:
                size = os.fstat(source.fileno()).st_size
                self._layer(chunks(source), _RAW, 0, source)
                return size
        except BROKEN as error:
            self._failed(_RAW, error)
            return 0

    def _layer(self, content: Iterable[bytes], where: str, depth: int, source: BinaryIO | None = None) -> None:
        """Search one layer, and what is packed in it unless that lies too deep.

        Args:
            content: its bytes, in chunks.
            where: its name.
            depth: in how many others it lies.
            source: the file it is; None to hold it in memory if it must be opened.
        """
        stream, base64 = Stream(self._patterns), Base64(self._patterns.reach)
        head, kept = b"", BytesIO()
        try:
            for chunk in content:
                stream.feed(chunk)
                if depth == DEEPEST:
                    continue
                self._decoded(base64.feed(chunk), where, depth)
                head += chunk[: HEAD - len(head)]
                if source is None and kept.tell() <= LARGEST_INNER and (len(head) < HEAD or opener_of(head)):
                    kept.write(chunk)
        except BROKEN as error:
            self._failed(where, error)
        stream.close()
        for needle in (needle for pattern in sorted(stream.found) for needle in self._owners[pattern]):
            self.findings[Finding(self._path, where, needle.record, needle.what)] = None
        if depth < DEEPEST:
            self._decoded(base64.close(), where, depth)
            self._unpacked(head, source or kept, where, depth)

    def _decoded(self, runs: Iterable[bytes], where: str, depth: int) -> None:
        """Search the base64 strings of a layer: small ones together, packed ones one by one."""
        plain = []
        for run in runs:
            if opener_of(run) is None:
                plain.append(run)
            else:
                self._layer([run], _inside("base64 string", where), depth + 1)
        if plain:
            self._layer([b"\0".join(plain)], _inside("base64 string", where), depth + 1)

    def _unpacked(self, head: bytes, source: BinaryIO, where: str, depth: int) -> None:
        """Search what is packed in a layer."""
        opener = opener_of(head)
        if opener is None:
            return
        try:
            if isinstance(source, BytesIO) and source.tell() > LARGEST_INNER:
                raise ValueError(f"packed twice and larger than {LARGEST_INNER} bytes: not unpacked")
            source.seek(0)
            for name, content in opener(source):
                self._layer(content, _inside(self._masked(name), where), depth + 1)
        except BROKEN as error:
            self._failed(where, error)

    def _failed(self, where: str, error: Exception) -> None:
        reason = error.found if isinstance(error, StorageError) else getattr(error, "strerror", None) or error
        self.note(f"{self._path}: {where}: {reason or type(error).__name__}")

    def note(self, text: str) -> None:
        """Something was not searched."""
        self.unreadable.append(self._masked(text))

    def _masked(self, text: str) -> str:
        shown = os.fsencode(text)
        for pattern in sorted(find(self._patterns, [shown]), key=len, reverse=True):
            shown = shown.replace(pattern, b"***")
        return os.fsdecode(shown)


def _inside(name: str, where: str) -> str:
    return name if where == _RAW else f"{name} in {where}"


def _open_regular(path: str, flags: int) -> int:
    """Open what is still a regular file; a pipe put in its place would wait for ever."""
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError("no longer a regular file")
    return descriptor


# -- where things lie outside the workspace --------------------------------------------------------------------

_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - read, never written
_TEMPORARY = "/tmp"  # noqa: S108 - Ray's choice


def ray_directories() -> list[Path]:
    """Where Ray keeps sessions, logs, spilled and shared objects on this machine, as far as it exists.

    A cluster that was started with a directory of its own (``--temp-dir``) is not found.
    """
    parents = (os.environ.get("RAY_TMPDIR"), os.environ.get("TMPDIR"), _TEMPORARY)
    sessions = [Path(parent) / "ray" for parent in dict.fromkeys(parents) if parent]
    return [path for path in (*sessions, *sorted(_SHARED_MEMORY.glob("plasma*"))) if path.exists()]


def replay_directories() -> list[Path]:
    """What killed replays of workspaces that may only be read left in this process's temporary directory.

    A live replay holds its directory's lock and removes the directory itself.
    """
    left = sorted(Path(tempfile.gettempdir()).glob(f"{ELSEWHERE}*"))
    return [path for path in left if not _in_use(path)]


def _in_use(directory: Path) -> bool:
    try:
        return lock.held(directory / LOCK_FILE)
    except StorageError:  # another user's, which the search will say it could not read
        return False


# -- what it means -----------------------------------------------------------------------------

LEVEL = "residue"
_SHOWN: Mapping[What, str] = {"id": "ID", "text": "text", "tokens": "tokenised form"}
OUT_OF_REACH: Mapping[str, str] = {
    "copies and backups kept elsewhere": "only files under the directories named can be searched",
    "outputs, exports and certificates given out": "whoever has them must be told",
    "a Ray cluster with its own temporary directory": "started with --temp-dir; look there yourself, in its logs too",
    "weights of a replay killed on a read-only view": "sisa-replay-* in its temporary directory, which you may remove; "
    "this process's own is searched, but weights hold neither text nor ID",
    "other machines, their Ray directories and worker logs": "run the scan there too",
    "freed blocks of disks, swap and memory of live processes": "below the file system, where no file names them",
    "what weights have learnt": "shown by the law and by a replay, not by searching",
}

REMOTE = (
    "only files are searched; that no superseded object is there, the law asks; old versions and unfinished uploads "
    "go by the service's own rules (docs/storage.md)"
)


def residue_checks(
    found: Scan, wanted: Sequence[Needle], left_out: Sequence[str], elsewhere: Sequence[str] = ()
) -> list[Check]:
    """What a scan says: one check a kind of needle, what was not searched, what cannot be reached.

    Nothing found is a pass only if every file could be read.

    Args:
        found: of :func:`scan`.
        wanted, left_out: of :func:`shards.needles.needles`.
        elsewhere: URIs of a remote storage, which is not searched.
    """
    checks = [_of_kind(what, found, wanted) for what in _SHOWN]
    for name, missed in (
        ("every file was read and unpacked", found.unreadable),
        ("every part of every deleted record was searched for", left_out),
    ):
        evidence = f"{found.files} files, {found.bytes} bytes"
        checks.append(unchecked(LEVEL, name, listed(missed)) if missed else Check(LEVEL, name, "passed", evidence))
    checks += [unchecked(LEVEL, f"what lies at {uri}", REMOTE) for uri in elsewhere]
    return checks + [unchecked(LEVEL, name, reason) for name, reason in OUT_OF_REACH.items()]


def _of_kind(what: What, found: Scan, wanted: Sequence[Needle]) -> Check:
    name = f"no {_SHOWN[what]} of a deleted record is in the files searched"
    hits = [f"{hit.path}: {hit.where}: {hit.record}" for hit in found.findings if hit.what == what]
    records = sum(needle.what == what for needle in wanted)
    evidence = f"of {records} records, in {found.files} files of {found.bytes} bytes"
    if hits:
        return Check(LEVEL, name, "failed", f"{evidence}: {listed(hits)}")
    if not records:
        return unchecked(LEVEL, name, "nothing to search for")
    if found.unreadable:
        return unchecked(LEVEL, name, f"none {evidence}, but not every file could be searched in full")
    return Check(LEVEL, name, "passed", f"none {evidence}")


def activations_check(workspace: Workspace) -> Check:
    """Cached activations hold numbers, in which no text is found: each must be of a record that survives."""
    name = "no cached activations of a deleted record"
    strays = workspace.stray_activations(workspace.book.tombstones())
    if strays and workspace.driven():
        return unchecked(LEVEL, name, "a live process is writing")
    problems = [f"{path}: of no record that survives" for path in strays]
    evidence = f"{workspace.activations.size()} bytes, all of records that survive; told by name, not by content"
    return Check(LEVEL, name, "failed", listed(problems)) if problems else Check(LEVEL, name, "passed", evidence)


def data_check(found: Scan) -> Check:
    """What a scan of registered data files outside the workspace says; they are the operator's to clean."""
    name = "registered data files outside the workspace"
    evidence = f"{found.files} files, {found.bytes} bytes"
    holding = sorted({f"{hit.path} still holds a deleted record; remove it there" for hit in found.findings})
    if problems := [*holding, *found.unreadable]:
        return unchecked(LEVEL, name, f"{evidence}: {listed(problems)}")
    return Check(LEVEL, name, "passed", f"no deleted record in {evidence}")
