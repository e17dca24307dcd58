"""Negative controls: each planted bug is one that real systems have, and each must be caught.

The bugs are planted in the package's own code or in the trainer. "Caught" means that the shared
oracle, or the law that ``delete`` asks before it signs, refuses; the same history without a bug passes.
"""

from __future__ import annotations

import itertools
import json
import os
import random
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

import orchestration.attempt
import orchestration.inline
import shards.plan
import sisa.acceptance as acceptance
import sisa.delete as deletion
from orchestration.executor import Files, Lesson, Outcome, SliceTrainer, StepOrder
from orchestration.inline import InlineExecutor
from shards.book import Book
from shards.deletion import DELETED, DeletionRequest
from shards.errors import LawViolationError, SisaError
from shards.layout import Assignment
from shards.manifest import ModelManifest
from shards.records import Record
from shards.store import Store
from shards.targets import Targets
from shards.vault import Part, Vault
from shards.workspace import WEIGHTS_FILE, Workspace
from sisa.replay import replay
from sisa.session import Session
from sisa.train import train
from tests.exactness.oracle import assert_equals_fresh_run, assert_lawful
from tests.toy import ToyTrainer, Wrapped, toy_recipe, toy_record, toy_session

RECORDS = 14


@dataclass(frozen=True)
class Bugged(Wrapped):
    """A trainer around the toy trainer, which changes what that is shown."""

    inner: SliceTrainer = field(default_factory=ToyTrainer)


@dataclass(frozen=True)
class TokenCache(Bugged):
    """Tokenised records are kept by position in the pass, and found there again after a deletion."""

    cache: dict[tuple[bytes, int, int], Record] = field(default_factory=dict)

    def train(self, lesson: Lesson) -> Mapping[str, bytes]:
        passes = tuple(
            tuple(self.cache.setdefault((lesson.seed, epoch, at), record) for at, record in enumerate(records))
            for epoch, records in enumerate(lesson.passes)
        )
        return self.inner.train(replace(lesson, passes=passes))


@dataclass(frozen=True)
class WarmStart(Bugged):
    """A slice that is trained again starts from its own old adapter."""

    adapters: dict[bytes, bytes] = field(default_factory=dict)

    def train(self, lesson: Lesson) -> Mapping[str, bytes]:
        files = self.inner.train(replace(lesson, parent=self.adapters.get(lesson.seed, lesson.parent)))
        self.adapters[lesson.seed] = files[WEIGHTS_FILE]
        return files


@dataclass(frozen=True)
class ReplayBuffer(Bugged):
    """Records that were seen once are mixed into every later step."""

    buffer: list[Record] = field(default_factory=list)

    def train(self, lesson: Lesson) -> Mapping[str, bytes]:
        self.buffer.extend(lesson.passes[0])
        return self.inner.train(replace(lesson, passes=(*lesson.passes, tuple(self.buffer))))


@dataclass(frozen=True)
class DrawnSeed(Bugged):
    """The seed is drawn where the step happens to run."""

    draw: Callable[[], bytes] = lambda: os.urandom(32)

    def train(self, lesson: Lesson) -> Mapping[str, bytes]:
        return self.inner.train(replace(lesson, seed=self.draw()))


@dataclass(frozen=True)
class GlobalTotal(Bugged):
    """The schedule is a share of all records that there were when the step ran."""

    total: list[int] = field(default_factory=lambda: [0])

    def train(self, lesson: Lesson) -> Mapping[str, bytes]:
        return self.inner.train(replace(lesson, seed=lesson.seed + self.total[0].to_bytes(8, "big")))


@dataclass(frozen=True)
class NeighbourSeen(Bugged):
    """What one lane makes depends on what is beside it."""

    inner: SliceTrainer = field(default_factory=lambda: ToyTrainer(lanes=2))

    def train_lanes(self, lessons: Mapping[int, Lesson]) -> Mapping[int, Files | SisaError]:
        shown = [record for _, lesson in sorted(lessons.items()) for record in lesson.passes[0]]
        others = {lane: replace(lesson, passes=(*lesson.passes, tuple(shown))) for lane, lesson in lessons.items()}
        return self.inner.train_lanes(others)


