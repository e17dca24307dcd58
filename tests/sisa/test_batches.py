"""Which records share a batch is a function of the step's own records, and wastes little padding."""

from __future__ import annotations

import random
from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sisa.batches import WINDOW, updates
from sisa.config import Recipe
from tests.toy import toy_recipe

LENGTHS = st.lists(st.integers(1, 128), min_size=1, max_size=200)
SHAPES = st.fixed_dictionaries(
    {
        "batching": st.sampled_from(["order", "length"]),
        "batch_size": st.integers(1, 9),
        "accumulation": st.integers(1, 4),
        "lanes": st.sampled_from([1, 4]),
    }
)


def padded(lengths: list[int], recipe: Recipe) -> int:
    """Tokens computed in a pass, padding included."""
    return sum(len(batch.members) * batch.width for update in updates(lengths, recipe) for batch in update)


@given(LENGTHS, SHAPES)
def test_every_record_is_in_one_batch_of_a_pass_that_it_fits_in(lengths: list[int], shape: dict[str, int]) -> None:
    recipe = toy_recipe(**shape)
    batches = [batch for update in updates(lengths, recipe) for batch in update]
    assert sorted(at for batch in batches for at in batch.members) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch.members) <= recipe.batch_size
        assert max(lengths[at] for at in batch.members) <= batch.width


@given(st.integers(1, 40), SHAPES)
def test_the_number_of_updates_depends_on_how_many_records_there_are_alone(count: int, shape: dict[str, int]) -> None:
    recipe = toy_recipe(**shape)
    draw = random.Random(count)
    found = {len(updates([draw.randint(1, 128) for _ in range(count)], recipe)) for _ in range(5)}
    assert found == {ceil(ceil(count / recipe.batch_size) / recipe.accumulation)}


def test_in_order_the_batches_are_those_of_the_pass() -> None:
    recipe = toy_recipe(batching="order", batch_size=2, accumulation=2)
    members = [[batch.members for batch in update] for update in updates([5, 1, 9, 2, 7], recipe)]
    assert members == [[(0, 1), (2, 3)], [(4,)]]


def test_batches_of_like_length_need_less_padding_than_those_in_order() -> None:
    draw = random.Random(7)
    lengths = [min(128, 1 + int(draw.expovariate(1 / 20))) for _ in range(1000)]
    in_order, by_length = (padded(lengths, toy_recipe(batching=how, batch_size=8)) for how in ("order", "length"))
    assert by_length < 0.6 * in_order
    assert by_length < 1.2 * sum(lengths)


def test_short_and_long_batches_take_turns_and_each_pass_mixes_the_records_anew() -> None:
    recipe = toy_recipe(batching="length", batch_size=4)
    lengths = list(range(1, 65))
    first = updates(lengths, recipe)
    second = updates(lengths[::-1], recipe)
    widths = [update[0].width for update in first[:WINDOW]]
    assert widths == sorted(widths), "the pass itself is in order of length here, and the batches follow it"
    shuffled = random.Random(3).sample(lengths, len(lengths))
    widths = [update[0].width for update in updates(shuffled, recipe)]
    assert widths not in (sorted(widths), sorted(widths, reverse=True))
    assert [update[0].width for update in second] == [update[0].width for update in first][::-1]


@pytest.mark.parametrize("longest", [1, 7, 8, 15, 16, 31, 100, 127, 128])
def test_lanes_have_few_widths_and_always_one_token_of_padding(longest: int) -> None:
    recipe = toy_recipe(lanes=4, max_length=128)
    ((batch,),) = updates([longest], recipe)
    assert longest < batch.width <= max(8, 1.34 * longest + 8)
    assert batch.width in (*range(8, 72, 8), *range(80, 129, 16), 129)


def test_lanes_go_from_short_to_long_so_that_they_need_the_same_width_at_the_same_time() -> None:
    draw = random.Random(11)
    recipe = toy_recipe(lanes=4, batch_size=4, max_length=128)
    courses = [
        [update[0].width for update in updates([draw.randint(4, 60) for _ in range(64)], recipe)] for _ in range(2)
    ]
    assert all(widths == sorted(widths) for widths in courses)
    together = sum(min(one.count(width), other.count(width)) for one, other in [courses] for width in set(one))
    assert together >= 9, "of 16 batches"
