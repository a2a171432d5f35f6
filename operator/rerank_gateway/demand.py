"""The demand of every Reranker at this gateway, told to whoever reads the stream: types in rerank_api.demand.

A reader gets states, not events: a line is made when the reader can take it, from what is true then. So nothing is
buffered for a slow reader, and one that is frozen is let go. Anyone who reaches the port may read, so one address can
never take the places of the others. Counts only what queues say; decides nothing.
"""

import asyncio
import contextlib
import logging
import socket
import uuid
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from aiohttp import web
from rerank_api.demand import DEMAND_CONTENT_TYPE, DEMAND_PATH, DemandLine, RerankerDemand, encode_line

from rerank_gateway.cluster.state import Key, Route, RoutingTable
from rerank_gateway.errors import ApiError
from rerank_gateway.waiting import Queue, Queues

log = logging.getLogger(__name__)

INTERVAL = 0.1
# A second at most is promised; a look just before may put it off by an INTERVAL.
HEARTBEAT = 0.9
# A reader that takes nothing for so long is frozen or gone; it may come again.
WRITE_TIMEOUT = 10.0
MAX_READERS = 32
# An operator has one; a second while it believes the first to be dead, and the rest is for people who look.
MAX_READERS_OF_ADDRESS = 4
# What the kernel may hold of lines that are on their way: beyond it a slow reader would be told of long ago.
SEND_BUFFER = 2**16
# Deleted Rerankers whose counters are kept, should they be made again.
MAX_REMEMBERED = 10_000


@dataclass(slots=True)
class _Past:
    """What came for a Reranker: a queue ends with its Reranker, the counters do not."""

    queue: Queue | None = None
    requests: int = 0
    """Of the queues before ``queue``."""
    tokens: int = 0

    def follow(self, queue: Queue | None) -> None:
        if queue is self.queue:
            return
        if self.queue is not None:
            self.requests += self.queue.arrived_requests
            self.tokens += self.queue.arrived_tokens
        self.queue = queue


@dataclass(slots=True, eq=False)
class _Reader:
    address: str
    transport: asyncio.Transport | None
    wake: asyncio.Event = field(default_factory=asyncio.Event)


