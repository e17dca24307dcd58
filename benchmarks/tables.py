"""Write the committed results into the documents: ``python -m benchmarks.tables [--check]``.

A table stands between ``<!-- table:NAME -->`` and ``<!-- /table:NAME -->`` and is never edited by hand.
Its name begins with that of its result.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.accuracy_tables import (
    accuracy_by_shards,
    accuracy_by_shards_memorising,
    accuracy_by_shards_merges,
    accuracy_by_shards_wanted,
    inference_cost,
    inference_cost_by_shards,
)
from benchmarks.leakage_tables import leakage, leakage_environment
from benchmarks.markdown import NOT_YET, holds, mib, table
from benchmarks.provenance import PARTS
from benchmarks.scheduling_tables import (
    executor_throughput,
    scheduler_simulation,
    scheduler_simulation_environment,
    scheduler_simulation_queues,
    scheduler_simulation_trainings,
)
from benchmarks.speed_tables import (
    gpu_training_speed,
    training_speed,
    training_speed_environment,
    training_speed_lanes,
    training_speed_levers,
    training_speed_shares,
    training_speed_sides,
)
from benchmarks.startup_tables import startup

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
DOCUMENTS = ("README.md", "docs/benchmarks.md", "docs/merging.md", "docs/threat-model.md")


def deletion_cost(result: dict[str, Any]) -> str:
    """What was asked, what was measured, and whether it holds; one line each."""
    lines = []
    for counted in result["passes"]:
        wanted = counted["formula"]
        deviation = counted["largest_deviation"]
        lines.append(
            [
                f"one deletion, sample passes, rehearsal {counted['rehearsal']:g}",
                f"{wanted:.1f}x less than full retraining, within 5 %",
                (
                    f"{counted['ratio']:.2f}x ({len(counted['placements'])} placement keys, "
                    f"{counted['ratio_lowest']:.2f} to {counted['ratio_highest']:.2f})"
                ),
                holds(deviation <= 0.05),
            ]
        )
    for timed in result["core_seconds"]:
        least = 0.8 * timed["formula"]
        lines.append(
            [
                (
                    f"one deletion, core-seconds, rehearsal {timed['rehearsal']:g} "
                    f"({timed['records']:,} records, {len(timed['deletions'])} deletions)"
                ),
                f"at least {least:.1f}x less (0.8 of {timed['formula']:.1f}x)",
                (
                    f"{timed['core_second_ratio']:.2f}x (their passes {timed['pass_ratio']:.2f}x, "
                    f"wall-clock {timed['wall_second_ratio']:.2f}x)"
                ),
                holds(timed["core_second_ratio"] >= least),
            ]
        )
    rates, sizes = result["throughput"], result["memory"]
    lines.append(
        [
            "training, records per core-second, against a plain transformers + PEFT loop",
            "at least 1.0 of it",
            (
                f"{rates['ratio']:.3f} ({rates['ratio_lowest']:.3f} to {rates['ratio_highest']:.3f} in "
                f"{len(rates['pairs'])} pairs; {rates['ours']:.1f} against {rates['plain']:.1f})"
            ),
            holds(rates["ratio"] >= 1),
        ]
    )
    for name, what in (("step", "a process with our step alone"), ("ray", "a Ray worker process")):
        lines.append(
            [
                f"peak memory, {what}, against that loop's process",
                "at most 1.3 of it",
                (
                    f"{sizes[f'ratio_{name}']:.3f} ({mib(sizes['peak_bytes'][name])} against "
                    f"{mib(sizes['peak_bytes']['plain'])})"
                ),
                holds(sizes[f"ratio_{name}"] <= 1.3),
            ]
        )
    return table(["question", "wanted", "measured", "holds"], lines)


def deletion_cost_details(result: dict[str, Any]) -> str:
    """Each deletion that was really made, and what is paid apart from it."""
    lines = []
    for timed in result["core_seconds"]:
        rehearsal = f"{timed['rehearsal']:g}"
        for name, figures in [
            ("train everything", timed["full"]),
            *((f"delete from shard {each['shard']}, slice {each['slice']}", each) for each in timed["deletions"]),
        ]:
            lines.append(
                [
                    rehearsal,
                    name,
                    f"{figures['passes']:,}",
                    f"{figures['core_seconds']:.1f}",
                    f"{figures['core_seconds'] - figures['core_seconds_in_steps']:.1f}",
                    f"{figures['wall_seconds']:.1f}",
                ]
            )
    return table(
        ["rehearsal", "what", "sample passes", "core-seconds", "of these outside training steps", "wall seconds"], lines
    )


def deletion_cost_environment(result: dict[str, Any]) -> str:
    """Where it was measured, and the figures that explain the others."""
    where = result["environment"]
    starts = {
        kind: [run["core_seconds_before_training"] for run in result["memory"]["processes"] if run["what"] == kind]
        for kind in ("step", "plain")
    }
    loads = [pair["load_average"][0] for pair in result["throughput"]["pairs"]]
    loads += [timed["load_average_at_end"][0] for timed in result["core_seconds"]]
    single = {f"{counted['rehearsal']:g}": counted for counted in result["passes"]}
    lines = [
        ["command", f"`{result['command']}`"],
        ["date", where["date"]],
        ["processor", f"{where['processor']}, {where['cores']} cores, {where['cpu_capability']}"],
        ["threads per process", str(result["settings"]["threads"])],
        ["load average (1 minute) while measuring", f"{min(loads):.1f} to {max(loads):.1f}"],
        [
            "libraries",
            (
                f"Python {where['python']}, torch {where['torch']}, transformers {where['transformers']}, "
                f"peft {where['peft']}"
            ),
        ],
        [
            "start-up, not in the figures above: imports and loading the base",
            f"{min(starts['step']):.1f} core-seconds (plain loop {min(starts['plain']):.1f})",
        ],
        [
            "one deletion against one pass of an unsharded model over all records",
            ", ".join(
                f"{counted['ratio_to_one_pass_over_all_records']:.1f}x less with rehearsal {rehearsal}"
                for rehearsal, counted in single.items()
            ),
        ],
    ]
    return table(["", ""], lines)


def verify_cost(result: dict[str, Any]) -> str:
    """What was asked, what was measured, and whether it holds; one line each."""
    rounds, training, stored = result["rounds"], result["provenance"], result["microbatches"]
    one = max((each for each in rounds["verify"] if each["tags"] == 1), key=lambda each: int(each["bytes"]))
    few, many = (run["microbatches"] for run in stored["trainings"])
    lines = [
        [
            "verify V0 to V2, one deleted record, in a running process",
            "under 100 ms",
            _times(one, 1000, "ms"),
            holds(one["wall_seconds"]["median"] < 0.1),
        ],
        [
            "certificate file, one deleted record",
            "at most 160 kB",
            f"{one['bytes'] / 1000:.1f} kB",
            holds(one["bytes"] <= 160_000),
        ],
        [
            f"slice tree of {rounds['tree']['leaves']:,} records",
            "under 1.5 s",
            _times(rounds["tree"], 1, "s"),
            holds(rounds["tree"]["wall_seconds"]["median"] < 1.5),
        ],
    ]
    for name, what, least in (("single", "one at a time", 40), ("grouped", "ten at a time", 400)):
        rate = rounds[f"{name}_facts_per_second"]
        lines.append(
            [
                f"durable appends to the log, {what}",
                f"at least {least} facts/s",
                f"{rate['median']:.0f} facts/s ({rate['lowest']:.0f} to {rate['highest']:.0f})",
                holds(rate["median"] >= least),
            ]
        )
    lines.append(
        [
            "provenance work of a training, against 240 s",
            "under 1 % of wall-clock",
            f"{training['wall_seconds']['median'] / 240:.2%}: {_times(training, 1, 's')}",
            holds(training["wall_seconds"]["median"] < 2.4),
        ]
    )
    if "real_training" in result:
        real = result["real_training"]
        lines.append(
            [
                f"the same in a training with torch, against its {real['wall_seconds']:.0f} s",
                "under 1 % of wall-clock",
                f"{real['wall_share']:.2%}: {real['provenance']['wall_seconds']:.2f} s (core {real['core_share']:.2%})",
                holds(real["wall_share"] < 0.01),
            ]
        )
    lines.append(
        [
            "bytes stored for each microbatch",
            "0",
            f"{stored['bytes_per_microbatch']:g} (the same bytes with {few} and with {many} microbatches)",
            holds(stored["bytes_per_microbatch"] == 0),
        ]
    )
    return table(["question", "wanted", "measured", "holds"], lines)


def verify_cost_certificates(result: dict[str, Any]) -> str:
    """Each certificate that was made."""
    certificates = result["rounds"]["verify"]
    single = certificates[1]
    lines = []
    for number, each in enumerate(certificates):
        more = (each["bytes"] - single["bytes"]) / max(each["tags"] - 1, 1)
        lines.append(
            [
                f"{each['tags']}{' (of a first slice)' if number == 0 else ''}",
                f"{each['retrained']}",
                f"{each['bytes'] / 1000:.1f} kB",
                f"{more / 1000:.1f} kB" if each["tags"] > 1 else "",
                _times(each, 1000, "ms"),
            ]
        )
    return table(["deleted records", "steps trained again", "file", "for each further record", "verify"], lines)


def verify_cost_provenance(result: dict[str, Any]) -> str:
    """What the provenance work of a training consists of."""
    runs = [("stand-in", run) for run in result["provenance"]["trainings"]]
    runs += [("torch", result["real_training"])] if "real_training" in result else []
    lines = [
        [
            f"{what} ({runs[0][1]['parts'][part]['calls']:,} calls)",
            *(
                f"{run['parts'][part]['wall_seconds']:.2f} s (core {run['parts'][part]['core_seconds']:.2f})"
                for _, run in runs
            ),
        ]
        for part, what in PARTS.items()
    ]
    lines.append(["load average (1 minute) at the end", *(f"{run['load_average_at_end'][0]:.1f}" for _, run in runs)])
    return table(["part", *(name for name, _ in runs)], lines)


def verify_cost_environment(result: dict[str, Any]) -> str:
    """Where it was measured, and the figures that explain the others."""
    where, rounds, kept = result["environment"], result["rounds"], result["provenance"]["trainings"][-1]
    loads = [each["load_average"][0] for each in rounds["rounds"]]
    process, synced = rounds["process_wall_seconds"], rounds["synced_files_per_second"]
    lines = [
        ["command", f"`{result['command']}`"],
        ["date", where["date"]],
        ["processor", f"{where['processor']}, {where['cores']} cores"],
        ["file system of workspaces and log", where["file_system"]],
        ["load average (1 minute) in the rounds", f"{min(loads):.1f} to {max(loads):.1f}"],
        [
            "all of `sisa verify`, a new process",
            f"{process['median']:.2f} s ({process['lowest']:.2f} to {process['highest']:.2f})",
        ],
        [
            "for scale: files of 4 KiB written and synced, their directory too",
            f"{synced['median']:.0f} a second ({synced['lowest']:.0f} to {synced['highest']:.0f})",
        ],
        ["a fact that was appended", f"{rounds['bytes_of_fact']:,} bytes"],
        [
            f"stored for the provenance of {kept['records']:,} records and {kept['steps']} steps",
            f"{kept['bytes']['ledger_file'] / 1000:.0f} kB of ledger, {kept['bytes']['lists'] / 1000:.0f} kB of lists",
        ],
    ]
    return table(["", ""], lines)


def coalescing(result: dict[str, Any]) -> str:
    """What pending deletions cost together; a line for each number of them."""
    lines = [
        [
            f"{counted['requests']}",
            f"{counted['rehearsal']:g}",
            f"{counted['formula_passes']:,.0f}, within 5 %",
            f"{counted['mean_passes']:,.0f} ({counted['deviation']:+.1%}, mean of {len(counted['turns'])} draws)",
            f"at most {min(counted['requests'], result['shards'])}: {counted['most_shards']}",
            f"{counted['saved_against_one_by_one']:.0%}",
            holds(
                abs(counted["deviation"]) <= 0.05
                and counted["most_shards"] <= min(counted["requests"], result["shards"])
            ),
        ]
        for counted in result["counts"]
    ]
    head = ["requests", "rehearsal", "passes by the formula", "counted", "retrainings", "saved", "holds"]
    return table(head, lines)


def acceptance(result: dict[str, Any]) -> str:
    """From acceptance to a manifest without the record; a line for each workspace."""
    lines = [
        [
            f"{run['records']:,}",
            f"{run['shards']} x {run['slices']}",
            "p99 under 100 ms" if run["records"] == 1_000_000 else "",
            _milliseconds(run["open"]),
            f"{run['process']['p50']:.2f} s ({run['process']['count']} times)",
            f"{run['index_bytes'] / 1e6:.1f} MB ({run['vault_bytes'] / 1e6:.0f} MB)",
            f"{max(load[0] for load in run['load_average']):.1f}",
            holds(run["open"]["p99"] < 0.1),
        ]
        for run in result["runs"]
    ]
    head = [
        "records", "shards x slices", "wanted", "in an open process", "a new process, median", "index (vault)", "load",
        "under 100 ms",
    ]  # fmt: skip
    return table(head, lines)


def _milliseconds(figures: Mapping[str, Any]) -> str:
    shown = [f"{name} {figures[name] * 1000:.1f}" for name in ("p50", "p90", "p99", "longest")]
    return f"{', '.join(shown)} ms ({figures['count']} times)"


TABLES: dict[str, Callable[[dict[str, Any]], str]] = {
    "deletion_cost": deletion_cost,
    "deletion_cost_details": deletion_cost_details,
    "deletion_cost_environment": deletion_cost_environment,
    "acceptance": acceptance,
    "accuracy_by_shards": accuracy_by_shards,
    "accuracy_by_shards_memorising": accuracy_by_shards_memorising,
    "accuracy_by_shards_merges": accuracy_by_shards_merges,
    "accuracy_by_shards_wanted": accuracy_by_shards_wanted,
    "coalescing": coalescing,
    "executor_throughput": executor_throughput,
    "gpu_training_speed": gpu_training_speed,
    "inference_cost": inference_cost,
    "inference_cost_by_shards": inference_cost_by_shards,
    "leakage": leakage,
    "leakage_environment": leakage_environment,
    "scheduler_simulation": scheduler_simulation,
    "scheduler_simulation_trainings": scheduler_simulation_trainings,
    "scheduler_simulation_queues": scheduler_simulation_queues,
    "scheduler_simulation_environment": scheduler_simulation_environment,
    "startup": startup,
    "training_speed": training_speed,
    "training_speed_environment": training_speed_environment,
    "training_speed_lanes": training_speed_lanes,
    "training_speed_levers": training_speed_levers,
    "training_speed_shares": training_speed_shares,
    "training_speed_sides": training_speed_sides,
    "verify_cost": verify_cost,
    "verify_cost_certificates": verify_cost_certificates,
    "verify_cost_provenance": verify_cost_provenance,
    "verify_cost_environment": verify_cost_environment,
}


def _times(figures: Mapping[str, Any], factor: int, unit: str) -> str:
    """Wall-clock with its range, and core-seconds, in the unit of which a second has ``factor``."""
    wall, core = figures["wall_seconds"], figures["core_seconds"]
    shown = [f"{value * factor:.3g}" for value in (wall["median"], wall["lowest"], wall["highest"], core["median"])]
    return f"{shown[0]} {unit} ({shown[1]} to {shown[2]}; core {shown[3]})"


def filled(text: str) -> str:
    """The document with each of its tables made anew from the results; one without a result says so.

    Raises:
        ValueError: if a table's opening marker has no closing one.
    """
    results = {file.stem: json.loads(file.read_text()) for file in RESULTS.glob("*.json")}
    for name, render in TABLES.items():
        opening, closing = f"<!-- table:{name} -->", f"<!-- /table:{name} -->"
        if opening not in text:
            continue
        before, _, rest = text.partition(opening)
        _, found, after = rest.partition(closing)
        if not found:
            raise ValueError(f"{opening} without {closing}")
        result = next((result for stem, result in results.items() if name.startswith(stem)), None)
        content = NOT_YET if result is None else render(result)
        text = f"{before}{opening}\n{content}\n{closing}{after}"
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a document is out of date")
    check = parser.parse_args().check
    stale = [name for name in DOCUMENTS if (text := (ROOT / name).read_text()) != filled(text)]
    for name in stale:
        if not check:
            (ROOT / name).write_text(filled((ROOT / name).read_text()))
        print(f"{name} {'is out of date' if check else 'written'}")
    sys.exit(1 if check and stale else 0)


if __name__ == "__main__":
    main()
