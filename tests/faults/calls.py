"""Strikes the file-system calls of a toy training or deletion, one at a time, and judges what is left.

Runs with ``shim.c`` loaded before everything else, as a process that answers orders (see
``tests/faults/server.py``): :func:`prepare` lists the calls of an undisturbed step, and
:func:`strike` performs the step on a fresh copy with one call struck, in a child; then, here, where
nothing is struck, it judges what was left, runs the same command again, and judges the end.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import gc
import json
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any
from unittest import mock

from shards import place as place_module
from shards.checks import Check
from shards.errors import SisaError
from shards.keyfiles import PUBLIC_FILE
from shards.law import check_law
from shards.workspace import Workspace
from sisa import certificate
from sisa import delete as deleting
from sisa.certificate import issue
from sisa.delete import unfinished_requests
from sisa.session import Session
from sisa.verify import Evidence, verify
from sisa.verify_workspace import verify_against
from tests.exactness.oracle import holdings
from tests.faults.server import KILLED, fork, opened_toy, serve, toy, toy_step, wait
from tests.sisa.handed_out import exported, heads
from tests.toy import memory_directory

LOOK, SYNC, CHANGE, GROW, CUT = 1, 2, 4, 8, 16  # what a call does, as in shim.c
_KILL, _KILL_AFTER, _FAIL, _HALF, _TORN = range(1, 6)  # what becomes of it, as in shim.c
_ANY = LOOK | SYNC | CHANGE
_ROOT = f"{Path(__file__).parents[2]}/"
_NOTICE = ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p)
_WANTED = "wanted.json"
_PATIENCE = 60  # seconds until a step counts as hung


@dataclass(frozen=True, slots=True)
class Kind:
    """A way to strike a call.

    Attributes:
        effect, error: what becomes of it.
        strikes: it can strike a call with one of these traits.
        lasting: from then on it strikes every call with one of these traits.
    """

    effect: int
    error: int
    strikes: int
    lasting: int = 0


KINDS = {
    "SIGKILL": Kind(_KILL, 0, _ANY),
    "SIGKILL after": Kind(_KILL_AFTER, 0, _ANY),
    "EIO": Kind(_FAIL, errno.EIO, _ANY),
    "EIO for good": Kind(_FAIL, errno.EIO, _ANY, lasting=_ANY),
    "ENOSPC": Kind(_FAIL, errno.ENOSPC, GROW),
    "ENOSPC for good": Kind(_FAIL, errno.ENOSPC, GROW, lasting=GROW),
    "short write": Kind(_HALF, 0, CUT),
    "torn write": Kind(_TORN, 0, CUT),
}


@dataclass(frozen=True, slots=True)
class Call:
    """A file-system call below the workspace.

    Attributes:
        name: of the call.
        traits: what it does, as bits.
        path: what it reached.
        stack: the lines of ours that led to it, innermost first.
    """

    name: str
    traits: int
    path: str
    stack: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Ending:
    """How a process ended.

    Attributes:
        how: ``done``, ``killed``, the name of one of our errors, or ``foreign``.
        answer: what it computed, or what its error said.
        calls: those that were listed or struck.
    """

    how: str
    answer: Any
    calls: tuple[Call, ...]


def _arm(path: Path, kind: Kind, number: int, notice: Any) -> None:
    armed = ctypes.CDLL(None).strike_armed  # of the shim, which is loaded already
    armed.argtypes = [ctypes.c_char_p, ctypes.c_long, ctypes.c_int, ctypes.c_int, ctypes.c_int, _NOTICE]
    armed(bytes(path), number, kind.effect, kind.error, kind.lasting, notice)


def _stack() -> tuple[str, ...]:
    lines = []
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        name = frame.f_code.co_filename.removeprefix(_ROOT)
        if name.startswith(("shards/", "orchestration/", "sisa/")):
            lines.append(f"{name}:{frame.f_lineno}")
        frame = frame.f_back
    return tuple(lines)


def _ended(action: Callable[[], Any]) -> tuple[str, Any]:
    """How an action ended, and its result or what its error said."""
    try:
        return "done", action()
    except Exception as error:  # noqa: BLE001
        how = type(error).__name__ if isinstance(error, SisaError) else "foreign"
        return how, "".join(traceback.format_exception(error))


def apart(action: Callable[[], Any], blow: tuple[Path, Kind, int]) -> Ending:
    """Perform an action in a child.

    Args:
        action: its result must be JSON.
        blow: workspace, kind and number of the call to strike; at number 0 all are listed, none is struck.
    """
    reader, writer = os.pipe()

    def tell(line: dict[str, Any]) -> None:
        os.write(writer, json.dumps(line).encode() + b"\n")

    @_NOTICE  # type: ignore[untyped-decorator]
    def notice(name: bytes, traits: int, path: bytes) -> None:
        tell(asdict(Call(name.decode(), traits, path.decode(), _stack())))

    def child() -> int:
        signal.alarm(_PATIENCE)
        gc.disable()  # a collection may close files, and would do so at other moments than when they were listed
        _arm(*blow, notice)
        how, answer = _ended(action)
        tell({"how": how, "answer": answer})
        return 0

    process = fork(child)
    os.close(writer)
    with os.fdopen(reader) as lines:
        told = [json.loads(line) for line in lines]
    code = wait(process)
    end = told.pop() if told and "how" in told[-1] else {"how": "killed" if code == KILLED else f"exit {code}"}
    calls = tuple(Call(**(line | {"stack": tuple(line["stack"])})) for line in told)
    return Ending(end["how"], end.get("answer"), calls)


# -- what must hold -------------------------------------------------------------------------------


@contextmanager
def _opened(path: Path) -> Iterator[Session]:
    session = opened_toy(path)
    try:
        yield session
    finally:
        session.workspace.close()


def _state(session: Session) -> dict[str, Any]:
    """All that must be equal however a history came to its end."""
    workspace, held = session.workspace, holdings(session)
    return {
        "manifest": held.manifest,
        "checkpoints": {key: [made.files, made.seen, made.tensors] for key, made in held.checkpoints.items()},
        "tensors": held.tensors,
        "objects": len(workspace.store.objects()),  # leaves and targets hold random salts: their names differ
        "records": sorted(stored.record.id for stored in workspace.survivors()),
        "requests": [request.request_id for _, request in workspace.book.requests()],
        "unfinished": [request.request_id for request in unfinished_requests(workspace)],
        "certificates": sorted(path.name for path in (workspace.path / "certificates").iterdir()),
        "exports": sorted(path.name for path in workspace.path.glob("exports/*")),
    }


def _failed(when: str, checks: Iterable[Check]) -> list[str]:
    return [f"{when}: {check.name}: {check.detail}" for check in checks if check.outcome == "failed"]


def _certified(workspace: Workspace) -> frozenset[str]:
    """Requests with a certificate, as a fact or as a file."""
    return frozenset(workspace.book.certificates()) | {path.stem for path in workspace.path.glob("certificates/*.json")}


def _certificates(workspace: Workspace) -> list[str]:
    """What does not hold of the certificates that are there."""
    recorded = workspace.book.certificates()
    problems = []
    for file in sorted(workspace.path.glob("certificates/*.json")):
        if file.stem not in recorded:
            problems.append(f"{file.name} lies there before the log knows of it")
            continue
        document, checks = verify(file, Evidence(public_keys=(workspace.path / "keys" / PUBLIC_FILE,)))
        if document is not None:
            checks += verify_against(document, workspace.path)
        problems += _failed(file.name, checks)
    if recorded:  # what is exported in a trial is made of all heads
        problems += [f"{left.name} outlives heads it was made of" for left in workspace.path.glob("exports/*")]
    return problems


def _after_the_fault(path: Path) -> list[str]:
    """What is wrong before anything is run again.

    What is accepted is forgotten at once; a certificate is there only if all that it speaks of is done.
    Half of its own file may lie there: that is no certificate, and the next run sweeps it.
    """
    with _opened(path) as session:
        workspace = session.workspace
        certified = _certified(workspace)
        others = [left for left in workspace.leftovers() if left.parent.name != "certificates"]
        with mock.patch.object(workspace, "leftovers", return_value=others):
            law = check_law(workspace, completing=certified)
        if not certified:
            law = [check for check in law if "served since" in check.name]
        return _failed("after the fault", law) + _certificates(workspace)


def _at_the_end(path: Path, wanted: dict[str, Any]) -> list[str]:
    """What is wrong with a workspace whose command has ended well."""
    with _opened(path) as session:
        law = [check for check in check_law(session.workspace) if check.outcome != "passed"]
        problems = [f"{check.name}: {check.outcome}: {check.detail}" for check in law]
        problems += _certificates(session.workspace)
        state = _state(session)
    return problems + [
        f"{name} is {state[name]}, not {value}" for name, value in wanted.items() if state[name] != value
    ]


# -- orders ---------------------------------------------------------------------------------------


def prepare(directory: str, data: str, step: str) -> dict[str, Any]:
    """Make a workspace ready for a step and one that has taken it; lists the calls of the step."""
    before, ended = Path(directory) / "before", Path(directory) / "ended"
    toy(before).workspace.close()
    if step == "delete":
        toy_step(str(before), data, "train")
        with _opened(before) as session:
            exported(session, heads(session), kept=True)
    shutil.copytree(before, ended)
    listed = apart(lambda: toy_step(str(ended), data, step), (ended, KINDS["EIO"], 0))
    with _opened(ended) as session:
        (Path(directory) / _WANTED).write_text(json.dumps(_state(session)))
    return {"how": listed.how, "calls": [asdict(call) for call in listed.calls]}


def strike(directory: str, data: str, step: str, kind: str, number: int) -> dict[str, Any]:
    """Perform a step with one of its calls struck, and again without; says all that is wrong."""
    before, path = Path(directory) / "before", Path(directory) / f"struck-{os.getpid()}"
    shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(before, path)
    struck = apart(lambda: toy_step(str(path), data, step), (path, KINDS[kind], number))

    wanted = json.loads((Path(directory) / _WANTED).read_text())

    def judge() -> list[str]:
        problems = _after_the_fault(path)
        if struck.how == "done":
            problems += [f"ended well, and {problem}" for problem in _at_the_end(path, wanted)]
        for again in dict.fromkeys((step, "train")):
            toy_step(str(path), data, again)
        return problems + [f"run again, {problem}" for problem in _at_the_end(path, wanted)]

    how, answer = _ended(judge)
    problems = answer if how == "done" else [f"run again, it ended: {how} {answer}"]
    if struck.how == "foreign" or struck.how.startswith("exit"):
        problems = [f"ended as no command may: {struck.how} {struck.answer}", *problems]
    return {"how": struck.how, "calls": [asdict(call) for call in struck.calls], "problems": problems}


def rehearse() -> None:
    """Do everything once, so that no child has anything left to import."""
    with memory_directory() as place:
        data = place / "data.jsonl"
        data.write_text('{"id": "r1", "text": "one", "label": "a"}\n{"id": "r4", "text": "four", "label": "b"}\n')
        for step in ("train", "delete"):
            (place / step).mkdir()
            prepare(str(place / step), str(data), step)
        ended = place / "delete" / "ended"
        with _opened(ended) as session:
            _after_the_fault(ended), _at_the_end(ended, _state(session))


# -- defects, planted to see that they are found ---------------------------------------------------


def _deaf(descriptor: int) -> None:
    with contextlib.suppress(OSError):
        _fsync(descriptor)


def _in_place(path: Path, data: bytes, **_: Any) -> None:
    path.write_bytes(data)


def _certify_first(workspace: Workspace, *arguments: Any) -> None:
    with mock.patch.object(certificate, "examine", return_value=[]):  # it would refuse
        for _, request in workspace.book.requests():
            issue(workspace, request, ())
    _forget(workspace, *arguments)


_fsync, _forget = os.fsync, deleting._forget
PLANTS: dict[str, tuple[Any, str, Any]] = {
    "a failed sync is not told": (os, "fsync", _deaf),
    "an error of the system escapes": (place_module, "storage", contextlib.nullcontext),
    "a certificate is written in place": (certificate, "replace_file", _in_place),
    "a certificate comes before the deed": (deleting, "_forget", _certify_first),
    "an export outlives its heads": (Workspace, "_stray_exports", lambda _: []),
}


def planted(plant: str, order: str, *arguments: Any) -> dict[str, Any]:
    """An order, with a defect in the code that carries it out."""
    with mock.patch.object(*PLANTS[plant]):
        orders: dict[str, Callable[..., dict[str, Any]]] = {"prepare": prepare, "strike": strike}
        return orders[order](*arguments)


if __name__ == "__main__":
    mock.patch.object(certificate, "code_digest", cache(certificate.code_digest)).start()  # the same for every strike
    rehearse()
    serve([prepare, strike, planted])
