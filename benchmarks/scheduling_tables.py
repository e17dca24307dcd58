"""The tables of ``scheduler_simulation`` and ``executor_throughput``; see :mod:`benchmarks.tables`."""

from __future__ import annotations

from typing import Any

from benchmarks.markdown import holds, hours, mib, table

GIB = 2**30


def scheduler_simulation(result: dict[str, Any]) -> str:
    """What was asked of the driver, and whether it holds; the worst of all scenarios."""
    scenarios = [*result["trainings"], *result["queues"]]
    slowest = max(scenarios, key=_driver)
    largest = max(scenario["peak_bytes"] for scenario in scenarios)
    late = min(queue["deadlines_met"] for queue in result["queues"])
    planned, records = result["planning"], f"{result['scale']['records']:,}"
    parts = ", ".join(f"{part} {spent:.3f}" for part, spent in slowest["driver_ms_per_step"].items())
    lines = [
        [
            f"driver work a step, worst of {len(scenarios)} scenarios",
            "under 1 ms",
            f"{_driver(slowest):.2f} ms of processor time ({_name(slowest)}: {parts})",
            holds(_driver(slowest) < 1),
        ],
        ["driver memory, the same", "under 1 GiB", f"{mib(largest)} without records", holds(largest < GIB)],
        ["requests completed within the deadline, worst policy", "all", f"{late:.2%}", holds(late == 1)],
        [
            f"driver memory with the plan of {records} records",
            "under 1 GiB",
            f"{planned['bytes_for_all'] / GIB:.1f} GiB (in proportion, from {planned['records']:,} records)",
            holds(planned["bytes_for_all"] + largest < GIB),
        ],
    ]
    return table(["question", "wanted", "simulated", "holds"], lines)


def scheduler_simulation_trainings(result: dict[str, Any]) -> str:
    """First trainings against the lower bound."""
    lines = [
        [
            f"{training['rehearsal']:g}",
            f"{training['deaths_in_steps']} in mid-step" if training["dying"] else "never",
            hours(training["bound_hours"]),
            hours(training["makespan_hours"]),
            f"{training['ratio']:.3f}",
            f"{training['lost_passes'] / training['passes']:.3%}",
            f"{training['turns']}",
        ]
        for training in result["trainings"]
    ]
    head = ["rehearsal", "workers die", "lower bound", "makespan", "ratio", "work lost", "turns"]
    return table(head, lines)


def scheduler_simulation_queues(result: dict[str, Any]) -> str:
    """Each policy over each stream: latencies, and what a request costs."""
    lines = [
        [
            f"{queue['rehearsal']:g}",
            queue["stream"],
            queue["policy"],
            *(hours(queue["latency_hours"][name]) for name in ("p50", "p90", "p99", "max")),
            f"{queue['deadlines_met']:.2%}",
            f"{queue['passes_per_request']:,.0f}",
            f"{1 - queue['passes_per_request'] / queue['passes_per_request_alone']:.0%}",
            f"{queue['chains']:,} in {queue['turns']:,}",
            f"{queue['workers_busy']:.1%}",
            f"{queue['held_back'] / queue['requests']:.1%}",
        ]
        for queue in result["queues"]
    ]
    head = ["rehearsal", "stream", "policy", "p50", "p90", "p99", "longest", "in time"]
    head += ["passes a request", "saved", "retrainings in turns", "workers busy", "held back"]
    return table(head, lines)


def scheduler_simulation_environment(result: dict[str, Any]) -> str:
    """What was simulated, and where."""
    where, scale, planned = result["environment"], result["scale"], result["planning"]
    models = {training["rehearsal"]: training["model"] for training in result["trainings"] if training["dying"]}
    rates = ", ".join(f"{model['rate']:.1f} with rehearsal {rehearsal}" for rehearsal, model in models.items())
    model = models[0]
    requests = {queue["stream"]: queue["requests"] for queue in result["queues"]}
    loads = [scenario["load_average"][0] for part in ("trainings", "queues") for scenario in result[part]]
    lines = [
        ["command", f"`{result['command']}`"],
        [
            "workspace",
            f"{scale['records']:,} records, {scale['shards']:,} shards x {scale['slices']} slices, one epoch",
        ],
        [
            "requests",
            ", ".join(f"{count:,} {stream}" for stream, count in requests.items()) + f" in {scale['days']} days",
        ],
        ["a turn is looked for", f"every {scale['interval'] / 60:g} minutes"],
        ["records a second and worker", rates],
        ["a worker's start, before its first step of a turn", f"{model['start']:.1f} s"],
        [
            f"each of {scale['workers']} workers",
            f"dies once in {model['life'] / 3600:g} h, is away for {model['absence'] / 60:g} minutes (means)",
        ],
        ["a step ends with an error", f"once in {1 / model['errors']:,.0f}"],
        [
            f"not simulated: one plan of {scale['records']:,} records",
            f"{planned['core_seconds_for_all']:.0f} core-seconds (in proportion, from {planned['records']:,} records)",
        ],
        ["date", where["date"]],
        ["processor", f"{where['processor']}, {where['cores']} cores, Python {where['python']}"],
        ["load average (1 minute) after the scenarios", f"{min(loads):.1f} to {max(loads):.1f}"],
    ]
    return table(["", ""], lines)


def executor_throughput(result: dict[str, Any]) -> str:
    """Ray against fewer workers and against none, and what the workers loaded and made."""
    runs = [figures for found in result["rounds"] for figures in found.values()]
    loads = [max(figures["load_average"][0] for figures in found.values()) for found in result["rounds"]]
    loaded, workers = ([figures[name] for figures in runs] for name in ("base_loads", "processes"))
    lines = [
        _ratio(result, "2 Ray workers against 1, records a second", "ray_2", "ray_1", 1.7),
        _ratio(result, "1 Ray worker against inline, records a second", "ray_1", "inline", 0.9),
        [
            "base model loads",
            "one for each worker",
            f"{sum(loaded)} by {sum(workers)} workers",
            holds(loaded == workers),
        ],
        ["tensors of all runs", "equal, bit for bit", _equal(result), holds(result["same_tensors"])],
        ["load average (1 minute) before a run", "nothing else running", f"{min(loads):.1f} to {max(loads):.1f}", ""],
    ]
    return table(["question", "wanted", "measured", "holds"], lines)


def _ratio(result: dict[str, Any], question: str, one: str, other: str, least: float) -> list[str]:
    found = result[f"{one}_over_{other}"]
    best = f", at most {result['most_with_2_workers']:.2f}x with these shards" if one == "ray_2" else ""
    rounds = len(result["rounds"])
    measured = f"{found['median']:.2f}x ({found['lowest']:.2f} to {found['highest']:.2f} in {rounds} rounds{best})"
    return [question, f"at least {least}x", measured, holds(found["median"] >= least)]


def _equal(result: dict[str, Any]) -> str:
    return "equal" if result["same_tensors"] else "not equal"


def _driver(scenario: dict[str, Any]) -> float:
    return float(sum(scenario["driver_ms_per_step"].values()))


def _name(scenario: dict[str, Any]) -> str:
    what = f"{scenario['stream']}, {scenario['policy']}" if "policy" in scenario else "first training"
    return f"{what}, rehearsal {scenario['rehearsal']:g}"
