"""What Ray is told when a cluster is started or joined; what then really listens: tests/faults/test_ray_faults.py."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
import ray
from ray._private import ray_constants
from ray._private import worker as ray_worker
from ray._private.node import Node

from orchestration.ray_cluster import connected
from shards.errors import ConfigError, OperationError

WATCHERS = {name: getattr(Node, name) for name in ("start_monitor", "start_api_server", "start_log_monitor")}


class Stand:
    """Stands in for Ray: notes what it was told, and raises or listens as a test wants."""

    def __init__(self) -> None:
        self.told: dict[str, Any] = {}
        self.left_out: set[str] = set()
        self.leaves_the_machine: bool | None = None
        self.error: Exception | None = None
        self.address = "127.0.0.1"
        self.ended = 0

    def init(self, **settings: Any) -> None:
        self.told, self.leaves_the_machine = settings, ray_constants.ENABLE_RAY_CLUSTER
        self.left_out = {name for name, method in WATCHERS.items() if getattr(Node, name) is not method}
        if self.error is not None:
            raise self.error

    def shutdown(self) -> None:
        self.ended += 1


@pytest.fixture
def stand(monkeypatch: pytest.MonkeyPatch) -> Stand:
    made = Stand()
    monkeypatch.setattr(ray_constants, "ENABLE_RAY_CLUSTER", True)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", made.init)
    monkeypatch.setattr(ray, "shutdown", made.shutdown)
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: made.address)
    return made


def test_a_cluster_of_our_own_stays_on_this_machine_and_has_no_dashboard(stand: Stand) -> None:
    with connected(None, 3, {}):
        assert (stand.told["address"], stand.told["num_cpus"], stand.told["include_dashboard"]) == ("local", 3, False)
        assert stand.leaves_the_machine is False
        assert ray_constants.ENABLE_RAY_CLUSTER is True, "for the start alone"
    assert stand.ended == 1


def test_a_cluster_of_our_own_that_is_open_after_all_is_refused(stand: Stand) -> None:
    stand.address = "192.0.2.1"
    with pytest.raises(OperationError, match=r"listens on 192\.0\.2\.1"), connected(None, 1, {}):
        raise AssertionError("not reached")
    assert stand.ended == 1


@pytest.mark.parametrize(("address", "init"), [("192.0.2.1:6379", {}), (None, {"_node_ip_address": "192.0.2.1"})])
def test_whoever_names_an_address_gets_it(stand: Stand, address: str | None, init: dict[str, Any]) -> None:
    stand.address = "192.0.2.1"
    with connected(address, 3, init):
        assert stand.leaves_the_machine is True
        assert ("num_cpus" in stand.told) == (address is None), "a running cluster has what it has"
        assert stand.told["address"] == (address or "local")


@pytest.mark.parametrize(
    ("address", "init", "started"),
    [
        (None, {}, set()),
        (None, {"include_dashboard": True}, {"start_api_server"}),
        (None, {"log_to_driver": True}, {"start_log_monitor"}),
        (None, {"_node_ip_address": "192.0.2.1"}, set()),
        ("192.0.2.1:6379", {}, set(WATCHERS)),
    ],
)
def test_a_cluster_of_our_own_starts_no_process_that_nobody_asked_for(
    stand: Stand, address: str | None, init: dict[str, Any], started: set[str]
) -> None:
    for error in (None, ValueError("no such memory")):
        stand.error = error
        with suppress(ConfigError), connected(address, 1, init):
            pass
        assert WATCHERS.keys() - stand.left_out == started
        assert all(getattr(Node, name) is method for name, method in WATCHERS.items()), "for the start alone"


@pytest.mark.parametrize(
    ("error", "ours"),
    [
        (ValueError("no such memory"), ConfigError),
        (TypeError("no such setting"), ConfigError),
        (ConnectionError("nobody there"), OperationError),
        (Exception("timed out during startup"), OperationError),
    ],
)
def test_a_cluster_that_does_not_come_up_is_told_in_our_words(
    stand: Stand, error: Exception, ours: type[Exception]
) -> None:
    stand.error = error
    with pytest.raises(ours, match=str(error)), connected(None, 1, {}):
        raise AssertionError("not reached")
    assert ray_constants.ENABLE_RAY_CLUSTER is True


@pytest.mark.parametrize("defect", [KeyError("address"), AttributeError("no such method"), AssertionError("never")])
def test_a_defect_is_not_called_a_cluster_that_does_not_come_up(stand: Stand, defect: Exception) -> None:
    stand.error = defect
    with pytest.raises(type(defect)), connected(None, 1, {}):
        raise ArithmeticError("not reached")
    assert ray_constants.ENABLE_RAY_CLUSTER is True


def test_what_ray_says_of_its_nodes_does_not_go_to_stdout(stand: Stand, capsys: pytest.CaptureFixture[str]) -> None:
    before = ray_worker.print_to_stdstream
    with connected(None, 1, {}):
        said = {"lines": ["a node is gone"], "pid": "raylet", "is_err": False}
        ray_worker.print_to_stdstream(said, ignore_prefix=False)
    out, err = capsys.readouterr()
    assert (out, "a node is gone" in err) == ("", True)
    assert ray_worker.print_to_stdstream is before


def test_a_cluster_that_this_process_is_connected_to_is_left_as_it_is(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    with connected(None, 1, {"anything": 1}):
        pass
    assert (stand.told, stand.ended) == ({}, 0)
