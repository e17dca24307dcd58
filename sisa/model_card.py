"""The card of an exported model: what it was made of, how that was checked, and what a deletion does to it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from shards.manifest import ModelManifest
from sisa import __version__
from sisa.base_model import public_name
from sisa.config import Recipe
from sisa.served import ServedHead
from sisa.wording import counted

if TYPE_CHECKING:
    from sisa.merge import Merged

CARD = "README.md"
_LICENCES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE", "COPYING")
_WHAT = {
    "adapters": "one PEFT adapter a shard. Their answers belong together",
    "adapter": "one PEFT adapter, merged of those of all shards",
    "model": "a full model, the adapters of all shards merged into the base",
    "ensemble": "all shards over one base, as a model that brings its own code (`trust_remote_code=True`)",
}
_TOGETHER = {
    "mean": "the mean of the shards' probabilities",
    "logit": "the softmax of the mean of the shards' logits",
    "vote": "the label (or token) that most shards find likeliest, and among equals the higher mean probability",
    "weighted": "the mean of the shards' probabilities, weighted by the records behind each",
}
_SIGNED = """

`model.sig` is an OpenSSF Model Signing bundle over all other files. Get the public key from the operator, and compare
it with `signer.pub`:

```sh
model_signing verify key DIRECTORY --signature DIRECTORY/model.sig --public_key signer.pub
```"""
_CLASSES = {"classification": "SequenceClassification", "causal-lm": "CausalLM"}


@dataclass(frozen=True, slots=True)
class Told:
    """What a card tells of.

    Attributes:
        recipe: of every shard.
        base_model: as the configuration names it.
        manifest: what was served.
        heads: of it.
        form: of the export.
        aggregation: how the shards' answers are combined.
        kept: it is the workspace's own.
    """

    recipe: Recipe
    base_model: str
    manifest: ModelManifest
    heads: Sequence[ServedHead]
    form: str
    aggregation: str
    kept: bool


@dataclass(frozen=True, slots=True)
class Compared:
    """Files against memory.

    Attributes:
        probes: how many inputs.
        neutral: they were ours, not the operator's.
        difference: the largest, as a share of the largest score or of 1.
        tolerance: what would have been too much.
    """

    probes: int
    neutral: bool
    difference: float
    tolerance: float


def card(
    told: Told, base: Path, merged: Merged | None, compared: Compared, *, metrics: Any = None, signed: bool = False
) -> str:
    """The card, as Markdown with the front matter that model hubs read.

    Args:
        told: what it tells of.
        base: directory of the base, asked for its licence.
        merged: the merge, if it is one.
        compared: files against memory.
        metrics: JSON of what was measured elsewhere.
        signed: there is a signature beside it.
    """
    front = {"library_name": "peft" if told.form in ("adapters", "adapter") else "transformers"}
    identifier, text = licence(base)
    front |= {"license": identifier} if identifier else {}
    sections = [
        f"# {told.recipe.task}: {told.form}",
        f"This is {_WHAT[told.form]}. Made by sisa {__version__} of the heads below, and of nothing else.",
        *([f"The answer is {_TOGETHER[told.aggregation]}."] if told.form in ("adapters", "ensemble") else []),
        _usage(told),
        _made_of(told),
        *([] if merged is None else [_merge(merged)]),
        _checks(compared, signed),
        *([] if metrics is None else [f"## Metrics\n\n```json\n{json.dumps(metrics, indent=1, sort_keys=True)}\n```"]),
        f"## Licence of the base\n\n{text or 'Its directory states none.'}",
        _deletion(told),
        f"## Recipe\n\n```yaml\n{yaml.safe_dump(told.recipe.to_json(), sort_keys=False, allow_unicode=True)}```",
    ]
    head = yaml.safe_dump(front | {"tags": ["sisa", "exact-unlearning", told.recipe.task]}, sort_keys=False)
    return f"---\n{head}---\n" + "\n\n".join(sections) + "\n"


def _usage(told: Told) -> str:
    name = f"AutoModelFor{_CLASSES[told.recipe.task]}"
    labels = json.dumps(dict(enumerate(told.recipe.labels)), ensure_ascii=False)
    given = f", num_labels={len(told.recipe.labels)}, id2label={labels}" if told.recipe.labels else ""
    if told.form in ("adapters", "adapter"):
        where = "DIRECTORY/shard-00" if told.form == "adapters" else "DIRECTORY"
        lines = [
            f"from transformers import {name}",
            "from peft import PeftModel",
            f'base = {name}.from_pretrained("BASE"{given})',
            f'model = PeftModel.from_pretrained(base, "{where}")',
        ]
        note = f"The base is `{public_name(told.base_model)}`, of digest `{told.recipe.base_model_digest}`."
    else:
        options = ", trust_remote_code=True" if told.form == "ensemble" else ""
        lines = [f"from transformers import {name}", f'model = {name}.from_pretrained("DIRECTORY"{options})']
        note = f"Its base has the digest `{told.recipe.base_model_digest}`."
    return "\n".join(["```python", *lines, "```", "", note])


def _made_of(told: Told) -> str:
    rows = [
        f"| {one.head.shard} | {one.records} | `{one.head.checkpoint}` | `{one.head.tensors}` |" for one in told.heads
    ]
    absent = sorted(set(range(told.recipe.shards)) - {one.head.shard for one in told.heads})
    return "\n".join(
        [
            "## Made of",
            "",
            f"- manifest generation {told.manifest.generation}, digest `{told.manifest.digest}`",
            f"- recipe digest `{told.recipe.digest}`",
            *([f"- without {counted(len(absent), 'shard')} that serve nothing: {absent}"] if absent else []),
            "",
            "| shard | records behind it | checkpoint | digest of its tensors |",
            "| --- | --- | --- | --- |",
            *rows,
        ]
    )


def _merge(merged: Merged) -> str:
    lines = ["## Merge", "", f"- method {merged.method}, digest `{merged.digest}`"]
    lines += [] if merged.seed is None else [f"- seed {merged.seed}"]
    if merged.error is not None:
        lines.append(f"- relative error of its update against the exact weighted sum: {merged.error:.3g}")
    lines += [f"- {name}: {json.dumps(value)}" for name, value in merged.settings.items()]
    return "\n".join(lines + [f"- {warning}" for warning in merged.warnings])


def _checks(compared: Compared, signed: bool) -> str:
    whose = "neutral texts" if compared.neutral else "inputs of the operator's"
    text = (
        f"## Checked\n\nThe files were loaded again. Their tensors are bit for bit those in memory, and on "
        f"{compared.probes} {whose} their scores differ from those in memory by at most {compared.difference:.2g} of "
        f"the largest score (more than {compared.tolerance:g} would have failed the export)."
    )
    return text + _SIGNED if signed else text


def _deletion(told: Told) -> str:
    if told.kept:
        fate = (
            "It is kept in the workspace, and purged with the first checkpoint above that is purged, before the "
            "deletion is certified."
        )
    else:
        fate = (
            "It left the workspace that made it: no deletion there reaches it. Once a record behind one of the "
            "checkpoints above is deleted, it is stale, and must be destroyed and replaced by a new export. Whoever "
            "holds exports from before and after can tell from their difference what was deleted."
        )
    return f"## When a record is deleted\n\n{fate}"


def licence(base: Path) -> tuple[str | None, str | None]:
    """What the base's directory says of its licence: an identifier from its card, and a line to read."""
    identifier = _identifier(base / CARD)
    for name in _LICENCES:
        if (base / name).is_file():
            lines = (base / name).read_text(errors="replace").splitlines()
            first = next((line.strip() for line in lines if line.strip()), "")
            return identifier, f"{name}: {first}"
    return identifier, None if identifier is None else f"Its card says: {identifier}."


def _identifier(path: Path) -> str | None:
    text = path.read_text(errors="replace") if path.is_file() else ""
    if not text.startswith("---\n") or "\n---" not in text[4:]:
        return None
    try:
        said = yaml.safe_load(text[4:].split("\n---", 1)[0])
    except yaml.YAMLError:
        return None
    found = said.get("license") if isinstance(said, dict) else None
    return found if isinstance(found, str) else None
