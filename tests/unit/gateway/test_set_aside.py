"""A revision with a share of 0 percent: no user's request gets there, whatever becomes of the others."""

import asyncio
from typing import Any

import msgspec
import pytest
from aiohttp import web
from rerank_api import wire
from rerank_api.demand import DEMAND_PATH, DemandLine
from rerank_gateway.cluster.state import Endpoint, Policy, build_table
from rerank_gateway.routes import MODELS_PATH

from .conftest import House, Worker, worker_error

SHUT_OUT = (("stable", 100), ("canary", 0))
STABLE, CANARY = (Endpoint(uid, "ns", "rr", uid, "10.0.0.1") for uid in ("stable", "canary"))
OTHER = Endpoint("other", "ns", "rr", "other", "10.0.0.1")


@pytest.mark.parametrize(
    ("traffic", "serving"),
    [
        pytest.param((), {"stable", "canary", "other"}, id="no split"),
        pytest.param(SHUT_OUT, {"stable", "other"}, id="without a share is not shut out"),
        pytest.param((("stable", 99), ("canary", 1)), {"stable", "canary", "other"}, id="a percent"),
        pytest.param((("canary", 0), ("canary", 5)), {"stable", "canary", "other"}, id="two entries: their sum counts"),
        pytest.param((("canary", 0),), {"stable", "other"}, id="nothing else has a share"),
    ],
)
def test_which_workers_are_set_aside(traffic: tuple[tuple[str, int], ...], serving: set[str]) -> None:
    route = build_table([Policy("ns", "rr", traffic=traffic)], [STABLE, CANARY, OTHER]).routes["ns", "rr"]
    assert {endpoint.uid for endpoint in route.endpoints} == serving
    assert {endpoint.uid for endpoint in route.set_aside} == {"stable", "canary", "other"} - serving
    assert route.revisions >= {"stable", "canary", "other"}


async def _told(house: House) -> Any:
    """The first line of the demand, about the only Reranker."""
    async with house.client.get(house.admin_url + DEMAND_PATH) as response:
        return msgspec.json.decode(await response.content.readline(), type=DemandLine).rerankers[0]


async def test_its_worker_ends_no_wait_for_a_wake_up(house: House) -> None:
    canary, stable = await house.worker("canary"), await house.worker("stable")
    house.serve(traffic=SHUT_OUT, timeout=0.05, wake_timeout=60.0)
    request = house.rerank()
    await house.until_waiting(1)
    house.serve(canary)
    # Longer than it would be held were there a worker: the bound is that of a wake-up still.
    assert not (await asyncio.wait({request}, timeout=0.2))[0]
    told = await _told(house)
    assert told.waking_since is not None
    assert told.outstanding == {}
    async with house.client.get(house.url + MODELS_PATH) as response:
        assert (await response.json())["data"][0]["ready"] is False
    house.serve(canary, stable, timeout=5.0)
    assert (await request)[0] == 200
    assert canary.seen == []
    assert (await _told(house)).outstanding == {stable.endpoint().uid: 0}


async def test_its_worker_is_no_way_out_when_all_others_are_broken(house: House) -> None:
    async def broken(worker: Worker, query: wire.ScoreRequest) -> web.Response | None:
        return worker_error(500, "internal") if len(worker.seen) < 3 else None

    canary, stable = await house.worker("canary"), await house.worker("stable", behave=broken)
    house.serve(canary, stable, traffic=SHUT_OUT)
    async with house.client.post(house.url + "/v2/rerank", json={"query": "q", "documents": ["a"]}) as response:
        assert (response.status, response.headers["X-Rerank-Revision"]) == (200, "stable")
    assert canary.seen == []


async def test_its_worker_is_ready_and_serves_nobody_as_metrics_tell(house: House) -> None:
    """Regression: RerankNoWorkers stayed silent while a canary without a share was all that was left."""
    house.serve(await house.worker("canary"), traffic=SHUT_OUT)
    assert await house.metric("rerank_gateway_endpoints{", 'revision="canary"') == 1
    assert await house.metric("rerank_gateway_serving_endpoints{") == 0
    house.serve(await house.worker("stable"), traffic=SHUT_OUT)
    assert await house.metric("rerank_gateway_serving_endpoints{") == 1


async def test_its_worker_gets_nothing_when_the_others_are_gone(house: House) -> None:
    canary, stable = await house.worker("canary"), await house.worker("stable")
    house.serve(canary, stable, traffic=SHUT_OUT)
    assert (await house.rerank())[0] == 200
    house.serve(canary, timeout=0.05, wake_timeout=0.1)
    status, answer = await house.rerank()
    assert (status, answer["error"]["code"]) == (504, "deadline_exceeded")
    assert canary.seen == []


async def test_who_waits_for_a_canary_that_is_taken_back_goes_to_stable(house: House) -> None:
    canary, stable = await house.worker("canary"), await house.worker("stable")
    canary.behave = _busy
    house.serve(canary, stable, traffic=(("canary", 100),))
    request = house.rerank()
    await house.until_waiting(1)
    seen = len(canary.seen)
    house.serve(canary, stable, traffic=SHUT_OUT)
    assert (await request)[0] == 200
    assert len(canary.seen) - seen <= 1, "it may just have been on its way"
    assert len(stable.seen) == 1


async def _busy(worker: Worker, query: wire.ScoreRequest) -> web.Response:
    return worker_error(429, "busy")
