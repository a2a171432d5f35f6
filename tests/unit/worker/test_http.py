"""The worker over HTTP with an engine that obeys the test: what is answered, refused, shared, dropped and drained."""

import asyncio
import gzip
import json
import math
import random
import signal
import socket
import threading
import weakref
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from rerank_worker.engine import EngineLost, Pair
from rerank_worker.failures import ConfigurationFailure, EnvironmentFailure
from rerank_worker.loading.model import Loaded
from rerank_worker.server.admission import retry_after
from rerank_worker.server.serving import share

from .conftest import MAX_LENGTH, WAIT, ObedientEngine, Running, Serve, make_loaded, until

OK = {"query": "q", "documents": ["abc"]}


async def test_scores_come_in_the_order_of_the_documents(serve: Serve) -> None:
    worker = await serve()
    status, body, _ = await worker.score({"query": "q", "documents": ["abc", "", "abcdef", "ab"]})
    assert status == 200
    assert body == {"scores": [7.0, 4.0, 10.0, 6.0], "tokens": 27, "truncated": [], "chunked": []}


async def test_no_documents_no_scores(serve: Serve) -> None:
    worker = await serve()
    status, body, _ = await worker.score({"query": "q", "documents": []})
    assert (status, body) == (200, {"scores": [], "tokens": 0, "truncated": [], "chunked": []})
    assert worker.engine.batches == []


async def test_cut_documents_are_reported(serve: Serve) -> None:
    worker = await serve()
    documents = ["a", "a" * 100, "a" * (MAX_LENGTH - 4), "a" * (MAX_LENGTH - 3)]
    status, body, _ = await worker.score({"query": "q", "documents": documents})
    assert (status, body["truncated"]) == (200, [1, 3])
    assert body["scores"] == [5, MAX_LENGTH, MAX_LENGTH, MAX_LENGTH]
    assert worker.metric("rerank_worker_truncated_documents_total") == 2


async def test_max_tokens_per_document(serve: Serve) -> None:
    worker = await serve(long_documents="reject")
    request = {"query": "q", "documents": ["abcdef", "ab", "a" * 100], "max_tokens_per_document": 3}
    status, body, _ = await worker.score(request)
    assert (status, body["scores"], body["truncated"]) == (200, [7, 6, 7], [0, 2])


async def test_long_documents_can_be_refused(serve: Serve) -> None:
    worker = await serve(long_documents="reject")
    status, body, _ = await worker.score({"query": "q", "documents": ["a", "a" * 100]})
    assert (status, body["code"]) == (422, "too_long")
    assert "documents 1)" in body["message"]
    assert "spec.requests.longDocuments" in body["message"]


async def test_a_query_is_never_cut(serve: Serve) -> None:
    worker = await serve()
    status, body, _ = await worker.score({"query": "a" * (MAX_LENGTH - 3), "documents": ["a"]})
    assert (status, body["code"]) == (422, "too_long")
    assert "the query has 29 tokens" in body["message"]
    status, body, _ = await worker.score({"query": "a" * (MAX_LENGTH - 4), "documents": ["abc"]})
    assert (status, body["truncated"]) == (200, [0])


@pytest.mark.parametrize(
    ("raw", "expected"), [(True, [6.0]), (False, [6.0 / 2])], ids=["logits", "temperature and activation"]
)
async def test_raw_scores(serve: Serve, raw: bool, expected: list[float]) -> None:
    worker = await serve(temperature=2.0)
    _, body, _ = await worker.score({"query": "q", "documents": ["ab"], "raw_scores": raw})
    assert body["scores"] == expected


