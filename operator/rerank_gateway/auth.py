"""API keys, when the gateway is given a file of them: one key a line, as `Authorization: Bearer KEY`.

Keys are compared in constant time and never logged. A file that is missing or empty lets nobody in.
"""

import hmac
import logging
import os
from collections.abc import Callable
from pathlib import Path

from aiohttp import web
from aiohttp.typedefs import Middleware

from rerank_gateway.errors import ApiError, Handler

log = logging.getLogger(__name__)

CHECK_SECONDS = 1.0

KEY_INDEX: web.RequestKey[int] = web.RequestKey("key_index", int)
"""Which of the keys the request came with: tells clients apart without holding the key."""


class ApiKeys:
    """The keys in a file, read again when it changes (a mounted Secret changes by a swapped link)."""

    def __init__(self, path: Path, clock: Callable[[], float]) -> None:
        self._path = path
        self._clock = clock
        self._checked_at: float | None = None
        self._version: tuple[int, int, int] | None = None
        self._keys: list[bytes] = []

    def find(self, authorization: str) -> int | None:
        """Index of the key that was given; None: it is no key."""
        self._refresh()
        scheme, _, given = authorization.partition(" ")
        key = given.strip().encode("utf-8", "surrogateescape")
        # Every key is compared, so that the time does not tell which one was close.
        matches = [hmac.compare_digest(key, known) for known in self._keys]
        return matches.index(True) if scheme.lower() == "bearer" and any(matches) else None

    def _refresh(self) -> None:
        now = self._clock()
        if self._checked_at is not None and now - self._checked_at < CHECK_SECONDS:
            return
        self._checked_at = now
        try:
            stat = os.stat(self._path)
            version = (stat.st_ino, stat.st_mtime_ns, stat.st_size)
            if version != self._version:
                lines = self._path.read_bytes().splitlines()
                self._keys = [line.strip() for line in lines if line.strip()]
                self._version = version
                log.info("read %d API keys from %s", len(self._keys), self._path)
        except OSError as error:
            if self._keys or self._version is None:
                log.error("API keys cannot be read, every request is refused: %s", error)
            self._keys, self._version = [], (0, 0, 0)


def require_key(keys: ApiKeys, public_paths: frozenset[str]) -> Middleware:
    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path not in public_paths:
            index = keys.find(request.headers.get("Authorization", ""))
            if index is None:
                raise ApiError(401, "unauthorized", "a valid API key is needed: send it as Authorization: Bearer KEY")
            request[KEY_INDEX] = index
        return await handler(request)

    return middleware
