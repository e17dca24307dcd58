"""Errors: one tree, exit codes by branch, and they survive the way from worker to driver."""

from __future__ import annotations

import inspect
from multiprocessing.reduction import ForkingPickler

import pytest

import shards.errors
from shards.errors import CheckError, InputError, OperationError, SisaError

CLASSES = [value for value in vars(shards.errors).values() if inspect.isclass(value) and issubclass(value, SisaError)]


@pytest.mark.parametrize("kind", CLASSES)
def test_every_error_survives_pickling(kind: type[SisaError]) -> None:
    error = kind("a thing", "another thing", "mend it")
    back = ForkingPickler.loads(ForkingPickler.dumps(error))
    assert type(back) is kind
    assert (back.expected, back.found, back.remedy) == ("a thing", "another thing", "mend it")
    assert str(back) == str(error)


@pytest.mark.parametrize("kind", CLASSES)
def test_every_error_says_what_was_expected_what_was_found_and_what_to_do(kind: type[SisaError]) -> None:
    assert str(kind("A", "B", "C")) == "expected A\n   found B\n   to do C"


@pytest.mark.parametrize("kind", CLASSES)
def test_exit_codes_follow_the_branch(kind: type[SisaError]) -> None:
    codes = {CheckError: 1, InputError: 2, OperationError: 3}
    branch = [code for base, code in codes.items() if issubclass(kind, base)]
    assert kind.exit_code == (branch[0] if branch else 3)
    assert len(branch) == (kind is not SisaError)


def test_a_callers_mistake_is_a_value_error() -> None:
    assert issubclass(InputError, ValueError)
    assert not issubclass(OperationError, ValueError)


@pytest.mark.parametrize("kind", CLASSES)
def test_the_tree_in_the_docstring_names_every_error(kind: type[SisaError]) -> None:
    assert kind.__name__ in (shards.errors.__doc__ or "")
