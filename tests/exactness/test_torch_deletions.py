"""After any deletion, every tensor is the one that a fresh run on the survivors gives (``torch.equal``)."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from shards.errors import InputError
from shards.workspace import Workspace
from sisa.anchoring import check_anchor
from sisa.audit import audit_everything
from sisa.predict import Predictor
from sisa.session import open_session
from sisa.status import status
from tests.exactness.conftest import Trained, Trainery
from tests.models import checkpoint_files, delete_in, differences, flat, fresh_run, grid, train_in, write_rows

TASKS = ("classification", "causal-lm")
REHEARSALS = (0.0, 0.25, 1.0)
PLACES = tuple(itertools.product(range(2), range(3)))
QUESTION = {
    "classification": {"text": "my card was charged twice"},
    "causal-lm": {"prompt": "my card was charged twice"},
}


def exact(trained: Trained) -> None:
    """The law, asked in both ways: against a fresh run, and of the ledger."""
    fresh = fresh_run(trained.path, trained.scratch / "fresh")
    assert differences(trained.path, fresh) == []
    workspace = Workspace.open(trained.path)
    try:
        unproven = [check.name for check in audit_everything(workspace, anchor=None) if check.outcome != "passed"]
        assert unproven == [check_anchor(workspace, None).name], "there is no anchor here, and all else passed"
    finally:
        workspace.close()


def served_shards(path: Path) -> list[int]:
    with open_session(path) as session:
        return [shard["shard"] for shard in status(session)["shards"] if shard["head"] is not None]


@pytest.mark.parametrize("place", PLACES, ids=lambda place: f"shard{place[0]}slice{place[1]}")
@pytest.mark.parametrize("rehearsal", REHEARSALS)
@pytest.mark.parametrize("task", TASKS)
def test_a_deletion_at_every_position_equals_a_fresh_run_and_touches_nothing_before_it(
    trainery: Trainery, task: str, rehearsal: float, place: tuple[int, int]
) -> None:
    trained = trainery(task, rehearsal=rehearsal)
    before = checkpoint_files(trained.path)
    delete_in(trained.path, trained.ids(*place)[2:3])
    after = checkpoint_files(trained.path)
    untouched = {other for other in PLACES if other[0] != place[0] or other[1] < place[1]}
    assert {other for other in PLACES if before[other] == after[other]} == untouched
    exact(trained)


@pytest.mark.parametrize("position", range(5))
def test_a_deletion_of_each_record_of_a_slice_equals_a_fresh_run(trainery: Trainery, position: int) -> None:
    trained = trainery("causal-lm", rehearsal=0.25)
    delete_in(trained.path, [trained.ids(0, 1)[position]])
    exact(trained)


@pytest.mark.parametrize(
    ("rehearsal", "count"),
    [
        *itertools.product(REHEARSALS, (1, 3)),
        (0.25, 10),
        pytest.param(0.0, 10, marks=pytest.mark.slow),
        pytest.param(1.0, 10, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("task", TASKS)
def test_deletions_in_one_batch_or_one_by_one_in_any_order_equal_the_same_fresh_run(
    trainery: Trainery, task: str, rehearsal: float, count: int
) -> None:
    batched, forwards, backwards = (trainery(task, rehearsal=rehearsal) for _ in range(3))
    # Every third record, so that ten deletions fall on all six places.
    victims = [each["id"] for each in flat(batched.places)][::3][:count]
    delete_in(batched.path, victims)
    for victim in victims:
        delete_in(forwards.path, [victim])
    for start in range(0, count, 4):
        delete_in(backwards.path, victims[::-1][start : start + 4])
    exact(batched)
    assert differences(batched.path, forwards.path) == []
    assert differences(batched.path, backwards.path) == []


@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize("task", TASKS)
def test_emptying_a_slice_passes_its_parent_through_and_equals_a_fresh_run(
    trainery: Trainery, task: str, number: int
) -> None:
    trained = trainery(task, rehearsal=0.25)
    delete_in(trained.path, trained.ids(1, number))
    assert (1, number) not in checkpoint_files(trained.path)
    assert served_shards(trained.path) == [0, 1]
    exact(trained)


@pytest.mark.parametrize("task", TASKS)
def test_emptying_a_shard_takes_it_out_of_the_served_set_and_predictions_go_on(trainery: Trainery, task: str) -> None:
    trained = trainery(task, rehearsal=0.25)
    for number in (2, 0, 1):
        delete_in(trained.path, trained.ids(0, number))
    assert served_shards(trained.path) == [1]
    with open_session(trained.path) as session:
        assert session.workspace.book.manifest() is not None
        assert len(Predictor(session).answer([QUESTION[task]]).rows) == 1
    exact(trained)


@pytest.mark.parametrize("task", TASKS)
def test_when_everything_is_deleted_nothing_is_served_and_predict_says_so(trainery: Trainery, task: str) -> None:
    trained = trainery(task, rehearsal=1.0)
    delete_in(trained.path, [each["id"] for each in flat(trained.places)])
    assert served_shards(trained.path) == []
    assert checkpoint_files(trained.path) == {}
    with open_session(trained.path) as session:
        assert session.workspace.book.live() == {}
        with pytest.raises(InputError, match="none is served"):
            Predictor(session).answer([QUESTION[task]])


@pytest.mark.parametrize("task", TASKS)
def test_data_after_everything_was_deleted_trains_as_if_nothing_had_been(trainery: Trainery, task: str) -> None:
    trained = trainery(task, rehearsal=0.25)
    delete_in(trained.path, [each["id"] for each in flat(trained.places)])
    data = write_rows(trained.scratch / "later.jsonl", flat(grid(task, 2, first=1000)))
    train_in(trained.path, data)
    exact(trained)


@pytest.mark.parametrize(
    ("task", "rehearsal"),
    [
        ("classification", 0.0),
        ("classification", 0.25),
        ("causal-lm", 1.0),
        pytest.param("classification", 1.0, marks=pytest.mark.slow),
        pytest.param("causal-lm", 0.0, marks=pytest.mark.slow),
        pytest.param("causal-lm", 0.25, marks=pytest.mark.slow),
    ],
)
def test_new_data_trains_as_later_slices_and_deletions_in_any_generation_equal_a_fresh_run(
    trainery: Trainery, task: str, rehearsal: float
) -> None:
    trained = trainery(task, rehearsal=rehearsal)
    before = checkpoint_files(trained.path)
    later = grid(task, 2, first=1000)
    train_in(trained.path, write_rows(trained.scratch / "later.jsonl", flat(later)))
    grown = checkpoint_files(trained.path)
    assert {place: grown[place] for place in before} == before
    assert len(grown) == 12
    delete_in(trained.path, trained.ids(0, 1)[:2])  # the first generation
    exact(trained)
    delete_in(trained.path, [later[1, 2][0]["id"], trained.ids(1, 2)[0]])  # both
    assert differences(trained.path, fresh_run(trained.path, trained.scratch / "again")) == []


def test_an_interleaved_history_of_ingests_and_deletions_equals_a_fresh_run(trainery: Trainery) -> None:
    trained = trainery("classification", rehearsal=0.25)
    for generation in range(1, 3):
        later = grid("classification", 1, first=1000 * generation)
        train_in(trained.path, write_rows(trained.scratch / f"{generation}.jsonl", flat(later)))
        delete_in(trained.path, [trained.ids(generation - 1, 0)[generation], later[0, 1][0]["id"]])
    exact(trained)


@pytest.mark.slow
@pytest.mark.parametrize("rehearsal", REHEARSALS)
def test_pretrained_encoder_a_deletion_at_every_position_equals_a_fresh_run(
    trainery: Trainery, rehearsal: float
) -> None:
    for place in PLACES:
        trained = trainery("classification", base="minilm", rehearsal=rehearsal)
        delete_in(trained.path, trained.ids(*place)[:1])
        exact(trained)


@pytest.mark.parametrize("place", [(0, 0), pytest.param((1, 2), marks=pytest.mark.slow)])
def test_pretrained_encoder_a_deletion_first_or_last_equals_a_fresh_run(
    trainery: Trainery, place: tuple[int, int]
) -> None:
    trained = trainery("classification", base="minilm", rehearsal=0.25)
    delete_in(trained.path, trained.ids(*place)[:1])
    exact(trained)