@pytest.mark.parametrize(
    ("body", "named"),
    [
        (b"", "JSON"),
        (b"{", "JSON"),
        (b"[]", "array"),
        (b"null", "null"),
        (b'"text"', "str"),
        (b"{}", "`query`"),
        (b'{"query": "q"}', "`documents`"),
        (b'{"query": 1, "documents": []}', "$.query"),
        (b'{"query": null, "documents": []}', "$.query"),
        (b'{"query": "q", "documents": "abc"}', "$.documents"),
        (b'{"query": "q", "documents": ["a", 3]}', "$.documents[1]"),
        (b'{"query": "q", "documents": [{"text": "a"}]}', "$.documents[0]"),
        (b'{"query": "q", "documents": [], "top_n": 3}', "`top_n`: the fields are query, documents, raw_scores, max_"),
        (b'{"query": "q", "documents": [], "raw_scores": "yes"}', "$.raw_scores"),
        (b'{"query": "q", "documents": [], "max_tokens_per_document": 1.5}', "$.max_tokens_per_document"),
        (b'{"query": "q", "documents": [], "max_tokens_per_document": 0}', "max_tokens_per_document"),
        (b'{"query": "q", "documents": [], "max_tokens_per_document": -1}', "max_tokens_per_document"),
        (b'{"query": "\\ud800", "documents": []}', "JSON"),
        (b'{"query": "\\udc00 low first", "documents": []}', "JSON"),
        (b'{"query": "q", "documents": ["high alone \\ud83d and on"]}', "JSON"),
        (b'{"query": "q", "documents": ["\xed\xa0\x80"]}', "UTF-8"),
        (b'{"query": "\xff", "documents": []}', "UTF-8"),
        (b'{"query": "a raw \x00 byte", "documents": []}', "JSON"),
        (b"\x1f\x8b\x08\x00", "JSON"),
        (b"[" * 100_000, ""),
    ],
)
async def test_bad_bodies(serve: Serve, body: bytes, named: str) -> None:
    worker = await serve()
    status, answer, _ = await worker.score(body)
    assert (status, answer["code"]) == (400, "invalid_request")
    assert named in answer["message"]
    assert (await worker.score(OK))[0] == 200


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "\u0000\u0001\u001f\u007f",
        "\n\r\t",
        "\u202e\u200d\ufeff",
        "中文 日本語 한국어",
        "\U0001f642\U0001f468\u200d\U0001f469",
        "\U0010ffff",
        "a" * 10**6,
        "é" * 10**5,
    ],
    ids=["empty", "space", "controls", "lines", "invisible", "cjk", "emoji", "last", "million", "accents"],
)
async def test_any_text_is_scored(serve: Serve, text: str) -> None:
    worker = await serve()
    assert (await worker.score({"query": "q", "documents": [text, "a"]}))[0] == 200


async def test_ten_thousand_documents(serve: Serve) -> None:
    worker = await serve(policy={"max_tokens": 16384})
    status, body, _ = await worker.score({"query": "q", "documents": ["a" * (n % 20) for n in range(10_000)]})
    assert status == 200
    assert body["scores"] == [n % 20 + 4 for n in range(10_000)]


@pytest.mark.parametrize(
    ("method", "path", "status", "allow"),
    [
        ("GET", "/v1/score", 405, "POST"),
        ("PUT", "/v1/score", 405, "POST"),
        ("POST", "/healthz", 405, "GET,HEAD"),
        ("GET", "/nothing", 404, None),
        ("POST", "/v1/rerank", 404, None),
    ],
)
async def test_wrong_paths_and_methods(serve: Serve, method: str, path: str, status: int, allow: str | None) -> None:
    worker = await serve()
    async with worker.client.request(method, path) as response:
        assert response.status == status
        assert response.headers.get("Allow") == allow
        answer = await response.json()
        assert answer["code"] == "invalid_request"
        assert ("POST /v1/score" if allow is None else f"does not take {method}, but {allow}") in answer["message"]


async def test_a_body_beyond_the_cap(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rerank_worker.server.routes.MAX_BODY_BYTES", 1000)
    worker = await serve()
    status, body, _ = await worker.score({"query": "q", "documents": ["a" * 2000]})
    assert (status, body["code"]) == (413, "invalid_request")
    assert "1000 bytes at most" in body["message"]


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("gzip", gzip.compress(json.dumps(OK).encode(), mtime=0)),
        ("gzip", b"no gzip at all"),
        ("gzip", gzip.compress(json.dumps(OK).encode(), mtime=0)[:-9]),
        ("deflate", b"\xff\xff"),
        ("br", b"\x0b\x02\x80"),
        ("zstd", b""),
        ("GZip, identity", b"{}"),
    ],
)
async def test_compressed_bodies_are_refused_in_json_and_without_a_trace(
    serve: Serve, caplog: pytest.LogCaptureFixture, encoding: str, body: bytes
) -> None:
    """One that was no gzip was a 500 with two traces in the log, and brotli a 400 in plain text with one."""
    worker = await serve()
    status, answer, _ = await worker.score(body, **{"Content-Encoding": encoding})
    assert (status, answer["code"]) == (415, "invalid_request")
    assert "uncompressed" in answer["message"]
    assert not [record for record in caplog.records if record.levelname in ("WARNING", "ERROR")]
    assert (await worker.score(OK, **{"Content-Encoding": "identity"}))[0] == 200


