"""Combine the weights of the served constituent models into one model.

    cat    the shards' factors side by side, alpha such that PEFT computes their weighted mean: exact
    svd    the same, cut to a rank
    else   mergekit on full weights, base + update of each shard (never A and B apart: their means make another update)

What is trained whole, a classification head, is averaged by us in every method. A merge is a function of the
heads in shard order, the settings and a seed, and of nothing that was fitted to records besides. It is computed in
float64 on the CPU and rounded once, to the base's type.
"""

from __future__ import annotations

import importlib.metadata
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from safetensors.torch import save
from transformers.pytorch_utils import Conv1D

from shards.digest import canonical_json, digest, tensor_digest
from shards.errors import InputError, IntegrityError, MissingDependencyError
from sisa.adapter import process_adapter
from sisa.base_model import pinned_path
from sisa.choices import WEIGHTINGS
from sisa.config import Recipe
from sisa.determinism import reproducible
from sisa.factors import Factors, cut, name_adapter, read_adapter, scaling, stacked
from sisa.methods import ADAPTER_METHODS, BASELESS, LEAST, METHODS, PARAMETERS, RANDOM, UNWEIGHTED
from sisa.served import ServedHead
from sisa.session import Session
from sisa.wording import counted

__all__ = ["METHODS", "PARAMETERS", "Merged", "merge"]

_BEARABLE = 4  # shards that a merge can bear where the task is to memorise; see docs/merging.md


@dataclass(frozen=True, slots=True, eq=False)
class Merged:
    """One model made of several.

    Attributes:
        method: of :data:`METHODS`.
        seed: of a random method; None for the others.
        error: relative Frobenius error of the adapter's update against the exact weighted mean; None where
            the method is not meant to be it.
        warnings: what to know before using it.
        adapter: safetensors named as PEFT names them, and ``adapter_config.json``; of cat and svd.
        tensors: parameters that differ from the base's, by its own names, on the CPU and in its type: adapted
            layers and heads. Empty if there is an adapter and the base cannot take them (4 bits, tied weights).
        digest: of all these tensors, and of the adapter's scaling.
        settings: what the result depends on besides heads and seed.
    """

    method: str
    seed: int | None
    error: float | None
    warnings: tuple[str, ...]
    adapter: tuple[bytes, dict[str, Any]] | None
    tensors: dict[str, torch.Tensor]
    digest: str
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Shards:
    """What is merged, in shard order.

    Attributes:
        layers: each shard's factors by layer, as stored.
        whole: each shard's head by parameter, as stored.
        shares: the weight of each, of mean 1; equal ones are exactly 1.
        config: PEFT's of the first; the others differ at most in where the base lay.
    """

    layers: Sequence[Mapping[str, Factors]]
    whole: Sequence[Mapping[str, torch.Tensor]]
    shares: Sequence[float]
    config: dict[str, Any]

    @property
    def weights(self) -> list[float]:
        """The weight of each, of sum 1."""
        return [share / len(self.shares) for share in self.shares]

    def updates(self, name: str) -> list[Factors]:
        """What each shard adds to a layer, in float64."""
        return [part[name].double().times(scaling(self.config)) for part in self.layers]

    def mean(self, name: str) -> Factors:
        """The weighted mean of what they add, exact."""
        return stacked([part.times(by) for by, part in zip(self.weights, self.updates(name), strict=True)])

    def beside(self, name: str) -> Factors:
        """A layer's stored factors side by side; of equal shares not a bit is changed."""
        return stacked([part[name].double().times(by) for by, part in zip(self.shares, self.layers, strict=True)])

    def heads(self) -> dict[str, torch.Tensor]:
        """The weighted mean of what is trained whole."""
        means = {}
        for name, first in self.whole[0].items():
            stack = torch.stack([part[name].double() for part in self.whole])
            means[name] = torch.tensordot(torch.tensor(self.weights, dtype=stack.dtype), stack, dims=1).to(first.dtype)
        return means


def merge(
    session: Session,
    heads: Sequence[ServedHead],
    method: str,
    *,
    weighting: str = "equal",
    rank: int | None = None,
    seed: int = 0,
    parameters: dict[str, Any] | None = None,
) -> Merged:
    """Merge served heads: the same bytes every time, in any process of one environment class.

    Args:
        session: whose recipe and base are the heads'.
        heads: the shards'; they are taken in shard order.
        method: of :data:`METHODS`.
        weighting: ``equal`` (1/K each), or by the surviving ``records`` behind each head.
        rank: of svd's adapter; the recipe's unless given, and never more than all shards have together.
        seed: of a random method.
        parameters: in place of some of :data:`PARAMETERS`.

    Raises:
        InputError: if the method cannot do what is asked.
        MissingDependencyError: without mergekit, for one of its methods.
    """
    parameters = parameters or {}
    _check(heads, method, weighting, rank, parameters)
    shards = _read(heads, weighting)
    settings: dict[str, Any] = {"weighting": weighting, "weights": shards.weights}
    with reproducible(session.recipe), torch.no_grad():
        if method in ADAPTER_METHODS:
            return _adapter(session, shards, method, settings, rank or session.recipe.lora_rank)
        return _full(session, shards, method, settings, parameters, seed)


