"""Fixtures that every test may use."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_worker_niceness", "0")  # 15 by default: other tests would starve what Ray's are waiting for
# Tiny models gain nothing from a second thread, and two beside another job collapse.
os.environ.setdefault("OMP_NUM_THREADS", "1")
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # in the background; whatever is started would ignore it too
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random BERT encoder that trains in milliseconds."""
    from tests.models import save_tiny_bert

    return save_tiny_bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama that trains in milliseconds."""
    from tests.models import save_tiny_llama

    return save_tiny_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[Path]:
    """The one Ray cluster of a test run, and its directory; an executor without an address uses it.

    Its directory is short because socket paths end at 107 bytes.
    """
    from orchestration.ray_executor import RayExecutor

    with tempfile.TemporaryDirectory(prefix="sisa-ray-", ignore_cleanup_errors=True) as directory:
        executor = RayExecutor(workers=2, init={"_temp_dir": directory})
        with executor.cluster():
            yield Path(directory)


@pytest.fixture
def memory_path() -> Iterator[Path]:
    """A scratch directory on a memory file system where there is one: syncs cost nothing there."""
    from tests.toy import memory_directory

    with memory_directory() as directory:
        yield directory
