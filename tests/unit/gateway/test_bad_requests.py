"""What the gateway answers to bad input: always JSON with a code, a sentence and, where there is one, a field."""

import asyncio
import gzip
import logging
from dataclasses import replace
from typing import Any, NamedTuple

import aiohttp
import msgspec
import pytest
from multidict import CIMultiDict
from rerank_gateway.cluster.state import Policy


class Bad(NamedTuple):
    name: str
    body: bytes
    words: str
    """Of the message."""
    field: str | None = None
    code: str = "invalid_request"
    status: int = 400
    path: str = "/v2/rerank"


# Everything nested deeper than a parser can follow.
DEEP = 100_000

BAD_BODIES = [
    Bad("empty body", b"", "empty", code="invalid_json"),
    Bad("not JSON", b"query=a", "not valid JSON", code="invalid_json"),
    Bad("truncated JSON", b'{"query": "a", "documents": ["b"', "not valid JSON", code="invalid_json"),
    Bad("trailing characters", b'{"query": "a", "documents": ["b"]} x', "trailing", code="invalid_json"),
    Bad("an array", b"[]", "object"),
    Bad("null", b"null", "object"),
    Bad("no query", b'{"documents": ["a"]}', "required", field="query"),
    Bad("null query", b'{"query": null, "documents": ["a"]}', "expected str", field="query"),
    Bad("number as query", b'{"query": 7, "documents": ["a"]}', "expected str", field="query"),
    Bad("empty query", b'{"query": "", "documents": ["a"]}', "empty", field="query"),
    Bad("blank query", b'{"query": " \\n", "documents": ["a"]}', "empty", field="query"),
    Bad("no documents", b'{"query": "a"}', "required", field="documents"),
    Bad("empty documents", b'{"query": "a", "documents": []}', "empty", field="documents"),
    Bad("text as documents", b'{"query": "a", "documents": "b"}', "array", field="documents", path="/v1/rerank"),
    Bad("number in documents", b'{"query": "a", "documents": ["b", 7]}', "got int", field="documents[1]"),
    Bad("null in documents", b'{"query": "a", "documents": [null]}', "got null", field="documents[0]"),
    Bad(
        "object without text",
        b'{"query": "a", "documents": [{"title": "b"}]}',
        "rank_fields",
        field="documents[0].text",
        path="/v1/rerank",
    ),
    Bad(
        "image document",
        b'{"query": "a", "documents": [{"image": "b"}]}',
        "text",
        field="documents[0].text",
        path="/v1/rerank",
    ),
    Bad(
        "nested text",
        b'{"query": "a", "documents": [{"text": {"x": 1}}]}',
        "text",
        field="documents[0].text",
        path="/v1/rerank",
    ),
    Bad(
        "rank_fields nowhere",
        b'{"query": "a", "documents": [{"text": "b"}], "rank_fields": ["title"]}',
        "rank_fields",
        field="documents[0]",
        path="/v1/rerank",
    ),
    Bad(
        "more rank_fields than a document is searched for",
        msgspec.json.encode({"query": "a", "documents": [{"f0": "b"}], "rank_fields": [f"f{n}" for n in range(101)]}),
        "name fewer",
        field="rank_fields",
        path="/v1/rerank",
    ),
    Bad(
        "nested rank field",
        b'{"query": "a", "documents": [{"title": []}], "rank_fields": ["title"]}',
        "string or a number",
        field="documents[0].title",
        path="/v1/rerank",
    ),
    Bad("top_n 0", b'{"query": "a", "documents": ["b"], "top_n": 0}', "1 or more", field="top_n"),
    Bad("top_n -1", b'{"query": "a", "documents": ["b"], "top_n": -1}', "1 or more", field="top_n"),
    Bad("top_n 1.5", b'{"query": "a", "documents": ["b"], "top_n": 1.5}', "got float", field="top_n"),
    Bad("top_n text", b'{"query": "a", "documents": ["b"], "top_n": "2"}', "got str", field="top_n"),
    Bad("top_n true", b'{"query": "a", "documents": ["b"], "top_n": true}', "got bool", field="top_n"),
    Bad("top_n NaN", b'{"query": "a", "documents": ["b"], "top_n": NaN}', "not valid JSON", code="invalid_json"),
    Bad("top_n 1e400", b'{"query": "a", "documents": ["b"], "top_n": 1e400}', "range", field="top_n"),
    Bad(
        "max_tokens_per_doc 0",
        b'{"query": "a", "documents": ["b"], "max_tokens_per_doc": 0}',
        "1 or more",
        field="max_tokens_per_doc",
    ),
    Bad(
        "return_documents text",
        b'{"query": "a", "documents": ["b"], "return_documents": "yes"}',
        "got str",
        field="return_documents",
        path="/v1/rerank",
    ),
    Bad("number as model", b'{"model": 7, "query": "a", "documents": ["b"]}', "got int", field="model"),
    Bad("lone high surrogate", b'{"query": "\\ud800", "documents": ["b"]}', "lone surrogate", code="invalid_json"),
    Bad(
        "lone high surrogate, text after",
        b'{"query": "a", "documents": ["\\ud83dx and more"]}',
        "lone surrogate",
        code="invalid_json",
    ),
    Bad("lone low surrogate", b'{"query": "a", "documents": ["\\udc00"]}', "lone surrogate", code="invalid_json"),
    Bad("encoded surrogate", b'{"query": "a", "documents": ["\xed\xa0\x80"]}', "UTF-8", code="invalid_json"),
    Bad("invalid UTF-8", b'{"query": "\xff", "documents": ["b"]}', "UTF-8", code="invalid_json"),
    Bad("UTF-16", '{"query": "a", "documents": ["b"]}'.encode("utf-16"), "not valid UTF-8", code="invalid_json"),
    Bad("raw control character", b'{"query": "a\x01", "documents": ["b"]}', "control character", code="invalid_json"),
    Bad("nested deeply", b'{"query": "a", "documents": ' + b"[" * DEEP, "nested", code="invalid_json"),
    Bad("nested deeply, ignored field", b'{"x": ' + b"[" * DEEP, "nested", code="invalid_json"),
    Bad(
        "nested deeply, in a document",
        b'{"query": "a", "documents": [{"text": ' + b'{"a":' * DEEP,
        "nested",
        code="invalid_json",
        path="/v1/rerank",
    ),
    Bad(
        "unknown model",
        b'{"model": "nothing", "query": "a", "documents": ["b"]}',
        "nothing",
        field="model",
        code="model_not_found",
        status=404,
    ),
    Bad(
        "unknown namespace",
        b'{"model": "other/products", "query": "a", "documents": ["b"]}',
        "other/products",
        field="model",
        code="model_not_found",
        status=404,
    ),
    Bad(
        "unknown model in the path",
        b'{"query": "a", "documents": ["b"]}',
        "search/nothing",
        field="model",
        code="model_not_found",
        status=404,
        path="/search/nothing/v2/rerank",
    ),
    Bad("texts on the Cohere path", b'{"query": "a", "texts": ["b"]}', "required", field="documents"),
    Bad("TEI: no texts", b'{"query": "a", "texts": []}', "empty", field="texts", path="/rerank"),
    Bad("TEI: number in texts", b'{"query": "a", "texts": [1]}', "got int", field="texts[0]", path="/rerank"),
    Bad(
        "TEI: cut on the left",
        b'{"query": "a", "texts": ["b"], "truncate": true, "truncation_direction": "Left"}',
        "Right",
        field="truncation_direction",
        path="/rerank",
    ),
    Bad(
        "TEI: unknown direction",
        b'{"query": "a", "texts": ["b"], "truncation_direction": "up"}',
        "up",
        field="truncation_direction",
        path="/rerank",
    ),
    Bad(
        "TEI: null texts, no documents", b'{"query": "a", "texts": null}', "required", field="documents", path="/rerank"
    ),
]


