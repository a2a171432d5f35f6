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
from rerank_operator.scaling.policy import Policy
from rerank_operator.scaling.schedules import floor
from rerank_operator.scaling.sizing import replicas_for

Reason = Literal[
    "AboveMaximum",  # fewer, at once: maxReplicas was lowered
    "BelowFloor",  # more: minReplicas or a schedule asks for them
    "DemandRose",  # more: the need has lasted, or warm pods cannot cover it
    "QueueWaits",  # more: requests wait and nobody knows yet what a replica can do
    "DemandUnknown",  # as many: a gateway's figures are stale
    "ReplicasStarting",  # as many: replicas start for requests that wait
    "Stabilizing",  # as many: fewer would do, but not for long enough
    "DemandFell",  # fewer
    "WaitingForIdle",  # as many: the last one, until the idle timeout
    "Idle",  # none: the idle timeout has passed
    "Steady",  # as many: it is what is needed
]

FAST_SECONDS = 5.0
"""Time constant of the fast arrival rate. Of a step it has seen 18 % after 1 s and 63 % after 5 s; what it has not seen
yet is in the backlog, and counts there."""
SLOW_SECONDS = 60.0
"""Time constant of the slow arrival rate: 100 requests a minute give it to within about 10 %."""
SURPRISE = 3.0
"""Standard deviations by which the fast rate must differ from the slow one to be believed. At 10 requests/s it sees
about 100 requests, and sizes vary as much as numbers do, so it strays by 14 % by chance: a rise of 42 % is news. At 1
request/s it takes 134 %."""
NOTHING = 1e-3
"""A load below which nothing arrives: the rates fall exponentially and never reach zero. After a load of 1 the slow
rate is there in 7 minutes."""
WORTH_OWN = 0.02
"""The least load that is worth an own replica where warm pods can serve it: one that is busy for 2 % of its time."""
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
RELEASE_SECONDS = 10.0
"""How long a warm pod is kept for nothing: two time constants of the fast rate, and several times the 1 to 2 s that it
takes to come back."""
QUIET_SECONDS = 20.0
"""Without any request for so long, the next one begins a new burst."""
BURSTS = 3
"""Bursts that are remembered. The first requests of a burst tell that it has begun, and only after seconds how large it
is: of 2.5 replicas' work, one second shows 0.45 in the fast rate. So as many warm pods are claimed at once as every one
of the last bursts came to need; where requests come singly, that is one."""
BUCKETS = 12
"""Stretches that the history of the need is kept in."""


@dataclass(frozen=True, slots=True)
class Bucket:
    """The least and the most that was needed in a stretch of time."""

    start: float
    least: int
    most: int


@dataclass(frozen=True, slots=True)
class Memory:
    """What must survive a restart, as plain values that msgspec writes and reads."""

    seen: float | None = None
    """When the counters below were read."""
    arrived_requests: int = 0
    arrived_tokens: int = 0
    fast: float = 0.0
    """Tokens/s, exponentially weighted with FAST_SECONDS."""
    slow: float = 0.0
    slow_requests: float = 0.0
    """Requests/s, with SLOW_SECONDS."""
    buckets: tuple[Bucket, ...] = ()
    """Of what own replicas should be. Oldest first; the last one is being filled."""
    level: int = 0
    """What was needed in all, when it last rose, or was last looked at again after RELEASE_SECONDS below it."""
    level_seen: float = 0.0
    """When as much was last needed."""
    peak: int = 0
    """The most that this burst has needed."""
    bursts: tuple[int, ...] = ()
    """The same of those before it."""
    active: float | None = None
    """When a request was last in the system; at first, when this Reranker was first looked at."""
    stepped: float = 0.0
    """When a step down was last taken."""


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
    asleep = not (replicas or loaners or fleet.wanted or fleet.loaners or demand.queued or demand.in_flight)
    return Decision(replicas, loaners, reason, _message(view, why), memory, 30.0 if asleep else 1.0)


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
    lasting: int
    """The least that own replicas should have been for as long as one takes to start."""
    recent: int | None
    """The most that own replicas should have been in the last while; None: nobody has looked for so long."""
    coverable: int
    """Replicas that warm pods stand in for, or could."""
    idle: float
    """Seconds since the last request ended; 0 while there are any."""


