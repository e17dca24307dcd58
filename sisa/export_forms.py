"""The forms of an exported model: how each is written, and how any user of transformers and PEFT reads it.

Each form answers the probes twice: in memory, from what is served, and from the files, loaded by their own
loaders. Probes go through one by one, unpadded.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from peft import LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from safetensors.torch import load, save
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from shards.digest import digest, tensor_digest
from shards.errors import InputError, OperationError
from shards.files import replace_file, storage
from shards.workspace import ADAPTER_CONFIG_FILE, WEIGHTS_FILE
from sisa.adapter import process_adapter
from sisa.asking import context_of, refuse_too_long
from sisa.base_model import load_base, load_tokenizer, pinned_path, public_name
from sisa.compatible import CONFIG, write_model, write_tokenizer
from sisa.encoding import encode_prompt, end_token_id, pad_batch
from sisa.factors import read_adapter
from sisa.plain_model import folded
from sisa.served import ServedHead
from sisa.session import Session

if TYPE_CHECKING:
    from sisa.merge import Merged


class Model(NamedTuple):
    """A model as it shows itself.

    Attributes:
        tensors: digest (hex) of its tensors.
        answers: its scores for each probe, float64 on the CPU.
    """

    tensors: str
    answers: list[torch.Tensor]


@dataclass(frozen=True, slots=True)
class Making:
    """What an export is made of.

    Attributes:
        session: whose recipe it is.
        base: directory of the base.
        heads: in shard order.
        inputs: the probes.
        tokens: the same as tokens.
        merged: the merge, for the forms that are one.
    """

    session: Session
    base: str
    heads: Sequence[ServedHead]
    inputs: Sequence[Mapping[str, Any]]
    tokens: Sequence[Sequence[int]]
    merged: Merged | None


class Form(Protocol):
    """How a form is written and read; a directory may hold several models, by name."""

    def write(self, making: Making, directory: Path) -> dict[str, Model]:
        """Write it; returns what is in memory."""
        ...

    def read(self, making: Making, directory: Path) -> dict[str, Model]:
        """Load it again; returns what is in the files.

        Raises:
            OperationError: if they cannot be loaded as they are.
        """
        ...


def form_of(name: str) -> Form:
    """The form that goes by a name."""
    forms: dict[str, Form] = {
        "adapters": _Adapters(), "adapter": _Adapter(), "model": _Model(), "ensemble": _Ensemble(),
    }  # fmt: skip
    return forms[name]


def prepared(
    session: Session, heads: Sequence[ServedHead], inputs: Sequence[dict[str, Any]], merged: Merged | None
) -> Making:
    """Find the base and turn the probes into tokens."""
    base = str(pinned_path(session.recipe, session.options.base_model))
    tokenizer = load_tokenizer(session.recipe, base)
    tokens = [encode_prompt(fields, session.recipe, tokenizer) for fields in inputs]
    refuse_too_long(tokens, context_of(AutoConfig.from_pretrained(base)), 0)
    return Making(session, base, heads, inputs, tokens, merged)


def difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """The largest difference, as a share of the largest score or of 1; no number if the scores are none."""
    if ours.shape != theirs.shape:
        return float("inf")
    return float((ours - theirs).abs().max() / ours.abs().max().clamp(min=1))


def _answers(making: Making, model: Any) -> list[torch.Tensor]:
    recipe = making.session.recipe
    pad = load_tokenizer(recipe, making.base).pad_token_id
    model.eval()
    found = []
    with torch.no_grad():
        for tokens in making.tokens:
            out = model(**pad_batch([tokens], pad, recipe.device, width=max(len(tokens), 1)))
            scores = out.logits[0].double().cpu()
            if getattr(out, "shard_logits", None) is not None:  # pooled scores are logarithms, down to none at all
                parts = (out.shard_logits[:, 0].double().cpu(), scores.softmax(-1))
                scores = torch.cat([part.flatten() for part in parts])
            found.append(scores)
    return found


def _state(model: Any) -> str:
    """Digest (hex) of a model's tensors, one at a time."""
    tensors = model.state_dict()
    marks = [tensor_digest(save({name: tensors[name].cpu().contiguous()})) for name in sorted(tensors)]
    return digest("state", *marks).hex()


# -- PEFT directories -------------------------------------------------------------------------

# What a reader without our version of PEFT must be told, whatever its own defaults are.
_SAID = (
    "peft_type", "task_type", "base_model_name_or_path", "r", "lora_alpha", "lora_dropout", "target_modules", "bias",
    "fan_in_fan_out", "inference_mode", "use_rslora", "modules_to_save",
)  # fmt: skip


class _Adapters:
    """One PEFT directory a shard."""

    def write(self, making: Making, directory: Path) -> dict[str, Model]:
        found = {}
        adapter = process_adapter(making.session.recipe, making.base)
        for served in making.heads:
            part = f"shard-{served.head.shard:02d}"
            _write_peft(making, directory / part, served.weights, served.config)
            adapter.load(served.weights)
            found[part] = Model(served.head.tensors, _answers(making, adapter.model))
        return found

    def read(self, making: Making, directory: Path) -> dict[str, Model]:
        parts = sorted(path.name for path in directory.iterdir() if path.is_dir())
        return dict(_read_peft(making, {part: directory / part for part in parts}))


