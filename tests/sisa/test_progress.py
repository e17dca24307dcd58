"""What people and machines see of a run."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from orchestration.executor import Outcome
from orchestration.reconcile import Progress
from shards.errors import StepFailedError
from shards.lineage import Checkpoint, Link
from sisa.progress import Pace, bars, json_events, lines

SIZES = {0: (4, 6), 3: (10,)}


def made(shard: int, slice: int, members: int) -> Outcome:  # noqa: A002 (the field's word)
    link = Link(recipe="r", shard=shard, slice=slice, parent="", records="ab", chain=0)
    checkpoint = Checkpoint(
        link=link, files="f", tensors="t", root="00", seen="s", members=members, own=members, environment={}
    )
    return Outcome(shard, checkpoint, None, 2.0)


@pytest.fixture
def reports() -> list[Progress]:
    failed = Outcome(3, None, StepFailedError("a step", "a record's text", "nothing"), 1.0)
    return [
        Progress(0, 3, None, SIZES),
        Progress(1, 3, made(0, 0, 4), SIZES),
        Progress(2, 3, made(0, 1, 6), SIZES),
        Progress(2, 3, failed, SIZES),
    ]


def test_pace_counts_records_from_the_first_report_on(reports: list[Progress]) -> None:
    now = [0.0]
    pace = Pace(lambda: now[0])
    now[0] = 100
    pace.take(reports[0])
    assert (pace.total, pace.done, pace.rate, pace.left, pace.text()) == (20, 0, 0.0, None, "")
    now[0] = 102
    pace.take(reports[1])
    assert (pace.rate, pace.left, pace.text()) == (2.0, 8.0, "2.0 records/s, 0:00:08 left")


def test_without_a_terminal_every_step_is_a_plain_line(reports: list[Progress]) -> None:
    console = Console(file=io.StringIO(), width=40)
    with lines(console, "training") as report:
        for one in reports:
            report(one)
    assert isinstance(console.file, io.StringIO)
    first, second, third = console.file.getvalue().splitlines()
    assert first.startswith("training 1/3: shard 0 slice 0 in 2.0 s, ")
    assert "records/s" in second
    assert third == "training 2/3: shard 3 failed"


def test_for_machines_every_report_is_one_json_object_without_personal_data(
    reports: list[Progress], capsys: pytest.CaptureFixture[str]
) -> None:
    with json_events(Console(), "training") as report:
        for one in reports:
            report(one)
    said = capsys.readouterr()
    assert said.out == ""
    events = [json.loads(line) for line in said.err.splitlines()]
    assert [event["event"] for event in events] == ["begin", "step", "step", "failed"]
    assert events[0]["shards"] == {"0": 2, "3": 1}
    assert (events[1]["shard"], events[1]["slice"], events[1]["records"]) == (0, 0, 4)
    assert events[3]["error"] == "StepFailedError"
    assert "text" not in said.err


def test_on_a_terminal_there_is_a_bar_for_each_shard_and_one_for_all(reports: list[Progress]) -> None:
    console = Console(file=io.StringIO(), width=120, force_terminal=True)
    with bars(console, "training") as report:
        for one in reports:
            report(one)
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    for part in ("training", "shard 0", "shard 3", "2/3", "2/2", "0/1", "failed"):
        assert part in shown, part


def drawn(reports: list[Progress], height: int) -> list[str]:
    """The last of what is drawn on a terminal of 80 columns, line by line."""
    console = Console(file=io.StringIO(), width=80, height=height, force_terminal=True, color_system=None)
    with bars(console, "training") as report:
        for one in reports:
            report(one)
    assert isinstance(console.file, io.StringIO)
    frame = console.file.getvalue().removesuffix("\x1b[?25h").rpartition("\x1b[2K")[2]
    return [line.rstrip() for line in frame.splitlines() if line.strip("\r ")]


def test_many_shards_on_a_small_terminal_are_those_that_are_not_done_and_the_others_are_counted() -> None:
    sizes = dict.fromkeys(range(40), (10, 10))
    failed = Outcome(2, None, StepFailedError("a step", "none", "nothing"), 1.0)
    ended = [made(0, 0, 10), made(0, 1, 10), made(1, 0, 10), failed]
    done = [1, 2, 3, 3]
    reports = [Progress(0, 80, None, sizes), *(Progress(n, 80, one, sizes) for n, one in zip(done, ended, strict=True))]
    lines = drawn(reports, height=10)
    assert len(lines) == 9, "one less than the terminal has"
    assert lines[0].startswith("training")
    assert "3/80" in lines[0]
    assert [line.split()[1] for line in lines[1:-1]] == ["1", "3", "4", "5", "6", "7", "8"]
    assert lines[-1] == "  … shards: 31 more waiting, 1 finished, 1 failed"
    assert max(map(len, lines)) < 80
    assert len(drawn(reports, height=42)) == 41, "all of them, where they fit"


def test_nothing_is_drawn_where_nothing_is_to_be_trained() -> None:
    console = Console(file=io.StringIO(), force_terminal=True)
    with bars(console, "training") as report:
        report(Progress(0, 0, None, {}))
    assert isinstance(console.file, io.StringIO)
    assert "training" not in console.file.getvalue()
