"""Many adapters over one base, as one Hugging Face model: its answer is what the shards' models say together.

    inputs (rows) ──▶ repeated for every shard (shard-major) ──▶ base, once ──▶ scores of every shard ──▶ pooled
                                                                 └ each shard's rows by its own factors

This file stands alone (torch and transformers, nothing of ours), because a saved ensemble carries a copy of it:
``AutoModelForCausalLM.from_pretrained(directory, trust_remote_code=True)`` needs nothing else. Every product has
one fixed shape, whatever a shard holds, so a shard's rows are the same bits whatever the other shards are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GenerationConfig,
    GenerationMixin,
    PretrainedConfig,
    PreTrainedModel,
    StaticCache,
)
from transformers.pytorch_utils import Conv1D
from transformers.utils import ModelOutput

POOLINGS = ("mean", "logit", "vote", "weighted")
TIE = 2.0**-13  # less than one vote of the 4096 shards there can be, and far more than float32 rounds away
_LORA_A, _LORA_B, _PREFIX = ".lora_A.weight", ".lora_B.weight", "base_model.model."


def pool(logits: torch.Tensor, how: str, records: Sequence[int]) -> torch.Tensor:
    """What the shards say together.

    Args:
        logits: each shard's scores, (shards, ..., classes).
        how: ``mean``: the mean of their probabilities. ``logit``: the softmax of the mean of their logits.
            ``weighted``: the mean of their probabilities, weighted by the records behind each.
            ``vote``: the share of shards whose likeliest class it is. The mean of their probabilities takes part
            with weight 2^-13, less than one vote: it decides between classes of as many votes, and is all
            that a class without a vote has.
        records: how many stand behind each shard.

    Returns:
        Probabilities, (..., classes), float64 on the CPU.

    Raises:
        ValueError: if there is no such pooling, or no record to weigh by.
    """
    scores = logits.detach().double().cpu()
    if how == "logit":
        return scores.mean(0).softmax(-1)
    probabilities = scores.softmax(-1)
    if how == "mean":
        return probabilities.mean(0)
    if how == "vote":
        votes = nn.functional.one_hot(scores.argmax(-1), scores.shape[-1]).double()
        return (1 - TIE) * votes.mean(0) + TIE * probabilities.mean(0)
    if how == "weighted":
        weights = torch.tensor(list(records), dtype=torch.float64)
        if len(weights) != len(scores) or weights.min() < 0 or not weights.sum() > 0:
            raise ValueError(f"weights of {len(scores)} shards must be their numbers of records, not {list(records)}")
        weighted: torch.Tensor = torch.tensordot(weights / weights.sum(), probabilities, 1)
        return weighted
    raise ValueError(f"pooling must be one of {', '.join(POOLINGS)}, not {how!r}")


class SharedError(ValueError):
    """A layer computes something that all shards' rows share, so that it cannot differ between them."""


class EnsembleConfig(PretrainedConfig):  # type: ignore[misc]
    """What an ensemble is made of.

    Args:
        base: the base model's configuration, as a dictionary with ``model_type``.
        attention: the base's attention implementation; None is the library's choice.
        shards: how many.
        records: how many records stand behind each shard.
        pooling: how their answers are combined.
        adapted: name of a linear layer of the base → rank and scale of the adapters over it.
        copied: names of the base's modules of which every shard has one of its own.
        below: name of the base's list of layers, and how many of them lie below all that shards have of their own:
            these are run once for all shards. None runs all for every shard.
    """

    model_type = "sisa-ensemble"
    _auto_class = "AutoConfig"

    def __init__(
        self,
        base: Mapping[str, Any] | None = None,
        attention: str | None = None,
        shards: int = 1,
        records: Sequence[int] = (),
        pooling: str = "mean",
        adapted: Mapping[str, Sequence[float]] | None = None,
        copied: Sequence[str] = (),
        below: Sequence[Any] | None = None,
        **others: Any,
    ) -> None:
        self.base = dict(base or {})
        self.attention = attention
        self.shards = shards
        self.records = list(records)
        self.pooling = pooling
        self.adapted = {name: list(values) for name, values in (adapted or {}).items()}
        self.copied = list(copied)
        self.below = None if below is None else list(below)
        super().__init__(**others)

    @classmethod
    def over(cls, base: Any, **values: Any) -> EnsembleConfig:
        """A configuration for adapters over this model; labels and padding are the model's."""
        own = base.config
        shared: dict[str, Any] = {n: getattr(own, n, None) for n in ("pad_token_id", "id2label", "label2id")}
        attention = getattr(own, "_attn_implementation", None)
        body = {name: value for name, value in own.to_dict().items() if name != "_name_or_path"}
        return cls(base=body, attention=attention, dtype=own.dtype, **shared, **values)

    def base_config(self) -> Any:
        """The base model's configuration."""
        values = deepcopy(self.base)
        config = AutoConfig.for_model(values.pop("model_type"), **values)
        config._attn_implementation = self._attn_implementation or self.attention  # noqa: SLF001 - there is no other way
        return config

    def get_text_config(self, *arguments: Any, **options: Any) -> Any:
        """The base's: what a cache, for instance, has to know."""
        return self.base_config().get_text_config(*arguments, **options) if self.base else self


