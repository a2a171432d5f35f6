"""What is kept of answers, which of them count, and what is told of them."""

import asyncio
from array import array
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st
from rerank_api import wire
from rerank_api.answers import ANSWERS_PATH, KEPT_MIRRORED, Answers, Mirrored, RevisionAnswers
from rerank_gateway.answers import LOOK_EVERY, WARM_AFTER, AnswerLog, Ring
from rerank_gateway.cluster.state import CachePolicy, Endpoint, Policy, build_table
from rerank_gateway.metrics import FORGET_AFTER

from .conftest import House, Worker, until, worker_error

KEY = ("search", "products")
ONE = Endpoint("one", *KEY, "stable", "10.0.0.1")
OTHER = Endpoint("other", *KEY, "canary", "10.0.0.2")


@given(st.integers(1, 5), st.integers(0, 20), st.lists(st.integers(0, 25), max_size=5))
def test_a_ring_tells_what_it_has_since_a_place(size: int, added: int, places: list[int]) -> None:
    ring = Ring(size)
    for figure in range(added):
        ring.add(figure)
    assert ring.next == added
    for place in places:
        told = ring.since(place)
        assert list(told) == [figure for figure in range(added) if figure >= max(place, added - size)]
        lost = added - place - len(told)  # what a reader makes of it
        assert max(lost, 0) == max(added - size - place, 0)


@given(st.lists(st.tuples(st.integers(0, 9), st.booleans()), max_size=40))
def test_a_reader_that_comes_often_enough_gets_each_once(batches: list[tuple[int, bool]]) -> None:
    ring, got, place, figures = Ring(9), array("f"), 0, 0
    for count, _ in batches:
        for _ in range(count):
            ring.add(figures)
            figures += 1
        got += ring.since(place)
        place = ring.next
    assert list(got) == list(range(figures))


class _Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def _attempt(log: AnswerLog, clock: _Clock, seconds: float, endpoint: Endpoint = ONE, *, failed: bool = False) -> None:
    began = clock.now
    clock.now += seconds
    log.attempted(endpoint, began, failed=failed)


def _told(log: AnswerLog, **after: int) -> dict[str, RevisionAnswers]:
    return {told.revision: told for told in log.tell(KEY, after, {}).revisions}


@pytest.mark.parametrize("cold_ones_fail", [False, True])
def test_the_first_attempts_of_each_worker_are_left_out_whatever_came_of_them(cold_ones_fail: bool) -> None:
    clock = _Clock()
    log = AnswerLog("g", clock)
    for endpoint in (ONE, OTHER):
        for _ in range(WARM_AFTER):
            _attempt(log, clock, 9.0, endpoint, failed=cold_ones_fail)
    _attempt(log, clock, 0.25)
    _attempt(log, clock, 0.0, OTHER, failed=True)
    _attempt(log, clock, 0.5, OTHER)
    assert _told(log) == {
        "stable": RevisionAnswers("stable", 1, [0.25], []),
        "canary": RevisionAnswers("canary", 2, [0.0, 0.5], [0]),
    }
    assert _told(log, canary=1)["canary"] == RevisionAnswers("canary", 2, [0.5], [])
    assert log.tell(("search", "other"), {}, {}) == Answers("g")


def test_an_attempt_that_began_before_its_worker_was_warm_is_left_out() -> None:
    """It waited for the first worker, or beside the requests that warmed it."""
    clock = _Clock()
    log = AnswerLog("g", clock)
    held = clock.now
    for _ in range(WARM_AFTER):
        _attempt(log, clock, 1.0)
    clock.now += 1
    log.attempted(ONE, held, failed=True)
    assert _told(log)["stable"].next == 0
    _attempt(log, clock, 1.0)
    assert _told(log)["stable"].next == 1


def test_what_is_gone_is_forgotten_after_a_while_and_a_worker_that_comes_back_is_known() -> None:
    clock = _Clock()
    log = AnswerLog("g", clock)
    policy = Policy(*KEY, traffic=(("stable", 100),))
    there, without = build_table([policy], [ONE]), build_table([policy], [])
    for _ in range(WARM_AFTER):
        _attempt(log, clock, 1.0)
        _attempt(log, clock, 1.0, OTHER)
    log.update(without)
    clock.now += FORGET_AFTER  # its container started anew, for nearly as long
    log.update(there)
    assert set(_told(log)) == {"stable", "canary"}
    _attempt(log, clock, 1.0)
    assert _told(log)["stable"].next == 1, "still warm"
    clock.now += LOOK_EVERY
    log.update(without)
    assert set(_told(log)) == {"stable"}, "the canary has been gone for long enough"
    clock.now += FORGET_AFTER + 1
    log.update(without)
    _attempt(log, clock, 1.0)
    assert _told(log)["stable"].next == 1, "another pod by the same name is cold"
    log.update(build_table([], []))
    clock.now += LOOK_EVERY
    log.update(build_table([], []))
    clock.now += FORGET_AFTER + 1
    log.update(build_table([], []))
    assert log._rerankers == {}


def test_the_latest_mirrored_ones_are_kept_and_told_once() -> None:
    log = AnswerLog("g", _Clock())
    all_of_them = [Mirrored(float(index), 1.0) for index in range(KEPT_MIRRORED + 10)]
    for mirrored in all_of_them:
        log.mirrored(OTHER, mirrored)
    for after, expected in ((0, all_of_them[10:]), (KEPT_MIRRORED, all_of_them[-10:]), (KEPT_MIRRORED + 10, [])):
        (told,) = log.tell(KEY, {}, {"canary": after}).mirrored
        assert (told.revision, told.next, told.answers) == ("canary", KEPT_MIRRORED + 10, expected)


