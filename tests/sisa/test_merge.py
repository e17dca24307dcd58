"""Merges: exact where they say so, mergekit's own elsewhere, and the same bytes for the same heads ever after."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save

from shards.errors import ConfigError, InputError, IntegrityError, MissingDependencyError
from shards.manifest import ModelManifest
from sisa.adapter import process_adapter, release
from sisa.base_model import load_base, load_tokenizer
from sisa.factors import Factors, cut, read_adapter, scaling, stacked
from sisa.merge import METHODS, PARAMETERS, Merged, merge
from sisa.methods import RANDOM, UNWEIGHTED
from sisa.predict import Predictor
from sisa.served import ServedHead, served_heads
from sisa.session import Session, open_session
from tests.flows.helpers import refused, sisa, unchanged
from tests.models import delete_in, flat, fresh_run, grid, make_workspace, save_tokenizer, train_in, write_rows

QUICK: dict[str, Any] = {"slices": 1, "epochs": 1, "shards": 3, "learning_rate": 5e-2}
# Name → (task, base, recipe).
KINDS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bert": ("classification", "bert", {}),
    "llama": ("causal-lm", "llama", {"shards": 2}),
    "llama-rslora": ("causal-lm", "llama", {"rslora": True, "lora_rank": 3, "lora_alpha": 5.0}),
    "gpt2": ("causal-lm", "gpt2", {"shards": 2, "target_modules": ["c_attn", "c_proj", "c_fc"]}),
}
EXACT = 1e-6
TEXT = "my card was charged twice"


def save_tiny_gpt2(path: Path) -> Path:
    from transformers import GPT2Config, GPT2LMHeadModel

    vocabulary = save_tokenizer(path, "causal-lm")
    config = GPT2Config(
        n_embd=32, n_head=4, n_layer=2, vocab_size=vocabulary, n_positions=128,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, initializer_range=0.2,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(5)
        GPT2LMHeadModel(config).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def bases(tiny_bert: Path, tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {"bert": tiny_bert, "llama": tiny_llama, "gpt2": save_tiny_gpt2(tmp_path_factory.mktemp("gpt2"))}


@dataclass(frozen=True, slots=True)
class Trained:
    """A trained workspace, opened."""

    session: Session
    heads: tuple[ServedHead, ...]

    def merge(self, method: str, **values: Any) -> Merged:
        return merge(self.session, self.heads, method, **values)

    def with_recipe(self, **values: Any) -> Trained:
        return replace(self, session=replace(self.session, recipe=self.session.recipe.model_copy(update=values)))

    @property
    def base(self) -> str:
        return self.session.options.base_model


@contextmanager
def opened(path: Path) -> Iterator[Trained]:
    with open_session(path) as session:
        manifest = session.workspace.book.manifest()
        assert manifest is not None
        yield Trained(session, served_heads(session.workspace, manifest))


def trained(path: Path, task: str, base: Path, **values: Any) -> Path:
    values = QUICK | values
    make_workspace(path, task, base, **values)
    train_in(path, write_rows(path.with_suffix(".jsonl"), flat(grid(task, 3, **values))))
    return path


@pytest.fixture(scope="module")
def paths(bases: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("merge")
    return {name: trained(root / name, task, bases[base], **values) for name, (task, base, values) in KINDS.items()}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest, paths: dict[str, Path]) -> Iterator[Trained]:
    with opened(paths[request.param]) as made:
        yield made


@pytest.fixture
def bert(paths: dict[str, Path]) -> Iterator[Trained]:
    with opened(paths["bert"]) as made:
        yield made


@pytest.fixture
def llama(paths: dict[str, Path]) -> Iterator[Trained]:
    with opened(paths["llama"]) as made:
        yield made


def uneven(made: Trained) -> Trained:
    """The same heads, with 1, 2, 3, … records behind them."""
    return replace(made, heads=tuple(replace(head, records=at + 1) for at, head in enumerate(made.heads)))


# -- oracles: PEFT's own arithmetic -----------------------------------------------------------------


def under_peft(made: Trained, weights: bytes, config: Mapping[str, Any], directory: Path) -> Any:
    """A base in float64 with an adapter that PEFT loaded."""
    from peft import PeftModel

    directory.mkdir(exist_ok=True)
    (directory / "adapter_model.safetensors").write_bytes(weights)
    (directory / "adapter_config.json").write_text(json.dumps(config))
    base, _ = load_base(made.session.recipe, made.base)
    return PeftModel.from_pretrained(base, str(directory)).double().eval()


def deltas(model: Any) -> dict[str, torch.Tensor]:
    """What PEFT adds to each layer, and the heads that it holds, by the base's names."""
    found: dict[str, torch.Tensor] = {}
    for name, module in model.get_base_model().named_modules():
        if hasattr(module, "get_delta_weight"):
            found[f"{name}.weight"] = module.get_delta_weight("default").detach()
        elif hasattr(module, "modules_to_save"):
            copy = module.modules_to_save["default"].named_parameters()
            found |= {f"{name}.{inner}": tensor.detach() for inner, tensor in copy}
    return found


