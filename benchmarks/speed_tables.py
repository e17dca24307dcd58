"""The tables of ``training_speed``; see :mod:`benchmarks.tables`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.markdown import NOT_YET, holds, mib, table

BASES = {"encoder": "MiniLM", "llama": "small Llama", "wide": "small Llama, 32,000 words", "long_llama": "Llama, 0.5B"}
RETRAINING_WANTED, LANES_WANTED = 1.7, 3.0


def training_speed(result: Mapping[str, Any]) -> str:
    """What was asked of training and retraining, and whether it holds."""
    lines = []
    for cell in result["cells"]:
        against = cell["ours_over_trainer"]
        lines.append(
            [
                f"train all 8 shards, {_cell(cell)}, records/s against Trainer",
                f"at least {cell['wanted']:g}x",
                f"{cell['limit']:.2f}x",
                f"{_ratio(against)} in {len(cell['rounds'])} rounds",
                holds(against["median"] >= cell["wanted"]),
            ]
        )
    for cell in result["cells"]:
        again = cell["retraining"]
        if again is not None:
            lines.append(
                [
                    f"retrain one shard, {_cell(cell)}, cache warm against none",
                    f"at least {RETRAINING_WANTED:g}x",
                    f"{again['limit']:.2f}x",
                    f"{_ratio(again['warm_over_none'])} in {len(again['rounds'])} rounds",
                    holds(again["warm_over_none"]["median"] >= RETRAINING_WANTED),
                ]
            )
    lines += [
        [
            f"peak memory of a process, {_cell(cell)}, against Trainer's",
            "no higher",
            "",
            f"{mib(cell['peak_bytes']['ours'])} against {mib(cell['peak_bytes']['trainer'])}",
            holds(cell["peak_bytes"]["ours"] <= cell["peak_bytes"]["trainer"]),
        ]
        for cell in result["cells"]
    ]
    return table(["question", "wanted", "by arithmetic alone", "measured", "holds"], lines)


def training_speed_sides(result: Mapping[str, Any]) -> str:
    """Records a second of every side."""
    sides = ("trainer", "trainer_1", "plain", "ours", "ours_1")
    lines = [
        [
            _cell(cell),
            f"{cell['records']}",
            *(f"{cell['records_per_second'][side]:.1f}" if side in cell["rounds"][0] else "" for side in sides),
            _ratio(cell["ours_over_plain"]),
            _ratio(cell["ours_1_over_trainer_1"]) if "ours_1_over_trainer_1" in cell else "",
        ]
        for cell in result["cells"]
    ]
    head = ["cell", "records", "Trainer, 2 threads", "Trainer, 1 thread", "plain loop, 2 threads", "ours, 2 processes"]
    return table([*head, "ours, 1 process", "ours / plain", "ours / Trainer, one core each"], lines)


def training_speed_lanes(result: Mapping[str, Any]) -> str:
    """Training and deletion for each width."""
    lanes = result["lanes"]
    lines = [
        [
            width["side"],
            f"{width['records_per_second']:.1f}",
            f"{width['tokens_per_second']:,.0f}" if width["tokens_per_second"] else "",
            _ratio(width["speed"]),
            f"{width['alone_seconds']:.2f} s" if width["alone"] else "",
            _ratio(width["alone"]) if width["alone"] else "",
            mib(width["peak_bytes"]),
        ]
        for width in lanes["widths"]
    ]
    head = ["lanes", "records/s", "tokens/s", "training, against the first line", "one shard retrained alone"]
    shown = table([*head, "its speed, against the first line", "peak memory"], lines)
    return f"{shown}\n\n{_advice(lanes['widths'])}"


def _advice(widths: Sequence[Mapping[str, Any]]) -> str:
    """Which width these figures speak for."""
    best = max((width for width in widths if width["alone"]), key=lambda width: float(width["records_per_second"]))
    cost = f"a lone retraining then has {best['alone']['median']:.2f} of the speed that it has with the fewest"
    return f"By these figures training is fastest with `lanes: {best['side']}`; {cost}."


def training_speed_levers(result: Mapping[str, Any]) -> str:
    """Each lever, time and memory, those that do not pay as well."""
    lines = []
    for lever in result.get("ablations", ()):  # measured last, if there was time
        named = [lever["lever"], BASES[lever["base"]], lever["used"]]
        if "problem" in lever:
            lines.append([*named, f"not measured: {lever['problem']}", "", "", "no"])
            continue
        found, sizes = lever["with_over_without"], lever["peak_bytes"]
        memory = f"{mib(sizes['with'])} against {mib(sizes['without'])}"
        first = "{with:.1f} s against {without:.1f} s".format(**lever["first_seconds"])
        lines.append([*named, _ratio(found), first, memory, _pays(found, sizes)])
    head = ["lever", "base", "used", "records/s, with / without", "first run, not counted", "peak memory", "pays"]
    return table(head, lines) if lines else NOT_YET


def training_speed_shares(result: Mapping[str, Any]) -> str:
    """What the time of a process goes into."""
    parts = list(result["cells"][0]["shares"])
    lines = [
        [
            _cell(cell),
            *(f"{cell['shares'][part]:.1%}" for part in parts),
            f"{1 - sum(cell['shares'].values()):.1%}",
        ]
        for cell in result["cells"]
    ]
    return table(["cell", *parts, "all else"], lines)


def training_speed_environment(result: Mapping[str, Any]) -> str:
    """Where it was measured."""
    where = result["environment"]
    runs = [run for cell in result["cells"] for found in cell["rounds"] for run in found.values()]
    loads = [run["load_average"][0] for run in runs]
    libraries = ", ".join(f"{name} {where[name]}" for name in ("torch", "transformers", "peft"))
    lines = [
        ["command", f"`{result['command']}`"],
        ["date", where["date"]],
        ["processor", f"{where['processor']}, {where['cores']} cores"],
        ["libraries", f"Python {where['python']}, {libraries}"],
        ["load average (1 minute) before a run; two cores busy are 2", f"{min(loads):.1f} to {max(loads):.1f}"],
        ["all of it", f"{result['wall_seconds_of_all'] / 60:.0f} minutes"],
    ]
    return table(["", ""], lines)


def gpu_training_speed(result: Mapping[str, Any]) -> str:
    """Lanes on a GPU."""
    lanes = result["lanes"]
    lines = [
        [
            f"{width['side']} lanes of microbatch 4, records/s against one lane, {BASES[lanes['base']]}",
            f"at least {LANES_WANTED:g}x",
            f"{_ratio(width['speed'])}; {width['tokens_per_second']:,.0f} tokens/s",
            holds(width["speed"]["median"] >= LANES_WANTED),
        ]
        for width in lanes["widths"]
        if width["side"] == "8"
    ]
    return table(["question", "wanted", "measured", "holds"], lines)


def _cell(cell: Mapping[str, Any]) -> str:
    layers = "adapters on all layers" if cell["layers"] == "all" else f"adapters on the {cell['layers']} layers"
    return f"{BASES[cell['base']]}, {layers.replace('-', ' ')}, {cell['epochs']} epoch{'s' * (cell['epochs'] > 1)}"


def _ratio(found: Mapping[str, float]) -> str:
    return f"{found['median']:.2f}x ({found['lowest']:.2f} to {found['highest']:.2f})"


def _pays(found: Mapping[str, float], sizes: Mapping[str, int]) -> str:
    """In what: a median of time, or a tenth of memory."""
    gains: Sequence[str] = [
        *(["time"] if found["median"] > 1 else []),
        *(["memory"] if sizes["with"] < 0.9 * sizes["without"] else []),
    ]
    return " and ".join(gains) or "no"
