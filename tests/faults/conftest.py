"""Fixtures of the fault tests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.flows.fixtures import classification, deletion

__all__ = ["Order", "classification", "deletion", "kills", "toy_kills"]

Order = Callable[..., dict[str, Any]]


@contextmanager
def server(*arguments: str, module: str = "server", **environment: str) -> Iterator[Order]:
    """Orders to a process that forks a child for each (see ``tests/faults/server.py``)."""
    command = [sys.executable, "-m", f"tests.faults.{module}", *arguments]
    root = Path(__file__).parents[2]
    with subprocess.Popen(
        command,
        cwd=root,
        env={**os.environ, **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        orders, answers = process.stdin, process.stdout

        def order(*what: Any) -> dict[str, Any]:
            orders.write(json.dumps([str(part) if isinstance(part, Path) else part for part in what]) + "\n")
            orders.flush()
            answer: dict[str, Any] = json.loads(answers.readline())
            return answer

        yield order
        orders.close()


@pytest.fixture(scope="session")
def kills() -> Iterator[Order]:
    """For commands that train models: torch is imported once, not once a kill."""
    with server("models") as order:
        yield order


@pytest.fixture(scope="session")
def toy_kills() -> Iterator[Order]:
    """For the toy trainer: a small process forks fast."""
    with server() as order:
        yield order
