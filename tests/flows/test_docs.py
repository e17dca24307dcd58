"""Every command that the runbooks show as tested is run, in order, and says what they say it does.

A block of commands may be followed by a block of what they print: each of its lines must come, in that
order; ``…`` stands for anything. A command exits 0 unless a comment behind it says otherwise.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from sisa.demo import invented_tickets
from tests.flows.helpers import QUICK, begin, done, settings, sisa, write_jsonl

DOCS = Path(__file__).parents[2] / "docs"
BLOCKS = re.compile(r"<!-- tested -->\n```sh\n(.*?)```\n(?:```text\n(.*?)```\n)?", re.DOTALL)
RUNBOOKS = (
    "answers.md",
    "backups.md",
    "evaluation.md",
    "exports.md",
    "keys.md",
    "merging.md",
    "storage.md",
    "trunk.md",
)
EXIT = re.compile(r"\s*# exits (\d)$")


@pytest.fixture(scope="module")
def trained(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a trained workspace ``my-model``, and the files of records that the runbooks name."""
    directory = tmp_path_factory.mktemp("runbook")
    tickets = invented_tickets()
    data = write_jsonl(directory / "my-records.jsonl", tickets[:16])
    write_jsonl(directory / "more-records.jsonl", tickets[16:20])
    workspace = directory / "my-model"
    begin(workspace, "--task", "classification", "--base-model", tiny_bert, "--data", data, *settings(*QUICK))
    done("train", "-w", workspace)
    return directory


def run(command: str) -> tuple[int, str]:
    """One line of a runbook: our program in this process, anything else in a shell."""
    if command.startswith("sisa "):
        result = sisa(*shlex.split(command)[1:])
        return result.code, result.out + result.err
    shell = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    return shell.returncode, shell.stdout + shell.stderr


def require_in_order(expected: str, printed: str) -> None:
    """Each expected line is one of the printed lines, after the one before it."""
    lines = iter(printed.splitlines())
    for line in expected.splitlines():
        pattern = re.compile(".*".join(map(re.escape, line.split("…"))))
        assert any(pattern.fullmatch(found.rstrip()) for found in lines), f"{line!r} is not in:\n{printed}"


def outside(directory: Path) -> dict[str, Path]:
    """The places outside the workspace that runbooks name, and where they are in this test."""
    return {
        "/mnt/anchor": directory / "anchor",
        "/mnt/backup": directory / "backup",
        "/mnt/models": directory / "models",
    }


@pytest.mark.parametrize("name", RUNBOOKS)
def test_every_command_of_a_runbook_does_what_it_says(
    name: str, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    places = outside(tmp_path)
    for place in places.values():
        place.mkdir()
    blocks = BLOCKS.findall((DOCS / name).read_text())
    assert blocks
    for commands, expected in blocks:
        printed = ""
        for line in commands.splitlines():
            wanted = EXIT.search(line)
            command = EXIT.sub("", line)
            for stated, place in places.items():
                command = command.replace(stated, str(place))
            code, said = run(command)
            assert code == (int(wanted[1]) if wanted else 0), f"{line}\n{said}"
            printed += said
        for stated, place in places.items():
            printed = printed.replace(str(place), stated)
        require_in_order(expected, printed)


def test_no_command_of_a_runbook_is_left_out_of_the_test() -> None:
    for name in RUNBOOKS:
        text = (DOCS / name).read_text()
        assert text.count("```sh\n") == len(BLOCKS.findall(text))


def test_the_comparison_with_what_is_printed_can_fail() -> None:
    require_in_order("a …\nc", "a b\nx\nc")
    for expected, printed in (("a …", "b a"), ("b\na", "a\nb"), ("a", "a b"), ("a\na", "a")):
        with pytest.raises(AssertionError):
            require_in_order(expected, printed)
