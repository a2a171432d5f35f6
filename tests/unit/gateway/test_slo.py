"""What one request says about a Reranker's objectives, and what is counted of it, also over HTTP."""

import asyncio
import json
import math
from collections.abc import Sequence
from typing import Any

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st
from rerank_api import names, wire
from rerank_gateway.cluster.state import CachePolicy, MirrorPolicy, Policy, build_table, parse_policy
from rerank_gateway.metrics import Metrics
from rerank_gateway.record import Record
from rerank_gateway.slo import INDICATORS, Objectives, available, in_time, maintenance_end

from .conftest import House, Worker, until, worker_error

EVER = math.inf
SOON, LATE = Objectives(threshold=1e-9), Objectives(threshold=1e6)
"""Thresholds that every request exceeds, and that none does."""

COUNTED = "rerank_gateway_sli_requests_total"
GOOD = "rerank_gateway_sli_good_requests_total"


@pytest.mark.parametrize(
    ("code", "patience", "good"),
    [
        (200, EVER, True),
        (200, 0.1, True),
        (429, EVER, False),
        (500, EVER, False),
        (502, EVER, False),
        (503, EVER, False),
        (504, EVER, False),
        pytest.param(504, 0.2, False, id="the client waited for as long as is promised"),
        pytest.param(504, 0.1, None, id="the client wanted it sooner than is promised"),
        pytest.param(503, 0.1, False, id="refused, whatever the client would have waited"),
        *[(code, EVER, None) for code in (400, 401, 404, 405, 408, 413, 415, 422)],
        pytest.param(499, EVER, None, id="nobody knows how it would have ended"),
        (204, EVER, None),
    ],
)
def test_availability(code: int, patience: float, good: bool | None) -> None:
    assert available(code, patience=patience, threshold=0.2) is good


@pytest.mark.parametrize(
    ("code", "seconds", "good"),
    [
        (200, 0.0, True),
        pytest.param(200, 0.2, True, id="just in time"),
        (200, 0.2000001, False),
        (499, 0.3, False),
        (499, 0.2, None),
        *[(code, seconds, None) for code in (204, 400, 408, 422, 429, 500, 503, 504) for seconds in (0.1, 0.3)],
    ],
)
def test_latency(code: int, seconds: float, good: bool | None) -> None:
    assert in_time(code, seconds, threshold=0.2) is good


@pytest.mark.parametrize(
    ("text", "end"),
    [
        ("", 0.0),
        ("1970-01-01T00:01:00Z", 60.0),
        ("1970-01-01T01:01:00+01:00", 60.0),
        ("1970-01-01T00:01:00.5Z", 60.5),
        ("1970-01-01T00:01:00", None),
        ("1970-01-01", None),
        ("tomorrow", None),
        ("60", None),
        ("1970-13-01T00:01:00Z", None),
    ],
)
def test_the_end_of_a_maintenance(text: str, end: float | None) -> None:
    if end is not None:
        assert maintenance_end(text) == end
    else:
        with pytest.raises(ValueError, match="RFC 3339"):
            maintenance_end(text)


def _reranker(spec: dict[str, Any], annotations: dict[str, str] | None = None) -> bytes:
    metadata = {"namespace": "ns", "name": "rr", "annotations": annotations or {}}
    return json.dumps({"metadata": metadata, "spec": {"model": {"uri": "file:///m"}, **spec}}).encode()


@pytest.mark.parametrize(
    ("slo", "objectives"),
    [
        ({}, Objectives(0.999, 0.95, 0.15)),
        ({"availability": 0.99}, Objectives(0.99, 0.95, 0.15)),
        ({"latency": {"quantile": 0.5, "threshold": "2s"}}, Objectives(0.999, 0.5, 2.0)),
    ],
)
def test_the_objectives_are_those_of_the_spec(slo: dict[str, Any], objectives: Objectives) -> None:
    assert parse_policy(_reranker({"slo": slo})).objectives == objectives
    assert (objectives.ratio("availability"), objectives.ratio("latency")) == (
        objectives.availability,
        objectives.latency,
    )


def test_a_maintenance_stands_in_the_annotation() -> None:
    assert parse_policy(_reranker({})).maintenance == ""
    assert parse_policy(_reranker({}, {names.ANNOTATION_MAINTENANCE: "soon"})).maintenance == "soon"


