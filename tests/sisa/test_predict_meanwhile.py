"""A process that holds a model notices what is forgotten, and never mixes two generations in one answer."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shards.errors import InputError, IntegrityError
from sisa import adapter, aggregate
from sisa.delete import delete
from sisa.predict import Answer, Predictor
from sisa.session import Session, open_session
from tests.models import delete_in, flat, grid, make_workspace, train_in, write_rows

ROOT = Path(__file__).parents[2]
INPUTS = [{"id": "1", "text": "my card was charged twice"}, {"id": "2", "text": "login fails"}]

SERVER = """
import json, sys
from pathlib import Path
from sisa.predict import Predictor
from sisa.session import open_session
with open_session(Path(sys.argv[1])) as session:
    predictor = Predictor(session)
    for line in sys.stdin:
        print(json.dumps(predictor.answer(json.loads(line)).rows), flush=True)
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> Path:
    root = tmp_path_factory.mktemp("served")
    workspace = make_workspace(root / "workspace", "classification", tiny_bert)
    train_in(workspace, write_rows(root / "data.jsonl", flat(grid("classification", 2))))
    return workspace


@pytest.fixture
def served(trained: Path, tmp_path: Path) -> Path:
    shutil.copytree(trained, tmp_path / "workspace")
    return tmp_path / "workspace"


@pytest.fixture
def session(served: Path) -> Iterator[Session]:
    with open_session(served) as session:
        yield session


def victim() -> str:
    return str(grid("classification", 2)[0, 0][0]["id"])


def queue(workspace: Path) -> None:
    with open_session(workspace) as other:
        delete(other, [victim()], queue=True)


def fresh(workspace: Path) -> Answer:
    with open_session(workspace) as other:
        return Predictor(other).answer(INPUTS)


def test_a_predictor_reads_the_heads_once_a_generation(
    session: Session, served: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[int] = []
    original = session.workspace.store.get

    def counted(digest: str) -> dict[str, bytes]:
        reads.append(1)
        return original(digest)

    monkeypatch.setattr(session.workspace.store, "get", counted)
    predictor = Predictor(session)
    first = predictor.answer(INPUTS)
    heads = len(first.manifest.heads)
    assert (predictor.answer(INPUTS), len(reads)) == (first, heads)
    queue(served)
    second = predictor.answer(INPUTS)
    assert second.manifest.generation == first.manifest.generation + 1
    assert len(reads) == heads + len(second.manifest.heads)
    assert second == fresh(served)
    assert second.rows != first.rows


def test_an_answer_begun_before_a_deletion_is_not_handed_out_after_it(
    session: Session, served: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    classify, begun = aggregate.classify, list[int]()

    def overtaken(*arguments: Any) -> Any:
        means = classify(*arguments)
        begun.append(len(arguments[1]))
        if len(begun) == 1:
            queue(served)
        return means

    monkeypatch.setattr(aggregate, "classify", overtaken)
    predictor = Predictor(session)
    before = session.workspace.book.manifest()
    answer = predictor.answer(INPUTS)
    assert len(begun) == 2
    assert before is not None
    assert answer.manifest.generation == before.generation + 1
    monkeypatch.undo()
    assert answer == fresh(served)


def test_heads_purged_while_they_are_read_are_no_damage(
    session: Session, served: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, reads = session.workspace.store.get, list[str]()

    def overtaken(digest: str) -> dict[str, bytes]:
        reads.append(digest)
        if len(reads) == 1:
            delete_in(served, [victim()])
        return original(digest)

    monkeypatch.setattr(session.workspace.store, "get", overtaken)
    answer = Predictor(session).answer(INPUTS)
    monkeypatch.undo()
    assert answer == fresh(served)


def test_heads_held_are_those_of_the_manifest_though_others_are_purged_meanwhile(
    session: Session, served: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, reads = session.workspace.store.get, list[str]()

    def overtaken(digest: str) -> dict[str, bytes]:
        reads.append(digest)
        if len(reads) == 1:
            delete_in(served, [victim()])
        return original(digest)

    monkeypatch.setattr(session.workspace.store, "get", overtaken)
    predictor = Predictor(session)
    manifest, heads = predictor.held()
    assert manifest == session.workspace.book.manifest()
    assert [head.head for head in heads] == list(manifest.heads)
    count = len(reads)
    assert predictor.held() == (manifest, heads)
    assert len(reads) == count, "read once"


def test_a_damaged_head_is_an_error_and_no_endless_wait(session: Session) -> None:
    head, made = session.workspace.book.served()[0]
    for file in session.workspace.store.path(made.files).iterdir():
        file.write_bytes(b"")
    assert head.shard == 0
    with pytest.raises(IntegrityError):
        Predictor(session).answer(INPUTS)


def test_when_nothing_is_left_a_predictor_says_so_and_holds_nothing(session: Session, served: Path) -> None:
    predictor = Predictor(session)
    predictor.answer(INPUTS)
    with open_session(served) as other:
        delete(other, [row["id"] for row in flat(grid("classification", 2))], queue=True)
    with pytest.raises(InputError, match="none is served"):
        predictor.refresh()
    assert predictor._loaded is None
    assert not aggregate._kept, "no fallen head stays in memory"
    assert not adapter._loaded


def test_a_long_running_process_notices_a_deletion_and_the_retraining(served: Path) -> None:
    before = fresh(served)
    with subprocess.Popen(
        [sys.executable, "-c", SERVER, str(served)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None

        def ask() -> Any:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(json.dumps(INPUTS) + "\n")
            process.stdin.flush()
            return json.loads(process.stdout.readline())

        assert ask() == list(before.rows)
        queue(served)
        forgotten = fresh(served)
        assert forgotten.manifest.generation == before.manifest.generation + 1
        assert ask() == list(forgotten.rows)
        train_in(served)
        relearnt = fresh(served)
        assert relearnt.manifest.generation > forgotten.manifest.generation
        assert ask() == list(relearnt.rows)
        process.stdin.close()
        assert process.wait(60) == 0


def test_a_reader_of_a_workspace_that_a_backup_replaced_does_not_answer_on(session: Session, served: Path) -> None:
    predictor = Predictor(session)
    predictor.answer(INPUTS)
    shutil.copytree(served, served.parent / "backup")
    shutil.rmtree(served)
    (served.parent / "backup").rename(served)
    with pytest.raises(IntegrityError, match="open the workspace again"):
        predictor.answer(INPUTS)
    assert predictor._loaded is None
