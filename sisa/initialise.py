"""Make a workspace: keys, a commented ``sisa.yaml``, an empty ledger."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shards.errors import ConfigError, InputError
from shards.files import TEMPORARY, fsync_directory, storage
from shards.keyfiles import create_root, create_signing_key, read_root
from shards.records import read_records
from shards.workspace import CONFIG_FILE, Workspace
from sisa.base_model import PACKAGED, locate, model_digests, pinned_path
from sisa.config import Settings, make_settings, read_settings, write_settings

_MEASURED = {"learning_rate": 2e-3, "epochs": 6, "rehearsal": 0.25}  # for the packaged encoder: docs/decisions/0022


def initialise(
    directory: Path,
    *,
    task: str | None = None,
    base_model: str | None = None,
    data: Sequence[Path] = (),
    keys_from: Path | None = None,
    values: Mapping[str, Any] | None = None,
) -> Settings:
    """Make a workspace in ``directory``, which must not hold one; ingests nothing.

    Args:
        directory: made if need be.
        task: ``classification`` or ``causal-lm``.
        base_model: directory or hub ID; the packaged encoder if None and the task is classification.
        data: files to register; the label list is proposed from them.
        keys_from: a workspace whose root secret, namespace and whole recipe are taken over, so that
            the fresh run can be made here. Its signing key is not.
        values: further keys of ``sisa.yaml``.

    Raises:
        InputError: if the directory holds a workspace, or a flag contradicts ``keys_from``.
    """
    given = dict(values or {})
    flags = {"task": task, "base_model": base_model}
    given |= {name: value for name, value in flags.items() if value is not None}
    if (directory / CONFIG_FILE).exists():
        raise InputError(f"no workspace in {directory} yet", CONFIG_FILE, "choose another directory")
    if directory.exists() and not directory.is_dir():
        raise InputError(f"a new directory {directory}", "a file of that name", "choose another directory")
    if directory.exists() and any(directory.iterdir()):
        raise InputError(f"an empty or new directory {directory}", "files in it", "choose another directory")
    if keys_from is not None:
        settings, root = _taken_over(keys_from, given, data), read_root(keys_from / "keys")
    else:
        settings, root = _proposed(directory, given, data), None
    # Built aside and renamed, so that a kill leaves a whole workspace or none.
    with storage(f"make a workspace in {directory}"):
        directory.parent.mkdir(parents=True, exist_ok=True)
        building = directory.parent / f"{TEMPORARY}{uuid.uuid4().hex}"
        try:
            create_root(building / "keys", root)
            create_signing_key(building / "keys")
            Workspace.create(building).close()
            write_settings(building, settings)
            if directory.exists():
                directory.rmdir()
            building.rename(directory)
            fsync_directory(directory.parent)
        finally:
            shutil.rmtree(building, ignore_errors=True)
    return settings


def _proposed(directory: Path, given: Mapping[str, Any], data: Sequence[Path]) -> Settings:
    values = dict(given)
    task = values.get("task")
    if task not in ("classification", "causal-lm"):
        raise ConfigError("--task classification or causal-lm", repr(task), "name the task")
    if "base_model" not in values:
        if task != "classification":
            raise ConfigError("--base-model PATH_OR_ID for causal-lm", "none", "name a causal language model")
        values["base_model"] = PACKAGED
    if values["base_model"] == PACKAGED:
        values = _MEASURED | values
    path = locate(str(values["base_model"]))
    values["base_model"] = _stable(str(values["base_model"]))
    weights, tokenizer = model_digests(path)
    pinned = {"base_model_digest": weights, "tokenizer_digest": tokenizer, "namespace": directory.resolve().name}
    values = pinned | values
    values["data"] = [str(file.resolve()) for file in data] or values.get("data", [])
    columns = values.get("columns") or {}
    if not isinstance(columns, dict):
        raise ConfigError("columns as our name: the files' name", repr(columns), "write --set 'columns={id: key}'")
    if data:
        incoming = read_records(data, task, columns=columns)
        if task == "classification" and "labels" not in values:
            values["labels"] = sorted({str(item.record.fields()["label"]) for item in incoming})
    elif task == "classification" and "labels" not in values:
        raise ConfigError("a label list", "neither --data nor --set labels=[...]", "give one of them")
    return make_settings(values, "the arguments of init")


def _taken_over(source: Path, given: Mapping[str, Any], data: Sequence[Path]) -> Settings:
    """The other workspace's settings: its recipe as pinned, its options but for data and columns."""
    workspace = Workspace.open(source)
    try:
        pinned = workspace.book.pinned()
    finally:
        workspace.close()
    theirs = read_settings(source, {})
    original = theirs.recipe.to_json() if pinned is None else pinned.recipe
    # Exported records have our own column names, whatever the files of the other workspace had.
    options = theirs.options.model_dump(mode="json") | {"data": [str(file.resolve()) for file in data], "columns": {}}
    options["base_model"] = _stable(str(given.get("base_model", options["base_model"])))
    merged = make_settings({**original, **options, **given, "base_model": options["base_model"]}, "the arguments")
    wrong = [key for key in given if key in original and merged.recipe.to_json()[key] != original[key]]
    if wrong:
        raise ConfigError(
            f"the recipe of {source}: " + ", ".join(f"{key}={original[key]}" for key in wrong),
            ", ".join(f"{key}={given[key]}" for key in wrong),
            "leave these flags out; --keys-from takes the whole recipe",
        )
    if "base_model" in given:
        pinned_path(merged.recipe, merged.options.base_model)
    return merged


def _stable(base_model: str) -> str:
    """A base model's name that means the same from another directory."""
    path = Path(base_model)
    return str(path.resolve()) if base_model != PACKAGED and path.is_dir() else base_model
