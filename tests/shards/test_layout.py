"""Placement, order and rehearsal look at one record and the key, at nothing else."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from shards.layout import ShardLayout
from shards.records import PERMANENT
from shards.trunk import MAX_SHARDS, TRUNK, chain_name, told
from tests.toy import toy_recipe, toy_record

LAYOUT = ShardLayout(shards=4, slices=5, rehearsal=0.25, epochs=2, key=b"k" * 32)
MANY = [toy_record(number, subject=None) for number in range(2000)]


def test_a_place_is_within_bounds_and_never_changes() -> None:
    for record in MANY[:200]:
        place = LAYOUT.place(record)
        assert 0 <= place.shard < 4
        assert 0 <= place.slice < 5
        assert place == LAYOUT.place(record) == replace(LAYOUT, rehearsal=1.0, epochs=7).place(record)


def test_places_are_spread_evenly() -> None:
    counts = Counter((place.shard, place.slice) for place in map(LAYOUT.place, MANY))
    assert len(counts) == 20
    assert 60 <= min(counts.values()) <= max(counts.values()) <= 145  # 100 expected, deviation 10


def test_a_place_depends_on_the_key_and_not_on_content_or_version() -> None:
    other = replace(LAYOUT, key=b"l" * 32)
    assert any(LAYOUT.place(record) != other.place(record) for record in MANY[:20])
    for record in MANY[:20]:
        assert LAYOUT.place(record) == LAYOUT.place(replace(record, content="{}", version=9))


def test_a_subjects_records_share_a_shard_and_not_a_slice() -> None:
    places = [LAYOUT.place(toy_record(number, subject="one person")) for number in range(50)]
    assert len({place.shard for place in places}) == 1
    assert {place.slice for place in places} == set(range(5))


def test_a_subject_and_an_id_of_the_same_name_are_placed_apart() -> None:
    owned = [LAYOUT.place(toy_record(n, id="x", subject=f"r{n}")).shard for n in range(50)]
    alone = [LAYOUT.place(toy_record(n, subject=None)).shard for n in range(50)]
    assert owned != alone


@pytest.mark.parametrize(("risk", "local"), [(0.0, 0), (0.19, 0), (0.2, 1), (0.5, 2), (0.99, 4), (1.0, 4)])
def test_declared_risk_picks_the_slice_later_the_riskier(risk: float, local: int) -> None:
    assert LAYOUT.place(toy_record(1, risk=risk)).slice == local


def test_risk_does_not_move_a_record_to_another_shard() -> None:
    assert LAYOUT.place(toy_record(1, risk=0.9)).shard == LAYOUT.place(toy_record(1)).shard


@pytest.mark.parametrize("generation", [0, 1, 7])
def test_a_generation_offsets_the_slice_by_its_own_slices(generation: int) -> None:
    for record in MANY[:20]:
        first, later = LAYOUT.place(record), LAYOUT.place(replace(record, generation=generation))
        assert later.shard == first.shard
        assert later.slice == generation * 5 + first.slice


@pytest.mark.parametrize(
    ("fraction", "least", "most"), [(0.0, 0, 0), (0.25, 420, 580), (0.5, 910, 1090), (1.0, 2000, 2000)]
)
def test_the_rehearsed_fraction_is_the_declared_one(fraction: float, least: int, most: int) -> None:
    layout = replace(LAYOUT, rehearsal=fraction)
    assert least <= sum(layout.rehearsed(record.id, 3) for record in MANY) <= most


def test_rehearsal_is_drawn_anew_for_each_step_and_grows_with_the_fraction() -> None:
    half = replace(LAYOUT, rehearsal=0.5)
    draws = [[LAYOUT.rehearsed(record.id, step) for record in MANY[:100]] for step in (1, 2)]
    assert draws[0] != draws[1]
    assert all(half.rehearsed(record.id, 1) for record in MANY if LAYOUT.rehearsed(record.id, 1))


def test_order_differs_by_step_and_epoch_and_is_unmoved_by_a_removal() -> None:
    def order(step: int, epoch: int, without: str = "") -> list[str]:
        ids = sorted((record.id for record in MANY[:30]), key=lambda one: LAYOUT.order_key(one, step, epoch))
        return [one for one in ids if one != without]

    assert order(0, 0) != order(1, 0) != order(1, 1)
    remaining = sorted((r.id for r in MANY[:30] if r.id != "r7"), key=lambda one: LAYOUT.order_key(one, 0, 0))
    assert remaining == order(0, 0, without="r7")


def test_a_layout_is_read_from_a_recipes_json_and_hides_its_key() -> None:
    body = {"shards": 4, "slices": 5, "rehearsal": 0.25, "epochs": 2}
    assert ShardLayout.of_recipe(body, b"k" * 32) == LAYOUT
    assert "kkk" not in repr(LAYOUT)


def test_a_permanent_record_of_the_first_generation_lives_in_the_trunk_and_no_later_one() -> None:
    for record in MANY:
        stays = replace(record, retention=PERMANENT)
        assert LAYOUT.place(stays) == replace(LAYOUT.place(record), shard=TRUNK), "the slice is what it was"
        assert LAYOUT.place(replace(stays, subject="somebody", content="{}", version=9)) == LAYOUT.place(stays)
        later = replace(stays, generation=1)
        assert LAYOUT.place(later) == LAYOUT.place(replace(later, retention=None)), "an ordinary record"


def test_the_trunk_has_a_number_that_no_shard_can_have() -> None:
    assert TRUNK not in range(MAX_SHARDS)
    with pytest.raises(ValueError, match="shards"):
        toy_recipe(shards=MAX_SHARDS + 1)
    assert [chain_name(0), chain_name(TRUNK), told(0), told(TRUNK)] == ["shard 0", "trunk", 0, "trunk"]
