"""Imports go one way, and what only some need is imported only there."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("shards", "orchestration", "sisa")

# Whoever is on the left may not import what is on the right.
FORBIDDEN = {
    "shards": {"orchestration", "sisa", "torch", "ray", "peft", "transformers", "mergekit"},
    "orchestration": {"sisa", "torch", "peft", "transformers", "mergekit"},
    "sisa": {"ray"},
}
# Only these modules may import what is on the left.
ONLY_IN = {
    "ray": {"orchestration.ray_executor"},
    "sqlite3": {"shards.ledger", "shards.migrations"},
    "peft": {"sisa.adapter", "sisa.aggregate", "sisa.merge", "sisa.export"},
    "hashlib": {"shards.digest"},
    "hmac": {"shards.digest"},
    "cryptography.hazmat.primitives.hashes": {"shards.digest"},
    "cryptography.hazmat.primitives.kdf": {"shards.digest"},
    "pickle": set[str](),
    "fcntl": {"shards.lock"},
    "rich.console": {"sisa.printing", "sisa.progress", "sisa.demo"},
}


def modules() -> Iterator[tuple[str, ast.Module]]:
    """Every module of the three packages."""
    for package in PACKAGES:
        for path in sorted((ROOT / package).glob("**/*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            yield ".".join(part for part in parts if part != "__init__"), ast.parse(path.read_text())


def imported(tree: ast.Module) -> set[str]:
    """Dotted names of everything imported anywhere in a module, functions included."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the arrows"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def within(name: str, tree: str) -> bool:
    return name == tree or name.startswith(f"{tree}.")


IMPORTS = {name: imported(tree) for name, tree in modules()}


def test_the_walk_sees_the_packages() -> None:
    assert {"shards.digest", "orchestration.reconcile", "sisa.cli", "sisa.commands.flows"} <= IMPORTS.keys()
    assert any(within(name, "shards.digest") for name in IMPORTS["shards.lineage"])


def test_every_package_is_listed_for_installation() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    found = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for package in PACKAGES
        for path in (ROOT / package).glob("**/__init__.py")
    }
    assert set(project["tool"]["setuptools"]["packages"]) == found


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_go_one_way(package: str) -> None:
    wrong = [
        f"{module} imports {name}"
        for module, names in IMPORTS.items()
        if within(module, package)
        for name in names
        for tree in FORBIDDEN[package]
        if within(name, tree)
    ]
    assert wrong == []


@pytest.mark.parametrize("tree", ONLY_IN)
def test_imported_only_where_it_belongs(tree: str) -> None:
    wrong = [
        module
        for module, names in IMPORTS.items()
        if module not in ONLY_IN[tree] and any(within(n, tree) for n in names)
    ]
    assert wrong == []


@pytest.mark.parametrize(
    "statement",
    [
        "import sisa.verify, sisa.audit, sisa.cli",
        "import sisa.delete, sisa.train, sisa.ingest, sisa.status, sisa.export, sisa.replay",
        "import orchestration.reconcile, orchestration.inline",
    ],
)
def test_auditing_and_planning_load_neither_torch_nor_ray(statement: str) -> None:
    heavy = "sorted({'torch', 'ray', 'peft', 'transformers'} & set(sys.modules))"
    code = f"import sys; {statement}; print({heavy})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"
