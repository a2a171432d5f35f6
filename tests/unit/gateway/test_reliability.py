"""What a client sees while workers are busy, gone, frozen or broken, and while the gateway goes down."""

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from rerank_api import wire
from rerank_gateway import forwarding
from rerank_gateway.app import LAST_WORDS
from rerank_gateway.routing import RELEASE_TOKENS, Limits

from .conftest import Behaviour, House, Worker, scores, until, worker_error

BODY = {"query": "q", "documents": ["a", "bb"]}


async def _never(worker: Worker, query: wire.ScoreRequest) -> web.StreamResponse:
    await asyncio.sleep(600)
    raise AssertionError


def _answers(*responses: Callable[[], web.StreamResponse]) -> Behaviour:
    """These answers first, then good ones."""
    left = list(responses)

    async def behave(worker: Worker, query: wire.ScoreRequest) -> web.StreamResponse | None:
        return left.pop(0)() if left else None

    return behave


async def test_a_request_waits_until_a_worker_is_ready(house: House) -> None:
    request = house.rerank()
    await house.until_waiting(1)
    house.serve(await house.worker())
    status, answer = await request
    assert status == 200
    assert [result["index"] for result in answer["results"]] == [1, 0]


async def test_a_worker_killed_with_requests_in_flight_fails_none(house: House) -> None:
    doomed, other = await house.worker(behave=_never), await house.worker()
    house.serve(doomed)
    requests = [house.rerank() for _ in range(20)]
    await until(lambda: len(doomed.seen) == 20, "20 requests at the first worker")
    house.serve(doomed, other)
    await doomed.crash()
    assert [status for status, _ in await asyncio.gather(*requests)] == [200] * 20
    assert len(other.seen) == 20
    assert await house.metric("rerank_gateway_retries_total", 'reason="broken"') == 20


async def test_a_worker_cannot_send_the_gateway_elsewhere(house: House) -> None:
    elsewhere = await house.worker()
    place = str(forwarding._url(elsewhere.endpoint(), wire.SCORE_PATH))
    pretender = await house.worker(
        behave=_answers(
            *[lambda: web.Response(status=307, headers={"Location": place})] * forwarding.MAX_BROKEN_ATTEMPTS
        )
    )
    house.serve(pretender)
    status, _ = await house.rerank()
    assert status == 502
    assert elsewhere.seen == []


async def test_the_only_worker_killed_and_back_fails_no_request(house: House) -> None:
    worker = await house.worker(behave=_never)
    house.serve(worker)
    requests = [house.rerank() for _ in range(5)]
    await until(lambda: len(worker.seen) == 5, "5 requests at the worker")
    await worker.crash()
    requests += [house.rerank() for _ in range(5)]
    await house.until_waiting(10)
    worker.behave = None
    await worker.start(worker.port)
    assert [status for status, _ in await asyncio.gather(*requests)] == [200] * 10


async def test_a_dead_address_costs_nothing_but_a_retry(house: House) -> None:
    dead, alive = await house.worker(), await house.worker()
    await dead.crash()
    house.serve(dead, alive)
    statuses = [status for status, _ in await asyncio.gather(*(house.rerank() for _ in range(30)))]
    assert statuses == [200] * 30
    assert len(alive.seen) == 30


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        pytest.param(lambda: worker_error(429, "busy", retry_after=1), "busy", id="busy"),
        pytest.param(lambda: worker_error(503, "unavailable", retry_after=1), "busy", id="draining"),
        pytest.param(lambda: worker_error(500, "internal"), "broken", id="internal error"),
        pytest.param(lambda: web.Response(status=404), "broken", id="not a worker"),
        pytest.param(lambda: web.Response(status=400, body=b"?"), "broken", id="400 without words"),
        pytest.param(lambda: web.Response(body=b"<html>"), "broken", id="not JSON"),
        pytest.param(lambda: web.Response(body=b'{"scores": ["\xff"], "tokens": 1}'), "broken", id="not UTF-8"),
        pytest.param(lambda: scores([0.5]), "broken", id="too few scores"),
        pytest.param(lambda: scores([0.5] * 3), "broken", id="too many scores"),
        pytest.param(lambda: web.Response(body=b'{"scores": [0.5, NaN], "tokens": 1}'), "broken", id="NaN"),
        pytest.param(lambda: web.Response(body=b'{"scores": [0.5, null], "tokens": 1}'), "broken", id="null score"),
        pytest.param(lambda: web.Response(body=b'{"scores": [0.5, 1e999], "tokens": 1}'), "broken", id="infinity"),
    ],
)
async def test_a_bad_answer_is_asked_again(house: House, response: Callable[[], web.Response], reason: str) -> None:
    worker = await house.worker(behave=_answers(response))
    house.serve(worker)
    status, answer = await house.rerank()
    assert status == 200, answer
    assert len(worker.seen) == 2
    assert await house.metric("rerank_gateway_retries_total", f'reason="{reason}"') == 1


