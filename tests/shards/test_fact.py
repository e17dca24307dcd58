"""A fact: four fields, and a leaf that covers each of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from shards.digest import canonical_json, tree_leaf
from shards.fact import Fact

FACT = Fact(3, "a/1", {"n": 1, "text": "ü"}, "2026-01-01T00:00:00.000+00:00")


def test_a_leaf_is_the_hash_of_canonical_json() -> None:
    text = '{"body":{"n":1,"text":"ü"},"created":"2026-01-01T00:00:00.000+00:00","kind":"a/1","seq":3}'
    assert canonical_json(FACT.to_json()) == text.encode()
    assert FACT.leaf() == tree_leaf(text.encode())


@pytest.mark.parametrize("change", [{"seq": 4}, {"kind": "a/2"}, {"body": {"n": 1}}, {"created": "2026"}])
def test_a_leaf_covers_every_field(change: dict[str, Any]) -> None:
    assert replace(FACT, **change).leaf() != FACT.leaf()
    assert set(FACT.to_json()) == set(Fact.__slots__) == {"seq", "kind", "body", "created"}


def test_a_leaf_does_not_depend_on_the_order_in_which_a_body_was_written() -> None:
    assert replace(FACT, body={"text": "ü", "n": 1}).leaf() == FACT.leaf()