def mean_of_shards(made: Trained, weights: list[float], directory: Path) -> dict[str, torch.Tensor]:
    """The weighted sum of what PEFT adds for each shard."""
    each = [deltas(under_peft(made, head.weights, head.config, directory)) for head in made.heads]
    return {name: sum(weight * one[name] for weight, one in zip(weights, each, strict=True)) for name in each[0]}  # type: ignore[misc]


def distance(found: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor]) -> float:
    """The largest relative Frobenius distance of a tensor."""
    assert found.keys() == wanted.keys()
    return max(
        float((found[name].double() - wanted[name].double()).norm() / wanted[name].double().norm()) for name in wanted
    )


# -- adapters ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("weighting", ["equal", "records"])
def test_cat_is_the_weighted_sum_of_the_shards_updates(kind: Trained, weighting: str, tmp_path: Path) -> None:
    made = uneven(kind)
    count = len(made.heads)
    weights = (
        [1 / count] * count if weighting == "equal" else [2 * (at + 1) / count / (count + 1) for at in range(count)]
    )
    merged = made.merge("cat", weighting=weighting)
    assert merged.adapter is not None
    found = deltas(under_peft(made, *merged.adapter, tmp_path))
    assert distance(found, mean_of_shards(made, weights, tmp_path)) < EXACT
    assert merged.error is not None
    assert merged.error < EXACT
    assert merged.settings["weights"] == pytest.approx(weights)
    assert merged.settings["rank"] == merged.adapter[1]["r"] == count * made.session.recipe.lora_rank


def test_of_equal_weights_cat_changes_no_bit_of_the_shards_factors(kind: Trained) -> None:
    merged = kind.merge("cat")
    assert merged.adapter is not None
    tensors, config = load(merged.adapter[0]), merged.adapter[1]
    shards = [load(head.weights) for head in kind.heads]
    factors = [name for name in tensors if "lora_" in name]
    assert factors
    for name in factors:
        assert torch.equal(tensors[name], torch.cat([shard[name] for shard in shards], dim=int("lora_B" in name)))
    recipe = kind.session.recipe
    alpha = recipe.lora_alpha * (recipe.lora_rank**0.5 if recipe.rslora else 1)
    assert config["lora_alpha"] == pytest.approx(alpha, rel=1e-15)
    assert config["use_rslora"] is False


