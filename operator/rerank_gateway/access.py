"""The outermost middleware: gives each request its id and its trace, and when it ends, counts it and writes one line to
the log.

Logs ids, counts, durations and codes only: no headers (they hold keys), no paths, no text of a query or document. Of
good answers that came in time a share may do; what went wrong or took too long is always written.
"""

import hashlib
import logging
import re
import uuid
from collections.abc import Callable
from datetime import UTC, datetime

from aiohttp import web
from aiohttp.typedefs import Middleware
from rerank_api import wire

from rerank_gateway.cluster.state import Key
from rerank_gateway.errors import Handler
from rerank_gateway.logs import Line
from rerank_gateway.metrics import Metrics
from rerank_gateway.record import RECORD, Record
from rerank_gateway.slo import CLIENT_WENT_AWAY
from rerank_gateway.trace import Begin

log = logging.getLogger("rerank_gateway.access")

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")
HEADER_REVISION = "X-Rerank-Revision"
HEADER_CACHE = "X-Rerank-Cache"
"""hit, partial or miss; absent where the Reranker has no cache."""


class AccessLine(Line, omit_defaults=True):
    """Left out is what is not known of a request."""

    id: str
    traced: bool
    route: str
    code: int
    bytes: int
    documents: int
    cached: int
    tokens: int
    truncated: int
    chunked: int
    attempts: int
    queue_ms: float
    duration_ms: float
    sample: float
    namespace: str = ""
    reranker: str = ""
    revision: str = ""
    priority: str = ""
    cache: str = ""
    error: str = ""
    trace_id: str = ""


def observe_requests(
    metrics: Metrics,
    clock: Callable[[], float],
    draining: Callable[[], bool],
    quiet_routes: frozenset[str],
    begin: Begin,
    threshold: Callable[[Key], float],
    write: Callable[[AccessLine], None],
    sample: float = 1.0,
) -> Middleware:
    """Clients are told to connect elsewhere while ``draining``; ``quiet_routes`` are counted but neither logged nor
    traced. ``begin``: the trace of each request; ``threshold``: seconds from which on a Reranker's answer is late;
    ``write``: takes the lines; ``sample``: share, 0 to 1, of those about what went well that are written."""

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
                rate = log_rate(record.code, duration, threshold((record.namespace, record.reranker)), sample)
                if (rate == 1.0 or _draw(record.request_id) < rate) and log.isEnabledFor(logging.INFO):
                    write(_line(record, duration, rate))

    return middleware


def _pattern(request: web.Request) -> str:
    resource = request.match_info.route.resource
    return resource.canonical if resource is not None else "(unknown)"


def log_rate(code: int, duration: float, threshold: float, sample: float) -> float:
    """Share, 0 to 1, of the lines about such answers that are written: ``sample`` where nothing is to be said of it."""
    return sample if code < 400 and duration <= threshold else 1.0


def _draw(request_id: str) -> float:
    """0 <= draw < 1, the same for all lines about one id, here and elsewhere."""
    return int.from_bytes(hashlib.blake2b(request_id.encode(), digest_size=8).digest()) / 2**64


def _line(record: Record, duration: float, rate: float) -> AccessLine:
    # In the order of the fields: with names it is six times the instructions, a third of what the whole line takes.
    return AccessLine(
        datetime.now(UTC),
        "info",
        log.name,
        "request",
        record.request_id,
        record.sampled,
        record.route,
        record.code,
        record.body_bytes,
        record.documents,
        record.cached,
        record.tokens,
        record.truncated,
        record.chunked,
        record.attempts,
        _tenths(record.waited * 1000),
        _tenths(duration * 1000),
        rate,
        record.namespace,
        record.reranker,
        record.revision,
        record.priority,
        record.cache,
        record.error,
        record.trace_id,
    )


def _tenths(value: float) -> float:
    """Rounded to one place; round() does so by way of decimal text."""
    return int(value * 10 + 0.5) / 10
