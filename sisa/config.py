"""``Recipe`` (can change bytes) and ``RunOptions`` (cannot): the keys of ``sisa.yaml``.

The two are one flat file with one comment per key, so that ``--set key=value`` needs no path. What
can change a bit of any adapter is in the recipe; the recipe is pinned at the first ingest and its
digest is part of every checkpoint key.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from orchestration.batching import Rule
from shards.digest import canonical_json, digest
from shards.errors import ConfigError
from shards.files import replace_file
from shards.remote import local_path
from shards.trunk import MAX_SHARDS
from shards.workspace import CONFIG_FILE
from sisa.choices import Aggregation

# Raised only when the same recipe and records can give other bytes than before.
BYTES_VERSION = 2

Task = Literal["classification", "causal-lm"]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Recipe(_Section):
    """Everything that can change an adapter's bytes, but for the records and the environment class."""

    bytes_version: int = Field(default=BYTES_VERSION, description="version of the trainer's arithmetic")
    task: Task = Field(description="classification or causal-lm")
    namespace: str = Field(min_length=1, description="name under which record IDs become tags")
    base_model_digest: str = Field(description="digest of the frozen base's configuration and weights")
    tokenizer_digest: str = Field(description="digest of the tokenizer's files and chat template")
    labels: tuple[str, ...] = Field(
        default=(), description="the label list of classification, in order; a record with another label is refused"
    )
    shards: int = Field(default=4, ge=1, le=MAX_SHARDS, description="S: how many constituent models")
    slices: int = Field(default=3, ge=1, le=4096, description="R: slices per generation in each shard")
    epochs: int = Field(default=3, ge=1, description="passes over the records of a step")
    rehearsal: float = Field(
        default=0.0, ge=0, le=1, description="share of earlier records that each step repeats; 1 is SISA's cumulative"
    )
    max_length: int = Field(default=128, ge=2, description="tokens kept of a record; longer text is cut and reported")
    batching: Literal["order", "length"] = Field(
        default="length",
        description="which records share a batch: those that follow in a pass's order, or those of like length in it",
    )
    batch_size: int = Field(default=8, ge=1, description="records in one forward and backward pass")
    accumulation: int = Field(default=1, ge=1, description="passes per optimiser update")
    learning_rate: float = Field(default=1e-3, gt=0, description="peak learning rate of AdamW")
    schedule: Literal["constant", "linear", "cosine"] = Field(
        default="linear", description="course of the learning rate within one step; linear: down to nothing"
    )
    warmup_updates: int = Field(default=0, ge=0, description="updates of linear warm-up at the start of each step")
    weight_decay: float = Field(default=0.0, ge=0, description="AdamW's weight decay")
    max_grad_norm: float = Field(default=1.0, gt=0, description="gradients are clipped to this norm")
    lora_rank: int = Field(default=8, ge=1, description="rank of the adapter's factors")
    lora_alpha: float = Field(default=16, gt=0, description="the update is scaled by alpha / rank")
    rslora: bool = Field(default=False, description="scale it by alpha / square root of rank instead (rsLoRA)")
    lora_dropout: float = Field(default=0.0, ge=0, lt=1, description="dropout before the adapter's factors")
    target_modules: tuple[str, ...] = Field(
        default=("all-linear",), description="modules that get an adapter: name endings, or all-linear"
    )
    layers: str = Field(
        default="all",
        pattern="^(all|last-[1-9][0-9]*)$",
        description="layers of the base that get an adapter: all, or last-2 and the like; what lies below the last "
        "is computed once per record and kept (activation_cache)",
    )
    lanes: int = Field(
        default=1,
        ge=1,
        le=64,
        description="shards trained in one pass over one base; a deletion then computes all lanes of its shard's pass",
    )
    end_token: str | None = Field(
        default=None, description="token that ends an answer (causal-lm); null is the tokenizer's own"
    )
    loss_positions: int = Field(
        default=1024,
        ge=1,
        description="positions whose next-token scores are held at once (causal-lm); fewer need less memory",
    )
    gradient_checkpointing: bool = Field(
        default=False, description="compute each layer twice instead of keeping its activations: slower, less memory"
    )
    dtype: Literal["float32", "bfloat16", "nf4"] = Field(
        default="float32",
        description="type of the frozen base's weights; nf4: 4 bits, computed in bfloat16 (QLoRA; extra [quantised])",
    )
    attention: Literal["sdpa", "eager"] = Field(default="sdpa", description="attention implementation")
    sdpa_backends: tuple[Literal["flash", "efficient", "math"], ...] = Field(
        default=("flash", "efficient", "math"),
        min_length=1,
        description="kernels that attention sdpa may choose from; never cuDNN's, which has no deterministic backward",
    )
    tf32: bool = Field(default=False, description="products of float32 in TF32 (cuda): faster, fewer digits")
    device: Literal["cpu", "cuda"] = Field(default="cpu", description="where steps are computed")
    threads: int = Field(default=1, ge=1, description="CPU threads of one step")

    @field_validator("labels", "target_modules", "sdpa_backends", mode="before")
    @classmethod
    def _listed(cls, value: object) -> object:
        return tuple(map(str, value)) if isinstance(value, list) else value

    @field_validator("labels")
    @classmethod
    def _distinct(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) != len(value) or "" in value:
            raise ValueError("labels must be distinct and not empty")
        return value

    @model_validator(mode="after")
    def _fitting(self) -> Self:
        if self.task == "classification" and len(self.labels) < 2:
            raise ValueError("labels: classification needs at least two")
        if self.bytes_version != BYTES_VERSION:
            raise ValueError(f"bytes_version: this program computes version {BYTES_VERSION}")
        return self

    def to_json(self) -> dict[str, Any]:
        """Key → value, as pinned."""
        return self.model_dump(mode="json")

    @property
    def digest(self) -> str:
        """Digest (hex) that every checkpoint key includes."""
        return digest("recipe", canonical_json(self.to_json())).hex()


