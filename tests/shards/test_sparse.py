"""Sparse Merkle trees: published roots, a second definition, and proofs that nobody can forge."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards import sparse
from shards.digest import sha256, tree_leaf, tree_node
from shards.sparse import (
    EMPTY,
    SparseProof,
    prove,
    prove_all,
    tree_root,
    verify_absence,
    verify_inclusion,
)

VECTORS = json.loads((Path(__file__).parents[1] / "data" / "sparse-merkle-vectors.json").read_text())

quick = settings(max_examples=60, derandomize=True, deadline=None, database=None)
hostile = settings(max_examples=400, derandomize=True, deadline=None, database=None)

# 64 keys as close as keys can be: each pair shares a long prefix, or differs at the very first bit.
BITS = (0, 1, 2, 7, 254, 255)
KEYS = [
    sum(1 << 255 - bit for number, bit in enumerate(BITS) if chosen >> number & 1).to_bytes(32, "big")
    for chosen in range(1 << len(BITS))
]
VALUES = (b"", b"a", b"b" * 32)
close_entries = st.dictionaries(st.sampled_from(KEYS), st.sampled_from(VALUES), max_size=8)


def published_key(number: int) -> bytes:
    return hashlib.sha256(number.to_bytes(4, "big")).digest()


def published_set(name: str) -> dict[bytes, bytes]:
    spans = name.removeprefix("union ").split(",") if ".." in name else [f"0..{name}"]
    ranges = [range(*map(int, span.split(".."))) for span in spans]
    return {published_key(number): b"DATA" for numbers in ranges for number in numbers}


def random_entries(count: int, seed: int = 0) -> dict[bytes, bytes]:
    source = random.Random(seed)
    return {source.randbytes(32): source.randbytes(32) for _ in range(count)}


def bits(key: bytes) -> str:
    return f"{int.from_bytes(key, 'big'):0256b}"


def naive_tree(entries: Mapping[bytes, bytes]) -> dict[str, tuple[bytes, bytes | None]]:
    """Second definition, from the leaves at depth 256 upwards, one level after the other.

    Maps the prefix of each subtree that is not empty to its hash and, where one leaf is all of it,
    that leaf's key.
    """
    level: dict[str, tuple[bytes, bytes | None]] = {
        bits(key): (hashlib.sha256(b"\0" + key + hashlib.sha256(value).digest()).digest(), key)
        for key, value in entries.items()
    }
    tree = dict(level)
    for _ in range(256):
        above: dict[str, tuple[bytes, bytes | None]] = {}
        for prefix in {path[:-1] for path in level}:
            children = [level.get(prefix + bit) for bit in "01"]
            present = [child for child in children if child is not None]
            if len(present) == 1 and present[0][1] is not None:
                above[prefix] = present[0]
            else:
                joined = b"".join(bytes(32) if child is None else child[0] for child in children)
                above[prefix] = (hashlib.sha256(b"\1" + joined).digest(), None)
        level = above
        tree |= level
    return tree


def naive_root(entries: Mapping[bytes, bytes]) -> bytes:
    return naive_tree(entries).get("", (bytes(32), None))[0]


def naive_proof(entries: Mapping[bytes, bytes], key: bytes) -> SparseProof:
    tree, path, siblings = naive_tree(entries), "", []
    while path in tree and tree[path][1] is None:
        turn = bits(key)[len(path)]
        siblings.append(tree.get(path + "10"[int(turn)], (bytes(32), None))[0])
        path += turn
    lone = tree[path][1] if path in tree else None
    occupant = None if lone in (None, key) else (lone, hashlib.sha256(entries[lone]).digest())
    return SparseProof(tuple(siblings), occupant)


# The tree.


@pytest.mark.parametrize("name", VECTORS["roots"])
def test_the_published_roots_are_reproduced(name: str) -> None:
    assert tree_root(published_set(name)).hex() == VECTORS["roots"][name]


def test_the_published_roots_agree_with_the_second_definition() -> None:
    assert naive_root(published_set("10")).hex() == VECTORS["roots"]["10"]


def test_the_root_of_nothing_is_32_zero_bytes() -> None:
    assert tree_root({}) == EMPTY == bytes(32)


def test_an_only_leaf_stands_for_the_whole_tree() -> None:
    assert tree_root({KEYS[5]: b"a"}) == tree_leaf(KEYS[5] + sha256(b"a"))


def test_leaves_that_share_a_prefix_have_its_inner_nodes_above_them() -> None:
    one, other = bytes(32), bytes(31) + b"\1"
    expected = tree_node(tree_leaf(one + sha256(b"a")), tree_leaf(other + sha256(b"b")))
    for _ in range(255):
        expected = tree_node(expected, EMPTY)
    assert tree_root({one: b"a", other: b"b"}) == expected


@quick
@given(close_entries)
def test_roots_and_proofs_agree_with_the_second_definition(entries: dict[bytes, bytes]) -> None:
    assert tree_root(entries) == naive_root(entries)
    proofs = prove_all(entries, KEYS)
    for key in (*entries, *KEYS[:16]):
        assert proofs[key] == naive_proof(entries, key)


@quick
@given(close_entries, st.randoms(use_true_random=False))
def test_the_root_depends_on_the_set_alone(entries: dict[bytes, bytes], source: random.Random) -> None:
    pairs = list(entries.items())
    source.shuffle(pairs)
    assert tree_root(dict(pairs)) == tree_root(entries)


@quick
@given(close_entries, close_entries)
def test_different_sets_have_different_roots(one: dict[bytes, bytes], other: dict[bytes, bytes]) -> None:
    assert (tree_root(one) == tree_root(other)) == (one == other)


def test_taking_an_entry_out_gives_the_root_of_the_set_without_it() -> None:
    entries = random_entries(50)
    gone = next(iter(entries))
    without = {key: value for key, value in entries.items() if key != gone}
    assert verify_absence(tree_root(without), gone, prove(without, gone))
    assert not verify_absence(tree_root(entries), gone, prove(without, gone))


# Proofs that hold.


@quick
@given(close_entries)
def test_every_key_proves_what_it_is_and_only_that(entries: dict[bytes, bytes]) -> None:
    root = tree_root(entries)
    for key, proof in prove_all(entries, KEYS).items():
        assert verify_absence(root, key, proof) == (key not in entries)
        for value in VALUES:
            assert verify_inclusion(root, key, value, proof) == (entries.get(key) == value)


def test_random_keys_prove_inclusion_and_absence_with_short_proofs() -> None:
    entries, absent = random_entries(2_000), list(random_entries(200, seed=1))
    root, proofs = tree_root(entries), prove_all(entries, [*entries, *absent])
    assert all(verify_inclusion(root, key, entries[key], proofs[key]) for key in entries)
    assert all(verify_absence(root, key, proofs[key]) for key in absent)
    assert max(len(proof.siblings) for proof in proofs.values()) < 32


def test_absence_is_proved_by_an_empty_place_as_well_as_by_an_occupant() -> None:
    entries = random_entries(100)
    proofs = prove_all(entries, random_entries(100, seed=1))
    assert {proof.occupant is None for proof in proofs.values()} == {True, False}
    assert all(verify_absence(tree_root(entries), key, proof) for key, proof in proofs.items())


def test_in_the_empty_tree_every_key_is_absent_and_none_is_in() -> None:
    proof = prove({}, KEYS[1])
    assert proof == SparseProof((), None)
    assert verify_absence(EMPTY, KEYS[1], proof)
    assert not verify_inclusion(EMPTY, KEYS[1], b"", proof)
    assert not verify_absence(EMPTY, KEYS[1], SparseProof((), (KEYS[2], bytes(32))))
    assert not verify_absence(EMPTY, KEYS[1], SparseProof((EMPTY,), None))
    assert not verify_absence(tree_root({KEYS[2]: b"a"}), KEYS[1], proof)


def test_one_proof_and_many_are_the_same() -> None:
    entries = random_entries(30)
    keys = [*list(entries)[:5], *random_entries(5, seed=1)]
    assert prove_all(entries, keys) == {key: prove(entries, key) for key in keys}
    assert prove_all(entries, iter(keys + keys)) == prove_all(entries, keys)
    assert prove_all(entries, []) == {}


def test_many_proofs_cost_one_build_of_the_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[bytes] = []

    def counting(left: bytes, right: bytes) -> bytes:
        hashed.append(left + right)
        return tree_node(left, right)

    monkeypatch.setattr(sparse, "tree_node", counting)
    entries = random_entries(1_000)
    root = tree_root(entries)
    build = len(hashed)
    proofs = prove_all(entries, entries)
    assert len(hashed) == 2 * build
    assert len(set(hashed)) == build < 1.6 * len(entries)  # no node twice; ln 2 and a half per leaf
    assert all(verify_inclusion(root, key, entries[key], proofs[key]) for key in list(entries)[:10])


# Proofs that must not hold.


def forgeries(proof: SparseProof, key: bytes, hashes: list[bytes], leaves: list[tuple[bytes, bytes]]) -> Iterator[Any]:
    """Strategies that change one thing about ``proof``, with material of the tree it is for."""
    siblings = proof.siblings
    length = len(siblings)
    yield st.integers(0, length).map(lambda size: replace(proof, siblings=siblings[:size]))
    yield st.integers(0, length).map(lambda size: replace(proof, siblings=siblings[size:]))
    yield st.just(replace(proof, siblings=siblings[::-1]))
    occupants = [None, *leaves, (key, sha256(b"a")), *((one, other) for one in hashes[:4] for other in hashes[:4])]
    yield st.sampled_from(occupants).map(lambda occupant: replace(proof, occupant=occupant))
    if length < 256:
        more = st.lists(st.sampled_from(hashes), min_size=1, max_size=min(3, 256 - length)).map(tuple)
        yield more.map(lambda extra: replace(proof, siblings=siblings + extra))
        yield more.map(lambda extra: replace(proof, siblings=extra + siblings))
    if length:
        at = st.integers(0, length - 1)
        yield st.tuples(at, st.sampled_from(hashes)).map(
            lambda drawn: replace(proof, siblings=(*siblings[: drawn[0]], drawn[1], *siblings[drawn[0] + 1 :]))
        )
        yield at.map(lambda place: replace(proof, siblings=siblings[:place] + siblings[place + 1 :]))


@hostile
@given(close_entries, st.data())
def test_no_change_to_real_proofs_proves_what_is_not_so(entries: dict[bytes, bytes], data: st.DataObject) -> None:
    root, proofs = tree_root(entries), prove_all(entries, KEYS)
    key = data.draw(st.sampled_from([*entries, *KEYS]), label="key")
    proof = data.draw(st.sampled_from([proofs[key], *proofs.values()]), label="real proof")
    inner = {value for value, _ in naive_tree(entries).values()} if len(entries) < 4 else set[bytes]()
    hashes = sorted({EMPTY, root, *proof.siblings, *proofs[key].siblings, *inner})
    leaves = [(one, sha256(value)) for one, value in entries.items()]
    for _ in range(data.draw(st.integers(0, 3), label="changes")):
        proof = data.draw(st.one_of(*forgeries(proof, key, hashes, leaves)), label="forged")
    assert not (key in entries and verify_absence(root, key, proof))
    for value in VALUES:
        assert not (entries.get(key) != value and verify_inclusion(root, key, value, proof))


def test_every_truncation_and_extension_of_every_proof_fails() -> None:
    entries = random_entries(40)
    root, absent = tree_root(entries), list(random_entries(40, seed=1))
    for key, proof in prove_all(entries, [*entries, *absent]).items():
        value = entries.get(key, b"")
        cut = [replace(proof, siblings=proof.siblings[:size]) for size in range(len(proof.siblings))]
        late = [replace(proof, siblings=proof.siblings[size:]) for size in range(1, len(proof.siblings) + 1)]
        grown = [replace(proof, siblings=(*proof.siblings, extra)) for extra in (EMPTY, root, *proof.siblings)]
        for forged in (*cut, *late, *grown):
            assert not verify_absence(root, key, forged)
            assert not verify_inclusion(root, key, value, forged)


def test_any_changed_byte_of_a_proof_breaks_it() -> None:
    entries = random_entries(20)
    root, occupied = tree_root(entries), 0
    for key, proof in prove_all(entries, [*list(entries)[:5], *random_entries(8, seed=1)]).items():
        fields = [*proof.siblings, *(proof.occupant or ())]
        occupied += proof.occupant is not None
        for number, field in enumerate(fields):
            for at in (0, 17, 31):
                changed = fields.copy()
                changed[number] = field[:at] + bytes([field[at] ^ 1]) + field[at + 1 :]
                siblings, rest = changed[: len(proof.siblings)], changed[len(proof.siblings) :]
                forged = SparseProof(tuple(siblings), (rest[0], rest[1]) if rest else None)
                assert not verify_absence(root, key, forged)
                assert not verify_inclusion(root, key, entries.get(key, b""), forged)
    assert occupied


def test_another_value_is_not_included() -> None:
    entries = random_entries(10)
    key = next(iter(entries))
    root, proof = tree_root(entries), prove(entries, key)
    assert verify_inclusion(root, key, entries[key], proof)
    for value in (b"", entries[key][:-1], entries[key] + b"\0", sha256(entries[key]), bytes(32)):
        assert not verify_inclusion(root, key, value, proof)


def test_another_key_or_another_root_is_not_proved() -> None:
    entries, absent = random_entries(10), next(iter(random_entries(1, seed=1)))
    one, other = list(entries)[:2]
    root = tree_root(entries)
    assert not verify_inclusion(root, other, entries[one], prove(entries, one))
    assert not verify_inclusion(root, other, entries[other], prove(entries, one))
    for wrong in (EMPTY, sha256(root), tree_root({one: entries[one]})):
        assert not verify_inclusion(wrong, one, entries[one], prove(entries, one))
        assert not verify_absence(wrong, absent, prove(entries, absent))


def test_swapped_siblings_are_not_a_proof() -> None:
    entries = random_entries(40)
    root = tree_root(entries)
    for key, proof in prove_all(entries, entries).items():
        for at in range(len(proof.siblings) - 1):
            first, second = proof.siblings[at : at + 2]
            swapped = replace(proof, siblings=(*proof.siblings[:at], second, first, *proof.siblings[at + 2 :]))
            unchanged = first == second  # two empty ones
            assert verify_inclusion(root, key, entries[key], swapped) == unchanged


def test_an_occupant_from_elsewhere_in_the_tree_proves_no_absence() -> None:
    """Each leaf leads to the root along its own path; only one that shares the key's path says anything."""
    entries = dict.fromkeys(KEYS, b"a")
    root, proofs = tree_root(entries), prove_all(entries, KEYS)
    for key in KEYS:
        for other in KEYS:
            forged = replace(proofs[other], occupant=(other, sha256(b"a")))
            assert not verify_absence(root, key, forged)


