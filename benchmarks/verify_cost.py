"""What does it cost to check a deletion, and to keep what makes it checkable?

    python -m benchmarks.verify_cost --data DIR [--scratch DIR] [--torch] [--quick] [--out FILE]

DIR holds Banking77's ``train.csv``. Answers, FILE written after each:

    provenance     what a training spends on commitments, slice trees and the log
    microbatches   bytes stored by the real trainer with batches of 8 and of 1
    certificates   bytes of certificates of one deleted record and of more
    rounds         by turns: verifying them, a large slice tree, durable appends to a log
    real_training  what provenance took of a training with torch (only with --torch: minutes more)

But for the second and last, a stand-in trains: its "weights" are digests of what it saw. Bytes and
times of a certificate do not depend on the trainer. ``--scratch`` names a directory on the disk to be
measured; a memory file system is refused, because a sync costs nothing there. ``--quick`` runs the
same code on few made-up records in seconds; its figures mean nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import settings
from benchmarks.data import BANKING77, banking_records, spread, synthetic_records
from benchmarks.environment import environment, file_system, load
from benchmarks.provenance import trained
from orchestration.inline import InlineExecutor
from shards import kinds
from shards.digest import canonical_json
from shards.fact import Fact
from shards.files import fsync_directory, write_new
from shards.keyfiles import PUBLIC_FILE, create_root, create_signing_key
from shards.records import Record
from shards.sparse import tree_root
from shards.workspace import Workspace
from sisa.delete import delete
from sisa.determinism import environment_facts
from sisa.session import open_session
from sisa.verify import Evidence, verify
from tests.toy import ToyTrainer, fixed_root

ROOT = Path(__file__).parent.parent
RESULT = ROOT / "benchmarks" / "results" / "verify_cost.json"
IN_MEMORY = ("tmpfs", "ramfs")
GROUP = 10  # facts


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is measured.

    Attributes:
        records: in the release.
        shards, slices: of the release.
        trainings: how often the stand-in trains it.
        tags: deleted records of the certificates.
        small: records of the two trainings that differ in batch size alone.
        rounds: of everything that is measured by turns.
        verifications: of each certificate, in one round.
        leaves: of the large slice tree.
        appends: facts in one round, one after the other, and as many in groups of ten.
    """

    records: int
    shards: int
    slices: int
    trainings: int
    tags: tuple[int, ...]
    small: int
    rounds: int
    verifications: int
    leaves: int
    appends: int


