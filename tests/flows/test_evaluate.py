"""Held-out records against every shard, aggregation and merge; the scores are those of each head loaded alone."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from shards.errors import ConfigError, OperationError
from shards.workspace import Workspace
from sisa import aggregate, metrics
from sisa.evaluate import evaluate
from sisa.plain_model import merged_model
from sisa.served import ServedHead, served_heads
from sisa.session import Session, open_session
from tests.flows.fixtures import Deletion, Site
from tests.flows.helpers import chat, done, refused, sisa, ticket, tree, write_jsonl
from tests.reference import alone, answer_scores, shard_logits

HELD_OUT = [ticket(number) | {"id": f"new-{number}"} for number in range(20, 31)]
SPOKEN = [chat(number) | {"id": f"new-{number}"} for number in range(20, 26)]


# -- stand-ins --------------------------------------------------------------------------------


class Pooled(torch.nn.Module):
    """The mean of logits of every head, as one model."""

    def __init__(self, session: Session, heads: Sequence[ServedHead]) -> None:
        super().__init__()
        assert vars(session.options)["aggregation"] == "logit"
        self.put, self.heads = alone(session)[0], heads

    def forward(self, **inputs: Any) -> Any:
        return SimpleNamespace(logits=torch.stack([self.put(head)(**inputs).logits for head in self.heads]).mean(0))


def generate(session: Session, heads: Sequence[ServedHead], inputs: Sequence[dict[str, Any]]) -> list[str]:
    """As many words of the question as there are heads."""
    texts = [fields.get("prompt") or fields["messages"][-1]["content"] for fields in inputs]
    return [" ".join(text.split()[: len(heads)]) for text in texts]


def pool(logits: torch.Tensor, how: str, records: Sequence[int]) -> torch.Tensor:
    weights = torch.tensor(records if how == "weighted" else [1] * len(logits), dtype=torch.float64)
    pooled: torch.Tensor = torch.tensordot(weights / weights.sum(), logits.softmax(-1), 1)
    return pooled


@dataclass
class Merged:
    method: str
    tensors: dict[str, torch.Tensor]
    error: float | None = None
    seed: int | None = None
    warnings: tuple[str, ...] = ()


def of_the_first_shard(
    session: Session, heads: Sequence[ServedHead], method: str, *, weighting: str = "equal"
) -> Merged:
    """A "merge" that is the first shard's model: base plus update, and its head."""
    put, _ = alone(session)
    model = put(heads[0])
    tensors = {}
    for name, module in model.base_model.model.named_modules():
        if hasattr(module, "lora_A"):
            tensors[f"{name}.weight"] = module.base_layer.weight + module.get_delta_weight("default")
        elif hasattr(module, "modules_to_save"):
            inner = module.modules_to_save["default"].named_parameters()
            tensors |= {f"{name}.{part}": parameter for part, parameter in inner}
    return Merged(method, {name: tensor.detach().clone() for name, tensor in tensors.items()}, 0.0, 0, (weighting,))


