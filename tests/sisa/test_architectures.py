"""Bases of many kinds: each trains exactly, under lanes and over frozen layers too, or is refused beforehand."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from orchestration.executor import Lesson
from shards.errors import ConfigError, SisaError
from shards.workspace import WEIGHTS_FILE
from sisa.adapter import Adapter, check_recipe
from sisa.base_model import load_tokenizer
from sisa.encoding import encode, pad_batch
from sisa.learner import LoraTrainer
from sisa.loss import lane_losses
from tests.models import recipe_for, record, save_tokenizer

Sizes = dict[str, int]
HEADS = {"num_attention_heads": 4, "intermediate_size": 64, "num_hidden_layers": 3, "hidden_size": 32}
# Name → (task, transformers' names of configuration and model, configuration).
BASES: dict[str, tuple[str, str, str, dict[str, Any]]] = {
    "gpt2": ("causal-lm", "GPT2Config", "GPT2LMHeadModel", {"n_embd": 32, "n_head": 4, "n_layer": 3}),
    "opt": ("causal-lm", "OPTConfig", "OPTForCausalLM", {**HEADS, "ffn_dim": 64, "word_embed_proj_dim": 32}),
    "gemma3": (
        "causal-lm", "Gemma3TextConfig", "Gemma3ForCausalLM",
        {**HEADS, "num_key_value_heads": 2, "head_dim": 8, "final_logit_softcapping": 3.0, "sliding_window": 8},
    ),
    "qwen3": ("causal-lm", "Qwen3Config", "Qwen3ForCausalLM", {**HEADS, "num_key_value_heads": 2, "head_dim": 8}),
    "mixtral": (
        "causal-lm", "MixtralConfig", "MixtralForCausalLM",
        {**HEADS, "num_key_value_heads": 2, "num_local_experts": 2, "num_experts_per_tok": 1},
    ),
    "distilbert": (
        "classification", "DistilBertConfig", "DistilBertModel",
        {"dim": 32, "hidden_dim": 64, "n_heads": 4, "n_layers": 3},
    ),
    "roberta": ("classification", "RobertaConfig", "RobertaModel", HEADS),
    "albert": ("classification", "AlbertConfig", "AlbertModel", {**HEADS, "embedding_size": 16}),
    "deberta": (
        "classification", "DebertaV2Config", "DebertaV2Model",
        {**HEADS, "relative_attention": True, "position_buckets": 8, "pos_att_type": ["p2c", "c2p"]},
    ),
}  # fmt: skip
# What a base is refused for, and what the refusal names.
REFUSED = {
    ("mixtral", "lanes"): "experts",
    ("albert", "frozen"): "one list of 3 layers",
    ("deberta", "lanes"): "which all lanes share",
}
# Keys that a base needs in any case.
OWN: dict[str, dict[str, Any]] = {
    "deberta": {"attention": "eager"},
    "mixtral": {"target_modules": ("q_proj", "v_proj")},
}
WAYS: dict[str, dict[str, Any]] = {"plain": {}, "frozen": {"layers": "last-1"}, "lanes": {"lanes": 2}}


@pytest.fixture(scope="module")
def base_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Saves a base of random weights, once."""
    import torch
    import transformers

    root = tmp_path_factory.mktemp("bases")

    def save(name: str) -> Path:
        path = root / name
        if not path.exists():
            task, config, model, values = BASES[name]
            vocabulary = save_tokenizer(path, task)
            with torch.random.fork_rng():
                torch.manual_seed(5)
                made = getattr(transformers, config)(
                    **values, vocab_size=vocabulary, max_position_embeddings=128,
                    pad_token_id=0, bos_token_id=1, eos_token_id=2,
                )  # fmt: skip
                getattr(transformers, model)(made).save_pretrained(path)
        return path

    return save


def asked(trainer: LoraTrainer) -> None:
    """What `sisa ingest` asks before it pins a recipe."""
    check_recipe(trainer.recipe, trainer.base_model)
    trainer.prove()


def lesson(task: str, first: int, count: int = 6) -> Lesson:
    records = tuple(record(number, task) for number in range(first, first + count))
    return Lesson((records, records[::-1]), None, bytes([first]) * 32)


