"""The law of exactness with a trunk: what is deleted from it, and how it is deleted, leaves no trace in any shard."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

import orchestration.attempt
import orchestration.inline
import orchestration.reconcile
import shards.plan
import sisa.acceptance as acceptance
import sisa.delete as deletion
from orchestration.executor import Lesson, Outcome, SliceTrainer, StepOrder
from orchestration.inline import InlineExecutor
from orchestration.reconcile import restart_foreign
from shards import kinds
from shards.errors import EnvironmentMismatchError, IntegrityError, LawViolationError, StepFailedError
from shards.law import check_law, lineage
from shards.lineage import Checkpoint, standing_on
from shards.manifest import Head, ModelManifest
from shards.plan import SliceStep
from shards.records import PERMANENT
from shards.store import Store
from shards.trunk import TRUNK
from shards.workspace import WEIGHTS_FILE, Workspace
from sisa import status as status_module
from sisa.audit import audit_checkpoint, audit_record, audit_shard
from sisa.delete import Deleted, delete
from sisa.queue import cancel, work
from sisa.replay import replay
from sisa.session import Session
from sisa.status import status
from sisa.train import train
from tests.exactness.oracle import assert_equals_fresh_run, assert_lawful
from tests.toy import ToyTrainer, Wrapped, toy_recipe, toy_record, toy_session

INLINE = InlineExecutor()
COMMON = range(5)  # numbers of the permanent records
RECORDS = range(16)
LATER = datetime.now(UTC) + timedelta(days=2)
Monkey = pytest.MonkeyPatch


def write_file(path: Path, numbers: Iterable[int], permanent: Iterable[int] = COMMON, **values: Any) -> Path:
    """A file of toy records, some of them permanent; each is of a subject of its own."""
    rows = []
    for number in numbers:
        row = toy_record(number, subject=f"s{number}").to_json() | {
            "retention": PERMANENT if number in permanent else ""
        }
        del row["generation"]
        rows.append(row | values)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def opened(path: Path, trainer: SliceTrainer, **recipe: Any) -> Session:
    """A workspace with a trunk of two slices or more and two shards, trained."""
    session = toy_session(path / "workspace", toy_recipe(**recipe))
    train(session, [write_file(path / "first.jsonl", RECORDS)], executor=INLINE, trainer=trainer)
    return session


@pytest.fixture
def session(memory_path: Path) -> Iterator[Session]:
    made = opened(memory_path, ToyTrainer())
    yield made
    made.workspace.close()


def forget(session: Session, *ids: str, **options: Any) -> Deleted:
    return delete(session, ids, executor=INLINE, **({"trainer": ToyTrainer()} | options))


def places(session: Session) -> dict[str, int]:
    layout = session.workspace.layout()
    return {one.record.id: layout.place(one.record).shard for one in session.workspace.survivors()}


def served(session: Session) -> list[int]:
    return [head.shard for head, _ in session.workspace.book.served()]


def trunk_of(session: Session) -> Sequence[SliceStep]:
    return session.workspace.plan().trunk.steps


def first_of(steps: Sequence[SliceStep], at: int = 0) -> str:
    """ID of the record that a step trains first among those that live in its slice."""
    return next(one.record.id for one in steps[at].members if one.tag in steps[at].leaves)


def ordinary(session: Session, shard: int) -> str:
    return next(name for name, place in sorted(places(session).items()) if place == shard)


# -- what a trunk is --------------------------------------------------------------------------------


def test_every_shard_starts_from_the_trunk_and_only_shards_are_served(session: Session) -> None:
    workspace, trunk = session.workspace, trunk_of(session)
    assert len(trunk) > 1
    assert {one.record.id for step in trunk for one in step.members} == {f"r{number}" for number in COMMON}
    assert served(session) == [0, 1]
    for head, _ in workspace.book.served():
        chain = lineage(workspace, head.checkpoint)
        assert [made.key for made in chain[: len(trunk)]] == [step.key for step in trunk]
        assert {made.link.shard for made in chain[len(trunk) :]} == {head.shard}
        assert head.steps == len(chain)
    # A shard rehearses its own records alone.
    own = {one.tag for chain in workspace.plan().chains for step in chain.steps for one in step.members}
    assert not own & {one.tag for step in trunk for one in step.members}
    assert_lawful(session)


def test_a_step_after_the_trunk_is_shown_the_trunks_tensors(memory_path: Path) -> None:
    parents: dict[bytes, bytes | None] = {}

    @dataclass(frozen=True)
    class Watching(Wrapped):
        def train(self, lesson: Lesson) -> Mapping[str, bytes]:
            parents[lesson.seed] = lesson.parent
            return self.inner.train(lesson)

    session = opened(memory_path, Watching(ToyTrainer()))
    workspace, live = session.workspace, session.workspace.book.live()
    head = workspace.store.get(live[trunk_of(session)[-1].key].files)[WEIGHTS_FILE]
    assert list(parents.values()).count(head) == 2
    assert list(parents.values()).count(None) == 1, "the trunk alone starts from nothing"
    workspace.close()


def test_permanent_records_of_later_generations_are_ordinary_ones(session: Session, memory_path: Path) -> None:
    before = session.workspace.book.live()
    late = write_file(memory_path / "late.jsonl", range(16, 20), permanent=range(16, 20))
    train(session, [late], executor=INLINE, trainer=ToyTrainer())
    assert TRUNK not in {place for name, place in places(session).items() if name in {"r16", "r17", "r18", "r19"}}
    assert before.keys() <= session.workspace.book.live().keys(), "nothing earlier was trained again"
    forget(session, "r17")
    assert_equals_fresh_run(session, ToyTrainer(), memory_path / "oracle")


def test_without_a_permanent_record_everything_is_as_if_there_were_no_trunk(memory_path: Path) -> None:
    plain = toy_session(memory_path / "plain", toy_recipe())
    train(
        plain, [write_file(memory_path / "plain.jsonl", RECORDS, permanent=())], executor=INLINE, trainer=ToyTrainer()
    )
    assert plain.workspace.plan().trunk.steps == ()
    emptied = opened(memory_path, ToyTrainer())
    forget(emptied, *(f"r{number}" for number in COMMON))
    forget(plain, *(f"r{number}" for number in COMMON))
    heads = [[head.checkpoint for head, _ in one.workspace.book.served()] for one in (plain, emptied)]
    assert heads[0] == heads[1]
    assert_lawful(emptied)
    for one in (plain, emptied):
        one.workspace.close()


def test_a_workspace_of_permanent_records_alone_trains_the_trunk_and_serves_nothing(memory_path: Path) -> None:
    session = toy_session(memory_path / "workspace", toy_recipe())
    train(session, [write_file(memory_path / "all.jsonl", COMMON)], executor=INLINE, trainer=ToyTrainer())
    assert len(session.workspace.book.live()) == len(trunk_of(session)) > 0
    assert served(session) == []
    forget(session, "r0")
    assert_lawful(session)
    assert_equals_fresh_run(session, ToyTrainer(), memory_path / "oracle")
    session.workspace.close()


# -- deletions --------------------------------------------------------------------------------------


@pytest.mark.parametrize("lanes", [1, 2, 3])
@pytest.mark.parametrize("shards", [1, 2, 3])
def test_deletions_in_trunk_and_shards_equal_a_fresh_run(memory_path: Path, lanes: int, shards: int) -> None:
    trainer = ToyTrainer(lanes=lanes)
    session = opened(memory_path, trainer, shards=shards)
    forget(session, first_of(trunk_of(session)), trainer=trainer)
    joining = write_file(memory_path / "joining.jsonl", range(16, 18), permanent=range(16, 18), generation=0)
    train(session, [joining], join_trunk=True, executor=INLINE, trainer=trainer)
    assert {places(session)[name] for name in ("r16", "r17")} == {TRUNK}, "declared to be of the first generation"
    forget(session, ordinary(session, 0), first_of(trunk_of(session), -1), trainer=trainer)
    train(session, [memory_path / "first.jsonl"], executor=INLINE, trainer=trainer)
    assert_lawful(session)
    assert_equals_fresh_run(session, trainer, memory_path / "oracle")
    session.workspace.close()


def test_a_dry_run_says_before_that_everything_is_trained_again(session: Session) -> None:
    trunk = trunk_of(session)
    done = forget(session, first_of(trunk), dry_run=True)
    assert done.trunk
    assert [shard["shard"] for shard in done.impact["shards"]] == [0, 1, TRUNK]
    assert done.impact["retrained_share"] > 0.9
    assert {key for shard in done.impact["shards"] for key in shard["purged"]} == session.workspace.book.live().keys()
    later = forget(session, first_of(trunk, -1), dry_run=True)
    assert later.impact["shards"][-1]["first_slice"] == trunk[-1].link.slice
    assert 0.5 < later.impact["retrained_share"] < done.impact["retrained_share"]
    assert not forget(session, ordinary(session, 0), dry_run=True).trunk
    assert served(session) == [0, 1]


def test_what_is_foretold_is_what_is_trained(session: Session) -> None:
    before = session.workspace.book.live().keys()
    done = forget(session, first_of(trunk_of(session), -1))
    after = session.workspace.book.live().keys()
    assert {key for shard in done.impact["shards"] for key in shard["purged"]} == before - after
    assert sum(shard["steps"] for shard in done.impact["shards"]) == len(after - before)


def test_a_deletion_in_one_shard_leaves_the_trunk_and_the_other_shard_alone(session: Session) -> None:
    before = session.workspace.book.live()
    forget(session, ordinary(session, 0))
    after = session.workspace.book.live()
    assert {key for key, made in before.items() if made.link.shard != 0} <= after.keys()
    assert_lawful(session)


def test_on_acceptance_no_shard_is_served_any_more_not_even_the_trunks_clean_prefix(session: Session) -> None:
    trunk, live = trunk_of(session), session.workspace.book.live()
    forget(session, first_of(trunk, -1), queue=True, request_id="req")
    assert served(session) == []
    assert session.workspace.book.live() == live, "nothing is destroyed yet"
    assert not [check for check in check_law(session.workspace) if check.outcome == "failed"]
    cancel(session, "req")
    assert served(session) == [0, 1]
    assert train(session, [], executor=INLINE, trainer=ToyTrainer()).reconciled.trained == ()


def test_a_deletion_that_cannot_wait_is_completed_while_one_of_the_trunk_waits(
    session: Session, memory_path: Path
) -> None:
    """The trunk is trained for it, without the record that waits; the other shard's turn comes with its own request."""
    forget(session, first_of(trunk_of(session)), queue=True, request_id="waiting")
    forget(session, ordinary(session, 0), request_id="urgent")
    assert served(session) == [0]
    assert session.workspace.book.completed().keys() == {"urgent"}
    found = {check.name: check.outcome for check in replay(session.workspace, [0, 1], "V4", INLINE, ToyTrainer())}
    assert found["shard 0 trained anew gives the stored bits"] == "passed"
    assert found["shard 1 trained anew gives the stored bits"] == "not_checked", "it waits to be trained"
    assert {made.link.shard for made in session.workspace.book.live().values()} == {0, TRUNK}
    assert work(session, LATER, executor=INLINE, trainer=ToyTrainer()).completed == ("waiting",)
    assert served(session) == [0, 1]
    assert_lawful(session)
    assert_equals_fresh_run(session, ToyTrainer(), memory_path / "oracle")


