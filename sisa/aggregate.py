"""Answers of the served constituent models together: the heads over one base, in one pass.

How they are combined is the option ``aggregation``; by default it is the mean of their probabilities (SISA found it
better than a vote of labels). Of a causal model the next-token probabilities are combined, token by token.

Gradients are off by ``no_grad``, not by inference mode: the process may keep an adapter slot, and tensors made in
inference mode could never be trained afterwards.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from threading import RLock
from typing import Any

import torch

from shards.errors import ConfigError
from sisa.adapter import process_adapter, release, routes
from sisa.asking import Asked, context_of, plain_generation
from sisa.base_model import load_base, load_tokenizer, pinned_path, quiet_transformers
from sisa.config import Recipe
from sisa.determinism import reproducible
from sisa.ensemble import (
    EnsembleConfig,
    EnsembleForCausalLM,
    EnsembleForSequenceClassification,
    SharedError,
    pool,
)
from sisa.factors import scaling
from sisa.layers import frozen_layers, layers_of
from sisa.one_by_one import OneByOne
from sisa.served import ServedHead
from sisa.session import Session
from sisa.tensors import PREFIX, Forms, Tensors, check_forms, foreign, forms_of, read_tensors

_LORA_A = ".lora_A.weight"
_MODELS = {"classification": EnsembleForSequenceClassification, "causal-lm": EnsembleForCausalLM}
_PROBES = ((1, 5), (2, 7))  # rows and width: what has a shape that fits both has rows


@dataclass(slots=True)
class _Kept:
    """The ensemble that this process keeps.

    Attributes:
        recipe, base: which base it is over.
        model: it.
        forms: shape and type of each tensor that a head must have; None where its slot looks at them itself.
        heads: the tensors it holds, as they are stored.
        buffers: the base's, as they were loaded: some bases change them in a pass, and no answer may depend on
            what was asked before.
    """

    recipe: Recipe
    base: str
    model: Any
    forms: Forms | None
    heads: tuple[bytes, ...]
    buffers: Tensors

    def fits(self, recipe: Recipe, base: str) -> bool:
        now = dict(self.model.named_buffers())
        same = all(torch.equal(now[name], before) for name, before in self.buffers.items())
        return (self.recipe, self.base) == (recipe, base) and same


_kept: list[_Kept] = []
_turn = RLock()


def release_all() -> None:
    """Drop every base that this process keeps, and what lies over it: the ensemble's heads, and the adapter slot's."""
    with _turn:
        _kept.clear()
        release()


def ensemble(session: Session, heads: Sequence[ServedHead]) -> Any:
    """The heads as lanes over one base: a transformers model that pools their answers, in evaluation mode.

    The process keeps one. It holds ``heads`` until another is asked for with other heads, or pools them otherwise
    once the options say so; to keep it for longer, save it.

    Raises:
        ConfigError: if these adapters cannot share a pass over this base.
        IntegrityError: if a head's tensors are not what the recipe's adapters have.
    """
    with _turn, reproducible(session.recipe), torch.no_grad():
        model = _held(session, heads)
    if isinstance(model.base, OneByOne):
        raise ConfigError(
            "adapters of linear layers, over a base whose rows are computed apart",
            "others, whose heads are answered with one after the other",
            "use the adapters one by one, or merge them",
        )
    return model


def shard_logits(session: Session, heads: Sequence[ServedHead], inputs: Sequence[dict[str, Any]]) -> torch.Tensor:
    """Every constituent's scores of every input: (shards, inputs, labels), float64 on the CPU."""
    with _serving(session, heads) as served:
        return served.logits(inputs)


def classify(session: Session, heads: Sequence[ServedHead], inputs: Sequence[dict[str, Any]]) -> list[dict[str, float]]:
    """Label → probability by ``heads`` together, for each input with a ``text``."""
    logits = shard_logits(session, heads, inputs)
    pooled = pool(logits, session.options.aggregation, [head.records for head in heads]).tolist()
    return [dict(zip(session.recipe.labels, each, strict=True)) for each in pooled]


