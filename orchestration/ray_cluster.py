"""Connecting to a Ray cluster, or starting one that only this machine can reach.

Ray's defaults are those of a trusted network: it listens on every interface, reports its use, and
prints to stdout. None of that happens here unless the user says so.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from ipaddress import ip_address
from typing import Any

import ray
from ray._private import ray_constants
from ray._private import worker as ray_worker
from ray._private.node import Node
from ray.exceptions import RayError

from shards.errors import ConfigError, OperationError

_NODE_ADDRESS = "_node_ip_address"  # of ray.init


@contextmanager
def connected(address: str | None, cpus: int, init: Mapping[str, Any]) -> Iterator[None]:
    """Be connected to a cluster for the duration: the one this process is connected to, if it is.

    Args:
        address: of a running cluster; None starts one on this machine.
        cpus: processors of the one that is started.
        init: further settings of ``ray.init``.

    Raises:
        OperationError: if there is no such cluster, or none can be started here.
        ConfigError: if the settings are wrong.
    """
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ours: dict[str, Any] = {"address": address, "log_to_driver": False, "logging_level": "error"}
    if address is None:
        ours |= {"address": "local", "num_cpus": max(1, cpus), "include_dashboard": False}
    settings = ours | dict(init)
    closed = settings["address"] == "local" and _NODE_ADDRESS not in settings
    with _stdout_kept_free():
        try:
            _connect(settings, closed=closed)
            if closed:
                _refuse_open()
            yield
        finally:  # also of what a signal left half started
            ray.shutdown()


def _connect(settings: Mapping[str, Any], *, closed: bool) -> None:
    try:
        with ExitStack() as during:
            during.enter_context(_signals_as_before())
            if settings["address"] == "local":
                during.enter_context(_without_watchers(settings))
            if closed:
                during.enter_context(_loopback_only())
            ray.init(**settings)
    except (TypeError, ValueError) as error:
        raise ConfigError("settings that ray.init accepts", str(error), "mend ray_init in sisa.yaml") from error
    except Exception as error:
        # Ray tells of a cluster that did not come up by these, or by a bare Exception; the rest is a defect.
        if type(error) is not Exception and not isinstance(error, (OSError, RuntimeError, RayError)):
            raise
        where = "on this machine" if settings["address"] == "local" else f"at {settings['address']}"
        raise OperationError(
            f"a Ray cluster {where}",
            str(error),
            "check --ray-address, and that Ray's directory has room; then run again",
        ) from error


@contextmanager
def _loopback_only() -> Iterator[None]:
    """Clusters started inside listen to this machine alone.

    Ray takes the machine's outer address even if it is told 127.0.0.1, and then listens on every interface,
    but for systems whose clusters never leave the machine: this is one, for the duration.
    """
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


@contextmanager
def _without_watchers(settings: Mapping[str, Any]) -> Iterator[None]:
    """Clusters started inside lack the autoscaler, and the dashboard and the log monitor unless these are asked for.

    Ray starts all three whatever it is told. Each is a Python program that comes up at the same time as the node
    does, and on a machine of two cores the first step waits for them, a second or more; then nobody uses them.
    """
    names = ["start_monitor"]
    names += [] if settings.get("include_dashboard") else ["start_api_server"]
    names += [] if settings.get("log_to_driver") else ["start_log_monitor"]
    before = {name: getattr(Node, name) for name in names if hasattr(Node, name)}  # these are Ray's own affair
    try:
        for name in before:
            setattr(Node, name, _not_started)
        yield
    finally:
        for name, method in before.items():
            setattr(Node, name, method)


def _not_started(_: Node, **__: Any) -> None:
    """In place of a method that starts a process."""


@contextmanager
def _signals_as_before() -> Iterator[None]:
    """Ray takes the signal to terminate for itself: whoever handles it (the command line does) goes on to."""
    before = signal.getsignal(signal.SIGTERM)
    if not callable(before) or threading.current_thread() is not threading.main_thread():
        yield
        return
    try:
        yield
    except SystemExit as stop:
        raise KeyboardInterrupt from stop
    finally:
        signal.signal(signal.SIGTERM, before)


def _refuse_open() -> None:
    """Trust no version of Ray to have done as it was told."""
    address = ray.util.get_node_ip_address()
    if not ip_address(address).is_loopback:
        raise OperationError(
            "a Ray cluster that only this machine can reach",
            f"one that listens on {address}",
            f"use --executor inline, or name an address in sisa.yaml (ray_init: {_NODE_ADDRESS}) if it may be reached",
        )


@contextmanager
def _stdout_kept_free() -> Iterator[None]:
    """What Ray says about nodes and workers goes to stderr: stdout may be a JSON document."""
    told = ray_worker.print_to_stdstream

    def to_stderr(data: dict[str, Any], *rest: Any, **options: Any) -> None:
        told({**data, "is_err": True}, *rest, **options)

    ray_worker.print_to_stdstream = to_stderr
    try:
        yield
    finally:
        ray_worker.print_to_stdstream = told