@pytest.mark.parametrize("header", ["soon", "", "1.5", "-1", "٣", "1" * 13])
async def test_bad_deadlines(serve: Serve, header: str) -> None:
    worker = await serve()
    status, body, _ = await worker.score(OK, **{"X-Rerank-Timeout-Ms": header})
    assert (status, body["code"]) == (400, "invalid_request")
    assert "X-Rerank-Timeout-Ms" in body["message"]


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("1" * 13, "too large a number: a request waits 600 s at most"),
        ("9" * 5000, "too large a number"),
        ("1e3", "not a whole number of milliseconds"),
    ],
    ids=["13 digits", "5000 digits", "exponent"],
)
async def test_a_bad_deadline_is_named(serve: Serve, header: str, message: str) -> None:
    worker = await serve()
    _, body, _ = await worker.score(OK, **{"X-Rerank-Timeout-Ms": header})
    assert message in body["message"]


@pytest.mark.parametrize("header", ["999999999999", "0" * 50 + "10000"])
async def test_a_long_deadline_is_the_longest_there_is(serve: Serve, header: str) -> None:
    worker = await serve()
    assert (await worker.score(OK, **{"X-Rerank-Timeout-Ms": header}))[0] == 200


async def test_priorities(serve: Serve) -> None:
    engine = ObedientEngine()
    worker = await serve(engine, policy={"max_tokens": 8, "max_delay": 0.0})
    engine.open.clear()
    requests = [asyncio.create_task(worker.score(OK))]
    await until(lambda: engine.computing == 1)
    for number, priority in enumerate(["low", "normal", "high"], start=2):
        body = {"query": "q", "documents": ["a" * number]}
        requests.append(asyncio.create_task(worker.score(body, **{"X-Rerank-Priority": priority})))
        await until(lambda: worker.thread._backlog.tokens == sum(range(2, number + 1)) + 4 * (number - 1))  # noqa: B023
    engine.open.set()
    assert [(await request)[0] for request in requests] == [200] * 4
    assert [len(batch[0]) for batch in engine.batches[1:]] == [4 + 4, 3 + 4, 2 + 4]


@pytest.mark.parametrize("header", ["urgent", "", "HIGH", "high,low"])
async def test_bad_priorities(serve: Serve, header: str) -> None:
    worker = await serve()
    status, body, _ = await worker.score(OK, **{"X-Rerank-Priority": header})
    assert (status, body["code"]) == (400, "invalid_request")
    assert "X-Rerank-Priority is none of high, normal, low" in body["message"]


@pytest.mark.parametrize(
    ("waiting", "per_second", "seconds"),
    [(0, None, 1), (10**9, None, 1), (100, 0.0, 1), (100, 1000.0, 1), (2001, 1000.0, 3), (10**9, 1000.0, 30)],
)
def test_when_to_come_back(waiting: int, per_second: float | None, seconds: int) -> None:
    assert retry_after(waiting, per_second) == seconds


@pytest.mark.parametrize(
    ("documents", "threads", "expected"),
    [(1, 4, 8), (50, 2, 25), (50, 16, 8), (50, 1, 32), (1000, 8, 32), (100, 8, 13)],
)
def test_documents_are_shared_among_the_threads(documents: int, threads: int, expected: int) -> None:
    assert share(documents, threads) == expected


async def test_a_busy_worker_says_when_to_come_back(serve: Serve) -> None:
    engine = ObedientEngine()

    def build() -> Loaded:
        loaded = make_loaded(engine)
        return replace(loaded, info=loaded.info | {"tokensPerSecond": 100.0})

    worker = await serve(engine, build=build, options={"waiting_tokens": 64})
    engine.open.clear()
    first = asyncio.create_task(worker.score({"query": "q", "documents": ["a" * 100] * 20}))
    await until(lambda: engine.computing == 1)
    status, _, headers = await worker.score(OK)
    # 20 pairs of 32 tokens.
    assert (status, headers["Retry-After"]) == (429, "7")
    engine.open.set()
    assert (await first)[0] == 200


