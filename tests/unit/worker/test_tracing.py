"""Traces and the log's lines of requests: what a real collector gets over OTLP, and what a worker without one pays."""

import asyncio
import gzip
import json
import logging
import re
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from rerank_worker import cli
from rerank_worker.logs import Sparing
from rerank_worker.server.routes import LINES_AT_ONCE
from rerank_worker.trace import MOST_BATCHES, Batch, Trace, sampled_trace_id
from rerank_worker.tracing import Tracing

from .conftest import ObedientEngine, Running, Serve, until

SENT = {"query": "secret", "documents": ["abc", "defgh"]}


def parent(number: int, sampled: bool = True) -> dict[str, str]:
    """A header of a trace of its own."""
    return {"traceparent": f"00-{number:032x}-{number:016x}-0{int(sampled)}"}


@dataclass
class Collector:
    """Takes spans over OTLP/HTTP and keeps them."""

    spans: list[Span] = field(default_factory=list)
    resources: list[dict[str, Any]] = field(default_factory=list)
    raw: bytes = b""

    async def take(self, request: web.Request) -> web.Response:
        body = await request.read()
        body = gzip.decompress(body) if request.headers.get("Content-Encoding") == "gzip" else body
        self.raw += body
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            self.resources.append(attributes(resource.resource))
            self.spans += [span for scope in resource.scope_spans for span in scope.spans]
        return web.Response()

    def named(self, name: str) -> list[Span]:
        return [span for span in self.spans if span.name == name]

    async def wait_for(self, name: str, count: int) -> list[Span]:
        await until(lambda: len(self.named(name)) >= count)
        return self.named(name)


def attributes(of: Any) -> dict[str, Any]:
    return {one.key: getattr(one.value, str(one.value.WhichOneof("value"))) for one in of.attributes}


@pytest.fixture
async def collector(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Collector]:
    found = Collector()
    app = web.Application()
    app.router.add_post("/v1/traces", found.take)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{runner.addresses[0][1]}")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")
    yield found
    await runner.cleanup()


async def test_a_request_is_traced_into_its_batch_and_out_again(serve: Serve, collector: Collector) -> None:
    engine = ObedientEngine()
    worker = await serve(engine, tracing=Tracing(), namespace="shop", reranker="products", revision="r1")
    engine.open.clear()
    # While one is computed, two sampled requests and one that is not come into the next batch.
    first = asyncio.create_task(worker.score(SENT, **parent(1)))
    await until(lambda: engine.computing == 1)
    others = [
        asyncio.create_task(worker.score(SENT, **headers, **{"X-Request-Id": "abc"}))
        for headers in (parent(2), parent(3), parent(4, sampled=False))
    ]
    await until(lambda: len(worker.thread._backlog) == 3)
    engine.open.set()
    assert [(await task)[0] for task in (first, *others)] == [200] * 4
    servers = {span.trace_id.hex(): span for span in await collector.wait_for("POST /v1/score", 3)}
    batches = await collector.wait_for("batch", 2)
    await collector.wait_for("inference", 2)

    # Of the sampled ones only, below the sender's span.
    assert set(servers) == {f"{number:032x}" for number in (1, 2, 3)}
    server = servers[f"{2:032x}"]
    assert server.kind == Span.SPAN_KIND_SERVER
    assert server.parent_span_id.hex() == f"{2:016x}"
    told = attributes(server)
    assert told.pop("rerank.queue_seconds") >= 0
    assert told == {
        "http.request.method": "POST",
        "http.route": "/v1/score",
        "http.response.status_code": 200,
        "rerank.request_id": "abc",
        "rerank.namespace": "shop",
        "rerank.reranker": "products",
        "rerank.revision": "r1",
        "rerank.documents": 2,
        "rerank.documents.truncated": 0,
        "gen_ai.usage.input_tokens": 26,
        "rerank.batches": 1,
    }
    children = {span.name: span for span in collector.spans if span.parent_span_id == server.span_id}
    assert set(children) == {"tokenize", "queue"}
    for child in children.values():
        assert child.trace_id == server.trace_id
        assert server.start_time_unix_nano <= child.start_time_unix_nano <= child.end_time_unix_nano
        assert child.end_time_unix_nano <= server.end_time_unix_nano

    # One batch of the two sampled requests (and the third one), a trace of its own, linked both ways.
    shared = next(batch for batch in batches if len(batch.links) == 2)
    assert shared.kind == Span.SPAN_KIND_INTERNAL
    assert not shared.parent_span_id
    assert shared.trace_id.hex() not in servers
    both = [servers[f"{2:032x}"], servers[f"{3:032x}"]]
    assert {(link.trace_id, link.span_id) for link in shared.links} == {(one.trace_id, one.span_id) for one in both}
    for one in both:
        assert [(link.trace_id, link.span_id) for link in one.links] == [(shared.trace_id, shared.span_id)]
        assert one.start_time_unix_nano <= shared.start_time_unix_nano <= shared.end_time_unix_nano
        assert shared.end_time_unix_nano <= one.end_time_unix_nano
    told = attributes(shared)
    assert told.pop("rerank.batch.seconds") > 0
    assert told == {
        "rerank.batch.pairs": 6,
        "rerank.batch.tokens": 78,
        "rerank.batch.padding_tokens": 18,
        "rerank.engine": "obedient",
        "rerank.precision": "",
    }
    inference = next(span for span in collector.named("inference") if span.parent_span_id == shared.span_id)
    assert shared.start_time_unix_nano <= inference.start_time_unix_nano <= inference.end_time_unix_nano
    resource = collector.resources[0]
    assert (resource["service.name"], resource["service.instance.id"]) == ("rerank-worker", socket.gethostname())
    assert resource["service.version"]
    for text in (b"secret", b"defgh"):
        assert text not in collector.raw


