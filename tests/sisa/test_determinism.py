"""Strict switches inside a step, the caller's own outside; seeds and facts that mean what they say."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sisa.config import Recipe
from sisa.determinism import environment_facts, reproducible, seed_number
from tests.toy import toy_recipe


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    import torch

    threads, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(strict)


def recipe(**values: Any) -> Recipe:
    return toy_recipe(**values)


def test_inside_strict_mode_is_on_and_never_warn_only_whatever_it_was_before() -> None:
    import torch

    for mode in ("default", "warn", "error"):
        torch.set_deterministic_debug_mode(mode)
        with reproducible(recipe()):
            assert torch.are_deterministic_algorithms_enabled()
            assert not torch.is_deterministic_algorithms_warn_only_enabled()
        assert torch.get_deterministic_debug_mode() == {"default": 0, "warn": 1, "error": 2}[mode]


def test_an_operation_without_a_deterministic_version_is_refused_inside() -> None:
    import torch

    values = torch.arange(4.0)
    with reproducible(recipe()), pytest.raises(RuntimeError, match="deterministic"):
        torch.zeros(4).put_(torch.tensor([0, 0, 1, 1]), values, accumulate=False)


def test_threads_are_the_recipes_inside_and_the_callers_after() -> None:
    import torch

    torch.set_num_threads(2)
    with reproducible(recipe(threads=1)):
        assert torch.get_num_threads() == 1
        torch.set_num_threads(2)  # what a library could do
    assert torch.get_num_threads() == 2


def switches() -> dict[str, bool]:
    import torch

    cuda: Any = torch.backends.cuda
    cudnn = torch.backends.cudnn
    return {
        "matmul in TF32": bool(cuda.matmul.allow_tf32),
        "convolutions in TF32": bool(cudnn.allow_tf32),
        "short sums of bfloat16": bool(cuda.matmul.allow_bf16_reduced_precision_reduction),
        "flash": bool(cuda.flash_sdp_enabled()),
        "efficient": bool(cuda.mem_efficient_sdp_enabled()),
        "math": bool(cuda.math_sdp_enabled()),
        "cudnn": bool(cuda.cudnn_sdp_enabled()),
    }


@pytest.mark.parametrize("tf32", [False, True])
@pytest.mark.parametrize("backends", [("math",), ("flash", "efficient", "math"), ("efficient",)])
def test_precision_and_kernels_are_the_recipes_inside_and_the_callers_after(
    tf32: bool, backends: tuple[str, ...]
) -> None:
    before = switches()
    with reproducible(recipe(tf32=tf32, sdpa_backends=backends)):
        inside = switches()
    assert inside == {
        "matmul in TF32": tf32,
        "convolutions in TF32": tf32,
        "short sums of bfloat16": False,
        **{name: name in backends for name in ("flash", "efficient", "math")},
        "cudnn": False,
    }
    assert switches() == before


def test_the_callers_random_state_is_untouched_even_when_the_step_fails() -> None:
    import torch

    def failing_step() -> None:
        with reproducible(recipe()):
            torch.manual_seed(3)
            torch.rand(5)
            raise ArithmeticError

    before = torch.get_rng_state()
    with pytest.raises(ArithmeticError):
        failing_step()
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.are_deterministic_algorithms_enabled()


def test_seeds_differ_by_step_and_purpose_and_fit_a_generator() -> None:
    import torch

    seeds = {seed_number(bytes([step]) * 32, purpose) for step in range(20) for purpose in ("adapter", "dropout")}
    assert len(seeds) == 40
    assert all(0 <= seed < 2**63 for seed in seeds)
    for seed in seeds:
        torch.Generator().manual_seed(seed)


def test_the_environment_class_is_the_same_in_another_process_and_moves_with_the_maths_switches() -> None:
    script = "import json; from sisa.determinism import environment_facts as f; print(json.dumps(f('cpu')))"
    root = Path(__file__).parents[2]

    def facts(**variables: str) -> dict[str, str]:
        done = subprocess.run(
            [sys.executable, "-c", script],
            cwd=root,
            env={**os.environ, **variables},
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
        document: dict[str, str] = json.loads(done.stdout)
        return document

    here = environment_facts("cpu")
    assert facts() == here
    slower = facts(ATEN_CPU_CAPABILITY="default", MKL_CBWR="COMPATIBLE")
    changed = {name for name in here if slower[name] != here[name]}
    assert {"ATEN_CPU_CAPABILITY", "MKL_CBWR"} <= changed
