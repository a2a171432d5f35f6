"""Which path goes to which handler."""

from collections.abc import Awaitable, Callable

from aiohttp import web

from rerank_gateway.body import leave_expectation
from rerank_gateway.cluster.watch import Source
from rerank_gateway.serving import Serving, list_models

MODELS_PATH = "/v1/models"
FEEDBACK_PATH = "/v1/feedback"

_PREFIXES = ("", "/{namespace}/{name}")
"""The path may name the Reranker."""

# The path, the API version in its answers, and whether the shape with `texts` is understood there too.
_RERANK_PATHS = (("/v2/rerank", "2", False), ("/v1/rerank", "1", False), ("/rerank", "1", True))


def add_routes(app: web.Application, serving: Serving, source: Source) -> None:
    async def models(_: web.Request) -> web.Response:
        return web.Response(body=list_models(source.table), content_type="application/json")

    for path, version, with_texts in _RERANK_PATHS:
        handler = _rerank_handler(serving, version, with_texts)
        for prefix in _PREFIXES:
            app.router.add_post(prefix + path, handler, expect_handler=leave_expectation)
    for prefix in _PREFIXES:
        app.router.add_post(prefix + FEEDBACK_PATH, serving.feedback, expect_handler=leave_expectation)
    app.router.add_get(MODELS_PATH, models)


def _rerank_handler(
    serving: Serving, version: str, with_texts: bool
) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def handler(request: web.Request) -> web.StreamResponse:
        return await serving.rerank(request, version, with_texts)

    return handler
