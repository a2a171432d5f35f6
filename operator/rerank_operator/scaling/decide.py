"""How many replicas, and how many warm pods, a Reranker should have now, and why. Pure: the clock is passed in.

Work is counted in tokens against the capacity that workers measured. What the demand needs is computed from how fast
tokens arrive and from the backlog that has built up; then three things happen:

- warm pods follow the need at once: they are there within a second, and the pool is paid for whether they serve or not;
- own replicas rise at once to what warm pods cannot cover, and to what the arrivals have needed all the time for as
  long as a replica takes to start: what is over sooner would be over before the new replica serves;
- own replicas fall, in steps, to the most that was needed in the last while; the last one goes by idle time alone.

A number is never read from what is missing: while a gateway's figures are stale, nothing shrinks.
"""

import math
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Literal

from rerank_operator.scaling.demand import Demand, Fleet
from rerank_operator.scaling.memory import (
    Memory,
    at_latest,
    least_needed,
    most_needed,
    with_burst,
    with_need,
    with_rates,
)
from rerank_operator.scaling.need import arrival_rate, needed, own_needed
from rerank_operator.scaling.policy import Policy
from rerank_operator.scaling.schedules import floor

Reason = Literal[
    "AboveMaximum",  # fewer, at once: maxReplicas was lowered
    "BelowFloor",  # more: minReplicas or a schedule asks for them
    "NewRevision",  # more: warm pods serve the old revision until a worker has shown that it can serve the new one
    "DemandRose",  # more: the need has lasted, or warm pods cannot cover it
    "QueueWaits",  # more: requests wait and nobody knows yet what a replica can do
    "DemandUnknown",  # as many: a gateway's figures are stale
    "ReplicasStarting",  # as many: replicas start for requests that wait
    "Stabilizing",  # as many: fewer would do, but not for long enough
    "DemandFell",  # fewer
    "WaitingForIdle",  # as many: the last one, until the idle timeout
    "Idle",  # none: the idle timeout has passed, and nobody has asked since
    "WarmPodsServe",  # as many: warm pods serve what they do not
    "Steady",  # as many: it is what is needed
]

KEEP = 2.0
"""How many of its own start-up times an own replica is kept for nothing before it goes. To be wrong costs one start-up,
and without warm pods a surge that waits for it. In simulations (the fleet of tests/bench/scaling.py, tuning seeds, four
warm pods) 1 cost 2 % less at 1 % more misses, 3 cost 2 % more at 3 % fewer.
"""
SHORTEST_KEEP = 60.0
"""The same in seconds, where replicas start within seconds: one time constant of the slow rate."""
STEP_SECONDS = 10.0
"""Between two steps down, each of which takes half at most: 8 replicas become 1 in half a minute, and after each step
two time constants of the fast rate have told whether the rest is enough."""
LONGEST_START_SECONDS = 1800.0
"""A replica that has not come in so long, the startup probe's limit, does not start: unless requests wait for it, idle
time counts from then."""


@dataclass(frozen=True, slots=True)
class Decision:
    replicas: int
    """Of the own Deployment."""
    loaners: int
    """Warm pods that should serve it now: claims when more than it has or has on their way, releases when fewer."""
    reason: Reason
    message: str
    """One sentence with the figures."""
    memory: Memory
    again: float
    """Seconds until it should be asked again even if nothing changes."""


def decide(policy: Policy, demand: Demand, fleet: Fleet, memory: Memory, now: float) -> Decision:
    """The decision at ``now`` (Unix seconds). The memory of it is to be passed to the next one."""
    view = _gather(policy, demand, fleet, memory, now)
    replicas, reason, why = next(answer for check in _CHECKS if (answer := check(view)) is not None)
    loaners = _loaners(view)
    memory = replace(view.memory, stepped=now) if replicas < fleet.wanted else view.memory
    woken = now if fleet.wanted == 0 or memory.woken is None else memory.woken
    memory = replace(memory, woken=woken if replicas else None)
    asleep = not (replicas or loaners or fleet.wanted or fleet.loaners or demand.queued or demand.in_flight)
    return Decision(replicas, loaners, reason, _message(view, why), memory, 30.0 if asleep else 1.0)


def asked_for(policy: Policy, now: float, start_seconds: float) -> int:
    """The fewest replicas that minReplicas and schedules ask for at ``now``, whatever is demanded."""
    raised = floor(policy.schedules, datetime.fromtimestamp(now, UTC), start_seconds) if policy.schedules else 0
    return min(policy.max_replicas, max(policy.min_replicas, raised))


