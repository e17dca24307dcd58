"""A model's directory that transformers 4.45 reads as it reads what it wrote itself, and 5 as well.

What 5 writes, and 4.45 does not understand or (worse) passes over in silence:

    config.json            rope_parameters in place of rope_theta and rope_scaling; dtype in place of torch_dtype;
                           only what differs from *its* defaults
    tokenizer_config.json  a tokenizer class of its own, the chat template in another file, neither the names of
                           the model's inputs nor whether decoding tidies up spaces
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shards.files import replace_file

CONFIG = "config.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
_CLASS = "PreTrainedTokenizerFast"  # reads tokenizer.json, and asks nothing else
_CHAT_TEMPLATE = "chat_template.jinja"
# Where the files came from, how they were loaded, and calls' arguments that were saved along.
_OF_THE_LOADING = (
    "_name_or_path",
    "_commit_hash",
    "_attn_implementation",
    "attn_implementation",
    "quantization_config",
)
_OF_THE_CALL = (
    "backend", "is_local", "local_files_only", "name_or_path", "auto_map", "max_length", "pad_to_multiple_of",
    "stride", "truncation_strategy", "tokenizer_file", "processor_class",
)  # fmt: skip


def write_model(model: Any, directory: Path) -> None:
    """Write a transformers model: weights as safetensors, and a configuration that leaves nothing to defaults."""
    model.save_pretrained(directory)
    replace_file(directory / CONFIG, _json(readable_config(model.config.to_dict())))


def readable_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """``config.json`` with every value spelled out, in the words of transformers 4.45 beside those of 5."""
    values = {name: value for name, value in config.items() if name not in _OF_THE_LOADING}
    dtype = values.get("dtype", values.get("torch_dtype"))
    if dtype is not None:
        values["torch_dtype"] = values["dtype"] = str(dtype).removeprefix("torch.")
    rope = values.get("rope_parameters")
    if isinstance(rope, dict) and "rope_theta" in rope:  # one for all layers; 4.45 knows no others
        values["rope_theta"] = rope["rope_theta"]
        scaling = {name: value for name, value in rope.items() if name != "rope_theta"}
        values["rope_scaling"] = None if scaling.get("rope_type") in (None, "default") else scaling
        if "partial_rotary_factor" in rope:
            values["partial_rotary_factor"] = rope["partial_rotary_factor"]
        if values.get("model_type") == "gpt_neox":
            values |= {"rotary_emb_base": rope["rope_theta"], "rotary_pct": rope.get("partial_rotary_factor", 1.0)}
    return values


def write_tokenizer(tokenizer: Any, directory: Path) -> None:
    """Write a tokenizer, its chat template in both places."""
    tokenizer.save_pretrained(directory)
    path = directory / TOKENIZER_CONFIG
    template = directory / _CHAT_TEMPLATE
    values = readable_tokenizer(json.loads(path.read_text()), tokenizer)
    if template.is_file():
        values["chat_template"] = template.read_text()
    replace_file(path, _json(values))


def readable_tokenizer(written: Mapping[str, Any], tokenizer: Any) -> dict[str, Any]:
    """``tokenizer_config.json`` of a class that both have, with what 5 takes for granted said."""
    values = {name: value for name, value in written.items() if name not in _OF_THE_CALL}
    extra = values.pop("extra_special_tokens", None)
    if isinstance(extra, dict):
        values |= extra
    elif extra:
        values["additional_special_tokens"] = extra
    return values | {
        "tokenizer_class": _CLASS,
        "model_input_names": list(tokenizer.model_input_names),
        "clean_up_tokenization_spaces": bool(getattr(tokenizer, "clean_up_tokenization_spaces", False)),
        "padding_side": tokenizer.padding_side,
        "truncation_side": tokenizer.truncation_side,
    }


def _json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, ensure_ascii=False, indent=2, sort_keys=True) + "\n").encode()
