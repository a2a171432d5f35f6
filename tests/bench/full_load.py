"""What a gateway's full load needs: a stand-in for a worker that answers at once, and clients that take nearly no time
of their own. A genuine worker tokenizes for longer than a gateway takes for the request, and would set the pace.

    python tests/bench/full_load.py DOCUMENTS: serves as that worker in a pod, until it is stopped
"""

import asyncio
import os
import sys
import time
from collections.abc import Callable
from urllib.parse import urlsplit

import msgspec
from rerank_api import names, wire

HEAD_ENDS = b"\r\n\r\n"
LENGTH = b"content-length:"


async def ask(url: str, body: bytes, clients: int, seconds: float) -> int:
    """Requests that were answered with 200, each client asking again at once. Raises RuntimeError for other answers."""
    end = time.monotonic() + seconds
    return await _ask(url, body, clients, lambda: time.monotonic() < end)


async def ask_times(url: str, body: bytes, clients: int, requests: int) -> None:
    """So many requests, else as ``ask``."""
    left = iter(range(requests))
    await _ask(url, body, clients, lambda: next(left, None) is not None)


async def _ask(url: str, body: bytes, clients: int, more: Callable[[], bool]) -> int:
    """``more``: whether another request is to be sent."""
    place = urlsplit(url)
    head = (
        f"POST {place.path} HTTP/1.1\r\nHost: {place.netloc}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    request = head.encode() + body

    async def one() -> int:
        reader, writer = await asyncio.open_connection(place.hostname, place.port)
        answered = 0
        try:
            while more():
                writer.write(request)
                head = await reader.readuntil(HEAD_ENDS)
                answer = await reader.readexactly(_length(head))
                if not head.startswith(b"HTTP/1.1 200 "):
                    raise RuntimeError(f"{url}: {head[:100]!r} {answer[:300]!r}")
                answered += 1
        finally:
            writer.close()
        return answered

    return sum(await asyncio.gather(*(one() for _ in range(clients))))


class Instant(asyncio.Protocol):
    """Gives whoever asks anything the same answer."""

    def __init__(self, answer: bytes) -> None:
        self._answer = answer
        self._held = b""
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._held += data
        while (ends := self._held.find(HEAD_ENDS)) >= 0:
            whole = ends + len(HEAD_ENDS) + _length(self._held[:ends])
            if len(self._held) < whole:
                return
            self._held = self._held[whole:]
            self._transport.write(self._answer)


def _length(head: bytes) -> int:
    """Of the body that follows."""
    _, named, rest = head.lower().partition(LENGTH)
    return int(rest.partition(b"\r\n")[0]) if named else 0


async def serve(address: str, documents: int) -> None:
    scores = [round(1 / (2 + place), 6) for place in range(documents)]
    body = msgspec.json.encode(wire.ScoreResponse(scores, tokens=80 * documents))
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    server = await asyncio.get_running_loop().create_server(
        lambda: Instant(head.encode() + body), address, names.WORKER_PORT
    )
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(os.environ[names.ENV_POD_IP], int(sys.argv[1])))
