"""Answers from the served heads, one JSON object per input."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from shards.digest import parse_json
from shards.errors import RecordError
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
            if not isinstance(row, dict) or not any(name in row for name in _INPUTS[task]):
                raise ValueError(f"no {' or '.join(_INPUTS[task])}")
        except ValueError as error:
            raise RecordError(
                "one JSON object a line", f"line {number}: {error}", "mend the input; nothing was predicted"
            ) from error
        inputs.append(row)
    if not inputs:
        raise RecordError("at least one input", "none", "give --text, or a file with lines")
    return inputs


def predict(session: Session, inputs: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """``{id, label, probabilities}`` or ``{id, text}`` for each input.

    Raises:
        InputError: if nothing was trained yet.
    """
    require_train_extra()
    from sisa.aggregate import classify, generate

    if session.recipe.task == "classification":
        for fields, means in zip(inputs, classify(session, inputs), strict=True):
            best = max(means, key=lambda label: means[label])
            yield {"id": fields.get("id"), "label": best, "probabilities": means}
    else:
        for fields, text in zip(inputs, generate(session, inputs), strict=True):
            yield {"id": fields.get("id"), "text": text}
