"""Is a certified release still the current one? Told by a later tree head and how the log goes on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shards import kinds
from shards.checks import Check
from shards.errors import InputError
from shards.note import read_head
from shards.tlog import verify_consistency
from sisa.export import export_records
from sisa.key import rotate
from sisa.log import extension, newest_head, sealed_size
from sisa.receipt import receipt
from sisa.session import Session
from sisa.verify import FRESH
from tests.sisa.trained import checked, failed, forget, public_key, reopened, trained, write_json


@pytest.fixture
def session(memory_path: Path) -> Iterator[Session]:
    made = trained(memory_path / "workspace")
    yield made
    made.workspace.close()


@pytest.fixture
def certificate(session: Session) -> Path:
    done = forget(session, "r1", request_id="req")
    assert done.certificate is not None
    return done.certificate


def fresh(
    session: Session,
    certificate: Path,
    tmp_path: Path,
    change: Callable[[Any], None] | None = None,
    keys: tuple[Path, ...] = (),
) -> Check:
    """The check of freshness, by the session's newest head and how its log goes on from the certificate."""
    head = tmp_path / "head"
    head.write_text(newest_head(session.workspace))
    document = extension(session.workspace, sealed_size(certificate))
    if change is not None:
        change(document)
    file = write_json(tmp_path / "extension.json", document)
    checks = checked(certificate, keys or (public_key(session),), head=head, extension=file)
    assert failed(checks) <= {FRESH}
    return checks[FRESH]


def test_with_no_head_from_elsewhere_freshness_was_not_checked(session: Session, certificate: Path) -> None:
    assert checked(certificate, [public_key(session)])[FRESH].outcome == "not_checked"


def test_the_same_head_needs_no_extension(session: Session, certificate: Path, tmp_path: Path) -> None:
    (tmp_path / "head").write_text(newest_head(session.workspace))
    check = checked(certificate, [public_key(session)], head=tmp_path / "head")[FRESH]
    assert check.outcome == "passed"
    assert fresh(session, certificate, tmp_path).outcome == "passed"


def test_a_later_head_without_an_extension_was_not_checked(session: Session, certificate: Path, tmp_path: Path) -> None:
    receipt(session, "r2")
    (tmp_path / "head").write_text(newest_head(session.workspace))
    check = checked(certificate, [public_key(session)], head=tmp_path / "head")[FRESH]
    assert check.outcome == "not_checked"
    assert "--extension" in check.detail


def test_a_later_head_without_another_release_is_fresh(session: Session, certificate: Path, tmp_path: Path) -> None:
    receipt(session, "r2")
    export_records(session, tmp_path / "out.jsonl")
    forget(session, "nobody", ignore_missing=True)
    check = fresh(session, certificate, tmp_path)
    assert check.outcome == "passed"
    assert str(read_head(newest_head(session.workspace)).size) in check.detail


def test_another_release_since_is_told(session: Session, certificate: Path, tmp_path: Path) -> None:
    forget(session, "r2")
    check = fresh(session, certificate, tmp_path)
    assert check.outcome == "failed"
    assert "another release" in check.detail


def test_freshness_goes_on_over_a_rotation_of_the_key(session: Session, certificate: Path, tmp_path: Path) -> None:
    old = tmp_path / "old.pub"
    old.write_bytes(public_key(session).read_bytes())
    rotate(session.workspace)
    receipt(session, "r2")
    assert fresh(session, certificate, tmp_path, keys=(old,)).outcome == "passed"
    assert fresh(session, certificate, tmp_path, keys=(old, public_key(session))).outcome == "passed"


def test_a_stolen_keys_successor_is_believed_only_from_the_operator(
    session: Session, certificate: Path, tmp_path: Path
) -> None:
    old = tmp_path / "old.pub"
    old.write_bytes(public_key(session).read_bytes())
    rotate(session.workspace, "stolen")
    assert fresh(session, certificate, tmp_path, keys=(old,)).outcome == "failed"
    assert fresh(session, certificate, tmp_path, keys=(old, public_key(session))).outcome == "passed"


def test_a_forked_log_is_another_history(session: Session, certificate: Path, tmp_path: Path) -> None:
    """One copy of the workspace, both go on: the certificate of one, the head of the other."""
    other = reopened(session, _copy(session, tmp_path / "copy"))
    mine = reopened(session)
    done = forget(mine, "r2")
    forget(other, "r3")
    assert done.certificate is not None
    (tmp_path / "head").write_text(newest_head(other.workspace))
    for size in (sealed_size(certificate), read_head(newest_head(other.workspace)).size):
        file = write_json(tmp_path / "extension.json", extension(other.workspace, size))
        checks = checked(done.certificate, [public_key(mine)], head=tmp_path / "head", extension=file)
        assert checks[FRESH].outcome == "failed"
        assert "another history" in checks[FRESH].detail
    mine.workspace.close()
    other.workspace.close()


def _copy(session: Session, to: Path) -> Path:
    session.workspace.close()
    shutil.copytree(session.workspace.path, to)
    return to


def test_the_head_of_another_log_fails(session: Session, certificate: Path, tmp_path: Path, memory_path: Path) -> None:
    other = trained(memory_path / "other")
    forget(other, "r1")
    (tmp_path / "head").write_text(newest_head(other.workspace))
    file = write_json(tmp_path / "extension.json", extension(other.workspace, 5))
    check = checked(certificate, [public_key(session)], head=tmp_path / "head", extension=file)[FRESH]
    assert check.outcome == "failed"
    other.workspace.close()


