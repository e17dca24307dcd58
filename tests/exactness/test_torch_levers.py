"""Every lever of speed keeps the promise: after deletions, each tensor is that of a fresh run on the survivors."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from shards.workspace import Workspace
from sisa.layers import Cut
from sisa.session import open_session
from tests.exactness.conftest import Trained, Trainery
from tests.models import checkpoint_files, delete_in, differences, flat, fresh_run, grid, train_in, write_rows

TASKS = ("classification", "causal-lm")
LEVERS: dict[str, dict[str, Any]] = {
    "in order": {"batching": "order"},
    "frozen": {"layers": "last-1"},
    "lanes": {"lanes": 2, "shards": 3},
    "lanes over frozen layers": {"lanes": 3, "layers": "last-1"},
    "computed twice": {"gradient_checkpointing": True, "layers": "last-1"},
    "a few positions at once": {"loss_positions": 5},
}
ACTIVATIONS = "activations"


def exact(trained: Trained) -> None:
    assert differences(trained.path, fresh_run(trained.path, trained.scratch / "fresh")) == []


@pytest.fixture(params=TASKS)
def task(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize(
    ("task", "lever"),
    [
        *(("causal-lm", lever) for lever in LEVERS),
        *(("classification", lever) for lever in ("frozen", "lanes")),
        *(
            pytest.param("classification", lever, marks=pytest.mark.slow)
            for lever in ("in order", "lanes over frozen layers", "computed twice")
        ),
    ],
)
def test_under_every_lever_deletions_and_new_data_equal_a_fresh_run(trainery: Trainery, task: str, lever: str) -> None:
    trained = trainery(task, rehearsal=0.25, **LEVERS[lever])
    before = checkpoint_files(trained.path)
    delete_in(trained.path, trained.ids(0, 1)[1:2])
    after = checkpoint_files(trained.path)
    assert {place for place in before if before[place] != after[place]} == {(0, 1), (0, 2)}
    delete_in(trained.path, [trained.ids(1, 0)[0], trained.ids(0, 2)[3]])  # two shards at once
    later = grid(task, 1, first=1000, **LEVERS[lever])
    train_in(trained.path, write_rows(trained.scratch / "later.jsonl", flat(later)))
    delete_in(trained.path, [flat(later)[0]["id"]])
    exact(trained)


def cached(path: Path) -> dict[str, bytes]:
    """Every entry of the activation cache."""
    root = path / ACTIVATIONS
    return {str(file.relative_to(root)): file.read_bytes() for file in root.rglob("*") if file.is_file()}


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Lengths of the texts that frozen layers are run on from now on."""
    lengths: list[int] = []
    sound = Cut.below

    def below(self: Cut, tokens: Any) -> Any:
        lengths.append(len(tokens))
        return sound(self, tokens)

    monkeypatch.setattr(Cut, "below", below)
    return lengths


def test_a_warm_a_cold_and_a_damaged_cache_and_none_give_the_same_bits(
    trainery: Trainery, task: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    copies = {how: trainery(task, rehearsal=0.25, layers="last-1") for how in ("warm", "cold", "damaged", "none")}
    victim = copies["warm"].ids(1, 0)[2]
    assert len(cached(copies["warm"].path)) == 30, "one entry a record, whatever the epochs, steps and rehearsal"
    shutil.rmtree(copies["cold"].path / ACTIVATIONS)
    for file in (copies["damaged"].path / ACTIVATIONS).rglob("*"):
        if file.is_file():
            data = bytearray(file.read_bytes())
            data[-1] ^= 1
            file.write_bytes(data)
    lengths = counted(monkeypatch)
    runs = {}
    for how, trained in copies.items():
        lengths.clear()
        if how == "none":
            _turn_off(trained.path)
        delete_in(trained.path, [victim])
        runs[how] = len(lengths)
    assert runs["warm"] == 0
    assert 0 < runs["cold"] == runs["damaged"] < runs["none"]
    found = [checkpoint_files(trained.path) for trained in copies.values()]
    assert all(each == found[0] for each in found)
    exact(copies["warm"])


def _turn_off(path: Path) -> None:
    file = path / "sisa.yaml"
    text = file.read_text()
    assert "activation_cache: true" in text
    file.write_text(text.replace("activation_cache: true", "activation_cache: false"))


def test_the_activations_of_a_deleted_record_go_with_it_and_no_others(trainery: Trainery, task: str) -> None:
    trained = trainery(task, rehearsal=0.25, layers="last-1")
    before = cached(trained.path)
    delete_in(trained.path, trained.ids(0, 0)[:1])
    after = cached(trained.path)
    assert len(before) - len(after) == 1
    assert after.items() <= before.items()


def test_a_fresh_run_keeps_the_same_activations(trainery: Trainery, task: str) -> None:
    trained = trainery(task, layers="last-1", rehearsal=0.25)
    assert cached(fresh_run(trained.path, trained.scratch / "fresh")) == cached(trained.path)


def test_a_lane_retrained_alone_gives_the_bits_that_it_had_in_company(trainery: Trainery, task: str) -> None:
    trained = trainery(task, rehearsal=0.25, **LEVERS["lanes"])
    kept = checkpoint_files(trained.path)
    workspace = Workspace.open(trained.path)
    for made in workspace.book.live().values():
        if made.link.shard == 1:
            workspace.store.purge(made.files)  # lost, as after a damaged disk
    workspace.close()
    again = train_in(trained.path)
    assert {made.link.shard for made in again.reconciled.trained} == {1}
    assert checkpoint_files(trained.path) == kept


def test_the_cache_is_of_no_use_to_a_replay(trainery: Trainery, monkeypatch: pytest.MonkeyPatch) -> None:
    from orchestration.inline import InlineExecutor
    from sisa.replay import replay

    trained = trainery("classification", rehearsal=0.25, layers="last-1")
    before = cached(trained.path)
    lengths = counted(monkeypatch)
    with open_session(trained.path) as session:
        checks = replay(session.workspace, [0, 1], "V4", InlineExecutor(), session.trainer())
    assert [check.outcome for check in checks] == ["passed", "passed"]
    assert lengths
    assert cached(trained.path) == before
