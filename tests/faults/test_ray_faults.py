"""Nodes, drivers and workers of a Ray cluster come, go and come back: the same digests as inline, or a clear word.

Drivers are processes of their own (``tests/faults/ray_driver.py``), so that they can be killed, and so
that a cluster of several nodes does not meet the one of the test run.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import psutil
import pytest
from ray.cluster_utils import Cluster

from orchestration.inline import InlineExecutor
from orchestration.schedule import schedule
from shards.records import Record, make_content
from sisa.delete import delete
from sisa.ingest import Ingested, commit
from sisa.train import train
from tests.canaries import found
from tests.faults.ray_driver import MACHINE, RECIPE, Waiting, opened
from tests.faults.test_world import leave, mounted
from tests.toy import stored, toy_record, toy_session

ROOT = Path(__file__).parents[2]
DEADLINE_SECONDS = 60.0
INLINE = InlineExecutor()


# -- a workspace, and what it holds in the end --------------------------------------------------


@dataclass(frozen=True)
class Scene:
    """A workspace that has ingested and trained nothing, where its processes leave word, and the inline result."""

    path: Path
    scratch: Path
    inline: Path
    first: str  # a record of the step that is handed out first

    def go(self) -> None:
        (self.scratch / "go").touch()

    def held(self) -> list[int]:
        """Processes that wait in a step."""
        return [int(file.name.partition("-")[2]) for file in self.scratch.glob("held-*")]

    def trained(self) -> set[int]:
        """Processes that began a step."""
        return {int(file.name.partition("-")[2]) for file in self.scratch.glob("pid-*")}

    def order(self, **values: Any) -> dict[str, Any]:
        return {"workspace": str(self.path), "scratch": str(self.scratch)} | values


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    session = toy_session(tmp_path / "workspace", RECIPE)
    commit(session, stored(session, [toy_record(n, subject=None) for n in range(24)]), Ingested(24, 0, 0, 0))
    first = schedule(session.workspace.plan(), {})[0].steps[0].members[0].record.id
    session.workspace.close()
    (tmp_path / "scratch").mkdir()
    shutil.copytree(tmp_path / "workspace", tmp_path / "inline")
    made = Scene(tmp_path / "workspace", tmp_path / "scratch", tmp_path / "inline", first)
    trained_inline(made.inline)
    return made


def trained_inline(path: Path) -> None:
    session = opened(path)
    scratch = path.with_name("inline-scratch")
    scratch.mkdir(exist_ok=True)
    train(session, executor=INLINE, trainer=Waiting(scratch=scratch))
    session.workspace.close()


def contents(path: Path) -> tuple[Any, ...]:
    """Checkpoints with their tensors, the manifest, and every object in the store."""
    session = opened(path)
    workspace = session.workspace
    manifest = workspace.book.manifest()
    found = (
        {key: (made.tensors, made.files) for key, made in workspace.book.live().items()},
        manifest and manifest.heads,
        sorted(workspace.store.objects()),
    )
    workspace.close()
    return found


def eventually(happened: Callable[[], object]) -> None:
    """Wait for something that must come, however slow the machine."""
    end = time.monotonic() + DEADLINE_SECONDS
    while not happened():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.02)


# -- drivers and nodes --------------------------------------------------------------------------


@contextmanager
def driver(order: dict[str, Any]) -> Iterator[subprocess.Popen[str]]:
    """A driver at work; it and what it started locally are gone in the end."""
    command = [sys.executable, "-m", "tests.faults.ray_driver", json.dumps(order)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def result(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, _ = process.communicate(timeout=DEADLINE_SECONDS)
    answer: dict[str, Any] = json.loads(out)
    return answer


def driven(order: dict[str, Any]) -> dict[str, Any]:
    """What became of a driver that nobody disturbed."""
    with driver(order) as process:
        return result(process)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head without processors; tests add the nodes that they need. A silent node is dead after three seconds."""
    silence = {
        "health_check_initial_delay_ms": 1000,
        "health_check_period_ms": 500,
        "health_check_timeout_ms": 1000,
        "health_check_failure_threshold": 3,
    }
    with tempfile.TemporaryDirectory(prefix="sisa-ray-", ignore_cleanup_errors=True) as directory:
        made = Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": 0, "include_dashboard": False, "temp_dir": directory, "_system_config": silence,
            },
        )  # fmt: skip
        yield made
        made.shutdown()


@contextmanager
def nodes(cluster: Cluster, *machines: str) -> Iterator[list[Any]]:
    """Nodes of one processor each, gone afterwards; a machine's name is its environment class."""
    added = [cluster.add_node(num_cpus=1, env_vars={MACHINE: machine}) for machine in machines]
    try:
        yield added
    finally:
        for node in cluster.worker_nodes.copy():
            cluster.remove_node(node, allow_graceful=False)


def alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)


# -- faults -------------------------------------------------------------------------------------


def test_a_driver_killed_in_mid_step_is_run_again_and_the_result_equals_inline(cluster: Cluster, scene: Scene) -> None:
    order = scene.order(address=cluster.address, workers=1, held=[scene.first])
    with nodes(cluster, "toy"):
        with driver(order) as killed:
            eventually(scene.held)
            killed.kill()
        scene.go()
        assert driven(order)["error"] is None
    assert contents(scene.path) == contents(scene.inline)