def test_a_head_that_is_older_than_the_certificate_does_not_go_on_from_it(session: Session, tmp_path: Path) -> None:
    (tmp_path / "head").write_text(newest_head(session.workspace))
    done = forget(session, "r1")
    assert done.certificate is not None
    file = write_json(tmp_path / "extension.json", {"from": 1, "to": 2, "consistency": [], "facts": []})
    check = checked(done.certificate, [public_key(session)], head=tmp_path / "head", extension=file)[FRESH]
    assert check.outcome == "failed"


@pytest.mark.parametrize("left_out", [0, 3, -1])
def test_an_extension_that_leaves_out_a_fact_proves_nothing(
    session: Session, certificate: Path, tmp_path: Path, left_out: int
) -> None:
    forget(session, "r2")

    def drop(document: Any) -> None:
        later = [fact for fact in document["facts"] if fact["seq"] > sealed_size(certificate)]
        document["facts"].remove(later[left_out])

    assert fresh(session, certificate, tmp_path, drop).outcome == "not_checked"


def test_an_extension_without_the_other_release_does_not_hide_it(
    session: Session, certificate: Path, tmp_path: Path
) -> None:
    forget(session, "r2")

    def hide(document: Any) -> None:
        document["facts"] = [fact for fact in document["facts"] if fact["kind"] != kinds.MANIFEST]

    assert fresh(session, certificate, tmp_path, hide).outcome == "not_checked"


def test_an_extension_with_an_edited_fact_fails(session: Session, certificate: Path, tmp_path: Path) -> None:
    forget(session, "r2")

    def edit(document: Any) -> None:
        for fact in document["facts"]:
            if fact["kind"] == kinds.MANIFEST:
                fact["kind"] = kinds.RECEIPT

    check = fresh(session, certificate, tmp_path, edit)
    assert check.outcome == "failed"
    assert "not in the log" in check.detail


def test_an_extension_with_another_proof_fails(session: Session, certificate: Path, tmp_path: Path) -> None:
    forget(session, "r2")

    def shorten(document: Any) -> None:
        document["consistency"] = document["consistency"][:-1]

    assert "another history" in fresh(session, certificate, tmp_path, shorten).detail


@pytest.mark.parametrize("cut", [0, 1, 40, -2])
def test_an_extension_that_cannot_be_read_is_the_readers_mistake(
    session: Session, certificate: Path, tmp_path: Path, cut: int
) -> None:
    forget(session, "r2")
    (tmp_path / "head").write_text(newest_head(session.workspace))
    text = json.dumps(extension(session.workspace, sealed_size(certificate)))
    (tmp_path / "extension.json").write_text(text[:cut])
    with pytest.raises(InputError, match="extension"):
        checked(certificate, head=tmp_path / "head", extension=tmp_path / "extension.json")


@pytest.mark.parametrize("document", [[], None, {"facts": [{}], "consistency": []}, {"facts": 1, "consistency": []}])
def test_an_extension_of_another_form_is_the_readers_mistake(
    session: Session, certificate: Path, tmp_path: Path, document: Any
) -> None:
    (tmp_path / "head").write_text(newest_head(session.workspace))
    file = write_json(tmp_path / "extension.json", document)
    with pytest.raises(InputError, match="extension"):
        checked(certificate, head=tmp_path / "head", extension=file)


def test_a_head_that_cannot_be_read_is_the_readers_mistake(certificate: Path, tmp_path: Path) -> None:
    (tmp_path / "head").write_text("sisa/log/x\n12\n")
    with pytest.raises(InputError, match="tree head"):
        checked(certificate, head=tmp_path / "head")


def _release(session: Session, size: int) -> int:
    """The last fact of the first ``size`` that serves a release."""
    return max(fact.seq for fact in session.workspace.ledger.facts(kinds.MANIFEST) if fact.seq <= size)


def test_an_extension_shows_every_later_fact_and_that_the_log_only_grew(session: Session, certificate: Path) -> None:
    size = sealed_size(certificate)
    old = read_head(session.workspace.ledger.head(size))
    forget(session, "r2")
    new = read_head(newest_head(session.workspace))
    document = extension(session.workspace, size)
    assert (document["from"], document["to"]) == (size, new.size)
    assert [fact["seq"] for fact in document["facts"]] == list(range(_release(session, size) + 1, new.size + 1))
    assert verify_consistency(old.size, old.root, new.size, new.root, [*map(bytes.fromhex, document["consistency"])])


def test_an_extension_may_end_at_an_earlier_head(session: Session, certificate: Path) -> None:
    size = sealed_size(certificate)
    receipt(session, "r2")
    middle = read_head(newest_head(session.workspace)).size
    forget(session, "r2")
    assert extension(session.workspace, size, middle)["to"] == middle
    assert [fact["seq"] for fact in extension(session.workspace, size, size)["facts"]] == [size]  # its own


@pytest.mark.parametrize(("old", "new"), [(0, None), (-1, None), (10**6, None), (5, 4), (5, 10**6)])
def test_an_extension_between_heads_that_never_were_is_refused(session: Session, old: int, new: int | None) -> None:
    with pytest.raises(InputError, match="log's size"):
        extension(session.workspace, old, new)


@pytest.mark.parametrize("text", ["{}", "[" * 100_000])
def test_what_is_no_certificate_has_no_place_in_the_log(text: str, tmp_path: Path) -> None:
    (tmp_path / "x").write_text(text)
    with pytest.raises(InputError, match="certificate"):
        sealed_size(tmp_path / "x")