async def test_what_is_not_sampled_has_no_span_nor_has_its_batch(serve: Serve, collector: Collector) -> None:
    tracing = Tracing()
    worker = await serve(tracing=tracing)
    for number in range(1, 4):
        assert (await worker.score(SENT, **parent(number, sampled=False)))[0] == 200
    await tracing.close()
    assert collector.spans == []


async def test_the_sampler_decides_where_the_sender_does_not(
    serve: Serve, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_traceidratio")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "0")
    tracing = Tracing()
    worker = await serve(tracing=tracing)
    await worker.score(SENT)
    await worker.score(SENT, traceparent="not one")
    await worker.score(SENT, **parent(7))
    # The batch is kept with its request, though the sampler keeps no trace that begins here.
    await collector.wait_for("batch", 1)
    await tracing.close()
    assert [span.trace_id.hex() for span in collector.named("POST /v1/score")] == [f"{7:032x}"]


async def test_the_environment_names_the_service(
    serve: Serve, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "scorer")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "k8s.node.name=n1,service.instance.id=p1")
    worker = await serve(tracing=Tracing())
    await worker.score(SENT, **parent(1))
    await collector.wait_for("batch", 1)
    found = collector.resources[0]
    assert (found["service.name"], found["k8s.node.name"], found["service.instance.id"]) == ("scorer", "n1", "p1")


@pytest.mark.parametrize(
    ("body", "status", "kind"),
    [
        (b"{", 400, "invalid_request"),
        ({"query": "q " * 40, "documents": ["a"]}, 422, "too_long"),
    ],
)
async def test_a_refused_request_says_why(
    serve: Serve, collector: Collector, caplog: pytest.LogCaptureFixture, body: Any, status: int, kind: str
) -> None:
    caplog.set_level(logging.INFO)
    worker = await serve(tracing=Tracing())
    assert (await worker.score(body, **parent(5), **{"X-Request-Id": "mine"}))[0] == status
    (span,) = await collector.wait_for("POST /v1/score", 1)
    told = attributes(span)
    assert (told["http.response.status_code"], told["error.type"]) == (status, kind)
    # The client's own fault.
    assert span.status.code == Status.STATUS_CODE_UNSET
    assert not span.links
    (line,) = [record for record in caplog.records if record.message == "request refused"]
    assert line.__dict__["fields"] == {
        "code": kind,
        "status": status,
        "path": "/v1/score",
        "request_id": "mine",
        "trace_id": f"{5:032x}",
    }


