"""The simulated cluster: what it does with the real schedule, dispatch and batching, and that its figures repeat."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from datetime import timedelta
from math import inf
from typing import Any
from unittest import mock

import pytest

from benchmarks import scheduler_simulation as simulation
from benchmarks.scheduler_simulation import QUICK, STREAMS, WHOLE, Queue, Request, percentile, stream, work_off
from benchmarks.simulated_cluster import CostModel, Fleet, Holdings, Meter, Turn
from orchestration.batching import Policy, Rule
from orchestration.schedule import schedule

STEADY = CostModel(rate=1, start=0, life=inf, absence=0, errors=0)
SIMULATED = ("driver_ms_per_step", "peak_bytes", "load_average")  # the rest is a function of the seed
DAY = timedelta(days=1)


def holdings(records: int = 400, shards: int = 10, slices: int = 4, rehearsal: int = 0) -> Holdings:
    return Holdings(records, shards, slices, rehearsal, "test")


def perform(held: Holdings, model: CostModel, workers: int = 3, now: float = 0.0) -> Turn:
    turn = Turn(schedule(held.plan(), held.have), Fleet(workers, model, "test"), held, Meter())
    turn.run(now, lambda _: None)
    return turn


def policy(rule: Rule) -> Policy:
    return Policy(rule, window=DAY, deadline=30 * DAY, margin=3 * DAY, saving=0.5, quota=None)


def queue(requests: list[Request], rule: Rule, interval: float = 10) -> Queue:
    scale = replace(QUICK, records=400, shards=10, slices=4, interval=interval)
    with mock.patch.object(simulation, "cost_model", return_value=STEADY):
        worked = Queue(scale, requests, policy(rule), 0)
    worked.run()
    return worked


@pytest.mark.parametrize("rehearsal", [0, 1])
def test_holdings_have_every_record_once_and_rehearsal_1_repeats_all_earlier_ones(rehearsal: int) -> None:
    held = holdings(rehearsal=rehearsal)
    assert sum(map(sum, held.sizes)) == 400
    for chain, sizes in zip(held.plan().chains, held.sizes, strict=True):
        members = [len(step.members) for step in chain.steps]
        assert members == (sizes if not rehearsal else [sum(sizes[: at + 1]) for at in range(4)])


def test_a_deletion_changes_the_keys_of_its_slice_and_all_later_ones_and_no_other() -> None:
    held = holdings()
    before = held.plan().steps()
    for step in before.values():
        held.store(step)
    held.delete(3, 1)
    assert held.plan().steps().keys() == before.keys(), "the plan is made anew at the next turn"
    held.refresh()
    gone = {(step.link.shard, step.link.slice) for key, step in before.items() if key not in held.plan().steps()}
    assert gone == {(3, 1), (3, 2), (3, 3)}
    assert held.have.keys() == before.keys() & held.plan().steps().keys()
    (chain,) = schedule(held.plan(), held.have)
    assert (chain.shard, len(chain.steps)) == (3, 3)
    assert chain.cost == held.passes_from(3, 1)


@pytest.mark.parametrize("workers", [1, 3, 20])
def test_a_training_takes_no_less_than_the_bound_and_no_more_than_greedy_hand_outs_can(workers: int) -> None:
    held = holdings()
    chains = schedule(held.plan(), {})
    work, longest = sum(chain.cost for chain in chains), max(chain.cost for chain in chains)
    turn = perform(held, STEADY, workers)
    assert max(longest, work / workers) <= turn.end <= work / workers + longest
    assert (turn.steps, turn.passes, turn.lost, turn.deaths) == (40, 400, 0, 0)
    assert held.have.keys() == held.plan().steps().keys()


def test_workers_that_die_and_steps_that_fail_cost_time_and_lose_nothing() -> None:
    held = holdings()
    model = CostModel(rate=1, start=1, life=60, absence=20, errors=0.02)
    turns: list[Turn] = []
    while schedule(held.plan(), held.have):
        turns.append(perform(held, model, now=turns[-1].end if turns else 0.0))
    assert sum(turn.deaths for turn in turns) > 3
    assert any(turn.failed for turn in turns)
    assert sum(turn.steps for turn in turns) == 40, "no step was trained twice"
    assert sum(turn.lost for turn in turns) > 0
    assert turns[-1].end > perform(holdings(), STEADY).end
    assert held.have.keys() == held.plan().steps().keys()


@pytest.mark.parametrize(("deaths", "taken_over"), [({0: 5.0}, True), ({0: 5.0, 1: 3.0}, False)])
def test_an_idle_worker_takes_over_unless_it_died_while_it_was_idle(deaths: dict[int, float], taken_over: bool) -> None:
    held = holdings(shards=1)
    fleet = Fleet(2, replace(STEADY, absence=1e6), "test")
    for worker, when in deaths.items():
        fleet.dies[worker] = when
    turn = Turn(schedule(held.plan(), {}), fleet, held, Meter())
    turn.run(0.0, lambda _: None)
    assert (turn.steps, turn.deaths, turn.lost) == (4, 1, 5)
    assert (turn.end == 400 + 5) is taken_over
    assert (turn.end > 1000) is not taken_over


def test_a_request_alone_costs_the_steps_from_its_slice_on_and_waits_for_the_next_look() -> None:
    worked = queue([Request(5, "anna", ((3, 1),))], "now")
    (turn,) = worked.turns
    cost = worked.holdings.passes_from(3, 1)
    assert (turn.chains, turn.passes, worked.alone) == (1, cost, cost)
    assert worked.latencies == pytest.approx([5 + cost])


def test_a_request_that_comes_in_mid_turn_holds_back_those_of_its_shard_and_of_no_other() -> None:
    requests = [Request(5, "a", ((3, 0),)), Request(5, "b", ((4, 0),)), Request(15, "c", ((3, 1),))]
    worked = queue(requests, "now")
    first, second = worked.turns[:2]
    assert first.failed == {3}
    assert first.passes == worked.holdings.passes_from(4, 0) + worked.holdings.sizes[3][0]
    assert worked.held_back == {"r000000"}
    assert second.passes == worked.holdings.passes_from(3, 1), "what was trained before is kept"
    assert len(worked.latencies) == 3


def test_a_request_that_comes_when_its_shard_is_trained_already_holds_back_too() -> None:
    probe = queue([], "now").holdings
    sizes = probe.sizes
    assert sizes[3][3] < sizes[4][0]
    meanwhile = 10 + (sizes[3][3] + sizes[4][0]) / 2
    requests = [Request(5, "a", ((3, 3),)), Request(5, "b", ((4, 0),)), Request(meanwhile, "c", ((3, 2),))]
    worked = queue(requests, "now")
    assert not worked.turns[0].failed
    assert worked.held_back == {"r000000"}, "as `sisa work` certifies nothing of a shard that is partly trained"
    assert worked.turns[1].passes == worked.holdings.passes_from(3, 2)


def test_a_turn_trains_the_shards_of_its_requests_and_leaves_those_of_others_alone() -> None:
    requests = [Request(5, "a", ((3, 1),)), Request(9000, "b", ((3, 1), (5, 0)))]
    worked = queue(requests, "deadline", interval=3600)
    first, second = worked.turns
    assert first.passes == worked.holdings.passes_from(3, 1)
    assert second.passes == worked.holdings.passes_from(5, 0)


def test_requests_of_one_shard_share_a_retraining_when_their_time_comes() -> None:
    requests = [Request(5, "a", ((3, 1),)), Request(500, "b", ((3, 0),)), Request(9000, "c", ((4, 2),))]
    worked = queue(requests, "deadline", interval=3600)
    first, second = worked.turns
    assert first.passes == worked.holdings.passes_from(3, 0)
    assert second.passes == worked.holdings.passes_from(4, 2)
    assert worked.latencies[0] == pytest.approx(27 * 86400 + 3600 - 5 + first.passes)
    assert max(worked.latencies) < 30 * 86400


def test_streams_are_of_one_size_and_only_one_has_bursts() -> None:
    most: dict[str, float] = {}
    for kind in STREAMS:
        requests = stream(kind, WHOLE)
        times = [request.at for request in requests]
        assert times == sorted(times)
        assert len(requests) == pytest.approx(WHOLE.days * WHOLE.requests, rel=0.02)
        most[kind] = max(Counter(at // (6 * 3600) for at in times).values())
    assert most["bursty"] > 5 * most["poisson"]
    with pytest.raises(ValueError, match="steady"):
        stream("steady", WHOLE)


@pytest.mark.parametrize("kind", STREAMS)
def test_the_longer_requests_may_wait_the_less_they_cost_and_none_waits_past_its_deadline(kind: str) -> None:
    found = {rule: work_off(QUICK, 0, kind, rule) for rule in ("now", "window", "deadline")}
    costs = [each["passes_per_request"] for each in found.values()]
    waits = [each["latency_hours"]["p50"] for each in found.values()]
    assert costs == sorted(costs, reverse=True)
    assert waits == sorted(waits)
    assert all(each["deadlines_met"] == 1 for each in found.values())
    assert {each["requests"] for each in found.values()} == {len(stream(kind, QUICK))}


def test_the_same_seed_gives_the_same_figures() -> None:
    once, again = (without_the_clock(work_off(QUICK, 1, "bursty", "cost")) for _ in range(2))
    assert once == again


def test_the_committed_first_training_is_what_the_simulation_gives() -> None:
    if not simulation.RESULT.is_file():
        pytest.skip("no result is committed")
    committed = json.loads(simulation.RESULT.read_text())
    (training,) = (one for one in committed["trainings"] if one["rehearsal"] == 0 and one["dying"])
    with mock.patch.object(simulation, "cost_model", return_value=CostModel(**training["model"])):
        again = simulation.first_training(WHOLE, 0, dying=True)
    assert without_the_clock(again) == pytest.approx(without_the_clock(training)), (
        "run `python -m benchmarks.scheduler_simulation` and `python -m benchmarks.tables`"
    )


def without_the_clock(found: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in found.items() if name not in (*SIMULATED, "model")}


def test_a_percentile_is_a_value_that_occurred() -> None:
    ordered = [1.0, 2.0, 3.0, 4.0]
    assert [percentile(ordered, share) for share in (0, 0.25, 0.5, 0.51, 0.99, 1)] == [1, 1, 2, 3, 4, 4]
