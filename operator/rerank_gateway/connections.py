"""The gateway's connections. What is no valid HTTP is told so as all else is, in JSON, and leaves no line in the log.

aiohttp answers it below all middlewares: in plain text, under its own name, and with a traceback in the log, which
anybody could fill. It has no option for that (https://github.com/aio-libs/aiohttp/issues/3287), so this asks its
private parts for one thing: who makes the connections.
"""

import logging

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError, InvalidURLError, LineTooLong

from rerank_gateway.errors import ApiError, error_response

log = logging.getLogger(__name__)


class Runner(web.AppRunner):
    async def _make_server(self) -> web.Server:
        made = await super()._make_server()
        return _Server(made.request_handler, request_factory=made.request_factory, **self._kwargs)


class _Server(web.Server):
    def __call__(self) -> web.RequestHandler:
        return _Connection(self, loop=self._loop, **self._kwargs)


class _Connection(web.RequestHandler):
    __slots__ = ()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        if not isinstance(exc, HttpProcessingError):
            return super().handle_error(request, status, exc, message)
        log.debug("no valid HTTP: %s", type(exc).__name__)
        response = error_response(ApiError(400, "invalid_request", f"the request is no valid HTTP: {_reason(exc)}"))
        response.headers["Server"] = "rerank-gateway"
        response.force_close()
        return response


def _reason(error: HttpProcessingError) -> str:
    """aiohttp's words without what it quotes of the request, which comes after a colon."""
    if isinstance(error, InvalidURLError):
        return "its URL cannot be read"
    told = error.message.partition(":")[0].strip(" .") or type(error).__name__
    return f"{told}: shorten its URL or its headers" if isinstance(error, LineTooLong) else told
