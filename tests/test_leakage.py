"""The attack on two successive models: its arithmetic, on planted leaks, and on a workspace that really forgets."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from sklearn.metrics import roc_auc_score

from benchmarks import leakage, leakage_tables, tables
from benchmarks.data import synthetic_records
from benchmarks.leakage import Event, Sizes, attack, interval, losses, score, seen_through, split, wins
from sisa import aggregate
from sisa.session import open_session
from tests.reference import shard_logits

SURE, UNSURE = torch.tensor([[4.0, 0.0]]), torch.tensor([[0.0, 0.0]])
TARGETS = torch.tensor([0, 0, 0, 0])  # one deleted, three never seen


def event(old: list[float], new: list[float], others: torch.Tensor) -> Event:
    """The hit shard 1 gives the true label these logits; shard 0 stays as it is."""
    hit = [torch.tensor([[value, 0.0] for value in values]) for values in (old, new)]
    return Event(0, 1, {0: others, 1: hit[0]}, {0: others, 1: hit[1]})


def test_an_attacker_with_both_models_sees_what_neither_alone_shows() -> None:
    """The deleted record is a hard one: it was as likely as the others before, and is less likely after."""
    planted = event([1.0, 1.0, 2.0, 0.0], [0.0, 1.0, 2.0, 0.0], torch.zeros(4, 2))
    found = {who: attack([planted], TARGETS, slice(1, None), "shard", who, 10)["auc"] for who in leakage.ATTACKERS}
    assert found == {"new": pytest.approx(1 / 6), "old": 0.5, "both": 1.0}
    through = attack([planted], TARGETS, slice(1, None), "ensemble", "both", 10)
    assert through["auc"] == 1.0
    same = event([1.0, 1.0, 2.0, 0.0], [1.0, 1.0, 2.0, 0.0], torch.zeros(4, 2))
    assert attack([same], TARGETS, slice(1, None), "ensemble", "both", 10)["auc"] == 0.5


def test_scores_point_to_the_record_that_was_known_and_is_not_any_more() -> None:
    old, new = losses(SURE.softmax(-1), TARGETS[:1]), losses(UNSURE.softmax(-1), TARGETS[:1])
    assert new > old > 0
    assert score("both", old, new) > 0 > score("both", new, old)
    assert score("old", old, new) > score("new", old, new)


def test_served_answers_are_the_mean_of_the_shards_probabilities() -> None:
    mean = seen_through({0: SURE, 1: UNSURE}, "ensemble", 1)
    assert torch.allclose(mean, (SURE.softmax(-1) + UNSURE.softmax(-1)) / 2)
    assert torch.equal(seen_through({0: SURE, 1: UNSURE}, "shard", 1), UNSURE.softmax(-1))


def test_the_mean_of_wins_is_the_auc() -> None:
    scores, others = torch.tensor([0.3, 0.3, 0.9]), torch.tensor([0.1, 0.3, 0.5, 0.9])
    won = torch.stack([wins(one, others) for one in scores])
    truth = [1] * len(scores) + [0] * len(others)
    assert float(won.mean()) == pytest.approx(roc_auc_score(truth, [*scores.tolist(), *others.tolist()]))


def test_an_interval_holds_the_mean_and_narrows_with_more_records() -> None:
    source = torch.Generator().manual_seed(1)
    few, many = (torch.randint(2, (count, 50), generator=source).double() for count in (8, 200))
    for won in (few, many):
        low, high = interval(won, 400)
        assert low < won.mean() < high
        assert (low, high) == interval(won, 400)
    assert interval(torch.ones(4, 4), 20) == (1, 1)
    width = [high - low for low, high in (interval(few, 400), interval(many, 400))]
    assert width[1] < width[0]


def test_what_is_trained_on_and_what_was_never_seen_are_apart_and_evenly_spread() -> None:
    records = synthetic_records(500)
    kept, gone, never = split(records, Sizes(200, 50, 10, 2, 2, 1, 1))
    ids = {record.id for record in kept}
    assert (len(kept), len(gone), len(never)) == (200, 10, 50)
    assert {record.id for record in gone} < ids
    assert not ids & {record.id for record in never}
    assert max(never, key=lambda record: record.id).id > "q00450" > "q00050" > min(record.id for record in never)


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> dict[str, object]:
    """Three deletions from a tiny model, as the benchmark writes it."""
    scratch = tmp_path_factory.mktemp("leakage")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(aggregate, "shard_logits", shard_logits, raising=False)
        found = leakage.measure(
            synthetic_records(100), leakage.QUICK, scratch, base_model=str(tiny_bert), tell=lambda _: None
        )
    with open_session(scratch / "workspace") as session:
        assert sum(1 for _ in session.workspace.survivors()) == leakage.QUICK.records - leakage.QUICK.deletions
    settings = {"shards": 2, "slices": 2, "epochs": 1, "lora_rank": 8}
    where = {"date": "", "processor": "", "cores": 2, "cpu_capability": "", "python": "", "torch": ""}
    return found | {"command": "", "settings": settings, "environment": where | {"transformers": ""}}


def test_every_deletion_is_attacked_by_everybody(result: dict[str, list[dict[str, object]]]) -> None:
    assert len(result["deletions"]) == 3
    assert [(each["view"], each["attacker"]) for each in result["single"]] == [
        (view, who) for view in leakage.VIEWS for who in leakage.ATTACKERS
    ]
    assert [each["view"] for each in result["batch"]] == list(leakage.VIEWS)
    for each in (*result["single"], *result["batch"]):
        assert 0 <= each["low"] <= each["auc"] <= each["high"] <= 1  # type: ignore[operator]
        assert len(each["auc_of_each"]) == 3  # type: ignore[arg-type]


def test_a_new_model_that_gives_the_deleted_record_away_is_shown_as_missed(result: dict[str, object]) -> None:
    fine = json.loads(json.dumps(result))
    for found in fine["single"]:
        found["low"], found["high"] = 0.4, 0.6
    assert leakage_tables.leakage(fine).count("**no**") == 0
    assert leakage_tables.leakage(fine).count("\n") == 1 + 6 + 2
    fine["single"][0]["low"] = 0.51
    assert leakage_tables.leakage(fine).count("**no**") == 1
    assert "never seen" in leakage_tables.leakage_environment(fine)


def test_the_tables_are_wired_and_have_a_place_in_the_document() -> None:
    text = (tables.ROOT / "docs/benchmarks.md").read_text()
    for name in ("leakage", "leakage_environment"):
        assert name in tables.TABLES
        assert f"<!-- table:{name} -->" in text
