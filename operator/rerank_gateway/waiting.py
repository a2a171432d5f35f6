"""The requests of one Reranker that wait for a worker, and what is outstanding at each of its workers.

Who goes next is ordering.py's, which worker takes it routing.py's, for how long it is held bounds.py's; here they come
and go, and here are the figures that tell demand. Each request that comes leaves exactly once: with a worker, an error,
or its client. Nothing here sends anything, waits without a deadline, or scans all that wait, except when workers come,
go, break or share their traffic anew.
"""

import asyncio
import math
import random
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from statistics import median

from rerank_api.wire import Priority

from rerank_gateway.bounds import deadline, deleted, queue_full, suspended, too_late
from rerank_gateway.cluster.state import Endpoint, Key, Route, RoutingTable
from rerank_gateway.errors import ApiError
from rerank_gateway.ordering import Order
from rerank_gateway.routing import Limits, Load, Pool, Pools, least_outstanding, split

DECAY = 0.98
"""What an older answer counts for when a new one comes, in ``Queue.tokens_per_estimate``."""


class Ticket:
    """One request's place. ``estimate``: its tokens, told from its characters alone; ``latest``: when its client stops
    waiting (the queue's clock); ``client``: whose turn it uses up, never shown to anyone."""

    __slots__ = (
        "arrived",
        "avoid",
        "client",
        "deadline",
        "draw",
        "entered",
        "estimate",
        "granted",
        "held",
        "lane",
        "latest",
        "priority",
        "timer",
        "tokens",
    )

    def __init__(
        self,
        estimate: int,
        latest: float,
        draw: float | None = None,
        priority: Priority = "normal",
        client: str = "",
    ) -> None:
        self.estimate = estimate
        self.tokens = estimate
        """The estimate, corrected by what workers counted for the same Reranker."""
        self.held = 0
        """What of the tokens counts at the endpoint that has it; see routing.Limits.held."""
        self.latest = latest
        self.draw = random.random() if draw is None else draw  # noqa: S311 (spreads load, guards no secret)
        """Fixed for the request's life, so that waiting or retrying does not shift the traffic split."""
        self.priority: Priority = priority
        self.client = client
        self.arrived = 0.0
        self.deadline = latest
        """Known from ``Queue.acquire`` on; it moves while the request waits, and not while a worker has it."""
        self.entered = 0.0
        """Unix seconds since when it waits."""
        self.avoid: set[str] = set()
        """Endpoints where this request has failed."""
        self.granted: asyncio.Future[Endpoint] | None = None
        self.lane: Order[Ticket] | None = None
        self.timer: asyncio.TimerHandle | None = None


