"""Pure: which pending deletions are worked off now, and with which others.

Requests that hit one shard share one retraining, from the earliest slice hit: waiting for company
saves work, and suppression does not wait. What never waits beyond its deadline is the request.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

Rule = Literal["now", "window", "deadline", "cost"]
LIMIT_PERIOD = timedelta(days=30)


@dataclass(frozen=True, slots=True)
class Pending:
    """A deletion that was accepted and not begun.

    Attributes:
        request_id: its name.
        accepted: when.
        passes: hit shard → records in the steps to be trained for it alone.
        requester: keyed reference of who asked, if it was said.
    """

    request_id: str
    accepted: datetime
    passes: Mapping[int, int]
    requester: str | None = None

    @property
    def alone(self) -> int:
        """Records in the steps to be trained for it alone, in all shards."""
        return sum(self.passes.values())


@dataclass(frozen=True, slots=True)
class Policy:
    """When pending deletions are worked off.

    Attributes:
        rule: ``now``; ``window``: once the oldest has waited for ``window``; ``deadline``: as late as may
            be; ``cost``: once working together saves ``saving`` of what each alone would cost.
        window: how long is waited for company.
        deadline: when a request must be done, after its acceptance (GDPR Art. 12(3): a month).
        margin: how long before the deadline it is begun at the latest.
        saving: share in [0, 1).
        quota: requests of one requester in 30 days; those beyond it wait for their deadline.
        cost_cap: records in the steps to be trained for one requester in 30 days, counted as if each request
            were alone; those beyond it wait too.
    """

    rule: Rule
    window: timedelta
    deadline: timedelta
    margin: timedelta
    saving: float
    quota: int | None
    cost_cap: int | None = None

    def begun_by(self, now: datetime) -> datetime:
        """What was accepted by then waits no longer, whatever the rule."""
        return now - self.deadline + self.margin


def due(
    pending: Sequence[Pending], policy: Policy, now: datetime, asked: Sequence[Pending] = ()
) -> tuple[Pending, ...]:
    """What is to be worked off now, oldest first.

    Args:
        pending: what waits.
        policy: the rule.
        now: the time.
        asked: all that was asked for, worked off or not, for the quota and the cost cap.

    Returns:
        The requests whose turn it is, and those that hit no other shard: they cost nothing more.
    """
    begun_by = policy.begun_by(now)
    urgent = [request for request in pending if request.accepted <= begun_by]
    prompt = [] if policy.rule == "deadline" else _within_limits(pending, asked, policy)
    chosen = [*urgent, *(prompt if _time_has_come(prompt, policy, now) else [])]
    if not chosen:
        return ()
    hit = frozenset(shard for request in chosen for shard in request.passes)
    company = [request for request in pending if request.passes.keys() <= hit]
    return tuple(sorted(company, key=lambda request: (request.accepted, request.request_id)))


def _time_has_come(pending: Sequence[Pending], policy: Policy, now: datetime) -> bool:
    if not pending:
        return False
    if policy.rule == "window":
        return min(request.accepted for request in pending) + policy.window <= now
    if policy.rule == "cost":
        alone = sum(request.alone for request in pending)
        return alone > 0 and 1 - cost(pending) / alone >= policy.saving
    return True


def cost(requests: Iterable[Pending]) -> int:
    """Records in the steps to be trained for all of them together: a shard once, from the earliest slice hit."""
    most: dict[int, int] = {}
    for request in requests:
        for shard, passes in request.passes.items():
            most[shard] = max(most.get(shard, 0), passes)
    return sum(most.values())


def _within_limits(pending: Sequence[Pending], asked: Sequence[Pending], policy: Policy) -> Sequence[Pending]:
    """What waits less what is beyond a limit; only who waits, and the 30 days before, is looked at."""
    if not pending or (policy.quota is None and policy.cost_cap is None):
        return pending
    who = {request.requester for request in pending} - {None}
    since = min(request.accepted for request in pending) - LIMIT_PERIOD
    counted = [request for request in asked if request.accepted > since and request.requester in who]
    patient = _beyond_limits([*counted, *pending], policy)
    return [request for request in pending if request.request_id not in patient]


def _beyond_limits(asked: Iterable[Pending], policy: Policy) -> frozenset[str]:
    """Requests by whoever asked as often, or for as much work, as the policy allows, within 30 days."""
    beyond: set[str] = set()
    recent: defaultdict[str, deque[Pending]] = defaultdict(deque)
    spent: defaultdict[str, int] = defaultdict(int)
    unique = {request.request_id: request for request in asked}
    for request in sorted(unique.values(), key=lambda request: (request.accepted, request.request_id)):
        who = request.requester
        if who is None:
            continue
        while recent[who] and recent[who][0].accepted <= request.accepted - LIMIT_PERIOD:
            spent[who] -= recent[who].popleft().alone
        recent[who].append(request)
        spent[who] += request.alone
        too_often = policy.quota is not None and len(recent[who]) > policy.quota
        if too_often or (policy.cost_cap is not None and spent[who] > policy.cost_cap):
            beyond.add(request.request_id)
    return frozenset(beyond)