async def test_a_worker_that_is_busy_for_long_is_asked_until_it_is_not(house: House) -> None:
    worker = await house.worker(behave=_answers(*[lambda: worker_error(503, "unavailable", retry_after=1)] * 5))
    house.serve(worker)
    assert (await house.rerank())[0] == 200
    assert len(worker.seen) == 6


async def test_a_request_that_breaks_workers_ends_after_three(house: House) -> None:
    async def crash(worker: Worker, query: wire.ScoreRequest) -> web.StreamResponse:
        raise RuntimeError("poisoned")

    workers = [await house.worker(behave=crash) for _ in range(5)]
    house.serve(*workers)
    status, answer = await house.rerank()
    assert (status, answer["error"]["code"]) == (502, "workers_failed")
    assert sorted(len(worker.seen) for worker in workers) == [0, 0, 1, 1, 1]


@pytest.mark.parametrize(("status", "code"), [(400, "invalid_request"), (422, "too_long")])
async def test_the_workers_refusal_of_the_input_is_passed_on(house: House, status: int, code: str) -> None:
    first = await house.worker(behave=_answers(lambda: worker_error(status, code, "documents[1] is too long")))
    house.serve(first, await house.worker())
    first_only = [worker.endpoint() for worker in house.workers[:1]]
    house.source.set([house.policy], first_only)
    got, answer = await house.rerank()
    assert (got, answer["error"]["code"], answer["message"]) == (status, code, "documents[1] is too long")
    assert len(first.seen) == 1


async def test_the_queue_is_bounded(house: House) -> None:
    house.serve(queue_limit=3)
    waiting = [house.rerank() for _ in range(3)]
    await house.until_waiting(3)
    async with house.client.post(house.url + "/v2/rerank", json=BODY) as response:
        assert response.status == 429
        assert response.headers["Retry-After"] == "1"
        answer = await response.json()
    assert answer["error"]["code"] == "queue_full"
    assert "requests.queueLimit" in answer["message"]
    house.serve(await house.worker())
    assert [status for status, _ in await asyncio.gather(*waiting)] == [200] * 3


async def test_the_deadline_ends_waiting_and_says_why(house: House) -> None:
    house.serve(wake_timeout=0.05, not_ready_reason="ModelLoadFailed")
    status, answer = await house.rerank()
    assert (status, answer["error"]["code"]) == (504, "deadline_exceeded")
    assert "search/products was ready (ModelLoadFailed)" in answer["message"]
    assert await house.metric("rerank_gateway_waiting_requests") == 0


async def test_the_client_may_shorten_the_deadline_but_not_lengthen_it(house: House) -> None:
    worker = await house.worker(behave=_never)
    house.serve(worker, timeout=30.0)
    status, answer = await house.rerank(headers={"X-Rerank-Timeout-Ms": "50"})
    assert (status, answer["error"]["code"]) == (504, "deadline_exceeded")
    assert answer["message"] == "the deadline (X-Rerank-Timeout-Ms) was over before the scores were ready"
    assert 0 < int(worker.headers[0]["X-Rerank-Timeout-Ms"]) <= 50
    await until(lambda: worker.cancelled == 1, "the worker's work is cancelled")

    house.serve(worker, timeout=0.05)
    status, answer = await house.rerank(headers={"X-Rerank-Timeout-Ms": "60000"})
    assert status == 504
    assert answer["message"] == "the deadline (requests.timeout) was over before the scores were ready"


