"""Answers of the served set: what each head says is what PEFT makes of it alone, and together the plain mean."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from shards.errors import ConfigError, InputError, IntegrityError, RecordError
from shards.workspace import WEIGHTS_FILE
from sisa import adapter, aggregate
from sisa.aggregate import answer_scores, classify, ensemble, generate, shard_logits
from sisa.base_model import load_tokenizer
from sisa.ensemble import POOLINGS, pool
from sisa.export_model import Wish, export_model
from sisa.one_by_one import OneByOne
from sisa.predict import Predictor
from sisa.session import Session, open_session
from tests import reference
from tests.models import (
    LABELS,
    SMALL,
    delete_in,
    differences,
    flat,
    fresh_run,
    grid,
    make_workspace,
    record,
    save_tokenizer,
)
from tests.reference import by_peft, heads_of
from tests.sisa.answering import INPUTS, TEXTS, greedy_by_hand, trained


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> Path:
    return trained(tmp_path_factory.mktemp("classifier"), "classification", tiny_bert, shards=3)


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Path:
    return trained(tmp_path_factory.mktemp("writer"), "causal-lm", tiny_llama, max_new_tokens=8)


def alone(session: Session) -> Any:
    """(heads, texts, labels) by PEFT, each head and each text by itself."""
    return reference.shard_logits(session, heads_of(session), INPUTS)


def test_every_shards_scores_are_those_of_its_adapter_loaded_by_peft(classifier: Path) -> None:
    import torch

    with open_session(classifier) as session:
        ours, theirs = shard_logits(session, heads_of(session), INPUTS), alone(session)
    assert ours.shape == (3, len(TEXTS), len(LABELS))
    assert ours.dtype == torch.float64
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-5)
    assert torch.equal(ours.argmax(-1), theirs.argmax(-1))


def test_over_a_base_of_less_precision_too_a_shards_scores_are_what_peft_rounds_to(
    tmp_path: Path, tiny_llama: Path
) -> None:
    import torch

    workspace = trained(tmp_path, "causal-lm", tiny_llama, shards=3, slices=1, dtype="bfloat16")
    tokens = torch.tensor([[1, 40, 41, 42, 43, 2]])
    with open_session(workspace) as session, torch.no_grad():
        ours = ensemble(session, heads_of(session))(input_ids=tokens).shard_logits[:, 0]
        theirs = torch.stack([model(input_ids=tokens).logits[0] for model in by_peft(session)])
    assert theirs.dtype == torch.bfloat16
    assert torch.allclose(ours.float(), theirs.float(), rtol=0, atol=1e-5)
    assert torch.equal(ours.argmax(-1), theirs.argmax(-1))


def test_a_prompt_that_leaves_no_room_for_an_answer_is_refused(tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    base = tmp_path / "base"
    words = save_tokenizer(base, "causal-lm")
    GPT2LMHeadModel(GPT2Config(vocab_size=words, n_positions=64, n_embd=32, n_head=4, n_layer=2)).save_pretrained(base)
    workspace = trained(tmp_path, "causal-lm", base, slices=1, max_new_tokens=8, max_length=32)
    fits, long = {"prompt": "x" * 55}, {"prompt": "x" * 56}  # and a token that begins every text
    with open_session(workspace) as session:
        assert len(generate(session, heads_of(session), [fits])) == 1
        said = r"at most 56 tokens.*leaving 8 of the base's 64(.|\n)*57 tokens in input 2"
        with pytest.raises(RecordError, match=said):
            generate(session, heads_of(session), [fits, long])
        with pytest.raises(RecordError, match="65 tokens in input 1"):
            export_model(session, Wish("model", probe=[{"prompt": "x" * 64}]), tmp_path / "out")
        assert not (tmp_path / "out").exists()


def test_threads_that_ask_other_heads_wait_for_each_other(classifier: Path) -> None:
    import torch

    with open_session(classifier) as session:
        heads = heads_of(session)
        expected = shard_logits(session, heads[1:], INPUTS)
        found: list[Any] = []
        other = Thread(target=lambda: found.append(shard_logits(session, heads[1:], INPUTS)))
        with aggregate._serving(session, heads[:1]) as served:
            other.start()
            other.join(0.5)
            assert other.is_alive()
            assert not found
            mine = served.logits(INPUTS)
        other.join()
        assert torch.equal(mine, shard_logits(session, heads[:1], INPUTS))
    assert torch.equal(found[0], expected)


@pytest.mark.parametrize("how", POOLINGS)
def test_probabilities_are_pooled_as_the_options_say(classifier: Path, how: str) -> None:
    import torch

    with open_session(classifier, aggregation=how) as session:
        heads = heads_of(session)
        heads = tuple(replace(head, records=head.records + number) for number, head in enumerate(heads))
        ours = classify(session, heads, INPUTS)
        expected = pool(alone(session), how, [head.records for head in heads])
    assert [list(each) for each in ours] == [list(LABELS)] * len(TEXTS)
    assert torch.allclose(torch.tensor([list(each.values()) for each in ours]).double(), expected, rtol=0, atol=1e-5)


def test_probabilities_add_up_and_the_likeliest_label_is_answered(classifier: Path) -> None:
    with open_session(classifier) as session:
        answers = Predictor(session).answer([{"id": str(at), "text": text} for at, text in enumerate(TEXTS)]).rows
    assert [answer["id"] for answer in answers] == [str(at) for at in range(len(TEXTS))]
    for answer in answers:
        assert sum(answer["probabilities"].values()) == pytest.approx(1)
        assert answer["probabilities"][answer["label"]] == max(answer["probabilities"].values())


def test_predictions_are_the_same_bits_every_time_with_dropout_in_the_recipe(classifier: Path) -> None:
    with open_session(classifier) as session:
        assert session.recipe.lora_dropout > 0
        heads = heads_of(session)
        first = classify(session, heads, INPUTS)
        classify(session, heads[:1], INPUTS[:2])  # others are asked in between
        assert classify(session, heads, INPUTS) == first
        aggregate.release_all()
        assert classify(session, heads, INPUTS) == first


def test_nothing_served_is_said_before_any_training(tmp_path: Path, tiny_bert: Path) -> None:
    workspace = make_workspace(tmp_path / "workspace", "classification", tiny_bert)
    with open_session(workspace) as session, pytest.raises(InputError, match="none is served"):
        Predictor(session).answer([{"text": "x"}])


def test_tensors_that_are_not_this_recipes_are_refused(classifier: Path) -> None:
    from safetensors.torch import load, save

    with open_session(classifier) as session:
        heads = heads_of(session)
        tensors = load(heads[0].weights)
        name = next(iter(tensors))
        odd = [
            b"",
            b"x",
            save({}),
            save(tensors | {name: tensors[name].half()}),
            save(tensors | {"y": tensors[name].clone()}),
        ]
        odd.append(save({each: tensor for each, tensor in tensors.items() if each != name}))
        for weights in odd:
            for first in (True, False):
                some = [replace(heads[0], weights=weights), heads[1]]
                if first:
                    aggregate.release_all()
                with pytest.raises(IntegrityError, match="this recipe's adapter"):
                    shard_logits(session, some, INPUTS)
                with pytest.raises(IntegrityError):
                    shard_logits(session, some[::-1], INPUTS)
        assert shard_logits(session, heads, INPUTS).shape == (3, len(TEXTS), len(LABELS))


# -- generated answers ------------------------------------------------------------------------


def test_one_shard_generates_what_plain_generate_does(writer: Path) -> None:
    import torch

    with open_session(writer) as session:
        ours = generate(session, heads_of(session)[1:], [{"prompt": text} for text in TEXTS])
        tokenizer: Any = load_tokenizer(session.recipe, session.options.base_model)
        model = by_peft(session)[1]
    for text, answer in zip(TEXTS, ours, strict=True):
        inputs = tokenizer(text, return_tensors="pt", return_token_type_ids=False)
        with torch.inference_mode():
            tokens = model.generate(**inputs, do_sample=False, max_new_tokens=8, pad_token_id=0)[0]
        assert answer == tokenizer.decode(tokens[inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def test_several_shards_generate_from_the_mean_of_their_distributions(writer: Path) -> None:
    with open_session(writer) as session:
        ours = generate(session, heads_of(session), [{"prompt": text} for text in TEXTS])
        assert generate(session, heads_of(session), [{"prompt": TEXTS[0]}]) == ours[:1]
        tokenizer: Any = load_tokenizer(session.recipe, session.options.base_model)
        models = by_peft(session)
    assert len(models) == 2
    for text, answer in zip(TEXTS, ours, strict=True):
        tokens = greedy_by_hand(models, list(tokenizer(text)["input_ids"]), tokenizer.eos_token_id, 8)
        assert answer == tokenizer.decode(tokens, skip_special_tokens=True)


def test_drawn_answers_are_the_same_for_the_same_seed_and_the_row_names_it(writer: Path) -> None:
    def drawn(seed: int, **options: Any) -> list[dict[str, Any]]:
        with open_session(writer, temperature=1.5, sampling_seed=seed, **options) as session:
            return list(Predictor(session).answer([{"prompt": text} for text in TEXTS]).rows)

    first = drawn(1)
    assert first == drawn(1)
    assert [row["text"] for row in first] != [row["text"] for row in drawn(2)]
    assert first[0]["sampling"] == {"temperature": 1.5, "seed": 1}
    with open_session(writer) as session:
        assert "sampling" not in Predictor(session).answer([{"prompt": "x"}]).rows[0]


def test_beams_are_asked_for_by_an_option(writer: Path) -> None:
    found = []
    for beams in (1, 4):
        with open_session(writer, num_beams=beams) as session:
            found.append(generate(session, heads_of(session), [{"prompt": text} for text in TEXTS]))
    assert found[0] != found[1]


def test_a_prompt_without_tokens_is_answered(writer: Path) -> None:
    with open_session(writer) as session:
        assert generate(session, heads_of(session), [{"messages": [{"role": "user", "content": ""}]}, {"text": ""}])


def test_the_scores_of_an_answer_are_those_of_each_adapter_loaded_by_peft(writer: Path) -> None:
    import torch

    contents = [record(number, "causal-lm").fields() for number in range(6)]
    for most in (1024, 3):
        with open_session(writer) as opened:
            session = replace(opened, recipe=opened.recipe.model_copy(update={"loss_positions": most}))
            ours = answer_scores(session, heads_of(session), contents)
            theirs = reference.answer_scores(session, heads_of(session), contents)
        for one, other in zip(ours, theirs, strict=True):
            assert one.dtype == torch.float64
            assert torch.allclose(one, other, rtol=0, atol=1e-5)


def test_a_process_that_predicted_first_can_train_and_delete_afterwards(tmp_path: Path, tiny_llama: Path) -> None:
    workspace = trained(tmp_path, "causal-lm", tiny_llama, max_new_tokens=2)
    adapter.release()
    with open_session(workspace) as session:
        generate(session, heads_of(session), [{"prompt": "x"}])
    delete_in(workspace, [flat(grid("causal-lm", 2))[0]["id"]])
    fresh = fresh_run(workspace, tmp_path / "fresh")
    assert differences(workspace, fresh) == []
    answers = []
    for path in (workspace, fresh):
        with open_session(path) as session:
            answers.append(generate(session, heads_of(session), [{"prompt": text} for text in TEXTS]))
    assert answers[0] == answers[1]


def test_layers_below_all_adapters_are_run_once_for_all_shards(tmp_path: Path, tiny_bert: Path) -> None:
    import torch

    workspace = trained(tmp_path, "classification", tiny_bert, shards=3, slices=1, layers="last-1")
    seen: list[int] = []
    with open_session(workspace) as session:
        heads = heads_of(session)
        model = ensemble(session, heads)
        for layer in model.base.bert.encoder.layer:
            layer.attention.output.dense.register_forward_hook(lambda *given: seen.append(len(given[2])))
        ours = shard_logits(session, heads, INPUTS[:4])
        assert seen == [4, 12]
        assert torch.allclose(ours, alone(session)[:, :4], rtol=0, atol=1e-5)


def test_which_layers_are_run_once_is_decided_by_the_base_and_by_no_head(tmp_path: Path, tiny_bert: Path) -> None:
    """A head without numbers is asked first: what a probe makes of it says nothing of others."""
    from safetensors.torch import load, save

    workspace = trained(tmp_path, "classification", tiny_bert, slices=1, layers="last-1")
    with open_session(workspace) as session:
        heads = heads_of(session)
        spoilt = save({name: tensor * float("nan") for name, tensor in load(heads[0].weights).items()})
        aggregate.release_all()
        shard_logits(session, [replace(heads[0], weights=spoilt)], INPUTS[:1])
        assert tuple(ensemble(session, heads).config.below) == ("bert.encoder.layer", 1)


def test_letting_go_drops_every_base_that_is_kept(classifier: Path) -> None:
    with open_session(classifier) as session:
        classify(session, heads_of(session), INPUTS[:1])
        adapter.process_adapter(session.recipe, session.options.base_model)
    assert aggregate._kept
    assert adapter._loaded
    aggregate.release_all()
    assert not aggregate._kept
    assert not adapter._loaded


def test_weights_files_are_named_as_peft_names_them(classifier: Path) -> None:
    with open_session(classifier) as session:
        for _, made in session.workspace.book.served():
            path = session.workspace.store.path(made.files)
            assert sorted(file.name for file in path.iterdir()) == ["adapter_config.json", WEIGHTS_FILE]


# -- bases of other kinds ---------------------------------------------------------------------

HEADS = {"num_attention_heads": 4, "intermediate_size": 64, "num_hidden_layers": 2, "hidden_size": 32}
# Name → (task, transformers' names of configuration and model, configuration, keys of the recipe, as lanes).
BASES: dict[str, tuple[str, str, str, dict[str, Any], dict[str, Any], bool]] = {
    "gpt2": ("causal-lm", "GPT2Config", "GPT2LMHeadModel", {"n_embd": 32, "n_head": 4, "n_layer": 2}, {}, True),
    "head adapted": (
        "causal-lm", "GPT2Config", "GPT2LMHeadModel", {"n_embd": 32, "n_head": 4, "n_layer": 2},
        {"target_modules": ["lm_head", "c_attn"]}, True,
    ),
    "distilbert": (
        "classification", "DistilBertConfig", "DistilBertModel",
        {"dim": 32, "hidden_dim": 64, "n_heads": 4, "n_layers": 2}, {}, True,
    ),
    "roberta": ("classification", "RobertaConfig", "RobertaModel", HEADS, {"layers": "last-1"}, True),
    "llama classifier": (
        "classification", "LlamaConfig", "LlamaModel", {**HEADS, "num_key_value_heads": 2}, {}, True,
    ),
    "qwen3": (
        "causal-lm", "Qwen3Config", "Qwen3ForCausalLM", {**HEADS, "num_key_value_heads": 2, "head_dim": 8},
        {"layers": "last-1"}, True,
    ),
    "llama classifier, last layer": (
        "classification", "LlamaConfig", "LlamaModel", {**HEADS, "num_key_value_heads": 2}, {"layers": "last-1"}, True,
    ),
    "deberta": (
        "classification", "DebertaV2Config", "DebertaV2Model",
        {**HEADS, "relative_attention": True, "position_buckets": 8, "pos_att_type": ["p2c", "c2p"]},
        {"attention": "eager"}, False,
    ),
    "mixtral": (
        "causal-lm", "MixtralConfig", "MixtralForCausalLM",
        {**HEADS, "num_key_value_heads": 2, "num_local_experts": 2, "num_experts_per_tok": 1},
        {"target_modules": ["q_proj", "v_proj"]}, False,
    ),
    "embeddings adapted": (
        "causal-lm", "LlamaConfig", "LlamaForCausalLM", {**HEADS, "num_key_value_heads": 2},
        {"target_modules": ["embed_tokens", "q_proj"]}, False,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BASES)
def test_heads_over_a_base_of_any_kind_answer_as_they_do_alone(name: str, tmp_path: Path) -> None:
    import torch
    import transformers

    task, config, model, values, keys, lanes = BASES[name]
    base = tmp_path / "base"
    vocabulary = save_tokenizer(base, task)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        made = getattr(transformers, config)(
            **values, vocab_size=vocabulary, max_position_embeddings=128,
            pad_token_id=0, bos_token_id=1, eos_token_id=2, initializer_range=0.2,
        )  # fmt: skip
        getattr(transformers, model)(made).save_pretrained(base)
    workspace = trained(tmp_path, task, base, slices=1, max_new_tokens=5, **keys)
    with open_session(workspace) as session:
        heads = heads_of(session)
        if lanes:
            assert len(heads) == SMALL["shards"]
            assert not isinstance(ensemble(session, heads).base, OneByOne)
        else:
            with pytest.raises(ConfigError, match="one after the other"):
                ensemble(session, heads)
        if task == "classification":
            ours = shard_logits(session, heads, INPUTS)
            assert torch.allclose(ours, alone(session), rtol=0, atol=1e-5)
            return
        answers = generate(session, heads, [{"prompt": text} for text in TEXTS])
        tokenizer: Any = load_tokenizer(session.recipe, str(base))
        models = by_peft(session)
        for text, answer in zip(TEXTS, answers, strict=True):
            tokens = greedy_by_hand(models, list(tokenizer(text)["input_ids"]), tokenizer.eos_token_id, 5)
            assert answer == tokenizer.decode(tokens, skip_special_tokens=True)
        (scores,) = answer_scores(session, heads, [{"prompt": "my card", "completion": "was charged"}])
        one = answer_scores(session, heads[1:], [{"prompt": "my card", "completion": "was charged"}])[0]
        assert torch.allclose(scores[1], one[0], rtol=0, atol=1e-5)
