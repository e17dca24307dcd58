"""Which ids the model reads and which it learns, record format by record format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from shards.errors import ConfigError
from shards.manifest import Head
from shards.records import Record, make_content
from sisa.adapter import Adapter
from sisa.aggregate import _lanes
from sisa.base_model import load_base, load_tokenizer
from sisa.encoding import IGNORED, Example, encode, encode_prompt, end_token_id, pad_batch
from sisa.learner import LoraTrainer
from sisa.loss import lane_losses
from sisa.served import ServedHead
from sisa.tensors import read_tensors
from tests.models import recipe_for

STORIES = Path(__file__).parents[3] / "shared" / "data" / "stories260K"


def encoded(base: Path, fields: dict[str, Any], **values: Any) -> tuple[Example, Any]:
    recipe = recipe_for(base, "classification" if "label" in fields else "causal-lm", **values)
    tokenizer: Any = load_tokenizer(recipe, str(base))
    return encode(Record(id="r", content=make_content(fields)), recipe, tokenizer), tokenizer


def learnt(example: Example, tokenizer: Any) -> str:
    return str(tokenizer.decode([target for target in example.targets if target != IGNORED]))


def test_prompt_and_completion_learn_the_completion_and_the_end_token_only(tiny_llama: Path) -> None:
    example, tokenizer = encoded(tiny_llama, {"prompt": "my card", "completion": " was charged"})
    prompt = tokenizer("my card")["input_ids"]
    answer = tokenizer(" was charged", add_special_tokens=False)["input_ids"]
    assert list(example.tokens) == [*prompt, *answer, tokenizer.eos_token_id]
    assert list(example.targets) == [IGNORED] * len(prompt) + [*answer, tokenizer.eos_token_id]
    assert prompt[0] == tokenizer.bos_token_id


def test_text_is_learnt_in_full_with_an_end_token(tiny_llama: Path) -> None:
    example, tokenizer = encoded(tiny_llama, {"text": "the refund"})
    assert list(example.tokens) == [*tokenizer("the refund")["input_ids"], tokenizer.eos_token_id]
    assert example.targets == (IGNORED, *example.tokens[1:]), "nothing comes before the first token"


def test_messages_learn_the_last_assistant_turn_only(tiny_llama: Path) -> None:
    messages = [
        {"role": "user", "content": "login fails"},
        {"role": "assistant", "content": "reset password"},
        {"role": "user", "content": "thanks"},
        {"role": "assistant", "content": "my account"},
    ]
    example, tokenizer = encoded(tiny_llama, {"messages": messages}, max_length=100)
    assert learnt(example, tokenizer) == "my account</s>"
    whole = tokenizer.decode(example.tokens)
    assert whole == tokenizer.apply_chat_template(messages, tokenize=False)
    prompt = encode_prompt({"messages": messages[:-1]}, recipe_for(tiny_llama, "causal-lm"), tokenizer)
    assert list(example.tokens[: len(prompt)]) == prompt
    assert set(example.targets[: len(prompt)]) == {IGNORED}


def test_messages_without_a_chat_template_are_refused(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = recipe_for(tiny_llama, "causal-lm", namespace="no template")
    tokenizer: Any = load_tokenizer(recipe, str(tiny_llama))
    monkeypatch.setattr(tokenizer, "chat_template", None)
    content = make_content({"messages": [{"role": "assistant", "content": "hello"}]})
    with pytest.raises(ConfigError, match="chat template"):
        encode(Record(id="r", content=content), recipe, tokenizer)


def test_a_template_whose_prompt_is_no_prefix_is_refused(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = recipe_for(tiny_llama, "causal-lm", namespace="odd template")
    tokenizer: Any = load_tokenizer(recipe, str(tiny_llama))
    counting = "{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}"
    monkeypatch.setattr(tokenizer, "chat_template", counting)
    content = make_content({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]})
    with pytest.raises(ConfigError, match="prefix"):
        encode(Record(id="r", content=content), recipe, tokenizer)


def test_classification_learns_one_label_and_keeps_the_closing_token_when_cut(tiny_bert: Path) -> None:
    fields = {"text": "my card was charged twice " * 10, "label": "refund"}
    example, tokenizer = encoded(tiny_bert, fields, max_length=12)
    assert example.targets == (2,)
    assert example.truncated
    assert len(example.tokens) == 12
    assert (example.tokens[0], example.tokens[-1]) == (tokenizer.bos_token_id, tokenizer.eos_token_id)


@pytest.mark.parametrize("over", [0, 1])
def test_truncation_is_flagged_from_the_first_token_over_the_limit(tiny_llama: Path, over: int) -> None:
    whole, _ = encoded(tiny_llama, {"text": "the refund never came back"})
    example, _ = encoded(tiny_llama, {"text": "the refund never came back"}, max_length=len(whole.tokens) - over)
    assert example.truncated == bool(over)
    assert example.tokens == whole.tokens[: len(whole.tokens) - over]


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": "my card", "completion": ""},
        {"text": "  "},
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": " "}]},
        {"prompt": "my card was charged twice " * 20, "completion": "refund"},
    ],
    ids=["empty completion", "blank text", "blank answer", "prompt fills the sequence"],
)
def test_a_record_without_a_trainable_token_is_found_out(tiny_llama: Path, fields: dict[str, Any]) -> None:
    recipe = recipe_for(tiny_llama, "causal-lm")
    fit = LoraTrainer(recipe, str(tiny_llama)).examine(Record(id="r", content=make_content(fields)))
    assert "no token to train" in fit.problem


def test_a_record_that_can_be_trained_has_no_problem(tiny_llama: Path) -> None:
    content = make_content({"prompt": "my card", "completion": "refund"})
    fit = LoraTrainer(recipe_for(tiny_llama, "causal-lm"), str(tiny_llama)).examine(Record(id="r", content=content))
    assert (fit.problem, fit.truncated) == ("", False)


def test_the_recipe_names_the_end_token(tiny_llama: Path) -> None:
    example, tokenizer = encoded(tiny_llama, {"prompt": "a", "completion": "b"}, end_token="<s>")
    assert example.tokens[-1] == tokenizer.bos_token_id


def test_an_end_token_that_the_tokenizer_lacks_is_refused(tiny_llama: Path) -> None:
    recipe = recipe_for(tiny_llama, "causal-lm", end_token="<nothing>")
    with pytest.raises(ConfigError, match="end_token"):
        end_token_id(recipe, load_tokenizer(recipe, str(tiny_llama)))


def test_the_loss_ignores_prompt_and_padding(tiny_llama: Path) -> None:
    import torch
    from torch.nn.functional import log_softmax

    recipe = recipe_for(tiny_llama, "causal-lm")
    tokenizer: Any = load_tokenizer(recipe, str(tiny_llama))
    model, _ = load_base(recipe, str(tiny_llama))
    model.eval()
    fields = [{"prompt": "my card", "completion": "refund"}, {"text": "nobody answered when the ticket came back"}]
    examples = [encode(Record(id="r", content=make_content(each)), recipe, tokenizer) for each in fields]
    losses = []
    with torch.inference_mode():
        for example in examples:
            log_probabilities = log_softmax(model(input_ids=torch.tensor([example.tokens])).logits[0], -1)
            losses += [
                -log_probabilities[at - 1, target]
                for at, target in enumerate(example.targets)
                if at and target != IGNORED
            ]
        inputs = pad_batch([example.tokens for example in examples], tokenizer.pad_token_id, "cpu")
        batched = lane_losses(Adapter(recipe, str(tiny_llama)), inputs, {0: examples}, recipe)[0]
    assert float(batched) == pytest.approx(float(torch.stack(losses).mean()), rel=1e-5)


@pytest.mark.skipif(not STORIES.is_dir(), reason="the model stories260K is not beside the repository in shared/data")
def test_stories260k_loads_as_its_golden_tokens_say() -> None:
    import torch

    base = str(STORIES / "hf")
    golden = json.loads((STORIES / "golden.json").read_text())
    recipe = recipe_for(base, "causal-lm", end_token="<s>")
    model, missing = load_base(recipe, base)
    model.eval()
    tokens = [1]
    with torch.inference_mode():
        while len(tokens) < len(golden["greedy_ids"]):
            tokens.append(int(model(input_ids=torch.tensor([tokens])).logits[0, -1].argmax()))
        logits = model(input_ids=torch.tensor([tokens[:16]])).logits[0].double().log_softmax(-1)
    assert missing == frozenset()
    assert tokens == golden["greedy_ids"]
    losses = [-float(logits[at, tokens[at + 1]]) for at in range(15)]
    assert losses == pytest.approx(golden["nll_first15"], abs=2e-4)


@pytest.mark.skipif(not STORIES.is_dir(), reason="the model stories260K is not beside the repository in shared/data")
def test_stories260k_decodes_its_golden_tokens_through_an_untrained_adapter() -> None:
    import torch

    base = str(STORIES / "hf")
    golden = json.loads((STORIES / "golden.json").read_text())["greedy_ids"]
    recipe = recipe_for(base, "causal-lm", end_token="<s>")
    adapter = Adapter(recipe, base)
    adapter.reset(1)  # B is zero: the adapter changes nothing
    head = ServedHead(Head(0, "", "", "", 1), adapter.dump(), json.loads(adapter.config_json()), 1)
    with torch.inference_mode():
        model = _lanes(recipe, base, head)[0]
        model.hold([read_tensors(head.weights)], [1])  # it was made with others, to be probed
        made = model.generate(torch.tensor([[1]]), max_new_tokens=len(golden) - 1, do_sample=False)
    assert made[0].tolist() == golden
