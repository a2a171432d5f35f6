"""The requests of one Reranker that wait for a worker, and what is outstanding at each of its workers.

First come, first served; a retry goes back to the front. Bounded by the Reranker's queueLimit, and each request by its
own deadline. Nothing here sends anything.
"""

import asyncio
import random
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from statistics import median

from rerank_api.wire import Priority

from rerank_gateway.cluster.state import Endpoint, Key, Route, RoutingTable
from rerank_gateway.errors import ApiError
from rerank_gateway.routing import Limits, Load, least_outstanding, split

RETRY_AFTER = 1

DECAY = 0.98
"""What an older answer counts for when a new one comes, in ``Queue.tokens_per_estimate``."""


class Ticket:
    """One request's place. ``estimate``: its tokens, told from its characters alone."""

    __slots__ = ("avoid", "deadline", "draw", "entered", "estimate", "granted", "priority", "tokens")

    def __init__(
        self, estimate: int, deadline: float, draw: float | None = None, priority: Priority = "normal"
    ) -> None:
        self.estimate = estimate
        self.tokens = estimate
        """The estimate, corrected by what workers counted for the same Reranker."""
        self.deadline = deadline
        self.priority: Priority = priority
        self.draw = random.random() if draw is None else draw  # noqa: S311 (spreads load, guards no secret)
        """Fixed for the request's life, so that waiting or retrying does not shift the traffic split."""
        self.entered = 0.0
        """Unix seconds since when it waits."""
        self.avoid: set[str] = set()
        """Endpoints where this request has failed."""
        self.granted: asyncio.Future[Endpoint] | None = None


