"""The LoRA boundary: the only module of the training path that knows PEFT.

One adapter slot is put over one frozen base per process and given new contents for each step:
either fresh from a seed or the parent's tensors, in both cases all of them, so that nothing of an
earlier step can stay. (PEFT's own ``unload`` leaves a *trained* classification head in the base,
and loading under an existing name silently keeps the old tensors.)
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from peft import LoraConfig, TaskType, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from peft.utils.other import ModulesToSaveWrapper
from safetensors import SafetensorError
from safetensors.torch import load, save

from shards.digest import canonical_json
from shards.errors import ConfigError, IntegrityError
from sisa.base_model import load_base, quiet_transformers, skeleton
from sisa.config import Recipe

_NAME = "default"
_HEADS = {"classifier", "score"}  # PEFT saves these by itself
_TASKS = {"classification": TaskType.SEQ_CLS, "causal-lm": TaskType.CAUSAL_LM}


def lora_config(recipe: Recipe, base_model: str, missing: frozenset[str]) -> LoraConfig:
    """PEFT's configuration of a recipe's adapters.

    Args:
        missing: parameters that the base's files do not hold. Their modules are trained and saved
            with the adapter, like the classification head that PEFT adds by itself; left in the
            base they would be random and frozen.
    """
    modules = {name.rpartition(".")[0] for name in missing}
    everything = recipe.target_modules == ("all-linear",)
    return LoraConfig(
        task_type=_TASKS[recipe.task],
        r=recipe.lora_rank,
        lora_alpha=recipe.lora_alpha,
        lora_dropout=recipe.lora_dropout,
        target_modules="all-linear" if everything else list(recipe.target_modules),
        modules_to_save=sorted(name for name in modules if not _HEADS & set(name.split("."))),
        base_model_name_or_path=base_model,
    )


class Adapter:
    """A LoRA adapter (with a classification head) over a frozen base."""

    def __init__(self, recipe: Recipe, base_model: str) -> None:
        """Load the base and put an adapter slot over it.

        Raises:
            ConfigError: if the target modules are not in the base.
        """
        with quiet_transformers():
            self._build(recipe, base_model)

    def _build(self, recipe: Recipe, base_model: str) -> None:
        base, missing = load_base(recipe, base_model)
        config = lora_config(recipe, base_model, missing)
        self.model: Any = _with_slot(base, config, recipe)
        self._missing = missing
        self._config = config
        self._buffers = {name: buffer.clone() for name, buffer in self.model.named_buffers()}

    def pristine(self) -> bool:
        """Are the base's buffers as they were loaded?

        Some bases change them in a forward pass (rotary frequencies grown for a long text), which
        would carry something of one step's records into the next step.
        """
        now = dict(self.model.named_buffers())
        return now.keys() == self._buffers.keys() and all(
            torch.equal(now[name], before) for name, before in self._buffers.items()
        )

    def reset(self, seed: int) -> None:
        """Fill the slot with a fresh adapter that depends on ``seed`` alone."""
        torch.manual_seed(seed)
        for name, module in self.model.named_modules():
            if isinstance(module, LoraLayer):
                module.reset_lora_parameters(_NAME, init_lora_weights=True)
            elif isinstance(module, ModulesToSaveWrapper):
                self._reset_head(name, module)

    def _reset_head(self, name: str, wrapper: Any) -> None:
        """A head starts as the base has it; what the base does not hold is drawn from the seed."""
        copy, original = wrapper.modules_to_save[_NAME], wrapper.original_module
        copy.load_state_dict(original.state_dict())
        prefix = name.removeprefix("base_model.model.")
        for inner, module in copy.named_modules():
            own = [f"{prefix}.{inner}.{p}".replace("..", ".") for p, _ in module.named_parameters(recurse=False)]
            if any(parameter in self._missing for parameter in own):
                module.reset_parameters()

    def load(self, weights: bytes) -> None:
        """Fill the slot with stored tensors.

        Raises:
            IntegrityError: if they are not exactly this adapter's tensors.
        """
        wanted = _forms(self._tensors())
        try:
            tensors = load(weights)
        except SafetensorError as error:
            raise _others(wanted, f"no safetensors file: {error}") from error
        found = _forms(tensors)
        if found != wanted:
            odd = sorted(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name))
            raise _others(wanted, f"others, for instance {odd[0]}")
        set_peft_model_state_dict(self.model, tensors, adapter_name=_NAME)

    def dump(self) -> bytes:
        """The slot's tensors as safetensors, names as PEFT saves them."""
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self._tensors().items()}
        return bytes(save(tensors))

    def config_json(self) -> bytes:
        """``adapter_config.json`` of a PEFT directory; the same bytes every time."""
        body = self._config.to_dict() | {"inference_mode": True}
        plain = {key: sorted(value) if isinstance(value, set) else value for key, value in body.items()}
        return canonical_json(plain) + b"\n"

    def parameters(self) -> list[torch.nn.Parameter]:
        """The trainable parameters: adapter and head, never the base."""
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def _tensors(self) -> dict[str, torch.Tensor]:
        tensors: dict[str, torch.Tensor] = get_peft_model_state_dict(
            self.model, adapter_name=_NAME, save_embedding_layers=False
        )
        return tensors