_ENDINGS = st.tuples(
    st.sampled_from([200, 400, 408, 422, 429, 499, 500, 502, 503, 504]),
    st.floats(0, 10),
    st.sampled_from(["", "one", "two"]),
    st.sampled_from([EVER, 0.01, 5.0]),
)


@given(st.lists(_ENDINGS, max_size=30))
def test_no_more_good_requests_than_requests_and_none_is_lost(endings: Sequence[tuple[int, float, str, float]]) -> None:
    metrics = Metrics(lambda: 0.0)
    metrics.update(build_table([Policy("ns", "rr", traffic=(("one", 100),))], []))
    for code, seconds, revision, patience in endings:
        record = Record("", namespace="ns", reranker="rr", revision=revision, code=code, patience=patience)
        metrics.answered(record, seconds)

    def value(name: str, **labels: str) -> float:
        return metrics.snapshot().get_sample_value(name, {"namespace": "ns", "reranker": "rr", **labels}) or 0.0

    for sli in INDICATORS:
        counted = {revision: value(COUNTED, revision=revision, sli=sli) for revision in ("", "one", "two")}
        for revision, count in counted.items():
            assert 0 <= value(GOOD, revision=revision, sli=sli) <= count
        own_fault = {400, 408, 422, *({499} if sli == "availability" else {429, 500, 502, 503, 504})}
        assert sum(counted.values()) <= sum(code not in own_fault for code, *_ in endings)
    answered = sum(code == 200 for code, *_ in endings)
    assert sum(value(GOOD, revision=revision, sli="availability") for revision in ("", "one", "two")) == answered


# Over HTTP.


async def _said(house: House, sli: str, *contains: str) -> tuple[float, float]:
    """How many requests counted, and how many of them were good."""
    return await house.metric(COUNTED, f'sli="{sli}"', *contains), await house.metric(GOOD, f'sli="{sli}"', *contains)


async def _never(worker: Worker, query: wire.ScoreRequest) -> web.Response | None:
    await asyncio.Event().wait()
    return None


async def test_both_indicators_begin_at_zero_when_a_reranker_is_known(house: House) -> None:
    house.serve(traffic=(("one", 100), ("canary", 0)))
    async with house.client.get(house.admin_url + "/metrics") as response:
        lines = (await response.text()).splitlines()
    for name in (COUNTED, GOOD):
        for revision in ("", "one", "canary"):
            for sli in INDICATORS:
                labels = f'namespace="search",reranker="products",revision="{revision}",sli="{sli}"'
                assert f"{name}{{{labels}}} 0.0" in lines


async def test_answers_are_counted_by_revision(house: House) -> None:
    house.serve(await house.worker("one"), objectives=LATE)
    for _ in range(2):
        assert (await house.rerank())[0] == 200
    assert await _said(house, "availability", 'revision="one"') == (2, 2)
    assert await _said(house, "latency", 'revision="one"') == (2, 2)
    assert await _said(house, "availability") == await _said(house, "latency") == (2, 2)


async def test_a_request_that_wakes_its_worker_has_waited_for_all_of_it(house: House) -> None:
    house.serve(objectives=SOON)
    request = house.rerank()
    await house.until_waiting(1)
    house.serve(await house.worker())
    assert (await request)[0] == 200
    assert await _said(house, "availability") == (1, 1)
    assert await _said(house, "latency") == (1, 0)


async def test_what_the_client_got_wrong_counts_for_nobody(house: House) -> None:
    house.serve(await house.worker(), max_documents=2)
    for body in (
        b"not JSON",
        {"query": "q"},
        {"query": "", "documents": ["a"]},
        {"query": "q", "documents": ["a"] * 3},
    ):
        assert (await house.post(body))[0] == 400
    assert (await house.post({"model": "absent", "query": "q", "documents": ["a"]}))[0] == 404
    assert (await house.post({"query": "q", "documents": ["a"]}, "/search/absent/v2/rerank"))[0] == 404
    assert (await house.rerank(headers={"X-Rerank-Priority": "urgent"}))[0] == 400
    for sli in INDICATORS:
        assert await _said(house, sli) == (0, 0)


