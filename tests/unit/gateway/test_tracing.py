"""Traces of the gateway, as a collector receives them over OTLP/HTTP."""

import asyncio
import json
import logging
import os
import re
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict, CIMultiDictProxy
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span as ProtoSpan
from rerank_api import otlp, wire
from rerank_api.exporting import LAST_SPANS
from rerank_api.sampling import TRACEPARENT
from rerank_gateway.cluster.state import CachePolicy, Endpoint, MirrorPolicy
from rerank_gateway.record import Record
from rerank_gateway.trace import UNTRACED, pass_on
from rerank_gateway.tracing import Tracing

from .conftest import DEADLINE, House, Worker, scores, until, worker_error

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED, UNSAMPLED = (f"00-{TRACE}-{PARENT}-{flags}" for flags in ("01", "00"))
SECRET = "PRIVATE"


@dataclass
class Collector:
    """Takes spans as a collector does, and keeps them."""

    url: str = ""
    requests: int = 0
    spans: list[ProtoSpan] = field(default_factory=list)
    resource: dict[str, str] = field(default_factory=dict)
    raw: bytes = b""
    answer: Callable[[], Awaitable[web.Response]] | None = None

    async def take(self, request: web.Request) -> web.Response:
        self.requests += 1
        body = await request.read()
        if self.answer is not None:
            return await self.answer()
        self.raw += body
        for of_resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            self.resource = {each.key: each.value.string_value for each in of_resource.resource.attributes}
            self.spans += [span for scope in of_resource.scope_spans for span in scope.spans]
        return web.Response()

    def named(self, name: str) -> list[ProtoSpan]:
        return sorted((span for span in self.spans if span.name == name), key=lambda span: span.start_time_unix_nano)

    async def one(self, name: str) -> ProtoSpan:
        await until(lambda: bool(self.named(name)), f"the span {name!r}")
        (span,) = self.named(name)
        return span


@pytest.fixture
async def collector(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Collector]:
    """That the environment names; spans come at once, and each trace is kept unless its client says otherwise."""
    collector = Collector()
    app = web.Application()
    app.router.add_post("/v1/traces", collector.take)
    runner = web.AppRunner(app, shutdown_timeout=0.01)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    collector.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    monkeypatch.setenv(otlp.ENDPOINT, collector.url)
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")
    yield collector
    await runner.cleanup()


@pytest.fixture
async def traced(collector: Collector, open_house: Callable[..., Awaitable[House]]) -> House:
    return await open_house(tracing=Tracing(time.monotonic))


def attributes(span: ProtoSpan) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value") or "") for each in span.attributes}


async def test_a_request_is_a_span_with_its_wait_and_its_attempt_below(traced: House, collector: Collector) -> None:
    worker = await traced.worker()
    traced.serve(worker, cache=CachePolicy(2**20, 600.0))
    began = time.time_ns()
    headers = {TRACEPARENT: SAMPLED, "tracestate": "vendor=1", wire.HEADER_REQUEST_ID: "id-1"}
    status, _ = await traced.post({"query": SECRET, "documents": [SECRET, "bb"]}, headers=headers)
    assert status == 200

    server = await collector.one("POST /v2/rerank")
    assert (server.trace_id.hex(), server.parent_span_id.hex()) == (TRACE, PARENT)
    assert server.kind == ProtoSpan.SPAN_KIND_SERVER
    assert server.trace_state == "vendor=1"
    found = attributes(server)
    assert 0 <= found.pop("rerank.queue_seconds") < DEADLINE
    assert found.pop("http.request.body.size") > 0
    assert found == {
        "http.request.method": "POST",
        "http.route": "/v2/rerank",
        "url.scheme": "http",
        "http.response.status_code": 200,
        "gen_ai.operation.name": "rerank",
        "gen_ai.request.model": "search/products",
        "gen_ai.usage.input_tokens": 20,
        "rerank.request_id": "id-1",
        "rerank.namespace": "search",
        "rerank.reranker": "products",
        "rerank.revision": "one",
        "rerank.priority": "normal",
        "rerank.cache": "miss",
        "rerank.documents": 2,
        "rerank.documents.cached": 0,
        "rerank.documents.truncated": 0,
        "rerank.retries": 0,
    }
    queue, score = await collector.one("queue"), await collector.one("score")
    for child in (queue, score):
        assert (child.trace_id, child.parent_span_id) == (server.trace_id, server.span_id)
        assert server.start_time_unix_nano <= child.start_time_unix_nano
        assert child.end_time_unix_nano <= server.end_time_unix_nano
    assert queue.end_time_unix_nano <= score.start_time_unix_nano
    assert began - 1e9 < server.start_time_unix_nano < server.end_time_unix_nano < time.time_ns() + 1e9
    assert score.kind == ProtoSpan.SPAN_KIND_CLIENT
    assert attributes(score) == {
        "http.request.method": "POST",
        "http.response.status_code": 200,
        "server.address": "127.0.0.1",
        "server.port": worker.port,
        "k8s.pod.uid": worker.endpoint().uid,
        "rerank.revision": "one",
        "rerank.attempt": 1,
    }
    assert worker.headers[0][TRACEPARENT] == f"00-{TRACE}-{score.span_id.hex()}-01"
    assert worker.headers[0]["tracestate"] == "vendor=1"
    assert collector.resource["service.name"] == "rerank-gateway"
    assert {"service.version", "service.instance.id"} <= collector.resource.keys()
    assert SECRET.encode() not in collector.raw