_Forms = dict[str, tuple[tuple[int, ...], torch.dtype]]


def _forms(tensors: dict[str, torch.Tensor]) -> _Forms:
    """Shape and type of each; PEFT would convert another type without a word."""
    return {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}


def _others(wanted: _Forms, found: str) -> IntegrityError:
    return IntegrityError(f"{len(wanted)} tensors of this recipe's adapter", found, "run `sisa audit --all`")


def check_recipe(recipe: Recipe, base_model: str) -> None:
    """Can adapters of this recipe be put over its base? Reads no weights.

    Asked before a recipe is pinned, because it cannot be changed afterwards.

    Raises:
        ConfigError: if the target modules are not in the base, or the base cannot be used.
    """
    with quiet_transformers():
        base = skeleton(recipe, base_model)
        _with_slot(base, lora_config(recipe, base_model, frozenset()), recipe)
    positions = getattr(base.config, "max_position_embeddings", None)
    if positions is not None and recipe.max_length > positions:
        raise ConfigError(
            f"max_length of at most {positions}, the positions that the base model has",
            f"{recipe.max_length}",
            "set a smaller max_length in sisa.yaml",
        )


def _with_slot(base: Any, config: LoraConfig, recipe: Recipe) -> Any:
    """The base under an adapter slot; every target module must be there (PEFT is content with one of them)."""
    names = [name for name, _ in base.named_modules()]
    unknown = [
        target
        for target in recipe.target_modules
        if target != "all-linear" and not any(f".{name}".endswith(f".{target}") for name in names)
    ]
    try:
        if unknown:
            raise ValueError("no such module")
        return get_peft_model(base, config)
    except ValueError as error:
        linear = sorted({name.rpartition(".")[2] for name, module in base.named_modules() if _is_linear(module)})
        raise ConfigError(
            f"target_modules that the base model has: {', '.join(linear)}, or all-linear",
            f"{', '.join(unknown or recipe.target_modules)} ({error})",
            "set target_modules in sisa.yaml; once records were taken in, in a new workspace",
        ) from error


def _is_linear(module: object) -> bool:
    return isinstance(module, torch.nn.Linear)


_loaded = lru_cache(maxsize=1)(Adapter)


def release() -> None:
    """Drop the base that this process keeps."""
    _loaded.cache_clear()


def process_adapter(recipe: Recipe, base_model: str) -> Adapter:
    """This process's adapter slot: the base is loaded once and kept, unless a step changed it."""
    adapter = _loaded(recipe, base_model)
    if not adapter.pristine():
        _loaded.cache_clear()
        adapter = _loaded(recipe, base_model)
    return adapter