class Queue:
    """The waiting requests of one Reranker and the load of its endpoints.

    ``on_change`` is called with the queue when a figure that it shows has changed, and must only take note of that.
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
        self._limits = limits
        self._clock = clock
        self._wall = wall
        self._on_change = on_change
        self._absent_since = wall()
        """Unix seconds at which the last endpoint went; where there was none yet, when the queue began."""
        self._last_capacity: float | None = None
        self._counted = 0.0
        self._estimated = 0.0
        self._waiting: OrderedDict[Ticket, None] = OrderedDict()
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

    async def acquire(self, ticket: Ticket, *, retry: bool = False) -> Endpoint:
        """Waits for a free endpoint; each must be given back by ``release``.

        Raises ApiError: 429 when too many wait, 503 when suspended, 404 when deleted, 504 at the deadline.
        """
        route = self._require_route()
        if not retry:
            ticket.tokens = max(1, round(ticket.estimate * self.tokens_per_estimate))
            self.arrived_requests += 1
            self.arrived_tokens += ticket.tokens
            self._changed()
            if not self._waiting:
                # The common case, without a future.
                endpoint = self._choose_now(ticket)
                if endpoint is not None:
                    return endpoint
        if not retry and len(self._waiting) >= route.policy.queue_limit:
            raise ApiError(
                429,
                "queue_full",
                f"{route.label} has {len(self._waiting)} requests waiting (requests.queueLimit): retry later",
                retry_after=RETRY_AFTER,
            )
        ticket.granted = asyncio.get_running_loop().create_future()
        ticket.entered = self._wall()
        self._waiting[ticket] = None
        self.queued_tokens += ticket.tokens
        if retry:
            self._waiting.move_to_end(ticket, last=False)
        self._dispatch()
        self._changed()
        try:
            async with asyncio.timeout_at(ticket.deadline):
                return await ticket.granted
        except TimeoutError:
            self._give_up(ticket)
            raise ApiError(504, "deadline_exceeded", self._why_waiting()) from None
        except BaseException:
            self._give_up(ticket)
            raise

    def release(self, ticket: Ticket, endpoint: Endpoint) -> None:
        load = self.loads[endpoint.uid]
        load.requests -= 1
        load.tokens -= ticket.tokens
        self._last_capacity = load.capacity or self._last_capacity
        self.last_ended = self._wall()
        self._forget_gone()
        self._dispatch()
        self._changed()

    def succeeded(self, endpoint: Endpoint) -> None:
        load = self.loads.get(endpoint.uid)
        if load is not None:
            load.failures, load.retry_at, load.on_trial = 0, 0.0, False

    def failed(self, endpoint: Endpoint, pause: float, longest_pause: float, *, broken: bool) -> None:
        """Leaves the endpoint alone for ``pause`` seconds, twice as long at each failure in a row.

        ``broken``: it did not answer as a worker does, so it is tried with one request at first.
        """
        load, now = self.loads.get(endpoint.uid), self._clock()
        # What was sent before the last failure fails with it and says nothing new.
        if load is not None and load.retry_at <= now:
            load.retry_at = now + min(pause * 2**load.failures, longest_pause)
            load.failures = min(load.failures + 1, 16)
            load.on_trial = load.on_trial or broken

    def update(self, route: Route | None) -> None:
        """The Reranker as it is now; None when it was deleted."""
        if not (route and route.endpoints) and (self.route is None or self.route.endpoints):
            self._absent_since = self._wall()
        self.route = route
        self._forget_gone()
        if self._waiting and (route is None or route.policy.suspended):
            for ticket in self._waiting:
                if ticket.granted is not None and not ticket.granted.done():
                    ticket.granted.set_exception(_deleted() if route is None else _suspended(route))
            self._waiting.clear()
            self.queued_tokens = 0
            self.last_ended = self._wall()
        self._dispatch()
        self._changed()

    def _require_route(self) -> Route:
        if self.route is None:
            raise _deleted()
        if self.route.policy.suspended:
            raise _suspended(self.route)
        return self.route

    def _choose_now(self, ticket: Ticket) -> Endpoint | None:
        assert self.route is not None
        pool = split(self.route, self.loads, self._clock()).pick(ticket.draw)
        endpoint = least_outstanding(pool, self.loads, self._limits, ticket.avoid) if pool else None
        if endpoint is not None:
            self._occupy(endpoint, ticket)
        return endpoint

    def _dispatch(self) -> None:
        """Hands free endpoints to the first waiting requests that may use them."""
        if not self._waiting or self.route is None:
            return
        pools = split(self.route, self.loads, self._clock())
        full: set[str | None] = set()
        served: list[Ticket] = []
        for ticket in self._waiting:
            if len(full) == len(pools.pools):
                break
            pool = pools.pick(ticket.draw)
            if pool is None or pool.revision in full:
                continue
            assert ticket.granted is not None
            if ticket.granted.done():  # cancelled, and about to leave
                continue
            endpoint = least_outstanding(pool, self.loads, self._limits, ticket.avoid)
            if endpoint is None:
                full.add(pool.revision)
                continue
            self._occupy(endpoint, ticket)
            ticket.granted.set_result(endpoint)
            served.append(ticket)
        if served:
            self._changed()
        for ticket in served:
            self._leave(ticket)
        self._wake_when_an_endpoint_is_tried_again()

    def _occupy(self, endpoint: Endpoint, ticket: Ticket) -> None:
        load = self.loads.setdefault(endpoint.uid, Load())
        load.requests += 1
        load.tokens += ticket.tokens
        load.last_used = self._clock()

    def _give_up(self, ticket: Ticket) -> None:
        """The request no longer waits; an endpoint handed to it at the same moment goes to the next."""
        self._leave(ticket)
        self.last_ended = self._wall()
        granted = ticket.granted
        if granted is not None and granted.done() and not granted.cancelled() and granted.exception() is None:
            self.release(ticket, granted.result())
        self._changed()

    def _leave(self, ticket: Ticket) -> None:
        if ticket in self._waiting:
            del self._waiting[ticket]
            self.queued_tokens -= ticket.tokens

    def _changed(self) -> None:
        if self._on_change is not None:
            self._on_change(self)

    def _wake_when_an_endpoint_is_tried_again(self) -> None:
        if self._wake is not None:
            self._wake.cancel()
            self._wake = None
        if self._waiting and self.route is not None:
            now = self._clock()
            pauses = [load.retry_at for load in self._current_loads() if load.retry_at > now]
            if pauses:
                self._wake = asyncio.get_running_loop().call_at(min(pauses), self._dispatch)

    def _current_loads(self) -> Iterator[Load]:
        assert self.route is not None
        for endpoint in self.route.endpoints:
            if endpoint.uid in self.loads:
                yield self.loads[endpoint.uid]

    def _forget_gone(self) -> None:
        """Drops the record of endpoints that left and have nothing outstanding: who comes back starts afresh."""
        present = {endpoint.uid for endpoint in self.route.endpoints} if self.route is not None else set()
        for uid in [uid for uid, load in self.loads.items() if uid not in present and not load.requests]:
            del self.loads[uid]

    def _why_waiting(self) -> str:
        route = self.route
        if route is None or route.endpoints:
            return "the deadline was over before a worker was free: retry later, or ask for more replicas"
        reason = f" ({route.policy.not_ready_reason})" if route.policy.not_ready_reason else ""
        return f"the deadline was over before a worker of {route.label} was ready{reason}"


def _deleted() -> ApiError:
    return ApiError(404, "model_not_found", "the Reranker was deleted", field="model")


def _suspended(route: Route) -> ApiError:
    return ApiError(503, "suspended", f"{route.label} is suspended (spec.suspend)", retry_after=30)


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
