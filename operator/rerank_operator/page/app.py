"""The page over HTTP: its files, and two answers in JSON. GET only: nothing here changes anything, sets a cookie or
takes a word from anyone but the names in an address.

It is answered from memory: few requests at a time, each answer made once and kept for a moment, whoever asks.
"""

import asyncio
import hashlib
import ipaddress
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import msgspec
from aiohttp import web
from aiohttp.typedefs import Handler

from rerank_operator.controller.kinds import Key
from rerank_operator.controller.leader import steady_clock

MOST_REQUESTS = 16
"""At a time; who comes then is asked to come again."""
HOLD_SECONDS = 1.0
"""That an answer is kept; longer where it took long to make."""
SHARE = 10
"""Making one answer may take one part in so many of the time."""
MOST_HELD = 64
"""Answers that are kept."""

_FILES = Path(__file__).parent / "static"
_TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class Told(Protocol):
    """Who knows what is to be told."""

    async def fleet(self) -> bytes: ...

    async def reranker(self, key: Key) -> bytes | None: ...


@dataclass(frozen=True, slots=True)
class _File:
    content: bytes
    type: str
    tag: str


@dataclass(slots=True)
class _Held:
    answer: asyncio.Task[bytes | None]
    until: float = float("inf")


class _Answers:
    """Each is made by one at a time, and kept for a moment."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._held: OrderedDict[Key | None, _Held] = OrderedDict()

    async def get(self, key: Key | None, make: Callable[[], Awaitable[bytes | None]]) -> bytes | None:
        held = self._held.get(key)
        if held is None or self._clock() >= held.until:
            held = self._held[key] = _Held(asyncio.create_task(self._make(key, make)))
            while len(self._held) > MOST_HELD:
                self._held.popitem(last=False)
        self._held.move_to_end(key)
        return await asyncio.shield(held.answer)

    async def _make(self, key: Key | None, make: Callable[[], Awaitable[bytes | None]]) -> bytes | None:
        began, until = self._clock(), 0.0
        try:
            answer = await make()
            until = self._clock() + max(HOLD_SECONDS, SHARE * (self._clock() - began))
            return answer
        finally:  # what failed is not kept
            if (held := self._held.get(key)) is not None:
                held.until = until


def application(told: Told, clock: Callable[[], float] = steady_clock) -> web.Application:
    files, answers, at_work = _read_files(), _Answers(clock), 0

    @web.middleware
    async def guarded(request: web.Request, handler: Handler) -> web.StreamResponse:
        nonlocal at_work
        if not is_own_name(request.headers.get("Host", "")):
            # Another site's name that was made to point here: its scripts would read what is shown (DNS rebinding).
            raise web.HTTPMisdirectedRequest(text="this page answers to addresses, localhost and names of a cluster")
        if at_work >= MOST_REQUESTS:
            raise web.HTTPServiceUnavailable(text="too many requests at a time", headers={"Retry-After": "1"})
        at_work += 1
        try:
            return await handler(request)
        finally:
            at_work -= 1

    async def safe_headers(_: web.Request, response: web.StreamResponse) -> None:
        response.headers.update(HEADERS)
        response.headers.setdefault("Cache-Control", "no-store")

    async def file(request: web.Request) -> web.Response:
        found = files.get(request.match_info.get("path", "index.html"))
        if found is None:
            raise web.HTTPNotFound
        headers = {"ETag": found.tag, "Cache-Control": "no-cache"}
        if request.headers.get("If-None-Match") == found.tag:
            return web.Response(status=304, headers=headers)
        return web.Response(body=found.content, content_type=found.type, charset="utf-8", headers=headers)

    async def fleet(_: web.Request) -> web.Response:
        return _json(await answers.get(None, told.fleet))

    async def reranker(request: web.Request) -> web.Response:
        key = (request.match_info["namespace"], request.match_info["name"])
        return _json(await answers.get(key, lambda: told.reranker(key)))

    app = web.Application(middlewares=[guarded])
    app.on_response_prepare.append(safe_headers)
    app.router.add_get("/", file)
    app.router.add_get("/static/{path:.+}", file)
    app.router.add_get("/api/fleet", fleet)
    app.router.add_get("/api/rerankers/{namespace}/{name}", reranker)
    return app


def is_own_name(host: str) -> bool:
    """Whether ``host``, of a request, is a name that only the cluster or the machine itself can have given."""
    name = host.rsplit(":", 1)[0] if host.count(":") == 1 or (host.startswith("[") and "]:" in host) else host
    name = name.strip("[]").rstrip(".").lower()
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return bool(name) and ("." not in name or name.endswith((".svc", ".svc.cluster.local", ".localhost")))
    return True


def _json(answer: bytes | None) -> web.Response:
    if answer is None:
        missing = msgspec.json.encode({"error": "there is no such Reranker"})
        return web.Response(status=404, body=missing, content_type="application/json")
    return web.Response(body=answer, content_type="application/json")


def _read_files() -> dict[str, _File]:
    found = {}
    for path in sorted(_FILES.rglob("*")):
        if path.suffix in _TYPES:
            content = path.read_bytes()
            tag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
            found[path.relative_to(_FILES).as_posix()] = _File(content, _TYPES[path.suffix], tag)
    return found
