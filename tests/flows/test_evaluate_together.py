"""The one pass, the merges and generation as they really are, against each head loaded alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sisa import aggregate
from tests import reference
from tests.flows.fixtures import Site
from tests.flows.helpers import chat, done, sisa, ticket, write_jsonl

pytest.importorskip("sisa.ensemble", reason="ensembles are not there yet")
pytest.importorskip("sisa.merge", reason="merges are not there yet")


@pytest.mark.parametrize("task", ["classification", "causal"])
def test_one_pass_gives_the_metrics_of_every_head_loaded_alone(
    task: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site: Site = request.getfixturevalue(task)
    rows = [
        (ticket if task == "classification" else chat)(number) | {"id": f"new-{number}"} for number in range(20, 26)
    ]
    data = write_jsonl(tmp_path / "held-out.jsonl", rows)
    asked = ("evaluate", "-w", site.path, "--data", data, "--samples", "2")
    together = done(*asked, "--methods", "cat,svd,ties")
    for name in ("shard_logits", "answer_scores"):
        monkeypatch.setattr(aggregate, name, getattr(reference, name))
    alone = done(*asked)
    names = [result["name"] for result in together["results"]]
    spoken, labelled = ["mean", "weighted", "logit"], ["mean", "logit", "vote", "weighted"]
    assert names[2:] == [*(labelled if task == "classification" else spoken), "cat", "svd", "ties"]
    for one, other in zip(together["results"], alone["results"], strict=False):
        assert one.keys() == other.keys()
        for metric in one.keys() & {"accuracy", "log_loss", "brier", "perplexity", "answer_probability", "rouge_l_f1"}:
            assert one[metric] == pytest.approx(other[metric], rel=1e-3, abs=1e-5), (one["name"], metric)
    merges = {result["name"]: result for result in together["results"] if result["kind"] == "merge"}
    assert merges["cat"]["error"] == pytest.approx(0, abs=1e-5)
    assert all({"accuracy", "perplexity"} & merges[name].keys() for name in merges)


def test_two_evaluations_of_one_generation_are_the_same_numbers(classification: Site, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "held-out.jsonl", [ticket(number) | {"id": f"new-{number}"} for number in range(5)])
    found = []
    for _ in range(2):
        result = sisa("evaluate", "-w", classification.path, "--data", data, "--methods", "cat", "--json")
        document = json.loads(result.out)
        assert document["known"]["same_content"] == 5
        found.append([{k: v for k, v in line.items() if k != "seconds"} for line in document["results"]])
    assert found[0] == found[1]