class FieldRule(_Section):
    """A routing rule: inputs whose field has a value are answered by that value's shards."""

    field: str = Field(min_length=1, description="name of a field of the inputs")
    shards: dict[str, list[int]] = Field(min_length=1, description="value → numbers of shards")

    @field_validator("shards")
    @classmethod
    def _numbers(cls, value: dict[str, list[int]]) -> dict[str, list[int]]:
        odd = [text for text, numbers in value.items() if not numbers or len(set(numbers)) != len(numbers)]
        if odd:
            raise ValueError(f"{odd[0]!r} needs numbers of shards, each once")
        return value


class RunOptions(_Section):
    """What cannot change a byte of any adapter."""

    base_model: str = Field(description="directory or hub ID of the frozen base, or minilm for the packaged encoder")
    data: tuple[str, ...] = Field(default=(), description="files that ingest and train read when none are named")
    columns: dict[str, str] = Field(
        default_factory=dict,
        description="our column name: the files' column name (id, subject, risk, retention, generation, version, and "
        "the content's); retention: permanent in the first ingest makes the trunk that all shards start from",
    )
    executor: Literal["ray", "inline"] = Field(default="ray", description="where steps run")
    workers: int = Field(default=2, ge=1, description="worker processes, each with its own copy of the base")
    activation_cache: bool = Field(
        default=True, description="keep what the layers below the adapted ones make of each record (layers: last-k)"
    )
    ray_address: str | None = Field(default=None, description="a running Ray cluster; null starts one on this machine")
    cpus_per_worker: float | None = Field(
        default=None,
        ge=0,
        description="CPUs that a worker reserves, or a fraction; null: the recipe's threads",
    )
    gpus_per_worker: float | None = Field(
        default=None,
        ge=0,
        description="GPUs that a worker reserves, or a fraction; null: one for device cuda",
    )
    ray_init: dict[str, Any] = Field(default_factory=dict, description="further settings of ray.init, as {name: value}")
    runtime_env: dict[str, Any] = Field(default_factory=dict, description="Ray's runtime_env of every worker")
    storage: str | None = Field(
        default=None,
        description="directory or bucket (s3://bucket/prefix) for records and checkpoints; null: in the workspace; "
        "set before the first ingest, for whoever opens the workspace: --set does not change it",
    )
    anchor: str | None = Field(
        default=None,
        description="directory or bucket outside the workspace for tree heads and tombstones; null: rollback unnoticed",
    )
    backup_days: int | None = Field(
        default=None,
        ge=0,
        le=36_500,
        description="days after which every backup of this workspace is gone; needs anchor; null: not declared",
    )
    queue_policy: Rule = Field(
        default="window",
        description="when `sisa work` works queued deletions off: now; window: once the oldest waited "
        "queue_window_hours; deadline: as late as may be; cost: once working together saves queue_saving",
    )
    queue_window_hours: float = Field(default=24, ge=0, description="how long queued deletions wait for company")
    queue_saving: float = Field(default=0.5, ge=0, lt=1, description="share of work that queue_policy cost is to save")
    deadline_days: float = Field(
        default=30, gt=0, description="days after which an accepted deletion must be done (GDPR Art. 12(3): a month)"
    )
    deadline_margin_hours: float = Field(default=72, ge=0, description="how long before its deadline it is begun")
    requester_quota: int | None = Field(
        default=None,
        ge=1,
        description="deletions of one requester in 30 days; further ones wait for their deadline; null: no limit",
    )
    requester_cost_cap: int | None = Field(
        default=None,
        ge=0,
        description="record passes (as `sisa requests` estimates them) that deletions of one requester may cost in "
        "30 days; further ones wait for their deadline; null: no limit",
    )
    max_new_tokens: int = Field(default=64, ge=1, description="longest answer that predict generates")
    aggregation: Aggregation = Field(
        default="mean",
        description="how the shards' answers are combined: the mean of their probabilities; logit: of their scores; "
        "vote: the share of shards for a label (classification); weighted: the mean, by records behind each shard",
    )
    routing: Literal["subject"] | FieldRule | None = Field(
        default=None,
        description="which shards answer: null: all; subject: where the input's subject lives; or a rule "
        "{field: NAME, shards: {VALUE: [numbers]}}; see docs/answers.md",
    )
    num_beams: int = Field(default=1, ge=1, description="beams of an answer's search (causal-lm); 1 is greedy")
    temperature: float = Field(
        default=0.0, ge=0, description="answers are drawn at this temperature (causal-lm); 0: the likeliest are given"
    )
    sampling_seed: int = Field(default=0, ge=0, lt=2**63, description="where drawing begins in every call")

    @field_validator("backup_days")
    @classmethod
    def _noticed(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and info.data.get("anchor") is None:
            raise ValueError("needs anchor: without it a restored backup would go unnoticed")
        return value

    @field_validator("storage")
    @classmethod
    def _located(cls, value: str | None) -> str | None:
        if value is not None:
            local_path(value, "a location")
        return value

    @field_validator("data", mode="before")
    @classmethod
    def _listed(cls, value: object) -> object:
        return tuple(map(str, value)) if isinstance(value, list) else value


class Settings(_Section):
    """Both halves of a ``sisa.yaml``."""

    recipe: Recipe
    options: RunOptions

    @model_validator(mode="after")
    def _fitting(self) -> Self:
        recipe, options = self.recipe, self.options
        if options.aggregation == "vote" and recipe.task == "causal-lm":
            raise ValueError("aggregation: votes give no distribution over next tokens; take mean, logit or weighted")
        if isinstance(options.routing, FieldRule):
            unknown = {shard for named in options.routing.shards.values() for shard in named} - {*range(recipe.shards)}
            if unknown:
                raise ValueError(f"routing: no shard {min(unknown)}; they are numbered 0 to {recipe.shards - 1}")
        return self


def known_keys() -> frozenset[str]:
    """Every key that ``sisa.yaml`` and ``--set`` take."""
    return frozenset(Recipe.model_fields) | frozenset(RunOptions.model_fields)


def parse_overrides(pairs: Iterable[str]) -> dict[str, Any]:
    """``key=value`` texts → values, read as YAML.

    Raises:
        ConfigError: for a text without ``=`` or an unknown key.
    """
    values: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals:
            raise ConfigError("--set key=value", repr(pair), "write for instance --set epochs=2")
        values[key.strip()] = _yaml(text, f"--set {key}")
    _refuse_unknown(values, "--set")
    return values


def make_settings(values: Mapping[str, Any], where: str) -> Settings:
    """Settings from flat values.

    Raises:
        ConfigError: naming each key that is unknown, missing or out of range.
    """
    _refuse_unknown(values, where)
    values = {key: _numeric(key, value) for key, value in values.items()}
    sections = {
        "recipe": {key: value for key, value in values.items() if key in Recipe.model_fields},
        "options": {key: value for key, value in values.items() if key in RunOptions.model_fields},
    }
    try:
        return Settings.model_validate(sections)
    except ValidationError as error:
        problems = [
            f"{'.'.join(map(str, item['loc'][1:] or item['loc'] or ('keys together',)))}: {item['msg']}"
            for item in error.errors()
        ]
        raise ConfigError(f"valid values in {where}", "; ".join(problems), "mend the keys named") from error


def read_settings(directory: Path, overrides: Mapping[str, Any]) -> Settings:
    """The settings of a workspace, with ``--set`` values in place.

    Raises:
        ConfigError: if the file is missing, broken or holds wrong keys or values.
    """
    path = directory / CONFIG_FILE
    try:
        values = _yaml(path.read_text(encoding="utf-8"), str(path))
    except OSError as error:
        raise ConfigError(f"a readable {path}", str(error.strerror), "run `sisa init` first, or check -w") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"UTF-8 in {path}", str(error), "restore the file") from error
    if not isinstance(values, dict):
        raise ConfigError(f"`key: value` lines in {path}", type(values).__name__, "restore the file")
    if "storage" in overrides and overrides["storage"] != values.get("storage"):
        raise ConfigError(
            f"the storage that {path} names, where everybody looks",
            f"{overrides['storage']!r} for this command alone",
            "set it in the file, before the first ingest",
        )
    return make_settings({**values, **overrides}, str(path))


