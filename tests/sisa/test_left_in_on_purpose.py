"""The deleted record is left in on purpose, at one stage after the other.

Signing must refuse. And if somebody forces a certificate through, by taking the law out of the
signer, whoever verifies it must find out: most from the file and a public key alone, the rest with
the workspace at hand. What only lives in a trainer's memory is caught by a replay
(``tests/exactness/test_planted_bugs.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

import orchestration.executor
import orchestration.schedule
import shards.plan
from orchestration.executor import ChainOrder, StepOrder
from orchestration.inline import InlineExecutor
from shards.checks import Check, judged
from shards.errors import LawViolationError
from shards.layout import Assignment
from shards.lineage import Checkpoint
from shards.plan import SliceStep
from shards.vault import StoredRecord
from shards.workspace import Workspace
from sisa import certificate
from sisa import delete as deletion
from sisa.certificate import certificate_path
from sisa.ingest import Ingested, commit
from sisa.replay import replay
from sisa.session import Session
from sisa.train import train
from tests.exactness.test_planted_bugs import (
    WarmStart,
    files_left_behind,
    first_trained,
    manifest_not_rolled_back,
    nothing_purged,
    vault_not_rewritten,
)
from tests.sisa.forging import failed, from_the_file, with_the_workspace
from tests.toy import ToyTrainer, stored, toy_recipe, toy_record, toy_session

INLINE = InlineExecutor()
TRAINER = ToyTrainer()
Monkey = pytest.MonkeyPatch
Slices = dict[int, list[StoredRecord]]


@pytest.fixture
def session(memory_path: Path) -> Iterator[Session]:
    """Twelve records, trained."""
    made = toy_session(memory_path / "workspace", toy_recipe())
    commit(made, stored(made, map(toy_record, range(12))), Ingested(12, 0, 0, 0))
    train(made, executor=INLINE, trainer=TRAINER)
    yield made
    made.workspace.close()


@dataclass(frozen=True, slots=True)
class Victim:
    """The record that is to go: where it lived, and whether it should be gone by now."""

    session: Session
    held: StoredRecord
    place: Assignment

    @classmethod
    def of(cls, session: Session) -> Victim:
        """The record that its shard's first step trains first."""
        name = first_trained(session)
        held = next(held for held in session.workspace.survivors() if held.record.id == name)
        return cls(session, held, session.workspace.layout().place(held.record))

    def gone(self) -> bool:
        """Was its deletion accepted?"""
        return self.held.tag in self.session.workspace.book.tombstones()


def _plan_with(victim: Victim, shard: int, monkey: Monkey) -> None:
    """Plans have the victim in ``shard``, whoever makes them, after it is gone."""
    honest = shards.plan._chain

    def chain(number: int, slices: Slices, *others: Any) -> shards.plan.Chain:
        if number == shard and victim.gone():
            at = victim.place.slice
            slices = {**slices, at: [*slices.get(at, []), victim.held]}
        return honest(number, slices, *others)

    monkey.setattr(shards.plan, "_chain", chain)


def left_in_the_order(session: Session, monkey: Monkey) -> None:
    victim = Victim.of(session)
    _plan_with(victim, victim.place.shard, monkey)


def left_in_a_neighbour_shard(session: Session, monkey: Monkey) -> None:
    victim = Victim.of(session)
    _plan_with(victim, 1 - victim.place.shard, monkey)


def left_in_the_adapter_and_optimiser_state(session: Session, monkey: Monkey) -> None:
    """Its shard is trained on from the checkpoint that saw it, and the facts say so."""
    victim = Victim.of(session)
    head = session.workspace.chain(victim.place.shard).head
    assert head is not None
    stale, honest, order = session.workspace.book.live()[head.key], shards.plan._chain, orchestration.executor.order
    nothing_purged(monkey)

    def chain(number: int, slices: Slices, *others: Any) -> shards.plan.Chain:
        made = honest(number, slices, *others)
        steps: list[SliceStep] = []
        for step in made.steps if number == victim.place.shard and victim.gone() else ():
            parent = steps[-1].key if steps else stale.key
            steps.append(replace(step, link=replace(step.link, parent=parent)))
        return replace(made, steps=tuple(steps) or made.steps)

    def warm(chain: ChainOrder, number: int, done: Checkpoint | None, *places: Path) -> StepOrder:
        made = order(chain, number, done, *places)
        return replace(made, parent=stale) if made.parent is None and victim.gone() else made

    monkey.setattr(shards.plan, "_chain", chain)
    monkey.setattr(orchestration.schedule, "order", warm)


def a_stale_checkpoint_kept(_: Session, monkey: Monkey) -> None:
    nothing_purged(monkey)


def a_stale_checkpoints_files_kept(_: Session, monkey: Monkey) -> None:
    files_left_behind(monkey)


def a_vault_row_kept(_: Session, monkey: Monkey) -> None:
    vault_not_rewritten(monkey)


def a_stale_manifest_served_on(_: Session, monkey: Monkey) -> None:
    manifest_not_rolled_back(monkey)


