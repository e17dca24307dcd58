"""Why an answer is what it is: what each shard says, and what would be said without it.

Sharding is its own explanation. Each constituent saw other records, so its vote, and the answer without it, say
which records stand behind an answer; a record's ID then names its shard (``sisa audit``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from sisa.predict import Predictor
from sisa.served import ServedHead
from sisa.session import Session


def explain(session: Session, text: str) -> dict[str, Any]:
    """The ``explain`` JSON document: the answer of all shards, whatever the routing, and each shard's part in it.

    Of classification ``{generation, aggregation, label, probabilities, shards: [{shard, checkpoint, records, label,
    probability, probabilities, without}]}``, where ``without`` is ``{label, probabilities}``, or null if no other
    shard serves. Of a causal LM ``text`` in place of label and probabilities; a shard has its own greedy ``text``,
    and ``log_probability``, the mean over the tokens of the answer of all and its end (null if it is empty).

    Raises:
        InputError: if nothing is served.
    """
    said = _labels if session.recipe.task == "classification" else _texts
    manifest, document = Predictor(session).during(lambda heads: said(session, heads, text))
    return {"generation": manifest.generation, "aggregation": session.options.aggregation, **document}


def _labels(session: Session, heads: Sequence[ServedHead], text: str) -> dict[str, Any]:
    from sisa.aggregate import shard_logits
    from sisa.ensemble import pool

    logits = shard_logits(session, heads, [{"text": text}])[:, 0]

    def together(shards: Sequence[int], how: str) -> dict[str, Any]:
        pooled = pool(logits[list(shards)], how, [heads[at].records for at in shards]).tolist()
        probabilities = dict(zip(session.recipe.labels, pooled, strict=True))
        return {"label": max(probabilities, key=lambda label: probabilities[label]), "probabilities": probabilities}

    everyone, how = range(len(heads)), session.options.aggregation
    shards = []
    for at in everyone:
        own, others = together([at], "mean"), [other for other in everyone if other != at]
        without = together(others, how) if others else None
        shards.append(_named(heads[at]) | own | {"probability": own["probabilities"][own["label"]], "without": without})
    return together(everyone, how) | {"shards": shards}


def _texts(session: Session, heads: Sequence[ServedHead], text: str) -> dict[str, Any]:
    """All answers are greedy: what differs is a shard's doing, and not the luck of a draw."""
    from sisa.aggregate import answer_scores, generate

    asked = [{"prompt": text}]
    greedy = replace(session, options=session.options.model_copy(update={"num_beams": 1, "temperature": 0.0}))
    (answer,) = generate(greedy, heads, asked)
    scores = answer_scores(session, heads, [{**asked[0], "completion": answer}])[0] if answer.strip() else None
    shards = []
    for at, head in enumerate(heads):
        others = [*heads[:at], *heads[at + 1 :]]
        own = {
            "text": generate(greedy, [head], asked)[0],
            "log_probability": float(scores[at].mean()) if scores is not None and scores.shape[1] else None,
            "without": {"text": generate(greedy, others, asked)[0]} if others else None,
        }
        shards.append(_named(head) | own)
    return {"text": answer, "shards": shards}


def _named(head: ServedHead) -> dict[str, Any]:
    return {"shard": head.head.shard, "checkpoint": head.head.checkpoint, "records": head.records}
