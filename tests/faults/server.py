"""A process that has everything imported and forks a child for each order, so that a kill costs no start-up.

One JSON list of an action and its arguments a line on stdin, one JSON answer a line on stdout. An
action is a function of this file; it runs in a child of its own that dies as a killed process does:
no ``finally`` and no clean-up. Started by the fixture ``kills`` in this package.
"""

from __future__ import annotations

import json
import os
import stat
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from unittest import mock

from orchestration.inline import InlineExecutor
from shards.fact import Fact
from shards.ledger import Ledger
from shards.workspace import Workspace
from sisa.cli import main
from sisa.config import RunOptions
from sisa.delete import delete
from sisa.session import Session
from sisa.train import train
from tests.toy import ToyTrainer, toy_recipe, toy_session

KILLED = 137
_WRITES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir"}


def command(arguments: list[str]) -> int:
    """A ``sisa`` command, with its words thrown away."""
    with Path(os.devnull).open("w") as nothing:
        os.dup2(nothing.fileno(), 1)
        os.dup2(nothing.fileno(), 2)
    try:
        main(arguments)
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def command_killed(arguments: list[str], point: int) -> int:
    """The same, killed at its ``point``-th moment: just before or after a slice step or a commit to the ledger."""
    from sisa.learner import LoraTrainer

    passed = 0

    def moment() -> None:
        nonlocal passed
        passed += 1
        if passed == point:
            os._exit(KILLED)

    def make_deadly(owner: type, name: str) -> None:
        original = getattr(owner, name)

        def deadly(*given: Any) -> Any:
            moment()
            result = original(*given)
            moment()
            return result

        mock.patch.object(owner, name, deadly).start()

    make_deadly(LoraTrainer, "train")
    make_deadly(Ledger, "append")
    return command(arguments)


# -- a toy history --------------------------------------------------------------------------------


def toy(path: Path) -> Session:
    """The toy workspace in ``path``, made or opened."""
    return opened_toy(path) if path.exists() else toy_session(path, toy_recipe(shards=2, slices=2))


def opened_toy(path: Path) -> Session:
    """The toy workspace in ``path``, opened."""
    recipe = toy_recipe(shards=2, slices=2)
    return Session(Workspace.open(path), recipe, RunOptions(base_model="toy", executor="inline"))


def toy_step(path: str, data: str, step: str) -> int:
    """Train the workspace, or delete from it."""
    session = opened_toy(Path(path))
    trainer = ToyTrainer()
    try:
        if step == "train":
            train(session, [Path(data)], executor=InlineExecutor(), trainer=trainer)
        elif step == "delete":
            ids = ["r1", "r4"]
            delete(session, ids, request_id="case-1", executor=InlineExecutor(), trainer=trainer)
    finally:
        session.workspace.close()
    return 0


def toy_killed(path: str, data: str, step: str, point: int) -> int:
    """The same, killed at its ``point``-th durable act: before it, or with half of a file written."""
    acts = 0

    def act(before_dying: Callable[[], object] = lambda: None) -> None:
        nonlocal acts
        acts += 1
        if acts == point:
            before_dying()
            os._exit(KILLED)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in _WRITES and path in str(arguments[0]):
            act()

    fsync, append = os.fsync, Ledger.append

    def torn(handle: Any) -> None:
        status = os.fstat(handle)
        act(lambda: os.ftruncate(handle, status.st_size // 2) if stat.S_ISREG(status.st_mode) else None)
        fsync(handle)

    def recorded(ledger: Ledger, facts: Any) -> list[Fact]:
        act()
        appended = append(ledger, facts)
        act()
        return appended

    sys.addaudithook(hook)
    mock.patch("os.fsync", torn).start()
    mock.patch.object(Ledger, "append", recorded).start()
    return toy_step(path, data, step)


# -- the server -----------------------------------------------------------------------------------


def fork(action: Callable[[], int]) -> int:
    """Run an action in a child; returns its process ID."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    code = 70
    try:
        code = action()
    finally:
        sys.stderr.flush()
        os._exit(code)


def wait(child: int) -> int:
    """The child's exit code; 137 if it was killed."""
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return 128 - code if code < 0 else code


def run(arguments: list[str]) -> dict[str, Any]:
    """A command, undisturbed."""
    started = time.monotonic()
    return {"code": wait(fork(lambda: command(arguments))), "seconds": time.monotonic() - started}


def run_and_kill(arguments: list[str], seconds: float, number: int) -> dict[str, Any]:
    """A command, sent a signal after some time."""
    child = fork(lambda: command(arguments))
    time.sleep(seconds)
    os.kill(child, number)
    return {"code": wait(child)}


def kill_at(arguments: list[str], point: int) -> dict[str, Any]:
    """A command, killed at one moment."""
    return {"code": wait(fork(lambda: command_killed(arguments, point)))}


def run_toy(path: str, data: str, step: str) -> dict[str, Any]:
    """A toy step, undisturbed."""
    return {"code": wait(fork(lambda: toy_step(path, data, step)))}


def kill_toy(path: str, data: str, step: str, point: int) -> dict[str, Any]:
    """A toy step, killed at one point."""
    return {"code": wait(fork(lambda: toy_killed(path, data, step, point)))}


def warm_up(*, models: bool) -> None:
    """Import what steps import late, so that no child has to; with models, what trains them too."""
    import pyarrow as pa

    pa.Table.from_pylist([{"a": 1}], schema=pa.schema([("a", pa.int64())]))  # imports pandas where it is installed
    if models:
        import peft  # noqa: F401
        import torch
        import transformers  # noqa: F401

        torch.set_num_threads(1)


def serve(actions: Iterable[Callable[..., dict[str, Any]]]) -> None:
    """Answer orders until stdin ends."""
    named = {action.__name__: action for action in actions}
    for line in sys.stdin:
        name, *arguments = json.loads(line)
        sys.stdout.write(json.dumps(named[name](*arguments)) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    warm_up(models="models" in sys.argv)
    serve([run, run_and_kill, kill_at, run_toy, kill_toy])
