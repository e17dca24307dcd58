"""A named test for every published defect of exact unlearning that can apply here.

The defects were found in, or measured on, public systems for exact unlearning (SISA's reference
code, S3T, LoRA-per-shard services and others). Those that need real tensors are in
``test_torch_defects.py``.

    1   cache key that misses rows            test_1_a_key_covers_every_record
    2   cache key without configuration       test_2_a_key_covers_every_part_of_the_recipe
    3   requests not cumulative               test_3_a_second_deletion_keeps_the_first
    4   shard retrained on everything         test_4_a_shard_is_retrained_on_its_own_records_only
    5   warm start; old adapter saved again   test_5_a_hit_chain_restarts_from_its_clean_prefix,
                                              test_5_an_emptied_shard_is_gone_and_not_saved_again
    6   layers matched by substring           test_torch_defects.py
    7   one head shared by all                test_torch_defects.py
    8   model selection on data               test_8_a_step_is_shown_nothing_to_select_by
    9   schedule depends on data size         test_9_a_step_does_not_depend_on_what_comes_after_or_beside_it
    10  placement by position                 test_10_a_removal_moves_no_other_record
    11  batch composition                     test_torch_defects.py
    12  slices that get no epoch              test_12_every_slice_trains_every_epoch
    13  optimiser and generator state         test_torch_defects.py
    14  adapter made before the seed is set   test_torch_defects.py
    15  resuming inside a framework           test_torch_defects.py
    16  order-dependent kernels               test_torch_defects.py
    17  workers not seeded                    test_17_seeds_belong_to_the_step_not_to_the_worker
    18  container bytes hashed                test_18_another_container_of_the_same_tensors_is_the_same_checkpoint
    19  merge by subtraction                  test_torch_defects.py
    20  learned partitions and combiners      test_20_nothing_is_fitted_on_records
    21  replay buffers                        test_21_rehearsal_never_crosses_shards
    22  old artefacts                         test_22_a_deletion_leaves_no_trace_of_the_record
    23  duplicates under other IDs            test_23_a_copy_under_another_id_survives_and_is_not_claimed
    24  before and after compared             test_24_comparing_before_and_after_is_not_claimed
    25  adaptive requests                     test_25_requests_chosen_after_looking_at_the_model_gain_nothing
    26  rolled-back slices lost for good      test_26_survivors_of_a_hit_slice_are_trained_again
    27  success reported for nothing done     test_27_a_deletion_that_could_not_retrain_is_not_certified
    28  dead code paths                       not applicable: risk-aware placement is in tests/shards/test_layout.py,
                                              the mean of probabilities in tests/sisa/test_aggregate.py
    29  memory of many loaded adapters        not applicable: one adapter slot a process, weights read per query
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import pytest

from orchestration.executor import Lesson
from orchestration.inline import InlineExecutor
from shards.digest import derive
from shards.errors import StepFailedError
from shards.layout import ShardLayout
from shards.plan import Chain, make_plan
from shards.records import Record
from shards.workspace import WEIGHTS_FILE
from sisa.certificate import NOT_CLAIMED, certificate_path
from sisa.config import Recipe
from sisa.delete import delete, unfinished_requests
from sisa.ingest import ingest
from sisa.session import Session
from sisa.train import train
from tests.exactness.histories import InterleavingExecutor
from tests.exactness.oracle import assert_equals_fresh_run, assert_lawful, holdings, refuted
from tests.toy import ToyTrainer, stored, toy_recipe, toy_record, toy_session

RECORDS = 18


@dataclass(frozen=True)
class Recording(ToyTrainer):
    """Remembers every lesson that it was given."""

    lessons: list[Lesson] = field(default_factory=list)

    def train(self, lesson: Lesson) -> Mapping[str, bytes]:
        self.lessons.append(lesson)
        return ToyTrainer.train(self, lesson)

    def shown(self) -> set[str]:
        """IDs of all records that were shown."""
        return {record.id for lesson in self.lessons for records in lesson.passes for record in records}


def write(path: Path, records: list[Record]) -> Path:
    """A file of records."""
    path.write_text("".join(json.dumps(record.to_json()) + "\n" for record in records))
    return path


def records() -> list[Record]:
    """Records of as many subjects, so that they spread over all shards."""
    return [toy_record(number, subject=None) for number in range(RECORDS)]


@pytest.fixture
def make(memory_path: Path) -> Iterator[Callable[..., Session]]:
    """Makes a workspace that has trained all records."""
    opened: list[Session] = []

    def trained(trainer: ToyTrainer | None = None, **values: Any) -> Session:
        place = memory_path / str(len(opened))
        session = toy_session(place / "workspace", toy_recipe(**values))
        opened.append(session)
        file = write(place / "data.jsonl", records())
        train(session, [file], executor=InlineExecutor(), trainer=trainer or ToyTrainer())
        return session

    yield trained
    for session in opened:
        session.workspace.close()


Make = Callable[..., Session]


def forget(session: Session, *ids: str, trainer: ToyTrainer | None = None) -> None:
    delete(session, ids, executor=InlineExecutor(), trainer=trainer or ToyTrainer())


def check(session: Session) -> None:
    """The whole law."""
    assert_lawful(session)
    assert_equals_fresh_run(session, ToyTrainer(), session.workspace.path.parent / "oracle")


def longest(session: Session) -> Chain:
    return max(session.workspace.plan().chains, key=lambda chain: len(chain.steps))


def ids_of(chain: Chain) -> set[str]:
    return {member.record.id for step in chain.steps for member in step.members}


@pytest.mark.parametrize("victim", range(RECORDS))
def test_1_a_key_covers_every_record(victim: int, make: Make) -> None:
    """Also the last of a slice: a deletion, and an edit, change the key of every step that sees it."""
    session = make(rehearsal=1.0)
    held = session.workspace.survivors()
    layout, before = session.workspace.layout(), session.workspace.plan()
    one = next(item for item in held if item.record.id == f"r{victim}")
    rest = [item for item in held if item is not one]
    (edited,) = stored(session, [replace(one.record, content='{"label":"b","text":"edited"}')])
    stale = {key for key, step in before.steps().items() if one in step.members}
    assert stale
    for records in (rest, [*rest, edited]):
        assert not stale & make_plan(records, layout, before.recipe).steps().keys()


OTHER: Mapping[str, Any] = {
    "task": "causal-lm",
    "namespace": "other",
    "base_model_digest": "1" * 64,
    "tokenizer_digest": "1" * 64,
    "labels": ("b", "a"),
    "schedule": "constant",
    "target_modules": ("query",),
    "end_token": "</s>",
    "dtype": "bfloat16",
    "attention": "eager",
    "device": "cuda",
    "rehearsal": 0.75,
    "rslora": True,
    "lora_dropout": 0.5,
    "batching": "order",
    "layers": "last-2",
    "gradient_checkpointing": True,
    "tf32": True,
    "sdpa_backends": ("math",),
}


@pytest.mark.parametrize("name", sorted(set(Recipe.model_fields) - {"bytes_version"}))
def test_2_a_key_covers_every_part_of_the_recipe(name: str, make: Make) -> None:
    session = make()
    now = getattr(session.recipe, name)
    recipe = toy_recipe(**{name: OTHER.get(name, now + 1 if isinstance(now, int | float) else None)})
    assert getattr(recipe, name) != now
    layout = ShardLayout.of_recipe(recipe.to_json(), session.workspace.keys.placement)
    other = make_plan(stored(session, records()), layout, recipe.digest)
    assert not other.steps().keys() & session.workspace.book.live().keys()


def test_3_a_second_deletion_keeps_the_first(make: Make, memory_path: Path) -> None:
    session = make()
    everything = write(memory_path / "again.jsonl", records())
    for victim in ("r3", "r8", "r3"):
        forget(session, victim)
        train(session, [everything], executor=InlineExecutor(), trainer=ToyTrainer())
    held = {item.record.id for item in session.workspace.survivors()}
    assert held == {f"r{number}" for number in range(RECORDS)} - {"r3", "r8"}
    check(session)


def test_4_a_shard_is_retrained_on_its_own_records_only(make: Make) -> None:
    session = make()
    chain = longest(session)
    untouched = {key for key, made in session.workspace.book.live().items() if made.link.shard != chain.shard}
    trainer = Recording()
    first, second = [member.record.id for member in chain.steps[0].members][:2]
    forget(session, first, trainer=trainer)
    assert trainer.shown() <= ids_of(chain) - {first}
    assert untouched <= session.workspace.book.live().keys()
    forget(session, second, trainer=trainer)  # the next deletion must find the shard where it is
    assert untouched <= session.workspace.book.live().keys()
    check(session)


def test_5_a_hit_chain_restarts_from_its_clean_prefix(make: Make) -> None:
    session = make()
    chain = longest(session)
    for hit in (len(chain.steps) - 1, 0):
        live, place = session.workspace.book.live(), chain.steps[hit].link.slice
        victim = next(m for m in chain.steps[hit].members if session.workspace.layout().place(m.record).slice == place)
        trainer = Recording()
        parent = None if hit == 0 else session.workspace.store.get(live[chain.steps[hit - 1].key].files)[WEIGHTS_FILE]
        forget(session, victim.record.id, trainer=trainer)
        assert [lesson.parent for lesson in trainer.lessons[:1]] == ([parent] if trainer.lessons else [])
        chain = session.workspace.plan().chains[chain.shard]
    check(session)


def test_5_an_emptied_shard_is_gone_and_not_saved_again(make: Make) -> None:
    session = make()
    chain = longest(session)
    files = {session.workspace.book.live()[step.key].files for step in chain.steps}
    trainer = Recording()
    forget(session, *sorted(ids_of(chain)), trainer=trainer)
    manifest = session.workspace.book.manifest()
    assert manifest is not None
    assert manifest.head(chain.shard) is None
    assert manifest.heads, "the other shards are served on"
    assert trainer.lessons == []
    assert not files & session.workspace.store.objects()
    check(session)


def test_8_a_step_is_shown_nothing_to_select_by() -> None:
    """Records, parent, seed, what was computed from a record alone: no validation set, no metric, no other shard."""
    assert [entry.name for entry in fields(Lesson)] == ["passes", "parent", "seed", "shelf"]


def test_9_a_step_does_not_depend_on_what_comes_after_or_beside_it(make: Make, memory_path: Path) -> None:
    full, cut = Recording(), Recording()
    session = make(full)
    chain = longest(session)
    last = chain.steps[-1].link.slice
    layout = session.workspace.layout()
    fewer = [
        record
        for record in records()
        if layout.place(record).shard == chain.shard and layout.place(record).slice != last
    ]
    alone = toy_session(memory_path / "alone", session.recipe)
    try:
        train(alone, [write(memory_path / "fewer.jsonl", fewer)], executor=InlineExecutor(), trainer=cut)
    finally:
        alone.workspace.close()
    assert len(cut.lessons) == len(chain.steps) - 1
    assert all(lesson in full.lessons for lesson in cut.lessons)


@pytest.mark.parametrize("victim", range(0, RECORDS, 5))
def test_10_a_removal_moves_no_other_record(victim: int, make: Make) -> None:
    session = make()

    def places() -> dict[str, tuple[int, int]]:
        return {
            member.record.id: (chain.shard, session.workspace.layout().place(member.record).slice)
            for chain in session.workspace.plan().chains
            for step in chain.steps
            for member in step.members
        }

    before = places()
    forget(session, f"r{victim}")
    del before[f"r{victim}"]
    assert places() == before


@pytest.mark.parametrize("epochs", [1, 3])
def test_12_every_slice_trains_every_epoch(epochs: int, make: Make) -> None:
    trainer = Recording()
    session = make(trainer, slices=50, epochs=epochs, rehearsal=0.0)
    assert all(len(lesson.passes) == epochs and all(lesson.passes) for lesson in trainer.lessons)
    trained = [record.id for lesson in trainer.lessons for records in lesson.passes for record in records]
    assert sorted(trained) == sorted(item.record.id for item in session.workspace.survivors() for _ in range(epochs))
    with pytest.raises(ValueError, match="epochs"):
        toy_recipe(epochs=0)


def test_17_seeds_belong_to_the_step_not_to_the_worker(make: Make, memory_path: Path) -> None:
    inline = Recording()
    session = make(inline)
    seeds = [lesson.seed for lesson in inline.lessons]
    assert len(set(seeds)) == len(seeds), "two steps share a seed"
    scattered = toy_session(memory_path / "scattered", session.recipe)
    file = write(memory_path / "data.jsonl", records())
    try:
        train(scattered, [file], executor=InterleavingExecutor(3, seed=7), trainer=ToyTrainer())
        assert holdings(scattered).checkpoints == holdings(session).checkpoints
    finally:
        scattered.workspace.close()


@dataclass(frozen=True)
class OtherContainer(ToyTrainer):
    """Writes the same tensors in a file with metadata."""

    def train(self, lesson: Lesson) -> Mapping[str, bytes]:
        data = ToyTrainer.train(self, lesson)[WEIGHTS_FILE]
        length = int.from_bytes(data[:8], "little")
        header = json.dumps({"__metadata__": {"made": "elsewhere"}, **json.loads(data[8 : 8 + length])}).encode()
        return {WEIGHTS_FILE: len(header).to_bytes(8, "little") + header + data[8 + length :]}


def test_18_another_container_of_the_same_tensors_is_the_same_checkpoint(make: Make, memory_path: Path) -> None:
    session = make()
    manifest, live = session.workspace.book.manifest(), session.workspace.book.live()
    for made in live.values():
        session.workspace.store.purge(made.files)
    train(
        session,
        [write(memory_path / "data.jsonl", records())],
        executor=InlineExecutor(),
        trainer=OtherContainer(),
    )
    again = session.workspace.book.live()
    assert session.workspace.book.manifest() == manifest
    assert all(again[key].tensors == made.tensors and again[key].files != made.files for key, made in live.items())
    assert_lawful(session)


def test_20_nothing_is_fitted_on_records(make: Make) -> None:
    """Placement and recipe are declared; a deletion, even of a label's last record, changes neither."""
    session = make()
    pinned, layout = session.workspace.pinned(), session.workspace.layout()
    forget(session, *(f"r{number}" for number in range(RECORDS - 1)))
    assert (session.workspace.pinned(), session.workspace.layout()) == (pinned, layout)
    assert {entry.name for entry in fields(ShardLayout)} == {"shards", "slices", "rehearsal", "epochs", "key"}