async def test_a_request_outlives_its_timeout_while_there_is_no_worker(house: House) -> None:
    """A cold start takes longer than requests.timeout, which counts once there is a worker."""
    house.serve(timeout=0.05)
    request = house.rerank()
    bounded = house.rerank(headers={"X-Rerank-Timeout-Ms": "100"})
    status, answer = await bounded
    assert (status, answer["error"]["code"]) == (504, "deadline_exceeded")
    assert "X-Rerank-Timeout-Ms" in answer["message"]
    assert not request.done()
    house.serve(await house.worker(), timeout=5.0)
    assert (await request)[0] == 200


async def test_the_timeout_counts_from_the_first_worker_on(house: House) -> None:
    house.serve(timeout=0.05)
    request = house.rerank()
    await house.until_waiting(1)
    house.serve(await house.worker(behave=_never), timeout=0.05)
    status, answer = await request
    assert (status, answer["error"]["code"]) == (504, "deadline_exceeded")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("X-Rerank-Priority", "urgent"),
        ("X-Rerank-Priority", ""),
        ("X-Rerank-Client", "a b"),
        ("X-Rerank-Client", "a" * 129),
        ("X-Rerank-Client", ""),
        ("X-Rerank-Sticky", "a b"),
        ("X-Rerank-Timeout-Ms", "soon"),
    ],
)
async def test_a_header_that_makes_no_sense_is_named(house: House, name: str, value: str) -> None:
    house.serve(await house.worker())
    status, answer = await house.rerank(headers={name: value})
    assert (status, answer["error"]["code"], answer["error"]["field"]) == (400, "invalid_request", name)


async def _one_at_a_time(
    open_house: Callable[..., Awaitable[House]], **options: Any
) -> tuple[House, list[str], asyncio.Event]:
    """A house whose only worker takes one request at a time, the queries that it saw, and what lets it go on."""
    house = await open_house(limits=Limits(requests=1), **options)
    go_on = asyncio.Event()
    seen: list[str] = []

    async def wait(worker: Worker, query: wire.ScoreRequest) -> None:
        seen.append(query.query)
        await go_on.wait()

    house.serve(await house.worker(behave=wait))
    return house, seen, go_on


async def _queued(house: House, seen: list[str], *queries: tuple[str, dict[str, str]]) -> list[asyncio.Task[Any]]:
    """These requests one after the other, the first at the worker and the others waiting."""
    requests = []
    for query, headers in queries:
        body = {"query": query, "documents": ["a"]}
        requests.append(asyncio.create_task(house.post(body, headers=headers)))
        await until(lambda: len(seen) == 1, "the first is at the worker")
        await house.until_waiting(len(requests) - 1)
    return requests


async def test_high_goes_before_normal_before_low_and_the_worker_is_told(open_house) -> None:
    house, seen, go_on = await _one_at_a_time(open_house)
    given = ["normal", "low", "normal", "high"]
    requests = await _queued(house, seen, *((name, {"X-Rerank-Priority": name}) for name in given))
    go_on.set()
    assert [status for status, _ in await asyncio.gather(*requests)] == [200] * 4
    assert seen == ["normal", "high", "normal", "low"]
    assert [headers["X-Rerank-Priority"] for headers in house.workers[0].headers] == seen


@pytest.mark.parametrize("with_keys", [False, True], ids=["by header", "by key"])
async def test_clients_take_turns(open_house, tmp_path: Path, with_keys: bool) -> None:
    keys = tmp_path / "keys"
    keys.write_text("greedy\nmodest\n")
    house, seen, go_on = await _one_at_a_time(open_house, **({"api_keys_file": keys} if with_keys else {}))
    header, form = ("Authorization", "Bearer {}") if with_keys else ("X-Rerank-Client", "{}")
    order = ["greedy"] * 5 + ["modest"]
    requests = await _queued(house, seen, *((name, {header: form.format(name)}) for name in order))
    go_on.set()
    assert [status for status, _ in await asyncio.gather(*requests)] == [200] * 6
    assert seen.index("modest") <= 2


