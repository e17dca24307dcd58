"""The tables of ``accuracy_by_shards.py`` and ``inference_cost.py``."""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt
from typing import Any

from benchmarks.markdown import NOT_YET, holds, mib, table
from sisa.choices import AGGREGATIONS


def accuracy_by_shards(result: dict[str, Any]) -> str:
    """Each training of Banking77: what it cost, and how good its answers are."""
    lines = []
    for row in result["banking77"]:
        found = _named(row)
        alone = row["alone"]["accuracy"]
        lines.append(
            [
                _training(row["training"]),
                f"{row['passes']:,}",
                f"{row['deletion_passes']:,.0f}",
                f"{alone['mean']:.1%}" + (f" ({alone['lowest']:.1%} to {alone['highest']:.1%})" if _many(row) else ""),
                *(f"{found[how]['accuracy']:.1%}" for how in AGGREGATIONS),
                f"{found['mean']['log_loss']:.3f}",
                str(found["mean"]["passes"]),
            ]
        )
    head = [
        "training",
        "passes",
        "one deletion, passes",
        "a shard alone",
        *AGGREGATIONS,
        "log-loss of mean",
        "passes an answer",
    ]
    return table(head, lines)


def accuracy_by_shards_wanted(result: dict[str, Any]) -> str:
    """How far eight shards are from one model over everything.

    Of the shards only the plain training of the most epochs is asked, so nothing is chosen by the records that it is
    judged on; of unsharded models the best is.
    """
    rows = result["banking77"]
    eights = [row for row in plain(rows) if row["training"]["shards"] == 8]
    if not eights:
        return NOT_YET
    one = _best_unsharded(rows)
    eight = max(eights, key=_epochs)
    ours, theirs = (_named(row)["mean"]["accuracy"] for row in (eight, one))
    error = 196 * sqrt(sum(share * (1 - share) / row["held_out"] for share, row in ((ours, eight), (theirs, one))))
    lost = 100 * (theirs - ours)
    line = [
        f"mean probability of {_training(eight['training'])}, against {_training(one['training'])}, the best of these",
        "at most 2 points less",
        f"{lost:.1f} points less ({ours:.1%} against {theirs:.1%}; 95 %: {lost - error:.1f} to {lost + error:.1f})",
        holds(lost <= 2),
    ]
    return table(["question", "wanted", "measured", "holds"], [line])


def _best_unsharded(rows: list[dict[str, Any]]) -> dict[str, Any]:
    unsharded = (row for row in rows if row["training"]["shards"] == 1)
    return max(unsharded, key=lambda row: float(_named(row)["mean"]["accuracy"]))


def plain(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Trainings with nothing but shards and epochs."""
    return [
        row
        for row in rows
        if row["training"]["slices"] == 1 and not row["training"]["trunk"] and not row["training"]["values"]
    ]


def by_shards(rows: list[dict[str, Any]]) -> dict[str, list[tuple[int, float]]]:
    """Lines of accuracy over the number of shards, each at its training of the most epochs; unsharded, at the best."""
    shown = {row["training"]["shards"]: row for row in sorted(plain(rows), key=_epochs)}
    shown |= {1: _best_unsharded(plain(rows))} if 1 in shown else {}
    lines: dict[str, list[tuple[int, float]]] = {"one shard alone": [], "ensemble": [], "merged (cat)": []}
    for shards, row in sorted(shown.items()):
        found = _named(row)
        lines["one shard alone"].append((shards, row["alone"]["accuracy"]["mean"]))
        lines["ensemble"].append((shards, found["mean"]["accuracy"]))
        if "cat" in found:
            lines["merged (cat)"].append((shards, found["cat"]["accuracy"]))
    return {name: line for name, line in lines.items() if line}


def accuracy_by_shards_merges(result: dict[str, Any]) -> str:
    """Accuracy of each merge, beside the ensemble and a shard alone, of the same adapters."""
    return _merges(result["banking77"], "accuracy", "{:.1%}")


def accuracy_by_shards_memorising(result: dict[str, Any]) -> str:
    """How likely the true answers of invented authors are, which each shard learned a part of by heart."""
    return _merges(result.get("tofu", []), "answer_probability", "{:.3f}")


def inference_cost(result: dict[str, Any]) -> str:
    """Times and memory of all shards together, and of one folded model."""
    lines = []
    for base, doing, most in (("encoder", "labelling", 1.0), ("llama", "generating", 0.7)):
        found = result[base]
        together, folded, memory = found["ensemble_over_separate"], found["folded_over_base"], found["memory"]
        allowed = 1.2 * (memory["base"] + memory["adapters"] + memory["caches"])
        lines += [
            [
                f"{doing}, {found['shards']} shards in one pass, against one after the other",
                f"at most {most}x the time",
                _range(together),
                holds(together["median"] <= most),
            ],
            [
                f"{doing}, a folded model against the base",
                "at most 1.02x the time",
                _range(folded),
                holds(folded["median"] <= 1.02),
            ],
            [
                f"{doing}, memory of the ensemble",
                f"at most 1.2x one model, adapters and caches: {mib(allowed)}",
                mib(memory["ensemble"]),
                holds(memory["ensemble"] <= allowed),
            ],
        ]
    return table(["question", "wanted", "measured", "holds"], lines)


def inference_cost_by_shards(result: dict[str, Any]) -> str:
    """What a label by all shards in one pass costs, in passes of the base."""
    found = sorted(result["encoder_by_shards"].items(), key=lambda item: int(item[0]))
    return table(
        ["shards", "time of the ensemble, over the base's"], [[shards, _range(each)] for shards, each in found]
    )


def _range(ratio: Mapping[str, float]) -> str:
    return f"{ratio['median']:.2f}x ({ratio['lowest']:.2f} to {ratio['highest']:.2f})"


def _merges(rows: list[dict[str, Any]], metric: str, form: str) -> str:
    merged = [row for row in rows if any(found["kind"] == "merge" for found in row["results"])]
    if not merged:
        return NOT_YET
    names = ["a shard alone (mean)", "ensemble (mean)"]
    methods = list(dict.fromkeys(each["name"] for row in merged for each in row["results"] if each["kind"] == "merge"))
    lines = [[name] for name in names + methods]
    for row in merged:
        found = _named(row)
        cells = [row["alone"][metric]["mean"], found["mean"][metric]]
        cells += [found.get(name, {}).get(metric) for name in methods]
        for line, value in zip(lines, cells, strict=True):
            line.append("" if value is None else form.format(value))
    return table(["answered by", *(_training(row["training"]) for row in merged)], lines)


def _epochs(row: Mapping[str, Any]) -> int:
    return int(row["training"]["epochs"])


def _named(row: Mapping[str, Any]) -> dict[str, Any]:
    return {found["name"]: found for found in row["results"]}


def _many(row: Mapping[str, Any]) -> bool:
    return bool(row["training"]["shards"] > 1)


def _training(training: Mapping[str, Any]) -> str:
    words = [
        "unsharded" if training["shards"] == 1 else f"{training['shards']} shards",
        f"{training['epochs']} epochs",
    ]
    if training["slices"] > 1:
        words.append(f"{training['slices']} slices, rehearsal {training['rehearsal']:g}")
    if training["trunk"]:
        words.append("a fifth of the records in a trunk")
    words += [f"{name} {value}" for name, value in training["values"].items() if name != "lora_alpha"]
    return ", ".join(words)
