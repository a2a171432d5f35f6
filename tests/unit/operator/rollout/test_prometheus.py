"""What a Prometheus answers to a query, and what becomes of it. A real one, where setup has found one, scrapes an
exporter of the test; answers that no Prometheus gives come from a server of the test."""

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import numpy as np
import pytest
from aiohttp import web
from harness.prometheus import SCRAPE_SECONDS, exporter, needs_prometheus, scraping
from rerank_api.reranker import PrometheusQuery, Rollout, RolloutStatus
from rerank_operator.rollout import prometheus
from rerank_operator.rollout.judge.judge import MetricVerdict, Settings
from rerank_operator.rollout.judge.series import Limit, Series, Values
from rerank_operator.rollout.prometheus import CannotQuery, ask, checked_url
from rerank_operator.rollout.queries import NOWHERE, Queries

SECONDS = 60.0
"""In which a Prometheus starts and has scraped."""
TICK = 0.1
"""Seconds between two sales of the shop, and two looks."""


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    """As the operator's own."""
    async with aiohttp.ClientSession(auto_decompress=False, trust_env=False) as session:
        yield session


@asynccontextmanager
async def serving(handle: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> AsyncGenerator[int]:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


# --- a real one ---


class Shop:
    """A shop that counts searches and orders, by the revision that ranked for it, as its exporter tells."""

    def __init__(self) -> None:
        self.searches: dict[str, int] = {}
        self.orders: dict[str, int] = {}
        self.chance = np.random.default_rng(11)

    def sell(self, revision: str, searches: int, conversion: float) -> None:
        self.searches[revision] = self.searches.get(revision, 0) + searches
        self.orders[revision] = self.orders.get(revision, 0) + int(self.chance.binomial(searches, conversion))

    def tell(self) -> str:
        lines = [
            f'{name}{{revision="{revision}"}} {count}'
            for name, counts in (("shop_searches_total", self.searches), ("shop_orders_total", self.orders))
            for revision, count in counts.items()
        ]
        return "\n".join(lines) + "\n"


@contextlib.contextmanager
def asked(shop: Shop, folder: Path) -> Generator[str]:
    """The address of a real Prometheus that scrapes the shop."""
    with exporter(shop.tell) as port, scraping(port, folder) as url:
        yield url


async def until(session: aiohttp.ClientSession, url: str, query: str, expected: float) -> None:
    """The Prometheus knows it."""
    try:
        async with asyncio.timeout(SECONDS):
            found = None
            while found != expected:
                try:
                    found = await ask(session, url, query)
                except CannotQuery:  # it starts
                    found = None
                await asyncio.sleep(SCRAPE_SECONDS / 4)
    except TimeoutError:
        pytest.fail(f"{query} is {found} and not {expected} after {SECONDS:g} s")


CONVERSION = PrometheusQuery(
    "conversion",
    'shop_orders_total{revision="{revision}"} / shop_searches_total{revision="{revision}"}',
    max_decrease=0.1,
    interval="1m",
)


class Play:
    """A rollout with queries of its own: as the operator does, with a clock that the test moves."""

    def __init__(self, url: str | None, *queries: PrometheusQuery) -> None:
        self.now = time.time()
        self.queries = Queries(url, lambda: self.now)
        self.series: dict[str, Series] = {}
        self.rollout = Rollout(strategy="Canary", prometheus=list(queries))
        self.state = RolloutStatus("new", "old", "Traffic")

    def look(self, session: aiohttp.ClientSession, step: int = 0) -> dict[str, MetricVerdict]:
        found = self.queries.look(session, self.series, self.rollout, self.state, step, Settings())
        return {one.name: one for one in found}

    async def interval(self, session: aiohttp.ClientSession, seconds: float = 60.0) -> dict[str, MetricVerdict]:
        """One passes, and its values come."""
        self.now += seconds
        self.look(session)
        asking = [task for task in asyncio.all_tasks() if task.get_name().startswith("queries ")]
        if asking:
            await asyncio.wait(asking, timeout=SECONDS)
        return self.look(session)


@needs_prometheus
@pytest.mark.parametrize(("conversion", "expected"), [(0.04, "fail"), (0.08, "pass")], ids=["worse", "equal"])
async def test_a_worse_conversion_is_found_and_an_equal_one_passes(
    session: aiohttp.ClientSession, tmp_path: Path, conversion: float, expected: str
):
    """In real time, with intervals of a second, which the schema does not allow and the code does not mind."""
    shop = Shop()
    query = " / ".join(
        f'sum(increase(shop_{what}_total{{revision="{{revision}}"}}[1s]))' for what in ("orders", "searches")
    )
    wanted = PrometheusQuery("conversion", query, max_decrease=0.1, interval="1s")
    shop.sell("old", 20_000, 0.08)
    shop.sell("new", 2_000, conversion)
    with asked(shop, tmp_path) as url:
        await until(session, url, "count(shop_orders_total)", 2.0)
        play = Play(url, wanted)
        said, until_when = play.look(session)["conversion"], time.monotonic() + SECONDS
        while said.verdict == "hold" and time.monotonic() < until_when:
            await asyncio.sleep(TICK)
            shop.sell("old", 2_000, 0.08)
            shop.sell("new", 200, conversion)
            play.now = time.time()
            said = play.look(session)["conversion"]
    assert said.verdict == expected, said.message
    worse, others = play.series["conversion"].points[0]
    assert (worse > others) == (expected == "fail")
    assert f"worse in {worse} of {worse + others} intervals" in said.message


REFUSED = {
    "sum(": "Prometheus says bad_data: ",
    "shop_orders_total": "gives 2 values: aggregate them to one",
    "shop_orders_total[1m]": "gives a matrix and not one value",
    '"text"': "gives a string and not one value",
    "shop_orders_total / on(job) shop_orders_total": "Prometheus says execution: found duplicate series",
}


@needs_prometheus
async def test_a_real_prometheus_words_are_told(session: aiohttp.ClientSession, tmp_path: Path):
    shop = Shop()
    shop.sell("old", 100, 0.5)
    shop.sell("new", 100, 0.5)
    with asked(shop, tmp_path) as url:
        await until(session, url, "count(shop_orders_total)", 2.0)
        for query, told in REFUSED.items():
            with pytest.raises(CannotQuery) as failed:
                await ask(session, url, query)
            assert told in str(failed.value), query


@needs_prometheus
async def test_a_real_prometheus_values(session: aiohttp.ClientSession, tmp_path: Path):
    shop = Shop()
    shop.sell("old", 100, 0.0)
    with asked(shop, tmp_path) as url:
        await until(session, url, "count(shop_orders_total)", 1.0)
        assert await ask(session, url, 'shop_searches_total{revision="old"}') == 100.0
        assert await ask(session, url, 'shop_searches_total{revision="new"}') is None
        assert await ask(session, url, "scalar(shop_searches_total) + 1") == 101.0
        assert str(await ask(session, url, "shop_orders_total / shop_orders_total")) == "nan"
        assert await ask(session, url, "-1 / 0") == float("-inf")
        # As docs/canary-judge.md has it, for a revision whose counter is not there yet:
        orders = 'sum(shop_orders_total{revision="new"})'
        assert await ask(session, url, f"{orders} / sum(shop_searches_total)") is None
        assert await ask(session, url, f"({orders} or vector(0)) / sum(shop_searches_total)") == 0.0
        # And for intervals in which too little was counted:
        enough = "sum(shop_orders_total) / sum(shop_searches_total) and on() sum(shop_searches_total) > {least}"
        assert await ask(session, url, enough.format(least=99)) == 0.0
        assert await ask(session, url, enough.format(least=100)) is None


# --- what no Prometheus answers, and one that is not there ---


def answer(body: Any, status: int = 200, **more: Any) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def handle(_: web.Request) -> web.Response:
        return web.json_response(body, status=status, **more)

    return handle


def vector(*samples: Any) -> dict[str, Any]:
    return {"status": "success", "data": {"resultType": "vector", "result": list(samples)}}


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (
            {"status": "error", "errorType": "timeout", "error": "query timed out"},
            "Prometheus says timeout: query timed",
        ),
        ({"status": "error", "errorType": "execution", "error": "x" * 999}, "x..."),
        (vector({"metric": {}, "histogram": [1.0, {}]}), "gives a histogram and not one value"),
        (vector({"metric": {}, "value": [1.0, "many"]}), "not understood: could not convert string"),
        (vector({"metric": {}, "value": [1.0, 2.0]}), "not understood: Expected `str`"),
        ({"answer": 42}, "not understood: Object missing required field `status`"),
        ([], "not understood: Expected `object`"),
        (vector(*[{"metric": {"label": "x" * 100}, "value": [1.0, "1"]}] * 1000), "longer than 65536 bytes: aggregate"),
    ],
)
async def test_an_answer_that_is_no_value_is_none(session: aiohttp.ClientSession, body: Any, told: str):
    async with serving(answer(body)) as port:
        with pytest.raises(CannotQuery) as failed:
            await ask(session, f"http://127.0.0.1:{port}", "x")
        assert told in str(failed.value)
        assert len(str(failed.value)) < 400


