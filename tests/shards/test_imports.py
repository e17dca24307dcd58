"""Imports go one way, and what only some need is imported only there."""

from __future__ import annotations

import ast
import io
import re
import subprocess
import sys
import tokenize
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
    "ray": {"orchestration.ray_cluster", "orchestration.ray_executor"},
    "sqlite3": {
        "shards.ledger",
        "shards.lease",
        "shards.migrations",
        "shards.sqlite_texts",
        "shards.whereabouts",
    },
    "peft": {"sisa.adapter", "sisa.export_forms"},
    "mergekit": {"sisa.merge"},
    "hashlib": {"shards.digest"},
    "hmac": {"shards.digest"},
    "cryptography.hazmat.primitives.hashes": {"shards.digest"},
    "cryptography.hazmat.primitives.kdf": {"shards.digest"},
    "pickle": set[str](),
    "fcntl": {"shards.lock", "shards.turn"},
    "rich.console": {"sisa.printing", "sisa.progress", "sisa.demo"},
}

# The module that a stranger reads and runs to check a certificate, and what it may not lean on.
VERIFIER = "sisa.verify"
VERIFIER_LINES = 1_500
VERIFIER_PACKAGES = {"cryptography", "rfc8785", "securesystemslib", "safetensors"}
NOT_FOR_THE_VERIFIER = {
    "orchestration",
    "shards.workspace",
    "shards.vault",
    "shards.store",
    "shards.ledger",
    "torch",
    "ray",
    "peft",
    "transformers",
    "pyarrow",
    "sqlite3",
    "socket",
    "ssl",
    "asyncio",
    "urllib",
    "http",
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


def closure(name: str) -> set[str]:
    """A module of ours and all of ours that it imports, directly or not, functions included."""
    found: set[str] = set()
    pending = [name]
    while pending:
        module = pending.pop()
        found.add(module)
        ours = {other for other in IMPORTS if any(within(used, other) for used in IMPORTS[module])}
        ours |= {other for other in IMPORTS if other != module and within(module, other)}  # packages it lies in
        pending += ours - found
    return found


def code_lines(source: str) -> int:
    """Lines that hold code: neither blank, nor only a comment, nor part of a docstring."""
    layout = {tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.COMMENT, tokenize.ENDMARKER}
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in layout:
            lines |= set(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            docstring = node.body[0]
            lines -= set(range(docstring.lineno, (docstring.end_lineno or 0) + 1))
    return len(lines)


def path_of(module: str) -> Path:
    path = ROOT.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def test_code_is_counted_without_blanks_comments_and_docstrings() -> None:
    source = '''"""Two lines
of docstring."""

import os  # counts


# does not
def f(
    a: int,
) -> str:
    """Docstring."""
    text = """two
lines"""
    return text
'''
    assert code_lines(source) == 7


def test_the_verifier_is_small_enough_to_be_read() -> None:
    counts = {module: code_lines(path_of(module).read_text()) for module in sorted(closure(VERIFIER))}
    assert counts[VERIFIER] > 0
    assert sum(counts.values()) < VERIFIER_LINES, counts


def test_the_verifier_leans_on_no_training_storage_or_network_code() -> None:
    ours = closure(VERIFIER)
    assert {"sisa.document", "shards.tlog", "shards.sparse", "shards.note", "shards.digest", "sisa"} <= ours
    used = ours.union(*(IMPORTS[module] for module in ours))
    assert {name for name in used for tree in NOT_FOR_THE_VERIFIER if within(name, tree)} == set()


def test_the_verifier_s_other_packages_are_few_and_of_the_base_install() -> None:
    outside = {name.partition(".")[0] for module in closure(VERIFIER) for name in IMPORTS[module]}
    assert outside - sys.stdlib_module_names - set(PACKAGES) == VERIFIER_PACKAGES
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {re.split(r"[^\w-]", line)[0] for line in project["dependencies"]} >= VERIFIER_PACKAGES


# Packages of extras are hidden: some that the verifier needs load cloud clients where there are any.
IN_A_BASE_INSTALL = """
import sys

class BaseInstall:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top not in allowed and top not in sys.stdlib_module_names:
            raise ModuleNotFoundError(name=name)

def forbid_network(event, arguments):
    if event.startswith(("socket.", "urllib.")):
        raise RuntimeError(event)

sys.meta_path.insert(0, BaseInstall())
sys.addaudithook(forbid_network)
from pathlib import Path
from sisa.verify import Evidence, verify
_, checks = verify(Path(sys.argv[1]), Evidence())
assert [check.outcome for check in checks if check.level == "V0"] == ["failed"], checks
print(*sorted(sys.modules))
"""


def test_a_running_verifier_has_loaded_no_training_storage_or_network_code(tmp_path: Path) -> None:
    (tmp_path / "certificate.json").write_text("{}")
    allowed = {"sisa", "shards", "_cffi_backend", *VERIFIER_PACKAGES}
    code = f"allowed = {allowed!r}\n{IN_A_BASE_INSTALL}"
    command = [sys.executable, "-c", code, str(tmp_path / "certificate.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.split())
    assert VERIFIER in loaded
    network = {name for name in loaded for tree in NOT_FOR_THE_VERIFIER if within(name, tree)}
    assert network <= {"urllib", "urllib.parse"}, "only what takes addresses apart"
    assert {name for name in loaded if name.partition(".")[0] in PACKAGES} <= closure(VERIFIER)