WHOLE = Sizes(BANKING77, settings.SHARDS, settings.SLICES, 2, (1, 2, 5, 10), 64, 7, 5, 100_000, 50)
QUICK = Sizes(60, 2, 2, 1, (1, 3), 8, 1, 1, 1000, 10)


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate and the key to verify it with."""

    path: Path
    public_key: Path
    figures: dict[str, Any]


def stand_in() -> ToyTrainer:
    """A trainer of no cost that claims the real environment, so that its certificates are of real size."""
    return ToyTrainer(tuple(environment_facts("cpu").items()))


def provenance(records: Sequence[Record], sizes: Sizes, scratch: Path) -> tuple[dict[str, Any], Path]:
    """Train everything several times with the stand-in; the figures, and the last workspace."""
    values = settings.recipe_values(sizes.shards, sizes.slices, 0.0)
    releases = [scratch / f"release-{number}" for number in range(sizes.trainings)]
    runs = [trained(records, release, values, stand_in()) for release in releases]
    return _summaries([run["provenance"] for run in runs]) | {"trainings": runs}, releases[-1]


def microbatches(records: Sequence[Record], sizes: Sizes, scratch: Path) -> dict[str, Any]:
    """The real trainer with two batch sizes: what it stores must not grow with the microbatches."""
    some = spread(records, sizes.small)
    runs: list[dict[str, Any]] = []
    for size in (8, 1):
        values = settings.recipe_values(2, 2, 0.0) | {"batch_size": size}
        with fixed_root():  # the same places for the same records
            run = trained(some, scratch / f"batches-of-{size}", values, None)
        runs.append({"batch_size": size} | {name: run[name] for name in ("records", "steps", "microbatches", "bytes")})
    few, many = runs
    more = sum(many["bytes"].values()) - sum(few["bytes"].values())
    return {"bytes_per_microbatch": more / (many["microbatches"] - few["microbatches"]), "trainings": runs}


def certificates(records: Sequence[Record], sizes: Sizes, release: Path, scratch: Path) -> list[Certificate]:
    """Certificates of several deletions, each from a copy of the same release.

    First one record of a shard's first slice, which makes most steps fall. Then 1, 2, ... records at
    even distances of the file; those lie all over the shards, as one person's records would not.
    """
    with open_session(release) as session:
        place = session.workspace.layout().place
        first = next(record.id for record in records if place(record).slice == 0)
    ids = [record.id for record in spread(records, max(sizes.tags))]
    cases = [[first], *(ids[:number] for number in sizes.tags)]
    return [_delete(release, scratch / f"delete-{number}", case) for number, case in enumerate(cases)]


def _delete(release: Path, directory: Path, ids: Sequence[str]) -> Certificate:
    shutil.copytree(release, directory)
    with open_session(directory, executor="inline") as session:
        done = delete(session, ids, executor=InlineExecutor(), trainer=stand_in())
        steps = sum(shard["steps"] for shard in done.impact["shards"])
        facts = len(session.workspace.ledger.leaves())
    if done.certificate is None:
        raise RuntimeError("a deletion without certificate is no figure")
    size = done.certificate.stat().st_size
    figures = {"tags": len(ids), "retrained": steps, "facts_in_log": facts, "bytes": size}
    return Certificate(done.certificate, directory / "keys" / PUBLIC_FILE, figures)


def verify_once(certificate: Certificate) -> dict[str, int]:
    """Verify V0 to V2 with file and public key; how many checks had which outcome. None may fail."""
    document, checks = verify(certificate.path, Evidence(public_keys=(certificate.public_key,)))
    outcomes = {name: sum(check.outcome == name for check in checks) for name in ("passed", "failed", "not_checked")}
    if document is None or outcomes["failed"]:
        raise RuntimeError("the time of a failed verification is no figure")
    return outcomes


def verify_process(certificate: Certificate) -> None:
    """All of ``sisa verify``: a new process, its imports, the checks, its output."""
    arguments = ["-m", "sisa", "verify", str(certificate.path), "--public-key", str(certificate.public_key), "--json"]
    subprocess.run([sys.executable, *arguments], cwd=ROOT, stdout=subprocess.DEVNULL, check=True)


def new_log(directory: Path) -> Workspace:
    """A workspace with an empty log, to append to."""
    directory.mkdir()
    create_root(directory / "keys")
    create_signing_key(directory / "keys")
    return Workspace.create(directory)


def measure_round(
    found: Sequence[Certificate], tree: Mapping[bytes, bytes], log: Workspace, fact: Fact, sizes: Sizes
) -> dict[str, Any]:
    """Everything that is short, once, so that rounds take turns; ``fact`` is appended, alone and ten at a time."""

    def verifications(certificate: Certificate) -> list[dict[str, float]]:
        return [_timed(lambda: verify_once(certificate)) for _ in range(sizes.verifications)]

    def rate(many: list[tuple[str, Mapping[str, Any]]]) -> float:
        times = sizes.appends // len(many)
        return times * len(many) / _timed(lambda: log.ledger.append(many), times)["wall_seconds"]

    def write_synced() -> None:
        write_new(log.path / uuid.uuid4().hex, bytes(4096))
        fsync_directory(log.path)

    given = fact.kind, fact.body
    return {
        "load_average": load(),
        "verify": [verifications(certificate) for certificate in found],
        "process_wall_seconds": _timed(lambda: verify_process(found[0]))["wall_seconds"],
        "tree": _timed(lambda: tree_root(tree)),
        "single_facts_per_second": rate([given]),
        "grouped_facts_per_second": rate([given] * GROUP),
        "synced_files_per_second": sizes.appends / _timed(write_synced, sizes.appends)["wall_seconds"],
    }


def _timed(action: Callable[[], object], times: int = 1) -> dict[str, float]:
    """Seconds of doing something so many times."""
    started, core = time.perf_counter(), time.process_time()
    for _ in range(times):
        action()
    return {"core_seconds": time.process_time() - core, "wall_seconds": time.perf_counter() - started}


def _summary(values: Sequence[float]) -> dict[str, float]:
    return {"median": median(values), "lowest": min(values), "highest": max(values)}


def _summaries(times: Sequence[Mapping[str, float]]) -> dict[str, dict[str, float]]:
    return {name: _summary([each[name] for each in times]) for name in times[0]}


def rounds(found: Sequence[Certificate], release: Path, sizes: Sizes, scratch: Path) -> dict[str, Any]:
    """The rounds, and what they give."""
    chance = random.Random(0)
    tree = {chance.randbytes(32): chance.randbytes(32) for _ in range(sizes.leaves)}
    with open_session(release) as session:
        fact = session.workspace.ledger.facts(kinds.CHECKPOINT)[0]
    log = new_log(scratch / "log")
    measured = [measure_round(found, tree, log, fact, sizes) for _ in range(sizes.rounds)]
    log.close()
    flat = [name for name, value in measured[0].items() if isinstance(value, float)]
    verified = [[timed for each in measured for timed in each["verify"][n]] for n in range(len(found))]
    return {
        "verify": [certificate.figures | _summaries(times) for certificate, times in zip(found, verified, strict=True)],
        "outcomes": verify_once(found[0]),
        "tree": {"leaves": sizes.leaves} | _summaries([each["tree"] for each in measured]),
        "bytes_of_fact": len(canonical_json(fact.to_json())),
        **{name: _summary([each[name] for each in measured]) for name in flat},
        "rounds": measured,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="directory of Banking77's train.csv")
    parser.add_argument("--scratch", type=Path, help="directory on the disk to be measured; default: the system's")
    parser.add_argument("--torch", action="store_true", help="also train everything for real")
    parser.add_argument("--quick", action="store_true", help="made-up records, few of them")
    parser.add_argument("--out", type=Path, help=f"default: {RESULT.name} in benchmarks/results, with --quick nowhere")
    given = parser.parse_args(arguments)
    if given.data is None and not given.quick:
        parser.error("name Banking77's directory with --data, or try the code with --quick")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    sizes = QUICK if given.quick else WHOLE
    records = synthetic_records(BANKING77) if given.data is None else banking_records(given.data)
    with tempfile.TemporaryDirectory(prefix="sisa-bench-", dir=given.scratch) as scratch:
        if file_system(Path(scratch)) in IN_MEMORY and not given.quick:
            parser.error("a sync costs nothing in memory: name a directory on a disk with --scratch")
        out = given.out or (None if given.quick else RESULT)
        flags = [name for name in ("torch", "quick") if getattr(given, name)]
        command = " ".join(["python -m benchmarks.verify_cost --data DIR", *(f"--{name}" for name in flags)])
        _run(spread(records, sizes.records), sizes, Path(scratch), out, command, torch=given.torch)


def _run(
    records: Sequence[Record], sizes: Sizes, scratch: Path, out: Path | None, command: str, *, torch: bool
) -> None:
    document: dict[str, Any] = {
        "schema": "verify-cost/1",
        "command": command,
        "environment": environment() | {"file_system": file_system(scratch)},
        "settings": settings.recipe_values(sizes.shards, sizes.slices, 0.0),
        "trainer": "a stand-in whose weights are digests of what it saw, but for microbatches and real_training",
        "records": len(records),
    }
    started = time.monotonic()

    def keep(name: str, answer: Any) -> None:
        document[name] = answer
        document["wall_seconds_of_all"] = round(time.monotonic() - started, 1)
        print(f"{name} done after {document['wall_seconds_of_all']} s", flush=True)
        if out is not None:
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text(json.dumps(document, indent=1) + "\n")

    figures, release = provenance(records, sizes, scratch)
    keep("provenance", figures)
    keep("microbatches", microbatches(records, sizes, scratch))
    found = certificates(records, sizes, release, scratch)
    keep("certificates", [certificate.figures for certificate in found])
    keep("rounds", rounds(found, release, sizes, scratch))
    if torch:
        values = settings.recipe_values(sizes.shards, sizes.slices, 0.0)
        keep("real_training", trained(records, scratch / "real", values, None))


if __name__ == "__main__":
    main()
