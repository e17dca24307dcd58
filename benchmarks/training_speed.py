"""How fast do we train, against Hugging Face's Trainer with PEFT and against a plain loop? Which lever pays?

    python -m benchmarks.training_speed --data DIR [--quick] [--device cuda] [--out FILE]

DIR holds ``banking77/train.csv`` and ``synthetic_persona_chat/*.csv``. Same records, recipe, adapters and sample
passes on every side, each in a process of its own that has loaded its base and warmed up before it is timed. The
sides take turns in rounds whose order rotates; a figure is a median of rounds, a ratio one of rounds' ratios:

    trainer    transformers' Trainer with PEFT, all records at once, two threads; tokenised before the clock starts
    trainer_1  the same on one thread
    plain      a plain loop, two threads
    ours       two processes of one thread, which train the eight shards between them
    ours_1     one process of one thread

Parts: cells (training everything; one shard again, what frozen layers make being kept or not; what the time is spent
on), lanes (speed and deletion cost for each width), ablations (each lever with and without). FILE is written after
each. With ``--device cuda``: lanes and Trainer on a Llama of half a billion.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks import speed_bases
from benchmarks.environment import environment
from benchmarks.executor_throughput import ratio
from benchmarks.speed_bases import SHARDS, Base, make_job
from benchmarks.speed_levers import ABLATIONS, NEVER, UNCHANGED, Ablation, Variant
from benchmarks.speed_process import Command, Process, Side, SideError, by_turns, middle, peak, turn
from shards.records import Record

RESULT = Path(__file__).parent / "results" / "training_speed.json"


@dataclass(frozen=True, slots=True)
class Cell:
    """One comparison with the yardsticks.

    Attributes:
        base: its name.
        layers: that are adapted.
        epochs: passes over the records.
        per_shard: records of each of the eight shards.
        wanted: how many times the records a second of Trainer; None where nothing was asked.
        one_core: one process of one thread is measured too, ours and Trainer's.
    """

    base: str
    layers: str
    epochs: int
    per_shard: int
    wanted: float | None = None
    one_core: bool = True


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is measured.

    Attributes:
        cells: comparisons with the yardsticks.
        per_shard: records of each of the eight shards under lanes, half of those of each of two shards under levers.
        lanes: widths.
        ablations: levers.
        rounds: of each.
    """

    cells: tuple[Cell, ...]
    per_shard: int
    lanes: tuple[int, ...]
    ablations: tuple[Ablation, ...]
    rounds: int


_TWO = (0, 1)  # shards that ablations train
WHOLE = Sizes(
    (
        Cell("encoder", "all", 1, 48, 1.5, one_core=False),
        Cell("encoder", "last-2", 3, 48, 2.0, one_core=False),
        Cell("encoder", "last-2", 10, 32, 2.5, one_core=False),
        Cell("llama", "all", 1, 8, 1.5, one_core=False),
        Cell("llama", "last-2", 3, 8, 2.0, one_core=False),
    ),
    8,
    (1, 2, 4, 8),
    ABLATIONS,
    5,
)
QUICK = Sizes(
    (Cell("encoder", "last-2", 2, 2, 2.0),),
    2,
    (2,),
    (Ablation("a lever that fails", NEVER, "encoder", Variant({"target_modules": ["nothing"]}), UNCHANGED),),
    1,
)
# On a GPU: lanes of microbatch 4, one at a time, and Trainer.
GPU = Sizes((), 16, (1, 8), (), 5)


