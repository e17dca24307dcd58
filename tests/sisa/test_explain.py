"""What each shard says to a text, what would be said without it, and how many records stand behind it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sisa.ensemble import pool
from sisa.explain import explain
from sisa.session import open_session
from tests.flows.helpers import done, refused, sisa
from tests.models import LABELS, delete_in, fresh_run, make_workspace
from tests.reference import by_peft, heads_of
from tests.sisa.answering import trained

TEXT = "my card was charged twice"


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> Path:
    return trained(tmp_path_factory.mktemp("classifier"), "classification", tiny_bert, shards=3, slices=2)


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Path:
    return trained(tmp_path_factory.mktemp("writer"), "causal-lm", tiny_llama, slices=1, max_new_tokens=6)


def labelled(probabilities: Any) -> dict[str, Any]:
    shares = dict(zip(LABELS, probabilities.tolist(), strict=True))
    return {"label": max(shares, key=shares.__getitem__), "probabilities": pytest.approx(shares, abs=1e-5)}


@pytest.mark.parametrize("how", ["mean", "vote", "weighted"])
def test_votes_and_answers_without_each_shard_are_those_of_the_adapters_alone(classifier: Path, how: str) -> None:
    import torch

    from sisa.base_model import load_tokenizer

    with open_session(classifier, aggregation=how) as session:
        document = explain(session, TEXT)
        tokenizer: Any = load_tokenizer(session.recipe, session.options.base_model)
        ids = torch.tensor([tokenizer(TEXT)["input_ids"]])
        with torch.inference_mode():
            logits = torch.stack([model(input_ids=ids).logits[0] for model in by_peft(session)])
        records = [head.records for head in heads_of(session)]
    assert document["aggregation"] == how
    assert {name: document[name] for name in ("label", "probabilities")} == labelled(pool(logits, how, records))
    assert [shard["records"] for shard in document["shards"]] == records == [4, 4, 4]
    for at, shard in enumerate(document["shards"]):
        own = labelled(logits[at].double().softmax(-1))
        assert {name: shard[name] for name in own} == own
        assert shard["probability"] == shard["probabilities"][shard["label"]]
        others = [other for other in range(3) if other != at]
        assert shard["without"] == labelled(pool(logits[others], how, [records[other] for other in others]))


def test_of_a_causal_model_each_shards_answer_and_its_score_of_the_joint_one(writer: Path) -> None:
    from sisa.aggregate import answer_scores, generate

    with open_session(writer) as session:
        document, heads = explain(session, TEXT), heads_of(session)
        asked = [{"prompt": TEXT}]
        assert [document["text"]] == generate(session, heads, asked)
        for at, shard in enumerate(document["shards"]):
            assert [shard["text"]] == generate(session, [heads[at]], asked)
            assert [shard["without"]["text"]] == generate(session, [heads[1 - at]], asked)
            scores = answer_scores(session, [heads[at]], [{"prompt": TEXT, "completion": document["text"]}])[0]
            assert shard["log_probability"] == pytest.approx(float(scores.mean()), abs=1e-5)
            assert shard["records"] == heads[at].records


def test_an_explanation_draws_no_lots_where_answers_are_drawn(writer: Path) -> None:
    with open_session(writer) as session:
        greedy = explain(session, TEXT)
    with open_session(writer, temperature=5.0, num_beams=1) as session:
        assert explain(session, TEXT) == greedy


def test_an_explanation_after_a_deletion_is_that_of_a_fresh_run(classifier: Path, tmp_path: Path) -> None:
    import shutil

    from tests.models import flat, grid

    workspace = tmp_path / "workspace"
    shutil.copytree(classifier, workspace)
    delete_in(workspace, [flat(grid("classification", 2, shards=3, slices=2))[0]["id"]])
    found = []
    for path in (workspace, fresh_run(workspace, tmp_path / "fresh")):
        with open_session(path) as session:
            found.append({name: value for name, value in explain(session, TEXT).items() if name != "generation"})
    assert found[0] == found[1]
    assert [shard["records"] for shard in found[0]["shards"]] == [3, 4, 4]


def test_one_shard_has_nothing_without_it(tmp_path: Path, tiny_bert: Path) -> None:
    workspace = trained(tmp_path, "classification", tiny_bert, shards=1, slices=1)
    (shard,) = done("explain", "-w", workspace, "--text", TEXT)["shards"]
    assert shard["without"] is None
    assert "nothing" in sisa("explain", "-w", workspace, "--text", TEXT).out


@pytest.mark.parametrize("task", ["classification", "causal-lm"])
def test_the_command_prints_a_row_a_shard(task: str, classifier: Path, writer: Path) -> None:
    workspace = classifier if task == "classification" else writer
    document = done("explain", "-w", workspace, "--text", TEXT)
    table = sisa("explain", "-w", workspace, "--text", TEXT)
    assert table.code == 0, table.err
    for shard in document["shards"]:
        assert any(line.split()[:2] == [str(shard["shard"]), str(shard["records"])] for line in table.out.splitlines())
    if task == "classification":
        voted = done("explain", "-w", workspace, "--text", TEXT, "--aggregate", "vote")
        assert voted["aggregation"] == "vote"
        lines = done("predict", "-w", workspace, "--text", TEXT, "--aggregate", "vote")
        assert lines["probabilities"] == voted["probabilities"]
    else:
        refused(sisa("explain", "-w", workspace, "--text", TEXT, "--aggregate", "vote"), "votes give no distribution")


def test_nothing_served_is_explained(tmp_path: Path, tiny_bert: Path) -> None:
    workspace = make_workspace(tmp_path / "workspace", "classification", tiny_bert)
    refused(sisa("explain", "-w", workspace, "--text", TEXT), "none is served")