async def test_no_more_than_a_workers_capacity_is_released(open_house) -> None:
    """The rest waits where it can be seen, and could still go to another worker."""
    house = await open_house()
    go_on = asyncio.Event()

    async def wait(worker: Worker, query: wire.ScoreRequest) -> web.StreamResponse:
        if query.query != "first":
            await go_on.wait()
        answer = scores([0.5])
        answer.headers[wire.HEADER_CAPACITY] = "1000"
        return answer

    slow = await house.worker(behave=wait)
    house.serve(slow, chunked=True)
    text = "word " * RELEASE_TOKENS
    assert (await house.post({"query": "first", "documents": ["a"]}))[0] == 200
    requests = [asyncio.create_task(house.post({"query": "q", "documents": [text]})) for _ in range(4)]
    await house.until_waiting(2)
    house.serve(slow, await house.worker())
    await until(lambda: len(house.workers[1].seen) == 2, "the new worker has the others")
    go_on.set()
    assert [status for status, _ in await asyncio.gather(*requests)] == [200] * 4
    assert len(slow.seen) == 3


@pytest.mark.parametrize(
    ("status", "code", "scored_by"),
    [
        pytest.param(429, "busy", "canary", id="busy: its share waits for it"),
        pytest.param(503, "unavailable", "stable", id="draining or loading: the others have its share"),
    ],
)
async def test_only_a_busy_revision_keeps_its_share(house: House, status: int, code: str, scored_by: str) -> None:
    async def refuse_at_first(worker: Worker, query: wire.ScoreRequest) -> web.Response | None:
        return worker_error(status, code) if len(worker.seen) == 1 else None

    canary, stable = await house.worker("canary", behave=refuse_at_first), await house.worker("stable")
    house.serve(stable, canary, traffic=(("canary", 100),))
    async with house.client.post(house.url + "/v2/rerank", json=BODY) as response:
        assert (response.status, response.headers["X-Rerank-Revision"]) == (200, scored_by)


async def test_a_worker_that_gives_up_at_the_deadline_is_believed(house: House) -> None:
    worker = await house.worker(behave=_answers(lambda: worker_error(504, "deadline")))
    house.serve(worker)
    status, answer = await house.rerank()
    assert (status, answer["error"]["code"]) == (504, "deadline_exceeded")
    assert answer["message"] == "the deadline (requests.timeout) was over before the scores were ready"


async def test_a_client_that_goes_away_while_waiting_leaves_the_queue(house: House) -> None:
    request = house.rerank()
    await house.until_waiting(1)
    request.cancel()
    await house.until_waiting(0)
    assert await house.metric("rerank_gateway_requests_total", 'code="499"') == 1
    assert house.gateway.held_bytes == 0


async def test_a_client_that_goes_away_while_scored_frees_the_worker(house: House) -> None:
    worker = await house.worker(behave=_never)
    house.serve(worker)
    request = house.rerank()
    await until(lambda: len(worker.seen) == 1, "the request is at the worker")
    assert await house.metric("rerank_gateway_in_flight_requests") == 1
    request.cancel()
    await until(lambda: worker.cancelled == 1, "the worker's work is cancelled")
    worker.behave = None
    assert (await house.rerank())[0] == 200
    assert await house.metric("rerank_gateway_in_flight_requests") == 0


async def test_a_frozen_worker_is_given_up_before_the_deadline(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forwarding, "PROBE_AFTER", 0.02)
    frozen, other = await house.worker(behave=_never), await house.worker()
    house.serve(frozen, timeout=60.0)
    request = house.rerank()
    await until(lambda: len(frozen.seen) == 1, "the request is at the first worker")
    frozen.healthy = False
    house.serve(frozen, other, timeout=60.0)
    assert (await request)[0] == 200
    assert len(other.seen) == 1


