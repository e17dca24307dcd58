"""Checkpoint keys cover all that identifies a step, and a broken chain is seen."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.errors import IntegrityError
from shards.lineage import Checkpoint, Link, check_chain, pack_tags, records_digest, slice_digest, unpack_tags

FIRST = Link(recipe="r", shard=1, chain=0, slice=0, parent=None, records="x")
SECOND = replace(FIRST, slice=2, parent=FIRST.key, records="y")


@pytest.mark.parametrize(
    "change", [{"recipe": "s"}, {"shard": 2}, {"chain": 1}, {"slice": 1}, {"parent": "p"}, {"records": "y"}]
)
def test_a_key_covers_every_field(change: dict[str, Any]) -> None:
    assert replace(FIRST, **change).key != FIRST.key
    assert set(Link.__slots__) == {"recipe", "shard", "chain", "slice", "parent", "records"}


def test_a_records_digest_covers_order_tags_and_contents() -> None:
    one, two, three = (b"t" * 32, b"c" * 32), (b"u" * 32, b"d" * 32), (b"t" * 32, b"d" * 32)
    digests = [records_digest(entries) for entries in ([one, two], [two, one], [one], [], [three, two])]
    assert len(set(digests)) == 5


def test_a_slice_digest_ignores_order() -> None:
    one, two = (b"t" * 32, b"c" * 32), (b"u" * 32, b"d" * 32)
    assert slice_digest([one, two]) == slice_digest([two, one]) != slice_digest([one])


def test_a_link_and_a_checkpoint_round_trip() -> None:
    assert Link.from_json(SECOND.to_json()) == SECOND
    made = Checkpoint(SECOND, "f", "t", "s", 3, 2, {"machine": "toy"})
    assert Checkpoint.from_json(made.to_json()) == made
    assert made.key == SECOND.key


def test_a_stated_key_that_the_fields_do_not_hash_to_is_refused() -> None:
    with pytest.raises(IntegrityError, match="do not trust"):
        Link.from_json(SECOND.to_json() | {"shard": 7})


def test_a_whole_chain_has_no_problems() -> None:
    assert check_chain([], "r", 1) == []
    assert check_chain([FIRST, SECOND], "r", 1) == []


@pytest.mark.parametrize(
    "links",
    [
        [SECOND],
        [FIRST, replace(SECOND, parent="other")],
        [FIRST, replace(SECOND, slice=0)],
        [FIRST, replace(SECOND, shard=0)],
        [replace(FIRST, recipe="s")],
        [SECOND, FIRST],
    ],
)
def test_a_broken_chain_is_seen(links: list[Link]) -> None:
    assert check_chain(links, "r", 1) != []


@settings(max_examples=50, derandomize=True, deadline=None, database=None)
@given(st.sets(st.binary(min_size=32, max_size=32), max_size=6))
def test_tags_pack_and_unpack_whatever_their_order(tags: set[bytes]) -> None:
    assert unpack_tags(pack_tags(tags)) == tags
    assert pack_tags(sorted(tags)) == pack_tags(sorted(tags, reverse=True))