async def test_the_environment_names_the_service(
    collector: Collector, open_house: Callable[..., Awaitable[House]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "search-gateway")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "service.instance.id=one,deployment.environment.name=test")
    house = await open_house(tracing=Tracing(time.monotonic))
    house.serve(await house.worker())
    assert (await house.rerank())[0] == 200
    await collector.one("POST /v2/rerank")
    names = ("service.name", "service.instance.id", "deployment.environment.name")
    assert [collector.resource[name] for name in names] == ["search-gateway", "one", "test"]


async def test_each_attempt_has_a_span_that_the_worker_continues(traced: House, collector: Collector) -> None:
    async def breaks(worker: Worker, query: object) -> web.Response:
        return worker_error(500, "internal")

    broken, good = await traced.worker(behave=breaks), await traced.worker()
    traced.serve(broken)
    asked = traced.rerank()
    await until(lambda: bool(broken.seen), "the first attempt")
    traced.serve(broken, good)
    assert (await asked)[0] == 200

    server = await collector.one("POST /v2/rerank")
    attempts = [span for span in collector.named("score") if span.parent_span_id == server.span_id]
    assert [attributes(span)["rerank.attempt"] for span in attempts] == list(range(1, len(attempts) + 1))
    assert attributes(server)["rerank.retries"] == len(attempts) - 1 > 0
    first, last = attributes(attempts[0]), attributes(attempts[-1])
    assert (first["error.type"], first["http.response.status_code"]) == ("broken", 500)
    assert "error.type" not in last
    sent = [headers[TRACEPARENT].split("-")[2] for worker in (broken, good) for headers in worker.headers]
    assert sorted(sent) == sorted(span.span_id.hex() for span in attempts)
    assert len(server.parent_span_id) == 0, "no client has a span: the trace begins here"


async def _refuses(worker: Worker, query: object) -> web.Response:
    return worker_error(422, "too_long", SECRET)


async def _breaks(worker: Worker, query: object) -> web.Response:
    return scores([0.5])


@pytest.mark.parametrize(
    ("behave", "body", "code", "error", "failed"),
    [
        (_refuses, {"query": SECRET, "documents": ["a", "b"]}, 422, "too_long", False),
        (_breaks, {"query": SECRET, "documents": ["a", "b"]}, 502, "workers_failed", True),
        (None, {"query": SECRET, "documents": ["a"], "model": SECRET}, 404, "model_not_found", False),
    ],
)
async def test_what_failed_has_a_code_and_no_words(
    traced: House,
    collector: Collector,
    behave: Callable[..., Any] | None,
    body: object,
    code: int,
    error: str,
    failed: bool,
) -> None:
    traced.serve(await traced.worker(behave=behave))
    assert (await traced.post(body))[0] == code
    server = await collector.one("POST /v2/rerank")
    found = attributes(server)
    assert (found["http.response.status_code"], found["error.type"]) == (code, error)
    assert server.status.code == (2 if failed else 0)
    assert server.status.message == ""
    assert not [event for span in collector.spans for event in span.events]
    assert SECRET.encode() not in collector.raw


