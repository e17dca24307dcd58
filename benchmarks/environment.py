"""Where a figure was measured; written into every result."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sisa.determinism import environment_facts


def environment(device: str = "cpu") -> dict[str, Any]:
    """Processor (and GPU), libraries, load and date."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "load_average_at_start": load(),
        **environment_facts(device),
    }


def load() -> list[float]:
    """The load averages of 1, 5 and 15 minutes: other work on the machine is part of a figure."""
    return [round(value, 2) for value in os.getloadavg()]


def file_system(path: Path) -> str:
    """Kind of the file system that ``path`` lies on: what a sync costs is a property of it."""
    mounts = [line.split()[1:3] for line in Path("/proc/self/mounts").read_text().splitlines()]
    above = [(len(Path(where).parts), kind) for where, kind in mounts if path.resolve().is_relative_to(where)]
    return max(reversed(above), key=lambda mount: mount[0])[1]  # of several in one place the last covers the others


def peak_memory() -> int:
    """The most bytes of memory this process has had resident since it began.

    ``VmHWM`` belongs to this program alone. ``ru_maxrss`` does not: after fork and exec it starts from
    the peak of the process that forked, which would blur small children of a large parent.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise OSError("VmHWM is not in /proc/self/status; peak memory is measured on Linux only")


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()