def _gather(policy: Policy, demand: Demand, fleet: Fleet, memory: Memory, now: float) -> _View:
    before, memory = memory, _with_rates(memory, demand, now)
    rate = _rate(before, memory)
    busy = demand.queued > 0 or demand.in_flight > 0
    ended = [time for time in (memory.active, demand.last_ended) if time is not None]
    active = now if busy or not ended else min(now, max(ended))
    if now - active >= policy.idle_timeout:
        rate = 0.0  # what the rates remember is over
    pooled = policy.warm_pool is not None
    urgent = _need(policy, demand, fleet, memory, rate, fleet.start_seconds)
    need = _need(policy, demand, fleet, memory, rate, fleet.wake_seconds) if pooled else urgent
    own_need = _own_need(policy, demand, fleet, memory, rate) if pooled else need
    keep = max(SHORTEST_KEEP, KEEP * fleet.start_seconds)
    buckets = _with_need(memory.buckets, own_need, now, keep)
    memory = replace(_with_burst(memory, need, active, now), buckets=buckets, active=active)
    raised = floor(policy.schedules, datetime.fromtimestamp(now, UTC), fleet.start_seconds) if policy.schedules else 0
    return _View(
        policy=policy,
        demand=demand,
        fleet=fleet,
        now=now,
        memory=memory,
        load=None if fleet.capacity is None else rate / fleet.capacity,
        need=need,
        urgent=urgent,
        floor=min(policy.max_replicas, max(policy.min_replicas, raised)),
        lasting=_least(buckets, now - fleet.start_seconds) if pooled else need,
        recent=_most(buckets, now - keep),
        coverable=fleet.loaners + fleet.claiming + fleet.warm_free if pooled else 0,
        idle=now - active,
    )


# --- the need ---


def _with_rates(memory: Memory, demand: Demand, now: float) -> Memory:
    """The arrival rates after one more look at the counters.

    While a gateway's figures are stale its requests are not counted, so the rates may only rise, and the counters are
    not taken over: what it has counted meanwhile is spread over the whole time when it is heard again.
    """
    if memory.seen is None or demand.arrived_tokens < memory.arrived_tokens:  # the first look, or counters lost
        return replace(memory, seen=now, arrived_requests=demand.arrived_requests, arrived_tokens=demand.arrived_tokens)
    passed = now - memory.seen
    if passed <= 0:
        return memory
    tokens = (demand.arrived_tokens - memory.arrived_tokens) / passed
    requests = max(0, demand.arrived_requests - memory.arrived_requests) / passed
    quick, steady = -math.expm1(-passed / FAST_SECONDS), -math.expm1(-passed / SLOW_SECONDS)
    fast = memory.fast + quick * (tokens - memory.fast)
    slow = memory.slow + steady * (tokens - memory.slow)
    if not demand.complete:
        return replace(memory, fast=max(fast, memory.fast), slow=max(slow, memory.slow))
    return replace(
        memory,
        seen=now,
        arrived_requests=demand.arrived_requests,
        arrived_tokens=demand.arrived_tokens,
        fast=fast,
        slow=slow,
        slow_requests=memory.slow_requests + steady * (requests - memory.slow_requests),
    )


def _rate(before: Memory, memory: Memory) -> float:
    """Tokens/s: the slow rate, as long as chance explains how far the fast one is from it; else the fast one."""
    chance = SURPRISE * before.slow / math.sqrt(FAST_SECONDS * max(before.slow_requests, 1e-9))
    return memory.slow if abs(memory.fast - memory.slow) <= chance else memory.fast


def _need(policy: Policy, demand: Demand, fleet: Fleet, memory: Memory, rate: float, bring: float) -> int:
    """Replicas, own and warm, for what arrives and for the backlog, when it takes ``bring`` seconds to bring more.

    A backlog shall be gone within that time: what is asked for to be quicker comes too late to be of use.
    """
    if fleet.capacity is None:
        wanted = math.ceil(demand.queued / policy.target_queue_depth)
        return min(policy.max_replicas, max(wanted, min(1, demand.in_flight)))
    load = rate / fleet.capacity
    load += _backlog(policy, demand, fleet, fleet.capacity) / max(bring, policy.latency_threshold)
    return _sized(policy, demand, fleet.capacity, memory, load)


def _own_need(policy: Policy, demand: Demand, fleet: Fleet, memory: Memory, rate: float) -> int:
    """Own replicas for what arrives; what has built up is for warm pods, which are there sooner."""
    if fleet.capacity is None:
        return min(1, demand.queued + demand.in_flight)
    load = rate / fleet.capacity
    if load < WORTH_OWN:
        # Warm pods that do not come: who waits for as long as a replica takes to start waits for no pod any more.
        return 1 if demand.queued and not fleet.ready + fleet.loaners else 0
    return _sized(policy, demand, fleet.capacity, memory, load)


def _sized(policy: Policy, demand: Demand, capacity: float, memory: Memory, load: float) -> int:
    if load < NOTHING:
        return 1 if demand.queued or demand.in_flight else 0
    size = memory.slow / memory.slow_requests if memory.slow_requests > 0 else 0.0
    service = max(size / capacity, 1e-6)
    # Requests that take longer than the objective by themselves are late with any number of replicas.
    longest = max(policy.latency_threshold - service, policy.target_queue_time)
    return replicas_for(load, service, longest, 1 - policy.latency_quantile, policy.max_replicas)