def test_the_recipe_key_trains_under_rslora_as_peft_computes_it(paths: dict[str, Path], tmp_path: Path) -> None:
    with opened(paths["llama-rslora"]) as made:
        head, recipe = made.heads[0], made.session.recipe
        assert head.config["use_rslora"] is True
        assert scaling(head.config) == pytest.approx(5.0 / 3**0.5)
        tokens = load_tokenizer(recipe, made.base)(TEXT, return_tensors="pt")["input_ids"]
        adapter = process_adapter(recipe, made.base)
        adapter.model.eval()
        adapter.load(head.weights)
        with torch.no_grad():
            ours = adapter.model(input_ids=tokens).logits
            theirs = under_peft(made, head.weights, head.config, tmp_path)(input_ids=tokens).logits
            plain = under_peft(made, head.weights, head.config | {"use_rslora": False}, tmp_path)(
                input_ids=tokens
            ).logits
    assert torch.allclose(ours.double(), theirs, rtol=0, atol=1e-5)
    assert not torch.allclose(ours.double(), plain, rtol=0, atol=1e-3)


def test_svd_is_the_best_update_of_its_rank_and_tells_its_error(kind: Trained, tmp_path: Path) -> None:
    count, own = len(kind.heads), kind.session.recipe.lora_rank
    exact = mean_of_shards(kind, [1 / count] * count, tmp_path)
    layers = {f"{name}.weight": exact[f"{name}.weight"] for name in read_names(kind)}
    parts = {name: torch.linalg.svd(tensor, full_matrices=False) for name, tensor in layers.items()}
    for rank in (None, 1, count * own, 50):
        merged = kind.merge("svd", rank=rank)
        assert merged.adapter is not None
        kept = min(own if rank is None else rank, count * own)
        assert merged.adapter[1]["r"] == merged.settings["rank"] == kept
        best = {name: u[:, :kept] * values[:kept] @ vt[:kept] for name, (u, values, vt) in parts.items()}
        found = deltas(under_peft(kind, *merged.adapter, tmp_path))
        assert distance({name: found[name] for name in layers}, best) < EXACT
        lost = sum(float((best[name] - layers[name]).norm() ** 2) for name in layers)
        error = (lost / sum(float(tensor.norm() ** 2) for tensor in layers.values())) ** 0.5
        assert merged.error == pytest.approx(error, rel=1e-4, abs=EXACT)
        assert (error > 0.01) == (kept < count * own)


def read_names(made: Trained) -> set[str]:
    return set(read_adapter(made.heads[0].weights)[0])


def test_a_cut_has_one_sign_and_zeros_beyond_the_layers_dimensions() -> None:
    torch.manual_seed(0)
    whole = Factors(torch.randn(6, 4).double(), torch.randn(9, 6).double())
    made, turned = cut(whole, 5), cut(Factors(-whole.down, -whole.up), 5)
    assert torch.allclose(made.product(), whole.product(), atol=1e-12)  # a matrix of 9 x 4 has no more than rank 4
    assert (made.down.shape, made.up.shape) == ((5, 4), (9, 5))
    assert made.down[4].count_nonzero() == made.up[:, 4].count_nonzero() == 0
    tops = made.up.gather(0, made.up.abs().argmax(0, keepdim=True))[0, :4]
    assert bool((tops > 0).all())
    assert torch.allclose(made.up, turned.up, atol=1e-12)
    assert made.norm() == pytest.approx(float(whole.product().norm()))
    assert stacked([whole, made.times(-1)]).norm() == pytest.approx(0, abs=1e-12)


def test_heads_are_averaged_by_every_method(bert: Trained) -> None:
    made = uneven(bert)
    shards = [read_adapter(head.weights)[1] for head in made.heads]
    assert {"classifier.weight", "classifier.bias"} <= shards[0].keys()
    for method in METHODS:
        weighting = "equal" if method in UNWEIGHTED else "records"
        weights = [1 / 3] * 3 if method in UNWEIGHTED else [1 / 6, 2 / 6, 3 / 6]
        tensors = made.merge(method, weighting=weighting).tensors
        for name in shards[0]:
            mean = sum(weight * shard[name].double() for weight, shard in zip(weights, shards, strict=True))
            assert torch.allclose(tensors[name].double(), torch.as_tensor(mean), rtol=EXACT, atol=1e-9), (method, name)