def test_an_occupant_one_bit_short_of_the_path_proves_no_absence() -> None:
    present, twin, neighbour = bytes(32), b"\x20" + bytes(31), b"\x80" + bytes(31)
    root = tree_root({present: b"a", twin: b"b", neighbour: b"c"})
    # The twin's own path: present and twin part at bit 2, so both stand at depth 3.
    siblings = prove({present: b"a", twin: b"b", neighbour: b"c"}, twin).siblings
    assert len(siblings) == 3
    forged = SparseProof(siblings, (twin, sha256(b"b")))
    beside = b"\x30" + bytes(31)
    assert verify_absence(root, beside, forged)
    assert not verify_absence(root, present, forged)
    # The same bytes, climbed as the occupant and not the key would, do reach the root.
    assert verify_inclusion(root, twin, b"b", SparseProof(siblings, None))


def test_the_prefix_is_checked_even_where_the_climb_would_succeed() -> None:
    """A crafted tree with one leaf on both sides: climbing from it succeeds for keys it says nothing about."""
    occupant = (bytes(32), sha256(b"a"))
    leaf = tree_leaf(b"".join(occupant))
    root, proof = tree_node(leaf, leaf), SparseProof((leaf,), occupant)
    assert verify_absence(root, b"\x40" + bytes(31), proof)
    assert not verify_absence(root, b"\x80" + bytes(31), proof)


