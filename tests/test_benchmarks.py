"""The parts of the benchmarks that need no training, and that their tables are what the results say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import tables
from benchmarks.data import as_stored, labels_of, spread, synthetic_records
from benchmarks.passes import all_passes, count_passes, deletion_passes, formula
from shards.layout import ShardLayout
from shards.plan import difference, make_plan

RESULT = tables.RESULTS / "deletion_cost.json"


@pytest.mark.parametrize(("rehearsal", "published"), [(1.0, 11.3), (0.0, 14.2)])
def test_one_deletion_at_8_by_8_costs_what_the_formula_says_within_5_percent(
    rehearsal: float, published: float
) -> None:
    counted = count_passes(synthetic_records(3000), 8, 8, rehearsal, placements=1)
    assert counted["formula"] == pytest.approx(published, abs=0.05)
    assert counted["largest_deviation"] < 0.05
    assert counted["ratio_weighted_by_records"] == pytest.approx(counted["formula"], rel=0.05)
    assert counted["placements"][0]["positions"] == 64


@pytest.mark.parametrize("rehearsal", [0.0, 0.25, 1.0])
def test_planning_the_hit_chain_alone_counts_what_planning_everything_counts(rehearsal: float) -> None:
    stored, keys = as_stored(synthetic_records(200), 0)
    layout = ShardLayout(3, 4, rehearsal, 2, keys.placement)
    before = make_plan(stored, layout, "recipe")
    for gone in stored[::40]:
        after = make_plan([other for other in stored if other is not gone], layout, "recipe")
        impact = difference(before, after, frozenset())
        cost = deletion_passes(before, gone, layout)
        assert cost / all_passes(before, layout) == pytest.approx(impact.retrained_share)
        assert cost == 2 * sum(len(after.steps()[key].members) for key in impact.retrained)


def test_a_deletion_from_every_place_costs_the_formula_exactly_when_places_are_equal() -> None:
    for shards, slices in ((1, 1), (4, 3), (8, 8)):
        suffix = [slices - number for number in range(slices)]
        mean = sum(suffix) / slices
        assert formula(shards, slices, 0) == pytest.approx(shards * slices / mean)
        prefix = [sum(range(number + 1, slices + 1)) for number in range(slices)]
        assert formula(shards, slices, 1) == pytest.approx(shards * prefix[0] / (sum(prefix) / slices))
    with pytest.raises(ValueError, match="rehearsal"):
        formula(8, 8, 0.5)


def test_a_subsample_of_records_sorted_by_label_keeps_every_label() -> None:
    records = sorted(synthetic_records(770), key=lambda record: str(record.fields()["label"]))
    some = spread(records, 100)
    assert len({record.id for record in some}) == 100
    assert labels_of(some) == labels_of(records)
    assert spread(records, 10_000) == records


@pytest.mark.parametrize("document", tables.DOCUMENTS)
def test_the_tables_in_the_documents_are_what_the_committed_results_give(document: str) -> None:
    path = tables.ROOT / document
    text = path.read_text() if path.is_file() else ""
    if not RESULT.is_file() or "<!-- table:" not in text:
        pytest.skip(f"{document} has no table of benchmark results, or no result is committed")
    assert text == tables.filled(text), "run `python -m benchmarks.tables`"


def test_a_table_is_replaced_between_its_markers_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    monkeypatch.setattr(tables, "TABLES", {"deletion_cost": lambda result: f"| {result['figure']} |"})
    (tmp_path / "deletion_cost.json").write_text(json.dumps({"figure": 7}))
    text = "before\n<!-- table:deletion_cost -->\nold\n<!-- /table:deletion_cost -->\nafter\n"
    assert tables.filled(text) == text.replace("old", "| 7 |")
    assert tables.filled("no marker") == "no marker"
    with pytest.raises(ValueError, match="without"):
        tables.filled("<!-- table:deletion_cost -->")


def test_the_committed_result_names_its_environment_and_no_path_of_a_machine() -> None:
    if not RESULT.is_file():
        pytest.skip("no result is committed")
    text = RESULT.read_text()
    result = json.loads(text)
    assert {"date", "cores", "processor", "cpu_capability", "torch", "load_average_at_start"} <= set(
        result["environment"]
    )
    assert len(result["core_seconds"]) == 2
    for separator in ("/home", "/tmp", "/work", "/root", "/Users"):
        assert separator not in text
