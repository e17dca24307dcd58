"""What was made of served heads: exports of models, predictions, copies of the records.

Whatever left the workspace is out of reach: a deletion can only name it. An export that is kept in the
workspace is ours: it lies there for as long as every checkpoint that it was made of does.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from shards.digest import file_digest, files_digest, keyed
from shards.fact import Fact
from shards.files import storage
from shards.keys import Keyring

if TYPE_CHECKING:
    from shards.workspace import Workspace


@dataclass(frozen=True, slots=True)
class Export:
    """A model that was made of served heads.

    Attributes:
        form: which kind of directory it is.
        keyed_digest: keyed digest (hex) of its files.
        parents: keys of the checkpoints it was made of.
        kept: is it the workspace's own, or did it leave?
    """

    form: str
    keyed_digest: str
    parents: frozenset[str]
    kept: bool

    @property
    def name(self) -> str:
        """Of its directory, if it is kept."""
        return f"{self.form}-{self.keyed_digest[:16]}"

    @classmethod
    def of(cls, fact: Fact) -> Self:
        """The export that a fact tells of."""
        body = fact.body
        return cls(str(body["form"]), str(body["keyed_digest"]), frozenset(body["parents"]), bool(body["kept"]))


def directory_digest(path: Path, keys: Keyring) -> str:
    """Keyed digest (hex) of all files of an export, names included.

    Raises:
        StorageError: if they cannot be read.
    """
    with storage(f"read {path}"):
        files = {file.relative_to(path).as_posix(): file for file in path.rglob("*") if file.is_file()}
        plain = files_digest({name: file_digest(file) for name, file in files.items()})
    return keyed(keys.fingerprint, "derived", plain).hex()


def made_of(workspace: Workspace, tags: Set[bytes], until: int | None) -> list[Fact]:
    """What holds the records with these tags or may come of them, oldest first: also of what was purged long ago.

    Args:
        workspace: whose facts are asked.
        tags: of records that were held.
        until: number of the fact by which the records were deleted, after which copies of what survived have
            them no more; None if they are held.
    """
    if not tags or not workspace.book.derived():
        return []
    visible = workspace.visible_sets()
    return [
        fact
        for fact in workspace.book.derived()
        if any(tags & visible.get(parent, tags) for parent in fact.body["parents"])
        or (fact.body["kind"] == "records" and (until is None or fact.seq < until))
    ]