def test_a_key_is_not_absent_because_it_is_its_own_occupant() -> None:
    entries = random_entries(10)
    root = tree_root(entries)
    for key, proof in prove_all(entries, entries).items():
        assert not verify_absence(root, key, replace(proof, occupant=(key, sha256(entries[key]))))


def test_an_inclusion_proof_has_no_occupant() -> None:
    entries = random_entries(10)
    key, other = list(entries)[:2]
    proof, root = prove(entries, key), tree_root(entries)
    assert verify_inclusion(root, key, entries[key], proof)
    for occupant in ((key, sha256(entries[key])), (other, sha256(entries[other]))):
        assert not verify_inclusion(root, key, entries[key], replace(proof, occupant=occupant))


def test_trailing_empty_siblings_are_refused_even_under_a_root_made_for_them() -> None:
    """No tree made by the rules has one: what is alone in a subtree stands higher up."""
    key, absent = bytes(32), b"\x10" + bytes(31)
    leaf = tree_leaf(key + sha256(b"a"))
    assert not verify_inclusion(tree_node(leaf, EMPTY), key, b"a", SparseProof((EMPTY,), None))
    assert not verify_absence(tree_node(leaf, EMPTY), absent, SparseProof((EMPTY,), (key, sha256(b"a"))))
    assert not verify_absence(tree_node(EMPTY, EMPTY), absent, SparseProof((EMPTY,), None))
    real = SparseProof((leaf,), None)  # the other way round, with something beside the empty place
    assert verify_absence(tree_node(leaf, EMPTY), b"\x80" + bytes(31), real)


