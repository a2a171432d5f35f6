"""A gateway on a loopback port, with workers that are small real HTTP servers speaking wire.py."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import aiohttp
import msgspec
import pytest
from aiohttp import web
from rerank_api import wire
from rerank_gateway.access import AccessLine
from rerank_gateway.app import Gateway, Options
from rerank_gateway.cluster.state import Endpoint, Policy, RoutingTable, build_table

if TYPE_CHECKING:
    from rerank_gateway.tracing import Tracing

DEADLINE = 10.0


async def until(condition: Callable[[], bool], what: str) -> None:
    """Waits for the condition; fails after a deadline."""
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, f"not in time: {what}"
        await asyncio.sleep(0.005)


Behaviour = Callable[["Worker", wire.ScoreRequest], Awaitable[web.StreamResponse | None]]


class Worker:
    """Scores a document by its length, unless ``behave`` answers first; closing it is a crash."""

    def __init__(self, revision: str = "one", behave: Behaviour | None = None) -> None:
        self.revision = revision
        self.behave = behave
        self.seen: list[wire.ScoreRequest] = []
        self.headers: list[Mapping[str, str]] = []
        self.paths: list[str] = []
        self.models: set[str] = set()
        """Keys of those that it holds, as a warm pod does."""
        self.capacity: int | None = None
        """Told with each of its own answers."""
        self.cancelled = 0
        self.healthy = True
        self._runner: web.AppRunner | None = None
        self.port = 0

    async def start(self, port: int = 0) -> None:
        app = web.Application(client_max_size=2**27)
        app.router.add_post(wire.SCORE_PATH, self._score)
        app.router.add_post(wire.MODELS_PATH + "/{key}/score", self._score_model)
        app.router.add_get(wire.LIVE_PATH, self._health)
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.01)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", port, reuse_address=True).start()
        self.port = self._runner.addresses[0][1]

    async def crash(self) -> None:
        """Connections are reset and the port is closed."""
        if self._runner is None:
            return
        server = self._runner.server
        assert server is not None
        for connection in list(server.connections):
            if connection.transport is not None:
                connection.transport.abort()
        await self._runner.cleanup()
        self._runner = None

    def endpoint(self, uid: str | None = None, reranker: str = "products", key: str | None = None) -> Endpoint:
        """``key``: of the model for which it is on loan."""
        path = f"{wire.MODELS_PATH}/{key}/score" if key is not None else wire.SCORE_PATH
        return Endpoint(uid or f"pod-{self.port}", "search", reranker, self.revision, "127.0.0.1", self.port, path)

    async def _health(self, _: web.Request) -> web.Response:
        return web.Response(status=200 if self.healthy else 503)

    async def _score_model(self, request: web.Request) -> web.StreamResponse:
        if request.match_info["key"] not in self.models:
            return worker_error(404, "not_found", "this worker has no such model")
        return await self._score(request)

    async def _score(self, request: web.Request) -> web.StreamResponse:
        query = msgspec.json.decode(await request.read(), type=wire.ScoreRequest)
        self.seen.append(query)
        self.headers.append(request.headers)
        self.paths.append(request.path)
        try:
            if self.behave is not None:
                answer = await self.behave(self, query)
                if answer is not None:
                    return answer
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        response = scores([len(document) / 1000 for document in query.documents])
        if self.capacity is not None:
            response.headers[wire.HEADER_CAPACITY] = str(self.capacity)
        return response


def scores(values: Sequence[float], truncated: Sequence[int] = (), chunked: Sequence[int] = ()) -> web.Response:
    response = wire.ScoreResponse(list(values), 10 * len(values), list(truncated), list(chunked))
    return web.Response(body=msgspec.json.encode(response))


def worker_error(status: int, code: str, message: str = "no", retry_after: int | None = None) -> web.Response:
    headers = {"Retry-After": str(retry_after)} if retry_after else {}
    return web.Response(status=status, body=msgspec.json.encode({"code": code, "message": message}), headers=headers)


class TableSource:
    """A routing table that the test sets."""

    def __init__(self) -> None:
        self.table = RoutingTable()
        self.synced = True
        self.problem: str | None = None
        self._listeners: list[Callable[[RoutingTable], None]] = []

    def subscribe(self, listener: Callable[[RoutingTable], None]) -> None:
        self._listeners.append(listener)

    def stalled(self, now: float) -> str | None:
        return self.problem

    def set(self, policies: Sequence[Policy], endpoints: Sequence[Endpoint] = ()) -> None:
        self.table = build_table(policies, endpoints)
        for listener in self._listeners:
            listener(self.table)


@dataclass
class House:
    """The gateway under test, its client and its workers."""

    gateway: Gateway
    source: TableSource
    client: aiohttp.ClientSession
    lines: list[AccessLine]
    """What it wrote about requests."""
    workers: list[Worker] = field(default_factory=list)
    policy: Policy = field(default_factory=lambda: Policy("search", "products", timeout=5.0))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.gateway.api_port}"

    @property
    def admin_url(self) -> str:
        return f"http://127.0.0.1:{self.gateway.admin_port}"

    async def worker(self, revision: str = "one", behave: Behaviour | None = None) -> Worker:
        worker = Worker(revision, behave)
        await worker.start()
        self.workers.append(worker)
        return worker

    def serve(self, *workers: Worker, **policy: Any) -> None:
        """The one Reranker ``search/products`` with these workers Ready."""
        self.policy = replace(self.policy, **policy)
        self.source.set([self.policy], [worker.endpoint() for worker in workers])

    async def post(self, body: object, path: str = "/v2/rerank", **options: Any) -> tuple[int, Any]:
        data = body if isinstance(body, bytes) else msgspec.json.encode(body)
        async with self.client.post(self.url + path, data=data, **options) as response:
            return response.status, msgspec.json.decode(await response.read())

    def rerank(self, *documents: str, **options: Any) -> "asyncio.Task[tuple[int, Any]]":
        return asyncio.create_task(self.post({"query": "q", "documents": documents or ("a", "bb")}, **options))

    async def metric(self, name: str, *contains: str) -> float:
        async with self.client.get(self.admin_url + "/metrics") as response:
            lines = (await response.text()).splitlines()
        return sum(
            float(line.rsplit(" ", 1)[1])
            for line in lines
            if line.startswith(name) and all(part in line for part in contains)
        )

    async def until_metric(self, name: str, value: float, *contains: str) -> None:
        end = time.monotonic() + DEADLINE
        while (found := await self.metric(name, *contains)) != value:
            assert time.monotonic() < end, f"not in time: {name} is {found:g}, not {value:g}"
            await asyncio.sleep(0.005)

    async def until_waiting(self, count: int) -> None:
        await self.until_metric("rerank_gateway_waiting_requests", count)


@pytest.fixture
async def open_house() -> AsyncIterator[Callable[..., Awaitable[House]]]:
    async with AsyncExitStack() as stack:

        async def open_(
            wall: Callable[[], float] = time.time, tracing: "Tracing | None" = None, **options: Any
        ) -> House:
            source = TableSource()
            defaults: dict[str, Any] = {
                "host": "127.0.0.1",
                "port": 0,
                "admin_port": 0,
                "shutdown_delay": 0.0,
                "drain_timeout": 5.0,
            }
            lines: list[AccessLine] = []
            gateway = Gateway(Options(**{**defaults, **options}), source, time.monotonic, wall, tracing, lines.append)
            await gateway.start()
            client = await stack.enter_async_context(aiohttp.ClientSession())
            house = House(gateway, source, client, lines)
            house.source.set([house.policy])

            async def close() -> None:
                hurry = asyncio.Event()
                hurry.set()
                for worker in house.workers:
                    await worker.crash()
                await gateway.stop(hurry)

            stack.push_async_callback(close)
            return house

        yield open_


@pytest.fixture
async def house(open_house: Callable[..., Awaitable[House]]) -> House:
    return await open_house()