def test_a_waiting_deletion_of_the_trunk_can_be_withdrawn_after_the_trunk_was_trained_without_it(
    session: Session, memory_path: Path
) -> None:
    forget(session, first_of(trunk_of(session)), queue=True, request_id="waiting")
    forget(session, ordinary(session, 0), request_id="urgent")
    cancel(session, "waiting")
    train(session, [], executor=INLINE, trainer=ToyTrainer())
    assert served(session) == [0, 1]
    assert_lawful(session)
    assert_equals_fresh_run(session, ToyTrainer(), memory_path / "oracle")


def test_all_records_of_a_subject_are_found_in_shard_and_trunk(session: Session, memory_path: Path) -> None:
    theirs = write_file(memory_path / "more.jsonl", [20], permanent=(), subject="s1")
    train(session, [theirs], executor=INLINE, trainer=ToyTrainer())
    done = delete(session, subjects=["s1"], executor=INLINE, trainer=ToyTrainer())
    assert set(done.ids) == {"r1", "r20"}
    assert not {"r1", "r20"} & places(session).keys()
    assert_equals_fresh_run(session, ToyTrainer(), memory_path / "oracle")


# -- when something goes wrong -----------------------------------------------------------------------


@dataclass(frozen=True)
class BreakingOnce(Wrapped):
    """Fails at the lesson of its number, once."""

    at: int = 0
    count: list[int] = field(default_factory=list)

    def train(self, lesson: Lesson) -> Mapping[str, bytes]:
        self.count.append(0)
        if len(self.count) == self.at:
            raise StepFailedError("a step", "a failure", "run again")
        return self.inner.train(lesson)


