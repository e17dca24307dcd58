"""Every command that the README shows as tested is run, in order, as it stands there."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from orchestration.inline import InlineExecutor
from sisa.cli import main
from sisa.demo import invented_tickets
from sisa.session import Session

README = Path(__file__).parents[2] / "README.md"


def documented_commands() -> list[str]:
    """The lines of the README's shell blocks that are marked as tested."""
    blocks = re.findall(r"<!-- tested -->\n```sh\n(.*?)```", README.read_text(), flags=re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


@pytest.mark.parametrize("executor", ["inline", pytest.param("ray", marks=pytest.mark.slow)])
def test_every_command_of_the_readme_works_and_its_two_workspaces_come_out_equal(
    executor: str,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if executor == "ray":  # as the README has it
        request.getfixturevalue("ray_cluster")
    else:
        monkeypatch.setattr(Session, "executor", lambda _: InlineExecutor())
    monkeypatch.chdir(tmp_path)
    records = "".join(json.dumps(ticket) + "\n" for ticket in invented_tickets()[:40])
    Path("my-records.jsonl").write_text(records)
    digests = []
    for command in documented_commands():
        program, *arguments = shlex.split(command)
        assert program == "sisa"
        capsys.readouterr()
        main(arguments)  # leaves by SystemExit if anything but 0 is to be said
        if "status" in arguments and "--json" in arguments:
            digests.append(json.loads(capsys.readouterr().out)["manifest_digest"])
    assert len(digests) == 2
    assert digests[0] == digests[1]