def write_settings(directory: Path, settings: Settings) -> None:
    """Write a ``sisa.yaml`` that explains every key."""
    lines = [
        "# sisa.yaml: the configuration of this workspace.",
        "#",
        "# Any key can be overridden for one command with --set key=value.",
        "",
        "# ---- Recipe: can change the bytes of an adapter. Pinned at the first ingest; a later",
        "# ---- difference is refused, because what was trained would no longer be what is described.",
        "",
        *_explained(settings.recipe, "recipe"),
        "# ---- Run options: cannot change a byte. Change them whenever you like.",
        "",
        *_explained(settings.options, "not recipe"),
    ]
    replace_file(directory / CONFIG_FILE, "\n".join(lines).encode())


def _explained(section: _Section, kind: str) -> list[str]:
    lines = []
    values = section.model_dump(mode="json")
    for name, info in type(section).model_fields.items():
        default = "none, required" if info.is_required() else _inline(info.get_default(call_default_factory=True))
        lines += [
            f"# {info.description}",
            f"#   type: {_type_name(info.annotation)} · default: {default} · {kind}",
            f"{name}: {_inline(values[name])}",
            "",
        ]
    return lines


def _inline(value: Any) -> str:
    if isinstance(value, tuple):
        value = list(value)
    text = yaml.safe_dump(value, default_flow_style=True, width=2**31, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")  # no strip(): a value may end in white space


def _type_name(annotation: Any) -> str:
    simple = getattr(annotation, "__name__", "") if not hasattr(annotation, "__args__") else str(annotation)
    return simple.replace("typing.", "").replace("tuple[str, ...]", "list of str").replace("NoneType", "null")


def _numeric(key: str, value: Any) -> Any:
    """YAML reads 1e-3 as text and 1 as int; a float key takes both."""
    info = Recipe.model_fields.get(key)
    if info is not None and info.annotation is float and isinstance(value, str | int) and not isinstance(value, bool):
        try:
            return float(value)
        except ValueError:
            return value
    return value


class _Loader(yaml.SafeLoader):
    """YAML of which no line is silently ignored."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A mapping; a key that occurs twice is refused."""
        mapping = super().construct_mapping(node, deep=deep)
        if len(mapping) != len(node.value):
            keys = [key.value for key, _ in node.value]
            twice = sorted({str(key) for key in keys if keys.count(key) > 1})
            raise yaml.YAMLError(f"a key occurs twice: {', '.join(twice)}")
        return mapping


def _yaml(text: str, where: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506  # a SafeLoader
    except yaml.YAMLError as error:
        raise ConfigError(f"YAML in {where}", str(error), "mend it") from error


def _refuse_unknown(values: Mapping[str, Any], where: str) -> None:
    unknown = [str(key) for key in values if key not in known_keys()]
    if unknown:
        close = difflib.get_close_matches(unknown[0], known_keys(), n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known keys: {', '.join(sorted(known_keys()))}"
        raise ConfigError(f"known keys in {where}", ", ".join(map(repr, unknown)), hint)
