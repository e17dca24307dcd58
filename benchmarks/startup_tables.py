"""The table of ``startup``; see :mod:`benchmarks.tables`."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median
from typing import Any

from benchmarks.markdown import holds, table

OVER_BARE = 0.3  # seconds
FIRST_STEP = {"delete inline": 7.0, "delete ray": 12.0}  # seconds


def startup(result: dict[str, Any]) -> str:
    """What was asked of start-up, and whether it holds."""
    rounds = result["rounds"]
    bare = median(found["bare"] for found in rounds)
    lines = [
        [
            f"`sisa {name}`, against a bare typer program ({bare:.2f} s)",
            f"at most {OVER_BARE} s more",
            f"{_spread(found)} more",
            holds(found["median"] <= OVER_BARE),
        ]
        for name, found in result["over_bare"].items()
    ]
    lines += [
        [
            f"`sisa {name}`, from its start to its first training step",
            f"under {FIRST_STEP[name]:g} s",
            _spread(found),
            holds(found["median"] < FIRST_STEP[name]),
        ]
        for name, found in result["first_step"].items()
    ]
    loads = [found["load_average"][0] for found in rounds]
    lines.append(["load average (1 minute) before a round", "nothing else running", _range(loads), ""])
    return table(["question", "wanted", f"measured ({len(rounds)} rounds)", "holds"], lines)


def _spread(found: Mapping[str, float]) -> str:
    return f"{found['median']:.2f} s ({found['lowest']:.2f} to {found['highest']:.2f})"


def _range(values: list[float]) -> str:
    return f"{min(values):.1f} to {max(values):.1f}"