class Queue:
    """The waiting requests of one Reranker and the load of its endpoints.

    ``clock`` is the event loop's. ``on_change`` is called with the queue when a figure that it shows has changed, and
    must only take note of that.
    """

    def __init__(
        self,
        route: Route,
        limits: Limits,
        clock: Callable[[], float],
        wall: Callable[[], float] = time.time,
        on_change: "Callable[[Queue], None] | None" = None,
    ) -> None:
        self.route: Route | None = route
        self.loads: dict[str, Load] = {}
        self.queued_tokens = 0
        self.arrived_requests = 0
        """All that came, those among them that were refused because the queue was full: they are demand too."""
        self.arrived_tokens = 0
        self.last_ended: float | None = None
        """Unix seconds at which a request last left, whichever way."""
        self._present = _uids(route)
        self._limits = limits
        self._clock = clock
        self._wall = wall
        self._on_change = on_change
        self._changed_presence = clock()
        """When the last endpoint went or the first came; when the queue began, at first."""
        self._absent_since = wall()
        """The same in Unix seconds, for the last that went."""
        self._last_capacity: float | None = None
        self._counted = 0.0
        self._estimated = 0.0
        self._waiting: OrderedDict[Ticket, None] = OrderedDict()
        """In the order in which they began to wait."""
        self._sorted = Pools((), ())
        """How the waiting requests are shared out to lanes."""
        self._lanes: dict[str | None, Order[Ticket]] = {}
        """By revision; None: for all."""
        self._healthy = Pools((), ())
        self._healthy_until = -math.inf
        """When it is to be worked out anew, for an endpoint may be tried again."""
        self._wake: asyncio.TimerHandle | None = None

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def in_flight(self) -> int:
        return sum(load.requests for load in self.loads.values())

    @property
    def in_flight_tokens(self) -> int:
        return sum(load.tokens for load in self.loads.values())

    @property
    def outstanding(self) -> dict[str, int]:
        """Tokens at each endpoint, by its Pod's uid; 0: idle. One that has gone is here until its requests end."""
        idle = self.route.endpoints if self.route is not None else ()
        return {endpoint.uid: 0 for endpoint in idle} | {uid: load.tokens for uid, load in self.loads.items()}

    @property
    def capacity(self) -> float | None:
        """Tokens/s of one worker: the median of what those at hand said last, else what was said last of all; None
        where none ever said it."""
        known = [load.capacity for load in self.loads.values() if load.capacity is not None]
        return median(known) if known else self._last_capacity

    @property
    def waking_since(self) -> float | None:
        """Unix seconds since when a request waits while no endpoint exists; None when there is one, or none waits."""
        if self.route is None or self.route.endpoints or not self._waiting:
            return None
        return max(next(iter(self._waiting)).entered, self._absent_since)

    @property
    def tokens_per_estimate(self) -> float:
        """Tokens that workers counted for each one that was estimated, over about the last 50 answers."""
        return self._counted / self._estimated if self._estimated else 1.0

    def counted(self, ticket: Ticket, tokens: int) -> None:
        """A worker has scored the request, and says how many tokens it had."""
        self._counted = self._counted * DECAY + max(1, tokens)
        self._estimated = self._estimated * DECAY + max(1, ticket.estimate)

    def refuse_all(self, error: ApiError) -> None:
        """Ends every wait. Those that come later wait as ever."""
        for ticket in list(self._waiting):
            self._refuse(ticket, error)
        self._changed()

    async def acquire(self, ticket: Ticket, *, retry: bool = False) -> Endpoint:
        """Waits for an endpoint that may take the request; each must be given back by ``release``.

        Raises ApiError: 429 when too many wait, 503 when suspended, 404 when deleted, 504 at the deadline.
        """
        route, now = self._require_route(), self._clock()
        if not retry:
            ticket.arrived = now
            ticket.tokens = max(1, round(ticket.estimate * self.tokens_per_estimate))
            self.arrived_requests += 1
            self.arrived_tokens += ticket.tokens
            self._changed()
        ticket.deadline = self._deadline(ticket, route)
        if ticket.deadline <= now:
            raise too_late(self.route, ticket.deadline, ticket.latest)
        if not retry:
            # The common case, without a future.
            endpoint = self._choose_now(ticket, route)
            if endpoint is not None:
                return endpoint
            if len(self._waiting) >= route.policy.queue_limit:
                self._make_room(ticket, route)
        granted = ticket.granted = asyncio.get_running_loop().create_future()
        self._enter(ticket, retry)
        self._dispatch()
        self._changed()
        try:
            return await granted
        except BaseException:
            self._give_up(ticket, granted)
            raise

    def release(self, ticket: Ticket, endpoint: Endpoint) -> None:
        load = self.loads[endpoint.uid]
        load.requests -= 1
        load.tokens -= ticket.tokens
        load.held -= ticket.held
        self._last_capacity = load.capacity or self._last_capacity
        self.last_ended = self._wall()
        if not load.requests and endpoint.uid not in self._present:
            del self.loads[endpoint.uid]
        self._dispatch()
        self._changed()

    def succeeded(self, endpoint: Endpoint) -> None:
        load = self.loads.get(endpoint.uid)
        if load is not None and load.failures:
            load.failures, load.retry_at, load.on_trial = 0, 0.0, False
            self._healthy_until = -math.inf

    def failed(self, endpoint: Endpoint, pause: float, longest_pause: float, *, broken: bool) -> None:
        """Leaves the endpoint alone for ``pause`` seconds, twice as long at each failure in a row.

        ``broken``: it did not answer as a worker does, so its share of the traffic goes to others meanwhile, and it is
        tried with one request at first.
        """
        load, now = self.loads.get(endpoint.uid), self._clock()
        # What was sent before the last failure fails with it and says nothing new.
        if load is not None and load.retry_at <= now:
            load.retry_at = now + min(pause * 2**load.failures, longest_pause)
            load.failures = min(load.failures + 1, 16)
            load.on_trial = load.on_trial or broken
            self._healthy_until = -math.inf

    def update(self, route: Route | None) -> None:
        """The Reranker as it is now; None when it was deleted."""
        before, self.route = self.route, route
        there_was_one = bool(self._present)
        self._present = _uids(route)
        self._healthy_until = -math.inf
        if bool(self._present) != there_was_one:
            self._changed_presence = self._clock()
            if there_was_one:
                self._absent_since = self._wall()
        # Who comes back starts afresh; while it has something outstanding it is still the same.
        self.loads = {uid: load for uid, load in self.loads.items() if load.requests or uid in self._present}
        if route is None or route.policy.suspended:
            self.refuse_all(deleted() if route is None else suspended(route))
        elif bool(self._present) != there_was_one or before is None or _bounds(before) != _bounds(route):
            for ticket in self._waiting:
                self._set_deadline(ticket, self._deadline(ticket, route))
        self._dispatch()
        self._changed()

    def _require_route(self) -> Route:
        if self.route is None:
            raise deleted()
        if self.route.policy.suspended:
            raise suspended(self.route)
        return self.route

    def _split(self, route: Route) -> Pools:
        now = self._clock()
        if now >= self._healthy_until:
            self._healthy = split(route, self.loads, now)
            paused = (load.retry_at for uid, load in self.loads.items() if load.paused(now) and uid in self._present)
            self._healthy_until = min(paused, default=math.inf)
        return self._healthy

    def _choose_now(self, ticket: Ticket, route: Route) -> Endpoint | None:
        """An endpoint for a request that nobody waits before."""
        pools = self._split(route)
        pool = pools.pick(ticket.draw)
        if pool is None or self._lanes.get(_lane(pools, pool)):
            return None
        return self._occupy(pool, ticket, ticket.priority == "high")

    def _occupy(self, pool: Pool, ticket: Ticket, urgent: bool) -> Endpoint | None:
        """The endpoint of the pool that takes the request now; None when there is none."""
        assert self.route is not None
        typical = self._last_capacity or self.route.policy.capacity
        endpoint = least_outstanding(
            pool,
            self.loads,
            self._limits,
            ticket.avoid,
            typical_capacity=typical,
            urgent=urgent,
        )
        if endpoint is not None:
            load = self.loads.setdefault(endpoint.uid, Load())
            load.requests += 1
            load.tokens += ticket.tokens
            ticket.held = self._limits.held(ticket.tokens, load.capacity or typical)
            load.held += ticket.held
            load.last_used = self._clock()
        return endpoint

    def _dispatch(self) -> None:
        """Hands endpoints that may take more to the requests that go next."""
        if not self._waiting or self.route is None:
            return
        pools = self._split(self.route)
        self._sort(pools)
        served = False
        for pool in pools.pools:
            lane = self._lanes.get(_lane(pools, pool))
            if lane:
                served |= self._serve(pool, lane)
        if served:
            self._changed()
        self._wake_when_an_endpoint_is_tried_again()

    def _serve(self, pool: Pool, lane: Order[Ticket]) -> bool:
        served = False
        now = self._clock()
        while (ticket := lane.first()) is not None:
            assert ticket.granted is not None
            # A request whose turn comes before those of high priority finds as much room as they: they would else use
            # up all of it, and it would never go.
            urgent = ticket.priority == "high" or lane.high_waits
            if ticket.granted.done():  # its client went away; its task has not run yet
                self._leave(ticket)
            elif ticket.deadline <= now:
                self._refuse(ticket, too_late(self.route, ticket.deadline, ticket.latest))
            elif (endpoint := self._occupy(pool, ticket, urgent)) is not None:
                self._leave(ticket, served=True)
                ticket.granted.set_result(endpoint)
                served = True
            else:
                break
        return served

    def _sort(self, pools: Pools) -> None:
        """Shares the waiting requests out anew when the revisions' traffic has changed."""
        if not pools.pools or pools.shape == self._sorted.shape:
            return
        self._sorted = pools
        for ticket in self._waiting:
            assert ticket.lane is not None
            lane = self._lane_of(ticket)
            if lane is not ticket.lane:
                retry = ticket.lane.remove(ticket)
                self._put(ticket, lane, retry)
        self._lanes = {revision: lane for revision, lane in self._lanes.items() if lane}

    def _lane_of(self, ticket: Ticket) -> Order[Ticket]:
        pool = self._sorted.pick(ticket.draw)
        key = _lane(self._sorted, pool) if pool is not None else None
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = Order()
        return lane

    def _put(self, ticket: Ticket, lane: Order[Ticket], retry: bool) -> None:
        ticket.lane = lane
        if retry:
            lane.add_retry(ticket, ticket.priority)
        else:
            lane.add(ticket, ticket.client, ticket.priority, ticket.tokens)

    def _enter(self, ticket: Ticket, retry: bool) -> None:
        ticket.entered = self._wall()
        self._waiting[ticket] = None
        self.queued_tokens += ticket.tokens
        self._put(ticket, self._lane_of(ticket), retry)
        self._set_deadline(ticket, ticket.deadline)

    def _leave(self, ticket: Ticket, *, served: bool = False) -> None:
        """Forgets a request, if it still waits. ``served``: a worker takes it, and its client has had a turn."""
        if ticket not in self._waiting:
            return
        assert ticket.lane is not None
        assert ticket.timer is not None
        del self._waiting[ticket]
        self.queued_tokens -= ticket.tokens
        if served:
            ticket.lane.take(ticket)
        else:
            ticket.lane.remove(ticket)
        ticket.timer.cancel()

    def _refuse(self, ticket: Ticket, error: ApiError) -> None:
        """Ends the wait of a request."""
        self._leave(ticket)
        self.last_ended = self._wall()
        if ticket.granted is not None and not ticket.granted.done():
            ticket.granted.set_exception(error)

    def _give_up(self, ticket: Ticket, granted: "asyncio.Future[Endpoint]") -> None:
        """The request no longer waits; an endpoint handed to it at the same moment goes to the next."""
        self._leave(ticket)
        self.last_ended = self._wall()
        if granted.done() and not granted.cancelled() and granted.exception() is None:
            self.release(ticket, granted.result())
        self._changed()

    def _make_room(self, ticket: Ticket, route: Route) -> None:
        """Of a full queue: for a request whose client or class has less than its part. Raises ApiError 429 if not."""
        tokens, capacity = self.queued_tokens + self.in_flight_tokens, self.capacity or route.policy.capacity
        error = queue_full(route, len(self._waiting), tokens, capacity)
        # The limit is for all lanes: one that fills it gives a place to the other, whose requests are few.
        fullest = max(self._lanes.values(), key=len, default=None)
        displaced = fullest.displaced(ticket.client, ticket.priority) if fullest is not None else None
        if displaced is None:
            raise error
        self._refuse(displaced, error)

    def _deadline(self, ticket: Ticket, route: Route) -> float:
        return deadline(
            route.policy,
            present=bool(route.endpoints),
            since=self._changed_presence,
            arrived=ticket.arrived,
            latest=ticket.latest,
        )

    def _set_deadline(self, ticket: Ticket, when: float) -> None:
        ticket.deadline = when
        if ticket.timer is not None:
            ticket.timer.cancel()
        ticket.timer = asyncio.get_running_loop().call_at(when, self._end_in_time, ticket)

    def _end_in_time(self, ticket: Ticket) -> None:
        self._refuse(ticket, too_late(self.route, ticket.deadline, ticket.latest))
        self._changed()

    def _wake_when_an_endpoint_is_tried_again(self) -> None:
        if self._wake is not None:
            self._wake.cancel()
            self._wake = None
        if self._waiting and self._healthy_until < math.inf:
            self._wake = asyncio.get_running_loop().call_at(self._healthy_until, self._dispatch)

    def _changed(self) -> None:
        if self._on_change is not None:
            self._on_change(self)


