"""What ``sisa status`` says of requests: where each stands, and since when."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import pytest

from shards.law import check_law
from sisa import status as status_module
from sisa.certificate import certificate_path, issue
from sisa.queue import cancel
from sisa.retention import retire
from sisa.session import Session
from sisa.status import status
from tests.sisa.trained import forget, held, ingest, retrain, rows, trained


@pytest.fixture
def session(memory_path: Path) -> Iterator[Session]:
    """A workspace out of which one record was deleted under the request ``first``."""
    made = trained(memory_path / "workspace", 18)
    forget(made, "r1", request_id="first")
    yield made
    made.workspace.close()


def states(session: Session) -> dict[str, str]:
    return {request["request_id"]: request["state"] for request in status(session)["requests"]}


def test_a_certified_request_is_completed(session: Session) -> None:
    assert states(session) == {"first": "completed"}


@pytest.mark.parametrize("data", [None, b"", b"{}"])
def test_a_request_whose_certificate_is_lost_or_altered_is_not_called_completed(
    data: bytes | None, session: Session
) -> None:
    path = certificate_path(session.workspace, "first")
    path.unlink() if data is None else path.write_bytes(data)
    assert states(session) == {"first": "uncertified"}
    retrain(session)
    assert states(session) == {"first": "completed"}


def test_a_retired_request_is_called_retired_and_keeps_its_time(session: Session) -> None:
    (before,) = status(session)["requests"]
    retire(session.workspace, 0)
    (after,) = status(session)["requests"]
    assert (after["state"], after["completed"]) == ("retired", before["completed"])


def test_a_request_was_completed_when_it_was_first_certified(session: Session) -> None:
    ((_, request),) = session.workspace.book.requests()
    (first,) = session.workspace.book.issued("first")
    issue(session.workspace, request, check_law(session.workspace))
    assert len(session.workspace.book.issued("first")) == 2
    assert status(session)["requests"][0]["completed"] == first.created


def test_status_says_the_same_from_the_facts_alone_as_from_the_records(
    memory_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever happened, and whether or not the facts suffice at the moment."""
    session, read = trained(memory_path / "workspace", 18), list[str]()
    data = memory_path / "more.jsonl"
    steps: dict[str, Callable[[], object]] = {
        "trained": lambda: None,
        "deleted": lambda: forget(session, "r1", "r7"),
        "queued": lambda: forget(session, "r2", request_id="queued", queue=True),
        "taken in beside it": lambda: ingest(session, rows(data, 30, 31, 32, 33)),
        "withdrawn": lambda: cancel(session, "queued"),
        "trained again": lambda: retrain(session, data),
        "deleted and taken in again": lambda: (forget(session, "r3"), retrain(session, rows(data, 3), readmit=("r3",))),
        "a slice emptied": lambda: forget(session, *(f"r{number}" for number in (30, 31, 32, 33))),
        "all deleted": lambda: forget(session, *held(session)),
    }
    for name, act in steps.items():
        act()
        with mock.patch.object(session.workspace, "survivors", wraps=session.workspace.survivors) as survivors:
            document = status(session)
        read += [name] * survivors.call_count
        with monkeypatch.context() as patch:
            patch.setattr(status_module, "_settled", lambda *_: None)
            assert document == status(session), name
    assert read == ["queued", "taken in beside it", "withdrawn"]
    session.workspace.close()
