"""The outcome of a check: passed, failed or not checked. Never a bare boolean."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

OutcomeName = Literal["passed", "failed", "not_checked"]


@dataclass(frozen=True, slots=True)
class Check:
    """One question and its answer.

    Attributes:
        level: what the answer rests on; V0 shape, V1 origin and history, V2 absence,
            V3 affected replay, V4 full replay; "law" for the law of exactness.
        name: the question, in a few words.
        outcome: passed, failed or not_checked.
        detail: evidence, or why it was not checked.
    """

    level: str
    name: str
    outcome: OutcomeName
    detail: str

    def to_json(self) -> dict[str, Any]:
        """As printed and certified."""
        return asdict(self)


def judged(level: str, name: str, problems: Sequence[str], evidence: str) -> Check:
    """Failed with the problems if there are any, else passed with the evidence."""
    if problems:
        return Check(level, name, "failed", "; ".join(problems))
    return Check(level, name, "passed", evidence)


def unchecked(level: str, name: str, reason: str) -> Check:
    """Not checked, and why."""
    return Check(level, name, "not_checked", reason)


def report(checks: Iterable[Check]) -> dict[str, Any]:
    """The JSON document of ``verify`` and ``audit --all``."""
    checks = list(checks)
    counts = {name: sum(check.outcome == name for check in checks) for name in ("passed", "failed", "not_checked")}
    return {"checks": [check.to_json() for check in checks], **counts}
