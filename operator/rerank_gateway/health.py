"""Liveness, readiness and metrics.

Live: the event loop answers and the watches make progress (trying in vain is progress: a restart would not help).
Ready: Rerankers and Pods were read once, and the process is not going down. An API server that is away later changes
nothing: what was known still serves.
"""

from collections.abc import Callable

import msgspec
from aiohttp import web
from prometheus_client.exposition import choose_encoder

from rerank_gateway.cluster.watch import Source
from rerank_gateway.metrics import Metrics

HEALTH_PATH = "/healthz"
READY_PATH = "/readyz"
METRICS_PATH = "/metrics"


def add_health(app: web.Application, source: Source, clock: Callable[[], float]) -> None:
    async def healthz(_: web.Request) -> web.Response:
        return _answer(source.stalled(clock()))

    app.router.add_get(HEALTH_PATH, healthz)


def add_readiness(app: web.Application, source: Source, draining: Callable[[], bool]) -> None:
    async def readyz(_: web.Request) -> web.Response:
        if draining():
            return _answer("shutting down")
        return _answer(None if source.synced else "Rerankers and Pods were not read yet")

    app.router.add_get(READY_PATH, readyz)


def add_metrics(app: web.Application, metrics: Metrics, source: Source) -> None:
    async def scrape(request: web.Request) -> web.Response:
        metrics.forget_gone(source.table)
        # Exemplars only stand in the OpenMetrics format, for those who accept it.
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        return web.Response(body=encode(metrics.registry), headers={"Content-Type": content_type})

    app.router.add_get(METRICS_PATH, scrape)


def _answer(problem: str | None) -> web.Response:
    body = {"status": "ok"} if problem is None else {"status": "unavailable", "message": problem}
    return web.Response(
        status=200 if problem is None else 503, body=msgspec.json.encode(body), content_type="application/json"
    )