def _backlog(policy: Policy, demand: Demand, fleet: Fleet, capacity: float) -> float:
    """Seconds of one replica's work that are more than those that serve should have before them.

    That is more than they do within the latency objective; or requests that wait while they are more than
    targetQueueDepth per replica and would wait for longer than targetQueueTime.
    """
    serving = fleet.ready + fleet.loaners
    waiting = demand.queued_tokens / capacity
    late = waiting + demand.in_flight_tokens / capacity - serving * policy.latency_threshold
    deep = waiting - serving * policy.target_queue_time
    return max(0.0, late, deep if demand.queued > policy.target_queue_depth * serving else 0.0)


def _with_burst(memory: Memory, need: int, active: float, now: float) -> Memory:
    """What warm pods follow: the need, as it begins what this kind of burst has always come to, and for some seconds
    what it has just been."""
    peak, bursts, expected = memory.peak, memory.bursts, need
    if memory.active is not None and active - memory.active >= QUIET_SECONDS:
        peak, bursts = 0, (*bursts, peak)[-BURSTS:]
        expected = max(need, min(bursts)) if len(bursts) == BURSTS else need
    level, level_seen = memory.level, memory.level_seen
    if expected >= level or now - level_seen >= RELEASE_SECONDS:
        level, level_seen = expected, now
    return replace(memory, level=level, level_seen=level_seen, peak=max(peak, need), bursts=bursts)


def _with_need(buckets: tuple[Bucket, ...], need: int, now: float, horizon: float) -> tuple[Bucket, ...]:
    """The buckets with one more need in the last of them, and those that reach into the last ``horizon`` seconds."""
    if buckets and now - buckets[-1].start < horizon / BUCKETS:
        last = buckets[-1]
        return (*buckets[:-1], Bucket(last.start, min(last.least, need), max(last.most, need)))
    old = sum(bucket.start <= now - horizon for bucket in buckets[1:])
    return (*buckets[old:], Bucket(now, need, need))


def _least(buckets: tuple[Bucket, ...], since: float) -> int:
    """The least that was needed since then; 0 where nobody has looked for so long."""
    least = buckets[-1].least
    for bucket in reversed(buckets):
        least = min(least, bucket.least)
        if bucket.start <= since:
            return least
    return 0


def _most(buckets: tuple[Bucket, ...], since: float) -> int | None:
    most = 0
    for bucket in reversed(buckets):
        most = max(most, bucket.most)
        if bucket.start <= since:
            return most
    return None


# --- the own replicas: the first check with an answer decides ---

Answer = tuple[int, Reason, str]


def _above_maximum(view: _View) -> Answer | None:
    most = view.policy.max_replicas
    return (most, "AboveMaximum", f"maxReplicas is {most}") if view.fleet.wanted > most else None


def _below_floor(view: _View) -> Answer | None:
    if view.fleet.wanted >= view.floor or view.floor < _risen(view):
        return None
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
    return None if view.demand.complete else _stay(view, "DemandUnknown", "the figures of a gateway are stale")


def _replicas_starting(view: _View) -> Answer | None:
    if not view.demand.queued or not view.fleet.starting + view.fleet.claiming:
        return None
    return _stay(view, "ReplicasStarting", f"{view.fleet.starting} start and requests wait")


def _demand_fell(view: _View) -> Answer | None:
    if view.recent is None:
        return None
    wanted, target = view.fleet.wanted, max(view.floor, view.recent, 1)
    if wanted <= target:
        return None
    if view.now - view.memory.stepped < STEP_SECONDS:
        return _stay(view, "Stabilizing", "a step down was just taken")
    step = max(target, math.ceil(wanted / 2))
    return step, "DemandFell", f"{target} would have done for long enough; one step takes half at most"


def _idle(view: _View) -> Answer | None:
    if view.fleet.wanted != 1 or view.floor > 0:
        return None
    if view.idle >= view.policy.idle_timeout:
        return 0, "Idle", f"no request for {view.idle:.0f} s"
    return _stay(view, "WaitingForIdle", "the last one waits for the idle timeout") if not view.need else None


def _stabilizing(view: _View) -> Answer | None:
    if view.fleet.wanted <= max(view.floor, view.need):
        return None
    return _stay(view, "Stabilizing", "more were needed a while ago")


def _steady(view: _View) -> Answer | None:
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
    want = max(view.floor, view.memory.level) - fleet.ready
    if have > 0 and fleet.ready == 0 and view.idle < view.policy.idle_timeout:
        want = max(want, 1)
    if want < have and (not view.demand.complete or (view.demand.queued and fleet.starting)):
        want = have
    return max(0, min(want, most))


def _message(view: _View, why: str) -> str:
    demand, fleet = view.demand, view.fleet
    load = "an unknown load" if view.load is None else f"a load of {view.load:.2f} replicas"
    return (
        f"{load}, {demand.queued} requests wait and {demand.in_flight} are served by {fleet.ready} replicas and "
        f"{fleet.loaners} warm pods; {view.need} are needed: {why}"
    )