@dataclass(frozen=True)
class NeighbourCounted(Bugged):
    """How many lanes are filled changes how a sum is rounded, as kernels chosen by shape do."""

    inner: SliceTrainer = field(default_factory=lambda: ToyTrainer(lanes=2))

    def train_lanes(self, lessons: Mapping[int, Lesson]) -> Mapping[int, Files | SisaError]:
        shape = len(lessons).to_bytes(8, "big")
        rounded = {lane: replace(lesson, seed=lesson.seed + shape) for lane, lesson in lessons.items()}
        return self.inner.train_lanes(rounded)


@dataclass(frozen=True)
class LanesSwapped(Bugged):
    """The lanes that are filled are numbered, and each gets the result of its number."""

    inner: SliceTrainer = field(default_factory=lambda: ToyTrainer(lanes=2))

    def train_lanes(self, lessons: Mapping[int, Lesson]) -> Mapping[int, Files | SisaError]:
        made = self.inner.train_lanes(lessons)
        return dict(zip(made, reversed(list(made.values())), strict=True))


def attempts() -> Callable[[], bytes]:
    """The number of the attempt as a seed."""
    count = itertools.count()
    return lambda: next(count).to_bytes(32, "big")


def global_random() -> Callable[[], bytes]:
    """A process's own random state, seeded once, as a seed."""
    state = random.Random(0)
    return lambda: state.randbytes(32)


Monkey = pytest.MonkeyPatch
Trainery = Callable[[], SliceTrainer]


def nothing(_: Monkey) -> Trainery:
    return ToyTrainer


def trainer_of(make: Trainery) -> Callable[[Monkey], Trainery]:
    """A bug that lives in the trainer; every process makes its own."""
    return lambda _: make


def global_total(monkey: Monkey) -> Trainery:
    total = [0]
    chain = Workspace.chain

    def counting(self: Workspace, shard: int) -> shards.plan.Chain:
        total[0] = len(self.survivors())
        return chain(self, shard)

    monkey.setattr(Workspace, "chain", counting)
    return lambda: GlobalTotal(total=total)


def key_without_records(monkey: Monkey) -> Trainery:
    """A stale checkpoint is reused because its key leaves the records out."""

    def blind(_: Iterable[tuple[bytes, bytes]]) -> str:
        return "0" * 64

    monkey.setattr(shards.plan, "records_digest", blind)
    return ToyTrainer


def reuse_by_name(monkey: Monkey) -> Trainery:
    """A stale checkpoint is reused because shard and slice have one already."""
    perform = orchestration.attempt.perform_together
    made: dict[tuple[Path, bytes], Mapping[str, bytes]] = {}

    @dataclass(frozen=True)
    class Reusing(Bugged):
        place: Path = Path()

        def train(self, lesson: Lesson) -> Mapping[str, bytes]:
            return made.setdefault((self.place, lesson.seed), self.inner.train(lesson))

    def skipping(orders: Sequence[StepOrder], trainer: SliceTrainer) -> list[Outcome]:
        return perform(orders, Reusing(trainer, orders[0].store))

    monkey.setattr(orchestration.inline, "perform_together", skipping)
    return ToyTrainer


def warm_start_in_the_order(monkey: Monkey) -> Trainery:
    """A shard's restarted chain begins with the head that saw the record."""
    perform = orchestration.attempt.perform_together
    heads: dict[tuple[Path, int], bytes] = {}

    @dataclass(frozen=True)
    class From(Bugged):
        head: bytes | None = None

        def train(self, lesson: Lesson) -> Mapping[str, bytes]:
            return self.inner.train(replace(lesson, parent=self.head or lesson.parent))

    def warm(orders: Sequence[StepOrder], trainer: SliceTrainer) -> list[Outcome]:
        (step_order,) = orders
        place = (step_order.store, step_order.shard)
        (outcome,) = perform(orders, From(trainer, heads.get(place)))
        assert outcome.checkpoint is not None
        heads[place] = Store(step_order.store).get(outcome.checkpoint.files)[WEIGHTS_FILE]
        return [outcome]

    monkey.setattr(orchestration.inline, "perform_together", warm)
    return ToyTrainer


def newest_request_only(monkey: Monkey) -> Trainery:
    """A second deletion lifts the tombstones of the first."""

    def newest(self: Book) -> frozenset[bytes]:
        return frozenset(bytes.fromhex(tag) for _, request in self.requests()[-1:] for tag in request.tombstones)

    monkey.setattr(Book, "tombstones", newest)
    return ToyTrainer


