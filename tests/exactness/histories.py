"""Histories of a toy workspace: what people do to it, in any order, killed anywhere.

A :class:`World` plays operations on a workspace and keeps a model of what should survive; both are
compared after every operation.
"""

from __future__ import annotations

import copy
import json
import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch

from hypothesis import strategies as st

import sisa.delete as deletion
from orchestration import reconcile
from orchestration.attempt import made_by, perform_together
from orchestration.executor import ChainOrder, Executor, Outcome, SliceTrainer
from orchestration.inline import InlineExecutor
from orchestration.schedule import Team, teams
from shards.activations import Activations
from shards.errors import UnknownRecordError
from shards.files import TEMPORARY
from shards.law import check_law
from shards.ledger import Ledger
from shards.records import PERMANENT, Record
from shards.store import Store
from shards.vault import Vault
from shards.workspace import Workspace
from sisa.config import Recipe
from sisa.export import export_records
from sisa.ingest import ingest
from sisa.queue import WAITING, cancel, list_requests, work
from sisa.session import Session
from sisa.train import train
from tests.exactness.oracle import assert_equals_fresh_run, assert_lawful
from tests.toy import ToyTrainer, toy_record, toy_session

POOL = 9


class Killed(BaseException):
    """The process ends here; nothing may catch it."""


# Where a process can die: everything that makes something durable, and the step itself.
KILL_POINTS: Mapping[str, tuple[Any, str]] = {
    "Ledger.append": (Ledger, "append"),
    "Store.put": (Store, "put"),
    "Store.purge": (Store, "purge"),
    "Vault.write": (Vault, "write"),
    "Vault.sweep": (Vault, "sweep"),
    "Activations.adopt": (Activations, "adopt"),
    "Activations.sweep": (Activations, "sweep"),
    "trainer.train": (ToyTrainer, "train"),
    "publish": (reconcile, "publish"),
    "issue": (deletion, "issue"),
}


@dataclass(frozen=True, slots=True)
class Kill:
    """Die at the ``count``-th passing of a point, just before it or just after."""

    point: str
    count: int
    after: bool


@contextmanager
def killing(kill: Kill | None, workspace: Path) -> Iterator[None]:
    """Die inside, if the point is passed often enough; leave behind what SIGKILL would."""
    if kill is None:
        yield
        return
    owner, name = KILL_POINTS[kill.point]
    original: Callable[..., Any] = getattr(owner, name)
    passed = 0

    def deadly(*args: Any, **kwargs: Any) -> Any:
        nonlocal passed
        passed += 1
        if passed == kill.count and not kill.after:
            _leave_half_written(kill, workspace, args)
            raise Killed
        result = original(*args, **kwargs)
        if passed == kill.count:
            raise Killed
        return result

    with patch.object(owner, name, deadly):
        yield


def _leave_half_written(kill: Kill, workspace: Path, arguments: Sequence[Any]) -> None:
    """An exception runs clean-up code and SIGKILL does not, so the left-overs are made here."""
    if kill.point == "Store.put":
        half = workspace / "store" / f"{TEMPORARY}dead"
        half.mkdir(exist_ok=True)
        (half / "half").write_bytes(b"half a file")
    elif kill.point == "Store.purge":  # an object goes file by file
        for file in (workspace / "store" / arguments[1]).iterdir():
            file.unlink()
    elif kill.point == "Vault.write":
        (workspace / "vault" / "0000-000000-dead.parquet").write_bytes(b"half a part")


@dataclass(frozen=True, slots=True)
class InterleavingExecutor:
    """Runs chains as Ray does: several teams at once, steps ending in any order, workers dying.

    Attributes:
        workers: how many teams are under way.
        seed: of the order in which steps end and workers die.
    """

    workers: int
    seed: int

    def run(
        self, chains: Iterable[ChainOrder], trainer: SliceTrainer, workspace: Path, store: Path
    ) -> Iterator[Outcome]:
        draw = random.Random(self.seed)
        waiting = deque(teams(chains, trainer.lanes))
        running: list[Team] = []
        while waiting or running:
            while waiting and len(running) < self.workers:
                running.append(waiting.popleft())
            team = running.pop(draw.randrange(len(running)))
            orders = copy.deepcopy(team.orders(workspace, store))
            worker = copy.deepcopy(trainer)
            if draw.random() < 0.2:  # a worker ends the step and dies before it can say so
                perform_together(orders, worker)
                (store / f"{TEMPORARY}{draw.randrange(1000)}").mkdir(exist_ok=True)
            outcomes = perform_together(orders, worker)
            yield from outcomes
            following = team.after(made_by(outcomes))
            if following is not None:
                running.append(following)


