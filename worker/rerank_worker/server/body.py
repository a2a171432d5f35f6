"""Reads a request's body: within a size, a deadline and what all requests in flight may hold together.

Bytes are counted as they come, not as announced, so that a client which announces much and sends nothing holds nothing.
"""

import asyncio
from types import TracebackType

from aiohttp import web

from rerank_worker.server.admission import Admission
from rerank_worker.server.protocol import Refusal


class Body:
    """A context that holds a request's bytes in ``admission`` from ``read`` until its end."""

    def __init__(self, request: web.Request, limit: int, admission: Admission | None = None) -> None:
        self._request = request
        self._limit = limit
        self._admission = admission
        self._held = 0

    def __enter__(self) -> "Body":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._admission is not None:
            self._admission.leave(self._held)

    async def read(self, seconds: float) -> bytes:
        """The body, within ``seconds``. Raises Refusal (busy, deadline), HTTPRequestEntityTooLarge, and
        HTTPUnsupportedMediaType where it is compressed: a few bytes could then be any number of them."""
        if self._request.headers.get("Content-Encoding", "identity").strip().lower() != "identity":
            raise web.HTTPUnsupportedMediaType(text="the header Content-Encoding is set: send the body uncompressed")
        announced = self._request.content_length or 0
        if announced > self._limit:
            raise self._too_large(announced)
        if self._admission is not None:
            self._admission.fits(announced)
        parts = []
        try:
            async with asyncio.timeout(max(0.0, seconds)):
                async for part in self._request.content.iter_any():
                    if self._held + len(part) > self._limit:
                        raise self._too_large(self._held + len(part))
                    if self._admission is not None:
                        self._admission.enter(len(part), self._held)
                    self._held += len(part)
                    parts.append(part)
        except TimeoutError as error:
            raise Refusal("deadline", "the deadline came before the request's body") from error
        return b"".join(parts)

    def _too_large(self, size: int) -> web.HTTPRequestEntityTooLarge:
        text = f"the body is larger than this worker takes: {self._limit} bytes at most"
        return web.HTTPRequestEntityTooLarge(max_size=self._limit, actual_size=size, text=text)