@dataclass(frozen=True, slots=True)
class _View:
    """All that the checks look at, gathered once."""

    policy: Policy
    demand: Demand
    fleet: Fleet
    now: float
    memory: Memory
    load: float | None
    """Work that arrives, in replicas; None: their capacity is not known yet."""
    need: int
    """Replicas that the demand needs now, own and warm: with a backlog, as many as clear it before others can come."""
    urgent: int
    """The same where the backlog has the time that an own replica takes to start."""
    floor: int
    proving: bool
    """A new revision needs an own replica to show that it can serve; warm pods hold the old one until it has."""
    lasting: int
    """The least that own replicas should have been for as long as one takes to start."""
    recent: int | None
    """The most that own replicas should have been in the last while; None: nobody has looked for so long."""
    coverable: int
    """Replicas that warm pods stand in for, or could."""
    idle: float
    """Seconds since the last request ended, or since the first worker could serve; 0 while there are requests."""


def _gather(policy: Policy, demand: Demand, fleet: Fleet, memory: Memory, now: float) -> _View:
    before = at_latest(memory, now)
    memory = with_rates(before, demand, now)
    rate = arrival_rate(before, memory)
    active = _active(demand, fleet, before, now)
    if now - active >= policy.idle_timeout:
        rate = 0.0  # what the rates remember is over
    pooled = policy.warm_pool is not None
    urgent = needed(policy, demand, fleet, memory, rate, fleet.start_seconds)
    need = needed(policy, demand, fleet, memory, rate, fleet.wake_seconds) if pooled else urgent
    own_need = own_needed(policy, demand, fleet, memory, rate) if pooled else need
    keep = _keep(fleet)
    buckets = with_need(memory.buckets, own_need, now, keep)
    memory = replace(with_burst(memory, need, active, now), buckets=buckets, active=active)
    # Only with requests: a revision that is never asked for need not start, and one that cannot start ends with them.
    proving = fleet.unproven and (need > 0 or (fleet.loaners > 0 and now - active < policy.idle_timeout))
    return _View(
        policy=policy,
        demand=demand,
        fleet=fleet,
        now=now,
        memory=memory,
        load=None if fleet.capacity is None else rate / fleet.capacity,
        need=need,
        urgent=urgent,
        floor=min(policy.max_replicas, max(asked_for(policy, now, fleet.start_seconds), int(proving))),
        proving=proving,
        lasting=least_needed(buckets, now - fleet.start_seconds) if pooled else need,
        recent=most_needed(buckets, now - keep),
        coverable=fleet.loaners + fleet.claiming + fleet.warm_free if pooled else 0,
        idle=now - active,
    )


def _keep(fleet: Fleet) -> float:
    """Seconds for which an own replica is kept for nothing."""
    return max(SHORTEST_KEEP, KEEP * fleet.start_seconds)


def _active(demand: Demand, fleet: Fleet, before: Memory, now: float) -> float:
    """When there was last a request, or a replica that idle time does not count for yet."""
    # Idle is who could serve: what starts is not stopped before it has been of use to anyone. What cannot start is.
    since = now if before.woken is None else before.woken
    awaited = fleet.ready + fleet.loaners == 0 or (fleet.unproven and fleet.starting > 0)
    starts = fleet.wanted > 0 and awaited and now - since < LONGEST_START_SECONDS
    ended = demand.last_ended
    if ended is not None and ended > now:  # of a clock that was ahead: only what arrives tells then
        ended = now if before.seen is not None and demand.arrived_requests > before.arrived_requests else None
    known = [time for time in (before.active, ended) if time is not None]
    return now if demand.queued or demand.in_flight or starts or not known else max(known)


# --- the own replicas: the first check with an answer decides ---

Answer = tuple[int, Reason, str]


def _above_maximum(view: _View) -> Answer | None:
    most = view.policy.max_replicas
    return (most, "AboveMaximum", f"maxReplicas is {most}") if view.fleet.wanted > most else None


def _below_floor(view: _View) -> Answer | None:
    if view.fleet.wanted >= view.floor or view.floor < _risen(view):
        return None
    if view.proving and view.floor == 1:
        return 1, "NewRevision", "a worker is to show that it can serve the new revision; the old one serves until then"
    return view.floor, "BelowFloor", f"minReplicas or a schedule asks for {view.floor}"


def _demand_rose(view: _View) -> Answer | None:
    risen, pooled = _risen(view), view.policy.warm_pool is not None
    if risen <= view.fleet.wanted:
        return None
    if view.load is None:
        return risen, "QueueWaits", "no replica has measured its capacity yet"
    if not pooled:
        return risen, "DemandRose", "there is no warm pool"
    if risen <= view.lasting:
        return risen, "DemandRose", f"{risen} have been needed for longer than a replica takes to start"
    return risen, "DemandRose", f"warm pods can cover {view.coverable}"