@pytest.fixture(autouse=True)
def reference(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand-ins for what computes faster."""
    for function in (shard_logits, answer_scores, generate):
        monkeypatch.setattr(aggregate, function.__name__, function, raising=False)
    monkeypatch.setattr(aggregate, "ensemble", Pooled, raising=False)
    for name, contents in (
        ("sisa.ensemble", {"POOLINGS": ("mean", "weighted"), "pool": pool}),
        ("sisa.merge", {"METHODS": ("cat", "svd"), "merge": of_the_first_shard}),
    ):
        module = ModuleType(name)
        vars(module).update(contents)
        monkeypatch.setitem(sys.modules, name, module)


def by_name(document: Any) -> dict[str, Any]:
    return {result["name"]: result for result in document["results"]}


# -- classification ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_jsonl(tmp_path_factory.mktemp("held-out") / "held-out.jsonl", HELD_OUT)


def test_every_line_is_what_the_constituents_say_one_by_one(classification: Site, held_out: Path) -> None:
    document = done("evaluate", "-w", classification.path, "--data", held_out, "--methods", "cat,svd")
    with open_session(classification.path) as session:
        manifest = session.workspace.book.manifest()
        assert manifest is not None
        heads = served_heads(session.workspace, manifest)
        logits = shard_logits(session, heads, HELD_OUT)
        targets = torch.tensor([session.recipe.labels.index(row["label"]) for row in HELD_OUT])
    found = by_name(document)
    assert list(found) == ["shard 0", "shard 1", "mean", "weighted", "cat", "svd"]
    for number, scores in enumerate(logits):
        assert found[f"shard {number}"].items() >= metrics.classification(scores.softmax(-1), targets).items()
    mean = metrics.classification(logits.softmax(-1).mean(0), targets)
    assert {name: found["mean"][name] for name in mean} == pytest.approx(mean)
    assert mean["log_loss"] != metrics.log_loss(logits[0].softmax(-1), targets)
    assert [found[name]["passes"] for name in ("shard 1", "mean", "cat")] == [1, 2, 1]
    assert (document["manifest_generation"], document["records"]) == (manifest.generation, len(HELD_OUT))
    assert document["known"] == {"held": 0, "deleted": 0, "same_content": 0}
    assert found["shard 0"]["seconds"] is None
    assert found["mean"]["seconds"] > 0


def test_a_merge_is_measured_as_the_plain_model_that_it_is(classification: Site, held_out: Path) -> None:
    """Here it is the first shard's, so the two lines agree."""
    found = by_name(done("evaluate", "-w", classification.path, "--data", held_out, "--methods", "cat"))
    for name in ("accuracy", "log_loss", "brier"):
        assert found["cat"][name] == pytest.approx(found["shard 0"][name], abs=1e-5)
        assert name == "accuracy" or found["cat"][name] != pytest.approx(found["shard 1"][name], abs=1e-4)
    assert found["cat"]["warnings"] == ["equal"]
    weighted = done(
        "evaluate", "-w", classification.path, "--data", held_out, "--methods", "cat", "--weighting", "records"
    )
    assert by_name(weighted)["cat"]["warnings"] == ["records"]


def test_tensors_that_are_not_all_of_a_merge_are_refused(classification: Site) -> None:
    from shards.errors import InputError

    with open_session(classification.path) as session:
        heads = served_heads(session.workspace, session.workspace.book.manifest())  # type: ignore[arg-type]
        tensors = of_the_first_shard(session, heads, "cat").tensors
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
    refused(sisa("evaluate", "-w", classification.path, "--data", held_out, "--methods", "cat,magic"), "magic")
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
    document = done("evaluate", "-w", causal.path, "--data", spoken, "--methods", "cat", "--samples", "3")
    with open_session(causal.path) as session:
        manifest = session.workspace.book.manifest()
        assert manifest is not None
        heads = served_heads(session.workspace, manifest)
        rows = [{key: value for key, value in row.items() if key not in {"id", "subject"}} for row in SPOKEN]
        scores = answer_scores(session, heads, rows)
    found = by_name(document)
    for number in range(2):
        alone = [each[number] for each in scores]
        assert found[f"shard {number}"]["perplexity"] == pytest.approx(metrics.perplexity(alone))
        assert found[f"shard {number}"]["answer_probability"] == pytest.approx(metrics.answer_probability(alone))
    means = [each.exp().mean(0).log() for each in scores]
    assert found["mean"]["perplexity"] == pytest.approx(metrics.perplexity(means))
    behind = torch.tensor([head.records for head in heads], dtype=torch.float64)
    weighted = [(each.exp() * (behind / behind.sum())[:, None]).sum(0).log() for each in scores]
    assert found["weighted"]["answer_probability"] == pytest.approx(metrics.answer_probability(weighted))
    assert list(found) == ["shard 0", "shard 1", "mean", "weighted", "logit", "cat"]
    assert 1 < found["logit"]["perplexity"] != pytest.approx(found["mean"]["perplexity"])
    for name in ("perplexity", "answer_probability"):
        assert found["cat"][name] == pytest.approx(found["shard 0"][name], rel=1e-4)
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
    causal: Site, spoken: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise ConfigError("linear layers", "others", "merge them")

    monkeypatch.setattr(aggregate, "ensemble", refuse)
    found = by_name(done("evaluate", "-w", causal.path, "--data", spoken))["logit"]
    assert "perplexity" not in found
    assert "rouge_l_f1" in found
    assert "not scored: found others" in sisa("evaluate", "-w", causal.path, "--data", spoken).out


def test_a_record_without_an_answer_is_named(causal: Site, tmp_path: Path) -> None:
    rows = [SPOKEN[0], {"id": "empty", "prompt": "who", "completion": ""}]
    result = sisa("evaluate", "-w", causal.path, "--data", write_jsonl(tmp_path / "d.jsonl", rows))
    refused(result, "1 of 2", "'empty'")
