"""How long until a command does its work?

    python -m benchmarks.startup [--quick] [--out FILE]

A workspace of made-up records is trained with the packaged base, and one record is deleted for a certificate. Then,
by turns in rounds whose order rotates, each time in a new process:

    bare           a typer program that prints a word, from its start to its end
    audit, …       commands that only read, the same; what they take more than ``bare`` is theirs
    delete inline  from the start of ``sisa delete`` until its first training step begins, in its own process
    delete ray     the same with a Ray cluster that it starts, until the first step begins in a worker

A step begins when the base lies there for it: imported, verified and loaded, and the first record can be
computed. Every deletion works on a fresh copy of the same workspace. Our modules are compiled first, as an
installation does. What the files' cache holds after a first turn that is not counted, it holds for all. Run it
on a machine with nothing else to do: the load average is recorded at the beginning of each round. ``--quick``
runs the same code on few records; its figures mean nothing.
"""

from __future__ import annotations

import argparse
import compileall
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.data import synthetic_records, write_jsonl
from benchmarks.environment import environment, load
from benchmarks.executor_throughput import rotated
from benchmarks.settings import recipe_values
from sisa.delete import delete
from sisa.initialise import initialise
from sisa.session import open_session
from sisa.train import train

ROOT = Path(__file__).parent.parent
RESULT = ROOT / "benchmarks" / "results" / "startup.json"
BARE = "import typer\n\n\ndef main(word: str = 'word') -> None:\n    print(word)\n\n\ntyper.run(main)\n"
DELETIONS = {"delete inline": "inline", "delete ray": "ray"}
WORKERS = 2


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is measured.

    Attributes:
        records, shards, slices: of the workspace.
        rounds: counted ones.
        times: each command that only reads, in one round.
    """

    records: int
    shards: int
    slices: int
    rounds: int
    times: int


WHOLE = Sizes(400, 4, 2, 5, 5)
QUICK = Sizes(32, 2, 1, 1, 1)


@dataclass(frozen=True, slots=True)
class Prepared:
    """A trained workspace that is never changed, and the IDs of a record that is held and of one that was deleted."""

    path: Path
    held: str
    certificate: Path


def prepared(sizes: Sizes, scratch: Path, base_model: str = "minilm") -> Prepared:
    """Train a workspace in this process, and delete its first record."""
    records = synthetic_records(sizes.records)
    data, path = scratch / "records.jsonl", scratch / "workspace"
    write_jsonl(data, records)
    values = recipe_values(sizes.shards, sizes.slices, 0.0)
    initialise(path, task="classification", base_model=base_model, data=[data], values=values)
    with open_session(path, executor="inline") as session:
        train(session)
        certificate = delete(session, [records[0].id]).certificate
    if certificate is None:
        raise RuntimeError("a deletion without a certificate")
    return Prepared(path, records[1].id, certificate)


def commands(made: Prepared, scratch: Path) -> dict[str, list[str]]:
    """Name → the program and arguments of everything that only reads, the bare program first."""
    bare = scratch / "bare.py"
    bare.write_text(BARE)
    at = ["-w", str(made.path)]
    sisa = {
        "audit --id": ["audit", *at, "--id", made.held],
        "audit --all": ["audit", *at, "--all"],
        "verify": ["verify", str(made.certificate)],
        "verify -w": ["verify", str(made.certificate), *at],
        "status": ["status", *at],
    }
    return {"bare": [str(bare)]} | {name: ["-m", "sisa", *given] for name, given in sisa.items()}


def seconds(program: Sequence[str]) -> float:
    """From the start of a Python program to its end, which must be a good one."""
    started = time.monotonic()
    subprocess.run([sys.executable, *program], cwd=ROOT, capture_output=True, check=True)
    return time.monotonic() - started


def first_step(made: Prepared, executor: str, scratch: Path) -> dict[str, float]:
    """Seconds from the start of a deletion until its first step was ordered and began, and until it was certified."""
    with tempfile.TemporaryDirectory(dir=scratch) as directory:
        copy, notes = Path(directory) / "workspace", Path(directory) / "notes"
        shutil.copytree(made.path, copy)
        program = ["-c", "from benchmarks.first_step import main; main()", str(notes)]
        arguments = ["delete", "-w", str(copy), "--id", made.held, "--executor", executor, "--workers", str(WORKERS)]
        started = time.monotonic()
        subprocess.run([sys.executable, *program, *arguments], cwd=ROOT, capture_output=True, check=True)
        ended = time.monotonic()
        first = min((json.loads(line) for line in notes.read_text().splitlines()), key=lambda note: note["began"])
        return {"ordered": first["ordered"] - started, "began": first["began"] - started, "ended": ended - started}


def measure(made: Prepared, sizes: Sizes, scratch: Path, deletions: Mapping[str, str] = DELETIONS) -> dict[str, Any]:
    """All rounds, and what they add up to."""
    for package in ("shards", "orchestration", "sisa", "benchmarks"):
        compileall.compile_dir(ROOT / package, quiet=1)
    programs = commands(made, scratch)
    sides = [*programs, *deletions]
    for name in sides if sizes.rounds > 1 else []:  # not counted: the files' cache is as it will be
        _once(name, programs, deletions, made, 1, scratch)
    rounds = []
    for number in range(sizes.rounds):
        found: dict[str, Any] = {"load_average": load()}
        for name in rotated(sides, number):
            found[name] = _once(name, programs, deletions, made, sizes.times, scratch)
        rounds.append(found)
        print(f"round {number + 1} of {sizes.rounds}: {_told(found)}", flush=True)
    return {
        "over_bare": {name: over(rounds, name) for name in programs if name != "bare"},
        "first_step": {name: spread([found[name]["began"] for found in rounds]) for name in deletions},
        "rounds": rounds,
    }


def _once(
    name: str,
    programs: Mapping[str, Sequence[str]],
    deletions: Mapping[str, str],
    made: Prepared,
    times: int,
    scratch: Path,
) -> Any:
    if name in deletions:
        return first_step(made, deletions[name], scratch)
    return median(seconds(programs[name]) for _ in range(times))


def over(rounds: Sequence[Mapping[str, Any]], name: str) -> dict[str, float]:
    """What a command takes more than the bare program of the same round."""
    return spread([found[name] - found["bare"] for found in rounds])


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and range."""
    return {"median": median(values), "lowest": min(values), "highest": max(values)}


def _told(found: Mapping[str, Any]) -> str:
    times = {name: value["began"] if isinstance(value, dict) else value for name, value in found.items()}
    del times["load_average"]
    return ", ".join(f"{name} {value:.2f} s" for name, value in times.items())


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few records; the figures mean nothing")
    parser.add_argument("--out", type=Path, help=f"default: {RESULT.name} in benchmarks/results, with --quick nowhere")
    given = parser.parse_args(arguments)
    for name, value in (("HF_HUB_OFFLINE", "1"), ("TOKENIZERS_PARALLELISM", "false"), ("RAY_USAGE_STATS_ENABLED", "0")):
        os.environ.setdefault(name, value)
    sizes = QUICK if given.quick else WHOLE
    out = given.out or (None if given.quick else RESULT)
    document: dict[str, Any] = {
        "schema": "startup/1",
        "command": f"python -m benchmarks.startup{' --quick' if given.quick else ''}",
        "environment": environment(),
        "records": sizes.records,
        "shards": sizes.shards,
        "slices": sizes.slices,
        "workers": WORKERS,
    }
    with tempfile.TemporaryDirectory(prefix="sisa-bench-") as scratch:
        document |= measure(prepared(sizes, Path(scratch)), sizes, Path(scratch))
    if out is not None:
        out.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