def nothing_purged(monkey: Monkey) -> Trainery:
    def idle(_workspace: Workspace, _keys: frozenset[str], _request_ids: tuple[str, ...]) -> None:
        return None

    monkey.setattr(deletion, "purge", idle)
    monkey.setattr(orchestration.reconcile, "purge", idle)
    return ToyTrainer


def files_left_behind(monkey: Monkey) -> Trainery:
    """The facts say purged, the files stay."""

    def idle(_self: Workspace) -> list[str]:
        return []

    monkey.setattr(Workspace, "sweep", idle)
    return ToyTrainer


def vault_not_rewritten(monkey: Monkey) -> Trainery:
    def whole(self: Vault, part: Part, _: frozenset[bytes]) -> list[Part]:
        return self.write({Assignment(part.shard, part.slice): self.read(part)})

    monkey.setattr(Vault, "rewrite_without", whole)
    return ToyTrainer


def manifest_not_rolled_back(monkey: Monkey) -> Trainery:
    def stale(workspace: Workspace, _: Set[str]) -> ModelManifest:
        current = workspace.book.manifest()
        assert current is not None
        return current

    monkey.setattr(acceptance, "rolled_back", stale)
    return ToyTrainer


def success_without_work(monkey: Monkey) -> Trainery:
    """A request is answered, nothing is written down or done, and all is well."""

    def polite(*_: object, **__: object) -> DeletionRequest:
        nothing = {"shards": [], "retrained_share": 0.0}
        return DeletionRequest("req-nothing", DELETED, "", Targets(), {}, None, {}, nothing)

    monkey.setattr(deletion, "accept", polite)
    return ToyTrainer


def write_file(path: Path, numbers: Iterable[int], generation: int | None = None) -> Path:
    """A file of toy records."""
    rows = []
    for number in numbers:
        row = toy_record(number, subject=f"s{number}").to_json()
        del row["generation"]
        rows.append(row if generation is None else row | {"generation": generation})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def first_trained(session: Session) -> str:
    """ID of the record that its shard's first step trains first, in a shard with more to lose."""
    for chain in session.workspace.plan().chains:
        if len(chain.steps) > 1 and len(chain.steps[0].members) > 1:
            return chain.steps[0].members[0].record.id
    raise AssertionError("the history needs a shard of two steps")


def play(path: Path, trainers: Trainery) -> Session:
    """Train, delete, ingest into trained slices, delete, offer everything again; ends at rest."""
    session = toy_session(path / "workspace", toy_recipe())
    trainer, executor = trainers(), InlineExecutor()
    everything = write_file(path / "first.jsonl", range(RECORDS))
    train(session, [everything], executor=executor, trainer=trainer)
    gone = [first_trained(session)]
    deletion.delete(session, gone, executor=executor, trainer=trainer)
    late = write_file(path / "late.jsonl", range(RECORDS, RECORDS + 4), generation=0)
    train(session, [late], executor=executor, trainer=trainer)
    gone.append(first_trained(session))
    deletion.delete(session, gone[1:], executor=executor, trainer=trainer)
    train(session, [everything], executor=executor, trainer=trainer)
    held = {stored.record.id for stored in session.workspace.survivors()}
    assert held == {f"r{number}" for number in range(RECORDS + 4)} - set(gone), "other records survive than should"
    return session


def judge(path: Path, trainers: Trainery) -> None:
    """Play the history and ask the whole law. The fresh run has a trainer, as a process, of its own."""
    session = play(path, trainers)
    try:
        assert_lawful(session)
        assert_equals_fresh_run(session, trainers(), path / "oracle")
    finally:
        session.workspace.close()


def replayed(session: Session, trainer: SliceTrainer) -> set[str]:
    """The outcomes of a full replay."""
    return {check.outcome for check in replay(session.workspace, [0, 1], "V4", InlineExecutor(), trainer)}


