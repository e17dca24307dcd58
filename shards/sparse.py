"""Compact sparse Merkle tree: one root for a set of keys, and proofs that a key is in it or not.

Keys are 256-bit paths: bit i, most significant first, chooses left (0) or right (1) at depth i. An
empty subtree is 32 zero bytes, an only leaf stands for its whole subtree, and leaves that share a
prefix have every inner node of that prefix between them and the root. The root depends on the set
alone. These are the rules of Celestia's and Fuel's sparse trees.

Proofs are sound against whoever made the tree, honest or not. A key's path leads from a given root to
one place only, and leaves, inner nodes and the empty subtree never have the same hash: so no root has
both a proof that a key is in and a proof that it is not, and a leaf put beside the path of its key can
be proved by nobody to be in.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from shards.digest import sha256, tree_leaf, tree_node

EMPTY: bytes = bytes(32)
_BITS = 256


@dataclass(frozen=True, slots=True)
class SparseProof:
    """What leads from the root to the place of a key.

    Attributes:
        siblings: hash (32 bytes) beside the path at each depth, from the root downwards.
        occupant: of an absent key only: key and SHA-256 of the value (32 bytes each) of the leaf that
            stands where the key would; ``None`` if that place is empty.

    Raises:
        ValueError: if a field is not of 32 bytes, or there are more siblings than bits in a key.
    """

    siblings: tuple[bytes, ...]
    occupant: tuple[bytes, bytes] | None

    def __post_init__(self) -> None:
        if len(self.siblings) > _BITS:
            raise ValueError(f"a path has at most {_BITS} siblings, this one has {len(self.siblings)}")
        for sibling in self.siblings:
            _check("sibling", sibling)
        if self.occupant is not None:
            key, value_hash = self.occupant
            _check("occupant's key", key)
            _check("occupant's value hash", value_hash)

    def to_json(self) -> dict[str, str]:
        """Both fields in lower-case hex, each end to end; ``occupant`` is "" if there is none."""
        return {"siblings": b"".join(self.siblings).hex(), "occupant": b"".join(self.occupant or ()).hex()}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Self:
        """The proof that ``to_json`` wrote; no other spelling of it is accepted.

        Raises:
            ValueError: if ``document`` is anything else.
        """
        if not isinstance(document, Mapping) or set(document) != {"siblings", "occupant"}:
            raise ValueError("a sparse proof has the fields siblings and occupant and no others")
        occupant = _hashes("occupant", document["occupant"])
        if len(occupant) not in {0, 2}:
            raise ValueError("occupant is neither empty nor a key and a value hash")
        return cls(_hashes("siblings", document["siblings"]), (occupant[0], occupant[1]) if occupant else None)


def tree_root(entries: Mapping[bytes, bytes]) -> bytes:
    """Root (32 bytes) of the tree of ``entries``: keys of 32 bytes, values of any length.

    Raises:
        ValueError: if a key is not of 32 bytes.
    """
    return _build(entries, ())[0]


def prove(entries: Mapping[bytes, bytes], key: bytes) -> SparseProof:
    """Proof that ``key`` is in the tree of ``entries``, with its value, or that it is absent.

    Raises:
        ValueError: if a key is not of 32 bytes.
    """
    return prove_all(entries, [key])[key]


def prove_all(entries: Mapping[bytes, bytes], keys: Iterable[bytes]) -> dict[bytes, SparseProof]:
    """The proof of each of ``keys``, as ``prove`` gives it, from one build of the tree.

    Raises:
        ValueError: if a key is not of 32 bytes.
    """
    return _build(entries, keys)[1]


def verify_inclusion(root: bytes, key: bytes, value: bytes, proof: SparseProof) -> bool:
    """Whether ``proof`` shows that the tree of ``root`` holds ``key`` with ``value``.

    Raises:
        ValueError: if root or key is not of 32 bytes.
    """
    _check("root", root)
    _check("key", key)
    return proof.occupant is None and _leads(root, key, _leaf(key, sha256(value)), proof.siblings)


def verify_absence(root: bytes, key: bytes, proof: SparseProof) -> bool:
    """Whether ``proof`` shows that the tree of ``root`` does not hold ``key``, with any value.

    Raises:
        ValueError: if root or key is not of 32 bytes.
    """
    _check("root", root)
    _check("key", key)
    if proof.occupant is None:
        return _leads(root, key, EMPTY, proof.siblings)
    other, value_hash = proof.occupant
    # A leaf elsewhere in the tree says nothing about the place where the key would stand.
    shared = _BITS - (_number(key) ^ _number(other)).bit_length()
    return len(proof.siblings) <= shared < _BITS and _leads(root, key, _leaf(other, value_hash), proof.siblings)


def _build(entries: Mapping[bytes, bytes], to_prove: Iterable[bytes]) -> tuple[bytes, dict[bytes, SparseProof]]:
    """Root of the tree of ``entries``, and the proof of each key of ``to_prove``, in one descent."""
    siblings: dict[bytes, list[bytes]] = {key: [] for key in to_prove}  # from the place of the key up to the root
    occupants: dict[bytes, tuple[bytes, bytes]] = {}
    for key in (*entries, *siblings):
        _check("key", key)
    keys = sorted(entries)
    numbers = [_number(key) for key in keys]

    def subtree(low: int, high: int, depth: int, wanted: Sequence[bytes]) -> bytes:
        """Hash of the subtree of keys[low:high], which share ``depth`` bits with each other and ``wanted``."""
        if low == high:
            return EMPTY
        if low + 1 == high:
            key, value_hash = keys[low], sha256(entries[keys[low]])
            occupants.update((absent, (key, value_hash)) for absent in wanted if absent != key)
            return _leaf(key, value_hash)
        shift = _BITS - 1 - depth
        border = (numbers[low] >> shift | 1) << shift  # the smallest key that goes right
        middle = bisect_left(numbers, border, low, high)
        turn = bisect_left(wanted, border, key=_number)
        left = subtree(low, middle, depth + 1, wanted[:turn])
        right = subtree(middle, high, depth + 1, wanted[turn:])
        for key in wanted[:turn]:
            siblings[key].append(right)
        for key in wanted[turn:]:
            siblings[key].append(left)
        return tree_node(left, right)

    root = subtree(0, len(keys), 0, sorted(siblings))
    return root, {key: SparseProof(tuple(reversed(siblings[key])), occupants.get(key)) for key in siblings}


def _leads(root: bytes, key: bytes, place: bytes, siblings: Sequence[bytes]) -> bool:
    """Whether the path of ``key`` leads from ``root`` to ``place``."""
    if siblings and siblings[-1] == EMPTY:
        return False  # what is alone in a subtree stands higher up
    number = _number(key)
    node = place
    for depth in reversed(range(len(siblings))):
        right = number >> (_BITS - 1 - depth) & 1
        node = tree_node(siblings[depth], node) if right else tree_node(node, siblings[depth])
    return node == root


def _leaf(key: bytes, value_hash: bytes) -> bytes:
    return tree_leaf(key + value_hash)


def _number(key: bytes) -> int:
    return int.from_bytes(key, "big")


def _check(name: str, data: bytes) -> None:
    if len(data) != len(EMPTY):
        raise ValueError(f"{name} has {len(data)} bytes, expected {len(EMPTY)}")


def _hashes(name: str, text: object) -> tuple[bytes, ...]:
    """Hashes (32 bytes each) that stand end to end in lower-case hex."""
    data = bytes.fromhex(text) if isinstance(text, str) else None
    if data is None or data.hex() != text or len(data) % len(EMPTY):
        raise ValueError(f"{name} is not hashes of 32 bytes in lower-case hex")
    return tuple(data[at : at + len(EMPTY)] for at in range(0, len(data), len(EMPTY)))
