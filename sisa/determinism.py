"""Seeds, switches and the environment class: when the same step gives the same bits."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

from shards.digest import derive
from sisa.config import Recipe

_LIBRARIES = ("torch", "transformers", "peft", "tokenizers", "safetensors", "numpy")
_SWITCHES = (
    "ATEN_CPU_CAPABILITY", "MKL_CBWR", "MKL_ENABLE_INSTRUCTIONS", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA",
    "ONEDNN_DEFAULT_FPMATH_MODE", "DNNL_DEFAULT_FPMATH_MODE", "NVIDIA_TF32_OVERRIDE", "MKL_DYNAMIC", "OMP_DYNAMIC",
    "OMP_THREAD_LIMIT",
)  # fmt: skip


@lru_cache
def environment_facts(device: str, dtype: str = "float32") -> dict[str, str]:
    """What can change bits and is not in the recipe: libraries, processor, maths switches.

    Processes with equal facts are of one environment class; bitwise claims hold within it.

    Args:
        device, dtype: the recipe's, which tell what libraries take part.
    """
    _fix_cublas(device)
    import torch

    facts = {name: importlib.metadata.version(name) for name in _LIBRARIES}
    facts |= {"machine": platform.machine(), "cpu_capability": torch.backends.cpu.get_cpu_capability()}
    facts |= _processor() | {name: os.environ.get(name, "") for name in _SWITCHES}
    if dtype == "nf4":
        facts["bitsandbytes"] = importlib.metadata.version("bitsandbytes")
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        facts |= {
            "gpu": properties.name,
            "gpu_processors": str(properties.multi_processor_count),
            "cuda": str(torch.version.cuda),
            "cudnn": str(torch.backends.cudnn.version()),  # type: ignore[no-untyped-call]
            "cublas_workspace": os.environ.get("CUBLAS_WORKSPACE_CONFIG", ""),
        }
    return facts


def _fix_cublas(device: str) -> None:
    """Name the workspace: cuBLAS is deterministic only with a fixed one, set before CUDA starts."""
    if device == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def _processor() -> dict[str, str]:
    """Vendor and vector instructions: the maths libraries choose their kernels by both."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return {"cpu_vendor": platform.processor(), "cpu_vectors": ""}
    entries = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    flags = entries.get("flags", entries.get("Features", "")).split()
    vectors = sorted(flag for flag in flags if flag.startswith(("avx", "amx", "fma", "sve", "asimd")))
    return {"cpu_vendor": entries.get("vendor_id", ""), "cpu_vectors": " ".join(vectors)}


def seed_number(seed: bytes, purpose: str) -> int:
    """A generator seed (63 bits) for one purpose within a step."""
    return int.from_bytes(derive(seed, purpose)[:8], "big") >> 1


_KERNELS = {"flash": "flash_sdp", "efficient": "mem_efficient_sdp", "math": "math_sdp", "cudnn": "cudnn_sdp"}


def _kernels() -> list[str]:
    """The kernels that attention may be computed by now."""
    import torch

    return [name for name, switch in _KERNELS.items() if getattr(torch.backends.cuda, f"{switch}_enabled")()]


def _choose(names: Collection[str]) -> None:
    """Allow these kernels and no others; on a CPU there are flash and math."""
    import torch

    for name, switch in _KERNELS.items():
        getattr(torch.backends.cuda, f"enable_{switch}")(name in names)


@contextmanager
def reproducible(recipe: Recipe) -> Iterator[None]:
    """Strict determinism and the recipe's threads inside; the caller's switches and RNG after.

    Set in every step, because a reused worker process keeps whatever the last one left.
    """
    _fix_cublas(recipe.device)
    import torch

    threads = torch.get_num_threads()
    strict = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    kernels = _kernels()
    shortened = matmul.allow_tf32, cudnn.allow_tf32, matmul.allow_bf16_reduced_precision_reduction
    with torch.random.fork_rng(devices=range(torch.cuda.device_count()) if recipe.device == "cuda" else []):
        torch.set_num_threads(recipe.threads)
        torch.use_deterministic_algorithms(mode=True)
        # Filling fresh memory finds reads of it; it changes no result and costs time.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        matmul.allow_tf32 = cudnn.allow_tf32 = recipe.tf32
        matmul.allow_bf16_reduced_precision_reduction = False
        _choose(recipe.sdpa_backends)
        try:
            yield
        finally:
            torch.set_num_threads(threads)
            torch.use_deterministic_algorithms(strict, warn_only=warn_only)
            torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]
            _choose(kernels)
            matmul.allow_tf32, cudnn.allow_tf32, matmul.allow_bf16_reduced_precision_reduction = shortened