@pytest.mark.parametrize("at", [1, 2])
def test_no_shard_is_begun_before_the_trunk_is_whole_and_the_next_run_goes_on(memory_path: Path, at: int) -> None:
    session = toy_session(memory_path / "workspace", toy_recipe())
    data = write_file(memory_path / "first.jsonl", RECORDS)
    with pytest.raises(StepFailedError, match="a failure"):
        train(session, [data], executor=INLINE, trainer=BreakingOnce(ToyTrainer(), at))
    live = session.workspace.book.live()
    assert len(live) == at - 1
    assert {made.link.shard for made in live.values()} <= {TRUNK}
    assert served(session) == []
    train(session, [data], executor=INLINE, trainer=ToyTrainer())
    assert_lawful(session)
    assert_equals_fresh_run(session, ToyTrainer(), memory_path / "oracle")
    session.workspace.close()


def test_a_damaged_checkpoint_of_the_trunk_is_made_again_and_no_shard_with_it(session: Session) -> None:
    workspace = session.workspace
    before, broken = workspace.book.live(), workspace.book.live()[trunk_of(session)[0].key]
    (workspace.store.path(broken.files) / WEIGHTS_FILE).write_bytes(b"damage")
    done = train(session, [], executor=INLINE, trainer=ToyTrainer()).reconciled
    assert {made.link.shard for made in done.trained} == {TRUNK}
    assert workspace.book.live() == before
    assert_lawful(session)