def test_21_rehearsal_never_crosses_shards(make: Make) -> None:
    """The only records a step repeats are earlier ones of its own shard."""
    session = make()
    for chain in session.workspace.plan().chains:
        shown = [{member.record.id for member in step.members} for step in chain.steps]
        own = {held.record.id for held in session.workspace.survivors(chain.shard)}
        assert all(members <= own for members in shown)


def test_22_a_deletion_leaves_no_trace_of_the_record(make: Make, memory_path: Path) -> None:
    session = make()
    secret = toy_record(99, id="customer-4711", content='{"label":"a","text":"a very private matter"}')
    train(session, [write(memory_path / "s.jsonl", [secret])], executor=InlineExecutor(), trainer=ToyTrainer())
    workspace = session.workspace
    (tag,) = (item.tag for item in workspace.survivors() if item.record == replace(secret, generation=0))
    parts = {part.file for part in workspace.parts()}
    files = {made.files for key, made in workspace.book.live().items() if tag in workspace.visible_sets()[key]}
    forget(session, secret.id)
    assert not files & workspace.store.objects()
    assert {entry.name for entry in workspace.vault.root.iterdir()} == {part.file for part in workspace.parts()}
    assert parts - {part.file for part in workspace.parts()}, "the part that held the record was replaced"
    assert secret.id not in {item.record.id for part in workspace.parts() for item in workspace.vault.read(part)}
    for path in workspace.path.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            assert secret.id.encode() not in data, f"{path.name} names the record"
            assert b"private matter" not in data, f"{path.name} quotes the record"
    check(session)


