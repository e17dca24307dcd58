"""A shelf in a directory: what frozen layers make of each record, a file each. Not encrypted: for measuring only."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class DirectoryShelf:
    """Values by record and kind."""

    directory: Path

    def get(self, record_id: str, kind: str) -> bytes | None:
        """What was put, or nothing."""
        path = self._path(record_id, kind)
        return path.read_bytes() if path.is_file() else None

    def put(self, record_id: str, kind: str, value: bytes) -> None:
        """Keep a value."""
        self._path(record_id, kind).write_bytes(value)

    def _path(self, record_id: str, kind: str) -> Path:
        return self.directory / f"{record_id}-{kind}"
