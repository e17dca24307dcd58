"""What is served, written into the storage for readers that have no ledger.

STORAGE/LOG/manifest.json is the manifest with, for each head, where its adapter lies below STORAGE/LOG.
It follows the ledger: it is written after the fact and, after a kill in between, by the next driver.
Nobody signed it. A reader that needs proof has the ledger, or a certificate.
"""

from __future__ import annotations

from shards.digest import canonical_json, parse_json
from shards.errors import IntegrityError
from shards.manifest import ModelManifest
from shards.place import AbsentError, Place
from shards.workspace import Workspace

FILE = "manifest.json"


def announce(workspace: Workspace) -> None:
    """Write the manifest served now into the storage, unless it is there; without storage, nothing.

    To be called after each manifest fact, and by every driver before it removes anything.

    Raises:
        IntegrityError: if what is announced is newer than the ledger, or of another history: this is an old
            copy of the workspace, and would sweep what the newer one stored.
        StorageError: if it cannot be written.
    """
    place, manifest = workspace.place(), workspace.book.manifest()
    if place is None:
        return
    with place.trying(f"write {FILE}"):
        before = _read(place)
        _refuse_newer(before, manifest, place)
        if manifest is None:
            return
        live = workspace.book.live()
        served = [head.checkpoint for head in manifest.heads if head.checkpoint in live]
        adapters = {checkpoint: f"store/{live[checkpoint].files}" for checkpoint in served}
        if before != (manifest, adapters):
            place.replace(FILE, canonical_json({**manifest.to_json(), "adapters": adapters}))


def announced(place: Place) -> tuple[ModelManifest, dict[str, str]]:
    """The manifest last announced, and where the adapter of each of its checkpoints lies.

    Args:
        place: STORAGE/LOG.

    Raises:
        IntegrityError: if there is none, or it is damaged.
        StorageError: if it cannot be read.
    """
    with place.trying(f"read {FILE}"):
        found = _read(place)
    if isinstance(found, str):
        raise IntegrityError(f"a manifest at {place.where(FILE)}", found, "run `sisa train`, which writes it again")
    return found


def _read(place: Place) -> tuple[ModelManifest, dict[str, str]] | str:
    """What is announced, or why nothing is."""
    try:
        body = parse_json(place.read(FILE))
        manifest = ModelManifest.from_json(body)
        adapters = {str(checkpoint): str(where) for checkpoint, where in body["adapters"].items()}
    except AbsentError as error:
        return str(error)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return f"a damaged one ({type(error).__name__})"
    return (manifest, adapters) if body["digest"] == manifest.digest else "one whose digest is not that of its heads"


def _refuse_newer(
    before: tuple[ModelManifest, dict[str, str]] | str, manifest: ModelManifest | None, place: Place
) -> None:
    if isinstance(before, str):
        return
    there, here = before[0].generation, -1 if manifest is None else manifest.generation
    if there > here or (there == here and before[0] != manifest):
        raise IntegrityError(
            f"in {place.where()} what this workspace stored",
            f"generation {there}, and the ledger's last is {here if manifest else 'none'}",
            "drive the newer workspace, not this copy; with a backup, restore its storage too (docs/storage.md)",
        )
