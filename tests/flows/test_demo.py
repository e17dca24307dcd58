"""The demo tells the whole story, and every command of it is really run."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from rich.console import Console

from shards.errors import CheckError, InputError
from sisa import demo


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_the_demo_ends_with_equal_digests_and_a_refused_forgery(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    console = Console(file=io.StringIO(), width=200)
    demo.run(console, tmp_path / "demo")
    told = console.file.getvalue()  # type: ignore[attr-defined]  # the file is the StringIO above
    assert told.count("equal") == demo.SHARDS
    assert "DIFFERENT" not in told
    assert "Refused" in told
    assert "Untouched, byte for byte" in told
    printed = capsys.readouterr().out
    assert [count != "0" for count in re.findall(r"(\d+) failed", printed)] == [False, False, False, True]
    assert (tmp_path / "demo" / "deletion.json").is_file()
    with pytest.raises(InputError):
        demo.run(console, tmp_path / "demo")


def test_the_demo_stops_at_a_command_that_ends_otherwise_than_told(tmp_path: Path) -> None:
    story = demo._Story(Console(file=io.StringIO()), tmp_path)
    with pytest.raises(CheckError, match="exit code 2"):
        story._sisa("status", "-w", "shop")


def test_the_demo_stops_when_the_fresh_run_differs(tmp_path: Path) -> None:
    story = demo._Story(Console(file=io.StringIO()), tmp_path)
    with pytest.raises(CheckError, match="promise"):
        story._compare({0: "a"}, {0: "b"})
    with pytest.raises(CheckError, match="promise"):
        story._compare({0: "a"}, {0: "a", 1: "b"})
