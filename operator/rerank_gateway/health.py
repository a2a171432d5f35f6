"""Liveness, readiness and metrics.

Live: the event loop answers and the watches make progress (trying in vain is progress: a restart would not help).
Ready: Rerankers and Pods were read once, and the process is not going down. An API server that is away later changes
nothing: what was known still serves.
"""

import asyncio
from collections.abc import Callable

import msgspec
from aiohttp import web
from prometheus_client import exposition
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import Collector

from rerank_gateway.cluster.watch import Source
from rerank_gateway.metrics import Metrics

HEALTH_PATH = "/healthz"
READY_PATH = "/readyz"
METRICS_PATH = "/metrics"
ONLY = "name[]"
"""In the query of METRICS_PATH, as prometheus_client's own server has it: a series that is asked for. What no one asks
for is not collected."""

_Format = tuple[str, Callable[[Collector], bytes]]
"""Content type and writer."""
_TEXT: _Format = (exposition.CONTENT_TYPE_LATEST, exposition.generate_latest)
_OPENMETRICS: _Format = (openmetrics.CONTENT_TYPE_LATEST, openmetrics.generate_latest)
_OPENMETRICS_TYPE = "application/openmetrics-text"


def add_health(app: web.Application, source: Source, clock: Callable[[], float]) -> None:
    async def healthz(_: web.Request) -> web.Response:
        return _answer(source.stalled(clock()))

    app.router.add_get(HEALTH_PATH, healthz)


def add_readiness(app: web.Application, source: Source, draining: Callable[[], bool]) -> None:
    async def readyz(_: web.Request) -> web.Response:
        return _answer(unready(source, draining()))

    app.router.add_get(READY_PATH, readyz)


def unready(source: Source, draining: bool) -> str | None:
    """Why the gateway should get no requests; None: it should."""
    if draining:
        return "shutting down"
    return None if source.synced else "Rerankers and Pods were not read yet"


def add_metrics(app: web.Application, metrics: Metrics, source: Source) -> None:
    async def scrape(request: web.Request) -> web.Response:
        metrics.forget_gone(source.table)
        # Exemplars are only in the OpenMetrics format, for those who accept it.
        content_type, encode = _TEXT
        if _OPENMETRICS_TYPE in request.headers.get("Accept", ""):
            content_type, encode = _OPENMETRICS
        snapshot = metrics.snapshot()
        asked = request.query.getall(ONLY, None)
        wanted = snapshot if asked is None else snapshot.restricted_registry(asked)
        body = await asyncio.to_thread(encode, wanted)
        return web.Response(body=body, headers={"Content-Type": content_type})

    app.router.add_get(METRICS_PATH, scrape)


def _answer(problem: str | None) -> web.Response:
    body = {"status": "ok"} if problem is None else {"status": "unavailable", "message": problem}
    return web.Response(
        status=200 if problem is None else 503, body=msgspec.json.encode(body), content_type="application/json"
    )
