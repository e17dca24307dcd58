"""Every command survives being killed: run again, it finishes with the bytes of an undisturbed run."""

from __future__ import annotations

import json
import random
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from shards.law import check_law
from shards.workspace import Workspace
from tests.faults.conftest import Order
from tests.faults.server import KILLED, toy
from tests.flows.fixtures import Site
from tests.flows.helpers import copy_of, done, same_models, sisa, ticket, tree

# -- enumerated, with the toy trainer -----------------------------------------------------------


def facts(path: Path) -> dict[str, Any]:
    """What must be equal after any history."""
    workspace = Workspace.open(path)
    try:
        manifest = workspace.book.manifest()
        return {
            "manifest": None if manifest is None else manifest.digest,
            "live": sorted(workspace.book.live()),
            # Salts are random: leaves of slices and targets of requests have other names in every run.
            "objects": sorted({name for made in workspace.book.live().values() for name in (made.files, made.seen)}),
            "others": len(workspace.store.objects()),
            "records": sorted(stored.record.id for stored in workspace.survivors()),
            "requests": [request.tags for _, request in workspace.book.requests()],
            "certified": sorted(workspace.book.certificates()),
            "law": [check.name for check in check_law(workspace) if check.outcome != "passed"],
        }
    finally:
        workspace.close()


def objects(path: Path) -> dict[str, str]:
    """Every stored file of live checkpoints and of what they saw; other objects hold random salts."""
    workspace = Workspace.open(path)
    named = {name for made in workspace.book.live().values() for name in (made.files, made.seen)}
    workspace.close()
    return {name: digest for name, digest in tree(path / "store").items() if name.split("/")[0] in named}