@pytest.mark.parametrize("bad", BAD_BODIES, ids=lambda bad: bad.name)
async def test_bad_body(house, bad: Bad) -> None:
    worker = await house.worker()
    house.serve(worker)
    status, answer = await house.post(bad.body, bad.path)
    assert status == bad.status, answer
    assert answer["error"]["code"] == bad.code
    assert answer["error"].get("field") == bad.field
    assert bad.words in answer["error"]["message"]
    assert answer["message"] == answer["error"]["message"]
    assert not worker.seen


GOOD_BODIES = [
    (
        "unknown fields and nulls",
        b'{"query": "a", "documents": ["b"], "top_n": null, "max_tokens_per_doc": null, "rank_fields": null, '
        b'"return_documents": null, "priority": 3, "x": {"y": [1]}}',
    ),
    ("escaped control characters", b'{"query": "a\\u0000\\u001f", "documents": ["\\u0007b"]}'),
    ("surrogate pair", b'{"query": "\\ud83d\\ude00", "documents": ["b"]}'),
    ("escaped backslash before u", b'{"query": "\\\\ud800", "documents": ["b"]}'),
    ("top_n beyond the documents", b'{"query": "a", "documents": ["b"], "top_n": 99999999999999999999999999}'),
    (
        "max_tokens_per_doc beyond any model",
        b'{"query": "a", "documents": ["b"], "max_tokens_per_doc": 1%s}' % (b"0" * 30),
    ),
    ("empty document", b'{"query": "a", "documents": [""]}'),
    ("null model", b'{"model": null, "query": "a", "documents": ["b"]}'),
    ("model with namespace", b'{"model": "search/products", "query": "a", "documents": ["b"]}'),
    ("repeated field", b'{"query": "x", "query": "a", "documents": ["b"]}'),
]


