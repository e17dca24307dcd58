"""The store: objects are named by their bytes, put once, and verified on every read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from shards.errors import IntegrityError, StorageError
from shards.store import Store

FILES = {"a.bin": b"one", "b.json": b"two"}


@pytest.fixture
def store(memory_path: Path) -> Store:
    (memory_path / "store").mkdir()
    return Store(memory_path / "store")


def test_an_object_comes_back_as_it_was_put(store: Store) -> None:
    name = store.put(FILES)
    assert store.get(name) == FILES
    assert store.intact(name)
    assert store.objects() == {name}
    assert store.size() == 6


def test_putting_twice_stores_once_and_touches_nothing(store: Store) -> None:
    name = store.put(FILES)
    before = (store.path(name) / "a.bin").stat().st_ino
    assert store.put(dict(reversed(FILES.items()))) == name
    assert (store.path(name) / "a.bin").stat().st_ino == before
    assert store.objects() == {name}


def test_names_and_contents_are_both_part_of_the_name(store: Store) -> None:
    assert len({store.put(files) for files in (FILES, {"a.bin": b"two", "b.json": b"one"}, {"a.bin": b"one"})}) == 3


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "a/b", "/a", "../a", "a/"])
def test_a_name_that_is_no_plain_file_name_is_refused_before_anything_is_written(name: str, store: Store) -> None:
    with pytest.raises(ValueError, match="not a plain file name"):
        store.put({name: b"x"})
    assert store.objects() == frozenset()


def damage_edit(path: Path) -> None:
    (path / "a.bin").write_bytes(b"onE")


def damage_remove(path: Path) -> None:
    (path / "a.bin").unlink()


def damage_add(path: Path) -> None:
    (path / "c").write_bytes(b"")


def damage_rename(path: Path) -> None:
    (path / "a.bin").rename(path / "c.bin")


def damage_directory(path: Path) -> None:
    (path / "c").mkdir()


def damage_link(path: Path) -> None:
    (path / "a.bin").rename(path.parent / "elsewhere")
    (path / "a.bin").symlink_to(path.parent / "elsewhere")


def damage_all(path: Path) -> None:
    for file in path.iterdir():
        file.unlink()


DAMAGES = [damage_edit, damage_remove, damage_add, damage_rename, damage_directory, damage_link, damage_all]


@pytest.mark.parametrize("damage", DAMAGES)
def test_any_damage_is_seen_on_reading_and_mended_by_putting_again(
    damage: Callable[[Path], None], store: Store
) -> None:
    name = store.put(FILES)
    damage(store.path(name))
    assert not store.intact(name)
    with pytest.raises(IntegrityError, match=name):
        store.get(name)
    assert store.put(FILES) == name
    assert store.get(name) == FILES


def test_a_missing_object_is_an_integrity_error(store: Store) -> None:
    with pytest.raises(IntegrityError, match="nothing at"):
        store.get("0" * 64)
    assert not store.intact("0" * 64)


def test_a_purge_removes_every_file_and_may_be_repeated(store: Store) -> None:
    name, other = store.put(FILES), store.put({"c": b"c"})
    store.purge(name)
    store.purge(name)
    assert not store.path(name).exists()
    assert store.objects() == {other}


@pytest.mark.parametrize("kind", ["file", "link", "dangling link", "directory"])
def test_a_purge_removes_whatever_bears_the_name(kind: str, store: Store, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "kept").touch()
    stray = store.path("stray")
    if kind == "file":
        stray.touch()
    elif kind == "directory":
        (stray / "deep").mkdir(parents=True)
    else:
        stray.symlink_to(tmp_path / ("elsewhere" if kind == "link" else "nowhere"))
    store.purge("stray")
    assert store.objects() == frozenset()
    assert (tmp_path / "elsewhere" / "kept").exists(), "a purge followed a link out of the store"


def test_an_object_behind_a_link_is_none_of_ours(store: Store, memory_path: Path) -> None:
    name = store.put(FILES)
    store.path(name).rename(memory_path / "moved")
    store.path(name).symlink_to(memory_path / "moved")
    assert not store.intact(name)
    assert store.put(FILES) == name
    assert not store.path(name).is_symlink()
    assert store.get(name) == FILES


def test_what_a_killed_put_left_is_listed_so_that_it_can_be_swept(store: Store) -> None:
    (store.root / ".tmp-dead").mkdir()
    assert store.objects() == {".tmp-dead"}


def test_a_store_that_cannot_be_written_is_a_storage_error(memory_path: Path) -> None:
    (memory_path / "file").touch()
    with pytest.raises(StorageError, match="store an object"):
        Store(memory_path / "file" / "store").put(FILES)


def test_an_absent_store_holds_nothing(memory_path: Path) -> None:
    assert Store(memory_path / "none").objects() == frozenset()


def test_an_object_put_elsewhere_is_taken_over_once_and_verified(store: Store) -> None:
    staging = Store(store.root / "staging")
    for _ in range(2):
        staging.root.mkdir(exist_ok=True)
        name = staging.put(FILES)
        store.adopt(staging.root, name)
        assert store.get(name) == FILES
    (store.path(name) / "a.bin").write_bytes(b"damaged")
    staging.put(FILES)
    store.adopt(staging.root, name)
    assert store.get(name) == FILES
    with pytest.raises(IntegrityError, match="nothing at"):
        store.adopt(store.root / "nowhere", name)
    assert store.get(name) == FILES
