"""Directories that transformers 4.45 reads: what 5 leaves to its own defaults is spelled out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sisa.compatible import readable_config, write_model, write_tokenizer


def config(path: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((path / "config.json").read_text())
    return read


def test_rotary_settings_are_said_in_the_words_of_both() -> None:
    plain = readable_config({"rope_parameters": {"rope_theta": 500.0, "rope_type": "default"}, "dtype": "float32"})
    assert (plain["rope_theta"], plain["rope_scaling"]) == (500.0, None)
    assert plain["rope_parameters"] == {"rope_theta": 500.0, "rope_type": "default"}
    assert plain["torch_dtype"] == plain["dtype"] == "float32"
    scaled = {"rope_theta": 10000.0, "rope_type": "linear", "factor": 2.0}
    assert readable_config({"rope_parameters": scaled})["rope_scaling"] == {"rope_type": "linear", "factor": 2.0}
    neox = readable_config(
        {"model_type": "gpt_neox", "rope_parameters": {"rope_theta": 7.0, "partial_rotary_factor": 0.5}}
    )
    assert (neox["rotary_emb_base"], neox["rotary_pct"]) == (7.0, 0.5)


def test_settings_by_layer_that_4_45_has_no_words_for_are_left_as_they_are() -> None:
    by_layer = {"full_attention": {"rope_theta": 1.0}, "sliding_attention": {"rope_theta": 2.0}}
    read = readable_config({"rope_parameters": by_layer})
    assert read == {"rope_parameters": by_layer}


def test_a_model_says_its_type_its_labels_and_nothing_of_where_it_came_from(tiny_bert: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    labels = {"id2label": {0: "no", 1: "yes"}, "label2id": {"no": 0, "yes": 1}}
    model = AutoModelForSequenceClassification.from_pretrained(tiny_bert, **labels)
    write_model(model, tmp_path)
    said = config(tmp_path)
    assert said["id2label"] == {"0": "no", "1": "yes"}
    assert said["label2id"] == {"no": 0, "yes": 1}
    assert said["torch_dtype"] == "float32"
    assert "_name_or_path" not in said
    assert said["hidden_dropout_prob"] == 0.1, "whatever the reader's default is"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    assert b'"format":"pt"' in (tmp_path / "model.safetensors").read_bytes()[:200]


@pytest.mark.parametrize("task", ["classification", "causal-lm"])
def test_a_tokenizer_reads_as_before_and_says_what_4_45_takes_otherwise(
    task: str, tiny_bert: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    base: Any = AutoTokenizer.from_pretrained(tiny_bert if task == "classification" else tiny_llama)
    base.add_special_tokens({"additional_special_tokens": ["<|user|>"]})
    write_tokenizer(base, tmp_path)
    said = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert said["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert said["model_input_names"] == list(base.model_input_names)
    assert said["clean_up_tokenization_spaces"] is False
    assert said["additional_special_tokens"] == ["<|user|>"]
    assert "extra_special_tokens" not in said
    assert ("chat_template" in said) == (task == "causal-lm")
    again: Any = AutoTokenizer.from_pretrained(tmp_path)
    for text in ("my card <|user|> was charged twice", "please do n't ."):
        ids = base(text)
        assert dict(again(text)) == dict(ids)
        assert again.decode(ids["input_ids"]) == base.decode(ids["input_ids"])
    assert again.chat_template == base.chat_template
