"""Workspaces with a history, made once and copied by whoever spoils them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.flows.helpers import QUICK, begin, chat, done, settings, ticket, write_jsonl


@dataclass(frozen=True, slots=True)
class Site:
    """A trained workspace, and what it was made of.

    Attributes:
        path: the workspace; tests that change it work on a copy.
        base: its base model.
        data: its registered file.
        task: what it learns.
    """

    path: Path
    base: Path
    data: Path
    task: str


@dataclass(frozen=True, slots=True)
class Deletion:
    """A workspace out of which records were deleted.

    Attributes:
        site: the workspace before.
        path: the workspace after.
        ids: the records deleted.
        certificate: a copy of the certificate outside the workspace.
    """

    site: Site
    path: Path
    ids: tuple[str, ...]
    certificate: Path


def make_site(directory: Path, base: Path, task: str) -> Site:
    """Init and train through the command line."""
    rows = [ticket(n) if task == "classification" else chat(n) for n in range(16)]
    data = write_jsonl(directory / "records.jsonl", rows)
    path = directory / "workspace"
    begin(path, "--task", task, "--base-model", base, "--data", data, *settings(*QUICK))
    done("train", "-w", path)
    return Site(path, base, data, task)


@pytest.fixture(scope="session")
def classification(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Site:
    """Sixteen tickets in two shards of two slices."""
    return make_site(tmp_path_factory.mktemp("classification"), tiny_bert, "classification")


@pytest.fixture(scope="session")
def causal(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Site:
    """The same for a causal language model."""
    return make_site(tmp_path_factory.mktemp("causal"), tiny_llama, "causal-lm")


@pytest.fixture(scope="session")
def deletion(classification: Site, tmp_path_factory: pytest.TempPathFactory) -> Deletion:
    """One customer's two tickets deleted and certified."""
    import shutil

    directory = tmp_path_factory.mktemp("deletion")
    path = directory / "workspace"
    shutil.copytree(classification.path, path)
    certificate = directory / "certificate.json"
    document = done("delete", "-w", path, "--subject", ticket(4)["subject"], "--certificate", certificate)
    return Deletion(classification, path, tuple(document["ids"]), certificate)
