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

    To be called after each manifest fact, and once at the beginning by every driver.

    Raises:
        StorageError: if it cannot be written.
    """
    place, manifest = workspace.place(), workspace.book.manifest()
    if place is None or manifest is None:
        return
    live = workspace.book.live()
    served = [head.checkpoint for head in manifest.heads if head.checkpoint in live]
    adapters = {checkpoint: f"store/{live[checkpoint].files}" for checkpoint in served}
    data = canonical_json({**manifest.to_json(), "adapters": adapters})
    with place.trying(f"write {FILE}"):
        try:
            written = place.read(FILE)
        except AbsentError:
            written = b""
        if written != data:
            place.replace(FILE, data)


def announced(place: Place) -> tuple[ModelManifest, dict[str, str]]:
    """The manifest last announced, and where the adapter of each of its checkpoints lies.

    Args:
        place: STORAGE/LOG.

    Raises:
        IntegrityError: if there is none, or it is damaged.
        StorageError: if it cannot be read.
    """
    with place.trying(f"read {FILE}"):
        try:
            body = parse_json(place.read(FILE))
            manifest = ModelManifest.from_json(body)
            adapters = {head.checkpoint: str(body["adapters"][head.checkpoint]) for head in manifest.heads}
            problem = "" if body["digest"] == manifest.digest else "another digest than its heads have"
        except AbsentError as error:
            problem = str(error)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            problem = f"a damaged one ({type(error).__name__})"
    if problem:
        raise IntegrityError(f"a manifest at {place.where(FILE)}", problem, "run `sisa train`, which writes it again")
    return manifest, adapters
