"""The one key of sisa.yaml that every opener of a workspace reads: where its records and checkpoints lie."""

from __future__ import annotations

from pathlib import Path

import yaml

from shards.errors import ConfigError
from shards.remote import local_path

_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast: every worker opens for every step


def configured_storage(file: Path) -> str | None:
    """Where the workspace with the configuration ``file`` keeps records and checkpoints; None: in itself.

    Every opener reads this one key of sisa.yaml, so nobody has to be told.

    Raises:
        ConfigError: if it cannot be read, or lies inside the workspace.
        InputError: if it is no location.
    """
    try:
        values = yaml.load(file.read_text(encoding="utf-8"), Loader=_Loader) if file.exists() else None  # noqa: S506
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"YAML in {file}", " ".join(str(error).split()), "mend it") from error
    location = values.get("storage") if isinstance(values, dict) else None
    if location is None:
        return None
    if not isinstance(location, str):
        raise ConfigError(f"storage in {file} as text", repr(location), "write an absolute path or a URI")
    directory = local_path(location, "storage")
    if directory is not None and directory.resolve().is_relative_to(file.parent.resolve()):
        raise ConfigError("storage outside the workspace, or null for inside", location, "choose another directory")
    return location
