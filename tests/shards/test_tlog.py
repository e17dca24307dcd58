"""The log's tree: published vectors, an independent implementation, and every way to bend a proof."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scitt_cose import merkle as oracle

from shards import tlog
from shards.digest import sha256, tree_leaf, tree_node
from shards.tlog import (
    EMPTY_ROOT,
    Peaks,
    consistency_proof,
    inclusion_proofs,
    tree_hash,
    verify_consistency,
    verify_inclusion,
)

LIMIT = 40
ENTRIES = [b"entry %d" % number for number in range(700)]
LEAVES = [tree_leaf(entry) for entry in ENTRIES]
ROOTS = [tree_hash(LEAVES[:size]) for size in range(LIMIT + 2)]
OTHER = sha256(b"a hash from elsewhere")

quick = settings(max_examples=150, derandomize=True, deadline=None, database=None)

# The tree of the certificate-transparency reference implementation.
CT_ENTRIES = ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"]
CT_LEAVES = [tree_leaf(bytes.fromhex(entry)) for entry in CT_ENTRIES]
CT_ROOTS = [
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
CT_INCLUSION = {
    (0, 1): [],
    (0, 8): [
        "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
    ],
    (5, 8): [
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ],
    (2, 3): ["fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125"],
    (1, 5): [
        "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
    ],
}
CT_CONSISTENCY = {
    (1, 1): [],
    (1, 8): [
        "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
    ],
    (6, 8): [
        "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ],
    (2, 5): [
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
    ],
}


def inclusion_proof(leaves: list[bytes], index: int, size: int | None = None) -> list[bytes]:
    return inclusion_proofs(leaves, [index], size)[index]


def hexed(hashes: list[bytes]) -> list[str]:
    return [node.hex() for node in hashes]


def flipped(node: bytes) -> bytes:
    return bytes([node[0] ^ 1]) + node[1:]


def bent(proof: list[bytes]) -> Iterator[list[bytes]]:
    """Every flip, loss, swap of two, and addition at every place; also a hash cut short or drawn long."""
    for i, node in enumerate(proof):
        rest = proof[i + 1 :]
        yield [*proof[:i], flipped(node), *rest]
        yield [*proof[:i], node[:-1], *rest]
        yield [*proof[:i], node + b"\0", *rest]
        yield [*proof[:i], *rest]
        for j in range(i + 1, len(proof)):
            swapped = list(proof)
            swapped[i], swapped[j] = proof[j], node
            yield swapped
    for i in range(len(proof) + 1):
        yield [*proof[:i], OTHER, *proof[i:]]


def test_roots_match_the_published_vectors() -> None:
    assert [tree_hash(CT_LEAVES[:size]).hex() for size in range(9)] == CT_ROOTS
    assert EMPTY_ROOT.hex() == CT_ROOTS[0]


@pytest.mark.parametrize(("index", "size"), CT_INCLUSION)
def test_inclusion_proofs_match_the_published_vectors(index: int, size: int) -> None:
    proof = inclusion_proof(CT_LEAVES, index, size)
    assert hexed(proof) == CT_INCLUSION[index, size]
    assert verify_inclusion(bytes.fromhex(CT_ROOTS[size]), size, index, CT_LEAVES[index], proof)


@pytest.mark.parametrize(("old", "new"), CT_CONSISTENCY)
def test_consistency_proofs_match_the_published_vectors(old: int, new: int) -> None:
    proof = consistency_proof(CT_LEAVES, old, new)
    assert hexed(proof) == CT_CONSISTENCY[old, new]
    assert verify_consistency(old, bytes.fromhex(CT_ROOTS[old]), new, bytes.fromhex(CT_ROOTS[new]), proof)


@pytest.mark.parametrize("size", range(LIMIT + 1))
def test_an_independent_implementation_agrees(size: int) -> None:
    entries = hexed(ENTRIES[:size])
    assert tree_hash(LEAVES[:size]).hex() == oracle.merkle_root(entries)
    for index in range(size):
        proof = hexed(inclusion_proof(LEAVES, index, size))
        assert proof == oracle.inclusion_proof(entries, index)
        assert oracle.verify_inclusion(entries[index], index, size, proof, ROOTS[size].hex())
    for old in range(size + 1):
        proof = hexed(consistency_proof(LEAVES, old, size))
        assert proof == oracle.consistency_proof(entries, old, size)
        assert oracle.verify_consistency(ROOTS[old].hex(), ROOTS[size].hex(), old, size, proof)


@pytest.mark.parametrize("size", range(1, 18))
def test_an_independent_implementation_accepts_the_same_claims(size: int) -> None:
    """A right proof put forward for any other numbers: both say yes to the same ones."""
    for index in range(size):
        proof = inclusion_proof(LEAVES, index, size)
        for claimed in [(i, n) for n in range(20) for i in range(20)]:
            theirs = oracle.verify_inclusion(ENTRIES[index].hex(), *claimed, hexed(proof), ROOTS[size].hex())
            assert verify_inclusion(ROOTS[size], claimed[1], claimed[0], LEAVES[index], proof) == theirs, claimed
    for old in range(1, size + 1):
        proof = consistency_proof(LEAVES, old, size)
        for first, second in [(m, n) for n in range(20) for m in range(1, 20)]:
            theirs = oracle.verify_consistency(ROOTS[old].hex(), ROOTS[size].hex(), first, second, hexed(proof))
            assert verify_consistency(first, ROOTS[old], second, ROOTS[size], proof) == theirs, (first, second)


@pytest.mark.parametrize("size", range(1, LIMIT + 1))
def test_every_inclusion_proof_verifies_and_no_bent_one_does(size: int) -> None:
    root = ROOTS[size]
    for index in range(size):
        leaf, proof = LEAVES[index], inclusion_proof(LEAVES, index, size)
        assert verify_inclusion(root, size, index, leaf, proof)
        for wrong in bent(proof):
            assert not verify_inclusion(root, size, index, leaf, wrong)
        for other in set(range(-1, size + 2)) - {index}:
            assert not verify_inclusion(root, size, other, leaf, proof)
            assert not verify_inclusion(root, size, index, LEAVES[other], proof)
        for other in set(range(LIMIT + 2)) - {size}:
            assert not verify_inclusion(ROOTS[other], other, index, leaf, proof)
            assert not verify_inclusion(ROOTS[other], size, index, leaf, proof)
        assert not verify_inclusion(flipped(root), size, index, leaf, proof)
        assert not verify_inclusion(root, size, index, flipped(leaf), proof)


@pytest.mark.parametrize("new", range(1, LIMIT + 1))
def test_every_consistency_proof_verifies_and_no_bent_one_does(new: int) -> None:
    for old in range(1, new + 1):
        proof = consistency_proof(LEAVES, old, new)
        assert verify_consistency(old, ROOTS[old], new, ROOTS[new], proof)
        for wrong in bent(proof):
            assert not verify_consistency(old, ROOTS[old], new, ROOTS[new], wrong)
        for other in set(range(LIMIT + 2)) - {old}:
            honest = other == 0 and proof == []  # the empty tree is the beginning of every tree
            assert verify_consistency(other, ROOTS[other], new, ROOTS[new], proof) == honest
            assert not verify_consistency(old, ROOTS[other], new, ROOTS[new], proof)
        for other in set(range(LIMIT + 2)) - {new}:
            assert not verify_consistency(old, ROOTS[old], other, ROOTS[other], proof)
            assert not verify_consistency(old, ROOTS[old], new, ROOTS[other], proof)
        assert not verify_consistency(old, flipped(ROOTS[old]), new, ROOTS[new], proof)
        assert not verify_consistency(old, ROOTS[old], new, flipped(ROOTS[new]), proof)
        if old < new:
            assert not verify_consistency(new, ROOTS[new], old, ROOTS[old], proof)


def test_a_changed_entry_of_the_past_has_no_consistency_proof() -> None:
    """Whatever honest-looking proof the rewritten log makes, the old head contradicts it."""
    for new in range(2, LIMIT + 1):
        for old in range(1, new):
            rewritten = [*LEAVES[: old - 1], OTHER, *LEAVES[old:new]]
            for proof in (consistency_proof(rewritten, old), consistency_proof(LEAVES, old, new)):
                assert not verify_consistency(old, ROOTS[old], new, tree_hash(rewritten), proof)


def test_trees_of_one_size_must_have_one_root_and_take_no_proof() -> None:
    for size, root in enumerate(ROOTS):
        assert verify_consistency(size, root, size, root, [])
        assert not verify_consistency(size, root, size, root, [OTHER])
        assert not verify_consistency(size, root, size, flipped(root), [])


def test_the_empty_tree_is_the_beginning_of_every_tree_and_has_one_root() -> None:
    for size, root in enumerate(ROOTS):
        assert verify_consistency(0, EMPTY_ROOT, size, root, [])
        assert not verify_consistency(0, EMPTY_ROOT, size, root, [OTHER])
        assert not verify_consistency(0, OTHER, size, root, [])
    assert not verify_consistency(0, OTHER, 0, OTHER, [])
    assert not verify_inclusion(EMPTY_ROOT, 0, 0, LEAVES[0], [])


def test_the_same_root_can_be_claimed_for_another_size_so_sizes_come_from_signed_heads() -> None:
    """Leaf 0 has the same path in a tree of three and of four leaves; the RFC's proofs do not tell them apart."""
    proof = inclusion_proof(LEAVES, 0, 3)
    assert verify_inclusion(ROOTS[3], 4, 0, LEAVES[0], proof)
    assert not verify_inclusion(ROOTS[3], 5, 0, LEAVES[0], proof)


