"""Spans of requests and batches, exported over OTLP/HTTP as the standard OTEL_* environment says.

Loaded only where that names an endpoint (rerank_api.otlp). A batch serves many requests and is none's child: its span
is a trace of its own, linked with those of its sampled requests, both ways; without one it has no span. Spans hold ids,
counts, times and codes, never text. Nothing waits for a collector (rerank_api.exporting).
"""

import os
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version

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
from rerank_api import sampling
from rerank_api.exporting import Exporter

from rerank_worker.trace import Batch, Trace

SERVICE = "rerank-worker"

SERVER_ERROR = 500

_propagator = TraceContextTextMapPropagator()


class Tracing:
    """``clock``: the one of all times that are noted."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._exporter = Exporter(SERVICE, version(SERVICE), clock)
        self._sampling = sampling.of(os.environ)
        self._tracer: Tracer = self._exporter.provider().get_tracer(SERVICE)
        # Sampled with its requests: a batch is no child of theirs, so the sampler would throw the dice again.
        self._batch_tracer: Tracer = self._exporter.provider(ALWAYS_ON).get_tracer(SERVICE)
        self._clock = clock

    def begin(self, headers: Mapping[str, str], method: str, route: str, started: float) -> Trace | None:
        """For a request that came at ``started``; None where it is not sampled, by its sender or, where that says
        nothing, by the sampler."""
        parent = sampling.parent(headers)
        if parent is not None and not self._sampling.keeps(parent.trace_id, parent):
            return None  # most requests, which the SDK would take far longer to tell
        given, zero = _propagator.extract(headers), self._exporter.zero()
        began = _at(zero, started)
        span = self._tracer.start_span(f"{method} {route}", given, SpanKind.SERVER, start_time=began)
        if not span.is_recording():
            return None
        span.set_attributes({"http.request.method": method, "http.route": route})
        return Trace(format_trace_id(span.get_span_context().trace_id), span, zero)

    def end(self, trace: Trace, code: int, error: str | None, request_id: str) -> None:
        """The answer has the status ``code``; ``error``: its kind where there is one."""
        span: Span = trace.span
        context = set_span_in_context(span)
        for name, times in (("tokenize", trace.tokenizing), ("queue", trace.waiting)):
            if times is not None:
                child = self._tracer.start_span(name, context, start_time=_at(trace.zero, times[0]))
                child.end(_at(trace.zero, times[1]))
        for batch in trace.batches:
            if batch.made is None:
                batch.made = self._made(batch, trace.zero)
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
        span.end(_at(trace.zero, self._clock()))

    def _made(self, batch: Batch, zero: int) -> SpanContext:
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
            "batch", None, SpanKind.INTERNAL, attributes, links, start_time=_at(zero, batch.started)
        )
        if batch.computing is not None:
            context = set_span_in_context(span)
            inference = self._batch_tracer.start_span("inference", context, start_time=_at(zero, batch.computing))
            inference.end(_at(zero, batch.ended))
        if batch.error is not None:
            span.set_attribute("error.type", batch.error)
            span.set_status(StatusCode.ERROR)
        span.end(_at(zero, batch.ended))
        return span.get_span_context()

    async def close(self) -> None:
        """Send what is left, for exporting.LAST_SPANS at most."""
        await self._exporter.close()


def _at(zero: int, seconds: float) -> int:
    return zero + round(seconds * 1e9)


def _whose(trace: Trace) -> dict[str, str]:
    if trace.model is None:
        return {}
    names = {"namespace": trace.model.namespace, "reranker": trace.model.reranker, "revision": trace.model.revision}
    return {f"rerank.{name}": value for name, value in names.items() if value}
