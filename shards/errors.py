"""The one exception tree.

    SisaError
    ├── InputError            the caller's data or arguments are wrong          exit 2
    │   ├── RecordError       records that cannot be taken in
    │   ├── UnknownRecordError  IDs that were never held
    │   ├── ConfigError       a key or value of sisa.yaml
    │   └── RecipeMismatchError  something differs from what was pinned at first ingest
    ├── CheckError            evidence contradicts a claim                      exit 1
    │   ├── IntegrityError    stored bytes are not the bytes that were committed
    │   └── LawViolationError  a deleted record could still have influence
    └── OperationError        the world got in the way; run again               exit 3
        ├── HeldError         a legal hold stands in the way
        ├── LockedError       another live process drives this workspace
        ├── StorageError      disk full, unwritable, unreadable
        ├── StepFailedError   a slice step failed; the others went on
        │   └── StalePlanError  records changed after the step was ordered
        ├── EnvironmentMismatchError  a chain belongs to another environment class
        └── MissingDependencyError    an optional package is not installed

Every error says what was expected, what was found and what to do. The three texts are the only
arguments, so that an error survives pickling (Ray sends it from worker to driver).
"""

from __future__ import annotations

from typing import Self


class SisaError(Exception):
    """Base of all our errors.

    Args:
        expected: what should have been the case.
        found: what was the case.
        remedy: what the reader can do about it.
    """

    exit_code = 3

    def __init__(self, expected: str, found: str, remedy: str) -> None:
        super().__init__(expected, found, remedy)
        self.expected = expected
        self.found = found
        self.remedy = remedy

    def bare(self) -> Self:
        """The same without its frames, which hold records for as long as it lives."""
        return type(self)(*self.args)

    def __str__(self) -> str:
        return f"expected {self.expected}\n   found {self.found}\n   to do {self.remedy}"


class InputError(SisaError, ValueError):
    """The caller's data or arguments are wrong; nothing was changed."""

    exit_code = 2


class RecordError(InputError):
    """Records that cannot be taken in."""


class UnknownRecordError(InputError):
    """IDs that this workspace never held."""


class ConfigError(InputError):
    """A key or value of ``sisa.yaml`` or ``--set``."""


class RecipeMismatchError(InputError):
    """Recipe, keys or base model differ from what was pinned at the first ingest."""


class CheckError(SisaError):
    """Evidence contradicts a claim."""

    exit_code = 1


class IntegrityError(CheckError):
    """Stored bytes are not the bytes that were committed."""


class LawViolationError(CheckError):
    """A deleted record could still have influence."""


class OperationError(SisaError):
    """The operation could not be completed and can be run again."""


class HeldError(OperationError):
    """A legal hold stands in the way of a deletion."""


class LockedError(OperationError):
    """Another live process drives this workspace."""


class StorageError(OperationError):
    """The disk is full, unwritable or unreadable."""


class StepFailedError(OperationError):
    """A slice step failed; other shards went on."""


class StalePlanError(StepFailedError):
    """A step was ordered of a plan that is no longer that of the surviving records."""


class EnvironmentMismatchError(OperationError):
    """A chain of checkpoints belongs to another environment class."""


class MissingDependencyError(OperationError):
    """A package of an optional extra is not installed."""
