"""Replays traces: Rerankers with their queue, replicas and controller, one pool of warm pods, and one line of events.

A replica costs from the moment it is told to exist until its last request has ended; so does a warm pod from its claim.
The end of a run is the same for every controller: ``TAIL`` after the last arrival, or later while requests are held.
"""

import math
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count
from typing import Any

from rerank_operator.scaling.demand import Demand, Fleet
from rerank_operator.scaling.pool import FreePod, Wish, assign
from rerank_operator.scaling.simulate.controller import Controller, Order, Seen
from rerank_operator.scaling.simulate.inputs import CALENDAR, Arrival, Manifest
from rerank_operator.scaling.simulate.queueing import Replica, Waiting

TAIL = 600.0
"""Longer than any controller's default delay to zero, so that scaling down late is paid for."""
LONGEST_TAIL = 7_200.0
"""What is held so long after the last arrival is given up, and told as unfinished."""
SHORTEST_PAUSE = 0.001

# In this order at one moment: what ends makes room, and a decision sees all that has come.
END, READY, ARRIVAL, DECIDE = range(4)

Event = tuple[float, int, int, "Service", Replica | None, int]


@dataclass(frozen=True, slots=True)
class Plant:
    """What the replicas of a run are like, for every controller."""

    capacity: float
    """Tokens a second of one replica."""
    cold_start: float
    """Seconds from telling an own replica to its first request."""
    warm_start: float
    """The same from claiming a warm pod."""
    warm_pods: int = 0
    batch: int = 8
    """Requests that share one replica's speed; more wait at the gateway."""


@dataclass(slots=True)
class Outcome:
    """What became of one Reranker's requests, and what it cost."""

    requests: int = 0
    rejected: int = 0
    """Lost at the queue's limit."""
    timed_out: int = 0
    """Lost while they waited."""
    unfinished: int = 0
    late: int = 0
    """Served, but wait and service together above the threshold."""
    waits: array = field(default_factory=lambda: array("d"))
    """Seconds, of those served."""
    replica_seconds: float = 0.0
    loaner_seconds: float = 0.0
    """The part of it that warm pods served."""
    peak_replicas: int = 0
    scale_events: int = 0

    @property
    def lost(self) -> int:
        return self.rejected + self.timed_out


@dataclass(frozen=True, slots=True)
class Run:
    outcomes: list[Outcome]
    warm_idle_seconds: float
    peak_replicas: int
    begin: float
    end: float


