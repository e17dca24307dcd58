"""A driver in a process of its own, and a trainer whose steps wait for a word, for tests that strike at Ray.

``python -m tests.faults.ray_driver ORDER`` with a JSON object; prints what became of it as JSON.
"""

from __future__ import annotations

import json
import os
import sys
import time
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestration.executor import Lesson
from orchestration.ray_executor import RayExecutor
from shards.errors import SisaError
from shards.workspace import Workspace
from sisa.config import RunOptions
from sisa.session import Session
from sisa.train import train
from tests.toy import ToyTrainer, toy_recipe

RECIPE = toy_recipe(shards=2, slices=3)
MACHINE = "SISA_TEST_MACHINE"


@dataclass(frozen=True)
class Waiting(ToyTrainer):
    """Tells the test which processes it runs in, and waits for a word in steps that show one of some records.

    Attributes:
        scratch: where it leaves ``pid-*`` (processes that trained), ``held-*`` (that wait) and ``ended-*`` (that
            ended a step); the file ``go`` ends all waits.
        held: IDs of records before whose training it waits.
        late: of records of whose training the result waits to be written.
        failing: of records whose steps fail, in words that quote them.
    """

    scratch: Path = Path()
    held: tuple[str, ...] = ()
    late: tuple[str, ...] = ()
    failing: tuple[str, ...] = ()

    def environment(self) -> dict[str, str]:
        return {"machine": os.environ.get(MACHINE, "toy")}

    def train(self, lesson: Lesson) -> Mapping[str, bytes]:
        (self.scratch / f"pid-{os.getpid()}").touch()
        shown = {record.id: record for record in lesson.passes[0]}
        for name in shown.keys() & set(self.failing):
            raise LookupError(f"cannot train {name}: {shown[name].content}")
        if shown.keys() & set(self.held):
            self.wait()
        made = ToyTrainer.train(self, lesson)
        files = _Late(self, made) if shown.keys() & set(self.late) else _Files(made)
        weakref.finalize(files, (self.scratch / f"ended-{os.getpid()}").touch)
        return files

    def wait(self) -> None:
        (self.scratch / f"held-{os.getpid()}").touch()
        while not (self.scratch / "go").exists():
            time.sleep(0.01)


class _Files(dict[str, bytes]):
    """Files whose end can be waited for: then the step was stored, or was not."""


class _Late(_Files):
    """Files that wait before they are written."""

    def __init__(self, trainer: Waiting, files: Mapping[str, bytes]) -> None:
        super().__init__(files)
        self.wait = trainer.wait

    def __iter__(self) -> Iterator[str]:
        self.wait()
        return super().__iter__()


def opened(path: Path) -> Session:
    """The toy workspace in ``path``."""
    return Session(Workspace.open(path), RECIPE, RunOptions(base_model="toy", executor="ray"))


def drive(order: Mapping[str, Any]) -> dict[str, Any]:
    """Train a workspace on Ray; says what error there was, and how its directory is called if it is our own."""
    session = opened(Path(order["workspace"]))
    records: dict[str, Any] = {name: tuple(order.get(name, ())) for name in ("held", "late", "failing")}
    trainer = Waiting(scratch=Path(order["scratch"]), **records)
    executor = RayExecutor(order.get("workers", 2), address=order.get("address"), init=order.get("init", {}))
    try:
        trained = train(session, executor=executor, trainer=trainer)
    except SisaError as error:
        return {"error": type(error).__name__, "said": str(error), "code": error.exit_code}
    finally:
        session.workspace.close()
    return {"error": None, "steps": len(trained.reconciled.trained)}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(drive(json.loads(sys.argv[1]))))
