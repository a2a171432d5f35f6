"""Looking at gateways over HTTP: those that answer, hang, refuse, and speak nonsense; and a page that cannot listen."""

import asyncio
import logging
import socket
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import pytest
from aiohttp import ClientSession, web
from rerank_gateway import health
from rerank_operator.controller.kinds import PODS, RERANKERS
from rerank_operator.controller.store import Store
from rerank_operator.page import sampling, server
from rerank_operator.page.exposition import SERIES
from rerank_operator.page.sampling import Sampling, Standing
from unit.operator.build import KEY, pod, reranker

LABELS = 'namespace="search",reranker="products"'


async def until(what: Callable[[], Any], seconds: float = 20.0) -> Any:
    async with asyncio.timeout(seconds):
        while not (found := what()):  # noqa: ASYNC110 (the thing waited for has no event)
            await asyncio.sleep(0.02)
    return found


class Gateway:
    """A gateway's /metrics, which the test may spoil."""

    def __init__(self) -> None:
        self.requests = 0
        self.asked = 0
        self.asked_for: list[str] = []
        self.spoilt: Callable[[], web.Response] | None = None
        self.hangs = False
        self.go = asyncio.Event()
        self.address = ""

    async def metrics(self, request: web.Request) -> web.Response:
        """All that it has, whatever is asked for, as an old gateway does."""
        self.asked += 1
        self.asked_for = request.query.getall(health.ONLY)
        if self.hangs:
            await self.go.wait()
        if self.spoilt is not None:
            return self.spoilt()
        self.requests += 10
        return web.Response(
            text="# HELP of what follows\n"
            f'rerank_gateway_requests_total{{{LABELS},revision="a",code="200"}} {self.requests}\n'
            f"rerank_gateway_waiting_requests{{{LABELS}}} 3\n"
            f'rerank_gateway_tokens_total{{{LABELS},revision="a"}} 1e9\n'
        )


class World:
    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self.store = Store()
        self.standing = Standing(synced=True, gateways={gateway.address: "gateway-1"})
        self.store.seen(RERANKERS, False, reranker(status={"readyReplicas": 1}))
        self.store.seen(PODS, False, pod("a"))
        lent = pod("", 1, metadata={"name": "pool-1", "labels": {"rerank.dev/loaned-to": KEY[1]}})
        self.store.seen(PODS, False, lent)
        self.sampling = Sampling(self.store, lambda: self.standing)

    async def fleet(self) -> dict[str, Any]:
        return msgspec.json.decode(await self.sampling.fleet())

    async def detail(self) -> dict[str, Any]:
        found = await self.sampling.reranker(KEY)
        assert found is not None
        return msgspec.json.decode(found)

    async def looks(self, number: int) -> None:
        asked = self.gateway.asked + number
        await until(lambda: self.gateway.asked >= asked)


@pytest.fixture
async def gateway() -> AsyncIterator[Gateway]:
    made = Gateway()
    app = web.Application()
    app.router.add_get(sampling.METRICS_PATH, made.metrics)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    made.address = f"127.0.0.1:{runner.addresses[0][1]}"
    yield made
    made.go.set()
    await runner.cleanup()