class Measuring:
    """The parts, over bases that are made once.

    Args:
        data: directory of the published records; None for made-up ones and tiny bases.
        sizes: how much.
        device: where.
        scratch: an empty directory.
    """

    def __init__(self, data: Path | None, sizes: Sizes, device: str, scratch: Path) -> None:
        self._data, self._sizes, self._device, self._scratch = data, sizes, device, scratch
        self._bases: dict[str, Base] = {}
        self._jobs = 0

    def cells(self) -> list[dict[str, Any]]:
        """Training everything, all sides."""
        return [self._cell(cell) for cell in self._sizes.cells]

    def lanes(self) -> dict[str, Any]:
        """All shards, and one shard alone, for each width; on a GPU beside Trainer."""
        name = "long_llama" if self._device == "cuda" else "llama"
        with ExitStack() as stack:
            processes = {
                width: stack.enter_context(self._process("ours", name, self._sizes.per_shard, {"lanes": width}))
                for width in self._sizes.lanes
            }
            groups = {
                width: [[*range(first, first + width)] for first in range(0, SHARDS, width)] for width in processes
            }
            every = {str(width): [(process, _told(1, groups[width]))] for width, process in processes.items()}
            if self._device == "cuda":
                trainer = stack.enter_context(self._process("trainer", name, self._sizes.per_shard, {}))
                every["trainer"] = [(trainer, {"epochs": 1, "threads": 2})]
            alone = {str(width): [(process, _told(1, [[0]]))] for width, process in processes.items()}
            rounds, lone = by_turns(every, self._sizes.rounds), by_turns(alone, self._sizes.rounds)
        first = str(self._sizes.lanes[0])
        return {
            "base": name,
            "records": self._sizes.per_shard * SHARDS,
            "widths": [
                {
                    "side": side,
                    "records_per_second": middle(rounds, side, "records_per_second"),
                    "tokens_per_second": middle(rounds, side, "tokens") / middle(rounds, side, "seconds"),
                    "speed": ratio(rounds, side, first),
                    "alone_seconds": middle(lone, side, "seconds") if side in alone else None,
                    "alone": ratio(lone, side, first) if side in alone else None,
                    "peak_bytes": peak(rounds, side),
                }
                for side in every
            ],
            "rounds": rounds,
            "rounds_alone": lone,
        }

    def ablations(self) -> list[dict[str, Any]]:
        """Each lever."""
        return [self._ablation(each) for each in self._sizes.ablations]

    def _cell(self, cell: Cell) -> dict[str, Any]:
        values = {"layers": cell.layers}
        base = self._base(cell.base)
        with ExitStack() as stack:
            trainer, plain, one, two = [
                stack.enter_context(self._process(side, cell.base, cell.per_shard, values))
                for side in ("trainer", "plain", "ours", "ours")
            ]
            all_at_once = {"epochs": cell.epochs, "threads": 2}
            halves = between_two(self._shards(base, cell.per_shard))
            sides: dict[str, Side] = {
                "trainer": [(trainer, all_at_once)],
                "plain": [(plain, all_at_once)],
                "ours": [
                    (process, _told(cell.epochs, _one_by_one(half)))
                    for process, half in zip((one, two), halves, strict=True)
                ],
            }
            if cell.one_core:
                sides["trainer_1"] = [(trainer, all_at_once | {"threads": 1})]
                sides["ours_1"] = [(one, _told(cell.epochs, _one_by_one(range(SHARDS))))]
            rounds = by_turns(sides, self._sizes.rounds)
            shares = _shares(turn([(one, _told(cell.epochs, _one_by_one(range(SHARDS))) | {"watch": True})]))
            retraining = self._retraining(one, cell) if cell.layers != "all" else None
        against = {
            f"{mine}_over_{other}": ratio(rounds, mine, other)
            for mine, other in (("ours", "trainer"), ("ours", "plain"), ("ours_1", "trainer_1"))
            if mine in sides
        }
        return {
            "base": cell.base,
            "layers": cell.layers,
            "epochs": cell.epochs,
            "records": cell.per_shard * SHARDS,
            "wanted": cell.wanted,
            "limit": middle(rounds, "trainer", "units") / middle(rounds, "ours", "units"),
            "records_per_second": {side: middle(rounds, side, "records_per_second") for side in sides},
            **against,
            "peak_bytes": {side: peak(rounds, side) for side in sides},
            "shares": shares,
            "retraining": retraining,
            "rounds": rounds,
        }

    def _retraining(self, process: Process, cell: Cell) -> dict[str, Any]:
        """One shard, as after a deletion: over a shelf that has its records already, and over none."""
        sides = {shelf: [(process, _told(cell.epochs, [[0]]) | {"shelf": shelf})] for shelf in ("warm", "none")}
        turn(sides["warm"])  # fills it
        rounds = by_turns(sides, self._sizes.rounds)
        return {
            "records": cell.per_shard,
            "limit": middle(rounds, "none", "units") / middle(rounds, "warm", "units"),
            "warm_over_none": ratio(rounds, "warm", "none"),
            "rounds": rounds,
        }

    def _ablation(self, ablation: Ablation) -> dict[str, Any]:
        named = {"lever": ablation.lever, "used": ablation.used, "base": ablation.base, "epochs": ablation.epochs}
        try:
            with ExitStack() as stack:
                sides = {
                    name: [
                        (process, _told(ablation.epochs, _one_by_one(half)) | {"shelf": variant.shelf})
                        for process, half in self._sharing(stack, ablation.base, variant)
                    ]
                    for name, variant in (("with", ablation.one), ("without", ablation.other))
                }
                (first,) = by_turns(sides, 1)  # what is compiled is compiled here
                rounds = by_turns(sides, self._sizes.rounds)
        except SideError as error:
            return named | {"problem": str(error)}
        return named | {
            "with_over_without": ratio(rounds, "with", "without"),
            "first_seconds": {side: first[side]["seconds"] for side in sides},
            "peak_bytes": {side: peak(rounds, side) for side in sides},
            "rounds": rounds,
        }

    def _sharing(self, stack: ExitStack, base: str, variant: Variant) -> list[tuple[Process, Sequence[int]]]:
        """Processes, and the shards that each of them trains."""
        count = 2 * self._sizes.per_shard
        shares = [[shard] for shard in _TWO] if variant.processes == 2 else [_TWO]
        return [
            (stack.enter_context(self._process("ours", base, count, variant.values, variant.patches)), share)
            for share in shares
        ]

    def _process(
        self, side: str, base: str, per_shard: int, values: dict[str, Any], patches: tuple[str, ...] = ()
    ) -> Process:
        """A process that is ready once it answers; the caller enters it."""
        directory = self._directory()
        job = make_job(self._base(base), per_shard, directory, patches, **values)
        return Process(side, job.write(directory / "job.json"))

    def _shards(self, base: Base, per_shard: int) -> list[list[Record]]:
        return make_job(base, per_shard, self._directory()).shards()

    def _directory(self) -> Path:
        self._jobs += 1
        path = self._scratch / f"job-{self._jobs}"
        path.mkdir()
        return path

    def _base(self, name: str) -> Base:
        if name not in self._bases:
            path = self._scratch / name
            path.mkdir()
            self._bases[name] = self._made(name, path)
        return self._bases[name]

    def _made(self, name: str, path: Path) -> Base:
        if name == "encoder":
            return speed_bases.encoder(self._data, path)
        if name == "long_llama":
            size = speed_bases.HALF_BILLION if self._data is not None else replace(speed_bases.TINY, positions=1024)
            return speed_bases.long_llama(size, self._data, path)
        size = {"llama": speed_bases.SMALL, "wide": speed_bases.WIDE}[name]
        return speed_bases.llama(size if self._data is not None else speed_bases.TINY, self._data, path)