async def test_a_slow_but_healthy_worker_is_waited_for(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forwarding, "PROBE_AFTER", 0.01)
    probes = []

    async def slow(worker: Worker, query: wire.ScoreRequest) -> None:
        await until(lambda: len(probes) > 5, "some probes")

    class Probed(Worker):
        async def _health(self, _: web.Request) -> web.Response:
            probes.append(1)
            return await super()._health(_)

    worker = Probed(behave=slow)
    await worker.start()
    house.workers.append(worker)
    house.serve(worker)
    assert (await house.rerank())[0] == 200
    assert len(worker.seen) == 1


async def test_work_is_spread_by_what_is_outstanding(house: House) -> None:
    workers = [await house.worker(behave=_never) for _ in range(4)]
    house.serve(*workers)
    requests = [house.rerank() for _ in range(40)]
    await until(lambda: sum(len(worker.seen) for worker in workers) == 40, "all are at workers")
    assert [len(worker.seen) for worker in workers] == [10] * 4
    for request in requests:
        request.cancel()


async def test_no_more_than_the_limit_is_at_one_worker(open_house) -> None:
    house = await open_house(limits=Limits(requests=2))
    go_on = asyncio.Event()

    async def wait(worker: Worker, query: wire.ScoreRequest) -> None:
        await go_on.wait()

    worker = await house.worker(behave=wait)
    house.serve(worker)
    requests = [house.rerank() for _ in range(5)]
    await house.until_waiting(3)
    await until(lambda: len(worker.seen) == 2, "two requests are at the worker")
    go_on.set()
    assert [status for status, _ in await asyncio.gather(*requests)] == [200] * 5


async def test_suspending_or_deleting_ends_the_wait(house: House) -> None:
    request = house.rerank()
    await house.until_waiting(1)
    house.serve(suspended=True)
    status, answer = await request
    assert (status, answer["error"]["code"]) == (503, "suspended")

    house.serve(suspended=False)
    request = house.rerank()
    await house.until_waiting(1)
    house.source.set([])
    status, answer = await request
    assert (status, answer["error"]["code"]) == (404, "model_not_found")


async def test_requests_in_flight_outlive_their_reranker(house: House) -> None:
    go_on = asyncio.Event()

    async def wait(worker: Worker, query: wire.ScoreRequest) -> None:
        await go_on.wait()

    worker = await house.worker(behave=wait)
    house.serve(worker)
    request = house.rerank()
    await until(lambda: len(worker.seen) == 1, "the request is at the worker")
    house.source.set([])
    go_on.set()
    assert (await request)[0] == 200


@pytest.mark.parametrize("header", ["X-Rerank-Sticky", "X-Request-Id"])
async def test_while_traffic_is_split_a_key_meets_one_revision(house: House, header: str) -> None:
    old, new = await house.worker(revision="old"), await house.worker(revision="new")
    house.serve(old, new, traffic=(("old", 50), ("new", 50)))
    met = {}
    for key in (f"key-{i}" for i in range(20)):
        served = []
        for _ in range(3):
            before = len(old.headers)
            status, _answer = await house.rerank(headers={header: key})
            assert status == 200
            served.append(len(old.headers) > before)
        assert len(set(served)) == 1
        met[key] = served[0]
    assert set(met.values()) == {True, False}


async def test_traffic_goes_by_percent(house: House) -> None:
    old, new = await house.worker("old"), await house.worker("new")
    house.serve(old, new, traffic=(("old", 100), ("new", 0)))
    assert {(await house.rerank())[0] for _ in range(10)} == {200}
    assert (len(old.seen), len(new.seen)) == (10, 0)
    house.serve(new, traffic=(("old", 100),))  # as after a rollout that the operator has not told of yet
    async with house.client.post(house.url + "/v2/rerank", json=BODY) as response:
        assert response.headers["X-Rerank-Revision"] == "new"


async def test_not_ready_before_the_first_sync_and_ready_after(house: House) -> None:
    house.source.synced = False
    async with house.client.get(house.admin_url + "/readyz") as response:
        assert response.status == 503
    status, answer = await house.rerank()
    assert (status, answer["error"]["code"]) == (503, "starting")
    house.source.synced = True
    for url in (house.admin_url + "/readyz", house.admin_url + "/healthz", house.url + "/healthz"):
        async with house.client.get(url) as response:
            assert response.status == 200
            assert await response.json() == {"status": "ok"}


