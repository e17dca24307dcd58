"""How good are the answers, and what do they cost? Shards alone, aggregations and merges, side by side.

All constituents read the held-out records once; every line of shards and aggregations is computed from that.
Nothing of it is stored. A record that the workspace holds, or held, is no held-out record.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shards.errors import ConfigError, InputError, MissingDependencyError, OperationError, RecordError
from shards.records import Record, read_records
from shards.vault import StoredRecord
from sisa.methods import METHODS
from sisa.predict import Predictor
from sisa.results import Evaluation, Known, Result
from sisa.served import ServedHead
from sisa.session import Session
from sisa.wording import counted, quoted

if TYPE_CHECKING:
    import torch

    from sisa.plain_model import PlainModel

SAMPLES = 20  # records that answers are generated to; the dearest thing here

_Scores = Sequence["torch.Tensor"]
# What a model is worth: the seconds that it reads all records, and the metrics.
_Measured = tuple[float, Mapping[str, float]]


@dataclass(frozen=True, slots=True)
class _Asked:
    """What everything is asked, and by which merges besides.

    Attributes:
        session: an open session.
        heads: served, in shard order.
        records: to read.
        methods: names of merges.
        weighting: of the shards in them.
        samples: how many answers to generate.
    """

    session: Session
    heads: tuple[ServedHead, ...]
    records: Sequence[Record]
    methods: Sequence[str]
    weighting: str
    samples: int

    def contents(self) -> list[dict[str, Any]]:
        """Of every record."""
        return [record.fields() for record in self.records]

    def conversations(self) -> tuple[list[dict[str, Any]], list[str]]:
        """Inputs and true answers of the first records that have both; a bare text is no question."""
        asked = [one for one in self.contents() if "prompt" in one or len(one.get("messages", ())) > 1][: self.samples]
        inputs = [
            {"messages": one["messages"][:-1]} if "messages" in one else {"prompt": one["prompt"]} for one in asked
        ]
        answers = [one["messages"][-1]["content"] if "messages" in one else one["completion"] for one in asked]
        return inputs, answers

    def merges(self, measure: Callable[[PlainModel], _Measured]) -> list[Result]:
        """A line for each merge asked for, made and measured one at a time: it is as large as a model."""
        return [self._merge(method, measure) for method in self.methods]

    def _merge(self, method: str, measure: Callable[[PlainModel], _Measured]) -> Result:
        """A merge's line; of one that cannot be made or measured here, what is in the way."""
        from sisa.aggregate import release_all
        from sisa.merge import merge
        from sisa.plain_model import merged_model

        release_all()  # two copies of the base may not fit
        try:
            merged = merge(self.session, self.heads, method, weighting=self.weighting)
            release_all()
            seconds, metrics = measure(merged_model(self.session, merged.tensors))
        except (InputError, MissingDependencyError) as error:
            why = f"not measured: needs {error.expected}; found {error.found}"
            return Result(method, "merge", 1, None, {}, {"error": None, "seed": None, "warnings": [why]})
        notes = {"error": merged.error, "seed": merged.seed, "warnings": list(merged.warnings)}
        return Result(method, "merge", 1, seconds, metrics, notes)