async def test_answers_with_scores_tell_what_the_worker_can_do(serve: Serve) -> None:
    engine = ObedientEngine()
    worker = await serve(engine)
    assert "X-Rerank-Capacity" not in (await worker.score(OK))[2], "not known is not told"
    assert json.loads((await worker.get("/v1/info"))[1])["capacityTokensPerSecond"] is None

    def build() -> Loaded:
        loaded = make_loaded(engine)
        return replace(loaded, info=loaded.info | {"tokensPerSecond": 2345.6})

    worker = await serve(engine, build=build)
    for body in (OK, OK | {"documents": []}):
        status, _, headers = await worker.score(body)
        assert (status, headers["X-Rerank-Capacity"]) == (200, "2346")
    assert "X-Rerank-Capacity" not in (await worker.score({}))[2]
    assert worker.metric("rerank_worker_capacity_tokens_per_second", model="default") == 2345.6
    info = json.loads((await worker.get("/v1/info"))[1])
    assert (info["tokensPerSecond"], info["capacityTokensPerSecond"]) == (2345.6, 2346)
    (facts,) = json.loads((await worker.get("/v1/models"))[1])["models"]
    assert facts["facts"]["capacityTokensPerSecond"] == 2346


async def test_the_request_id_comes_back(serve: Serve) -> None:
    worker = await serve()
    for body in (OK, {}):
        assert (await worker.score(body, **{"X-Request-Id": "abc-1"}))[2]["X-Request-Id"] == "abc-1"


async def test_requests_of_several_connections_share_a_batch(serve: Serve) -> None:
    engine = ObedientEngine()
    worker = await serve(engine)
    engine.open.clear()
    requests = [asyncio.create_task(worker.score(OK))]
    await until(lambda: engine.computing == 1)
    requests += [asyncio.create_task(worker.score({"query": "q", "documents": ["a" * n]})) for n in range(6)]
    await until(lambda: worker.thread._backlog.tokens == sum(n + 4 for n in range(6)))
    engine.open.set()
    assert [(await request)[1]["scores"] for request in requests] == [[7.0], *([float(n + 4)] for n in range(6))]
    # The oldest waiting request is the shortest (n = 0): its width of 8 takes n = 0..4 along; n = 5 follows.
    assert worker.metric("rerank_worker_batch_requests_count") < len(requests)
    assert max(map(len, engine.batches)) > 1
    assert worker.metric("rerank_worker_batch_requests_sum") == len(requests)
    assert worker.metric("rerank_worker_pairs_total") == len(requests)


async def test_work_that_comes_too_late_is_not_scored(serve: Serve) -> None:
    worker = await serve()
    status, body, _ = await worker.score(OK, **{"X-Rerank-Timeout-Ms": "0"})
    assert (status, body["code"]) == (504, "deadline")
    assert worker.engine.batches == []


async def test_work_whose_deadline_comes_while_it_waits_is_dropped(serve: Serve) -> None:
    engine = ObedientEngine()
    worker = await serve(engine)
    engine.open.clear()
    first = asyncio.create_task(worker.score(OK))
    await until(lambda: engine.computing == 1)
    status, body, _ = await worker.score({"query": "q", "documents": ["late"]}, **{"X-Rerank-Timeout-Ms": "500"})
    assert (status, body["code"]) == (504, "deadline")
    assert worker.thread._backlog.tokens == 0
    engine.open.set()
    assert (await first)[0] == 200
    assert len(engine.batches) == 1
    assert worker.metric("rerank_worker_dropped_requests_total", reason="deadline") == 1


