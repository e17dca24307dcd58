"""Multiple-choice tasks for lm-eval, by its own name or from a file of questions, on an exported model.

A file (``.jsonl``) has one question a line, in one of two forms; ``gold`` is the number of the right one, from 0:

    query, choices, gold                     PIQA, BoolQ, ARC, HellaSwag, OpenBookQA
    context_options, continuation, gold      WinoGrande: the continuation is scored after each context
"""

from __future__ import annotations

import importlib.util
import logging
import math
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from shards.digest import parse_json
from shards.errors import ConfigError, InputError, MissingDependencyError, RecordError
from shards.workspace import ADAPTER_CONFIG_FILE
from sisa.base_model import quiet_transformers
from sisa.wording import counted

ENSEMBLE = "sisa-ensemble"  # the model type of what brings its own code
_SPLIT = "test"
_FORMS: dict[tuple[str, ...], dict[str, Any]] = {
    ("query", "choices", "gold"): {
        # a question is answered, as in lm-eval's own tasks; anything else is continued
        "doc_to_text": "{{query.strip()}}{{'\\nAnswer:' if 'Question:' in query else ''}}",
        "doc_to_choice": "choices",
        "doc_to_target": "gold",
        "metrics": ("acc", "acc_norm"),
    },
    ("context_options", "continuation", "gold"): {
        "doc_to_text": "gold",  # a number tells lm-eval that contexts are the choices
        "doc_to_choice": "context_options",
        "doc_to_target": "continuation",
        "metrics": ("acc",),
    },
}


def task_config(file: Path, cache: Path) -> dict[str, Any]:
    """lm-eval's configuration of a file's task, named ``local_`` and the file's name.

    Args:
        file: the questions.
        cache: where lm-eval may keep a copy of them.

    Raises:
        RecordError: naming the line whose form is neither of the two.
    """
    form = _form(file)
    settings = dict(_FORMS[form])
    metrics = settings.pop("metrics")
    return {
        "task": f"local_{file.stem}",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {_SPLIT: str(file.resolve())}, "cache_dir": str(cache)},
        "output_type": "multiple_choice",
        f"{_SPLIT}_split": _SPLIT,
        **settings,
        "metric_list": [{"metric": name, "aggregation": "mean", "higher_is_better": True} for name in metrics],
        "metadata": {"version": 1},
    }


def _form(file: Path) -> tuple[str, ...]:
    """The one form that every line of a file has."""
    found: tuple[str, ...] | None = None
    try:
        lines = file.read_text(encoding="utf-8").split("\n")  # a string may hold other ends of lines
    except OSError as error:
        raise RecordError(f"a readable file {file}", str(error.strerror or error), "check the path") from error
    except UnicodeError as error:
        raise RecordError(f"UTF-8 in {file}", str(error), "mend the file") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
        except (ValueError, RecursionError) as error:
            raise _wrong(file, number, f"broken JSON ({error})") from error
        form = next((form for form in _FORMS if isinstance(row, dict) and set(form) <= row.keys()), None)
        if form is None or found not in {None, form}:
            raise _wrong(file, number, "a line of another form")
        found = form
        _check_gold(file, number, row, form)
    if found is None:
        raise _wrong(file, 1, "no questions")
    return found


def _check_gold(file: Path, number: int, row: dict[str, Any], form: tuple[str, ...]) -> None:
    options = row["choices" if "choices" in form else "context_options"]
    gold = row["gold"]
    if not isinstance(options, list) or len(options) < 2 or not all(isinstance(one, str) for one in options):
        raise _wrong(file, number, "fewer than two texts to choose from")
    if isinstance(gold, bool) or not isinstance(gold, int) or not 0 <= gold < len(options):
        raise _wrong(file, number, f"gold is {gold!r} of {len(options)} choices")


def _wrong(file: Path, number: int, what: str) -> RecordError:
    forms = " or ".join(", ".join(form) for form in _FORMS)
    return RecordError(f"lines of {forms}", f"{file.name}:{number}: {what}", "mend the file")


