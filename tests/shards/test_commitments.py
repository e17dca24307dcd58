"""Slice commitments: one root for what a slice consists of, and leaves that can be shown again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from shards.commitments import (
    LEAVES_FILE,
    SliceCommitment,
    commit_slice,
    empty_slice,
    leaves_digest,
    leaves_object,
    read_leaves,
)
from shards.keys import Keyring
from shards.layout import ShardLayout
from shards.plan import SliceStep, make_chain
from shards.sparse import EMPTY, prove, tree_root, verify_absence, verify_inclusion
from shards.store import Store
from shards.vault import StoredRecord
from tests.toy import toy_record

KEYS = Keyring.from_root(bytes(32))
LAYOUT = ShardLayout(shards=1, slices=3, rehearsal=1.0, epochs=1, key=KEYS.placement)
RECORDS = [StoredRecord.of(toy_record(n), KEYS, "n", truncated=False) for n in range(20)]


def steps(records: list[StoredRecord]) -> tuple[SliceStep, ...]:
    return make_chain(0, records, LAYOUT, "recipe").steps


STEP = steps(RECORDS)[-1]
MADE = commit_slice(STEP)


def test_a_commitment_names_place_root_leaves_and_count() -> None:
    leaves = leaves_digest(STEP.leaves)
    assert SliceCommitment(0, STEP.link.slice, STEP.root, leaves, len(STEP.leaves)) == MADE
    assert MADE.to_json().keys() == {"shard", "slice", "root", "leaves", "records"}
    assert SliceCommitment(**MADE.to_json()) == MADE


def test_it_covers_the_records_that_live_in_the_slice_and_not_those_rehearsed() -> None:
    own = {one.tag for one in RECORDS if LAYOUT.place(one.record).slice == STEP.link.slice}
    assert set(STEP.leaves) == own
    assert MADE.records == len(own) < len(STEP.members)


def test_every_record_is_shown_to_be_in_its_slice_and_in_no_other() -> None:
    for step in steps(RECORDS):
        root = bytes.fromhex(commit_slice(step).root)
        for one in RECORDS:
            proof = prove(step.leaves, one.tag)
            own = LAYOUT.place(one.record).slice == step.link.slice
            assert verify_inclusion(root, one.tag, one.commitment, proof) == own
            assert verify_absence(root, one.tag, proof) == (not own)


def test_a_root_does_not_depend_on_the_order_of_records() -> None:
    assert [commit_slice(step) for step in steps(RECORDS[::-1])] == [commit_slice(step) for step in steps(RECORDS)]


def test_a_removed_an_added_and_an_edited_record_change_the_root() -> None:
    tag, commitment = next(iter(STEP.leaves.items()))
    fewer = {other: value for other, value in STEP.leaves.items() if other != tag}
    changes = [fewer, {**STEP.leaves, bytes(32): commitment}, {**STEP.leaves, tag: bytes(32)}]
    made = {commit_slice(replace(STEP, leaves=leaves)) for leaves in [STEP.leaves, *changes]}
    assert len({one.root for one in made}) == len({one.leaves for one in made}) == 4


def test_the_same_records_under_other_salts_have_other_roots_and_the_same_keys() -> None:
    again = [StoredRecord.of(one.record, KEYS, "n", truncated=False) for one in RECORDS]
    assert [step.key for step in steps(again)] == [step.key for step in steps(RECORDS)]
    assert not {step.root for step in steps(again)} & {step.root for step in steps(RECORDS)}


def test_an_empty_slice_has_the_root_of_no_leaves() -> None:
    made = empty_slice(2, 5)
    assert (made.shard, made.slice, made.records) == (2, 5, 0)
    assert made.root == EMPTY.hex() == tree_root({}).hex()
    assert made.leaves == leaves_digest({})
    assert read_leaves(leaves_object({})) == {}


HASHES = st.binary(min_size=32, max_size=32)


@settings(max_examples=50, derandomize=True, deadline=None, database=None)
@given(st.dictionaries(HASHES, HASHES, max_size=6))
def test_leaves_are_read_back_as_they_were_stored_whatever_their_order(leaves: dict[bytes, bytes]) -> None:
    files = leaves_object(leaves)
    assert read_leaves(files) == leaves
    assert leaves_object(dict(reversed(leaves.items()))) == files
    assert len(files[LEAVES_FILE]) == 64 * len(leaves)


def test_the_digest_of_leaves_is_that_under_which_the_store_keeps_them(memory_path: Path) -> None:
    assert Store(memory_path).put(leaves_object(STEP.leaves)) == leaves_digest(STEP.leaves)