async def test_a_client_that_goes_away_ends_its_spans(traced: House, collector: Collector) -> None:
    async def freezes(worker: Worker, query: object) -> None:
        await asyncio.sleep(600)

    worker = await traced.worker(behave=freezes)
    traced.serve(worker)
    asked = traced.rerank()
    await until(lambda: bool(worker.seen), "the attempt")
    asked.cancel()
    with suppress(asyncio.CancelledError):
        await asked
    found = attributes(await collector.one("POST /v2/rerank"))
    assert (found["http.response.status_code"], found["error.type"]) == (499, "client_went_away")
    assert attributes(await collector.one("score"))["error.type"] == "client_went_away"


async def test_a_drain_that_ends_a_request_is_not_told_as_a_client_that_went_away(
    collector: Collector, open_house: Callable[..., Awaitable[House]]
) -> None:
    house = await open_house(tracing=Tracing(time.monotonic), drain_timeout=0.1)

    async def freezes(worker: Worker, query: object) -> None:
        await asyncio.Event().wait()

    worker = await house.worker(behave=freezes)
    house.serve(worker)
    asked = house.rerank()
    await until(lambda: bool(worker.seen), "the attempt")
    await house.gateway.stop(asyncio.Event())
    status, _ = await asked
    found = attributes(await collector.one("POST /v2/rerank"))
    assert (status, found["http.response.status_code"], found["error.type"]) == (503, 503, "shutting_down")
    score = await collector.one("score")
    assert attributes(score)["error.type"] == "shutting_down"
    assert score.status.code == 2


async def test_a_mirrored_request_that_a_drain_ends_had_no_client_that_went_away(
    collector: Collector, open_house: Callable[..., Awaitable[House]]
) -> None:
    async def freezes(worker: Worker, query: object) -> None:
        await asyncio.Event().wait()

    house = await open_house(tracing=Tracing(time.monotonic))
    stable, canary = await house.worker("stable"), await house.worker("canary", freezes)
    traffic, mirror = (("stable", 100), ("canary", 0)), MirrorPolicy("canary", "stable", 100)
    house.serve(stable, canary, traffic=traffic, mirror=mirror)
    assert (await house.rerank())[0] == 200
    await until(lambda: bool(canary.seen), "the mirrored request")
    await house.gateway.stop(asyncio.Event())
    assert attributes(await collector.one("mirror"))["error.type"] == "shutting_down"


async def test_a_wait_that_ends_in_an_error_is_a_span_too(traced: House, collector: Collector) -> None:
    traced.serve(wake_timeout=0.05)
    assert (await traced.rerank())[0] in (503, 504)
    assert attributes(await collector.one("queue"))["error.type"]
    server = await collector.one("POST /v2/rerank")
    assert attributes(server)["rerank.queue_seconds"] >= 0.05
    assert not collector.named("score")


@pytest.mark.parametrize("traced_before", [True, False])
async def test_the_search_before_it_is_a_span_that_ends_where_the_request_begins(
    traced: House, collector: Collector, traced_before: bool
) -> None:
    traced.serve(await traced.worker())
    headers = {"X-Rerank-Candidate-Fetch-Ms": "120", **({TRACEPARENT: SAMPLED} if traced_before else {})}
    assert (await traced.rerank(headers=headers))[0] == 200
    server, fetch = await collector.one("POST /v2/rerank"), await collector.one("candidate fetch")
    assert fetch.trace_id == server.trace_id
    assert fetch.parent_span_id == (bytes.fromhex(PARENT) if traced_before else server.span_id)
    assert fetch.end_time_unix_nano == server.start_time_unix_nano
    assert fetch.end_time_unix_nano - fetch.start_time_unix_nano == pytest.approx(0.12e9, abs=1e3)


async def test_what_a_canary_is_asked_too_is_in_the_trace_of_its_request(traced: House, collector: Collector) -> None:
    stable, canary = await traced.worker("stable"), await traced.worker("canary")
    traffic, mirror = (("stable", 100), ("canary", 0)), MirrorPolicy("canary", "stable", 100)
    traced.serve(stable, canary, traffic=traffic, mirror=mirror)
    assert (await traced.rerank())[0] == 200
    server, copy = await collector.one("POST /v2/rerank"), await collector.one("mirror")
    assert copy.parent_span_id == server.span_id
    assert attributes(copy)["rerank.revision"] == "canary"
    assert canary.headers[0][TRACEPARENT].split("-")[2] == copy.span_id.hex()


