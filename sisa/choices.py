"""What there is to choose from, for options and types: lists alone, so that a command line needs nothing heavy."""

from __future__ import annotations

from typing import Literal, get_args

Aggregation = Literal["mean", "logit", "vote", "weighted"]

AGGREGATIONS: tuple[str, ...] = get_args(Aggregation)
WEIGHTINGS = ("equal", "records")  # of the shards in a merge