async def test_what_is_no_prometheus_is_called_so(session: aiohttp.ClientSession):
    async def handle(_: web.Request) -> web.Response:
        return web.Response(status=302, headers={"Location": "http://127.0.0.1:1/login"}, text="log in")

    async with serving(handle) as port:
        with pytest.raises(CannotQuery, match="is no Prometheus: status 302, text/plain"):
            await ask(session, f"http://127.0.0.1:{port}", "x")


async def test_a_prometheus_that_is_not_there_is_told(session: aiohttp.ClientSession):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(CannotQuery, match="cannot be reached: Cannot connect"):
        await ask(session, f"http://127.0.0.1:{port}", "x")


async def test_a_prometheus_that_hangs_is_left_after_its_time(
    session: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(prometheus, "SECONDS", 0.2)
    let_go = asyncio.Event()

    async def handle(_: web.Request) -> web.Response:
        await let_go.wait()
        return web.json_response(vector())

    async with serving(handle) as port:
        with pytest.raises(CannotQuery, match=r"no answer in 0\.2 s"):
            await ask(session, f"http://127.0.0.1:{port}", "x")
        let_go.set()


@pytest.mark.parametrize("wrong", ["prometheus:9090", "ftp://p", "http://", "http://p/?query=x", "http://p/#a", ""])
def test_an_address_that_is_none_is_refused(wrong: str):
    with pytest.raises(ValueError, match="must be the address of a Prometheus"):
        checked_url(wrong)


def test_an_address_may_have_a_path():
    assert checked_url("https://mimir.example.com/prometheus/") == "https://mimir.example.com/prometheus"


# --- when what is asked, and what is kept ---


def conversions(asked: list[str], old: float, new: float) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def handle(request: web.Request) -> web.Response:
        query = str((await request.post())["query"])
        asked.append(query)
        return web.json_response(vector({"metric": {}, "value": [1.0, str(new if "new" in query else old)]}))

    return handle


async def test_both_revisions_are_asked_at_each_interval_and_not_before(session: aiohttp.ClientSession):
    asked: list[str] = []
    slow = PrometheusQuery("slow", '{r="{revision}", x=~"{revision}"}', max_increase=0.5, interval="3m")
    async with serving(conversions(asked, 1.0, 1.2)) as port:
        play = Play(f"http://127.0.0.1:{port}", CONVERSION, slow)
        assert "nothing to compare yet" in play.look(session)["conversion"].message
        await play.interval(session, 59.0)
        assert asked == []
        await play.interval(session, 1.0)
        assert sorted(asked) == [CONVERSION.query.replace("{revision}", revision) for revision in ("new", "old")]
        await play.interval(session, 59.0)
        assert len(asked) == 2
        for _ in range(4):
            said = await play.interval(session)
        assert [asked.count(f'{{r="{one}", x=~"{one}"}}') for one in ("new", "old")] == [1, 1]
        assert said["conversion"].verdict == "pass"
        assert said["slow"].message.startswith("canary 1.2, stable 1 (+20 %, up to +50 % is allowed); worse in 0 of 1 ")
        assert play.series["conversion"].points == [(0, 5)]


async def test_another_query_begins_anew_and_one_that_is_gone_is_forgotten(session: aiohttp.ClientSession):
    async with serving(conversions([], 1.0, 1.0)) as port:
        play = Play(f"http://127.0.0.1:{port}", CONVERSION)
        play.look(session)
        await play.interval(session)
        assert play.series["conversion"].points == [(0, 1)]
        stricter = PrometheusQuery("conversion", CONVERSION.query, max_decrease=0.01)
        play.rollout = Rollout(strategy="Canary", prometheus=[stricter, PrometheusQuery("b", "b", max_increase=1.0)])
        said = play.look(session)
        assert [one.points for one in play.series.values()] == [[(0, 0)], [(0, 0)]]
        assert all("of 400," in one.message for one in said.values()), "four metrics share one in a hundred"
        play.rollout = Rollout(strategy="Canary")
        assert play.look(session) == {}
        assert play.series == {}


async def test_an_answer_to_what_is_not_asked_any_more_counts_for_nothing(session: aiohttp.ClientSession):
    async with serving(conversions([], 1.0, 0.1)) as port:
        play = Play(f"http://127.0.0.1:{port}", CONVERSION)
        play.look(session)
        play.now += 60.0
        play.look(session)
        other = PrometheusQuery("conversion", "other{revision}", max_decrease=0.5)
        play.rollout = Rollout(strategy="Canary", prometheus=[other])
        assert "nothing to compare yet" in (await play.interval(session, 1.0))["conversion"].message


async def test_trouble_holds_and_is_told_and_does_not_undo_what_is_known(session: aiohttp.ClientSession):
    async with serving(conversions([], 1.0, 1.0)) as port:
        play = Play(f"http://127.0.0.1:{port}", CONVERSION)
        play.look(session)
        for _ in range(3):
            await play.interval(session)
    said = (await play.interval(session))["conversion"]
    assert said.verdict == "hold"
    assert "Prometheus cannot be reached: " in said.message
    assert "worse in 0 of 3 intervals" in said.message


async def test_without_a_prometheus_it_is_held_and_says_what_to_set(session: aiohttp.ClientSession):
    play = Play(None, CONVERSION)
    play.series["conversion"] = Series("kept", 0.0)
    for _ in range(3):
        said = (await play.interval(session))["conversion"]
    assert said.verdict == "hold"
    assert said.message.startswith(NOWHERE)
    assert "operator.prometheusUrl" in NOWHERE


async def test_what_an_operator_before_has_kept_goes_on(session: aiohttp.ClientSession):
    async with serving(conversions([], 1.0, 1.0)) as port:
        first = Play(f"http://127.0.0.1:{port}", CONVERSION)
        first.look(session)
        for _ in range(4):
            await first.interval(session)
        second = Play(f"http://127.0.0.1:{port}", CONVERSION)
        second.series = msgspec.json.decode(msgspec.json.encode(first.series), type=dict[str, Series])
        second.now = first.now
        assert second.look(session)["conversion"].verdict == "hold"
        assert (await second.interval(session))["conversion"].verdict == "pass"


async def test_the_steps_of_the_rollout_are_reached(session: aiohttp.ClientSession):
    play = Play(None, CONVERSION)
    for step in (0, 2, 3):
        play.look(session, step)
        assert len(play.series["conversion"].points) == step + 1
    play.series["conversion"].add(Values(1.0, 0.5), Limit(0.1, higher=False))
    assert play.look(session, 3)["conversion"].worse > 1
