"""Both ways of every request shape, with Cohere's own clients among them."""

import asyncio
from typing import Any

import cohere
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rerank_gateway.protocol.common import ranking, search_units

from .conftest import House, Worker, scores


async def _truncating(worker: Worker, query: Any) -> Any:
    return scores([0.25, 0.75, 0.75, 0.5][: len(query.documents)], truncated=[1, 3], chunked=[0])


TEXTS = ["a", "b", "c", "d"]


async def test_cohere_v2(house: House) -> None:
    worker = await house.worker(behave=_truncating)
    house.serve(worker)
    status, answer = await house.post(
        {"model": "products", "query": "q", "documents": TEXTS, "top_n": 3, "max_tokens_per_doc": 40}
    )
    assert status == 200
    answer_id = answer.pop("id")
    assert answer_id
    assert answer == {
        "model": "products",
        "results": [
            {"index": 1, "relevance_score": 0.75},
            {"index": 2, "relevance_score": 0.75},
            {"index": 3, "relevance_score": 0.5},
        ],
        "meta": {
            "api_version": {"version": "2"},
            "billed_units": {"search_units": 1},
            "tokens": {"input_tokens": 40, "output_tokens": 0},
            "truncated_documents": [1, 3],
            "chunked_documents": [0],
            "warnings": ["2 of 4 documents were cut to fit the model"],
        },
        "usage": {"prompt_tokens": 40, "total_tokens": 40},
    }
    assert worker.seen[0].documents == TEXTS
    assert worker.seen[0].max_tokens_per_document == 40


@pytest.mark.parametrize("path", ["/v1/rerank", "/rerank", "/v2/rerank", "/search/products/v1/rerank"])
async def test_returned_documents(house: House, path: str) -> None:
    worker = await house.worker()
    house.serve(worker)
    documents = ["bb", {"text": "a", "sku": 7}]
    status, answer = await house.post({"query": "q", "documents": documents, "return_documents": True}, path)
    assert status == 200
    assert [result["document"] for result in answer["results"]] == [{"text": "bb"}, {"text": "a", "sku": 7}]
    assert worker.seen[0].documents == ["bb", "a"]
    assert answer["model"] == "search/products"
    assert answer["meta"]["api_version"]["version"] == ("2" if "v2" in path else "1")


async def test_rank_fields_become_lines(house: House) -> None:
    worker = await house.worker()
    house.serve(worker)
    documents = [
        {"title": "Bulb", "watts": 7.5, "dim": True, "text": "not asked for"},
        {"title": None, "watts": 3},
        "as it is",
    ]
    # Named twice, a field still counts once: a small body must not become a large one.
    body = {"query": "q", "documents": documents, "rank_fields": ["title", "watts", "title", "dim", "dim"]}
    assert (await house.post(body, "/v1/rerank"))[0] == 200
    assert worker.seen[0].documents == ["title: Bulb\nwatts: 7.5\ndim: true", "watts: 3", "as it is"]


async def test_tei(house: House) -> None:
    worker = await house.worker()
    house.serve(worker)
    body = {"query": "q", "texts": ["a", "ccc", "bb"], "raw_scores": True, "return_text": True}
    status, answer = await house.post({**body, "truncate": True, "truncation_direction": "Right"}, "/rerank")
    assert status == 200
    assert answer == [
        {"index": 1, "score": 0.003, "text": "ccc"},
        {"index": 2, "score": 0.002, "text": "bb"},
        {"index": 0, "score": 0.001, "text": "a"},
    ]
    assert worker.seen[0].raw_scores
    status, answer = await house.post({"query": "q", "texts": ["a"]}, "/search/products/rerank")
    assert answer == [{"index": 0, "score": 0.001}]
    assert not worker.seen[1].raw_scores


async def test_tei_truncate_false_is_kept(house: House) -> None:
    house.serve(await house.worker(behave=_truncating))
    body = {"query": "q", "texts": TEXTS}
    assert (await house.post(body, "/rerank"))[0] == 200
    status, answer = await house.post({**body, "truncate": False}, "/rerank")
    assert (status, answer["error"]["code"], answer["error"]["field"]) == (422, "too_long", "texts[1]")


async def test_models(house: House) -> None:
    house.serve(created=1_700_000_000)
    async with house.client.get(house.url + "/v1/models") as response:
        model = {"id": "search/products", "object": "model", "created": 1_700_000_000, "owned_by": "search"}
        assert await response.json() == {"object": "list", "data": [{**model, "ready": False}]}
    house.serve(await house.worker())
    async with house.client.get(house.url + "/v1/models") as response:
        assert (await response.json())["data"][0]["ready"] is True


async def test_cohere_client_v2(house: House) -> None:
    house.serve(await house.worker())
    client = cohere.ClientV2(api_key="none", base_url=house.url)
    answer = await asyncio.to_thread(
        client.rerank, model="products", query="q", documents=["a", "ccc", "bb"], top_n=2, max_tokens_per_doc=100
    )
    assert [(result.index, result.relevance_score) for result in answer.results] == [(1, 0.003), (2, 0.002)]
    assert answer.meta is not None
    assert answer.meta.api_version is not None
    assert answer.meta.api_version.version == "2"


async def test_cohere_client_v1(house: House) -> None:
    house.serve(await house.worker())
    client = cohere.Client(api_key="none", base_url=house.url)
    documents: list[Any] = ["a", {"text": "ccc"}, "bb"]
    answer = await asyncio.to_thread(
        client.rerank, model="products", query="q", documents=documents, return_documents=True, top_n=1
    )
    assert answer.results[0].index == 1
    assert answer.results[0].document is not None
    assert answer.results[0].document.text == "ccc"


async def test_cohere_client_with_the_reranker_in_its_base_url(house: House) -> None:
    house.serve(await house.worker())
    client = cohere.ClientV2(api_key="none", base_url=house.url + "/search/products")
    answer = await asyncio.to_thread(client.rerank, model="rerank-v3.5", query="q", documents=["a"])
    assert len(answer.results) == 1


async def test_cohere_client_sees_the_error(house: House) -> None:
    client = cohere.ClientV2(api_key="none", base_url=house.url)
    with pytest.raises(cohere.errors.NotFoundError) as caught:
        await asyncio.to_thread(client.rerank, model="nothing", query="q", documents=["a"])
    assert "there is no Reranker 'nothing'" in caught.value.body["message"]


async def test_a_large_request_passes_whole(house: House) -> None:
    worker = await house.worker()
    house.serve(worker)
    documents = [f"{index} " + "\u00e9\u4e16\U0001f600" * 500 for index in range(1000)]
    status, answer = await house.post({"query": "q", "documents": documents, "top_n": 1})
    assert status == 200
    assert len(answer["results"]) == 1
    assert worker.seen[0].documents == documents


@given(st.lists(st.floats(allow_nan=False)), st.none() | st.integers(1, 2**70))
def test_ranking_falls_and_keeps_the_order_of_equals(values: list[float], top_n: int | None) -> None:
    order = ranking(values, top_n)
    assert len(order) == len(values) if top_n is None else len(order) == min(top_n, len(values))
    keys = [(-values[index], index) for index in order]
    assert keys == sorted(keys)
    assert keys == sorted((-value, index) for index, value in enumerate(values))[: len(order)]


@pytest.mark.parametrize(("documents", "units"), [(1, 1), (100, 1), (101, 2), (1000, 10)])
def test_search_units(documents: int, units: int) -> None:
    assert search_units(documents) == units