def test_inner_nodes_are_not_leaves() -> None:
    """The 64 bytes under a node, offered as key and value hash of a leaf, do not have the node's hash."""
    entries = dict.fromkeys(KEYS, b"a")
    root, tree = tree_root(entries), naive_tree(entries)
    left, right = tree["0"][0], tree["1"][0]
    assert tree_node(left, right) == root
    for key in (*KEYS, left, b"\x55" * 32):
        assert not verify_absence(root, key, SparseProof((), (left, right)))
    under = (tree["00"][0], tree["01"][0])
    for key in (under[0], b"\x00" * 32, b"\x7f" * 32):
        assert not verify_absence(root, key, SparseProof((right,), under))


def test_leaves_are_not_inner_nodes() -> None:
    """A leaf's key and value hash, offered as the two children of an inner node, do not have its hash."""
    key = KEYS[3]
    root = tree_root({key: b"a"})
    for absent in (b"\x00" * 32, b"\xff" * 32):
        for sibling in (key, sha256(b"a")):
            assert not verify_absence(root, absent, SparseProof((sibling,), None))
    assert not verify_inclusion(root, sha256(b"a"), b"a", SparseProof((key,), None))


crafted = st.recursive(
    st.one_of(st.none(), st.tuples(st.sampled_from(KEYS[:8]), st.sampled_from(VALUES))),
    lambda inner: st.lists(inner, min_size=2, max_size=2),
    max_leaves=12,
)


