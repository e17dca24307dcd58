"""Answers from the served heads, one JSON object per input."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from shards.digest import parse_json
from shards.errors import InputError, IntegrityError, RecordError
from shards.manifest import ModelManifest
from sisa.anchoring import refuse_rollback
from sisa.base_model import require_train_extra
from sisa.routing import route
from sisa.served import ServedHead, served_heads
from sisa.session import Session

_Made = TypeVar("_Made")
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


@dataclass(frozen=True, slots=True)
class Answer:
    """Answers from one generation of the served set.

    Attributes:
        manifest: what was served from the first to the last of them.
        rows: ``{id, label, probabilities, generation}`` or ``{id, text, generation}`` for each input. Where inputs are
            routed, ``routed`` says to which shards and which of them answered, and ``note`` what is amiss with
            them; without any that serves, label and probabilities, or text, are None.
    """

    manifest: ModelManifest
    rows: tuple[dict[str, Any], ...]


class Predictor:
    """Answers for as long as a process lives, and notices when another set is served.

    The heads are read once a generation. An answer is made with the heads of one generation and handed
    out only if that is still the one served: once a deletion is accepted, nothing that saw its records
    answers any more, not even what had begun to.
    """

    def __init__(self, session: Session) -> None:
        require_train_extra()
        self._session = session
        self._loaded: tuple[ModelManifest, tuple[ServedHead, ...]] | None = None

    def refresh(self) -> ModelManifest:
        """Hold what is served now, and let go of anything else; ``answer`` does this by itself.

        Raises:
            InputError: if nothing is served.
            IntegrityError: if the workspace is older than its anchor (it may serve what was forgotten) or
                was replaced by a backup since it was opened, or a head is damaged.
        """
        return self.held()[0]

    def held(self) -> tuple[ModelManifest, tuple[ServedHead, ...]]:
        """What is served now and its heads, read once; for what is made of them apart from answers.

        Raises:
            InputError: if nothing is served.
            IntegrityError: as :meth:`refresh` says.
        """
        current = self._current()
        while self._loaded is None or self._loaded[0] != current:
            self._let_go()
            refuse_rollback(self._session.workspace, self._session.options.anchor)
            try:
                self._loaded = current, served_heads(self._session.workspace, current)
            except IntegrityError:
                if self._current() == current:
                    raise
            current = self._current()  # a head may be purged while it is read
        return self._loaded

    def _let_go(self) -> None:
        """Forget the heads, and what this process computes with: a fallen head's tensors stay in no cache."""
        if self._loaded is not None:
            from sisa.aggregate import release_all

            self._loaded = None
            release_all()

    def answer(self, inputs: Sequence[dict[str, Any]]) -> Answer:
        """Answer every input, all of one generation.

        Raises:
            InputError: if nothing is served, or a routing rule cannot be applied to an input.
            IntegrityError: as :meth:`refresh` says.
        """
        manifest, rows = self.during(lambda heads: self._rows(heads, inputs))
        return Answer(manifest, tuple({**row, "generation": manifest.generation} for row in rows))

    def during(self, work: Callable[[tuple[ServedHead, ...]], _Made]) -> tuple[ModelManifest, _Made]:
        """What ``work`` makes of the served heads, and their manifest; done again if others are served meanwhile.

        Raises:
            InputError: if nothing is served.
            IntegrityError: as :meth:`refresh` says.
        """
        while True:
            manifest, heads = self.held()
            made = work(heads)
            if self._current() == manifest:
                return manifest, made

    def _current(self) -> ModelManifest:
        workspace = self._session.workspace
        if workspace.ledger.replaced():
            self._let_go()
            raise IntegrityError(
                f"the ledger that was opened in {workspace.path}",
                "another file in its place: a backup was restored",
                "open the workspace again",
            )
        manifest = workspace.book.manifest()
        if manifest is None or not manifest.heads:
            self._let_go()
            raise InputError("a trained shard", "none is served", "run `sisa train` first")
        return manifest

    def _rows(self, heads: Sequence[ServedHead], inputs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        if self._session.options.routing is None:
            answers = self._said(heads, inputs)
            return [{"id": fields.get("id"), **answer} for fields, answer in zip(inputs, answers, strict=True)]
        routes = route(self._session, heads, inputs)
        rows: list[dict[str, Any]] = [{}] * len(inputs)
        for shards in sorted({each.shards for each in routes}):
            places = [at for at, each in enumerate(routes) if each.shards == shards]
            asked = [head for head in heads if head.head.shard in shards]
            answers = self._said(asked, [inputs[at] for at in places])
            for at, answer in zip(places, answers, strict=True):
                routed = {"by": routes[at].by, "shards": list(shards), "answered": [head.head.shard for head in asked]}
                rows[at] = {"id": inputs[at].get("id"), **answer, "routed": routed, "note": routes[at].note or None}
        return rows

    def _said(self, heads: Sequence[ServedHead], inputs: Sequence[dict[str, Any]]) -> Sequence[dict[str, Any]]:
        """What these heads together answer; nothing if there are none."""
        from sisa.aggregate import classify, generate

        options = self._session.options
        if self._session.recipe.task == "classification":
            if not heads:
                return [{"label": None, "probabilities": None}] * len(inputs)
            means = classify(self._session, heads, inputs)
            return [{"label": max(mean, key=lambda label: mean[label]), "probabilities": mean} for mean in means]
        drawn = {"temperature": options.temperature, "seed": options.sampling_seed}
        recorded = {"sampling": drawn} if options.temperature else {}
        texts = generate(self._session, heads, inputs) if heads else [None] * len(inputs)
        return [{"text": text, **recorded} for text in texts]
