"""What a command that only reads loads: start-up is what most of them consist of.

Which modules are loaded is checked here; what that takes is measured by ``benchmarks/startup.py``.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from sisa.config import Settings, write_settings
from tests.sisa.trained import forget, trained
from tests.toy import memory_directory

ROOT = Path(__file__).parents[2]
TRAINING = {"torch", "transformers", "peft", "ray"}
# Reading a part of the vault takes pyarrow, and no more of it than that.
DATA_SETS = {"pyarrow.dataset", "pandas"}
READ_PARTS = {"pyarrow", "numpy"}

# The modules go to a file: stdout is the command's.
RUN = """
import sys
from pathlib import Path
{first}
from sisa.cli import main
main(sys.argv[2:])
Path(sys.argv[1]).write_text("\\n".join(sys.modules))
"""


@pytest.fixture(scope="module")
def workspace() -> Iterator[Path]:
    """A trained workspace out of which one record was deleted."""
    with memory_directory() as directory:
        session = trained(directory / "workspace", 18)
        write_settings(session.workspace.path, Settings(recipe=session.recipe, options=session.options))
        forget(session, "r1", request_id="first")
        session.workspace.close()
        yield session.workspace.path


def loaded(workspace: Path, *arguments: str, first: str = "") -> set[str]:
    """The modules that a fresh interpreter has loaded once it has run a command in a workspace."""
    with tempfile.TemporaryDirectory() as directory:
        names = Path(directory, "modules")
        command = [sys.executable, "-c", RUN.format(first=first), str(names), *arguments]
        done = subprocess.run(
            command, cwd=workspace, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return set(names.read_text().split())


def among(names: set[str], trees: set[str]) -> set[str]:
    """The ``names`` that are or lie within one of ``trees``."""
    return {name for name in names for tree in trees if name == tree or name.startswith(f"{tree}.")}


CERTIFICATE = "certificates/first.json"
WITHOUT_PARTS = {
    "help": ("--help",),
    "help of a command": ("audit", "--help"),
    "status": ("status",),
    "verify": ("verify", CERTIFICATE),
    "log head": ("log", "head"),
    "key list": ("key", "list"),
    "tombstones": ("tombstones",),
    "letter": ("letter", "--request", "first"),
}
WITH_PARTS = {
    "audit of an ID": ("audit", "--id", "r2"),
    "audit of a deleted ID": ("audit", "--id", "r1"),
    "audit of a subject": ("audit", "--subject", "s1"),
    "audit of a shard": ("audit", "--shard", "0"),
    "audit of everything": ("audit", "--all"),
    "verify against the workspace": ("verify", CERTIFICATE, "-w", "."),
    "requests": ("requests",),
    "hold --list": ("hold", "--list"),
}


def test_verifying_a_file_opens_no_workspace(workspace: Path) -> None:
    workspaces = {"shards.workspace", "shards.law", "sisa.verify_workspace"}
    assert not among(loaded(workspace, "verify", CERTIFICATE), workspaces)
    assert among(loaded(workspace, "verify", CERTIFICATE, "-w", "."), workspaces) == workspaces


@pytest.mark.parametrize("name", [*WITHOUT_PARTS, *WITH_PARTS])
def test_a_command_that_reads_loads_no_training_code_and_no_data_sets(name: str, workspace: Path) -> None:
    names = loaded(workspace, *(WITHOUT_PARTS | WITH_PARTS)[name])
    assert "sisa.cli" in names
    assert among(names, TRAINING | DATA_SETS) == set()
    if name in WITHOUT_PARTS:
        assert among(names, READ_PARTS) == set()


def test_what_a_command_loads_is_seen(workspace: Path) -> None:
    names = loaded(workspace, "status", first="import ray, pyarrow.dataset")
    assert {"ray", "pyarrow.dataset"} <= among(names, TRAINING | DATA_SETS)
    assert {"pyarrow", "numpy"} <= among(names, READ_PARTS)
    assert "pyarrow.parquet" in loaded(workspace, "audit", "--id", "r2")