class Service:
    """One Reranker."""

    def __init__(self, name: str, manifest: Manifest, controller: Controller, plant: Plant, simulation: "Simulation"):
        self.name = name
        self.manifest = manifest
        self.controller = controller
        self.simulation = simulation
        self.speed, self.width = plant.capacity, plant.batch
        self.start_seconds, self.wake_seconds = plant.cold_start, plant.warm_start
        self.limit = manifest.limits.queue
        self.threshold = manifest.policy.latency_threshold + 1e-9
        self.waiting = Waiting(manifest.limits.timeout)
        self.starting: list[Replica] = []
        self.own: list[Replica] = []
        self.claiming: list[Replica] = []
        self.lent: list[Replica] = []
        self.serving: list[Replica] = []
        """Own and lent replicas that take requests."""
        self.wish = 0
        """Warm pods that it wants and that the pool could not give yet."""
        self.alive = 0
        self.in_flight = 0
        self.in_flight_tokens = 0
        self.arrived_tokens = 0
        self.last_ended: float | None = None
        self.request_seconds = 0.0
        self.counted_at = simulation.begin
        self.asked_at = -math.inf
        self.ask_at = math.inf
        self.ordered = (0, 0)
        self.outcome = Outcome()

    # What happens to requests.

    def arrive(self, now: float, tokens: int, priority: int) -> None:
        self.count(now)
        self.outcome.requests += 1
        self.arrived_tokens += tokens
        if not self.waiting.count:
            best: Replica | None = None
            for replica in self.serving:
                if len(replica.batch) < self.width:
                    if not replica.batch:
                        best = replica
                        break
                    if best is None or replica.clear_at < best.clear_at:
                        best = replica
            if best is not None:
                self._hand(best, now, now, tokens)
                return
        if self.waiting.count >= self.limit:
            self.outcome.rejected += 1
            self.last_ended = now
            return
        self.waiting.add(now, tokens, priority)
        if self.controller.eager is not None:
            self.ask(max(now, self.asked_at + self.controller.eager))
        elif not self.starting and not self.own:
            self.ask(now)

    def _hand(self, replica: Replica, now: float, arrived: float, tokens: int) -> None:
        self.in_flight += 1
        self.in_flight_tokens += tokens
        simulation = self.simulation
        end = replica.join(now, self.speed, next(simulation.numbers), arrived, tokens)
        heappush(simulation.events, (end, END, next(simulation.numbers), self, replica, replica.version))

    def end(self, now: float, replica: Replica) -> None:
        """The next request of the batch of ``replica`` ends."""
        self.count(now)
        batch = replica.batch
        attained, _, arrived, taken, tokens = heappop(batch)
        replica.attained, replica.since = attained, now
        replica.version += 1
        self.in_flight -= 1
        self.in_flight_tokens -= tokens
        self.last_ended = now
        self.outcome.waits.append(taken - arrived)
        if now - arrived > self.threshold:
            self.outcome.late += 1
        if self.waiting.count and not replica.draining:
            self.fill(replica, now)
        elif batch:
            end = replica.next_end(now, self.speed)
            events = self.simulation.events
            heappush(events, (end, END, next(self.simulation.numbers), self, replica, replica.version))
        elif replica.draining:
            self._gone(replica, now)

    def fill(self, replica: Replica, now: float) -> None:
        """Hands waiting requests to ``replica`` while it has room."""
        while self.waiting.count and len(replica.batch) < self.width:
            arrived, tokens = self.waiting.take()
            self._hand(replica, now, arrived, tokens)

    def count(self, now: float) -> None:
        """Brings the books to ``now``: the time spent in the system, and requests whose time is over."""
        self.request_seconds += (self.waiting.count + self.in_flight) * (now - self.counted_at)
        self.counted_at = now
        for ended in self.waiting.expire(now):
            self.outcome.timed_out += 1
            self.request_seconds -= now - ended
            self.last_ended = ended if self.last_ended is None else max(self.last_ended, ended)

    # What happens to replicas.

    def ask(self, at: float) -> None:
        if at < self.ask_at:
            self.ask_at = at
            heappush(self.simulation.events, (at, DECIDE, next(self.simulation.numbers), self, None, 0))

    def decide(self, now: float) -> None:
        self.count(now)
        self.asked_at, self.ask_at = now, math.inf
        order = self.controller.order(self._seen(now), now)
        self._carry_out(order, now)
        if order.again < math.inf:
            self.ask(now + max(SHORTEST_PAUSE, order.again))

    def _seen(self, now: float) -> Seen:
        waiting = self.waiting
        demand = Demand(
            waiting.count,
            waiting.tokens,
            self.in_flight,
            self.in_flight_tokens,
            self.outcome.requests,
            self.arrived_tokens,
            now if waiting.count or self.in_flight else self.last_ended,
        )
        fleet = Fleet(
            wanted=len(self.starting) + len(self.own),
            ready=len(self.own),
            starting=len(self.starting),
            loaners=len(self.lent),
            claiming=len(self.claiming),
            capacity=self.speed,
            start_seconds=self.start_seconds,
            wake_seconds=self.wake_seconds,
            warm_free=len(self.simulation.pool.free),
        )
        return Seen(demand, fleet, self.request_seconds)

    def _carry_out(self, order: Order, now: float) -> None:
        if (order.replicas, order.loaners) != self.ordered:
            self.ordered = (order.replicas, order.loaners)
            self.outcome.scale_events += 1
        for _ in range(order.replicas - len(self.starting) - len(self.own)):
            self._start(Replica(now), self.starting, now, self.start_seconds)
        for _ in range(len(self.starting) + len(self.own) - order.replicas):
            # What has not started serves nobody; of those that serve, the idlest.
            self._stop(self.starting.pop() if self.starting else _idlest(self.own), now)
        self.wish = max(0, order.loaners - len(self.lent) - len(self.claiming))
        for _ in range(len(self.lent) + len(self.claiming) - order.loaners):
            self._stop(self.claiming.pop() if self.claiming else _idlest(self.lent), now)
        self.simulation.pool.wish(self, now)

    def begin(self, replicas: int, now: float) -> None:
        """The replicas that it has when the run begins, ready."""
        for _ in range(replicas):
            replica = Replica(now)
            self.own.append(replica)
            self.serving.append(replica)
            self._born()
        self.ordered = (replicas, 0)

    def lend(self, pod: str, now: float) -> None:
        self.wish -= 1
        self._start(Replica(now, pod), self.claiming, now, self.wake_seconds)

    def _start(self, replica: Replica, place: list[Replica], now: float, seconds: float) -> None:
        place.append(replica)
        self._born()
        heappush(self.simulation.events, (now + seconds, READY, next(self.simulation.numbers), self, replica, 0))

    def _born(self) -> None:
        self.alive += 1
        self.outcome.peak_replicas = max(self.outcome.peak_replicas, self.alive)
        self.simulation.born()

    def ready(self, now: float, replica: Replica) -> None:
        if replica.draining:
            return
        self.count(now)
        come, place = (self.starting, self.own) if replica.pod is None else (self.claiming, self.lent)
        come.remove(replica)
        place.append(replica)
        self.serving.append(replica)
        self.fill(replica, now)
        if self.controller.eager is not None:
            self.ask(max(now, self.asked_at + self.controller.eager))

    def _stop(self, replica: Replica, now: float) -> None:
        replica.draining = True
        for place in (self.own, self.lent, self.serving):
            if replica in place:
                place.remove(replica)
        if not replica.batch:
            self._gone(replica, now)

    def _gone(self, replica: Replica, now: float) -> None:
        self.alive -= 1
        self.simulation.alive -= 1
        self._pay(replica, now)
        if replica.pod is not None:
            self.simulation.pool.give_back(replica.pod, self.manifest.model, now)

    def _pay(self, replica: Replica, now: float) -> None:
        self.outcome.replica_seconds += now - replica.told
        if replica.pod is not None:
            self.outcome.loaner_seconds += now - replica.told

    def finish(self, now: float, draining: Sequence[Replica]) -> None:
        """The run is over: what is still there is paid up to now."""
        self.count(now)
        self.outcome.unfinished = self.waiting.count + self.in_flight
        for replica in (*self.starting, *self.own, *self.claiming, *self.lent, *draining):
            self._pay(replica, now)


