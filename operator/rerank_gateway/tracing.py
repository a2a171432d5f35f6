"""Spans of requests, exported over OTLP/HTTP as the standard OTEL_* environment says.

Loaded only where that names an endpoint (rerank_api.otlp). Spans hold ids, names, counts and codes: never text of a
query or document, nor a path as the client wrote it. No request ever waits for a collector (rerank_api.exporting).
"""

import asyncio
import os
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from random import getrandbits

from aiohttp.hdrs import METH_ALL
from multidict import CIMultiDictProxy
from opentelemetry.context import Context
from opentelemetry.propagators.textmap import Getter
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.trace import (
    Span,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    Tracer,
    format_span_id,
    format_trace_id,
    get_current_span,
    set_span_in_context,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from rerank_api import sampling
from rerank_api.exporting import Exporter
from rerank_api.sampling import TRACEPARENT, TRACESTATE, traceparent

from rerank_gateway.cluster.state import Endpoint
from rerank_gateway.ending import SHUTTING_DOWN
from rerank_gateway.errors import ApiError
from rerank_gateway.record import Record
from rerank_gateway.slo import CLIENT_WENT_AWAY
from rerank_gateway.trace import Attempt, Trace

SERVICE = "rerank-gateway"
SERVER_ERROR = 500

_WENT_AWAY = "client_went_away"

_propagator = TraceContextTextMapPropagator()
_NO_CONTEXT = Context()
_RANDOM = int(TraceFlags.RANDOM_TRACE_ID)


class Tracing:
    """``clock``: the one by which requests are timed."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._exporter = Exporter(SERVICE, version("rerank-operator"), clock)
        self._ids = _Ids()
        self._sampling = sampling.of(os.environ)
        self._tracer = self._exporter.provider(ids=self._ids).get_tracer(SERVICE)
        self._clock = clock

    def begin(self, headers: Mapping[str, str], method: str, route: str, started: float) -> Trace:
        """A trace.Begin. Whether spans are kept is up to the client's context and the sampler."""
        parent = sampling.parent(headers)
        trace_id = self._ids.begin() if parent is None else parent.trace_id
        plain = TRACESTATE not in headers and (parent is not None or TRACEPARENT not in headers)
        if plain and not self._sampling.keeps(trace_id, parent):
            # Most requests. A span of the SDK that keeps nothing would take ten times as long.
            flags = _RANDOM if parent is None else parent.flags & _RANDOM
            span_id = (getrandbits(64) or 1).to_bytes(8).hex()
            return Trace(trace_id, {TRACEPARENT: traceparent(trace_id, span_id, flags)})
        zero = self._exporter.zero()
        given = _propagator.extract(headers, getter=_HEADERS) if TRACEPARENT in headers else _NO_CONTEXT
        method = method if method in METH_ALL else "_OTHER"  # as the convention has it: few names, no one's own
        name = f"{method} {route}"
        span = self._tracer.start_span(name, given, SpanKind.SERVER, start_time=zero + round(started * 1e9))
        if span.is_recording():
            span.set_attributes({"http.request.method": method, "http.route": route, "url.scheme": "http"})
            return _Sampled(self._tracer, span, given, started, self._clock, zero)
        return Trace(_trace_id(span), _below(span))

    async def close(self) -> None:
        """Sends what is left, for exporting.LAST_SPANS at most."""
        await self._exporter.close()


class _Sampled(Trace):
    """Keeps spans, timed by ``clock``; ``zero``: Unix nanoseconds at its 0."""

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
            attempt = Attempt(_below(span))
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


def _below(span: Span) -> dict[str, str]:
    """By which the next process continues the trace below ``span``, as the W3C's Trace Context writes them."""
    context = span.get_span_context()
    headers = {TRACEPARENT: traceparent(_trace_id(span), format_span_id(context.span_id), context.trace_flags)}
    if context.trace_state:
        headers[TRACESTATE] = context.trace_state.to_header()
    return headers


class _Ids(RandomIdGenerator):
    """A trace that begins here has its id before it has a span: whether it is kept depends on it."""

    def __init__(self) -> None:
        self._begun = 0

    def begin(self) -> str:
        """Of the trace that begins next, 32 hex digits."""
        self._begun = begun = getrandbits(128) or 1  # as the SDK draws it; 0 is no id
        return begun.to_bytes(16).hex()

    def generate_trace_id(self) -> int:
        return self._begun


class _Headers(Getter[Mapping[str, str]]):
    """A request's: several of one name are one, as tracestate may come."""

    def get(self, carrier: Mapping[str, str], key: str) -> list[str] | None:
        if key not in carrier:
            return None
        return carrier.getall(key) if isinstance(carrier, CIMultiDictProxy) else [carrier[key]]

    def keys(self, carrier: Mapping[str, str]) -> list[str]:
        return list(carrier)


_HEADERS = _Headers()
