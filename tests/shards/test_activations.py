"""The cache of activations: a value comes back as it was put, or not at all."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from shards.activations import Activations, AttemptShelf, entry_name
from shards.errors import StorageError
from shards.keys import Keyring
from shards.records import Record
from shards.vault import StoredRecord
from tests.toy import ROOT, toy_record

KIND, OTHER = "ab" * 32, "cd" * 32
KEYS = Keyring.from_root(ROOT)


def held(record: Record) -> StoredRecord:
    return StoredRecord.of(record, KEYS, "toy", truncated=False)


ONE, TWO = held(toy_record(1)), held(toy_record(2))


@pytest.fixture
def cache(memory_path: Path) -> Activations:
    return Activations(memory_path / "activations")


@pytest.fixture
def staging(memory_path: Path) -> Path:
    """Within the place of an attempt."""
    (memory_path / "attempt").mkdir()
    return memory_path / "attempt" / "activations"


@pytest.fixture
def shelf(cache: Activations, staging: Path) -> AttemptShelf:
    return AttemptShelf(cache, staging, 3, [ONE, TWO])


def files(root: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}


def keep(cache: Activations, shelf: AttemptShelf, staging: Path) -> tuple[Path, Path]:
    """Entries of both records, of one kind."""
    shelf.put("r1", KIND, b"one")
    shelf.put("r2", KIND, b"two")
    cache.adopt(staging, 3)
    one, two = (cache.directory(KIND, 3) / entry_name(stored) for stored in (ONE, TWO))
    return one, two


def test_a_value_comes_back_from_the_attempt_and_from_the_cache(
    cache: Activations, shelf: AttemptShelf, staging: Path
) -> None:
    assert shelf.get("r1", KIND) is None
    shelf.put("r1", KIND, b"value")
    shelf.put("r2", KIND, b"")
    assert (shelf.get("r1", KIND), shelf.get("r2", KIND)) == (b"value", b"")
    assert not cache.root.exists(), "a worker wrote into the cache"
    cache.adopt(staging, 3)
    assert files(staging) == {}
    later = AttemptShelf(cache, staging.parent / "later", 3, [ONE])
    assert later.get("r1", KIND) == b"value"
    assert later.get("r1", OTHER) is None
    assert cache.size() == 32 + 5 + 32
    assert {path.stat().st_mode & 0o777 for path in (cache.root, *cache.root.rglob("*")) if path.is_dir()} == {0o700}


def test_a_value_put_again_replaces_what_is_kept(cache: Activations, shelf: AttemptShelf, staging: Path) -> None:
    one, _ = keep(cache, shelf, staging)
    one.write_bytes(b"torn")
    shelf.put("r1", KIND, b"first")
    shelf.put("r1", KIND, b"again")
    cache.adopt(staging, 3)
    assert shelf.get("r1", KIND) == b"again"


def test_another_version_or_content_is_another_entry() -> None:
    others = [held(toy_record(1, version=2)), held(toy_record(1, content="{}")), held(toy_record(2))]
    assert len({entry_name(stored) for stored in (ONE, *others)}) == 4
    assert entry_name(held(toy_record(1, subject=None))) == entry_name(ONE), "it is drawn from salt or subject"


def shorten(one: Path, two: Path) -> None:
    one.write_bytes(one.read_bytes()[:-1])


def empty(one: Path, two: Path) -> None:
    one.write_bytes(b"")


def flip_the_value(one: Path, two: Path) -> None:
    data = one.read_bytes()
    one.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


def flip_the_digest(one: Path, two: Path) -> None:
    data = one.read_bytes()
    one.write_bytes(bytes([data[0] ^ 1]) + data[1:])


def put_another_records_there(one: Path, two: Path) -> None:
    one.write_bytes(two.read_bytes())


def put_another_kinds_there(one: Path, two: Path) -> None:
    (one.parents[2] / OTHER).mkdir()
    one.parent.replace(one.parents[2] / OTHER / one.parent.name)


def link(one: Path, two: Path) -> None:
    one.rename(one.with_suffix(".moved"))
    one.symlink_to(one.with_suffix(".moved"))


def make_it_a_directory(one: Path, two: Path) -> None:
    one.unlink()
    one.mkdir()


def make_it_a_pipe(one: Path, two: Path) -> None:
    one.unlink()
    os.mkfifo(one)


def move_to_another_shard(one: Path, two: Path) -> None:
    one.parent.rename(one.parent.with_name("0004"))


DAMAGES = [
    shorten, empty, flip_the_value, flip_the_digest, put_another_records_there, put_another_kinds_there, link,
    make_it_a_directory, make_it_a_pipe, move_to_another_shard,
]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_damaged_or_elsewhere_is_not_found(
    damage: Callable[[Path, Path], None], cache: Activations, shelf: AttemptShelf, staging: Path
) -> None:
    one, two = keep(cache, shelf, staging)
    assert shelf.get("r1", KIND) == b"one"
    damage(one, two)
    assert shelf.get("r1", KIND) is None
    assert shelf.get("r1", OTHER) is None


def test_what_is_no_record_of_the_step_and_what_is_no_digest_are_refused(shelf: AttemptShelf, staging: Path) -> None:
    for kind in ("", "..", "AB", "ab/cd", "g"):
        with pytest.raises(ValueError, match="hex"):
            shelf.get("r1", kind)
        with pytest.raises(ValueError, match="hex"):
            shelf.put("r1", kind, b"x")
    with pytest.raises(KeyError):
        shelf.put("r7", KIND, b"x")
    assert not staging.exists()


# -- who writes, and when there is no room --------------------------------------------------------------


def test_a_shelf_whose_attempt_is_over_writes_nothing(
    cache: Activations, shelf: AttemptShelf, staging: Path, memory_path: Path
) -> None:
    shelf.put("r1", KIND, b"one")
    staging.parent.rename(memory_path / "over")
    with pytest.raises(StorageError, match="No such file"):
        shelf.put("r2", KIND, b"two")
    assert [path.relative_to(memory_path).parts[:2] for path in files(memory_path)] == [("over", "activations")]
    assert not cache.root.exists()


def fails(monkeypatch: pytest.MonkeyPatch, name: str, number: int) -> None:
    """Writing or renaming an entry fails, after half of it was written."""

    def fail(path: Path, what: bytes | Path) -> None:
        if isinstance(what, bytes):
            with path.open("wb") as handle:
                handle.write(what[: len(what) // 2])
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(Path, name, fail)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_on_a_full_disk_nothing_is_kept_and_what_was_put_by_is_given_up(
    number: int, shelf: AttemptShelf, staging: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf.put("r1", KIND, b"one")
    with monkeypatch.context() as patch:
        fails(patch, "write_bytes", number)
        shelf.put("r2", KIND, b"two")
    assert not staging.exists()
    assert (shelf.get("r1", KIND), shelf.get("r2", KIND)) == (None, None)
    shelf.put("r1", KIND, b"one")
    assert not staging.exists(), "it tries again, and takes the room that the checkpoint needs"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EXDEV])
def test_what_the_cache_has_no_room_for_is_not_kept(
    number: int, cache: Activations, shelf: AttemptShelf, staging: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf.put("r1", KIND, b"one")
    fails(monkeypatch, "replace", number)
    cache.adopt(staging, 3)
    assert files(cache.root) == {}


def test_a_disk_that_fails_otherwise_is_told(
    cache: Activations, shelf: AttemptShelf, staging: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf.put("r1", KIND, b"one")
    fails(monkeypatch, "write_bytes", errno.EIO)
    with pytest.raises(StorageError, match="keep activations"):
        shelf.put("r2", KIND, b"two")
    fails(monkeypatch, "replace", errno.EIO)
    with pytest.raises(StorageError, match="keep activations"):
        cache.adopt(staging, 3)


def test_a_torn_entry_of_an_attempt_is_adopted_and_never_found(
    cache: Activations, shelf: AttemptShelf, staging: Path
) -> None:
    shelf.put("r1", KIND, b"one")
    shorten(staging / KIND / entry_name(ONE), staging)
    assert shelf.get("r1", KIND) is None
    cache.adopt(staging, 3)
    assert shelf.get("r1", KIND) is None


# -- what may lie there --------------------------------------------------------------------------------


def test_whatever_is_no_entry_of_a_name_given_is_swept_and_the_rest_is_left(
    cache: Activations, shelf: AttemptShelf, staging: Path, memory_path: Path
) -> None:
    one, two = keep(cache, shelf, staging)
    outside = memory_path / "outside"
    outside.mkdir()
    (outside / "x").write_bytes(b"x")
    (one.parent / "directory").mkdir()
    (one.parents[1] / "0004").mkdir()
    (one.parents[1] / "0004" / one.name).write_bytes(one.read_bytes())
    (one.parents[1] / "4").mkdir()
    os.mkfifo(one.parents[1] / "file")
    (cache.root / "not-hex").mkdir()
    (cache.root / OTHER).symlink_to(outside)
    kept = {one: one.read_bytes()}
    asked: list[int] = []

    def names(shard: int) -> frozenset[str]:
        asked.append(shard)
        return frozenset({one.name}) if shard == 3 else frozenset({two.name})

    found = cache.strays(names)
    assert sorted(asked) == [3, 4], "asked of a shard more than once, or of others"
    assert set(found) == {
        two, one.parent / "directory", one.parents[1] / "0004" / one.name, one.parents[1] / "4",
        one.parents[1] / "file", cache.root / "not-hex", cache.root / OTHER,
    }  # fmt: skip
    assert sorted(cache.sweep(names)) == sorted(path.name for path in found)
    assert files(cache.root) == kept
    assert cache.strays(names) == []
    assert (outside / "x").exists(), "it followed a link"


def test_what_cannot_be_looked_at_is_not_taken_for_nothing(
    cache: Activations, shelf: AttemptShelf, staging: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep(cache, shelf, staging)

    def fail(path: Path) -> os.stat_result:
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    monkeypatch.setattr(Path, "lstat", fail)
    with pytest.raises(StorageError, match="remove activations"):
        cache.sweep(lambda _: frozenset())


@pytest.mark.parametrize("how", ["absent", "file", "link", "dangling"])
def test_what_is_no_directory_is_a_stray_itself_and_nobody_is_asked(
    how: str, cache: Activations, memory_path: Path
) -> None:
    (memory_path / "elsewhere").mkdir()
    if how == "file":
        cache.root.touch()
    elif how != "absent":
        cache.root.symlink_to(memory_path / ("elsewhere" if how == "link" else "nowhere"))

    def names(shard: int) -> frozenset[str]:
        raise AssertionError(shard)

    assert cache.sweep(names) == ([] if how == "absent" else ["activations"])
    assert not os.path.lexists(cache.root)
    assert (memory_path / "elsewhere").exists()