BUGS: Mapping[str, Callable[[Monkey], Trainery]] = {
    "checkpoint reused by the name of its place": reuse_by_name,
    "warm start from the adapter that saw the record": trainer_of(WarmStart),
    "warm start ordered for the hit shard": warm_start_in_the_order,
    "record left in a token cache": trainer_of(TokenCache),
    "record left in a replay buffer": trainer_of(ReplayBuffer),
    "schedule uses a global total": global_total,
    "seed drawn from the system in the worker": trainer_of(DrawnSeed),
    "seed is the number of the attempt": trainer_of(lambda: DrawnSeed(draw=attempts())),
    "seed from a process-wide generator": trainer_of(lambda: DrawnSeed(draw=global_random())),
    "a lane sees the records of its neighbour": trainer_of(NeighbourSeen),
    "a lane's bits depend on how many are filled": trainer_of(NeighbourCounted),
    "results of two lanes swapped": trainer_of(LanesSwapped),
    "second deletion resurrects the first record": newest_request_only,
    "success reported for no work": success_without_work,
}

REFUSED: Mapping[str, Callable[[Monkey], Trainery]] = {
    "checkpoints that saw the record not purged": nothing_purged,
    "purged checkpoints left on disk": files_left_behind,
    "checkpoint key leaves the records out": key_without_records,
    "vault not rewritten": vault_not_rewritten,
    "manifest not rolled back on acceptance": manifest_not_rolled_back,
}


@pytest.mark.parametrize("lanes", [1, 2, 3])
def test_without_a_bug_the_same_history_is_exact(memory_path: Path, lanes: int) -> None:
    judge(memory_path, lambda: ToyTrainer(lanes=lanes))


@pytest.mark.parametrize("bug", BUGS)
def test_the_oracle_catches(bug: str, memory_path: Path, monkeypatch: Monkey) -> None:
    trainers = BUGS[bug](monkeypatch)
    with pytest.raises(AssertionError):
        judge(memory_path, trainers)


def test_a_key_without_records_is_caught_without_any_deletion(memory_path: Path, monkeypatch: Monkey) -> None:
    """A record that joins a trained slice must retrain it."""
    session = toy_session(memory_path / "workspace", toy_recipe())
    trainer = key_without_records(monkeypatch)()
    try:
        for number in range(0, 8, 4):
            file = write_file(memory_path / f"{number}.jsonl", range(number, number + 4), generation=0)
            train(session, [file], executor=InlineExecutor(), trainer=trainer)
        with pytest.raises(AssertionError, match="than a fresh run"):
            assert_equals_fresh_run(session, trainer, memory_path / "oracle")
    finally:
        session.workspace.close()


@pytest.mark.parametrize("bug", REFUSED)
def test_no_certificate_is_signed_over(bug: str, memory_path: Path, monkeypatch: Monkey) -> None:
    trainers = REFUSED[bug](monkeypatch)
    with pytest.raises(LawViolationError):
        judge(memory_path, trainers)
    certificates = list((memory_path / "workspace" / "certificates").iterdir())
    assert certificates == []


@pytest.mark.parametrize(
    "bug",
    [
        "warm start from the adapter that saw the record",
        "record left in a token cache",
        "record left in a replay buffer",
        "schedule uses a global total",
        "seed drawn from the system in the worker",
        "seed is the number of the attempt",
    ],
)
def test_a_full_replay_catches(bug: str, memory_path: Path, monkeypatch: Monkey) -> None:
    trainers = BUGS[bug](monkeypatch)
    session = play(memory_path, trainers)
    try:
        outcomes = replayed(session, trainers())
    finally:
        session.workspace.close()
    assert "failed" in outcomes


def test_a_full_replay_passes_without_a_bug(memory_path: Path, monkeypatch: Monkey) -> None:
    session = play(memory_path, nothing(monkeypatch))
    try:
        outcomes = replayed(session, ToyTrainer())
    finally:
        session.workspace.close()
    assert outcomes == {"passed"}


def test_a_warm_started_checkpoint_is_refused_when_it_is_made_again(memory_path: Path) -> None:
    """A machine that does not reproduce its own training is told so, and serves nothing new."""
    session = play(memory_path, ToyTrainer)
    try:
        workspace = session.workspace
        head = workspace.book.manifest()
        assert head is not None
        workspace.store.purge(workspace.book.live()[head.heads[0].checkpoint].files)
        with pytest.raises(SisaError, match="does not reproduce its own training"):
            train(session, [memory_path / "first.jsonl"], executor=InlineExecutor(), trainer=DrawnSeed())
        assert workspace.book.manifest() == head
    finally:
        workspace.close()
