"""The append-only Merkle tree of RFC 6962: roots, inclusion proofs, consistency proofs.

A tree is kept as levels. Level 0 is the leaf hashes; each next level holds the hash of every pair
below it, and a last node without a partner moves up unchanged. That is the RFC's tree, so a proof is
the path upwards: at each level the node's partner, where it has one.

Every hash is 32 raw bytes, and ``leaves`` are leaf hashes (``shards.digest.tree_leaf``). A root does not
say how many leaves stand under it: a proof means what it says only if the size comes from the same
signed head as the root (``shards.note``).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from shards.digest import sha256, tree_node

HASH_BYTES = 32
SIZE_LIMIT = 2**63
EMPTY_ROOT = sha256(b"")


class Peaks:
    """The roots of an append-only tree's full subtrees, largest first: all it takes to go on appending.

    Raises:
        ValueError: if there are not as many peaks as ``size`` has one bits, or one is not 32 bytes.
    """

    __slots__ = ("peaks", "size")

    def __init__(self, peaks: Iterable[bytes] = (), size: int = 0) -> None:
        self.peaks = _checked(peaks)
        self.size = size
        if not 0 <= size < SIZE_LIMIT or len(self.peaks) != size.bit_count():
            raise ValueError(f"{len(self.peaks)} peaks do not make a tree of {size} leaves")

    def append(self, leaf: bytes) -> None:
        """Add one leaf hash: O(log n) hashes at worst, one on average.

        Raises:
            ValueError: if it is not 32 bytes.
        """
        (node,) = _checked([leaf])
        bits = self.size
        while bits & 1:
            node = tree_node(self.peaks.pop(), node)
            bits >>= 1
        self.peaks.append(node)
        self.size += 1

    def root(self) -> bytes:
        """The root hash of the tree as it is now."""
        if not self.peaks:
            return EMPTY_ROOT
        *larger, node = self.peaks
        for peak in reversed(larger):
            node = tree_node(peak, node)
        return node


def tree_hash(leaves: Sequence[bytes]) -> bytes:
    """The root hash over leaf hashes (RFC 6962, section 2.1)."""
    return _levels(leaves)[-1][0] if leaves else EMPTY_ROOT


def inclusion_proofs(
    leaves: Sequence[bytes], indices: Iterable[int], size: int | None = None
) -> dict[int, list[bytes]]:
    """For each of ``indices``, the proof that this leaf is in the tree of the first ``size`` leaves.

    A proof begins with the leaf's sibling. The tree is hashed once for all of them.

    Raises:
        ValueError: if there is no such leaf or no such tree.
    """
    size = _tree_size(leaves, size)
    wanted = list(indices)
    if not all(0 <= index < size for index in wanted):
        raise ValueError(f"leaves of a tree of {size} are numbered from 0 to {size - 1}")
    levels = _levels(leaves[:size])
    return {index: _path(levels, index) for index in wanted}


def verify_inclusion(root: bytes, size: int, index: int, leaf: bytes, proof: Sequence[bytes]) -> bool:
    """Whether ``proof`` shows the leaf hash ``leaf`` at ``index`` of the tree with this size and root.

    RFC 9162, section 2.1.3.2. Never raises on hostile hashes or numbers.
    """
    if not 0 <= index < size < SIZE_LIMIT or not _all_hashes([root, leaf, *proof]):
        return False
    lefts = _left_siblings(index, size - 1)
    if len(proof) != len(lefts):
        return False
    node = leaf
    for sibling, left in zip(proof, lefts, strict=True):
        node = tree_node(sibling, node) if left else tree_node(node, sibling)
    return node == root


def consistency_proof(leaves: Sequence[bytes], old: int, new: int | None = None) -> list[bytes]:
    """The proof that the tree of the first ``old`` leaves is the beginning of that of the first ``new``.

    RFC 6962, section 2.1.2; empty if ``old`` is 0 or ``new``.

    Raises:
        ValueError: if there are no two such trees.
    """
    new = _tree_size(leaves, new)
    if not 0 <= old <= new:
        raise ValueError(f"a tree of {old} leaves is not the beginning of one of {new}")
    if old in {0, new}:
        return []
    levels = _levels(leaves[:new])
    height, index = _last_peak(old)
    path = _path(levels[height:], index)
    return path if index == 0 else [levels[height][index], *path]


def verify_consistency(old_size: int, old_root: bytes, new_size: int, new_root: bytes, proof: Sequence[bytes]) -> bool:
    """Whether ``proof`` shows that the old tree is the beginning of the new one.

    RFC 9162, section 2.1.4.2. Trees of one size must have one root, and the empty tree has only its
    own root; neither takes a proof. Never raises on hostile hashes or numbers.
    """
    if not 0 <= old_size <= new_size < SIZE_LIMIT or not _all_hashes([old_root, new_root, *proof]):
        return False
    if old_size == new_size and old_root != new_root:
        return False
    if old_size == 0 and old_root != EMPTY_ROOT:
        return False
    if old_size in {0, new_size}:
        return not proof
    height, index = _last_peak(old_size)
    lefts = _left_siblings(index, (new_size - 1) >> height)
    # A single peak is the old root itself, which the proof leaves out.
    nodes = [*proof] if index else [old_root, *proof]
    if len(nodes) != 1 + len(lefts):
        return False
    old = new = nodes[0]
    for sibling, left in zip(nodes[1:], lefts, strict=True):
        if left:  # siblings on the left belong to both trees, those on the right to the new one only
            old = tree_node(sibling, old)
        new = tree_node(sibling, new) if left else tree_node(new, sibling)
    return old == old_root and new == new_root


def _levels(leaves: Sequence[bytes]) -> list[list[bytes]]:
    """The tree over at least one leaf, level by level, up to the one that holds the root alone."""
    levels = [_checked(leaves)]
    while len(below := levels[-1]) > 1:
        level = [tree_node(below[i], below[i + 1]) for i in range(0, len(below) - 1, 2)]
        levels.append([*level, below[-1]] if len(below) & 1 else level)
    return levels


def _path(levels: Sequence[Sequence[bytes]], index: int) -> list[bytes]:
    """The siblings on the way up from node ``index`` of the lowest of ``levels``."""
    path = []
    for level in levels:
        if (index ^ 1) < len(level):
            path.append(level[index ^ 1])
        index >>= 1
    return path


def _left_siblings(index: int, last: int) -> list[bool]:
    """For each sibling on the way up from node ``index`` of a level whose last is ``last``: is it on the left?"""
    lefts = []
    while last:
        if index & 1 or index < last:
            lefts.append(bool(index & 1))
        index >>= 1
        last >>= 1
    return lefts


def _last_peak(size: int) -> tuple[int, int]:
    """Height and index of the smallest full subtree that ends a tree of ``size`` leaves, ``size`` > 0."""
    height = (size & -size).bit_length() - 1
    return height, (size >> height) - 1


def _tree_size(leaves: Sequence[bytes], size: int | None) -> int:
    if size is None:
        return len(leaves)
    if not 0 <= size <= len(leaves):
        raise ValueError(f"{len(leaves)} leaves do not make a tree of {size}")
    return size


def _all_hashes(hashes: Iterable[bytes]) -> bool:
    return all(len(node) == HASH_BYTES for node in hashes)


def _checked(hashes: Iterable[bytes]) -> list[bytes]:
    checked = list(hashes)
    if not _all_hashes(checked):
        raise ValueError(f"a hash is {HASH_BYTES} bytes")
    return checked
