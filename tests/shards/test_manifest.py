"""The manifest's digest says what is served, not how it came about."""

from __future__ import annotations

from dataclasses import replace

from shards.digest import canonical_json, parse_json
from shards.manifest import Head, ModelManifest

HEADS = (Head(0, "k0", "t0", "l0", 1), Head(2, "k2", "t2", "l2", 3))
MANIFEST = ModelManifest.of(3, "recipe", HEADS)


def test_the_digest_ignores_the_generation_and_the_order_of_heads() -> None:
    assert ModelManifest.of(9, "recipe", reversed(HEADS)).digest == MANIFEST.digest


def test_the_digest_covers_recipe_and_every_head() -> None:
    others = [
        replace(MANIFEST, recipe="other"),
        ModelManifest.of(3, "recipe", HEADS[:1]),
        ModelManifest.of(3, "recipe", (replace(HEADS[0], shard=1), HEADS[1])),
        ModelManifest.of(3, "recipe", (replace(HEADS[0], checkpoint="k1"), HEADS[1])),
        ModelManifest.of(3, "recipe", (replace(HEADS[0], tensors="t1"), HEADS[1])),
    ]
    assert len({MANIFEST.digest, *(other.digest for other in others)}) == 6


def test_the_digest_is_equal_wherever_the_same_bits_are_served_so_it_leaves_out_lineages_which_hold_salts() -> None:
    elsewhere = ModelManifest.of(3, "recipe", (replace(HEADS[0], lineage="l1", steps=2), HEADS[1]))
    assert elsewhere.digest == MANIFEST.digest
    assert elsewhere.to_json() != MANIFEST.to_json(), "the fact holds them, and the log covers the fact"


def test_a_manifest_round_trips_byte_for_byte() -> None:
    body = canonical_json(MANIFEST.to_json())
    back = ModelManifest.from_json(parse_json(body))
    assert back == MANIFEST
    assert canonical_json(back.to_json()) == body


def test_a_shard_that_is_not_served_has_no_head() -> None:
    assert MANIFEST.head(0) == HEADS[0]
    assert MANIFEST.head(1) is None