# -- full weights -----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["cat", "svd"])
def test_full_weights_answer_as_the_merged_adapter_does(kind: Trained, method: str, tmp_path: Path) -> None:
    recipe = kind.session.recipe
    merged = kind.merge(method)
    assert merged.adapter is not None
    model, _ = load_base(recipe, kind.base)
    own = dict(model.named_parameters())
    assert merged.tensors.keys() <= own.keys()
    assert all(tensor.dtype == own[name].dtype for name, tensor in merged.tensors.items())
    model.load_state_dict(merged.tensors, strict=False)
    tokens = load_tokenizer(recipe, kind.base)(TEXT, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        theirs = under_peft(kind, *merged.adapter, tmp_path)(input_ids=tokens).logits
        assert torch.allclose(model.eval().double()(input_ids=tokens).logits, theirs, rtol=0, atol=1e-4)


def full_models(made: Trained, directory: Path) -> list[dict[str, torch.Tensor]]:
    """The base's adapted layers, and those of each shard as PEFT folds them, in float64 and in name order."""
    models = [dict(load_base(made.session.recipe, made.base)[0].double().named_parameters())]
    for head in made.heads:
        folded = under_peft(made, head.weights, head.config, directory).merge_and_unload()
        models.append(dict(folded.named_parameters()))
    names = [f"{name}.weight" for name in sorted(read_names(made))]
    return [{name: model[name].detach() for name in names} for model in models]


@pytest.mark.parametrize("name", ["gpt2", "llama-rslora"])
def test_a_method_of_mergekits_gives_what_mergekit_makes_of_folded_models(
    name: str, paths: dict[str, Path], tmp_path: Path
) -> None:
    from mergekit.merge_methods.api import merge_state_dicts

    with opened(paths[name]) as made:
        merges = {method: made.merge(method, seed=11) for method in PARAMETERS}
        base, *shards = full_models(made, tmp_path)
    for method, ours in merges.items():
        based = {} if method in {"linear", "karcher"} else {"base": base}
        models = based | {f"shard {at}": shard for at, shard in enumerate(shards)}
        weights = {} if method in UNWEIGHTED else {"weight": [1 / len(shards)] * len(shards)}
        with torch.random.fork_rng():
            torch.manual_seed(11)
            theirs = merge_state_dicts(
                models, method, base="base" if based else None, parameters=PARAMETERS[method] | weights
            )
        assert ours.tensors.keys() == theirs.keys()
        for key, tensor in theirs.items():
            assert torch.allclose(ours.tensors[key].double(), tensor, rtol=1e-5, atol=1e-6), (method, key)
        assert ours.adapter is None
        assert ours.error is None


def by_settings(method: str, *updates: list[float]) -> list[float]:
    """What our settings make of these updates of a base of zeros, by mergekit."""
    import torch
    from mergekit.merge_methods.api import merge_state_dicts

    models = {f"shard {at}": {"w": torch.tensor(update)} for at, update in enumerate(updates)}
    base = {"base": {"w": torch.zeros(len(updates[0]))}}
    settings = PARAMETERS[method] | {"weight": [1 / len(updates)] * len(updates)}
    found: list[float] = merge_state_dicts(base | models, method, base="base", parameters=settings)["w"].tolist()
    return found


def test_our_settings_of_mergekits_methods_do_what_the_documents_say() -> None:
    # The larger half of each; then of those that agree with the sign of the sum, the mean.
    assert by_settings("ties", [4, -3, 1, 0.5], [2, 5, -1, 0.1]) == pytest.approx([3, 5, 0, 0])
    kept = by_settings("breadcrumbs", [float(number) for number in range(1, 1001)])
    assert [number for number, value in enumerate(kept, 1) if value == 0] == [*range(1, 91), *range(991, 1001)]
    assert kept[90:990] == [float(number) for number in range(91, 991)]
    for method in ("dare_linear", "dare_ties"):
        drawn = by_settings(method, [1.0] * 4000)
        assert sorted(set(drawn)) == [0.0, pytest.approx(2.0, abs=0.1)]  # scaled by what was really kept
        assert 0.45 < drawn.count(0.0) / len(drawn) < 0.55


def test_linear_and_task_arithmetic_are_the_exact_mean(kind: Trained) -> None:
    exact = kind.merge("cat").tensors
    for method in ("linear", "task_arithmetic"):
        found = kind.merge(method).tensors
        assert found.keys() == exact.keys()
        assert all(torch.allclose(found[name], tensor, rtol=1e-6, atol=1e-7) for name, tensor in exact.items())


def test_every_other_method_makes_another_model(bert: Trained) -> None:
    made = {method: bert.merge(method) for method in METHODS}
    assert len({merged.digest for merged in made.values()}) == len(METHODS)
    same = {"cat", "linear", "task_arithmetic"}
    exact = made["cat"].tensors
    for method in made.keys() - same:
        tensors = made[method].tensors
        assert any(not torch.allclose(tensors[name], exact[name], atol=1e-6) for name in exact), method


def test_full_weights_have_the_bases_type(llama: Trained) -> None:
    made = llama.with_recipe(dtype="bfloat16")
    for method in ("cat", "ties"):
        assert {tensor.dtype for tensor in made.merge(method).tensors.values()} == {torch.bfloat16}
    release()


def test_a_base_of_4_bits_gives_an_adapter_and_no_full_model(llama: Trained) -> None:
    made = llama.with_recipe(dtype="nf4")
    merged = made.merge("cat")
    assert merged.tensors == {}
    assert merged.adapter is not None
    assert merged.adapter[0] == llama.merge("cat").adapter[0]  # type: ignore[index]
    assert any("nf4" in warning for warning in merged.warnings)
    with pytest.raises(InputError, match="nf4") as error:
        made.merge("linear")
    assert "cat or svd" in error.value.remedy


def test_an_adapted_layer_that_shares_its_weight_has_no_full_merge(bases: dict[str, Path], tmp_path: Path) -> None:
    path = trained(tmp_path / "tied", "causal-lm", bases["gpt2"], shards=2, target_modules=["lm_head"])
    with opened(path) as made:
        merged = made.merge("svd")
        assert merged.adapter is not None
        assert merged.tensors == {}
        assert any("transformer.wte.weight" in warning for warning in merged.warnings)
        with pytest.raises(InputError, match=r"lm_head\.weight"):
            made.merge("ties")


# -- the same bytes every time -------------------------------------------------------------------------


def digests(made: Trained) -> dict[str, str]:
    return {method: made.merge(method).digest for method in METHODS}


def turned(weights: bytes) -> bytes:
    """The same tensors, in another order in the file."""
    header, body = json.loads(weights[8 : (size := 8 + int.from_bytes(weights[:8], "little"))]), weights[size:]
    told = json.dumps(dict(reversed(header.items()))).encode()
    told += b" " * (-len(told) % 8)
    made = len(told).to_bytes(8, "little") + told + body
    assert made != weights
    assert load(made).keys() == load(weights).keys()
    return made


def test_a_merge_depends_on_neither_the_order_of_heads_nor_that_of_their_tensors(bert: Trained) -> None:
    torch.manual_seed(99)
    before = torch.get_rng_state()
    once = digests(bert)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(3)
    heads = tuple(replace(head, weights=turned(head.weights)) for head in reversed(bert.heads))
    assert digests(replace(bert, heads=heads)) == once


def test_a_fresh_process_with_other_hashes_makes_the_same_bytes(bert: Trained) -> None:
    command = [sys.executable, "-m", "sisa", "merge", "-w", str(bert.session.workspace.path)]
    run = subprocess.run(
        [*command, "--method", "all", "--json"],
        capture_output=True, text=True, check=True, env=os.environ | {"PYTHONHASHSEED": "12345"},
    )  # fmt: skip
    told = {made["method"]: made["digest"] for made in json.loads(run.stdout)["merges"]}
    assert told == digests(bert)


def test_a_random_method_is_a_function_of_its_seed(bert: Trained) -> None:
    for method in METHODS:
        one, other = bert.merge(method, seed=1), bert.merge(method, seed=2)
        assert (one.digest != other.digest) == (method in RANDOM), method
        assert one.seed == (1 if method in RANDOM else None)
        assert bert.merge(method, seed=1).digest == one.digest


def test_after_a_delete_every_merge_is_that_of_a_fresh_run(paths: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "workspace"
    shutil.copytree(paths["bert"], path)
    with opened(path) as made:
        before = digests(made)
    values = QUICK | KINDS["bert"][2]
    victim = grid("classification", 3, **values)[1, 0][0]["id"]
    delete_in(path, [victim])
    with opened(path) as made, opened(fresh_run(path, tmp_path / "fresh")) as fresh:
        after = digests(made)
        assert after == digests(fresh)
        for weighting in ("equal", "records"):
            pair = [one.merge("cat", weighting=weighting) for one in (made, fresh)]
            assert len({one.digest for one in pair}) == 1
            assert len({one.adapter[0] for one in pair if one.adapter}) == 1
    assert all(after[method] != before[method] for method in METHODS)


def test_weights_by_records_are_those_of_the_survivors(bert: Trained) -> None:
    counts = [head.records for head in bert.heads]
    assert sum(counts) == 9
    weights = bert.merge("cat", weighting="records").settings["weights"]
    assert weights == pytest.approx([count / 9 for count in counts])


# -- what cannot be done, and what is said -------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "values", "said"),
    [
        ("stock", {}, "a method: cat, svd"),
        ("cat", {"weighting": "loss"}, "weighting equal or records"),
        ("cat", {"rank": 4}, "for svd alone"),
        ("svd", {"rank": 0}, "at least 1"),
        ("sce", {"weighting": "records"}, "takes none"),
        ("karcher", {"weighting": "records"}, "takes none"),
        ("ties", {"parameters": {"dens": 0.1}}, "parameters of ties: normalize, rescale, lambda, density"),
        ("cat", {"parameters": {"density": 0.1}}, "parameters of cat: none"),
        ("della", {"parameters": {"density": 0.9, "epsilon": 0.5}}, "values that della takes"),
        ("sce", {"parameters": {"select_topk": "much"}}, "values that sce takes"),
    ],
)
def test_what_a_method_cannot_do_is_refused(bert: Trained, method: str, values: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        bert.merge(method, **values)


def test_a_method_says_how_many_shards_it_needs(bert: Trained) -> None:
    one = replace(bert, heads=bert.heads[:1])
    with pytest.raises(InputError, match=r"at least 2 served shards for model_stock\n +found 1"):
        one.merge("model_stock")
    for method in METHODS:
        if method != "model_stock":
            one.merge(method)
        with pytest.raises(InputError, match="none is served"):
            replace(bert, heads=()).merge(method)


def test_parameters_take_the_place_of_ours(bert: Trained) -> None:
    whole = bert.merge("ties", parameters={"density": 1.0})
    assert whole.settings["parameters"] == PARAMETERS["ties"] | {"density": 1.0}
    assert whole.digest != bert.merge("ties").digest
    assert bert.merge("ties", parameters={"density": 0.5}).digest == bert.merge("ties").digest


def test_heads_of_different_recipes_are_not_merged(bert: Trained) -> None:
    first, second, third = bert.heads
    fewer = {name: tensor for name, tensor in load(second.weights).items() if "layer.0" not in name}
    for other in (replace(second, weights=save(fewer)), replace(second, config=second.config | {"r": 7})):
        with pytest.raises(IntegrityError, match="one recipe"):
            replace(bert, heads=(first, other, third)).merge("cat")
    with pytest.raises(IntegrityError, match="no safetensors"):
        replace(bert, heads=(first, replace(second, weights=b""), third)).merge("cat")


def test_what_is_no_number_is_not_handed_on(bert: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sisa.merge._mergekit", lambda _: lambda inputs, *_, **__: inputs[0] / 0)
    with pytest.raises(InputError, match="finite weights"):
        bert.merge("ties")


def test_an_adapter_of_something_else_than_a_linear_layer_is_not_merged() -> None:
    with pytest.raises(ConfigError, match="lora_embedding_A"):
        read_adapter(save({"base_model.model.embed.lora_embedding_A": torch.zeros(2, 2)}))


def test_without_mergekit_our_own_methods_work_and_the_others_say_what_to_install(
    bert: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mergekit.merge_methods.api", None)
    bert.merge("cat")
    bert.merge("svd")
    with pytest.raises(MissingDependencyError, match=r"pip install 'sisa\[train\]'"):
        bert.merge("ties")


def test_many_shards_of_a_memorising_task_are_warned_of(llama: Trained, bert: Trained) -> None:
    def many(made: Trained, count: int) -> Trained:
        first = made.heads[0]
        return replace(
            made, heads=tuple(replace(first, head=replace(first.head, shard=shard)) for shard in range(count))
        )

    (warning,) = many(llama, 5).merge("cat").warnings
    assert "5 shards dilutes" in warning
    assert "ensemble" in warning
    assert many(llama, 5).merge("task_arithmetic").warnings == (warning,)
    assert many(llama, 4).merge("cat").warnings == ()
    assert many(bert, 5).merge("cat").warnings == ()


# -- the command ---------------------------------------------------------------------------------------


def test_the_command_tells_what_a_merge_is_and_writes_nothing(bert: Trained) -> None:
    path = bert.session.workspace.path
    with unchanged(path):
        document = sisa("merge", "-w", path, "--method", "svd", "--rank", "1", "--json").document
        people = sisa("merge", "-w", path, "--method", "dare_ties", "--seed", "7", "--weighting", "records")
    wanted = bert.merge("svd", rank=1)
    assert document["shards"] == [0, 1, 2]
    (made,) = document["merges"]
    assert (made["method"], made["digest"], made["seed"]) == ("svd", wanted.digest, None)
    assert made["error"] == pytest.approx(wanted.error)
    assert people.code == 0
    assert "3 shards (0, 1, 2) of manifest" in people.out
    digest = bert.merge("dare_ties", seed=7, weighting="records").digest
    assert any(line.split()[:3] == ["dare_ties", digest[:16], "7"] for line in people.out.splitlines())


def test_all_methods_are_one_table_and_those_that_cannot_say_why(bert: Trained) -> None:
    path = bert.session.workspace.path
    said = sisa("merge", "-w", path, "--method", "all", "--weighting", "records", "--rank", "1")
    assert said.code == 0
    lines = [line.split()[0] for line in said.out.splitlines() if line]
    assert [line for line in lines if line in METHODS] == list(METHODS)
    for method in UNWEIGHTED:
        assert f"{method}: needs a method that takes weights; found {method}, which takes none" in said.out
    refused(sisa("merge", "-w", path, "--method", "sce", "--weighting", "records"), "takes none")
    refused(sisa("merge", "-w", path, "--method", "ties", "--rank", "3"), "for svd alone")


def test_heads_that_are_swapped_meanwhile_are_noticed(bert: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    before = Predictor.held

    def older(predictor: Predictor) -> tuple[ModelManifest, tuple[ServedHead, ...]]:
        manifest, heads = before(predictor)
        return replace(manifest, generation=manifest.generation - 1), heads

    monkeypatch.setattr(Predictor, "held", older)
    refused(sisa("merge", "-w", bert.session.workspace.path), "a swap meanwhile", code=3)


def test_nothing_served_is_said(bases: dict[str, Path], tmp_path: Path) -> None:
    path = make_workspace(tmp_path / "workspace", "classification", bases["bert"])
    refused(sisa("merge", "-w", path), "none is served")