def test_23_a_copy_under_another_id_survives_and_is_not_claimed(make: Make, memory_path: Path) -> None:
    session = make()
    copy = replace(records()[2], id="copy")
    train(session, [write(memory_path / "copy.jsonl", [copy])], executor=InlineExecutor(), trainer=ToyTrainer())
    forget(session, "r2")
    held = {item.record.id: item.record.content for item in session.workspace.survivors()}
    assert held["copy"] == copy.content
    assert any("under another ID" in line for line in NOT_CLAIMED)


def test_24_comparing_before_and_after_is_not_claimed() -> None:
    assert any("before and after" in line for line in NOT_CLAIMED)


def test_25_requests_chosen_after_looking_at_the_model_gain_nothing(make: Make) -> None:
    """Whoever picks the next victim by the served digest ends where one blind batch ends."""
    adaptive = make()
    victims = []
    for _ in range(3):
        manifest = adaptive.workspace.book.manifest()
        assert manifest is not None
        held = sorted(stored.record.id for stored in adaptive.workspace.survivors())
        victims.append(held[int(manifest.digest, 16) % len(held)])
        forget(adaptive, victims[-1])
    blind = make()
    forget(blind, *sorted(victims))
    assert holdings(adaptive) == holdings(blind)


def test_26_survivors_of_a_hit_slice_are_trained_again(make: Make) -> None:
    session = make()
    forget(session, "r1", "r6", "r11")
    visible, manifest = session.workspace.visible_sets(), session.workspace.book.manifest()
    assert manifest is not None
    served = frozenset().union(*(visible[head.checkpoint] for head in manifest.heads))
    assert served == {item.tag for item in session.workspace.survivors()}