def _idlest(replicas: list[Replica]) -> Replica:
    """With the fewest requests; of these the one that is clear first, and of these the youngest."""
    return min(
        replicas, key=lambda replica: (len(replica.batch), replica.clear_at if replica.batch else 0, -replica.told)
    )


class Pool:
    """The warm pods that all Rerankers of a run share. Who wishes first is given first, when one is free."""

    def __init__(self, size: int, now: float) -> None:
        self.free = {f"warm-{number}": FreePod(f"warm-{number}", frozenset()) for number in range(size)}
        self.models: dict[str, frozenset[str]] = dict.fromkeys(self.free, frozenset())
        self.wishing: dict[str, Service] = {}
        self.idle_seconds = 0.0
        self.counted_at = now

    def count(self, now: float) -> None:
        self.idle_seconds += len(self.free) * (now - self.counted_at)
        self.counted_at = now

    def wish(self, service: Service, now: float) -> None:
        if service.wish:
            self.wishing.setdefault(service.name, service)
            if self.free:
                self._assign(now)
        else:
            self.wishing.pop(service.name, None)

    def give_back(self, pod: str, model: str, now: float) -> None:
        self.count(now)
        self.models[pod] |= {model}
        self.free[pod] = FreePod(pod, self.models[pod])
        if self.wishing:
            self._assign(now)

    def _assign(self, now: float) -> None:
        wishes = [Wish(name, service.manifest.model, service.wish) for name, service in self.wishing.items()]
        for claim in assign(list(self.free.values()), wishes):
            self.count(now)
            del self.free[claim.pod]
            service = self.wishing[claim.reranker]
            service.lend(claim.pod, now)
            if not service.wish:
                del self.wishing[claim.reranker]


