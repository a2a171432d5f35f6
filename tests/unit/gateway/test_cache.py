"""The result cache: what it answers, for which revision, how much memory it takes, and that it keeps no text."""

import asyncio
import random
import tracemalloc
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st
from rerank_api import wire
from rerank_gateway.access import HEADER_CACHE, HEADER_REVISION
from rerank_gateway.cache import (
    ENTRY_BYTES,
    Caches,
    DocumentScore,
    ScoreCache,
    by_document,
    expected_revision,
    together,
)
from rerank_gateway.cluster.state import CachePolicy, Endpoint, Policy, Route, build_table
from rerank_gateway.protocol.common import RerankQuery
from rerank_gateway.routing import Load

from .conftest import House, Worker, scores, until, worker_error

CACHE = CachePolicy(2**20, 600.0)
SCORE = DocumentScore(0.25, 7, truncated=False, chunked=False)


async def _ask(house: House, documents: Sequence[str], path: str = "/v2/rerank", **fields: Any) -> tuple[Any, str, str]:
    """The answer without its id, the cache's word and the revision. ``request_id`` decides on the revision."""
    kind, request_id = fields.pop("kind", "documents"), fields.pop("request_id", "")
    body = {"query": "q", kind: documents, **fields}
    headers = {"X-Request-Id": request_id} if request_id else {}
    async with house.client.post(house.url + path, json=body, headers=headers) as response:
        answer = await response.json()
        assert response.status == 200, answer
        if isinstance(answer, dict):
            del answer["id"]
        return answer, response.headers.get(HEADER_CACHE, ""), response.headers.get(HEADER_REVISION, "")


def _scores_in(answer: Any) -> dict[int, float]:
    return {result["index"]: result["relevance_score"] for result in answer["results"]}


async def test_it_is_off_unless_asked_for(house: House) -> None:
    worker = await house.worker()
    house.serve(worker)
    for _ in range(2):
        _, cache, _ = await _ask(house, ["a", "bb"])
        assert cache == ""
    assert len(worker.seen) == 2
    assert await house.metric("rerank_gateway_cache") == 0


async def test_the_second_time_no_worker_is_asked_and_the_answer_is_the_same(house: House) -> None:
    async def answer(worker: Worker, query: wire.ScoreRequest) -> web.Response:
        return scores([0.1, 0.7, 0.4], truncated=[1], chunked=[2])

    worker = await house.worker(behave=answer)
    house.serve(worker, cache=CACHE)
    first, miss, _ = await _ask(house, ["a", "bb", "ccc"])
    second, hit, revision = await _ask(house, ["a", "bb", "ccc"])
    assert (miss, hit, revision) == ("miss", "hit", "one")
    assert second == first
    assert len(worker.seen) == 1
    reranker = ('namespace="search"', 'reranker="products"')
    assert await house.metric("rerank_gateway_cache_documents_total", *reranker, 'result="hit"') == 3
    assert await house.metric("rerank_gateway_cache_documents_total", *reranker, 'result="miss"') == 3
    assert await house.metric("rerank_gateway_cache_bytes", *reranker) == 3 * ENTRY_BYTES
    assert await house.metric("rerank_gateway_tokens_total", *reranker) == 30, "tokens are counted as they are scored"
    assert await house.metric("rerank_gateway_request_duration_seconds_count", *reranker) == 1


async def test_only_what_is_not_known_is_scored(house: House) -> None:
    worker = await house.worker()
    house.serve(worker, cache=CACHE)
    await _ask(house, ["a", "ccc"])
    answer, cache, _ = await _ask(house, ["dddd", "ccc", "bb", "a"])
    assert cache == "partial"
    assert worker.seen[1].documents == ["dddd", "bb"]
    assert _scores_in(answer) == {0: 0.004, 1: 0.003, 2: 0.002, 3: 0.001}
    assert answer["usage"]["total_tokens"] == 40
    assert (await _ask(house, ["bb", "dddd"]))[1] == "hit"