@dataclass(frozen=True)
class Failing(ToyTrainer):
    """Has no memory left."""

    def train(self, lesson: Lesson) -> Mapping[str, bytes]:
        raise StepFailedError("memory", "none", "buy some")


def test_27_a_deletion_that_could_not_retrain_is_not_certified(make: Make) -> None:
    """It is forgotten at once all the same, and the next run completes and certifies it."""
    session = make()
    workspace = session.workspace
    victim = longest(session).steps[0].members[0]
    with pytest.raises(StepFailedError):
        delete(session, [victim.record.id], request_id="req", executor=InlineExecutor(), trainer=Failing())
    assert not certificate_path(workspace, "req").exists()
    assert [request.request_id for request in unfinished_requests(workspace)] == ["req"]
    visible, manifest = workspace.visible_sets(), workspace.book.manifest()
    assert manifest is not None
    assert not any(victim.tag in visible[head.checkpoint] for head in manifest.heads)
    assert not any(victim.tag in visible[key] for key in workspace.book.live())
    assert victim.tag not in workspace.vault.tags(workspace.parts())
    forget(session, victim.record.id)
    assert certificate_path(workspace, "req").exists()
    check(session)


@dataclass(frozen=True)
class FailingOn(ToyTrainer):
    """Has no memory left for one step."""

    seed: bytes = b""

    def train(self, lesson: Lesson) -> Mapping[str, bytes]:
        if lesson.seed == self.seed:
            raise StepFailedError("memory", "none", "buy some")
        return ToyTrainer.train(self, lesson)


def test_27_a_deletion_is_certified_though_another_shard_cannot_train(make: Make, memory_path: Path) -> None:
    """The shards that the request hit are whole again; what the certificate says must be so."""
    session = make()
    workspace = session.workspace
    hit, other = workspace.plan().chains
    late = [toy_record(number, subject=None, generation=1) for number in range(100, 130)]
    ingest(session, [write(memory_path / "late.jsonl", late)], trainer=ToyTrainer())
    step = workspace.plan().chains[other.shard].steps[-1].link
    failing = FailingOn(seed=derive(workspace.keys.seed, "step-seed", step.shard, step.chain, step.slice))
    victim = hit.steps[0].members[0].record.id
    delete(session, [victim], request_id="req", executor=InlineExecutor(), trainer=failing)
    assert step.key not in workspace.book.live()
    certificate = certificate_path(workspace, "req")
    assert certificate.exists()
    assert_lawful(session)
    assert refuted(certificate, workspace.path) == []
    forget(session, victim)
    train(session, [memory_path / "late.jsonl"], executor=InlineExecutor(), trainer=ToyTrainer())
    check(session)