def between_two(shards: Sequence[Sequence[Record]]) -> list[list[int]]:
    """Shard numbers for two processes: the longest first, each to the one that has less."""
    lengths = [sum(len(record.content) for record in shard) for shard in shards]
    halves: list[list[int]] = [[], []]
    for shard in sorted(range(len(shards)), key=lambda number: -lengths[number]):
        min(halves, key=lambda half: sum(lengths[number] for number in half)).append(shard)
    return halves


def _shares(watched: dict[str, Any]) -> dict[str, float]:
    """Part → its share of the time."""
    return {part: seconds / watched["seconds"] for part, seconds in watched["spent"].items()}


def _one_by_one(shards: Sequence[int]) -> list[list[int]]:
    return [[shard] for shard in shards]


def _told(epochs: int, groups: list[list[int]]) -> Command:
    return {"epochs": epochs, "groups": groups, "shelf": "cold"}


def measure(data: Path | None, sizes: Sizes, device: str, keep: Callable[[str, Any], None]) -> None:
    """All parts, each handed to ``keep`` when it is there."""
    with tempfile.TemporaryDirectory(prefix="sisa-bench-") as scratch:
        measuring = Measuring(data, sizes, device, Path(scratch))
        if device == "cuda":
            keep("lanes", measuring.lanes())
            return
        for part in ("cells", "lanes", "ablations"):
            keep(part, getattr(measuring, part)())


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="directory of banking77 and synthetic_persona_chat")
    parser.add_argument("--quick", action="store_true", help="tiny bases, made-up records; the figures mean nothing")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--out", type=Path, help=f"default: {RESULT.name} in benchmarks/results, with --quick nowhere")
    given = parser.parse_args(arguments)
    if given.data is None and not given.quick:
        parser.error("name the records' directory with --data, or try the code with --quick")
    for name, value in (("HF_HUB_OFFLINE", "1"), ("TOKENIZERS_PARALLELISM", "false")):
        os.environ.setdefault(name, value)
    data = None if given.quick else given.data
    sizes = QUICK if given.quick else GPU if given.device == "cuda" else WHOLE
    default = RESULT if given.device == "cpu" else RESULT.with_name(f"gpu_{RESULT.name}")
    out = given.out or (None if given.quick else default)
    options = f"{'--quick' if given.quick else '--data DIR'}{' --device cuda' if given.device == 'cuda' else ''}"
    started = time.monotonic()
    document: dict[str, Any] = {
        "schema": "training-speed/1",
        "command": f"python -m benchmarks.training_speed {options}",
        "environment": environment(given.device),
        "settings": speed_bases.SETTINGS,
    }

    def keep(part: str, found: Any) -> None:
        document[part] = found
        document["wall_seconds_of_all"] = round(time.monotonic() - started, 1)
        print(f"{part} done after {document['wall_seconds_of_all']} s", flush=True)
        if out is not None:
            out.write_text(json.dumps(document, indent=1) + "\n")

    measure(data, sizes, given.device, keep)


if __name__ == "__main__":
    main()
