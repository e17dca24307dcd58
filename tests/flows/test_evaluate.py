"""Held-out records against every shard, aggregation and merge; the scores are those of each head loaded alone."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from shards.errors import ConfigError, InputError, OperationError
from shards.workspace import Workspace
from sisa import aggregate, metrics
from sisa.choices import WEIGHTINGS
from sisa.ensemble import pool
from sisa.evaluate import evaluate
from sisa.merge import merge
from sisa.plain_model import merged_model
from sisa.predict import Predictor
from sisa.served import ServedHead
from sisa.session import Session, open_session
from tests import reference
from tests.flows.fixtures import Deletion, Site
from tests.flows.helpers import chat, done, refused, sisa, ticket, tree, write_jsonl

HELD_OUT = [ticket(number) | {"id": f"new-{number}"} for number in range(20, 31)]
SPOKEN = [chat(number) | {"id": f"new-{number}"} for number in range(20, 26)]


ALIKE = ("accuracy", "log_loss", "brier", "perplexity", "answer_probability")  # whatever is rounded on the way


def by_name(document: Any) -> dict[str, Any]:
    return {result["name"]: result for result in document["results"]}


# -- classification ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_jsonl(tmp_path_factory.mktemp("held-out") / "held-out.jsonl", HELD_OUT)


def alike(line: dict[str, Any], expected: Mapping[str, float]) -> bool:
    """The same measurements of the same metrics."""
    names = [name for name in ALIKE if name in expected]
    return [line[name] for name in names] == pytest.approx([expected[name] for name in names], rel=1e-3, abs=1e-5)


def test_every_line_is_what_the_constituents_say_one_by_one(classification: Site, held_out: Path) -> None:
    document = done("evaluate", "-w", classification.path, "--data", held_out, "--method", "cat", "--method", "svd")
    with open_session(classification.path) as session:
        manifest, heads = Predictor(session).held()
        logits = reference.shard_logits(session, heads, HELD_OUT)
        targets = torch.tensor([session.recipe.labels.index(row["label"]) for row in HELD_OUT])
    found = by_name(document)
    assert list(found) == ["shard 0", "shard 1", "mean", "logit", "vote", "weighted", "cat", "svd"]
    for number, scores in enumerate(logits):
        assert alike(found[f"shard {number}"], metrics.classification(scores.softmax(-1), targets))
    behind = [head.records for head in heads]
    for how in ("mean", "logit", "vote", "weighted"):
        assert alike(found[how], metrics.classification(pool(logits, how, behind), targets)), how
    mean = metrics.classification(logits.softmax(-1).mean(0), targets)
    assert alike(found["mean"], mean)
    assert mean["log_loss"] != metrics.log_loss(logits[0].softmax(-1), targets)
    assert found["cat"]["error"] == pytest.approx(0, abs=1e-5)
    assert found["svd"]["error"] > 1e-3
    assert [found[name]["passes"] for name in ("shard 1", "mean", "cat")] == [1, 2, 1]
    assert (document["manifest_generation"], document["records"]) == (manifest.generation, len(HELD_OUT))
    assert document["known"] == {"held": 0, "deleted": 0, "same_content": 0}
    assert found["shard 0"]["seconds"] is None
    assert found["mean"]["seconds"] > 0


def test_two_evaluations_of_one_generation_are_the_same_numbers(classification: Site, held_out: Path) -> None:
    found = []
    for _ in range(2):
        document = done("evaluate", "-w", classification.path, "--data", held_out, "--method", "ties")
        found.append([{k: v for k, v in line.items() if k != "seconds"} for line in document["results"]])
    assert found[0] == found[1]


def test_a_merge_is_measured_as_the_plain_model_that_it_is(classification: Site, held_out: Path) -> None:
    asked = ("evaluate", "-w", classification.path, "--data", held_out, "--method", "cat", "--weighting")
    found = [by_name(done(*asked, weighting))["cat"] for weighting in WEIGHTINGS]
    with open_session(classification.path) as session:
        _, heads = Predictor(session).held()
        targets = torch.tensor([session.recipe.labels.index(row["label"]) for row in HELD_OUT])
        assert heads[0].records != heads[1].records, "so that weights tell"
        for line, weighting in zip(found, WEIGHTINGS, strict=True):
            logits = merged_model(session, merge(session, heads, "cat", weighting=weighting).tensors).logits(HELD_OUT)
            assert alike(line, metrics.classification(logits.softmax(-1), targets))
    assert found[0]["log_loss"] != found[1]["log_loss"]


def test_a_merge_that_cannot_be_made_is_said_and_the_rest_is_measured(
    classification: Site, held_out: Path, tmp_path: Path
) -> None:
    methods = ("--method", "sce", "--method", "cat", "--weighting", "records")
    asked = ("evaluate", "-w", classification.path, "--data", held_out, *methods)
    found = by_name(done(*asked))
    assert "accuracy" not in found["sce"]
    assert "sce, which takes none" in found["sce"]["warnings"][0]
    assert {"accuracy", "log_loss"} <= found["cat"].keys()
    said = sisa(*asked, "--figure", tmp_path / "figure.png")
    assert said.code == 0, said.err
    assert "sce: not measured" in said.out
    assert (tmp_path / "figure.png").is_file()


def test_tensors_that_are_not_all_of_a_merge_are_refused(classification: Site) -> None:
    with open_session(classification.path) as session:
        tensors = merge(session, Predictor(session).held()[1], "cat").tensors
        name = "classifier.weight"
        for odd in (
            {key: value for key, value in tensors.items() if key != name},
            tensors | {name: tensors[name][:1]},
            tensors | {"another": tensors[name]},
            {},
        ):
            with pytest.raises(InputError, match="weights that this base can take"):
                merged_model(session, odd)


def test_a_record_that_is_or_was_held_is_refused_and_with_include_known_said_loudly(
    deletion: Deletion, tmp_path: Path
) -> None:
    rows = [ticket(0), ticket(4), ticket(20), ticket(8) | {"id": "new"}, ticket(5) | {"id": "other"}]
    data = write_jsonl(tmp_path / "data.jsonl", rows)
    before = tree(deletion.path)
    refused(
        sisa("evaluate", "-w", deletion.path, "--data", data),
        "1 of 5 records held here and 1 deleted",
        "--include-known",
    )
    document = done("evaluate", "-w", deletion.path, "--data", data, "--include-known")
    assert document["known"] == {"held": 1, "deleted": 1, "same_content": 2}
    said = sisa("evaluate", "-w", deletion.path, "--data", data, "--include-known").out
    assert "Not held out:" in said
    assert "1 held here and 1 deleted here" in said
    assert "2 records with the content" in said
    assert tree(deletion.path) == before, "nothing of an evaluation is stored"


def test_the_table_has_a_line_each_and_no_empty_columns(classification: Site, held_out: Path) -> None:
    said = sisa("evaluate", "-w", classification.path, "--data", held_out)
    assert said.code == 0, said.err
    for word in ("shard 0", "shard 1", "mean", "weighted", "macro F1", "ECE", "passes"):
        assert word in said.out
    assert "perplexity" not in said.out
    assert "…" not in said.out
    assert max(map(len, said.out.splitlines())) <= 80
    assert "Not held out" not in said.out


def test_what_is_written_is_registered_and_readable_by_its_owner_alone(
    deletion: Deletion, held_out: Path, tmp_path: Path
) -> None:
    import shutil

    workspace = Path(shutil.copytree(deletion.path, tmp_path / "workspace"))
    files = tmp_path / "metrics.json", tmp_path / "metrics.png"
    document = done("evaluate", "-w", workspace, "--data", held_out, "--output", files[0], "--figure", files[1])
    assert json.loads(files[0].read_text()) == document
    assert files[1].read_bytes().startswith(b"\x89PNG")
    opened = Workspace.open(workspace)
    derived = [fact.body for fact in opened.book.derived()]
    opened.close()
    assert [body["kind"] for body in derived[-2:]] == ["metrics", "metrics"]
    assert len(derived[-1]["parents"]) == 2
    assert files[0].stat().st_mode & 0o77 == 0
    inside = sisa("evaluate", "-w", workspace, "--data", held_out, "--output", workspace / "metrics.json")
    refused(inside, "outside the workspace")


def test_a_swap_meanwhile_is_no_evaluation(
    classification: Site, held_out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_session(classification.path) as session:
        real = session.workspace.book.manifest
        asked = iter([real()] * 2)

        def swapped() -> Any:
            return next(asked, None)

        monkeypatch.setattr(session.workspace.book, "manifest", swapped)
        with pytest.raises(OperationError, match="a swap meanwhile"):
            evaluate(session, [held_out])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "either --data, or --tasks"),
        (("--data", "x.jsonl", "--tasks", "piqa"), "either --data, or --tasks"),
        (("--tasks", "piqa"), "give --model"),
        (("--tasks", "piqa", "--model", "m", "--output", "o"), "neither --output"),
        (("--data", "x.jsonl", "--model", "m"), "belong to --tasks"),
    ],
)
def test_options_that_do_not_belong_together_are_refused(arguments: tuple[str, ...], said: str) -> None:
    result = sisa("evaluate", *arguments)
    assert result.code == 2
    assert said in result.err


def test_an_unknown_merge_and_wrong_records_are_refused_before_anything_is_read(
    classification: Site, held_out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(aggregate, "shard_logits")
    result = sisa("evaluate", "-w", classification.path, "--data", held_out, "--method", "magic")
    assert (result.code, "'magic'" in result.err) == (2, True)
    with open_session(classification.path) as session, pytest.raises(InputError, match="magic"):
        evaluate(session, [held_out], methods=["cat", "magic"])
    data = write_jsonl(tmp_path / "data.jsonl", [HELD_OUT[0] | {"label": "other"}])
    refused(sisa("evaluate", "-w", classification.path, "--data", data), "data.jsonl:1")


def test_without_matplotlib_a_figure_is_refused_before_anything_is_computed(
    classification: Site, held_out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "matplotlib" else real(name))
    monkeypatch.delattr(aggregate, "shard_logits")
    result = sisa("evaluate", "-w", classification.path, "--data", held_out, "--figure", tmp_path / "f.png")
    refused(result, "sisa[eval]", code=3)


# -- language models --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def spoken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_jsonl(tmp_path_factory.mktemp("spoken") / "held-out.jsonl", SPOKEN)


def test_answers_are_scored_token_by_token_and_averaged_as_probabilities(causal: Site, spoken: Path) -> None:
    document = done(
        "evaluate", "-w", causal.path, "--data", spoken, "--method", "cat", "--method", "svd", "--samples", "3"
    )
    with open_session(causal.path) as session:
        _, heads = Predictor(session).held()
        rows = [{key: value for key, value in row.items() if key not in {"id", "subject"}} for row in SPOKEN]
        scores = reference.answer_scores(session, heads, rows)
    found = by_name(document)
    behind = torch.tensor([head.records for head in heads], dtype=torch.float64)
    expected = {f"shard {number}": [each[number] for each in scores] for number in range(2)}
    expected["mean"] = [each.exp().mean(0).log() for each in scores]
    expected["weighted"] = [(each.exp() * (behind / behind.sum())[:, None]).sum(0).log() for each in scores]
    for name, each in expected.items():
        told = {"perplexity": metrics.perplexity(each), "answer_probability": metrics.answer_probability(each)}
        assert alike(found[name], told), name
    assert list(found) == ["shard 0", "shard 1", "mean", "weighted", "logit", "cat", "svd"]
    assert 1 < found["logit"]["perplexity"] != pytest.approx(found["mean"]["perplexity"])
    assert all(found[name]["perplexity"] > 1 for name in ("cat", "svd"))
    assert document["samples"] == 3


def test_generated_answers_are_held_against_the_true_ones_and_bare_texts_are_no_questions(
    causal: Site, spoken: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def truth(session: Session, heads: Sequence[ServedHead], inputs: Sequence[dict[str, Any]]) -> list[str]:
        answers = [row.get("completion") or row["messages"][-1]["content"] for row in SPOKEN if "text" not in row]
        return [answer if len(heads) == 2 else "" for answer in answers[: len(inputs)]]

    monkeypatch.setattr(aggregate, "generate", truth)
    document = done("evaluate", "-w", causal.path, "--data", spoken)
    assert document["samples"] == sum("text" not in row for row in SPOKEN) == 4
    found = by_name(document)
    assert found["mean"]["rouge_l_recall"] == found["mean"]["rouge_l_f1"] == 1
    assert found["shard 0"]["rouge_l_f1"] == 0
    none = by_name(done("evaluate", "-w", causal.path, "--data", spoken, "--samples", "0"))
    assert "rouge_l_f1" not in none["mean"]


def test_logits_of_heads_that_cannot_share_a_pass_are_not_scored_and_that_is_said(
    causal: Site, spoken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise ConfigError("linear layers", "others", "merge them")

    monkeypatch.setattr(aggregate, "ensemble", refuse)
    asked = ("evaluate", "-w", causal.path, "--data", spoken, "--samples", "1")
    found = by_name(done(*asked))["logit"]
    assert "perplexity" not in found
    assert "rouge_l_f1" in found
    said = sisa(*asked, "--figure", tmp_path / "figure.png")
    assert "not scored: found others" in said.out
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_a_record_without_an_answer_is_named(causal: Site, tmp_path: Path) -> None:
    rows = [SPOKEN[0], {"id": "empty", "prompt": "who", "completion": ""}]
    result = sisa("evaluate", "-w", causal.path, "--data", write_jsonl(tmp_path / "d.jsonl", rows))
    refused(result, "1 of 2", "'empty'")
