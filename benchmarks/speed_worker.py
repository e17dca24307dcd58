"""A process that loads its base once, warms up, and then trains as often as it is told.

    python -m benchmarks.speed_worker SIDE JOB     SIDE: trainer, plain or ours; JOB: a file of ``speed_bases.Job``

Commands and answers are lines of JSON on standard input and output. A command says how often (``epochs``) and, for
a yardstick, with how many ``threads``; for ours which ``groups`` of shards, each trained in one go, over which
``shelf`` (none, cold or warm), and whether to ``watch`` what takes the time.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks.environment import peak_memory
from benchmarks.plain_loop import Plain, PlainLoop
from benchmarks.speed_bases import Job
from benchmarks.speed_shelf import DirectoryShelf
from orchestration.executor import Lesson
from shards.errors import SisaError
from shards.records import Record

SIDES = ("trainer", "plain", "ours")
Command = dict[str, Any]
Answer = dict[str, Any]


class Yardstick:
    """``Trainer`` or the plain loop, over all records at once."""

    def __init__(self, side: str, job: Job, scratch: Path) -> None:
        from benchmarks.speed_units import UnitMeter
        from benchmarks.trainer_loop import TrainerLoop
        from sisa.config import Recipe

        recipe = Recipe(**job.recipe)
        self._records = [record for shard in job.shards() for record in shard]
        targets, below = _targets(recipe, job.base)
        plain = Plain(
            Path(job.base), recipe.labels, targets, recipe.batch_size, recipe.max_length, recipe.dtype, recipe.device
        )
        self._loop = TrainerLoop(plain, scratch) if side == "trainer" else PlainLoop(plain)
        self._meter = UnitMeter(self._loop.model, below)
        self._device = recipe.device

    def obey(self, command: Command) -> Answer:
        """Train all records; a command without records to come is a warm-up."""
        import torch

        torch.set_num_threads(command["threads"])
        records = self._records[: command.get("first")]
        random.Random(0).shuffle(records)
        if isinstance(self._loop, PlainLoop):
            loop = self._loop
            run: Callable[[], object] = lambda: loop.run(records, command["epochs"])  # noqa: E731
        else:
            run = self._loop.ready(records, command["epochs"]).train
        self._meter.units = 0.0
        return _timed(run, self._device) | {"passes": len(records) * command["epochs"], "units": self._meter.units}

    def warm_up(self) -> None:
        """Two batches."""
        self.obey({"epochs": 1, "threads": os.cpu_count(), "first": 16})


class Ours:
    """Our trainer, shard after shard or group after group."""

    def __init__(self, job: Job, scratch: Path) -> None:
        from benchmarks.speed_units import UnitMeter
        from sisa.adapter import process_adapter
        from sisa.config import Recipe
        from sisa.layers import frozen_layers
        from sisa.learner import LoraTrainer

        self._recipe = Recipe(**job.recipe)
        self._trainer = LoraTrainer(self._recipe, job.base)
        self._shards, self._scratch = job.shards(), scratch
        self._meter = None
        self._device = self._recipe.device
        model = process_adapter(self._recipe, job.base, self._recipe.lanes).model
        if "compiled" not in job.patches:  # hooks would be compiled with the rest
            self._meter = UnitMeter(model, frozen_layers(self._recipe, model.get_base_model()))

    def obey(self, command: Command) -> Answer:
        """Train the groups of shards."""
        epochs = command["epochs"]
        with self._shelf(command) as shelf:
            lessons = [self._lessons(group, epochs, command.get("first"), shelf) for group in command["groups"]]
            if self._meter is not None:
                self._meter.units = 0.0
            with _watching(on=command.get("watch", False)) as spent:
                answer = _timed(lambda: self._train(lessons), self._device)
        passes = sum(map(len, (each for group in lessons for lesson in group.values() for each in lesson.passes)))
        units = self._meter.units if self._meter is not None else None
        return answer | {"passes": passes, "units": units, "tokens": self._tokens(lessons), "spent": spent}

    def warm_up(self) -> None:
        """Two batches in every lane."""
        group = [*range(self._recipe.lanes)]
        self.obey({"epochs": 1, "groups": [group], "shelf": "cold", "first": 2 * self._recipe.batch_size})

    def _train(self, lessons: Sequence[dict[int, Lesson]]) -> None:
        for group in lessons:
            for made in self._trainer.train_lanes(group).values():
                if isinstance(made, SisaError):
                    raise made

    def _tokens(self, lessons: Sequence[dict[int, Lesson]]) -> int:
        """Tokens of all passes, padding left out."""
        from sisa.base_model import load_tokenizer
        from sisa.encoding import encode

        tokenizer = load_tokenizer(self._recipe, self._trainer.base_model)
        return sum(
            len(encode(record, self._recipe, tokenizer).tokens) * len(lesson.passes)
            for group in lessons
            for lesson in group.values()
            for record in lesson.passes[0]
        )

    @contextmanager
    def _shelf(self, command: Command) -> Iterator[DirectoryShelf | None]:
        if command["shelf"] == "none":
            yield None
        elif command["shelf"] == "cold":
            with tempfile.TemporaryDirectory(dir=self._scratch) as directory:
                yield DirectoryShelf(Path(directory))
        else:
            warm = self._scratch / "warm"
            if not warm.is_dir():
                warm.mkdir()
                self._train([self._lessons(group, 1, None, DirectoryShelf(warm)) for group in command["groups"]])
            yield DirectoryShelf(warm)

    def _lessons(
        self, group: Sequence[int], epochs: int, first: int | None, shelf: DirectoryShelf | None
    ) -> dict[int, Lesson]:
        return {
            lane: Lesson(_passes(self._shards[shard][:first], epochs), None, bytes(32), shelf)
            for lane, shard in enumerate(group)
        }


def _targets(recipe: Any, base: str) -> tuple[tuple[str, ...], int]:
    """Names of the layers to adapt (none for all), and how many layers lie below them."""
    from sisa.base_model import skeleton
    from sisa.layers import frozen_layers, targets

    if recipe.layers == "all":
        return (), 0
    model = skeleton(recipe, base)
    return tuple(targets(recipe, model)), frozen_layers(recipe, model)


def _passes(records: Sequence[Record], epochs: int) -> tuple[tuple[Record, ...], ...]:
    """The records in another order for each epoch."""
    return tuple(tuple(random.Random(epoch).sample(records, len(records))) for epoch in range(epochs))


def _timed(run: Callable[[], object], device: str) -> Answer:
    """Begin and end by the clock that all processes of a machine share, and processor time."""
    core, began = time.process_time(), time.monotonic()
    run()
    if device == "cuda":
        import torch

        torch.cuda.synchronize()
    return {"began": began, "ended": time.monotonic(), "core_seconds": time.process_time() - core}


# What a step's time is spent on: where each part is called from.
PARTS = {
    "tokenising": ("sisa.learner", "encode"),
    "what the frozen layers make": ("sisa.frozen.Frozen", "of"),
    "padding": ("sisa.course", "pad_batch"),
    "forward": ("sisa.course", "lane_losses"),
    "backward": ("torch.autograd", "grad"),
    "updates": ("sisa.course.Course", "learn"),
}


@contextmanager
def _watching(*, on: bool) -> Iterator[dict[str, float]]:
    """Part → wall seconds spent in it."""
    spent = dict.fromkeys(PARTS, 0.0) if on else {}
    with ExitStack() as stack:
        for part in spent:
            where, name = PARTS[part]
            stack.enter_context(_clocked(f"{where}.{name}", part, spent))
        yield spent


@contextmanager
def _clocked(target: str, part: str, spent: dict[str, float]) -> Iterator[None]:
    import pkgutil

    called = pkgutil.resolve_name(target)

    def timed(*arguments: Any, **options: Any) -> Any:
        began = time.monotonic()
        try:
            return called(*arguments, **options)
        finally:
            spent[part] += time.monotonic() - began

    with mock.patch(target, timed):
        yield


def make(side: str, job: Job, scratch: Path) -> Yardstick | Ours:
    """A side, ready to be told; the job's patches must be in place."""
    made = Ours(job, scratch) if side == "ours" else Yardstick(side, job, scratch)
    made.warm_up()
    return made


@contextmanager
def patched(job: Job) -> Iterator[None]:
    """The job's patches in place inside."""
    with ExitStack() as stack:
        if job.patches:
            from benchmarks.speed_patches import PATCHES

            for name in job.patches:
                stack.enter_context(PATCHES[name]())
        yield


def main() -> None:
    """Load, say so, obey."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("side", choices=SIDES)
    parser.add_argument("job", type=Path)
    given = parser.parse_args()
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is no answer
    job = Job.read(given.job)
    with tempfile.TemporaryDirectory(prefix=f"{given.side}-", dir=given.job.parent) as scratch, patched(job):
        try:
            made = make(given.side, job, Path(scratch))
            print(json.dumps({"ready": True}), file=answers)
            for line in sys.stdin:
                print(json.dumps(made.obey(json.loads(line)) | {"peak_bytes": peak_memory()}), file=answers)
        except Exception as error:  # whatever it is, it is this side's result
            print(json.dumps({"error": f"{type(error).__name__}: {error}"}), file=answers)
            raise


if __name__ == "__main__":
    main()