def evaluate(
    session: Session,
    data: Sequence[Path],
    *,
    methods: Sequence[str] = (),
    weighting: str = "equal",
    samples: int = SAMPLES,
    include_known: bool = False,
) -> Evaluation:
    """Evaluate what is served on the records of ``data``.

    Args:
        session: an open session.
        data: files that ``ingest`` could read.
        methods: merges to evaluate too.
        weighting: of shards in a merge: ``equal``, or by surviving ``records``.
        samples: to how many records answers are generated (causal-lm).
        include_known: also take records that this workspace holds or has deleted.

    Raises:
        InputError: if nothing is served, a method is unknown, or a record is known and not included.
        RecordError: if a record is wrong, or has no answer.
        OperationError: if other heads are served by the end.
    """
    manifest, heads = Predictor(session).held()
    _check_methods(methods)
    read = read_records(
        data, session.recipe.task, columns=session.options.columns, labels=session.recipe.labels or None
    )
    records = [item.record for item in read]
    if not records:
        raise InputError("records to evaluate on", "none", "name files with --data")
    known = _known(session, records, include=include_known)
    classifies = session.recipe.task == "classification"
    asked = _Asked(session, heads, records, methods, weighting, 0 if classifies else samples)
    results = _labelled(asked) if classifies else _spoken(asked)
    if session.workspace.book.manifest() != manifest:
        raise OperationError("the same heads served throughout", "a swap meanwhile", "run the same command again")
    return Evaluation(manifest, len(records), 0 if classifies else len(asked.conversations()[0]), known, tuple(results))


def _check_methods(methods: Sequence[str]) -> None:
    """Before anything is computed."""
    unknown = [method for method in methods if method not in METHODS]
    if unknown:
        raise InputError(f"merges: {', '.join(METHODS)}", unknown[0], "choose some of them")


def _known(session: Session, records: Sequence[Record], *, include: bool) -> Known:
    """Which records are no held-out ones, by ID and tag, and by content."""
    workspace, namespace = session.workspace, session.recipe.namespace
    forgotten, contents = workspace.book.tombstones(), set(workspace.book.deleted_contents())
    ids = set()
    for stored in workspace.survivors():
        ids.add(stored.record.id)
        contents.add(stored.fingerprint)
    held = {record.id for record in records if record.id in ids}
    deleted = {record.id for record in records if workspace.tag(record.id) in forgotten} - held
    others = [record for record in records if record.id not in held | deleted]
    fingerprints = [StoredRecord.of(one, workspace.keys, namespace, truncated=False).fingerprint for one in others]
    if (held or deleted) and not include:
        raise InputError(
            "records that this workspace never held",
            f"{len(held)} of {counted(len(records), 'record')} held here and {len(deleted)} deleted here, "
            f"for instance ID {quoted(min(held | deleted))}",
            "leave them out; with --include-known they are taken, and the result says so",
        )
    return Known(len(held), len(deleted), sum(one in contents for one in fingerprints))


# -- classification ---------------------------------------------------------------------------


def _labelled(asked: _Asked) -> list[Result]:
    """Labels: every constituent's scores from one pass."""
    import torch

    from sisa.aggregate import shard_logits
    from sisa.ensemble import POOLINGS, pool
    from sisa.metrics import classification

    inputs = asked.contents()
    targets = torch.tensor([asked.session.recipe.labels.index(content["label"]) for content in inputs])
    shard_logits(asked.session, asked.heads, inputs[:1])  # what is loaded once is not timed
    started = time.monotonic()
    logits = shard_logits(asked.session, asked.heads, inputs)
    seconds = time.monotonic() - started
    results = _shards(asked, [classification(each.double().softmax(-1), targets) for each in logits])
    behind = [head.records for head in asked.heads]
    results += [
        Result(how, "aggregation", len(behind), seconds, classification(pool(logits, how, behind), targets), {})
        for how in POOLINGS
    ]

    def measure(model: PlainModel) -> _Measured:
        started = time.monotonic()
        scores = model.logits(inputs)
        return time.monotonic() - started, classification(scores.softmax(-1), targets)

    return results + asked.merges(measure)


def _shards(asked: _Asked, metrics: Sequence[Mapping[str, float]]) -> list[Result]:
    """A line for each constituent alone; all were read in one pass, so none has a time of its own."""
    return [
        Result(f"shard {head.head.shard}", "shard", 1, None, found, {"records_behind": head.records})
        for head, found in zip(asked.heads, metrics, strict=True)
    ]


# -- language models --------------------------------------------------------------------------


