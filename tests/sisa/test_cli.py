"""The one place that chooses exit codes: each error of the tree, and what is not ours."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from shards import errors
from shards.checks import judged, unchecked
from sisa import __version__, status
from sisa.cli import cli
from sisa.config import Settings, write_settings
from sisa.printing import show_checks
from tests.flows.helpers import refused, sisa
from tests.toy import toy_recipe, toy_session


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """An empty toy workspace with a configuration."""
    session = toy_session(tmp_path / "toy", toy_recipe())
    write_settings(tmp_path / "toy", Settings(recipe=session.recipe, options=session.options))
    session.workspace.close()
    return tmp_path / "toy"


CODES = {
    errors.InputError: 2, errors.RecordError: 2, errors.UnknownRecordError: 2, errors.ConfigError: 2,
    errors.RecipeMismatchError: 2, errors.CheckError: 1, errors.IntegrityError: 1, errors.LawViolationError: 1,
    errors.OperationError: 3, errors.HeldError: 3, errors.LockedError: 3, errors.StorageError: 3,
    errors.StepFailedError: 3, errors.StalePlanError: 3,
    errors.EnvironmentMismatchError: 3, errors.MissingDependencyError: 3,
}  # fmt: skip


def kinds_of(error: type[errors.SisaError]) -> set[type[errors.SisaError]]:
    """An error and every kind of it."""
    return {error}.union(*map(kinds_of, error.__subclasses__()))


def test_no_error_of_the_tree_is_without_an_exit_code() -> None:
    assert CODES.keys() == kinds_of(errors.SisaError) - {errors.SisaError}


def raising(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def run(_: object) -> None:
        raise error

    monkeypatch.setattr(status, "status", run)


@pytest.mark.parametrize("kind", CODES, ids=lambda kind: kind.__name__)
def test_every_error_has_its_exit_code_and_says_expected_found_and_what_to_do(
    kind: type[errors.SisaError], workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raising(monkeypatch, kind("one [bold]thing[/]", "another [/red]", "this :smile:"))
    result = sisa("status", "-w", workspace, "--json")
    refused(result, "expected one [bold]thing[/]", "found another [/red]", "to do this :smile:", code=CODES[kind])
    assert kind.__name__.removesuffix("Error") in result.err


def test_what_the_operating_system_refuses_can_be_run_again(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raising(monkeypatch, OSError(28, "No space left on device"))
    refused(sisa("status", "-w", workspace), "No space left on device", code=3)


def test_an_interrupt_says_that_the_command_can_be_run_again(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raising(monkeypatch, KeyboardInterrupt())
    result = sisa("status", "-w", workspace)
    assert (result.code, result.out) == (3, "")
    assert "Run the same command again" in result.err


def test_a_defect_is_shown_whole_and_is_not_taken_for_a_failed_check(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raising(monkeypatch, ZeroDivisionError())
    outcome = sisa("status", "-w", workspace)
    assert outcome.code == 3
    assert "Traceback" in outcome.err
    assert "ZeroDivisionError" in outcome.err


@pytest.mark.parametrize("as_json", [False, True])
def test_one_failed_check_is_exit_code_1_and_none_is_0(as_json: bool, capsys: pytest.CaptureFixture[str]) -> None:
    good = [judged("V0", "a", [], "fine"), unchecked("V1", "b", "no key")]
    show_checks(good, as_json=as_json)
    with pytest.raises(SystemExit) as left:
        show_checks([*good, judged("V2", "c", ["bad"], "")], as_json=as_json)
    assert left.value.code == 1
    assert capsys.readouterr().out.count('"failed": 1' if as_json else "1 failed") == 1


# What these print is a document in a form of its own.
DOCUMENTS = {"key tag-key", "letter", "log extension", "log head"}


def commands(group: click.Group, above: str = "") -> Iterator[tuple[str, click.Command]]:
    """Every command, with those of the groups in it."""
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, f"{above}{name} ")
        else:
            yield above + name, command


def test_the_workspace_and_json_options_follow_every_command_that_has_them() -> None:
    found = dict(commands(cli))
    assert {"key rotate", "log head", "log extension", "verify"} <= found.keys()
    for name, command in found.items():
        options = {option for parameter in command.params for option in parameter.opts}
        if name in DOCUMENTS:
            assert "--output" in options, name
        elif name != "demo":
            assert "--json" in options, name
        if name not in {"demo", "init"}:
            assert {"-w", "--workspace"} <= options, name


def test_the_commands_of_the_design_are_there_with_their_options() -> None:
    wanted = {
        "init": {"--task", "--base-model", "--data", "--shards", "--slices", "--keys-from", "--set"},
        "ingest": {"--data"},
        "train": {"--data", "--executor", "--workers"},
        "predict": {"--text", "--input", "--output"},
        "delete": {"--id", "--ids-file", "--subject", "--dry-run", "--certificate", "--ignore-missing", "--request-id"},
        "verify": {"--public-key", "--replay", "--receipt", "--tag-key", "--id", "--head", "--extension"},
        "receipt": {"--id"},
        "letter": {"--request"},
        "hold": {"--id", "--subject", "--lift"},
        "audit": {"--id", "--subject", "--shard", "--checkpoint", "--all", "--residue", "--records"},
        "status": set(),
        "export": {"--records"},
        "merge": {"--method", "--weighting", "--rank", "--seed"},
        "demo": set(),
    }
    for name, options in wanted.items():
        found = {option for parameter in cli.commands[name].params for option in parameter.opts}
        assert options <= found, name


def test_the_current_directory_is_the_default_workspace(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workspace)
    assert sisa("status", "--json").document["records"] == 0


def test_the_program_runs_as_a_module_and_needs_no_torch_to_start() -> None:
    script = "import sys, sisa.cli; print({'torch', 'ray', 'transformers', 'peft'} & set(sys.modules))"
    started = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert started.stdout.strip() == "set()"
    version = subprocess.run([sys.executable, "-m", "sisa", "--version"], capture_output=True, text=True, check=True)
    assert __version__ in version.stdout
    wrong = subprocess.run([sys.executable, "-m", "sisa", "unknown"], capture_output=True, text=True, check=False)
    assert (wrong.returncode, wrong.stdout) == (2, "")