async def test_the_client_decides_whether_its_trace_is_kept(traced: House, collector: Collector) -> None:
    worker = await traced.worker()
    traced.serve(worker)
    assert (await traced.rerank(headers={TRACEPARENT: UNSAMPLED}))[0] == 200
    assert (await traced.rerank(headers={TRACEPARENT: SAMPLED}))[0] == 200
    await collector.one("POST /v2/rerank")
    version, trace, parent, flags = worker.headers[0][TRACEPARENT].split("-")
    assert (version, trace, flags) == ("00", TRACE, "00"), "nor does the worker keep it"
    assert parent != PARENT


async def test_a_share_of_the_traces_that_begin_here_is_kept(
    collector: Collector, open_house: Callable[..., Awaitable[House]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(otlp.SAMPLER, otlp.BY_RATIO)
    monkeypatch.setenv(otlp.SAMPLER_ARGUMENT, "0.5")
    house = await open_house(tracing=Tracing(time.monotonic))
    worker = await house.worker()
    house.serve(worker)
    for _ in range(60):
        assert (await house.rerank())[0] == 200
    sent = [headers[TRACEPARENT].split("-") for headers in worker.headers]
    kept = [trace for _, trace, _, flags in sent if int(flags, 16) & 1]
    await until(lambda: len(collector.named("POST /v2/rerank")) == len(kept), "all that were kept")
    assert {span.trace_id.hex() for span in collector.spans} == set(kept)
    assert 10 <= len(kept) <= 50
    assert len({trace for _, trace, _, _ in sent}) == 60
    async with house.client.get(house.admin_url + "/metrics", headers={"Accept": "application/openmetrics-text"}) as it:
        told = await it.text()
    examples = {line.split('trace_id="')[1][:32] for line in told.splitlines() if "trace_id" in line}
    assert examples
    assert examples <= set(kept), "an exemplar's trace can be looked up"


async def test_the_log_tells_the_trace(traced: House, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    traced.serve(await traced.worker())
    await traced.rerank(headers={TRACEPARENT: SAMPLED})
    await traced.rerank(headers={TRACEPARENT: UNSAMPLED})
    async with traced.client.get(traced.url + "/healthz") as response:
        assert response.status == 200
    assert [(line.trace_id, line.traced) for line in traced.lines] == [(TRACE, True), (TRACE, False)]


async def test_health_checks_are_no_traces(traced: House, collector: Collector) -> None:
    traced.serve(await traced.worker())
    async with traced.client.get(traced.url + "/healthz") as response:
        assert response.status == 200
    async with traced.client.get(traced.url + "/v1/models") as response:
        assert response.status == 200
    found = attributes(await collector.one("GET /v1/models"))
    assert "gen_ai.operation.name" not in found
    assert len(collector.spans) == 1


async def test_what_a_client_makes_up_is_in_no_span(traced: House, collector: Collector) -> None:
    async with traced.client.request("PROPFIND", f"{traced.url}/{SECRET}?{SECRET}") as response:
        assert response.status == 404
    found = attributes(await collector.one("_OTHER (unknown)"))
    assert (found["http.request.method"], found["http.route"]) == ("_OTHER", "(unknown)")
    assert SECRET.encode() not in collector.raw


@pytest.mark.parametrize("state", ["refuses", "freezes", "gone"])
async def test_a_collector_that_does_not_take_them_costs_spans_only(
    collector: Collector,
    open_house: Callable[..., Awaitable[House]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    state: str,
) -> None:
    async def refuse() -> web.Response:
        return web.Response(status=503)

    async def freeze() -> web.Response:
        await asyncio.sleep(600)
        raise AssertionError

    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "8")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "8")
    if state == "gone":
        monkeypatch.setenv(otlp.ENDPOINT, "http://127.0.0.1:9")
    collector.answer = {"refuses": refuse, "freezes": freeze}.get(state)
    house = await open_house(tracing=Tracing(time.monotonic))
    house.serve(await house.worker())
    answers = [await house.rerank() for _ in range(30)]
    assert [status for status, _ in answers] == [200] * 30
    if state != "gone":
        await until(lambda: collector.requests > 0, "an attempt to send them")
    hurry = asyncio.Event()
    hurry.set()
    async with asyncio.timeout(LAST_SPANS + DEADLINE):
        await house.gateway.stop(hurry)
    complaints = [record for record in caplog.records if record.name.startswith("opentelemetry")]
    assert len(complaints) <= 1, "nor does it fill the log"


async def test_the_last_spans_are_sent(
    collector: Collector, open_house: Callable[..., Awaitable[House]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "600000")
    house = await open_house(tracing=Tracing(time.monotonic))
    house.serve(await house.worker())
    assert (await house.rerank())[0] == 200
    assert collector.spans == []
    hurry = asyncio.Event()
    hurry.set()
    await house.gateway.stop(hurry)
    assert len(collector.named("POST /v2/rerank")) == 1


@pytest.mark.parametrize(
    ("header", "trace_id"),
    [
        (SAMPLED, TRACE),
        (UNSAMPLED, TRACE),
        (None, ""),
        ("", ""),
        ("00-0", ""),
        (f"ff-{TRACE}-{PARENT}-01", ""),
        (f"00-{'0' * 32}-{PARENT}-01", ""),
        (f"00-{TRACE}-{'0' * 16}-01", ""),
        (f"00-{TRACE.upper()}-{PARENT}-01", ""),
        (f"{SAMPLED}-more", ""),
        (f"{SAMPLED}\n", ""),
    ],
)
async def test_without_traces_of_its_own_the_gateway_hands_the_clients_on(header: str | None, trace_id: str) -> None:
    trace = pass_on({} if header is None else {TRACEPARENT: header}, "POST", "/v2/rerank", 0.0)
    assert (trace.trace_id, trace.sampled) == (trace_id, False)
    with trace.attempt(Worker().endpoint(), 1) as attempt:
        assert attempt.headers == ({TRACEPARENT: header} if trace_id else {})
    assert trace_id or trace is UNTRACED


@pytest.fixture(scope="module")
def tracing() -> Iterator[Tracing]:
    """That sends nothing: what is begun here never ends."""
    tracing = Tracing(time.monotonic)
    yield tracing
    # It listens to loggers of the SDK's, which the worker's tests count lines of.
    asyncio.run(tracing.close())


_ODD = st.text(st.characters(blacklist_characters="\r\n\0"), max_size=60) | st.sampled_from(
    [SAMPLED, UNSAMPLED, "a=1,b=2"]
)


@given(headers_of=st.lists(st.tuples(st.sampled_from([TRACEPARENT, "tracestate", "TraceParent"]), _ODD), max_size=4))
def test_no_header_of_a_client_is_in_the_way(tracing: Tracing, headers_of: list[tuple[str, str]]) -> None:
    """Whatever comes goes on only in the standard's own form."""
    headers = CIMultiDictProxy(CIMultiDict(headers_of))
    for begin in (tracing.begin, pass_on):
        with begin(headers, "POST", "/v2/rerank", 0.0).attempt(Worker().endpoint(), 1) as attempt:
            sent = dict(attempt.headers)
        if begin is pass_on and not sent:
            continue
        assert re.fullmatch(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}", sent.pop(TRACEPARENT))
        assert sent.keys() <= {"tracestate"}
        assert all(value.isascii() and value.isprintable() for value in sent.values())


async def test_a_worker_gets_the_clients_context_where_no_traces_are_exported(house: House) -> None:
    worker = await house.worker()
    house.serve(worker)
    await house.rerank(headers={TRACEPARENT: SAMPLED})
    await house.rerank()
    assert [headers.get(TRACEPARENT) for headers in worker.headers] == [SAMPLED, None]


_HTTP = {otlp.ENDPOINT: "http://collector:4318"}


@pytest.mark.parametrize(
    ("environment", "wanted"),
    [
        ({}, False),
        ({otlp.ENDPOINT: ""}, False),
        ({otlp.SAMPLER: "always_on"}, False),
        (_HTTP, True),
        ({otlp.TRACES_ENDPOINT: "https://collector/v1/traces"}, True),
        ({**_HTTP, "OTEL_SDK_DISABLED": "TRUE"}, False),
        ({**_HTTP, "OTEL_TRACES_EXPORTER": "none"}, False),
        ({**_HTTP, "OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}, True),
        ({**_HTTP, otlp.SAMPLER: otlp.BY_RATIO, otlp.SAMPLER_ARGUMENT: "0.01"}, True),
        ({**_HTTP, otlp.SAMPLER: "Parentbased_Always_On"}, True),
    ],
)
def test_whether_traces_are_wanted(environment: Mapping[str, str], wanted: bool) -> None:
    assert otlp.traces_wanted(environment) is wanted


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({otlp.ENDPOINT: "collector:4317"}, "OTEL_EXPORTER_OTLP_ENDPOINT: 'collector:4317' must be the address"),
        ({otlp.TRACES_ENDPOINT: "http://"}, "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT: "),
        ({**_HTTP, "OTEL_TRACES_EXPORTER": "zipkin"}, "OTEL_TRACES_EXPORTER is 'zipkin': only otlp and none"),
        ({**_HTTP, "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "OTEL_EXPORTER_OTLP_PROTOCOL is 'grpc': only http/protobuf"),
        ({**_HTTP, otlp.SAMPLER: "some"}, "OTEL_TRACES_SAMPLER is 'some': use one of"),
        ({**_HTTP, otlp.SAMPLER: otlp.BY_RATIO}, "OTEL_TRACES_SAMPLER_ARG: '' must be a number from 0 to 1"),
        ({**_HTTP, otlp.SAMPLER: otlp.BY_RATIO, otlp.SAMPLER_ARGUMENT: "1%"}, "OTEL_TRACES_SAMPLER_ARG: '1%' must"),
        ({**_HTTP, otlp.SAMPLER: "traceidratio", otlp.SAMPLER_ARGUMENT: "nan"}, "OTEL_TRACES_SAMPLER_ARG: 'nan'"),
    ],
)
def test_an_environment_that_asks_for_what_is_not_there_is_refused(environment: Mapping[str, str], says: str) -> None:
    with pytest.raises(ValueError, match="^" + says.replace("(", r"\(")):
        otlp.traces_wanted(environment)


def test_a_gateway_that_cannot_export_as_asked_does_not_start() -> None:
    environment = {**os.environ, otlp.ENDPOINT: "collector:4317"}
    run = [sys.executable, "-m", "rerank_gateway"]
    ended = subprocess.run(run, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 64
    assert "OTEL_EXPORTER_OTLP_ENDPOINT" in json.loads(ended.stdout)["message"]


def test_without_an_endpoint_no_sdk_is_loaded() -> None:
    program = "import sys, rerank_gateway.__main__; print([name for name in sys.modules if 'opentelemetry' in name])"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert ended.stdout.strip() == "[]"


async def test_while_it_is_off_it_costs_next_to_nothing(house: House) -> None:
    """CPU time, as a share of what a small request takes with its client and a worker that does nothing."""
    house.serve(await house.worker())
    for _ in range(20):
        await house.rerank()
    began, requests = time.thread_time(), 200
    for _ in range(requests):
        await house.rerank()
    of_a_request = (time.thread_time() - began) / requests

    headers = CIMultiDict({"Host": "rerank", "Content-Type": "application/json"})
    endpoint, times = Worker().endpoint(), 5000
    began = time.thread_time()
    for _ in range(times):
        trace = pass_on(headers, "POST", "/v2/rerank", 0.0)
        with trace.waiting():
            pass
        with trace.attempt(endpoint, 1) as attempt:
            attempt.status = 200
        trace.end(Record("id"), 1.0)
    of_a_trace = (time.thread_time() - began) / times
    assert of_a_trace < of_a_request / 50


def test_ids_of_a_trace_that_is_not_kept_are_hexadecimal_and_never_nought(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(otlp.ENDPOINT, "http://127.0.0.1:9")
    monkeypatch.setenv(otlp.SAMPLER, otlp.BY_RATIO)
    monkeypatch.setenv(otlp.SAMPLER_ARGUMENT, "0")
    drawn = {128: [0, 0xABC, 2**128 - 1], 64: [0, 0xDEF, 2**64 - 1]}
    monkeypatch.setattr("rerank_gateway.tracing.getrandbits", lambda bits: drawn[bits].pop(0))
    endpoint = Endpoint("uid", "search", "products", "one", "127.0.0.1", 9)
    begun = Tracing(time.monotonic)
    sent = []
    for _ in range(3):
        with begun.begin({}, "POST", "/v2/rerank", 1.0).attempt(endpoint, 1) as attempt:
            sent.append(attempt.headers[TRACEPARENT])
    asyncio.run(begun.close())
    assert sent == [
        f"00-{1:032x}-{1:016x}-02",
        f"00-{0xABC:032x}-{0xDEF:016x}-02",
        f"00-{'f' * 32}-{'f' * 16}-02",
    ]
