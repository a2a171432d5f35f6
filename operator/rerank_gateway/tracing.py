"""Spans of requests, exported over OTLP/HTTP as the standard OTEL_* environment says.

Loaded only where that names an endpoint (rerank_api.otlp). Spans hold ids, names, counts and codes: never text of a
query or document, nor a path as the client wrote it. They are sent by a thread of their own, from a queue with a
limit, so that no request ever waits for a collector; what the collector does not take in time is lost.
"""

import asyncio
import logging
import math
import threading
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from socket import gethostname

from aiohttp.hdrs import METH_ALL
from multidict import CIMultiDictProxy
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.propagators.textmap import Getter
from opentelemetry.sdk._shared_internal import BatchProcessor
from opentelemetry.sdk.resources import (
    SERVICE_INSTANCE_ID,
    SERVICE_NAME,
    SERVICE_VERSION,
    OTELResourceDetector,
    Resource,
)
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import (
    Span,
    SpanKind,
    Status,
    StatusCode,
    Tracer,
    format_trace_id,
    get_current_span,
    set_span_in_context,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from rerank_gateway.cluster.state import Endpoint
from rerank_gateway.ending import SHUTTING_DOWN
from rerank_gateway.errors import ApiError
from rerank_gateway.record import Record
from rerank_gateway.slo import CLIENT_WENT_AWAY
from rerank_gateway.trace import TRACEPARENT, Attempt, Trace

log = logging.getLogger(__name__)

SERVICE = "rerank-gateway"
LAST_SPANS = 2.0
"""Seconds that a gateway which goes down gives to what was not sent yet."""
SERVER_ERROR = 500
COMPLAIN_EVERY = 60.0
"""Seconds between lines about a collector that does not take spans."""

_WENT_AWAY = "client_went_away"

_propagator = TraceContextTextMapPropagator()
_NO_CONTEXT = Context()


class Tracing:
    """``clock``: the one by which requests are timed."""

    def __init__(self, clock: Callable[[], float]) -> None:
        own = {SERVICE_NAME: SERVICE, SERVICE_VERSION: version("rerank-operator"), SERVICE_INSTANCE_ID: gethostname()}
        # What the environment says goes before; the SDK's own guesses (a random instance) do not.
        resource = Resource.create({**own, **OTELResourceDetector().detect().attributes})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer(SERVICE)
        self._clock = clock
        # What is wrong with a client's header is the client's, whose words would be quoted.
        logging.getLogger("opentelemetry.trace").setLevel(logging.CRITICAL)
        seldom = _Seldom(clock)
        for complains in (OTLPSpanExporter.__module__, BatchProcessor.__module__):
            logging.getLogger(complains).addFilter(seldom)

    def begin(self, headers: Mapping[str, str], method: str, route: str, started: float) -> Trace:
        """A trace.Begin. Whether spans are kept is up to the client's context and the sampler."""
        zero = time.time_ns() - round(self._clock() * 1e9)
        given = _propagator.extract(headers, getter=_HEADERS) if TRACEPARENT in headers else _NO_CONTEXT
        method = method if method in METH_ALL else "_OTHER"  # as the convention has it: few names, no one's own
        name = f"{method} {route}"
        span = self._tracer.start_span(name, given, SpanKind.SERVER, start_time=zero + round(started * 1e9))
        if span.is_recording():
            span.set_attributes({"http.request.method": method, "http.route": route, "url.scheme": "http"})
            return _Sampled(self._tracer, span, given, started, self._clock, zero)
        return Trace(_trace_id(span), _headers(span))

    async def close(self) -> None:
        """Sends what is left, for LAST_SPANS at most."""
        # The SDK's own wait has another bound, and a collector that is away would use it up.
        flush = threading.Thread(target=self._provider.shutdown, name="last spans", daemon=True)
        flush.start()
        await asyncio.to_thread(flush.join, LAST_SPANS)
        if flush.is_alive():
            log.warning("the last spans were not sent: the collector did not take them within %g s", LAST_SPANS)


class _Sampled(Trace):
    """Keeps spans, timed by ``clock``; ``zero``: Unix nanoseconds at its 0, so that no step of the system's time makes
    a span longer or shorter."""

    sampled = True

    def __init__(
        self, tracer: Tracer, server: Span, given: Context, started: float, clock: Callable[[], float], zero: int
    ) -> None:
        super().__init__(_trace_id(server))
        self._tracer = tracer
        self._server = server
        self._given = given
        self._started = started
        self._context = set_span_in_context(server)
        self._clock = clock
        self._zero = zero
        self._cut = False
        """The gateway ends the request."""

    @contextmanager
    def waiting(self) -> Generator[None]:
        with self._child("queue", SpanKind.INTERNAL, {}):
            yield

    @contextmanager
    def attempt(self, endpoint: Endpoint, number: int, *, mirrored: bool = False) -> Generator[Attempt]:
        attributes = {
            "http.request.method": "POST",
            "server.address": endpoint.host,
            "server.port": endpoint.port,
            "k8s.pod.uid": endpoint.uid,
            "rerank.revision": endpoint.revision,
            "rerank.attempt": number,
        }
        with self._child("mirror" if mirrored else "score", SpanKind.CLIENT, attributes, mirrored) as span:
            attempt = Attempt(_headers(span))
            try:
                yield attempt
            finally:
                if attempt.status:
                    span.set_attribute("http.response.status_code", attempt.status)

    def cut(self) -> None:
        self._cut = True

    def end(self, record: Record, ended: float) -> None:
        if record.candidate_fetch is not None:
            # Beside the request, in the client's own span; below the request where that is not known.
            parent = self._given if get_current_span(self._given).get_span_context().is_valid else self._context
            began = self._at(self._started - record.candidate_fetch)
            self._tracer.start_span("candidate fetch", parent, start_time=began).end(self._at(self._started))
        self._server.set_attributes(_attributes(record))
        if record.code >= SERVER_ERROR:
            self._server.set_status(Status(StatusCode.ERROR))
        self._server.end(self._at(ended))

    @contextmanager
    def _child(
        self, name: str, kind: SpanKind, attributes: Mapping[str, str | int], unasked: bool = False
    ) -> Generator[Span]:
        """``unasked``: no client waits for it, so that only the gateway may cancel it."""
        span = self._tracer.start_span(name, self._context, kind, attributes, start_time=self._at(self._clock()))
        try:
            yield span
        except BaseException as error:
            _failed(span, error, SHUTTING_DOWN if unasked or self._cut else _WENT_AWAY)
            raise
        finally:
            span.end(self._at(self._clock()))

    def _at(self, seconds: float) -> int:
        return self._zero + round(seconds * 1e9)


def _attributes(record: Record) -> dict[str, str | int | float]:
    """Of the SERVER span. Left out is what is not known of the request, or says nothing."""
    attributes: dict[str, str | int | float] = {
        "http.response.status_code": record.code,
        "http.request.body.size": record.body_bytes,
        "error.type": _error_of(record),
        "rerank.request_id": record.request_id,
        "rerank.namespace": record.namespace,
        "rerank.reranker": record.reranker,
        "rerank.revision": record.revision,
        "rerank.priority": record.priority,
        "rerank.cache": record.cache,
    }
    if record.reranker:
        attributes["gen_ai.operation.name"] = "rerank"
        attributes["gen_ai.request.model"] = f"{record.namespace}/{record.reranker}"
        attributes["gen_ai.usage.input_tokens"] = record.tokens
        attributes["rerank.documents"] = record.documents
        attributes["rerank.documents.cached"] = record.cached
        attributes["rerank.documents.truncated"] = record.truncated
        attributes["rerank.retries"] = max(0, record.attempts - 1)
        attributes["rerank.queue_seconds"] = round(record.waited, 6)
    return {name: value for name, value in attributes.items() if value != ""}


def _error_of(record: Record) -> str:
    if record.code == CLIENT_WENT_AWAY:
        return _WENT_AWAY
    return record.error or (str(record.code) if record.code >= SERVER_ERROR else "")


def _failed(span: Span, error: BaseException, cancelled: str) -> None:
    """Told are its code or its kind only: what it says may quote the request. ``cancelled``: what it was if that."""
    if isinstance(error, ApiError):
        kind = error.code
    elif isinstance(error, asyncio.CancelledError):
        kind = cancelled
    else:
        kind = type(error).__name__.strip("_").lower()
    span.set_attribute("error.type", kind)
    span.set_status(Status(StatusCode.ERROR))


def _trace_id(span: Span) -> str:
    return format_trace_id(span.get_span_context().trace_id)


def _headers(span: Span) -> dict[str, str]:
    """By which the next process continues the trace below ``span``, as the W3C's Trace Context writes them."""
    context = span.get_span_context()
    parent = f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"
    headers = {TRACEPARENT: parent}
    if context.trace_state:
        headers["tracestate"] = context.trace_state.to_header()
    return headers


class _Headers(Getter[Mapping[str, str]]):
    """A request's: several of one name are one, as tracestate may come."""

    def get(self, carrier: Mapping[str, str], key: str) -> list[str] | None:
        if key not in carrier:
            return None
        return carrier.getall(key) if isinstance(carrier, CIMultiDictProxy) else [carrier[key]]

    def keys(self, carrier: Mapping[str, str]) -> list[str]:
        return list(carrier)


_HEADERS = _Headers()


class _Seldom(logging.Filter):
    """Lets a line through now and then: a collector that is away must not fill the log."""

    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__()
        self._clock = clock
        self._next = -math.inf

    def filter(self, record: logging.LogRecord) -> bool:
        now = self._clock()
        if now < self._next:
            return False
        self._next = now + COMPLAIN_EVERY
        return True
