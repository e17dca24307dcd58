"""The promise on a GPU: the same step gives the same bits again, in another process, after a kill, in any lane.

Skipped where there is no GPU, and the reason says so: a run without one has tested nothing of this.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from orchestration.executor import Lesson
from shards.digest import tensor_digest
from shards.errors import SisaError
from shards.workspace import WEIGHTS_FILE
from sisa.config import Recipe
from sisa.learner import LoraTrainer
from tests.exactness.test_torch_resume import kill_after_next_checkpoint
from tests.models import (
    checkpoint_files,
    delete_in,
    differences,
    flat,
    fresh_run,
    grid,
    make_workspace,
    recipe_for,
    record,
    save_tokenizer,
    train_in,
    write_rows,
)

DEVICE = "cuda"
TASKS = ("classification", "causal-lm")
LANES = 3
ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(autouse=True, scope="module")
def gpu() -> None:
    """Nothing here runs without one."""
    import torch

    if DEVICE == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device here: nothing of what is promised on a GPU was tested in this run")


@pytest.fixture(autouse=True)
def one_base_at_a_time() -> Iterator[None]:
    """Bases of earlier tests leave the GPU."""
    yield
    from sisa.adapter import release

    release()


@pytest.fixture(params=["float32", "bfloat16", "nf4"])
def dtype(request: pytest.FixtureRequest) -> str:
    if request.param == "nf4":
        pytest.importorskip("bitsandbytes", reason="no bitsandbytes here: 4-bit bases were not tested in this run")
    return str(request.param)


@pytest.fixture(params=["sdpa", "eager"])
def attention(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def wide_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama whose products are large enough for the kernels of real ones."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    path = tmp_path_factory.mktemp("wide")
    config = LlamaConfig(
        vocab_size=save_tokenizer(path, "causal-lm"), hidden_size=512, intermediate_size=1376, num_hidden_layers=3,
        num_attention_heads=8, num_key_value_heads=2, max_position_embeddings=256,
        pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        LlamaForCausalLM(config).save_pretrained(path)
    return path


@pytest.fixture(params=TASKS)
def task(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def base(task: str, wide_llama: Path) -> str:
    return "minilm" if task == "classification" else str(wide_llama)


def recipe_on_gpu(base: str, task: str, **values: Any) -> Recipe:
    return recipe_for(base, task, **{"device": DEVICE, "lora_rank": 8, "batch_size": 4} | values)


def trainer_of(recipe: Recipe, base: str) -> LoraTrainer:
    from sisa.base_model import locate

    return LoraTrainer(recipe, str(locate(base)))


def lesson(task: str, first: int, count: int, parent: bytes | None = None) -> Lesson:
    records = tuple(record(number, task) for number in range(first, first + count))
    return Lesson((records, records[::-1]), parent, bytes([first]) * 32)


def weights(made: Mapping[str, bytes] | SisaError) -> bytes:
    assert not isinstance(made, SisaError)
    return made[WEIGHTS_FILE]


def trained_elsewhere(recipe: Recipe, base: str, task: str) -> str:
    """Digest of the tensors of our lesson, trained in a process that has nothing else."""
    code = (
        "import json, sys; from tests.exactness.test_gpu import digest_of; print(digest_of(*json.loads(sys.argv[1])))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps([recipe.to_json(), base, task])],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return done.stdout.splitlines()[-1]


def digest_of(recipe: dict[str, Any], base: str, task: str) -> str:
    """What a process of :func:`trained_elsewhere` prints."""
    return tensor_digest(weights(trainer_of(Recipe(**recipe), base).train(lesson(task, 0, 9))))


def test_the_same_step_gives_the_same_bits_twice_and_in_a_fresh_process(
    base: str, task: str, dtype: str, attention: str
) -> None:
    from sisa.adapter import release

    recipe = recipe_on_gpu(base, task, dtype=dtype, attention=attention)
    trainer = trainer_of(recipe, base)
    mine = lesson(task, 0, 9)
    once = weights(trainer.train(mine))
    trainer.train(lesson(task, 40, 6))  # whatever this process did before
    assert weights(trainer.train(mine)) == once
    release()
    assert weights(trainer.train(mine)) == once
    assert trained_elsewhere(recipe, base, task) == tensor_digest(once)


def test_a_step_starts_from_a_stored_parent_as_from_one_just_made(base: str, task: str, dtype: str) -> None:
    from sisa.adapter import release

    trainer = trainer_of(recipe_on_gpu(base, task, dtype=dtype), base)
    parent = weights(trainer.train(lesson(task, 0, 6)))
    child = weights(trainer.train(lesson(task, 20, 6, parent)))
    release()
    assert weights(trainer.train(lesson(task, 20, 6, parent))) == child != parent


@pytest.mark.parametrize("values", [{}, {"layers": "last-1"}, {"gradient_checkpointing": True}], ids=str)
def test_a_lane_has_the_same_bits_with_any_of_the_others_beside_it(
    base: str, task: str, dtype: str, attention: str, values: dict[str, Any]
) -> None:
    recipe = recipe_on_gpu(base, task, dtype=dtype, attention=attention, lanes=LANES, **values)
    trainer = trainer_of(recipe, base)
    parent = weights(trainer.train_lanes({1: lesson(task, 90, 3)})[1])
    shown = {0: lesson(task, 0, 10), 1: lesson(task, 30, 5), 2: lesson(task, 60, 13, parent)}
    alone = {lane: weights(trainer.train_lanes({lane: one})[lane]) for lane, one in shown.items()}
    assert len(set(alone.values())) == LANES
    for count in (2, 3):
        for subset in itertools.combinations(shown, count):
            made = trainer.train_lanes({lane: shown[lane] for lane in subset})
            assert {lane: weights(made[lane]) for lane in subset} == {lane: alone[lane] for lane in subset}


def test_what_frozen_layers_made_is_the_same_bits_from_a_shelf(base: str, task: str, dtype: str) -> None:
    class Kept:
        def __init__(self) -> None:
            self.values: dict[tuple[str, str], bytes] = {}

        def get(self, record_id: str, kind: str) -> bytes | None:
            return self.values.get((record_id, kind))

        def put(self, record_id: str, kind: str, value: bytes) -> None:
            self.values[record_id, kind] = value

    trainer = trainer_of(recipe_on_gpu(base, task, dtype=dtype, layers="last-1"), base)
    mine, kept = lesson(task, 0, 9), Kept()
    anew = weights(trainer.train(mine))
    shelved = Lesson(mine.passes, mine.parent, mine.seed, kept)
    assert weights(trainer.train(shelved)) == anew
    assert len(kept.values) == 9
    assert weights(trainer.train(shelved)) == anew


@pytest.mark.parametrize("lanes", [1, LANES])
def test_killed_in_mid_slice_and_run_again_equals_an_unbroken_fresh_run(
    base: str, task: str, lanes: int, tmp_path: Path
) -> None:
    values: dict[str, Any] = {"epochs": 25, "device": DEVICE, "lanes": lanes}
    places = grid(task, **values)
    workspace = make_workspace(tmp_path / "workspace", task, base, **values)
    data = write_rows(tmp_path / "data.jsonl", flat(places))
    kill_after_next_checkpoint(["train", "--data", str(data)], workspace)
    kept = len(checkpoint_files(workspace))
    assert 0 < kept < len(places)
    assert len(train_in(workspace, data).reconciled.trained) == len(places) - kept
    assert differences(workspace, fresh_run(workspace, tmp_path / "fresh")) == []
    victim = places[0, 0][3]["id"]
    kill_after_next_checkpoint(["delete", "--id", victim], workspace)
    delete_in(workspace, [victim])
    assert differences(workspace, fresh_run(workspace, tmp_path / "after")) == []


def test_strict_determinism_and_the_named_workspace_are_on_in_a_step(
    base: str, task: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from sisa import course
    from sisa.loss import lane_losses

    seen = []

    def looking(*arguments: Any) -> Any:
        seen.append(
            (torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled())
        )
        return lane_losses(*arguments)

    monkeypatch.setattr(course, "lane_losses", looking)
    trainer = trainer_of(recipe_on_gpu(base, task), base)
    trainer.train(lesson(task, 0, 5))
    assert set(seen) == {(True, False)}
    facts = trainer.environment()
    assert facts["cublas_workspace"] == os.environ["CUBLAS_WORKSPACE_CONFIG"] in {":4096:8", ":16:8"}
    assert facts["gpu"] == torch.cuda.get_device_properties(0).name
