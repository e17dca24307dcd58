"""Keyed references: how the ledger names people and reasons without holding personal data.

Who asked for a deletion, who allowed it, why, and who was given an export stand in the ledger as
keyed digests. The text behind each lies in one private file of the vault, and dies there with the
retirement of what names it, or with the namespace.
Equal texts have equal references, and whoever holds the key can confirm a guess, even after the
text was destroyed; without the key a reference tells nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from shards.digest import canonical_json, keyed, parse_json
from shards.errors import IntegrityError
from shards.files import replace_file, storage

FILE = "references.json"
VERSION = 1

_Texts = dict[str, dict[str, str]]  # by reference: the arguments ``kind`` and ``text`` that made it


def reference(key: bytes, kind: str, text: str) -> str:
    """Keyed digest (64 hex digits) that stands for ``text`` in the ledger.

    Args:
        key: a secret of the workspace.
        kind: what the text is, such as "requester" or "reason"; the same text of another kind has
            another reference.
        text: what only the vault may hold.
    """
    # Encoded here: to ``keyed``, the number 5 and the text "5" are the same.
    return keyed(key, "reference", kind.encode(), text.encode()).hex()


class References:
    """The texts behind references, in one private file that is read anew each time.

    Reading needs no lock; whoever puts or forgets drives the workspace, or a text may be lost or
    come back. Both write even where nothing changes: an earlier call may have been cut off between
    renaming the file and making its name durable.
    """

    def __init__(self, path: Path, key: bytes) -> None:
        self.path = path
        self._key = key

    def put(self, kind: str, text: str) -> str:
        """Keep a text durably; returns its reference, the same each time.

        Raises:
            IntegrityError: if the file is damaged.
            StorageError: if the file system refuses.
        """
        texts = self._read()
        name = reference(self._key, kind, text)
        texts[name] = {"kind": kind, "text": text}
        self._write(texts)
        return name

    def text(self, reference: str) -> str | None:
        """The text behind a reference; none if it was never put, or was destroyed.

        Raises:
            IntegrityError: if the file is damaged.
            StorageError: if the file cannot be read.
        """
        entry = self._read().get(reference)
        return None if entry is None else entry["text"]

    def names(self) -> frozenset[str]:
        """Every reference whose text is kept.

        Raises:
            IntegrityError: if the file is damaged.
            StorageError: if the file cannot be read.
        """
        return frozenset(self._read())

    def forget(self, references: Iterable[str]) -> int:
        """Destroy the texts behind ``references``; returns how many there were.

        Raises:
            IntegrityError: if the file is damaged.
            StorageError: if the file system refuses.
        """
        texts = self._read()
        destroyed = texts.keys() & set(references)
        self._write({name: entry for name, entry in texts.items() if name not in destroyed})
        return len(destroyed)

    def _read(self) -> _Texts:
        with storage(f"read {self.path}"):
            try:
                data = self.path.read_bytes()
            except FileNotFoundError:
                return {}
        try:
            texts: _Texts = parse_json(data)["texts"]
            genuine = all(reference(self._key, **entry) == name for name, entry in texts.items())
            intact = genuine and _encode(texts) == data
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            intact = False
        if not intact:
            raise IntegrityError(
                f"in {self.path} only texts that match their references",
                "a damaged or altered file",
                "restore this file of the vault from a backup",
            )
        return texts

    def _write(self, texts: _Texts) -> None:
        replace_file(self.path, _encode(texts), private=True)


def _encode(texts: _Texts) -> bytes:
    return canonical_json({"version": VERSION, "texts": texts})
