"""The tables of ``leakage.py``."""

from __future__ import annotations

from typing import Any

from benchmarks.markdown import holds, table

_HAVE = {
    "new": "the new model alone",
    "old": "the old model alone (ordinary membership inference)",
    "both": "the old and the new model",
}
_THROUGH = {"ensemble": "served answers", "shard": "the hit shard's adapter"}


def leakage(result: dict[str, Any]) -> str:
    """What each attacker finds; only of who has the new model alone is something promised: nothing."""
    one, all_at_once = "one record", f"{len(result['deletions'])} records in one batch"
    lines = [
        [
            _HAVE[found["attacker"]],
            _THROUGH[found["view"]],
            one if found in result["single"] else all_at_once,
            f"{found['auc']:.2f} ({found['low']:.2f} to {found['high']:.2f})",
            "0.5 in the interval" if found["attacker"] == "new" else "",
            holds(found["low"] <= 0.5 <= found["high"]) if found["attacker"] == "new" else "",
        ]
        for found in (*result["single"], *result["batch"])
    ]
    return table(["the attacker has", "read through", "deleted between", "AUC (95 %)", "wanted", "holds"], lines)


def leakage_environment(result: dict[str, Any]) -> str:
    """Where it was measured, and of what."""
    where, settings, accuracy = result["environment"], result["settings"], result["accuracy"]
    lines = [
        ["command", f"`{result['command']}`"],
        ["date", where["date"]],
        ["processor", f"{where['processor']}, {where['cores']} cores, {where['cpu_capability']}"],
        ["libraries", f"Python {where['python']}, torch {where['torch']}, transformers {where['transformers']}"],
        [
            "training",
            (
                f"{result['records']:,} records, {settings['shards']} shards x {settings['slices']} slices, "
                f"{settings['epochs']} epochs, rank {settings['lora_rank']}"
            ),
        ],
        [
            "accuracy of the first model",
            (
                f"{accuracy['to_be_deleted']:.1%} on the {len(result['deletions'])} records to be deleted, "
                f"{accuracy['never_seen']:.1%} on {result['never_seen']:,} never seen"
            ),
        ],
        ["load average (1 minute) at the end", f"{result['load_average_at_end'][0]:.1f}"],
    ]
    return table(["", ""], lines)