# Real traffic.


async def _get(house: House, *parameters: tuple[str, str]) -> Answers:
    query = [("namespace", "search"), ("name", "products"), *parameters]
    async with house.client.get(house.admin_url + ANSWERS_PATH, params=query) as response:
        assert response.status == 200
        return msgspec.json.decode(await response.read(), type=Answers)


async def _warm(house: House, *workers: Worker, **policy: Any) -> None:
    """Serves with these workers, and each has ended as many attempts as it takes."""
    for worker in workers:
        house.serve(worker, **policy)
        for _ in range(WARM_AFTER):
            assert (await house.rerank())[0] == 200
    house.serve(*workers, **policy)


def _answer(status: int, code: str) -> Callable[[Worker, wire.ScoreRequest], Any]:
    async def behave(worker: Worker, query: wire.ScoreRequest) -> web.Response | None:
        return worker_error(status, code) if query.query == "bad" else None

    return behave


@pytest.mark.parametrize(
    ("status", "code", "told"),
    [
        pytest.param(500, "internal", [0], id="broken"),
        pytest.param(200, "", [0], id="nonsense"),
        pytest.param(422, "too_long", [0], id="refused: a canary that refuses what stable takes is worse"),
        pytest.param(400, "invalid_request", [0], id="malformed"),
        pytest.param(504, "deadline", [0], id="too late"),
        pytest.param(429, "busy", [], id="busy"),
        pytest.param(503, "unavailable", [], id="drains"),
    ],
)
async def test_what_counts_as_a_failure(house: House, status: int, code: str, told: list[int]) -> None:
    one, other = await house.worker("one"), await house.worker("two")
    one.behave = other.behave = _answer(status, code)
    await _warm(house, one, other, traffic=(("one", 100),))
    other.behave = None
    await house.post({"query": "bad", "documents": ["a"]}, headers={wire.HEADER_TIMEOUT: "500"})
    one_told = next(revision for revision in (await _get(house)).revisions if revision.revision == "one")
    assert (one_told.next, one_told.failed) == (len(told), told)


async def test_a_deadline_that_passes_at_the_worker_and_a_client_that_goes_away(house: House) -> None:
    async def slow(worker: Worker, query: wire.ScoreRequest) -> None:
        if query.query == "slow":
            await asyncio.sleep(600)

    worker = await house.worker(behave=slow)
    await _warm(house, worker)
    status, _ = await house.post({"query": "slow", "documents": ["a"]}, headers={wire.HEADER_TIMEOUT: "100"})
    assert status == 504
    leaving = asyncio.create_task(house.post({"query": "slow", "documents": ["a"]}))
    await until(lambda: len(worker.seen) == WARM_AFTER + 2, "the request at the worker")
    leaving.cancel()
    await until(lambda: worker.cancelled == 2, "both are ended at the worker")
    assert (await house.rerank())[0] == 200
    (told,) = (await _get(house)).revisions
    assert (told.next, told.failed) == (2, [0])
    assert told.seconds[0] >= 0.1 > told.seconds[1]


async def test_cached_answers_are_none(house: House) -> None:
    await _warm(house, await house.worker())
    house.serve(*house.workers, cache=CachePolicy(2**20, 600.0))
    for _ in range(3):
        assert (await house.rerank("a"))[0] == 200
    (told,) = (await _get(house)).revisions
    assert told.next == 1


async def test_a_reader_asks_for_what_is_new(house: House) -> None:
    await _warm(house, await house.worker())
    for _ in range(3):
        assert (await house.rerank())[0] == 200
    told = await _get(house)
    assert len(told.gateway) == 32
    assert (told.revisions[0].next, len(told.revisions[0].seconds)) == (3, 3)
    told = await _get(house, ("after", "one:2"), ("after", "two:7"), ("mirrored-after", "two:7"))
    assert (told.revisions[0].next, len(told.revisions[0].seconds)) == (3, 1)
    assert told.mirrored == []


async def test_an_unknown_reranker_has_none(house: House) -> None:
    params = {"namespace": "search", "name": "nobody"}
    async with house.client.get(house.admin_url + ANSWERS_PATH, params=params) as response:
        told = msgspec.json.decode(await response.read(), type=Answers)
    assert (response.status, told.revisions, told.mirrored) == (200, [], [])


@pytest.mark.parametrize(
    ("parameters", "field"),
    [
        ([("name", "products")], "namespace"),
        ([("namespace", "search")], "name"),
        ([("namespace", ""), ("name", "products")], "namespace"),
        *[
            ([("namespace", "search"), ("name", "products"), (name, given)], name)
            for name in ("after", "mirrored-after")
            for given in ("", "one", "one:", ":1", "one:-1", "one:1.5", "one:²", "one:" + "9" * 16)
        ],
    ],
)
async def test_a_bad_parameter_is_named(house: House, parameters: Sequence[tuple[str, str]], field: str) -> None:
    async with house.client.get(house.admin_url + ANSWERS_PATH, params=parameters) as response:
        assert response.status == 400
        assert (await response.json())["error"]["field"] == field
