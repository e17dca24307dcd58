"""The policy: whose turn it is, as a pure function of what waits and the time."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestration import batching
from orchestration.batching import Pending, Policy, Rule, cost, due

START = datetime(2026, 11, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)


def policy(rule: Rule, *, quota: int | None = None, cost_cap: int | None = None) -> Policy:
    return Policy(rule, window=DAY, deadline=30 * DAY, margin=3 * DAY, saving=0.5, quota=quota, cost_cap=cost_cap)


def asked(name: str, after: timedelta = timedelta(), requester: str | None = None, **passes: int) -> Pending:
    return Pending(name, START + after, {int(shard[1:]): count for shard, count in passes.items()}, requester)


def names(requests: tuple[Pending, ...]) -> list[str]:
    return [request.request_id for request in requests]


def test_at_once_takes_everything_oldest_first() -> None:
    pending = [asked("b", HOUR, s1=5), asked("a", s0=5)]
    assert names(due(pending, policy("now"), START + HOUR)) == ["a", "b"]


def test_a_window_waits_from_the_oldest_on_and_then_takes_all() -> None:
    pending = [asked("a", s0=5), asked("b", 23 * HOUR, s1=5)]
    assert names(due(pending, policy("window"), START + 23 * HOUR)) == []
    assert names(due(pending, policy("window"), START + DAY)) == ["a", "b"]


@pytest.mark.parametrize("rule", ["now", "window", "deadline", "cost"])
def test_nobody_is_begun_later_than_the_margin_before_the_deadline(rule: Rule) -> None:
    pending = [asked("a", s0=5)]
    assert names(due(pending, policy(rule), START + 27 * DAY)) == ["a"]


def test_who_hits_no_other_shard_comes_along_and_nobody_else() -> None:
    pending = [asked("a", s0=5, s1=5), asked("b", 9 * DAY, s1=9), asked("c", 9 * DAY, s1=9, s2=1), asked("d", 9 * DAY)]
    assert names(due(pending, policy("deadline"), START + 27 * DAY)) == ["a", "b", "d"]
    assert names(due(pending, policy("deadline"), START + 26 * DAY)) == []


def test_cost_waits_until_working_together_saves_half() -> None:
    one, two, three = asked("a", s0=10), asked("b", HOUR, s0=8), asked("c", 2 * HOUR, s0=9)
    assert cost([one, two, three]) == 10
    assert names(due([one, two], policy("cost"), START + DAY)) == []
    assert names(due([one, two, three], policy("cost"), START + DAY)) == ["a", "b", "c"]


def test_beyond_the_quota_a_requester_waits_for_the_deadline() -> None:
    flood = [asked(f"x{n}", n * HOUR, "mallory", **{f"s{n}": 5}) for n in range(5)]
    other = asked("y", HOUR, "anna", s9=5)
    rules = policy("now", quota=2)
    assert names(due([*flood, other], rules, START + DAY)) == ["x0", "x1", "y"]
    assert names(due(flood[2:], rules, START + DAY, asked=flood)) == [], "what was worked off counts too"
    assert names(due(flood[2:], rules, START + 28 * DAY, asked=flood)) == ["x2", "x3", "x4"]
    late = asked("z", 40 * DAY, "mallory", s0=5)
    assert names(due([late], rules, START + 41 * DAY, asked=flood)) == ["z"], "a month later they may ask again"


def test_beyond_the_cost_cap_a_requester_waits_for_the_deadline() -> None:
    """A sequence of few requests, each in the dearest place, runs up a bill too."""
    flood = [asked(f"x{n}", n * HOUR, "mallory", **{f"s{n}": 40, f"s{n + 10}": 10}) for n in range(4)]
    other = asked("y", HOUR, "anna", s9=100)
    rules = policy("now", quota=9, cost_cap=100)
    assert names(due([*flood, other], rules, START + DAY)) == ["x0", "x1", "y"], "up to the cap, and nobody else's"
    assert names(due(flood[2:], rules, START + DAY, asked=flood)) == [], "what was worked off counts too"
    assert names(due(flood[2:], rules, START + 28 * DAY, asked=flood)) == ["x2", "x3"]
    late = asked("z", 40 * DAY, "mallory", s0=100)
    assert names(due([late], rules, START + 41 * DAY, asked=flood)) == ["z"], "a month later they may ask again"
    assert names(due([asked("w", requester="mallory", s0=101)], rules, START)) == []


@given(
    st.lists(
        st.tuples(st.integers(0, 1500), st.sampled_from(["anna", "mallory", None]), st.integers(0, 50)), max_size=12
    ),
    st.integers(1, 4),
    st.integers(0, 120),
)
def test_within_any_30_days_what_is_begun_early_for_one_requester_keeps_to_both_limits(
    drawn: list[tuple[int, str | None, int]], quota: int, cap: int
) -> None:
    pending = [asked(f"r{n}", at * HOUR, who, **{f"s{n}": cost}) for n, (at, who, cost) in enumerate(drawn)]
    begun = due(pending, policy("now", quota=quota, cost_cap=cap), START)
    assert [one for one in pending if one.requester is None and one not in begun] == []
    for first in begun:
        mine = [
            one
            for one in begun
            if one.requester == first.requester is not None
            and first.accepted <= one.accepted < first.accepted + 30 * DAY
        ]
        assert (len(mine) <= quota and sum(one.alone for one in mine) <= cap) or first.requester is None


@given(
    st.lists(
        st.tuples(st.integers(0, 2200), st.sampled_from(["anna", "mallory", "eve", None]), st.booleans()), max_size=14
    ),
    st.integers(1, 3),
    st.integers(1, 30),
)
def test_limits_that_look_at_those_who_wait_only_hold_back_whom_a_look_at_all_would(
    drawn: list[tuple[int, str | None, bool]], quota: int, cap: int
) -> None:
    everything = [asked(f"r{n}", at * HOUR, who, s0=7) for n, (at, who, _) in enumerate(drawn)]
    pending = [one for one, (_, _, waits) in zip(everything, drawn, strict=True) if waits]
    rules = policy("now", quota=quota, cost_cap=cap)
    beyond = batching._beyond_limits(everything, rules)
    wanted = [one for one in pending if one.request_id not in beyond]
    assert list(batching._within_limits(pending, everything, rules)) == wanted


def test_a_request_without_a_name_counts_against_nobody() -> None:
    pending = [asked(f"x{n}", s0=5) for n in range(5)]
    assert len(due(pending, policy("now", quota=1, cost_cap=1), START)) == 5


@given(
    st.lists(
        st.tuples(st.integers(0, 900), st.dictionaries(st.integers(0, 5), st.integers(1, 50), max_size=3)), max_size=12
    ),
    st.sampled_from(["now", "window", "deadline", "cost"]),
    st.integers(0, 2000),
)
def test_whatever_waits_no_deadline_is_missed_and_company_costs_nothing_more(
    drawn: list[tuple[int, dict[int, int]]], rule: Rule, hours: int
) -> None:
    pending = [Pending(f"r{n}", START + at * HOUR, passes) for n, (at, passes) in enumerate(drawn)]
    rules, now = policy(rule), START + hours * HOUR
    chosen = due(pending, rules, now)
    urgent = {one.request_id for one in pending if one.accepted + rules.deadline - rules.margin <= now}
    assert urgent <= set(names(chosen))
    assert list(chosen) == sorted(chosen, key=lambda one: (one.accepted, one.request_id))
    left = [one for one in pending if one not in chosen]
    hit = {shard for one in chosen for shard in one.passes}
    assert not chosen or all(one.passes.keys() - hit for one in left)
    assert cost(chosen) <= sum(sum(one.passes.values()) for one in chosen)