@dataclass(frozen=True, slots=True)
class OvertakenExecutor:
    """Runs chains, and before one of the steps somebody else comes along.

    Attributes:
        inner: who runs them.
        before: how many steps have ended by then.
        visit: what the other does.
    """

    inner: Executor
    before: int
    visit: Callable[[], None]

    def run(
        self, chains: Iterable[ChainOrder], trainer: SliceTrainer, workspace: Path, store: Path
    ) -> Iterator[Outcome]:
        for ended, outcome in enumerate(self.inner.run(chains, trainer, workspace, store), 1):
            yield outcome
            if ended == self.before:
                self.visit()


@dataclass(frozen=True, slots=True)
class Ingest:
    """Take in records; ``generation`` is declared in the file unless it is None."""

    numbers: tuple[int, ...]
    generation: int | None
    trained: bool


@dataclass(frozen=True, slots=True)
class Delete:
    """Delete records by ID; ``unknown`` are IDs that nobody ever held, whose absence is certified."""

    numbers: tuple[int, ...]
    unknown: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class DeleteSubject:
    """Delete all records of a subject."""

    subject: str


@dataclass(frozen=True, slots=True)
class Train:
    """Train what is held."""


@dataclass(frozen=True, slots=True)
class Queue:
    """Accept a deletion and leave the rest for later."""

    numbers: tuple[int, ...]
    name: str = ""


@dataclass(frozen=True, slots=True)
class Work:
    """Work off the queue, all of it or by a window that is still open."""

    all: bool


@dataclass(frozen=True, slots=True)
class Cancel:
    """Withdraw the oldest request that was not begun, if there is one."""

    name: str = ""


Operation = Ingest | Delete | DeleteSubject | Train | Queue | Work | Cancel


@dataclass(frozen=True, slots=True)
class Event:
    """One operation, where it dies if it does, and how it is continued.

    Attributes:
        operation: what is asked for.
        kill: where the process dies, if it does.
        repeat: after a kill, ask for the same again; else only continue with ``train``.
        executor: who runs the steps.
        meanwhile: what another process does while the operation trains, if it is not killed.
        before: how many steps have ended by then.
    """

    operation: Operation
    kill: Kill | None
    repeat: bool
    executor: Executor
    meanwhile: Queue | Cancel | None = None
    before: int = 1


def record(number: int) -> Record:
    """Record ``number`` of the pool: some share a subject, one has none, one declares its risk."""
    odd: dict[int, dict[str, Any]] = {7: {"subject": None}, 4: {"risk": 0.95}}
    return toy_record(number, **odd.get(number, {}))


