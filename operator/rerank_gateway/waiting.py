"""The requests of one Reranker that wait for a worker, and what is outstanding at each of its workers.

First come, first served; a retry goes back to the front. Bounded by the Reranker's queueLimit, and each request by its
own deadline. Nothing here sends anything.
"""

import asyncio
import random
from collections import OrderedDict
from collections.abc import Callable, Iterator

from rerank_gateway.cluster.state import Endpoint, Key, Route, RoutingTable
from rerank_gateway.errors import ApiError
from rerank_gateway.routing import Limits, Load, least_outstanding, split

RETRY_AFTER = 1


class Ticket:
    """One request's place. ``tokens`` is an estimate; only its proportion between requests matters."""

    __slots__ = ("avoid", "deadline", "draw", "granted", "tokens")

    def __init__(self, tokens: int, deadline: float, draw: float | None = None) -> None:
        self.tokens = tokens
        self.deadline = deadline
        self.draw = random.random() if draw is None else draw  # noqa: S311 (spreads load, guards no secret)
        """Fixed for the request's life, so that waiting or retrying does not shift the traffic split."""
        self.avoid: set[str] = set()
        """Endpoints where this request has failed."""
        self.granted: asyncio.Future[Endpoint] | None = None


class Queue:
    """The waiting requests of one Reranker and the load of its endpoints."""

    def __init__(self, route: Route, limits: Limits, clock: Callable[[], float]) -> None:
        self.route: Route | None = route
        self.loads: dict[str, Load] = {}
        self._limits = limits
        self._clock = clock
        self._waiting: OrderedDict[Ticket, None] = OrderedDict()
        self._wake: asyncio.TimerHandle | None = None

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def in_flight(self) -> int:
        return sum(load.requests for load in self.loads.values())

    async def acquire(self, ticket: Ticket, *, retry: bool = False) -> Endpoint:
        """Waits for a free endpoint; each must be given back by ``release``.

        Raises ApiError: 429 when too many wait, 503 when suspended, 404 when deleted, 504 at the deadline.
        """
        route = self._require_route()
        if not retry and not self._waiting:
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
        self._waiting[ticket] = None
        if retry:
            self._waiting.move_to_end(ticket, last=False)
        self._dispatch()
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
        self._forget_gone()
        self._dispatch()

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
        self.route = route
        self._forget_gone()
        if route is None or route.policy.suspended:
            for ticket in self._waiting:
                if ticket.granted is not None and not ticket.granted.done():
                    ticket.granted.set_exception(_deleted() if route is None else _suspended(route))
            self._waiting.clear()
        self._dispatch()

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
        for ticket in served:
            del self._waiting[ticket]
        self._wake_when_an_endpoint_is_tried_again()

    def _occupy(self, endpoint: Endpoint, ticket: Ticket) -> None:
        load = self.loads.setdefault(endpoint.uid, Load())
        load.requests += 1
        load.tokens += ticket.tokens
        load.last_used = self._clock()

    def _give_up(self, ticket: Ticket) -> None:
        """The request no longer waits; an endpoint handed to it at the same moment goes to the next."""
        self._waiting.pop(ticket, None)
        granted = ticket.granted
        if granted is not None and granted.done() and not granted.cancelled() and granted.exception() is None:
            self.release(ticket, granted.result())

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

    def __init__(self, limits: Limits, clock: Callable[[], float]) -> None:
        self._limits = limits
        self._clock = clock
        self._queues: dict[Key, Queue] = {}

    def __iter__(self) -> Iterator[tuple[Key, Queue]]:
        return iter(self._queues.items())

    def of(self, route: Route) -> Queue:
        queue = self._queues.get(route.key)
        if queue is None:
            queue = self._queues[route.key] = Queue(route, self._limits, self._clock)
        return queue

    def update(self, table: RoutingTable) -> None:
        for key, queue in list(self._queues.items()):
            queue.update(table.routes.get(key))
            if queue.route is None:
                del self._queues[key]
