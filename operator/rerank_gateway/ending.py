"""Ends what is still in flight when the time of a drain is over: its clients get an answer and try another gateway, and
it counts as failed.

Left to the server, such a request would end as one whose client went away, and would be no failure of anybody's. Its
trace is told before it is cut: a span sees nothing but a cancellation.
"""

import asyncio

from aiohttp import web

from rerank_gateway.errors import ApiError, Handler
from rerank_gateway.record import RECORD

SHUTTING_DOWN = "shutting_down"
"""Code of such an error."""


class Ending:
    def __init__(self) -> None:
        self._in_flight: dict[asyncio.Timeout, web.Request] = {}

    def cut(self) -> None:
        """Ends all that are in flight now, with 503."""
        for timeout, request in self._in_flight.items():
            request[RECORD].trace.cut()
            timeout.reschedule(0.0)

    @web.middleware
    async def middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        timeout = asyncio.timeout(None)
        self._in_flight[timeout] = request
        try:
            async with timeout:
                return await handler(request)
        except TimeoutError:
            if not timeout.expired():
                raise
            message = "the gateway is going down and this took too long: send the request again"
            raise ApiError(503, SHUTTING_DOWN, message, retry_after=1) from None
        finally:
            del self._in_flight[timeout]
