"""Pieces that the tables of results are made of."""

from __future__ import annotations

from collections.abc import Sequence

NOT_YET = "Not measured yet."


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def holds(condition: bool) -> str:
    """Whether a figure holds; that it does not is not to be overlooked."""
    return "yes" if condition else "**no**"


def mib(size: float) -> str:
    """Bytes as MiB."""
    return f"{size / 2**20:.0f} MiB"


def hours(value: float) -> str:
    """Hours, or days where they are many."""
    return f"{value:.1f} h" if value < 48 else f"{value / 24:.1f} d"