def _lane(pools: Pools, pool: Pool) -> str | None:
    """Where the requests of a pool wait: where it is the only one, all do, whatever its revision."""
    return pool.revision if len(pools.pools) > 1 else None


def _uids(route: Route | None) -> frozenset[str]:
    return frozenset(endpoint.uid for endpoint in route.endpoints) if route is not None else frozenset()


def _bounds(route: Route) -> tuple[float, float]:
    return route.policy.timeout, route.policy.wake_timeout


class Queues:
    """One queue for each Reranker that has been asked for."""

    def __init__(self, limits: Limits, clock: Callable[[], float], wall: Callable[[], float] = time.time) -> None:
        self.on_change: Callable[[Queue], None] | None = None
        """Called with each queue that has changed; may be set at any time. A queue without a route is gone."""
        self._limits = limits
        self._clock = clock
        self._wall = wall
        self._queues: dict[Key, Queue] = {}

    def __iter__(self) -> Iterator[tuple[Key, Queue]]:
        return iter(self._queues.items())

    def get(self, key: Key) -> Queue | None:
        """None: it has not been asked for."""
        return self._queues.get(key)

    def of(self, route: Route) -> Queue:
        queue = self._queues.get(route.key)
        if queue is None:
            queue = Queue(route, self._limits, self._clock, self._wall, self._changed)
            self._queues[route.key] = queue
        return queue

    def _changed(self, queue: Queue) -> None:
        if self.on_change is not None:
            self.on_change(queue)

    def update(self, table: RoutingTable) -> None:
        for key, queue in list(self._queues.items()):
            queue.update(table.routes.get(key))
            if queue.route is None:
                del self._queues[key]
