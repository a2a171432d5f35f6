"""How many replicas the demand needs now. Pure: from rates, backlog and capacity to a number; no history, no steps."""

import math

from rerank_operator.scaling.demand import Demand, Fleet
from rerank_operator.scaling.memory import FAST_SECONDS, SLOW_SECONDS, Memory
from rerank_operator.scaling.policy import Policy
from rerank_operator.scaling.sizing import replicas_for

SURPRISE = 3.0
"""Standard deviations by which the fast rate must differ from the slow one to be believed. At 10 requests/s it sees
about 100 requests, and sizes vary as much as numbers do, so it strays by 14 % by chance: a rise of 42 % is news. At 1
request/s it takes 134 %."""
NOTHING = 1e-3
"""A load below which nothing arrives: the rates fall exponentially and never reach zero. After a load of 1 the slow
rate is there in 7 minutes."""
WORTH_OWN = 0.02
"""The least load that is worth an own replica where warm pods can serve it: one that is busy for 2 % of its time."""


def arrival_rate(before: Memory, memory: Memory) -> float:
    """Tokens/s: the slow rate, as long as chance explains how far the fast one is from it; else the fast one."""
    chance = SURPRISE * before.slow / math.sqrt(FAST_SECONDS * max(before.slow_requests, 1e-9))
    return memory.slow if abs(memory.fast - memory.slow) <= chance else memory.fast


def needed(policy: Policy, demand: Demand, fleet: Fleet, memory: Memory, rate: float, bring: float) -> int:
    """Replicas, own and warm, for what arrives and for the backlog, when it takes ``bring`` seconds to bring more.

    A backlog shall be gone within that time: what is asked for to be quicker comes too late to be of use.
    """
    if fleet.capacity is None:
        wanted = math.ceil(demand.queued / policy.target_queue_depth)
        return min(policy.max_replicas, max(wanted, min(1, demand.in_flight)))
    load = rate / fleet.capacity
    load += _backlog(policy, demand, fleet, fleet.capacity) / max(bring, policy.latency_threshold)
    return _sized(policy, demand, fleet, fleet.capacity, memory, load)


def own_needed(policy: Policy, demand: Demand, fleet: Fleet, memory: Memory, rate: float) -> int:
    """Own replicas for what arrives; what has built up is for warm pods, which are there sooner."""
    if fleet.capacity is None:
        return min(1, demand.queued + demand.in_flight)
    load = rate / fleet.capacity
    if load < WORTH_OWN:
        # Warm pods that do not come: who waits for as long as a replica takes to start waits for no pod any more.
        return 1 if demand.queued and not fleet.ready + fleet.loaners else 0
    return _sized(policy, demand, fleet, fleet.capacity, memory, load)


def _sized(policy: Policy, demand: Demand, fleet: Fleet, capacity: float, memory: Memory, load: float) -> int:
    if load < NOTHING:
        return 1 if demand.queued or demand.in_flight else 0
    size = memory.slow / memory.slow_requests if memory.slow_requests > 0 else 0.0
    service = max(size / capacity, 1e-6)
    # Requests that take longer than the objective by themselves are late with any number of replicas.
    longest = max(policy.latency_threshold - service, policy.target_queue_time)
    most = min(policy.max_replicas, _busy_at_most(demand, fleet, memory))
    return replicas_for(load, service, longest, 1 - policy.latency_quantile, most)


def _busy_at_most(demand: Demand, fleet: Fleet, memory: Memory) -> int:
    """Replicas that could have anything to do: one for each request that is there, or is to be expected by the time
    that a replica could come. One request of a billion tokens is one replica's work, however large it is."""
    coming = memory.slow_requests * max(SLOW_SECONDS, fleet.start_seconds)
    return max(1, demand.queued + demand.in_flight + math.ceil(coming))


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
