"""The sides of ``benchmarks/training_speed.py`` do the same work, and its tables hide nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import speed_bases, speed_tables, training_speed
from benchmarks.data import synthetic_records
from benchmarks.plain_loop import Plain, adapted, tokenizer_of, tokens_and_labels
from benchmarks.speed_bases import SHARDS, Base, Job, make_job
from benchmarks.speed_levers import ABLATIONS
from benchmarks.speed_patches import PATCHES
from benchmarks.speed_process import Process, SideError
from benchmarks.speed_shelf import DirectoryShelf
from benchmarks.speed_worker import Ours, Yardstick, make, patched
from orchestration.executor import Lesson
from sisa.adapter import release
from sisa.base_model import load_tokenizer
from sisa.encoding import encode
from sisa.learner import LoraTrainer

LAYERS = speed_bases.TINY.layers
EVERYTHING = {"epochs": 2, "threads": 1, "groups": [[shard] for shard in range(SHARDS)], "shelf": "cold"}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Base]:
    return {
        "encoder": speed_bases.encoder(None, tmp_path_factory.mktemp("encoder")),
        "llama": speed_bases.llama(speed_bases.TINY, None, tmp_path_factory.mktemp("llama")),
    }


@pytest.fixture(params=["encoder", "llama"])
def base(request: pytest.FixtureRequest, bases: Mapping[str, Base]) -> Base:
    return bases[str(request.param)]


def told(side: str, job: Job, scratch: Path, **changes: Any) -> dict[str, Any]:
    """What a side answers that is asked to train everything."""
    release()
    return make(side, job, scratch).obey(EVERYTHING | changes)


def test_every_side_makes_the_same_passes(base: Base, tmp_path: Path) -> None:
    job = make_job(base, 2, tmp_path, layers="last-2")
    assert {told(side, job, tmp_path)["passes"] for side in ("trainer", "plain", "ours")} == {2 * 2 * SHARDS}


def test_every_side_trains_the_same_tokens(base: Base) -> None:
    recipe = base.recipe(max_length=20)
    ours, plain = load_tokenizer(recipe, str(base.path)), Plain(base.path, recipe.labels, max_length=20)
    theirs = tokenizer_of(plain)
    for record in base.records[:30]:
        tokens, labels = tokens_and_labels(plain, theirs, record)
        example = encode(record, recipe, ours)
        assert tuple(tokens) == example.tokens
        assert (tuple(labels) if recipe.task == "causal-lm" else (labels,)) == example.targets


def test_the_yardsticks_have_no_dropout_either(bases: Mapping[str, Base]) -> None:
    import torch

    base = bases["encoder"]
    model = adapted(Plain(base.path, base.recipe().labels)).train()
    assert {each.p for each in model.modules() if isinstance(each, torch.nn.Dropout)} == {0.0}


def test_units_are_what_the_layers_compute(bases: Mapping[str, Base], tmp_path: Path) -> None:
    """Texts of one length, so that nothing is padded and each token counts alike."""
    base = bases["encoder"]
    recipe = base.recipe()
    tokenizer = load_tokenizer(recipe, str(base.path))
    length = len(encode(base.records[0], recipe, tokenizer).tokens)
    same = [each for each in base.records if len(encode(each, recipe, tokenizer).tokens) == length][:SHARDS]
    tokens = length * SHARDS
    few = make_job(replace(base, records=tuple(same)), 1, tmp_path, layers="last-2")
    below = LAYERS - 2
    assert told("trainer", few, tmp_path)["units"] == 2 * tokens * (below + 2 * 2)
    assert told("plain", few, tmp_path)["units"] == 2 * tokens * (below + 2 * 2)
    assert told("ours", few, tmp_path)["units"] == tokens * below + 2 * tokens * 2 * 2
    assert told("ours", few, tmp_path, shelf="none")["units"] == 2 * tokens * (below + 2 * 2)
    assert told("ours", few, tmp_path, shelf="warm")["units"] == 2 * tokens * 2 * 2
    every = make_job(replace(base, records=tuple(same)), 1, tmp_path)
    assert (
        told("ours", every, tmp_path)["units"] == told("trainer", every, tmp_path)["units"] == 2 * tokens * 2 * LAYERS
    )


def test_a_causal_models_head_counts_where_it_is_computed(bases: Mapping[str, Base], tmp_path: Path) -> None:
    job = make_job(bases["llama"], 1, tmp_path)
    answers_alone = told("ours", job, tmp_path)["units"]
    with patched(whole := replace(job, patches=("whole_logits",))):
        assert answers_alone < told("ours", whole, tmp_path)["units"]


@pytest.mark.parametrize("name", sorted({*PATCHES} - {"compiled"}))
def test_a_lever_taken_out_changes_no_more_than_rounding(bases: Mapping[str, Base], tmp_path: Path, name: str) -> None:
    from safetensors.torch import load

    base = bases["llama"]
    job = make_job(base, 4, tmp_path, (name,), learning_rate=1e-4)
    trainer = LoraTrainer(base.recipe(learning_rate=1e-4), str(base.path))
    lesson = Lesson((tuple(job.shards()[0]),), None, bytes(32))
    release()
    (ours,) = [load(each) for file, each in trainer.train(lesson).items() if file.endswith("safetensors")]
    release()
    with patched(job):
        (other,) = [load(each) for file, each in trainer.train(lesson).items() if file.endswith("safetensors")]
    release()
    assert ours.keys() == other.keys()
    # AdamW's first update is the sign of a gradient; where that is almost nothing, rounding decides.
    agreeing = sum(int(ours[tensor].isclose(other[tensor], atol=1e-6).sum()) for tensor in ours)
    assert agreeing > 0.95 * sum(tensor.numel() for tensor in ours.values())


def test_every_ablation_is_a_recipe(bases: Mapping[str, Base]) -> None:
    for ablation in ABLATIONS:
        for variant in (ablation.one, ablation.other):
            bases["encoder" if ablation.base == "encoder" else "llama"].recipe(**variant.values)
            assert set(variant.patches) <= PATCHES.keys()
        assert ablation.one != ablation.other


def test_what_takes_the_time_is_watched_and_is_not_more_than_all_of_it(base: Base, tmp_path: Path) -> None:
    release()
    side = make("ours", make_job(base, 2, tmp_path, layers="last-2"), tmp_path)
    found = side.obey(EVERYTHING | {"watch": True})
    assert all(seconds > 0 for seconds in found["spent"].values())
    assert sum(found["spent"].values()) <= found["ended"] - found["began"]
    assert side.obey(EVERYTHING)["spent"] == {}


def test_lanes_train_as_many_passes_in_fewer_groups(bases: Mapping[str, Base], tmp_path: Path) -> None:
    job = make_job(bases["llama"], 2, tmp_path, lanes=4)
    found = told("ours", job, tmp_path, groups=[[0, 1, 2, 3], [4, 5, 6, 7]])
    assert found["passes"] == 2 * 2 * SHARDS
    assert isinstance(make("ours", job, tmp_path), Ours)
    release()


def test_shards_are_shared_between_two_processes_the_longest_first() -> None:
    records = synthetic_records(40)
    shards = [records[:10], records[10:12], records[12:20], records[20:23]]
    halves = training_speed.between_two(shards)
    assert halves == [[0, 1], [2, 3]]


def test_a_shelf_gives_back_what_was_put(tmp_path: Path) -> None:
    shelf = DirectoryShelf(tmp_path)
    assert shelf.get("q1", "aa") is None
    shelf.put("q1", "aa", b"value")
    assert shelf.get("q1", "aa") == b"value"
    assert shelf.get("q1", "bb") is None


def test_a_process_that_cannot_train_says_why(bases: Mapping[str, Base], tmp_path: Path) -> None:
    job = make_job(bases["encoder"], 1, tmp_path, target_modules=["nothing"])
    with Process("ours", job.write(tmp_path / "job.json")) as process, pytest.raises(SideError, match="target_modules"):
        process.ready()


@pytest.mark.slow
def test_the_whole_benchmark_runs(tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    training_speed.main(["--quick", "--out", str(out)])
    result = json.loads(out.read_text())
    assert set(result["cells"][0]["rounds"][0]) == {"trainer", "trainer_1", "plain", "ours", "ours_1"}
    assert "target_modules" in result["ablations"][0]["problem"]
    for name in (
        "training_speed",
        "training_speed_sides",
        "training_speed_lanes",
        "training_speed_levers",
        "training_speed_shares",
        "training_speed_environment",
    ):
        assert getattr(speed_tables, name)(result)


# -- tables -----------------------------------------------------------------------------------


def ratio(median: float) -> dict[str, float]:
    return {"median": median, "lowest": median, "highest": median}


def cell(**changes: Any) -> dict[str, Any]:
    sound = {
        "base": "encoder",
        "layers": "last-2",
        "epochs": 3,
        "wanted": 2.0,
        "limit": 2.5,
        "ours_over_trainer": ratio(2.0),
        "peak_bytes": {"ours": 2**29, "trainer": 2**29},
        "retraining": {"limit": 2.0, "warm_over_none": ratio(1.7), "rounds": [{}] * 5},
        "rounds": [{}] * 5,
    }
    return sound | changes


def test_a_speed_that_is_missed_is_shown_as_missed() -> None:
    assert speed_tables.training_speed({"cells": [cell()]}).count("**no**") == 0
    for changes in (
        {"ours_over_trainer": ratio(1.99)},
        {"retraining": {"limit": 2.0, "warm_over_none": ratio(1.69), "rounds": []}},
        {"peak_bytes": {"ours": 2**29 + 1, "trainer": 2**29}},
    ):
        assert speed_tables.training_speed({"cells": [cell(**changes)]}).count("**no**") == 1, changes


def test_a_lever_that_does_not_pay_or_does_not_work_stays_in_the_table() -> None:
    named: dict[str, Any] = {"lever": "a lever", "used": "never", "base": "encoder"}
    sizes = {"with": 2**29, "without": 2**29}
    named["first_seconds"] = {"with": 1.0, "without": 1.0}

    def shown(**figures: Any) -> str:
        return speed_tables.training_speed_levers({"ablations": [named | figures]}).splitlines()[-1]

    assert shown(with_over_without=ratio(0.99), peak_bytes=sizes).endswith("| no |")
    assert shown(with_over_without=ratio(1.01), peak_bytes=sizes).endswith("| time |")
    assert shown(with_over_without=ratio(0.5), peak_bytes=sizes | {"without": 2**30}).endswith("| memory |")
    assert "no compiler" in shown(problem="no compiler")


def test_lanes_on_a_gpu_are_held_against_three_times_one() -> None:
    width = {"side": "8", "tokens_per_second": 10.0, "records_per_second": 1.0, "peak_bytes": 1}
    for speed, missed in ((3.0, 0), (2.99, 1)):
        result = {"lanes": {"base": "long_llama", "widths": [width | {"speed": ratio(speed)}]}}
        assert speed_tables.gpu_training_speed(result).count("**no**") == missed


def test_the_width_that_is_advised_is_the_one_that_trains_fastest() -> None:
    widths = [
        {"side": side, "records_per_second": rate, "tokens_per_second": 10.0, "speed": ratio(rate), "peak_bytes": 1,
         "alone_seconds": 1.0, "alone": ratio(alone)}
        for side, rate, alone in (("1", 1.0, 1.0), ("4", 3.0, 0.5), ("8", 2.0, 0.25))
    ]  # fmt: skip
    trainer = {**widths[0], "side": "trainer", "records_per_second": 9.0, "alone": None}
    shown = speed_tables.training_speed_lanes({"lanes": {"base": "llama", "widths": [*widths, trainer]}})
    assert "`lanes: 4`; a lone retraining then has 0.50" in shown


def test_a_yardstick_is_made_once_and_obeys_often(bases: Mapping[str, Base], tmp_path: Path) -> None:
    side = make("plain", make_job(bases["llama"], 1, tmp_path), tmp_path)
    assert isinstance(side, Yardstick)
    once, again = side.obey(EVERYTHING), side.obey(EVERYTHING)
    assert once["units"] == again["units"] > 0
    assert once["ended"] <= again["began"]
