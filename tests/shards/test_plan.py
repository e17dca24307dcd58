"""Plans: pure, chained by key, and different exactly where records are."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import pytest

from benchmarks.difference import difference
from shards.keys import Keyring
from shards.layout import Assignment, ShardLayout
from shards.plan import Chain, Plan, make_chain, make_plan, pass_order
from shards.records import PERMANENT
from shards.sparse import tree_root
from shards.trunk import TRUNK
from shards.vault import StoredRecord
from tests.toy import toy_record

KEYS = Keyring.from_root(bytes(32))
LAYOUT = ShardLayout(shards=3, slices=4, rehearsal=0.5, epochs=2, key=KEYS.placement)
RECORDS = [StoredRecord.of(toy_record(n, subject=None), KEYS, "n", truncated=False) for n in range(60)]


def plan(records: Iterable[StoredRecord], layout: ShardLayout = LAYOUT) -> Plan:
    return make_plan(records, layout, "recipe")


def test_a_plan_does_not_depend_on_the_order_of_records() -> None:
    assert plan(reversed(RECORDS)).steps().keys() == plan(RECORDS).steps().keys()
    assert plan(reversed(RECORDS)) == plan(RECORDS)


def test_every_record_is_trained_in_its_own_slice_at_least() -> None:
    for stored in RECORDS:
        place = LAYOUT.place(stored.record)
        (step,) = [s for s in plan(RECORDS).chains[place.shard].steps if s.link.slice == place.slice]
        assert stored in step.members


def test_steps_are_chained_by_key_in_slice_order() -> None:
    for chain in plan(RECORDS).chains:
        slices = [step.link.slice for step in chain.steps]
        assert slices == sorted(set(slices))
        assert [step.link.parent for step in chain.steps] == [None, *(step.key for step in chain.steps[:-1])]
        assert chain.head == chain.steps[-1]


def test_rehearsal_one_trains_the_whole_prefix_and_zero_the_slice_alone() -> None:
    for fraction, cumulative in ((1.0, True), (0.0, False)):
        for chain in plan(RECORDS, replace(LAYOUT, rehearsal=fraction)).chains:
            seen = 0
            for step in chain.steps:
                seen += step.own
                assert len(step.members) == (seen if cumulative else step.own)


def test_an_empty_slice_has_no_step_and_an_empty_shard_no_chain() -> None:
    rest = [s for s in RECORDS if LAYOUT.place(s.record).shard != 1 and LAYOUT.place(s.record).slice != 2]
    smaller = plan(rest)
    assert smaller.chains[1].steps == ()
    assert smaller.chains[1].head is None
    assert all(step.link.slice != 2 for step in smaller.steps().values())


def test_a_steps_root_is_that_of_the_records_that_live_in_its_slice() -> None:
    for chain in plan(RECORDS).chains:
        for step in chain.steps:
            own = [one for one in RECORDS if LAYOUT.place(one.record) == Assignment(step.link.shard, step.link.slice)]
            assert dict(step.leaves) == {one.tag: one.commitment for one in own}
            assert step.root == tree_root(step.leaves).hex()
            assert step.own == len(own)


def test_a_deletion_changes_the_root_of_its_own_slice_and_of_no_other() -> None:
    gone = RECORDS[0]
    roots = [
        {(step.link.shard, step.link.slice): step.root for step in made.steps().values()}
        for made in (plan(RECORDS), plan(RECORDS[1:]))
    ]
    changed = {place for place in roots[0] if roots[0][place] != roots[1].get(place)}
    place = LAYOUT.place(gone.record)
    assert changed == {(place.shard, place.slice)}


def test_passes_are_ordered_differently_each_epoch_and_hold_the_same_records() -> None:
    step = max(plan(RECORDS).steps().values(), key=lambda step: len(step.members))
    first, second = (pass_order(step.members, LAYOUT, step.link.slice, epoch=epoch) for epoch in (0, 1))
    assert first == step.members != second
    assert set(first) == set(second)


@pytest.mark.parametrize("victim", range(0, 60, 7))
def test_a_deletion_changes_its_shard_from_its_slice_on_and_nothing_else(victim: int) -> None:
    gone = RECORDS[victim]
    place = LAYOUT.place(gone.record)
    before, after = plan(RECORDS), plan([stored for stored in RECORDS if stored is not gone])
    found = difference(before, after)
    changed = {s.key for s in before.chains[place.shard].steps if s.link.slice >= place.slice}
    assert set(found.kept) == before.steps().keys() - changed == before.steps().keys() & after.steps().keys()
    assert set(found.retrained) == after.steps().keys() - before.steps().keys()
    work = sum(len(after.steps()[key].members) for key in found.retrained)
    assert found.retrained_share == work / sum(len(step.members) for step in before.steps().values())


def test_equal_plans_do_not_differ() -> None:
    found = difference(plan(RECORDS), plan(RECORDS))
    assert (found.retrained, found.retrained_share) == ((), 0.0)
    assert set(found.kept) == plan(RECORDS).steps().keys()


def test_a_content_change_changes_the_key_and_a_salt_only_the_root() -> None:
    layout = replace(LAYOUT, shards=1)
    chain = make_chain(0, RECORDS, layout, "recipe")
    again = [StoredRecord.of(stored.record, KEYS, "n", truncated=False) for stored in RECORDS]
    salted = make_chain(0, again, layout, "recipe")
    edited = make_chain(0, [replace(RECORDS[0], fingerprint=b"f" * 32), *RECORDS[1:]], layout, "recipe")
    assert chain.head
    assert salted.head
    assert edited.head
    assert chain.head.key == salted.head.key != edited.head.key
    assert chain.head.root != salted.head.root


def test_the_first_step_of_every_shard_starts_from_the_trunks_head_and_its_key_covers_it() -> None:
    common = [replace(one, record=replace(one.record, retention=PERMANENT)) for one in RECORDS[:12]]
    whole, smaller = plan([*common, *RECORDS[12:]]), plan([*common[1:], *RECORDS[12:]])
    assert whole.every == (whole.trunk, *whole.chains)
    assert whole.trunk.shard == TRUNK
    assert {one.tag for step in whole.trunk.steps for one in step.members} == {one.tag for one in common}
    assert whole.trunk.steps[0].link.parent is None
    for chain in whole.chains:
        assert chain.steps[0].link.parent == whole.trunk.steps[-1].key
        assert whole.lineage(chain) == whole.trunk.steps + chain.steps
        assert not {one.tag for step in chain.steps for one in step.members} & {one.tag for one in common}
    own = {step.key for chain in whole.chains for step in chain.steps}
    assert not own & smaller.steps().keys(), "whoever leaves the trunk changes every key after it"


def test_one_shards_chain_is_made_from_its_records_and_the_trunks() -> None:
    common = [replace(one, record=replace(one.record, retention=PERMANENT)) for one in RECORDS[:12]]
    everything = [*common, *RECORDS[12:]]
    for chain in plan(everything).every:
        needed = [one for one in everything if LAYOUT.place(one.record).shard in (chain.shard, TRUNK)]
        assert make_chain(chain.shard, needed, LAYOUT, "recipe") == chain


def test_without_a_permanent_record_there_is_no_trunk() -> None:
    assert plan(RECORDS).trunk == Chain(TRUNK, ())
    assert all(chain.steps[0].link.parent is None for chain in plan(RECORDS).chains)
