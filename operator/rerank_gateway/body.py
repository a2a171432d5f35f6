"""Reads request bodies within limits: of one body, of all bodies held at once, and of time.

A body that is too large is refused by its Content-Length before any of it is read, or as soon as it has grown too
large; what the client still sends is read and dropped by the server for a while, so that it gets to see the answer.
"""

import asyncio
from collections.abc import Generator
from contextlib import contextmanager

from aiohttp import web

from rerank_gateway.errors import ApiError

READ_TIMEOUT = 30.0


class HeldBytes:
    """Bytes of the bodies held in memory. Bounded, so that many waiting requests cannot exhaust it."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held = 0

    @contextmanager
    def lease(self) -> Generator["Lease"]:
        """Held until the end of the block."""
        lease = Lease(self)
        try:
            yield lease
        finally:
            self.held -= lease.size


class Lease:
    __slots__ = ("_all", "size")

    def __init__(self, held: HeldBytes) -> None:
        self._all = held
        self.size = 0

    def has_room(self, size: int) -> bool:
        return self._all.held + size <= self._all.limit

    def grow(self, size: int) -> None:
        if not self.has_room(size):
            message = f"the gateway holds {self._all.held} bytes of waiting requests already: retry later"
            raise ApiError(429, "overloaded", message, retry_after=1)
        self._all.held += size
        self.size += size


async def read_body(request: web.Request, limit: int, owner: str | None, lease: Lease) -> bytes:
    """The whole body, of at most ``limit`` bytes; ``owner``: the Reranker that has set it, if one has.

    Raises ApiError: 413, 415 for a compressed body, 408 when it takes too long, 429 when too much is held already.
    """
    encoding = request.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise ApiError(415, "unsupported_encoding", f"Content-Encoding {encoding!r}: send the body uncompressed")
    check_size(request.content_length or 0, limit, owner)
    await _continue(request)
    chunks: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(READ_TIMEOUT):
            while chunk := await request.content.readany():
                size += len(chunk)
                check_size(size, limit, owner)
                lease.grow(len(chunk))
                chunks.append(chunk)
    except TimeoutError:
        message = f"the body did not arrive within {READ_TIMEOUT:.0f} s"
        raise ApiError(408, "body_timeout", message) from None
    return b"".join(chunks)


async def leave_expectation(_: web.Request) -> None:
    """Of a client that asks before it sends (Expect: 100-continue): it is answered once the body is really wanted."""


async def _continue(request: web.Request) -> None:
    if request.headers.get("Expect", "").lower() == "100-continue":
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # the server must not take this for the begin of the answer


def check_size(size: int, limit: int, owner: str | None) -> None:
    if size > limit:
        by = "send less at once" if owner is None else "send fewer or shorter documents"
        bound = f"{limit} bytes" if owner is None else f"{limit} bytes (requests.maxBodyBytes of {owner})"
        raise ApiError(413, "body_too_large", f"the body is larger than {bound}: {by}")