def places(node: Any, path: str = "") -> tuple[bytes, list[tuple[str, list[bytes], Any]]]:
    """Hash of a crafted tree, and each place in it: path, siblings from the top, what stands there."""
    if node is None:
        return EMPTY, [(path, [], None)]
    if isinstance(node, tuple):
        return tree_leaf(node[0] + sha256(node[1])), [(path, [], node)]
    (left, on_left), (right, on_right) = (places(child, path + bit) for child, bit in zip(node, "01", strict=True))
    found = [(where, [right, *siblings], what) for where, siblings, what in on_left]
    found += [(where, [left, *siblings], what) for where, siblings, what in on_right]
    return tree_node(left, right), found


@hostile
@given(crafted)
def test_under_no_root_is_a_key_both_in_and_absent_not_even_in_a_crafted_tree(node: Any) -> None:
    """Leaves stand anywhere, unsorted and twice; each place gives every proof that it could give."""
    root, found = places(node)
    proofs = [SparseProof(tuple(siblings), None) for _, siblings, _ in found]
    proofs += [
        SparseProof(tuple(siblings), (what[0], sha256(what[1]))) for _, siblings, what in found if what is not None
    ]
    for key in KEYS:
        values = [value for value in VALUES for proof in proofs if verify_inclusion(root, key, value, proof)]
        assert len(set(values)) <= 1
        assert not (values and any(verify_absence(root, key, proof) for proof in proofs))