@pytest.mark.slow
def test_nodes_come_and_go_in_mid_training_and_the_result_equals_inline(cluster: Cluster, scene: Scene) -> None:
    order = scene.order(address=cluster.address, workers=2, held=[scene.first])
    with nodes(cluster, "toy") as (first,), driver(order) as process:
        eventually(scene.held)
        (held,) = scene.held()
        cluster.add_node(num_cpus=1, env_vars={MACHINE: "toy"})
        eventually(lambda: len(scene.trained()) == 2)  # its worker waited for it
        cluster.remove_node(first, allow_graceful=False)
        eventually(lambda: not alive(held))
        scene.go()
        assert result(process)["error"] is None
    assert contents(scene.path) == contents(scene.inline)


@pytest.mark.slow
def test_a_worker_out_of_reach_that_comes_back_after_the_purge_writes_nothing(cluster: Cluster, scene: Scene) -> None:
    """Its node falls silent once the step is trained and found to be in the plan still, and is given up.

    The step is made elsewhere and the record deleted; then the lost worker goes on.
    """
    order = scene.order(address=cluster.address, workers=1, late=[scene.first])
    with nodes(cluster, "toy") as (silent,), driver(order) as process:
        eventually(scene.held)
        (zombie,) = scene.held()
        frozen = [zombie, *(info.process.pid for infos in silent.all_processes.values() for info in infos)]
        for pid in frozen:
            os.kill(pid, signal.SIGSTOP)
        try:
            cluster.add_node(num_cpus=1, env_vars={MACHINE: "toy"})
            scene.go()
            assert result(process)["error"] is None
            for path in (scene.path, scene.inline):
                session = opened(path)
                trainer = Waiting(scratch=scene.scratch)
                delete(session, [scene.first], request_id="gone", executor=INLINE, trainer=trainer)
                session.workspace.close()
            after = contents(scene.path)
            assert psutil.Process(zombie).status() == psutil.STATUS_STOPPED
        finally:
            os.kill(zombie, signal.SIGCONT)
        eventually((scene.scratch / f"ended-{zombie}").exists)
        assert contents(scene.path) == after
    assert after[:2] == contents(scene.inline)[:2]


# -- no room ------------------------------------------------------------------------------------


@pytest.fixture
def small_directory() -> Iterator[Path]:
    """A directory with 100 MiB of room; its name is short because socket paths end at 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="sisa-ray-", ignore_cleanup_errors=True) as directory:
        path = Path(directory) / "d"
        path.mkdir()
        mounted(path, "-t", "tmpfs", "-o", "size=100m", "tmpfs")
        try:
            yield path
        finally:
            subprocess.run(["umount", "--lazy", str(path)], check=True)


def all_on(directory: Path) -> dict[str, Any]:
    """Ray's logs, sockets, spilled objects and shared memory in one directory."""
    return {"_temp_dir": str(directory), "_plasma_directory": str(directory), "object_store_memory": 75 << 20}


def test_ray_without_room_for_objects_spilling_and_logs_in_mid_training_changes_no_digest(
    scene: Scene, small_directory: Path
) -> None:
    with driver(scene.order(held=[scene.first], init=all_on(small_directory))) as process:
        eventually(scene.held)
        leave(small_directory, 0)
        scene.go()
        answer = result(process)
    assert answer["error"] in {None, "StepFailedError", "OperationError"}
    (small_directory / "ballast").unlink()
    trained_inline(scene.path)
    assert contents(scene.path) == contents(scene.inline)


@pytest.mark.slow
@pytest.mark.parametrize("free", [0, 65536])
def test_ray_without_room_to_start_says_so(scene: Scene, small_directory: Path, free: int) -> None:
    leave(small_directory, free)
    answer = driven(scene.order(init=all_on(small_directory)))
    assert (answer["error"], answer["code"]) == ("OperationError", 3)
    assert "Ray's directory has room" in answer["said"]
    trained_inline(scene.path)
    assert contents(scene.path) == contents(scene.inline)


# -- nothing open, nothing told -----------------------------------------------------------------


CANARIES = frozenset({b"IDCANARY", b"TEXTCANARY", b"SUBJECTCANARY"})


@pytest.fixture
def telling(tmp_path: Path) -> Scene:
    """Records whose every part would be recognised, on which nothing was trained."""
    session = toy_session(tmp_path / "workspace", RECIPE)
    records = [
        Record(f"IDCANARY-{n}", make_content({"text": f"TEXTCANARY-{n}", "label": "a"}), subject=f"SUBJECTCANARY-{n}")
        for n in range(24)
    ]
    commit(session, stored(session, records), Ingested(24, 0, 0, 0))
    first = schedule(session.workspace.plan(), {})[0].steps[0].members[0].record.id
    session.workspace.close()
    (tmp_path / "scratch").mkdir()
    return Scene(tmp_path / "workspace", tmp_path / "scratch", tmp_path / "none", first)


