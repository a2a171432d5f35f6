"""Ends what is still in flight when the time of a drain is over: its clients get an answer and try another gateway, and
it counts as failed.

Left to the server, such a request would end as one whose client went away, and would be no failure of anybody's.
"""

import asyncio

from aiohttp import web

from rerank_gateway.errors import ApiError, Handler


class Ending:
    def __init__(self) -> None:
        self._in_flight: set[asyncio.Timeout] = set()

    def cut(self) -> None:
        """Ends all that are in flight now, with 503."""
        for timeout in self._in_flight:
            timeout.reschedule(0.0)

    @web.middleware
    async def middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        timeout = asyncio.timeout(None)
        self._in_flight.add(timeout)
        try:
            async with timeout:
                return await handler(request)
        except TimeoutError:
            if not timeout.expired():
                raise
            message = "the gateway is going down and this took too long: send the request again"
            raise ApiError(503, "shutting_down", message, retry_after=1) from None
        finally:
            self._in_flight.discard(timeout)
