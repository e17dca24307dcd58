"""What both sides of a comparison train with."""

from __future__ import annotations

from typing import Any

SHARDS = 8
SLICES = 8
BATCH = 16
MAX_LENGTH = 32
LEARNING_RATE = 1e-3
MAX_GRAD_NORM = 1.0
LORA_RANK = 8
LORA_ALPHA = 16
THREADS = 1


def recipe_values(shards: int, slices: int, rehearsal: float) -> dict[str, Any]:
    """Keys of ``sisa.yaml``: one pass a step, the rest as above."""
    return {
        "shards": shards,
        "slices": slices,
        "rehearsal": rehearsal,
        "epochs": 1,
        "batch_size": BATCH,
        "max_length": MAX_LENGTH,
        "learning_rate": LEARNING_RATE,
        "schedule": "constant",
        "max_grad_norm": MAX_GRAD_NORM,
        "lora_rank": LORA_RANK,
        "lora_alpha": LORA_ALPHA,
        "threads": THREADS,
        "namespace": "benchmark",
    }