class Demand:
    def __init__(self, queues: Queues, wall: Callable[[], float]) -> None:
        self.gateway = uuid.uuid4().hex
        self._queues = queues
        self._wall = wall
        self._routes: Mapping[Key, Route] = {}
        self._past: OrderedDict[Key, _Past] = OrderedDict()
        self._touched: set[Key] = set()
        """To be looked at again: something about them may have changed."""
        self._states: dict[Key, RerankerDemand] = {}
        self._changed_at: dict[Key, int] = {}
        """The version in which each state became what it is."""
        self._version = 0
        self._readers: dict[_Reader, None] = {}
        """The oldest first."""
        self._closing = asyncio.Event()

    @property
    def readers(self) -> int:
        return len(self._readers)

    def touched(self, queue: Queue) -> None:
        """For each change of a queue."""
        if queue.route is not None:  # else ``update`` tells
            self._touch(queue.route.key)

    def update(self, table: RoutingTable) -> None:
        """For each new routing table, after the queues have it."""
        known, self._routes = self._routes, table.routes
        for key in known.keys() - table.routes.keys():
            self._past.setdefault(key, _Past()).follow(None)
            self._past.move_to_end(key)
            self._touch(key)
        for key, route in table.routes.items():
            if key not in known:
                # Told in any case: a full line in between has left it out.
                self._states.pop(key, None)
                self._touch(key)
            elif known[key].endpoints != route.endpoints:
                self._touch(key)
        self._forget()

    def line(self, since: int | None) -> tuple[DemandLine, int]:
        """What has changed since that version, or everything (None); and the version that it is of."""
        for key in self._touched:
            state = self._look(key)
            if state != self._states.get(key):
                self._version += 1
                self._changed_at[key] = self._version
                self._states[key] = state
        self._touched.clear()
        if since is None:
            keys = list(self._routes)
        else:
            keys = [key for key, version in self._changed_at.items() if version > since]
        told = [self._states[key] for key in keys]
        return DemandLine(self.gateway, self._wall(), full=since is None, rerankers=told), self._version

    def close(self) -> None:
        """Every reader gets a last line, and its stream ends. There are no new ones."""
        self._closing.set()
        for reader in self._readers:
            reader.wake.set()

    async def stream(self, request: web.Request) -> web.StreamResponse:
        """Lines until the reader goes, ``close``, or its address opens too many. Raises ApiError 503 when closed, or
        when too many read."""
        if self._closing.is_set():
            raise ApiError(503, "shutting_down", "the gateway is going down: read at another one", retry_after=1)
        reader = self._admit(request)
        response = web.StreamResponse(headers={"Content-Type": DEMAND_CONTENT_TYPE, "Cache-Control": "no-store"})
        try:
            _keep_little(request.transport)
            await response.prepare(request)
            await self._tell(request, response, reader.wake)
        except TimeoutError:
            log.warning("a reader of the demand took nothing for %.0f s and is let go", WRITE_TIMEOUT)
            if request.transport is not None:
                request.transport.abort()
        except ConnectionError:
            log.debug("a reader of the demand went away")
        finally:
            self._readers.pop(reader, None)
        return response

    def _admit(self, request: web.Request) -> _Reader:
        """Ends the oldest stream of an address that has too many, and when all places are taken, of the one that has
        most. Raises ApiError 503 when each has one."""
        reader = _Reader(request.remote or "", request.transport)
        by_address: defaultdict[str, list[_Reader]] = defaultdict(list)
        for other in self._readers:
            by_address[other.address].append(other)
        own = by_address[reader.address]
        if len(own) >= MAX_READERS_OF_ADDRESS:
            self._end(own[0])
        elif self.readers >= MAX_READERS:
            most = max(by_address.values(), key=len)
            if len(most) <= len(own) + 1:
                message = f"{self.readers} streams of demand are open, which is the most there may be: close one"
                raise ApiError(503, "too_many_readers", message, retry_after=1)
            self._end(most[0])
        self._readers[reader] = None
        return reader

    def _end(self, reader: _Reader) -> None:
        """At once: a last line would wait for a reader that does not read, and so would what it holds."""
        log.info(
            "a stream of demand to %s ends: more were opened from there, up to the most there may be", reader.address
        )
        del self._readers[reader]
        if reader.transport is not None:
            reader.transport.abort()

    async def _tell(self, request: web.Request, response: web.StreamResponse, wake: asyncio.Event) -> None:
        since: int | None = None
        clock = asyncio.get_running_loop().time
        heartbeat = clock()
        while True:
            last = self._closing.is_set()
            wake.clear()
            looked = clock()
            line, since = self.line(since)
            if line.rerankers or last or looked >= heartbeat:
                async with asyncio.timeout(WRITE_TIMEOUT):
                    await response.write(encode_line(line))
                    await request.writer.drain()
                heartbeat = looked + HEARTBEAT
            if last:
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(heartbeat):
                    await wake.wait()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(looked + INTERVAL):
                    await self._closing.wait()

    def _touch(self, key: Key) -> None:
        self._touched.add(key)
        for reader in self._readers:
            reader.wake.set()

    def _look(self, key: Key) -> RerankerDemand:
        namespace, name = key
        route = self._routes.get(key)
        queue = self._queues.get(key)
        past = self._past.setdefault(key, _Past())
        past.follow(queue)
        if queue is None:
            idle = {endpoint.uid: 0 for endpoint in route.endpoints} if route is not None else {}
            return RerankerDemand(namespace, name, 0, 0, 0, 0, past.requests, past.tokens, outstanding=idle)
        return RerankerDemand(
            namespace=namespace,
            name=name,
            queued=queue.waiting,
            queued_tokens=queue.queued_tokens,
            in_flight=queue.in_flight,
            in_flight_tokens=queue.in_flight_tokens,
            arrived_requests=past.requests + queue.arrived_requests,
            arrived_tokens=past.tokens + queue.arrived_tokens,
            last_ended=queue.last_ended,
            capacity=queue.capacity,
            waking_since=queue.waking_since,
            outstanding=queue.outstanding,
        )

    def _forget(self) -> None:
        """Bounds what is kept of Rerankers that are gone, the longest gone first."""
        gone = len(self._past.keys() - self._routes.keys())
        for key in list(self._past) if gone > MAX_REMEMBERED else ():
            if gone <= MAX_REMEMBERED:
                return
            if key not in self._routes:
                gone -= 1
                del self._past[key]
                self._touched.discard(key)
                self._states.pop(key, None)
                self._changed_at.pop(key, None)


def _keep_little(transport: asyncio.Transport | None) -> None:
    """A line counts as written once the kernel has it, and the kernel takes only a few."""
    if transport is None:
        raise ConnectionResetError("the reader has gone")
    transport.set_write_buffer_limits(high=0)
    connection: socket.socket | None = transport.get_extra_info("socket")
    if connection is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)


def add_demand(app: web.Application, demand: Demand) -> None:
    async def end_streams(_: web.Application) -> None:
        demand.close()

    app.router.add_get(DEMAND_PATH, demand.stream, allow_head=False)
    app.on_shutdown.append(end_streams)
