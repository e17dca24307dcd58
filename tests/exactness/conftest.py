"""Trained workspaces to delete from: each recipe is trained once a test run, and copied for every test."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.models import Place, Row, flat, grid, make_workspace, train_in, write_rows


@dataclass(frozen=True)
class Trained:
    """A trained workspace of one's own.

    Attributes:
        path: the workspace.
        places: the rows at each (shard, slice), in a fixed order.
        scratch: room beside it.
    """

    path: Path
    places: dict[Place, list[Row]]
    scratch: Path

    def ids(self, shard: int, number: int) -> list[str]:
        """The record IDs of one slice of a shard."""
        return [each["id"] for each in self.places[shard, number]]


@dataclass
class Trainery:
    """Hands out copies of trained workspaces."""

    bases: dict[str, Path]
    root: Path
    _made: dict[str, tuple[Path, dict[Place, list[Row]]]] = field(default_factory=dict)
    _copies: int = 0

    def __call__(self, task: str, *, per_place: int = 5, base: str | None = None, **values: Any) -> Trained:
        """A copy of the workspace of a task and recipe, trained inline by the unchanged program."""
        name = repr((task, per_place, base, sorted(values.items())))
        if name not in self._made:
            path = self.root / f"original-{len(self._made)}"
            places = grid(task, per_place, **values)
            data = write_rows(path.with_suffix(".jsonl"), flat(places))
            make_workspace(path, task, base or self.bases[task], **values)
            train_in(path, data)
            self._made[name] = (path, places)
        path, places = self._made[name]
        self._copies += 1
        scratch = self.root / f"copy-{self._copies}"
        shutil.copytree(path, scratch / "workspace")
        return Trained(scratch / "workspace", places, scratch)


@pytest.fixture(scope="session")
def trainery(tiny_bert: Path, tiny_llama: Path) -> Iterator[Trainery]:
    """One for the whole run; on a memory file system where there is one."""
    shared = Path("/dev/shm")
    root = shared if os.access(shared, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="sisa-exact-", dir=root) as directory:
        yield Trainery({"classification": tiny_bert, "causal-lm": tiny_llama}, Path(directory))
