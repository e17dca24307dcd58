"""A deleted record does not come back, unless somebody says so; then it is another version."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import permutations
from pathlib import Path

import pytest

from shards import kinds
from shards.errors import RecordError
from sisa.audit import audit_record
from sisa.export import export_records
from sisa.session import Session
from tests.exactness.oracle import assert_equals_fresh_run, holdings
from tests.sisa.trained import (
    TRAINER,
    assert_lawful,
    checked,
    failed,
    forget,
    held,
    ingest,
    public_key,
    retrain,
    rows,
    trained,
)


@pytest.fixture
def session(memory_path: Path) -> Iterator[Session]:
    made = trained(memory_path / "workspace")
    yield made
    made.workspace.close()


def test_a_deleted_record_is_left_out_and_counted(session: Session, tmp_path: Path) -> None:
    forget(session, "r1")
    taken = retrain(session, rows(tmp_path / "again.jsonl", 0, 1, 20))
    assert (taken.added, taken.unchanged, taken.tombstoned, taken.readmitted) == (1, 1, 1, 0)
    assert "r1" not in held(session)
    assert session.workspace.ledger.facts(kinds.INGEST)[-1].body["counts"]["tombstoned"] == 1
    assert not session.workspace.ledger.facts(kinds.READMISSION)


def test_a_deleted_record_with_another_content_is_left_out_too(session: Session, tmp_path: Path) -> None:
    forget(session, "r1")
    assert retrain(session, rows(tmp_path / "again.jsonl", 1, text="something else")).tombstoned == 1


def test_strict_refuses_a_deleted_record_and_takes_in_nothing(session: Session, tmp_path: Path) -> None:
    forget(session, "r1")
    before = session.workspace.ledger.head()
    with pytest.raises(RecordError, match=r"again\.jsonl.*'r1' was deleted"):
        ingest(session, rows(tmp_path / "again.jsonl", 1, 20), strict=True)
    assert session.workspace.ledger.head() == before


def test_a_readmitted_record_is_a_new_version_and_that_is_logged(session: Session, tmp_path: Path) -> None:
    forget(session, "r1")
    taken = retrain(session, rows(tmp_path / "again.jsonl", 1), readmit=["r1"])
    assert (taken.added, taken.readmitted, taken.tombstoned, taken.same_content) == (1, 1, 0, ())
    assert held(session)["r1"] == 2
    (fact,) = session.workspace.ledger.facts(kinds.READMISSION)
    assert fact.body == {"records": 1}, "never which: a tag in the ledger could not be destroyed"
    assert audit_record(session.workspace, "r1")["present"]
    assert_lawful(session)
    assert_equals_fresh_run(session, TRAINER, tmp_path / "fresh")


def test_only_what_was_deleted_is_readmitted(session: Session, tmp_path: Path) -> None:
    forget(session, "r1")
    taken = retrain(session, rows(tmp_path / "again.jsonl", 0, 1, 20), readmit=["r0", "r1", "r20"])
    assert (taken.added, taken.unchanged, taken.readmitted) == (2, 1, 1)
    assert {record_id: held(session)[record_id] for record_id in ("r0", "r1", "r20")} == {"r0": 1, "r1": 2, "r20": 1}
    (fact,) = session.workspace.ledger.facts(kinds.READMISSION)
    assert fact.body == {"records": 1}


def test_an_id_to_be_readmitted_that_no_line_has_is_refused(session: Session, tmp_path: Path) -> None:
    """A typing error would leave the record out, and nobody would know."""
    forget(session, "r1")
    before = session.workspace.ledger.head()
    with pytest.raises(RecordError, match=r"no line has the ID 'R1' that --readmit names") as refusal:
        ingest(session, rows(tmp_path / "again.jsonl", 1, 20), readmit=["R1", "r1", "r5"])
    assert "'r5'" in refusal.value.found
    assert "'r1'" not in refusal.value.found
    assert session.workspace.ledger.head() == before


def test_a_strict_readmission_can_be_run_again(session: Session, tmp_path: Path) -> None:
    """After a kill, or every night: the file's version is deleted, its content is held."""
    forget(session, "r1")
    file = rows(tmp_path / "again.jsonl", 1, 2)
    ingest(session, file, strict=True, readmit=["r1"])  # and killed before training
    for readmit in (["r1"], []):
        taken = retrain(session, file, strict=True, readmit=readmit)
        assert (taken.added, taken.unchanged, taken.tombstoned, taken.readmitted) == (0, 2, 0, 0)
    assert held(session)["r1"] == 2
    assert len(session.workspace.ledger.facts(kinds.READMISSION)) == 1
    assert_lawful(session)
    assert_equals_fresh_run(session, TRAINER, tmp_path / "fresh")


