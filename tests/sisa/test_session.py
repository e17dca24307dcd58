"""A workspace opened with its configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orchestration.inline import InlineExecutor
from orchestration.ray_executor import RayExecutor
from shards.errors import ConfigError, InputError, RecipeMismatchError
from shards.workspace import Workspace
from sisa.config import RunOptions, Settings, write_settings
from sisa.session import open_session
from sisa.train import train
from tests.toy import ToyTrainer, toy_recipe, toy_session


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """A trained toy workspace with a configuration."""
    session = toy_session(tmp_path / "toy", toy_recipe())
    data = tmp_path / "records.csv"
    data.write_text("id,text,label\n" + "".join(f"r{n},text {n},a\n" for n in range(6)))
    write_settings(tmp_path / "toy", Settings(recipe=session.recipe, options=session.options))
    train(session, [data], trainer=ToyTrainer())
    session.workspace.close()
    return tmp_path / "toy"


def test_options_win_over_overrides_and_those_over_the_file(workspace: Path) -> None:
    with open_session(workspace) as session:
        assert (session.options.executor, session.options.workers) == ("inline", 2)
    with open_session(workspace, ["workers=3", "executor=ray"], workers=4, executor=None) as session:
        assert (session.options.executor, session.options.workers) == ("ray", 4)


def test_the_executor_is_the_one_that_the_options_name(workspace: Path) -> None:
    with open_session(workspace, executor="inline") as session:
        assert session.executor() == InlineExecutor()
    with open_session(workspace, executor="ray", workers=3, ray_address="10.0.0.1:6379") as session:
        assert session.executor() == RayExecutor(workers=3, address="10.0.0.1:6379")


@pytest.mark.parametrize("pair", ["epochs=9", "shards=3", "rehearsal=1", "threads=2", "labels=[b, a]"])
def test_a_recipe_that_is_not_the_pinned_one_is_refused_by_name(pair: str, workspace: Path) -> None:
    with pytest.raises(RecipeMismatchError) as caught, open_session(workspace, [pair]):
        raise AssertionError("it was opened")
    assert pair.partition("=")[0] in caught.value.expected
    assert pair.partition("=")[0] in caught.value.found


def test_run_options_may_change_at_any_time(workspace: Path) -> None:
    options = ["workers=7", "executor=ray", "base_model=elsewhere", "max_new_tokens=1", "data=[x]", "columns={id: key}"]
    with open_session(workspace, options) as session:
        assert session.options == RunOptions(
            base_model="elsewhere", workers=7, executor="ray", max_new_tokens=1, data=("x",), columns={"id": "key"}
        )


def test_the_ledger_is_closed_whatever_happens(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[Path] = []
    close = Workspace.close

    def counted(opened: Workspace) -> None:
        closed.append(opened.path)
        close(opened)

    monkeypatch.setattr(Workspace, "close", counted)
    with open_session(workspace):
        pass
    with pytest.raises(ConfigError), open_session(workspace, ["epochz=1"]):
        raise AssertionError("it was opened")

    def fail() -> Any:
        raise KeyError

    with pytest.raises(KeyError), open_session(workspace):
        fail()
    assert closed == [workspace] * 3


def test_a_directory_that_is_no_workspace_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="sisa init"), open_session(tmp_path):
        raise AssertionError("it was opened")