@dataclass
class EnsembleOutput(ModelOutput):  # type: ignore[misc]
    """What an ensemble says.

    Attributes:
        logits: natural logarithms of the pooled probabilities, float32: their softmax is the probabilities.
            (rows, classes), or (rows, tokens, vocabulary).
        shard_logits: each shard's own logits, (shards, rows, ...).
        past_key_values: the cache of all shards, each with rows of its own.
    """

    logits: torch.Tensor | None = None
    shard_logits: torch.Tensor | None = None
    past_key_values: Any = None


class _Rows:
    """How many rows a pass has, so that what is no row of a shard is not taken for one."""

    def __init__(self, shards: int) -> None:
        self.shards = shards
        self.inputs = 0
        self.leading: tuple[int, ...] = ()

    def begin(self, rows: int, width: int) -> None:
        """A pass of so many inputs, each so many tokens."""
        self.inputs = rows
        self.leading = (self.shards * rows, self.shards * rows * width)

    def repeated(self, value: Any) -> Any:
        """Tensors with a row an input have one for every shard and input, shard after shard; all else is as it was."""
        if isinstance(value, dict):
            return {name: self.repeated(each) for name, each in value.items()}
        if isinstance(value, tuple):
            return tuple(self.repeated(each) for each in value)
        if isinstance(value, torch.Tensor) and value.dim() > 1 and len(value) == self.inputs:
            return value.repeat(self.shards, *[1] * (value.dim() - 1))
        return value

    def check(self, x: torch.Tensor) -> None:
        if self.shards > 1 and x.shape[0] not in self.leading:
            raise SharedError(f"rows of {self.shards} shards are needed in every adapted layer, not {tuple(x.shape)}")