@pytest.mark.parametrize("body", [case[1] for case in GOOD_BODIES], ids=[case[0] for case in GOOD_BODIES])
async def test_odd_but_good_body(house, body: bytes) -> None:
    worker = await house.worker()
    house.serve(worker)
    status, answer = await house.post(body, headers={"Content-Type": "text/plain"})
    assert status == 200, answer
    assert (worker.seen[0].max_tokens_per_document or 0) < 2**31
    assert worker.seen[0].query == msgspec.json.decode(body)["query"]


async def test_too_many_documents_names_the_limit(house) -> None:
    house.serve(await house.worker())
    status, answer = await house.post({"query": "a", "documents": ["x"] * 10_000})
    assert status == 400
    assert answer["error"]["field"] == "documents"
    assert "10000 documents are more than 1000 (requests.maxDocuments of search/products)" in answer["message"]


async def test_as_many_documents_as_allowed_pass(house) -> None:
    house.serve(await house.worker(), max_documents=10_000)
    status, answer = await house.post({"query": "a", "documents": ["x"] * 10_000})
    assert status == 200
    assert len(answer["results"]) == 10_000


FIFTY_MB = 50 * 10**6


async def test_large_body_is_refused_by_its_length(house) -> None:
    house.serve(await house.worker())
    status, answer = await house.post(b"x" * FIFTY_MB)
    assert status == 413
    assert answer["error"]["code"] == "body_too_large"
    assert "8388608 bytes (requests.maxBodyBytes of search/products)" in answer["message"]
    assert (await house.rerank())[0] == 200


async def test_large_chunked_body_is_refused_before_it_is_held(house) -> None:
    house.serve(await house.worker())
    held = []

    async def chunks():
        for _ in range(50):
            yield b" " * 10**6
            held.append(house.gateway.held_bytes)

    async with house.client.post(house.url + "/v2/rerank", data=chunks()) as response:
        assert response.status == 413
        assert (await response.json())["error"]["code"] == "body_too_large"
    assert max(held) <= 8 * 2**20


async def test_a_client_that_asks_first_is_told_before_it_sends(house) -> None:
    house.serve(await house.worker())
    reader, writer = await asyncio.open_connection("127.0.0.1", house.gateway.api_port)
    head = f"POST /v2/rerank HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: {FIFTY_MB}\r\n\r\n"
    writer.write(head.encode())
    assert b" 413 " in await reader.readline()
    writer.close()


