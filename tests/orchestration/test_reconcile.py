"""Reconcile: the store is brought to the plan by exactly the missing steps, and served."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from orchestration.executor import ChainOrder, Outcome, SliceTrainer
from orchestration.inline import InlineExecutor
from orchestration.reconcile import Progress, Reconciled, publish, purge, reconcile, restart_foreign, served
from shards import kinds
from shards.errors import EnvironmentMismatchError, StepFailedError
from shards.law import check_law
from shards.plan import Plan
from shards.workspace import Workspace
from sisa.ingest import ingest
from sisa.session import Session
from sisa.train import train
from tests.orchestration.test_executor import Breaking, first_chain, first_seed
from tests.toy import ToyTrainer, toy_recipe, toy_record, toy_session

FOREIGN = ToyTrainer(environment_facts=(("machine", "other"),))


@pytest.fixture
def session(memory_path: Path) -> Iterator[Session]:
    """A workspace that has ingested twelve records and trained nothing."""
    opened = toy_session(memory_path / "workspace", toy_recipe())
    take_in(opened, range(12))
    yield opened
    opened.workspace.close()


def take_in(session: Session, numbers: range, **values: object) -> None:
    file = session.workspace.path.parent / f"{numbers.start}.jsonl"
    rows = [toy_record(n, subject=None, **values).to_json() for n in numbers]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    ingest(session, [file], trainer=ToyTrainer())


def run(session: Session, trainer: ToyTrainer | None = None) -> Reconciled:
    return reconcile(session.workspace, InlineExecutor(), trainer or ToyTrainer())


def assert_lawful(session: Session) -> None:
    assert [check for check in check_law(session.workspace) if check.outcome != "passed"] == []


def test_exactly_the_missing_steps_are_trained(session: Session) -> None:
    plan = session.workspace.plan()
    first, second = run(session), run(session)
    assert {made.key for made in first.trained} == plan.steps().keys() == session.workspace.book.live().keys()
    assert first.passes == 2 * sum(len(step.members) for step in plan.steps().values())
    assert second.trained == ()
    assert second.manifest == first.manifest, "a manifest that changes nothing is no new generation"
    assert {head.checkpoint for head in first.manifest.heads} == {c.head.key for c in plan.chains if c.head}
    assert_lawful(session)


def test_what_did_not_change_meanwhile_is_planned_once(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    planned: list[Plan] = []
    plan = Workspace.plan

    def counted(workspace: Workspace) -> Plan:
        planned.append(plan(workspace))
        return planned[-1]

    monkeypatch.setattr(Workspace, "plan", counted)
    run(session)
    assert len(planned) == 1


def test_slices_are_committed_to_before_training_on_them_begins_and_that_is_logged_before_it_ends(
    session: Session,
) -> None:
    run(session)
    take_in(session, range(12, 20), generation=0)
    run(session)
    logged: set[tuple[int, int, str]] = set()
    begun: set[tuple[int, int, str, str]] = set()
    made = 0
    for fact in session.workspace.ledger.since(0):
        body = fact.body
        if fact.kind == kinds.SLICE:
            logged.add((body["shard"], body["slice"], body["root"]))
        elif fact.kind == kinds.RUN:
            steps = [(body["shard"], step["slice"], step["root"], step["checkpoint"]) for step in body["steps"]]
            assert {step[:3] for step in steps} <= logged
            begun |= set(steps)
        elif fact.kind == kinds.CHECKPOINT:
            link = body["link"]
            assert (link["shard"], link["slice"], body["root"], link["key"]) in begun
            made += 1
    assert made > len(session.workspace.plan().steps()), "some were trained twice, on other records"


def test_where_nothing_is_missing_nothing_is_said_to_begin(session: Session) -> None:
    run(session)
    size = len(session.workspace.ledger.since(0))
    run(session)
    assert session.workspace.ledger.since(size) == []


def test_a_manifest_names_the_lineage_of_each_head_and_its_length(session: Session) -> None:
    done = run(session)
    live = session.workspace.book.live()
    for chain in session.workspace.plan().chains:
        head = done.manifest.head(chain.shard)
        assert head is not None
        lineage = ""
        for step in chain.steps:
            lineage = live[step.key].extend(lineage)
        assert (head.lineage, head.steps) == (lineage, len(chain.steps))


def test_later_generations_retrain_nothing_earlier(session: Session) -> None:
    before = {made.key for made in run(session).trained}
    take_in(session, range(12, 20), generation=1)
    after = run(session)
    assert before <= session.workspace.book.live().keys()
    assert all(made.link.slice >= 3 for made in after.trained)


def test_a_record_put_before_trained_slices_drops_what_the_plan_no_longer_has(session: Session) -> None:
    run(session)
    take_in(session, range(12, 20), generation=0)
    run(session)
    assert session.workspace.book.live().keys() == session.workspace.plan().steps().keys()
    assert_lawful(session)


def test_progress_counts_every_step_once(session: Session) -> None:
    told: list[Progress] = []
    reconcile(session.workspace, InlineExecutor(), ToyTrainer(), told.append)
    total = len(session.workspace.plan().steps())
    assert [(progress.done, progress.total) for progress in told] == [(n, total) for n in range(total + 1)]
    assert told[0].outcome is None


def test_a_damaged_checkpoint_is_made_again_to_the_same_tensors(session: Session) -> None:
    done = run(session)
    live = session.workspace.book.live()
    victim = live[done.manifest.heads[0].checkpoint]
    (session.workspace.store.path(victim.files) / "adapter_model.safetensors").write_bytes(b"")
    mended = run(session)
    assert mended.damaged == (victim.key,)
    assert mended.manifest == done.manifest
    assert session.workspace.book.live() == live
    assert_lawful(session)


def test_leaves_of_a_slice_that_were_lost_are_stored_again(session: Session) -> None:
    workspace = session.workspace
    lost = next(iter(workspace.book.slices().values())).leaves
    workspace.store.purge(lost)
    run(session)
    assert workspace.store.intact(lost)
    assert_lawful(session)


def test_a_failed_shard_is_reported_and_the_others_are_served(session: Session) -> None:
    chain = first_chain(session)
    breaking = Breaking(seed=first_seed(session), how=lambda: StepFailedError("a", "b", "c"))
    done = run(session, breaking)
    (error,) = done.errors
    with pytest.raises(StepFailedError) as raised:
        done.raise_errors()
    assert raised.value is error
    assert [head.shard for head in done.manifest.heads] == [1 - chain.shard]
    kept = session.workspace.book.live().keys()
    assert kept, "finished steps are kept"
    again = run(session)
    assert again.errors == ()
    assert {made.key for made in again.trained} == session.workspace.plan().steps().keys() - kept
    assert_lawful(session)


def test_a_left_over_of_a_dead_worker_is_swept(session: Session) -> None:
    (session.workspace.store.root / ".tmp-dead").mkdir()
    session.workspace.store.put({"no": b"fact names this"})
    (session.workspace.vault.root / "half.parquet").touch()
    run(session)
    assert_lawful(session)


@dataclass(frozen=True)
class LeavingBehind(InlineExecutor):
    """Loses a worker in the middle of a write."""

    def run(
        self, chains: Iterable[ChainOrder], trainer: SliceTrainer, workspace: Path, store: Path
    ) -> Iterator[Outcome]:
        (store / ".tmp-dead").mkdir()
        return InlineExecutor.run(self, chains, trainer, workspace, store)


def test_what_a_worker_left_that_died_under_way_is_gone_when_training_ends(session: Session) -> None:
    file = session.workspace.path.parent / "0.jsonl"
    train(session, [file], executor=LeavingBehind(), trainer=ToyTrainer())
    assert_lawful(session)


def test_a_purge_takes_a_head_out_of_service_in_the_same_transaction(session: Session) -> None:
    done = run(session)
    workspace = session.workspace
    gone = done.manifest.heads[0]
    files = workspace.book.live()[gone.checkpoint].files
    purge(workspace, frozenset({gone.checkpoint, "f" * 64}), ("req",))
    manifest = workspace.book.manifest()
    assert manifest is not None
    assert manifest.heads == done.manifest.heads[1:]
    (receipt,) = workspace.ledger.facts(kinds.PURGE)
    assert receipt.body == {
        "checkpoints": [gone.checkpoint],
        "objects": [files],
        "requests": ["req"],
        "method": "unlink",
    }
    assert not workspace.store.path(files).exists()
    assert workspace.store.intact(next(s.checkpoint.seen for s in workspace.book.checkpoints() if not s.live))
    assert_lawful(session)


def test_purging_nothing_writes_no_fact(session: Session) -> None:
    run(session)
    purge(session.workspace, frozenset({"f" * 64}), ())
    assert session.workspace.ledger.facts(kinds.PURGE) == []


def test_what_is_served_is_the_unbroken_run_of_stored_steps(session: Session) -> None:
    done = run(session)
    workspace, plan = session.workspace, session.workspace.plan()
    chain = max(plan.chains, key=lambda chain: len(chain.steps))
    purge(workspace, frozenset({chain.steps[1].key}), ())
    prefix = served(workspace, plan).head(chain.shard)
    assert prefix is not None
    assert prefix.checkpoint == chain.steps[0].key
    assert publish(workspace, plan).generation > done.manifest.generation


def test_a_chain_of_another_environment_class_is_not_continued_but_can_be_restarted(session: Session) -> None:
    run(session)
    take_in(session, range(12, 30), generation=1)
    errors = run(session, FOREIGN).errors
    assert [type(error) for error in errors] == [EnvironmentMismatchError] * 2
    assert "--restart-shards" in errors[0].remedy
    assert sorted(restart_foreign(session.workspace, FOREIGN.environment())) == [0, 1]
    run(session, FOREIGN)
    assert {tuple(made.environment.items()) for made in session.workspace.book.live().values()} == {
        FOREIGN.environment_facts
    }
    assert_lawful(session)


def test_a_whole_chain_of_another_environment_class_is_left_alone(session: Session) -> None:
    run(session)
    live = session.workspace.book.live()
    assert restart_foreign(session.workspace, FOREIGN.environment()) == ()
    assert run(session, FOREIGN).trained == ()
    assert session.workspace.book.live() == live


def test_an_error_of_ours_in_mid_run_ends_the_workers_at_once(session: Session) -> None:
    """Nobody may write on while the error is being told."""
    ended: list[bool] = []

    class Running:
        def run(
            self, chains: Iterable[ChainOrder], trainer: SliceTrainer, workspace: Path, store: Path
        ) -> Iterator[Outcome]:
            try:
                yield from InlineExecutor().run(chains, trainer, workspace, store)
            finally:
                ended.append(True)

    def interrupted(progress: Progress) -> None:
        if progress.done:
            raise KeyboardInterrupt

    with session.driving(), pytest.raises(KeyboardInterrupt) as stopped:
        reconcile(session.workspace, Running(), ToyTrainer(), interrupted)
    assert stopped.traceback
    assert ended == [True]