class _Spread:
    """Hook before each layer from the first adapted one on: what they are given is given for every shard."""

    def __init__(self, rows: _Rows, config: EnsembleConfig) -> None:
        self._rows = rows
        self._config = config

    def __call__(self, _: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        return (self._rows.repeated(arguments), self._rows.repeated(options)) if self._config.below else None


class _Adapted:
    """Hook of a linear layer: each shard's rows get that shard's update, (x A' B') x scale."""

    def __init__(self, rows: _Rows, scale: float) -> None:
        self._rows = rows
        self._scale = scale

    def __call__(self, layer: Any, arguments: tuple[torch.Tensor, ...], out: torch.Tensor) -> torch.Tensor:
        x, down, up = arguments[0], layer.shard_down, layer.shard_up
        self._rows.check(x)
        blocks = x.reshape(len(down), -1, x.shape[-1]).to(down.dtype)
        onto = out.reshape(len(down), -1, out.shape[-1])
        if out.dtype == up.dtype:
            return onto.baddbmm_(torch.bmm(blocks, down.mT), up.mT, alpha=self._scale).view(out.shape)
        # As PEFT does: the sum has the factors' precision, and is rounded once.
        return (onto + torch.bmm(torch.bmm(blocks, down.mT), up.mT) * self._scale).to(out.dtype).view(out.shape)


class _Copies(nn.Module):
    """A module of which every shard has one of its own."""

    def __init__(self, module: Any, rows: _Rows) -> None:
        super().__init__()
        self.shard_copies = nn.ModuleList([module])
        self._rows = rows
        self.hold(rows.shards)

    def hold(self, shards: int) -> None:
        """Make it so many."""
        self.shard_copies = nn.ModuleList(deepcopy(self.shard_copies[0]) for _ in range(shards))

    def forward(self, x: torch.Tensor, *arguments: Any, **options: Any) -> torch.Tensor:
        """Each shard's rows by its own copy."""
        self._rows.check(x)
        parts = x.chunk(len(self.shard_copies))
        made = [copy(part, *arguments, **options) for copy, part in zip(self.shard_copies, parts, strict=True)]
        return torch.cat(made)


class _Ensemble(PreTrainedModel):  # type: ignore[misc]
    """One base under the adapters of many shards.

    Args:
        config: what it is made of.
        base: the base, loaded already; None makes one to be filled by ``from_pretrained``.

    Raises:
        SharedError: if an adapted module is no linear layer.
    """

    config_class = EnsembleConfig
    base_model_prefix = "base"
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _keep_in_fp32_modules_strict = ["shard_down", "shard_up"]  # noqa: RUF012 - as transformers has it
    _auto: Any = None

    def __init__(self, config: EnsembleConfig, base: Any = None) -> None:
        config._attn_implementation = config._attn_implementation or config.attention  # noqa: SLF001 - the base's too
        super().__init__(config)
        if base is None:
            base = self._auto.from_config(config.base_config())
        else:
            for module in base.modules():  # they hold what they should; nothing draws them anew
                module._is_hf_initialized = True  # noqa: SLF001 - transformers' own mark
        self.base: Any = base
        self._taken = frozenset(signature(base.forward).parameters)
        self._rows = _Rows(config.shards)
        for name, (rank, scale) in config.adapted.items():
            self._adapt(base.get_submodule(name), int(rank), float(scale))
        for name in config.copied:
            owner, _, last = name.rpartition(".")
            setattr(base.get_submodule(owner), last, _Copies(base.get_submodule(name), self._rows))
        if config.below:
            name, count = config.below
            for layer in base.get_submodule(name)[count:]:
                layer.register_forward_pre_hook(_Spread(self._rows, config), with_kwargs=True)
        self.post_init()

    def _adapt(self, layer: Any, rank: int, scale: float) -> None:
        if not isinstance(layer, nn.Linear | Conv1D):
            raise SharedError(f"adapted modules must be linear layers, not {type(layer).__name__}")
        into, out = layer.weight.shape if isinstance(layer, Conv1D) else (layer.in_features, layer.out_features)
        shards, where = self.config.shards, layer.weight.device
        layer.shard_down = nn.Parameter(torch.empty(shards, rank, into, dtype=torch.float32, device=where))
        layer.shard_up = nn.Parameter(torch.empty(shards, out, rank, dtype=torch.float32, device=where))
        layer.register_forward_hook(_Adapted(self._rows, scale))

    def hold(self, adapters: Iterable[Mapping[str, torch.Tensor]], records: Sequence[int]) -> None:
        """Hold these adapters and no others; of those that are made as they are asked for, one is there at a time.

        Args:
            adapters: each shard's tensors, named as PEFT saves them.
            records: how many records stand behind each.
        """
        self.config.shards, self.config.records = len(records), list(records)
        self._rows.shards = len(records)
        for name in self.config.copied:
            self.base.get_submodule(name).hold(len(records))
        for number, adapter in enumerate(adapters):
            self._take(number, adapter)

    def _take(self, number: int, adapter: Mapping[str, torch.Tensor]) -> None:
        for name in self.config.adapted:
            layer = self.base.get_submodule(name)
            for factor, end in (("shard_down", _LORA_A), ("shard_up", _LORA_B)):
                tensor = adapter[f"{_PREFIX}{name}{end}"]
                if not number:
                    shape = (self.config.shards, *tensor.shape)
                    empty = torch.empty(shape, dtype=tensor.dtype, device=layer.weight.device)
                    setattr(layer, factor, nn.Parameter(empty, requires_grad=False))
                getattr(layer, factor).data[number] = tensor
        for name in self.config.copied:
            copy, start = self.base.get_submodule(name).shard_copies[number], f"{_PREFIX}{name}."
            for each in adapter:
                if each.startswith(start):
                    own = copy.get_parameter(each.removeprefix(start))
                    own.data = adapter[each].to(own.device)

    def shards(self, **inputs: Any) -> Any:
        """The base's output for every shard's rows, shard after shard.

        Args:
            **inputs: what the base takes, of (rows, width) tokens; and, of a causal LM, ``logits_to_keep``.

        Raises:
            SharedError: if an adapted layer is given something else than rows of the shards.
        """
        given = {name: value for name, value in inputs.items() if value is not None and name in self._taken}
        shown = given.get("inputs_embeds", given.get("input_ids"))
        if shown is None:
            raise ValueError("input_ids or inputs_embeds are needed")
        self._rows.begin(*shown.shape[:2])
        out = self.base(**(given if self.config.below else self._rows.repeated(given)), return_dict=True)
        kept = inputs.get("logits_to_keep", 0)
        if "logits_to_keep" not in self._taken:
            out.logits = out.logits[:, slice(-kept, None) if isinstance(kept, int) else kept]
        return out

    def _pooled(self, out: Any) -> EnsembleOutput:
        shards: torch.Tensor = out.logits.view(self.config.shards, -1, *out.logits.shape[1:])
        rows = [pool(shards[:, row], self.config.pooling, self.config.records) for row in range(shards.shape[1])]
        lowest = torch.finfo(torch.float32).min  # a probability of nought has no logarithm
        logits = torch.stack(rows).log().clamp(min=lowest).float().to(shards.device)
        return EnsembleOutput(logits, shards, getattr(out, "past_key_values", None))


def _as_asked(output: EnsembleOutput, return_dict: bool | None) -> Any:
    return output.to_tuple() if return_dict is False else output


class EnsembleForSequenceClassification(_Ensemble):
    """The labels that many shards give together."""

    _auto_class = "AutoModelForSequenceClassification"
    _auto = AutoModelForSequenceClassification

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """Pooled and single scores of (rows, width) tokens."""
        out = self.shards(
            input_ids=input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
        )
        return _as_asked(self._pooled(out), return_dict)


class EnsembleForCausalLM(_Ensemble, GenerationMixin):  # type: ignore[misc]
    """The next token that many shards give together; ``generate`` works as with any model.

    The cache holds rows x shards (but for layers ``below``): whatever reorders it goes through ``_reorder_cache``.

    Raises:
        ValueError: if its pooling is ``vote``: most tokens have none, and what follows them is no distribution.
    """

    _auto_class = "AutoModelForCausalLM"
    _auto = AutoModelForCausalLM

    def __init__(self, config: EnsembleConfig, base: Any = None) -> None:
        super().__init__(config, base)
        if base is not None:
            self.generation_config = deepcopy(getattr(base, "generation_config", None)) or GenerationConfig()

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: Any = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Any = None,
        token_type_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        return_dict: bool | None = None,
    ) -> Any:
        """Pooled and single next-token scores of (rows, width) tokens, at the last ``logits_to_keep`` or all."""
        if self.config.pooling == "vote":
            raise ValueError("votes give no distribution over next tokens: pool by mean, logit or weighted")
        out = self.shards(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            token_type_ids=token_type_ids,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            logits_to_keep=logits_to_keep,
        )
        return _as_asked(self._pooled(out), return_dict)

    def _prepare_cache_for_generation(
        self, generation_config: Any, model_kwargs: Any, mode: Any, batch_size: int, *others: Any
    ) -> None:
        rows = batch_size * self.config.shards
        super()._prepare_cache_for_generation(generation_config, model_kwargs, mode, rows, *others)
        if self.config.below and isinstance(model_kwargs.get("past_key_values"), StaticCache):
            raise ValueError("a static cache has rows of all shards in every layer: set config.below to None first")

    def _reorder_cache(self, past_key_values: Any, beam_idx: torch.Tensor) -> Any:
        first = torch.arange(self.config.shards, device=beam_idx.device) * len(beam_idx)
        every = (first.unsqueeze(1) + beam_idx).flatten()
        below = self.config.below[1] if self.config.below else 0
        for number, layer in enumerate(past_key_values.layers):
            layer.reorder_cache(beam_idx if number < below else every)
        return past_key_values
