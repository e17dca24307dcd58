"""The benchmarks of accuracy and inference, on tiny bases: they run whole, count right, and go on where they were."""

from __future__ import annotations

import csv
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import accuracy_by_shards, accuracy_tables, inference_cost, tables
from benchmarks.accuracy_by_shards import Sizes, Task, Training, banking, measure, measure_all, tofu
from benchmarks.data import synthetic_records
from benchmarks.passes import all_passes
from orchestration.inline import InlineExecutor
from sisa.choices import AGGREGATIONS
from sisa.predict import Predictor
from sisa.session import open_session

INLINE = InlineExecutor()
SIZES = Sizes(154, 20, (Training(2, epochs=1),), 1, (Training(2, epochs=1, merged=True),), 1, ("cat", "ties"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made-up files of the form of the real ones."""
    directory = tmp_path_factory.mktemp("data")
    (directory / "banking77").mkdir()
    for name, count in (("train", 200), ("test", 40)):
        with (directory / "banking77" / f"{name}.csv").open("w", newline="", encoding="utf-8") as handle:
            lines = csv.writer(handle)
            lines.writerow(["text", "category"])
            lines.writerows([[one.fields()["text"], one.fields()["label"]] for one in synthetic_records(count)])
    (directory / "tofu").mkdir()
    rows = [
        {"id": number, "author_id": number // 6, "question": f"Who is {number}?", "answer": f"the author {number}"}
        for number in range(12)
    ]
    (directory / "tofu" / "full.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return directory


def over(task: Task, base: Path, **values: Any) -> Task:
    """The same over a tiny base."""
    return replace(task, base_model=str(base), values=task.values | values)


@pytest.fixture(scope="module")
def with_trunk(data: Path, tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A row of a training with a trunk, and where its workspace lies."""
    directory = tmp_path_factory.mktemp("row")
    task = over(banking(data, SIZES), tiny_bert)
    training = Training(2, 2, epochs=1, trunk=True, merged=True)
    return directory, measure(task, training, directory, SIZES.merges, INLINE)


def test_a_row_has_every_way_to_answer_and_what_the_training_really_cost(
    with_trunk: tuple[Path, dict[str, Any]],
) -> None:
    directory, row = with_trunk
    names = [found["name"] for found in row["results"]]
    assert names == [*AGGREGATIONS, *SIZES.merges]
    assert row["held_out"] == SIZES.held_out
    assert all(0 <= found["accuracy"] <= 1 for found in row["results"])
    assert row["alone"]["accuracy"]["lowest"] <= row["alone"]["accuracy"]["mean"] <= row["alone"]["accuracy"]["highest"]
    with open_session(directory / "workspace") as session:
        plan, layout = session.workspace.plan(), session.workspace.layout()
        trained = sum(len(step.members) for step in plan.trunk.steps)
        permanent = [one for one in session.workspace.survivors() if one.record.retention is not None]
        assert trained == len(permanent) == 31, "each fifth record"
        assert row["passes"] == all_passes(plan, layout)
        manifest = session.workspace.book.manifest()
        assert manifest is not None
        assert row["manifest_digest"] == manifest.digest
    assert 0 < row["deletion_passes"] < row["passes"] - trained, "of a record that may be recalled"


def test_the_rows_are_told_as_tables(with_trunk: tuple[Path, dict[str, Any]]) -> None:
    _, row = with_trunk
    text = accuracy_tables.accuracy_by_shards({"banking77": [row]})
    assert "2 shards, 1 epochs, 2 slices, rehearsal 0, a fifth of the records in a trunk" in text
    assert f"{row['passes']:,}" in text
    assert "ties" in accuracy_tables.accuracy_by_shards_merges({"banking77": [row]})


def row_of(training: Training, accuracy: float, **others: float) -> dict[str, Any]:
    found = [{"name": name, "kind": "merge", "accuracy": value} for name, value in others.items()]
    return {
        "training": asdict(training),
        "held_out": 3080,
        "alone": {"accuracy": {"mean": accuracy - 0.1}},
        "results": [{"name": "mean", "kind": "aggregation", "accuracy": accuracy}, *found],
    }


def test_what_is_missed_is_shown_as_missed_and_nothing_is_chosen_by_what_it_is_judged_on() -> None:
    one, better, long = row_of(Training(1), 0.88), row_of(Training(1, epochs=6), 0.9), row_of(Training(8), 0.899)
    near, far = row_of(Training(8, epochs=10), 0.881), row_of(Training(8, epochs=10), 0.879)
    helped = row_of(Training(8, epochs=20, trunk=True), 0.91)
    text = accuracy_tables.accuracy_by_shards_wanted({"banking77": [one, better, long, near, helped]})
    assert text.endswith("| yes |")
    assert "1.9 points less (88.1% against 90.0%; 95 %: 0.3 to 3.5)" in text
    text = accuracy_tables.accuracy_by_shards_wanted({"banking77": [one, better, long, far, helped]})
    assert text.endswith("| **no** |")


def test_a_merge_that_cannot_be_made_of_one_shard_leaves_its_cell_empty() -> None:
    one = row_of(Training(1, merged=True), 0.9, cat=0.9)
    one["results"].append({"name": "model_stock", "kind": "merge", "warnings": ["needs two"]})
    assert accuracy_tables.accuracy_by_shards_merges({"banking77": [one]}).endswith("| model_stock |  |")


def test_the_figures_lines_are_of_the_longest_plain_trainings_and_of_the_best_unsharded_one() -> None:
    rows = [
        row_of(Training(8, epochs=10), 0.88, cat=0.8),
        row_of(Training(8), 0.9),
        row_of(Training(1), 0.9),
        row_of(Training(1, epochs=6), 0.85),
        row_of(Training(8, epochs=20, trunk=True), 0.91),
    ]
    assert accuracy_tables.by_shards(rows) == {
        "one shard alone": [(1, 0.8), (8, 0.78)],
        "ensemble": [(1, 0.9), (8, 0.88)],
        "merged (cat)": [(8, 0.8)],
    }


def test_a_row_that_is_there_is_not_made_again_and_each_is_kept_once_made(
    data: Path, tiny_bert: Path, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accuracy_by_shards, "banking", lambda *given: over(banking(*given), tiny_bert))
    monkeypatch.setattr(accuracy_by_shards, "tofu", lambda *given: over(tofu(*given), tiny_llama, max_length=32))
    document: dict[str, Any] = {}
    kept: list[int] = []

    def keep() -> None:
        kept.append(sum(len(document[part]) for part in document))

    measure_all(data, SIZES, tmp_path, document, keep, INLINE)
    assert kept == [1, 2]
    assert list(tmp_path.iterdir()) == [], "what is judged is removed"
    (memorising,) = document["tofu"]
    assert memorising["settings"]["records"] == memorising["held_out"] == 6, "judged on what it was trained on"
    assert {"mean", "cat", "ties"} <= {found["name"] for found in memorising["results"]}
    assert "ties" in accuracy_tables.accuracy_by_shards_memorising(document)
    document = json.loads(json.dumps(document))
    more = replace(SIZES, trainings=(*SIZES.trainings, Training(1, epochs=1)))
    measure_all(data, more, tmp_path, document, keep, INLINE)
    assert kept == [1, 2, 3]
    assert [row["training"]["shards"] for row in document["banking77"]] == [2, 1]
    measure_all(data, replace(more, held_out=19, memorising=()), tmp_path, document, keep, INLINE)
    assert kept == [1, 2, 3, 4, 5], "other settings are other rows"


def test_a_training_that_was_cut_off_goes_on(
    data: Path, tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut_off(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    task, training = over(banking(data, SIZES), tiny_bert), Training(2, epochs=1)
    with monkeypatch.context() as patch:
        patch.setattr(accuracy_by_shards, "evaluate", cut_off)
        with pytest.raises(KeyboardInterrupt):
            measure(task, training, tmp_path, (), INLINE)
    row = measure(task, training, tmp_path, (), INLINE)
    assert row["went_on"]


# -- inference -------------------------------------------------------------------------------------


@pytest.mark.slow  # four processes that load everything
def test_every_side_answers_and_its_memory_is_that_of_a_process_of_its_own(tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    inference_cost.main(["--quick", "--out", str(out)])
    found = json.loads(out.read_text())
    for base in ("encoder", "llama"):
        (only,) = found[base]["rounds"]
        assert only["seconds"].keys() == set(inference_cost.SIDES)
        assert min(only["seconds"].values()) > 0
        assert found[base]["memory"].keys() == {"ensemble", "base", "adapters", "caches"}
    assert found["encoder"]["memory"]["caches"] == 0 < found["llama"]["memory"]["caches"]
    assert accuracy_tables.inference_cost(found).count("\n") == 7
    assert [line.split()[1] for line in accuracy_tables.inference_cost_by_shards(found).splitlines()[2:]] == [
        "1",
        "4",
        "8",
        "16",
    ]


def test_times_of_sides_that_answer_otherwise_are_none() -> None:
    one, other = torch.tensor([[0.0, 2.0]]), torch.tensor([[1.0, 0.0]])
    mean = (one.softmax(-1) + other.softmax(-1)).div(2).log()
    inference_cost.check_together([mean], [[one], [other]])
    with pytest.raises(RuntimeError, match="do not answer the same"):
        inference_cost.check_together([(one + other) / 2], [[one], [other]])


def test_the_base_alone_reads_no_head(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Predictor, "held", lambda _: pytest.fail("a head was read"))
    monkeypatch.setattr(inference_cost.Asked, "_plain", lambda _: torch.nn.Identity())
    inference_cost.Asked(None, [], 0).side("base")  # type: ignore[arg-type]  # nothing of a session is asked


def test_an_inference_that_costs_too_much_is_shown_as_such() -> None:
    ratio = {"median": 0.5, "lowest": 0.4, "highest": 0.6}
    memory = {"ensemble": 115, "base": 80, "adapters": 10, "caches": 10}
    fine = {"shards": 8, "ensemble_over_separate": ratio, "folded_over_base": ratio, "memory": memory}
    told = accuracy_tables.inference_cost({"encoder": fine, "llama": fine})
    assert told.count("| yes |") == 6
    dear = ratio | {"median": 1.03}
    slow = fine | {"ensemble_over_separate": dear, "folded_over_base": dear, "memory": memory | {"ensemble": 121}}
    assert accuracy_tables.inference_cost({"encoder": slow, "llama": slow}).count("| **no** |") == 6


def test_the_committed_rows_are_the_whole_measurement() -> None:
    found = json.loads((tables.RESULTS / "accuracy_by_shards.json").read_text())
    assert found["command"].endswith("--data DIR")
    for part, wanted in (
        ("banking77", accuracy_by_shards.WHOLE.trainings),
        ("tofu", accuracy_by_shards.WHOLE.memorising),
    ):
        assert [row["training"] for row in found[part]] == list(map(asdict, wanted))