def answer_scores(
    session: Session, heads: Sequence[ServedHead], records: Sequence[Mapping[str, Any]]
) -> list[torch.Tensor]:
    """Log-probability of each token of an answer that training would learn, under each constituent alone.

    Args:
        session: of a causal LM.
        heads: the constituents.
        records: contents as records have them: ``prompt`` and ``completion``, ``messages``, or ``text``. What
            exceeds ``max_length`` is cut, as in training.

    Returns:
        For each record (shards, tokens), float64 on the CPU; the end token is one of them.
    """
    with _serving(session, heads) as served:
        return served.answer_scores(records)


def generate(session: Session, heads: Sequence[ServedHead], inputs: Sequence[dict[str, Any]]) -> list[str]:
    """The answer of ``heads`` together to each input's ``prompt``, ``text`` or ``messages``.

    Greedy, unless the options ask for beams or sampling; sampling begins at the options' seed in every call.
    """
    with _serving(session, heads) as served:
        return served.generate(inputs)


# -- the model --------------------------------------------------------------------------------


@contextmanager
def _serving(session: Session, heads: Sequence[ServedHead]) -> Iterator[Asked]:
    """The heads over their base, under the recipe's switches; threads wait for each other, for they share both."""
    recipe = session.recipe
    with _turn, reproducible(recipe), torch.no_grad():
        model = _held(session, heads)
        tokenizer, most = load_tokenizer(recipe, _kept[0].base), max(1, recipe.loss_positions // len(heads))

        def scores(**inputs: Any) -> torch.Tensor:
            found: torch.Tensor = model.shards(**inputs).logits
            return found

        cached = not isinstance(model.base, OneByOne)
        context = context_of(model.base.config)
        yield Asked(recipe, session.options, tokenizer, model, scores, len(heads), most, cached, context)


def _held(session: Session, heads: Sequence[ServedHead]) -> Any:
    """This process's ensemble, with these heads in it."""
    recipe = session.recipe
    base = str(pinned_path(recipe, session.options.base_model))
    weights = tuple(head.weights for head in heads)
    records = [head.records for head in heads]
    if not (_kept and _kept[0].fits(recipe, base)):
        _kept.clear()  # before, for two may not fit
        _kept.append(_made(recipe, base, heads[0]))
    kept = _kept[0]
    if kept.heads != weights:
        kept.heads = ()
        _fill(kept, weights, records)
        kept.heads = weights
    kept.model.config.records = records
    kept.model.config.pooling = session.options.aggregation
    return kept.model


def _made(recipe: Recipe, base: str, head: ServedHead) -> _Kept:
    """An ensemble that is still empty, for heads like this one; as lanes where that can be."""
    release()
    with quiet_transformers():
        try:
            model, forms = _lanes(recipe, base, head)
        except SharedError:
            slot = OneByOne(process_adapter(recipe, base))
            model, forms = _MODELS[recipe.task](EnsembleConfig.over(slot), slot).eval(), None
    if recipe.task == "causal-lm":
        tokenizer: Any = load_tokenizer(recipe, base)
        model.generation_config = plain_generation(recipe, tokenizer)
    return _Kept(recipe, base, model, forms, (), {name: each.clone() for name, each in model.named_buffers()})


def _lanes(recipe: Recipe, base: str, head: ServedHead) -> tuple[Any, Forms]:
    """Raises SharedError where heads cannot be lanes."""
    tensors = read_tensors(head.weights)
    model, _ = load_base(recipe, base)
    if routes(model.config):
        raise SharedError("a mixture of experts routes the rows of all shards together")
    names = {name for name, _ in model.named_modules()}
    frozen = frozen_layers(recipe, model)
    below = (layers_of(model)[0], frozen) if frozen else None
    made = _MODELS[recipe.task](
        EnsembleConfig.over(model, **_layout(tensors, head.config, names), below=below), model
    ).eval()
    forms = _forms(made)
    check_forms(tensors, forms)
    made.hold(_samples(forms), [1, 1])
    plain = _probed(made, None)  # raises SharedError, too
    if below is not None and not _same(made, below, plain):
        made.config.below = None
    return made, forms


def _probed(model: Any, below: tuple[str, int] | None) -> list[torch.Tensor]:
    """Every shard's scores of a few short texts, two of unlike length among them."""
    model.config.below = below
    scores = []
    for rows, width in _PROBES:
        ids = (torch.arange(rows * width, device=model.device) % 19).view(rows, width) + 1
        mask = torch.ones_like(ids)
        mask[0, width - 1] = 0
        scores.append(model.shards(input_ids=ids, attention_mask=mask).logits)
    return scores


def _same(model: Any, below: tuple[str, int], plain: list[torch.Tensor]) -> bool:
    """Does running the lower layers once give the same scores, but for rounding? Some bases pool by their inputs."""
    try:
        once = _probed(model, below)
    except (RuntimeError, ValueError, TypeError, IndexError):
        return False
    return all(
        one.shape == other.shape and torch.allclose(one.float(), other.float(), rtol=1e-2, atol=1e-2)
        for one, other in zip(once, plain, strict=True)
    )


def _forms(model: Any) -> Forms:
    """What tensors an adapter of this ensemble has: for layers as the base has them, whatever heads hold."""
    forms: Forms = {}
    for name in model.config.adapted:
        layer = model.base.get_submodule(name)
        for factor, end in ((layer.shard_down, "lora_A"), (layer.shard_up, "lora_B")):
            forms[f"{PREFIX}{name}.{end}.weight"] = (tuple(factor.shape[1:]), factor.dtype)
    for name in model.config.copied:
        copy = model.base.get_submodule(name).shard_copies[0]
        forms |= forms_of({f"{PREFIX}{name}.{each}": own for each, own in copy.named_parameters()})
    return forms


def _samples(forms: Forms) -> list[Tensors]:
    """Two adapters of no shard, always the same: what is decided by a probe depends on no head."""
    generator = torch.Generator().manual_seed(0)

    def drawn(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        scale = shape[-1] ** -0.5 if len(shape) > 1 else 1.0
        return (torch.randn(shape, generator=generator) * scale).to(dtype)

    return [{name: drawn(*form) for name, form in sorted(forms.items())} for _ in range(2)]


def _layout(tensors: Tensors, config: Mapping[str, Any], modules: Set[str]) -> dict[str, Any]:
    """Which layers an adapter adapts, and which modules it has of its own."""
    adapted, owners, scale = {}, set(), scaling(config)
    for name, tensor in ((name.removeprefix(PREFIX), tensor) for name, tensor in tensors.items()):
        if name.endswith(_LORA_A):
            adapted[name.removesuffix(_LORA_A)] = (len(tensor), scale)
        elif "lora_" not in name:
            owners.add(name.rpartition(".")[0])
        elif not name.endswith(".lora_B.weight"):
            raise SharedError(f"{name} adapts something else than a linear layer")
    odd = sorted((adapted.keys() | owners) - (modules - {""}))
    if odd or not adapted:
        raise foreign(f"tensors of {odd[0]!r}" if odd else "no adapter")
    if others := sorted(name for name, (rank, _) in adapted.items() if rank != config["r"]):
        raise foreign(f"another rank than {config['r']} in {others[0]!r}")
    copied = [name for name in sorted(owners) if not any(name.startswith(f"{other}.") for other in owners)]
    return {"adapted": dict(sorted(adapted.items())), "copied": copied}


def _fill(kept: _Kept, weights: Sequence[bytes], records: Sequence[int]) -> None:
    if kept.forms is None:
        kept.model.base.heads = weights
        kept.model.hold([{} for _ in weights], records)
        return
    for each in weights:  # all, before any is taken; and one at a time, for many are as large as the base
        check_forms(read_tensors(each), kept.forms)
    kept.model.hold(map(read_tensors, weights), records)
