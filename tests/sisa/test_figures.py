"""Figures are PNG files with a name beside each point, and no name on another."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

pytest.importorskip("matplotlib", reason="matplotlib is not installed (extra [eval])")

from sisa import figures
from sisa.figures import quality_against_cost, quality_by_shards, spread_apart
from sisa.results import Result

NEAR = {"cat": 0.801, "linear": 0.8011, "karcher": 0.8009, "svd": 0.79, "ties": 0.70, "della": 0.695}


def results() -> list[Result]:
    made = [Result(f"shard {n}", "shard", 1, None, {"accuracy": 0.78 + n / 100}, {}) for n in range(8)]
    made += [Result(name, "merge", 1, 1.0, {"accuracy": value}, {}) for name, value in NEAR.items()]
    return made + [Result(name, "aggregation", 8, 1.0, {"accuracy": 0.88}, {}) for name in ("mean", "logit", "vote")]


def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures that are drawn from here on."""
    kept: list[Any] = []
    real = figures._png

    def keep(figure: Any) -> bytes:
        kept.append(figure)
        return real(figure)

    monkeypatch.setattr(figures, "_png", keep)
    return kept


def test_names_stand_apart_in_the_order_of_their_points_and_near_them() -> None:
    places = spread_apart(NEAR, 0.02)
    assert sorted(places, key=places.__getitem__) == sorted(NEAR, key=NEAR.__getitem__)
    heights = sorted(places.values())
    assert all(high - low >= 0.02 - 1e-12 for low, high in pairwise(heights))
    assert spread_apart({"a": 0.1, "b": 0.9}, 0.02) == {"a": 0.1, "b": 0.9}
    assert spread_apart({}, 0.02) == {}


def test_a_figure_of_costs_names_everything_but_single_shards_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.text import Text

    kept = drawn(monkeypatch)
    data = quality_against_cost(results(), 3080)
    assert data == quality_against_cost(results(), 3080)
    assert data.startswith(b"\x89PNG")
    assert len(data) < 100_000
    axes = kept[0].axes[0]
    assert {text.get_text() for text in axes.texts} == {*NEAR, "mean", "logit", "vote"}
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("passes of the base for each input", "accuracy")
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1 pass", "8 passes"]
    boxes = [Text.get_window_extent(text) for text in axes.texts]  # without its line to the point
    assert not any(one.overlaps(other) for at, one in enumerate(boxes) for other in boxes[:at])


def test_a_figure_of_a_language_model_has_its_own_quality(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = drawn(monkeypatch)
    quality_against_cost([Result("mean", "aggregation", 1, 1.0, {"answer_probability": 0.1}, {})], 1)
    assert kept[0].axes[0].get_ylabel() == "probability of the true answer"
    assert kept[0].axes[0].get_title() == "1 held-out record"


def test_a_figure_of_shards_has_a_line_a_series_named_at_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = drawn(monkeypatch)
    series = {"mean": [(8, 0.88), (1, 0.9), (4, 0.885)], "cat": [(1, 0.9), (8, 0.879)], "trunk": [(4, 0.89)]}
    assert quality_by_shards(series, title="Banking77").startswith(b"\x89PNG")
    axes = kept[0].axes[0]
    assert [text.get_text() for text in axes.texts] == ["trunk", "cat", "mean"]
    assert list(axes.get_lines()[0].get_ydata()) == [0.9, 0.885, 0.88]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "4", "8"]
    assert axes.texts[2].get_color() == axes.get_lines()[0].get_color()


def test_what_was_not_scored_is_left_out_of_a_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = drawn(monkeypatch)
    silent = Result("silent", "aggregation", 8, None, {"rouge_l_f1": 0.5}, {})
    quality_against_cost([silent, *results()], 3080)
    assert {text.get_text() for text in kept[0].axes[0].texts} == {*NEAR, "mean", "logit", "vote"}