async def test_truncated_and_chunked_documents_keep_their_places(house: House) -> None:
    async def answer(worker: Worker, query: wire.ScoreRequest) -> web.Response:
        cut = [index for index, document in enumerate(query.documents) if "cut" in document]
        parts = [index for index, document in enumerate(query.documents) if "parts" in document]
        return scores([0.5] * len(query.documents), cut, parts)

    house.serve(await house.worker(behave=answer), cache=CACHE)
    await _ask(house, ["plain", "cut 1", "parts 1"])
    for cache in ("partial", "hit"):
        answer_, said, _ = await _ask(house, ["cut 2", "parts 1", "new", "cut 1", "parts 2", "plain"])
        assert said == cache
        assert answer_["meta"]["truncated_documents"] == [0, 3]
        assert answer_["meta"]["chunked_documents"] == [1, 4]


async def test_a_refusal_to_be_cut_holds_for_known_scores(house: House) -> None:
    async def answer(worker: Worker, query: wire.ScoreRequest) -> web.Response:
        return scores([0.5, 0.5], truncated=[1])

    worker = await house.worker(behave=answer)
    house.serve(worker, cache=CACHE)
    assert (await _ask(house, ["a", "bb"]))[1] == "miss"
    status, body = await house.post({"query": "q", "texts": ["a", "bb"], "truncate": False}, "/rerank")
    assert (status, body["error"]["field"]) == (422, "texts[1]")
    assert len(worker.seen) == 1


@pytest.mark.parametrize(
    "other",
    [{"query": "p"}, {"query": "q "}, {"raw_scores": True}, {"max_tokens_per_doc": 3}],
    ids=["query", "space", "raw scores", "cut"],
)
async def test_what_changes_the_score_is_another_entry(house: House, other: dict[str, Any]) -> None:
    worker = await house.worker()
    house.serve(worker, cache=CACHE)
    assert [(await _ask(house, ["a"], **fields))[1] for fields in ({}, other, {}, other)] == [
        *("miss", "miss", "hit", "hit")
    ]


async def test_what_does_not_change_the_score_is_the_same_entry(house: House) -> None:
    house.serve(await house.worker(), cache=CACHE)
    assert (await _ask(house, ["a", "bb"]))[1] == "miss"
    for path, fields in (
        ("/v1/rerank", {"top_n": 1, "return_documents": True}),
        ("/search/products/rerank", {"model": "products"}),
        ("/rerank", {"kind": "texts"}),
    ):
        assert (await _ask(house, ["bb", "a"], path, **fields))[1] == "hit"


async def test_a_new_revision_is_never_answered_with_scores_of_the_old(house: House) -> None:
    old, new = await house.worker("old"), await house.worker("new", behave=_upside_down)
    house.serve(old, new, cache=CACHE, traffic=(("old", 100),))
    assert (await _ask(house, ["a", "bb"]))[1:] == ("miss", "old")
    house.serve(old, new, traffic=(("new", 100),))
    answer, cache, revision = await _ask(house, ["a", "bb"])
    assert (cache, revision) == ("miss", "new")
    assert _scores_in(answer) == {0: 0.999, 1: 0.998}
    house.serve(old, new, traffic=(("old", 100),))
    answer, cache, revision = await _ask(house, ["a", "bb"])
    assert (cache, revision) == ("hit", "old")
    assert _scores_in(answer) == {0: 0.001, 1: 0.002}


async def _upside_down(worker: Worker, query: wire.ScoreRequest) -> web.Response:
    return scores([1 - len(document) / 1000 for document in query.documents])