def _spoken(asked: _Asked) -> list[Result]:
    """Answers: the probability of the true ones from one pass, and generated ones of some records.

    The pass gives each constituent's probability of the true tokens only. That is enough for the mean and the
    weighted mean of probabilities; the mean of logits takes a pass of its own, for it needs the whole vocabulary.
    """
    import torch

    from sisa.aggregate import answer_scores, generate

    session, heads, contents = _greedy(asked.session), asked.heads, asked.contents()
    _refuse_silent(session, asked.records)
    answer_scores(session, heads, contents[:1])
    started = time.monotonic()
    scores = answer_scores(session, heads, contents)
    seconds = time.monotonic() - started
    inputs, truths = asked.conversations()
    metrics = [
        _answers([each[number] for each in scores]) | _rouge(generate(session, (head,), inputs), truths)
        for number, head in enumerate(heads)
    ]
    results = _shards(asked, metrics)
    behind = torch.tensor([head.records for head in heads], dtype=torch.float64)
    for how, weights in (("mean", torch.ones_like(behind)), ("weighted", behind)):
        shares = (weights / weights.sum()).log()[:, None]
        found = _answers([(each.double() + shares).logsumexp(0) for each in scores])
        found |= _rouge(generate(_greedy(session, how), heads, inputs), truths)
        results.append(Result(how, "aggregation", len(heads), seconds, found, {}))
    results.append(_by_logits(asked, _rouge(generate(_greedy(session, "logit"), heads, inputs), truths)))

    def measure(model: PlainModel) -> _Measured:
        started = time.monotonic()
        alone = model.answer_scores(contents)
        seconds = time.monotonic() - started
        return seconds, _answers(alone) | _rouge(model.generate(inputs), truths)

    return results + replace(asked, session=session).merges(measure)


def _greedy(session: Session, aggregation: str = "mean") -> Session:
    """The same, answering by the likeliest tokens under an aggregation, whatever the options say."""
    changed = {"aggregation": aggregation, "num_beams": 1, "temperature": 0.0}
    return replace(session, options=session.options.model_copy(update=changed))


def _by_logits(asked: _Asked, rouge: dict[str, float]) -> Result:
    """The mean of logits, of the model that an export would hold; without scores where heads cannot share a pass."""
    from sisa.aggregate import ensemble
    from sisa.plain_model import PlainModel

    session, count = _greedy(asked.session, "logit"), len(asked.heads)
    try:
        model = PlainModel(session, ensemble(session, asked.heads))
    except ConfigError as error:
        return Result("logit", "aggregation", count, None, rouge, {"warnings": [f"not scored: found {error.found}"]})
    started = time.monotonic()
    scores = model.answer_scores(asked.contents())
    return Result("logit", "aggregation", count, time.monotonic() - started, _answers(scores) | rouge, {})


def _refuse_silent(session: Session, records: Sequence[Record]) -> None:
    from sisa.base_model import load_tokenizer, pinned_path
    from sisa.encoding import encode

    tokenizer = load_tokenizer(session.recipe, str(pinned_path(session.recipe, session.options.base_model)))
    silent = [record.id for record in records if not encode(record, session.recipe, tokenizer).trainable]
    if silent:
        found = f"{len(silent)} of {len(records)} without, for instance {silent[0]!r}"
        raise RecordError("answers within max_length", found, "leave them out; nothing was evaluated")


def _answers(scores: _Scores) -> dict[str, float]:
    from sisa.metrics import answer_probability, perplexity

    return {"perplexity": perplexity(scores), "answer_probability": answer_probability(scores)}


def _rouge(answers: Sequence[str], truths: Sequence[str]) -> dict[str, float]:
    """Mean ROUGE-L of the generated answers; nothing if there are none."""
    from sisa.metrics import rouge_l

    found = [rouge_l(answer, truth) for answer, truth in zip(answers, truths, strict=True)]
    if not found:
        return {}
    return {
        "rouge_l_recall": math.fsum(one.recall for one in found) / len(found),
        "rouge_l_f1": math.fsum(one.f1 for one in found) / len(found),
    }
