"""Predictions of the served set are the plain mean over its heads, and the same every time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from shards.errors import InputError
from shards.workspace import WEIGHTS_FILE
from sisa import adapter
from sisa.aggregate import classify, generate
from sisa.base_model import load_tokenizer
from sisa.predict import Predictor
from sisa.served import served_heads
from sisa.session import Session, open_session
from tests.models import LABELS, delete_in, differences, flat, fresh_run, grid, make_workspace, train_in, write_rows

TEXTS = ["my card was charged twice", "login fails", "please send a refund to this account", "x", "nobody answered"]


def trained(root: Path, task: str, base: Path, **values: Any) -> Path:
    workspace = make_workspace(root / "workspace", task, base, **values)
    train_in(workspace, write_rows(root / "data.jsonl", flat(grid(task, 2, **values))))
    return workspace


def directories(session: Session) -> list[Path]:
    """The PEFT directories of the served heads, in shard order."""
    manifest = session.workspace.book.manifest()
    assert manifest is not None
    live = session.workspace.book.live()
    return [session.workspace.store.path(live[head.checkpoint].files) for head in manifest.heads]


def heads(session: Session) -> list[bytes]:
    """The tensors of the served heads."""
    manifest = session.workspace.book.manifest()
    assert manifest is not None
    return [head.weights for head in served_heads(session.workspace, manifest)]


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> Path:
    return trained(tmp_path_factory.mktemp("classifier"), "classification", tiny_bert, shards=3)


def test_class_probabilities_are_the_mean_over_heads_loaded_by_peft(classifier: Path, tiny_bert: Path) -> None:
    import torch
    from peft import AutoPeftModelForSequenceClassification

    with open_session(classifier) as session:
        ours = classify(session, heads(session), [{"text": text} for text in TEXTS])
        tokenizer: Any = load_tokenizer(session.recipe, str(tiny_bert))
        paths = directories(session)
    assert len(paths) == 3
    means = torch.zeros(len(TEXTS), len(LABELS), dtype=torch.float64)
    for path in paths:
        model = AutoPeftModelForSequenceClassification.from_pretrained(str(path), num_labels=len(LABELS)).eval()
        with torch.inference_mode():
            rows = [model(**tokenizer(text, return_tensors="pt")).logits[0].double().softmax(-1) for text in TEXTS]
        means += torch.stack(rows) / len(paths)
    assert [list(each) for each in ours] == [list(LABELS)] * len(TEXTS)
    assert torch.allclose(torch.tensor([list(each.values()) for each in ours]).double(), means, rtol=0, atol=1e-5)


def test_probabilities_add_up_and_the_likeliest_label_is_answered(classifier: Path) -> None:
    with open_session(classifier) as session:
        answers = Predictor(session).answer([{"id": str(at), "text": text} for at, text in enumerate(TEXTS)]).rows
    assert [answer["id"] for answer in answers] == [str(at) for at in range(len(TEXTS))]
    for answer in answers:
        assert sum(answer["probabilities"].values()) == pytest.approx(1)
        assert answer["probabilities"][answer["label"]] == max(answer["probabilities"].values())


def test_predictions_are_the_same_bits_every_time_with_dropout_in_the_recipe(classifier: Path) -> None:
    inputs = [{"text": text} for text in TEXTS]
    with open_session(classifier) as session:
        assert session.recipe.lora_dropout > 0
        assert classify(session, heads(session), inputs) == classify(session, heads(session), inputs)


def test_nothing_served_is_said_before_any_training(tmp_path: Path, tiny_bert: Path) -> None:
    workspace = make_workspace(tmp_path / "workspace", "classification", tiny_bert)
    with open_session(workspace) as session, pytest.raises(InputError, match="none is served"):
        Predictor(session).answer([{"text": "x"}])


def test_one_shard_generates_what_plain_generate_does(tmp_path: Path, tiny_llama: Path) -> None:
    import torch
    from peft import AutoPeftModelForCausalLM

    workspace = trained(tmp_path, "causal-lm", tiny_llama, shards=1, max_new_tokens=12)
    with open_session(workspace) as session:
        ours = generate(session, heads(session), [{"prompt": text} for text in TEXTS])
        tokenizer: Any = load_tokenizer(session.recipe, str(tiny_llama))
        (path,) = directories(session)
    model = AutoPeftModelForCausalLM.from_pretrained(str(path)).eval()
    for text, answer in zip(TEXTS, ours, strict=True):
        inputs = tokenizer(text, return_tensors="pt", return_token_type_ids=False)
        with torch.inference_mode():
            tokens = model.generate(**inputs, do_sample=False, max_new_tokens=12, pad_token_id=0)[0]
        assert answer == tokenizer.decode(tokens[inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def test_several_shards_generate_from_the_mean_of_their_distributions(tmp_path: Path, tiny_llama: Path) -> None:
    import torch
    from peft import AutoPeftModelForCausalLM

    workspace = trained(tmp_path, "causal-lm", tiny_llama, max_new_tokens=8)
    with open_session(workspace) as session:
        ours = generate(session, heads(session), [{"prompt": text} for text in TEXTS[:2]])
        assert generate(session, heads(session), [{"prompt": TEXTS[0]}]) == ours[:1]
        tokenizer: Any = load_tokenizer(session.recipe, str(tiny_llama))
        paths = directories(session)
    models = [AutoPeftModelForCausalLM.from_pretrained(str(path)).eval() for path in paths]
    assert len(models) == 2
    for text, answer in zip(TEXTS[:2], ours, strict=True):
        tokens = list(tokenizer(text)["input_ids"])
        start = len(tokens)
        with torch.inference_mode():
            while len(tokens) - start < 8:  # without any cache: the whole text every time
                rows = [model(input_ids=torch.tensor([tokens])).logits[0, -1].double().softmax(-1) for model in models]
                best = int(torch.stack(rows).mean(0).argmax())
                if best == tokenizer.eos_token_id:
                    break
                tokens.append(best)
        assert answer == tokenizer.decode(tokens[start:], skip_special_tokens=True)


def test_a_process_that_predicted_first_can_train_and_delete_afterwards(tmp_path: Path, tiny_llama: Path) -> None:
    workspace = trained(tmp_path, "causal-lm", tiny_llama, max_new_tokens=2)
    adapter.release()
    with open_session(workspace) as session:
        generate(session, heads(session), [{"prompt": "x"}])
    delete_in(workspace, [flat(grid("causal-lm", 2))[0]["id"]])
    assert differences(workspace, fresh_run(workspace, tmp_path / "fresh")) == []


def test_weights_files_are_named_as_peft_names_them(classifier: Path) -> None:
    with open_session(classifier) as session:
        for path in directories(session):
            assert sorted(file.name for file in path.iterdir()) == ["adapter_config.json", WEIGHTS_FILE]
