"""The ways to merge shards, and the settings of each: a table without arithmetic.

``cat`` and ``svd`` are ours and end in an adapter. The rest is mergekit's (0.1.5) on full weights. Where its
default would make a method another one, we set what its authors or mergekit's examples use:

| method | of ours, where mergekit has another | paper |
| --- | --- | --- |
| ``linear``, ``task_arithmetic`` | | arXiv 2203.05482, 2212.04089 |
| ``ties`` | ``density`` 0.5 (1.0 drops nothing) | 2306.01708 |
| ``dare_linear``, ``dare_ties`` | ``density`` 0.5 (1.0 drops nothing) | 2311.03099 |
| ``della`` | ``density`` 0.5 (1.0 drops nothing) | 2406.11617 |
| ``model_stock`` | | 2403.19522 |
| ``breadcrumbs`` | ``density`` 0.9 (1.0 drops nothing) | 2312.06795 |
| ``sce`` | | 2408.07990 |
| ``karcher`` | | 2603.04972 |

Each shard's weight is its share (1/K, or by records); ``normalize`` divides by the weights that took part,
which turns a sum over the shards that agree into their mean.
"""

from __future__ import annotations

from typing import Any

_DROPPING: dict[str, Any] = {"normalize": False, "rescale": True, "lambda": 1.0, "density": 0.5}

# What mergekit is given beside weights.
PARAMETERS: dict[str, dict[str, Any]] = {
    "linear": {"normalize": True},
    "task_arithmetic": {"normalize": False, "lambda": 1.0},
    "ties": {"normalize": True, "rescale": False, "lambda": 1.0, "density": 0.5},
    "dare_linear": _DROPPING,
    "dare_ties": _DROPPING,
    "della": _DROPPING | {"normalize": True, "epsilon": 0.15},
    "model_stock": {"filter_wise": False},
    "breadcrumbs": {"normalize": False, "rescale": False, "lambda": 1.0, "density": 0.9, "gamma": 0.01},
    "sce": {"select_topk": 1.0},
    "karcher": {"max_iter": 10, "tol": 1e-5},
}
ADAPTER_METHODS = ("cat", "svd")
METHODS: tuple[str, ...] = (*ADAPTER_METHODS, *PARAMETERS)

# Draw from torch's generator.
RANDOM = frozenset({"dare_linear", "dare_ties", "della"})
# Have no weights: every shard counts alike, or as its own numbers say.
UNWEIGHTED = frozenset({"model_stock", "sce", "karcher"})
# Average weights, without looking at what the base had.
BASELESS = frozenset({"linear", "karcher"})
# Shards that a method needs, where one is not enough.
LEAST = {"model_stock": 2}