class _Adapter:
    """One PEFT directory of all shards."""

    def write(self, making: Making, directory: Path) -> dict[str, Model]:
        weights, config = _merged_adapter(making)
        model = get_peft_model(load_base(making.session.recipe, making.base)[0], LoraConfig(**config))
        set_peft_model_state_dict(model, load(weights))
        _write_peft(making, directory, weights, config)
        return {"": Model(tensor_digest(weights), _answers(making, model))}

    def read(self, making: Making, directory: Path) -> dict[str, Model]:
        return dict(_read_peft(making, {"": directory}))


def _merged_adapter(making: Making) -> tuple[bytes, dict[str, Any]]:
    if making.merged is None or making.merged.adapter is None:
        raise TypeError("no merge that is an adapter")
    return making.merged.adapter


def _write_peft(making: Making, directory: Path, weights: bytes, config: Mapping[str, Any]) -> None:
    """An adapter that older versions of PEFT read too: what has the default value goes unsaid.

    There is no tokenizer beside it: PEFT would resize the base's embeddings to it.
    """
    defaults = LoraConfig().to_dict()
    if config.get("exclude_modules"):  # PEFT 0.13 knows no such thing: what is adapted is named in full
        config = {**config, "exclude_modules": None, "target_modules": sorted(read_adapter(weights)[0])}
    said = {name: value for name, value in config.items() if name in _SAID or value != defaults.get(name)}
    said["base_model_name_or_path"] = public_name(making.session.options.base_model)
    with storage(f"write {directory}"):
        directory.mkdir(exist_ok=True)
    replace_file(directory / ADAPTER_CONFIG_FILE, (json.dumps(said, indent=2, sort_keys=True) + "\n").encode())
    replace_file(directory / WEIGHTS_FILE, weights)


def _read_peft(making: Making, parts: Mapping[str, Path]) -> Iterator[tuple[str, Model]]:
    model: Any = None
    for part, path in parts.items():
        name = part or "default"
        if model is None:
            base, _ = load_base(making.session.recipe, making.base)
            model = PeftModel.from_pretrained(base, str(path), adapter_name=name)
        else:
            model.load_adapter(str(path), adapter_name=name)
        model.set_adapter(name)
        with storage(f"read {path}"):
            weights = (path / WEIGHTS_FILE).read_bytes()
        yield part, Model(tensor_digest(weights), _answers(making, model))


# -- whole models -----------------------------------------------------------------------------


class _Model:
    """The base with everything folded in."""

    def write(self, making: Making, directory: Path) -> dict[str, Model]:
        recipe, merged = making.session.recipe, making.merged
        if merged is None or not merged.tensors:
            raise InputError(
                "a base that can take full weights", f"dtype {recipe.dtype}, or tied weights", "use --form adapters"
            )
        model = folded(recipe, making.base, merged.tensors)
        tokenizer = _own_tokenizer(making)
        if recipe.task == "causal-lm":
            _end_with(model, end_token_id(recipe, tokenizer))
        found = {"": Model(_state(model), _answers(making, model))}
        write_model(model, directory)
        write_tokenizer(tokenizer, directory)
        return found

    def read(self, making: Making, directory: Path) -> dict[str, Model]:
        return {"": _read_whole(making, directory, attn_implementation=making.session.recipe.attention)}


class _Ensemble:
    """All shards over one base, as a model that brings its own code."""

    def write(self, making: Making, directory: Path) -> dict[str, Model]:
        from sisa.aggregate import ensemble

        model = ensemble(making.session, making.heads)
        found = {"": Model(_state(model), _answers(making, model))}
        model.save_pretrained(directory)
        _forget_origin(directory / CONFIG)
        write_tokenizer(_own_tokenizer(making), directory)
        return found

    def read(self, making: Making, directory: Path) -> dict[str, Model]:
        return {"": _read_whole(making, directory, trust_remote_code=True)}


def _own_tokenizer(making: Making) -> Any:
    """The base's tokenizer as it is, but that it can pad."""
    tokenizer: Any = AutoTokenizer.from_pretrained(making.base)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _end_with(model: Any, end: int) -> None:
    """Let ``generate`` stop where answers were trained to end, too."""
    settings = model.generation_config
    before = settings.eos_token_id
    ends = [] if before is None else [before] if isinstance(before, int) else list(before)
    if end not in ends:
        settings.eos_token_id = [end, *ends]


def _forget_origin(config: Path) -> None:
    """Where the base lay here is nobody else's business."""
    values = json.loads(config.read_text())
    for part in (values, values.get("base")):
        if isinstance(part, dict):
            part.pop("_name_or_path", None)
    replace_file(config, (json.dumps(values, indent=2, sort_keys=True) + "\n").encode())


def _read_whole(making: Making, directory: Path, *, trust_remote_code: bool = False, **options: Any) -> Model:
    recipe = making.session.recipe
    auto: Any = AutoModelForSequenceClassification if recipe.task == "classification" else AutoModelForCausalLM
    options |= {"local_files_only": True, "trust_remote_code": trust_remote_code}  # unsaid, a terminal would be asked
    model, info = auto.from_pretrained(
        str(directory), dtype="auto", use_safetensors=True, output_loading_info=True, **options
    )
    if problems := [f"{what}: {names}" for what, names in info.items() if names]:
        raise OperationError("weights for every parameter, and no others", "; ".join(problems), "report this")
    tokenizer = AutoTokenizer.from_pretrained(
        str(directory), local_files_only=True, trust_remote_code=trust_remote_code
    )
    if [encode_prompt(dict(fields), recipe, tokenizer) for fields in making.inputs] != list(making.tokens):
        raise OperationError("a tokenizer that reads as the base's does", "other tokens", "report this")
    model = model.to(recipe.device)
    return Model(_state(model), _answers(making, model))