async def test_what_no_worker_answered_is_bad_of_no_revision(house: House) -> None:
    house.serve(wake_timeout=0.01)
    assert (await house.rerank())[0] == 504
    house.serve(suspended=True)
    assert (await house.rerank())[0] == 503
    house.serve(suspended=False, wake_timeout=60.0, queue_limit=1)
    first = house.rerank()
    await house.until_waiting(1)
    assert (await house.rerank())[0] == 429
    assert await _said(house, "availability", 'revision=""') == await _said(house, "availability") == (3, 0)
    assert await _said(house, "latency") == (0, 0), "it counts once"
    first.cancel()


async def test_what_broke_is_bad_of_its_revision(house: House) -> None:
    async def broken(worker: Worker, query: wire.ScoreRequest) -> web.Response:
        return worker_error(500, "internal")

    house.serve(await house.worker("one", broken))
    assert (await house.rerank())[0] == 502
    assert await _said(house, "availability", 'revision="one"') == await _said(house, "availability") == (1, 0)


async def test_a_gateway_without_room_is_no_fault_of_the_client(open_house) -> None:
    house = await open_house(max_held_bytes=100)
    policies = [Policy("search", "products"), Policy("search", "other")]
    house.source.set(policies)
    body = {"query": "q", "documents": ["x" * 200]}
    assert (await house.post(body, "/search/products/v2/rerank"))[0] == 429
    assert await _said(house, "availability", 'reranker="products"') == (1, 0)
    # Whose it is stands in the body, which was not read.
    assert (await house.post({**body, "model": "search/products"}))[0] == 429
    assert await _said(house, "availability") == (1, 0)
    house.source.set(policies[:1])
    assert (await house.post(body))[0] == 429
    assert await _said(house, "availability") == (2, 0)


@pytest.mark.parametrize(("objectives", "counted"), [(SOON, (1, 0)), (LATE, (0, 0))])
async def test_a_client_that_goes_away_was_kept_waiting_or_not(
    house: House, objectives: Objectives, counted: tuple[float, float]
) -> None:
    worker = await house.worker(behave=_never)
    house.serve(worker, objectives=objectives)
    request = house.rerank()
    await until(lambda: len(worker.seen) == 1, "the request is at the worker")
    request.cancel()
    await house.until_metric("rerank_gateway_requests_total", 1, 'code="499"')
    assert await _said(house, "latency") == counted
    assert await _said(house, "availability") == (0, 0)


@pytest.mark.parametrize(("objectives", "counted"), [(SOON, (1, 0)), (LATE, (0, 0))])
async def test_a_deadline_of_the_clients_own_counts_where_it_left_the_time_that_is_promised(
    house: House, objectives: Objectives, counted: tuple[float, float]
) -> None:
    house.serve(await house.worker(behave=_never), objectives=objectives)
    assert (await house.rerank(headers={"X-Rerank-Timeout-Ms": "20"}))[0] == 504
    assert await _said(house, "availability") == counted
    assert await _said(house, "latency") == (0, 0)


async def test_an_answer_from_the_cache_is_an_answer(house: House) -> None:
    house.serve(await house.worker("one"), cache=CachePolicy(2**20, 600.0), objectives=LATE)
    for _ in range(2):
        assert (await house.rerank())[0] == 200
    assert await house.metric("rerank_gateway_cache_documents_total", 'result="hit"') == 2
    assert await _said(house, "latency", 'revision="one"') == await _said(house, "availability") == (2, 2)


async def test_mirrored_requests_are_nobodys(house: House) -> None:
    async def broken(worker: Worker, query: wire.ScoreRequest) -> web.Response:
        return worker_error(500, "internal")

    stable, canary = await house.worker("stable"), await house.worker("canary", broken)
    traffic = (("stable", 100), ("canary", 0))
    house.serve(stable, canary, traffic=traffic, mirror=MirrorPolicy("canary", "stable", 100), objectives=LATE)
    assert (await house.rerank())[0] == 200
    await house.until_metric("rerank_gateway_mirrored_requests_total", 1, 'result="failed"')
    assert await _said(house, "availability") == await _said(house, "latency") == (1, 1)
    assert await _said(house, "availability", 'revision="canary"') == (0, 0)
