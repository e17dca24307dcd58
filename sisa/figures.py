"""Figures as PNG: quality against what an answer costs, and against the number of shards. Needs no display."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from shards.errors import MissingDependencyError
from sisa.wording import counted, plain

if TYPE_CHECKING:
    from sisa.results import Result

_LABELS = {"accuracy": "accuracy", "answer_probability": "probability of the true answer"}
_COLOURS = {"shard": "#999999", "aggregation": "#1b6ca8", "merge": "#c4561b"}
_GAP = 0.045  # of the height, between the names of points


def quality_against_cost(results: Sequence[Result], records: int) -> bytes:
    """Accuracy (answer probability of a language model) against passes of one base for each input.

    Shards alone, aggregations and merges; of the shards only the mean has a name.

    Args:
        results: as evaluated; what has no such number, because it was not scored, is left out.
        records: on how many.

    Raises:
        MissingDependencyError: if matplotlib is not installed.
    """
    metric = next(name for name in _LABELS if any(name in result.metrics for result in results))
    results = [result for result in results if metric in result.metrics]
    figure, axes = _figure()
    columns = sorted({result.passes for result in results})
    for kind, label in (("shard", "one shard alone"), ("aggregation", "all shards, aggregated"), ("merge", "merged")):
        some = [result for result in results if result.kind == kind]
        if some:
            at = [columns.index(result.passes) for result in some]
            high = [result.metrics[metric] for result in some]
            axes.scatter(at, high, s=26, color=_COLOURS[kind], label=label, alpha=0.9 if kind != "shard" else 0.6)
    axes.set_xlim(-0.4, len(columns) - 0.2)
    axes.set_xticks(range(len(columns)), ["1 pass" if passes == 1 else f"{passes} passes" for passes in columns])
    axes.set_xlabel("passes of the base for each input")
    axes.set_ylabel(_LABELS[metric])
    axes.set_title(f"{counted(records, 'held-out record')}", fontsize=10)
    for number, passes in enumerate(columns):
        named = {result.name: result.metrics[metric] for result in results if result.passes == passes}
        _name(axes, number, {name: named[name] for name in named if not name.startswith("shard ")})
    axes.legend(fontsize=8, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=3)
    return _png(figure)


def quality_by_shards(
    series: Mapping[str, Sequence[tuple[int, float]]], *, ylabel: str = "accuracy", title: str = ""
) -> bytes:
    """Lines of quality against the number of shards, each named at its right end.

    Args:
        series: name → (shards, quality) of each point.
        ylabel: what quality is.
        title: above the figure.

    Raises:
        MissingDependencyError: if matplotlib is not installed.
    """
    figure, axes = _figure()
    ticks = sorted({shards for points in series.values() for shards, _ in points})
    for points in series.values():
        ordered = sorted(points)
        axes.plot(
            [ticks.index(s) for s, _ in ordered], [y for _, y in ordered], marker="o", markersize=4, linewidth=1.2
        )
    axes.set_xlim(-0.2, len(ticks) + 0.1)
    axes.set_xticks(range(len(ticks)), [str(shards) for shards in ticks])
    axes.set_xlabel("shards")
    axes.set_ylabel(ylabel)
    axes.set_title(plain(title), fontsize=10)
    colours = [line.get_color() for line in axes.get_lines()]
    ends = {name: max(points) for name, points in series.items()}
    for last in sorted({shards for shards, _ in ends.values()}):
        named = {name: y for name, (shards, y) in ends.items() if shards == last}
        _name(axes, ticks.index(last), named, dict(zip(series, colours, strict=True)))
    return _png(figure)


def require_figures() -> None:
    """Say in one line what to install if figures cannot be drawn.

    Raises:
        MissingDependencyError: if matplotlib is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise MissingDependencyError("the package matplotlib, which draws figures", "none", "pip install 'sisa[eval]'")


def _figure() -> tuple[Any, Any]:
    """A figure that no window shows, and its axes."""
    require_figures()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.4), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.grid(axis="y", linewidth=0.4, alpha=0.5)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _name(axes: Any, at: int, points: Mapping[str, float], colours: Mapping[str, str] | None = None) -> None:
    """Write each point's name to its right, apart from each other however near the points are."""
    low, high = axes.get_ylim()
    gap = _GAP * (high - low)
    for name, place in spread_apart(points, gap).items():
        axes.annotate(
            plain(name),
            xy=(at, points[name]),
            xytext=(at + 0.12, place),
            fontsize=8,
            va="center",
            color=(colours or {}).get(name, "#333333"),
            arrowprops={"arrowstyle": "-", "linewidth": 0.4, "color": "#999999", "shrinkA": 1, "shrinkB": 2},
        )


def spread_apart(points: Mapping[str, float], gap: float) -> dict[str, float]:
    """A place for each name near its point, at least ``gap`` from the next, in the order of the points."""
    names = sorted(points, key=lambda name: (points[name], name))
    blocks: list[tuple[list[str], float]] = []  # names that stand together, and the middle of them
    for name in names:
        together, middle = [name], points[name]
        while blocks and middle - blocks[-1][1] < gap * (len(together) + len(blocks[-1][0])) / 2:
            before, centre = blocks.pop()
            middle = (middle * len(together) + centre * len(before)) / (len(together) + len(before))
            together = [*before, *together]
        blocks.append((together, middle))
    return {
        name: middle + gap * (number - (len(together) - 1) / 2)
        for together, middle in blocks
        for number, name in enumerate(together)
    }


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
