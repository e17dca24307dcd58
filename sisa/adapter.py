"""The LoRA boundary: the only module of the training path that knows PEFT.

One adapter slot a lane is put over one frozen base per process and given new contents for each step:
either fresh from a seed or the parent's tensors, in both cases all of them, so that nothing of an
earlier step can stay. PEFT names, saves and loads; the arithmetic is that of ``lora``. (PEFT's own
``unload`` leaves a *trained* classification head in the base, and loading under an existing name
silently keeps the old tensors.)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from peft import LoraConfig, TaskType, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from peft.utils.other import ModulesToSaveWrapper
from safetensors.torch import save

from shards.digest import canonical_json
from shards.errors import ConfigError
from sisa.base_model import load_base, quiet_transformers, skeleton
from sisa.config import Recipe
from sisa.head import Head
from sisa.layers import LINEAR, Cut, compute_twice, frozen_layers, targets
from sisa.lora import Lanes, adapted, headed
from sisa.tensors import PREFIX, check_forms, forms_of, read_tensors

_NAME = "default"  # of lane 0
_HEADS = {"classifier", "score"}  # PEFT saves these by itself
_TASKS = {"classification": TaskType.SEQ_CLS, "causal-lm": TaskType.CAUSAL_LM}


def lora_config(recipe: Recipe, base_model: str, base: Any, missing: frozenset[str]) -> LoraConfig:
    """PEFT's configuration of a recipe's adapters.

    Args:
        base: the base's modules.
        missing: parameters that the base's files do not hold. Their modules are trained and saved
            with the adapter, like the classification head that PEFT adds by itself; left in the
            base they would be random and frozen.
    """
    modules = {name.rpartition(".")[0] for name in missing}
    whole = sorted(name for name in modules if not _HEADS & set(name.split(".")))
    # PEFT takes every module for a head whose name ends like one (DistilBERT's pre_classifier).
    heads = [
        name for name, _ in base.named_modules() if recipe.task == "classification" and name.endswith(tuple(_HEADS))
    ]
    wanted: str | list[str] = list(recipe.target_modules)
    if recipe.layers != "all":
        wanted = targets(recipe, base)
    elif recipe.target_modules == ("all-linear",):
        wanted = "all-linear"
    return LoraConfig(
        task_type=_TASKS[recipe.task],
        r=recipe.lora_rank,
        lora_alpha=recipe.lora_alpha,
        use_rslora=recipe.rslora,
        lora_dropout=recipe.lora_dropout,
        target_modules=wanted,
        modules_to_save=whole,
        exclude_modules=sorted({*whole, *heads}) or None,  # what is trained whole has no adapter too
        base_model_name_or_path=base_model,
    )


class Adapter:
    """LoRA adapters (with classification heads) over a frozen base, one a lane.

    Attributes:
        model: PEFT's model.
        lanes: whose rows a pass holds.
        cut: where the adapted layers begin; None if all are adapted.
        head: of a causal model.
    """

    def __init__(self, recipe: Recipe, base_model: str, lanes: int = 1) -> None:
        """Load the base and put an adapter slot for each lane over it.

        Raises:
            ConfigError: if the target modules are not in the base.
        """
        with quiet_transformers():
            self._build(recipe, base_model, [_NAME, *(f"lane{lane:02d}" for lane in range(1, lanes))])

    def _build(self, recipe: Recipe, base_model: str, names: list[str]) -> None:
        base, missing = load_base(recipe, base_model)
        below = frozen_layers(recipe, base)
        config = lora_config(recipe, base_model, base, missing)
        self.model: Any = _with_slot(base, config, recipe)
        for name in names[1:]:
            self.model.add_adapter(name, config)
        for lane in range(len(names)):
            for parameter in self._parameters(names[lane]):
                parameter.requires_grad = True
        self.model.eval()  # the frozen base is a constant: its own dropout stays off, in training too
        self.cut = Cut(base, below) if below else None
        self.lanes = Lanes(names, recipe.lora_dropout)
        lay(self.model, self.lanes)
        if recipe.gradient_checkpointing:
            compute_twice(base, below)
        with self.lanes.only(0):
            self.head = Head(base) if recipe.task == "causal-lm" else None
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

    def trained_in(self, run: Callable[[], object]) -> list[str]:
        """Names of the modules trained whole that ``run`` runs through."""
        found: list[str] = []
        hooks = [
            module.register_forward_hook(lambda *_, name=name: found.append(name))
            for name, module in self.model.named_modules()
            if isinstance(module, ModulesToSaveWrapper)
        ]
        try:
            run()
        finally:
            for hook in hooks:
                hook.remove()
        return found

    def reset(self, seed: int, lane: int = 0) -> None:
        """Fill a slot with a fresh adapter that depends on ``seed`` alone."""
        torch.manual_seed(seed)
        for name, module in self.model.named_modules():
            if isinstance(module, LoraLayer):
                module.reset_lora_parameters(self.lanes.names[lane], init_lora_weights=True)
            elif isinstance(module, ModulesToSaveWrapper):
                self._reset_head(name, module, self.lanes.names[lane])

    def _reset_head(self, name: str, wrapper: Any, slot: str) -> None:
        """A head starts as the base has it; what the base does not hold is drawn from the seed."""
        copy, original = wrapper.modules_to_save[slot], wrapper.original_module
        copy.load_state_dict(original.state_dict())
        prefix = name.removeprefix(PREFIX)
        for inner, module in copy.named_modules():
            own = [f"{prefix}.{inner}.{p}".replace("..", ".") for p, _ in module.named_parameters(recurse=False)]
            if any(parameter in self._missing for parameter in own):
                module.reset_parameters()

    def load(self, weights: bytes, lane: int = 0) -> None:
        """Fill a slot with stored tensors.

        Raises:
            IntegrityError: if they are not exactly this adapter's tensors.
        """
        tensors = read_tensors(weights)
        check_forms(tensors, forms_of(self._tensors(lane)))
        set_peft_model_state_dict(self.model, tensors, adapter_name=self.lanes.names[lane])

    def dump(self, lane: int = 0) -> bytes:
        """A slot's tensors as safetensors, names as PEFT saves them."""
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self._tensors(lane).items()}
        return bytes(save(tensors))

    def config_json(self) -> bytes:
        """``adapter_config.json`` of a PEFT directory; the same bytes every time."""
        body = self._config.to_dict() | {"inference_mode": True}
        plain = {key: sorted(value) if isinstance(value, set) else value for key, value in body.items()}
        return canonical_json(plain) + b"\n"

    def parameters(self, lane: int = 0) -> list[torch.nn.Parameter]:
        """The trainable parameters of a lane: adapter and head, never the base."""
        return self._parameters(self.lanes.names[lane])

    def _parameters(self, slot: str) -> list[torch.nn.Parameter]:
        named = self.model.named_parameters()
        return [parameter for name, parameter in named if _slotted(name) and slot in name.split(".")]

    def _tensors(self, lane: int) -> dict[str, torch.Tensor]:
        tensors: dict[str, torch.Tensor] = get_peft_model_state_dict(
            self.model, adapter_name=self.lanes.names[lane], save_embedding_layers=False
        )
        return tensors