def a_slice_commitment_kept(session: Session, monkey: Monkey) -> None:
    """What the log says the slice consists of still has it; the training goes on without."""
    monkey.setattr(Workspace, "recommit", lambda self, plan: [])


def a_root_that_still_has_it(session: Session, monkey: Monkey) -> None:
    """The step is trained without it, on a root that it is still in; no stored fact is wrong."""
    victim, honest = Victim.of(session), shards.plan._chain

    def chain(number: int, slices: Slices, *others: Any) -> shards.plan.Chain:
        made = honest(number, slices, *others)
        if number != victim.place.shard or not victim.gone():
            return made
        first, *rest = made.steps
        kept = {**first.leaves, victim.held.tag: victim.held.commitment}
        return replace(made, steps=(replace(first, leaves=kept), *rest))

    monkey.setattr(shards.plan, "_chain", chain)


Planted = Callable[[Session, Monkey], None]
FROM_THE_FILE: tuple[Planted, ...] = (
    left_in_the_order, left_in_a_neighbour_shard, left_in_the_adapter_and_optimiser_state,
)  # fmt: skip
WITH_THE_WORKSPACE: tuple[Planted, ...] = (
    a_stale_checkpoint_kept, a_stale_checkpoints_files_kept, a_stale_manifest_served_on, a_vault_row_kept,
    a_slice_commitment_kept,
)  # fmt: skip


def lawless(monkey: Monkey) -> None:
    """The signer asks nothing."""

    def agreeable(_: Workspace, **__: object) -> list[Check]:
        return [judged("law", "all is well", [], "")]

    monkey.setattr(deletion, "check_law", agreeable)
    monkey.setattr(certificate, "examine", lambda _: [])


def forced(session: Session, plant: Planted, monkey: Monkey) -> Path:
    with monkey.context() as planted:
        plant(session, planted)
        lawless(planted)
        deletion.delete(
            session, [Victim.of(session).held.record.id], request_id="req", executor=INLINE, trainer=TRAINER
        )
    return certificate_path(session.workspace, "req")


@pytest.mark.parametrize("plant", [*FROM_THE_FILE, *WITH_THE_WORKSPACE, a_root_that_still_has_it])
def test_signing_refuses(session: Session, plant: Planted, monkeypatch: Monkey) -> None:
    """By the law itself; only what no stored fact tells is left to the statement's own checks."""
    refusal = "a certificate that verifies" if plant is a_root_that_still_has_it else "the law to hold before signing"
    plant(session, monkeypatch)
    with pytest.raises(LawViolationError, match=refusal):
        deletion.delete(
            session, [Victim.of(session).held.record.id], request_id="req", executor=INLINE, trainer=TRAINER
        )
    assert not certificate_path(session.workspace, "req").exists()
    assert not session.workspace.book.certificates()


@pytest.mark.parametrize("plant", FROM_THE_FILE)
def test_a_certificate_forced_through_fails_from_the_file_alone(
    session: Session, plant: Planted, monkeypatch: Monkey
) -> None:
    path = forced(session, plant, monkeypatch)
    assert failed(from_the_file(path, session.workspace))


@pytest.mark.parametrize("plant", [*FROM_THE_FILE, *WITH_THE_WORKSPACE])
def test_a_certificate_forced_through_fails_with_the_workspace(
    session: Session, plant: Planted, monkeypatch: Monkey
) -> None:
    path = forced(session, plant, monkeypatch)
    assert failed(with_the_workspace(path, session.workspace))


def test_without_a_bug_the_lawless_signer_signs_what_verifies(session: Session, monkeypatch: Monkey) -> None:
    path = forced(session, lambda *_: None, monkeypatch)
    assert failed(with_the_workspace(path, session.workspace)) == []


def test_a_root_that_still_has_the_record_fails_from_the_file_alone(session: Session, monkeypatch: Monkey) -> None:
    path = forced(session, a_root_that_still_has_it, monkeypatch)
    found = failed(from_the_file(path, session.workspace))
    assert found == ["the records are in no slice that the served heads were trained on"]


def test_state_kept_in_a_trainers_memory_fails_the_replay(memory_path: Path) -> None:
    """No fact tells, and the certificate says so; the training, run anew by somebody else, does tell."""
    session, trainer = toy_session(memory_path / "workspace", toy_recipe()), WarmStart()
    commit(session, stored(session, map(toy_record, range(12))), Ingested(12, 0, 0, 0))
    train(session, executor=INLINE, trainer=trainer)
    deletion.delete(session, [first_trained(session)], request_id="req", executor=INLINE, trainer=trainer)

    def replayer(workspace: Workspace, numbers: list[int], level: str) -> list[Check]:
        return replay(workspace, numbers, level, INLINE, TRAINER)

    path = certificate_path(session.workspace, "req")
    assert failed(with_the_workspace(path, session.workspace)) == []
    assert [name for name in failed(with_the_workspace(path, session.workspace, replayer)) if "anew" in name]
    session.workspace.close()