def test_an_inner_node_does_not_pass_for_a_leaf_of_a_tree_with_the_right_size() -> None:
    node = tree_node(LEAVES[0], LEAVES[1])
    assert not verify_inclusion(ROOTS[4], 4, 0, node, inclusion_proof(LEAVES, 0, 4)[1:])


def test_bytes_cannot_move_between_neighbours() -> None:
    """A leaf cut short and a sibling drawn long would hash to the same root."""
    both = LEAVES[0] + LEAVES[1]
    for cut in set(range(65)) - {32}:
        assert not verify_inclusion(ROOTS[2], 2, 0, both[:cut], [both[cut:]])


def test_a_tree_may_have_as_many_leaves_as_a_signed_integer_counts() -> None:
    largest = 2**63 - 1
    peaks = [sha256(b"peak %d" % number) for number in range(63)]
    root = Peaks(peaks, largest).root()
    proof = peaks[-2::-1]  # the last leaf is the smallest peak; the others are its siblings
    assert verify_inclusion(root, largest, largest - 1, peaks[-1], proof)
    assert not verify_inclusion(root, largest, largest - 2, peaks[-1], proof)
    full = peaks[0]  # the last leaf of a full tree of 2**63 has a sibling on the left at each height
    for sibling in peaks:
        full = tree_node(sibling, full)
    assert not verify_inclusion(full, 2**63, 2**63 - 1, peaks[0], peaks)
    assert not verify_consistency(1, LEAVES[0], 2**63, OTHER, [OTHER] * 63)
    assert not verify_consistency(2**63, OTHER, 2**63, OTHER, [])