class Simulation:
    """One run. ``traces``, ``manifests`` and ``controllers`` stand in the same order."""

    def __init__(
        self,
        traces: Sequence[Sequence[Arrival]],
        manifests: Sequence[Manifest],
        controllers: Sequence[Controller],
        plant: Plant,
        floors: Sequence[Callable[[float], int]],
    ) -> None:
        self.numbers = count()
        self.events: list[Any] = []
        self.begin, self.last = bounds(traces)
        self.pool = Pool(plant.warm_pods, self.begin)
        self.alive = self.peak = 0
        self.services: list[Service] = []
        for place, (manifest, controller) in enumerate(zip(manifests, controllers, strict=True)):
            service = Service(f"{place}", manifest, controller, plant, self)
            service.begin(min(floors[place](self.begin), manifest.policy.max_replicas), self.begin)
            service.ask(self.begin)
            self.services.append(service)
        self.arrivals = [
            (seconds, place, tokens, priority)
            for place, trace in enumerate(traces)
            for seconds, tokens, priority in trace
        ]
        self.arrivals.sort(key=lambda arrival: arrival[0])

    def born(self) -> None:
        self.alive += 1
        self.peak = max(self.peak, self.alive)

    def run(self) -> Run:
        events, services, end = self.events, self.services, self.last + TAIL
        for seconds, place, tokens, priority in self.arrivals:
            while events and (events[0][0] < seconds or (events[0][0] == seconds and events[0][1] < ARRIVAL)):
                self._happen(heappop(events))
            services[place].arrive(seconds, tokens, priority)
        while events and events[0][0] <= end:
            self._happen(heappop(events))
        while events and events[0][0] <= self.last + LONGEST_TAIL and self._held():
            end = events[0][0]
            self._happen(heappop(events))
        if self._held():
            end = self.last + LONGEST_TAIL
        ends = [event for event in events if event[1] == END and event[5] == event[4].version]
        for service in services:
            service.finish(end, [event[4] for event in ends if event[3] is service and event[4].draining])
        self.pool.count(end)
        return Run([service.outcome for service in services], self.pool.idle_seconds, self.peak, self.begin, end)

    def _held(self) -> bool:
        return any(service.waiting.count or service.in_flight for service in self.services)

    @staticmethod
    def _happen(event: Event) -> None:
        now, kind, _, service, replica, version = event
        if kind == END:
            assert replica is not None
            if replica.version == version:
                service.end(now, replica)
        elif kind == READY:
            assert replica is not None
            service.ready(now, replica)
        elif now == service.ask_at:
            service.decide(now)


def bounds(traces: Sequence[Sequence[Arrival]]) -> tuple[float, float]:
    """When a run of ``traces`` begins, and the last arrival."""
    firsts = [trace[0][0] for trace in traces if trace]
    if not firsts:
        return 0.0, 0.0
    begin = math.floor(min(firsts)) if min(firsts) >= CALENDAR else 0.0
    return float(begin), max(trace[-1][0] for trace in traces if trace)