async def test_an_answer_is_of_one_revision_and_the_traffic_is_split_as_without_a_cache(house: House) -> None:
    old, new = await house.worker("old"), await house.worker("new", behave=_upside_down)
    house.serve(old, new, cache=CACHE, traffic=(("old", 50), ("new", 50)))
    draw = random.Random(7)
    said: dict[tuple[str, str], int] = {}
    for number in range(150):
        documents = ["x" * draw.randint(1, 8) for _ in range(3)]
        answer, cache, revision = await _ask(house, documents, request_id=f"number-{number}")
        said[cache, revision] = said.get((cache, revision), 0) + 1
        right = [len(document) / 1000 for document in documents]
        assert _scores_in(answer) == pytest.approx(
            dict(enumerate([1 - s for s in right] if revision == "new" else right))
        )
    assert all(said.get((cache, revision)) for cache in ("hit", "partial") for revision in ("old", "new"))


async def test_known_scores_are_dropped_when_another_revision_has_to_score_the_rest(house: House) -> None:
    old, new = await house.worker("old"), await house.worker("new", behave=_upside_down)
    house.serve(old, cache=CACHE, traffic=(("old", 100),))
    await _ask(house, ["a"])
    house.serve(new)  # the last worker of the revision with traffic has just gone
    answer, cache, revision = await _ask(house, ["a", "bb"])
    assert (cache, revision) == ("miss", "new")
    assert _scores_in(answer) == {0: 0.999, 1: 0.998}
    assert [query.documents for query in new.seen] == [["bb"], ["a", "bb"]]


async def test_a_refusal_names_the_document_by_the_clients_number(house: House) -> None:
    async def answer(worker: Worker, query: wire.ScoreRequest) -> web.Response | None:
        for index, document in enumerate(query.documents):
            if document == "bad":
                return worker_error(422, "too_long", f"documents[{index}] is too long")
        return None

    house.serve(await house.worker(behave=answer), cache=CACHE)
    await _ask(house, ["a", "bb"])
    status, body = await house.rerank("a", "bb", "bad")
    assert (status, body["message"]) == (422, "documents[2] is too long")


async def test_known_scores_wake_nobody(house: House) -> None:
    worker = await house.worker()
    house.serve(worker, cache=CACHE, settled_revision="one")
    await _ask(house, ["a", "bb"])
    queue = house.gateway._queues.get(("search", "products"))
    assert queue is not None
    before = (queue.arrived_requests, queue.last_ended)
    house.serve(queue_limit=0)
    assert (await _ask(house, ["bb", "a"]))[1:] == ("hit", "one")
    assert (queue.arrived_requests, queue.last_ended) == before
    assert (await house.rerank("a", "bb", "new"))[0] == 429, "it does wait, and there is no room"
    house.serve(settled_revision=None)
    assert (await house.rerank("a", "bb"))[0] == 429, "which revision is started is not known"


async def test_nothing_is_answered_while_suspended_and_nothing_after_it_is_switched_off(house: House) -> None:
    worker = await house.worker()
    house.serve(worker, cache=CACHE)
    await _ask(house, ["a", "bb"])
    house.serve(worker, suspended=True)
    assert (await house.rerank("a", "bb"))[0] == 503
    house.serve(worker, suspended=False, cache=None)
    assert (await _ask(house, ["a", "bb"]))[1] == ""
    house.serve(worker, cache=CACHE)
    assert (await _ask(house, ["a", "bb"]))[1] == "miss"
    house.source.set([])
    house.serve(worker)
    assert (await _ask(house, ["a", "bb"]))[1] == "miss"


async def test_a_reranker_that_is_deleted_while_it_scores_leaves_nothing(house: House) -> None:
    go_on = asyncio.Event()

    async def wait(worker: Worker, query: wire.ScoreRequest) -> None:
        await go_on.wait()

    worker = await house.worker(behave=wait)
    house.serve(worker, cache=CACHE)
    request = house.rerank()
    await until(lambda: len(worker.seen) == 1, "the request is at the worker")
    house.source.set([])
    go_on.set()
    assert (await request)[0] == 200
    assert list(house.gateway._caches) == []


# Without HTTP: bounds, time and splitting.