@pytest.mark.parametrize("change", [{"text": "another"}, {"subject": "another"}, {"generation": 5}])
def test_strict_still_refuses_a_deleted_version_that_is_not_what_is_held(
    session: Session, tmp_path: Path, change: dict[str, object]
) -> None:
    forget(session, "r1")
    retrain(session, rows(tmp_path / "again.jsonl", 1), readmit=["r1"])
    other = rows(tmp_path / "other.jsonl", 1, **change)
    for readmit in (["r1"], []):
        with pytest.raises(RecordError, match=r"other\.jsonl.*'r1' was deleted"):
            ingest(session, other, strict=True, readmit=readmit)
    assert ingest(session, other).tombstoned == 1


def test_a_later_version_of_what_is_held_is_refused(session: Session, tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="held with another version"):
        ingest(session, rows(tmp_path / "later.jsonl", 1, version=2))


def test_the_way_to_replace_a_record_that_the_refusal_names_is_one(session: Session, tmp_path: Path) -> None:
    other = rows(tmp_path / "other.jsonl", 1, text="another")
    with pytest.raises(RecordError, match=r"another content; to replace it, `sisa delete` it and .* --readmit"):
        ingest(session, other)
    forget(session, "r1")
    assert retrain(session, other, readmit=["r1"]).added == 1
    assert held(session)["r1"] == 2
    assert_lawful(session)


def test_a_version_declared_in_the_file_is_logged_as_a_readmission_too(session: Session, tmp_path: Path) -> None:
    """Another way to say it, and no way around the log."""
    forget(session, "r1")
    declared = rows(tmp_path / "again.jsonl", 1, version=2)
    new = rows(tmp_path / "new.jsonl", 20, version=2)
    assert retrain(session, declared, new).readmitted == 1
    (fact,) = session.workspace.ledger.facts(kinds.READMISSION)
    assert fact.body == {"records": 1}


@pytest.mark.parametrize("version", [2, 3, 100])
def test_no_version_of_a_deleted_record_comes_back_unlogged(session: Session, tmp_path: Path, version: int) -> None:
    forget(session, "r1")
    taken = retrain(session, rows(tmp_path / "again.jsonl", 1, version=version))
    assert (taken.added, taken.readmitted, taken.same_content) == (1, 1, ())
    assert held(session)["r1"] == version
    (fact,) = session.workspace.ledger.facts(kinds.READMISSION)
    assert fact.body == {"records": 1}


@pytest.mark.parametrize("version", [2, 3])
def test_strict_refuses_a_later_version_that_is_not_named(session: Session, tmp_path: Path, version: int) -> None:
    forget(session, "r1")
    file = rows(tmp_path / "again.jsonl", 1, version=version)
    before = session.workspace.ledger.head()
    for readmit in ([], ["r2"]):
        with pytest.raises(RecordError, match=rf"again\.jsonl.*'r1' was deleted; version {version}.*--readmit"):
            ingest(session, file, strict=True, readmit=readmit)
    assert session.workspace.ledger.head() == before
    assert ingest(session, file, strict=True, readmit=["r1"]).readmitted == 1
    assert held(session)["r1"] == version


def test_strict_takes_in_a_later_version_of_what_was_never_deleted(session: Session, tmp_path: Path) -> None:
    forget(session, "r1")
    taken = ingest(session, rows(tmp_path / "new.jsonl", 20, version=3), strict=True)
    assert (taken.added, taken.readmitted) == (1, 0)
    assert not session.workspace.ledger.facts(kinds.READMISSION)


def test_a_readmitted_record_is_deleted_again_like_any_other(session: Session, tmp_path: Path) -> None:
    file = rows(tmp_path / "again.jsonl", 1)
    forget(session, "r1", request_id="one")
    retrain(session, file, readmit=["r1"])
    done = forget(session, "r1", request_id="two")
    assert done.certificate is not None
    assert not failed(checked(done.certificate, [public_key(session)]))
    assert "r1" not in held(session)
    assert_lawful(session)
    assert_equals_fresh_run(session, TRAINER, tmp_path / "fresh")
    assert retrain(session, file).tombstoned == 1
    assert forget(session, "r1").request_id == "two"
    retrain(session, file, readmit=["r1"])
    assert held(session)["r1"] == 3
    forget(session, "r1")
    assert_lawful(session)