@pytest.fixture
async def world(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    monkeypatch.setattr(sampling, "STEP_SECONDS", 0.05)
    monkeypatch.setattr(sampling, "REST_SECONDS", 0.05)
    monkeypatch.setattr(sampling, "STATUS_SECONDS", 0.05)
    monkeypatch.setattr(sampling, "DEADLINE_SECONDS", 0.3)
    made = World(gateway)
    running = asyncio.create_task(made.sampling.run())
    yield made
    running.cancel()
    await asyncio.wait([running], timeout=5)


async def test_what_a_gateway_says_is_on_the_page(world: World):
    await world.looks(4)
    told = await world.fleet()
    (row,) = told["rerankers"]
    assert (row["namespace"], row["name"], row["ready"], row["waiting"]) == (*KEY, 1, 3)
    assert row["rate"] > 0
    assert told["seen"]["gateways"] == [{"name": "gateway-1", "heard": True, "since": None, "trouble": ""}]
    detail = await world.detail()
    assert {(one["name"], one["loaned"]) for one in detail["workers"]} == {("products-a-0", False), ("pool-1", True)}
    assert detail["times"] == sorted(detail["times"])
    assert abs(detail["times"][-1] - time.time()) < 30
    assert await world.sampling.reranker(("search", "nobody")) is None


async def test_gateways_are_asked_for_what_is_read_and_no_more(world: World):
    """To collect all their metrics for every look would hold requests up."""
    await world.looks(1)
    assert world.gateway.asked_for == list(SERIES)


async def test_nobody_is_asked_often_for_a_page_that_nobody_looks_at(gateway: Gateway, monkeypatch: pytest.MonkeyPatch):
    """Whatever it costs a gateway; and who then looks is told of now, and soon of how it goes on."""
    monkeypatch.setattr(sampling, "STEP_SECONDS", 0.05)
    world = World(gateway)
    running = asyncio.create_task(world.sampling.run())
    await world.looks(1)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(world.looks(1), 0.5)
    at_rest = (await world.fleet())["seen"]
    assert at_rest["patience"] == sampling.MISSED_LOOKS * sampling.REST_SECONDS
    await world.looks(3)
    seen = (await world.fleet())["seen"]
    assert seen["looked"] > at_rest["looked"]
    assert seen["patience"] < 1
    monkeypatch.setattr(sampling, "WATCHED_SECONDS", 0.0)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(world.looks(3), 1)
    running.cancel()
    await asyncio.wait([running], timeout=5)


@pytest.mark.parametrize(
    ("spoilt", "words"),
    [
        pytest.param(lambda: web.Response(status=500), "status 500", id="an error"),
        pytest.param(lambda: web.Response(text=f"rerank_gateway_waiting_requests{{{LABELS}}} x\n"), "x", id="nonsense"),
        pytest.param(lambda: web.Response(body=b"\xff" * 10), "no metrics of a gateway", id="no text"),
        pytest.param(
            lambda: web.Response(status=302, headers={"Location": "/else"}), "status 302", id="sent elsewhere"
        ),
        pytest.param(lambda: web.Response(headers={"X": "a" * 9000}), "more than 8190 bytes", id="heads without end"),
        pytest.param(lambda: web.Response(text="a" * 5000), "longer", id="too long"),
    ],
)
async def test_a_gateway_that_is_not_understood(
    world: World, monkeypatch: pytest.MonkeyPatch, spoilt: Callable[[], web.Response], words: str
):
    monkeypatch.setattr(sampling, "LONGEST_ANSWER", 4000)
    await world.looks(2)
    world.gateway.spoilt = spoilt
    await world.looks(3)
    (gateway,) = (await world.fleet())["seen"]["gateways"]
    assert not gateway["heard"]
    assert words in gateway["trouble"]
    assert len(gateway["trouble"]) <= sampling.MOST_CHARACTERS
    assert sampling.ONLY not in gateway["trouble"]
    since = gateway["since"]
    await world.looks(2)
    assert (await world.fleet())["seen"]["gateways"][0]["since"] == since
    world.gateway.spoilt = None
    await world.looks(3)
    assert (await world.fleet())["seen"]["gateways"][0]["heard"]


async def test_a_gateway_that_hangs_holds_nobody_up(world: World):
    await world.looks(2)
    world.gateway.hangs = True
    await world.looks(2)
    told = await world.fleet()
    assert told["seen"]["gateways"][0]["trouble"] == "no answer in time"
    assert told["rerankers"][0]["ready"] == 1


async def test_one_that_hangs_does_not_change_what_the_others_count(world: World, monkeypatch: pytest.MonkeyPatch):
    """Who answers at once is asked when a look begins; the time to the next such moment is what its requests took."""
    now, seconds = 0.0, [0.0, 4.0, 4.0, 0.0, 0.0]

    async def ask(_: ClientSession, address: str, __: asyncio.Semaphore) -> bytes | Exception:
        nonlocal now
        if address == "one":
            return f'rerank_gateway_requests_total{{{LABELS},revision="a",code="200"}} {10 * now}\n'.encode()
        now += seconds.pop(0)
        return TimeoutError()

    monkeypatch.setattr(sampling, "_ask", ask)
    standing = Standing(synced=True, gateways={"one": "gateway-1", "other": "gateway-2"})
    looking = Sampling(world.store, lambda: standing, steady=lambda: now)
    async with ClientSession() as session:
        while seconds:
            await looking._look_at_gateways(session)
            now += 2.5
    points = looking._figures.points(KEY)
    assert points is not None
    assert points.columns["rate"][1:] == [10.0] * 4


async def test_one_that_cannot_be_reached(world: World):
    await world.looks(2)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    world.standing = msgspec.structs.replace(world.standing, gateways={address: "gateway-2"})
    gateways: list[dict[str, Any]] = []
    async with asyncio.timeout(20):
        while not gateways or not gateways[0]["trouble"]:
            gateways = (await world.fleet())["seen"]["gateways"]
            await asyncio.sleep(0.02)
    assert gateways[0]["name"] == "gateway-2"
    assert "onnect" in gateways[0]["trouble"]


async def test_before_the_first_list_nothing_is_asked(gateway: Gateway, monkeypatch: pytest.MonkeyPatch):
    """Else every Reranker would seem new once it is listed, and all that gateways have ever counted a burst."""
    monkeypatch.setattr(sampling, "STEP_SECONDS", 0.02)
    made = World(gateway)
    asked: list[bool] = []

    def standing() -> Standing:
        asked.append(True)
        return Standing(synced=False, gateways={gateway.address: "gateway-1"})

    made.sampling = Sampling(made.store, standing)
    running = asyncio.create_task(made.sampling.run())
    await until(lambda: len(asked) > 5)
    running.cancel()
    await asyncio.wait([running], timeout=5)
    assert gateway.asked == 0


async def test_a_reranker_that_is_not_listed_yet_is_not_called_missing(world: World):
    world.standing = Standing(synced=False)
    found = await world.sampling.reranker(("search", "nobody"))
    assert found is not None
    assert "has not listed" in msgspec.json.decode(found)["message"]


async def test_a_gateway_that_was_never_asked_is_not_called_heard(gateway: Gateway):
    world = World(gateway)

    async def heard() -> list[tuple[bool, float | None]]:
        return [(each["heard"], each["since"]) for each in (await world.fleet())["seen"]["gateways"]]

    assert await heard() == [(False, None)]
    async with ClientSession() as session:
        await world.sampling._look_at_gateways(session)
    assert await heard() == [(True, None)]
    world.standing = msgspec.structs.replace(
        world.standing, gateways={**(world.standing.gateways or {}), "127.0.0.1:1": "gateway-2"}
    )
    assert await heard() == [(True, None), (False, None)]


async def test_the_first_look_follows_the_first_list(gateway: Gateway, monkeypatch: pytest.MonkeyPatch):
    """However few looks there are while nobody looks: figures begin with the first one."""
    monkeypatch.setattr(sampling, "STEP_SECONDS", 0.02)
    world, found = World(gateway), 0
    named = world.standing.gateways

    def standing() -> Standing:
        nonlocal found
        found += 1
        return Standing(synced=found > 20, gateways=named)

    running = asyncio.create_task(Sampling(world.store, standing).run())
    await until(lambda: gateway.asked, sampling.REST_SECONDS / 2)
    running.cancel()
    await asyncio.wait([running], timeout=5)


async def test_statuses_are_followed(world: World):
    first = {"scaling": {"mode": "Auto", "reason": "Steady", "desiredReplicas": 1, "message": "it is what is needed"}}
    then = {"scaling": {"mode": "Auto", "reason": "DemandRose", "desiredReplicas": 3, "message": "more"}}

    def put(version: str, status: dict[str, Any]) -> None:
        body = reranker(status=status)
        body["metadata"]["resourceVersion"] = version
        world.store.seen(RERANKERS, False, body)

    told: list[str] = []
    async with asyncio.timeout(20):
        for version, status, awaited in (("2", first, "it is what is needed"), ("3", then, "workers 1 to 3: more")):
            put(version, status)
            while awaited not in told:
                await asyncio.sleep(0.02)
                told = [note["text"] for note in (await world.detail())["history"]]
    assert told[0] == "workers 1 to 3: more"


async def test_a_failure_of_ours_is_told_once_and_tried_again(world: World, caplog: pytest.LogCaptureFixture):
    await world.looks(1)

    class Broken(Exception):
        pass

    def broken() -> Standing:
        raise Broken("a defect")

    healthy, world.sampling._standing = world.sampling._standing, broken
    with caplog.at_level(logging.ERROR):
        await until(lambda: "could not look" in caplog.text)
    world.sampling._standing = healthy
    await world.looks(2)
    assert caplog.text.count("could not look") <= 2  # of statuses and of gateways


async def test_the_page_starts_and_ends(world: World):
    page = await server.start(Sampling(world.store, lambda: world.standing), "127.0.0.1", 0)
    assert page is not None
    async with ClientSession() as session, session.get(f"http://127.0.0.1:{page.port}/api/fleet") as answer:
        assert [row["name"] for row in (await answer.json())["rerankers"]] == ["products"]
    await page.close()


async def test_without_a_port_the_operator_goes_on(world: World, caplog: pytest.LogCaptureFixture):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert await server.start(world.sampling, "127.0.0.1", taken.getsockname()[1]) is None
    assert "--page-port" in caplog.text