# What goes in and out.


@quick
@given(close_entries, st.sampled_from(KEYS))
def test_a_proof_survives_json(entries: dict[bytes, bytes], key: bytes) -> None:
    proof = prove(entries, key)
    document = json.loads(json.dumps(proof.to_json()))
    assert SparseProof.from_json(document) == proof
    assert SparseProof.from_json(document).to_json() == document


def test_json_is_the_hex_of_each_field_end_to_end() -> None:
    one, other = b"\xab" * 32, b"\x01" * 32
    assert SparseProof((), None).to_json() == {"siblings": "", "occupant": ""}
    assert SparseProof((one, other), (other, one)).to_json() == {
        "siblings": "ab" * 32 + "01" * 32,
        "occupant": "01" * 32 + "ab" * 32,
    }


HASH = "ab" * 32


@pytest.mark.parametrize(
    "document",
    [
        None,
        [],
        "",
        {},
        {"siblings": HASH},
        {"occupant": HASH * 2},
        {"siblings": "", "occupant": "", "extra": ""},
        {"siblings": "", "Occupant": ""},
        {"siblings": None, "occupant": ""},
        {"siblings": "", "occupant": None},
        {"siblings": 0, "occupant": ""},
        {"siblings": [HASH], "occupant": ""},
        {"siblings": HASH.encode(), "occupant": ""},
        {"siblings": HASH.upper(), "occupant": ""},
        {"siblings": HASH[:-1] + "B", "occupant": ""},
        {"siblings": HASH[:-1], "occupant": ""},
        {"siblings": HASH[:-2], "occupant": ""},
        {"siblings": HASH + "00", "occupant": ""},
        {"siblings": HASH[:-1] + "g", "occupant": ""},
        {"siblings": "ab " * 32, "occupant": ""},
        {"siblings": f" {HASH}", "occupant": ""},
        {"siblings": f"{HASH}\n", "occupant": ""},
        {"siblings": f"0x{HASH}", "occupant": ""},
        {"siblings": "\N{FULLWIDTH DIGIT ONE}" * 64, "occupant": ""},
        {"siblings": HASH * 257, "occupant": ""},
        {"siblings": "", "occupant": HASH},
        {"siblings": "", "occupant": HASH * 3},
        {"siblings": "", "occupant": HASH.upper() * 2},
        {"siblings": "", "occupant": f"{HASH * 2}00"},
    ],
)
def test_json_that_no_proof_was_written_as_is_refused(document: Any) -> None:
    with pytest.raises(ValueError, match=r"sparse proof|hexadecimal|hex|siblings|occupant"):
        SparseProof.from_json(document)