def test_the_old_certificate_still_holds_once_the_record_is_back(session: Session, tmp_path: Path) -> None:
    """It is about the version that was deleted."""
    done = forget(session, "r1", request_id="one")
    retrain(session, rows(tmp_path / "again.jsonl", 1), readmit=["r1"])
    assert done.certificate is not None
    assert not failed(checked(done.certificate, [public_key(session)]))
    assert_lawful(session)


def test_the_file_of_the_first_version_does_not_disturb_the_second(session: Session, tmp_path: Path) -> None:
    file = rows(tmp_path / "again.jsonl", 1)
    forget(session, "r1")
    retrain(session, file, readmit=["r1"])
    before = holdings(session)
    for readmit in ([], ["r1"]):
        taken = retrain(session, file, readmit=readmit)
        assert (taken.added, taken.readmitted) == (0, 0)
    assert holdings(session) == before


def test_an_export_carries_the_version_to_a_fresh_workspace(session: Session, tmp_path: Path) -> None:
    forget(session, "r1")
    retrain(session, rows(tmp_path / "again.jsonl", 1), readmit=["r1"])
    export_records(session, tmp_path / "out.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [line["version"] for line in lines if line["id"] == "r1"] == [2]


def test_the_same_content_under_another_id_is_taken_in_and_reported(session: Session, tmp_path: Path) -> None:
    forget(session, "r1")
    file = rows(tmp_path / "copy.jsonl", 20, text="text 1")
    taken = retrain(session, file)
    assert taken.added == 1
    assert len(taken.same_content) == 1
    assert "copy.jsonl" in taken.same_content[0]
    assert "r20" in held(session)
    assert session.workspace.ledger.facts(kinds.INGEST)[-1].body["counts"]["same_content"] == 1
    assert_equals_fresh_run(session, TRAINER, tmp_path / "fresh")


def test_strict_refuses_the_same_content_under_another_id(session: Session, tmp_path: Path) -> None:
    forget(session, "r1")
    before = session.workspace.ledger.head()
    with pytest.raises(RecordError, match="deleted under another ID"):
        ingest(session, rows(tmp_path / "copy.jsonl", 20, text="text 1"), strict=True)
    assert session.workspace.ledger.head() == before


def test_the_report_names_no_content_and_no_id(session: Session, tmp_path: Path) -> None:
    forget(session, "r1")
    (where,) = retrain(session, rows(tmp_path / "copy.jsonl", 20, text="text 1")).same_content
    assert "text 1" not in where
    assert "r20" not in where


def test_the_order_of_requests_does_not_matter(memory_path: Path, tmp_path: Path) -> None:
    """Two deletions and the arrival of a copy of one record's content, in every order."""
    file = rows(tmp_path / "copy.jsonl", 20, text="text 1", generation=1)
    ends = []
    for number, order in enumerate(permutations(("r1", "r5", "ingest"))):
        session = trained(memory_path / f"workspace{number}")
        for step in order:
            if step == "ingest":
                retrain(session, file)
            else:
                forget(session, step)
        assert_lawful(session)
        ends.append((held(session), holdings(session)))
        session.workspace.close()
    assert all(records == ends[0][0] for records, _ in ends)
    assert all(end.tensors == ends[0][1].tensors for _, end in ends)
    assert all(end.manifest == ends[0][1].manifest for _, end in ends)


def test_a_readmission_and_the_deletion_of_another_record_commute(memory_path: Path, tmp_path: Path) -> None:
    file = rows(tmp_path / "again.jsonl", 1, generation=1)
    ends = []
    for number, order in enumerate(permutations(("readmit", "r5", "r9"))):
        session = trained(memory_path / f"workspace{number}")
        forget(session, "r1")
        for step in order:
            retrain(session, file, readmit=["r1"]) if step == "readmit" else forget(session, step)
        assert_lawful(session)
        ends.append(holdings(session).tensors)
        session.workspace.close()
    assert all(end == ends[0] for end in ends)
