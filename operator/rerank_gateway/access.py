"""The outermost middleware: gives each request its id, and when it ends, counts it and writes one line to the log.

Logs ids, counts, durations and codes only: no headers (they hold keys), no paths, no text of a query or document.
"""

import logging
import re
import uuid
from collections.abc import Callable

from aiohttp import web
from aiohttp.typedefs import Middleware
from rerank_api import wire

from rerank_gateway.errors import Handler
from rerank_gateway.metrics import Metrics
from rerank_gateway.record import RECORD, Record
from rerank_gateway.slo import CLIENT_WENT_AWAY
from rerank_gateway.trace import Begin

log = logging.getLogger("rerank_gateway.access")

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")
HEADER_REVISION = "X-Rerank-Revision"
HEADER_CACHE = "X-Rerank-Cache"
"""hit, partial or miss; absent where the Reranker has no cache."""


def observe_requests(
    metrics: Metrics,
    clock: Callable[[], float],
    draining: Callable[[], bool],
    quiet_routes: frozenset[str],
    begin: Begin,
) -> Middleware:
    """Clients are told to connect elsewhere while ``draining``; ``quiet_routes`` are counted but neither logged nor
    traced. ``begin``: the trace of each request."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        started = clock()
        given = request.headers.get(wire.HEADER_REQUEST_ID, "")
        record = Record(given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex, _pattern(request))
        if record.route not in quiet_routes:
            trace = record.trace = begin(request.headers, request.method, record.route, started)
            record.trace_id, record.sampled = trace.trace_id, trace.sampled
        request[RECORD] = record
        record.code = CLIENT_WENT_AWAY
        try:
            response = await handler(request)
            record.code = response.status
            response.headers[wire.HEADER_REQUEST_ID] = record.request_id
            response.headers["Server"] = "rerank-gateway"
            if record.revision:
                response.headers[HEADER_REVISION] = record.revision
            if record.cache:
                response.headers[HEADER_CACHE] = record.cache
            if draining():
                response.force_close()
            return response
        finally:
            duration = clock() - started
            record.trace.end(record, started + duration)
            metrics.answered(record, duration)
            if record.route not in quiet_routes:
                _write(record, duration)

    return middleware


def _pattern(request: web.Request) -> str:
    resource = request.match_info.route.resource
    return resource.canonical if resource is not None else "(unknown)"


def _write(record: Record, duration: float) -> None:
    fields = {
        "id": record.request_id,
        "trace_id": record.trace_id,
        "route": record.route,
        "namespace": record.namespace,
        "reranker": record.reranker,
        "revision": record.revision,
        "code": record.code,
        "error": record.error,
        "bytes": record.body_bytes,
        "documents": record.documents,
        "priority": record.priority,
        "cache": record.cache,
        "cached": record.cached,
        "tokens": record.tokens,
        "truncated": record.truncated,
        "chunked": record.chunked,
        "attempts": record.attempts,
        "queue_ms": round(record.waited * 1000, 1),
        "duration_ms": round(duration * 1000, 1),
    }
    log.info("request", extra={"fields": {name: value for name, value in fields.items() if value != ""}})
