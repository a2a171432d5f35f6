"""A golden set asked of one worker: the genuine client, and servers that answer as a worker does."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager

import aiohttp
import msgspec
import pytest
from aiohttp import web
from rerank_api import wire
from rerank_operator.rollout.golden import workers
from rerank_operator.rollout.golden.ask import CannotAsk
from rerank_operator.rollout.golden.golden_set import GoldenQuery, GoldenSet
from rerank_operator.rollout.golden.measures import Quality
from rerank_operator.rollout.golden.workers import AT_ONCE, TRIES, ask_worker
from unit.operator.golden import listening

RIGHT = Quality(1.0, 1.0, 1.0)
Answer = Callable[[wire.ScoreRequest], web.Response]


def scores(request: wire.ScoreRequest) -> web.Response:
    """Longer documents first."""
    found = wire.ScoreResponse([len(text) / 100 for text in request.documents], tokens=10)
    return web.Response(body=msgspec.json.encode(found), content_type="application/json")


def refusal(status: int, code: wire.ErrorCode, message: str, after: str | None = None) -> web.Response:
    headers = {} if after is None else {"Retry-After": after}
    return web.Response(status=status, headers=headers, body=msgspec.json.encode(wire.WorkerError(code, message)))


class Worker:
    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.seen: list[web.Request] = []
        self.at_once = self.most_at_once = 0

    async def handle(self, request: web.Request) -> web.Response:
        self.seen.append(request)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await asyncio.sleep(0)
        try:
            return self.answer(msgspec.json.decode(await request.read(), type=wire.ScoreRequest))
        finally:
            self.at_once -= 1


def serving(worker: Worker) -> AbstractAsyncContextManager[str]:
    return listening(web.post(wire.SCORE_PATH, worker.handle))


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "FIRST_PAUSE", 0.001)


def golden(count: int) -> GoldenSet:
    """The longest document is the right one."""
    return GoldenSet([GoldenQuery(f"q{i}", ["a" * (5 + i % 3), "b", "cc"], [1, 0, 0]) for i in range(count)])


async def test_every_query_is_ranked_beside_what_users_send(session: aiohttp.ClientSession):
    worker = Worker(scores)
    async with serving(worker) as host:
        assert await ask_worker(session, host, golden(20), 10) == [RIGHT] * 20
    assert worker.most_at_once <= AT_ONCE
    assert {request.headers[wire.HEADER_PRIORITY] for request in worker.seen} == {"low"}
    assert {request.headers[wire.HEADER_TIMEOUT] for request in worker.seen} == {"60000"}


async def test_answers_keep_the_order_of_the_queries_and_k_is_the_one_asked_for(session: aiohttp.ClientSession):
    queries = [GoldenQuery(f"q{i}", ["aaa", "b"], [1, 0] if i % 3 else [0, 1]) for i in range(9)]
    async with serving(Worker(scores)) as host:
        found = await ask_worker(session, host, GoldenSet(queries, k=2), 1)
    assert [each.accuracy for each in found] == [float(i % 3 > 0) for i in range(9)]


@pytest.mark.parametrize(
    "refused",
    [
        refusal(429, "busy", "full", "0"),
        refusal(503, "unavailable", "it loads"),
        refusal(504, "deadline", "too late"),
        web.Response(status=503, text="no worker's answer", headers={"Retry-After": "tomorrow"}),
    ],
)
async def test_a_worker_that_is_busy_is_asked_again_and_not_for_ever(
    session: aiohttp.ClientSession, refused: web.Response
):
    patience = [TRIES - 1]

    def busy(request: wire.ScoreRequest) -> web.Response:
        patience[0] -= 1
        if patience[0] >= 0:
            return web.Response(status=refused.status, headers=refused.headers, body=refused.body)
        return scores(request)

    worker = Worker(busy)
    async with serving(worker) as host:
        assert await ask_worker(session, host, golden(1), 10) == [RIGHT]
        assert len(worker.seen) == TRIES
        patience[0] = TRIES
        with pytest.raises(CannotAsk, match=rf"worker {host}: queries\[0\]: answered {refused.status}: "):
            await ask_worker(session, host, golden(1), 10)
        assert len(worker.seen) == 2 * TRIES


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (lambda request: refusal(422, "too_long", "a document is too long"), "answered 422: a document is too long"),
        (lambda request: web.Response(status=404, text="no such path"), "answered 404: no such path"),
        (lambda request: web.Response(status=307, headers={"Location": "/elsewhere"}), "answered 307"),
        (lambda request: web.json_response({"scores": [1.0], "tokens": 3}), "1 scores for 3 documents"),
        (lambda request: web.json_response([1, 2]), "Expected `object`"),
        (lambda request: web.Response(body=b"hello"), "malformed"),
        (lambda request: web.Response(body=b'{"scores": [1, 2, 1e999], "tokens": 3}'), "out of range"),
        (lambda request: web.Response(body=b" " * (workers.MOST_BYTES + 1)), "more than 1048576 bytes"),
    ],
    ids=[
        "refused",
        "no worker",
        "a redirect",
        "a score is missing",
        "another shape",
        "no JSON",
        "infinite",
        "too much",
    ],
)
async def test_an_answer_that_is_no_ranking_is_told_at_once(session: aiohttp.ClientSession, answer: Answer, told: str):
    worker = Worker(answer)
    async with serving(worker) as host:
        with pytest.raises(CannotAsk, match=rf"worker {host}: queries\[\d\]: .*{told}"):
            await ask_worker(session, host, golden(2), 10)
    assert len(worker.seen) <= 2


async def test_a_worker_that_is_gone_is_told(session: aiohttp.ClientSession):
    async with serving(Worker(scores)) as host:
        pass
    with pytest.raises(CannotAsk, match=rf"worker {host}: queries\[0\]: cannot be asked: "):
        await ask_worker(session, host, golden(1), 10)


async def test_the_whole_run_has_an_end(session: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch):
    asked = asyncio.Event()

    class Frozen(Worker):
        async def handle(self, request: web.Request) -> web.Response:
            if len(self.seen) == 3:
                asked.set()
                await asyncio.Event().wait()
            return await super().handle(request)

    monkeypatch.setattr(workers, "RUN_SECONDS", 1.0)
    async with serving(Frozen(scores)) as host:
        with pytest.raises(CannotAsk, match="3 of 10 queries were ranked in 1 s: make the golden set smaller"):
            await ask_worker(session, host, golden(10), 10)
    assert asked.is_set()


@pytest.mark.parametrize(
    ("host", "authority"),
    [("10.0.0.7", "10.0.0.7:8080"), ("fd00::7", "[fd00::7]:8080"), ("10.0.0.7:81", "10.0.0.7:81")],
)
def test_a_pods_address_gets_the_workers_port(host: str, authority: str):
    assert workers._authority(host) == authority
