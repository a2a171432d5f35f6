"""What a Reranker's scaling remembers: arrival rates, what was needed in the last while, and what bursts came to.

Pure: each function gives the memory after one more look. Nothing here decides; what a number is used for, ``need`` and
``decide`` say.
"""

import math
from dataclasses import dataclass, replace

from rerank_operator.scaling.demand import Demand

FAST_SECONDS = 5.0
"""Time constant of the fast arrival rate. Of a step it has seen 18 % after 1 s and 63 % after 5 s; what it has not seen
yet is in the backlog, and counts there."""
SLOW_SECONDS = 60.0
"""Time constant of the slow arrival rate: 100 requests a minute give it to within about 10 %."""
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
    woken: float | None = None
    """Since when there should be own replicas, one at least; None: there should be none."""


def at_latest(memory: Memory, now: float) -> Memory:
    """The memory without times that are yet to come: they are of a clock that was ahead, and would hold for as long."""

    def known(time: float | None) -> float | None:
        return None if time is None else min(time, now)

    return replace(
        memory,
        seen=known(memory.seen),
        buckets=tuple(replace(bucket, start=min(bucket.start, now)) for bucket in memory.buckets),
        level_seen=min(memory.level_seen, now),
        active=known(memory.active),
        stepped=min(memory.stepped, now),
        woken=known(memory.woken),
    )


def with_rates(memory: Memory, demand: Demand, now: float) -> Memory:
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


def with_burst(memory: Memory, need: int, active: float, now: float) -> Memory:
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


def with_need(buckets: tuple[Bucket, ...], need: int, now: float, horizon: float) -> tuple[Bucket, ...]:
    """The buckets with one more need in the last of them, and those that reach into the last ``horizon`` seconds."""
    if buckets and now - buckets[-1].start < horizon / BUCKETS:
        last = buckets[-1]
        return (*buckets[:-1], Bucket(last.start, min(last.least, need), max(last.most, need)))
    old = sum(bucket.start <= now - horizon for bucket in buckets[1:])
    return (*buckets[old:], Bucket(now, need, need))


def least_needed(buckets: tuple[Bucket, ...], since: float) -> int:
    """The least that was needed since then; 0 where nobody has looked for so long."""
    least = buckets[-1].least
    for bucket in reversed(buckets):
        least = min(least, bucket.least)
        if bucket.start <= since:
            return least
    return 0


def most_needed(buckets: tuple[Bucket, ...], since: float) -> int | None:
    most = 0
    for bucket in reversed(buckets):
        most = max(most, bucket.most)
        if bucket.start <= since:
            return most
    return None
