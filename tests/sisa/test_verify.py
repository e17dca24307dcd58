"""``verify`` as a library: three outcomes, and what each piece of evidence adds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestration.inline import InlineExecutor
from shards.checks import Check
from shards.errors import InputError
from shards.workspace import Workspace
from sisa.delete import delete
from sisa.levels import REPLAYS
from sisa.replay import replay
from sisa.session import Session
from sisa.train import train
from sisa.verify import BOUND, FRESH, ORIGIN, Evidence, verify
from sisa.verify_workspace import READABLE, Replayer, ReplayScope, _superseded, verify_against
from tests.toy import ToyTrainer, toy_recipe, toy_session


@pytest.fixture
def session(memory_path: Path) -> Iterator[Session]:
    """A toy workspace out of which one record was deleted under the request ``case-1``."""
    made = toy_session(memory_path / "toy", toy_recipe())
    data = memory_path / "records.csv"
    data.write_text("id,text,label\n" + "".join(f"r{n},text {n},a\n" for n in range(12)))
    train(made, [data], executor=InlineExecutor(), trainer=ToyTrainer())
    delete(made, ["r3"], request_id="case-1", executor=InlineExecutor(), trainer=ToyTrainer())
    yield made
    made.workspace.close()


@pytest.fixture
def certificate(session: Session) -> Path:
    return session.workspace.path / "certificates" / "case-1.json"


def replayed(opened: Workspace, shards: list[int], level: str) -> list[Check]:
    return replay(opened, shards, level, InlineExecutor(), ToyTrainer())


def by_name(checks: list[Check]) -> dict[str, str]:
    return {check.name: check.outcome for check in checks}


def against(
    certificate: Path, path: Path, replay: ReplayScope | None = None, replayer: Replayer | None = None
) -> list[Check]:
    """What ``sisa verify -w`` reports: first from the file and the key, then from the workspace."""
    document, checks = verify(certificate, Evidence(public_keys=(path / "keys" / "signing.pub",)))
    assert document is not None
    return checks + verify_against(document, path, replay=replay, replayer=replayer)


def test_more_evidence_turns_not_checked_into_passed_and_nothing_into_failed(
    session: Session, certificate: Path, tmp_path: Path
) -> None:
    path = session.workspace.path
    tag_key = tmp_path / "tag.key"
    tag_key.write_text(session.workspace.keys.tag.hex())
    tag_key.chmod(0o600)
    head = tmp_path / "head"
    head.write_text(session.workspace.ledger.head())
    key = path / "keys" / "signing.pub"
    evidence = Evidence(public_keys=(key,), tag_key=tag_key, record_id="r3", head=head)
    alone = by_name(verify(certificate, Evidence())[1])
    keyed = by_name(verify(certificate, Evidence(public_keys=(key,)))[1])
    everything = by_name(verify(certificate, evidence)[1])
    whole = by_name(against(certificate, path))
    full = by_name(against(certificate, path, "full", replayed))
    assert alone.keys() == keyed.keys() == everything.keys()
    assert {name for name, outcome in alone.items() if outcome == "not_checked"} == {ORIGIN, FRESH, BOUND}
    assert {name for name, outcome in keyed.items() if outcome == "not_checked"} == {FRESH, BOUND}
    assert set(everything.values()) == {"passed"}
    assert {whole[name] for name in REPLAYS.values()} == {"not_checked"}
    assert full[REPLAYS["V3"]] == "passed", "the hit shards are among all shards"
    assert full["shard 0 trained anew gives the stored bits"] == "passed"
    for outcomes in (alone, keyed, whole, full):
        assert "failed" not in outcomes.values()
        assert outcomes[BOUND] == "not_checked", "no one can know without the tag key or a receipt"


def test_an_affected_replay_trains_the_hit_shards_and_a_full_one_all(session: Session, certificate: Path) -> None:
    asked: list[tuple[list[int], str]] = []

    def counted(opened: Workspace, shards: list[int], level: str) -> list[Check]:
        asked.append((shards, level))
        return replayed(opened, shards, level)

    against(certificate, session.workspace.path, "affected", counted)
    against(certificate, session.workspace.path, "full", counted)
    ((affected, third), (full, fourth)) = asked
    assert (third, fourth, full) == ("V3", "V4", [0, 1])
    assert len(affected) == 1


def test_without_somebody_to_do_it_a_replay_is_not_checked(session: Session, certificate: Path) -> None:
    outcomes = by_name(against(certificate, session.workspace.path, "full"))
    assert {outcomes[name] for name in REPLAYS.values()} == {"not_checked"}


def test_an_affected_replay_says_that_the_other_shards_were_not_trained(session: Session, certificate: Path) -> None:
    checks = against(certificate, session.workspace.path, "affected", replayed)
    levels = {check.level: check.outcome for check in checks if check.level in REPLAYS}
    assert levels == {"V3": "passed", "V4": "not_checked"}


@pytest.mark.parametrize(("scope", "full"), [("affected", "not_checked"), ("full", "passed")])
def test_a_replay_for_a_record_that_was_never_held_has_no_shard_to_train_and_fails_nothing(
    scope: ReplayScope, full: str, session: Session
) -> None:
    delete(session, ["nobody"], request_id="none", ignore_missing=True, executor=InlineExecutor(), trainer=ToyTrainer())
    path = session.workspace.path
    checks = against(path / "certificates" / "none.json", path, scope, replayed)
    assert "failed" not in by_name(checks).values()
    assert {check.outcome for check in checks if check.level == "V4"} == {full}
    (third,) = (check for check in checks if check.level == "V3")
    assert (third.outcome, third.detail) == ("not_checked", "the request hit no shard")


def test_a_workspace_that_cannot_be_read_leaves_every_replay_not_checked(
    session: Session, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: object) -> None:
        raise KeyError("spoilt")

    monkeypatch.setattr("sisa.verify_workspace.check_law", broken)
    outcomes = by_name(against(certificate, session.workspace.path, "full", replayed))
    assert outcomes[READABLE] == "failed"
    assert {outcomes[name] for name in REPLAYS.values()} == {"not_checked"}


def test_a_directory_that_is_no_workspace_is_the_callers_mistake(
    session: Session, certificate: Path, tmp_path: Path
) -> None:
    document, _ = verify(certificate, Evidence())
    assert document is not None
    with pytest.raises(InputError, match="a workspace in"):
        verify_against(document, tmp_path)


def test_a_trainer_that_computes_something_else_is_found_out(session: Session, certificate: Path) -> None:
    class Other(ToyTrainer):
        def train(self, lesson: object) -> dict[str, bytes]:
            from tests.toy import safetensors_of

            return {"adapter_model.safetensors": safetensors_of(b"x" * 32)}

    def other(opened: Workspace, shards: list[int], level: str) -> list[Check]:
        return replay(opened, shards, level, InlineExecutor(), Other())

    outcomes = by_name(against(certificate, session.workspace.path, "full", other))
    assert outcomes["shard 0 trained anew gives the stored bits"] == "failed"
    assert outcomes["shard 1 trained anew gives the stored bits"] == "failed"
    assert outcomes[REPLAYS["V3"]] == "not_checked", "which shards it was is told by their own lines"


def test_a_replay_in_another_environment_class_is_not_comparable(session: Session, certificate: Path) -> None:
    def elsewhere(opened: Workspace, shards: list[int], level: str) -> list[Check]:
        return replay(opened, shards, level, InlineExecutor(), ToyTrainer((("machine", "another"),)))

    checks = against(certificate, session.workspace.path, "full", elsewhere)
    assert by_name(checks)[REPLAYS["V3"]] == "not_checked"
    outcomes = [check for check in checks if check.level == "V4"]
    assert {check.outcome for check in outcomes} == {"not_checked"}
    assert all("'another' instead of 'toy'" in check.detail for check in outcomes)


def test_an_earlier_certificate_is_superseded_and_never_failed(session: Session, certificate: Path) -> None:
    for number in range(4, 12):
        delete(session, [f"r{number}"], executor=InlineExecutor(), trainer=ToyTrainer())
        checks = against(certificate, session.workspace.path, "affected", replayed)
        assert "failed" not in by_name(checks).values()
    heads = next(check for check in checks if check.name == "heads on disk are the heads certified")
    assert "superseded" in heads.detail
    outcomes = {check.level: check.outcome for check in checks}
    assert (outcomes["V3"], outcomes["V4"]) == ("not_checked", "not_checked"), "today's bits are not those certified"


def test_a_replay_is_of_what_was_certified_and_not_only_of_what_is_stored(
    session: Session, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document, _ = verify(certificate, Evidence())
    assert document is not None
    document.predicate["lineages"][0]["links"][-1]["tensors"] = "ab" * 32
    shard = document.predicate["lineages"][0]["shard"]
    found = _superseded(session.workspace, document.predicate, "V4", [shard])
    assert (found[shard].outcome, found[shard].level) == ("failed", "V4")


def test_records_that_wait_for_training_are_not_checked(session: Session, certificate: Path, tmp_path: Path) -> None:
    from sisa.ingest import ingest

    data = tmp_path / "more.csv"
    data.write_text("id,text,label\n" + "".join(f"n{n},text {n},a\n" for n in range(6)))
    ingest(session, [data], trainer=ToyTrainer())
    outcomes = by_name(against(certificate, session.workspace.path))
    assert outcomes["the surviving records hash to the served checkpoints' keys"] == "not_checked"
    assert "failed" not in outcomes.values()


def test_a_file_beyond_the_limit_is_not_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sisa.document.MAX_BYTES", 1000)
    file = tmp_path / "large.json"
    file.write_bytes(b" " * 1001)
    with pytest.raises(InputError, match="at most 1000 bytes"):
        verify(file, Evidence())