def test_a_trunk_of_another_environment_class_is_begun_anew_with_all_that_starts_from_it(
    session: Session, memory_path: Path
) -> None:
    foreign = ToyTrainer(environment_facts=(("machine", "other"),))
    late = write_file(memory_path / "late.jsonl", range(30, 50))
    with pytest.raises((EnvironmentMismatchError, StepFailedError)):
        train(session, [late], executor=INLINE, trainer=foreign)
    train(session, [], executor=INLINE, trainer=foreign, restart_shards=True)
    environments = {tuple(made.environment.items()) for made in session.workspace.book.live().values()}
    assert environments == {foreign.environment_facts}
    with session.driving():
        assert restart_foreign(session.workspace, foreign.environment()) == ()
    assert_lawful(session)


def test_a_shard_is_trained_in_the_environment_class_of_the_trunk(memory_path: Path) -> None:
    """Else no class could train its lineage anew."""
    session = toy_session(memory_path / "workspace", toy_recipe())
    train(session, [write_file(memory_path / "trunk.jsonl", COMMON)], executor=INLINE, trainer=ToyTrainer())
    foreign = ToyTrainer(environment_facts=(("machine", "other"),))
    with pytest.raises((EnvironmentMismatchError, StepFailedError)):
        train(session, [write_file(memory_path / "rest.jsonl", RECORDS)], executor=INLINE, trainer=foreign)
    assert served(session) == []
    session.workspace.close()


# -- what is told -----------------------------------------------------------------------------------


def test_an_audit_of_a_trunk_record_lists_every_checkpoint_of_every_shard(session: Session) -> None:
    workspace, trunk = session.workspace, trunk_of(session)
    victim = first_of(trunk)
    found = audit_record(workspace, victim)
    assert (found["shard"], found["slice"], found["retention"]) == ("trunk", trunk[0].link.slice, PERMANENT)
    assert {one["checkpoint"] for one in found["exposures"]} == workspace.book.live().keys()
    assert all(one["epochs"] == 0 for one in found["exposures"] if one["shard"] != "trunk")
    assert next(one["epochs"] for one in found["exposures"] if one["shard"] == "trunk") == 2
    other = audit_record(workspace, ordinary(session, 0))
    assert {one["shard"] for one in other["exposures"]} == {0}
    forget(session, victim)
    gone = audit_record(workspace, victim)
    assert gone["deleted"]
    assert gone["shard"] == "trunk"
    assert not [one for one in gone["exposures"] if one["live"]]


def test_status_and_audits_never_take_the_trunk_for_a_shard(session: Session) -> None:
    workspace, trunk = session.workspace, trunk_of(session)
    told = status(session)
    assert [shard["shard"] for shard in told["shards"]] == [0, 1]
    assert told["trunk"]["records"] == len(COMMON)
    assert [one["checkpoint"] for one in told["trunk"]["slices"]] == [step.key for step in trunk]
    assert told["records"] == len(RECORDS)
    with pytest.MonkeyPatch.context() as patch:  # read from the records, where the facts sufficed
        patch.setattr(status_module, "_settled", lambda *_: None)
        assert status(session) == told
    shard, itself = audit_shard(workspace, 0), audit_shard(workspace, "trunk")
    assert shard["trunk"] == trunk[-1].key
    assert (itself["shard"], itself["head"], itself["records"]) == ("trunk", None, len(COMMON))
    assert [one["checkpoint"] for one in itself["lineage"]] == [step.key for step in trunk]
    described = audit_checkpoint(workspace, shard["head"])
    assert [one["shard"] for one in described["ancestors"]][: len(trunk)] == ["trunk"] * len(trunk)
    inherited = {one.tag.hex() for step in trunk for one in step.members}
    assert inherited <= set(described["inherited"])