@dataclass
class World:
    """A workspace and the model of what it should hold.

    Attributes:
        path: a scratch directory.
        recipe: of the workspace.
        held: record number → generation.
        deleted: record numbers that may never return.
        queued: request → records that it would delete.
        permanent: record numbers that are declared to stay; those of the first generation make the trunk.
    """

    path: Path
    recipe: Recipe
    trainer: ToyTrainer = field(default_factory=ToyTrainer)
    held: dict[int, int] = field(default_factory=dict)
    deleted: frozenset[int] = frozenset()
    queued: dict[str, dict[int, int]] = field(default_factory=dict)
    next_generation: int = 0
    files: int = 0
    visits: list[Operation] = field(default_factory=list)
    permanent: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        self.session = toy_session(self.path / "workspace", self.recipe)

    def play(self, event: Event) -> None:
        """Do one operation, through its death if it dies, and compare workspace and model."""
        event = replace(event, operation=self._named(event.operation))
        if event.meanwhile is not None and event.kill is None:
            visit = OvertakenExecutor(event.executor, event.before, lambda: self._visit(event.meanwhile))
            event = replace(event, executor=visit)
        before = (self.held, self.deleted, self.next_generation)
        after = self._expected(event.operation)
        try:
            with killing(event.kill, self.session.workspace.path):
                self._do(event.operation, event.executor)
        except Killed:
            self._reopen()
            self._check_forgotten()
            self.held, self.deleted, self.next_generation = after if self._actual() == after[0] else before
            assert self._actual() == self.held, "an operation took hold in part"
            if event.repeat or not self.held:
                self._do(event.operation, event.executor)
                self.held, self.deleted, self.next_generation = after
            else:
                self._do(Train(), event.executor)
        else:
            self.held, self.deleted, self.next_generation = after
        for visited in self.visits:
            self.held, self.deleted, self.next_generation = self._expected(visited)
        self.visits.clear()
        assert self._actual() == self.held, "other records survive than should"

    def _visit(self, operation: Queue | Cancel | None) -> None:
        """Another process, beside the one that trains."""
        ours = self.session
        self.session = Session(Workspace.open(ours.workspace.path), ours.recipe, ours.options)
        try:
            if operation is not None and not self.visits:
                self.visits.append(self._named(operation))
                self._do(self.visits[-1], InlineExecutor())
            self._check_forgotten()
        finally:
            self.session.workspace.close()
            self.session = ours

    def settle(self) -> None:
        """Bring the workspace to rest."""
        self._do(Work(all=True), InlineExecutor())
        self._do(Train(), InlineExecutor())

    def check(self) -> None:
        """The law of exactness, in full."""
        assert_lawful(self.session)
        assert_equals_fresh_run(self.session, self.trainer, self.path / "oracle")

    def close(self) -> None:
        """Close the workspace."""
        self.session.workspace.close()

    def _do(self, operation: Operation, executor: Executor) -> None:
        match operation:
            case Ingest(numbers, generation, trained):
                file = self._write(numbers, generation)
                if trained:
                    train(self.session, [file], executor=executor, trainer=self.trainer)
                else:
                    ingest(self.session, [file], trainer=self.trainer)
            case Delete(numbers, unknown):
                ids = [*(record(number).id for number in numbers), *map("never{}".format, unknown)]
                self._delete(executor, ids=ids)
            case DeleteSubject(subject):
                with suppress(UnknownRecordError):  # never held, of which nothing can be certified
                    self._delete(executor, subjects=[subject])
            case Queue() | Work() | Cancel():
                self._do_queued(operation, executor)
            case Train() if self._actual():
                file = self.path / "held.jsonl"  # of records that are held, which is no news
                export_records(self.session, file)
                train(self.session, [file], executor=executor, trainer=self.trainer)
            case Train():
                pass

    def _do_queued(self, operation: Queue | Work | Cancel, executor: Executor) -> None:
        with suppress(UnknownRecordError):  # nothing of it was ever held, or it was withdrawn before a kill
            match operation:
                case Queue(numbers, name):
                    self._delete(executor, ids=[record(n).id for n in numbers], queue=True, request_id=name)
                case Work(everything):
                    later = datetime.now(UTC) + timedelta(days=2 if everything else 0)
                    work(self.session, later, executor=executor, trainer=self.trainer)
                case Cancel(name) if name:
                    cancel(self.session, name)

    def _delete(self, executor: Executor, **what: Any) -> None:
        if self.session.workspace.book.pinned() is None:  # nothing was ever held: bad input, tested elsewhere
            return
        deletion.delete(self.session, ignore_missing=True, executor=executor, trainer=self.trainer, **what)

    def _write(self, numbers: Iterable[int], generation: int | None) -> Path:
        rows = []
        for number in numbers:
            row = record(number).to_json()
            del row["generation"]
            if number in self.permanent:
                row["retention"] = PERMANENT
            if generation is not None and number not in self._actual():
                row["generation"] = generation
            rows.append(json.dumps(row) + "\n")
        file = self.path / f"{self.files}.jsonl"
        self.files += 1
        file.write_text("".join(rows))
        return file

    def _expected(self, operation: Operation) -> tuple[dict[int, int], frozenset[int], int]:
        match operation:
            case Ingest(numbers, generation, _):
                number_of = self.next_generation if generation is None else generation
                new = {n: number_of for n in numbers if n not in self.held and n not in self.deleted}
                return self.held | new, self.deleted, max(self.next_generation, number_of + 1 if new else 0)
            case Delete(numbers, _):
                gone = frozenset(numbers) & self.held.keys()
            case DeleteSubject(subject):
                gone = frozenset(number for number in self.held if record(number).subject == subject)
            case Queue(numbers, name):
                gone = frozenset(numbers) & self.held.keys()
                self.queued[name] = {number: self.held[number] for number in gone}
            case Cancel(name) if name:
                back = self.queued[name]
                return self.held | back, self.deleted - back.keys(), self.next_generation
            case Train() | Work() | Cancel():
                gone = frozenset()
        rest = {number: place for number, place in self.held.items() if number not in gone}
        return rest, self.deleted | gone, self.next_generation

    def _named(self, operation: Operation) -> Operation:
        """A request needs its name before a kill, so that the same can be asked again."""
        if isinstance(operation, Queue):
            return replace(operation, name=f"queued-{len(self.queued)}")
        if isinstance(operation, Cancel):
            pinned = self.session.workspace.book.pinned() is not None
            waiting = (
                [one["request_id"] for one in list_requests(self.session) if one["state"] in WAITING] if pinned else []
            )
            return replace(operation, name=next((name for name in waiting if self.queued.get(name)), ""))
        return operation

    def _actual(self) -> dict[int, int]:
        records = [stored.record for stored in self.session.workspace.survivors()]
        return {int(one.id[1:]): one.generation for one in records}

    def _reopen(self) -> None:
        self.session.workspace.close()
        workspace = Workspace.open(self.session.workspace.path)
        self.session = Session(workspace, self.session.recipe, self.session.options)

    def _check_forgotten(self) -> None:
        """Between death and continuation too: nothing served saw a deleted record."""
        may_wait = {
            "nothing stored saw a deleted record",
            "nothing is stored that no fact names",
            "what is stored is what the surviving records give",
        }
        failed = [c for c in check_law(self.session.workspace) if c.outcome != "passed" and c.name not in may_wait]
        assert not failed, f"the law does not hold after a kill: {failed}"