def test_hostile_numbers_are_refused_without_work() -> None:
    for size in (-1, 2**63, 2**100_000):
        assert not verify_inclusion(OTHER, size, 0, OTHER, [OTHER])
        assert not verify_inclusion(OTHER, 2**62, size, OTHER, [OTHER])
        assert not verify_consistency(1, OTHER, size, OTHER, [OTHER])
        assert not verify_consistency(size, OTHER, size, OTHER, [])


@quick
@given(st.integers(1, len(LEAVES)), st.data())
def test_proofs_of_larger_trees_verify_and_one_flipped_bit_is_seen(size: int, data: st.DataObject) -> None:
    index, old = data.draw(st.integers(0, size - 1)), data.draw(st.integers(1, size))
    root = tree_hash(LEAVES[:size])
    inclusion, consistency = inclusion_proof(LEAVES, index, size), consistency_proof(LEAVES, old, size)
    assert verify_inclusion(root, size, index, LEAVES[index], inclusion)
    assert verify_consistency(old, tree_hash(LEAVES[:old]), size, root, consistency)
    for proof in (inclusion, consistency):
        if proof:
            place, bit = data.draw(st.integers(0, len(proof) - 1)), data.draw(st.integers(0, 255))
            proof[place] = (int.from_bytes(proof[place], "big") ^ (1 << bit)).to_bytes(32, "big")
    assert inclusion == [] or not verify_inclusion(root, size, index, LEAVES[index], inclusion)
    assert consistency == [] or not verify_consistency(old, tree_hash(LEAVES[:old]), size, root, consistency)


@quick
@given(
    st.integers(0, 70), st.integers(0, 70), st.lists(st.sampled_from([*LEAVES[:6], *ROOTS[:6]]), max_size=8), st.data()
)
def test_verifiers_answer_any_claim_as_an_independent_one_does(
    one: int, other: int, proof: list[bytes], data: st.DataObject
) -> None:
    first, second = data.draw(st.sampled_from(ROOTS)), data.draw(st.sampled_from(ROOTS))
    theirs = oracle.verify_inclusion(ENTRIES[0].hex(), one, other, hexed(proof), first.hex())
    assert verify_inclusion(first, other, one, LEAVES[0], proof) == theirs
    if one:  # for the empty tree the other implementation does not look at the root
        theirs = oracle.verify_consistency(first.hex(), second.hex(), one, other, hexed(proof))
        assert verify_consistency(one, first, other, second, proof) == theirs