async def test_a_batch_that_fails_and_one_that_is_split(serve: Serve, collector: Collector) -> None:
    engine = ObedientEngine(failures=[ValueError("no text of it")])
    worker = await serve(engine, tracing=Tracing())
    assert (await worker.score(SENT, **parent(6)))[0] == 500
    (server,) = await collector.wait_for("POST /v1/score", 1)
    (batch,) = await collector.wait_for("batch", 1)
    assert (attributes(server)["error.type"], server.status.code) == ("internal", Status.STATUS_CODE_ERROR)
    assert (attributes(batch)["error.type"], batch.status.code) == ("ValueError", Status.STATUS_CODE_ERROR)

    engine.too_large = 1
    assert (await worker.score(SENT, **parent(7)))[0] == 200
    found = (await collector.wait_for("batch", 4))[1:]
    assert [attributes(one).get("error.type") for one in found] == ["out_of_memory", None, None]
    server = (await collector.wait_for("POST /v1/score", 2))[1]
    assert [link.span_id for link in server.links] == [one.span_id for one in found]
    # What was never computed has no inference.
    assert len(collector.named("inference")) == 3


async def test_a_client_that_leaves(serve: Serve, collector: Collector) -> None:
    engine = ObedientEngine()
    worker = await serve(engine, tracing=Tracing())
    engine.open.clear()
    waits = asyncio.create_task(worker.score(SENT, **parent(8)))
    await until(lambda: engine.computing == 1)
    waits.cancel()
    (server,) = await collector.wait_for("POST /v1/score", 1)
    engine.open.set()
    assert attributes(server)["http.response.status_code"] == 499
    assert attributes(server)["error.type"] == "client_went_away"


async def test_the_system_s_time_may_be_set_after_the_start(collector: Collector) -> None:
    """A node may get the time from the network after its pods have begun: spans were of the wrong day ever after."""
    hours = 0.0

    def clock() -> float:
        return time.monotonic() + hours * 3600

    tracing = Tracing(clock)
    hours = -5.0
    trace = tracing.begin(parent(9), "POST", "/v1/score", clock())
    assert trace is not None
    tracing.end(trace, 200, None, "")
    (server,) = await collector.wait_for("POST /v1/score", 1)
    assert abs(server.start_time_unix_nano - time.time_ns()) < 60e9
    assert abs(server.end_time_unix_nano - time.time_ns()) < 60e9
    await tracing.close()


async def test_an_id_that_is_no_text_costs_itself_and_few_lines(
    serve: Serve, collector: Collector, caplog: pytest.LogCaptureFixture
) -> None:
    worker = await serve(tracing=Tracing())
    body = json.dumps(SENT).encode()
    for number in range(1, 4):
        reader, writer = await asyncio.open_connection("127.0.0.1", worker.server.port)
        head = (
            f"traceparent: {parent(number)['traceparent']}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        writer.write(b"POST /v1/score HTTP/1.1\r\nHost: x\r\nX-Request-Id: \xff\xfe\r\n" + head.encode() + body)
        assert b" 200 " in await reader.readline()
        writer.close()
        await collector.wait_for("POST /v1/score", number)
    assert "rerank.request_id" not in attributes(collector.named("POST /v1/score")[0])
    assert len([record for record in caplog.records if record.name.startswith("opentelemetry")]) == 1


async def test_a_collector_that_is_away_keeps_nobody_waiting(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # Nothing listens there: the port was free a moment ago, and is one that needs rights.
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")
    # Both parts complain: who sends, and the queue that is full.
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "8")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "8")
    tracing = Tracing()
    worker = await serve(tracing=tracing)
    for number in range(1, 30):
        assert (await worker.score(SENT, **parent(number)))[0] == 200
    async with asyncio.timeout(20):
        await tracing.close()
    assert len([record for record in caplog.records if record.name.startswith("opentelemetry")]) == 1


@pytest.mark.parametrize("model", ["none", "no-model"])
async def test_a_request_that_no_model_serves(serve: Serve, collector: Collector, model: str) -> None:
    worker = await serve(tracing=Tracing())
    async with worker.client.post(f"/v1/models/{model}/score", json=SENT, headers=parent(9)) as response:
        assert response.status == 404
    # By the route, of which there are few, and not by the path.
    (span,) = await collector.wait_for("POST /v1/models/{key}/score", 1)
    assert attributes(span)["error.type"] == "not_found"


