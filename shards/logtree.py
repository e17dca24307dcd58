"""The tree of a ledger's facts, made anew from what is stored: what its heads must have been signed over."""

from __future__ import annotations

import base64

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from shards import kinds
from shards.digest import canonical_json, parse_json, tree_leaf
from shards.keys import is_succession, read_public_key
from shards.note import TreeHead, read_head, signed_by
from shards.tlog import Peaks

Row = tuple[int, str, str, str]  # seq, kind, body, created, as stored


class LogTree:
    """The log's tree, its name and its signing keys, as facts are taken in one after the other."""

    def __init__(self) -> None:
        self.leaves: list[bytes] = []
        self.peaks = Peaks()
        self.origin = ""
        self.keys: list[Ed25519PublicKey] = []

    def take(self, row: Row) -> None:
        """Take in the next fact; its text is hashed as it is stored, canonical or not.

        Raises:
            ValueError: if it is not the next one, or no fact.
        """
        seq, kind, body, created = row
        if seq != len(self.leaves) + 1:
            raise ValueError(f"fact {len(self.leaves) + 1} is missing")
        if (kind == kinds.GENESIS) != (seq == 1):
            raise ValueError(f"fact {seq} is {kind!r}: a log begins with its genesis, and with nothing else")
        try:
            named = [canonical_json(value).decode() for value in (created, kind)]
            text = f'{{"body":{body},"created":{named[0]},"kind":{named[1]},"seq":{seq}}}'
            self.leaves.append(tree_leaf(text.encode()))
            self.peaks.append(self.leaves[-1])
            if kind in (kinds.GENESIS, kinds.KEY):
                fact = parse_json(body)
                key = read_public_key(fact["public_key"].encode())
                if kind == kinds.KEY and not is_succession(self.keys[-1], self.origin, fact):
                    raise ValueError("the signing key before did not endorse this one")
                self.keys.append(key)
            if kind == kinds.GENESIS:
                self.origin = fact["log"]
                self.head()  # refuses what cannot name a log
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"fact {seq} is damaged ({error})") from error

    def head(self) -> TreeHead:
        """The head over everything taken in."""
        return TreeHead(self.origin, len(self.leaves), self.peaks.root())

    def covers(self, note: str) -> bool:
        """Does ``note`` begin with the text of exactly this tree's head? Its signature is not looked at."""
        root = base64.b64encode(self.peaks.root()).decode()
        return note.startswith(f"{self.origin}\n{len(self.leaves)}\n{root}\n\n")

    def refuses(self, size: int, note: str) -> str:
        """Why ``note``, kept under ``size``, is no signed head of exactly this tree; empty if it is."""
        if not self.keys:
            return "the log does not begin with its genesis"
        if size != len(self.leaves):
            return f"there are {len(self.leaves)}, and a tree head of {size}"
        try:
            stated = read_head(note)
        except ValueError as error:
            return f"its tree head is damaged ({error})"
        if stated != self.head():
            return f"tree head {stated.size} was signed over other facts"
        if not signed_by(note, self.keys[-1]):
            return f"tree head {stated.size} is not signed by the log's key"
        return ""