def test_the_longest_path_has_256_siblings() -> None:
    assert len(prove({KEYS[0]: b"a", bytes(31) + b"\1": b"b"}, KEYS[0]).siblings) == 256
    assert len(SparseProof.from_json({"siblings": HASH * 256, "occupant": ""}).siblings) == 256
    with pytest.raises(ValueError, match="at most 256 siblings, this one has 257"):
        SparseProof((bytes(32),) * 257, None)


@pytest.mark.parametrize("wrong", [b"", bytes(31), bytes(33), bytes(64)])
def test_whatever_is_not_32_bytes_is_refused(wrong: bytes) -> None:
    proof = SparseProof((), None)
    calls: list[Callable[[], object]] = [
        lambda: tree_root({wrong: b"a"}),
        lambda: tree_root({KEYS[0]: b"a", wrong: b"a"}),
        lambda: prove({wrong: b"a"}, KEYS[0]),
        lambda: prove({KEYS[0]: b"a"}, wrong),
        lambda: prove_all({}, [KEYS[0], wrong]),
        lambda: verify_inclusion(wrong, KEYS[0], b"a", proof),
        lambda: verify_inclusion(EMPTY, wrong, b"a", proof),
        lambda: verify_absence(wrong, KEYS[0], proof),
        lambda: verify_absence(EMPTY, wrong, proof),
        lambda: SparseProof((EMPTY, wrong), None),
        lambda: SparseProof((), (wrong, EMPTY)),
        lambda: SparseProof((), (EMPTY, wrong)),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=f"{len(wrong)} bytes, expected 32"):
            call()


# Another implementation, where it is installed.

_PEER = """
const { SparseMerkleTree } = require('@fuel-ts/merkle');
const answers = JSON.parse(require('fs').readFileSync(0)).map(({ entries, keys }) => {
  const tree = new SparseMerkleTree();
  for (const [key, value] of entries) tree.update(key, value);
  return [tree.root, keys.map((key) => {
    const proof = tree.prove(key);
    return [proof.SideNodes, proof.NonMembershipLeafData];
  })];
});
process.stdout.write(JSON.stringify(answers));
"""


def ask_peer(script: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not on PATH")
    return subprocess.run([node, "-e", script], input=stdin, capture_output=True, text=True, check=False, timeout=300)


def test_roots_and_proofs_agree_with_an_independent_implementation() -> None:
    if ask_peer("require('@fuel-ts/merkle')").returncode:
        install = "npm install --prefix DIR @fuel-ts/merkle, then set NODE_PATH to DIR/node_modules"
        pytest.skip(f"the second implementation is not installed: {install}")
    source = random.Random(3)
    trees = [random_entries(count, seed=count) for count in (1, 2, 3, 10, 300)]
    trees += [{key: source.randbytes(8) for key in source.sample(KEYS, count)} for count in (1, 2, 3, 5, 8, 20, 64)]
    questions = [(entries, [*list(entries)[:20], *KEYS[::3], *random_entries(20, seed=9)]) for entries in trees]
    asked = [
        {
            "entries": [[f"0x{key.hex()}", f"0x{value.hex()}"] for key, value in entries.items()],
            "keys": [f"0x{key.hex()}" for key in keys],
        }
        for entries, keys in questions
    ]
    answer = ask_peer(_PEER, json.dumps(asked))
    assert answer.returncode == 0, answer.stderr
    for (entries, keys), (root, proofs) in zip(questions, json.loads(answer.stdout), strict=True):
        assert root == f"0x{tree_root(entries).hex()}"
        ours = prove_all(entries, keys)
        for key, (siblings, leaf) in zip(keys, proofs, strict=True):
            occupant = f"0x00{b''.join(ours[key].occupant or ()).hex()}" if ours[key].occupant else ""
            assert leaf == occupant
            assert siblings[::-1] == [f"0x{sibling.hex()}" for sibling in ours[key].siblings]
