"""Does a deletion show in the difference of two models? What an attacker with the old and the new one finds.

    python -m benchmarks.leakage --data DIR [--quick] [--out FILE]

DIR holds Banking77's ``train.csv``. Single records are deleted one after the other, the hit shard is trained again
each time, and an attacker looks for the record among others that were never trained on. He scores a candidate by
what he has of it, the loss (nats) of its true label:

    new     under the new model: minus the loss. It never saw any of them, so this must find nothing
    old     under the old model: minus the loss; ordinary membership inference, to compare with
    both    how much the loss grew from the old model to the new one

``ensemble`` has the served probabilities (the mean over shards), ``shard`` the adapter of the shard that changed, as
an export of every adapter hands it out. ``batch`` compares the first model with the last, between which all of the
records went. AUC: the chance that the deleted record scores above a never-seen one; 0.5 finds nothing. Intervals are
the middle 95 % of a bootstrap over deleted and never-seen records. ``--quick`` runs the same code on made-up records
in about a minute; its figures mean nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.data import BANKING77, banking_records, labels_of, spread, synthetic_records, write_jsonl
from benchmarks.environment import environment, load
from benchmarks.settings import recipe_values
from orchestration.inline import InlineExecutor
from shards.records import Record
from sisa.delete import delete
from sisa.initialise import initialise
from sisa.served import served_heads
from sisa.session import Session, open_session
from sisa.train import train

if TYPE_CHECKING:
    import torch

RESULT = Path(__file__).parent / "results" / "leakage.json"
VIEWS = ("ensemble", "shard")
ATTACKERS = ("new", "old", "both")


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is measured.

    Attributes:
        records: trained on.
        never_seen: of the same kind, trained on by nobody.
        deletions: of single records.
        shards: S.
        slices: R; rehearsal is 0.
        epochs: passes of each step; more of them memorise more.
        resamples: of the bootstrap.
    """

    records: int
    never_seen: int
    deletions: int
    shards: int
    slices: int
    epochs: int
    resamples: int


WHOLE = Sizes(2000, 500, 32, 4, 4, 6, 2000)
QUICK = Sizes(48, 24, 3, 2, 2, 1, 200)

Logits = Mapping[int, "torch.Tensor"]  # shard → (candidates, labels)


# -- the attack -------------------------------------------------------------------------------