def test_without_an_endpoint_nothing_of_opentelemetry_is_loaded() -> None:
    code = (
        "import sys, rerank_worker.cli as cli;"
        "assert cli.read_tracing({}) is None;"
        "off = {'OTEL_EXPORTER_OTLP_ENDPOINT': 'http://c:4318', 'OTEL_SDK_DISABLED': 'true'};"
        "assert cli.read_tracing(off) is None;"
        "print([name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_an_endpoint_that_cannot_be_used_is_said_at_the_start(capsys: pytest.CaptureFixture[str]) -> None:
    environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4317", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}
    assert cli.main(["serve", "--model", "/m"], environment) == 64
    assert "OTEL_EXPORTER_OTLP_PROTOCOL" in capsys.readouterr().err.splitlines()[-1]


def test_a_request_of_many_batches_notes_the_first() -> None:
    trace = Trace("", None)
    batches = [Batch((trace,), 0.0, 0.0, 1.0, 1, 1, 0, "e", "p") for _ in range(MOST_BATCHES + 5)]
    for batch in batches:
        trace.was_in(batch)
    assert (trace.batches, trace.in_batches) == (batches[:MOST_BATCHES], MOST_BATCHES + 5)


ID = "4bf92f3577b34da6a3ce929d0e0e4736"


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (f"00-{ID}-00f067aa0ba902b7-01", ID),
        # A version to come may say more; flags are bits.
        (f"01-{ID}-00f067aa0ba902b7-0b-more", ID),
        (f"00-{ID}-00f067aa0ba902b7-00", ""),
        (f"00-{ID}-00f067aa0ba902b7-02", ""),
        (f"ff-{ID}-00f067aa0ba902b7-01", ""),
        (f"00-{'0' * 32}-00f067aa0ba902b7-01", ""),
        (f"00-{ID}-{'0' * 16}-01", ""),
        (f"00-{ID.upper()}-00f067aa0ba902b7-01", ""),
        ("secret", ""),
        ("", ""),
    ],
)
def test_the_id_for_the_log(header: str, expected: str) -> None:
    assert sampled_trace_id({"traceparent": header}) == expected


@given(st.integers(1, 5), st.floats(0.1, 10), st.lists(st.tuples(st.sampled_from("ab"), st.floats(0, 5)), max_size=80))
def test_lines_are_few_and_none_is_forgotten(burst: int, every: float, asked: list[tuple[str, float]]) -> None:
    now = 0.0
    sparing = Sparing(burst, every, lambda: now)
    written, told, missing = {"a": 0, "b": 0}, {"a": 0, "b": 0}, {"a": 0, "b": 0}
    for kind, pause in asked:
        now += pause
        left_out = sparing.left_out(kind)
        if left_out is None:
            missing[kind] += 1
            continue
        assert left_out == missing[kind]
        written[kind] += 1
        told[kind] += left_out
        missing[kind] = 0
    for kind, count in written.items():
        assert count <= burst + now / every + 1e-6
        assert count + told[kind] + missing[kind] == sum(one == kind for one, _ in asked)
        assert count >= min(burst, sum(one == kind for one, _ in asked))


async def test_a_flood_of_refused_requests_does_not_flood_the_log(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    """A full worker refuses thousands a second; each had a line of the log."""
    caplog.set_level(logging.INFO)
    worker = await serve()
    for _ in range(4 * LINES_AT_ONCE):
        await worker.score(b"{", **parent(3))
    await worker.score({"query": "q " * 40, "documents": ["a"]})
    lines = [record.__dict__["fields"] for record in caplog.records if record.message == "request refused"]
    codes = [line["code"] for line in lines]
    # One more for each second that the loop took; another error's lines are its own.
    assert LINES_AT_ONCE <= codes.count("invalid_request") < 3 * LINES_AT_ONCE
    assert codes.count("too_long") == 1
    # Without an endpoint the sender's trace is named all the same.
    assert lines[0]["trace_id"] == f"{3:032x}"
    assert "trace_id" not in lines[-1]


async def test_what_nobody_foresaw_is_told_with_its_ids(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from rerank_worker import logs
    from rerank_worker.server import protocol

    worker: Running = await serve()
    logs.set_up("json")
    monkeypatch.setattr(protocol, "decode", lambda body: {}["odd"])
    assert (await worker.score(SENT, **parent(3), **{"X-Request-Id": "mine"}))[0] == 500
    line = json.loads(capsys.readouterr().err.splitlines()[0])
    assert (line["request_id"], line["trace_id"], line["level"]) == ("mine", f"{3:032x}", "error")
    assert re.search(r"Traceback.*KeyError: 'odd'", line["message"], re.DOTALL)
