"""Runs watched and stopped from outside, as real processes: bars, events, signals, a second terminal.

The toy trainer stands in for the real one, and sits at a step, so that there is time to look.
"""

from __future__ import annotations

import fcntl
import json
import os
import pty
import shlex
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from orchestration.executor import Lesson
from sisa.config import Settings, write_settings
from sisa.queue import work
from sisa.session import Session
from tests.flows.helpers import done, same_models, sisa
from tests.toy import ToyTrainer, toy_recipe, toy_session

SISA = """
from sisa.cli import main
from sisa.session import Session
from tests.flows.test_watching import Slow
Session.trainer = lambda _: Slow()
main()
"""
COMMANDS = {
    "train": ("train",),
    "delete": ("delete", "--id", "r1", "--request-id", "one"),
    "work": ("work", "--watch", "--set", "queue_policy=now"),
}


_begun = count()


@dataclass(frozen=True)
class Slow(ToyTrainer):
    """The same weights; but each process sits at its step after the first STEPS, until it is stopped."""

    def train(self, lesson: Lesson) -> Mapping[str, bytes]:
        if next(_begun) >= int(os.environ["STEPS"]):
            time.sleep(600)
        return ToyTrainer().train(lesson)


def begin(path: Path, shards: int = 4) -> Path:
    """A workspace with registered records, and nothing trained."""
    session = toy_session(path, toy_recipe(shards=shards))
    data = path.parent / f"{path.name}.jsonl"
    rows = [{"id": f"r{n}", "subject": f"s{n}", "text": f"text {n}", "label": "a"} for n in range(40)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = session.options.model_copy(update={"data": (str(data),)})
    write_settings(path, Settings(recipe=session.recipe, options=options))
    session.workspace.close()
    return path


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """What this process trains itself does not sit."""
    monkeypatch.setattr(Session, "trainer", lambda _: ToyTrainer())


def ready(path: Path, name: str) -> Path:
    """A workspace on which the command ``name`` of COMMANDS has steps to train."""
    begin(path)
    if name != "train":
        done("train", "-w", path)
    if name == "work":
        done("delete", "-w", path, "--id", "r1", "--request-id", "one", "--queue")
    return path


@contextmanager
def running(*arguments: str | Path, steps: int = 1, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """A real process of the command line, killed at the end if need be."""
    command = [sys.executable, "-c", SISA, *map(str, arguments)]
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root), "STEPS": str(steps), **environment}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, cwd=root, env=environment, text=True, **pipes) as process:
        try:
            yield process
        finally:
            process.kill()


def until_step(process: subprocess.Popen[str]) -> list[Any]:
    """Events up to the first step that ended."""
    assert process.stderr is not None
    events = []
    for line in process.stderr:
        events.append(json.loads(line))
        if events[-1]["event"] == "step":
            return events
    raise AssertionError(events)


def stopped(process: subprocess.Popen[str], kind: signal.Signals, name: str) -> list[str]:
    """The command that is to be run to continue, as the process says when it is stopped at ``name``."""
    assert process.stderr is not None
    process.send_signal(kind)
    said = [line for line in process.stderr.read().splitlines() if not line.startswith("{")]
    assert process.wait(60) == 3, said
    told, command = said
    assert told.startswith("Stopped. "), said
    assert "finished and kept. " in told
    assert ("Accepted and not completed: 'one'; nothing served has seen" in told) == (name != "train")
    assert told.endswith(" Run the same command again to continue:")
    program, *arguments = shlex.split(command)
    assert program == "sisa"
    return arguments


def continued(arguments: list[str]) -> None:
    """Run the command here, inline; of watching only one turn."""
    result = sisa(*[part for part in arguments if part != "--watch"], "--executor", "inline")
    assert result.code == 0, result.err