def losses(probabilities: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Loss (nats) of each candidate's true label, (candidates)."""
    return -probabilities.double().gather(1, targets[:, None])[:, 0].log()


def seen_through(logits: Logits, view: str, shard: int) -> torch.Tensor:
    """Probabilities (candidates, labels) that an attacker with this view reads."""
    import torch

    if view == "shard":
        return logits[shard].softmax(-1)
    return torch.stack([each.softmax(-1) for each in logits.values()]).mean(0)


def score(attacker: str, old: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    """How likely each candidate is the deleted one, by its losses under both models; only their order counts."""
    return {"new": -new, "old": -old, "both": new - old}[attacker]


def wins(deleted: torch.Tensor, never_seen: torch.Tensor) -> torch.Tensor:
    """For each never-seen record: 1 if the deleted one scores above it, 0 if below, 0.5 if neither."""
    return (deleted > never_seen).double() + 0.5 * (deleted == never_seen).double()


def interval(won: torch.Tensor, resamples: int, seed: int = 0) -> tuple[float, float]:
    """The middle 95 % of means of ``won`` (deleted, never seen), rows and columns drawn again and again."""
    import torch

    source = torch.Generator().manual_seed(seed)
    means = []
    for _ in range(resamples):
        rows = torch.randint(won.shape[0], (won.shape[0],), generator=source)
        columns = torch.randint(won.shape[1], (won.shape[1],), generator=source)
        means.append(won[rows][:, columns].mean())
    low, high = torch.stack(means).quantile(torch.tensor([0.025, 0.975], dtype=won.dtype)).tolist()
    return float(low), float(high)


@dataclass(frozen=True, slots=True)
class Event:
    """A deletion as an attacker sees it.

    Attributes:
        candidate: position of the deleted record among all candidates.
        shard: that was trained again.
        old, new: every candidate's logits before and after.
    """

    candidate: int
    shard: int
    old: Logits
    new: Logits


def attack(
    events: Sequence[Event], targets: torch.Tensor, never_seen: slice, view: str, attacker: str, resamples: int
) -> dict[str, Any]:
    """AUC of one attacker over all events, each with its own candidates."""
    import torch

    rows = []
    for event in events:
        old, new = (losses(seen_through(some, view, event.shard), targets) for some in (event.old, event.new))
        scores = score(attacker, old, new)
        rows.append(wins(scores[event.candidate], scores[never_seen]))
    won = torch.stack(rows)
    low, high = interval(won, resamples)
    return {
        "view": view,
        "attacker": attacker,
        "auc": float(won.mean()),
        "low": low,
        "high": high,
        "auc_of_each": [round(value, 4) for value in won.mean(1).tolist()],
    }


# -- what is attacked -------------------------------------------------------------------------


def split(records: Sequence[Record], sizes: Sizes) -> tuple[list[Record], list[Record], list[Record]]:
    """Records to train on, those of them to delete, and never-seen ones; each evenly over the file."""
    chosen = spread(records, sizes.records + sizes.never_seen)
    never_seen = spread(chosen, sizes.never_seen)
    out = {record.id for record in never_seen}
    kept = [record for record in chosen if record.id not in out]
    return kept, spread(kept, sizes.deletions), never_seen


def measure(
    records: Sequence[Record],
    sizes: Sizes,
    scratch: Path,
    base_model: str = "minilm",
    tell: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Train, delete one record after the other, and attack."""
    import torch

    kept, gone, never_seen = split(records, sizes)
    labels = labels_of(records)
    candidates = [*gone, *never_seen]
    targets = torch.tensor([labels.index(str(record.fields()["label"])) for record in candidates])
    data, workspace = scratch / "records.jsonl", scratch / "workspace"
    write_jsonl(data, kept)
    values = recipe_values(sizes.shards, sizes.slices, 0.0) | {"epochs": sizes.epochs, "labels": list(labels)}
    initialise(workspace, task="classification", base_model=base_model, data=[data], values=values)
    events: list[Event] = []
    deletions: list[dict[str, Any]] = []
    with open_session(workspace, executor="inline") as session:
        train(session, executor=InlineExecutor())
        read = _Reader(session, candidates)
        logits = read()
        accuracy = _accuracy(logits, targets)
        layout = session.workspace.layout()
        for number, record in enumerate(gone):
            place = layout.place(record)
            started = time.monotonic()
            delete(session, [record.id], executor=InlineExecutor())
            seconds = round(time.monotonic() - started, 1)
            old, logits = logits, read()
            events.append(Event(number, place.shard, old, logits))
            deletions.append({"shard": place.shard, "slice": place.slice, "wall_seconds": seconds})
            tell(f"deletion {number + 1} of {len(gone)}: {seconds} s")
    rest = slice(len(gone), None)
    batch = [Event(event.candidate, event.shard, events[0].old, events[-1].new) for event in events]
    return {
        "records": len(kept),
        "never_seen": len(never_seen),
        "accuracy": {
            "to_be_deleted": float(accuracy[: len(gone)].mean()),
            "never_seen": float(accuracy[rest].mean()),
        },
        "deletions": deletions,
        "single": [
            attack(events, targets, rest, view, who, sizes.resamples) for view in VIEWS for who in ATTACKERS
        ],
        "batch": [attack(batch, targets, rest, view, "both", sizes.resamples) for view in VIEWS],
        "load_average_at_end": load(),
    }  # fmt: skip


def _accuracy(logits: Logits, targets: torch.Tensor) -> torch.Tensor:
    """Of the served answer, by candidate."""
    return (seen_through(logits, "ensemble", 0).argmax(-1) == targets).double()


class _Reader:
    """What every served head makes of the candidates; each checkpoint reads them once."""

    def __init__(self, session: Session, candidates: Sequence[Record]) -> None:
        self._session = session
        self._inputs = [record.fields() for record in candidates]
        self._read: dict[str, torch.Tensor] = {}

    def __call__(self) -> dict[int, torch.Tensor]:
        from sisa.aggregate import shard_logits

        manifest = self._session.workspace.book.manifest()
        if manifest is None:
            raise RuntimeError("nothing is served, so there is nothing to attack")
        for head in served_heads(self._session.workspace, manifest):
            if head.head.checkpoint not in self._read:
                self._read[head.head.checkpoint] = shard_logits(self._session, (head,), self._inputs)[0]
        return {head.shard: self._read[head.checkpoint] for head in manifest.heads}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="directory of Banking77's train.csv")
    parser.add_argument("--quick", action="store_true", help="made-up records, few of them")
    parser.add_argument("--out", type=Path, help=f"default: {RESULT.name} in benchmarks/results, with --quick nowhere")
    given = parser.parse_args(arguments)
    if given.data is None and not given.quick:
        parser.error("name Banking77's directory with --data, or try the code with --quick")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    sizes = QUICK if given.quick else WHOLE
    records = synthetic_records(BANKING77) if given.data is None else banking_records(given.data)
    out = given.out or (None if given.quick else RESULT)
    document: dict[str, Any] = {
        "schema": "leakage/1",
        "command": f"python -m benchmarks.leakage {'--quick' if given.quick else '--data DIR'}",
        "environment": environment(),
        "settings": recipe_values(sizes.shards, sizes.slices, 0.0) | {"epochs": sizes.epochs},
    }
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="sisa-bench-") as scratch:
        document |= measure(records, sizes, Path(scratch), tell=lambda text: print(text, flush=True))
    document["wall_seconds_of_all"] = round(time.monotonic() - started, 1)
    for found in (*document["single"], *document["batch"]):
        print(
            f"{found['view']:<9} {found['attacker']:<5} {found['auc']:.3f} ({found['low']:.3f} to {found['high']:.3f})"
        )
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