def _risen(view: _View) -> int:
    """What own replicas must rise to: what has lasted, and what no warm pod can cover."""
    return max(view.lasting, view.urgent - view.coverable)


def _demand_unknown(view: _View) -> Answer | None:
    return (
        None if view.demand.complete else _stay(view, "DemandUnknown", "the figures of a gateway are missing or stale")
    )


def _replicas_starting(view: _View) -> Answer | None:
    if not view.demand.queued or not view.fleet.starting + view.fleet.claiming:
        return None
    return _stay(view, "ReplicasStarting", f"{view.fleet.starting + view.fleet.claiming} start, and requests wait")


def _demand_fell(view: _View) -> Answer | None:
    if view.recent is None:
        return None
    wanted, target = view.fleet.wanted, max(view.floor, view.recent, 1)
    if wanted <= target:
        return None
    if _just_stepped(view):
        return _stay(view, "Stabilizing", "a step down was just taken")
    step = max(target, math.ceil(wanted / 2))
    return step, "DemandFell", f"{target} would have done for long enough; one step takes half at most"


def _just_stepped(view: _View) -> bool:
    return view.now - view.memory.stepped < STEP_SECONDS


def _idle(view: _View) -> Answer | None:
    if view.fleet.wanted != 1 or view.floor > 0:
        return None
    if view.idle >= view.policy.idle_timeout and (view.fleet.ready > 1 or _just_stepped(view)):
        return _stay(view, "Stabilizing", "the step down to one was just taken")
    if view.idle >= view.policy.idle_timeout:
        return 0, "Idle", f"no request for {view.idle:.0f} s"
    return _stay(view, "WaitingForIdle", "the last one waits for the idle timeout") if not view.need else None


def _stabilizing(view: _View) -> Answer | None:
    if view.fleet.wanted <= max(view.floor, view.need):
        return None
    span = f"the last {_keep(view.fleet):.0f} s"
    if view.recent is None:
        return _stay(view, "Stabilizing", f"what {span} needed is not all known yet")
    return _stay(view, "Stabilizing", f"{view.recent} were needed within {span}")


def _steady(view: _View) -> Answer | None:
    if view.fleet.wanted == 0 and not view.need:
        return _stay(view, "Idle", f"no request for {view.idle:.0f} s")
    if view.fleet.wanted < view.need and view.coverable:
        return _stay(view, "WarmPodsServe", f"warm pods serve the rest; {view.coverable} could")
    return _stay(view, "Steady", "it is what is needed")


def _stay(view: _View, reason: Reason, why: str) -> Answer:
    return view.fleet.wanted, reason, why


_CHECKS = (
    _above_maximum,
    _below_floor,
    _demand_rose,
    _demand_unknown,
    _replicas_starting,
    _demand_fell,
    _idle,
    _stabilizing,
    _steady,
)


# --- the warm pods ---


def _loaners(view: _View) -> int:
    """Warm pods for what own replicas do not serve yet; the last one stays for the idle time, as an own one would."""
    if view.policy.warm_pool is None:
        return 0
    fleet, most = view.fleet, view.policy.max_replicas
    have = fleet.loaners + fleet.claiming
    # What was needed a moment ago is over with the idle time, or it would ask for a pod when the last replica goes.
    level = view.memory.level if view.idle < view.policy.idle_timeout else view.need
    want = max(view.floor, level) - fleet.ready
    if have > 0 and fleet.ready == 0 and view.idle < view.policy.idle_timeout:
        want = max(want, 1)
    if want < have and (not view.demand.complete or (view.demand.queued and fleet.starting + fleet.claiming)):
        want = have
    # An own replica that starts does not count yet: the loaner stands in for it.
    return max(0, min(want, most - fleet.ready))


def _message(view: _View, why: str) -> str:
    demand, fleet = view.demand, view.fleet
    load = "an unknown load" if view.load is None else f"a load of {view.load:.2f} replicas"
    # Else a person takes the load, rounded up, for the number.
    room = view.load is not None and view.need > max(1, math.ceil(view.load))
    needed_for = " with room for spec.slo.latency and what waits" if room else ""
    return (
        f"{load}, {demand.queued} requests wait and {demand.in_flight} are served by {fleet.ready} replicas and "
        f"{fleet.loaners} warm pods; {view.need} are needed{needed_for}: {why}"
    )
