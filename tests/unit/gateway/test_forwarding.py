"""What goes to a worker and what is taken from its answer, beyond the scores; warm pods that are on loan."""

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st
from rerank_api import wire
from rerank_api.names import model_key
from rerank_gateway.protocol.common import RerankQuery
from rerank_gateway.scoring import estimate_tokens

from .conftest import House, Worker, scores

KEY = model_key("search", "products", "one")


async def test_a_loaned_worker_is_asked_for_the_model_by_its_key(house: House) -> None:
    warm = await house.worker()
    warm.models = {KEY}
    house.source.set([house.policy], [warm.endpoint(key=KEY)])
    assert (await house.rerank())[0] == 200
    assert warm.paths == [f"/v1/models/{KEY}/score"]


async def test_a_loaned_worker_without_the_model_is_passed_over(house: House) -> None:
    warm, own = await house.worker(), await house.worker()
    house.source.set([house.policy], [warm.endpoint(key=KEY), own.endpoint()])
    assert [(await house.rerank())[0] for _ in range(5)] == [200] * 5
    assert len(own.seen) == 5
    assert await house.metric("rerank_gateway_retries_total", 'reason="broken"') == 0
    assert await house.metric("rerank_gateway_retries_total", 'reason="busy"') > 0


async def test_a_request_waits_for_the_only_worker_to_have_its_model_again(house: House) -> None:
    """A warm pod's container that was started anew is Ready, but empty until it is told what to load."""
    warm = await house.worker()
    house.source.set([house.policy], [warm.endpoint(key=KEY)])
    request = house.rerank()
    while await house.metric("rerank_gateway_retries_total", 'reason="busy"') < 4:
        assert not request.done()
    warm.models.add(KEY)
    assert (await request)[0] == 200


@pytest.mark.parametrize(
    ("given", "known"),
    [("1500", 1500.0), ("0", None), ("-3", None), ("1e9", None), ("", None), ("many", None), ("9" * 16, None)],
)
async def test_capacity_is_taken_from_the_answer(house: House, given: str, known: float | None) -> None:
    async def answer(worker: Worker, query: wire.ScoreRequest) -> web.Response:
        response = scores([0.5] * len(query.documents))
        response.headers[wire.HEADER_CAPACITY] = given
        return response

    house.serve(await house.worker(behave=answer))
    assert (await house.rerank())[0] == 200
    queue = house.gateway._queues.get(("search", "products"))
    assert queue is not None
    assert queue.capacity == known


async def test_the_last_capacity_told_counts_and_silence_changes_nothing(house: House) -> None:
    worker = await house.worker()
    house.serve(worker)
    queue = house.gateway._queues.of(house.source.table.routes["search", "products"])
    for told, known in ((None, None), (100, 100.0), (250, 250.0), (None, 250.0)):
        worker.capacity = told
        assert (await house.rerank())[0] == 200
        assert queue.capacity == known


async def test_the_worker_is_told_the_priority(house: House) -> None:
    worker = await house.worker()
    house.serve(worker)
    assert (await house.rerank())[0] == 200
    assert worker.headers[0][wire.HEADER_PRIORITY] == "normal"


@pytest.mark.parametrize(
    "body",
    [
        b'{"scores": [0.5, 0.5], "tokens": -1}',
        b'{"scores": [0.5, 0.5], "tokens": 99999999999999}',
        b'{"scores": [0.5, 0.5], "tokens": 1, "truncated": [2]}',
        b'{"scores": [0.5, 0.5], "tokens": 1, "chunked": [-1]}',
    ],
)
async def test_impossible_answers_are_not_believed(house: House, body: bytes) -> None:
    async def answer(worker: Worker, query: wire.ScoreRequest) -> web.Response | None:
        return web.Response(body=body) if len(worker.seen) == 1 else None

    worker = await house.worker(behave=answer)
    house.serve(worker)
    assert (await house.rerank())[0] == 200
    assert len(worker.seen) == 2


@pytest.mark.parametrize(
    ("query", "chunked", "tokens"),
    [
        pytest.param(RerankQuery("q" * 8, ["d" * 40] * 3), False, 3 * (2 + 3 + 10), id="by characters"),
        pytest.param(RerankQuery("q" * 8, ["d" * 40, ""]), False, 2 * (2 + 3) + 10, id="an empty document"),
        pytest.param(RerankQuery("q" * 8, ["d" * 40_000, "d" * 40]), False, 512 + 15, id="cut to what the model takes"),
        pytest.param(RerankQuery("q" * 8, ["d" * 40_000]), True, 10_005, id="in chunks: nothing is cut"),
        pytest.param(RerankQuery("q" * 8, ["d" * 400], max_tokens_per_document=20), False, 25, id="cut as asked for"),
        pytest.param(RerankQuery("q" * 8, ["d" * 400], max_tokens_per_document=20), True, 25, id="cut before chunks"),
        pytest.param(RerankQuery("q" * 8000, ["d" * 400]), False, 512, id="the query alone is too long"),
        pytest.param(RerankQuery("q" * 8000, ["d" * 400]), True, 512 + 100, id="too long for a chunk"),
    ],
)
def test_estimates(query: RerankQuery, chunked: bool, tokens: int) -> None:
    assert estimate_tokens(query, 512, chunked=chunked) == tokens


@given(
    st.integers(0, 10_000), st.lists(st.integers(0, 10_000), min_size=1, max_size=9), st.none() | st.integers(1, 999)
)
def test_no_query_makes_a_pair_count_for_more_than_a_worker_scores(
    length: int, documents: list[int], most: int | None
) -> None:
    """The worker refuses what does not fit, so its count never corrects what such a request was taken for."""
    query = RerankQuery("q" * length, ["d" * document for document in documents], max_tokens_per_document=most)
    assert estimate_tokens(query, 64, chunked=False) <= 64 * len(documents)


async def test_estimates_follow_what_workers_count(house: House) -> None:
    """Ten tokens a document, says the worker, whatever is in it."""
    house.serve(await house.worker())
    queue = house.gateway._queues.of(house.source.table.routes["search", "products"])
    for _ in range(3):
        assert (await house.rerank("x" * 4000, "y" * 4000))[0] == 200
    before = queue.arrived_tokens
    assert (await house.rerank("x" * 4000, "y" * 4000))[0] == 200
    assert queue.arrived_tokens - before == 20