def weights(made: Mapping[str, bytes] | SisaError) -> bytes:
    assert not isinstance(made, SisaError), made
    return made[WEIGHTS_FILE]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", BASES)
def test_a_base_trains_to_the_same_bits_in_any_company_or_is_refused(
    name: str, way: str, base_of: Callable[[str], Path]
) -> None:
    task, base = BASES[name][0], str(base_of(name))
    trainer = LoraTrainer(recipe_for(base, task, **WAYS[way], **OWN.get(name, {})), base)
    if (name, way) in REFUSED:
        with pytest.raises(ConfigError, match=REFUSED[name, way]):
            asked(trainer)
        return
    asked(trainer)
    alone = weights(trainer.train_lanes({0: lesson(task, 0)})[0])
    if way == "lanes":
        weights(trainer.train_lanes({1: lesson(task, 50, 9)})[1])  # leaves its slot full
        assert weights(trainer.train_lanes({0: lesson(task, 0)})[0]) == alone
        assert weights(trainer.train_lanes({0: lesson(task, 0), 1: lesson(task, 20, 9)})[0]) == alone
    else:
        trainer.train(lesson(task, 20, 9))
        assert weights(trainer.train(lesson(task, 0))) == alone


@pytest.mark.parametrize("name", [name for name, (task, *_) in BASES.items() if task == "causal-lm"])
@pytest.mark.parametrize("way", ["plain", "frozen"])
def test_our_loss_is_the_models_own(name: str, way: str, base_of: Callable[[str], Path]) -> None:
    import torch

    base = str(base_of(name))
    recipe = recipe_for(base, "causal-lm", **WAYS[way], **OWN.get(name, {}))
    adapter = Adapter(recipe, base)
    adapter.reset(3)
    tokenizer: Any = load_tokenizer(recipe, base)
    examples = [encode(record(number, "causal-lm"), recipe, tokenizer) for number in range(4)]
    inputs = pad_batch([example.tokens for example in examples], tokenizer.pad_token_id, "cpu")
    width = inputs["input_ids"].shape[1]
    labels = torch.tensor([[*each.targets, *[-100] * (width - len(each.targets))] for each in examples])
    with torch.no_grad():
        theirs = adapter.model(**inputs, labels=labels).loss
        ours = lane_losses(adapter, inputs, {0: examples}, recipe)[0]
    assert float(ours) == pytest.approx(float(theirs), rel=1e-4)


def test_the_head_is_run_on_trained_positions_alone_where_it_can_be(base_of: Callable[[str], Path]) -> None:
    found = {}
    for name in ("gpt2", "opt", "gemma3", "qwen3"):
        base = str(base_of(name))
        head = Adapter(recipe_for(base, "causal-lm"), base).head
        found[name] = head is not None and head.apart
    assert all(found.values()), found


def test_a_parameter_that_the_base_lacks_below_the_cut_is_refused(tmp_path: Path, tiny_bert: Path) -> None:
    import shutil

    from safetensors.torch import load_file, save_file

    base = tmp_path / "base"
    shutil.copytree(tiny_bert, base)
    tensors = load_file(base / "model.safetensors")
    name = next(name for name in tensors if "token_type_embeddings" in name)
    save_file({other: tensor for other, tensor in tensors.items() if other != name}, base / "model.safetensors")
    LoraTrainer(recipe_for(base, "classification"), str(base)).prove()
    with pytest.raises(ConfigError, match="token_type_embeddings, which is trained"):
        LoraTrainer(recipe_for(base, "classification", layers="last-1"), str(base)).prove()


@pytest.mark.parametrize("damage", [b"x", b""])
def test_a_lane_that_cannot_begin_ends_alone(tiny_llama: Path, damage: bytes) -> None:
    base = str(tiny_llama)
    trainer = LoraTrainer(recipe_for(base, "causal-lm", lanes=2), base)
    sound = lesson("causal-lm", 0)
    alone = weights(trainer.train_lanes({0: sound})[0])
    broken = Lesson(sound.passes, damage, sound.seed)
    made = trainer.train_lanes({0: sound, 1: broken})
    assert isinstance(made[1], SisaError)
    assert weights(made[0]) == alone
