"""Knative's pod autoscaler (KPA), from its published algorithm and its default settings; without a pool.

Sources, read in November 2026: knative/serving pkg/autoscaler/scaling/{autoscaler,multiscaler}.go,
pkg/autoscaler/aggregation/bucketing.go, pkg/reconciler/autoscaling/{kpa/scaler.go,resources/target.go} and
config/core/configmaps/autoscaler.yaml. Requests that the activator holds count as concurrency, as they do there.
"""

import math
from collections import deque
from collections.abc import Callable

from rerank_operator.scaling.policy import Policy
from rerank_operator.scaling.simulate.controller import Order, Seen

TICK = 2.0
STABLE_WINDOW = 60.0
PANIC_WINDOW = 6.0
PANIC_THRESHOLD = 2.0
MAX_UP, MAX_DOWN = 1000.0, 2.0
UTILISATION = 0.7
BURST_CAPACITY = 200.0
GRACE = 30.0
DEFAULT_TARGET = 100.0


class Kpa:
    """``target`` is the annotation autoscaling.knative.dev/target: requests at once per replica; it aims at 70 %."""

    eager: float | None = None

    def __init__(self, policy: Policy, floor: Callable[[float], int], target: float = DEFAULT_TARGET) -> None:
        self.policy = policy
        self.floor = floor
        self.total = target
        self.target = max(1.0, target * UTILISATION)
        self.samples: deque[tuple[float, float]] = deque()
        """Moments and request-seconds, of the stable window."""
        self.panicking: float | None = None
        self.most_in_panic = 0
        self.active: float | None = None
        self.inactive: float | None = None
        self.proxied: float | None = None
        """Since when the activator has been in the requests' way."""

    def order(self, seen: Seen, now: float) -> Order:
        stable, panic = self._concurrency(seen, now)
        fleet = seen.fleet
        wanted = self._desired(stable, panic, fleet.ready, now)
        self._track(fleet.wanted, fleet.ready, panic, now)
        floor = self.floor(now)
        wanted = min(max(wanted, floor), self.policy.max_replicas)
        if wanted == 0:
            wanted = self._to_zero(fleet.wanted, fleet.ready, now)
        else:
            self.inactive = None
        idle = wanted == 0 and floor == 0 and seen.demand.queued + seen.demand.in_flight == 0
        return Order(wanted, 0, math.inf if idle and not self.policy.schedules else TICK)

    def _concurrency(self, seen: Seen, now: float) -> tuple[float, float]:
        """Means over the stable and the panic window, or over what there is of them since the first figure."""
        samples = self.samples
        if samples and now - samples[-1][0] >= STABLE_WINDOW:
            samples.clear()
        if samples and samples[-1][0] >= now:
            samples.pop()
        samples.append((now, seen.request_seconds))
        while len(samples) > 2 and samples[1][0] <= now - STABLE_WINDOW:
            samples.popleft()
        if len(samples) == 1:
            present = float(seen.demand.queued + seen.demand.in_flight)
            return present, present
        return self._mean(now, STABLE_WINDOW), self._mean(now, PANIC_WINDOW)

    def _mean(self, now: float, window: float) -> float:
        samples = self.samples
        begin, last = now - window, samples[-1][1]
        if samples[0][0] >= begin:
            return (last - samples[0][1]) / (now - samples[0][0])
        index = len(samples) - 1
        while samples[index][0] > begin:
            index -= 1
        (t0, v0), (t1, v1) = samples[index], samples[index + 1]
        return (last - (v0 + (v1 - v0) * (begin - t0) / (t1 - t0))) / window

    def _desired(self, stable: float, panic: float, ready: int, now: float) -> int:
        pods = max(1, ready)
        most, least = math.ceil(MAX_UP * pods), math.floor(pods / MAX_DOWN)
        for_panic = math.ceil(panic / self.target)
        desired = min(max(math.ceil(stable / self.target), least), most)
        if for_panic / pods >= PANIC_THRESHOLD:
            self.panicking = now
        elif self.panicking is not None and self.panicking + STABLE_WINDOW < now:
            self.panicking = None
            self.most_in_panic = 0
        if self.panicking is not None:
            self.most_in_panic = max(self.most_in_panic, desired, min(max(for_panic, least), most))
            desired = self.most_in_panic
        return desired

    def _track(self, wanted: int, ready: int, panic: float, now: float) -> None:
        if wanted == 0 or ready == 0:
            self.active = None
        elif self.active is None:
            self.active = now
        if math.floor(ready * self.total - BURST_CAPACITY - panic) < 0:
            self.proxied = now if self.proxied is None else self.proxied
        else:
            self.proxied = None

    def _to_zero(self, wanted: int, ready: int, now: float) -> int:
        """Only after the stable window since it became active, and the grace since the activator is in the way."""
        if wanted == 0 or ready == 0 or self.active is None:
            return wanted
        if now - self.active < STABLE_WINDOW:
            return 1
        if self.inactive is None:
            self.inactive = now
        backed = self.inactive if self.proxied is None else min(self.inactive, self.proxied)
        return 0 if now - backed >= GRACE else wanted