def _slotted(name: str) -> bool:
    """Does a parameter belong to an adapter or a head?"""
    return "lora_" in name or "modules_to_save" in name


def lay(model: Any, lanes: Lanes) -> None:
    """Let every adapted layer and every head of a PEFT model compute by lanes.

    Raises:
        ConfigError: if a layer is of a kind that has no lanes.
    """
    number = 0
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            if lanes.names[0] in module.lora_A and isinstance(module.lora_A[lanes.names[0]], torch.nn.Linear):
                module.forward = adapted(module, lanes, number)
                number += 1
            elif len(lanes.names) > 1:
                raise ConfigError("linear layers under several lanes", name, "set lanes to 1, or other target_modules")
        elif isinstance(module, ModulesToSaveWrapper) and len(lanes.names) > 1:
            module.forward = headed(module, lanes)


def check_recipe(recipe: Recipe, base_model: str) -> None:
    """Can adapters of this recipe be put over its base? Reads no weights.

    Asked before a recipe is pinned, because it cannot be changed afterwards.

    Raises:
        ConfigError: if the target modules are not in the base, or the base cannot be used.
    """
    with quiet_transformers():
        base = skeleton(recipe, base_model)
        slotted = _with_slot(base, lora_config(recipe, base_model, base, frozenset()), recipe)
        lay(slotted, Lanes([_NAME] * recipe.lanes, recipe.lora_dropout))
    if recipe.lanes > 1 and routes(base.config):
        raise ConfigError(
            "a dense base model under several lanes",
            "a mixture of experts, whose shapes depend on the rows of all lanes",
            "set lanes to 1",
        )
    positions = getattr(base.config, "max_position_embeddings", None)
    most = None if positions is None else positions - (recipe.lanes > 1)  # lanes are padded, by one token at least
    if most is not None and recipe.max_length > most:
        raise ConfigError(
            f"max_length of at most {most}, as many positions as the base model has",
            f"{recipe.max_length}",
            "set a smaller max_length in sisa.yaml",
        )


def routes(config: Any) -> bool:
    """Is it a mixture of experts?"""
    values = config.to_dict()
    nested = [value for value in values.values() if isinstance(value, dict)]
    return any("expert" in str(name) and bool(value) for each in [values, *nested] for name, value in each.items())


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
        linear = sorted(
            {name.rpartition(".")[2] for name, module in base.named_modules() if isinstance(module, LINEAR)}
        )
        raise ConfigError(
            f"target_modules that the base model has: {', '.join(linear)}, or all-linear",
            f"{', '.join(unknown or recipe.target_modules)} ({error})",
            "set target_modules in sisa.yaml; once records were taken in, in a new workspace",
        ) from error


_loaded: dict[tuple[Recipe, str, int], Adapter] = {}


def release() -> None:
    """Drop the base that this process keeps."""
    _loaded.clear()


def process_adapter(recipe: Recipe, base_model: str, lanes: int = 1) -> Adapter:
    """This process's adapter slots: one base is loaded and kept, unless a step changed it or another is asked for."""
    key = recipe, base_model, lanes
    if key not in _loaded or not _loaded[key].pristine():
        release()  # before, for two may not fit
        _loaded[key] = Adapter(recipe, base_model, lanes)
    _loaded[key].model.eval()  # whoever had it before may have left the base's dropout on
    return _loaded[key]
