"""Answers from the served heads, one JSON object per input."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

from shards.digest import parse_json
from shards.errors import RecordError
from sisa.anchoring import refuse_rollback
from sisa.base_model import require_train_extra
from sisa.session import Session

_INPUTS = {"classification": ("text",), "causal-lm": ("messages", "prompt", "text")}


def read_inputs(lines: Iterable[str], task: str) -> list[dict[str, Any]]:
    """JSONL lines as inputs: an optional ``id`` and what the task asks for.

    Raises:
        RecordError: naming the line that is wrong.
    """
    inputs = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
            _check_input(row, task)
        except (ValueError, RecursionError) as error:
            raise RecordError(
                "one JSON object a line", f"line {number}: {error}", "mend the input; nothing was predicted"
            ) from error
        inputs.append(row)
    if not inputs:
        raise RecordError("at least one input", "none", "give --text, or a file with lines")
    return inputs


def _check_input(row: Any, task: str) -> None:
    name = next((name for name in _INPUTS[task] if name in row), None) if isinstance(row, dict) else None
    if name is None:
        raise ValueError(f"no {' or '.join(_INPUTS[task])}")
    value = row[name]
    if name != "messages" and not isinstance(value, str):
        raise ValueError(f"{name!r} must be a string, not {type(value).__name__}")
    if name == "messages" and not (isinstance(value, list) and value and all(map(_is_message, value))):
        raise ValueError("'messages' must be a list of {role, content}, both strings")
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"not valid Unicode ({error.reason})") from error


def _is_message(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(value.get(name), str) for name in ("role", "content"))


def predict(session: Session, inputs: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """``{id, label, probabilities}`` or ``{id, text}`` for each input.

    Raises:
        InputError: if nothing was trained yet.
        IntegrityError: if the workspace is older than its anchor: it may serve what was forgotten.
    """
    require_train_extra()
    refuse_rollback(session.workspace, session.options.anchor)
    from sisa.aggregate import classify, generate

    if session.recipe.task == "classification":
        for fields, means in zip(inputs, classify(session, inputs), strict=True):
            best = max(means, key=lambda label: means[label])
            yield {"id": fields.get("id"), "label": best, "probabilities": means}
    else:
        for fields, text in zip(inputs, generate(session, inputs), strict=True):
            yield {"id": fields.get("id"), "text": text}