def test_peaks_have_the_root_of_the_tree_at_each_size() -> None:
    tree = Peaks()
    for size, leaf in enumerate(LEAVES[:300]):
        assert (tree.size, tree.root()) == (size, tree_hash(LEAVES[:size]))
        assert len(tree.peaks) == size.bit_count()
        tree.append(leaf)
    assert tree.root() == tree_hash(LEAVES[:300])


def test_appending_goes_on_from_stored_peaks() -> None:
    for stop in range(LIMIT):
        tree = Peaks()
        for leaf in LEAVES[:stop]:
            tree.append(leaf)
        again = Peaks(tuple(tree.peaks), tree.size)
        for leaf in LEAVES[stop:LIMIT]:
            again.append(leaf)
        assert again.root() == ROOTS[LIMIT]


def test_peaks_made_of_others_go_their_own_way() -> None:
    tree = Peaks([LEAVES[0]], 1)
    other = Peaks(tree.peaks, tree.size)
    other.append(LEAVES[1])
    assert (tree.size, tree.root()) == (1, ROOTS[1])
    assert (other.size, other.root()) == (2, ROOTS[2])


@pytest.mark.parametrize(("count", "size"), [(1, 0), (0, 1), (1, 3), (2, 4), (1, -1), (1, 2**63)])
def test_peaks_that_make_no_tree_of_that_size_are_refused(count: int, size: int) -> None:
    with pytest.raises(ValueError, match="do not make a tree"):
        Peaks([OTHER] * count, size)


def test_what_is_not_a_hash_is_refused() -> None:
    for data in (b"", OTHER[:-1], OTHER + b"\0"):
        with pytest.raises(ValueError, match="32 bytes"):
            tree_hash([data])
        with pytest.raises(ValueError, match="32 bytes"):
            Peaks([data], 1)
        with pytest.raises(ValueError, match="32 bytes"):
            Peaks().append(data)
        with pytest.raises(ValueError, match="32 bytes"):
            inclusion_proof([OTHER, data], 0)
        assert not verify_inclusion(data, 1, 0, data, [])
        assert not verify_consistency(1, data, 1, data, [])


def test_a_refused_leaf_leaves_the_peaks_as_they_were() -> None:
    tree = Peaks([LEAVES[0]], 1)
    with pytest.raises(ValueError, match="32 bytes"):
        tree.append(b"not a leaf hash")
    assert (tree.size, tree.root()) == (1, ROOTS[1])


def test_many_proofs_are_the_single_ones_and_hash_the_tree_once(monkeypatch: pytest.MonkeyPatch) -> None:
    size, calls = 600, 0
    single = {index: inclusion_proof(LEAVES, index, size) for index in range(0, size, 7)}

    def counted(left: bytes, right: bytes) -> bytes:
        nonlocal calls
        calls += 1
        return tree_node(left, right)

    monkeypatch.setattr(tlog, "tree_node", counted)
    assert inclusion_proofs(LEAVES, (index for index in single), size) == single
    assert calls == size - 1


def test_proofs_default_to_the_whole_tree() -> None:
    assert inclusion_proof(LEAVES[:9], 3) == inclusion_proof(LEAVES, 3, 9)
    assert consistency_proof(LEAVES[:9], 3) == consistency_proof(LEAVES, 3, 9)


@pytest.mark.parametrize(("index", "size"), [(-1, 3), (3, 3), (0, 0), (0, 6), (0, -1)])
def test_no_proof_is_made_for_a_leaf_that_is_not_there(index: int, size: int) -> None:
    with pytest.raises(ValueError, match="leaves"):
        inclusion_proof(LEAVES[:5], index, size)


def test_no_proofs_are_made_in_a_tree_that_is_not_there() -> None:
    for size in (-1, 6):
        with pytest.raises(ValueError, match="do not make a tree"):
            inclusion_proofs(LEAVES[:5], [], size)


@pytest.mark.parametrize(("old", "new"), [(-1, 3), (4, 3), (0, 6), (6, None), (0, -1)])
def test_no_proof_is_made_between_trees_that_are_not_there(old: int, new: int | None) -> None:
    with pytest.raises(ValueError, match="leaves"):
        consistency_proof(LEAVES[:5], old, new)


def test_no_proofs_asked_for_are_none_given() -> None:
    assert inclusion_proofs([], []) == {}
    assert inclusion_proofs(LEAVES[:5], []) == {}
