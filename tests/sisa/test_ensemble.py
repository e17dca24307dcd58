"""The ensemble as a model of its own: pooling, a shard's rows, generation, and being loaded without us."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sisa.aggregate import ensemble
from sisa.base_model import load_tokenizer
from sisa.choices import AGGREGATIONS
from sisa.encoding import pad_batch
from sisa.ensemble import POOLINGS, EnsembleConfig, EnsembleForCausalLM, pool
from sisa.session import open_session
from tests.reference import by_peft, heads_of
from tests.sisa.answering import TEXTS, greedy_by_hand, trained

SCORES = [[2.0, 0.5, -1.0], [0.1, 3.0, 0.2], [1.5, 0.0, 2.5]]  # shards x classes: each votes for another
RECORDS = [5, 2, 1]


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> Path:
    return trained(tmp_path_factory.mktemp("classifier"), "classification", tiny_bert, shards=3, slices=1)


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Path:
    return trained(tmp_path_factory.mktemp("writer"), "causal-lm", tiny_llama, shards=3, slices=1)


@pytest.fixture(scope="module")
def upper_writer(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Path:
    return trained(tmp_path_factory.mktemp("upper"), "causal-lm", tiny_llama, shards=3, slices=1, layers="last-1")


@pytest.fixture(scope="module")
def coarse_writer(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Path:
    return trained(tmp_path_factory.mktemp("coarse"), "causal-lm", tiny_llama, shards=3, slices=1, dtype="bfloat16")


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    import torch

    with torch.no_grad():
        yield


# -- pooling ----------------------------------------------------------------------------------


def softmax(scores: Sequence[float]) -> list[float]:
    parts = [math.exp(score) for score in scores]
    return [part / sum(parts) for part in parts]


def by_hand(scores: Sequence[Sequence[float]], how: str) -> list[float]:
    columns = range(len(scores[0]))
    shares = [softmax(each) for each in scores]
    mean = [sum(share[at] for share in shares) / len(scores) for at in columns]
    if how == "mean":
        return mean
    if how == "weighted":
        return [sum(n * share[at] for n, share in zip(RECORDS, shares, strict=True)) / sum(RECORDS) for at in columns]
    if how == "logit":
        return softmax([sum(each[at] for each in scores) / len(scores) for at in columns])
    votes = [sum(max(range(len(each)), key=each.__getitem__) == at for each in scores) / len(scores) for at in columns]
    return [(1 - 2**-13) * vote + 2**-13 * each for vote, each in zip(votes, mean, strict=True)]


@pytest.mark.parametrize("how", POOLINGS)
def test_pooling_is_the_arithmetic_it_says(how: str) -> None:
    import torch

    found = pool(torch.tensor(SCORES), how, RECORDS)
    assert found.dtype == torch.float64
    assert found.tolist() == pytest.approx(by_hand(torch.tensor(SCORES).tolist(), how), abs=1e-12)
    assert float(found.sum()) == pytest.approx(1, abs=1e-12)
    many = torch.tensor(SCORES).view(3, 1, 1, 3).expand(3, 2, 4, 3)
    assert torch.equal(pool(many, how, RECORDS), found.expand(2, 4, 3))


def test_a_tie_of_votes_is_broken_by_mean_probability_and_outweighs_no_vote() -> None:
    import torch

    assert pool(torch.tensor([[3.0, 2.9, 0.0], [0.0, 2.0, 1.0]]), "vote", []).argmax() == 1
    against = [[9.0, 0.0]] * 2047 + [[0.1, 0.2]] * 2049  # 4096 shards, the most there can be
    assert pool(torch.tensor(against), "vote", []).argmax() == 1
    assert pool(torch.tensor(against), "mean", []).argmax() == 0


@pytest.mark.parametrize("shards", [2, 6, 64])
@pytest.mark.parametrize("gap", [0.2, 0.01, 0.001])
def test_a_near_tie_of_votes_is_decided_alike_in_an_ensembles_float32_logits(gap: float, shards: int) -> None:
    import torch

    for winner in (0, 1):
        sure = torch.full((shards,), 0.6)
        sure[winner::2] += gap  # every other shard is surer of its own class
        shares = torch.full((shards, 3), 0.05)
        for at in range(shards):
            shares[at, at % 2], shares[at, 1 - at % 2] = sure[at], 0.95 - sure[at]
        whose: Any = SimpleNamespace(config=SimpleNamespace(shards=shards, pooling="vote", records=[1] * shards))
        logits: Any = EnsembleForCausalLM._pooled(whose, SimpleNamespace(logits=shares.log())).logits
        assert logits.dtype == torch.float32
        assert logits.argmax() == pool(shares.log(), "vote", []).argmax() == winner


@pytest.mark.parametrize("records", [[1, 1], [0, 0, 0], [3, -1, 1]])
def test_weights_that_are_no_numbers_of_records_are_refused(records: list[int]) -> None:
    import torch

    with pytest.raises(ValueError, match="weights of 3 shards"):
        pool(torch.tensor(SCORES), "weighted", records)


def test_an_unknown_pooling_is_refused_and_the_option_has_all_of_them() -> None:
    import torch

    assert AGGREGATIONS == POOLINGS
    with pytest.raises(ValueError, match="pooling must be one of mean"):
        pool(torch.tensor(SCORES), "median", RECORDS)


# -- what a pass gives ------------------------------------------------------------------------


@pytest.mark.parametrize("how", POOLINGS)
def test_the_softmax_of_the_logits_is_the_pooled_probabilities(classifier: Path, how: str) -> None:
    import torch

    with open_session(classifier, aggregation=how) as session:
        heads = heads_of(session)
        model = ensemble(session, heads)
        tokenizer: Any = load_tokenizer(session.recipe, session.options.base_model)
        out = model(**pad_batch([tokenizer(text)["input_ids"] for text in TEXTS], 0, "cpu"))
    assert out.shard_logits.shape == (3, len(TEXTS), 3)
    expected = pool(out.shard_logits, how, [head.records for head in heads])
    assert torch.allclose(out.logits.double().softmax(-1), expected, rtol=0, atol=1e-6)
    assert (model.config.id2label, model.config.num_labels) == ({0: "billing", 1: "login", 2: "refund"}, 3)


@pytest.mark.parametrize("kind", ["classifier", "writer", "upper_writer", "coarse_writer"])
def test_a_shards_rows_are_the_same_bits_whatever_the_other_shards_hold(
    kind: str, classifier: Path, writer: Path, upper_writer: Path, coarse_writer: Path
) -> None:
    import torch
    from safetensors.torch import load, save

    def passes(model: Any) -> list[Any]:
        if kind == "classifier":
            return [model(input_ids=ids, attention_mask=mask).shard_logits]
        first = model(input_ids=ids, attention_mask=mask, use_cache=True)
        longer = torch.cat([mask, torch.ones(2, 1, dtype=torch.long)], 1)
        then = model(input_ids=ids[:, -1:], attention_mask=longer, past_key_values=first.past_key_values)
        return [first.shard_logits, then.shard_logits]

    ids = torch.tensor([[1, 40, 41, 42, 43, 2], [0, 0, 1, 50, 51, 2]])
    mask = torch.tensor([[1] * 6, [0, 0, 1, 1, 1, 1]])
    places = {"classifier": classifier, "writer": writer, "upper_writer": upper_writer, "coarse_writer": coarse_writer}
    with open_session(places[kind]) as session:
        heads = heads_of(session)
        before = passes(ensemble(session, heads))
        noise = {name: torch.randn_like(tensor) for name, tensor in load(heads[0].weights).items()}
        others = [replace(heads[0], weights=save(noise)), heads[1], replace(heads[2], weights=save(noise))]
        after = passes(ensemble(session, others))
    for one, other in zip(before, after, strict=True):
        assert torch.equal(one[1], other[1])
        assert not torch.equal(one[0], other[0])
        assert not torch.equal(one[2], other[2])


def test_votes_are_refused_for_next_tokens(writer: Path) -> None:
    import torch

    with open_session(writer) as session:
        model = ensemble(session, heads_of(session))
        model.config.pooling = "vote"
        with pytest.raises(ValueError, match="no distribution over next tokens"):
            model(input_ids=torch.tensor([[1, 2]]))
        model.config.pooling = "mean"


def test_a_module_that_is_no_linear_layer_is_refused(writer: Path) -> None:
    from sisa.ensemble import SharedError

    with open_session(writer) as session:
        base = deepcopy(ensemble(session, heads_of(session)).base)
        config = EnsembleConfig.over(base, adapted={"model.embed_tokens": (2, 1.0)})
        with pytest.raises(SharedError, match="not Embedding"):
            EnsembleForCausalLM(config, base)


# -- generation -------------------------------------------------------------------------------


def prompts(tokenizer: Any) -> Any:
    return pad_batch([tokenizer(text)["input_ids"] for text in TEXTS], tokenizer.pad_token_id, "cpu", left=True)


def test_greedy_generation_of_a_padded_batch_is_a_loop_over_the_models_of_peft(writer: Path) -> None:
    with open_session(writer) as session:
        model = ensemble(session, heads_of(session))
        tokenizer: Any = load_tokenizer(session.recipe, session.options.base_model)
        models = by_peft(session)
    rows = prompts(tokenizer)
    assert int(rows["attention_mask"].min()) == 0
    made = model.generate(**rows, max_new_tokens=8, do_sample=False)[:, rows["input_ids"].shape[1] :].tolist()
    answers = []
    for text, tokens in zip(TEXTS, made, strict=True):
        answer = greedy_by_hand(models, list(tokenizer(text)["input_ids"]), tokenizer.eos_token_id, 8)
        assert tokens[: len(answer)] == answer
        assert set(tokens[len(answer) :]) <= {tokenizer.eos_token_id, tokenizer.pad_token_id}
        answers.append(tuple(answer))
    assert len(set(answers)) > 1


def test_one_shards_beams_are_those_of_plain_peft(writer: Path) -> None:
    with open_session(writer) as session:
        model = ensemble(session, heads_of(session)[1:2])
        tokenizer: Any = load_tokenizer(session.recipe, session.options.base_model)
        alone = by_peft(session)[1]
    for text in TEXTS:
        ids = tokenizer(text, return_tensors="pt", return_token_type_ids=False)
        how = {"num_beams": 4, "max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, "num_return_sequences": 3}
        assert model.generate(**ids, **how).tolist() == alone.generate(**ids, **how).tolist()


@pytest.mark.parametrize(
    "how",
    [
        {"num_beams": 3},
        {"num_beams": 3, "do_sample": True},
        {"do_sample": True, "num_return_sequences": 2},
        {"cache_implementation": "static", "num_beams": 3},
        {"prefill_chunk_size": 3},
    ],
)
@pytest.mark.parametrize("layers", ["all", "last-1"])
def test_what_is_generated_with_a_cache_is_what_is_generated_without(
    writer: Path, upper_writer: Path, how: dict[str, Any], layers: str
) -> None:
    import torch

    with open_session(writer if layers == "all" else upper_writer) as session:
        model = ensemble(session, heads_of(session))
        tokenizer: Any = load_tokenizer(session.recipe, session.options.base_model)
    rows, made = prompts(tokenizer), []
    if layers == "last-1" and "cache_implementation" in how:
        with pytest.raises(ValueError, match="rows of all shards in every layer"):
            model.generate(**rows, max_new_tokens=6, **how)
        return
    without = {name: value for name, value in how.items() if name not in ("cache_implementation", "prefill_chunk_size")}
    for options in (how, {**without, "use_cache": False}):
        torch.manual_seed(3)
        made.append(model.generate(**rows, max_new_tokens=6, **{"do_sample": False, **options}).tolist())
    assert made[0] == made[1]
    assert model.config.below == (None if layers == "all" else ("model.layers", 1))
    if layers == "last-1":
        model.config.below = None
        torch.manual_seed(3)
        options = {**without, "use_cache": False}
        assert model.generate(**rows, max_new_tokens=6, **{"do_sample": False, **options}).tolist() == made[0]
        model.config.below = ("model.layers", 1)


def test_beams_are_another_search_than_one_beam(writer: Path) -> None:
    with open_session(writer) as session:
        model = ensemble(session, heads_of(session))
        tokenizer: Any = load_tokenizer(session.recipe, session.options.base_model)
    rows = prompts(tokenizer)
    found = [model.generate(**rows, num_beams=beams, max_new_tokens=8, do_sample=False).tolist() for beams in (1, 4)]
    assert found[0] != found[1]


# -- without us -------------------------------------------------------------------------------

STRANGER = """
import sys
sys.modules |= dict.fromkeys(("sisa", "shards", "orchestration", "peft"))  # importing any of them fails
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
directory = sys.argv[1]
ids = torch.tensor([[1, 40, 41, 42, 2]])
with torch.no_grad():
    for name, auto in (("classifier", AutoModelForSequenceClassification), ("writer", AutoModelForCausalLM)):
        model = auto.from_pretrained(f"{directory}/{name}", trust_remote_code=True).eval()
        out = model(input_ids=ids)
        found = {"logits": out.logits, "shard_logits": out.shard_logits.contiguous()}
        if name == "writer":
            found["made"] = model.generate(ids, num_beams=2, max_new_tokens=5)
        save_file(found, f"{directory}/{name}.theirs")