def like_undisturbed(path: Path, other: Path, name: str) -> None:
    """The same digests as a run that nobody stopped, and the request is completed."""
    ready(other, name)
    continued([*COMMANDS[name], "-w", str(other)])
    same_models(path, other)
    states = {entry["request_id"]: entry["state"] for entry in done("requests", "-w", path)["requests"]}
    assert states == ({} if name == "train" else {"one": "completed"})


def at_work(path: Path, process: subprocess.Popen[str]) -> None:
    """Another process is told who is at work, and how far."""
    for command in ("status", "requests"):
        told = done(command, "-w", path)["running"]
        assert told["holder"].startswith(f"process {process.pid} of ")
        assert told["since"].startswith("20")
        assert 1 <= told["steps"]["done"] <= told["steps"]["total"]
        assert f"at work: process {process.pid} of " in sisa(command, "-w", path).out


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("name", COMMANDS)
def test_stopped_by_a_signal_it_says_how_to_continue_and_ends_like_an_undisturbed_run(
    name: str, kind: signal.Signals, memory_path: Path
) -> None:
    path = ready(memory_path / "stopped", name)
    with running(*COMMANDS[name], "-w", path, "--json-events") as process:
        until_step(process)
        command = stopped(process, kind, name)
    assert command == [*COMMANDS[name], "-w", str(path), "--json-events"]
    continued(command)
    like_undisturbed(path, memory_path / "undisturbed", name)


def left_over(mark: str) -> list[str]:
    """Processes whose environment holds ``mark``."""
    found = []
    for process in Path("/proc").iterdir():
        try:
            if process.name.isdigit() and mark.encode() in (process / "environ").read_bytes():
                found.append((process / "comm").read_text().strip())
        except OSError:  # it has just ended, or is not ours
            continue
    return found


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("train", signal.SIGTERM),
        pytest.param("work", signal.SIGINT, marks=pytest.mark.slow),
        pytest.param("delete", signal.SIGINT, marks=pytest.mark.slow),
        pytest.param("delete", signal.SIGTERM, marks=pytest.mark.slow),
    ],
)
def test_on_ray_too_and_no_process_of_its_is_left(name: str, kind: signal.Signals, memory_path: Path) -> None:
    path = ready(memory_path / "stopped", name)
    ray = ("--executor", "ray", "--workers", "1")
    with tempfile.TemporaryDirectory(prefix="sisa-ray-", ignore_cleanup_errors=True) as directory:
        with running(*COMMANDS[name], "-w", path, *ray, "--json-events", RAY_TMPDIR=directory) as process:
            until_step(process)
            at_work(path, process)
            assert len(left_over(directory)) > 1, "Ray was at work"
            command = stopped(process, kind, name)
        for _ in range(300):  # workers that were starting notice that their node is gone
            if not left_over(directory):
                break
            time.sleep(0.1)
        assert left_over(directory) == []
    continued(command)
    like_undisturbed(path, memory_path / "undisturbed", name)


@pytest.mark.parametrize("name", COMMANDS)
def test_another_terminal_is_answered_while_a_run_is_going(name: str, memory_path: Path) -> None:
    path = ready(memory_path / "workspace", name)
    assert done("status", "-w", path)["running"] is None
    assert "at work" not in sisa("status", "-w", path).out + sisa("requests", "-w", path).out
    with running(*COMMANDS[name], "-w", path, "--json-events") as process:
        until_step(process)
        at_work(path, process)
        states = {entry["request_id"]: entry["state"] for entry in done("requests", "-w", path)["requests"]}
        assert states == ({} if name == "train" else {"one": "retraining"})
    assert done("status", "-w", path)["running"] is None, "killed: nobody is at work"


def test_events_are_on_stderr_and_the_document_on_stdout(memory_path: Path) -> None:
    path = begin(memory_path / "workspace", shards=2)
    with running("train", "-w", path, "--json", "--json-events", steps=1000) as process:
        out, err = process.communicate()
    events = [json.loads(line) for line in err.splitlines()]
    steps = json.loads(out)["steps_trained"]
    assert [event["event"] for event in events] == ["begin", *["step"] * steps]
    assert events[-1]["done"] == events[-1]["total"] == steps
    assert events[-1]["seconds_left"] == 0


