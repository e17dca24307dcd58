"""The parts of the benchmarks that need no training, and that their tables are what the results say."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

import sisa.acceptance
from benchmarks import (
    acceptance,
    coalescing,
    executor_throughput,
    provenance,
    scheduling_tables,
    startup,
    startup_tables,
    tables,
    verify_cost,
    worker,
)
from benchmarks.data import as_stored, labels_of, spread, synthetic_records
from benchmarks.difference import difference
from benchmarks.environment import file_system
from benchmarks.executor_throughput import Step, Timed
from benchmarks.markdown import NOT_YET
from benchmarks.passes import all_passes, count_passes, deletion_passes, formula
from orchestration.executor import Lesson
from orchestration.schedule import schedule
from shards.layout import ShardLayout
from shards.plan import SliceStep, make_plan
from shards.records import PERMANENT
from shards.vault import StoredRecord
from tests.toy import memory_directory

RESULT = tables.RESULTS / "deletion_cost.json"
VERIFY_RESULT = tables.RESULTS / "verify_cost.json"


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
        impact = difference(before, after)
        cost = deletion_passes(before, gone, layout)
        assert cost / all_passes(before, layout) == pytest.approx(impact.retrained_share)
        assert cost == 2 * sum(len(after.steps()[key].members) for key in impact.retrained)


def test_a_deletion_in_a_shard_costs_no_more_where_there_is_a_trunk() -> None:
    records = synthetic_records(400)
    stored, keys = as_stored([replace(one, retention=PERMANENT) for one in records[:80]] + records[80:], 0)
    layout = ShardLayout(4, 4, 0.0, 2, keys.placement)
    before = make_plan(stored, layout, "recipe")
    assert before.trunk.steps
    for gone in stored[80::40]:
        impact = difference(before, make_plan([other for other in stored if other is not gone], layout, "recipe"))
        assert deletion_passes(before, gone, layout) / all_passes(before, layout) == pytest.approx(
            impact.retrained_share
        )


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


def test_no_document_waits_for_a_figure_but_for_those_of_a_gpu() -> None:
    waiting = []
    for path in sorted([*tables.ROOT.glob("*.md"), *tables.ROOT.glob("docs/**/*.md")]):
        text = path.read_text(encoding="utf-8")
        waiting += re.findall(rf"<!-- table:(\w+) -->\n{re.escape(NOT_YET)}", text)
        assert "to be put here" not in text, path
    assert [name for name in waiting if not name.startswith("gpu_")] == []


def test_a_table_is_replaced_between_its_markers_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    monkeypatch.setattr(tables, "TABLES", {"deletion_cost": lambda result: f"| {result['figure']} |"})
    (tmp_path / "deletion_cost.json").write_text(json.dumps({"figure": 7}))
    text = "before\n<!-- table:deletion_cost -->\nold\n<!-- /table:deletion_cost -->\nafter\n"
    assert tables.filled(text) == text.replace("old", "| 7 |")
    assert tables.filled("no marker") == "no marker"
    (tmp_path / "deletion_cost.json").unlink()
    assert tables.filled(text) == text.replace("old", "Not measured yet.")
    with pytest.raises(ValueError, match="without"):
        tables.filled("<!-- table:deletion_cost -->")


@pytest.mark.parametrize("path", sorted(tables.RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_the_committed_result_names_its_environment_and_no_path_of_a_machine(path: Path) -> None:
    text = path.read_text()
    result = json.loads(text)
    rows = [row for part in ("banking77", "tofu") for row in result.get(part, [])]
    environments = [result["environment"]] if "environment" in result else [row["environment"] for row in rows]
    assert environments
    for environment in environments:
        assert {"date", "cores", "processor", "cpu_capability", "torch", "load_average_at_start"} <= environment.keys()
    for separator in ("/home", "/tmp", "/work", "/root", "/Users"):
        assert separator not in text


def test_the_committed_cost_of_deletion_has_both_rehearsals() -> None:
    assert [timed["rehearsal"] for timed in json.loads(RESULT.read_text())["core_seconds"]] == [1, 0]


def test_the_committed_appends_were_measured_on_a_disk_and_the_load_is_beside_them() -> None:
    result = json.loads(VERIFY_RESULT.read_text())
    assert result["environment"]["file_system"] not in verify_cost.IN_MEMORY
    assert len(result["rounds"]["rounds"]) == verify_cost.WHOLE.rounds
    assert all(len(each["load_average"]) == 3 for each in result["rounds"]["rounds"])
    assert result["records"] == 10_003
    assert result["rounds"]["outcomes"]["failed"] == 0


def test_a_figure_that_is_missed_is_shown_as_missed() -> None:
    result = json.loads(VERIFY_RESULT.read_text())
    before = tables.verify_cost(result).count("**no**")
    for name, value in (("bytes", 160_001), ("wall_seconds", {"median": 0.1, "lowest": 0.1, "highest": 0.1})):
        missed = json.loads(VERIFY_RESULT.read_text())
        missed["rounds"]["verify"][0][name] = value
        assert tables.verify_cost(missed).count("**no**") == before + 1
    missed = json.loads(VERIFY_RESULT.read_text())
    missed["microbatches"]["bytes_per_microbatch"] = 0.5
    assert tables.verify_cost(missed).count("**no**") == before + 1


def test_a_certificate_grows_with_its_records_and_only_a_verification_that_passes_is_timed(tmp_path: Path) -> None:
    records = synthetic_records(verify_cost.QUICK.records)
    with memory_directory() as scratch:
        figures, release = verify_cost.provenance(records, verify_cost.QUICK, scratch)
        found = verify_cost.certificates(records, verify_cost.QUICK, release, scratch)
        outcomes = [verify_cost.verify_once(certificate) for certificate in found]
        text = found[0].path.read_text()
        found[0].path.write_text(text.replace('"payload": "e', '"payload": "f', 1))
        with pytest.raises(RuntimeError, match="failed"):
            verify_cost.verify_once(found[0])
    assert [certificate.figures["tags"] for certificate in found] == [1, *verify_cost.QUICK.tags]
    assert found[1].figures["bytes"] < found[2].figures["bytes"]
    assert {(each["failed"], each["not_checked"]) for each in outcomes} == {(0, 2)}  # freshness; whose record it is
    (run,) = figures["trainings"]
    calls = {part: spent["calls"] for part, spent in run["parts"].items()}
    assert calls["commitments"] == len(records)
    assert calls["lists"] == run["steps"]
    # recipe, parts and slices; runs; each step; the manifest
    assert calls["appends"] == run["steps"] + 3
    assert calls["checks"] >= run["steps"]
    assert run["bytes"]["lists"] == 96 * len(records)  # tags of what was seen; tag and commitment of each leaf


def test_the_real_trainer_stores_no_byte_for_a_microbatch() -> None:
    with memory_directory() as scratch:
        figures = verify_cost.microbatches(synthetic_records(60), verify_cost.QUICK, scratch)
    few, many = figures["trainings"]
    assert few["microbatches"] < many["microbatches"]
    assert few["bytes"] == many["bytes"]
    assert figures["bytes_per_microbatch"] == 0


def test_a_timed_call_inside_another_counts_once_and_nothing_is_timed_afterwards() -> None:
    meter = provenance.Meter()
    before = StoredRecord.__dict__["of"], SliceStep.__dict__["root"]
    inner = meter._timed("lists", lambda: None)
    meter._timed("trees", inner)()
    inner()
    assert (meter.calls["trees"], meter.calls["lists"]) == (1, 1)
    with meter.watching():
        assert StoredRecord.__dict__["of"] is not before[0]
    assert (StoredRecord.__dict__["of"], SliceStep.__dict__["root"]) == before


def test_the_file_system_of_a_path_is_that_of_the_nearest_mount() -> None:
    assert file_system(Path("/proc/self")) == "proc"
    assert file_system(Path("/")) != "proc"


def test_the_batch_formula_is_the_known_one_without_slices_and_the_single_one_for_one_request() -> None:
    """Formula of arXiv 1912.03817 for a batch of K in S shards; and the mean over places for one."""
    for shards, requests in ((8, 20), (20, 5), (1, 3)):
        known = 1000 * (1 - (1 - 1 / shards) ** requests) - requests
        for rehearsal in (0, 1):
            assert coalescing.batch_formula(1000, shards, 1, rehearsal, requests) == pytest.approx(known)
    for slices in (1, 4, 8):
        alone = 1000 / 8 * (2 / 3 + 1 / (3 * slices)) * (slices + 1) / 2
        assert coalescing.batch_formula(1000, 8, slices, 1, 1) == pytest.approx(alone - (slices + 1) / 2)
    with pytest.raises(ValueError, match="0 or 1"):
        coalescing.batch_formula(1000, 8, 8, 0.5, 2)


def test_requests_together_retrain_a_shard_once_and_cost_no_more_than_alone() -> None:
    counted = coalescing.count(synthetic_records(120), 4, 3, 1, 10, placements=1, draws=3)
    assert counted["most_shards"] <= 4
    assert counted["mean_passes"] == pytest.approx(counted["formula_passes"], rel=0.3)
    assert 0.4 < counted["saved_against_one_by_one"] < 1


def test_a_rate_counts_from_the_start_of_the_last_worker_to_the_end() -> None:
    one = [Step(1, 0.0, 10.0, 20, 1), Step(1, 10.0, 20.0, 20, 0)]
    assert executor_throughput.rate(one, 20.0) == 2
    assert executor_throughput.rate(one, 40.0) == 1, "what comes after the last step counts"
    late = [*one, Step(2, 5.0, 15.0, 30, 1), Step(2, 16.0, 20.0, 10, 0)]
    assert executor_throughput.rate(late, 20.0) == (10 + 20 + 30 + 10) / 15
    with pytest.raises(ValueError, match="none"):
        executor_throughput.rate([], 1.0)


def test_chains_alone_bound_what_two_workers_can_gain() -> None:
    stored, keys = as_stored(synthetic_records(200), 0)
    chains = schedule(make_plan(stored, ShardLayout(8, 2, 0.0, 1, keys.placement), "recipe"), {})
    assert executor_throughput.most(chains, 1) == 1
    assert 1.8 < executor_throughput.most(chains, 2) <= 2
    assert executor_throughput.most(chains[:1], 2) == 1


def test_every_side_comes_first_equally_often() -> None:
    orders = [executor_throughput.rotated(["a", "b", "c"], number) for number in range(6)]
    assert [order[0] for order in orders] == list("abcabc")
    assert all(sorted(order) == ["a", "b", "c"] for order in orders)


def test_a_load_of_the_base_is_counted_and_lies_before_the_step(tmp_path: Path) -> None:
    from sisa.adapter import release

    records = synthetic_records(4)
    trainer = worker.make_trainer(labels_of(records))
    timed = Timed(trainer, tmp_path / "diary")
    lesson = Lesson((tuple(records),), None, bytes(32))
    release()
    made = [timed.train(lesson), timed.train(lesson)]
    assert made[0] == made[1] == trainer.train(lesson)
    release()
    timed.train(lesson)
    steps = [Step(**json.loads(line)) for line in timed.diary.read_text().splitlines()]
    assert [step.loads for step in steps] == [1, 0, 1]
    assert [step.records for step in steps] == [4, 4, 4]
    assert all(step.began < step.ended for step in steps)


def throughput_result(**changes: object) -> dict[str, object]:
    """A result as the benchmark writes it; two rounds."""
    one = {"records_per_second": 30.0, "processes": 1, "base_loads": 1, "load_average": [0.5, 0.5, 0.5]}
    two = one | {"processes": 2, "base_loads": 2}
    return {
        "most_with_2_workers": 1.95,
        "ray_2_over_ray_1": {"median": 1.7, "lowest": 1.6, "highest": 1.8},
        "ray_1_over_inline": {"median": 0.9, "lowest": 0.8, "highest": 1.0},
        "same_tensors": True,
        "rounds": [{"inline": one, "ray_1": one, "ray_2": two}] * 2,
    } | changes


def test_a_throughput_that_is_missed_is_shown_as_missed() -> None:
    assert scheduling_tables.executor_throughput(throughput_result()).count("**no**") == 0
    slow = {"median": 1.69, "lowest": 1.6, "highest": 1.8}
    twice = {"records_per_second": 30.0, "processes": 1, "base_loads": 2, "load_average": [0.5, 0.5, 0.5]}
    for changes in (
        {"ray_2_over_ray_1": slow},
        {"ray_1_over_inline": slow | {"median": 0.89}},
        {"same_tensors": False},
        {"rounds": [{"inline": twice}]},
    ):
        assert scheduling_tables.executor_throughput(throughput_result(**changes)).count("**no**") == 1, changes


def test_a_driver_that_takes_too_much_is_shown_as_such() -> None:
    path = tables.RESULTS / "scheduler_simulation.json"
    if not path.is_file():
        pytest.skip("no result is committed")
    text = path.read_text()
    before = scheduling_tables.scheduler_simulation(json.loads(text)).count("**no**")
    for name, value in (("driver_ms_per_step", {"schedule": 1.0}), ("peak_bytes", 2**30), ("deadlines_met", 0.9999)):
        worse = json.loads(text)
        worse["queues"][-1][name] = value
        assert scheduling_tables.scheduler_simulation(worse).count("**no**") == before + 1, name


def test_acceptance_is_measured_on_a_workspace_that_forgets(tmp_path: Path) -> None:
    figures = acceptance.measured(acceptance.QUICK[0], tmp_path / "workspace")
    assert figures["open"]["count"] == acceptance.QUICK[0].open
    assert 0 < figures["open"]["p50"] <= figures["open"]["p99"] <= figures["open"]["longest"]
    assert figures["process"]["count"] == acceptance.QUICK[0].process
    table = tables.acceptance({"runs": [figures]})
    assert f"| {figures['records']} |" in table


def test_an_acceptance_that_forgets_nothing_is_not_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sisa.acceptance, "rolled_back", lambda workspace, _: workspace.book.manifest())
    with pytest.raises(AssertionError, match="still served"):
        acceptance.measured(acceptance.QUICK[0], tmp_path / "workspace")


def startup_result(**changes: object) -> dict[str, object]:
    """A result as the benchmark writes it; two rounds."""
    found = {"load_average": [0.5, 0.5, 0.5], "bare": 0.2}
    within = {"median": 0.3, "lowest": 0.2, "highest": 0.5}
    steps = {"delete inline": within | {"median": 6.9}, "delete ray": within | {"median": 11.9}}
    return {"over_bare": {"status": within, "verify": within}, "first_step": steps, "rounds": [found] * 2} | changes


def test_a_start_up_that_takes_too_long_is_shown_as_such() -> None:
    assert startup_tables.startup(startup_result()).count("**no**") == 0
    slow = {"median": 0.31, "lowest": 0.2, "highest": 0.5}
    for changes in (
        {"over_bare": {"status": slow}},
        {"first_step": {"delete inline": slow | {"median": 7.0}}},
        {"first_step": {"delete ray": slow | {"median": 12.0}}},
    ):
        assert startup_tables.startup(startup_result(**changes)).count("**no**") == 1, changes


@pytest.mark.slow
def test_a_first_step_is_noted_once_its_base_lies_there(tmp_path: Path, tiny_bert: Path) -> None:
    made = startup.prepared(startup.QUICK, tmp_path, str(tiny_bert))
    before = {file: file.read_bytes() for file in made.path.rglob("*") if file.is_file()}
    figures = startup.measure(made, startup.QUICK, tmp_path, {"delete inline": "inline"})
    (found,) = figures["rounds"]
    assert 0 < found["delete inline"]["ordered"] < found["delete inline"]["began"] < found["delete inline"]["ended"]
    assert figures["first_step"]["delete inline"]["median"] == found["delete inline"]["began"]
    assert set(figures["over_bare"]) == {"audit --id", "audit --all", "verify", "verify -w", "status"}
    assert {file: file.read_bytes() for file in made.path.rglob("*") if file.is_file()} == before
    startup_tables.startup(figures)
