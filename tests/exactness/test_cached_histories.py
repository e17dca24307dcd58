"""The law of exactness with cached activations, whatever becomes of them on the way."""

from __future__ import annotations

import random
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from sisa.config import Recipe
from tests.exactness.histories import Event, World, histories, kills, permanents
from tests.exactness.test_histories import assert_verified, examples
from tests.toy import Keeping, memory_directory, toy_recipe


def recipes() -> st.SearchStrategy[Recipe]:
    """With frozen layers."""
    return st.builds(
        lambda shards, slices, rehearsal: toy_recipe(
            shards=shards, slices=slices, rehearsal=rehearsal, layers="last-1"
        ),
        st.integers(1, 3),
        st.integers(1, 3),
        st.sampled_from([0.0, 0.5, 1.0]),
    )


def damage(root: Path, seed: int) -> None:
    """Remove, tear, empty, swap or leave each file."""
    draw = random.Random(seed)
    files = sorted(path for path in root.rglob("*") if path.is_file())
    for path in files:
        how = draw.randrange(6)
        if how == 0:
            path.unlink()
        elif how == 1:
            path.write_bytes(path.read_bytes()[: draw.randrange(40)])
        elif how == 2:
            path.write_bytes(b"")
        elif how == 3:
            path.write_bytes(draw.choice([one for one in files if one.exists()]).read_bytes())


@examples(30)
@given(
    recipe=recipes(),
    events=histories(kills() | st.none()),
    permanent=permanents(),
    seed=st.none() | st.integers(0, 9999),
)
def test_any_history_with_any_cache_equals_a_fresh_run(
    recipe: Recipe, events: list[Event], permanent: frozenset[int], seed: int | None
) -> None:
    """Warm, cold or damaged: and what is left at the end is of survivors."""
    with memory_directory() as path:
        world = World(path, recipe, Keeping(), permanent=permanent)
        try:
            for number, event in enumerate(events):
                world.play(event)
                if seed is not None:
                    damage(world.session.workspace.activations.root, seed + number)
            world.settle()
            world.check()
            assert_verified(world)
            workspace = world.session.workspace
            assert workspace.stray_activations(workspace.book.tombstones()) == []
        finally:
            world.close()
