"""Finding gateways and hearing them, over HTTP: streams that end, fall silent, come late or are not understood."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import pytest
from aiohttp import web
from kubernetes.aio.client import Configuration
from rerank_api import names
from rerank_api.demand import DEMAND_PATH, DemandLine, RerankerDemand, encode_line
from rerank_operator.controller.api import KubeApi
from rerank_operator.controller.leader import steady_clock
from rerank_operator.demand.gateways import Gateways, addresses, in_our_time
from rerank_operator.demand.totals import Totals

KEY = ("search", "products")


async def until(what: Callable[[], Any], seconds: float = 10.0) -> None:
    async with asyncio.timeout(seconds):
        while not what():  # noqa: ASYNC110 (the thing waited for has no event)
            await asyncio.sleep(0.01)


def demand(requests: int, queued: int = 0) -> RerankerDemand:
    return RerankerDemand(*KEY, queued, queued * 10, 0, 0, requests, requests * 10)


class Gateway:
    """A gateway's admin port whose lines the test says."""

    def __init__(self) -> None:
        self.process = "p"
        self.first: list[bytes] = [self.line(demand(5), full=True)]
        self.streams: list[web.StreamResponse] = []
        self.connections = 0
        self.port = 0
        self.end = asyncio.Event()

    def line(self, *rerankers: RerankerDemand, full: bool = False, sent: float | None = None) -> bytes:
        return encode_line(DemandLine(self.process, time.time() if sent is None else sent, full, list(rerankers)))

    async def say(self, text: bytes) -> None:
        for stream in self.streams:
            await stream.write(text)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.connections += 1
        stream = web.StreamResponse()
        await stream.prepare(request)
        self.streams.append(stream)
        end = self.end
        try:
            for text in self.first:
                await stream.write(text)
            await end.wait()
        finally:
            self.streams.remove(stream)
        return stream

    def hang_up(self) -> None:
        self.end.set()
        self.end = asyncio.Event()


async def serve(app: web.Application) -> tuple[web.AppRunner, int]:
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    return runner, runner.addresses[0][1]


class World:
    def __init__(self, api: KubeApi, gateway: Gateway) -> None:
        self.gateway = gateway
        self.pods: list[dict[str, Any]] = []
        self.asked: list[str] = []
        self.totals = Totals()
        self.changed: list[set[tuple[str, str]]] = []
        self.gateways = Gateways(api, ("rerank-system", "gateway"), self.totals, self.changed.append)

    def complete(self) -> bool:
        return self.totals.complete(steady_clock())

    def arrived(self) -> int:
        return self.totals.told(KEY, steady_clock()).demand.arrived_requests


NOW = 1_800_000_000.0
"""2027-01-15T08:00:00Z."""


def pod(host: str | None, port: int = 9090, phase: str = "Running", ends_by: str | None = None) -> dict[str, Any]:
    ports = [{"name": "http", "containerPort": 8080}, {"name": "admin", "containerPort": port}]
    return {
        "metadata": {"name": f"gateway-{host}", **({"deletionTimestamp": ends_by} if ends_by else {})},
        "spec": {"containers": [{"name": "proxy"}, {"name": "gateway", "ports": ports}]},
        "status": {"phase": phase, **({"podIP": host} if host else {})},
    }


def service(target: str | int) -> dict[str, Any]:
    ports = [
        {"name": "http", "port": 80, "targetPort": "http"},
        {"name": names.GATEWAY_ADMIN_PORT_NAME, "port": 1, "targetPort": target},
    ]
    return {"spec": {"selector": {"b": "2", "a": "1"}, "ports": ports}}


@pytest.fixture
async def world() -> AsyncIterator[World]:
    gateway = Gateway()
    app = web.Application()
    app.router.add_get(DEMAND_PATH, gateway.answer)
    at_gateway, gateway.port = await serve(app)
    made: list[World] = []

    async def pods(request: web.Request) -> web.Response:
        made[0].asked.append(request.query["labelSelector"])
        return web.json_response({"items": made[0].pods})

    async def services(_: web.Request) -> web.Response:
        return web.json_response(service("admin"))

    cluster = web.Application()
    cluster.router.add_get("/api/v1/namespaces/rerank-system/pods", pods)
    cluster.router.add_get("/api/v1/namespaces/rerank-system/services/gateway", services)
    at_cluster, port = await serve(cluster)
    api = KubeApi(Configuration(host=f"http://127.0.0.1:{port}"))
    made.append(World(api, gateway))
    made[0].pods = [pod("127.0.0.1", gateway.port)]
    running = asyncio.create_task(made[0].gateways.run())
    yield made[0]
    running.cancel()
    await asyncio.wait([running], timeout=5)
    gateway.hang_up()
    await api.close()
    await at_gateway.cleanup()
    await at_cluster.cleanup()


async def test_a_gateway_is_found_and_heard(world: World):
    await until(world.complete)
    assert world.asked[0] == "a=1,b=2"
    assert world.changed[0] == {KEY}
    await world.gateway.say(world.gateway.line(demand(8, queued=2)))
    await until(lambda: world.arrived() == 3)
    assert world.totals.told(KEY, steady_clock()).demand.queued == 2


async def test_a_stream_that_ends_is_opened_again_and_nothing_is_counted_twice(world: World):
    await until(world.complete)
    world.gateway.first = [world.gateway.line(demand(7), full=True)]
    world.gateway.hang_up()
    await until(lambda: world.gateway.connections == 2 and world.arrived() == 2)
    world.gateway.process = "q"
    world.gateway.first = [world.gateway.line(demand(100), full=True)]
    world.gateway.hang_up()
    await until(lambda: world.gateway.connections == 3 and world.complete())
    assert world.arrived() == 2