def on_terminal(rows: int, columns: int, *arguments: str | Path, interrupt: bytes) -> tuple[str, int]:
    """What a process draws on a terminal of this size, and its exit code; Ctrl-C is typed at some text."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ |= {"PYTHONPATH": str(Path(__file__).parents[2]), "TERM": "xterm", "STEPS": "5"}
        for name in ("COLUMNS", "LINES"):
            os.environ.pop(name, None)
        os.execv(sys.executable, [sys.executable, "-c", SISA, *map(str, arguments)])
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    drawn = b""
    while True:
        try:
            read = os.read(terminal, 65536)
        except OSError:  # Linux: the other end is closed
            break
        if interrupt not in drawn and interrupt in drawn + read:
            os.write(terminal, b"\x03")
        drawn += read
    os.close(terminal)
    # The interrupt may cut a character in two.
    return drawn.decode(errors="replace"), os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_bars_of_many_shards_fit_on_a_small_terminal_and_ctrl_c_stops(memory_path: Path) -> None:
    path = begin(memory_path / "workspace", shards=40)
    drawn, code = on_terminal(12, 80, "train", "-w", path, interrupt=b" 5/")
    assert code == 3
    assert "records/s" in drawn
    assert "more waiting" in drawn, "not all shards are shown"
    last = drawn.splitlines()
    assert last[-1].strip() == f"sisa train -w {path}"
    assert "slice steps finished and kept. Run the same command again to continue:" in last[-2]
    assert "Traceback" not in drawn


def test_watching_survives_what_ends_a_turn(memory_path: Path) -> None:
    path = ready(memory_path / "workspace", "work")
    pauses = mock.Mock(side_effect=[None, None, KeyboardInterrupt])
    calls = iter([OSError(28, "No space left on device"), UnicodeError("odd")])

    def turn(*arguments: Any, **named: Any) -> Any:
        error = next(calls, None)
        if error is not None:
            raise error
        return work(*arguments, **named)

    with mock.patch("sisa.queue.work", turn), mock.patch("sisa.commands.queue.time.sleep", pauses):
        result = sisa(*COMMANDS["work"], "-w", path)
    assert result.code == 3
    assert "No space left on device" in result.err
    assert "text in UTF-8" in result.err
    assert "Completed 1, failed 0, waiting 0." in result.out
    assert "Stopped. Run the same command again to continue:\n  sisa work --watch" in result.err


@pytest.mark.parametrize("executor", ["inline", pytest.param("ray", marks=pytest.mark.slow)])
def test_a_deletion_is_accepted_and_withdrawn_while_another_process_trains(tmp_path: Path, executor: str) -> None:
    path = begin(tmp_path / "workspace")
    with running("train", "-w", path, "--executor", executor, "--json-events") as process:
        until_step(process)
        refused = sisa("delete", "-w", path, "--id", "r1", "--executor", "inline")
        assert refused.code == 3
        assert "add --queue" in refused.err
        for number in range(3):
            done("delete", "-w", path, "--id", f"r{number}", "--request-id", f"case-{number}", "--queue")
        done("requests", "-w", path, "--cancel", "case-0")
        assert process.poll() is None
        states = {entry["request_id"]: entry["state"] for entry in done("requests", "-w", path)["requests"]}
        assert states == {"case-0": "cancelled", "case-1": "suppressed", "case-2": "suppressed"}
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 3
    done("train", "-w", path)
    states = {entry["request_id"]: entry["state"] for entry in done("requests", "-w", path)["requests"]}
    assert states == {"case-0": "cancelled", "case-1": "completed", "case-2": "completed"}
    other = begin(tmp_path / "other")
    done("train", "-w", other)
    done("delete", "-w", other, "--id", "r1", "--id", "r2")
    same_models(path, other)
    assert done("audit", "-w", path, "--all")["failed"] == 0