"""


def test_a_saved_ensemble_answers_the_same_bits_in_a_process_without_us(
    classifier: Path, writer: Path, tmp_path: Path
) -> None:
    import torch
    from safetensors.torch import load_file

    ids, ours = torch.tensor([[1, 40, 41, 42, 2]]), {}
    for name, workspace in (("classifier", classifier), ("writer", writer)):
        with open_session(workspace, aggregation="weighted") as session:
            model = ensemble(session, heads_of(session))
            model.save_pretrained(tmp_path / name)
            out = model(input_ids=ids)
            ours[name] = {"logits": out.logits, "shard_logits": out.shard_logits}
            assert session.options.base_model not in (tmp_path / name / "config.json").read_text()
    ours["writer"]["made"] = model.generate(ids, num_beams=2, max_new_tokens=5)
    command = [sys.executable, "-I", "-c", STRANGER, str(tmp_path)]
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"}
    told = subprocess.run(command, cwd="/", env=environment, capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr
    for name, expected in ours.items():
        theirs = load_file(tmp_path / f"{name}.theirs")
        assert theirs.keys() == expected.keys()
        assert all(torch.equal(theirs[each], tensor) for each, tensor in expected.items())


def test_saving_twice_gives_the_same_bytes(classifier: Path, tmp_path: Path) -> None:
    from sisa import aggregate

    for name in ("one", "other"):
        aggregate.release_all()
        with open_session(classifier) as session:
            ensemble(session, heads_of(session)).save_pretrained(tmp_path / name)
    files = sorted(file.name for file in (tmp_path / "one").iterdir())
    assert files == ["config.json", "ensemble.py", "model.safetensors"]
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "other" / name).read_bytes()
