"""Requests that a canary is asked too, which no user waits for: which, how many, and what is told of them."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from aiohttp import web
from rerank_api import wire
from rerank_api.answers import ANSWERS_PATH, Answers, MirroredAnswers
from rerank_api.demand import DEMAND_PATH, DemandLine
from rerank_gateway import mirroring
from rerank_gateway.cluster.state import CachePolicy, MirrorPolicy, parse_policy
from rerank_gateway.mirroring import MAX_OUTSTANDING

from .conftest import DEADLINE, Behaviour, House, Worker, scores, until, worker_error

MIRROR = MirrorPolicy("canary", "stable", 100)
TRAFFIC = (("stable", 100), ("canary", 0))
MIRRORED = "rerank_gateway_mirrored_requests_total"


@pytest.mark.parametrize(
    ("rollout", "percent", "mirror"),
    [
        ({"phase": "Mirror"}, None, MirrorPolicy("canary", "stable", 10)),
        ({"phase": "Mirror"}, 100, MirrorPolicy("canary", "stable", 100)),
        ({"phase": "Mirror"}, 0, None),
        *[({"phase": phase}, 100, None) for phase in ("Starting", "Golden", "Traffic", "Promoted", "RolledBack")],
        (None, 100, None),
    ],
)
def test_the_status_says_whether_to_mirror(
    rollout: dict[str, Any] | None, percent: int | None, mirror: MirrorPolicy | None
) -> None:
    asked = {} if percent is None else {"mirrorPercent": percent}
    spec = {"model": {"uri": "file:///m"}, "rollout": {"strategy": "Canary", **asked}}
    status = {"rollout": {"revision": "canary", "stable": "stable", **rollout}} if rollout else {}
    body = {"metadata": {"namespace": "ns", "name": "rr"}, "spec": spec, "status": status}
    assert parse_policy(json.dumps(body).encode()).mirror == mirror


async def _arms(house: House, behave: Behaviour | None = None, **policy: Any) -> tuple[Worker, Worker]:
    """Stable and a canary of which ``behave`` is asked first."""
    stable, canary = await house.worker("stable"), await house.worker("canary", behave)
    house.serve(stable, canary, **{"traffic": TRAFFIC, "mirror": MIRROR, **policy})
    return stable, canary


async def _mirrored(house: House) -> list[MirroredAnswers]:
    params = {"namespace": "search", "name": "products"}
    async with house.client.get(house.admin_url + ANSWERS_PATH, params=params) as response:
        return msgspec.json.decode(await response.read(), type=Answers).mirrored


async def _until(house: House, result: str, count: int) -> None:
    await house.until_metric(MIRRORED, count, f'result="{result}"')


async def _total(house: House) -> float:
    """When all have ended."""
    running = house.gateway._mirroring
    assert running is not None
    await until(lambda: not running._running, "the end of mirrored requests")
    return await house.metric(MIRRORED)


async def test_a_canary_is_asked_the_same_and_both_are_compared(house: House) -> None:
    async def other_way_round(worker: Worker, query: wire.ScoreRequest) -> web.Response:
        return scores([-len(document) / 1000 for document in query.documents])

    stable, canary = await _arms(house, other_way_round)
    headers = {wire.HEADER_PRIORITY: "high", wire.HEADER_REQUEST_ID: "id-1"}
    status, answer = await house.rerank("a", "bb", "cccc", headers=headers)
    assert status == 200
    assert [result["index"] for result in answer["results"]] == [2, 1, 0]
    await _until(house, "ok", 1)
    assert canary.seen == stable.seen
    sent = canary.headers[0]
    assert sent[wire.HEADER_PRIORITY] == "low"
    assert 0 < int(sent[wire.HEADER_TIMEOUT]) <= 5000, "the Reranker's own timeout, for it is the shorter one"
    ((told),) = await _mirrored(house)
    assert (told.revision, told.next) == ("canary", 1)
    (compared,) = told.answers
    assert (compared.request_id, compared.agreement) == ("id-1", -1.0)
    assert compared.drift == pytest.approx(0.008)
    assert not compared.failed
    assert compared.stable_seconds > 0 < compared.canary_seconds


async def _refuses(worker: Worker, query: wire.ScoreRequest) -> web.Response:
    return worker_error(422, "too_long")


async def _breaks(worker: Worker, query: wire.ScoreRequest) -> web.Response:
    return worker_error(500, "internal")


async def _gives_too_few(worker: Worker, query: wire.ScoreRequest) -> web.Response:
    return scores([0.5])


async def _is_busy(worker: Worker, query: wire.ScoreRequest) -> web.Response:
    return worker_error(429, "busy")


async def _drains(worker: Worker, query: wire.ScoreRequest) -> web.Response:
    return worker_error(503, "unavailable")


async def _freezes(worker: Worker, query: wire.ScoreRequest) -> web.Response:
    await asyncio.sleep(600)
    raise AssertionError


@pytest.mark.parametrize(
    ("behave", "result"),
    [
        (_refuses, "failed"),
        (_breaks, "failed"),
        (_gives_too_few, "failed"),
        (_freezes, "failed"),
        (_is_busy, "skipped"),
        (_drains, "skipped"),
    ],
)
async def test_what_a_canary_does_wrong_is_told_and_no_user_notices(
    house: House, monkeypatch: pytest.MonkeyPatch, behave: Behaviour, result: str
) -> None:
    monkeypatch.setattr(mirroring, "LONGEST", 0.3)
    _, canary = await _arms(house, behave)
    assert (await house.rerank())[0] == 200
    await _until(house, result, 1)
    assert len(canary.seen) == 1, "there is no second try"
    told = await _mirrored(house)
    if result == "skipped":
        assert told == []
        return
    (compared,) = told[0].answers
    assert (compared.failed, compared.agreement, compared.drift) == (True, None, None)
    assert await house.metric("rerank_gateway_retries_total") == 0


async def test_a_canary_that_is_gone_is_skipped(house: House) -> None:
    _, canary = await _arms(house)
    await canary.crash()
    assert (await house.rerank())[0] == 200
    await _until(house, "skipped", 1)
    house.serve(house.workers[0])
    assert (await house.rerank())[0] == 200
    await _until(house, "skipped", 2)


@pytest.mark.parametrize(
    "policy",
    [
        pytest.param({"mirror": None}, id="no phase for it"),
        pytest.param({"mirror": MirrorPolicy("canary", "older", 100)}, id="another than stable has answered"),
        pytest.param({"mirror": MirrorPolicy("canary", "stable", 0)}, id="none of a hundred"),
    ],
)
async def test_nothing_is_mirrored(house: House, policy: dict[str, Any]) -> None:
    _, canary = await _arms(house, **policy)
    assert (await house.rerank())[0] == 200
    assert await _total(house) == 0
    assert canary.seen == []


async def test_a_canary_that_has_users_gets_nothing_mirrored(house: House) -> None:
    """The routing table may be ahead of the phase: its workers are no longer set aside."""
    _, canary = await _arms(house, traffic=(("stable", 99), ("canary", 1)))
    for index in range(5):
        assert (await house.rerank(headers={wire.HEADER_REQUEST_ID: f"id-{index}"}))[0] == 200
    assert await _total(house) > 0
    assert await house.metric(MIRRORED, 'result="skipped"') + len(canary.seen) == 5


async def test_what_stable_did_not_score_is_not_mirrored(house: House) -> None:
    async def refuse(worker: Worker, query: wire.ScoreRequest) -> web.Response | None:
        return worker_error(422, "too_long") if query.query == "bad" else None

    stable, canary = await _arms(house, cache=CachePolicy(2**20, 600.0))
    stable.behave = refuse
    assert (await house.post({"query": "bad", "documents": ["a"]}))[0] == 422
    assert await _total(house) == 0
    assert (await house.rerank("a"))[0] == 200  # a miss
    await _until(house, "ok", 1)
    assert (await house.rerank("a"))[0] == 200  # a hit
    assert (await house.rerank("a", "bb"))[0] == 200  # the rest of a partial hit
    assert await _total(house) == 1
    assert [query.documents for query in canary.seen] == [["a"]]


async def test_the_id_decides_and_about_as_many_as_asked_for(house: House) -> None:
    _, canary = await _arms(house, mirror=MirrorPolicy("canary", "stable", 30))

    async def ids() -> list[str]:
        before = len(canary.headers)
        for index in range(100):
            status, _ = await house.rerank(headers={wire.HEADER_REQUEST_ID: f"id-{index}"})
            assert status == 200
            assert await _total(house) == len(canary.headers)
        return [headers[wire.HEADER_REQUEST_ID] for headers in canary.headers[before:]]

    first = await ids()
    assert 15 <= len(first) <= 45
    assert await ids() == first


async def test_no_more_than_a_few_are_on_their_way_and_they_are_no_demand(open_house: Callable[..., Any]) -> None:
    house = await open_house()
    gate = asyncio.Event()

    async def held(worker: Worker, query: wire.ScoreRequest) -> None:
        await gate.wait()

    stable, canary = await house.worker("stable"), await house.worker("canary", held)
    other = await house.worker("canary", held)
    house.serve(stable, canary, other, traffic=TRAFFIC, mirror=MIRROR)
    for count in range(1, MAX_OUTSTANDING + 1):
        assert (await house.rerank())[0] == 200
        await until(lambda count=count: len(canary.seen) + len(other.seen) == count, "the mirrored request")
    held_bytes = await house.metric("rerank_gateway_held_bytes")
    assert held_bytes >= MAX_OUTSTANDING * len(msgspec.json.encode(stable.seen[0]))
    assert (len(canary.seen), len(other.seen)) == (MAX_OUTSTANDING // 2, MAX_OUTSTANDING // 2)
    assert (await house.rerank())[0] == 200
    assert await house.metric(MIRRORED, 'result="skipped"') == 1
    async with house.client.get(house.admin_url + DEMAND_PATH) as response:
        told = msgspec.json.decode(await response.content.readline(), type=DemandLine).rerankers[0]
    assert (told.in_flight, told.arrived_requests) == (0, MAX_OUTSTANDING + 1)
    assert told.outstanding == {stable.endpoint().uid: 0}
    assert await house.metric("rerank_gateway_in_flight_requests") == 0
    assert await house.metric("rerank_gateway_requests_total", 'revision="canary"') == 0
    gate.set()
    await _until(house, "ok", MAX_OUTSTANDING)
    assert await house.metric("rerank_gateway_held_bytes") == 0


async def test_none_is_sent_that_would_hardly_be_ready_in_time(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """A canary must not fail for what takes stable as long. Here whatever stable has taken is too long."""
    monkeypatch.setattr(mirroring, "ROOM", 1e9)
    _, canary = await _arms(house)
    assert (await house.rerank())[0] == 200
    assert await house.metric(MIRRORED, 'result="skipped"') == 1
    assert canary.seen == []


async def test_half_of_the_memory_for_bodies_is_the_users_own(open_house: Callable[..., Any]) -> None:
    documents: list[str] = ["x" * 10_000]
    payload = len(msgspec.json.encode(wire.ScoreRequest("q", documents)))
    house = await open_house(max_held_bytes=3 * payload)
    gate = asyncio.Event()

    async def held(worker: Worker, query: wire.ScoreRequest) -> None:
        await gate.wait()

    _, canary = await _arms(house, held)
    assert (await house.rerank(*documents))[0] == 200
    await until(lambda: len(canary.seen) == 1, "the first one, which takes a third")
    assert await house.metric("rerank_gateway_held_bytes") == payload
    assert (await house.rerank(*documents))[0] == 200
    await _until(house, "skipped", 1)
    gate.set()
    await _until(house, "ok", 1)
    assert len(canary.seen) == 1


async def test_a_worker_that_has_one_gets_no_other_while_another_has_none(house: House) -> None:
    _, frozen = await _arms(house, _freezes)
    other = await house.worker("canary")
    house.serve(*house.workers)
    for _ in range(8):
        assert (await house.rerank())[0] == 200
        await until(lambda: len(frozen.seen) + len(other.seen) == len(house.workers[0].seen), "the mirrored request")
        await _until(house, "ok", len(other.seen))
    assert len(frozen.seen) == 1


async def test_going_down_ends_them(open_house: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirroring, "LONGEST", 600.0)
    house = await open_house()
    _, canary = await _arms(house, _freezes, timeout=600.0)
    assert (await house.rerank())[0] == 200
    await until(lambda: len(canary.seen) == 1, "the mirrored request")
    hurry = asyncio.Event()
    hurry.set()
    async with asyncio.timeout(DEADLINE):
        await house.gateway.stop(hurry)
    await until(lambda: canary.cancelled == 1, "its end at the worker")