def run_tasks(
    model: Path, tasks: Sequence[str], *, limit: int | None = None, base_model: str | None = None
) -> list[dict[str, Any]]:
    """What lm-eval finds of an exported model, a row a task: ``{name, questions, accuracy, ...}``.

    Args:
        model: directory of a full model, of an ensemble of ours, or of a PEFT adapter.
        tasks: names that lm-eval knows (it fetches their questions), or files.
        limit: ask only so many questions of each task.
        base_model: where the base of an adapter lies, if not where the adapter says.

    Raises:
        MissingDependencyError: if lm-eval is not installed.
        ConfigError: if no causal model is in the directory, or one whose code is not this version's.
        InputError: if a task is neither a name that lm-eval knows nor a file.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise MissingDependencyError("the package lm-eval, which asks the tasks", "none", "pip install 'sisa[eval]'")
    arguments = _model_arguments(model, base_model)
    files = [Path(task) for task in tasks if _is_file(task)]
    names = [task for task in tasks if not _is_file(task)]
    twice = sorted(stem for stem, count in Counter(file.stem for file in files).items() if count > 1)
    if twice:
        raise InputError("files of different names, after which tasks are named", f"{twice[0]} twice", "rename one")
    with tempfile.TemporaryDirectory(prefix="sisa-tasks-") as scratch:
        configs = [task_config(file, Path(scratch) / "cache") for file in files]
        for config in configs:
            (Path(scratch) / f"{config['task']}.yaml").write_text(yaml.safe_dump(config))
        with _quiet(), quiet_transformers():
            found = _ask(arguments, [config["task"] for config in configs], names, Path(scratch), limit)
    return [
        {"name": name, "kind": "task", "questions": found["n-samples"][name]["effective"]}
        | {ours: metrics[theirs] for theirs, ours in _METRICS.items() if _is_number(metrics.get(theirs))}
        for name, metrics in found["results"].items()
        if name in found["n-samples"]
    ]


_METRICS = {
    "acc,none": "accuracy",
    "acc_stderr,none": "accuracy_error",
    "acc_norm,none": "accuracy_normalised",
    "acc_norm_stderr,none": "accuracy_normalised_error",
}


def _is_number(value: Any) -> bool:
    """One question alone has no error: lm-eval writes a word in its place."""
    return isinstance(value, int | float) and math.isfinite(value)


def _is_file(task: str) -> bool:
    return task.endswith(".jsonl")


def _ask(
    arguments: dict[str, Any], local: Sequence[str], names: Sequence[str], scratch: Path, limit: int | None
) -> dict[str, Any]:
    import torch
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(scratch), include_defaults=bool(names))
    unknown = [name for name in names if name not in manager.all_tasks]
    if unknown:
        raise InputError("a task that lm-eval knows, or a file ending in .jsonl", unknown[0], "see `lm_eval ls tasks`")
    found: dict[str, Any] = simple_evaluate(
        model="hf",
        model_args=arguments,
        tasks=[*local, *names],
        task_manager=manager,
        device="cuda" if torch.cuda.is_available() else "cpu",
        limit=limit,
        log_samples=False,
    )
    return found


def _model_arguments(model: Path, base_model: str | None) -> dict[str, Any]:
    """What lm-eval is told of a directory, once it is sure that a causal model is in it."""
    if (model / ADAPTER_CONFIG_FILE).is_file():
        said = _said(model / ADAPTER_CONFIG_FILE)
        _check_causal(said.get("task_type") == "CAUSAL_LM", str(said.get("task_type")))
        return {"pretrained": base_model or str(said.get("base_model_name_or_path")), "peft": str(model)}
    if (model / "config.json").is_file():
        said = _said(model / "config.json")
        own = said.get("model_type") == ENSEMBLE
        names = said.get("architectures") or []
        _check_causal(not _causal().isdisjoint(names), ", ".join(map(str, names)) or "no architecture")
        if own:
            _check_code(model, said)
        return {"pretrained": str(model)} | ({"trust_remote_code": True} if own else {})
    shards = sorted(file.parent for file in model.glob(f"*/{ADAPTER_CONFIG_FILE}"))
    if shards:
        found = f"{counted(len(shards), 'adapter')}, one a shard"
        raise ConfigError(f"one model in {model}", found, f"ask one of them, such as {shards[0]}, or another form")
    raise ConfigError(f"an exported model in {model}", "neither config.json nor an adapter", "run `sisa export`")


def _said(file: Path) -> dict[str, Any]:
    try:
        said = parse_json(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"a configuration in {file}", str(error), "export the model again") from error
    return said if isinstance(said, dict) else {}


def _causal() -> set[str]:
    """Architectures that give the next token."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return {"EnsembleForCausalLM", *MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()}


def _check_causal(causal: bool, found: str) -> None:
    if not causal:
        raise ConfigError(
            "a causal language model: lm-eval compares how likely texts are", found,
            "measure a classification model by `sisa evaluate --data`",
        )  # fmt: skip


def _check_code(model: Path, said: dict[str, Any]) -> None:
    """An ensemble brings its own code, which is run only if it is ours to the byte."""
    from sisa import ensemble

    ours, theirs = Path(ensemble.__file__), model / Path(ensemble.__file__).name
    named = {str(where).rpartition(".")[0] for where in (said.get("auto_map") or {}).values()}
    if named != {ours.stem} or not theirs.is_file() or theirs.read_bytes() != ours.read_bytes():
        raise ConfigError(
            f"this version's own code in {theirs}", "other code, which is not run here",
            "export the ensemble again with this version",
        )  # fmt: skip


@contextmanager
def _quiet() -> Iterator[None]:
    """Only what lm-eval warns of."""
    loggers = [logging.getLogger(name) for name in ("lm_eval", "lm-eval")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