@pytest.fixture
def toy_data(memory_path: Path) -> Path:
    path = memory_path / "toy.jsonl"
    rows = [{"id": f"r{n}", "text": f"text {n}", "label": "a"} for n in range(8)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.slow  # test_calls.py kills at every call, these at every act of ours, with half of a file too
@pytest.mark.parametrize("step", ["train", "delete"])
def test_killed_at_any_durable_act_it_finishes_when_run_again(
    step: str, toy_kills: Order, toy_data: Path, memory_path: Path
) -> None:
    before, ended = memory_path / "before", memory_path / "ended"
    toy(before).workspace.close()
    if step == "delete":
        assert toy_kills("run_toy", before, toy_data, "train")["code"] == 0
    shutil.copytree(before, ended)
    assert toy_kills("run_toy", ended, toy_data, step)["code"] == 0
    wanted = facts(ended)
    assert wanted["law"] == []
    point = 0
    while True:
        point += 1
        path = memory_path / "killed"
        shutil.copytree(before, path)
        if toy_kills("kill_toy", path, toy_data, step, point)["code"] != KILLED:
            break
        # Whatever was accepted is forgotten at once: nothing served saw it.
        served = Workspace.open(path)
        law = [check for check in check_law(served) if check.outcome == "failed" and "served since" in check.name]
        served.close()
        assert law == [], point
        assert toy_kills("run_toy", path, toy_data, step)["code"] == 0, point
        assert facts(path) == wanted, point
        shutil.rmtree(path)
    assert point > 20, "the step has that many durable acts at least"


def test_a_deletion_killed_at_any_act_is_finished_by_train(toy_kills: Order, toy_data: Path, memory_path: Path) -> None:
    before, ended = memory_path / "before", memory_path / "ended"
    toy(before).workspace.close()
    assert toy_kills("run_toy", before, toy_data, "train")["code"] == 0
    shutil.copytree(before, ended)
    assert toy_kills("run_toy", ended, toy_data, "delete")["code"] == 0
    wanted = facts(ended)
    for point in range(3, 200, 7):
        path = memory_path / "killed"
        shutil.copytree(before, path)
        code = toy_kills("kill_toy", path, toy_data, "delete", point)["code"]
        workspace = Workspace.open(path)
        accepted = bool(workspace.book.requests())
        workspace.close()
        assert toy_kills("run_toy", path, toy_data, "train")["code"] == 0
        assert facts(path) == (wanted if accepted else facts(before)), point
        shutil.rmtree(path)
        if code != KILLED:
            return


# -- at random moments, with real models --------------------------------------------------------


def moments(seconds: float) -> list[float]:
    """Six moments of a run that takes so long, the earliest first: a run that is through cannot be killed any more."""
    return sorted(random.uniform(0.1, 0.95) * seconds for _ in range(6))


@pytest.fixture
def begun(classification: Site, tmp_path: Path) -> Path:
    """The fresh run of the trained workspace, not begun."""
    done("init", tmp_path / "begun", "--keys-from", classification.path, "--data", classification.data)
    return tmp_path / "begun"


def test_a_training_killed_at_random_moments_ends_with_the_same_bytes(
    classification: Site, begun: Path, kills: Order, tmp_path: Path
) -> None:
    probe = copy_of(begun, tmp_path / "probe")
    seconds = kills("run", ["train", "-w", str(probe)])["seconds"]
    killed = 0
    for moment in moments(seconds):
        killed += kills("run_and_kill", ["train", "-w", str(begun)], moment, signal.SIGKILL)["code"] == KILLED
    assert killed
    assert kills("run", ["train", "-w", str(begun)])["code"] == 0
    same_models(classification.path, begun)
    assert done("audit", "-w", begun, "--all")["failed"] == 0


def test_a_deletion_killed_at_random_moments_ends_with_the_same_bytes(
    classification: Site, kills: Order, tmp_path: Path
) -> None:
    arguments = ["delete", "--id", ticket(1)["id"], "--id", ticket(9)["id"], "--request-id", "case-1", "-w"]
    ended, killed = (copy_of(classification.path, tmp_path / name) for name in ("ended", "killed"))
    seconds = kills("run", [*arguments, str(ended)])["seconds"]
    command = [*arguments, str(killed)]
    codes = [kills("run_and_kill", command, moment, signal.SIGKILL)["code"] for moment in moments(seconds)]
    assert KILLED in codes
    assert kills("run", [*arguments, str(killed)])["code"] == 0
    same_models(ended, killed)
    certificate = killed / "certificates" / "case-1.json"
    assert done("verify", certificate, "-w", killed, "--replay", "full")["failed"] == 0
    assert objects(ended) == objects(killed)


@pytest.mark.faults
@pytest.mark.parametrize("step", ["train", "delete"])
def test_killed_beside_any_slice_step_or_commit_it_ends_with_the_same_bytes_when_run_again(
    step: str, classification: Site, begun: Path, kills: Order, memory_path: Path
) -> None:
    before = begun if step == "train" else classification.path
    names = [part for number in (1, 9) for part in ("--id", ticket(number)["id"])]
    arguments = ["train"] if step == "train" else ["delete", *names, "--request-id", "case-1"]
    ended = copy_of(before, memory_path / "ended")
    assert kills("run", [*arguments, "-w", str(ended)])["code"] == 0
    for point in range(1, 1000):
        killed = copy_of(before, memory_path / f"killed-{point}")
        if kills("kill_at", [*arguments, "-w", str(killed)], point)["code"] != KILLED:
            break
        certificate = killed / "certificates" / "case-1.json"
        certified = (certificate, "--public-key", killed / "keys" / "signing.pub")
        if certificate.exists():  # then everything but perhaps its own fact is done
            assert done("verify", *certified)["failed"] == done("audit", "-w", killed, "--all")["failed"] == 0, point
        assert kills("run", [*arguments, "-w", str(killed)])["code"] == 0, point
        same_models(ended, killed)
        assert objects(ended) == objects(killed), point
        assert done("audit", "-w", killed, "--all")["failed"] == 0, point
        if step == "delete":
            assert done("verify", *certified, "-w", killed)["failed"] == 0, point
        shutil.rmtree(killed)
    assert point > 10, "the step has that many moments at least"


def test_an_interrupt_stops_with_a_word_and_exit_3_and_the_next_run_finishes(
    classification: Site, begun: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sisa.learner import LoraTrainer

    train, steps = LoraTrainer.train, 0

    def interrupted(trainer: LoraTrainer, lesson: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps == 3:
            raise KeyboardInterrupt
        return train(trainer, lesson)

    monkeypatch.setattr(LoraTrainer, "train", interrupted)
    stopped = sisa("train", "-w", begun)
    assert (stopped.code, stopped.out) == (3, "")
    assert "Run the same command again" in stopped.err
    monkeypatch.undo()
    finished = done("train", "-w", begun)
    assert finished["steps_trained"] == 2, "two were kept"
    same_models(classification.path, begun)


def test_an_accepted_deletion_serves_the_clean_prefix_until_train_finishes_it(
    classification: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sisa import delete as deleting

    workspace, ended = (copy_of(classification.path, tmp_path / name) for name in ("killed", "ended"))
    name = ticket(1)["id"]
    arguments = ("--id", name, "--request-id", "case-1")
    done("delete", "-w", ended, *arguments)

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(deleting, "finish_requests", interrupted)
        assert sisa("delete", "-w", workspace, *arguments).code == 3
    assert [request["state"] for request in done("status", "-w", workspace)["requests"]] == ["accepted"]
    exposed = {seen["checkpoint"] for seen in done("audit", "-w", workspace, "--id", name)["exposures"]}
    heads = {shard["head"]["checkpoint"] for shard in done("status", "-w", workspace)["shards"] if shard["head"]}
    assert heads
    assert not heads & exposed
    assert sisa("predict", "-w", workspace, "--text", "login").code == 0

    done("train", "-w", workspace)
    assert [request["state"] for request in done("status", "-w", workspace)["requests"]] == ["completed"]
    assert done("verify", workspace / "certificates/case-1.json", "-w", workspace, "--replay", "full")["failed"] == 0
    same_models(ended, workspace)


def test_a_second_deletion_finishes_the_first_one_too(
    classification: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sisa import delete as deleting

    workspace = copy_of(classification.path, tmp_path / "copy")

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(deleting, "finish_requests", interrupted)
        for number in (1, 2):
            assert sisa("delete", "-w", workspace, "--id", ticket(number)["id"]).code == 3
    done("delete", "-w", workspace, "--id", ticket(3)["id"])
    requests = done("status", "-w", workspace)["requests"]
    assert [request["state"] for request in requests] == ["completed"] * 3
    for request in requests:
        certificate = workspace / "certificates" / f"{request['request_id']}.json"
        assert done("verify", certificate, "-w", workspace, "--replay", "affected")["failed"] == 0