async def test_work_of_a_client_that_left_is_dropped(serve: Serve) -> None:
    engine = ObedientEngine()
    worker = await serve(engine)
    engine.open.clear()
    first = asyncio.create_task(worker.score(OK))
    await until(lambda: engine.computing == 1)
    body = json.dumps({"query": "q", "documents": ["gone"]}).encode()
    with socket.create_connection(("127.0.0.1", worker.server.port)) as client:
        client.sendall(b"POST /v1/score HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        await until(lambda: worker.thread._backlog.tokens > 0)
    await until(lambda: worker.thread._backlog.tokens == 0)
    engine.open.set()
    assert (await first)[0] == 200
    assert len(engine.batches) == 1
    await until(lambda: worker.metric("rerank_worker_dropped_requests_total", reason="abandoned") == 1)
    await until(lambda: worker.metric("rerank_worker_waiting_tokens") == 0)


async def test_a_client_that_leaves_while_its_documents_are_tokenized_is_counted(serve: Serve) -> None:
    """It was an answer 499 that no counter of dropped requests knew of."""
    worker = await serve()
    busy = threading.Event()
    for _ in range(2):
        worker.server._threads.submit(busy.wait, WAIT)
    body = json.dumps(OK).encode()
    with socket.create_connection(("127.0.0.1", worker.server.port)) as client:
        client.sendall(b"POST /v1/score HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        await until(lambda: len(worker.thread._company) == 1)
    await until(lambda: worker.metric("rerank_worker_dropped_requests_total", reason="abandoned") == 1)
    busy.set()
    await until(lambda: worker.metric("rerank_worker_requests_total", code="499") == 1)
    assert worker.engine.batches == []
    assert worker.metric("rerank_worker_waiting_tokens") == 0


async def test_a_full_worker_says_so_before_it_works(serve: Serve) -> None:
    engine = ObedientEngine()
    worker = await serve(engine, options={"waiting_tokens": 64})
    engine.open.clear()
    # About 64 tokens may wait; one request alone always may, however large.
    first = asyncio.create_task(worker.score({"query": "q", "documents": ["a" * 100] * 20}))
    await until(lambda: engine.computing == 1)
    status, body, headers = await worker.score(OK)
    assert (status, body["code"]) == (429, "busy")
    assert int(headers["Retry-After"]) >= 1
    assert worker.metric("rerank_worker_requests_total", code="429") == 1
    engine.open.set()
    assert (await first)[0] == 200
    assert (await worker.score(OK))[0] == 200
    assert worker.metric("rerank_worker_waiting_tokens") == 0


CROWDED = " ".join("abcdefghijklmnopqrstuvwx")
"""A query that has more tokens than its characters let one expect, and leaves room for 5."""


@pytest.mark.parametrize(
    ("request_", "config"),
    [
        ({"query": "q", "documents": ["a" * 100] * 40}, {}),
        ({"query": CROWDED, "documents": ["a" * 42] * 4}, {"long_documents": "chunk"}),
    ],
    ids=["by its characters", "by its tokens"],
)
async def test_one_request_is_bounded_though_nothing_else_waits(
    serve: Serve, request_: dict[str, Any], config: dict[str, Any]
) -> None:
    worker = await serve(options={"waiting_tokens": 64}, **config)
    status, body, _ = await worker.score(request_)
    assert (status, body["code"]) == (422, "too_long")
    assert "one may take 1024 here" in body["message"]
    assert worker.engine.batches == []
    status, _, _ = await worker.score(request_ | {"documents": request_["documents"][:2]})
    assert status == 200
    assert worker.metric("rerank_worker_waiting_tokens") == 0


async def test_a_deadline_that_comes_before_the_tokens_is_counted(serve: Serve) -> None:
    worker = await serve()
    busy = threading.Event()
    for _ in range(2):
        worker.server._threads.submit(busy.wait, WAIT)
    status, body, _ = await worker.score(OK, **{"X-Rerank-Timeout-Ms": "50"})
    busy.set()
    assert (status, body["code"]) == (504, "deadline")
    assert worker.metric("rerank_worker_dropped_requests_total", reason="deadline") == 1
    assert worker.metric("rerank_worker_waiting_tokens") == 0


async def test_a_failed_batch_fails_its_requests_only(serve: Serve) -> None:
    worker = await serve(ObedientEngine(failures=[RuntimeError("odd")]))
    status, body, _ = await worker.score(OK)
    assert (status, body["code"]) == (500, "internal")
    assert (await worker.score(OK))[0] == 200
    assert (await worker.get("/healthz"))[0] == 200


@pytest.mark.parametrize("score", [math.nan, math.inf])
@pytest.mark.parametrize(
    ("precision", "remedy"),
    [
        ("float16", "set spec.runtime.precision to bfloat16 or float32"),
        ("float32", "its weights are damaged"),
        ("int8", "set spec.runtime.precision to float32; if"),
        (None, "spec.runtime.precision"),
    ],
)
async def test_a_score_that_is_no_number_is_an_error_of_its_request_only(
    serve: Serve, score: float, precision: str | None, remedy: str
) -> None:
    """The remedy was the precision, though it was float32 already; and no document was named."""
    engine = ObedientEngine(score=lambda pair: score if len(pair) == 8 else len(pair))

    def build() -> Loaded:
        loaded = make_loaded(engine, max_delay=0.0)
        return replace(loaded, info=loaded.info | {"precision": precision})

    worker = await serve(engine, build=build)
    engine.open.clear()
    first = asyncio.create_task(worker.score(OK))
    await until(lambda: engine.computing == 1)
    bad = asyncio.create_task(worker.score({"query": "q", "documents": ["abc", "abcd", "ab", "bcde"]}))
    good = asyncio.create_task(worker.score({"query": "q", "documents": ["abc"]}))
    await until(lambda: worker.thread._backlog.tokens == 4 * 4 + 13 + 7)
    engine.open.set()
    status, body, _ = await bad
    assert (status, body["code"]) == (500, "internal")
    assert "no number for documents 1, 3: " in body["message"]
    assert remedy in body["message"]
    assert [(await request)[0] for request in (first, good)] == [200, 200]
    assert [len(batch) for batch in engine.batches] == [1, 5], "they were computed together"


async def test_a_batch_that_does_not_fit_is_split_and_the_budget_halved(serve: Serve) -> None:
    worker = await serve(ObedientEngine(too_large=3))
    status, body, _ = await worker.score({"query": "q", "documents": ["a" * n for n in range(8)]})
    assert (status, body["scores"]) == (200, [n + 4.0 for n in range(8)])
    assert worker.metric("rerank_worker_out_of_memory_recoveries_total") > 0
    assert max(map(len, worker.engine.batches)) <= 3


class Tight(ObedientEngine):
    """Notes how many pairs each try has, and whether the memory of a try that did not fit is still held by then."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.tries: list[int] = []
        self.held: list[bool] = []
        self.allocated: list[weakref.ref[set[int]]] = []

    def prepare(self, pairs: Sequence[Pair]) -> list[Pair]:
        self.tries.append(len(pairs))
        self.held.append(any(memory() is not None for memory in self.allocated))
        activations = set(range(len(pairs)))
        self.allocated.append(weakref.ref(activations))
        return super().prepare(pairs)


async def test_the_memory_of_a_batch_that_did_not_fit_is_free_before_its_halves_are_tried(serve: Serve) -> None:
    engine = Tight(too_large=1)
    worker = await serve(engine)
    assert (await worker.score({"query": "q", "documents": ["abc"] * 4}))[0] == 200
    # Once two did not fit, no two are tried again.
    assert engine.tries == [4, 2, 1, 1, 1, 1]
    assert not any(engine.held)


async def test_running_out_of_memory_never_raises_a_budget_below_the_longest_pair(serve: Serve) -> None:
    engine = Tight(too_large=1)
    worker = await serve(engine, policy={"max_tokens": 16})
    assert (await worker.score({"query": "q", "documents": ["abc"] * 8}))[0] == 200
    assert max(engine.tries) == 2


async def test_a_single_pair_that_does_not_fit_is_an_error(serve: Serve) -> None:
    worker = await serve(ObedientEngine(too_large=0))
    status, body, _ = await worker.score(OK)
    assert (status, body["code"]) == (500, "internal")
    assert "spec.model.maxLength" in body["message"]


@pytest.mark.parametrize("failure", [EngineLost("device gone"), SystemExit("thread killed")], ids=["lost", "died"])
async def test_an_engine_that_dies_answers_everyone_and_fails_liveness(serve: Serve, failure: BaseException) -> None:
    engine = ObedientEngine(failures=[failure])
    worker = await serve(engine)
    engine.open.clear()
    first = asyncio.create_task(worker.score(OK))
    await until(lambda: engine.computing == 1)
    waiting = [asyncio.create_task(worker.score(OK)) for _ in range(3)]
    await until(lambda: worker.thread._backlog.tokens == 3 * 7)
    engine.open.set()
    for request in [first, *waiting]:
        status, body, headers = await request
        assert (status, body["code"]) == (503, "unavailable")
        assert int(headers["Retry-After"]) >= 1
    assert (await worker.get("/healthz"))[0] == 503
    assert (await worker.get("/readyz"))[0] == 503
    assert (await worker.score(OK))[0] == 503


async def test_batches_that_keep_failing_fail_liveness(serve: Serve) -> None:
    worker = await serve(ObedientEngine(failures=[RuntimeError("odd")] * 5))
    for _ in range(5):
        assert (await worker.score(OK))[0] == 500
    await until(lambda: worker.server.not_live() is not None)


async def test_an_engine_that_stalls_answers_everyone_and_fails_liveness(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rerank_worker.server.lifecycle.WATCH_INTERVAL", 0.02)
    monkeypatch.setattr("rerank_worker.scheduler.IDLE_BEAT", 0.02)
    engine = ObedientEngine()
    worker = await serve(engine, options={"stall_limit": 0.2})
    watching = asyncio.create_task(worker.server.watch_engine())
    engine.open.clear()
    requests = [asyncio.create_task(worker.score(OK)) for _ in range(3)]
    for request in requests:
        status, body, _ = await request
        assert (status, body["code"]) == (503, "unavailable")
    assert (await worker.get("/healthz"))[0] == 503
    engine.open.set()
    # On a slow machine it may count as stalled again for a moment: what matters is that it serves again.
    async with asyncio.timeout(WAIT):
        while (await worker.score(OK))[0] != 200:
            pass
    watching.cancel()


async def test_a_worker_that_still_loads_ends_at_once(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """Regression: what had begun to load counted as loaded, and its thread was waited for."""
    monkeypatch.setattr("rerank_worker.server.models.STOP_SECONDS", 10 * WAIT)
    engine, loading = ObedientEngine(), threading.Event()
    engine.open.clear()

    def build() -> Loaded:
        loading.set()
        engine.open.wait(WAIT)
        return make_loaded(engine)

    worker = await serve(engine, build=build, ready=False)
    thread = worker.thread
    becoming = asyncio.create_task(worker.server.become_ready())
    await until(loading.is_set)
    becoming.cancel()
    async with asyncio.timeout(WAIT):
        await worker.server.stop()
    engine.open.set()
    await until(thread.loaded.done)
    assert thread.loaded.result().engine is engine
    thread.stop(WAIT)


async def test_a_long_load_is_alive_and_not_ready(serve: Serve) -> None:
    engine = ObedientEngine()
    engine.open.clear()

    def build() -> Loaded:
        engine.open.wait(WAIT)
        return make_loaded(engine)

    worker = await serve(engine, build=build, ready=False, options={"stall_limit": 0.0})
    assert (await worker.get("/healthz"))[0] == 200
    assert (await worker.get("/readyz"))[0] == 503
    status, body, headers = await worker.score(OK)
    assert (status, body["code"]) == (503, "unavailable")
    assert int(headers["Retry-After"]) >= 1
    engine.open.set()
    await worker.server.become_ready()


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (ConfigurationFailure("spec.model.uri: no"), ConfigurationFailure),
        (ValueError("nobody foresaw this"), EnvironmentFailure),
    ],
)
async def test_a_load_that_fails_says_why(serve: Serve, raised: Exception, expected: type[Exception]) -> None:
    def build() -> Loaded:
        raise raised

    worker = await serve(build=build, ready=False)
    with pytest.raises(expected, match=str(raised)):
        await worker.server.become_ready()


async def drained(worker: Running) -> None:
    async with asyncio.timeout(20):
        await worker.server.drain()


async def test_a_draining_worker_finishes_what_it_has(serve: Serve) -> None:
    engine = ObedientEngine()
    worker = await serve(engine, options={"lame_duck": 2.0})  # long enough for two probes and a request, however slow
    engine.open.clear()
    first = asyncio.create_task(worker.score(OK))
    await until(lambda: engine.computing == 1)
    worker.server.terminate(signal.SIGTERM)
    drain = asyncio.create_task(drained(worker))
    assert (await worker.get("/readyz"))[0] == 503
    assert (await worker.get("/healthz"))[0] == 200
    during = asyncio.create_task(worker.score(OK))
    await until(lambda: worker.thread._backlog.tokens > 0)
    await until(lambda: worker.server._refusing)
    status, body, headers = await worker.score(OK)
    assert (status, body["code"], headers["Connection"]) == (503, "unavailable", "close")
    assert not drain.done()
    engine.open.set()
    assert (await first)[0] == 200
    assert (await during)[0] == 200
    await drain


@pytest.mark.parametrize(
    ("second", "hurries"), [(None, False), (signal.SIGTERM, True), (signal.SIGINT, True)], ids=["one", "TERM", "INT"]
)
async def test_a_second_signal_ends_the_wait(serve: Serve, second: signal.Signals | None, hurries: bool) -> None:
    engine = ObedientEngine()
    worker = await serve(engine, options={"lame_duck": 60.0})
    engine.open.clear()
    request = asyncio.create_task(worker.score(OK))
    await until(lambda: engine.computing == 1)
    worker.server.terminate(signal.SIGINT)
    drain = asyncio.create_task(drained(worker))
    await until(lambda: worker.server._refusing)
    assert not drain.done()
    if second is None:
        engine.open.set()
        assert (await request)[0] == 200
    else:
        worker.server.terminate(second)
    await drain
    assert worker.server._hurry.is_set() == hurries
    engine.open.set()
    await asyncio.wait([request])


async def test_info_and_metrics(serve: Serve) -> None:
    worker = await serve(reranker="products", namespace="search", revision="abc")
    info = json.loads((await worker.get("/v1/info"))[1])
    assert {
        "model": "obedient",
        "reranker": "products",
        "namespace": "search",
        "revision": "abc",
    }.items() <= info.items()
    await worker.score({"query": "q", "documents": ["abc", "a"]})
    status, text = await worker.get("/metrics")
    assert status == 200
    for line in (
        'rerank_worker_requests_total{code="200"} 1.0',
        "rerank_worker_pairs_total 2.0",
        "rerank_worker_tokens_total 12.0",
        "rerank_worker_padding_tokens_total 4.0",
        "rerank_worker_batch_pairs_sum 2.0",
        "rerank_worker_batch_tokens_sum 16.0",
        "rerank_worker_waiting_tokens 0.0",
        'rerank_worker_queue_time_seconds_count{priority="normal"} 1.0',
        "rerank_worker_engine_time_seconds_count 1.0",
    ):
        assert line in text.splitlines()


async def test_no_text_of_a_user_is_logged(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    worker = await serve(ObedientEngine(failures=[RuntimeError("odd")]))
    secret = "xyzzy"
    for query in (secret, secret * 20):
        await worker.score({"query": query, "documents": [secret]})
    await worker.score({secret: secret})
    await worker.score(secret.encode())
    assert caplog.records
    assert secret not in caplog.text


async def test_many_clients_at_once(serve: Serve) -> None:
    worker = await serve(policy={"max_tokens": 64})

    async def one(number: int) -> None:
        documents = ["a" * ((number + index) % 25) for index in range(number % 5 + 1)]
        status, body, _ = await worker.score({"query": "q", "documents": documents})
        assert status == 200
        assert body["scores"] == [len(text) + 4.0 for text in documents]

    await asyncio.gather(*(one(number) for number in range(200)))
    assert worker.metric("rerank_worker_requests_in_flight") == 0


async def test_after_a_storm_nothing_is_left_behind(serve: Serve) -> None:
    """Clients that leave, deadlines of a few milliseconds, failing batches: every sum must come back to zero."""
    worker = await serve(
        ObedientEngine(failures=[RuntimeError("odd")] * 3, too_large=5), options={"waiting_tokens": 2000}
    )
    chance = random.Random(3)

    async def one() -> int | None:
        documents = ["a" * chance.randrange(30) for _ in range(chance.randrange(1, 30))]
        headers = {"X-Rerank-Timeout-Ms": str(chance.choice([1, 5, 10_000]))}
        try:
            async with asyncio.timeout(chance.choice([0.001, 0.01, 10.0])):
                return (await worker.score({"query": "q", "documents": documents}, **headers))[0]
        except TimeoutError:
            return None

    answers = await asyncio.gather(*(one() for _ in range(300)))
    assert set(answers) <= {200, 429, 500, 504, None}
    assert 200 in answers
    await until(lambda: worker.metric("rerank_worker_requests_in_flight") == 0)
    assert worker.metric("rerank_worker_waiting_tokens") == 0
    assert worker.thread._backlog.tokens == 0
    assert len(worker.thread._company) == 0
    assert (await worker.score(OK))[0] == 200