async def test_silence_makes_the_sums_incomplete_and_another_stream_is_tried(world: World):
    await until(world.complete)
    await until(lambda: not world.complete())
    await until(lambda: world.gateway.connections >= 2)
    await until(world.complete)


async def test_a_gateway_that_is_gone_leaves_the_sums_once_its_stream_has_ended(world: World):
    world.gateway.first = [world.gateway.line(demand(5, queued=3), full=True)]
    await until(world.complete)
    world.pods = []
    asked = len(world.asked)
    await until(lambda: len(world.asked) > asked)
    assert world.totals.told(KEY, steady_clock()).demand.queued == 3  # it still has its clients
    world.gateway.hang_up()
    await until(lambda: world.totals.told(KEY, steady_clock()).demand.queued == 0)
    assert world.changed[-1] == {KEY}
    assert not world.complete()


@pytest.mark.parametrize("nonsense", [b"nonsense\n", b'{"gateway":"p","sent":1,"full":false}\n', b"\xff\n"])
async def test_what_does_not_speak_as_a_gateway_is_no_gateway_without_demand(world: World, nonsense: bytes):
    world.gateway.first = [nonsense]
    await until(lambda: world.gateway.connections >= 3)
    assert not world.complete()


async def test_lines_that_come_late_do_not_keep_a_stream_alive(world: World):
    await until(world.complete)
    async with asyncio.timeout(10):
        while world.gateway.connections == 1:
            with contextlib.suppress(ConnectionError):  # who has hung up comes again in a moment
                await world.gateway.say(world.gateway.line(demand(6), sent=time.time() - 60))
            await asyncio.sleep(0.2)  # the pace of the lines: none is missed for as long as silence takes
    await until(world.complete)


@pytest.mark.parametrize(
    ("target", "pods", "expected"),
    [
        ("admin", [pod("10.0.0.1"), pod("fd00::1")], {"10.0.0.1:9090", "[fd00::1]:9090"}),
        (7070, [pod("10.0.0.1")], {"10.0.0.1:7070"}),
        ("admin", [pod("10.0.0.1", phase="Pending"), pod("10.0.0.2", phase="Failed"), pod(None)], {"10.0.0.1:9090"}),
        ("other", [pod("10.0.0.1")], set()),
        ("admin", [pod("10.0.0.1", ends_by="2027-01-15T07:59:30Z")], {"10.0.0.1:9090"}),  # it is being stopped
        ("admin", [pod("10.0.0.1", ends_by="2027-01-15T07:58:30Z")], set()),  # its node is lost
    ],
)
def test_which_pods_are_gateways(target: str | int, pods: list[dict[str, Any]], expected: set[str]):
    assert set(addresses(service(target), pods, NOW)) == expected


def stands(name: str, state: str) -> dict[str, Any]:
    return {"name": name, "state": {state: {}}}


@pytest.mark.parametrize("target", ["admin", 9090, 7070])
@pytest.mark.parametrize(
    ("states", "is_one"),
    [
        ([], True),  # nothing is known yet
        ([stands("proxy", "running"), stands("gateway", "running")], True),
        ([stands("proxy", "waiting"), stands("gateway", "running")], True),
        ([stands("proxy", "waiting"), {"name": "gateway"}], True),
        ([stands("proxy", "waiting"), stands("gateway", "waiting")], False),
        ([stands("proxy", "waiting"), stands("gateway", "terminated")], False),
    ],
)
def test_a_pod_whose_containers_do_not_run_is_no_gateway(target: str | int, states: list[dict[str, Any]], is_one: bool):
    """Regression: one whose image cannot be pulled has an address, was never heard, and nothing shrank any more."""
    one = pod("10.0.0.1")
    one["status"]["containerStatuses"] = states
    assert bool(addresses(service(target), [one], NOW)) == is_one


def test_a_sidecar_that_runs_makes_no_gateway():
    one = pod("10.0.0.1")
    one["status"]["containerStatuses"] = [stands("proxy", "running"), stands("gateway", "waiting")]
    assert addresses(service("admin"), [one], NOW) == {}
    del one["status"]["containerStatuses"]
    assert addresses(service("admin"), [one], NOW) == {"10.0.0.1:9090": "gateway-10.0.0.1"}


@pytest.mark.parametrize(
    ("sent", "ended", "waking", "expected"),
    [
        (NOW + 3600.0, NOW + 3500.0, None, (NOW - 100.0, None)),  # it was ahead: idle time began an hour late
        (NOW - 3600.0, NOW - 3700.0, NOW - 3605.0, (NOW - 100.0, NOW - 5.0)),
        (NOW - 0.01, NOW - 100.0, None, (NOW - 100.0, None)),
        (NOW + 0.5, NOW + 0.4, NOW + 0.3, (NOW, NOW)),
        (NOW, None, None, (None, None)),
    ],
)
def test_times_of_a_gateway_are_read_by_our_clock(
    sent: float, ended: float | None, waking: float | None, expected: tuple[float | None, float | None]
):
    told = msgspec.structs.replace(demand(5), last_ended=ended, waking_since=waking)
    line = in_our_time(DemandLine("p", sent, False, [told]), NOW)
    assert line.sent == sent
    assert (line.rerankers[0].last_ended, line.rerankers[0].waking_since) == expected


async def test_who_is_silent_is_named_once(world: World, caplog: pytest.LogCaptureFixture):
    await until(world.complete)
    world.pods.append(pod("127.0.0.2", 1))  # nobody answers there
    await until(lambda: "not heard: gateway-127.0.0.2 (127.0.0.2:1)" in caplog.text)
    asked = len(world.asked)
    await until(lambda: len(world.asked) >= asked + 2)
    assert caplog.text.count("not heard: ") == 1