def test_a_replay_of_one_shard_trains_the_trunk_anew_too(session: Session) -> None:
    names = {check.name: check.outcome for check in replay(session.workspace, [1], "V3", INLINE, ToyTrainer())}
    assert names == {
        "trunk trained anew gives the stored bits": "passed",
        "shard 1 trained anew gives the stored bits": "passed",
    }


def test_a_replay_in_which_the_trunk_fails_says_that_nothing_else_could_be_tried(session: Session) -> None:
    found = replay(session.workspace, [0, 1], "V4", INLINE, BreakingOnce(ToyTrainer(), 1))
    assert [check.outcome for check in found] == ["not_checked"] * 3
    assert "trunk" in found[1].detail


def test_the_facts_of_a_run_name_the_trunk_before_it_is_trained(session: Session) -> None:
    begun = [fact for fact in session.workspace.ledger.facts(kinds.RUN) if fact.body["shard"] == TRUNK]
    made = [fact for fact in session.workspace.ledger.facts(kinds.CHECKPOINT) if fact.body["link"]["shard"] == TRUNK]
    assert begun
    assert begun[0].seq < made[0].seq


# -- planted bugs -----------------------------------------------------------------------------------


def a_shard_keeps_its_old_trunk(monkey: Monkey) -> None:
    """The key of its first step names the trunk that there was first, and what stands on that stays."""
    chain, firsts = shards.plan._chain, dict[str, SliceStep]()

    def stale(shard: int, slices: Any, layout: Any, recipe: str, start: SliceStep | None = None) -> Any:
        kept = firsts.setdefault(recipe, start) if shard == 1 and start is not None else start
        return chain(shard, slices, layout, recipe, kept)

    monkey.setattr(shards.plan, "_chain", stale)
    monkey.setattr(deletion, "standing_on", lambda keys, _: frozenset(keys))
    monkey.setattr(orchestration.reconcile, "standing_on", lambda keys, _: frozenset(keys))


def the_old_trunk_is_not_purged(monkey: Monkey) -> None:
    purge = orchestration.reconcile.purge

    def sparing(workspace: Workspace, keys: frozenset[str], requests: tuple[str, ...]) -> None:
        live = workspace.book.live()
        purge(workspace, frozenset(key for key in keys if key in live and live[key].link.shard != TRUNK), requests)

    monkey.setattr(deletion, "purge", sparing)
    monkey.setattr(orchestration.reconcile, "purge", sparing)


def shards_are_served_from_the_old_trunk_meanwhile(monkey: Monkey) -> None:
    """Only heads of the trunk are rolled back, and there is none."""

    def stale(workspace: Workspace, _: Any) -> ModelManifest:
        current = workspace.book.manifest()
        assert current is not None
        return current

    monkey.setattr(acceptance, "rolled_back", stale)


@pytest.mark.parametrize(
    "bug", [a_shard_keeps_its_old_trunk, the_old_trunk_is_not_purged, shards_are_served_from_the_old_trunk_meanwhile]
)
def test_no_certificate_is_signed_over(bug: Callable[[Monkey], None], memory_path: Path, monkeypatch: Monkey) -> None:
    bug(monkeypatch)
    session = opened(memory_path, ToyTrainer())
    with pytest.raises(LawViolationError):
        forget(session, first_of(trunk_of(session)))
    assert list((session.workspace.path / "certificates").iterdir()) == []
    session.workspace.close()


def test_a_shard_whose_trunk_is_nowhere_to_come_from_is_an_error(memory_path: Path, monkeypatch: Monkey) -> None:
    a_shard_keeps_its_old_trunk(monkeypatch)
    monkeypatch.setattr(deletion, "standing_on", standing_on)
    session = opened(memory_path, ToyTrainer())
    with pytest.raises(IntegrityError, match="shard 1 starts from"):
        forget(session, first_of(trunk_of(session)))
    assert served(session) == [0]
    session.workspace.close()