async def test_a_client_that_asks_first_may_send(house) -> None:
    house.serve(await house.worker())
    status, _ = await house.post({"query": "a", "documents": ["b"]}, expect100=True)
    assert status == 200


async def test_each_reranker_has_its_own_body_limit(house) -> None:
    small, large = Policy("search", "small", max_body_bytes=1024), Policy("search", "large")
    house.source.set([small, large])
    body = {"model": "small", "query": "a", "documents": ["x" * 2000]}
    for path in ("/v2/rerank", "/search/small/v2/rerank"):
        status, answer = await house.post(body, path)
        assert status == 413
        assert "1024 bytes (requests.maxBodyBytes of search/small)" in answer["message"]


async def test_compressed_body_is_refused(house) -> None:
    house.serve(await house.worker())
    body = gzip.compress(b'{"query": "a", "documents": ["b"]}')
    status, answer = await house.post(body, headers={"Content-Encoding": "gzip"})
    assert status == 415
    assert answer["error"]["code"] == "unsupported_encoding"


async def test_all_held_bodies_together_are_bounded(open_house) -> None:
    house = await open_house(max_held_bytes=1000)
    waiting = house.rerank("x" * 800, headers={"X-Rerank-Timeout-Ms": "5000"})
    await house.until_waiting(1)
    async with house.client.post(house.url + "/v2/rerank", data=b"x" * 800) as response:
        assert response.status == 429
        assert response.headers["Retry-After"] == "1"
        assert (await response.json())["error"]["code"] == "overloaded"
    house.serve(await house.worker())
    assert (await waiting)[0] == 200
    assert house.gateway.held_bytes == 0


@pytest.mark.parametrize("header", ["0", "-1", "1.5", "soon", "", "99999999999", "\u0661"])
async def test_bad_timeout_header(house, header: str) -> None:
    house.serve(await house.worker())
    status, answer = await house.rerank(headers={"X-Rerank-Timeout-Ms": header})
    assert status == 400
    assert answer["error"]["field"] == "X-Rerank-Timeout-Ms"


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "OPTIONS"])
@pytest.mark.parametrize("path", ["/v2/rerank", "/rerank", "/search/products/v1/rerank"])
async def test_wrong_method(house, method: str, path: str) -> None:
    async with house.client.request(method, house.url + path) as response:
        assert response.status == 405
        assert response.headers["Allow"] == "POST"
        assert (await response.json())["error"]["code"] == "method_not_allowed"


@pytest.mark.parametrize("path", ["/", "/v3/rerank", "/v2/rerank/", "/a/b/c/v2/rerank", "/%00", "/v2/chat"])
async def test_unknown_path(house, path: str) -> None:
    async with house.client.post(house.url + path, data=b"{}") as response:
        assert response.status == 404
        assert (await response.json())["error"]["code"] == "not_found"


async def test_models_which_a_name_alone_does_not_tell_apart(house) -> None:
    worker = await house.worker()
    one = Policy("search", "products")
    house.source.set([one, replace(one, namespace="shop")], [worker.endpoint()])
    body: dict[str, Any] = {"query": "a", "documents": ["b"]}

    status, answer = await house.post({**body, "model": "products"})
    assert (status, answer["error"]["code"]) == (400, "ambiguous_model")
    assert "namespace/products" in answer["message"]
    status, answer = await house.post(body)
    assert (status, answer["error"]["code"]) == (400, "model_required")
    assert (await house.post({**body, "model": "search/products"}))[0] == 200
    assert (await house.post({**body, "model": "ignored"}, "/search/products/v2/rerank"))[0] == 200


async def test_no_reranker_at_all(house) -> None:
    house.source.set([])
    status, answer = await house.rerank()
    assert (status, answer["error"]["code"]) == (404, "model_not_found")
    assert "apply one" in answer["message"]


async def test_suspended(house) -> None:
    house.serve(await house.worker(), suspended=True)
    async with house.client.post(house.url + "/v2/rerank", json={"query": "a", "documents": ["b"]}) as response:
        assert response.status == 503
        assert response.headers["Retry-After"].isdigit()
        assert (await response.json())["error"]["code"] == "suspended"


