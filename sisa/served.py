"""The served heads, read once and held against their digests: what every answer, merge and export is made from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from shards.digest import parse_json
from shards.errors import IntegrityError
from shards.lineage import Checkpoint
from shards.manifest import Head, ModelManifest
from shards.trunk import TRUNK
from shards.workspace import ADAPTER_CONFIG_FILE, WEIGHTS_FILE, Workspace


@dataclass(frozen=True, slots=True)
class ServedHead:
    """A shard's adapter, as it is served.

    Attributes:
        head: which checkpoint it is.
        weights: its tensors as safetensors, named as PEFT names them.
        config: PEFT's ``adapter_config.json`` of it.
        records: how many of the shard's own records it has learned; those of a trunk stand behind every shard alike.
    """

    head: Head
    weights: bytes
    config: dict[str, Any]
    records: int


def served_heads(workspace: Workspace, manifest: ModelManifest) -> tuple[ServedHead, ...]:
    """A manifest's heads in shard order, each verified against its digest.

    Raises:
        IntegrityError: if a head is damaged, or no longer stored.
    """
    live = workspace.book.live()
    return tuple(_read(workspace, head, live) for head in manifest.heads)


def _read(workspace: Workspace, head: Head, live: dict[str, Checkpoint]) -> ServedHead:
    if head.checkpoint not in live:
        raise IntegrityError(f"a live checkpoint {head.checkpoint}, which is served", "none", "run `sisa audit --all`")
    files = workspace.store.get(live[head.checkpoint].files)
    # An object that has no such file has no weights, whatever else lies in it: loading nothing is refused.
    weights, config = files.get(WEIGHTS_FILE, b""), files.get(ADAPTER_CONFIG_FILE, b"{}")
    return ServedHead(head, weights, parse_json(config.decode()), _records(head.checkpoint, live))


def _records(checkpoint: str, live: dict[str, Checkpoint]) -> int:
    """Records of a head's slice and of those before it."""
    count, key = 0, checkpoint
    while key in live and live[key].link.shard != TRUNK:
        count, parent = count + live[key].own, live[key].link.parent
        key = parent or ""
    return count