QUERY = RerankQuery("query", ["one", "two"])


def _route(name: str = "rr", max_bytes: int = 2**20, ttl: float = 60.0) -> Route:
    return Route(Policy("ns", name, cache=CachePolicy(max_bytes, ttl)))


def test_entries_end_after_their_time() -> None:
    now = 0.0
    caches, route = Caches(2**20, lambda: now), _route(ttl=60.0)
    pairs = caches.pairs(route, QUERY)
    assert pairs is not None
    caches.keep(route, pairs, "r", [SCORE, SCORE])
    now = 59.9
    assert caches.find(route, pairs, "r") == [SCORE, SCORE]
    now = 60.0
    assert caches.find(route, pairs, "r") == [None, None]
    assert dict(caches)["ns", "rr"].size == 0
    now = 0.0
    caches.keep(route, pairs, "r", [SCORE, SCORE])
    now = 10.0
    assert caches.find(_route(ttl=5.0), pairs, "r") == [None, None], "a shorter time counts for what is there already"


def test_the_least_recently_used_goes_first() -> None:
    cache = ScoreCache()
    for name in (b"a", b"b", b"c"):
        cache.put(name, SCORE, 0.0)
    assert cache.get(b"a", 1.0, 60.0) == SCORE
    cache.put(b"b", SCORE, 1.0)
    cache.trim(2 * ENTRY_BYTES)
    assert [cache.get(name, 1.0, 60.0) is not None for name in (b"a", b"b", b"c")] == [True, True, False]


def _fill(caches: Caches, route: Route, entries: int) -> None:
    pairs = caches.pairs(route, RerankQuery("query", [f"document {number}" for number in range(entries)]))
    assert pairs is not None
    caches.keep(route, pairs, "r", [SCORE] * entries)


def test_the_bound_of_one_and_of_all() -> None:
    caches = Caches(100 * ENTRY_BYTES, lambda: 0.0)
    _fill(caches, _route("bounded", 20 * ENTRY_BYTES), 50)
    _fill(caches, _route("small", 2**20), 10)
    _fill(caches, _route("large", 2**20), 500)
    assert {key[1]: len(cache) for key, cache in caches} == {"bounded": 20, "small": 10, "large": 70}
    table = build_table([_route("bounded", 5 * ENTRY_BYTES).policy, Policy("ns", "large")], [])
    caches.update(table)
    assert {key[1]: len(cache) for key, cache in caches} == {"bounded": 5}


@pytest.mark.parametrize("entries", [21_000, 22_500, 43_000, 60_000])
def test_entries_take_no_more_memory_than_is_said(entries: int) -> None:
    """Just before and just after the tables grow."""
    caches, route = Caches(2**40, lambda: 0.0), _route(max_bytes=2**40)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for start in range(0, entries, 500):
            pairs = caches.pairs(route, RerankQuery(f"query {start}", [f"document {n}" for n in range(500)]))
            assert pairs is not None
            caches.keep(route, pairs, "revision", [SCORE] * 500)
        del pairs
        taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    size = dict(caches)["ns", "rr"].size
    assert 0.3 * size < taken <= size


def test_no_text_is_kept_and_the_key_is_the_process_own() -> None:
    one, other, route = Caches(2**20, lambda: 0.0), Caches(2**20, lambda: 0.0), _route()
    query = RerankQuery("PRIVATE query", ["PRIVATE document", "PRIVATE document"])
    pairs, others = one.pairs(route, query), other.pairs(route, query)
    assert pairs is not None
    assert others is not None
    assert pairs.digests[0] == pairs.digests[1] != others.digests[0]
    one.keep(route, pairs, "r", [SCORE, SCORE])
    ((_, cache),) = one
    assert b"PRIVATE" not in b"".join(part for entry in cache._entries.items() for part in entry)
    assert len(cache) == 1