def _check(
    heads: Sequence[ServedHead], method: str, weighting: str, rank: int | None, parameters: Mapping[str, Any]
) -> None:
    """Refuse what a method cannot do, before anything is computed."""
    if method not in METHODS:
        raise InputError(f"a method: {', '.join(METHODS)}", method, "choose one of them")
    if weighting not in WEIGHTINGS:
        raise InputError("weighting equal or records", weighting, "choose one of them")
    if not heads:
        raise InputError("a trained shard", "none is served", "run `sisa train` first")
    if len(heads) < LEAST.get(method, 1):
        wanted = f"at least {counted(LEAST[method], 'served shard')} for {method}"
        raise InputError(wanted, str(len(heads)), "use another method, such as cat")
    if weighting == "records" and method in UNWEIGHTED:
        raise InputError("a method that takes weights", f"{method}, which takes none", "use weighting equal")
    if rank is not None and (method != "svd" or rank < 1):
        raise InputError("a rank of at least 1, and for svd alone", f"{rank} for {method}", "use svd, or no rank")
    known = PARAMETERS.get(method, {})
    if unknown := sorted(parameters.keys() - known.keys()):
        wanted = f"parameters of {method}: {', '.join(known) or 'none'}"
        raise InputError(wanted, ", ".join(unknown), "leave out what it does not have")


def _read(heads: Sequence[ServedHead], weighting: str) -> _Shards:
    """The heads' tensors and weights, in shard order."""
    heads = sorted(heads, key=lambda head: head.head.shard)
    layers, whole = zip(*(read_adapter(head.weights) for head in heads), strict=True)
    forms = {(scaling(head.config), *ours, *theirs) for head, ours, theirs in zip(heads, layers, whole, strict=True)}
    if len(forms) != 1:
        raise IntegrityError("heads of one recipe", "others among them", "run `sisa audit --all`")
    counts = [head.records if weighting == "records" else 1 for head in heads]
    return _Shards(layers, whole, [count * len(heads) / sum(counts) for count in counts], heads[0].config)


def _adapter(session: Session, shards: _Shards, method: str, settings: dict[str, Any], rank: int) -> Merged:
    """By cat or svd: one adapter, and the base with it folded in."""
    # Scaled plainly, by alpha / r, also where shards are under rsLoRA: with the rank its root would grow, and
    # PEFT's own cat, which keeps the flag, scales too much. It also saves what is said to loaders without rsLoRA.
    most = shards.config["r"] * len(shards.shares)
    rank, alpha = min(rank, most), float(min(rank, most))
    if method == "cat":
        rank, alpha = most, scaling(shards.config) * shards.config["r"]
    config = shards.config | {"r": rank, "lora_alpha": alpha, "use_rslora": False}
    layers: dict[str, Factors] = {}
    off: list[float] = []
    of: list[float] = []
    for name, stored in shards.layers[0].items():
        mean = shards.mean(name)
        made = shards.beside(name) if method == "cat" else cut(mean, rank)
        layers[name] = made.to(stored.down.dtype)
        off.append(stacked([mean, layers[name].double().times(-scaling(config))]).norm())
        of.append(mean.norm())
    whole = shards.heads()
    weights = save({name: tensor.contiguous() for name, tensor in sorted(name_adapter(layers, whole).items())})
    warnings = _warnings(session.recipe, shards)
    model = _base(session)
    tensors: dict[str, torch.Tensor] = {}
    if refusal := _unfoldable(model, layers):
        warnings += (f"there is an adapter and no full model: {refusal.found}",)
    else:
        for name, factors in layers.items():
            layer = model.get_submodule(name).get_base_layer()
            update = factors.double().times(scaling(config))
            tensors[f"{name}.weight"] = _with(layer, update).to(layer.weight.dtype)
        tensors |= whole
    error = math.hypot(*off) / math.hypot(*of) if any(of) else 0.0
    adapter = bytes(weights), config
    mark = _digest(method, tensors, adapter)
    return Merged(method, None, error, warnings, adapter, tensors, mark, settings | {"rank": rank})


