"""KEDA with its HTTP add-on between zero and one replica, and Kubernetes' HPA above; without a pool.

Sources, read in November 2026: kubernetes/kubernetes pkg/controller/podautoscaler/{horizontal,replica_calculator}.go,
the default behaviour of autoscaling/v2; kedacore/keda pkg/scaling/executor/scale_scaledobjects.go; kedacore/http-add-on
scaler/{handlers,config}.go (the interceptor's queue is read every 0.5 s and told to KEDA at once, which is quicker than
KEDA's polling every 30 s) and docs/ref/http_scaled_object.md (concurrency, scaledownPeriod 300 s). The add-on holds
requests until a replica is ready, so they are in the concurrency.
"""

import math
from collections import deque
from collections.abc import Callable

from rerank_operator.scaling.policy import Policy
from rerank_operator.scaling.simulate.controller import Order, Seen

QUEUE_TICK = 0.5
COOLDOWN = 300.0
SYNC = 15.0
TOLERANCE = 0.1
STABILISATION = 300.0
PODS_UP, FACTOR_UP = 4, 2
DEFAULT_TARGET = 100.0


class KedaHpa:
    """``target`` is scalingMetric.concurrency.targetValue: requests at once per replica."""

    eager: float | None = None

    def __init__(self, policy: Policy, floor: Callable[[float], int], target: float = DEFAULT_TARGET) -> None:
        self.policy = policy
        self.floor = floor
        self.target = target
        self.last_active = -math.inf
        self.next_sync: float | None = None
        self.synced = False
        self.recommendations: deque[tuple[float, int]] = deque()

    def order(self, seen: Seen, now: float) -> Order:
        floor, wanted = self.floor(now), seen.fleet.wanted
        concurrency = seen.demand.queued + seen.demand.in_flight
        if concurrency:
            self.last_active = now
        elif seen.demand.last_ended is not None:
            self.last_active = max(self.last_active, seen.demand.last_ended)
        if wanted == 0:
            return self._from_zero(concurrency, floor, now)
        if self.next_sync is None:
            self.next_sync = _next(now, SYNC)
        if floor == 0 and not concurrency and now >= self.last_active + COOLDOWN:
            return Order(0, 0, SYNC if self.policy.schedules else math.inf)
        if now >= self.next_sync:
            wanted = self._hpa(concurrency, wanted, max(1, floor), now)
            self.next_sync = _next(now, SYNC)
        due = self.next_sync
        if floor == 0 and not concurrency:
            due = min(due, self.last_active + COOLDOWN)
        return Order(wanted, 0, due - now)

    def _from_zero(self, concurrency: int, floor: int, now: float) -> Order:
        self.next_sync = None
        if floor:
            return Order(floor, 0, SYNC)
        if not concurrency:
            return Order(0, 0, SYNC if self.policy.schedules else math.inf)
        if now % QUEUE_TICK > 1e-6 and now % QUEUE_TICK < QUEUE_TICK - 1e-6:
            return Order(0, 0, _next(now, QUEUE_TICK) - now)
        return Order(1, 0, _next(now, SYNC) - now)

    def _hpa(self, concurrency: int, current: int, least: int, now: float) -> int:
        most = self.policy.max_replicas
        if current > most or current < least:
            return min(max(current, least), most)
        desired = current
        if abs(1.0 - concurrency / (self.target * current)) > TOLERANCE:
            desired = math.ceil(concurrency / self.target)
        recent = self.recommendations
        if not self.synced:
            self.synced = True
            recent.append((now, current))
        while recent and recent[0][0] <= now - STABILISATION:
            recent.popleft()
        highest = max((count for _, count in recent), default=desired)
        recent.append((now, desired))
        # Upwards at once; downwards to the highest of the window, which may lie above what there is when the limit
        # upwards had cut it off: then it goes on growing, as the source does.
        stabilised = desired if desired >= current else max(desired, highest)
        # The events of a period of 15 s are those after the last sync, so there are none.
        return max(least, min(stabilised, max(current + PODS_UP, current * FACTOR_UP), most))


def _next(now: float, step: float) -> float:
    """The next moment after ``now`` on the grid of ``step`` seconds."""
    return (math.floor(now / step + 1e-9) + 1) * step