def test_no_two_pairs_share_a_digest_by_where_they_are_cut() -> None:
    caches = Caches(2**20, lambda: 0.0)
    route = _route()
    digests = set()
    for query, document in (("ab", "c"), ("a", "bc"), ("abc", ""), ("", "abc")):
        pairs = caches.pairs(route, RerankQuery(query, [document]))
        assert pairs is not None
        digests.add(pairs.digests[0])
    for namespace, name in (("n", "srr"), ("nsr", "r")):
        policy = replace(route.policy, namespace=namespace, name=name)
        pairs = caches.pairs(Route(policy), RerankQuery("ab", ["c"]))
        assert pairs is not None
        digests.add(pairs.digests[0])
    assert len(digests) == 6


@given(
    st.lists(st.tuples(st.floats(allow_nan=False), st.integers(1, 10**6), st.booleans(), st.booleans()), min_size=1),
    st.integers(0, 2**40),
)
def test_an_answer_taken_apart_and_put_together_is_the_same(
    documents: list[tuple[float, int, bool, bool]], tokens: int
) -> None:
    response = wire.ScoreResponse(
        scores=[score for score, *_ in documents],
        tokens=tokens,
        truncated=[index for index, document in enumerate(documents) if document[2]],
        chunked=[index for index, document in enumerate(documents) if document[3]],
    )
    cache = ScoreCache()
    apart = by_document(response, [weight for _, weight, *_ in documents])
    for index, one in enumerate(apart):
        cache.put(bytes([index % 256, index // 256]), one, 0.0)
    kept = [cache.get(bytes([index % 256, index // 256]), 0.0, 1.0) for index in range(len(apart))]
    assert together([one for one in kept if one is not None]) == response
    assert all(one.tokens >= 0 for one in apart)


OLD, NEW = Endpoint("o", "ns", "rr", "old", "10.0.0.1"), Endpoint("n", "ns", "rr", "new", "10.0.0.2")
SPLIT = (("new", 25), ("old", 75))


@pytest.mark.parametrize(
    ("endpoints", "traffic", "settled", "failing", "by_draw"),
    [
        pytest.param((OLD, NEW), SPLIT, None, (), ("new", "old"), id="by the split"),
        pytest.param((OLD,), SPLIT, None, (), ("old", "old"), id="the share of who has no worker goes to the others"),
        pytest.param((OLD, NEW), SPLIT, None, ("n",), ("old", "old"), id="and of who has no healthy one"),
        pytest.param((), SPLIT, "old", (), ("new", "old"), id="all have gone: by the split as it was"),
        pytest.param((OLD,), (("new", 100),), None, (), ("new", "new"), id="only one without traffic has a worker"),
        pytest.param((OLD,), (), "new", (), ("old", "old"), id="no split, one revision"),
        pytest.param((OLD, NEW), (), None, (), (None, None), id="no split, several"),
        pytest.param((), (), "old", (), ("old", "old"), id="asleep"),
        pytest.param((), (), None, (), (None, None), id="asleep, with another to come"),
        pytest.param((OLD,), (("old", 0),), "old", (), ("old", "old"), id="a share of nothing is none"),
        pytest.param((NEW,), (("new", 0), ("old", 100)), None, (), ("old", "old"), id="only the canary has a worker"),
        pytest.param((NEW,), (("new", 0),), None, (), (None, None), id="which nobody may be answered by"),
    ],
)
def test_the_revision_a_request_would_be_scored_by(
    endpoints: tuple[Endpoint, ...],
    traffic: tuple[tuple[str, int], ...],
    settled: str | None,
    failing: tuple[str, ...],
    by_draw: tuple[str | None, str | None],
) -> None:
    policy = Policy("ns", "rr", traffic=traffic, settled_revision=settled)
    route = build_table([policy], endpoints).routes["ns", "rr"]
    loads = {uid: Load(retry_at=10.0, on_trial=True) for uid in failing}
    assert tuple(expected_revision(route, loads, draw, 5.0) for draw in (0.1, 0.9)) == by_draw
