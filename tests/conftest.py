"""Fixtures that every test may use."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")


@pytest.fixture
def memory_path() -> Iterator[Path]:
    """A scratch directory on a memory file system where there is one: syncs cost nothing there."""
    shared = Path("/dev/shm")
    root = shared if os.access(shared, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="sisa-test-", dir=root) as directory:
        yield Path(directory)