def _full(
    session: Session,
    shards: _Shards,
    method: str,
    settings: dict[str, Any],
    parameters: dict[str, Any],
    seed: int,
) -> Merged:
    """By mergekit: full weights."""
    merge_tensors = _mergekit(method)
    names = list(shards.layers[0])
    model = _base(session)
    if refusal := _unfoldable(model, names):
        raise refusal
    chosen = PARAMETERS[method] | parameters
    given = chosen if method in UNWEIGHTED else chosen | {"weight": shards.weights}
    tensors: dict[str, torch.Tensor] = {}
    torch.default_generator.manual_seed(seed)  # the caller's is put back by `reproducible`
    for name in names:
        layer = model.get_submodule(name).get_base_layer()
        inputs = [_with(layer, update) for update in shards.updates(name)]
        base = None if method in BASELESS else 0
        if base is not None:
            inputs.insert(base, _own(layer))
        key = f"{name}.weight"
        try:
            merged = merge_tensors(
                inputs, method, parameters=given, base_index=base, name=key, out_dtype=layer.weight.dtype
            )
        except (TypeError, ValueError) as error:
            if not parameters:
                raise
            said = " ".join(str(error).split())
            raise InputError(f"values that {method} takes", f"{parameters}: {said}", "choose others") from error
        if not merged.isfinite().all():
            raise InputError("finite weights", f"others in {key}", "use another method, such as cat")
        tensors[key] = merged
    tensors |= shards.heads()
    return Merged(
        method,
        seed if method in RANDOM else None,
        None,
        _warnings(session.recipe, shards),
        None,
        tensors,
        _digest(method, tensors, None),
        settings | {"parameters": chosen, "mergekit": importlib.metadata.version("mergekit")},
    )


def _mergekit(method: str) -> Callable[..., torch.Tensor]:
    """The way into mergekit, loaded when it is needed: it is LGPL, a dependency and no part of us."""
    try:
        from mergekit.merge_methods.api import merge_tensors
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"mergekit, which computes {method}", "none", "pip install 'sisa[train]', or use cat or svd"
        ) from error
    found: Callable[..., torch.Tensor] = merge_tensors
    return found


def _base(session: Session) -> Any:
    """The base that this process keeps, adapted layers wrapped by PEFT; None if nothing can be added to its weights."""
    recipe = session.recipe
    if recipe.dtype == "nf4":
        return None
    return process_adapter(recipe, str(pinned_path(recipe, session.options.base_model))).model.get_base_model()


def _unfoldable(model: Any, names: Sequence[str] | Mapping[str, Any]) -> InputError | None:
    """Why the base cannot take full weights of these layers; None if it can."""
    wanted, remedy = (
        "a base with full weights of its own in every adapted layer",
        "use cat or svd, which give an adapter",
    )
    if model is None:
        return InputError(wanted, "weights of 4 bits (dtype: nf4)", remedy)
    places: dict[int, list[str]] = defaultdict(list)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        places[id(parameter)].append(name.replace(".base_layer", ""))
    for name in names:
        tied = places[id(model.get_submodule(name).get_base_layer().weight)]
        if len(tied) > 1:
            return InputError(wanted, f"{' and '.join(tied)} in one tensor", remedy)
    return None


def _own(layer: Any) -> torch.Tensor:
    """A layer's weight in float64 on the CPU."""
    weight: torch.Tensor = layer.weight.detach().cpu().double()
    return weight


def _with(layer: Any, update: Factors) -> torch.Tensor:
    """The same with an update in it; GPT-2's layers hold (in, out)."""
    product = update.product()
    return _own(layer) + (product.mT if isinstance(layer, Conv1D) else product)


def _warnings(recipe: Recipe, shards: _Shards) -> tuple[str, ...]:
    count = len(shards.shares)
    if recipe.task != "causal-lm" or count <= _BEARABLE:
        return ()
    told = (
        f"a merge of {count} shards dilutes what each memorised: on TOFU others measured a utility of 0.74 with one "
        "adapter, 0.54 with 4, 0.48 with 10 (Llama-2-7B), and we a probability of the true answers of 0.82 unsharded, "
        "0.30 by an ensemble of 8 and 0.05 by their merge. To recall records, prefer the ensemble (docs/merging.md)"
    )
    return (told,)


def _digest(method: str, tensors: Mapping[str, torch.Tensor], adapter: tuple[bytes, Mapping[str, Any]] | None) -> str:
    """Digest (hex) of a merge, a tensor at a time: names in order, types, shapes, bytes."""
    fields = [tensor_digest(save({name: tensors[name].contiguous()})) for name in sorted(tensors)]
    if adapter is not None:
        weights, config = adapter
        told = canonical_json({key: config[key] for key in ("r", "lora_alpha", "use_rslora")})
        return digest("merge", method, *fields, tensor_digest(weights), told).hex()
    return digest("merge", method, *fields).hex()