def operations() -> st.SearchStrategy[Operation]:
    """Any operation on the pool."""
    numbers = st.lists(st.integers(0, POOL - 1), min_size=1, max_size=6, unique=True).map(tuple)
    few = st.lists(st.integers(0, POOL - 1), min_size=1, max_size=3, unique=True).map(tuple)
    unknown = st.lists(st.integers(0, 2), min_size=1, max_size=2, unique=True).map(tuple)
    return st.one_of(
        st.builds(Ingest, numbers, st.none() | st.integers(0, 2), st.booleans()),
        st.builds(Delete, few),
        st.builds(Delete, few, unknown),
        st.builds(Delete, st.just(()), unknown),
        st.builds(DeleteSubject, st.integers(0, POOL // 3 - 1).map("s{}".format)),
        st.just(Train()),
        st.builds(Queue, few),
        st.builds(Queue, few),
        st.builds(Work, st.booleans()),
        st.just(Cancel()),
    )


def permanents() -> st.SearchStrategy[frozenset[int]]:
    """Which records are declared to stay: none, or some of the pool."""
    return st.just(frozenset()) | st.frozensets(st.integers(0, POOL - 1), min_size=1, max_size=4)


def executors() -> st.SearchStrategy[Executor]:
    """Inline, or several workers in any order."""
    interleaving = st.builds(InterleavingExecutor, st.integers(1, 3), st.integers(0, 9999))
    return st.just(InlineExecutor()) | interleaving


def kills() -> st.SearchStrategy[Kill]:
    """Any point of death."""
    return st.builds(Kill, st.sampled_from(sorted(KILL_POINTS)), st.sampled_from([1, 1, 1, 2, 2, 3]), st.booleans())


def histories(kill: st.SearchStrategy[Kill | None]) -> st.SearchStrategy[list[Event]]:
    """An ingest of several records, then anything."""
    many = st.lists(st.integers(0, POOL - 1), min_size=4, max_size=POOL, unique=True).map(tuple)
    first = st.builds(Ingest, many, st.none(), st.booleans())

    few = st.lists(st.integers(0, POOL - 1), min_size=1, max_size=3, unique=True).map(tuple)
    others = st.none() | st.builds(Queue, few) | st.just(Cancel())

    def events(operation: st.SearchStrategy[Any]) -> st.SearchStrategy[Event]:
        return st.builds(Event, operation, kill, st.booleans(), executors(), others, st.integers(1, 4))

    rest = st.lists(events(operations()), min_size=1, max_size=4)
    return st.tuples(events(first), rest).map(lambda drawn: [drawn[0], *drawn[1]])