async def test_unhealthy_when_a_watch_makes_no_progress(house: House) -> None:
    house.source.problem = "watch pods made no progress for 130 s"
    async with house.client.get(house.admin_url + "/healthz") as response:
        assert response.status == 503
        assert "no progress" in (await response.json())["message"]


async def test_going_down_ends_what_is_in_flight_and_turns_clients_away_gently(open_house) -> None:
    house = await open_house(shutdown_delay=30.0)
    go_on, hurry = asyncio.Event(), asyncio.Event()

    async def wait(worker: Worker, query: wire.ScoreRequest) -> None:
        await go_on.wait()

    worker = await house.worker(behave=wait)
    house.serve(worker)
    in_flight = house.rerank()
    await until(lambda: len(worker.seen) == 1, "the request is at the worker")

    stopping = asyncio.create_task(house.gateway.stop(hurry))
    await until(lambda: house.gateway.draining, "the gateway is draining")
    async with house.client.get(house.admin_url + "/readyz") as response:
        assert response.status == 503
    still_accepted = house.rerank()
    await until(lambda: len(worker.seen) == 2, "the new request is at the worker")

    hurry.set()
    port = house.gateway.api_port
    await until(lambda: not _accepts(port), "no new connections")
    go_on.set()
    assert (await in_flight)[0] == 200
    assert (await still_accepted)[0] == 200
    await stopping


async def test_who_still_waits_when_the_gateway_must_end_gets_an_answer(open_house) -> None:
    house = await open_house(drain_timeout=LAST_WORDS)
    waiting = house.rerank()
    await house.until_waiting(1)
    stopping = asyncio.create_task(house.gateway.stop(asyncio.Event()))
    status, answer = await waiting
    assert (status, answer["error"]["code"]) == (503, "shutting_down")
    await stopping


async def test_what_is_in_flight_when_the_gateway_must_end_gets_an_answer_and_counts_as_failed(
    open_house, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "rerank_gateway.access")
    house = await open_house(drain_timeout=0.1)

    async def freeze(worker: Worker, query: wire.ScoreRequest) -> None:
        await asyncio.Event().wait()

    worker = await house.worker(behave=freeze)
    house.serve(worker)
    in_flight = house.rerank()
    gone = house.rerank()
    await until(lambda: len(worker.seen) == 2, "the requests are at the worker")
    gone.cancel()
    await until(lambda: worker.cancelled == 1, "its client went away")
    stopping = asyncio.create_task(house.gateway.stop(asyncio.Event()))
    status, answer = await in_flight
    assert (status, answer["error"]["code"]) == (503, "shutting_down")
    await stopping
    await until(lambda: worker.cancelled == 2, "the worker is told")
    assert [(line.code, line.error) for line in house.lines] == [(499, ""), (503, "shutting_down")]
    assert house.gateway.held_bytes == 0


def _accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


async def test_answers_while_draining_close_their_connection(open_house) -> None:
    house = await open_house(shutdown_delay=30.0)
    house.serve(await house.worker())
    hurry = asyncio.Event()
    stopping = asyncio.create_task(house.gateway.stop(hurry))
    await until(lambda: house.gateway.draining, "the gateway is draining")
    async with house.client.post(house.url + "/v2/rerank", json=BODY) as response:
        assert response.status == 200
        assert response.headers["Connection"] == "close"
    hurry.set()
    await stopping


@pytest.mark.parametrize(
    ("given", "kept"),
    [("abc-123", True), ("a" * 128, True), ("a" * 129, False), ("a b", False), ("<x>", False), ("", False)],
)
async def test_request_id_is_echoed_if_it_is_a_plain_one(house: House, given: str, kept: bool) -> None:
    worker = await house.worker()
    house.serve(worker)
    async with house.client.post(house.url + "/v2/rerank", json=BODY, headers={"X-Request-Id": given}) as response:
        request_id = response.headers["X-Request-Id"]
        assert (await response.json())["id"] == request_id
    assert (request_id == given) is kept
    assert worker.headers[0]["X-Request-Id"] == request_id