@dataclass(frozen=True)
class Started:
    """What can be seen of a process that a driver started."""

    title: str
    reporting: str | None


def looked_at(pid: int) -> tuple[set[str], dict[str, Started]]:
    """The addresses on which a driver and what it started listen; what it started, by name."""
    addresses, started = set(), {}
    driving = psutil.Process(pid)
    for each in [driving, *driving.children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):  # some only help others to start
            addresses |= {at.laddr.ip for at in each.net_connections("inet") if at.status == psutil.CONN_LISTEN}
            if each != driving:
                environment = each.environ().get("RAY_USAGE_STATS_ENABLED")
                started[each.name()] = Started(" ".join(each.cmdline()), environment)
    return addresses, started


def test_a_cluster_started_here_is_reached_from_here_only_reports_nothing_and_knows_no_record(
    telling: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_USAGE_STATS_ENABLED", raising=False)
    session = opened(telling.path)
    other = schedule(session.workspace.plan(), {})[1].steps[0].members[0].record.id
    session.workspace.close()
    with tempfile.TemporaryDirectory(prefix="sisa-ray-", ignore_cleanup_errors=True) as directory:
        init = {"_temp_dir": directory}
        with driver(telling.order(held=[telling.first], failing=[other], init=init)) as process:
            eventually(telling.held)
            open_to, started = looked_at(process.pid)
            telling.go()
            answer = result(process)
        assert open_to, "they do listen"
        assert {ip_address(address.removeprefix("::ffff:")).is_loopback for address in open_to} == {True}, open_to
        assert {started[name].reporting for name in ("raylet", "gcs_server")} == {"0"}
        assert answer["error"] == "StepFailedError"
        assert "LookupError in train (ray_driver.py" in answer["said"]
        files = [file for file in Path(directory).rglob("*") if file.is_file() and not file.is_symlink()]
        assert not [file for file in files if file.name == "usage_stats.json"]
        assert len([file for file in files if "worker" in file.name]) > 2, "the workers' logs are among them"
        for file in files:
            assert not found(file, CANARIES), file
    assert found(next((telling.path / "vault").iterdir()), CANARIES) == CANARIES, "where they may be they are found"
    shown = " ".join([answer["said"], *(each.title for each in started.values())]).encode()
    assert not [canary for canary in CANARIES if canary in shown]


# -- environment classes ------------------------------------------------------------------------


@pytest.fixture
def begun_elsewhere(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> Scene:
    """The dearest chain was begun on a machine of another class, and not finished."""
    session = opened(scene.path)
    second = schedule(session.workspace.plan(), {})[0].steps[1]
    new = next(stored for stored in second.members if stored.tag in second.leaves)
    with monkeypatch.context() as patch:
        patch.setenv(MACHINE, "other")
        with pytest.raises(LookupError):
            train(session, executor=INLINE, trainer=Waiting(scratch=scene.scratch, failing=(new.record.id,)))
    session.workspace.close()
    return scene


def machines(scene: Scene) -> list[set[str]]:
    """The classes in which each shard's checkpoints were made, dearest chain first."""
    session = opened(scene.path)
    live = session.workspace.book.live()
    made = [
        {live[step.key].environment["machine"] for step in chain.steps if step.key in live}
        for chain in schedule(session.workspace.plan(), {})
    ]
    session.workspace.close()
    return made


@pytest.mark.slow
def test_a_chain_goes_on_in_its_class_on_the_node_that_has_it(cluster: Cluster, begun_elsewhere: Scene) -> None:
    scene = begun_elsewhere
    session = opened(scene.path)
    other = schedule(session.workspace.plan(), {})[1].steps[0].members[0].record.id
    session.workspace.close()
    order = scene.order(address=cluster.address, workers=1, held=[other])
    with nodes(cluster, "toy"), driver(order) as process:
        eventually(scene.held)  # the one worker skipped the first chain
        cluster.add_node(num_cpus=1, env_vars={MACHINE: "other"})
        scene.go()
        assert result(process)["error"] is None
    assert machines(scene) == [{"other"}, {"toy"}]
    assert contents(scene.path)[0].keys() == contents(scene.inline)[0].keys()


@pytest.mark.slow
def test_a_chain_whose_class_is_nowhere_ends_and_the_others_go_on(cluster: Cluster, begun_elsewhere: Scene) -> None:
    scene = begun_elsewhere
    with nodes(cluster, "toy"):
        answer = driven(scene.order(address=cluster.address, workers=2))
    assert (answer["error"], answer["code"]) == ("EnvironmentMismatchError", 3)
    assert "machine 'toy' instead of 'other'" in answer["said"]
    assert "--restart-shards" in answer["said"]
    assert machines(scene) == [{"other"}, {"toy"}]
    first, second = steps_stored(scene)
    assert (first, second) == (1, 3)


def steps_stored(scene: Scene) -> list[int]:
    """How many steps of each chain are stored, dearest chain first."""
    session = opened(scene.path)
    live = session.workspace.book.live()
    counts = [sum(step.key in live for step in chain.steps) for chain in schedule(session.workspace.plan(), {})]
    session.workspace.close()
    return counts