def warm_start_from_the_old_trunk(monkey: Monkey) -> None:
    """The worker finds the trunk's weights by name, where the old ones lie."""
    perform = orchestration.attempt.perform_together
    trunks: dict[Path, bytes] = {}

    @dataclass(frozen=True)
    class From(Wrapped):
        old: bytes | None = None

        def train(self, lesson: Lesson) -> Mapping[str, bytes]:
            return self.inner.train(replace(lesson, parent=self.old or lesson.parent))

    def warm(orders: Sequence[StepOrder], trainer: SliceTrainer) -> list[Outcome]:
        (order,) = orders
        first = order.shard != TRUNK and order.parent is not None and order.parent.link.shard == TRUNK
        if first and order.parent is not None:
            weights = Store(order.store).get(order.parent.files)[WEIGHTS_FILE]
            return perform(orders, From(trainer, trunks.setdefault(order.store, weights)))
        return perform(orders, trainer)

    monkey.setattr(orchestration.inline, "perform_together", warm)


def test_the_oracle_and_a_replay_catch_a_shard_that_is_trained_from_the_old_trunks_weights(
    memory_path: Path, monkeypatch: Monkey
) -> None:
    warm_start_from_the_old_trunk(monkeypatch)
    session = opened(memory_path, ToyTrainer())
    forget(session, first_of(trunk_of(session)))
    with pytest.raises(AssertionError, match="than a fresh run"):
        assert_equals_fresh_run(session, ToyTrainer(), memory_path / "oracle")
    found = {check.name: check.outcome for check in replay(session.workspace, [0, 1], "V4", INLINE, ToyTrainer())}
    assert found["trunk trained anew gives the stored bits"] == "passed"
    assert list(found.values()).count("failed") == 2
    session.workspace.close()


def serve(session: Session, chain: Sequence[Checkpoint], shard: int) -> Head:
    """The head that a chain would be served as."""
    digest = ""
    for made in chain:
        digest = made.extend(digest)
    return Head(shard, chain[-1].key, chain[-1].tensors, digest, len(chain))


def test_the_law_refuses_a_trunk_that_is_served_and_shards_of_different_trunks(session: Session) -> None:
    workspace = session.workspace
    heads = [head for head, _ in workspace.book.served()]
    chain = lineage(workspace, heads[0].checkpoint)
    trunk = [made for made in chain if made.link.shard == TRUNK]
    lone = serve(session, chain[len(trunk) :], 0)
    for forged, words in (
        ([serve(session, trunk, 0), heads[1]], "trunk alone"),
        ([*heads, serve(session, trunk, TRUNK)], "trunk alone"),
        ([lone, heads[1]], "another lineage"),
    ):
        manifest = ModelManifest.of(99, workspace.pinned().digest, forged)
        workspace.ledger.append([(kinds.MANIFEST, manifest.to_json())])
        failed = [check for check in check_law(workspace) if check.outcome == "failed"]
        assert [check.name for check in failed] == ["every served lineage is whole"]
        assert words in failed[0].detail


def test_the_law_refuses_shards_that_start_from_different_trunks_each_whole(session: Session) -> None:
    """As if one shard had been left on a trunk that another deletion made fall."""
    workspace = session.workspace
    heads = [head for head, _ in workspace.book.served()]
    parent: str | None = None
    other: list[Checkpoint] = []
    for made in lineage(workspace, heads[1].checkpoint):
        records = "0" * 64 if not other else made.link.records
        other.append(replace(made, link=replace(made.link, parent=parent, records=records)))
        parent = other[-1].key
    manifest = ModelManifest.of(99, workspace.pinned().digest, [heads[0], serve(session, other, 1)])
    workspace.ledger.append(
        [*((kinds.CHECKPOINT, made.to_json()) for made in other), (kinds.MANIFEST, manifest.to_json())]
    )
    problems = {check.name: check.detail for check in check_law(workspace) if check.outcome == "failed"}
    assert "different trunks" in problems["every served lineage is whole"]


def test_a_step_whose_order_starts_elsewhere_than_its_key_says_is_not_trained(
    memory_path: Path, monkeypatch: Monkey
) -> None:
    """Chains handed out without waiting for the trunk: their shards would be trained from nothing."""

    def at_once(executor: Any, *arguments: Any) -> Iterator[Outcome]:
        outcomes: Iterator[Outcome] = executor.run(*arguments)
        return outcomes

    monkeypatch.setattr(orchestration.reconcile, "run_in_turn", at_once)
    with pytest.raises(StepFailedError, match="one that starts from nothing; one that starts from nothing"):
        opened(memory_path, ToyTrainer())
