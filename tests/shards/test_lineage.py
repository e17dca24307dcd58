"""Checkpoint keys cover all that identifies a step, and a broken chain is seen."""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.errors import IntegrityError
from shards.lineage import (
    Checkpoint,
    Link,
    check_chain,
    check_lineage,
    lineage_digest,
    pack_tags,
    records_digest,
    standing_on,
    unpack_tags,
)
from shards.trunk import TRUNK

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


def made(**values: Any) -> Checkpoint:
    defaults: dict[str, Any] = {
        "link": SECOND,
        "files": "f",
        "tensors": "t",
        "root": "b",
        "seen": "s",
        "members": 3,
        "own": 2,
        "environment": {"machine": "toy", "libc": "1"},
    }
    return Checkpoint(**(defaults | values))


LINEAGE: dict[str, Any] = {"parent": "p", "key": "k", "tensors": "t", "root": "r", "environment": {"a": "1", "b": "2"}}


@pytest.mark.parametrize(
    "change",
    [
        {"parent": ""},
        {"parent": "q"},
        {"key": "l"},
        {"tensors": "u"},
        {"root": "s"},
        {"environment": {"a": "1"}},
        {"environment": {"a": "1", "b": "3"}},
        {"environment": {"a": "2", "b": "1"}},
        {"parent": "pk", "key": ""},
        {"tensors": "r", "root": "t"},
    ],
)
def test_a_lineage_digest_covers_every_argument(change: dict[str, Any]) -> None:
    assert lineage_digest(**(LINEAGE | change)) != lineage_digest(**LINEAGE)
    assert set(LINEAGE) == set(inspect.signature(lineage_digest).parameters)


def test_a_lineage_digest_ignores_the_order_in_which_an_environment_is_listed() -> None:
    assert lineage_digest(**(LINEAGE | {"environment": {"b": "2", "a": "1"}})) == lineage_digest(**LINEAGE)


def test_a_checkpoint_extends_its_parents_lineage_by_what_was_trained_on_what_into_what() -> None:
    one = made()
    assert one.extend("p") == lineage_digest("p", one.key, "t", "b", one.environment)
    changes: list[dict[str, Any]] = [{"link": FIRST}, {"tensors": "u"}, {"root": "c"}, {"environment": {}}]
    assert len({one.extend("p"), one.extend("q"), *(made(**change).extend("p") for change in changes)}) == 6


def test_a_link_and_a_checkpoint_round_trip() -> None:
    assert Link.from_json(SECOND.to_json()) == SECOND
    assert Checkpoint.from_json(made().to_json()) == made()
    assert made().key == SECOND.key


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


BASE = replace(FIRST, shard=TRUNK)
GROWN = [BASE, replace(SECOND, shard=TRUNK, parent=BASE.key)]
OWN = replace(FIRST, parent=GROWN[-1].key)


def test_a_lineage_may_begin_with_the_trunk() -> None:
    assert check_lineage([], "r", 1) == []
    assert check_lineage([FIRST, SECOND], "r", 1) == []
    assert check_lineage([*GROWN, OWN, replace(SECOND, parent=OWN.key)], "r", 1) == []


@pytest.mark.parametrize(
    "links",
    [
        [*GROWN, FIRST],
        [OWN],
        [*GROWN[1:], OWN],
        [*GROWN[:1], OWN],
        [*reversed(GROWN), OWN],
        [OWN, *GROWN],
        [GROWN[0], OWN, GROWN[1]],
        [replace(BASE, recipe="s"), replace(FIRST, parent=replace(BASE, recipe="s").key)],
        [*GROWN, replace(OWN, shard=2)],
        GROWN,
    ],
)
def test_a_lineage_that_does_not_grow_from_its_trunk_is_seen(links: list[Link]) -> None:
    assert check_lineage(links, "r", 1) != []


def test_what_stands_on_a_checkpoint_falls_with_it() -> None:
    links = [*GROWN, OWN, replace(SECOND, parent=OWN.key), replace(FIRST, shard=2, parent=GROWN[0].key), FIRST]
    live = {link.key: replace(made(), link=link) for link in links}
    keys = list(live)
    assert standing_on({keys[1]}, live) == {*keys[1:4]}
    assert standing_on({keys[0]}, live) == {*keys[:5]}
    assert standing_on(set(), live) == set()


@settings(max_examples=50, derandomize=True, deadline=None, database=None)
@given(st.sets(st.binary(min_size=32, max_size=32), max_size=6))
def test_tags_pack_and_unpack_whatever_their_order(tags: set[bytes]) -> None:
    assert unpack_tags(pack_tags(tags)) == tags
    assert pack_tags(sorted(tags)) == pack_tags(sorted(tags, reverse=True))
