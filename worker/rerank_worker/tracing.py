"""Spans of requests and batches, exported over OTLP/HTTP as the standard OTEL_* environment says.

Loaded only where that names an endpoint (rerank_api.otlp). A batch serves many requests and is none's child: its span
is a trace of its own, linked with those of its sampled requests, both ways; without one it has no span. Spans hold ids,
counts, times and codes, never text. A thread of the SDK's sends them from a queue with a limit: nothing waits for a
collector, and what it does not take in time is lost.
"""

import asyncio
import logging
import socket
import threading
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
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
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import (
    Link,
    Span,
    SpanContext,
    SpanKind,
    StatusCode,
    Tracer,
    format_trace_id,
    set_span_in_context,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from rerank_worker.logs import Seldom
from rerank_worker.trace import Batch, Trace

log = logging.getLogger(__name__)

SERVICE = "rerank-worker"

LAST_SPANS = 2.0
"""Seconds that a worker which ends gives to what was not sent yet."""

COMPLAIN_EVERY = 60.0
"""Seconds between lines about a collector that does not take spans."""

SERVER_ERROR = 500

_COMPLAINING = (OTLPSpanExporter.__module__, BatchProcessor.__module__)
"""Loggers of who sends, and of the queue that is full."""

_propagator = TraceContextTextMapPropagator()


class Tracing:
    """``clock``: the one of all times that are noted."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        own = {SERVICE_NAME: SERVICE, SERVICE_VERSION: version(SERVICE), SERVICE_INSTANCE_ID: socket.gethostname()}
        # What OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES say goes before; the SDK's own guesses do not.
        resource = Resource.create({**own, **OTELResourceDetector().detect().attributes})
        processor = BatchSpanProcessor(OTLPSpanExporter())
        self._requests = TracerProvider(resource=resource, shutdown_on_exit=False)
        # Sampled with its requests: a batch is no child of theirs, so the sampler would throw the dice again.
        self._batches = TracerProvider(resource=resource, sampler=ALWAYS_ON, shutdown_on_exit=False)
        for provider in (self._requests, self._batches):
            provider.add_span_processor(processor)
        self._processor = processor
        self._tracer: Tracer = self._requests.get_tracer(SERVICE)
        self._batch_tracer: Tracer = self._batches.get_tracer(SERVICE)
        # Unix nanoseconds at the clock's 0, so that a step of the system's time makes no span longer or shorter.
        self._clock, self._zero = clock, time.time_ns() - round(clock() * 1e9)
        # What is wrong with a client's header is the client's, whose words would be quoted.
        logging.getLogger("opentelemetry.trace").setLevel(logging.CRITICAL)
        self._seldom = Seldom(1, COMPLAIN_EVERY, clock)
        for name in _COMPLAINING:
            logging.getLogger(name).addFilter(self._seldom)

    def begin(self, headers: Mapping[str, str], method: str, route: str, started: float) -> Trace | None:
        """For a request that came at ``started``; None where it is not sampled, by its sender or, where that says
        nothing, by the sampler."""
        given = _propagator.extract(headers)
        span = self._tracer.start_span(f"{method} {route}", given, SpanKind.SERVER, start_time=self._at(started))
        if not span.is_recording():
            return None
        span.set_attributes({"http.request.method": method, "http.route": route})
        return Trace(format_trace_id(span.get_span_context().trace_id), span)

    def end(self, trace: Trace, code: int, error: str | None, request_id: str) -> None:
        """The answer has the status ``code``; ``error``: its kind where there is one."""
        span: Span = trace.span
        context = set_span_in_context(span)
        for name, times in (("tokenize", trace.tokenizing), ("queue", trace.waiting)):
            if times is not None:
                child = self._tracer.start_span(name, context, start_time=self._at(times[0]))
                child.end(self._at(times[1]))
        for batch in trace.batches:
            if batch.made is None:
                batch.made = self._made(batch)
            span.add_link(batch.made)
        waited = None if trace.waiting is None else round(trace.waiting[1] - trace.waiting[0], 6)
        attributes = {
            "http.response.status_code": code,
            "error.type": error,
            "rerank.request_id": request_id or None,
            **_whose(trace),
            "rerank.documents": trace.documents,
            "rerank.documents.truncated": trace.truncated,
            "gen_ai.usage.input_tokens": trace.tokens,
            "rerank.queue_seconds": waited,
            "rerank.batches": trace.in_batches or None,
        }
        span.set_attributes({name: value for name, value in attributes.items() if value is not None})
        if code >= SERVER_ERROR:
            span.set_status(StatusCode.ERROR)
        span.end(self._at(self._clock()))

    def _made(self, batch: Batch) -> SpanContext:
        """The context of a span for ``batch``, and of one below it for the engine's part."""
        links = [Link(trace.span.get_span_context()) for trace in batch.requests]
        attributes = {
            "rerank.batch.pairs": batch.pairs,
            "rerank.batch.tokens": batch.tokens,
            "rerank.batch.padding_tokens": batch.padding,
            "rerank.batch.seconds": round(batch.ended - batch.started, 6),
            "rerank.engine": batch.engine,
            "rerank.precision": batch.precision,
        }
        span = self._batch_tracer.start_span(
            "batch", None, SpanKind.INTERNAL, attributes, links, start_time=self._at(batch.started)
        )
        if batch.computing is not None:
            context = set_span_in_context(span)
            inference = self._batch_tracer.start_span("inference", context, start_time=self._at(batch.computing))
            inference.end(self._at(batch.ended))
        if batch.error is not None:
            span.set_attribute("error.type", batch.error)
            span.set_status(StatusCode.ERROR)
        span.end(self._at(batch.ended))
        return span.get_span_context()

    async def close(self) -> None:
        """Send what is left, for ``LAST_SPANS`` at most."""
        # The SDK's own wait has another bound, and a collector that is away would use it up.
        last = threading.Thread(target=self._processor.shutdown, name="last spans", daemon=True)
        last.start()
        await asyncio.to_thread(last.join, LAST_SPANS)
        if last.is_alive():
            log.warning("the last spans were not sent: the collector did not take them within %g s", LAST_SPANS)
        for name in _COMPLAINING:
            logging.getLogger(name).removeFilter(self._seldom)

    def _at(self, seconds: float) -> int:
        return self._zero + round(seconds * 1e9)


def _whose(trace: Trace) -> dict[str, str]:
    if trace.model is None:
        return {}
    names = {"namespace": trace.model.namespace, "reranker": trace.model.reranker, "revision": trace.model.revision}
    return {f"rerank.{name}": value for name, value in names.items() if value}
