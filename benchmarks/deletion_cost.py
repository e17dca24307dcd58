"""What does one deletion cost, and is our training as fast and as small as a plain loop?

    python -m benchmarks.deletion_cost --data DIR [--quick] [--out FILE]

DIR holds Banking77's ``train.csv``. Four answers, the expensive ones last; FILE is written after each:

    passes        one deletion against full retraining, counted from plans over all records
    throughput    records per core-second of our step against a plain transformers + PEFT loop
    memory        peak resident bytes of a fresh process, ours against the plain loop's
    core_seconds  one deletion against full retraining, really trained

``--quick`` runs the same code on made-up records in about two minutes; its figures mean nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import core_seconds, settings, worker
from benchmarks.data import BANKING77, banking_records, labels_of, spread, synthetic_records
from benchmarks.environment import environment, load
from benchmarks.passes import count_passes
from shards.records import Record

RESULT = Path(__file__).parent / "results" / "deletion_cost.json"


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is measured.

    Attributes:
        shards: S of everything timed and counted.
        slices: R of everything timed and counted.
        placements: placement keys over which pass counts are averaged.
        timed_cumulative: records of the timed run with rehearsal 1, which costs (R+1)/2 passes each.
        timed_single: records of the timed run with rehearsal 0.
        hit_cumulative: slices from which a record is really deleted, rehearsal 1.
        hit_single: the same, rehearsal 0. There the cost falls evenly from slice to slice, so that
            slices lying evenly about the middle have the mean of all.
        repetitions: pairs of passes of the comparison of throughput.
        lesson: records of one such pass.
        processes: fresh processes of each kind whose memory is measured.
    """

    shards: int
    slices: int
    placements: int
    timed_cumulative: int
    timed_single: int
    hit_cumulative: tuple[int, ...]
    hit_single: tuple[int, ...]
    repetitions: int
    lesson: int
    processes: int


WHOLE = Sizes(settings.SHARDS, settings.SLICES, 4, 1000, BANKING77, tuple(range(8)), (1, 3, 4, 6), 6, 256, 2)
QUICK = Sizes(2, 2, 1, 48, 48, (0, 1), (0, 1), 1, 32, 1)


def passes(records: Sequence[Record], sizes: Sizes) -> list[dict[str, Any]]:
    """Pass counts with rehearsal 1 and 0."""
    return [count_passes(records, sizes.shards, sizes.slices, rehearsal, sizes.placements) for rehearsal in (1.0, 0.0)]


def throughput(records: Sequence[Record], sizes: Sizes) -> dict[str, Any]:
    """Our step and the plain loop by turns over the same batches, on one thread, in this process."""
    import torch

    from benchmarks.plain_loop import Plain, PlainLoop
    from orchestration.executor import Lesson
    from sisa.base_model import locate

    lesson = spread(records, sizes.lesson)
    trainer, plain = worker.make_trainer(labels_of(records)), PlainLoop(Plain(locate("minilm"), labels_of(records)))
    torch.set_num_threads(settings.THREADS)
    sides: dict[str, Callable[[Sequence[Record]], object]] = {
        "ours": lambda some: trainer.train(Lesson((tuple(some),), None, bytes(32))),
        "plain": plain.run,
    }
    for run in sides.values():
        run(lesson[: settings.BATCH])  # load and warm up
    pairs: list[dict[str, Any]] = []
    for number in range(sizes.repetitions):
        rates: dict[str, float] = {}
        for side in ("ours", "plain") if number % 2 == 0 else ("plain", "ours"):
            started = time.process_time()
            sides[side](lesson)
            rates[side] = len(lesson) / (time.process_time() - started)
        pairs.append(rates | {"ratio": rates["ours"] / rates["plain"], "load_average": load()})
    ratios = [pair["ratio"] for pair in pairs]
    return {
        "records": len(lesson),
        "ours": median(pair["ours"] for pair in pairs),
        "plain": median(pair["plain"] for pair in pairs),
        "ratio": median(ratios),
        "ratio_lowest": min(ratios),
        "ratio_highest": max(ratios),
        "pairs": pairs,
    }


def memory(records: Sequence[Record], sizes: Sizes, scratch: Path) -> dict[str, Any]:
    """Peak memory of fresh processes."""
    runs = worker.fresh(worker.KINDS * sizes.processes, spread(records, sizes.lesson), scratch)
    peak = {kind: max(run["peak_bytes"] for run in runs if run["what"] == kind) for kind in worker.KINDS}
    return {
        "peak_bytes": peak,
        "ratio_step": peak["step"] / peak["plain"],
        "ratio_ray": peak["ray"] / peak["plain"],
        "processes": runs,
    }


def cost(records: Sequence[Record], sizes: Sizes, rehearsal: float, scratch: Path) -> dict[str, Any]:
    """Core-seconds with one rehearsal."""
    count, hit = (sizes.timed_cumulative, sizes.hit_cumulative) if rehearsal else (sizes.timed_single, sizes.hit_single)
    return core_seconds.measure(
        spread(records, count), scratch, shards=sizes.shards, slices=sizes.slices, rehearsal=rehearsal, hit=hit
    )


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
    _run(records, sizes, out, f"python -m benchmarks.deletion_cost {'--quick' if given.quick else '--data DIR'}")


def _run(records: Sequence[Record], sizes: Sizes, out: Path | None, command: str) -> None:
    document: dict[str, Any] = {
        "schema": "deletion-cost/1",
        "command": command,
        "environment": environment(),
        "settings": settings.recipe_values(sizes.shards, sizes.slices, 0.0) | {"rehearsal": "as stated"},
        "records": len(records),
        "core_seconds": [],
    }
    started = time.monotonic()

    def keep(name: str) -> None:
        document["wall_seconds_of_all"] = round(time.monotonic() - started, 1)
        print(f"{name} done after {document['wall_seconds_of_all']} s", flush=True)
        if out is not None:
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text(json.dumps(document, indent=1) + "\n")

    document["passes"] = passes(records, sizes)
    keep("passes")
    with tempfile.TemporaryDirectory(prefix="sisa-bench-") as scratch:
        document["throughput"] = throughput(records, sizes)
        keep("throughput")
        document["memory"] = memory(records, sizes, Path(scratch))
        keep("memory")
        for rehearsal in (1.0, 0.0):
            directory = Path(scratch) / f"rehearsal-{rehearsal:g}"
            directory.mkdir()
            document["core_seconds"].append(cost(records, sizes, rehearsal, directory))
            keep(f"core-seconds with rehearsal {rehearsal:g}")


if __name__ == "__main__":
    main()