BAD_HTTP = [
    (
        b"POST /v2/rerank HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
        "Transfer-Encoding can't be present with Content-Length",
    ),
    (b"POST /v2/rerank HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n", "Content-Length"),
    (b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Secret: %s\r\n\r\n" % (b"s" * 40_000), "8190 bytes when reading: shorten"),
    (b"GET /healthz HTTP/1.1\r\n\r\n", "Missing 'Host' header"),
    (b"GET http://[ HTTP/1.1\r\nHost: x\r\n\r\n", "URL cannot be read"),
    (b"\x16\x03\x01\x02\x00\x01", "HTTPS traffic on an HTTP port"),
]


@pytest.mark.parametrize("port", ["api_port", "admin_port"])
@pytest.mark.parametrize(("request_", "words"), BAD_HTTP, ids=[words for _, words in BAD_HTTP])
async def test_what_is_no_http_is_told_so_in_json_and_fills_no_log(
    house, caplog: pytest.LogCaptureFixture, port: str, request_: bytes, words: str
) -> None:
    """aiohttp's own answer was plain text under its own name, with an error and a traceback in the log for each."""
    reader, writer = await asyncio.open_connection("127.0.0.1", getattr(house.gateway, port))
    writer.write(request_)
    head, _, body = (await asyncio.wait_for(reader.read(), 10)).partition(b"\r\n\r\n")
    writer.close()
    assert head.startswith(b"HTTP/1.0 400 ")
    assert b"\r\nContent-Type: application/json\r\n" in head
    assert b"\r\nServer: rerank-gateway\r\n" in head
    answer = msgspec.json.decode(body)
    assert answer["error"]["code"] == "invalid_request"
    assert answer["message"].startswith("the request is no valid HTTP: ")
    assert words in answer["message"]
    assert "ssss" not in answer["message"]
    assert [record.message for record in caplog.records if record.levelno >= logging.INFO] == []


@pytest.mark.parametrize(
    ("header", "one", "other"),
    [
        ("X-Rerank-Timeout-Ms", "1000", "2000"),
        ("X-Rerank-Priority", "high", "low"),
        ("X-Rerank-Client", "one", "other"),
        ("X-Rerank-Sticky", "one", "other"),
        ("X-Rerank-Candidate-Fetch-Ms", "1", "2"),
    ],
)
async def test_a_header_that_is_sent_twice_is_refused(house, header: str, one: str, other: str) -> None:
    """The first one counted, and nobody was told."""
    house.serve(await house.worker())
    status, answer = await house.rerank(headers=CIMultiDict([(header, one), (header, other)]))
    assert (status, answer["error"]["field"]) == (400, header)
    assert (await house.rerank(headers={header: one}))[0] == 200


async def test_broken_chunking(house) -> None:
    house.serve(await house.worker())
    reader, writer = await asyncio.open_connection("127.0.0.1", house.gateway.api_port)
    writer.write(b"POST /v2/rerank HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n")
    assert b" 400 " in await reader.readline()
    writer.close()
    assert (await house.rerank())[0] == 200


async def test_unknown_models_make_no_series(house) -> None:
    house.serve(await house.worker())
    await house.post({"model": "mystery", "query": "a", "documents": ["b"]})
    async with house.client.get(house.admin_url + "/metrics") as response:
        assert "mystery" not in await response.text()
    assert await house.metric("rerank_gateway_requests_total", 'code="404"', 'reranker=""') == 1


async def test_a_client_that_sends_too_slowly(house, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rerank_gateway.body.READ_TIMEOUT", 0.05)
    house.serve(await house.worker())

    async def never():
        yield b"{"
        await asyncio.sleep(30)

    try:
        async with house.client.post(house.url + "/v2/rerank", data=never()) as response:
            assert response.status == 408
            assert (await response.json())["error"]["code"] == "body_timeout"
    except aiohttp.ClientError as error:
        pytest.fail(f"the client did not get to see the answer: {error}")
